//! One agent's stream: what it has been sent, and what it is sent next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{SpiffeId, TrustDomain};
use countersign_store::{Concern, Cursor, Snapshot, Store};
use countersign_transport::clock::SharedClock;
use countersign_transport::tcp::TlsIdentity;
use countersign_wire::node::{self, FollowResponse};
use countersign_wire::types::Entry;
use countersign_wire::{bundle, entry};
use tokio::sync::mpsc;
use tonic::Status;

use super::hub::{Hub, Membership, Pending};
use crate::api::status;
use crate::policy::gate::{AgentRefusal, judge_agent};

/// Entries in one message; with a few hundred bytes each it stays far below the message limit.
const ENTRIES_PER_MESSAGE: usize = 500;
/// An idle follower is told the newest revision this often, so that its cursor never falls behind the log's trim.
const IDLE_NEWS: Duration = Duration::from_secs(60);
/// While changes keep coming they are collected for this long for each thousand open streams.
const COALESCE_PER_THOUSAND: Duration = Duration::from_millis(5);
const COALESCE_MAX: Duration = Duration::from_millis(250);

/// An agent that follows.
pub(crate) struct Follower {
    pub(crate) identity: Arc<TlsIdentity>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) store: Store,
    pub(crate) hub: Arc<Hub>,
    pub(crate) clock: SharedClock,
}

/// Serves a stream until the agent leaves, its certificate ends, or it may follow no longer.
pub(crate) async fn serve(
    follower: Follower,
    membership: Membership,
    cursor: Option<Cursor>,
    out: mpsc::Sender<Result<FollowResponse, Status>>,
) {
    let mut state = State { follower, federated: BTreeMap::new(), sent: None };
    let result = state.run(&membership, cursor, &out).await;
    if let Err(status) = result {
        let _ = out.send(Err(status)).await;
    }
}

struct State {
    follower: Follower,
    /// Trust domains each delivered entry federates with; only entries that do.
    federated: BTreeMap<Arc<str>, Vec<TrustDomain>>,
    sent: Option<Cursor>,
}

impl State {
    async fn run(
        &mut self,
        membership: &Membership,
        cursor: Option<Cursor>,
        out: &mpsc::Sender<Result<FollowResponse, Status>>,
    ) -> Result<(), Status> {
        let first = self.first(cursor);
        membership.mailbox.mark(|pending| {
            pending.all |= first.all;
            pending.entries.extend(first.entries);
            pending.bundles.extend(first.bundles);
        });
        loop {
            // The cursor first: everything up to it is in the mailbox by then.
            let marked = self.follower.hub.marked();
            let pending = membership.mailbox.take();
            let snapshot = self.follower.store.snapshot();
            self.check(&snapshot)?;
            let news = self.sent != Some(marked.cursor());
            if !pending.is_empty() || news {
                for message in self.messages(&snapshot, &marked, pending) {
                    if out.send(Ok(message)).await.is_err() {
                        return Ok(());
                    }
                }
                self.sent = Some(marked.cursor());
            }
            let idle = self.follower.clock.now().after(IDLE_NEWS).min(self.follower.identity.not_after.after(Duration::from_secs(1)));
            tokio::select! {
                () = membership.mailbox.wake.notified() => {
                    // A single change goes out at once; a fleet-wide one is given a moment to be joined by others.
                    let open = self.follower.hub.open();
                    let window = (COALESCE_PER_THOUSAND * u32::try_from(open / 1000).unwrap_or(u32::MAX)).min(COALESCE_MAX);
                    if !window.is_zero() {
                        tokio::time::sleep(window).await;
                    }
                }
                () = self.follower.clock.sleep_until(idle) => {}
                () = out.closed() => return Ok(()),
            }
        }
    }

    /// Whether the agent may still follow, on this snapshot.
    fn check(&self, snapshot: &Snapshot) -> Result<(), Status> {
        let identity = &self.follower.identity;
        let refuse = |refusal: AgentRefusal| {
            tracing::info!(agent_id = %identity.spiffe_id, reason = refusal.log_line(), "Stream to agent ended");
            status::denied(refusal.reason(), "the agent may follow no longer")
        };
        judge_agent(snapshot.node(&identity.spiffe_id).map(Arc::as_ref), identity, self.follower.clock.now()).map(|_| ()).map_err(refuse)
    }

