//! Token buckets, one for each caller, in bounded memory. No clock and no waiting: the time is an argument, and it is steady
//! time, which nobody sets back.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// Buckets that are full again are dropped this often: they are the same as none.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// The same when there is no place left: often enough to make room, too seldom to cost anything.
const SWEEP_INTERVAL_FULL: Duration = Duration::from_secs(1);

/// What a bucket holds, and how it fills.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Tokens in a full bucket.
    pub burst: u32,
    /// A token is added this often.
    pub every: Duration,
}

/// Buckets by caller. A bucket is one point in time, the moment when it will be full again; one that is not there is full.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    keys_max: usize,
    full_at: HashMap<Option<K>, Duration>,
    swept_at: Duration,
}

/// Tokens that were taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken<K> {
    /// Whose bucket it was; `None` is the one of all who found no place.
    pub from: Option<K>,
    /// When they are there. They are taken already, so that whoever comes later waits longer.
    pub wait: Duration,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    /// At most so many buckets, each some hundred bytes. Those who find no place share one.
    pub fn new(rate: Rate, keys_max: usize) -> Self {
        Self { rate, keys_max, full_at: HashMap::new(), swept_at: Duration::ZERO }
    }

    /// Takes tokens, if they are there within this time. More than a full bucket holds are there once the rest has come.
    pub fn take(&mut self, key: &K, count: u32, patience: Duration, now: Duration) -> Option<Taken<K>> {
        let from = self.place(key, now);
        let capacity = self.rate.every * self.rate.burst;
        let mut missing = self.full_at.get(&from).map_or(Duration::ZERO, |full_at| full_at.saturating_sub(now));
        missing += self.rate.every * count;
        let wait = missing.saturating_sub(capacity);
        if wait > patience {
            return None;
        }
        self.full_at.insert(from.clone(), now + missing);
        Some(Taken { from, wait })
    }

    /// Gives back what was taken by somebody who did not wait for it.
    pub fn give_back(&mut self, from: &Option<K>, count: u32) {
        if let Some(full_at) = self.full_at.get_mut(from) {
            *full_at = full_at.saturating_sub(self.rate.every * count);
        }
    }

    fn place(&mut self, key: &K, now: Duration) -> Option<K> {
        let key = Some(key.clone());
        let has_place = |buckets: &HashMap<Option<K>, Duration>| buckets.contains_key(&key) || buckets.len() < self.keys_max;
        let interval = if has_place(&self.full_at) { SWEEP_INTERVAL } else { SWEEP_INTERVAL_FULL };
        if now.saturating_sub(self.swept_at) >= interval {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.swept_at = now;
        }
        if has_place(&self.full_at) { key } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);
    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE_MAX: Duration = Duration::from_secs(20);
    const KEYS_MAX: usize = 10;

    fn buckets(burst: u32, every: Duration) -> Buckets<u32> {
        Buckets::new(Rate { burst, every }, KEYS_MAX)
    }

    fn wait(buckets: &mut Buckets<u32>, key: u32, count: u32, now: Duration) -> Option<Duration> {
        buckets.take(&key, count, PATIENCE_MAX, now).map(|taken| taken.wait)
    }

    #[test]
    fn who_comes_later_waits_longer_and_beyond_patience_nothing_is_taken() {
        let mut buckets = buckets(3, SECOND);
        for (count, expected) in [(2, 0), (1, 0), (1, 1), (4, 5), (10, 15), (5, 20)] {
            assert_eq!(wait(&mut buckets, 1, count, START), Some(Duration::from_secs(expected)), "{count}");
        }
        assert_eq!(wait(&mut buckets, 1, 1, START), None);
        assert_eq!(wait(&mut buckets, 2, 3, START), Some(Duration::ZERO), "others have buckets of their own");
        // What was refused was not taken.
        assert_eq!(wait(&mut buckets, 1, 1, START + SECOND), Some(PATIENCE_MAX));
        // Full again it holds no more than it did.
        let later = START + 1000 * SECOND;
        assert_eq!(wait(&mut buckets, 1, 3, later), Some(Duration::ZERO));
        assert_eq!(wait(&mut buckets, 1, 1, later), Some(SECOND));
    }

    #[test]
    fn what_is_given_back_is_there_for_the_next() {
        let mut buckets = buckets(1, SECOND);
        assert_eq!(wait(&mut buckets, 1, 1, START), Some(Duration::ZERO));
        let taken = buckets.take(&1, 3, PATIENCE_MAX, START).expect("three tokens");
        assert_eq!(taken, Taken { from: Some(1), wait: 3 * SECOND });
        buckets.give_back(&taken.from, 3);
        assert_eq!(wait(&mut buckets, 1, 1, START), Some(SECOND));
    }

    #[test]
    fn memory_is_bounded_and_full_buckets_go() {
        let mut buckets = buckets(1, SECOND);
        for key in 0..10 {
            assert_eq!(wait(&mut buckets, key, 1, START), Some(Duration::ZERO));
        }
        // Those who find no place share one bucket: neither forgotten nor let through.
        assert_eq!(wait(&mut buckets, 10, 1, START), Some(Duration::ZERO));
        assert_eq!(wait(&mut buckets, 11, 1, START), Some(SECOND));
        assert_eq!(wait(&mut buckets, 9, 1, START), Some(SECOND), "who has a bucket keeps it");
        assert_eq!(buckets.full_at.len(), 11);
        let later = START + 3 * SECOND;
        assert_eq!(wait(&mut buckets, 12, 1, later), Some(Duration::ZERO));
        assert_eq!(buckets.full_at.len(), 1, "full buckets are dropped when room is needed");
        assert_eq!(wait(&mut buckets, 13, 1, later), Some(Duration::ZERO));
        wait(&mut buckets, 14, 1, later + SWEEP_INTERVAL);
        assert_eq!(buckets.full_at.len(), 1, "and now and then");
    }
}
