//! The same start-up functions, in one process, on a clock that can be moved.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::TrustDomain;
use countersign_testkit::clock::VirtualClock;
use countersign_testkit::domain::FixedLevels;
use countersign_transport::random::Seeded;
use countersign_wire::workload::X509svidRequest;
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;

use super::{Layout, Parts, bring_up};
use crate::client::workload_request;
use crate::output::Failure;

/// Server and agent in this process, from the same configuration files.
struct InProcess {
    layout: Layout,
    clock: VirtualClock,
    server: Option<countersign_server::Running>,
    agent: Option<countersign_agent::Running>,
}

impl InProcess {
    fn new(layout: &Layout, clock: &VirtualClock) -> Self {
        Self { layout: layout.clone(), clock: clock.clone(), server: None, agent: None }
    }

    async fn stop(self) {
        if let Some(agent) = self.agent {
            agent.stop().await;
        }
        if let Some(server) = self.server {
            server.stop().await;
        }
    }
}

impl Parts for InProcess {
    async fn server(&mut self) -> Result<(), Failure> {
        let config = countersign_server::Config::load(&self.layout.server_configuration(), false).unwrap();
        let started = countersign_server::start(&config, Arc::new(self.clock.clone()), Arc::new(FixedLevels)).await;
        self.server = Some(started.map_err(|e| Failure::new(e.to_string()))?);
        Ok(())
    }

    async fn agent(&mut self) -> Result<(), Failure> {
        let config = countersign_agent::Config::load(&self.layout.agent_configuration(), false).unwrap();
        let started = countersign_agent::start(&config, Arc::new(self.clock.clone()), Arc::new(Seeded::new(1)), "test").await;
        self.agent = Some(started.map_err(|e| Failure::new(e.to_string()))?);
        // Prefetching waits on the virtual clock; the identity a caller waits for does not.
        Ok(())
    }
}

async fn identity(layout: &Layout) -> String {
    let channel = countersign_transport::client::unix(&layout.agent_socket()).await.unwrap();
    let mut client = SpiffeWorkloadApiClient::new(channel);
    let mut request = workload_request(X509svidRequest {});
    request.set_timeout(Duration::from_secs(20));
    let answer = client.fetch_x509svid(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
    let svid = answer.svids.into_iter().find(|s| s.spiffe_id.contains("/user/")).unwrap();
    svid.spiffe_id
}

#[tokio::test(flavor = "multi_thread")]
async fn it_heals_by_itself_after_eight_days_off() {
    let directory = tempfile::Builder::new().prefix("up").tempdir().unwrap();
    let wanted = TrustDomain::parse("example.org").unwrap();
    let clock = VirtualClock::at_present();
    let layout = Layout::open(directory.path(), &wanted).unwrap();
    assert!(layout.is_new);
    let mut parts = InProcess::new(&layout, &clock);
    let first = bring_up(&layout, &mut parts).await.unwrap();
    assert!(first.created);
    assert_eq!(identity(&layout).await, first.spiffe_id);
    parts.stop().await;
    drop(layout);
    for days in [1, 8, 40] {
        clock.advance(Duration::from_secs(days * 24 * 3600));
        let layout = Layout::open(directory.path(), &wanted).unwrap();
        assert!(!layout.is_new);
        let mut parts = InProcess::new(&layout, &clock);
        let again = bring_up(&layout, &mut parts).await.unwrap();
        assert!(!again.created, "the registration is still there");
        assert_eq!(again.spiffe_id, first.spiffe_id);
        assert_eq!(identity(&layout).await, first.spiffe_id, "after {days} days off");
        parts.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_break_needs_no_new_node_identity() {
    let directory = tempfile::Builder::new().prefix("up").tempdir().unwrap();
    let wanted = TrustDomain::parse("example.org").unwrap();
    let clock = VirtualClock::at_present();
    let mut agents = Vec::new();
    for _ in 0..2 {
        let layout = Layout::open(directory.path(), &wanted).unwrap();
        let mut parts = InProcess::new(&layout, &clock);
        agents.push(bring_up(&layout, &mut parts).await.unwrap().agent_joined);
        parts.stop().await;
        clock.advance(Duration::from_secs(60));
    }
    assert_eq!(agents.first(), agents.last());
}

#[test]
fn events_are_told_in_plain_words() {
    use super::story::event;
    let line = r#"{"level":"info","msg":"Creating X509-SVID","spiffe_id":"spiffe://example.org/web","time":"2026-01-02T03:04:05.6Z"}"#;
    assert_eq!(event("agent", line).text.as_deref(), Some("03:04:05  agent  fetches an identity: spiffe://example.org/web"));
    let line = r#"{"level":"error","msg":"Fatal run error","error":"no room","time":"2026-01-02T03:04:05.6Z"}"#;
    let told = event("server", line);
    assert_eq!((told.text.as_deref(), told.error.as_deref()), (Some("03:04:05  server error: Fatal run error: no room"), Some("no room")));
    assert_eq!(event("server", "not JSON"), super::story::Event::default());
    assert_eq!(event("server", "Error: port in use").error.as_deref(), Some("port in use"));
}
