//! TCP connections: for whom a proxy makes one, and how old one becomes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign_identity::BundleSet;
use countersign_testkit::domain::FixedLevels;
use countersign_transport::clock::SystemClock;
use countersign_transport::{client, tls};
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::{AgentX509svidParams, AttestAgentRequest, attest_agent_request};
use countersign_wire::bundle_api::GetBundleRequest;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::entry_api::SyncAuthorizedEntriesRequest;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::node::follow_request::Step;
use countersign_wire::node::node_client::NodeClient;
use countersign_wire::node::{FollowRequest, Hello};
use countersign_wire::types;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use crate::world::{self, Anyhow, Domain, NodeIdentity, entry, trust_domain};

/// The address of the proxy that is allowed, and of one that is not.
const ALLOWED: &str = "127.0.0.2:0";
const NOT_ALLOWED: &str = "127.0.0.3:0";

/// A proxy in front of the server: calls it from this address, and begins with these bytes.
struct Proxy {
    port: u16,
    connections: Arc<AtomicUsize>,
    forwarding: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.forwarding.abort();
    }
}

impl Proxy {
    async fn start(domain: &Domain, from: &str, header: &[u8]) -> Self {
        let (from, header, server): (SocketAddr, Vec<u8>, u16) = (from.parse().unwrap(), header.to_vec(), domain.port());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let forwarding = tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let header = header.clone();
                tokio::spawn(async move {
                    let socket = TcpSocket::new_v4().unwrap();
                    socket.bind(from).unwrap();
                    let mut far: TcpStream = socket.connect(SocketAddr::from(([127, 0, 0, 1], server))).await.unwrap();
                    far.write_all(&header).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self { port, connections, forwarding }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    async fn connect(&self, domain: &Domain, who: Option<&NodeIdentity>) -> Result<Channel, Anyhow> {
        let identity = who.map(|who| tls::identity(&who.chain, who.pair.pkcs8())).transpose()?;
        let bundles = Arc::new(arc_swap::ArcSwap::from_pointee(BundleSet::from_iter([Arc::new(domain.bundle().await?)])));
        let server_id = trust_domain().server_id();
        let config = tls::client_config(identity, bundles, Arc::new(move |id| *id == server_id), Arc::clone(&domain.clock))?;
        Ok(client::tls("127.0.0.1", self.port, Arc::new(config)).await?)
    }

    /// Whether the server answers through it.
    async fn serves(&self, domain: &Domain) -> bool {
        let Ok(channel) = self.connect(domain, None).await else { return false };
        world::soon("an answer", BundleClient::new(channel).get_bundle(GetBundleRequest::default())).await.is_ok()
    }

    /// What a node is told that tries to join with a guessed token and has no time to wait.
    async fn attest(&self, domain: &Domain) -> Code {
        let data = types::AttestationData { r#type: "join_token".to_owned(), payload: b"guessed".to_vec() };
        let params = Some(AgentX509svidParams { csr: world::key().request(None, &[]).unwrap() });
        let step = Some(attest_agent_request::Step::Params(attest_agent_request::Params { data: Some(data), params }));
        let mut request = tonic::Request::new(tokio_stream::iter([AttestAgentRequest { step }]));
        request.set_timeout(Duration::from_millis(999));
        let mut client = AgentClient::new(self.connect(domain, None).await.unwrap());
        let answered = async { client.attest_agent(request).await?.into_inner().message().await };
        world::soon("an answer", answered).await.unwrap_err().code()
    }
}

fn first(address: &str) -> Vec<u8> {
    format!("PROXY TCP4 {address} 10.0.0.1 40000 8081\r\n").into_bytes()
}

fn second(address: [u8; 4]) -> Vec<u8> {
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    [signature, &[0x21, 0x11, 0, 12][..], &address, &[10, 0, 0, 1, 0x9c, 0x40, 0x1f, 0x91]].concat()
}

const TRUSTED: &str = "proxy_protocol_trusted_cidrs = [\"127.0.0.2/32\", \"2001:db8::/32\"]\n ratelimit {\n }";

#[tokio::test]
async fn the_address_that_an_allowed_proxy_names_is_the_one_that_counts() {
    let (domain, _clock) = world::virtual_domain(TRUSTED).await;
    for header in [first("203.0.113.1"), second([203, 0, 113, 1]), b"PROXY UNKNOWN\r\n".to_vec(), Vec::new()] {
        assert!(Proxy::start(&domain, ALLOWED, &header).await.serves(&domain).await, "{header:?}");
    }
    // One attestation a second from each address: not from each proxy.
    let seven = Proxy::start(&domain, ALLOWED, &first("203.0.113.7")).await;
    assert_eq!(seven.attest(&domain).await, Code::InvalidArgument, "its turn, and the token is wrong");
    assert_eq!(seven.attest(&domain).await, Code::ResourceExhausted);
    let again = Proxy::start(&domain, ALLOWED, &second([203, 0, 113, 7])).await;
    assert_eq!(again.attest(&domain).await, Code::ResourceExhausted, "the same address in the other version");
    let eight = Proxy::start(&domain, ALLOWED, &second([203, 0, 113, 8])).await;
    assert_eq!(eight.attest(&domain).await, Code::InvalidArgument);
    let itself = Proxy::start(&domain, ALLOWED, b"").await;
    assert_eq!(itself.attest(&domain).await, Code::InvalidArgument, "without a header it is itself");
}

#[tokio::test]
async fn a_header_from_an_address_that_is_not_allowed_is_refused() {
    let (domain, _clock) = world::virtual_domain(TRUSTED).await;
    for header in [first("203.0.113.7"), second([203, 0, 113, 7]), b"PROXY UNKNOWN\r\n".to_vec()] {
        let forger = Proxy::start(&domain, NOT_ALLOWED, &header).await;
        assert!(forger.connect(&domain, None).await.is_err(), "{header:?} was taken");
    }
    // It is served as who it is, and what it named was not used up.
    let plain = Proxy::start(&domain, NOT_ALLOWED, b"").await;
    assert_eq!(plain.attest(&domain).await, Code::InvalidArgument);
    assert_eq!(plain.attest(&domain).await, Code::ResourceExhausted);
    let seven = Proxy::start(&domain, ALLOWED, &first("203.0.113.7")).await;
    assert_eq!(seven.attest(&domain).await, Code::InvalidArgument);
    // Nor does anybody's word count where nobody is allowed.
    let alone = Domain::start().await.unwrap();
    assert!(Proxy::start(&alone, ALLOWED, &first("203.0.113.7")).await.connect(&alone, None).await.is_err());
}

#[tokio::test]
async fn a_malformed_header_of_an_allowed_proxy_is_refused() {
    let (domain, _clock) = world::virtual_domain(TRUSTED).await;
    let datagrams = {
        let mut header = second([203, 0, 113, 7]);
        header[13] = 0x12;
        header
    };
    for header in [b"PROXY TCP4 here there 1 2\r\n".to_vec(), vec![b'P'; 200], datagrams, first("2001:db8::1")] {
        assert!(Proxy::start(&domain, ALLOWED, &header).await.connect(&domain, None).await.is_err(), "{header:?} was taken");
    }
}

/// A server whose connections live for a moment.
async fn short_lived(age: Duration) -> Domain {
    let mut domain = Domain::start().await.unwrap();
    domain.stop_server().await;
    let mut config =
        countersign_server::Config::read(countersign_config::parse("server.conf", &domain.server_configuration()).unwrap()).unwrap();
    assert_eq!(config.connection_age_max, Duration::from_secs(180), "SPIRE's");
    config.connection_age_max = age;
    let running = countersign_server::start(&config, Arc::new(SystemClock), Arc::new(FixedLevels)).await.unwrap();
    assert_eq!(running.address.port(), domain.port());
    domain.server = Some(running);
    domain
}

#[tokio::test]
async fn an_old_connection_is_asked_to_go_and_the_one_with_an_agents_stream_stays() {
    let domain = short_lived(Duration::from_millis(300)).await;
    let node = world::node(&domain).await;
    let (plain, stream, under_way) =
        (Proxy::start(&domain, ALLOWED, b"").await, Proxy::start(&domain, ALLOWED, b"").await, Proxy::start(&domain, ALLOWED, b"").await);

    let channel = stream.connect(&domain, Some(&node)).await.unwrap();
    let mut follower = NodeClient::new(channel.clone());
    let (said, says) = mpsc::channel(4);
    said.send(FollowRequest { step: Some(Step::Hello(Hello::default())) }).await.unwrap();
    let mut updates = follower.follow(ReceiverStream::new(says)).await.unwrap().into_inner();
    world::soon("the first update", updates.message()).await.unwrap().unwrap();

    let mut syncing = EntryClient::new(under_way.connect(&domain, Some(&node)).await.unwrap());
    let (asked, asks) = mpsc::channel(4);
    let mut asking = syncing.clone();
    let call = tokio::spawn(async move { asking.sync_authorized_entries(ReceiverStream::new(asks)).await });

    // Somebody who calls all the time comes again and again, and none of the calls fails.
    let mut caller = BundleClient::new(plain.connect(&domain, Some(&node)).await.unwrap());
    world::soon("five connections", async {
        while plain.connections() < 5 {
            caller.get_bundle(GetBundleRequest::default()).await.expect("a call around the end of a connection");
        }
    })
    .await;

    // What was under way is finished, on the connection it began on.
    asked.send(SyncAuthorizedEntriesRequest::default()).await.unwrap();
    let mut pages = world::soon("the answer", call).await.unwrap().unwrap().into_inner();
    assert!(world::soon("the entries", pages.message()).await.unwrap().unwrap().entries.is_empty());
    assert_eq!(under_way.connections(), 1);
    syncing.get_authorized_entries(countersign_wire::entry_api::GetAuthorizedEntriesRequest::default()).await.unwrap();
    assert_eq!(under_way.connections(), 2, "the next call comes on a new one");

    // The stream and the calls beside it are on the connection of the beginning.
    domain.entry_from(entry(&node.id, "/new", &["uid:1"])).await.unwrap();
    let update = world::soon("an update", updates.message()).await.unwrap().unwrap();
    assert_eq!(update.entries.len(), 1);
    let mut beside = BundleClient::new(channel);
    beside.get_bundle(GetBundleRequest::default()).await.unwrap();
    let refused = follower.issue(countersign_wire::node::IssueRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), stream.connections()), (Code::InvalidArgument, 1), "{refused}");
    // Without its stream it is as old as any.
    drop((updates, said));
    world::soon("a new connection", async {
        while stream.connections() < 2 {
            let refused = follower.issue(countersign_wire::node::IssueRequest::default()).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_server_listens_at_its_address_and_at_no_other() {
    let domain = Domain::start().await.unwrap();
    // The tests' `bind_address`; the default is every address.
    assert_eq!(domain.server.as_ref().unwrap().address.ip().to_string(), "127.0.0.1");
    assert!(TcpStream::connect(("127.0.0.1", domain.port())).await.is_ok());
    assert!(TcpStream::connect(("127.0.0.2", domain.port())).await.is_err());
}
