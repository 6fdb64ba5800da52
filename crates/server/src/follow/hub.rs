//! Watches the snapshots and marks the mailboxes of the agents that each change concerns.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arc_swap::ArcSwap;
use countersign_identity::SpiffeId;
use countersign_store::{Change, Concern, Snapshot, Store};
use countersign_wire::node::Ack;
use tokio::sync::Notify;

/// What is waiting for one stream.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Everything is to be looked at again.
    pub(crate) all: bool,
    /// Entries to be looked at again.
    pub(crate) entries: BTreeSet<Arc<str>>,
    /// Trust domains whose bundle changed.
    pub(crate) bundles: BTreeSet<Arc<str>>,
    /// The agent's own node changed: is its SVID still good?
    pub(crate) node: bool,
}

/// Keys that wait in one mailbox. Beyond them looking at everything costs less, and an agent that does not read while
/// entries come and go must not make the mailbox grow.
const KEYS_MAX: usize = 20_000;

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        !self.all && !self.node && self.entries.is_empty() && self.bundles.is_empty()
    }

    fn mark_bundle(&mut self, name: &Arc<str>) {
        if !self.all {
            self.bundles.insert(Arc::clone(name));
        }
        if self.bundles.len() > KEYS_MAX {
            self.all = true;
        }
        if self.all {
            self.bundles.clear();
        }
    }

    fn mark(&mut self, concern: &Concern) {
        match concern {
            Concern::All => self.all = true,
            Concern::Entries(ids) if !self.all => self.entries.extend(ids.iter().map(Arc::clone)),
            Concern::Entries(_) => {}
        }
        if self.entries.len() > KEYS_MAX {
            self.all = true;
        }
        if self.all {
            self.entries.clear();
        }
    }
}

/// The mailbox of one open stream.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    pending: Mutex<Pending>,
    /// How far the agent says it has come.
    ack: Mutex<Ack>,
    pub(crate) wake: Notify,
}

impl Mailbox {
    /// Takes what is waiting.
    pub(crate) fn take(&self) -> Pending {
        std::mem::take(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn mark(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_one();
    }

    pub(crate) fn acknowledge(&self, ack: Ack) {
        *self.ack.lock().unwrap_or_else(PoisonError::into_inner) = ack;
    }

    pub(crate) fn ack(&self) -> Ack {
        *self.ack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All open streams.
pub(crate) struct Hub {
    streams: RwLock<HashMap<SpiffeId, Vec<Arc<Mailbox>>>>,
    /// How many streams are open.
    open: AtomicUsize,
    /// The newest snapshot whose changes are all in the mailboxes.
    marked: ArcSwap<Snapshot>,
    closed: AtomicBool,
}

impl Hub {
    pub(crate) fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { streams: RwLock::default(), open: AtomicUsize::new(0), marked: ArcSwap::new(snapshot), closed: AtomicBool::new(false) }
    }

    /// Registers a stream; it is gone when the returned guard is dropped.
    pub(crate) fn join(self: &Arc<Self>, agent: &SpiffeId) -> Membership {
        let mailbox = Arc::new(Mailbox::default());
        let mut streams = self.streams.write().unwrap_or_else(PoisonError::into_inner);
        streams.entry(agent.clone()).or_default().push(Arc::clone(&mailbox));
        self.open.fetch_add(1, Ordering::Relaxed);
        Membership { hub: Arc::clone(self), agent: agent.clone(), mailbox }
    }

    /// The snapshot up to which the mailboxes are complete.
    pub(crate) fn marked(&self) -> Arc<Snapshot> {
        self.marked.load_full()
    }

    /// How many streams are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Ends all streams: they would outlast any wait for calls to end by themselves.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for mailbox in self.streams.read().unwrap_or_else(PoisonError::into_inner).values().flatten() {
            mailbox.wake.notify_one();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// How many streams are open, and the lowest revision any of them has applied.
    pub(crate) fn standing(&self) -> (usize, Option<u64>) {
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        let open = streams.values().map(Vec::len).sum();
        (open, streams.values().flatten().map(|m| m.ack().applied).min())
    }

    /// How far an agent says it has come; nothing if it does not follow. While it renews it may follow twice.
    pub(crate) fn ack_of(&self, agent: &SpiffeId) -> Option<Ack> {
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        streams.get(agent)?.iter().map(|mailbox| mailbox.ack()).max_by_key(|ack| ack.applied)
    }

    /// Marks mailboxes for as long as the store lives.
    pub(crate) async fn run(self: Arc<Self>, store: Store) {
        let mut snapshots = store.watch();
        loop {
            let next = Arc::clone(&snapshots.borrow_and_update());
            self.mark(&next);
            if snapshots.changed().await.is_err() {
                return;
            }
        }
    }

    fn mark(&self, next: &Arc<Snapshot>) {
        let previous = self.marked();
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        match next.since(&previous.cursor()) {
            Some(transactions) => {
                for (agent, concern) in next.concerns(&previous, &transactions) {
                    for mailbox in streams.get(&agent).into_iter().flatten() {
                        mailbox.mark(|pending| pending.mark(&concern));
                    }
                }
                for (change, _) in transactions.iter().flat_map(|t| &t.changes) {
                    match change {
                        // Each stream knows which bundles it was sent and passes over the others.
                        Change::BundlePut(_) | Change::BundleDelete(_) => {
                            let name: Arc<str> = change.key().into();
                            for mailbox in streams.values().flatten() {
                                mailbox.mark(|pending| pending.mark_bundle(&name));
                            }
                        }
                        Change::NodePut(node) => mark_node(&streams, &node.id),
                        Change::NodeDelete(id) => mark_node(&streams, id),
                        _ => {}
                    }
                }
            }
            // Too far behind to know what changed: everybody looks at everything.
            None => {
                for mailbox in streams.values().flatten() {
                    mailbox.mark(|pending| {
                        pending.all = true;
                        pending.node = true;
                    });
                }
            }
        }
        drop(streams);
        self.marked.store(Arc::clone(next));
    }
}

fn mark_node(streams: &HashMap<SpiffeId, Vec<Arc<Mailbox>>>, id: &SpiffeId) {
    for mailbox in streams.get(id).into_iter().flatten() {
        mailbox.mark(|pending| pending.node = true);
    }
}

/// A stream's place in the hub.
pub(crate) struct Membership {
    hub: Arc<Hub>,
    agent: SpiffeId,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut streams = self.hub.streams.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(mailboxes) = streams.get_mut(&self.agent) {
            mailboxes.retain(|m| !Arc::ptr_eq(m, &self.mailbox));
            self.hub.open.fetch_sub(1, Ordering::Relaxed);
            if mailboxes.is_empty() {
                streams.remove(&self.agent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mailbox_nobody_empties_stops_growing() {
        let mut pending = Pending::default();
        for n in 0..3 * KEYS_MAX {
            pending.mark(&Concern::Entries([Arc::from(n.to_string())].into()));
            assert!(pending.entries.len() <= KEYS_MAX);
        }
        assert!(pending.all && pending.entries.is_empty());

        let mut pending = Pending::default();
        for n in 0..3 * KEYS_MAX {
            pending.mark_bundle(&Arc::from(n.to_string()));
            assert!(pending.bundles.len() <= KEYS_MAX);
        }
        assert!(pending.all && pending.bundles.is_empty());
    }
}
