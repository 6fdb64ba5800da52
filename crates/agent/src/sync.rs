//! The one place where the agent speaks to the server after it has joined: follows it, asks for credentials, and keeps the
//! agent's own SVID new.
//!
//! A server of ours is followed by the stream it pushes (`stream`). One of SPIRE's does not know that service; it says so, and
//! is asked at intervals instead (`poll`, `authorized`), and for credentials by SPIRE's calls (`batch`). Which of the two it is
//! nobody else in the agent knows.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_transport::clock::SharedClock;
use countersign_transport::random::SharedRandom;
use countersign_wire::node::{self as wire, FollowResponse};
use countersign_wire::types::permission_denied_details::Reason;
use countersign_wire::{bundle, denial, entry};
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::cache::{Cache, Update};
use crate::node::{Node, NodeError, NodeSvid};
use crate::rotate::Rotator;
use crate::state::Files;
use batch::Batches;
use overload::Overloads;
use poll::Polling;
use renewals::Renewals;
use stream::update;

mod authorized;
mod batch;
mod issue;
mod overload;
mod poll;
mod renewals;
mod stream;
mod taint;

/// First wait after a lost connection; it doubles up to [`RETRY_MAX`], with jitter.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// First wait after a failed attempt to attest again; it doubles up to [`RETRY_MAX`], with jitter.
const REATTEST_RETRY: Duration = Duration::from_secs(5);
/// Changes are collected this long before they are written to disk.
const PERSIST_DELAY: Duration = Duration::from_millis(500);
/// How long the server may take to issue one credential, or to begin a stream.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the agent cannot go on by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    Banned,
    MustJoinAgain(String),
}

/// The agent's line to its server.
pub(crate) struct Sync {
    pub(crate) node: Arc<Node>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) files: Files,
    pub(crate) clock: SharedClock,
    pub(crate) random: SharedRandom,
    pub(crate) version: String,
    current: RwLock<Current>,
    progress: Notify,
    persisted: std::sync::atomic::AtomicU64,
    last_contact: std::sync::atomic::AtomicI64,
    dirty: Notify,
    place: RwLock<Place>,
    /// Counts connections.
    connections: watch::Sender<u64>,
    overloads: Overloads,
    batches: Batches,
    /// Tainted X.509 authorities that were dealt with, DER.
    tainted: Mutex<BTreeSet<Vec<u8>>>,
    /// Told that the agent's own SVID is to be renewed before its time.
    renew_now: Notify,
}

#[derive(Default)]
struct Current {
    svid: Option<Arc<NodeSvid>>,
    channel: Option<Channel>,
    speaks: Speaks,
}

/// How the server was found to speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Speaks {
    /// It has `countersign.agent.v1`, or was not asked yet.
    #[default]
    Countersign,
    /// It has SPIRE's services only.
    Spire,
}

/// How far what is known came from the server.
#[derive(Debug, Clone, Default)]
enum Place {
    /// What is known may be another agent's, or not all.
    #[default]
    Unknown,
    /// All of it, from a server that has no places to tell.
    Polled,
    /// All of it, up to here.
    At(wire::Cursor),
}

impl Place {
    fn cursor(self) -> Option<wire::Cursor> {
        match self {
            Self::At(cursor) => Some(cursor),
            Self::Unknown | Self::Polled => None,
        }
    }
}

/// Why a stream ended.
enum Ended {
    /// The connection is gone, or the server is: try again.
    Lost(String),
    /// The agent's SVID counts no longer.
    Refused(Reason),
    /// The SVID was renewed: connect anew with it.
    Renewed,
    /// Another bundle was taken: the SVID is nothing to its server.
    StartOver,
}

