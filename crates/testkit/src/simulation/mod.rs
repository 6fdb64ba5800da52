//! The seeded simulation: one server and its agents, real code from the sockets to the disk, and everything that goes
//! wrong, drawn from a seed. After every step checkers compare with a model that knows only what was acknowledged.
//!
//! What the seed fixes: the steps, their order, the time at which each begins, which write of the disk a crash takes, and
//! what a torn write leaves. What it does not fix: key bytes, serial numbers and UUIDs, and in which order threads of one
//! step get on. No checker looks at the former, and a step ends only when nobody has anything left to do.
//!
//! 1. Nobody holds what no entry allows. An agent that cannot hear the server is excused for what was allowed when it last
//!    could, or has been since.
//! 2. Nothing acknowledged is lost, and nothing refused is done. What was cut off in the middle is done or not done.
//! 3. Every SVID that a workload or an agent was given is in the journal, with its entry and its agent, after any crash.
//! 4. An agent that is up and hears its server has, [`CONVERGENCE`] later, all that it is to have and nothing else, in force and
//!    not near its end; one that is out has ended. Excused is what was issued while the server's clock was ahead: once that
//!    is corrected, such an SVID begins later, and an agent cannot open a connection with it before it does.

mod agent;
mod check;
mod defect;
mod line;
mod model;
mod process;
mod quiet;
mod server;
mod step;
mod workload;
mod world;

use std::time::Duration;

pub use defect::Defect;
pub use step::{AGENTS, ENTRIES, Step, Who, draw};

use crate::domain::Anyhow;
use crate::journal_disk::JournalDisk;
use crate::powerloss::PowerLoss;

/// Steps of a run.
pub const STEPS: usize = 12;
/// How long everybody may take to be up to date once nothing is in the way: longest is the wait between two attempts to get
/// an SVID, a minute and a fifth, after a silent line, on which an agent waits for an answer for half a minute. And twice that.
pub const CONVERGENCE: Duration = Duration::from_secs(240);

/// A run that went well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What happened.
    pub steps: Vec<Step>,
    /// Of the steps and of the state at the end, but for what a seed does not fix.
    pub digest: [u8; 32],
}

/// A run that did not.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What happened, the last step being the one that was under way.
    pub steps: Vec<Step>,
    /// What a checker has found.
    pub reason: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.reason)?;
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "  {number:2} {step:?}")?;
        }
        write!(f, "to see it again: cargo xtask simulate --seed {}", self.seed)
    }
}

/// Runs seeds one after the other. It watches the threads of its process, so nothing else may run there meanwhile.
#[derive(Debug)]
pub struct Simulator {
    // A file layer is registered with SQLite for ever, so it is used again.
    store: PowerLoss,
    quiet: quiet::Quiet,
}

impl Simulator {
    /// Before the first run: the threads there are now are not looked at.
    ///
    /// # Errors
    /// The kernel does not tell of them.
    pub fn new() -> Result<Self, Anyhow> {
        Ok(Self { store: PowerLoss::register(), quiet: quiet::Quiet::watch()? })
    }

    /// Runs this seed.
    ///
    /// # Errors
    /// A checker has found something.
    pub fn run(&self, seed: u64, defect: Option<Defect>) -> Result<Outcome, Box<Failure>> {
        self.store.erase();
        let steps = draw(seed, STEPS);
        let disks = server::Disks { store: self.store.clone(), journal: JournalDisk::default() };
        let failed = |at: usize, reason: String| Box::new(Failure { seed, steps: steps.iter().take(at).cloned().collect(), reason });
        // Lines, workloads and the operator have a thread of their own, so that the one that waits for quiet may block.
        let network = process::Process::network().map_err(|e| failed(0, e.to_string()))?;
        let ended = network.handle().block_on(world::run(seed, &steps, self.quiet.clone(), disks, defect));
        network.kill();
        match ended {
            Ok(digest) => Ok(Outcome { steps, digest }),
            Err((at, reason)) => Err(failed(at, reason)),
        }
    }
}
