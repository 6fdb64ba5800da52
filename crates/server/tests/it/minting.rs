//! SVIDs that administrators ask for.

use countersign_identity::{BundleSet, SpiffeId, jwt, x509};
use countersign_wire::svid::{MintJwtsvidRequest, MintX509svidRequest};
use countersign_wire::types;
use std::sync::Arc;
use tonic::{Code, Status};

use crate::world::{self, Domain, id_to_wire, spiffe_id};

async fn mint(domain: &Domain, id: Option<&SpiffeId>, dns_names: &[&str], ttl: i32) -> Result<types::X509svid, Status> {
    let names: Vec<String> = dns_names.iter().map(|n| (*n).to_owned()).collect();
    let csr = world::key().request(id, &names).unwrap();
    world::svids(domain).await.mint_x509svid(MintX509svidRequest { csr, ttl }).await.map(|answer| answer.into_inner().svid.unwrap())
}

async fn token(domain: &Domain, id: Option<types::Spiffeid>, audience: &[&str], ttl: i32) -> Result<types::Jwtsvid, Status> {
    let audience = audience.iter().map(|a| (*a).to_owned()).collect();
    world::svids(domain).await.mint_jwtsvid(MintJwtsvidRequest { id, audience, ttl }).await.map(|answer| answer.into_inner().svid.unwrap())
}

#[tokio::test]
async fn a_minted_certificate_has_the_names_its_request_asks_for() {
    let (domain, _clock) = world::virtual_domain("default_x509_svid_ttl = \"30m\"").await;
    let now = domain.clock.now();
    let bundles = BundleSet::from_iter([Arc::new(domain.bundle().await.unwrap())]);
    for (ttl, lifetime) in [(0, 1800), (60, 60), (i32::MAX, 86_400)] {
        let svid = mint(&domain, Some(&spiffe_id("/minted")), &["one.test", "two.test"], ttl).await.unwrap();
        let (id, leaf) = x509::verify_chain(&svid.cert_chain, &bundles, now).unwrap();
        assert_eq!((id, leaf.not_after.secs() - now.secs()), (spiffe_id("/minted"), lifetime));
        assert_eq!(leaf.dns_names, ["one.test", "two.test"]);
        assert_eq!(svid.id, Some(id_to_wire(&spiffe_id("/minted"))));
    }
}

#[tokio::test]
async fn certificates_nobody_should_have_are_not_minted() {
    let domain = Domain::start().await.unwrap();
    let foreign = SpiffeId::parse("spiffe://other.test/x").unwrap();
    let root = SpiffeId::parse("spiffe://example.org").unwrap();
    let minted = spiffe_id("/minted");
    let cases: [(Option<&SpiffeId>, &[&str], i32, &str); 8] = [
        (None, &[], 0, "invalid CSR: URI SAN is required"),
        (Some(&foreign), &[], 0, "is not a member of trust domain"),
        (Some(&root), &[], 0, "has no path"),
        (Some(&spiffe_id("/spire/server")), &[], 0, "reserved namespace"),
        (Some(&spiffe_id("/spire/agent/x")), &[], 0, "reserved namespace"),
        (Some(&minted), &["*.one.test", "a.one.test"], 0, "wildcard overlaps with another DNS name: `*.one.test`"),
        (Some(&minted), &["a b"], 0, "invalid DNS name `a b`"),
        (Some(&minted), &[], -1, "invalid ttl: it must not be negative"),
    ];
    for (id, names, ttl, text) in cases {
        let status = mint(&domain, id, names, ttl).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(text), "expected {text:?}, got {:?}", status.message());
    }
    for (csr, text) in [
        (Vec::new(), "missing CSR"),
        (b"nonsense".to_vec(), "malformed CSR: malformed certificate signing request"),
        (world::forged_request(), "malformed CSR: the request is not signed by its own key"),
    ] {
        let status = world::svids(&domain).await.mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    }
    // A wildcard beside names it does not cover is fine.
    mint(&domain, Some(&minted), &["*.one.test", "a.b.one.test", "one.test"], 0).await.unwrap();
}

#[tokio::test]
async fn a_minted_token_is_for_the_asked_audience_and_time() {
    let (domain, _clock) = world::virtual_domain("").await;
    let bundles = BundleSet::from_iter([Arc::new(domain.bundle().await.unwrap())]);
    let now = domain.clock.now();
    for (ttl, lifetime) in [(0, 300), (60, 60), (i32::MAX, 86_400)] {
        let svid = token(&domain, Some(id_to_wire(&spiffe_id("/minted"))), &["a", "b"], ttl).await.unwrap();
        let verified = jwt::verify(&svid.token, "b", &bundles, now).unwrap();
        assert_eq!((verified.spiffe_id, verified.expires_at.secs() - now.secs()), (spiffe_id("/minted"), lifetime));
        assert_eq!(svid.expires_at, verified.expires_at.secs());
    }
}

#[tokio::test]
async fn tokens_nobody_should_have_are_not_minted() {
    let domain = Domain::start().await.unwrap();
    let minted = || Some(id_to_wire(&spiffe_id("/minted")));
    let foreign = Some(types::Spiffeid { trust_domain: "other.test".to_owned(), path: "/x".to_owned() });
    let cases: [(Option<types::Spiffeid>, &[&str], i32, &str); 6] = [
        (None, &["a"], 0, "invalid SPIFFE ID: request must specify SPIFFE ID"),
        (foreign, &["a"], 0, "is not a member of trust domain"),
        (Some(id_to_wire(&spiffe_id("/spire/agent/x"))), &["a"], 0, "reserved namespace"),
        (minted(), &[], 0, "at least one audience is required"),
        (minted(), &[""], 0, "at least one audience is required"),
        (minted(), &["a"], -1, "invalid ttl: it must not be negative"),
    ];
    for (id, audience, ttl, text) in cases {
        let status = token(&domain, id, audience, ttl).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(text), "expected {text:?}, got {:?}", status.message());
    }
}

#[tokio::test]
async fn what_is_not_there_yet_says_so() {
    let domain = Domain::start().await.unwrap();
    let status = world::svids(&domain).await.mint_witsvid(countersign_wire::svid::MintWitsvidRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unimplemented, "WIT-SVIDs are not implemented by this Countersign server"));
}