impl Sync {
    pub(crate) fn new(node: Arc<Node>, cache: Arc<Cache>, files: Files, clock: SharedClock, random: SharedRandom, version: String) -> Self {
        Self {
            node,
            cache,
            files,
            clock,
            random,
            version,
            current: RwLock::default(),
            progress: Notify::new(),
            persisted: std::sync::atomic::AtomicU64::new(0),
            last_contact: std::sync::atomic::AtomicI64::new(0),
            dirty: Notify::new(),
            place: RwLock::default(),
            connections: watch::Sender::default(),
            overloads: Overloads::default(),
            batches: Batches::default(),
            tainted: Mutex::default(),
            renew_now: Notify::new(),
        }
    }

    /// Takes over what was followed with this SVID before a restart.
    pub(crate) fn restore(&self, svid: &Arc<NodeSvid>) {
        self.current.write().unwrap_or_else(PoisonError::into_inner).svid = Some(Arc::clone(svid));
        if let Some(state) = self.files.follow(&svid.serial_number) {
            let entries = state.entries.len();
            self.cache.apply(update(FollowResponse { reset: true, caught_up: true, ..state.clone() }));
            self.set_place(state.cursor.map_or(Place::Polled, Place::At));
            tracing::info!(entries, revision = self.cache.revision(), "Entries and bundles loaded");
        }
    }

