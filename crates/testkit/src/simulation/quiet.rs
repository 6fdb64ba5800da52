//! When nobody has anything left to do: all threads of a run sleep, and none has run in between.
//!
//! What one thread hands to another, by a channel, a lock or a socket of this machine, makes the other runnable in that
//! moment. So if all sleep at once, nothing is under way anywhere, and virtual time may go on without anybody missing an
//! answer that only needed a busy machine to come round to it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::domain::Anyhow;

/// How long to wait between two looks: some dozen system calls.
const LOOK_AGAIN: Duration = Duration::from_micros(100);
/// A run that does not come to rest by then never will.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the kernel says of a thread that waits for something.
const SLEEPS: &[u8] = b"State:\tS";
/// Where it says so: behind the name, which is short, and the mask.
const STATE_WITHIN: usize = 96;
/// The last two lines, as long as they get.
const SWITCHES_WITHIN: usize = 100;

/// Threads, and how often each has gone to sleep or was put aside.
type Threads = BTreeMap<u32, u64>;

/// Watches the threads that this process has beside those it had when this was made.
#[derive(Debug, Clone)]
pub(super) struct Quiet {
    others: Threads,
}

impl Quiet {
    pub(super) fn watch() -> Result<Self, Anyhow> {
        loop {
            if let Some(others) = look(&Threads::new(), false)? {
                return Ok(Self { others });
            }
        }
    }

    /// Blocks until all others sleep.
    pub(super) fn wait(&self) -> Result<(), Anyhow> {
        let begun = Instant::now();
        loop {
            if let Some(before) = look(&self.others, true)?
                && look(&self.others, true)?.is_some_and(|after| after == before)
            {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                let (before, after) = (look(&self.others, false)?, look(&self.others, false)?);
                return Err(format!("the run does not come to rest; {}: {before:?}, {after:?}", self.names()).into());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn names(&self) -> String {
        let name = |number| std::fs::read_to_string(format!("/proc/self/task/{number}/comm")).unwrap_or_default();
        let numbers = look(&self.others, false).ok().flatten().unwrap_or_default().into_keys();
        numbers.map(|number| format!("{number} is {}", name(number).trim())).collect::<Vec<_>>().join(", ")
    }
}

/// The threads but these; nothing if one is awake and all are to sleep.
fn look(others: &Threads, asleep: bool) -> Result<Option<Threads>, Anyhow> {
    let mut found = Threads::new();
    for thread in std::fs::read_dir("/proc/self/task")? {
        let Ok(number) = thread?.file_name().to_string_lossy().parse() else { continue };
        if others.contains_key(&number) {
            continue;
        }
        // It may have ended in this moment.
        let Ok(status) = std::fs::read(format!("/proc/self/task/{number}/status")) else { return Ok(None) };
        // The state is near the beginning, the numbers are at the end; what lies between is long.
        if asleep && !status.get(..STATE_WITHIN).unwrap_or(&status).windows(SLEEPS.len()).any(|w| w == SLEEPS) {
            return Ok(None);
        }
        let end = status.get(status.len().saturating_sub(SWITCHES_WITHIN)..).unwrap_or_default();
        found.insert(number, end.split(|byte| *byte == b'\n').filter_map(switches).sum());
    }
    Ok(Some(found))
}

/// How often a thread was switched away from, if this line says so.
fn switches(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?;
    text.split_once("_ctxt_switches:").and_then(|(_, count)| count.trim().parse().ok())
}
