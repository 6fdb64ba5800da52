//! The clock of a running server is set forward and back: everything that is signed lies within its authority's life, no
//! authority is made or dropped for it, and agents keep their line.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::x509::{Certificate, verify_chain};
use countersign_identity::{Bundle, BundleSet, Timestamp, jwt};
use countersign_transport::clock::Clock as _;
use countersign_wire::journal::{IssuedRequest, Kind, Record};
use countersign_wire::node::node_client::NodeClient;
use countersign_wire::node::{IssueRequest, JwtParams, issue_request, issue_response};
use countersign_wire::types;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::following::Follower;
use crate::journal;
use crate::world::{self, Domain, HOUR, ROUND, entry};

/// One of each for a workload, over the agent's connection.
async fn issue(line: &Channel, entry_id: &str) -> Result<(Certificate, String), Status> {
    let ask = async |credential| {
        let message = IssueRequest { entry_id: entry_id.to_owned(), credential: Some(credential), ..IssueRequest::default() };
        Ok::<_, Status>(NodeClient::new(line.clone()).issue(message).await?.into_inner().credential.unwrap())
    };
    let audience = vec!["a".to_owned()];
    let issue_response::Credential::Jwt(token) = ask(issue_request::Credential::Jwt(JwtParams { audience })).await? else {
        panic!("no token")
    };
    let csr = world::key().request(None, &[]).unwrap();
    let issue_response::Credential::X509(svid) = ask(issue_request::Credential::X509Csr(csr)).await? else { panic!("no certificate") };
    Ok((Certificate::parse(&svid.cert_chain[0]).unwrap(), token.token))
}

async fn records(domain: &Domain) -> Vec<Record> {
    journal::issued(domain, IssuedRequest { limit: 10_000, ..IssuedRequest::default() }).await
}

/// Every certificate in the journal lies within the life of the authority that signed it.
async fn lies_within(domain: &Domain, bundle: &Bundle) {
    for record in records(domain).await {
        if !matches!(record.kind(), Kind::WorkloadX509 | Kind::AgentX509 | Kind::OwnX509 | Kind::MintedX509) {
            continue;
        }
        let authority = bundle.x509_authorities().iter().find(|a| a.certificate.authority_id() == record.authority_id).unwrap();
        let within = authority.certificate.not_before.secs()..=authority.certificate.not_after.secs();
        assert!(within.contains(&record.not_before) && within.contains(&record.expires_at), "{record:?} of {within:?}");
    }
}

fn verify(bundle: &Bundle, certificate: &Certificate, token: &str, now: Timestamp) {
    let bundles = BundleSet::from_iter([Arc::new(bundle.clone())]);
    verify_chain(&[certificate.der()], &bundles, now).unwrap();
    let verified = jwt::verify(token, "a", &bundles, now).unwrap();
    assert!(verified.claims["iat"].as_i64().unwrap() <= now.secs(), "a token from the future");
}

#[tokio::test]
async fn an_hour_forward_and_an_hour_back_are_nothing_to_a_server_and_its_agents() {
    let (domain, clock) = world::virtual_domain("agent_ttl = \"8h\"\nca_ttl = \"72h\"").await;
    clock.advance(2 * HOUR);
    world::settled(&domain).await;
    let node = world::node(&domain).await;
    let line = domain.connect(Some(&node)).await.unwrap();
    let created = domain.entry_from(entry(&node.id, "/w", &["uid:1"])).await.unwrap();
    let mut follower = Follower::start(&domain, &node).await;
    let bundle = domain.bundle().await.unwrap();
    for (round, forward) in [true, false, false, true, true, false, false, true].into_iter().enumerate() {
        if forward {
            clock.advance(HOUR);
        } else {
            clock.step_back(HOUR);
        }
        let (certificate, token) = issue(&line, &created.id).await.unwrap();
        verify(&bundle, &certificate, &token, domain.clock.now());
        let path = format!("/later/{round}");
        domain.entry_from(entry(&node.id, &path, &["uid:1"])).await.unwrap();
        follower.until("the entry on the stream of before", |f| f.has(&path)).await;
    }
    assert_eq!(domain.bundle().await.unwrap(), bundle, "a step is no reason for another authority");
    lies_within(&domain, &bundle).await;
    // Nobody renewed over and over: one for each question, and the server's own.
    let own = records(&domain).await.iter().filter(|r| r.kind() == Kind::OwnX509).count();
    assert!(own <= 6, "{own} certificates of the server itself");
}

#[tokio::test]
async fn a_clock_that_is_set_back_stops_neither_the_jobs_nor_the_renewal_of_the_servers_own_certificate() {
    let (domain, clock) = world::virtual_domain("agent_ttl = \"8h\"\nca_ttl = \"72h\"").await;
    clock.advance(2 * HOUR);
    world::settled(&domain).await;
    let node = world::node(&domain).await;
    clock.step_back(HOUR);
    assert!(domain.connect(None).await.is_err(), "the server's certificate begins in an hour");
    clock.advance(Duration::from_secs(6));
    world::settled(&domain).await;
    let expires_at = clock.now().after(Duration::from_secs(10)).secs();
    domain.entry_from(types::Entry { expires_at, ..entry(&node.id, "/w", &["uid:1"]) }).await.unwrap();
    // Fewer rounds than an hour has.
    world::rounds("the pruning", &clock, ROUND, async || world::list(&domain).await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn with_a_clock_before_the_begin_of_the_authority_nothing_is_signed_and_nothing_thrown_away() {
    let (mut domain, clock) = world::virtual_domain("agent_ttl = \"8h\"").await;
    let node = world::node(&domain).await;
    let line = domain.connect(Some(&node)).await.unwrap();
    let created = domain.entry_from(entry(&node.id, "/w", &["uid:1"])).await.unwrap();
    let mut follower = Follower::start(&domain, &node).await;
    let bundle = domain.bundle().await.unwrap();
    let before = records(&domain).await.iter().filter(|r| r.kind() == Kind::WorkloadX509).count();
    clock.step_back(HOUR);
    for _ in 0..3 {
        let refused = issue(&line, &created.id).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "agents keep what they have: {refused:?}");
        assert!(refused.message().contains("begins at") && refused.message().contains("set the clock"), "{refused:?}");
    }
    // The rest goes on.
    domain.entry_from(entry(&node.id, "/later", &["uid:1"])).await.unwrap();
    follower.until("the entry", |f| f.has("/later")).await;
    assert_eq!(records(&domain).await.iter().filter(|r| r.kind() == Kind::WorkloadX509).count(), before);
    // A restart does not put another root in the place of one that every agent knows.
    domain.stop_server().await;
    let refused = domain.start_server().await.unwrap_err().to_string();
    assert!(refused.contains("set the clock"), "{refused}");
    clock.advance(HOUR);
    domain.start_server().await.unwrap();
    assert_eq!(domain.bundle().await.unwrap(), bundle);
    let line = domain.connect(Some(&node)).await.unwrap();
    let (certificate, token) = issue(&line, &created.id).await.unwrap();
    verify(&bundle, &certificate, &token, domain.clock.now());
    lies_within(&domain, &bundle).await;
}
