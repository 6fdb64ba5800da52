//! All desired state at one revision, in memory, never changed once published.
//!
//! Persistent maps share what did not change, so that the next snapshot costs what changed and old ones may be kept.
//! The questions it answers without scanning are in `authorized.rs`, those that people ask in `ancestry.rs`; how a change is applied is here.

mod ancestry;
mod authorized;

use std::sync::Arc;

use countersign_identity::{Bundle, BundleSet, Entry, FederationRelationship, Selector, SpiffeId};
use imbl::{HashMap, OrdMap, OrdSet, Vector};

pub use ancestry::Ancestry;
pub use authorized::Concern;

use crate::log::{Before, Change, Cursor, Transaction};
use crate::model::{AuthorityRecord, Node};

/// Transactions kept in memory, so that an agent that was away for a moment gets the difference and not everything.
pub(crate) const RECENT_TRANSACTIONS_MAX: usize = 4096;

type Ids = OrdSet<Arc<str>>;

/// Everything at one revision. Cloning shares it.
#[derive(Clone)]
pub struct Snapshot {
    cursor: Cursor,
    entries: OrdMap<Arc<str>, Arc<Entry>>,
    by_parent: HashMap<SpiffeId, Ids>,
    by_spiffe_id: HashMap<SpiffeId, Ids>,
    /// Aliases by the first of their selectors, which an agent must have to match.
    aliases: HashMap<Selector, Ids>,
    by_federation: HashMap<Arc<str>, Ids>,
    nodes: OrdMap<SpiffeId, Arc<Node>>,
    nodes_by_selector: HashMap<Selector, OrdSet<SpiffeId>>,
    bundles: Arc<BundleSet>,
    authorities: OrdMap<Arc<str>, Arc<AuthorityRecord>>,
    federation_relationships: OrdMap<Arc<str>, Arc<FederationRelationship>>,
    recent: Vector<Arc<Transaction>>,
    /// The place in the log before the first of `recent`.
    recent_from: Cursor,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("cursor", &self.cursor).field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Snapshot {
    pub(crate) fn empty(cursor: Cursor) -> Self {
        Self {
            cursor,
            entries: OrdMap::new(),
            by_parent: HashMap::new(),
            by_spiffe_id: HashMap::new(),
            aliases: HashMap::new(),
            by_federation: HashMap::new(),
            nodes: OrdMap::new(),
            nodes_by_selector: HashMap::new(),
            bundles: Arc::default(),
            authorities: OrdMap::new(),
            federation_relationships: OrdMap::new(),
            recent: Vector::new(),
            recent_from: cursor,
        }
    }

    /// Its place in the log.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Its revision.
    pub fn revision(&self) -> u64 {
        self.cursor.revision
    }

    /// The entry of this ID.
    pub fn entry(&self, id: &str) -> Option<&Arc<Entry>> {
        self.entries.get(id)
    }

    /// How many entries there are.
    pub fn entries_count(&self) -> usize {
        self.entries.len()
    }

    /// Entries by ID, from the first after this one.
    pub fn entries_after(&self, id: &str) -> impl Iterator<Item = &Arc<Entry>> {
        let id: Arc<str> = id.into();
        self.entries.range((std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded)).map(|(_, e)| e)
    }

    /// Entries that grant this SPIFFE ID.
    pub fn entries_of(&self, spiffe_id: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_spiffe_id.get(spiffe_id).into_iter().flatten().filter_map(|id| self.entries.get(id))
    }

    /// Entries below this parent.
    pub fn entries_below(&self, parent_id: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_parent.get(parent_id).into_iter().flatten().filter_map(|id| self.entries.get(id))
    }

    /// Entries that federate with this trust domain.
    pub fn entries_federating(&self, trust_domain_name: &str) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_federation.get(trust_domain_name).into_iter().flatten().filter_map(|id| self.entries.get(id))
    }

    /// The entry with the same identity, parent and selectors.
    pub fn similar_entry(&self, entry: &Entry) -> Option<&Arc<Entry>> {
        self.entries_of(&entry.spiffe_id).find(|known| known.is_similar(entry))
    }

    /// The node of this ID.
    pub fn node(&self, id: &SpiffeId) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    /// How many nodes there are.
    pub fn nodes_count(&self) -> usize {
        self.nodes.len()
    }

    /// Nodes by ID, from the first after this one.
    pub fn nodes_after(&self, id: Option<&SpiffeId>) -> impl Iterator<Item = &Arc<Node>> {
        let start = id.map_or(std::ops::Bound::Unbounded, |id| std::ops::Bound::Excluded(id.clone()));
        self.nodes.range((start, std::ops::Bound::Unbounded)).map(|(_, n)| n)
    }

    /// All bundles.
    pub fn bundles(&self) -> &Arc<BundleSet> {
        &self.bundles
    }

    /// The bundle of this trust domain.
    pub fn bundle(&self, trust_domain_name: &str) -> Option<&Arc<Bundle>> {
        self.bundles.get(trust_domain_name)
    }

    /// All authorities of all servers, by ID.
    pub fn authorities(&self) -> impl Iterator<Item = &Arc<AuthorityRecord>> {
        self.authorities.values()
    }

    /// The federation relationship with this trust domain.
    pub fn federation_relationship(&self, trust_domain_name: &str) -> Option<&Arc<FederationRelationship>> {
        self.federation_relationships.get(trust_domain_name)
    }

