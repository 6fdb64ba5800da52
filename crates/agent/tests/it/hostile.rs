//! Callers that mean harm, or do not know better: the agent stays up, and serves the others.

use std::time::Duration;

use countersign_testkit::workload::{Workload, with_header};
use countersign_wire::workload as wire;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::Code;

use crate::support::{PATIENCE, World, next, next_with};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn serves(world: &World) {
    let served = tokio::time::timeout(Duration::from_secs(5), async { world.workload().await.x509_svid().await });
    assert_eq!(served.await.expect("in time").unwrap().svids.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_grpc_end_their_connection_and_nothing_else() {
    let world = World::start().await;
    world.entry("/web").await;
    let frame = |length: u32, kind: u8, flags: u8, stream: u32, body: &[u8]| {
        let mut bytes = PREFACE.to_vec();
        bytes.extend_from_slice(b"\0\0\0\x04\0\0\0\0\0");
        bytes.extend_from_slice(&length.to_be_bytes()[1..]);
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    };
    let mut cases: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"POST /SpiffeWorkloadAPI/FetchX509SVID HTTP/1.1\r\nworkload.spiffe.io: true\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0".to_vec(),
        vec![0; 4096],
        vec![0xff; 4096],
        // A frame longer than allowed, HEADERS that no decoder knows, SETTINGS on a stream, DATA on stream 0.
        frame(0x00ff_ffff, 0, 0, 1, &[0; 64]),
        frame(8, 1, 5, 1, &[0xff; 8]),
        frame(0, 4, 0, 1, &[]),
        frame(4, 0, 0, 0, &[0; 4]),
    ];
    // A noise that is the same in every run.
    let mut state = 1_u64;
    cases.extend((0..20).map(|_| {
        let noise = (0..200).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u8::try_from(state >> 56).unwrap()
        });
        [PREFACE, &noise.collect::<Vec<u8>>()].concat()
    }));
    for case in cases {
        let mut stream = UnixStream::connect(world.socket()).await.unwrap();
        let _ = stream.write_all(&case).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the connection is ended: {:?}", String::from_utf8_lossy(&case));
        assert!(!answer.windows(16).any(|w| w == b"spiffe://example"), "nothing is given away");
    }
    serves(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_four_mebibytes_is_refused() {
    let world = World::start().await;
    world.entry("/web").await;
    let workload = world.workload().await;
    for bytes in [(4 << 20) + 1, 16 << 20] {
        let status = workload.validate("a", &"x".repeat(bytes)).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    }
    // Exactly four: the text and what surrounds it.
    let mut request = wire::ValidateJwtsvidRequest { audience: "a".to_owned(), svid: "x".repeat(4 << 20) };
    request.svid.truncate((4 << 20) - (request.encoded_len() - (4 << 20)));
    assert_eq!(request.encoded_len(), 4 << 20);
    let status = workload.client().validate_jwtsvid(with_header(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    // The same connection goes on.
    workload.x509_svid().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_beyond_their_limit_are_refused() {
    let world = World::start().await;
    world.entry("/web").await;
    let workload = world.workload().await;
    let mut request = with_header(wire::X509svidRequest {});
    request.metadata_mut().insert("x-large", "y".repeat(64 << 10).parse().unwrap());
    workload.client().fetch_x509svid(request).await.map(|_| ()).unwrap_err();
    serves(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_reads_hold_nobody_up() {
    let world = World::start().await;
    let mut entry = world.entry("/web").await;
    let lazy = world.workload().await;
    let mut unread = Vec::new();
    for _ in 0..200 {
        unread.push(lazy.x509_svids().await.unwrap());
    }
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    next(&mut stream).await;
    for round in 0..20 {
        entry = world.update(&entry, |e| e.hint = format!("round {round}")).await;
        next_with(&mut stream, |m| m.svids[0].hint == format!("round {round}")).await;
    }
    serves(&world).await;
    // They were told nothing twice: whoever reads at last sees the end of the story soon.
    let mut messages = 0;
    while next(&mut unread[199]).await.svids[0].hint != "round 19" {
        messages += 1;
        assert!(messages < 25);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_stream_that_nobody_reads_is_bounded() {
    const WINDOW: u32 = 64 << 10;
    /// What may be on the way: the window the reader grants, what is encoded at once, and two messages behind it.
    const QUEUED_MAX: usize = 128 << 10;
    let world = World::start().await;
    let mut entry = world.entry("/web").await;
    let mut unread = Workload::with_window(&world.socket(), WINDOW).await.unwrap().x509_svids().await.unwrap();
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    let mut sent = next(&mut stream).await.encoded_len();
    for round in 0..200 {
        entry = world.update(&entry, |e| e.hint = format!("{round:0>1000}")).await;
        sent += next_with(&mut stream, |m| m.svids[0].hint == entry.hint).await.encoded_len();
    }
    let mut queued = 0;
    loop {
        let message = next(&mut unread).await;
        queued += message.encoded_len();
        if message.svids[0].hint == entry.hint {
            break;
        }
    }
    assert!(sent > 2 * QUEUED_MAX, "{sent} bytes prove nothing");
    assert!(queued < QUEUED_MAX, "{queued} of {sent} bytes were waiting");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_a_connection_may_have_wait_for_their_turn() {
    let world = World::start().await;
    world.entry("/web").await;
    let workload = world.workload().await;
    let mut open = Vec::new();
    for _ in 0..256 {
        open.push(workload.x509_bundles().await.unwrap());
    }
    let waiting = tokio::time::timeout(Duration::from_millis(100), workload.x509_bundles()).await;
    assert!(waiting.is_err(), "one more than the limit is not served");
    serves(&world).await;
    open.pop();
    tokio::time::timeout(PATIENCE, workload.x509_bundles()).await.expect("its turn comes").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_connections_leave_nothing_behind() {
    let world = World::start().await;
    world.entry("/web").await;
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for round in 0..30 {
        let mut connections = Vec::new();
        for n in 0..100 {
            let mut stream = UnixStream::connect(world.socket()).await.unwrap();
            match n % 3 {
                0 => {}
                1 => stream.write_all(&PREFACE[..n % PREFACE.len()]).await.unwrap(),
                _ => stream.write_all(PREFACE).await.unwrap(),
            }
            connections.push(stream);
        }
        if round % 10 == 0 {
            let workload = Workload::connect(&world.socket()).await.unwrap();
            let mut streams = Vec::new();
            for _ in 0..50 {
                streams.push(workload.x509_svids().await.unwrap());
            }
        }
    }
    serves(&world).await;
    // Other tests run beside this one in the same process; 3000 leaked connections would be 6000 descriptors.
    let closed = || async { (open() < before + 1500).then_some(()) };
    countersign_testkit::domain::until("descriptors are closed", closed).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_its_caller_gives_up_does_not_spoil_the_next() {
    let world = World::start().await;
    world.entry("/web").await;
    let workload = world.workload().await;
    for n in 0..50 {
        let audience = format!("audience {}", n % 3);
        let _ = tokio::time::timeout(Duration::from_micros(200 * n), workload.jwt_svids(&[&audience], "")).await;
    }
    for n in 0..3 {
        let svids = tokio::time::timeout(PATIENCE, workload.jwt_svids(&[&format!("audience {n}")], "")).await;
        assert_eq!(svids.expect("in time").unwrap().len(), 1);
    }
}
