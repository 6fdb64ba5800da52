//! SVIDs of workloads: what their agents get, how long it lives, and what it says.

use countersign_identity::key::PublicKeyKind;
use countersign_identity::{BundleSet, jwt, x509};
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::svid::{BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams};
use countersign_wire::types::entry::AdditionalAttributes;
use countersign_wire::types::{self, Entry};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::world::{self, Domain, HOUR, NodeIdentity, VirtualClock, entry, spiffe_id};

async fn client(domain: &Domain, node: &NodeIdentity) -> SvidClient<Channel> {
    SvidClient::new(domain.connect(Some(node)).await.unwrap())
}

async fn token(domain: &Domain, node: &NodeIdentity, entry_id: &str, audience: &[&str]) -> Result<types::Jwtsvid, Status> {
    let audience = audience.iter().map(|a| (*a).to_owned()).collect();
    let request = NewJwtsvidRequest { entry_id: entry_id.to_owned(), audience };
    client(domain, node).await.new_jwtsvid(request).await.map(|answer| answer.into_inner().svid.unwrap())
}

async fn stage(extra: &str) -> (Domain, VirtualClock, NodeIdentity) {
    let (domain, clock) = world::virtual_domain(extra).await;
    let node = world::node(&domain).await;
    (domain, clock, node)
}

async fn bundle_set(domain: &Domain) -> BundleSet {
    BundleSet::from_iter([Arc::new(domain.bundle().await.unwrap())])
}

#[tokio::test]
async fn every_item_of_a_batch_is_judged_by_itself() {
    let (domain, _clock, node) = stage("").await;
    let mine = domain.entry_from(entry(&node.id, "/mine", &["uid:1"])).await.unwrap();
    let other = world::node(&domain).await;
    let not_mine = domain.entry_from(entry(&other.id, "/not-mine", &["uid:1"])).await.unwrap();
    let csr = || world::key().request(None, &[]).unwrap();
    let item = |entry_id: &str, csr: Vec<u8>| NewX509svidParams { entry_id: entry_id.to_owned(), csr };
    let params = vec![
        item(&mine.id, csr()),
        item(&not_mine.id, csr()),
        item("unknown", csr()),
        item("", csr()),
        item(&mine.id, Vec::new()),
        item(&mine.id, b"nonsense".to_vec()),
        item(&mine.id, world::forged_request()),
        item(&mine.id, csr()),
    ];
    let results = client(&domain, &node).await.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap().into_inner().results;
    let told: Vec<(i32, &str, bool)> =
        results.iter().map(|r| (r.status.as_ref().unwrap().code, r.status.as_ref().unwrap().message.as_str(), r.svid.is_some())).collect();
    assert_eq!(
        told,
        [
            (0, "OK", true),
            (5, "entry not found or not authorized", false),
            (5, "entry not found or not authorized", false),
            (3, "missing entry ID", false),
            (3, "missing CSR", false),
            (3, "malformed CSR: malformed certificate signing request", false),
            (3, "malformed CSR: the request is not signed by its own key", false),
            (0, "OK", true),
        ]
    );
    let mut client = client(&domain, &node).await;
    let status = client.batch_new_x509svid(BatchNewX509svidRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "missing parameters"));
    let params = vec![NewX509svidParams::default(); 501];
    let status = client.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "rate (501) exceeds burst size (500)"));
}

#[tokio::test]
async fn a_certificate_says_what_its_entry_says_and_nothing_its_request_asks_for() {
    let (domain, _clock, node) = stage("").await;
    let granted = Entry { dns_names: vec!["db.internal".to_owned(), "*.db.internal".to_owned()], ..entry(&node.id, "/db", &["uid:1"]) };
    let granted = domain.entry_from(granted).await.unwrap();
    let pair = world::key();
    // The request asks for another identity and another name.
    let csr = pair.request(Some(&spiffe_id("/admin")), &["evil.internal".to_owned()]).unwrap();
    let params = vec![NewX509svidParams { entry_id: granted.id.clone(), csr }];
    let results = client(&domain, &node).await.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap().into_inner().results;
    let svid = results[0].svid.clone().unwrap();
    assert_eq!(svid.cert_chain.len(), 1, "a self-signed authority is not sent along");
    let (id, leaf) = x509::verify_chain(&svid.cert_chain, &bundle_set(&domain).await, domain.clock.now()).unwrap();
    assert_eq!((id, svid.expires_at), (spiffe_id("/db"), leaf.not_after.secs()));
    assert_eq!(leaf.uris, ["spiffe://example.org/db"]);
    assert_eq!(leaf.dns_names, ["db.internal", "*.db.internal"]);
    assert!(leaf.subject_text.contains("CN=db.internal"), "{}", leaf.subject_text);
    assert_eq!(leaf.public_key, *pair.public_key());
    assert_eq!(leaf.not_before.secs(), domain.clock.now().secs() - 10);
    assert!(!leaf.is_ca && leaf.key_usage.unwrap().critical && leaf.extended_key_usage == Some((true, true)));
}

