//! An agent of a run: its process, its clock, its line to the server, and the workload on its node.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use countersign_identity::Timestamp;
use countersign_identity::x509::Certificate;
use countersign_transport::clock::{Clock as _, SharedClock};
use countersign_transport::random::Seeded;
use tokio::sync::watch;

use super::line::Line;
use super::process::Process;
use super::workload::Listener;
use crate::clock::VirtualClock;
use crate::domain::{Anyhow, agent_configuration};

/// How far an agent's process has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has no identity yet.
    Starting,
    /// It serves.
    Serving,
    /// It has ended by itself, and why.
    Ended(String),
}

/// The agent's own SVID, as it is on its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnSvid {
    pub(super) serial_number: String,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
}

/// An agent.
pub(super) struct Agent {
    number: usize,
    directory: PathBuf,
    pub(super) clock: VirtualClock,
    /// By how much its clock is wrong, in seconds.
    pub(super) skew: i64,
    pub(super) line: Line,
    pub(super) listener: Listener,
    pub(super) process: Option<Process>,
    phase: watch::Receiver<Phase>,
    /// Its SPIFFE ID, while it has joined and knows nothing else.
    pub(super) node: Option<String>,
    /// By its clock its SVID has ended once, so that it may give up.
    pub(super) may_end: bool,
    own: (Vec<u8>, Option<OwnSvid>),
}

impl Agent {
    pub(super) async fn new(number: usize, directory: &Path, clock: VirtualClock, lost: Option<u64>) -> Result<Self, Anyhow> {
        let directory = directory.join(format!("a{number}"));
        std::fs::create_dir_all(&directory)?;
        let listener = Listener::start(directory.join("agent.sock"), lost);
        let line = Line::lay().await?;
        let phase = watch::channel(Phase::Starting).1;
        Ok(Self {
            number,
            directory,
            clock,
            skew: 0,
            line,
            listener,
            process: None,
            phase,
            node: None,
            may_end: false,
            own: (Vec::new(), None),
        })
    }

    /// Starts its process, with a token and the bundle to trust at first if it is to join.
    pub(super) fn start(&mut self, join: Option<(&str, &str)>, disguise: fn(VirtualClock) -> SharedClock) -> Result<(), Anyhow> {
        if let Some((_, bundle)) = join {
            std::fs::write(self.directory.join("bundle.pem"), bundle)?;
        }
        let text = agent_configuration(&self.directory, self.line.port(), join.map(|(token, _)| token), "");
        let config = countersign_agent::Config::read(countersign_config::parse("agent.conf", &text)?)?;
        let (phase, seen) = watch::channel(Phase::Starting);
        let (clock, random) = (disguise(self.clock.clone()), Seeded::new(self.number as u64));
        self.phase = seen;
        self.process = Some(Process::start("agent", async move {
            match countersign_agent::start(&config, clock, Arc::new(random), "simulation").await {
                Ok(mut running) => {
                    phase.send_replace(Phase::Serving);
                    let end = running.ended().await;
                    phase.send_replace(Phase::Ended(end.to_string()));
                }
                Err(error) => drop(phase.send_replace(Phase::Ended(error.to_string()))),
            }
        })?);
        Ok(())
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    /// The SVID on its disk, if it has one.
    pub(super) fn own_svid(&mut self) -> Result<Option<OwnSvid>, Anyhow> {
        let bytes = match std::fs::read(self.directory.join("agent-data.json")) {
            Ok(bytes) => bytes,
            Err(_) => return Ok(None),
        };
        if bytes != self.own.0 {
            let svid = own_svid(&bytes)?;
            self.own = (bytes, svid);
        }
        Ok(self.own.1.clone())
    }

    /// Notes whether its SVID has ended by its clock.
    pub(super) fn look_at_the_clock(&mut self) -> Result<(), Anyhow> {
        let now = self.clock.now();
        if self.own_svid()?.is_some_and(|svid| svid.not_after <= now) {
            self.may_end = true;
        }
        Ok(())
    }
}

fn own_svid(bytes: &[u8]) -> Result<Option<OwnSvid>, Anyhow> {
    let data: serde_json::Value = serde_json::from_slice(bytes)?;
    let Some(text) = data.get("svid").and_then(|svid| svid.get(0)).and_then(serde_json::Value::as_str) else { return Ok(None) };
    let pem = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text)?)?;
    let (_, der) = countersign_identity::pem::read(&pem)?.into_iter().next().ok_or("no certificate")?;
    let leaf = Certificate::parse(&der)?;
    Ok(Some(OwnSvid { serial_number: leaf.serial_decimal(), not_before: leaf.not_before, not_after: leaf.not_after }))
}
