//! Writing down a bounded number of what anybody can cause, without losing count of the rest.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_transport::buckets::{Buckets, Rate};

use super::KEYS_MAX;

/// Callers counted one by one between two reports; what more of them cause is counted together.
const CALLERS_MAX: usize = 4096;

/// A bounded number of each caller's, and how many more there were.
pub(crate) struct Samples<K> {
    state: Mutex<State<K>>,
}

struct State<K> {
    buckets: Buckets<K>,
    left_out: HashMap<Option<K>, u64>,
}

impl<K: Hash + Eq + Clone> Samples<K> {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { state: Mutex::new(State { buckets: Buckets::new(rate, KEYS_MAX), left_out: HashMap::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more of this caller's is written down. If not, it has been counted.
    pub(crate) fn admit(&self, caller: &K, now: Duration) -> bool {
        let mut state = self.lock();
        let is_room = state.buckets.take(caller, 1, Duration::ZERO, now).is_some();
        if !is_room {
            state.leave_out(Some(caller.clone()), 1);
        }
        is_room
    }

    /// Counts what was not written down for another reason, or was not reported after all.
    pub(crate) fn leave_out(&self, caller: Option<K>, count: u64) {
        self.lock().leave_out(caller, count);
    }

    /// Who has how many left out since the last report; at most so many callers, those with the most first. `None` are all
    /// for whom there was no place.
    pub(crate) fn take_left_out(&self, max: usize) -> Vec<(Option<K>, u64)> {
        let mut state = self.lock();
        let mut all: Vec<(Option<K>, u64)> = state.left_out.drain().collect();
        all.sort_by_key(|(_, count)| Reverse(*count));
        let later = all.split_off(max.min(all.len()));
        state.left_out.extend(later);
        all
    }
}

impl<K: Hash + Eq> State<K> {
    fn leave_out(&mut self, caller: Option<K>, count: u64) {
        let has_place = self.left_out.contains_key(&caller) || self.left_out.len() < CALLERS_MAX;
        *self.left_out.entry(if has_place { caller } else { None }).or_default() += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);

    #[test]
    fn each_caller_has_a_share_and_the_rest_is_counted() {
        let samples = Samples::new(Rate { burst: 3, every: Duration::from_secs(10) });
        assert_eq!((0..10).filter(|_| samples.admit(&"loud", START)).count(), 3);
        assert_eq!((0..2).filter(|_| samples.admit(&"quiet", START)).count(), 2);
        assert_eq!((0..4).filter(|_| samples.admit(&"other", START)).count(), 3);
        assert!(samples.admit(&"loud", START + Duration::from_secs(10)), "its share comes again");
        assert_eq!(samples.take_left_out(1), [(Some("loud"), 7)]);
        assert_eq!(samples.take_left_out(1), [(Some("other"), 1)], "who was not reported is reported next");
        assert_eq!(samples.take_left_out(1), []);
    }

    #[test]
    fn memory_is_bounded_and_the_sum_is_right() {
        let samples = Samples::new(Rate { burst: 1, every: Duration::from_secs(10) });
        let callers = CALLERS_MAX + 1000;
        for caller in 0..callers {
            samples.admit(&caller, START);
            samples.admit(&caller, START);
        }
        assert_eq!(samples.lock().left_out.len(), CALLERS_MAX + 1);
        let left_out = samples.take_left_out(usize::MAX);
        assert_eq!(left_out.first(), Some(&(None, 1000)));
        assert_eq!(left_out.iter().map(|(_, count)| count).sum::<u64>(), callers as u64);
    }
}
