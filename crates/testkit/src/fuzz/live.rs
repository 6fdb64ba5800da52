//! A real server and a real agent that raw messages are sent to, over their real doors. One for the process, made new
//! after so many calls, so that what a caller may legally pile up stays small.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::key::KeyType;
use countersign_identity::x509::Certificate;
use countersign_identity::{BundleSet, Timestamp};
use countersign_plugins::keys::KeyPair;
use countersign_transport::client;
use countersign_transport::clock::Clock as _;
use countersign_wire::agent::CreateJoinTokenRequest;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::{BatchCreateEntryRequest, BatchDeleteEntryRequest};
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::svid::{BatchNewX509svidRequest, NewX509svidParams};
use countersign_wire::{id, types};
use http::uri::PathAndQuery;
use prost::bytes::{Buf as _, BufMut as _};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::NOW;
use crate::clock::VirtualClock;
use crate::domain::{Anyhow, Domain, FixedLevels, NodeIdentity, own_uid, spiffe_id, until};
use crate::panics;
use crate::workload::Workload;

/// Calls after which everything begins anew.
const CALLS_MAX: usize = 10_000;
/// Time that passes with each status, of which an agent may send ten a second and is made to wait for the eleventh.
const STATUS_PAUSE: Duration = Duration::from_millis(110);
/// Messages read of one answer; the agent's streams never end.
const ANSWERS_MAX: usize = 64;
/// How long an answer may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The token of the node whose messages are sent, which is also the last part of its ID.
pub(super) const NODE: &str = "fuzz-node";
/// A token that can be redeemed whenever a message names it.
pub(super) const TOKEN: &str = "fuzz-token";
/// The entry of a workload on that node.
pub(super) const ENTRY: &str = "web";

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// Somebody without any proof, over TLS.
    Stranger,
    /// An administrator, on the server's private socket.
    Admin,
    /// A node.
    Agent,
    /// A server below this one.
    Downstream,
    /// A program on a node, on the agent's socket.
    Workload,
    /// Who may ask an agent everything on its admin socket, and is a delegate too.
    Operator,
}

pub(super) struct Live {
    runtime: tokio::runtime::Runtime,
    clock: VirtualClock,
    domain: Domain,
    _agent: countersign_agent::Running,
    admin: Channel,
    stranger: Channel,
    node: Channel,
    downstream: Channel,
    workload: Channel,
    operator: Channel,
    /// The trust domain's bundle as it was at the start.
    pub(super) bundles: BundleSet,
    calls: usize,
}

static LIVE: Mutex<Option<Live>> = Mutex::new(None);

/// What is to be done with the trust domain afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Afterwards {
    Keep,
    BeginAnew,
}

/// Does something with the one trust domain.
pub(super) fn with(use_it: impl FnOnce(&Live) -> Afterwards) {
    let mut place = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    let live = place.take().unwrap_or_else(|| Live::start().expect("a trust domain starts"));
    let before = panics::seen().len();
    let afterwards = use_it(&live);
    let seen = panics::seen().split_off(before);
    assert!(seen.is_empty(), "a handler panicked: {seen:?}");
    if afterwards == Afterwards::Keep && live.calls < CALLS_MAX {
        *place = Some(Live { calls: live.calls + 1, ..live });
    }
}

impl Live {
    fn start() -> Result<Self, Anyhow> {
        panics::watch();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let clock = VirtualClock::at(NOW);
        let (domain, agent, channels) = runtime.block_on(async {
            // Nothing a caller asks is to be held back: what is looked for stands behind the limits.
            let extra = "ratelimit {\n attestation = false\n signing = false\n }\n";
            let domain = Domain::start_with(Arc::new(clock.clone()), extra).await?;
            let token = domain.token(Some(&spiffe_id("/node/a"))).await?;
            let delegate = spiffe_id("/program");
            let extra = format!("admin_socket_path = \"{}\"\nauthorized_delegates = [\"{delegate}\"]\n", admin_socket(&domain).display());
            let mut config = domain.agent_config("a", Some(&token), &extra).await?;
            config.log_levels = Arc::new(FixedLevels);
            let agent = domain.run_agent(&config).await?;
            let channels = Channels::open(&domain).await?;
            Ok::<_, Anyhow>((domain, agent, channels))
        })?;
        let bundles = runtime.block_on(domain.bundle())?;
        Ok(Self {
            runtime,
            clock,
            domain,
            _agent: agent,
            admin: channels.admin,
            stranger: channels.stranger,
            node: channels.node,
            downstream: channels.downstream,
            workload: channels.workload,
            operator: channels.operator,
            bundles: BundleSet::from_iter([Arc::new(bundles)]),
            calls: 0,
        })
    }

