//! What the agent knows and holds: entries, bundles, and the SVIDs of its workloads, all in memory.
//!
//! Matching asks an index, never the whole list. A change wakes only the streams it concerns.

mod subscribers;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use countersign_identity::{Bundle, BundleSet, Entry, Selector, SpiffeId, Timestamp, TrustDomain, selector};
use countersign_transport::tls::SharedBundles;
use tokio::sync::Notify;
use zeroize::Zeroizing;

pub(crate) use subscribers::{Subscribers, Subscription};

/// Changed entries in one update beyond which every stream looks again, instead of asking for each which it concerns.
const WAKE_ALL_ABOVE: usize = 64;

/// An X509-SVID of a workload, with its key.
pub(crate) struct Svid {
    pub(crate) spiffe_id: SpiffeId,
    /// Concatenated DER, leaf first.
    pub(crate) chain: Vec<u8>,
    /// PKCS#8, wiped when dropped.
    pub(crate) key: Zeroizing<Vec<u8>>,
    pub(crate) expires_at: Timestamp,
    pub(crate) renew_at: Timestamp,
    /// What of the entry is in the certificate; when it changes the SVID is replaced.
    pub(crate) dns_names: Vec<String>,
    pub(crate) ttl: Option<std::time::Duration>,
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Svid({}, until {})", self.spiffe_id, self.expires_at)
    }
}

impl Svid {
    fn fits(&self, entry: &Entry) -> bool {
        self.spiffe_id == entry.spiffe_id && self.dns_names == entry.dns_names && self.ttl == entry.x509_svid_ttl
    }
}

/// An identity a workload may have: its entry, and the SVID if one is held.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) entry: Arc<Entry>,
    pub(crate) svid: Option<Arc<Svid>>,
    /// Why the last attempt to get an SVID failed.
    pub(crate) failure: Option<Arc<str>>,
}

#[derive(Debug)]
struct Held {
    entry: Arc<Entry>,
    svid: Option<Arc<Svid>>,
    failure: Option<Arc<str>>,
    /// Counts uses, to know which was used last.
    used: u64,
}

/// A change of what the agent follows.
#[derive(Debug, Default)]
pub(crate) struct Update {
    /// What is not in this update or one that follows before `caught_up` is gone.
    pub(crate) reset: bool,
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) removed_entries: Vec<String>,
    pub(crate) bundles: Vec<Arc<Bundle>>,
    pub(crate) removed_bundles: Vec<String>,
    pub(crate) revision: Option<u64>,
    pub(crate) caught_up: bool,
}

#[derive(Default)]
struct State {
    entries: HashMap<Arc<str>, Held>,
    /// Entry IDs by the first of their selectors, which a workload must have to match.
    by_selector: HashMap<Selector, BTreeSet<Arc<str>>>,
    bundles: Arc<BundleSet>,
    /// What a reset has not mentioned yet; dropped when it is complete.
    unmentioned: Option<(BTreeSet<Arc<str>>, BTreeSet<String>)>,
    caught_up: bool,
    revision: u64,
    clock: u64,
    held: usize,
    /// How many streams had left when all SVIDs beyond the limit were found to be in use. Nothing, once one is held that may
    /// not be.
    all_in_use: Option<u64>,
}

/// What became of an update.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Entries that need an SVID and have none that fits.
    pub(crate) wanted: Vec<Arc<Entry>>,
    /// Whether the update completed a revision.
    pub(crate) caught_up: bool,
}

/// The cache.
pub(crate) struct Cache {
    trust_domain: TrustDomain,
    state: RwLock<State>,
    pub(crate) subscribers: Subscribers,
    /// Told of each change of a bundle.
    pub(crate) bundles_changed: Notify,
    /// The own bundle, for connections to the server.
    server_bundles: SharedBundles,
    max_svids: usize,
}

