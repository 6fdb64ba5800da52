//! Bytes that are no calls, on each of the server's doors: they end their own connection and nothing else, nobody panics,
//! and the next good call works.

use std::sync::Arc;

use countersign_identity::BundleSet;
use countersign_testkit::panics;
use countersign_transport::limits::FIRST_REQUEST_TIMEOUT;
use countersign_transport::tls;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::attest_agent_request::{Params, Step};
use countersign_wire::agent::{AgentX509svidParams, AttestAgentRequest, PostStatusRequest};
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::svid::{BatchNewX509svidRequest, MintX509svidRequest, NewX509svidParams};
use countersign_wire::types;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::{Code, Request};

use crate::following::Follower;
use crate::world::{self, Domain, NodeIdentity, trust_domain};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Where bytes can be sent to.
#[derive(Debug, Clone, Copy)]
enum Door {
    /// The TCP port, without TLS.
    Tcp,
    /// The TCP port, inside TLS as a stranger.
    Stranger,
    /// The TCP port, inside TLS as an agent.
    Agent,
    /// The private socket.
    Private,
}

const DOORS: [Door; 4] = [Door::Tcp, Door::Stranger, Door::Agent, Door::Private];

trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bytes for T {}

async fn open(domain: &Domain, node: &NodeIdentity, door: Door) -> Box<dyn Bytes> {
    let tcp = async || TcpStream::connect(("127.0.0.1", domain.port())).await.unwrap();
    let identity = match door {
        Door::Tcp => return Box::new(tcp().await),
        Door::Private => return Box::new(UnixStream::connect(domain.server_socket()).await.unwrap()),
        Door::Stranger => None,
        Door::Agent => Some(tls::identity(&node.chain, node.pair.pkcs8()).unwrap()),
    };
    let bundles = Arc::new(arc_swap::ArcSwap::from_pointee(BundleSet::from_iter([Arc::new(domain.bundle().await.unwrap())])));
    let server_id = trust_domain().server_id();
    let config = tls::client_config(identity, bundles, Arc::new(move |id| *id == server_id), Arc::clone(&domain.clock)).unwrap();
    let name = ServerName::try_from("countersign.invalid").unwrap();
    Box::new(TlsConnector::from(Arc::new(config)).connect(name, tcp().await).await.unwrap())
}

/// A good call through each door, on connections of their own.
async fn serves(domain: &Domain, node: &NodeIdentity) {
    let calls = async {
        domain.bundle().await.unwrap();
        let mut client = AgentClient::new(domain.connect(Some(node)).await.unwrap());
        client.post_status(PostStatusRequest::default()).await.unwrap();
        let refused = domain.join("no-such-token").await.unwrap_err();
        assert_eq!(countersign_testkit::domain::status(&refused).unwrap().code(), Code::InvalidArgument);
    };
    world::soon("good calls", calls).await;
    assert!(panics::seen().is_empty(), "{:?}", panics::seen());
}

/// A noise that is the same in every run.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from(state >> 56).unwrap()
    };
    (0..bytes).map(next).collect()
}