#[tokio::test]
async fn lifetimes_come_from_the_entry_and_end_with_it_and_with_the_authority() {
    let (domain, clock, node) = stage("default_x509_svid_ttl = \"30m\"\n default_jwt_svid_ttl = \"2m\"\n agent_ttl = \"40h\"").await;
    let now = domain.clock.now().secs();
    let with = |path: &str, x509: i32, jwt: i32, expires_at: i64| Entry {
        x509_svid_ttl: x509,
        jwt_svid_ttl: jwt,
        expires_at,
        ..entry(&node.id, path, &["uid:1"])
    };
    let default = domain.entry_from(with("/default", 0, 0, 0)).await.unwrap();
    let own = domain.entry_from(with("/own", 90, 45, 0)).await.unwrap();
    let ending = domain.entry_from(with("/ending", 3600, 3600, now + 600)).await.unwrap();
    let endless = domain.entry_from(with("/endless", i32::MAX, i32::MAX, 0)).await.unwrap();
    for (entry, x509, jwt) in [(&default, 1800, 120), (&own, 90, 45), (&ending, 600, 600), (&endless, 86_400, 86_400)] {
        let svid = world::workload(&domain, &node, entry).await;
        assert_eq!(svid.leaf.not_after.secs() - now, x509, "{:?}", entry.spiffe_id);
        let token = token(&domain, &node, &entry.id, &["a"]).await.unwrap();
        assert_eq!((token.issued_at, token.expires_at - now), (now, jwt), "{:?}", entry.spiffe_id);
    }
    // At the very end of an entry nothing is issued for it; nothing is pruned for ten seconds more.
    let ending = domain.entry_from(with("/brief", 0, 0, now + 20)).await.unwrap();
    clock.advance(Duration::from_secs(20));
    assert!(world::list(&domain).await.contains(&ending));
    let params = vec![NewX509svidParams { entry_id: ending.id.clone(), csr: world::key().request(None, &[]).unwrap() }];
    let results = client(&domain, &node).await.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap().into_inner().results;
    assert_eq!(results[0].status.as_ref().unwrap().message, "entry not found or not authorized");
    let status = token(&domain, &node, &ending.id, &["a"]).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "entry not found or not authorized"));
}

