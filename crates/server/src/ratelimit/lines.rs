//! Log lines that a caller can cause as often as it likes: some a minute are written, the others counted.

use std::fmt;
use std::time::Duration;

use countersign_store::Actor;
use countersign_transport::buckets::Rate;
use countersign_transport::clock::SharedClock;

use super::sample::Samples;

/// Twenty at once and twenty a minute: enough to see at night what goes on, too few to fill a disk.
const LINES: Rate = Rate { burst: 20, every: Duration::from_secs(3) };
/// Lines that say what was left out, in one report.
const REPORT_MAX: usize = 20;

/// Whose lines they are. Strangers share theirs: whoever has no name can have any address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum About {
    /// Nodes that could not prove themselves.
    FailedAttestations,
    /// Refused calls of callers without certificate.
    Strangers,
    /// Refused and malformed calls of a caller with a name.
    Caller(Actor),
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FailedAttestations => f.write_str("failed attestations"),
            Self::Strangers => f.write_str("callers without certificate"),
            Self::Caller(actor) => write!(f, "{actor}"),
        }
    }
}

/// Decides which of these lines are written.
pub(crate) struct Lines {
    samples: Samples<About>,
    clock: SharedClock,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("lines")
    }
}

impl Lines {
    pub(crate) fn new(clock: SharedClock) -> Self {
        Self { samples: Samples::new(LINES), clock }
    }

    /// Whether one more line about this is written. If not, it has been counted.
    pub(crate) fn admit(&self, about: &About) -> bool {
        self.samples.admit(about, self.clock.steady())
    }

    /// Says how many lines were left out since the last time, a line for each whose they were.
    pub(crate) fn report(&self) {
        for (about, left_out) in self.samples.take_left_out(REPORT_MAX) {
            let about = about.map_or_else(|| "other callers".to_owned(), |about| about.to_string());
            tracing::warn!(about, left_out, "Left out of the log: more refusals of the same kind");
        }
    }
}