    /// What a new stream has to look at, given where the agent says it is.
    fn first(&mut self, cursor: Option<Cursor>) -> Pending {
        let snapshot = self.follower.store.snapshot();
        let everything = Pending { all: true, ..Pending::default() };
        let Some(transactions) = cursor.as_ref().and_then(|c| snapshot.since(c)) else { return everything };
        match snapshot.concern_of(&self.follower.identity.spiffe_id, &transactions) {
            Concern::All => everything,
            Concern::Entries(entries) => {
                // The agent holds the rest: remember what of it federates, to know which bundles it uses.
                // What is looked at again is remembered then, so that its bundles are seen to be new.
                for (id, entry) in snapshot.authorized_entries(&self.follower.identity.spiffe_id) {
                    if !entries.contains(&id) {
                        self.remember(&id, &entry);
                    }
                }
                let bundles = transactions
                    .iter()
                    .flat_map(|t| &t.changes)
                    .filter(|(change, _)| change.noun() == countersign_store::Noun::Bundle)
                    .map(|(change, _)| Arc::from(change.key()))
                    .collect();
                Pending { entries, bundles, ..Pending::default() }
            }
        }
    }

    fn remember(&mut self, id: &Arc<str>, entry: &countersign_identity::Entry) {
        if entry.federates_with.is_empty() {
            self.federated.remove(id);
        } else {
            self.federated.insert(Arc::clone(id), entry.federates_with.clone());
        }
    }

    fn uses(&self, trust_domain_name: &str) -> bool {
        trust_domain_name == self.follower.trust_domain.name() || self.federated.values().flatten().any(|td| td.name() == trust_domain_name)
    }

    fn messages(&mut self, snapshot: &Snapshot, marked: &Snapshot, pending: Pending) -> Vec<FollowResponse> {
        let mut messages = if pending.all { self.everything(snapshot) } else { vec![self.difference(snapshot, pending)] };
        let cursor = marked.cursor();
        if let Some(last) = messages.last_mut() {
            last.cursor = Some(node::Cursor { epoch: cursor.epoch.to_vec(), revision: cursor.revision, digest: cursor.digest.to_vec() });
            last.caught_up = true;
        }
        messages
    }

    /// The full state, in pieces; the first piece tells the agent to start over.
    fn everything(&mut self, snapshot: &Snapshot) -> Vec<FollowResponse> {
        self.federated.clear();
        let authorized = snapshot.authorized_entries(&self.follower.identity.spiffe_id);
        for (id, entry) in &authorized {
            self.remember(id, entry);
        }
        let mut names: BTreeSet<String> = self.federated.values().flatten().map(|td| td.name().to_owned()).collect();
        names.insert(self.follower.trust_domain.name().to_owned());
        let bundles = names.iter().filter_map(|name| snapshot.bundle(name)).map(|b| bundle::to_wire(b)).collect();
        let mut messages = vec![FollowResponse { reset: true, bundles, ..FollowResponse::default() }];
        let entries: Vec<Entry> = authorized.values().map(|e| entry::to_wire(e)).collect();
        for piece in entries.chunks(ENTRIES_PER_MESSAGE) {
            match messages.last_mut() {
                Some(last) if last.entries.is_empty() => last.entries = piece.to_vec(),
                _ => messages.push(FollowResponse { entries: piece.to_vec(), ..FollowResponse::default() }),
            }
        }
        messages
    }

    /// What the snapshot says about the keys in the mailbox.
    fn difference(&mut self, snapshot: &Snapshot, pending: Pending) -> FollowResponse {
        let agent: &SpiffeId = &self.follower.identity.spiffe_id.clone();
        let mut response = FollowResponse::default();
        let mut bundles = pending.bundles;
        for id in pending.entries {
            match snapshot.entry(&id).filter(|e| !e.is_alias() && snapshot.is_authorized(agent, e)) {
                Some(found) => {
                    // Bundles the agent has not needed so far go with the entry that needs them.
                    for trust_domain in &found.federates_with {
                        if !self.uses(trust_domain.name()) {
                            bundles.insert(trust_domain.name().into());
                        }
                    }
                    self.remember(&id, found);
                    response.entries.push(entry::to_wire(found));
                }
                None => {
                    for trust_domain in self.federated.remove(&id).into_iter().flatten() {
                        bundles.insert(trust_domain.name().into());
                    }
                    response.removed_entries.push(id.to_string());
                }
            }
        }
        for name in bundles {
            match snapshot.bundle(&name).filter(|_| self.uses(&name)) {
                Some(found) => response.bundles.push(bundle::to_wire(found)),
                None => response.removed_bundles.push(name.to_string()),
            }
        }
        response
    }
}
