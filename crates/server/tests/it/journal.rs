//! The issuance journal through its RPC: everything that was issued is found, by whatever is known of it.

use std::collections::BTreeSet;
use std::time::Duration;

use countersign_wire::agent::DeleteAgentRequest;
use countersign_wire::journal::journal_client::JournalClient;
use countersign_wire::journal::{IssuedRequest, Kind, Outcome, Record};
use countersign_wire::node::node_client::NodeClient;
use countersign_wire::node::{IssueRequest, JwtParams, issue_request, issue_response};
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::svid::{MintJwtsvidRequest, NewJwtsvidRequest};
use countersign_wire::types;
use countersign_wire::types::entry::AdditionalAttributes;

use crate::world::{self, Domain, id_to_wire, spiffe_id};

/// What matches, once every outcome that is to come has come.
pub async fn issued(domain: &Domain, request: IssuedRequest) -> Vec<Record> {
    let look = async || {
        let mut client = JournalClient::new(domain.admin().await.unwrap());
        let mut stream = client.issued(request.clone()).await.unwrap().into_inner();
        let mut records = Vec::new();
        while let Some(record) = stream.message().await.unwrap() {
            records.push(record);
        }
        let settled = records.iter().all(|r| r.kind() == Kind::Refused || r.outcome() != Outcome::Recorded);
        settled.then_some(records)
    };
    world::until("every outcome", look).await.unwrap()
}

fn by_serial(serial: &str) -> IssuedRequest {
    IssuedRequest { serial_or_jti: serial.to_owned(), ..IssuedRequest::default() }
}

async fn one(domain: &Domain, request: IssuedRequest) -> Record {
    let found = issued(domain, request.clone()).await;
    assert_eq!(found.len(), 1, "{request:?} finds {found:?}");
    found.into_iter().next().unwrap()
}