impl Cache {
    pub(crate) fn new(trust_domain: TrustDomain, server_bundles: SharedBundles, max_svids: usize) -> Self {
        Self {
            trust_domain,
            state: RwLock::default(),
            subscribers: Subscribers::default(),
            bundles_changed: Notify::new(),
            server_bundles,
            max_svids,
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies an update and wakes the streams it concerns.
    pub(crate) fn apply(&self, update: Update) -> Applied {
        let mut applied = Applied { caught_up: update.caught_up, ..Applied::default() };
        let mut touched: Vec<Arc<Entry>> = Vec::new();
        let has_bundles = !update.bundles.is_empty() || !update.removed_bundles.is_empty();
        let mut wake_all = has_bundles || update.reset;
        {
            let mut state = self.write();
            if update.reset {
                let names = state.bundles.iter().map(|b| b.trust_domain().name().to_owned()).collect();
                state.unmentioned = Some((state.entries.keys().map(Arc::clone).collect(), names));
            }
            if has_bundles {
                let mut bundles = BundleSet::clone(&state.bundles);
                for bundle in &update.bundles {
                    state.mention_bundle(bundle.trust_domain().name());
                    bundles.put(Arc::clone(bundle));
                }
                for name in &update.removed_bundles {
                    bundles.remove(name);
                }
                state.bundles = Arc::new(bundles);
            }
            for entry in update.entries {
                if let Some((unmentioned, _)) = &mut state.unmentioned {
                    unmentioned.remove(entry.id.as_str());
                }
                touched.extend(state.put(&entry));
                touched.push(Arc::clone(&entry));
                if state.entries.get(entry.id.as_str()).is_some_and(|h| h.svid.is_none()) {
                    applied.wanted.push(entry);
                }
            }
            for id in &update.removed_entries {
                touched.extend(state.remove(id));
            }
            if update.caught_up {
                // Whoever waits to know that it has nothing must hear of it too.
                wake_all |= !state.caught_up || state.unmentioned.is_some();
                if let Some((entries, bundles)) = state.unmentioned.take() {
                    for id in entries {
                        touched.extend(state.remove(&id));
                    }
                    if !bundles.is_empty() {
                        let mut set = BundleSet::clone(&state.bundles);
                        for name in bundles {
                            set.remove(&name);
                        }
                        state.bundles = Arc::new(set);
                    }
                }
                state.caught_up = true;
            }
            if let Some(revision) = update.revision {
                state.revision = revision;
            }
            wake_all |= touched.len() > WAKE_ALL_ABOVE;
            if let Some(own) = state.bundles.get(self.trust_domain.name()).filter(|b| !b.x509_authorities().is_empty()) {
                self.server_bundles.store(Arc::new(BundleSet::from_iter([Arc::clone(own)])));
            }
        }
        if has_bundles {
            self.bundles_changed.notify_waiters();
        }
        if wake_all {
            self.subscribers.wake_all()
        } else {
            self.subscribers.wake(&touched)
        }
        applied
    }

    /// Identities for these selectors, which must be sorted, by entry ID; duplicate hints are dropped.
    pub(crate) fn identities(&self, selectors: &[Selector], now: Timestamp) -> Vec<Identity> {
        unique_hints(self.matching(selectors, now))
    }

    /// As [`Cache::identities`], whatever the hints.
    pub(crate) fn matching(&self, selectors: &[Selector], now: Timestamp) -> Vec<Identity> {
        tracing::trace!(hop = "finds the entries");
        let mut state = self.write();
        let mut ids: Vec<Arc<str>> = selectors
            .iter()
            .filter_map(|s| state.by_selector.get(s))
            .flatten()
            .filter(|id| state.entries.get(*id).is_some_and(|h| matches(&h.entry, selectors, now)))
            .map(Arc::clone)
            .collect();
        ids.sort_unstable();
        state.clock += 1;
        let used = state.clock;
        ids.iter()
            .filter_map(|id| {
                let held = state.entries.get_mut(id)?;
                held.used = used;
                let svid = held.svid.as_ref().filter(|s| s.expires_at > now).map(Arc::clone);
                Some(Identity { entry: Arc::clone(&held.entry), svid, failure: held.failure.clone() })
            })
            .collect()
    }

    /// All bundles the agent has.
    pub(crate) fn bundles(&self) -> Arc<BundleSet> {
        Arc::clone(&self.read().bundles)
    }

    /// Whether the state was complete at some revision since the start, or came complete from disk.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.read().caught_up
    }

    pub(crate) fn revision(&self) -> u64 {
        self.read().revision
    }

    /// The entry of this ID, with what is held for it.
    pub(crate) fn identity(&self, id: &str) -> Option<Identity> {
        let state = self.read();
        let held = state.entries.get(id)?;
        Some(Identity { entry: Arc::clone(&held.entry), svid: held.svid.clone(), failure: held.failure.clone() })
    }

    /// All entries.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.read().entries.values().map(|h| Arc::clone(&h.entry)).collect()
    }

    /// All SVIDs that are held, by entry.
    pub(crate) fn svids(&self) -> Vec<(Arc<str>, Arc<Svid>)> {
        self.read().entries.iter().filter_map(|(id, h)| Some((Arc::clone(id), Arc::clone(h.svid.as_ref()?)))).collect()
    }

    /// How many SVIDs are held, without a look at the entries.
    pub(crate) fn svids_held(&self) -> usize {
        self.read().held
    }

    /// How many SVIDs are held, and when the first of them ends.
    pub(crate) fn held(&self) -> (usize, Option<Timestamp>) {
        let state = self.read();
        (state.held, state.entries.values().filter_map(|h| h.svid.as_ref()).map(|s| s.expires_at).min())
    }

    /// Whether there is room for an SVID that no workload asks for.
    pub(crate) fn has_room(&self) -> bool {
        self.read().held < self.max_svids
    }

    /// Keeps an SVID, if its entry is still as it was asked for. Beyond the limit those go that were used longest ago and that
    /// no stream is subscribed to.
    pub(crate) fn svid_put(&self, entry_id: &str, svid: Arc<Svid>) -> bool {
        tracing::trace!(hop = "keeps the SVID and wakes the stream");
        let entry = {
            let mut state = self.write();
            let Some(held) = state.entries.get_mut(entry_id) else { return false };
            if !svid.fits(&held.entry) {
                return false;
            }
            held.failure = None;
            let entry = Arc::clone(&held.entry);
            if held.svid.replace(svid).is_none() {
                state.held += 1;
            }
            if state.held > self.max_svids {
                state.evict(&entry, self.max_svids, &self.subscribers);
            }
            entry
        };
        self.subscribers.wake(&[entry]);
        true
    }

