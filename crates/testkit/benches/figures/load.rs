//! The callers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_identity::key::KeyType;
use countersign_identity::x509::Certificate;
use countersign_identity::{Bundle, BundleSet};
use countersign_plugins::keys::KeyPair;
use countersign_testkit::domain::{spiffe_id, trust_domain};
use countersign_transport::clock::SystemClock;
use countersign_transport::{client, tls};
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::{self, attest_agent_request, attest_agent_response};
use countersign_wire::agent_admin::admin_client::AdminClient;
use countersign_wire::agent_admin::{ExplainRequest, explain_request};
use countersign_wire::bundle_api::GetBundleRequest;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::{BatchCreateEntryRequest, BatchDeleteEntryRequest};
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::svid::{BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams};
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_wire::workload::{JwtsvidRequest, X509svidRequest, X509svidResponse};
use countersign_wire::{bundle, id, types};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::measure::{self, Row};
use crate::process::Product;

/// Callers at once.
const CALLERS: usize = 32;
/// Length of one round.
const ROUND: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    X509Workload,
    JwtWorkload,
    Attest,
    X509 { batch: usize },
    Jwt,
}

/// Whom to call.
#[derive(Debug, Clone)]
pub struct Target {
    pub workload: PathBuf,
    /// The private socket; the bare server has none.
    pub admin: Option<PathBuf>,
    pub port: u16,
}

fn workload_request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
    request
}

/// One round against one process.
pub async fn run(kind: Kind, target: &Target, pid: u32) -> Row {
    let callers = Arc::new(Callers::prepare(kind, target).await);
    // A moment to warm up: connections, caches.
    callers.clone().call_for(Duration::from_millis(200)).await;
    let (cpu, begun) = (measure::cpu(pid), Instant::now());
    let mut times = callers.call_for(ROUND).await;
    let (cpu, wall) = (measure::cpu(pid) - cpu, begun.elapsed());
    times.sort();
    Row { calls: times.len(), cpu, wall, p99: times[times.len() * 99 / 100] }
}

struct Callers {
    kind: Kind,
    target: Target,
    channels: Vec<Channel>,
    csr: Vec<u8>,
    entry_id: String,
    config: Option<Arc<tls_config::ClientConfig>>,
    tokens: tokio::sync::Mutex<Vec<String>>,
}

mod tls_config {
    //! The one TLS type the load has to name, from where the transport takes it.
    pub use rustls::ClientConfig;
}

impl Callers {
    async fn prepare(kind: Kind, target: &Target) -> Self {
        let pair = Arc::new(KeyPair::generate(KeyType::EcP256).unwrap());
        let csr = pair.request(Some(&spiffe_id("/bench")), &[]).unwrap();
        let mut callers = Self {
            kind,
            target: target.clone(),
            channels: Vec::new(),
            csr,
            entry_id: "x".to_owned(),
            config: None,
            tokens: tokio::sync::Mutex::default(),
        };
        match kind {
            Kind::X509Workload => {}
            Kind::JwtWorkload => {
                for _ in 0..CALLERS {
                    callers.channels.push(client::unix(&target.workload).await.unwrap());
                }
            }
            Kind::Attest => {
                callers.config = Some(Arc::new(anonymous(target).await));
                if let Some(admin) = &target.admin {
                    callers.tokens = tokio::sync::Mutex::new(make_tokens(admin, 6000).await);
                }
            }
            Kind::X509 { .. } | Kind::Jwt => {
                let (config, entry_id) = joined(target).await;
                callers.entry_id = entry_id;
                let config = Arc::new(config);
                for _ in 0..CALLERS {
                    callers.channels.push(client::tls("127.0.0.1", target.port, Arc::clone(&config)).await.unwrap());
                }
            }
        }
        callers
    }

