//! The issuance journal: what is about to be signed is written down and synced first. The third link of the chain.
//!
//! Records go to local segment files in groups: a batch submits all of its records and waits once. Only a
//! `Linted<Allowed>` is accepted and only `Recorded` comes out, which nobody else can make. A full disk means no
//! issuance, said clearly; it never means issuance without a record.

mod disk;
mod index;
mod query;
mod refusals;
mod segment;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use countersign_identity::issue::{Kind, Linted, Permission as _};
use countersign_identity::{Selector, SpiffeId};
use countersign_plugins::keys::sha256;
use countersign_store::Actor;
use countersign_transport::clock::SharedClock;
use countersign_wire::journal::{Kind as WireKind, Record};
use tokio::sync::{mpsc, oneshot, watch};

pub use disk::{Disk, SystemDisk};
pub use query::{Answer, Damage, Query, search};

use crate::policy::Allowed;

/// Batches that may wait for the writer; more wait at their callers.
const QUEUE_MAX: usize = 4096;
/// Most bytes of selectors written down as evidence of one issuance: a node that lies must not fill the journal.
const EVIDENCE_BYTES_MAX: usize = 4096;

/// Where the journal is and how long it keeps.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory of the segments.
    pub directory: PathBuf,
    /// Sealed segments older than this go.
    pub retention: Duration,
    /// The oldest sealed segments go while all together are larger.
    pub bytes_max: u64,
    /// Size at which a segment is sealed.
    pub segment_bytes: u64,
    /// How segments are written.
    pub disk: Arc<dyn Disk>,
}

impl Settings {
    /// 90 days or 10 GiB, in segments of 64 MiB.
    pub fn new(directory: PathBuf) -> Self {
        let retention = Duration::from_secs(90 * 24 * 3600);
        Self { directory, retention, bytes_max: 10 << 30, segment_bytes: 64 << 20, disk: Arc::new(SystemDisk) }
    }
}

/// The journal could not write something down, so nothing is issued.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// No room.
    #[error("the disk of the issuance journal is full, so nothing can be issued; free room on `{0}`")]
    Full(String),
    /// Any other trouble.
    #[error("the issuance journal `{path}` cannot be written, so nothing can be issued: {reason}")]
    Failed {
        /// Directory or file.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// The writer has ended.
    #[error("the issuance journal is closed")]
    Closed,
}

/// Proof that what is inside is durably in the journal. The only thing that can be signed.
///
/// ```
/// use countersign_identity::issue::Linted;
/// use countersign_server::{audit::Recorded, policy::Allowed};
/// fn hand_on(linted: Linted<Allowed>, recorded: Recorded) -> Recorded { recorded }
/// ```
/// ```compile_fail
/// use countersign_identity::issue::Linted;
/// use countersign_server::{audit::Recorded, policy::Allowed};
/// fn forge(linted: Linted<Allowed>, recorded: Recorded) -> Recorded { Recorded { linted, ..recorded } }
/// ```
#[derive(Debug)]
pub struct Recorded {
    linted: Linted<Allowed>,
    sequence: u64,
    journal: Journal,
}

impl Recorded {
    pub(crate) fn linted(&self) -> &Linted<Allowed> {
        &self.linted
    }

    /// Ends the chain: notes what came of it and gives the body back for assembly.
    pub(crate) fn settle(self, signed: bool) -> Linted<Allowed> {
        self.journal.outcome(self.sequence, signed);
        self.linted
    }
}

/// A handle on the journal. Cloning shares it; the writer ends when the last handle goes.
#[derive(Clone, Debug)]
pub struct Journal {
    jobs: mpsc::Sender<writer::Job>,
    shared: writer::Shared,
    directory: Arc<PathBuf>,
    clock: DebugClock,
    server_id: Arc<str>,
    writing: watch::Receiver<()>,
}

#[derive(Clone)]
struct DebugClock(SharedClock);

impl std::fmt::Debug for DebugClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("clock")
    }
}

