//! How many refusals of each caller are written down, and what becomes of the others: they are counted, and one record
//! says how many there were.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use countersign_store::Actor;
use countersign_transport::buckets::Rate;

use crate::ratelimit::Samples;

/// A hundred at once, which is more than any mistake of an operator brings about, and six a minute after that: a caller that
/// asks for ever writes some megabytes a day.
const REFUSALS: Rate = Rate { burst: 100, every: Duration::from_secs(10) };
/// Callers named in one report.
const REPORT_MAX: usize = 100;

/// The refusals of this process.
pub(super) struct Refusals {
    samples: Samples<Actor>,
    all: AtomicU64,
    left_out: AtomicU64,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { samples: Samples::new(REFUSALS), all: AtomicU64::default(), left_out: AtomicU64::default() }
    }
}

impl std::fmt::Debug for Refusals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refusals").field("all", &self.all).field("left_out", &self.left_out).finish_non_exhaustive()
    }
}

impl Refusals {
    /// Counts a refusal; whether it is written down too.
    pub(super) fn admit(&self, actor: &Actor, now: Duration) -> bool {
        self.all.fetch_add(1, Ordering::Relaxed);
        let admitted = self.samples.admit(actor, now);
        if !admitted {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// One that was admitted could not be written down after all.
    pub(super) fn leave_out(&self, actor: &str) {
        self.left_out.fetch_add(1, Ordering::Relaxed);
        self.samples.leave_out(Some(Actor::new(actor)), 1);
    }

    /// Who has how many left out since the last report.
    pub(super) fn take_left_out(&self) -> Vec<(Option<Actor>, u64)> {
        self.samples.take_left_out(REPORT_MAX)
    }

    /// A report that could not be written is made again.
    pub(super) fn put_back(&self, report: Vec<(Option<Actor>, u64)>) {
        for (actor, count) in report {
            self.samples.leave_out(actor, count);
        }
    }

    /// All, and those of them that were left out.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.all.load(Ordering::Relaxed), self.left_out.load(Ordering::Relaxed))
    }
}
