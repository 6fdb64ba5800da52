//! What the agent has goes on being served: the server away, restarted, the clock stepped.

use std::time::Duration;

use countersign_testkit::clock::VirtualClock;
use countersign_testkit::domain::{own_uid, until};
use countersign_testkit::workload::first;
use countersign_transport::clock::Clock as _;
use tonic::Code;

use crate::support::{OWN, World, answer, claims, message, next, next_with, paths, verify};

const MINUTE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

/// Does something again and again while virtual time passes slowly, so that retries get their turn.
async fn while_time_passes<T, F: Future<Output = Option<T>>>(clock: &VirtualClock, what: &str, mut look: impl FnMut() -> F) -> T {
    until(what, || {
        clock.advance(Duration::from_millis(50));
        look()
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_server_the_agent_serves_what_it_has_until_it_ends_and_heals_by_itself() {
    let (mut world, clock) = World::still("agent_ttl = \"8h\"\nca_ttl = \"72h\"", "").await;
    world.entry("/web").await;
    let workload = world.workload().await;
    let mut open = workload.x509_svids().await.unwrap();
    let held = next(&mut open).await;
    let token = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
    world.domain.stop_server().await;

    // Past half of the token's life and before its end.
    clock.advance(4 * MINUTE);
    assert_eq!(workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid, token);
    assert_eq!(workload.x509_svid().await.unwrap(), held);
    assert!(first(workload.x509_bundles().await.unwrap()).await.unwrap().bundles.contains_key(OWN));
    assert!(first(workload.jwt_bundles().await.unwrap()).await.unwrap().bundles.contains_key(OWN));
    workload.validate("a", &token).await.unwrap();
    let fresh = workload.jwt_svids(&["another"], "").await.unwrap_err();
    assert_eq!(fresh.code(), Code::Unavailable);
    assert!(fresh.message().starts_with("could not fetch JWT-SVID: "), "{fresh:?}");

    // Past the token's end, and near the SVID's.
    clock.advance(54 * MINUTE);
    assert_eq!(workload.jwt_svids(&["a"], "").await.unwrap_err().code(), Code::Unavailable);
    let still = workload.x509_svid().await.unwrap();
    assert_eq!(still, held);
    verify(&still.svids[0], clock.now());

    // Past its end too: nothing that has ended is served, and nobody is told that it has no identity.
    clock.advance(5 * MINUTE);
    let ended = workload.x509_svid_within(SHORT).await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    assert!(first(workload.x509_bundles().await.unwrap()).await.is_ok());

    world.domain.start_server().await.unwrap();
    let healed = while_time_passes(&clock, "the agent heals", || async { workload.x509_svid_within(SHORT).await.ok() }).await;
    verify(&healed.svids[0], clock.now());
    // The stream that was open all the time has it too.
    assert_eq!(next_with(&mut open, |m| *m != held).await.svids, healed.svids);
    let token = while_time_passes(&clock, "tokens too", || async { workload.jwt_svids(&["a"], "").await.ok() }).await.remove(0).svid;
    assert!(claims(&token)["exp"].as_i64().unwrap() > clock.now().secs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_is_followed_again_and_streams_do_not_notice() {
    let mut world = World::start().await;
    world.entry("/web").await;
    let workload = world.workload().await;
    let mut svids = workload.x509_svids().await.unwrap();
    let mut bundles = workload.jwt_bundles().await.unwrap();
    let (before, _) = (next(&mut svids).await, next(&mut bundles).await);
    for path in ["/after-1", "/after-2"] {
        world.domain.stop_server().await;
        world.domain.start_server().await.unwrap();
        // The next message is the new entry's: reconnecting itself is no news.
        world.entry(path).await;
        let message = next(&mut svids).await;
        assert!(paths(&message).contains(&path), "{:?} is no news", paths(&message));
        assert!(message.svids.contains(&before.svids[0]), "the SVID is kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_made_while_the_line_was_cut_arrive_afterwards() {
    let (mut world, clock) = World::still("agent_ttl = \"8h\"\nca_ttl = \"72h\"", "").await;
    let stays = world.entry("/stays").await;
    let goes = world.entry("/goes").await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    next_with(&mut stream, |m| m.svids.len() == 2).await;
    world.domain.stop_server().await;
    // With the agent's clock standing still it does not come back before these are made.
    world.domain.start_server().await.unwrap();
    world.delete(&goes).await;
    world.update(&stays, |e| e.hint = "changed".to_owned()).await;
    let entry = crate::support::message("/comes", &[countersign_testkit::domain::own_uid()]);
    world.entries(vec![entry]).await;
    let arrived = || async {
        let message = world.workload().await.x509_svid_within(Duration::from_secs(5)).await.ok()?;
        let mut found = paths(&message);
        found.sort_unstable();
        (found == ["/comes", "/stays"] && message.svids.iter().any(|s| s.hint == "changed")).then_some(())
    };
    while_time_passes(&clock, "everything arrives", arrived).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_stepped_forward_by_an_hour_ends_nothing_that_lives_longer() {
    let (world, clock) = World::still("agent_ttl = \"8h\"\ndefault_x509_svid_ttl = \"1h\"\nca_ttl = \"72h\"", "").await;
    world.entry("/web").await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    let before = next(&mut stream).await;
    clock.advance(61 * MINUTE);
    // The SVID ended in that moment; the next one is there as soon as it can be.
    let after = next(&mut stream).await;
    assert_ne!(after, before);
    verify(&after.svids[0], clock.now());
    world.entry("/later").await;
    next_with(&mut stream, |m| m.svids.len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_stepped_back_by_an_hour_breaks_nothing_that_is_held() {
    let (world, clock) = World::still("agent_ttl = \"8h\"\nca_ttl = \"72h\"", "").await;
    clock.advance(3 * 60 * MINUTE);
    world.entry("/web").await;
    let workload = world.workload().await;
    let mut stream = workload.x509_svids().await.unwrap();
    let before = next(&mut stream).await;
    let token = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
    clock.step_back(60 * MINUTE);
    assert_eq!(workload.x509_svid().await.unwrap(), before);
    assert_eq!(workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid, token);
    // The line stands, changes arrive, and what is issued now counts now.
    world.entry("/meanwhile").await;
    let message = next_with(&mut stream, |m| m.svids.len() == 2).await;
    let new = message.svids.iter().find(|s| s.spiffe_id.ends_with("/meanwhile")).unwrap();
    verify(new, clock.now());
    clock.advance(60 * MINUTE);
    for svid in &workload.x509_svid().await.unwrap().svids {
        verify(svid, clock.now());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_by_an_hour_delays_no_reconnecting() {
    let (mut world, clock) = World::still("agent_ttl = \"8h\"\nca_ttl = \"72h\"", "").await;
    clock.advance(120 * MINUTE);
    world.domain.stop_server().await;
    let mut looks = 0;
    let waiting = || {
        looks += 1;
        std::future::ready((looks > 40).then_some(()))
    };
    while_time_passes(&clock, "the agent is between two attempts", waiting).await;
    clock.step_back(60 * MINUTE);
    world.domain.start_server().await.unwrap();
    world.domain.entry_from(message("/web", &[own_uid()])).await.unwrap();
    let workload = world.workload().await;
    // Far less than an hour passes in this.
    while_time_passes(&clock, "the agent has heard of the entry", || async { first(workload.x509_bundles().await.ok()?).await.ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redaction_reaches_a_stream_that_waits_for_an_identity_it_cannot_have_yet() {
    let (mut world, clock) = World::still("agent_ttl = \"8h\"\nca_ttl = \"72h\"", "").await;
    let entry = world.entry("/web").await;
    world.workload().await.x509_svid().await.unwrap();
    world.domain.stop_server().await;
    clock.advance(62 * MINUTE);
    let waiting = world.workload().await;
    let mut stream = waiting.x509_svids().await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), stream.message()).await.is_err(), "it waits");
    world.domain.start_server().await.unwrap();
    world.delete(&entry).await;
    let ticking = async {
        loop {
            clock.advance(Duration::from_millis(50));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let denied = tokio::select! {
        // It may be renewed before the redaction arrives.
        denied = async { loop { if let Err(status) = answer(&mut stream).await { break status; } } } => denied,
        () = ticking => unreachable!("it never ends"),
    };
    assert_eq!(denied.code(), Code::PermissionDenied);
}