impl Journal {
    /// Opens the journal, repairs its tail after a crash, and starts its writer.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn open(settings: Settings, server_id: Arc<str>, clock: SharedClock) -> Result<Self, JournalError> {
        let directory = Arc::new(settings.directory.clone());
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let shared = writer::Shared::default();
        let writing = writer::start(settings, Arc::clone(&clock), shared.clone(), queue)?;
        Ok(Self { jobs, shared, directory, clock: DebugClock(clock), server_id, writing })
    }

    /// Returns once the last copy of this is gone, what it was given is written, and another server may open the directory.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut writing = self.writing.clone();
        // Nothing is ever sent: the only news is that the sender is gone.
        async move { while writing.changed().await.is_ok() {} }
    }

    /// Writes these down and waits until they are synced, all or none.
    pub(crate) async fn record(&self, batch: Vec<Linted<Allowed>>) -> Result<Vec<Recorded>, JournalError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        tracing::trace!(hop = "records");
        let time_millis = self.clock.0.now().millis();
        let records = batch.iter().map(|linted| self.describe(linted, time_millis)).collect();
        let (reply, answer) = oneshot::channel();
        self.jobs.send(writer::Job { records, reply: Some(reply) }).await.map_err(|_| JournalError::Closed)?;
        let first = answer.await.map_err(|_| JournalError::Closed)??;
        Ok(batch.into_iter().zip(first..).map(|(linted, sequence)| Recorded { linted, sequence, journal: self.clone() }).collect())
    }

    /// Writes down that a known caller was refused. Not waited for: nothing was issued. Of each caller a bounded number is
    /// written and the others are counted, so that a caller who keeps asking cannot fill the disk.
    pub(crate) fn refused(&self, kind: Kind, actor: &Actor, subject: &str, reason: &str) {
        if !self.shared.refusals.admit(actor, self.clock.0.steady()) {
            return;
        }
        // A reason may quote what was asked for, which may be large.
        let reason = format!("{}: {reason}", words(kind)).chars().take(2048).collect();
        let record = Record { spiffe_id: subject.chars().take(2048).collect(), ..self.refusal(actor.as_str(), reason) };
        // A full queue drops refusals before it makes an issuance wait.
        let is_room = self.jobs.capacity() > QUEUE_MAX / 2;
        if !is_room || self.jobs.try_send(writer::Job { records: vec![record], reply: None }).is_err() {
            self.shared.refusals.leave_out(actor.as_str());
        }
    }

    /// Writes down how many refusals were left out since the last time, a record for each caller. What cannot be written now
    /// is in the next report.
    pub(crate) async fn report_left_out(&self) {
        let report = self.shared.refusals.take_left_out();
        if report.is_empty() {
            return;
        }
        let describe = |(actor, count): &(Option<Actor>, u64)| {
            let actor = actor.as_ref().map_or("other callers", Actor::as_str);
            self.refusal(actor, format!("{count} more refusals of this caller were counted and not written down"))
        };
        let records = report.iter().map(describe).collect();
        let (reply, answer) = oneshot::channel();
        let sent = self.jobs.send(writer::Job { records, reply: Some(reply) }).await;
        if sent.is_err() || !matches!(answer.await, Ok(Ok(_))) {
            self.shared.refusals.put_back(report);
        }
    }

    /// Refusals of known callers, and how many of them were not written down.
    pub(crate) fn refusals(&self) -> (u64, u64) {
        self.shared.refusals.counts()
    }

    fn refusal(&self, actor: &str, reason: String) -> Record {
        Record {
            server_id: self.server_id.to_string(),
            time_millis: self.clock.0.now().millis(),
            kind: WireKind::Refused.into(),
            actor: actor.to_owned(),
            reason,
            ..Record::default()
        }
    }

    /// Why nothing can be written down, and so nothing issued, as the last attempt found; tried again by the writer itself
    /// until it can.
    pub fn trouble(&self) -> Option<JournalError> {
        if self.jobs.is_closed() {
            return Some(JournalError::Closed);
        }
        self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the segments are.
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    fn outcome(&self, sequence: u64, signed: bool) {
        self.shared.outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(sequence, signed);
    }

    fn describe(&self, linted: &Linted<Allowed>, time_millis: i64) -> Record {
        let (allowed, facts) = (linted.permission(), linted.facts());
        let (entry_id, entry_revision) = allowed.entry().unwrap_or_default();
        Record {
            sequence: 0,
            server_id: self.server_id.to_string(),
            time_millis,
            kind: kind(allowed.kind()).into(),
            actor: allowed.actor().as_str().to_owned(),
            spiffe_id: allowed.spiffe_id().as_str().to_owned(),
            entry_id: entry_id.to_owned(),
            entry_revision,
            agent_id: allowed.agent_id().map_or_else(String::new, |id: &SpiffeId| id.as_str().to_owned()),
            body_sha256: sha256(linted.bytes()).to_vec(),
            authority_id: facts.authority_id.clone(),
            serial_or_jti: facts.serial_or_jti.clone(),
            not_before: facts.not_before.secs(),
            expires_at: facts.expires_at.secs(),
            evidence: evidence(allowed.evidence()),
            outcome: 0,
            reason: String::new(),
        }
    }
}

/// The first selectors that fit.
fn evidence(selectors: &[Selector]) -> Vec<String> {
    let mut left = EVIDENCE_BYTES_MAX;
    let fits = |s: &&Selector| {
        let length = s.as_str().len();
        let fits = length <= left;
        left = left.saturating_sub(length);
        fits
    };
    selectors.iter().take_while(fits).map(|s| s.as_str().to_owned()).collect()
}

/// What was asked for, as people call it.
const fn words(kind: Kind) -> &'static str {
    match kind {
        Kind::WorkloadX509 => "X509-SVID of a workload",
        Kind::WorkloadJwt => "JWT-SVID of a workload",
        Kind::AgentX509 => "X509-SVID of an agent",
        Kind::MintedX509 => "minted X509-SVID",
        Kind::MintedJwt => "minted JWT-SVID",
        Kind::OwnX509 => "X509-SVID of the server",
        Kind::AuthorityX509 => "X.509 authority",
    }
}

const fn kind(kind: Kind) -> WireKind {
    match kind {
        Kind::WorkloadX509 => WireKind::WorkloadX509,
        Kind::WorkloadJwt => WireKind::WorkloadJwt,
        Kind::AgentX509 => WireKind::AgentX509,
        Kind::MintedX509 => WireKind::MintedX509,
        Kind::MintedJwt => WireKind::MintedJwt,
        Kind::OwnX509 => WireKind::OwnX509,
        Kind::AuthorityX509 => WireKind::AuthorityX509,
    }
}

#[cfg(test)]
mod tests;