#[tokio::test]
async fn what_an_entry_grants_is_over_the_moment_it_is_deleted_or_moved() {
    let (domain, _clock, node) = stage("").await;
    let granted = domain.entry_from(entry(&node.id, "/w", &["uid:1"])).await.unwrap();
    token(&domain, &node, &granted.id, &["a"]).await.unwrap();
    let moved = Entry { parent_id: Some(world::id_to_wire(&spiffe_id("/elsewhere"))), ..granted.clone() };
    world::update(&domain, moved, None).await.unwrap();
    assert_eq!(token(&domain, &node, &granted.id, &["a"]).await.unwrap_err().code(), Code::NotFound);
    world::update(&domain, granted.clone(), None).await.unwrap();
    token(&domain, &node, &granted.id, &["a"]).await.unwrap();
    world::delete(&domain, &granted.id).await.unwrap();
    assert_eq!(token(&domain, &node, &granted.id, &["a"]).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_token_names_its_audiences_and_verifies_against_the_bundle() {
    let (domain, _clock, node) = stage("jwt_issuer = \"https://issuer.test\"").await;
    let granted = domain.entry_from(entry(&node.id, "/w", &["uid:1"])).await.unwrap();
    // Empty audiences are dropped.
    let svid = token(&domain, &node, &granted.id, &["one", "", "two"]).await.unwrap();
    let bundles = bundle_set(&domain).await;
    let verified = jwt::verify(&svid.token, "two", &bundles, domain.clock.now()).unwrap();
    assert_eq!((verified.spiffe_id, verified.audience), (spiffe_id("/w"), vec!["one".to_owned(), "two".to_owned()]));
    assert_eq!(verified.claims["iss"], "https://issuer.test");
    assert!(verified.claims.get("jti").is_none() && verified.claims.get("nbf").is_none());
    jwt::verify(&svid.token, "three", &bundles, domain.clock.now()).unwrap_err();
    let alone = token(&domain, &node, &granted.id, &["one"]).await.unwrap();
    assert_eq!(jwt::peek(&alone.token).unwrap()["aud"], serde_json::json!(["one"]), "always a list");
}

#[tokio::test]
async fn tokens_are_told_apart_by_jti_where_the_entry_says_so() {
    let (domain, _clock, node) = stage("").await;
    let extra = Some(AdditionalAttributes { jwt_svid_include_jti: true, ..AdditionalAttributes::default() });
    let granted = domain.entry_from(Entry { additional_attributes: extra, ..entry(&node.id, "/w", &["uid:1"]) }).await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let svid = token(&domain, &node, &granted.id, &["a"]).await.unwrap();
        seen.insert(jwt::peek(&svid.token).unwrap()["jti"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen.len(), 5);
}

#[tokio::test]
async fn tokens_without_entry_or_audience_are_refused() {
    let (domain, _clock, node) = stage("").await;
    let granted = domain.entry_from(entry(&node.id, "/w", &["uid:1"])).await.unwrap();
    let many = vec!["a"; 33];
    let long = "a".repeat(2049);
    let limits = "at most 32 audiences of at most 2048 bytes are allowed";
    for (entry_id, audience, code, text) in [
        ("", vec!["a"], Code::InvalidArgument, "missing entry ID"),
        ("unknown", vec!["a"], Code::NotFound, "entry not found or not authorized"),
        (granted.id.as_str(), vec![], Code::InvalidArgument, "at least one audience is required"),
        (granted.id.as_str(), vec![""], Code::InvalidArgument, "at least one audience is required"),
        (granted.id.as_str(), many, Code::InvalidArgument, limits),
        (granted.id.as_str(), vec![long.as_str()], Code::InvalidArgument, limits),
    ] {
        let status = token(&domain, &node, entry_id, &audience).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, text));
    }
}

#[tokio::test]
async fn a_server_without_tokens_says_so_and_has_no_key_for_them() {
    let (domain, clock, node) = stage("disable_jwt_svids = true").await;
    let granted = domain.entry_from(entry(&node.id, "/w", &["uid:1"])).await.unwrap();
    let refused = token(&domain, &node, &granted.id, &["a"]).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unimplemented, "JWT functionality is disabled"));
    let request = countersign_wire::svid::MintJwtsvidRequest {
        id: Some(world::id_to_wire(&spiffe_id("/w"))),
        audience: vec!["a".to_owned()],
        ttl: 0,
    };
    let refused = world::svids(&domain).await.mint_jwtsvid(request).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unimplemented, "JWT functionality is disabled"));
    assert!(domain.bundle().await.unwrap().jwt_authorities().is_empty());
    world::workload(&domain, &node, &granted).await;
    // The other family rotates alone.
    clock.advance(HOUR * 13);
    let prepared = async || (domain.bundle().await.unwrap().x509_authorities().len() == 2).then_some(());
    world::until("the next X.509 authority", prepared).await.unwrap();
    assert!(domain.bundle().await.unwrap().jwt_authorities().is_empty());
}

#[tokio::test]
async fn authorities_have_keys_of_the_configured_types() {
    let (domain, _clock) = world::virtual_domain("ca_key_type = \"ec-p384\"\n jwt_key_type = \"rsa-2048\"").await;
    let bundle = domain.bundle().await.unwrap();
    let kinds = (bundle.x509_authorities()[0].certificate.public_key.kind(), bundle.jwt_authorities()[0].public_key.kind());
    assert_eq!(kinds, (PublicKeyKind::EcP384, PublicKeyKind::Rsa));
    // Tokens get keys as certificates do unless they are told otherwise.
    let (domain, _clock) = world::virtual_domain("ca_key_type = \"ec-p384\"").await;
    assert_eq!(domain.bundle().await.unwrap().jwt_authorities()[0].public_key.kind(), PublicKeyKind::EcP384);
}
