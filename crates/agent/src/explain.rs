//! Why a process gets the identities it gets, or none: which entries its selectors satisfy, and how near the others come.
//!
//! Looks at every entry of this agent, once for each question, on a copy of the list: what serves workloads waits for the
//! copying at most, which clones a pointer for each entry.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use countersign_identity::{Entry, Selector, SpiffeId, Timestamp};
use countersign_wire::agent_admin::Conclusion;

use crate::cache::matches;

/// Matching entries told: a process with more identities than this has another problem than having none.
pub(crate) const MATCHING_MAX: usize = 100;
/// Entries told that do not match. The one that was meant is among the first, or nowhere near.
pub(crate) const NEAREST_MAX: usize = 10;
/// Missing selectors told of one entry. Ten entries with twenty of the longest selectors are 1.6 MiB, less than half of a message.
pub(crate) const MISSING_MAX: usize = 20;

/// Which entries may be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All that the agent has.
    Everything,
    /// Those that the process has at least one selector of: others are other people's business.
    Shared,
}

/// An entry that does not match.
#[derive(Debug, Clone)]
pub(crate) struct Near {
    pub(crate) entry: Arc<Entry>,
    /// The first of the selectors it wants and the process lacks; none if it fails for another reason.
    pub(crate) missing: Vec<Selector>,
    pub(crate) missing_left_out: usize,
    /// How many of its selectors the process has.
    pub(crate) shared: usize,
}

/// What a search finds.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Oldest first.
    pub(crate) matching: Vec<Arc<Entry>>,
    pub(crate) matching_left_out: usize,
    /// The fewest missing selectors first; of those alike, the most shared ones first.
    pub(crate) nearest: Vec<Near>,
    pub(crate) nearest_left_out: usize,
    /// The parent that most entries have.
    pub(crate) usual_parent: Option<SpiffeId>,
}

/// Searches the entries for these selectors, which must be sorted.
pub(crate) fn search(entries: &[Arc<Entry>], selectors: &[Selector], reach: Reach, now: Timestamp) -> Found {
    let mut found = Found { usual_parent: usual_parent(entries), ..Found::default() };
    let mut others = Vec::new();
    for entry in entries {
        if matches(entry, selectors, now) {
            found.matching.push(Arc::clone(entry));
            continue;
        }
        let shared = entry.selectors.iter().filter(|s| selectors.binary_search(s).is_ok()).count();
        if reach == Reach::Shared && shared == 0 {
            found.nearest_left_out += 1;
            continue;
        }
        others.push((entry.selectors.len() - shared, Reverse(shared), entry));
    }
    found.matching.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    found.matching_left_out = found.matching.len().saturating_sub(MATCHING_MAX);
    found.matching.truncate(MATCHING_MAX);
    let order =
        |a: &(usize, Reverse<usize>, &Arc<Entry>), b: &(usize, Reverse<usize>, &Arc<Entry>)| (a.0, a.1, &a.2.id).cmp(&(b.0, b.1, &b.2.id));
    if others.len() > NEAREST_MAX {
        others.select_nth_unstable_by(NEAREST_MAX, order);
        found.nearest_left_out += others.len() - NEAREST_MAX;
        others.truncate(NEAREST_MAX);
    }
    others.sort_unstable_by(order);
    found.nearest = others
        .into_iter()
        .map(|(missing, Reverse(shared), entry)| Near {
            entry: Arc::clone(entry),
            missing: entry.selectors.iter().filter(|s| selectors.binary_search(s).is_err()).take(MISSING_MAX).cloned().collect(),
            missing_left_out: missing.saturating_sub(MISSING_MAX),
            shared,
        })
        .collect();
    found
}

fn usual_parent(entries: &[Arc<Entry>]) -> Option<SpiffeId> {
    let mut counts: BTreeMap<&SpiffeId, usize> = BTreeMap::new();
    for entry in entries {
        *counts.entry(&entry.parent_id).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(id, count)| (*count, Reverse(*id))).map(|(id, _)| id.clone())
}

/// What is held for a matching entry, as far as the answer goes by it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holding {
    pub(crate) has_svid: bool,
    pub(crate) has_failed: bool,
    /// Another entry with the same hint is given in its place.
    pub(crate) is_hidden: bool,
}

/// What the agent itself has, as far as the answer goes by it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Readiness {
    pub(crate) attested: bool,
    pub(crate) joined: bool,
    pub(crate) entries_known: bool,
    pub(crate) connected: bool,
}

/// The answer in one word: what the Workload API would do now.
pub(crate) fn conclude(agent: Readiness, matching: &[Holding]) -> Conclusion {
    let given = || matching.iter().filter(|m| !m.is_hidden);
    if !agent.attested {
        Conclusion::AttestationFailed
    } else if !agent.joined {
        Conclusion::AgentNotJoined
    } else if given().next().is_none() {
        if agent.entries_known { Conclusion::NoMatchingEntry } else { Conclusion::EntriesUnknown }
    } else if given().any(|m| m.has_svid) {
        Conclusion::HasIdentity
    } else if !agent.connected {
        Conclusion::ServerUnreachable
    } else if given().all(|m| m.has_failed) {
        Conclusion::IssuanceFailed
    } else {
        // Fetched when the process asks.
        Conclusion::HasIdentity
    }
}

#[cfg(test)]
mod tests;
