//! The stream from the server, with messages of the test's own.

use std::pin::pin;
use std::task::{Context, Waker};

use countersign_identity::key::KeyType;
use countersign_plugins::keys::KeyPair;
use countersign_testkit::clock::VirtualClock;
use countersign_transport::random::Seeded;
use countersign_wire::node::{Ack, FollowRequest, follow_request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

fn config(directory: &std::path::Path) -> crate::Config {
    let text = format!(
        "agent {{\n trust_domain = \"example.org\"\n server_address = \"127.0.0.1\"\n server_port = 1\n insecure_bootstrap = true\n \
         data_dir = \"{}\"\n}}\nplugins {{\n KeyManager \"memory\" {{\n plugin_data {{}}\n }}\n NodeAttestor \"join_token\" {{\n \
         plugin_data {{}}\n }}\n WorkloadAttestor \"unix\" {{\n plugin_data {{}}\n }}\n}}\n",
        directory.display()
    );
    crate::Config::read(countersign_config::parse("agent.conf", &text).expect("a good file")).expect("a good configuration")
}

fn revision(number: u64) -> Result<FollowResponse, Status> {
    let cursor = wire::Cursor { epoch: vec![0; 16], revision: number, digest: vec![0; 32] };
    Ok(FollowResponse { cursor: Some(cursor), caught_up: true, ..FollowResponse::default() })
}

/// The revision that the next acknowledgement names; nothing if none was sent.
fn applied(requests: &mut mpsc::Receiver<FollowRequest>) -> Option<u64> {
    match requests.try_recv().ok()?.step {
        Some(follow_request::Step::Ack(ack)) => Some(ack.applied),
        step => panic!("not an acknowledgement: {step:?}"),
    }
}

/// What follows a server at the agent's side, its SVID ending in an hour.
fn following(directory: &std::path::Path) -> (Sync, Arc<Rotator>, VirtualClock, Arc<NodeSvid>) {
    let virtual_clock = VirtualClock::at(Timestamp::from_secs(1_800_000_000));
    let (clock, random): (SharedClock, SharedRandom) = (Arc::new(virtual_clock.clone()), Arc::new(Seeded::new(1)));
    let config = config(directory);
    let files = Files::new(directory).expect("files");
    let node = Arc::new(Node::new(&config, files.clone(), Arc::clone(&clock), Arc::clone(&random)));
    let cache = Arc::new(Cache::new(config.trust_domain.clone(), node.bundles(), 10));
    let rotator = Arc::new(Rotator::new(Arc::clone(&cache), Arc::clone(&clock), Arc::clone(&random), KeyType::EcP256, Arc::default()));
    let sync = Sync::new(node, cache, files, Arc::clone(&clock), random, "test".to_owned());
    let far = clock.now().after(Duration::from_secs(3600));
    let svid = Arc::new(NodeSvid {
        id: config.trust_domain.with_path("/spire/agent/join_token/a").expect("a path"),
        chain: Vec::new(),
        pair: Arc::new(KeyPair::generate(KeyType::EcP256).expect("a key")),
        serial_number: "1".to_owned(),
        expires_at: far,
        renew_at: far,
        reattestable: false,
        slot: 0,
    });
    (sync, rotator, virtual_clock, svid)
}

#[tokio::test]
async fn a_clock_that_is_set_back_delays_no_second_attempt_at_a_renewal() {
    let directory = tempfile::tempdir().expect("a directory");
    let (sync, _rotator, clock, svid) = following(directory.path());
    let mut renewals = Renewals::of(&svid);
    assert!(renewals.renew(&sync).await.is_none(), "no server answers");
    let mut due = pin!(renewals.due(&sync));
    let mut is_due = || due.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
    assert!(!is_due());
    clock.step_back(Duration::from_secs(3600));
    assert!(!is_due());
    clock.advance(renewals::RETRY_FIRST.mul_f64(1.2));
    assert!(is_due());
}

#[tokio::test]
async fn what_arrives_does_not_wait_for_an_acknowledgement_that_is_put_off() {
    let directory = tempfile::tempdir().expect("a directory");
    let (sync, rotator, _clock, svid) = following(directory.path());
    let (server, messages) = mpsc::channel(4);
    let (out, mut requests) = mpsc::channel(4);
    let mut retry = RETRY_FIRST;
    let mut renewals = Renewals::of(&svid);
    let listening = sync.listen(&mut renewals, &rotator, &mut retry, ReceiverStream::new(messages), out);
    // Polled by hand: between two polls no timer fires, however slow the machine is.
    let mut listening = pin!(tokio::task::unconstrained(listening));
    let mut look = || assert!(listening.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());

    server.try_send(revision(1)).expect("room");
    look();
    assert_eq!(applied(&mut requests), Some(1));
    for number in 2..10 {
        // A workload was told something, and the server is to hear of it a little later.
        sync.progressed();
        look();
        assert_eq!(applied(&mut requests), None, "progress is told in one message, a little later");
        server.try_send(revision(number)).expect("room");
        look();
        assert_eq!(applied(&mut requests), Some(number), "the message waits for an acknowledgement that is put off");
    }
    // What was put off is said at last.
    let said = tokio::select! {
        _ = &mut listening => panic!("the stream ended"),
        said = requests.recv() => said.expect("an acknowledgement"),
    };
    assert!(matches!(said.step, Some(follow_request::Step::Ack(Ack { applied: 9, .. }))), "{said:?}");
    drop(server);
    assert!(matches!(listening.await, Ended::Lost(_)));
}
