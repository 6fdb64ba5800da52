//! Whether the time of day can be believed when it says that authorities have ended.
//!
//! A clock that is ahead for a moment (a bad time server, a slip of the hand) looks like the end of every authority. What
//! is thrown away then cannot be had back when the clock is corrected. So after a jump it is given some minutes to be
//! corrected. Steady time stands still while a machine sleeps, so that waking up is a jump too. The first look of a
//! process remembers nothing and believes what it sees.

use std::time::Duration;

use countersign_identity::Timestamp;

/// A time of day that gained more than this on steady time has jumped. The two drift apart by 11 s between two looks at
/// most: six hours, at the 500 parts in a million by which a clock is slewed.
const JUMP_MIN: Duration = Duration::from_secs(60);
/// How long a jump is not believed: a time daemon asks its server about once a minute after a start or a trouble, so it
/// has had several tries; and a laptop that slept for days waits no longer than this.
const DOUBT: Duration = Duration::from_secs(5 * 60);

/// What was seen of the time of day.
#[derive(Debug, Default)]
pub(super) struct TimeOfDay {
    /// The last look: the time of day and steady time.
    last: Option<(Timestamp, Duration)>,
    /// Until when it is in doubt, by steady time.
    doubted_until: Duration,
}

impl TimeOfDay {
    /// How much longer the time of day is in doubt. A jump within that time does not prolong it: a laptop that wakes now
    /// and then for a minute would never be done with it.
    pub(super) fn look(&mut self, now: Timestamp, steady: Duration) -> Duration {
        let last = self.last.replace((now, steady));
        let jump = last.map_or(Duration::ZERO, |(then, steady_then)| now.since(then).saturating_sub(steady.saturating_sub(steady_then)));
        if jump > JUMP_MIN && steady >= self.doubted_until {
            self.doubted_until = steady.saturating_add(DOUBT);
            tracing::warn!(
                ?jump, believed_after = ?DOUBT,
                "The time of day has jumped forward, or the machine has slept; no authority is dropped or replaced for it until it has had time to be corrected"
            );
        }
        self.doubted_until.saturating_sub(steady)
    }
}
