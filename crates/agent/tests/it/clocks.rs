//! Agent and server with clocks that differ.

use std::sync::Arc;
use std::time::Duration;

use countersign_testkit::clock::VirtualClock;
use countersign_testkit::domain::until;
use countersign_transport::random::Seeded;
use countersign_wire::journal::Kind;

use crate::support::{World, verify};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_clock_is_ahead_does_not_ask_without_end() {
    let (agents, servers) = (VirtualClock::at_present(), VirtualClock::at_present());
    let mut world = World::without_agent(Arc::new(servers.clone()), "agent_ttl = \"8h\"").await;
    let config = world.config(true, "").await;
    let agent = countersign_agent::start(&config, Arc::new(agents.clone()), Arc::new(Seeded::new(1)), "test").await.unwrap();
    world.agent = Some(agent);
    world.entry("/web").await;
    let svid = world.workload().await.x509_svid().await.unwrap().svids.remove(0);
    verify(&svid, world.clock.now());
    let issued = async || world.issued(Kind::WorkloadX509).await.len();
    let before = issued().await;

    // By the agent's clock everything the server issues has ended when it arrives.
    agents.advance(Duration::from_secs(61 * 60));
    until("the agent asks", async || (issued().await > before).then_some(())).await.unwrap();
    for _ in 0..120 {
        agents.advance(Duration::from_secs(1));
        issued().await;
    }
    let asked = issued().await - before;
    assert!(asked <= 20, "{asked} requests in two minutes");
    let patience = Duration::from_millis(200);
    world.workload().await.x509_svid_within(patience).await.expect_err("an SVID that has ended is not handed out");

    servers.advance(Duration::from_secs(61 * 60));
    let served = async || {
        agents.advance(Duration::from_secs(10));
        world.workload().await.x509_svid_within(patience).await.ok()
    };
    let again = until("it is served again", served).await.unwrap().svids.remove(0);
    verify(&again, world.clock.now());
    assert_ne!(again.x509_svid, svid.x509_svid);
}