    /// Federation relationships by the name of the other trust domain, from the first after this one.
    pub fn federation_relationships_after(&self, trust_domain_name: &str) -> impl Iterator<Item = &Arc<FederationRelationship>> {
        let name: Arc<str> = trust_domain_name.into();
        self.federation_relationships.range((std::ops::Bound::Excluded(name), std::ops::Bound::Unbounded)).map(|(_, r)| r)
    }

    /// The transactions after this cursor, if it fits this log and they are still in memory.
    pub fn since(&self, cursor: &Cursor) -> Option<Vec<Arc<Transaction>>> {
        if cursor.epoch != self.cursor.epoch || cursor.revision > self.cursor.revision {
            return None;
        }
        if cursor.revision == self.cursor.revision {
            return (cursor.digest == self.cursor.digest).then(Vec::new);
        }
        if *cursor == self.recent_from {
            return Some(self.recent.iter().map(Arc::clone).collect());
        }
        let at = self.recent.binary_search_by_key(&cursor.revision, |t| t.revision).ok()?;
        let known = self.recent.get(at)?;
        (known.digest == cursor.digest).then(|| self.recent.iter().skip(at + 1).map(Arc::clone).collect())
    }

    /// Applies one change and says what stood there before.
    pub(crate) fn apply(&mut self, change: &Change) -> Before {
        match change {
            Change::EntryPut(entry) => {
                let before = self.entry_remove(&entry.id);
                self.entry_add(entry);
                before
            }
            Change::EntryDelete(id) => self.entry_remove(id),
            Change::NodePut(node) => {
                let before = self.node_remove(&node.id);
                for selector in &node.selectors {
                    self.nodes_by_selector.entry(selector.clone()).or_default().insert(node.id.clone());
                }
                self.nodes.insert(node.id.clone(), Arc::clone(node));
                before
            }
            Change::NodeDelete(id) => self.node_remove(id),
            Change::BundlePut(bundle) => {
                Arc::make_mut(&mut self.bundles).put(Arc::clone(bundle));
                Before::Nothing
            }
            Change::BundleDelete(name) => {
                Arc::make_mut(&mut self.bundles).remove(name);
                Before::Nothing
            }
            Change::AuthorityPut(authority) => {
                self.authorities.insert(Arc::clone(&authority.id), Arc::clone(authority));
                Before::Nothing
            }
            Change::AuthorityDelete(id) => {
                self.authorities.remove(id);
                Before::Nothing
            }
            Change::FederationRelationshipPut(relationship) => {
                self.federation_relationships.insert(relationship.trust_domain.name().into(), Arc::clone(relationship));
                Before::Nothing
            }
            Change::FederationRelationshipDelete(name) => {
                self.federation_relationships.remove(name);
                Before::Nothing
            }
        }
    }

    /// Closes a transaction: moves the cursor and remembers what changed.
    pub(crate) fn advance(&mut self, transaction: Arc<Transaction>) {
        self.cursor.revision = transaction.revision;
        self.cursor.digest = transaction.digest;
        self.recent.push_back(transaction);
        while self.recent.len() > RECENT_TRANSACTIONS_MAX
            && let Some(oldest) = self.recent.pop_front()
        {
            self.recent_from = Cursor { epoch: self.cursor.epoch, revision: oldest.revision, digest: oldest.digest };
        }
    }

    fn entry_add(&mut self, entry: &Arc<Entry>) {
        let id: Arc<str> = entry.id.as_str().into();
        let entry = self.share_parent(entry);
        self.by_parent.entry(entry.parent_id.clone()).or_default().insert(Arc::clone(&id));
        self.by_spiffe_id.entry(entry.spiffe_id.clone()).or_default().insert(Arc::clone(&id));
        if entry.is_alias()
            && let Some(first) = entry.selectors.first()
        {
            self.aliases.entry(first.clone()).or_default().insert(Arc::clone(&id));
        }
        for trust_domain in &entry.federates_with {
            self.by_federation.entry(trust_domain.name().into()).or_default().insert(Arc::clone(&id));
        }
        self.entries.insert(id, entry);
    }

    /// Entries of one parent share its text: with many entries to a parent this is most of their memory.
    fn share_parent(&self, entry: &Arc<Entry>) -> Arc<Entry> {
        match self.by_parent.get_key_value(&entry.parent_id) {
            Some((parent, _)) if !std::ptr::eq(parent.as_str(), entry.parent_id.as_str()) => {
                Arc::new(Entry { parent_id: parent.clone(), ..Entry::clone(entry) })
            }
            _ => Arc::clone(entry),
        }
    }

    fn entry_remove(&mut self, id: &str) -> Before {
        let Some(entry) = self.entries.remove(id) else { return Before::Nothing };
        remove_from(&mut self.by_parent, &entry.parent_id, id);
        remove_from(&mut self.by_spiffe_id, &entry.spiffe_id, id);
        if let Some(first) = entry.selectors.first()
            && entry.is_alias()
        {
            remove_from(&mut self.aliases, first, id);
        }
        for trust_domain in &entry.federates_with {
            remove_from(&mut self.by_federation, &Arc::from(trust_domain.name()), id);
        }
        Before::Entry(entry)
    }

    fn node_remove(&mut self, id: &SpiffeId) -> Before {
        let Some(node) = self.nodes.remove(id) else { return Before::Nothing };
        for selector in &node.selectors {
            if let Some(ids) = self.nodes_by_selector.get_mut(selector) {
                ids.remove(id);
                if ids.is_empty() {
                    self.nodes_by_selector.remove(selector);
                }
            }
        }
        Before::Node(node)
    }
}

fn remove_from<K: std::hash::Hash + Eq + Clone>(index: &mut HashMap<K, Ids>, key: &K, id: &str) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}