    async fn call_for(self: Arc<Self>, length: Duration) -> Vec<Duration> {
        let until = Instant::now() + length;
        let mut tasks = tokio::task::JoinSet::new();
        for caller in 0..CALLERS {
            let callers = Arc::clone(&self);
            tasks.spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < until {
                    let begun = Instant::now();
                    if !callers.call(caller).await {
                        break;
                    }
                    times.push(begun.elapsed());
                }
                times
            });
        }
        tasks.join_all().await.concat()
    }

    /// One call; false when there is nothing left to call with.
    async fn call(&self, caller: usize) -> bool {
        match self.kind {
            Kind::X509Workload => {
                let mut client = SpiffeWorkloadApiClient::new(client::unix(&self.target.workload).await.unwrap());
                let answer = client.fetch_x509svid(workload_request(X509svidRequest {})).await.unwrap().into_inner().message().await;
                assert!(!answer.unwrap().unwrap().svids.is_empty());
            }
            Kind::JwtWorkload => {
                let request = workload_request(JwtsvidRequest { audience: vec!["a".to_owned()], spiffe_id: String::new() });
                let answer = SpiffeWorkloadApiClient::new(self.channels[caller].clone()).fetch_jwtsvid(request).await.unwrap();
                assert!(!answer.into_inner().svids.is_empty());
            }
            Kind::Attest => {
                let token = match &self.target.admin {
                    None => "x".to_owned(),
                    Some(_) => match self.tokens.lock().await.pop() {
                        Some(token) => token,
                        None => return false,
                    },
                };
                let config = self.config.clone().unwrap();
                let channel = client::tls("127.0.0.1", self.target.port, config).await.unwrap();
                attest(channel, &token, self.csr.clone()).await;
            }
            Kind::X509 { batch } => {
                let item = NewX509svidParams { entry_id: self.entry_id.clone(), csr: self.csr.clone() };
                let request = BatchNewX509svidRequest { params: vec![item; batch] };
                let answer = SvidClient::new(self.channels[caller].clone()).batch_new_x509svid(request).await.unwrap().into_inner();
                assert!(answer.results.len() == batch && answer.results.iter().all(|r| r.svid.is_some()), "{answer:?}");
            }
            Kind::Jwt => {
                let request = NewJwtsvidRequest { entry_id: self.entry_id.clone(), audience: vec!["a".to_owned()] };
                let answer = SvidClient::new(self.channels[caller].clone()).new_jwtsvid(request).await.unwrap().into_inner();
                assert!(answer.svid.is_some());
            }
        }
        true
    }
}

