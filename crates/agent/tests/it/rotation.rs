//! Renewal by the clock, in virtual time.

use std::collections::HashSet;
use std::time::Duration;

use countersign_identity::{BundleSet, rotation::BACKDATE};
use countersign_identity::{Timestamp, jwt};
use countersign_testkit::clock::VirtualClock;
use countersign_testkit::log::Log;
use countersign_wire::workload::X509svidResponse;
use tokio::sync::watch;
use tonic::Streaming;

use crate::support::{PATIENCE, World, next, verify};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_is_renewed_before_half_of_its_life_with_a_new_key_on_the_open_stream() {
    Log::listen();
    let (world, clock) = World::still("agent_ttl = \"4h\"\nca_ttl = \"48h\"", "").await;
    world.entry("/web").await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    let mut before = next(&mut stream).await.svids.remove(0);
    for _ in 0..5 {
        let leaf = verify(&before, world.clock.now());
        // Not before two fifths of its life …
        clock.advance(leaf.not_after.since(leaf.not_before) * 2 / 5 - Duration::from_secs(15) - BACKDATE);
        assert!(tokio::time::timeout(Duration::from_millis(20), stream.message()).await.is_err(), "renewed too early");
        // … and by its half.
        clock.advance(leaf.not_after.since(leaf.not_before) / 10 + Duration::from_secs(15));
        let after = next(&mut stream).await.svids.remove(0);
        verify(&after, world.clock.now());
        assert_ne!(after.x509_svid_key, before.x509_svid_key);
        before = after;
    }
    let renewals = Log::lines("INFO", "Renewing X509-SVID");
    assert_eq!(renewals.iter().filter(|line| line.contains("spiffe_id=spiffe://example.org/web ")).count(), 5, "{renewals:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_availability_target_an_svid_is_renewed_while_that_much_life_is_left() {
    let (world, clock) = World::still("agent_ttl = \"40h\"\nca_ttl = \"2000h\"", "availability_target = \"24h\"").await;
    world.entry_with("/web", |e| e.x509_svid_ttl = 40 * 3600).await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    let before = next(&mut stream).await.svids.remove(0);
    // Two fifths of its life, 16 hours, when it would usually be renewed at the earliest, are the latest now.
    clock.advance(HOUR * 15 + HOUR / 2);
    assert!(tokio::time::timeout(Duration::from_millis(20), stream.message()).await.is_err(), "renewed too early");
    clock.advance(HOUR / 2);
    let after = next(&mut stream).await.svids.remove(0);
    assert_ne!(after.x509_svid_key, before.x509_svid_key);
    let leaf = verify(&before, world.clock.now());
    assert!(leaf.not_after.since(world.clock.now()) >= 24 * HOUR - HOUR / 60);
}

/// Follows a stream and checks every message when it comes.
fn follow(mut stream: Streaming<X509svidResponse>, clock: VirtualClock) -> watch::Receiver<Vec<(Timestamp, Timestamp)>> {
    let (shown, seen) = watch::channel(Vec::new());
    tokio::spawn(async move {
        let mut keys = HashSet::new();
        let mut last = Vec::new();
        while let Ok(Some(message)) = stream.message().await {
            use countersign_transport::clock::Clock as _;
            let now = clock.now();
            let lives = message
                .svids
                .iter()
                .map(|svid| {
                    let leaf = verify(svid, now);
                    (leaf.not_before, leaf.not_after)
                })
                .collect();
            if last != message.svids.iter().map(|s| s.x509_svid.clone()).collect::<Vec<_>>() {
                let fresh = message.svids.iter().filter(|s| keys.insert(s.x509_svid_key.to_vec())).count();
                assert!(fresh > 0, "a key came back");
            }
            last = message.svids.iter().map(|s| s.x509_svid.clone()).collect();
            let _ = shown.send(lives);
        }
    });
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_of_rotations_leaves_no_gap() {
    let settings = "agent_ttl = \"6h\"\ndefault_x509_svid_ttl = \"4h\"\nca_ttl = \"48h\"";
    let (world, clock) = World::still(settings, "").await;
    world.entry("/web").await;
    let workload = world.workload().await;
    let seen = follow(workload.x509_svids().await.unwrap(), clock.clone());
    let half = |from: Timestamp, to: Timestamp| from.after(to.since(from) / 2);
    let mut roots = HashSet::new();
    let mut agents = HashSet::new();
    for step in 0..30 * 24 {
        clock.advance(HOUR);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let now = world.clock.now();
            assert!(seen.has_changed().is_ok(), "the stream has ended, or showed something wrong, in step {step}");
            let served = seen.borrow().iter().all(|(from, to)| now < half(*from, *to)) && !seen.borrow().is_empty();
            let agent = world.agent_leaf().unwrap();
            assert!(seen.borrow().iter().all(|(_, to)| now < *to), "an ended SVID is served in step {step}");
            if served && now < half(agent.not_before, agent.not_after) {
                agents.insert(agent.serial_decimal());
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "not renewed in step {step}");
            // Looking again, not waiting: a retry of the agent's waits for this clock.
            tokio::time::sleep(Duration::from_millis(2)).await;
            clock.advance(Duration::from_millis(20));
        }
        if step % 6 == 0 {
            let token = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
            let bundle = world.domain.bundle().await.unwrap();
            roots.extend(bundle.x509_authorities().iter().map(|a| a.certificate.serial_decimal()));
            jwt::verify(&token, "a", &BundleSet::from_iter([std::sync::Arc::new(bundle)]), world.clock.now()).unwrap();
        }
    }
    assert!(roots.len() >= 15, "{} authorities in a month", roots.len());
    assert!(agents.len() >= 200, "{} agent SVIDs in a month", agents.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_renews_its_own_svid_into_the_other_key_slot() {
    Log::listen();
    let (world, clock) = World::still("", "").await;
    let first = world.agent_leaf().unwrap();
    clock.advance(HOUR / 2);
    let renewed = || async { world.agent_leaf().filter(|leaf| leaf.serial_decimal() != first.serial_decimal()) };
    let second = countersign_testkit::domain::until("it is renewed", renewed).await.unwrap();
    assert_ne!(second.public_key, first.public_key);
    assert_eq!(second.spiffe_id(), first.spiffe_id());
    Log::says("INFO", "Successfully rotated agent SVID").await.unwrap();
    // And is used: what is pushed still arrives.
    world.entry("/web").await;
    world.workload().await.x509_svid().await.unwrap();
}
