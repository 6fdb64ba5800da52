//! What has become of an entry: which agents have it, who holds an SVID of it, and if nobody does, why not.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use countersign_identity::{Entry, SpiffeId, Timestamp};
use countersign_store::{Ancestry, Node, Snapshot};
use countersign_wire::explained::{
    AgentStanding, AgentState, Cause, ExplainEntryRequest, ExplainEntryResponse, Finding, StateCount, entry_explainer_server,
};
use countersign_wire::journal::{Kind, Outcome, Record};
use countersign_wire::node::Ack;
use countersign_wire::{entry, id};
use tonic::{Request, Response, Status};

use super::access::About;
use super::{Api, status};
use crate::audit::{Answer, Query, search};

/// Agents told one by one, those with trouble first; of the others there are counts.
const AGENTS_MAX: usize = 100;
/// Findings of one cause told: after some mistyped parents the next is known.
const FINDINGS_MAX: usize = 10;
/// Selectors told that an agent lacks: enough to see what is wrong, and bounded with the longest selectors there are.
const MISSING_MAX: usize = 20;
/// An agent heard of within this time is there though it follows nothing: SPIRE's ask every five seconds, and after some failures
/// once in a while.
const HEARD_LATELY: Duration = Duration::from_secs(90);
/// Records of the journal read for who holds an SVID: what one question to it returns at most.
const RECORDS_MAX: usize = 10_000;

#[tonic::async_trait]
impl entry_explainer_server::EntryExplainer for Api {
    async fn explain_entry(&self, request: Request<ExplainEntryRequest>) -> Result<Response<ExplainEntryResponse>, Status> {
        let caller = Self::caller(&request)?;
        let wanted = request.into_inner().id;
        caller.access.about(|| About::entry_id(&wanted));
        if wanted.is_empty() {
            return Err(status::invalid_plain(&caller, "missing ID"));
        }
        let snapshot = self.store.snapshot();
        let found = Arc::clone(snapshot.entry(&wanted).ok_or_else(|| Status::not_found("entry not found"))?);
        let (api, now) = (self.clone(), self.clock.now());
        // Files are read, and the fleet may be large.
        let explained = tokio::task::spawn_blocking(move || {
            let holders = holders(&api, &found, now)?;
            Ok::<_, std::io::Error>(explain(&api, &snapshot, &found, &holders, now))
        });
        let answer = explained.await.map_err(|_| Status::unavailable("the server is shutting down"))?.map_err(|e| status::journal(&e))?;
        Ok(Response::new(answer))
    }
}

/// The newest X509-SVID of each agent that is in force, as the journal has it.
#[derive(Debug, Default)]
struct Holders {
    by_agent: HashMap<String, Record>,
    is_incomplete: bool,
}

fn holders(api: &Api, entry: &Entry, now: Timestamp) -> std::io::Result<Holders> {
    let query =
        Query { spiffe_id: Some(entry.spiffe_id.to_string()), from_millis: Some(now.millis()), limit: RECORDS_MAX, ..Query::default() };
    let Answer { records, damage } = search(api.journal.directory(), &query)?;
    let mut found = Holders { is_incomplete: records.len() >= RECORDS_MAX || !damage.is_empty(), ..Holders::default() };
    for record in records {
        // Of the newest the outcome may not be written yet.
        if record.kind() == Kind::WorkloadX509 && record.entry_id == entry.id && record.outcome() != Outcome::Failed {
            found.by_agent.insert(record.agent_id.clone(), record);
        }
    }
    Ok(found)
}

fn explain(api: &Api, snapshot: &Snapshot, entry: &Entry, holders: &Holders, now: Timestamp) -> ExplainEntryResponse {
    let ancestry = snapshot.ancestry(entry);
    let changed_at = snapshot.changed_at(&ancestry.entries);
    let needed = changed_at.unwrap_or_else(|| snapshot.remembered_from());
    let authorized = snapshot.agents_authorized(entry);
    let standing = |agent: &SpiffeId| {
        let mut standing = judge(snapshot.node(agent).map(Arc::as_ref), api.hub.ack_of(agent), needed, now);
        standing.spiffe_id = agent.to_string();
        if let Some(record) = holders.by_agent.get(agent.as_str()) {
            standing.svid_held_until = record.expires_at;
            standing.svid_serial_number.clone_from(&record.serial_or_jti);
        }
        standing
    };
    let mut agents: Vec<AgentStanding> = authorized.iter().map(standing).collect();
    let mut counts: BTreeMap<i32, u32> = BTreeMap::new();
    for agent in &agents {
        *counts.entry(agent.state).or_default() += 1;
    }
    let is_connected = agents.iter().any(|a| matches!(a.state(), AgentState::HasIt | AgentState::Behind));
    let mut polls = authorized.iter().zip(&agents).filter(|(_, a)| !is_connected && a.state() == AgentState::NotConnected);
    let is_polled = {
        // Where none follows alone, and until one is found: every call of an agent waits for this lock.
        let seen = api.seen.lock().unwrap_or_else(PoisonError::into_inner);
        polls.any(|(id, _)| seen.get(id).is_some_and(|s| now.since(s.at) <= HEARD_LATELY))
    };
    let reached = Reached { has_it: count(&counts, AgentState::HasIt), behind: count(&counts, AgentState::Behind), is_polled };
    // Trouble first: the states are numbered by it.
    agents.sort_by_key(|agent| std::cmp::Reverse((agent.state, agent.behind)));
    let findings = findings(snapshot, entry, &ancestry, &authorized, reached, holders, now);
    let agents_left_out = agents.len().saturating_sub(AGENTS_MAX);
    agents.truncate(AGENTS_MAX);
    // Of those that are told alone: every call of an agent waits for this lock.
    let seen = api.seen.lock().unwrap_or_else(PoisonError::into_inner);
    for agent in &mut agents {
        let id = SpiffeId::parse(&agent.spiffe_id).ok();
        agent.last_heard = id.and_then(|id| seen.get(&id)).map_or(0, |s| s.at.secs());
    }
    drop(seen);
    ExplainEntryResponse {
        entry: Some(entry::to_wire(entry)),
        revision: changed_at.unwrap_or_default(),
        head: snapshot.revision(),
        agents,
        agents_left_out: number(agents_left_out),
        counts: counts.into_iter().map(|(state, count)| StateCount { state, count }).collect(),
        holders: number(holders.by_agent.len()),
        held_until: holders.by_agent.values().map(|r| r.expires_at).max().unwrap_or_default(),
        holders_incomplete: holders.is_incomplete,
        findings,
    }
}