    /// The agent's SVID now.
    pub(crate) fn svid(&self) -> Option<Arc<NodeSvid>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).svid.clone()
    }

    fn channel(&self) -> Option<(Channel, u64)> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock under which both change.
        let connection = *self.connections.borrow();
        Some((current.channel.clone()?, connection))
    }

    fn speaks(&self) -> Speaks {
        self.current.read().unwrap_or_else(PoisonError::into_inner).speaks
    }

    /// Notes what the server speaks, and says it where that is news.
    fn found_to_speak(&self, speaks: Speaks) {
        let before = std::mem::replace(&mut self.current.write().unwrap_or_else(PoisonError::into_inner).speaks, speaks);
        match (before, speaks) {
            (Speaks::Countersign, Speaks::Spire) => {
                tracing::info!("The server does not push changes, asking for them at intervals as SPIRE's agents do");
            }
            (Speaks::Spire, Speaks::Countersign) => tracing::info!("The server pushes changes, following it"),
            _ => {}
        }
    }

    fn place(&self) -> Place {
        self.place.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_place(&self, place: Place) {
        *self.place.write().unwrap_or_else(PoisonError::into_inner) = place;
    }

    /// The connection after this one: that of the agent's renewed SVID, if there is one by now or soon.
    async fn next_channel(&self, connection: u64, patience: Duration) -> Option<Channel> {
        let mut connections = self.connections.subscribe();
        let waited = tokio::time::timeout(patience, connections.wait_for(|now| *now != connection)).await;
        waited.ok()?.ok()?;
        self.channel().map(|(channel, _)| channel)
    }

    /// When the server was last heard of.
    pub(crate) fn last_contact(&self) -> Timestamp {
        Timestamp::from_millis(self.last_contact.load(std::sync::atomic::Ordering::Relaxed))
    }

    fn heard(&self) {
        self.last_contact.store(self.clock.now().millis(), std::sync::atomic::Ordering::Relaxed);
    }

    /// Tells that something came further: persisted, or delivered to a stream.
    pub(crate) fn progressed(&self) {
        self.progress.notify_one();
    }

    /// Follows the server until the agent cannot go on.
    pub(crate) async fn run(self: Arc<Self>, rotator: Arc<Rotator>) -> Stop {
        tokio::select! {
            stop = self.follow_for_ever(&rotator) => stop,
            // Ends with the agent, so that no file is written after the lock of its directory is given back.
            never = self.persist() => match never {},
        }
    }

    async fn follow_for_ever(&self, rotator: &Arc<Rotator>) -> Stop {
        let mut retry = RETRY_FIRST;
        loop {
            let Some(svid) = self.svid().filter(|s| s.expires_at > self.clock.now()) else {
                match self.join_again("its SVID has ended").await {
                    Ok(()) => continue,
                    Err(stop) => return stop,
                }
            };
            let ended = self.follow(&svid, rotator, &mut retry).await;
            match &ended {
                Ended::Renewed | Ended::StartOver => {}
                Ended::Lost(reason) => self.node.standing.lost(reason, self.clock.now()),
                Ended::Refused(reason) => {
                    self.node.standing.lost(&format!("the server refuses this agent: {}", reason.as_str_name()), self.clock.now());
                }
            }
            match ended {
                Ended::Renewed => {}
                Ended::Lost(reason) => {
                    tracing::warn!(reason, retry_interval = ?retry, "Lost the server, serving what is held");
                    let wait = retry.mul_f64(0.8 + 0.4 * self.random.fraction());
                    self.clock.sleep_for(wait).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
                // An identity is not given up because two clocks differ.
                Ended::Refused(Reason::AgentExpired) if svid.expires_at > self.clock.now() => {
                    tracing::warn!(expires_at = %svid.expires_at, "The server says the agent's SVID has ended; do the clocks differ?");
                    self.clock.sleep_for(retry).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
                Ended::Refused(Reason::AgentBanned) => {
                    tracing::warn!("Agent is banned: removing SVID and shutting down");
                    self.forget();
                    return Stop::Banned;
                }
                Ended::StartOver => match self.join_again("the server has other authorities").await {
                    Ok(()) => {}
                    Err(stop) => return stop,
                },
                Ended::Refused(reason) => match self.join_again(reason.as_str_name()).await {
                    Ok(()) => {}
                    Err(stop) => return stop,
                },
            }
        }
    }

    /// Attests again, where that is possible; a token works only once.
    async fn join_again(&self, why: &str) -> Result<(), Stop> {
        tracing::warn!(error = why, "Agent needs to re-attest; will attempt to re-attest");
        let mut retry = REATTEST_RETRY;
        let had_ended = self.svid().is_some_and(|s| s.expires_at <= self.clock.now());
        loop {
            if had_ended && self.svid().is_some_and(|s| s.expires_at > self.clock.now()) {
                tracing::info!("The clock was set back, the agent's SVID counts again");
                return Ok(());
            }
            match self.node.attest(self.svid().as_deref()).await {
                Ok(svid) => {
                    // Another node row may mean other entries: nothing of before is taken for granted.
                    self.set_place(Place::Unknown);
                    let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                    current.svid = Some(svid);
                    current.channel = None;
                    return Ok(());
                }
                Err(NodeError::Server(status)) if status.code() == Code::PermissionDenied && status.message().contains("banned") => {
                    tracing::warn!("Agent is banned: removing SVID and shutting down");
                    self.forget();
                    return Err(Stop::Banned);
                }
                Err(NodeError::Server(status))
                    if matches!(status.code(), Code::InvalidArgument | Code::PermissionDenied | Code::FailedPrecondition) =>
                {
                    tracing::error!(error = status.message(), "Agent failed re-attestation; removing SVID and shutting down");
                    self.forget();
                    return Err(Stop::MustJoinAgain(format!("{} ({why}); {}", status.message(), self.node.how_to_join())));
                }
                Err(error @ (NodeError::Attestor(_) | NodeError::State(_) | NodeError::Bootstrap(_))) if !error.may_pass() => {
                    tracing::error!(%error, "Agent failed re-attestation; removing SVID and shutting down");
                    self.forget();
                    return Err(Stop::MustJoinAgain(format!("{error} ({why}); {}", self.node.how_to_join())));
                }
                Err(error) => {
                    tracing::error!(%error, retry_interval = ?retry, "Could not reattest agent");
                    self.node.standing.failed(&format!("could not attest again: {error}"), self.clock.now());
                    // Jitter: agents whose node rows went together must not ask in step.
                    self.clock.sleep_for(retry.mul_f64(0.8 + 0.4 * self.random.fraction())).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    fn forget(&self) {
        if let Err(error) = self.node.forget(self.svid().as_deref()) {
            tracing::error!(%error, "Could not remove the SVID from disk");
        }
    }

    /// One connection, from its first message to its end.
    async fn follow(&self, svid: &Arc<NodeSvid>, rotator: &Arc<Rotator>, retry: &mut Duration) -> Ended {
        let channel = match self.node.connect(Some(svid)).await {
            Ok(channel) => channel,
            Err(NodeError::StartOver) => return Ended::StartOver,
            Err(error) => return Ended::Lost(error.to_string()),
        };
        // From here on calls use the new connection: once the server has seen the new SVID, the one before counts no longer.
        {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            current.channel = Some(channel.clone());
            self.connections.send_modify(|connection| *connection += 1);
        }
        // Looked at here, because an attestation or a renewal may have taken the other bundle as well as this connection.
        if self.node.has_changed_authorities() {
            // What the authorities of before signed proves nothing to whoever knows the others only.
            let ids: Vec<Arc<str>> = self.cache.svids().into_iter().map(|(id, _)| id).collect();
            rotator.replace(&ids);
        }
        let mut renewals = Renewals::of(svid);
        let mut polling = Polling::begin(self.clock.steady(), self.node.sync_interval);
        loop {
            match self.open_stream(channel.clone()).await {
                Ok((messages, out)) => {
                    self.found_to_speak(Speaks::Countersign);
                    self.node.standing.connected(self.clock.now());
                    return self.listen(&mut renewals, rotator, retry, messages, out).await;
                }
                Err(status) if status.code() == Code::Unimplemented => self.found_to_speak(Speaks::Spire),
                Err(status) => return ended(&status),
            }
            if let Some(ended) = self.poll(&channel, &mut polling, &mut renewals, rotator, retry).await {
                return ended;
            }
        }
    }

    /// Applies what the server said, which came this far. Says whether it is complete.
    fn take(&self, update: Update, place: Place, rotator: &Arc<Rotator>) -> bool {
        let changed = update.reset
            || !(update.entries.is_empty()
                && update.removed_entries.is_empty()
                && update.bundles.is_empty()
                && update.removed_bundles.is_empty());
        let (entries, removed) = (update.entries.len(), update.removed_entries.len());
        let applied = self.cache.apply(update);
        if applied.caught_up && !matches!(place, Place::Unknown) {
            self.set_place(place);
        }
        if changed {
            tracing::debug!(entries, removed, revision = self.cache.revision(), "Entries and bundles updated");
            self.dirty.notify_one();
        }
        rotator.want_entries(&applied.wanted);
        if applied.caught_up {
            self.look_for_taints(rotator);
        }
        applied.caught_up
    }

    /// Writes what is followed to disk whenever it has changed.
    async fn persist(&self) -> std::convert::Infallible {
        loop {
            self.dirty.notified().await;
            tokio::time::sleep(PERSIST_DELAY).await;
            let Some(svid) = self.svid() else { continue };
            let cursor = match self.place() {
                Place::Unknown => continue,
                place => place.cursor(),
            };
            let revision = cursor.as_ref().map(|c| c.revision);
            let state = FollowResponse {
                cursor,
                entries: self.cache.entries().iter().map(|e| entry::to_wire(e)).collect(),
                bundles: self.cache.bundles().iter().map(|b| bundle::to_wire(b)).collect(),
                ..FollowResponse::default()
            };
            let node = Arc::clone(&self.node);
            match tokio::task::spawn_blocking(move || node.keep_followed(&svid, &state)).await {
                Ok(Ok(true)) => {
                    if let Some(revision) = revision {
                        self.persisted.store(revision, std::sync::atomic::Ordering::Relaxed);
                    }
                    self.progressed();
                }
                // The SVID was replaced meanwhile; whoever did that has asked for this once more.
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::error!(%error, "Could not write down what is followed"),
                Err(error) => tracing::error!(%error, "BUG: writing down what is followed has failed"),
            }
        }
    }
}

/// What a status says about the agent. Only an explicit reason counts as a refusal: an agent must not give up its
/// identity because of a server that is confused.
fn ended(status: &Status) -> Ended {
    match denial::from_wire(status) {
        Some(reason) => Ended::Refused(reason),
        None => Ended::Lost(format!("{}: {}", status.code(), status.message())),
    }
}

#[cfg(test)]
mod tests;
