//! What an entry hangs below, up to agents and aliases, and what comes near where that leads nowhere. For people who ask why
//! nobody has an entry; nothing is decided from it.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use countersign_identity::{Entry, Selector, SpiffeId};

use super::Snapshot;
use crate::model::Node;

/// Steps of comparing SPIFFE IDs for similar ones, for one explanation: comparing two takes as many as the product of their
/// paths' lengths. All together take about a tenth of a second, and a mistyped name is not worth more.
const STEPS_MAX: usize = 50_000_000;

/// Where the ways up from an entry lead.
#[derive(Debug, Clone, Default)]
pub struct Ancestry {
    /// Agents below which it hangs, attested or not.
    pub agents: BTreeSet<SpiffeId>,
    /// Aliases below which it hangs.
    pub aliases: Vec<Arc<Entry>>,
    /// Parents that nobody has: not the ID of an agent, and granted by no entry.
    pub unknown: BTreeSet<SpiffeId>,
    /// Entries on the way, the first among them.
    pub entries: HashSet<String>,
}

impl Snapshot {
    /// Where the ways up from this entry lead.
    pub fn ancestry(&self, entry: &Entry) -> Ancestry {
        let mut found = Ancestry { entries: HashSet::from([entry.id.clone()]), ..Ancestry::default() };
        if entry.is_alias() {
            return found;
        }
        let mut visited: HashSet<SpiffeId> = HashSet::new();
        let mut queue = vec![entry.parent_id.clone()];
        while let Some(parent) = queue.pop() {
            if !visited.insert(parent.clone()) {
                continue;
            }
            let mut is_granted = false;
            for above in self.entries_of(&parent) {
                is_granted = true;
                found.entries.insert(above.id.clone());
                if above.is_alias() {
                    found.aliases.push(Arc::clone(above));
                } else {
                    queue.push(above.parent_id.clone());
                }
            }
            if parent.is_agent() {
                found.agents.insert(parent);
            } else if !is_granted {
                found.unknown.insert(parent);
            }
        }
        found
    }

    /// Attested agents that are authorized for this entry; of an alias, those that it names.
    pub fn agents_authorized(&self, entry: &Entry) -> BTreeSet<SpiffeId> {
        let mut agents = BTreeSet::new();
        self.agents_of(entry, &mut agents);
        agents.retain(|id| self.node(id).is_some());
        agents
    }

    /// The newest revision at which one of these entries changed. `None`: before [`Snapshot::remembered_from`].
    pub fn changed_at(&self, entries: &HashSet<String>) -> Option<u64> {
        let concerns = |t: &&Arc<crate::log::Transaction>| {
            t.changes.iter().any(|(change, _)| change.noun() == crate::log::Noun::Entry && entries.contains(change.key()))
        };
        self.recent.iter().rev().find(concerns).map(|t| t.revision)
    }

    /// What changed up to this revision is not remembered one by one.
    pub fn remembered_from(&self) -> u64 {
        self.recent_from.revision
    }

    /// The node that lacks the fewest of these selectors, and those it lacks.
    pub fn nearest_node<'a>(&'a self, selectors: &[Selector]) -> Option<(&'a Arc<Node>, Vec<Selector>)> {
        let missing = |node: &Node| selectors.iter().filter(|s| node.selectors.binary_search(s).is_err()).count();
        let nearest = self.nodes.values().filter(|n| !n.is_banned()).min_by_key(|n| missing(n))?;
        let lacks = selectors.iter().filter(|s| nearest.selectors.binary_search(s).is_err()).cloned().collect();
        Some((nearest, lacks))
    }

    /// The SPIFFE ID most like this one that an agent has or an entry grants, if one is like it. Not that of the entry whose
    /// parent is looked for. Each of so many that are looked for in one explanation gets its share of the steps; with very many
    /// IDs or very long ones a similar one may be missed.
    pub fn nearest_parent(&self, wanted: &SpiffeId, of: &Entry, searches: usize) -> Option<SpiffeId> {
        let mut left = STEPS_MAX / searches.max(1);
        let granted = self.by_spiffe_id.keys();
        // As many edits as a slip of the keyboard or a forgotten word take.
        let likeness_max = 3.max(wanted.path().len() / 4);
        granted
            .chain(self.nodes.keys())
            .filter(|id| **id != of.spiffe_id && id.path().len().abs_diff(wanted.path().len()) <= likeness_max)
            .take_while(|id| {
                let steps = id.path().len().saturating_mul(wanted.path().len());
                let is_affordable = steps <= left;
                left = left.saturating_sub(steps);
                is_affordable
            })
            .map(|id| (strsim::levenshtein(wanted.path(), id.path()), id))
            .min()
            .filter(|(edits, _)| *edits <= likeness_max)
            .map(|(_, id)| id.clone())
    }
}
