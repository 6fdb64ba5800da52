//! Changes arrive on open streams by themselves, and large agents stay quick.

use std::time::{Duration, Instant};

use countersign_identity::x509::Certificate;
use countersign_wire::journal::Kind;

use crate::support::{World, message, next, next_with, paths, selector, verify};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_entry_arrives_on_an_open_stream_within_moments() {
    let world = World::start().await;
    world.entry("/web").await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    next(&mut stream).await;
    for path in ["/one", "/two", "/three"] {
        let start = Instant::now();
        world.entry(path).await;
        next_with(&mut stream, |m| paths(m).contains(&path)).await;
        // A poll would take seconds; this is milliseconds on a quiet machine.
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_without_identity_gets_one_as_soon_as_there_is_an_entry() {
    let world = World::start().await;
    let workload = world.workload().await;
    workload.x509_svid().await.unwrap_err();
    world.entry("/web").await;
    verify(&workload.x509_svid().await.unwrap().svids[0], world.clock.now());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_certificate_changes_without_a_new_one() {
    let world = World::start().await;
    let entry = world.entry("/web").await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    let before = next(&mut stream).await.svids.remove(0);
    world.update(&entry, |e| e.hint = "renamed".to_owned()).await;
    let after = next(&mut stream).await.svids.remove(0);
    assert_eq!(after.hint, "renamed");
    assert_eq!((after.x509_svid, after.x509_svid_key), (before.x509_svid, before.x509_svid_key));
    assert_eq!(world.issued(Kind::WorkloadX509).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_certificate_changes_with_a_new_one_and_a_new_key() {
    let world = World::start().await;
    let entry = world.entry("/web").await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    let before = next(&mut stream).await.svids.remove(0);

    let entry = world.update(&entry, |e| e.dns_names = vec!["web.example.org".to_owned()]).await;
    let named = next(&mut stream).await.svids.remove(0);
    assert_eq!(verify(&named, world.clock.now()).dns_names, ["web.example.org"]);
    assert_ne!(named.x509_svid_key, before.x509_svid_key);

    let entry = world.update(&entry, |e| e.x509_svid_ttl = 120).await;
    let short = next(&mut stream).await.svids.remove(0);
    let leaf = verify(&short, world.clock.now());
    assert!(leaf.not_after.since(world.clock.now()) <= Duration::from_secs(120));

    world.update(&entry, |e| e.spiffe_id.as_mut().unwrap().path = "/api".to_owned()).await;
    let moved = next(&mut stream).await.svids.remove(0);
    assert_eq!(moved.spiffe_id, "spiffe://example.org/api");
    verify(&moved, world.clock.now());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_whose_selectors_change_moves_to_other_workloads() {
    let world = World::start().await;
    world.entry("/stays").await;
    let entry = world.entry("/moves").await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    next_with(&mut stream, |m| m.svids.len() == 2).await;
    let elsewhere = world.update(&entry, |e| e.selectors[0].value = "uid:4294967294".to_owned()).await;
    assert_eq!(paths(&next(&mut stream).await), ["/stays"]);
    world.update(&elsewhere, |e| e.selectors = entry.selectors.clone()).await;
    assert_eq!(next(&mut stream).await.svids.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_ends_by_itself_is_redacted() {
    let (world, clock) = World::still("", "").await;
    world.entry("/stays").await;
    let end = world.clock.now().after(Duration::from_secs(600)).secs();
    world.entry_with("/ends", |e| e.expires_at = end).await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    next_with(&mut stream, |m| m.svids.len() == 2).await;
    clock.advance(Duration::from_secs(640));
    assert_eq!(paths(&next_with(&mut stream, |m| m.svids.len() == 1).await), ["/stays"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_ten_thousand_entries_keeps_its_limits_and_stays_quick() {
    const LIMIT: usize = 100;
    let world = World::with("", &format!("x509_svid_cache_max_size = {LIMIT}")).await;
    let before = resident_mib();
    for batch in 0..20 {
        let entries =
            (0..500).map(|n| message(&format!("/many/{batch}/{n}"), &[selector(&format!("unix:gid:{}", 100_000 + batch * 500 + n))]));
        world.entries(entries.collect()).await;
    }
    world.entry("/web").await;
    // The cache is full of what nobody asked for, or on its way there; a caller is served all the same, and at once.
    let start = Instant::now();
    let svid = world.workload().await.x509_svid().await.unwrap().svids.remove(0);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    verify(&svid, world.clock.now());
    // Prefetching ends at the limit, give or take what was under way.
    let full = || async { (world.issued(Kind::WorkloadX509).await.len() >= LIMIT).then_some(()) };
    countersign_testkit::domain::until("the cache is full", full).await.unwrap();
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    next(&mut stream).await;
    world.entry("/later").await;
    next_with(&mut stream, |m| m.svids.len() == 2).await;
    let issued = world.issued(Kind::WorkloadX509).await.len();
    assert!(issued <= LIMIT + 64, "{issued} were issued for a cache of {LIMIT}");
    let grown = resident_mib().saturating_sub(before);
    assert!(grown < 500, "{grown} MiB for server, agent and all tests beside this one");
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_that_a_stream_waits_for_is_fetched_once() {
    let world = World::start().await;
    world.entry("/web").await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    next(&mut stream).await;
    // Stream and push both want each of them, at the same moment.
    for round in 0..30 {
        let entries = (0..5).map(|n| message(&format!("/w{round}-{n}"), &[countersign_testkit::domain::own_uid()]));
        world.entries(entries.collect()).await;
    }
    next_with(&mut stream, |m| m.svids.len() == 151).await;
    world.entry("/last").await;
    next_with(&mut stream, |m| m.svids.len() == 152).await;
    let issued = world.issued(Kind::WorkloadX509).await;
    assert_eq!(issued.iter().filter(|r| !r.spiffe_id.contains("/node/")).count(), 152);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetched_svid_is_handed_out_and_not_fetched_again() {
    let (world, clock) = World::still("", "").await;
    world.entry("/web").await;
    let fetched = || async {
        // Prefetching is spread over three seconds.
        clock.advance(Duration::from_secs(1));
        world.issued(Kind::WorkloadX509).await.into_iter().find(|r| r.spiffe_id == "spiffe://example.org/web")
    };
    let record = countersign_testkit::domain::until("it is prefetched", fetched).await.unwrap();
    let svid = world.workload().await.x509_svid().await.unwrap().svids.remove(0);
    assert_eq!(Certificate::parse_concatenated(&svid.x509_svid).unwrap()[0].serial_decimal(), record.serial_or_jti);
    let issued = world.issued(Kind::WorkloadX509).await;
    assert_eq!(issued.iter().filter(|r| r.spiffe_id == "spiffe://example.org/web").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_asks_for_it_is_not_prefetched() {
    let (world, clock) = World::still("", "").await;
    world
        .entry_with("/lazy", |e| {
            e.additional_attributes =
                Some(countersign_wire::types::entry::AdditionalAttributes { disable_x509_svid_prefetch: true, ..Default::default() });
        })
        .await;
    world.entries(vec![message("/eager", &[selector("unix:gid:100001")])]).await;
    let of = |path: &'static str| {
        let world = &world;
        async move { world.issued(Kind::WorkloadX509).await.into_iter().find(|r| r.spiffe_id.ends_with(path)) }
    };
    let fetched = || async {
        clock.advance(Duration::from_secs(1));
        of("/eager").await
    };
    countersign_testkit::domain::until("the other one is prefetched", fetched).await.unwrap();
    assert!(of("/lazy").await.is_none());
    world.workload().await.x509_svid().await.unwrap();
    assert!(of("/lazy").await.is_some());
}
