//! A disk without room, seen through the API: a clear error, nothing half done, nothing lost that was acknowledged, reads go
//! on, and once there is room everything works again without a restart.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use countersign_testkit::domain::status;
use countersign_testkit::file_limit;
use countersign_testkit::powerloss::PowerLoss;
use countersign_transport::clock::SystemClock;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::{self, AgentX509svidParams, BanAgentRequest, CreateJoinTokenRequest, RenewAgentRequest};
use countersign_wire::entry_api::BatchDeleteEntryRequest;
use countersign_wire::journal::{IssuedRequest, Outcome, Record};
use countersign_wire::node::node_client::NodeClient;
use countersign_wire::node::{IssueRequest, issue_request, issue_response};
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::svid::{BatchNewX509svidRequest, MintX509svidRequest, NewJwtsvidRequest, NewX509svidParams};
use tonic::{Code, Response, Status};

use crate::following::Follower;
use crate::journal;
use crate::world::{self, Anyhow, Domain, NodeIdentity, entry, id_to_wire, spiffe_id};

async fn on(disk: &PowerLoss) -> Domain {
    Domain::start_on(Some(disk.clone()), Arc::new(SystemClock), "").await.unwrap()
}

async fn agent(domain: &Domain, node: &NodeIdentity) -> AgentClient<tonic::transport::Channel> {
    AgentClient::new(domain.connect(Some(node)).await.unwrap())
}

/// Whether this certificate still opens the door.
async fn counts(domain: &Domain, node: &NodeIdentity) -> bool {
    agent(domain, node).await.post_status(agent::PostStatusRequest::default()).await.is_ok()
}

async fn refused<T>(what: &str, call: impl Future<Output = Result<Response<T>, Status>>, text: &str) {
    match world::soon(what, call).await {
        Ok(_) => panic!("{what} was acknowledged"),
        Err(status) => is(what, &status, text),
    }
}

fn is(what: &str, status: &Status, text: &str) {
    assert!(status.code() == Code::Unavailable && status.message().contains(text), "{what}: {status:?}");
}

fn failed<T>(what: &str, outcome: Result<T, Anyhow>, text: &str) {
    match outcome {
        Ok(_) => panic!("{what} was acknowledged"),
        Err(error) => is(what, status(&error).unwrap_or_else(|| panic!("{what}: {error}")), text),
    }
}

#[tokio::test]
async fn a_store_without_room_refuses_what_it_cannot_keep_and_serves_on() {
    const FULL: &str = "the store's disk is full";
    let disk = PowerLoss::register();
    let mut domain = on(&disk).await;
    let node = world::node(&domain).await;
    let mut follower = Follower::start(&domain, &node).await;
    let kept = domain.entry_from(entry(&node.id, "/kept", &["uid:1"])).await.unwrap();
    follower.until("the entry", |f| f.has("/kept")).await;
    let token = domain.token(Some(&spiffe_id("/alias"))).await.unwrap();
    let (key, before) = (world::key(), world::list(&domain).await);

    disk.fill_after(0);
    refused("a batch of entries", world::entries(&domain).await.batch_create_entry(batch(&node)), FULL).await;
    let deletion = BatchDeleteEntryRequest { ids: vec![kept.id.clone()] };
    refused("a deletion", world::entries(&domain).await.batch_delete_entry(deletion), FULL).await;
    let wanted = CreateJoinTokenRequest { ttl: 60, token: "no-room".to_owned(), agent_id: None };
    refused("a token", world::agents(&domain).await.create_join_token(wanted.clone()), FULL).await;
    let ban = BanAgentRequest { id: Some(id_to_wire(&node.id)) };
    refused("a ban", world::agents(&domain).await.ban_agent(ban), FULL).await;
    let renewal = RenewAgentRequest { params: Some(AgentX509svidParams { csr: world::key().request(None, &[]).unwrap() }) };
    refused("a renewal", agent(&domain, &node).await.renew_agent(renewal), FULL).await;
    failed("a join", domain.join_with(&token, Arc::clone(&key)).await, FULL);
    // What needs no room goes on: listings, bundles, issuance, the agent's stream and its certificate.
    assert_eq!(world::list(&domain).await, before);
    domain.bundle().await.unwrap();
    world::workload(&domain, &node, &kept).await;
    world::minted(&domain, &spiffe_id("/minted")).await;
    assert!(counts(&domain, &node).await, "a ban that was not acknowledged has no effect");
    // Whoever comes now is told everything there is.
    Follower::start(&domain, &node).await;

    disk.make_room();
    world::entries(&domain).await.batch_create_entry(batch(&node)).await.unwrap();
    follower.until("the stream goes on", |f| f.has("/b/0") && f.has("/b/1")).await;
    world::agents(&domain).await.create_join_token(wanted).await.unwrap();
    let joined = domain.join_with(&token, key).await.unwrap();
    assert!(counts(&domain, &joined).await);
    let acknowledged = world::list(&domain).await;
    assert_eq!(acknowledged.len(), before.len() + 3, "two entries and the alias of the node");
    domain.stop_server().await;
    domain.start_server().await.unwrap();
    assert_eq!(world::list(&domain).await, acknowledged);
    assert!(counts(&domain, &joined).await && counts(&domain, &node).await);
}

fn batch(node: &NodeIdentity) -> countersign_wire::entry_api::BatchCreateEntryRequest {
    let entries = (0..2).map(|n| entry(&node.id, &format!("/b/{n}"), &["uid:2"])).collect();
    countersign_wire::entry_api::BatchCreateEntryRequest { entries, output_mask: None }
}

