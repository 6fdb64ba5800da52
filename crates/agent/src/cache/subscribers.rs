//! Open workload streams: who is woken by which change, and how far each has come.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use countersign_identity::{Entry, Selector, selector};
use tokio::sync::Notify;

/// All open streams.
#[derive(Debug, Default)]
pub(crate) struct Subscribers {
    open: Arc<Mutex<HashMap<u64, Subscriber>>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Subscriber {
    selectors: Arc<[Selector]>,
    wake: Arc<Notify>,
    delivered: Arc<AtomicU64>,
}

/// One open stream; gone when dropped.
#[derive(Debug)]
pub(crate) struct Subscription {
    open: Arc<Mutex<HashMap<u64, Subscriber>>>,
    id: u64,
    pub(crate) wake: Arc<Notify>,
    delivered: Arc<AtomicU64>,
}

impl Subscribers {
    /// Registers a stream of a workload with these selectors, sorted.
    pub(crate) fn join(&self, selectors: Arc<[Selector]>) -> Subscription {
        let (wake, delivered) = (Arc::new(Notify::new()), Arc::new(AtomicU64::new(0)));
        let subscriber = Subscriber { selectors, wake: Arc::clone(&wake), delivered: Arc::clone(&delivered) };
        let mut open = self.lock();
        // Under the lock, so that no stream is taken for one that has left before it is there.
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        open.insert(id, subscriber);
        drop(open);
        Subscription { open: Arc::clone(&self.open), id, wake, delivered }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Subscriber>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wake_all(&self) {
        for subscriber in self.lock().values() {
            subscriber.wake.notify_one();
        }
    }

    /// Wakes the streams that one of these entries concerns.
    pub(crate) fn wake(&self, entries: &[Arc<Entry>]) {
        for subscriber in self.lock().values() {
            if entries.iter().any(|e| selector::is_subset(&e.selectors, &subscriber.selectors)) {
                subscriber.wake.notify_one();
            }
        }
    }

    /// Whether an open stream gets this entry's identity.
    pub(crate) fn concerns(&self, entry: &Entry) -> bool {
        self.lock().values().any(|s| selector::is_subset(&entry.selectors, &s.selectors))
    }

    /// How many streams are open.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// How many streams have left since the start.
    pub(crate) fn left(&self) -> u64 {
        let open = self.lock();
        self.next.load(Ordering::Relaxed).saturating_sub(u64::try_from(open.len()).unwrap_or(u64::MAX))
    }

    /// The revision that every open stream has been told of; nothing if none is open.
    pub(crate) fn delivered(&self) -> Option<u64> {
        self.lock().values().map(|s| s.delivered.load(Ordering::Relaxed)).min()
    }
}

impl Subscription {
    /// Notes that the stream has been told everything up to this revision.
    pub(crate) fn delivered(&self, revision: u64) {
        self.delivered.fetch_max(revision, Ordering::Relaxed);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