/// How far agents can be reached.
#[derive(Debug, Clone, Copy)]
struct Reached {
    has_it: u32,
    behind: u32,
    /// None follows, and at least one was heard of lately.
    is_polled: bool,
}

fn count(counts: &BTreeMap<i32, u32>, state: AgentState) -> u32 {
    counts.get(&i32::from(state)).copied().unwrap_or_default()
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// How an agent stands to an entry that it has once it has come to this revision.
fn judge(node: Option<&Node>, ack: Option<Ack>, needed: u64, now: Timestamp) -> AgentStanding {
    let ack_or_none = ack.unwrap_or_default();
    let behind = needed.saturating_sub(ack_or_none.applied);
    let is_banned = node.is_none_or(Node::is_banned);
    let has_ended = node.is_none_or(|n| n.expires_at.max(n.new_expires_at) <= now);
    let state = match ack {
        _ if is_banned => AgentState::Banned,
        _ if has_ended => AgentState::SvidEnded,
        None => AgentState::NotConnected,
        Some(_) if behind > 0 => AgentState::Behind,
        Some(_) => AgentState::HasIt,
    };
    AgentStanding {
        state: state.into(),
        applied: ack_or_none.applied,
        persisted: ack_or_none.persisted,
        delivered: ack_or_none.delivered,
        behind: if ack.is_some() { behind } else { 0 },
        ..AgentStanding::default()
    }
}

/// What is in the way, the most telling first.
fn findings(
    snapshot: &Snapshot,
    entry: &Entry,
    ancestry: &Ancestry,
    authorized: &BTreeSet<SpiffeId>,
    reached: Reached,
    holders: &Holders,
    now: Timestamp,
) -> Vec<Finding> {
    let of = |cause: Cause| Finding { cause: cause.into(), ..Finding::default() };
    let mut found = Vec::new();
    if let Some(end) = entry.expires_at.filter(|_| entry.is_expired(now)) {
        found.push(Finding { at: end.secs(), ..of(Cause::Expired) });
    }
    if entry.names_a_node() {
        found.push(of(Cause::IsAlias));
    }
    if entry.store_svid {
        found.push(of(Cause::Stored));
    }
    let unknown: Vec<&SpiffeId> = ancestry.unknown.iter().take(FINDINGS_MAX).collect();
    let absent: Vec<&SpiffeId> = ancestry.agents.iter().filter(|id| snapshot.node(id).is_none()).take(FINDINGS_MAX).collect();
    let searches = unknown.len() + absent.len();
    let similar = |id: &SpiffeId| snapshot.nearest_parent(id, entry, searches).map(|id| id.to_string()).unwrap_or_default();
    for unknown in unknown {
        found.push(Finding { subject: unknown.to_string(), similar: similar(unknown), ..of(Cause::ParentUnknown) });
    }
    for absent in absent {
        found.push(Finding { subject: absent.to_string(), similar: similar(absent), ..of(Cause::AgentNotAttested) });
    }
    let own = entry.is_alias().then(|| Arc::new(entry.clone()));
    for alias in ancestry.aliases.iter().chain(&own).filter(|a| snapshot.agents_authorized(a).is_empty()).take(FINDINGS_MAX) {
        let (nearest, missing) = snapshot.nearest_node(&alias.selectors).unzip();
        found.push(Finding {
            subject: alias.spiffe_id.to_string(),
            similar: nearest.map(|n| n.id.to_string()).unwrap_or_default(),
            missing: id::selectors_to_wire(missing.unwrap_or_default().get(..).unwrap_or_default()).into_iter().take(MISSING_MAX).collect(),
            ..of(Cause::AliasUnsatisfied)
        });
    }
    let Reached { has_it, behind, is_polled } = reached;
    if !authorized.is_empty() && has_it + behind == 0 && !is_polled {
        found.push(Finding { count: number(authorized.len()), ..of(Cause::AllAgentsUnavailable) });
    }
    if behind > 0 {
        found.push(Finding { count: behind, ..of(Cause::AgentsBehind) });
    }
    if authorized.is_empty() && found.is_empty() {
        found.push(of(Cause::ParentCircle));
    }
    if found.is_empty() && holders.by_agent.is_empty() {
        found.push(Finding { count: has_it, ..of(Cause::NotAskedFor) });
    }
    found
}