async fn attest(channel: Channel, token: &str, csr: Vec<u8>) -> Vec<Vec<u8>> {
    let data = types::AttestationData { r#type: "join_token".to_owned(), payload: token.as_bytes().to_vec() };
    let params = attest_agent_request::Params { data: Some(data), params: Some(agent::AgentX509svidParams { csr }) };
    let step = agent::AttestAgentRequest { step: Some(attest_agent_request::Step::Params(params)) };
    let mut answers = AgentClient::new(channel).attest_agent(tokio_stream::iter([step])).await.unwrap().into_inner();
    match answers.message().await.unwrap().unwrap().step {
        Some(attest_agent_response::Step::Result(result)) => result.svid.unwrap().cert_chain,
        other => panic!("{other:?}"),
    }
}

/// The bundle of whoever is called.
async fn bundles(target: &Target) -> tls::SharedBundles {
    let own = match &target.admin {
        Some(admin) => {
            let mut client = BundleClient::new(client::unix(admin).await.unwrap());
            bundle::from_wire(&client.get_bundle(GetBundleRequest { output_mask: None }).await.unwrap().into_inner()).unwrap()
        }
        None => {
            let mut own = Bundle::empty(trust_domain());
            let root = std::fs::read(format!("{}.root", target.workload.display())).unwrap();
            own.add_x509_authority(Certificate::parse(&root).unwrap(), false).unwrap();
            own
        }
    };
    Arc::new(arc_swap::ArcSwap::from_pointee(BundleSet::from_iter([Arc::new(own)])))
}

async fn anonymous(target: &Target) -> tls_config::ClientConfig {
    tls::client_config(None, bundles(target).await, Arc::new(|_| true), Arc::new(SystemClock)).unwrap()
}

/// A node that joined: its chain and its key.
async fn node(target: &Target, token: &str) -> (Vec<Vec<u8>>, KeyPair) {
    let pair = KeyPair::generate(KeyType::EcP256).unwrap();
    let channel = client::tls("127.0.0.1", target.port, Arc::new(anonymous(target).await)).await.unwrap();
    (attest(channel, token, pair.request(None, &[]).unwrap()).await, pair)
}

/// A node that joined: its ID and its TLS configuration.
pub async fn joined_with(target: &Target, token: &str) -> (countersign_identity::SpiffeId, tls_config::ClientConfig) {
    let (chain, pair) = node(target, token).await;
    let id = Certificate::parse(&chain[0]).unwrap().spiffe_id().unwrap();
    let identity = tls::identity(&chain, pair.pkcs8()).unwrap();
    (id, tls::client_config(Some(identity), bundles(target).await, Arc::new(|_| true), Arc::new(SystemClock)).unwrap())
}

/// A node's TLS configuration, and an entry it may have SVIDs of.
async fn joined(target: &Target) -> (tls_config::ClientConfig, String) {
    let (chain, key, entry_id) = match &target.admin {
        None => {
            let read = |what: &str| std::fs::read(format!("{}.{what}", target.workload.display())).unwrap();
            (vec![read("client")], read("client-key"), "x".to_owned())
        }
        Some(admin) => {
            let token = make_tokens(admin, 1).await.remove(0);
            let (chain, pair) = node(target, &token).await;
            let node = Certificate::parse(&chain[0]).unwrap().spiffe_id().unwrap();
            let entry = entry(&node, &spiffe_id("/bench"), "unix:uid:1");
            let mut client = EntryClient::new(client::unix(admin).await.unwrap());
            let created = client.batch_create_entry(BatchCreateEntryRequest { entries: vec![entry], output_mask: None }).await.unwrap();
            (chain, pair.pkcs8().to_vec(), created.into_inner().results[0].entry.clone().unwrap().id)
        }
    };
    let identity = tls::identity(&chain, &key).unwrap();
    (tls::client_config(Some(identity), bundles(target).await, Arc::new(|_| true), Arc::new(SystemClock)).unwrap(), entry_id)
}

pub fn entry(parent: &countersign_identity::SpiffeId, granted: &countersign_identity::SpiffeId, selector: &str) -> types::Entry {
    types::Entry {
        spiffe_id: Some(id::to_wire(granted)),
        parent_id: Some(id::to_wire(parent)),
        selectors: id::selectors_to_wire(&[countersign_identity::Selector::parse(selector).unwrap()]),
        ..types::Entry::default()
    }
}

pub async fn make_tokens(admin: &Path, count: usize) -> Vec<String> {
    let channel = client::unix(admin).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for share in 0..64 {
        let channel = channel.clone();
        let count = count / 64 + usize::from(share < count % 64);
        tasks.spawn(async move {
            let mut client = AgentClient::new(channel);
            let mut tokens = Vec::new();
            for _ in 0..count {
                let request = agent::CreateJoinTokenRequest { ttl: 3600, token: String::new(), agent_id: None };
                tokens.push(client.create_join_token(request).await.unwrap().into_inner().value);
            }
            tokens
        });
    }
    tasks.join_all().await.concat()
}

/// So many nodes join, some at once.
pub async fn join_fleet(target: &Target, count: usize) {
    let tokens = make_tokens(target.admin.as_ref().unwrap(), count).await;
    let mut tasks = tokio::task::JoinSet::new();
    for tokens in tokens.chunks(count.div_ceil(32)) {
        let (target, tokens) = (target.clone(), tokens.to_vec());
        tasks.spawn(async move {
            for token in tokens {
                node(&target, &token).await;
            }
        });
    }
    tasks.join_all().await;
}

/// Streams that got their first message and are held open, each on a connection of its own.
pub async fn hold_streams(target: &Target, count: usize) -> Vec<Streaming<X509svidResponse>> {
    let mut held = Vec::new();
    for _ in 0..count {
        let mut client = SpiffeWorkloadApiClient::new(client::unix(&target.workload).await.unwrap());
        let mut stream = client.fetch_x509svid(workload_request(X509svidRequest {})).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        held.push(stream);
    }
    held
}

/// Creates so many entries in batches, with so many callers at once.
pub async fn create_entries(admin: &Path, count: usize, batch: usize, callers: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let channel = client::unix(admin).await.unwrap();
        tasks.spawn(async move {
            let parent = spiffe_id("/spire/agent/join_token/bench");
            let mut client = EntryClient::new(channel);
            let mut made = 0;
            while made < count / callers {
                let entries = (made..made + batch)
                    .map(|n| entry(&parent, &spiffe_id(&format!("/w/{caller}/{n}")), &format!("unix:uid:{n}")))
                    .collect();
                let answer = client.batch_create_entry(BatchCreateEntryRequest { entries, output_mask: None }).await.unwrap();
                assert!(answer.into_inner().results.iter().all(|r| r.status.as_ref().is_some_and(|s| s.code == 0)));
                made += batch;
            }
        });
    }
    tasks.join_all().await;
}