#[tokio::test]
async fn a_store_that_fills_up_in_the_middle_of_a_join_keeps_the_token() {
    let disk = PowerLoss::register();
    let domain = on(&disk).await;
    let mut refused = 0;
    for room in 0..200 {
        let token = domain.token(Some(&spiffe_id(&format!("/alias/{room}")))).await.unwrap();
        let (key, before) = (world::key(), world::list(&domain).await.len());
        disk.fill_after(room);
        let joined = domain.join_with(&token, Arc::clone(&key)).await;
        disk.make_room();
        if joined.is_ok() {
            break;
        }
        refused += 1;
        failed("a join", joined, "the store's disk is full");
        assert_eq!(world::list(&domain).await.len(), before, "the alias of a node that did not join");
        let node = domain.join_with(&token, key).await.unwrap();
        assert!(counts(&domain, &node).await);
        assert_eq!(world::list(&domain).await.len(), before + 1);
    }
    assert!((3..200).contains(&refused), "{refused}");
}

/// All there is in the journal, once every outcome is written down.
async fn issued(domain: &Domain) -> Vec<Record> {
    journal::issued(domain, IssuedRequest { limit: 10_000, ..IssuedRequest::default() }).await
}

#[test]
fn a_journal_without_room_stops_issuance_alone_until_there_is_room() {
    if file_limit::alone("full_disk::a_journal_without_room_stops_issuance_alone_until_there_is_room") {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(a_journal_without_room());
    }
}

async fn a_journal_without_room() {
    const FULL: &str = "so nothing can be issued";
    // The store is in memory and has room: what fails, fails because of the journal.
    let mut domain = on(&PowerLoss::register()).await;
    let node = world::node(&domain).await;
    let mut follower = Follower::start(&domain, &node).await;
    let kept = domain.entry_from(entry(&node.id, "/kept", &["uid:1"])).await.unwrap();
    let token = domain.token(Some(&spiffe_id("/alias"))).await.unwrap();
    let key = world::key();
    let before: BTreeSet<String> = issued(&domain).await.into_iter().map(|r| r.serial_or_jti).collect();
    let journal = domain.directory().join("server/journal/00000000000000000001.journal");
    let csr = || world::key().request(Some(&spiffe_id("/kept")), &[]).unwrap();

    // No room at all, and room for a part of one record.
    for more in [0, 1, 100] {
        file_limit::limit(Some(std::fs::metadata(&journal).unwrap().len() + more));
        let mint = MintX509svidRequest { csr: csr(), ttl: 0 };
        refused("minting", world::svids(&domain).await.mint_x509svid(mint), FULL).await;
        let credential = Some(issue_request::Credential::X509Csr(csr()));
        let wanted = IssueRequest { entry_id: kept.id.clone(), credential, ..IssueRequest::default() };
        refused("issuance", NodeClient::new(domain.connect(Some(&node)).await.unwrap()).issue(wanted), FULL).await;
        let mut client = SvidClient::new(domain.connect(Some(&node)).await.unwrap());
        let wanted = NewJwtsvidRequest { entry_id: kept.id.clone(), audience: vec!["a".to_owned()] };
        refused("a token for a workload", client.new_jwtsvid(wanted), FULL).await;
        let params = (0..3).map(|_| NewX509svidParams { entry_id: kept.id.clone(), csr: csr() }).collect();
        let items = client.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap().into_inner().results;
        for item in items {
            let status = item.status.unwrap();
            is("an item", &Status::new(Code::from_i32(status.code), status.message), FULL);
            assert!(item.svid.is_none());
        }
        failed("a join", domain.join_with(&token, Arc::clone(&key)).await, FULL);
        let renewal = RenewAgentRequest { params: Some(AgentX509svidParams { csr: csr() }) };
        refused("a renewal", agent(&domain, &node).await.renew_agent(renewal), FULL).await;
        assert!(counts(&domain, &node).await);
        // Administration has room, and is pushed as ever.
        let path = format!("/during/{more}");
        domain.entry_from(entry(&node.id, &path, &["uid:1"])).await.unwrap();
        follower.until("the entry", |f| f.has(&path)).await;
    }

    file_limit::limit(None);
    let mut acknowledged = before;
    let credential = Some(issue_request::Credential::X509Csr(csr()));
    let wanted = IssueRequest { entry_id: kept.id.clone(), credential, ..IssueRequest::default() };
    let answer = NodeClient::new(domain.connect(Some(&node)).await.unwrap()).issue(wanted).await.unwrap().into_inner();
    let Some(issue_response::Credential::X509(svid)) = answer.credential else { panic!("no certificate") };
    acknowledged.insert(world::identity(svid, world::key()).leaf.serial_decimal());
    let joined = domain.join_with(&token, key).await.unwrap();
    assert!(counts(&domain, &joined).await);
    acknowledged.insert(joined.leaf.serial_decimal());
    let records = issued(&domain).await;
    let found: BTreeSet<String> = records.iter().map(|r| r.serial_or_jti.clone()).collect();
    assert_eq!(found, acknowledged, "what was refused has left nothing behind, and what was not is all there");
    assert!(records.iter().all(|r| r.outcome() == Outcome::Signed), "{records:?}");
    domain.stop_server().await;
    domain.start_server().await.unwrap();
    let again: BTreeSet<String> = issued(&domain).await.into_iter().map(|r| r.serial_or_jti).collect();
    assert!(again.is_superset(&acknowledged), "nothing of it is lost");
}
