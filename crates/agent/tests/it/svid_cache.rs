//! SVIDs beyond the limit of the cache: what a stream uses stays, what nobody uses goes.

use countersign_testkit::domain::{own_uid, until};
use countersign_wire::journal::Kind;
use countersign_wire::types;
use countersign_wire::types::entry::AdditionalAttributes;

use crate::support::{World, message, next, next_with, paths, selector};

/// SVIDs that a stream holds, more than the cache is to have.
const SUBSCRIBED: usize = 5;

async fn world() -> World {
    World::with("", "x509_svid_cache_max_size = 2").await
}

/// As many entries for this process as a stream is to hold.
async fn subscribed(world: &World) {
    let entries = (0..SUBSCRIBED).map(|n| message(&format!("/mine/{n}"), &[own_uid()]));
    world.entries(entries.collect()).await;
    world.served().await;
}

/// How many were issued but for the agent's own alias.
async fn issued(world: &World) -> usize {
    world.issued(Kind::WorkloadX509).await.iter().filter(|r| !r.spiffe_id.ends_with("/node/a")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_streams_are_subscribed_to_is_never_evicted_however_small_the_cache() {
    let world = world().await;
    subscribed(&world).await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    let held = next_with(&mut stream, |m| m.svids.len() == SUBSCRIBED).await;
    assert_eq!(issued(&world).await, SUBSCRIBED);
    // Others come, and are asked for by nobody: there is no room for them, and no stream loses anything.
    let others = (0..20).map(|n| message(&format!("/others/{n}"), &[selector(&format!("unix:uid:{}", 5000 + n))]));
    world.entries(others.collect()).await;
    world.entry_with("/mark", |e| e.federates_with.clear()).await;
    let more = next_with(&mut stream, |m| m.svids.len() == SUBSCRIBED + 1).await;
    for svid in &held.svids {
        assert!(more.svids.contains(svid), "{} was replaced", svid.spiffe_id);
    }
    assert_eq!(issued(&world).await, SUBSCRIBED + 1);
    // A second stream of the same process is served with the same, without the server.
    let mut second = world.workload().await.x509_svids().await.unwrap();
    assert_eq!(next(&mut second).await, more);
    assert_eq!(issued(&world).await, SUBSCRIBED + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_not_to_be_fetched_ahead_is_fetched_when_somebody_asks() {
    let world = World::start().await;
    let lazy = AdditionalAttributes { disable_x509_svid_prefetch: true, ..AdditionalAttributes::default() };
    let of = |path, attributes| types::Entry { additional_attributes: attributes, ..message(path, &[own_uid()]) };
    world.entries(vec![of("/lazy", Some(lazy)), of("/eager", None)]).await;
    let world = &world;
    let was_issued = |path: &'static str| async move { world.issued(Kind::WorkloadX509).await.iter().any(|r| r.spiffe_id.ends_with(path)) };
    until("what may be fetched ahead is", || async { was_issued("/eager").await.then_some(()) }).await.unwrap();
    assert!(!was_issued("/lazy").await);
    let mut both = world.workload().await.x509_svid().await.unwrap();
    both.svids.sort_by(|a, b| a.spiffe_id.cmp(&b.spiffe_id));
    assert_eq!(paths(&both), ["/eager", "/lazy"]);
}