fn cases() -> Vec<Vec<u8>> {
    let frame = |length: u32, kind: u8, flags: u8, stream: u32, body: &[u8]| {
        let head = [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        [PREFACE, b"\0\0\0\x04\0\0\0\0\0", &head, body].concat()
    };
    let mut cases = vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"POST /spire.api.server.bundle.v1.Bundle/GetBundle HTTP/1.1\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0".to_vec(),
        PREFACE[..10].to_vec(),
        PREFACE.to_vec(),
        vec![0; 4096],
        vec![0xff; 4096],
        // The beginning of a TLS handshake, and one that promises more than it holds.
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        [b"\x16\x03\x01\xff\xff".as_slice(), &noise(7, 2000)].concat(),
        // A frame longer than allowed, HEADERS that no decoder knows, SETTINGS on a stream, DATA on stream 0, a huge header
        // in pieces that never end.
        frame(0x00ff_ffff, 0, 0, 1, &[0; 64]),
        frame(8, 1, 5, 1, &[0xff; 8]),
        frame(0, 4, 0, 1, &[]),
        frame(4, 0, 0, 0, &[0; 4]),
        [frame(16_000, 1, 0, 1, &[0x40; 16_000]), [&b"\0\x3e\x80\x09\0\0\0\0\x01"[..], &[0x40; 16_000]].concat().repeat(20)].concat(),
    ];
    cases.extend((1..12).map(|seed| [PREFACE, &noise(seed, 300)].concat()));
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_connects_and_asks_nothing_is_let_go_and_whoever_has_asked_stays() {
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    let mut follower = Follower::start(&domain, &node).await;
    let whole = [PREFACE, b"\0\0\0\x04\0\0\0\0\0"].concat();
    let mut silent = tokio::task::JoinSet::new();
    let began = std::time::Instant::now();
    for door in [Door::Stranger, Door::Agent] {
        for said in [&[][..], &PREFACE[..PREFACE.len() / 2], &whole] {
            let mut stream = open(&domain, &node, door).await;
            stream.write_all(said).await.unwrap();
            stream.flush().await.unwrap();
            let said = said.len();
            silent.spawn(async move {
                let _ = stream.read_to_end(&mut Vec::new()).await;
                (door, said)
            });
        }
    }
    let mut ended = Vec::new();
    let all = async {
        while let Some(one) = silent.join_next().await {
            assert!(began.elapsed() >= FIRST_REQUEST_TIMEOUT, "{one:?} is hurried");
            ended.push(one.unwrap());
        }
    };
    let in_time = tokio::time::timeout(world::DEADLINE, all).await.is_ok();
    assert!(in_time, "only these have ended: {ended:?}");
    domain.entry_from(world::entry(&node.id, "/later", &["uid:1"])).await.unwrap();
    follower.until("the entry on the stream of before", |f| f.has("/later")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_calls_end_their_connection_and_nothing_else() {
    panics::watch();
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    for door in DOORS {
        for case in cases() {
            let mut stream = open(&domain, &node, door).await;
            let mut answer = Vec::new();
            // However it ends, it ends.
            let exchange = async {
                let _ = stream.write_all(&case).await;
                let _ = stream.shutdown().await;
                let _ = stream.read_to_end(&mut answer).await;
            };
            world::soon(&format!("the end of {:?}… on {door:?}", &case[..case.len().min(40)]), exchange).await;
            assert!(!answer.windows(16).any(|w| w == b"spiffe://example"), "nothing is given away");
        }
        serves(&domain, &node).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_says_half_a_word_and_waits_keeps_nobody_out() {
    panics::watch();
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    let mut waiting = Vec::new();
    for door in DOORS {
        // Fewer than the handshakes that one address may have under way.
        for n in 0..30 {
            let mut stream = open(&domain, &node, door).await;
            let half: &[u8] = if matches!(door, Door::Tcp) { b"\x16\x03\x01\x02\x00\x01\x00\x01" } else { PREFACE };
            stream.write_all(&half[..n % half.len()]).await.unwrap();
            stream.flush().await.unwrap();
            waiting.push(stream);
        }
        serves(&domain, &node).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_beyond_their_limit_are_refused_and_the_next_call_works() {
    panics::watch();
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    for channel in [domain.admin().await.unwrap(), domain.connect(None).await.unwrap(), domain.connect(Some(&node)).await.unwrap()] {
        let mut request = Request::new(PostStatusRequest::default());
        request.metadata_mut().insert("x-large", "y".repeat(64 << 10).parse().unwrap());
        let refused = world::soon("a refusal", AgentClient::new(channel).post_status(request)).await.unwrap_err();
        assert_ne!(refused.code(), Code::PermissionDenied, "it came as far as the gate");
    }
    serves(&domain, &node).await;
}

/// A message of exactly so many bytes: one of its fields is given room until it fits.
fn sized<T: Message>(bytes: usize, make: impl Fn(Vec<u8>) -> T) -> T {
    let surplus = make(vec![0; bytes]).encoded_len() - bytes;
    let message = make(vec![0; bytes - surplus]);
    assert_eq!(message.encoded_len(), bytes);
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn four_mebibytes_are_taken_and_one_byte_more_is_refused() {
    const LIMIT: usize = 4 << 20;
    panics::watch();
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    for (bytes, expected) in [(LIMIT, Code::InvalidArgument), (LIMIT + 1, Code::OutOfRange), (4 * LIMIT, Code::OutOfRange)] {
        let minting = sized(bytes, |csr| MintX509svidRequest { csr, ttl: 0 });
        let refused = world::svids(&domain).await.mint_x509svid(minting).await.unwrap_err();
        assert_eq!(refused.code(), expected, "{bytes} bytes on the private socket: {refused:?}");

        let entry_id = "none".to_owned();
        let batch = sized(bytes, |csr| BatchNewX509svidRequest { params: vec![NewX509svidParams { entry_id: entry_id.clone(), csr }] });
        let mut client = SvidClient::new(domain.connect(Some(&node)).await.unwrap());
        let code = match client.batch_new_x509svid(batch).await {
            Ok(answer) => Code::from_i32(answer.into_inner().results[0].status.as_ref().unwrap().code),
            Err(refused) => refused.code(),
        };
        assert_eq!(code, expected, "{bytes} bytes of an agent");

        let first = sized(bytes, |csr| {
            let data = types::AttestationData { r#type: "join_token".to_owned(), payload: b"t".to_vec() };
            AttestAgentRequest { step: Some(Step::Params(Params { data: Some(data), params: Some(AgentX509svidParams { csr }) })) }
        });
        let call = AgentClient::new(domain.connect(None).await.unwrap()).attest_agent(tokio_stream::iter([first])).await;
        let refused = match call {
            Ok(answers) => world::soon("an answer", answers.into_inner().message()).await.unwrap_err(),
            Err(refused) => refused,
        };
        assert_eq!(refused.code(), expected, "{bytes} bytes of a stranger: {refused:?}");
    }
    serves(&domain, &node).await;
}