    /// Notes that an SVID could not be had, so that streams that wait for it do not wait for ever.
    pub(crate) fn svid_failed(&self, entry_id: &str, reason: &str) {
        let entry = {
            let mut state = self.write();
            let Some(held) = state.entries.get_mut(entry_id) else { return };
            held.failure = Some(reason.into());
            Arc::clone(&held.entry)
        };
        self.subscribers.wake(&[entry]);
    }
}

impl State {
    fn mention_bundle(&mut self, name: &str) {
        if let Some((_, unmentioned)) = &mut self.unmentioned {
            unmentioned.remove(name);
        }
    }

    /// Adds or replaces an entry and returns the one it replaces. The SVID stays if it still fits.
    fn put(&mut self, entry: &Arc<Entry>) -> Option<Arc<Entry>> {
        let id: Arc<str> = entry.id.as_str().into();
        let former = self.entries.remove(&id);
        if let Some(former) = &former {
            self.unindex(&former.entry);
        }
        if let Some(first) = entry.selectors.first().filter(|_| !entry.store_svid) {
            self.by_selector.entry(first.clone()).or_default().insert(Arc::clone(&id));
        }
        let svid = former.as_ref().and_then(|h| h.svid.clone()).filter(|s| s.fits(entry));
        if svid.is_none() && former.as_ref().is_some_and(|h| h.svid.is_some()) {
            self.held -= 1;
        }
        if svid.is_some() {
            // It may have other selectors, which no stream has.
            self.all_in_use = None;
        }
        let used = former.as_ref().map_or(0, |h| h.used);
        self.entries.insert(id, Held { entry: Arc::clone(entry), svid, failure: None, used });
        former.map(|h| h.entry)
    }

    fn remove(&mut self, id: &str) -> Option<Arc<Entry>> {
        let held = self.entries.remove(id)?;
        if held.svid.is_some() {
            self.held -= 1;
        }
        self.unindex(&held.entry);
        Some(held.entry)
    }

    fn unindex(&mut self, entry: &Entry) {
        let Some(first) = entry.selectors.first() else { return };
        if let Some(ids) = self.by_selector.get_mut(first) {
            ids.remove(entry.id.as_str());
            if ids.is_empty() {
                self.by_selector.remove(first);
            }
        }
    }

    fn evict(&mut self, keep: &Entry, max: usize, subscribers: &Subscribers) {
        // Asked before the streams are looked at: one that leaves meanwhile counts the next time.
        let left = subscribers.left();
        let keep_is_in_use = subscribers.concerns(keep);
        // Where more is in use than the limit allows, each SVID would cost a look at all of them, in vain.
        if keep_is_in_use && self.all_in_use == Some(left) {
            return;
        }
        let may_go = |(id, h): &(&Arc<str>, &Held)| h.svid.is_some() && ***id != *keep.id && !subscribers.concerns(&h.entry);
        let mut unused: Vec<(u64, Arc<str>)> = self.entries.iter().filter(may_go).map(|(id, h)| (h.used, Arc::clone(id))).collect();
        unused.sort_unstable();
        for (_, id) in unused.into_iter().take(self.held.saturating_sub(max)) {
            if let Some(held) = self.entries.get_mut(&id) {
                held.svid = None;
                self.held -= 1;
            }
        }
        self.all_in_use = (keep_is_in_use && self.held > max).then_some(left);
    }
}

/// Whether a workload with these selectors gets this entry's identity.
pub(crate) fn matches(entry: &Entry, selectors: &[Selector], now: Timestamp) -> bool {
    !entry.store_svid && !entry.is_expired(now) && selector::is_subset(&entry.selectors, selectors)
}

/// Of identities with the same hint only the oldest entry stays (Workload API section 8; SPIRE's order).
fn unique_hints(mut identities: Vec<Identity>) -> Vec<Identity> {
    let owners = hint_owners(identities.iter().map(|i| &i.entry));
    identities.retain(|identity| {
        let entry = &identity.entry;
        let keeps = entry.hint.is_empty() || owners.get(&entry.hint) == Some(&entry.id);
        if !keeps {
            tracing::warn!(entry_id = %entry.id, hint = %entry.hint, "Ignoring entry with duplicate hint");
        }
        keeps
    });
    identities
}

/// Which of these entries has each hint: the oldest.
pub(crate) fn hint_owners<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>) -> HashMap<String, String> {
    let mut owners: HashMap<&str, (Timestamp, &str)> = HashMap::new();
    for entry in entries.filter(|e| !e.hint.is_empty()) {
        let age = (entry.created_at, entry.id.as_str());
        owners.entry(&entry.hint).and_modify(|known| *known = (*known).min(age)).or_insert(age);
    }
    owners.into_iter().map(|(hint, (_, id))| (hint.to_owned(), id.to_owned())).collect()
}

#[cfg(test)]
mod tests;
