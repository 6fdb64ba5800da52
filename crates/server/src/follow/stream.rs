//! One agent's stream: what it has been sent, and what it is sent next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{SpiffeId, TrustDomain};
use countersign_store::{Before, Concern, Cursor, Noun, Snapshot, Store};
use countersign_transport::clock::SharedClock;
use countersign_transport::limits::MESSAGE_BYTES_MAX;
use countersign_transport::tcp::TlsIdentity;
use countersign_wire::node::{self, FollowResponse};
use countersign_wire::{bundle, entry};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::Status;

use super::hub::{Hub, Membership, Pending};
use crate::api::status;
use crate::policy::gate::{AgentRefusal, judge_agent};

/// Entries, bundles and removals in one message; agents apply a message at a time.
const ITEMS_PER_MESSAGE: usize = 500;
/// Bytes of them in one message: a quarter of what clients accept, and an item more.
const BYTES_PER_MESSAGE: usize = MESSAGE_BYTES_MAX / 4;
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
    let mut state = State { follower, federated: BTreeMap::new(), held: BTreeSet::new(), sent: None };
    let result = state.run(&membership, cursor, &out).await;
    if let Err(status) = result {
        let _ = out.send(Err(status)).await;
    }
}

struct State {
    follower: Follower,
    /// Trust domains each delivered entry federates with; only entries that do.
    federated: BTreeMap<Arc<str>, Vec<TrustDomain>>,
    /// Trust domains whose bundle the agent holds.
    held: BTreeSet<String>,
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
            if self.follower.hub.is_closed() {
                return Err(Status::unavailable("the server is stopping"));
            }
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
            // One timer to the next thing that can happen by itself. By steady time, which needs no looking at the time of day
            // in between: with ten thousand streams that was two thousand wake-ups a second. Where the clock is set forward
            // past the certificate's end, that is noticed with the next news.
            let end = self.follower.identity.not_after.after(Duration::from_secs(1));
            let idle = end.since(self.follower.clock.now()).min(IDLE_NEWS);
            tokio::select! {
                () = membership.mailbox.wake.notified() => {
                    // A single change goes out at once; a fleet-wide one is given a moment to be joined by others.
                    let open = self.follower.hub.open();
                    let window = (COALESCE_PER_THOUSAND * u32::try_from(open / 1000).unwrap_or(u32::MAX)).min(COALESCE_MAX);
                    if !window.is_zero() {
                        tokio::time::sleep(window).await;
                    }
                }
                () = self.follower.clock.sleep_for(idle) => {}
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
                // The agent holds the rest as it is, and of what has changed what stood there before the first change:
                // so it is known which bundles it holds, and which are new to it.
                let agent = self.follower.identity.spiffe_id.clone();
                for (id, entry) in snapshot.authorized_entries(&agent) {
                    if !entries.contains(&id) {
                        self.remember(&id, &entry);
                    }
                }
                let mut seen = BTreeSet::new();
                for (change, before) in transactions.iter().flat_map(|t| &t.changes).filter(|(c, _)| c.noun() == Noun::Entry) {
                    if seen.insert(change.key())
                        && let Before::Entry(old) = before
                        && old.parent_id == agent
                    {
                        self.remember(&change.key().into(), old);
                    }
                }
                self.held = self.used();
                let bundles = transactions
                    .iter()
                    .flat_map(|t| &t.changes)
                    .filter(|(change, _)| change.noun() == Noun::Bundle)
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

    /// Trust domains whose bundles the delivered entries need, the own one among them.
    fn used(&self) -> BTreeSet<String> {
        let foreign = self.federated.values().flatten().map(|td| td.name().to_owned());
        foreign.chain([self.follower.trust_domain.name().to_owned()]).collect()
    }

    fn messages(&mut self, snapshot: &Snapshot, marked: &Snapshot, pending: Pending) -> Vec<FollowResponse> {
        let mut messages = if pending.all { self.everything(snapshot) } else { self.difference(snapshot, pending) };
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
        let bundles: Vec<_> = self.used().iter().filter_map(|name| snapshot.bundle(name)).map(|b| bundle::to_wire(b)).collect();
        self.held = bundles.iter().map(|b| b.trust_domain.clone()).collect();
        let mut pieces = Pieces { current: FollowResponse { reset: true, ..FollowResponse::default() }, ..Pieces::default() };
        bundles.into_iter().for_each(|b| pieces.room(b.encoded_len()).bundles.push(b));
        for found in authorized.values().map(|e| entry::to_wire(e)) {
            pieces.room(found.encoded_len()).entries.push(found);
        }
        pieces.finish()
    }

    /// What the snapshot says about the keys in the mailbox.
    fn difference(&mut self, snapshot: &Snapshot, pending: Pending) -> Vec<FollowResponse> {
        let agent: &SpiffeId = &self.follower.identity.spiffe_id.clone();
        let (mut put, mut removed) = (Vec::new(), Vec::new());
        let mut looked_at = pending.bundles.clone();
        for id in pending.entries {
            // Bundles may come with an entry that needs them and go with the last that did.
            looked_at.extend(self.federated.remove(&id).into_iter().flatten().map(|td| td.name().into()));
            match snapshot.entry(&id).filter(|e| !e.is_alias() && snapshot.is_authorized(agent, e)) {
                Some(found) => {
                    looked_at.extend(found.federates_with.iter().map(|td| td.name().into()));
                    self.remember(&id, found);
                    put.push(entry::to_wire(found));
                }
                None => removed.push(id.to_string()),
            }
        }
        let used = self.used();
        let mut pieces = Pieces::default();
        let mut dropped = Vec::new();
        for name in looked_at {
            let found = snapshot.bundle(&name).filter(|_| used.contains(&*name));
            let known = if found.is_some() { !self.held.insert(name.to_string()) } else { self.held.remove(&*name) };
            match found {
                Some(found) if !known || pending.bundles.contains(&name) => {
                    let found = bundle::to_wire(found);
                    pieces.room(found.encoded_len()).bundles.push(found);
                }
                Some(_) => {}
                None if known => dropped.push(name.to_string()),
                None => {}
            }
        }
        put.into_iter().for_each(|e| pieces.room(e.encoded_len()).entries.push(e));
        removed.into_iter().for_each(|id| pieces.room(id.len()).removed_entries.push(id));
        dropped.into_iter().for_each(|name| pieces.room(name.len()).removed_bundles.push(name));
        pieces.finish()
    }
}

/// What is to be sent, cut into messages that every agent accepts.
#[derive(Default)]
struct Pieces {
    done: Vec<FollowResponse>,
    current: FollowResponse,
    items: usize,
    bytes: usize,
}

impl Pieces {
    /// The message with room for an item of so many bytes.
    fn room(&mut self, bytes: usize) -> &mut FollowResponse {
        if self.items >= ITEMS_PER_MESSAGE || (self.items > 0 && self.bytes + bytes > BYTES_PER_MESSAGE) {
            self.done.push(std::mem::take(&mut self.current));
            (self.items, self.bytes) = (0, 0);
        }
        self.items += 1;
        self.bytes += bytes;
        &mut self.current
    }

    fn finish(mut self) -> Vec<FollowResponse> {
        self.done.push(self.current);
        self.done
    }
}
