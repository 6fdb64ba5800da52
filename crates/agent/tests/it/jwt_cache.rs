//! Tokens are kept, fetched once however many ask, and renewed behind the caller.

use std::time::Duration;

use countersign_testkit::domain::until;
use countersign_wire::journal::Kind;
use countersign_wire::types::entry::AdditionalAttributes;

use crate::support::{World, claims};

const LIFE: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_the_same_until_half_of_its_life_and_renewed_behind_the_caller_then() {
    let (world, clock) = World::still("", "").await;
    world.entry("/web").await;
    let workload = world.workload().await;
    let fetch = || async { workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid };
    let first = fetch().await;
    clock.advance(LIFE * 2 / 5 - Duration::from_secs(1));
    assert_eq!(fetch().await, first);
    // Past its half the old one is given once more, and the new one is there a moment later.
    clock.advance(LIFE / 10 + Duration::from_secs(1));
    assert_eq!(fetch().await, first);
    let second = until("it is renewed", || async { Some(fetch().await).filter(|t| *t != first) }).await.unwrap();
    assert_eq!(world.issued(Kind::WorkloadJwt).await.len(), 2);
    assert_eq!(fetch().await, second);
    // Long unused: an ended one is never given.
    clock.advance(LIFE * 3);
    let third = fetch().await;
    assert!(claims(&third)["exp"].as_i64().unwrap() > world.clock.now().secs());
    assert_eq!(world.issued(Kind::WorkloadJwt).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_ever_given_after_its_end() {
    let (world, clock) = World::still("ca_ttl = \"48h\"", "").await;
    world.entry("/web").await;
    let workload = world.workload().await;
    for _ in 0..60 {
        clock.advance(Duration::from_secs(37));
        let token = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
        assert!(claims(&token)["exp"].as_i64().unwrap() > world.clock.now().secs());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_callers_at_once_cost_one_token() {
    let (world, clock) = World::still("", "").await;
    world.entry("/web").await;
    let ask = || async {
        let calls: Vec<_> = (0..50)
            .map(|n| {
                let socket = world.socket();
                // The order of audiences does not matter.
                let audience = if n % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
                tokio::spawn(async move {
                    let workload = countersign_testkit::workload::Workload::connect(&socket).await.unwrap();
                    workload.jwt_svids(&audience, "").await.unwrap().remove(0).svid
                })
            })
            .collect();
        let mut tokens = Vec::new();
        for call in calls {
            tokens.push(call.await.unwrap());
        }
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    };
    let first = ask().await;
    assert_eq!(first.len(), 1);
    assert_eq!(world.issued(Kind::WorkloadJwt).await.len(), 1);
    // Half of its life later nobody waits, and again only one is fetched.
    clock.advance(LIFE / 2);
    ask().await;
    let renewed = until("it is renewed", || async { Some(ask().await).filter(|t| *t != first && t.len() == 1) });
    renewed.await.unwrap();
    assert_eq!(world.issued(Kind::WorkloadJwt).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_a_jti_is_for_one_use() {
    let world = World::start().await;
    world
        .entry_with("/web", |e| {
            e.additional_attributes = Some(AdditionalAttributes { jwt_svid_include_jti: true, ..AdditionalAttributes::default() });
        })
        .await;
    let workload = world.workload().await;
    let first = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
    let second = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
    assert_ne!(claims(&first)["jti"], claims(&second)["jti"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_token_does_not_outlive_what_its_entry_says() {
    let world = World::start().await;
    let entry = world.entry("/web").await;
    let workload = world.workload().await;
    let first = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
    world.update(&entry, |e| e.jwt_svid_ttl = 60).await;
    let shorter = || async {
        let token = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
        Some(token).filter(|t| *t != first)
    };
    let second = claims(&until("a token of the new lifetime", shorter).await.unwrap());
    assert!(second["exp"].as_i64().unwrap() - second["iat"].as_i64().unwrap() <= 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_limit_the_token_goes_that_was_used_longest_ago() {
    let world = World::with("", "jwt_svid_cache_max_size = 3").await;
    world.entry("/web").await;
    let workload = world.workload().await;
    let fetch = |audience: &'static str| {
        let workload = workload.clone();
        async move { workload.jwt_svids(&[audience], "").await.unwrap().remove(0).svid }
    };
    let (a, b) = (fetch("a").await, fetch("b").await);
    fetch("c").await;
    assert_eq!(fetch("a").await, a);
    fetch("d").await;
    assert_eq!(fetch("a").await, a);
    assert_eq!(world.issued(Kind::WorkloadJwt).await.len(), 4);
    assert!(!b.is_empty());
    fetch("b").await;
    assert_eq!(world.issued(Kind::WorkloadJwt).await.len(), 5, "`b` had gone");
}
