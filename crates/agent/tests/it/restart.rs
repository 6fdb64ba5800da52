//! Starts and ends: with what is on disk, without it, with something else, and when the server wants the agent no more.

use std::sync::Arc;
use std::time::Duration;

use countersign_agent::{AgentError, End};
use countersign_testkit::clock::VirtualClock;
use countersign_testkit::domain::until;
use countersign_testkit::workload::first;
use countersign_transport::clock::SystemClock;
use countersign_transport::random::Seeded;
use tonic::Code;

use crate::support::{OWN, PATIENCE, World, next, verify};
use crate::trust::next_authority;

const HOUR: Duration = Duration::from_secs(3600);
const COMMAND: &str = "countersign token generate";

async fn start(world: &World, config: &countersign_agent::Config) -> Result<countersign_agent::Running, AgentError> {
    let starting = countersign_agent::start(config, Arc::clone(&world.clock), Arc::new(Seeded::new(1)), "test");
    tokio::time::timeout(PATIENCE, starting).await.expect("an answer in time")
}

/// How the agent ends, while virtual time passes.
async fn end(world: &mut World, clock: Option<&VirtualClock>) -> End {
    let agent = world.agent.as_mut().unwrap();
    let ticking = async {
        loop {
            if let Some(clock) = clock {
                clock.advance(Duration::from_millis(100));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        end = tokio::time::timeout(PATIENCE, agent.ended()) => end.expect("it ends"),
        () = ticking => unreachable!("it never ends"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_restarts_with_the_identity_it_had_and_needs_no_new_token() {
    let mut world = World::start().await;
    world.entry("/web").await;
    world.workload().await.x509_svid().await.unwrap();
    let before = world.agent_leaf().unwrap();
    for _ in 0..2 {
        world.restart_agent().await;
        assert_eq!(world.agent_leaf().unwrap().serial_decimal(), before.serial_decimal());
        verify(&world.workload().await.x509_svid().await.unwrap().svids[0], world.clock.now());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_with_the_server_away_bundles_are_served_and_svids_waited_for() {
    let mut world = World::start().await;
    world.entry("/web").await;
    world.workload().await.x509_svid().await.unwrap();
    // What is followed is written down half a second after it came.
    let written = || async { std::fs::metadata(world.file("countersign-follow.state")).is_ok_and(|m| m.len() > 600).then_some(()) };
    until("it is written down", written).await.unwrap();
    world.stop_agent().await;
    world.domain.stop_server().await;
    let config = world.config(false, "").await;
    world.run(&config).await;
    let workload = world.workload().await;
    let bundles = first(workload.x509_bundles().await.unwrap()).await.unwrap();
    assert!(bundles.bundles.contains_key(OWN));
    first(workload.jwt_bundles().await.unwrap()).await.unwrap();
    // The caller's deadline is kept, and the answer is not that it has no identity.
    let timeout = Duration::from_millis(400);
    let asked = std::time::Instant::now();
    let status = workload.x509_svid_within(timeout).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(asked.elapsed() >= timeout / 2, "{:?}", asked.elapsed());
    assert_eq!(workload.jwt_svids(&["a"], "").await.unwrap_err().code(), Code::Unavailable);
    // A call without deadline waits until the server is back, and nobody restarts anything.
    let mut waiting = workload.x509_svids().await.unwrap();
    world.domain.start_server().await.unwrap();
    verify(&next(&mut waiting).await.svids[0], world.clock.now());
    until("tokens too", || async { workload.jwt_svids(&["a"], "").await.ok() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_svid_ended_during_an_outage_says_that_it_needs_a_token() {
    let (mut world, clock) = World::still("", "").await;
    world.domain.stop_server().await;
    clock.advance(2 * HOUR);
    world.domain.start_server().await.unwrap();
    let End::MustJoinAgain(what) = end(&mut world, Some(&clock)).await else { panic!("another end") };
    assert!(what.contains(COMMAND), "{what}");
    assert!(world.agent_leaf().is_none(), "an SVID that counts no longer is not tried again");
    // Started again without a token it says the same at once.
    world.stop_agent().await;
    let config = world.config(false, "").await;
    let AgentError::Refused { reason, hint } = start(&world, &config).await.unwrap_err() else { panic!("another error") };
    assert!(reason.contains("join token was not provided") && hint.contains(COMMAND), "{reason}; {hint}");
    // And with one it joins.
    let config = world.config(true, "").await;
    world.run(&config).await;
    assert!(world.agent_leaf().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_agent_ends_and_forgets_its_svid() {
    let mut world = World::start().await;
    world.entry("/web").await;
    world.ban().await;
    assert_eq!(end(&mut world, None).await, End::Banned);
    assert!(world.agent_leaf().is_none());
    let text = std::fs::read_to_string(world.file("agent-data.json")).unwrap();
    assert!(text.starts_with("{\"svid\":null,\"bundle\":["), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_agent_that_comes_back_with_its_old_data_directory_ends_again_and_forgets_its_svid() {
    for spire_only in [false, true] {
        let mut world = World::start().await;
        world.entry("/web").await;
        let files = ["agent-data.json", "keys.json", "countersign-follow.state"].map(|name| world.file(name));
        until("what is followed is written down", || async { files[2].exists().then_some(()) }).await.unwrap();
        let kept = files.each_ref().map(|file| std::fs::read(file).unwrap());
        world.ban().await;
        assert_eq!(end(&mut world, None).await, End::Banned);
        world.stop_agent().await;
        if spire_only {
            world.domain.stop_server().await;
            world.domain.speaks_spire_only = true;
            world.domain.start_server().await.unwrap();
        }
        for (file, bytes) in files.iter().zip(kept) {
            std::fs::write(file, bytes).unwrap();
        }
        assert!(world.agent_leaf().is_some());
        let config = world.config(false, "").await;
        world.run(&config).await;
        assert_eq!(end(&mut world, None).await, End::Banned);
        assert!(world.agent_leaf().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_agent_that_joined_with_a_token_says_that_it_needs_another() {
    let mut world = World::start().await;
    world.entry("/web").await;
    world.evict().await;
    let End::MustJoinAgain(what) = end(&mut world, None).await else { panic!("another end") };
    assert!(what.contains(COMMAND), "{what}");
    assert!(world.agent_leaf().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_once_and_the_refusal_says_how_to_get_another() {
    let world = World::start().await;
    let token = world.domain.token(None).await.unwrap();
    world.domain.join(&token).await.unwrap();
    let config = world.domain.agent_config("b", Some(&token), "").await.unwrap();
    let error = start(&world, &config).await.unwrap_err();
    expect_test::expect![[r"failed to receive attestation response: failed to attest: join token does not exist or has already been used; get a new token with `countersign token generate` on the server, put it into join_token_file, and start the agent again"]]
    .assert_eq(&error.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_agent_data_stops_the_start_and_names_the_file() {
    let mut world = World::start().await;
    world.stop_agent().await;
    let good = std::fs::read_to_string(world.file("agent-data.json")).unwrap();
    let config = world.config(false, "").await;
    for damaged in ["", "{\"svid\":", "[]", &good[..good.len() / 2]] {
        std::fs::write(world.file("agent-data.json"), damaged).unwrap();
        let error = start(&world, &config).await.unwrap_err().to_string();
        assert!(error.starts_with("failed to open storage: `") && error.contains("agent-data.json`: it is not"), "{error}");
        assert_eq!(std::fs::read_to_string(world.file("agent-data.json")).unwrap(), damaged, "nothing is overwritten");
    }
    std::fs::write(world.file("agent-data.json"), good).unwrap();
    start(&world, &config).await.unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_follow_state_is_fetched_anew() {
    let mut world = World::start().await;
    world.entry("/web").await;
    world.stop_agent().await;
    for damaged in ["", "something else", "countersign-agent-state 1\n"] {
        std::fs::write(world.file("countersign-follow.state"), damaged).unwrap();
        let config = world.config(false, "").await;
        world.run(&config).await;
        verify(&world.workload().await.x509_svid().await.unwrap().svids[0], world.clock.now());
        world.stop_agent().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_another_trust_domain_is_refused() {
    let mut world = World::start().await;
    world.stop_agent().await;
    let text = world.domain.agent_configuration("a", None, "").replace("\"example.org\"", "\"other.org\"");
    let config = countersign_agent::Config::read(countersign_config::parse("agent.conf", &text).unwrap()).unwrap();
    let error = start(&world, &config).await.unwrap_err().to_string();
    assert!(error.contains("example.org") && error.contains("other.org") && error.contains("data_dir"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_do_not_share_a_data_directory() {
    let world = World::start().await;
    let config = world.config(true, "").await;
    let error = start(&world, &config).await.unwrap_err();
    assert!(matches!(error, AgentError::InUse(_)), "{error}");
    assert!(error.to_string().contains("data_dir"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_off_while_the_authorities_changed_reads_its_bundle_file_again() {
    let (mut world, clock) = World::still("", "").await;
    world.stop_agent().await;
    next_authority(&world, &clock).await;
    // Its own SVID has ended long ago, so it joins anew; the bundle it kept does not know the server any more.
    let config = world.config(true, "").await;
    world.agent = Some(start(&world, &config).await.unwrap());
    world.entry("/web").await;
    verify(&world.workload().await.x509_svid().await.unwrap().svids[0], world.clock.now());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_its_bundle_file_says_so() {
    let world = World::without_agent(Arc::new(SystemClock), "").await;
    let config = world.config(true, "").await;
    for (content, text) in [(None, "No such file"), (Some(""), "bundle.pem"), (Some("no PEM"), "bundle.pem")] {
        match content {
            None => std::fs::remove_file(world.file("bundle.pem")).unwrap(),
            Some(content) => std::fs::write(world.file("bundle.pem"), content).unwrap(),
        }
        let error = start(&world, &config).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot use the trust bundle: ") && error.contains(text), "{error}");
    }
}