    /// The time in it.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn channel(&self, sender: Sender) -> Channel {
        match sender {
            Sender::Stranger => self.stranger.clone(),
            Sender::Admin => self.admin.clone(),
            Sender::Agent => self.node.clone(),
            Sender::Downstream => self.downstream.clone(),
            Sender::Workload => self.workload.clone(),
            Sender::Operator => self.operator.clone(),
        }
    }

    /// Sends these messages as they are and reads the answer: all of it, or the first message of a stream without end.
    pub(super) fn send(&self, sender: Sender, method: &'static str, messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, Status> {
        if method.ends_with("/PostStatus") {
            self.clock.advance(STATUS_PAUSE);
        }
        let messages: Vec<Vec<u8>> = messages.iter().map(|m| m.to_vec()).collect();
        let call = async {
            let mut grpc = tonic::client::Grpc::new(self.channel(sender)).max_decoding_message_size(64 << 20);
            grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
            let mut request = Request::new(tokio_stream::iter(messages));
            if sender == Sender::Workload {
                request.metadata_mut().insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
            }
            let mut stream = grpc.streaming(request, PathAndQuery::from_static(method), Raw::default()).await?.into_inner();
            let mut answers = Vec::new();
            while let Some(answer) = stream.message().await? {
                answers.push(answer);
                if matches!(sender, Sender::Workload | Sender::Operator) || answers.len() >= ANSWERS_MAX {
                    break;
                }
            }
            Ok(answers)
        };
        let answered = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, call).await });
        answered.unwrap_or_else(|_| panic!("{method} gives no answer"))
    }

    /// Deletes these entries and puts the one of the corpus back.
    pub(super) fn restore(&self, ids: Vec<String>) {
        let restored = self.runtime.block_on(async {
            let mut client = EntryClient::new(self.admin.clone());
            client.batch_delete_entry(BatchDeleteEntryRequest { ids }).await?;
            create(&mut client, vec![web(), downstream()]).await
        });
        restored.expect("an administrator can put things in order");
    }

    /// Makes the token of the corpus, if it is not there, and takes away the node that redeemed it.
    pub(super) fn make_token(&self) {
        self.runtime.block_on(async {
            let mut client = AgentClient::new(self.admin.clone());
            let agent_id = spiffe_id(&format!("/spire/agent/join_token/{TOKEN}"));
            let _ = client.delete_agent(countersign_wire::agent::DeleteAgentRequest { id: Some(id::to_wire(&agent_id)) }).await;
            match token(&mut client, TOKEN).await {
                Err(status) if status.code() != Code::AlreadyExists => panic!("no token: {status}"),
                _ => {}
            }
        });
    }

    /// The trust domain, for who asks it something itself.
    pub(super) fn ask<T>(&self, question: impl AsyncFnOnce(&Domain) -> Result<T, Anyhow>) -> T {
        self.runtime.block_on(question(&self.domain)).expect("the trust domain answers")
    }
}

struct Channels {
    admin: Channel,
    stranger: Channel,
    node: Channel,
    downstream: Channel,
    workload: Channel,
    operator: Channel,
}

/// Not beside the Workload API's socket, where an agent refuses it.
fn admin_socket(domain: &Domain) -> std::path::PathBuf {
    domain.directory().join("admin.sock")
}

impl Channels {
    async fn open(domain: &Domain) -> Result<Self, Anyhow> {
        let admin = domain.admin().await?;
        token(&mut AgentClient::new(admin.clone()), NODE).await?;
        let node = domain.join(NODE).await?;
        create(&mut EntryClient::new(admin.clone()), vec![web(), downstream()]).await?;
        domain.entry(&spiffe_id("/node/a"), &spiffe_id("/program"), &[own_uid()]).await?;
        let below = workload(domain, &node, "downstream").await?;
        let workload = Workload::connect(&domain.directory().join("a").join("agent.sock")).await?;
        until("the agent has an identity for the program", async || workload.x509_svid().await.ok()).await?;
        Ok(Self {
            admin,
            stranger: domain.connect(None).await?,
            node: domain.connect(Some(&node)).await?,
            downstream: domain.connect(Some(&below)).await?,
            workload: workload.channel,
            operator: client::unix(&admin_socket(domain)).await?,
        })
    }
}

async fn token(client: &mut AgentClient<Channel>, value: &str) -> Result<(), Status> {
    client.create_join_token(CreateJoinTokenRequest { ttl: 600, token: value.to_owned(), agent_id: None }).await.map(drop)
}

async fn create(client: &mut EntryClient<Channel>, entries: Vec<types::Entry>) -> Result<(), Status> {
    client.batch_create_entry(BatchCreateEntryRequest { entries, output_mask: None }).await.map(drop)
}

/// The entry of the corpus.
pub(super) fn web() -> types::Entry {
    types::Entry {
        id: ENTRY.to_owned(),
        spiffe_id: Some(id::to_wire(&spiffe_id("/web"))),
        parent_id: Some(id::to_wire(&spiffe_id(&format!("/spire/agent/join_token/{NODE}")))),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1000".to_owned() }],
        dns_names: vec!["web.example.org".to_owned()],
        ..types::Entry::default()
    }
}

fn downstream() -> types::Entry {
    types::Entry { id: "downstream".to_owned(), spiffe_id: Some(id::to_wire(&spiffe_id("/downstream"))), downstream: true, ..web() }
}

async fn workload(domain: &Domain, node: &NodeIdentity, entry_id: &str) -> Result<NodeIdentity, Anyhow> {
    let pair = Arc::new(KeyPair::generate(KeyType::EcP256)?);
    let params = vec![NewX509svidParams { entry_id: entry_id.to_owned(), csr: pair.request(None, &[])? }];
    let mut client = SvidClient::new(domain.connect(Some(node)).await?);
    let results = client.batch_new_x509svid(BatchNewX509svidRequest { params }).await?.into_inner().results;
    let svid = results.into_iter().next().and_then(|r| r.svid).ok_or("no SVID")?;
    let leaf = Certificate::parse(svid.cert_chain.first().ok_or("no certificate")?)?;
    Ok(NodeIdentity { id: leaf.spiffe_id().ok_or("no SPIFFE ID")?, chain: svid.cert_chain, pair, leaf })
}

/// Messages as they are.
#[derive(Debug, Default)]
struct Raw(PhantomData<()>);

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}
