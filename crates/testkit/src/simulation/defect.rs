//! Faults that no run may pass: put in at a seam, to see that the checkers find them.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_transport::clock::{Clock, SharedClock};

use crate::clock::VirtualClock;

/// A planted fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// The store's disk says that it has synced and has not.
    StoreForgetsSyncs,
    /// The journal's disk says that it has synced and has not.
    JournalForgetsSyncs,
    /// The agents' clocks wait by the time of day where steady time was asked for.
    WaitsByTheTimeOfDay,
    /// The third message to a workload gets lost.
    LosesAMessage,
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::StoreForgetsSyncs, Self::JournalForgetsSyncs, Self::WaitsByTheTimeOfDay, Self::LosesAMessage];
}

/// A clock as it should be.
pub(super) fn sound(clock: VirtualClock) -> SharedClock {
    Arc::new(clock)
}

/// A clock that waits by the time of day.
pub(super) fn by_the_time_of_day(clock: VirtualClock) -> SharedClock {
    Arc::new(TimeOfDay(clock))
}

struct TimeOfDay(VirtualClock);

impl Clock for TimeOfDay {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn sleep_until(&self, at: Timestamp) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.0.sleep_until(at)
    }

    fn steady(&self) -> Duration {
        self.0.steady()
    }

    fn sleep_for(&self, how_long: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.0.sleep_until(self.0.now().after(how_long))
    }
}
