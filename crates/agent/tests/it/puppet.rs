//! An agent of a server that says what a test wants.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use countersign_agent::Running;
use countersign_testkit::clock::VirtualClock;
use countersign_testkit::domain::{agent_configuration, own_uid, until};
use countersign_testkit::scripted::{Authority, FOLLOW, Scripted, bundle_of};
use countersign_testkit::workload::Workload;
use countersign_transport::clock::Clock as _;
use countersign_transport::random::Seeded;
use countersign_wire::types;

use crate::support::{PATIENCE, message};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// An agent of a server that says what the test wants.
pub struct Puppet {
    directory: tempfile::TempDir,
    pub clock: VirtualClock,
    pub server: Scripted,
    pub agent: Option<Running>,
    /// More lines in the `agent` block.
    pub extra: &'static str,
    pub token: &'static str,
}

impl Puppet {
    pub fn of(server: Scripted, clock: VirtualClock) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), clock, server, agent: None, extra: "", token: "token" }
    }

    /// With a server that has one authority, which the agent's file knows, and an entry for every process of this user.
    pub async fn new() -> Self {
        let clock = VirtualClock::at_present();
        let authority = Arc::new(Authority::new(clock.now().before(DAY), clock.now().after(DAY)).unwrap());
        let server = Scripted::start(Arc::clone(&authority), Arc::new(clock.clone())).await.unwrap();
        server.register(vec![types::Entry { id: "web".to_owned(), ..message("/web", &[own_uid()]) }]);
        let puppet = Self::of(server, clock);
        puppet.trust(&[&authority]);
        puppet
    }

    pub async fn workload(&self) -> Workload {
        Workload::connect(&self.file("agent.sock")).await.unwrap()
    }

    /// The agent's SVID on disk.
    pub fn svid_on_disk(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.file("agent-data.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["svid"].clone()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn trust(&self, authorities: &[&Authority]) {
        std::fs::write(self.file("bundle.pem"), bundle_of(authorities).unwrap().to_pem()).unwrap();
    }

    pub async fn start_agent(&mut self) {
        self.agent = Some(self.try_start().await.unwrap());
    }

    pub async fn try_start(&self) -> Result<Running, countersign_agent::AgentError> {
        let mut text = agent_configuration(self.directory.path(), self.server.port(), Some(self.token), self.extra);
        if self.extra.contains("insecure_bootstrap") {
            text = text.lines().filter(|l| !l.contains("trust_bundle_path")).collect::<Vec<_>>().join("\n");
        }
        let config = countersign_agent::Config::read(countersign_config::parse("agent.conf", &text).unwrap()).unwrap();
        let clock = Arc::new(self.clock.clone());
        let starting = countersign_agent::start(&config, clock, Arc::new(Seeded::new(1)), "test");
        tokio::time::timeout(PATIENCE, starting).await.expect("it starts in time")
    }

    /// Lets time pass until the agent follows once more than it has.
    pub async fn is_followed(&self) {
        let before = self.server.calls(FOLLOW);
        let followed = until("the agent follows", || async {
            self.clock.advance(Duration::from_secs(5));
            (self.server.calls(FOLLOW) > before).then_some(())
        });
        followed.await.unwrap();
    }

    /// Lets time pass while the agent tries again and again, and sees that it never believes the server.
    pub async fn is_shunned(&self) {
        let (followed, knocked) = (self.server.calls(FOLLOW), self.server.knocks());
        let tried = until("the agent tries again and again", || async {
            self.clock.advance(Duration::from_secs(5));
            (self.server.knocks() >= knocked + 5).then_some(())
        });
        tried.await.unwrap();
        assert_eq!(self.server.calls(FOLLOW), followed);
    }

    /// Cuts the line, so that the agent looks at the server's certificate again.
    pub fn cut(&self) {
        self.server.kill();
        self.server.revive();
    }
}
