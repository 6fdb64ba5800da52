//! A caller that hangs up at each await of a handler, one after the other: what was begun is finished, and nothing is left
//! half done. Handlers are polled here by hand, because over a socket nobody knows where in a handler a caller hangs up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use countersign_identity::key::KeyType;
use countersign_identity::{Timestamp, TrustDomain};
use countersign_plugins::keys::KeyPair;
use countersign_store::{Actor, Change, Node};
use countersign_transport::clock::{SharedClock, SystemClock};
use countersign_transport::tcp::TlsIdentity;
use countersign_wire::agent::agent_server::Agent as _;
use countersign_wire::agent::{AgentX509svidParams, RenewAgentRequest};
use countersign_wire::entry_api::BatchCreateEntryRequest;
use countersign_wire::entry_api::entry_server::Entry as _;
use countersign_wire::journal::{Outcome, Record};
use countersign_wire::node::node_server::Node as _;
use countersign_wire::node::{IssueRequest, JwtParams, issue_request};
use countersign_wire::svid::svid_server::Svid as _;
use countersign_wire::svid::{BatchNewX509svidRequest, MintX509svidRequest, NewX509svidParams};
use countersign_wire::{id, types};
use tonic::Request;

use super::{Api, LogLevels};
use crate::audit::{Query, search};
use crate::policy::caller::{Caller, Kind, Proof};

/// Longer than anything here takes on the slowest machine.
const DEADLINE: Duration = Duration::from_secs(30);

struct Levels;

impl LogLevels for Levels {
    fn current(&self) -> String {
        String::new()
    }

    fn launch(&self) -> String {
        String::new()
    }

    fn set(&self, _: &str) -> bool {
        true
    }
}

/// A server with one agent, called without sockets.
pub(super) struct World {
    running: crate::Running,
    agent: Arc<TlsIdentity>,
    directory: tempfile::TempDir,
}

impl World {
    pub(super) async fn start() -> Self {
        Self::start_at(Arc::new(SystemClock)).await
    }

