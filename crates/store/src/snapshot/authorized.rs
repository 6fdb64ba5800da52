//! Which entries an agent is authorized for, and which agents a change concerns: both without scanning.
//!
//! An agent is authorized for what hangs below its own ID, below the aliases whose selectors it has, and below the
//! identities of those entries, transitively. Aliases themselves are not delivered.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use countersign_identity::{Entry, Selector, SpiffeId, selector};

use super::Snapshot;
use crate::log::{Before, Change, Transaction};
use crate::model::Node;

/// What a change means for an agent it concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concern {
    /// These entries are to be looked at again.
    Entries(BTreeSet<Arc<str>>),
    /// The shape of its tree changed; everything is to be looked at again.
    All,
}

impl Snapshot {
    /// Every entry this agent is authorized for, by entry ID.
    pub fn authorized_entries(&self, agent: &SpiffeId) -> BTreeMap<Arc<str>, Arc<Entry>> {
        let mut found = BTreeMap::new();
        let mut visited: HashSet<SpiffeId> = HashSet::new();
        let mut queue: Vec<SpiffeId> = vec![agent.clone()];
        if let Some(node) = self.node(agent) {
            queue.extend(self.aliases_of(node).map(|alias| alias.spiffe_id.clone()));
        }
        while let Some(parent) = queue.pop() {
            if !visited.insert(parent.clone()) {
                continue;
            }
            for id in self.by_parent.get(&parent).into_iter().flatten() {
                let Some(entry) = self.entries.get(id) else { continue };
                if found.insert(Arc::clone(id), Arc::clone(entry)).is_none() {
                    queue.push(entry.spiffe_id.clone());
                }
            }
        }
        found
    }

    /// Whether this agent is authorized for this entry. Walks up from the entry, so it costs the depth of the tree.
    pub fn is_authorized(&self, agent: &SpiffeId, entry: &Entry) -> bool {
        if entry.parent_id == *agent {
            return true;
        }
        if entry.is_alias() {
            return false;
        }
        let node = self.node(agent);
        let mut visited: HashSet<SpiffeId> = HashSet::new();
        let mut queue = vec![entry.parent_id.clone()];
        while let Some(parent) = queue.pop() {
            if parent == *agent {
                return true;
            }
            if !visited.insert(parent.clone()) {
                continue;
            }
            for above in self.entries_of(&parent) {
                if above.is_alias() {
                    if node.is_some_and(|n| is_alias_of(above, n)) {
                        return true;
                    }
                } else {
                    queue.push(above.parent_id.clone());
                }
            }
        }
        false
    }

    /// Aliases whose selectors this node has.
    fn aliases_of<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a Arc<Entry>> {
        node.selectors
            .iter()
            .flat_map(|s| self.aliases.get(s).into_iter().flatten())
            .filter_map(|id| self.entries.get(id))
            .filter(|alias| is_alias_of(alias, node))
    }

    /// Nodes that have all these selectors.
    fn nodes_with<'a>(&'a self, selectors: &'a [Selector]) -> impl Iterator<Item = &'a SpiffeId> {
        let rarest = selectors.iter().map(|s| self.nodes_by_selector.get(s)).min_by_key(|ids| ids.map_or(0, imbl::OrdSet::len)).flatten();
        rarest.into_iter().flatten().filter(|id| self.nodes.get(*id).is_some_and(|n| selector::is_subset(selectors, &n.selectors)))
    }

    /// Agents that are or would be authorized for this entry at this snapshot.
    pub(super) fn agents_of(&self, entry: &Entry, agents: &mut BTreeSet<SpiffeId>) {
        if entry.is_alias() {
            agents.extend(self.nodes_with(&entry.selectors).cloned());
            return;
        }
        let mut visited: HashSet<SpiffeId> = HashSet::new();
        let mut queue = vec![entry.parent_id.clone()];
        while let Some(parent) = queue.pop() {
            if !visited.insert(parent.clone()) {
                continue;
            }
            if parent.is_agent() {
                agents.insert(parent.clone());
            }
            for above in self.entries_of(&parent) {
                if above.is_alias() {
                    agents.extend(self.nodes_with(&above.selectors).cloned());
                } else {
                    queue.push(above.parent_id.clone());
                }
            }
        }
    }

    /// Whom the entries and nodes of these transactions concern. `previous` is the snapshot before the first of them,
    /// this one includes the last. Bundles concern whoever uses them and are not part of the answer.
    pub fn concerns(&self, previous: &Self, transactions: &[Arc<Transaction>]) -> BTreeMap<SpiffeId, Concern> {
        let mut concerns: BTreeMap<SpiffeId, Concern> = BTreeMap::new();
        for (change, before) in transactions.iter().flat_map(|t| &t.changes) {
            let mut agents = BTreeSet::new();
            let mut reshapes = false;
            if let Before::Entry(old) = before {
                previous.agents_of(old, &mut agents);
                reshapes |= previous.has_below(old) || self.has_below(old);
            }
            match change {
                Change::EntryPut(new) => {
                    self.agents_of(new, &mut agents);
                    reshapes |= previous.has_below(new) || self.has_below(new);
                }
                Change::NodePut(node) if !matches!(before, Before::Node(old) if old.selectors == node.selectors) => {
                    concerns.insert(node.id.clone(), Concern::All);
                }
                Change::NodeDelete(id) => {
                    concerns.insert(id.clone(), Concern::All);
                }
                _ => {}
            }
            for agent in agents {
                if reshapes {
                    concerns.insert(agent, Concern::All);
                } else if let Concern::Entries(ids) = concerns.entry(agent).or_insert_with(|| Concern::Entries(BTreeSet::new())) {
                    ids.insert(change.key().into());
                }
            }
        }
        concerns
    }

    /// What these transactions mean for one agent that was away while they happened. The snapshot of that time is gone,
    /// so a change anywhere but directly below the agent means looking at everything again.
    pub fn concern_of(&self, agent: &SpiffeId, transactions: &[Arc<Transaction>]) -> Concern {
        let mut ids = BTreeSet::new();
        for (change, before) in transactions.iter().flat_map(|t| &t.changes) {
            let old = match before {
                Before::Entry(old) => Some(old),
                _ => None,
            };
            let new = match change {
                Change::EntryPut(new) => Some(new),
                Change::NodePut(node) if node.id == *agent => {
                    // Renewal changes serial numbers only, which is no reason to look at anything again.
                    if !matches!(before, Before::Node(old) if old.selectors == node.selectors) {
                        return Concern::All;
                    }
                    None
                }
                Change::NodeDelete(id) if id == agent => return Concern::All,
                _ => None,
            };
            for entry in old.into_iter().chain(new) {
                if !entry.parent_id.is_agent() || self.has_below(entry) {
                    return Concern::All;
                }
                if entry.parent_id == *agent {
                    ids.insert(change.key().into());
                }
            }
        }
        Concern::Entries(ids)
    }

    /// Whether other entries hang below this one, so that its coming or going changes more than itself.
    fn has_below(&self, entry: &Entry) -> bool {
        entry.is_alias() || self.by_parent.contains_key(&entry.spiffe_id)
    }
}

/// Whether this alias names this node. One without selectors, which no check lets in, names nobody.
fn is_alias_of(alias: &Entry, node: &Node) -> bool {
    !alias.selectors.is_empty() && selector::is_subset(&alias.selectors, &node.selectors)
}