#[tokio::test]
async fn every_credential_is_found_with_who_what_why_and_how_it_ended() {
    let (domain, clock) = world::virtual_domain("").await;
    let started = domain.clock.now().secs();
    let node = world::node(&domain).await;
    let renewed = world::renewed(&domain, &node).await;
    let extra = Some(AdditionalAttributes { jwt_svid_include_jti: true, ..AdditionalAttributes::default() });
    let entry = types::Entry { additional_attributes: extra, ..world::entry(&node.id, "/w", &["uid:1"]) };
    let entry = domain.entry_from(entry).await.unwrap();
    let first = world::workload(&domain, &node, &entry).await;
    clock.advance(Duration::from_secs(5));
    let entry = world::update(&domain, types::Entry { hint: "h".to_owned(), ..entry }, None).await.unwrap();

    // An agent of ours says what it saw of the workload.
    let mut client = NodeClient::new(domain.connect(Some(&node)).await.unwrap());
    let facts = vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }];
    let request = |credential| IssueRequest { entry_id: entry.id.clone(), facts: facts.clone(), credential, ..IssueRequest::default() };
    let csr = world::key().request(None, &[]).unwrap();
    let answer = client.issue(request(Some(issue_request::Credential::X509Csr(csr)))).await.unwrap().into_inner();
    let Some(issue_response::Credential::X509(svid)) = answer.credential else { panic!("no certificate") };
    let second = countersign_identity::x509::Certificate::parse(&svid.cert_chain[0]).unwrap();
    let jwt = JwtParams { audience: vec!["a".to_owned()] };
    let answer = client.issue(request(Some(issue_request::Credential::Jwt(jwt)))).await.unwrap().into_inner();
    let Some(issue_response::Credential::Jwt(token)) = answer.credential else { panic!("no token") };
    let jti = countersign_identity::jwt::peek(&token.token).unwrap()["jti"].as_str().unwrap().to_owned();
    assert_eq!(client.issue(request(None)).await.unwrap_err().message(), "missing credential");

    let mut svids = SvidClient::new(domain.connect(Some(&node)).await.unwrap());
    let plain = NewJwtsvidRequest { entry_id: entry.id.clone(), audience: vec!["b".to_owned()] };
    let plain = svids.new_jwtsvid(plain).await.unwrap().into_inner().svid.unwrap();
    let minted = world::minted(&domain, &spiffe_id("/minted")).await;
    let request = MintJwtsvidRequest { id: Some(id_to_wire(&spiffe_id("/minted"))), audience: vec!["c".to_owned()], ttl: 0 };
    world::svids(&domain).await.mint_jwtsvid(request).await.unwrap();

    let (node_id, workload) = (node.id.to_string(), "spiffe://example.org/w");
    for (serial, kind, spiffe_id, revision, evidence) in [
        (first.leaf.serial_decimal(), Kind::WorkloadX509, workload, 0, vec![]),
        (second.serial_decimal(), Kind::WorkloadX509, workload, 1, vec!["unix:uid:1".to_owned()]),
        (jti, Kind::WorkloadJwt, workload, 1, vec!["unix:uid:1".to_owned()]),
        (node.leaf.serial_decimal(), Kind::AgentX509, node_id.as_str(), 0, vec![]),
        (renewed.leaf.serial_decimal(), Kind::AgentX509, node_id.as_str(), 0, vec![]),
        (minted.leaf.serial_decimal(), Kind::MintedX509, "spiffe://example.org/minted", 0, vec![]),
    ] {
        let record = one(&domain, by_serial(&serial)).await;
        assert_eq!((record.kind(), record.spiffe_id.as_str(), record.outcome()), (kind, spiffe_id, Outcome::Signed), "{record:?}");
        assert_eq!((record.entry_revision, &record.evidence), (revision, &evidence), "{record:?}");
        let of_entry = matches!(kind, Kind::WorkloadX509 | Kind::WorkloadJwt);
        assert_eq!(record.entry_id, if of_entry { entry.id.as_str() } else { "" });
        assert_eq!(record.agent_id, if kind == Kind::MintedX509 { "" } else { node_id.as_str() });
        assert!(
            record.expires_at > started && record.body_sha256.len() == 32 && !record.authority_id.is_empty() && !record.actor.is_empty()
        );
    }
    // Who asked: the agent for its workload, a process for what was minted, a stranger for the first certificate.
    assert_eq!(one(&domain, by_serial(&first.leaf.serial_decimal())).await.actor, node_id);
    assert!(one(&domain, by_serial(&node.leaf.serial_decimal())).await.actor.starts_with("nobody at 127.0.0.1"));

    // A token without a jti is found by what else is known of it.
    let request = IssuedRequest { spiffe_id: workload.to_owned(), agent_id: node_id.clone(), ..IssuedRequest::default() };
    let found = issued(&domain, request.clone()).await;
    assert_eq!(found.len(), 4);
    assert_eq!(found.iter().filter(|r| r.kind() == Kind::WorkloadJwt && r.expires_at == plain.expires_at).count(), 2);
    assert_eq!(issued(&domain, IssuedRequest { limit: 1, ..request.clone() }).await, found[found.len() - 1..], "the newest");
    // By time: the first alone was issued before the clock moved.
    let early = issued(&domain, IssuedRequest { until: started + 5, ..request.clone() }).await;
    assert_eq!(early.iter().map(|r| r.serial_or_jti.clone()).collect::<Vec<_>>(), [first.leaf.serial_decimal()]);
    let late = issued(&domain, IssuedRequest { from: started + 1000, ..request }).await;
    assert_eq!(late.len(), 2, "the certificates are still in force then, the tokens are over");

    // Nothing is forgotten with the node, and nothing by a restart.
    world::agents(&domain).await.delete_agent(DeleteAgentRequest { id: Some(id_to_wire(&node.id)) }).await.unwrap();
    let all = issued(&domain, IssuedRequest::default()).await;
    let sequences: BTreeSet<u64> = all.iter().map(|r| r.sequence).collect();
    assert_eq!(sequences.len(), all.len());
    for kind in [Kind::AuthorityX509, Kind::OwnX509, Kind::MintedJwt] {
        assert_eq!(all.iter().filter(|r| r.kind() == kind).count(), 1, "{kind:?}");
    }
    let mut domain = domain;
    domain.stop_server().await;
    domain.start_server().await.unwrap();
    let after = issued(&domain, IssuedRequest::default()).await;
    assert_eq!(after[..all.len()], all);
}

#[tokio::test]
async fn refusals_are_written_down_too() {
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    let mut client = SvidClient::new(domain.connect(Some(&node)).await.unwrap());
    let request = NewJwtsvidRequest { entry_id: "not-mine".to_owned(), audience: vec!["a".to_owned()] };
    client.new_jwtsvid(request).await.unwrap_err();
    let refused = async || issued(&domain, IssuedRequest::default()).await.into_iter().find(|r| r.kind() == Kind::Refused);
    let record = world::until("the refusal", refused).await.unwrap();
    assert_eq!((record.actor, record.reason.as_str()), (node.id.to_string(), "JWT-SVID of a workload: entry not found or not authorized"));
    assert!(record.body_sha256.is_empty() && record.serial_or_jti.is_empty(), "nothing was issued");
}

#[tokio::test]
async fn of_fifty_attempts_with_one_token_one_costs_a_signature() {
    let domain = std::sync::Arc::new(Domain::start().await.unwrap());
    let token = domain.token(None).await.unwrap();
    let mut attempts = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (domain, token) = (std::sync::Arc::clone(&domain), token.clone());
        attempts.spawn(async move { domain.join(&token).await.is_ok() });
    }
    assert_eq!(attempts.join_all().await.into_iter().filter(|joined| *joined).count(), 1);
    let agents = issued(&domain, IssuedRequest::default()).await.into_iter().filter(|r| r.kind() == Kind::AgentX509).count();
    assert_eq!(agents, 1);
}
