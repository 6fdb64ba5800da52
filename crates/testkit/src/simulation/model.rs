//! What should be true: the operator's acknowledged actions, kept without any code of the server or the agent.

use std::collections::{BTreeMap, BTreeSet};

use super::step::{AGENTS, ENTRIES};

/// An entry as the operator knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Entry {
    /// Its SPIFFE ID.
    pub(super) spiffe_id: String,
    /// The agent below whose alias it is.
    pub(super) agent: usize,
    /// Whether the workload has its selectors.
    pub(super) fits: bool,
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Put { place: usize, entry: Entry },
    Delete { place: usize },
    Ban { node: String },
    Evict { node: String },
}

/// Entries and nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct State {
    /// By their place.
    pub(super) entries: BTreeMap<usize, Entry>,
    /// Whether each is banned, by SPIFFE ID.
    pub(super) nodes: BTreeMap<String, bool>,
}

impl State {
    fn apply(&mut self, request: &Request) {
        match request {
            Request::Put { place, entry } => {
                self.entries.insert(*place, entry.clone());
            }
            Request::Delete { place } => {
                self.entries.remove(place);
            }
            Request::Ban { node } => {
                self.nodes.insert(node.clone(), true);
            }
            Request::Evict { node } => {
                self.nodes.remove(node);
            }
        }
    }
}

/// The model.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) state: State,
    /// Asked for, and nobody knows what came of it.
    unknown: Option<Request>,
    /// What each agent may have learnt since it was last seen to be up to date.
    allowed: [BTreeSet<String>; AGENTS],
}

impl Model {
    /// The server has acknowledged this.
    pub(super) fn acknowledged(&mut self, request: &Request) {
        self.state.apply(request);
        self.allow();
    }

    /// The server went away before it answered this.
    pub(super) fn unanswered(&mut self, request: Request) {
        self.unknown = Some(request);
        self.allow();
    }

    /// A node has joined.
    pub(super) fn joined(&mut self, node: &str) {
        self.state.nodes.insert(node.to_owned(), false);
    }

    /// What the workload on this agent is to have.
    pub(super) fn due(&self, agent: usize) -> BTreeSet<String> {
        due(&self.state, agent)
    }

    /// What an agent may serve that has not heard everything.
    pub(super) fn allowed(&self, agent: usize) -> BTreeSet<String> {
        self.allowed.get(agent).cloned().unwrap_or_default()
    }

    /// This agent was seen to be up to date: nothing older is excused from now on.
    pub(super) fn converged(&mut self, agent: usize) {
        let due = self.due(agent);
        if let Some(allowed) = self.allowed.get_mut(agent).filter(|_| self.unknown.is_none()) {
            *allowed = due;
        }
    }

    /// Compares with what the server says it has. What nobody knew is known then.
    pub(super) fn compare(&mut self, found: &State) -> Result<(), String> {
        let mut done = self.state.clone();
        if let Some(unknown) = self.unknown.take() {
            done.apply(&unknown);
        }
        if *found == done {
            self.state = done;
        } else if *found != self.state {
            return Err(format!("the server has {found:?}, acknowledged was {:?}", self.state));
        }
        self.allow();
        Ok(())
    }

    fn allow(&mut self) {
        let mut done = self.state.clone();
        if let Some(unknown) = &self.unknown {
            done.apply(unknown);
        }
        for (agent, allowed) in self.allowed.iter_mut().enumerate() {
            allowed.extend(due(&self.state, agent));
            allowed.extend(due(&done, agent));
        }
    }
}

fn due(state: &State, agent: usize) -> BTreeSet<String> {
    state.entries.values().filter(|e| e.fits && e.agent == agent).map(|e| e.spiffe_id.clone()).collect()
}

/// The SPIFFE ID of a place's entry under one of its names.
pub(super) fn spiffe_id(place: usize, name: u64) -> String {
    format!("spiffe://example.org/e{place}/{name}")
}

/// The place an entry of this SPIFFE ID has.
pub(super) fn place(spiffe_id: &str) -> Option<usize> {
    (0..ENTRIES).find(|place| spiffe_id.starts_with(&format!("spiffe://example.org/e{place}/")))
}
