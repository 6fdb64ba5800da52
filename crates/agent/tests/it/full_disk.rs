//! The disk of server and agent without room, all of it at once: workloads keep what they have, nobody loses an identity,
//! and once there is room everything goes on by itself.

use std::time::Duration;

use countersign_testkit::domain::until;
use countersign_testkit::file_limit;
use countersign_wire::journal::Kind;
use tonic::Code;

use crate::support::{World, message, next, next_with, paths, verify};
use countersign_testkit::domain::{own_uid, status};

/// Looks again and again, a second of virtual time later each time, so that what waits to try again does.
async fn in_time<T>(what: &str, clock: &countersign_testkit::clock::VirtualClock, look: impl AsyncFn() -> Option<T>) -> T {
    let found = until(what, async || {
        clock.advance(Duration::from_secs(1));
        look().await
    });
    found.await.unwrap()
}

#[test]
fn a_disk_without_room_takes_no_identity_away() {
    if file_limit::alone("full_disk::a_disk_without_room_takes_no_identity_away") {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(without_room());
    }
}

async fn without_room() {
    let (world, clock) = World::still("", "").await;
    world.entry("/web").await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    let before = next(&mut stream).await.svids.remove(0);
    let leaf = world.agent_leaf().unwrap();

    file_limit::limit(Some(0));
    // Half of their life: the agent's own SVID and the workload's want to be renewed, and cannot be.
    clock.advance(Duration::from_secs(31 * 60));
    for _ in 0..5 {
        clock.advance(Duration::from_secs(60));
        let refused = world.domain.entry_from(message("/refused", &[own_uid()])).await.unwrap_err();
        assert_eq!(status(&refused).unwrap().code(), Code::Unavailable, "{refused}");
        let again = world.workload().await.x509_svid().await.unwrap().svids.remove(0);
        assert_eq!(again.x509_svid, before.x509_svid);
        verify(&again, world.clock.now());
        world.workload().await.jwt_svids(&["a"], "").await.unwrap_err();
        // Reads go on.
        world.domain.bundle().await.unwrap();
    }
    assert_eq!(world.agent_leaf().unwrap().serial_decimal(), leaf.serial_decimal());

    file_limit::limit(None);
    let renewed = async || world.agent_leaf().filter(|l| l.serial_decimal() != leaf.serial_decimal());
    let leaf = in_time("the agent's own SVID is renewed", &clock, renewed).await;
    assert!(leaf.is_valid_at(world.clock.now()));
    let shown = async || {
        let svid = world.workload().await.x509_svid().await.ok()?.svids.remove(0);
        (svid.x509_svid != before.x509_svid).then_some(svid)
    };
    let svid = in_time("the workload's SVID is renewed", &clock, shown).await;
    verify(&svid, world.clock.now());
    world.entry("/new").await;
    next_with(&mut stream, |m| paths(m) == ["/new", "/web"] || paths(m) == ["/web", "/new"]).await;
    world.workload().await.jwt_svids(&["a"], "").await.unwrap();
    // Trying again did not mean asking without pause: a record is what a request costs.
    assert!(world.issued(Kind::WorkloadX509).await.len() < 20 && world.issued(Kind::AgentX509).await.len() < 20);
}