/// Entries below the agent's alias that lack something for every process, as those of a busy node do; returns once the agent
/// has them all, and has fetched in advance what it has room for.
pub async fn crowd(product: &Product, count: usize) -> AdminClient<Channel> {
    let mut entries = EntryClient::new(client::unix(&product.server_socket()).await.unwrap());
    let one = |n: usize| types::Entry {
        spiffe_id: Some(id::to_wire(&spiffe_id(&format!("/crowd/{n}")))),
        parent_id: Some(id::to_wire(&spiffe_id("/node"))),
        selectors: [format!("uid:{}", 100_000 + n), format!("gid:{}", n % 100), format!("path:/opt/services/{n}/bin/service")]
            .map(|value| types::Selector { r#type: "unix".to_owned(), value })
            .to_vec(),
        ..types::Entry::default()
    };
    for first in (0..count).step_by(500) {
        let batch = (first..count.min(first + 500)).map(one).collect();
        let answer = entries.batch_create_entry(BatchCreateEntryRequest { entries: batch, output_mask: None }).await.unwrap();
        assert!(answer.into_inner().results.iter().all(|r| r.status.as_ref().is_some_and(|s| s.code == 0)));
    }
    let mut admin = AdminClient::new(client::unix(&product.admin_socket()).await.unwrap());
    let begun = Instant::now();
    loop {
        let agent = admin.explain(ExplainRequest::default()).await.unwrap().into_inner().agent.unwrap();
        if agent.entries as usize > count && agent.svids_held >= 1000 {
            return admin;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{agent:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How long so many questions about a process take, one after the other.
pub async fn explain_rounds(admin: &mut AdminClient<Channel>, pid: u32, rounds: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let request = ExplainRequest { subject: Some(explain_request::Subject::Pid(pid)) };
        let begun = Instant::now();
        let answer = admin.explain(request).await.unwrap().into_inner();
        times.push(begun.elapsed());
        assert!(answer.matching.len() == 1 && answer.nearest.len() == 10, "{answer:?}");
    }
    times
}

/// From the call that creates an entry to the message on a stream that waits for it.
pub async fn push_rounds(product: &Product, rounds: usize) -> Vec<Duration> {
    let mut stream = hold_streams(&product.target(Kind::X509Workload), 1).await.remove(0);
    let mut admin = EntryClient::new(client::unix(&product.server_socket()).await.unwrap());
    let uid = rustix::process::geteuid().as_raw();
    let mut times = Vec::new();
    for round in 0..rounds {
        let wanted = spiffe_id(&format!("/push/{round}"));
        let entry = entry(&spiffe_id("/node"), &wanted, &format!("unix:uid:{uid}"));
        let begun = Instant::now();
        let created = admin.batch_create_entry(BatchCreateEntryRequest { entries: vec![entry], output_mask: None }).await.unwrap();
        let holds = |m: &X509svidResponse| m.svids.iter().any(|s| s.spiffe_id == wanted.as_str());
        while !holds(&stream.message().await.unwrap().unwrap()) {}
        times.push(begun.elapsed());
        // Gone again, so that each round is like the first.
        let ids = created.into_inner().results.into_iter().map(|r| r.entry.unwrap().id).collect();
        admin.batch_delete_entry(BatchDeleteEntryRequest { ids }).await.unwrap();
        while holds(&stream.message().await.unwrap().unwrap()) {}
    }
    times
}

/// Writes a journal in the format of `server/src/audit/segment.rs`, lets a server index it, and asks it a question.
pub async fn journal_question() -> (u64, f64) {
    use countersign_server::audit::{Journal, Query, Settings, search};
    use countersign_wire::journal::Record;
    use prost::Message as _;
    use std::io::Write as _;
    const RECORDS: u64 = 10_000_000;
    const GROUP: u64 = 32;
    let put = |file: &mut std::io::BufWriter<std::fs::File>, digest: &mut [u8; 32], kind: u8, body: &[u8]| {
        let mut frame = vec![1, kind];
        frame.extend_from_slice(digest);
        frame.extend_from_slice(body);
        *digest = countersign_plugins::keys::sha256(&frame);
        file.write_all(&u32::try_from(frame.len()).unwrap().to_le_bytes()).unwrap();
        file.write_all(&frame).unwrap();
        frame.len() + 4
    };
    let directory = tempfile::tempdir().unwrap();
    let (mut digest, mut sequence) = ([0u8; 32], 1);
    while sequence <= RECORDS {
        let path = directory.path().join(format!("{sequence:020}.journal"));
        let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
        let mut length = 0;
        while length < 64 << 20 && sequence <= RECORDS {
            let record = Record {
                sequence,
                server_id: "bench".to_owned(),
                time_millis: 1_700_000_000_000 + i64::try_from(sequence).unwrap(),
                kind: 1,
                actor: format!("spiffe://example.org/spire/agent/join_token/{}", sequence % 10_000),
                spiffe_id: format!("spiffe://example.org/w/{}", sequence % 1_000_000),
                entry_id: format!("{:032x}", sequence % 1_000_000),
                agent_id: format!("spiffe://example.org/spire/agent/join_token/{}", sequence % 10_000),
                body_sha256: vec![7; 32],
                authority_id: "a".repeat(40),
                serial_or_jti: (u128::from(sequence) << 64).to_string(),
                not_before: 1_700_000_000,
                expires_at: 1_700_003_600,
                ..Record::default()
            };
            length += put(&mut file, &mut digest, 1, &record.encode_to_vec());
            // The groups of a busy server are about this large; the outcomes of one ride with the next.
            if sequence % GROUP == 0 {
                let mut outcomes = 1u32.to_le_bytes().to_vec();
                outcomes.extend_from_slice(&(sequence + 1 - GROUP).to_le_bytes());
                outcomes.extend_from_slice(&sequence.to_le_bytes());
                outcomes.extend_from_slice(&0u32.to_le_bytes());
                length += put(&mut file, &mut digest, 2, &outcomes);
            }
            sequence += 1;
        }
    }
    let settings = Settings { retention: Duration::from_secs(u32::MAX.into()), ..Settings::new(directory.path().to_owned()) };
    let _journal = Journal::open(settings, "bench".into(), Arc::new(SystemClock)).unwrap();
    let count = |ending: &str| {
        std::fs::read_dir(directory.path()).unwrap().flatten().filter(|f| f.path().extension().is_some_and(|e| e == ending)).count()
    };
    while count("index") + 1 < count("journal") {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let query = Query { spiffe_id: Some("spiffe://example.org/w/777777".to_owned()), ..Query::default() };
    let begun = Instant::now();
    let found = search(directory.path(), &query).unwrap().records;
    assert!(found.len() == 10 && found.iter().rev().skip(1).all(|r| r.outcome == 1), "{}", found.len());
    (RECORDS, begun.elapsed().as_secs_f64() * 1000.0)
}
