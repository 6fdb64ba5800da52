//! Whom the agent believes to be its server when the authorities have changed while it was away.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_testkit::clock::VirtualClock;
use countersign_testkit::domain::{own_uid, until};
use countersign_testkit::log::Log;
use countersign_testkit::scripted::{AGAIN, ATTEST, Authority, FOLLOW, Scripted, bundle_of};
use countersign_transport::clock::Clock as _;
use countersign_wire::debug::GetInfoRequest;
use countersign_wire::debug::debug_client::DebugClient;
use countersign_wire::types;
use tonic::Code;

use crate::puppet::Puppet;
use crate::support::{World, message, verify};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const SHORT: Duration = Duration::from_millis(300);

/// Moves the clock until the server presents a certificate of the authority that follows its first.
pub async fn next_authority(world: &World, clock: &VirtualClock) {
    // Prepared after half of a day, active after five sixths; the first root still counts.
    let roots = || async { world.domain.bundle().await.unwrap().x509_authorities().len() };
    clock.advance(12 * HOUR + Duration::from_secs(60));
    until("the next authority is published", || async { (roots().await == 2).then_some(()) }).await.unwrap();
    clock.advance(8 * HOUR);
    let presented = until("the server presents the next authority", || async {
        clock.advance(Duration::from_secs(30));
        let bundle = world.domain.bundle().await.unwrap();
        let joined = world.domain.join(&world.domain.token(None).await.unwrap()).await.ok()?;
        let second = &bundle.x509_authorities()[1].certificate;
        joined.leaf.check_signed_by(&second.public_key).is_ok().then_some(())
    });
    presented.await.unwrap();
    // Its own SVID follows within the hour.
    let server = DebugClient::new(world.domain.admin().await.unwrap());
    let before = server.clone().get_info(GetInfoRequest {}).await.unwrap().into_inner().svid_chain[0].expires_at;
    let renewed = until("the server has an SVID by the next authority", || async {
        clock.advance(Duration::from_secs(60));
        let chain = server.clone().get_info(GetInfoRequest {}).await.unwrap().into_inner().svid_chain;
        (chain[0].expires_at > before).then_some(())
    });
    renewed.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_off_while_the_authorities_changed_heals_from_its_bundle_file_with_the_svid_it_has() {
    let (mut world, clock) = World::still("agent_ttl = \"23h\"", "").await;
    world.entry("/web").await;
    let serial = world.agent_leaf().unwrap().serial_decimal();
    let old = std::fs::read(world.file("bundle.pem")).unwrap();
    world.stop_agent().await;
    next_authority(&world, &clock).await;
    assert!(world.agent_leaf().unwrap().not_after > clock.now(), "the agent's SVID still counts");
    let config = world.config(false, "").await;
    let current = std::fs::read(world.file("bundle.pem")).unwrap();

    // As long as the file is as old as what the agent has, it waits.
    std::fs::write(world.file("bundle.pem"), &old).unwrap();
    world.run(&config).await;
    assert_eq!(world.agent_leaf().unwrap().serial_decimal(), serial);
    let workload = world.workload().await;
    for _ in 0..3 {
        clock.advance(Duration::from_secs(40));
        assert_eq!(workload.x509_svid_within(SHORT).await.unwrap_err().code(), Code::Unavailable);
    }
    // Neither does a file that is gone make it give up.
    std::fs::remove_file(world.file("bundle.pem")).unwrap();
    clock.advance(Duration::from_secs(40));
    assert_eq!(workload.x509_svid_within(SHORT).await.unwrap_err().code(), Code::Unavailable);

    std::fs::write(world.file("bundle.pem"), &current).unwrap();
    let healed = until("the agent heals", || async {
        clock.advance(Duration::from_secs(1));
        workload.x509_svid_within(SHORT).await.ok()
    });
    verify(&healed.await.unwrap().svids[0], clock.now());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_was_withdrawn_does_not_come_back_from_an_old_file() {
    let clock = VirtualClock::at_present();
    let now: Timestamp = clock.now();
    let authority = |age: u32| Arc::new(Authority::new(now.before(DAY * age), now.after(DAY * 100)).unwrap());
    // The key of the first was stolen and the authority withdrawn; the file is as old as it.
    let (stolen, held, next) = (authority(30), authority(20), authority(10));
    let server = Scripted::start(Arc::clone(&stolen), Arc::new(clock.clone())).await.unwrap();
    server.publish(bundle_of(&[&held]).unwrap());
    let mut world = Puppet::of(server, clock);
    world.trust(&[&stolen]);
    world.start_agent().await;

    // The agent has joined, and got a bundle without the stolen authority. The thief answers in the server's place.
    world.is_shunned().await;
    world.server.present(Arc::clone(&held)).unwrap();
    world.is_followed().await;
    world.server.present(Arc::clone(&stolen)).unwrap();
    world.cut();
    world.is_shunned().await;
    // The same after a restart.
    world.agent.take().unwrap().stop().await;
    world.start_agent().await;
    world.is_shunned().await;

    // The next authority is not known yet; the operator brings it, with the stolen one still in the file.
    world.server.publish(bundle_of(&[&next]).unwrap());
    world.server.present(Arc::clone(&next)).unwrap();
    world.is_shunned().await;
    world.trust(&[&stolen, &next]);
    world.is_followed().await;
    world.server.present(Arc::clone(&stolen)).unwrap();
    world.cut();
    world.is_shunned().await;
    world.agent.take().unwrap().stop().await;
}

/// Two authorities of which the second is no newer than the first, so that only an agent that starts over believes it.
async fn two_authorities(extra: &'static str, token: &'static str) -> (Puppet, Arc<Authority>, Arc<Authority>) {
    let clock = VirtualClock::at_present();
    let authority = |age: u32| Arc::new(Authority::new(clock.now().before(DAY * age), clock.now().after(DAY * 100)).unwrap());
    let (held, other) = (authority(10), authority(20));
    let server = Scripted::start(Arc::clone(&held), Arc::new(clock.clone())).await.unwrap();
    server.register(vec![types::Entry { id: "web".to_owned(), ..message("/web", &[own_uid()]) }]);
    let mut puppet = Puppet::of(server, clock);
    puppet.trust(&[&held]);
    (puppet.extra, puppet.token) = (extra, token);
    (puppet, held, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_meets_other_authorities_when_it_renews_its_own_svid_replaces_those_of_its_workloads() {
    let (mut world, held, _) = two_authorities("", AGAIN).await;
    world.start_agent().await;
    world.clock.advance(MINUTE * 20);
    // The agent's SVID is twenty minutes old by now. After the restart its workload has a new one, which is not due for long.
    world.agent.take().unwrap().stop().await;
    world.start_agent().await;
    let workload = world.workload().await;
    let before = until("a workload has its SVID", || async {
        world.clock.advance(Duration::from_millis(500));
        workload.x509_svid_within(SHORT).await.ok()
    });
    let before = before.await.unwrap();
    let next = Arc::new(Authority::new(held.certificate.not_before.after(DAY), world.clock.now().after(DAY * 100)).unwrap());
    world.server.publish(bundle_of(&[&next]).unwrap());
    world.server.present(Arc::clone(&next)).unwrap();
    world.trust(&[&next]);
    // The line is not cut: only the attestation by which the agent renews its SVID sees the other authority.
    let attested = world.server.calls(ATTEST);
    let renewed = until("the agent renews its SVID", || async {
        world.clock.advance(Duration::from_secs(5));
        (world.server.calls(ATTEST) > attested).then_some(())
    });
    renewed.await.unwrap();
    let since = world.clock.now();
    assert!(since < verify(&before.svids[0], since).not_before.after(MINUTE * 20), "long before the workload's SVID is due");
    let after = until("the workload has an SVID of the other authority", || async {
        world.clock.advance(Duration::from_millis(200));
        workload.x509_svid_within(SHORT).await.ok().filter(|m| m.svids[0].x509_svid != before.svids[0].x509_svid)
    });
    verify(&after.await.unwrap().svids[0], world.clock.now()).check_signed_by(&next.certificate.public_key).unwrap();
    assert!(world.clock.now().since(since) < MINUTE * 3, "it is replaced at once");
    world.agent.take().unwrap().stop().await;
}

fn bootstrap_state(world: &Puppet) -> (u64, bool, u64) {
    let data: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(world.file("agent-data.json")).unwrap()).unwrap();
    let is_under_way = data["bootstrap_start_time"] != "0001-01-01T00:00:00Z";
    (data["bootstrap_use"].as_u64().unwrap(), is_under_way, data["connection_attempts"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_may_start_over_takes_another_bundle_after_the_delay_and_serves_meanwhile() {
    Log::listen();
    let (mut world, held, other) = two_authorities("rebootstrap_mode = \"auto\"\nrebootstrap_delay = \"20m\"", AGAIN).await;
    world.start_agent().await;
    let workload = world.workload().await;
    let before = until("a workload has its SVID", || async {
        world.clock.advance(Duration::from_millis(500));
        workload.x509_svid_within(SHORT).await.ok()
    });
    let before = before.await.unwrap();
    assert_eq!(bootstrap_state(&world), (2, false, 0), "in SPIRE's form: a server that was trusted last");
    let attested = world.server.calls(ATTEST);
    world.server.publish(bundle_of(&[&other]).unwrap());
    world.server.present(Arc::clone(&other)).unwrap();
    world.trust(&[&other]);
    world.cut();
    let since = world.clock.now();
    world.is_shunned().await;
    let (used, is_under_way, attempts) = bootstrap_state(&world);
    assert!(used == 2 && is_under_way && attempts > 0, "{used} {attempts}");
    assert!(Log::count("INFO", "Trust Bundle and Server don't agree, ignoring for now time_left=") > 0);
    // A restart forgets nothing of that.
    world.agent.take().unwrap().stop().await;
    world.start_agent().await;
    let workload = world.workload().await;
    let followed = world.server.calls(FOLLOW);
    until("the agent has started over", || async {
        world.clock.advance(Duration::from_secs(10));
        (world.server.calls(FOLLOW) > followed).then_some(())
    })
    .await
    .unwrap();
    assert!(world.clock.now().since(since) >= Duration::from_secs(20 * 60), "not before the delay is over");
    assert_eq!(world.server.calls(ATTEST), attested + 1);
    let started_over = world.clock.now();
    let after = until("a workload has an SVID of the other authority", || async {
        world.clock.advance(Duration::from_millis(200));
        workload.x509_svid_within(SHORT).await.ok().filter(|m| m.svids[0].x509_svid != before.svids[0].x509_svid)
    });
    verify(&after.await.unwrap().svids[0], world.clock.now());
    assert!(world.clock.now().since(started_over) < Duration::from_secs(180), "it is replaced at once, not at half of its life");
    assert_eq!(bootstrap_state(&world), (2, false, 0));
    world.server.present(held).unwrap();
    world.cut();
    world.is_shunned().await;
    world.agent.take().unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_cannot_join_again_never_starts_over() {
    // By default no agent does, and one that joined with a token could not join again.
    for (extra, token) in [("rebootstrap_delay = \"1s\"", AGAIN), ("rebootstrap_mode = \"auto\"\nrebootstrap_delay = \"1s\"", "token")] {
        let (mut world, _, other) = two_authorities(extra, token).await;
        world.start_agent().await;
        let svid = world.svid_on_disk();
        world.server.present(Arc::clone(&other)).unwrap();
        world.trust(&[&other]);
        world.cut();
        // Long enough that one that starts over would have given up what it has, and ended.
        for _ in 0..3 {
            world.is_shunned().await;
        }
        assert_eq!(world.svid_on_disk(), svid);
        world.agent.take().unwrap().stop().await;
    }
    let (world, ..) = two_authorities("", "token").await;
    let text = countersign_testkit::domain::agent_configuration(
        &world.file(""),
        world.server.port(),
        Some("token"),
        "rebootstrap_mode = \"always\"",
    );
    let config = countersign_agent::Config::read(countersign_config::parse("agent.conf", &text).unwrap()).unwrap();
    let random = Arc::new(countersign_transport::random::Seeded::new(1));
    let refused = countersign_agent::start(&config, Arc::new(world.clock.clone()), random, "test").await.unwrap_err();
    assert!(refused.to_string().contains("you have requested rebootstrap support but the NodeAttestor plugin"), "{refused}");
}