    pub(super) async fn start_at(clock: SharedClock) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().display();
        let text = format!(
            "server {{\n trust_domain = \"example.org\"\n bind_address = \"127.0.0.1\"\n bind_port = 0\n socket_path = \"{dir}/s.sock\"\n \
             data_dir = \"{dir}\"\n}}\nplugins {{\n DataStore \"sql\" {{\n plugin_data {{\n database_type = \"sqlite3\"\n \
             connection_string = \"{dir}/store.sqlite3\"\n }}\n }}\n KeyManager \"memory\" {{\n plugin_data {{}}\n }}\n}}\n"
        );
        let config = crate::Config::read(countersign_config::parse("server.conf", &text).unwrap()).unwrap();
        let running = crate::start(&config, clock, Arc::new(Levels)).await.unwrap();
        let spiffe_id = trust_domain().with_path("/spire/agent/join_token/a").unwrap();
        let not_after = Timestamp::from_secs(i64::from(u32::MAX));
        let agent = Arc::new(TlsIdentity { spiffe_id: spiffe_id.clone(), serial_number: "1".to_owned(), not_after });
        let node = Arc::new(Node {
            id: spiffe_id,
            attestation_type: "join_token".into(),
            serial_number: "1".to_owned(),
            expires_at: not_after,
            new_serial_number: String::new(),
            new_expires_at: Timestamp::EPOCH,
            can_reattest: false,
            selectors: Vec::new(),
        });
        let stored = Arc::clone(&node);
        let written = running.api.store.write(Actor::server(), move |draft| {
            draft.change(Change::NodePut(Arc::clone(&stored)));
            Ok(())
        });
        written.await.unwrap();
        Self { running, agent, directory }
    }

    pub(super) fn api(&self) -> &Api {
        &self.running.api
    }

    /// A call as the gate lets it through.
    fn request<T>(&self, kind: Kind, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let proof = Proof::Remote { address: SocketAddr::from(([127, 0, 0, 1], 1)), identity: Some(Arc::clone(&self.agent)) };
        request.extensions_mut().insert(Caller {
            proof,
            kind,
            lines: Arc::clone(&self.api().lines),
            access: super::access::Access::default(),
        });
        request
    }

    pub(super) fn entry(&self, path: &str) -> types::Entry {
        types::Entry {
            spiffe_id: Some(id::to_wire(&trust_domain().with_path(path).unwrap())),
            parent_id: Some(id::to_wire(&self.agent.spiffe_id)),
            selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
            ..types::Entry::default()
        }
    }

    async fn create(&self, path: &str) -> String {
        self.create_all(vec![self.entry(path)]).await.remove(0)
    }

    /// Creates entries in one transaction, and returns their IDs.
    pub(super) async fn create_all(&self, entries: Vec<types::Entry>) -> Vec<String> {
        let request = BatchCreateEntryRequest { entries, output_mask: None };
        let answer = self.api().batch_create_entry(self.request(Kind::Admin, request)).await.unwrap().into_inner();
        answer.results.into_iter().map(|result| result.entry.unwrap().id).collect()
    }

    /// What the journal holds, once there are this many records and it is known of each what became of it.
    async fn settled(&self, count: usize) -> Vec<Record> {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let query = Query { limit: 10_000, ..Query::default() };
            let mut records = search(&self.directory.path().join("journal"), &query).unwrap().records;
            records.retain(|r| !r.agent_id.is_empty() || r.spiffe_id == self.agent.spiffe_id.as_str() || r.spiffe_id.ends_with("/minted"));
            if records.len() == count && records.iter().all(|r| r.outcome() != Outcome::Recorded) {
                return records;
            }
            assert!(tokio::time::Instant::now() < deadline, "not {count} settled records: {records:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn csr(path: &str) -> Vec<u8> {
    KeyPair::generate(KeyType::EcP256).unwrap().request(Some(&trust_domain().with_path(path).unwrap()), &[]).unwrap()
}

/// Polls a call this many times, each time when it is woken, and hangs up. What it answered, if it did before.
async fn hung_up<T>(polls: usize, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    let mut left = polls;
    poll_fn(move |cx| {
        left = left.saturating_sub(1);
        match call.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Makes calls, each hung up one await later than the one before, until one is answered. How many were made.
async fn at_every_await<T, E: std::fmt::Debug>(call: impl AsyncFn() -> Result<T, E>) -> usize {
    for polls in 1..100 {
        if let Some(answer) = hung_up(polls, call()).await {
            answer.unwrap();
            assert!(polls > 1, "nothing was awaited");
            return polls;
        }
    }
    panic!("never answered")
}

#[tokio::test]
async fn an_issuance_its_caller_gives_up_is_finished_and_written_down() {
    let world = World::start().await;
    let entry_id = world.create("/w").await;
    let issue = async |credential: issue_request::Credential| {
        let message = IssueRequest { entry_id: entry_id.clone(), credential: Some(credential), ..IssueRequest::default() };
        world.api().issue(world.request(Kind::Agent, message)).await.map(|_| ())
    };
    let mut calls = at_every_await(async || issue(issue_request::Credential::X509Csr(csr("/w"))).await).await;
    let jwt = || issue_request::Credential::Jwt(JwtParams { audience: vec!["a".to_owned()] });
    calls += at_every_await(async || issue(jwt()).await).await;
    let batch = async || {
        let params = (0..3).map(|_| NewX509svidParams { entry_id: entry_id.clone(), csr: csr("/w") }).collect();
        world.api().batch_new_x509svid(world.request(Kind::Agent, BatchNewX509svidRequest { params })).await.map(|_| ())
    };
    calls += 3 * at_every_await(batch).await;
    let mint = async || {
        let message = MintX509svidRequest { csr: csr("/minted"), ttl: 0 };
        world.api().mint_x509svid(world.request(Kind::Admin, message)).await.map(|_| ())
    };
    calls += at_every_await(mint).await;
    let records = world.settled(calls).await;
    assert!(records.iter().all(|r| r.outcome() == Outcome::Signed), "{records:#?}");
}

#[tokio::test]
async fn a_renewal_its_agent_gives_up_is_finished_and_the_old_certificate_counts_on() {
    let world = World::start().await;
    let renew = async || {
        let params = Some(AgentX509svidParams { csr: csr("/spire/agent/join_token/a") });
        world.api().renew_agent(world.request(Kind::Agent, RenewAgentRequest { params })).await.map(|_| ())
    };
    let calls = at_every_await(renew).await;
    let signed: BTreeSet<String> = world.settled(calls).await.into_iter().map(|r| r.serial_or_jti).collect();
    let snapshot = world.api().store.snapshot();
    let node = snapshot.node(&world.agent.spiffe_id).unwrap();
    assert_eq!(node.serial_number, "1");
    assert!(signed.contains(&node.new_serial_number), "{node:?}");
}

#[tokio::test]
async fn a_batch_of_entries_its_caller_gives_up_is_there_as_a_whole() {
    let world = World::start().await;
    let round = std::cell::Cell::new(0);
    let create = async || {
        round.set(round.get() + 1);
        let entries = (0..3).map(|n| world.entry(&format!("/{}/{n}", round.get()))).collect();
        world.api().batch_create_entry(world.request(Kind::Admin, BatchCreateEntryRequest { entries, output_mask: None })).await.map(|_| ())
    };
    let calls = at_every_await(create).await;
    let mut snapshots = world.api().store.watch();
    let whole = snapshots.wait_for(|snapshot| {
        assert_eq!(snapshot.entries_count() % 3, 0, "a batch is there in part");
        snapshot.entries_count() == 3 * calls
    });
    let whole = tokio::time::timeout(DEADLINE, whole).await.is_ok_and(|w| w.is_ok());
    assert!(whole, "{} entries of {calls} batches", world.api().store.snapshot().entries_count());
}
