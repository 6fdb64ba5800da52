//! The one place where the agent speaks to the server after it has joined: follows the pushed stream, acknowledges, asks
//! for credentials, and keeps the agent's own SVID new.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use countersign_identity::selector::SELECTORS_MAX;
use countersign_identity::{Entry, Selector, Timestamp};
use countersign_plugins::Pending;
use countersign_transport::clock::SharedClock;
use countersign_transport::random::SharedRandom;
use countersign_wire::node::node_client::NodeClient;
use countersign_wire::node::{self as wire, Ack, FollowRequest, FollowResponse, follow_request, issue_request};
use countersign_wire::types::permission_denied_details::Reason;
use countersign_wire::{bundle, denial, entry, id};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::cache::{Cache, Update};
use crate::node::{Node, NodeError, NodeSvid};
use crate::rotate::{Issuer, Rotator};
use crate::state::Files;
use overload::Overloads;

mod overload;

/// First wait after a lost connection; it doubles up to [`RETRY_MAX`], with jitter.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Wait after a failed renewal of the agent's own SVID.
const RENEW_RETRY: Duration = Duration::from_secs(5);
/// Changes are collected this long before they are written to disk.
const PERSIST_DELAY: Duration = Duration::from_millis(500);
/// Acknowledgements are collected this long.
const ACK_DELAY: Duration = Duration::from_millis(20);
/// How long the server may take to issue one credential.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a call waits for the connection of a renewed SVID: it is made at once after the renewal, and takes milliseconds.
const RENEWED_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait after a failed renewal of the agent's own SVID, of which half of its life is left.
const RENEW_RETRY_MAX: Duration = Duration::from_secs(60);

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
    cursor: RwLock<Option<wire::Cursor>>,
    /// Counts connections.
    connections: watch::Sender<u64>,
    overloads: Overloads,
}

#[derive(Default)]
struct Current {
    svid: Option<Arc<NodeSvid>>,
    channel: Option<Channel>,
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
            cursor: RwLock::default(),
            connections: watch::Sender::default(),
            overloads: Overloads::default(),
        }
    }

    /// Takes over what was followed with this SVID before a restart.
    pub(crate) fn restore(&self, svid: &Arc<NodeSvid>) {
        self.current.write().unwrap_or_else(PoisonError::into_inner).svid = Some(Arc::clone(svid));
        if let Some(state) = self.files.follow(&svid.serial_number) {
            let entries = state.entries.len();
            self.cache.apply(update(FollowResponse { reset: true, caught_up: true, ..state.clone() }));
            *self.cursor.write().unwrap_or_else(PoisonError::into_inner) = state.cursor;
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
                    tracing::error!("Agent is banned: removing SVID and shutting down");
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
        tracing::info!(reason = why, "Agent needs to re-attest; will attempt to re-attest");
        let mut retry = RENEW_RETRY;
        let had_ended = self.svid().is_some_and(|s| s.expires_at <= self.clock.now());
        loop {
            if had_ended && self.svid().is_some_and(|s| s.expires_at > self.clock.now()) {
                tracing::info!("The clock was set back, the agent's SVID counts again");
                return Ok(());
            }
            match self.node.attest(self.svid().as_deref()).await {
                Ok(svid) => {
                    tracing::info!(spiffe_id = %svid.id, "Successfully reattested node");
                    // Another node row may mean other entries: nothing of before is taken for granted.
                    *self.cursor.write().unwrap_or_else(PoisonError::into_inner) = None;
                    let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                    current.svid = Some(svid);
                    current.channel = None;
                    return Ok(());
                }
                Err(NodeError::Server(status)) if status.code() == Code::PermissionDenied && status.message().contains("banned") => {
                    tracing::error!("Agent is banned: removing SVID and shutting down");
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
        let (out, requests) = mpsc::channel(4);
        let cursor = self.cursor.read().unwrap_or_else(PoisonError::into_inner).clone();
        let hello = wire::Hello { cursor, agent_version: self.version.clone() };
        let _ = out.send(FollowRequest { step: Some(follow_request::Step::Hello(hello)) }).await;
        let mut client = NodeClient::new(channel).max_decoding_message_size(usize::MAX >> 8);
        let opened = tokio::time::timeout(ISSUE_TIMEOUT, client.follow(ReceiverStream::new(requests))).await;
        let messages = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return ended(&status),
            Err(_) => return Ended::Lost("the server does not answer".to_owned()),
        };
        self.node.standing.connected(self.clock.now());
        self.listen(svid, rotator, retry, messages, out).await
    }

    /// What the server pushes, for as long as it does.
    async fn listen(
        &self,
        svid: &Arc<NodeSvid>,
        rotator: &Arc<Rotator>,
        retry: &mut Duration,
        mut messages: impl Stream<Item = Result<FollowResponse, Status>> + Unpin,
        out: mpsc::Sender<FollowRequest>,
    ) -> Ended {
        let mut renew_again_at = None;
        let mut renew_retry = RENEW_RETRY;
        let mut complete = false;
        let mut acknowledge_at = None;
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(Ok(message)) => {
                        self.heard();
                        *retry = RETRY_FIRST;
                        let caught_up = self.take(message, rotator);
                        if caught_up && !complete {
                            complete = true;
                            rotator.retry_now();
                        }
                        let _ = self.acknowledge(&out).await;
                    }
                    None => return Ended::Lost("the server ended the stream".to_owned()),
                    Some(Err(status)) => return ended(&status),
                },
                // Progress is told a little later, in one message, and nothing waits for that.
                () = self.progress.notified(), if acknowledge_at.is_none() => acknowledge_at = Some(Instant::now() + ACK_DELAY),
                () = tokio::time::sleep_until(acknowledge_at.unwrap_or_else(Instant::now)), if acknowledge_at.is_some() => {
                    acknowledge_at = None;
                    let _ = self.acknowledge(&out).await;
                }
                () = self.renewal_due(svid, renew_again_at) => match self.renew(svid).await {
                    Renewal::Done => return Ended::Renewed,
                    Renewal::Refused(reason) => return Ended::Refused(reason),
                    Renewal::Failed if svid.expires_at <= self.clock.now() => return Ended::Lost("the agent's SVID has ended".to_owned()),
                    // Changes arrive meanwhile.
                    Renewal::Failed => {
                        let wait = renew_retry.mul_f64(0.8 + 0.4 * self.random.fraction());
                        renew_again_at = Some(self.clock.steady() + wait);
                        renew_retry = (renew_retry * 2).min(RENEW_RETRY_MAX);
                    }
                },
            }
        }
    }

    /// Returns when the SVID is to be renewed: at its time, and after a failure once the wait is over, by steady time.
    async fn renewal_due(&self, svid: &NodeSvid, again_at: Option<Duration>) {
        match again_at {
            Some(at) => self.clock.sleep_for(at.saturating_sub(self.clock.steady())).await,
            None => self.clock.sleep_until(svid.renew_at).await,
        }
    }

    fn take(&self, message: FollowResponse, rotator: &Arc<Rotator>) -> bool {
        let cursor = message.cursor.clone();
        let changed = message.reset
            || !(message.entries.is_empty()
                && message.removed_entries.is_empty()
                && message.bundles.is_empty()
                && message.removed_bundles.is_empty());
        let (entries, removed) = (message.entries.len(), message.removed_entries.len());
        let applied = self.cache.apply(update(message));
        if applied.caught_up && cursor.is_some() {
            *self.cursor.write().unwrap_or_else(PoisonError::into_inner) = cursor;
        }
        if changed {
            tracing::debug!(entries, removed, revision = self.cache.revision(), "Entries and bundles updated");
            self.dirty.notify_one();
        }
        rotator.want_entries(&applied.wanted);
        applied.caught_up
    }

    async fn acknowledge(&self, out: &mpsc::Sender<FollowRequest>) -> Result<(), ()> {
        let applied = self.cache.revision();
        let ack = Ack {
            applied,
            persisted: self.persisted.load(std::sync::atomic::Ordering::Relaxed),
            delivered: self.cache.subscribers.delivered().unwrap_or(applied),
        };
        out.send(FollowRequest { step: Some(follow_request::Step::Ack(ack)) }).await.map_err(|_| ())
    }

    async fn renew(&self, svid: &Arc<NodeSvid>) -> Renewal {
        match self.node.renew(svid).await {
            Ok(renewed) => {
                // What is followed stays. Its file is bound to both serial numbers, and from the next writing on to the new one.
                // Another agent is told everything anew: a node whose certificate was replaced may be one.
                if renewed.id != svid.id {
                    tracing::warn!(before = %svid.id, now = %renewed.id, "Re-attestation made the node another agent");
                    *self.cursor.write().unwrap_or_else(PoisonError::into_inner) = None;
                }
                self.current.write().unwrap_or_else(PoisonError::into_inner).svid = Some(renewed);
                self.dirty.notify_one();
                Renewal::Done
            }
            Err(NodeError::Server(status)) if status.code() == Code::PermissionDenied => match ended(&status) {
                Ended::Refused(reason) => Renewal::Refused(reason),
                _ => {
                    tracing::error!(error = status.message(), hint = self.node.how_to_join(), "Could not rotate agent SVID");
                    let reason = format!("could not renew the agent's own SVID: {}: {}", status.code(), status.message());
                    self.node.standing.failed(&reason, self.clock.now());
                    Renewal::Failed
                }
            },
            Err(error) => {
                tracing::error!(%error, "Could not rotate agent SVID");
                self.node.standing.failed(&format!("could not renew the agent's own SVID: {error}"), self.clock.now());
                Renewal::Failed
            }
        }
    }

    /// Writes what is followed to disk whenever it has changed.
    async fn persist(&self) -> std::convert::Infallible {
        loop {
            self.dirty.notified().await;
            tokio::time::sleep(PERSIST_DELAY).await;
            let Some(svid) = self.svid() else { continue };
            let cursor = self.cursor.read().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(cursor) = cursor else { continue };
            let revision = cursor.revision;
            let state = FollowResponse {
                cursor: Some(cursor),
                entries: self.cache.entries().iter().map(|e| entry::to_wire(e)).collect(),
                bundles: self.cache.bundles().iter().map(|b| bundle::to_wire(b)).collect(),
                ..FollowResponse::default()
            };
            let node = Arc::clone(&self.node);
            match tokio::task::spawn_blocking(move || node.keep_followed(&svid, &state)).await {
                Ok(Ok(true)) => {
                    self.persisted.store(revision, std::sync::atomic::Ordering::Relaxed);
                    self.progressed();
                }
                // The SVID was replaced meanwhile; whoever did that has asked for this once more.
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::error!(%error, "Could not write down what is followed"),
                Err(error) => tracing::error!(%error, "BUG: writing down what is followed has failed"),
            }
        }
    }

    /// Asks for a JWT-SVID for these audiences; returns the token and its end.
    pub(crate) async fn issue_jwt(
        &self,
        entry: &Entry,
        audience: Vec<String>,
        facts: &[Selector],
    ) -> Result<(String, Timestamp, Timestamp), Status> {
        let credential = issue_request::Credential::Jwt(wire::JwtParams { audience });
        match self.issue(entry, credential, None, facts).await? {
            Some(wire::issue_response::Credential::Jwt(svid)) => {
                Ok((svid.token, Timestamp::from_secs(svid.issued_at), Timestamp::from_secs(svid.expires_at)))
            }
            _ => Err(Status::internal("the server's answer is not a JWT-SVID")),
        }
    }

    async fn issue(
        &self,
        entry: &Entry,
        credential: issue_request::Credential,
        held: Option<Timestamp>,
        facts: &[Selector],
    ) -> Result<Option<wire::issue_response::Credential>, Status> {
        tracing::trace!(hop = "sends the request");
        let overload = self.overloads.of(&credential);
        let message = wire::IssueRequest {
            entry_id: entry.id.clone(),
            entry_revision: entry.revision_number,
            credential: Some(credential),
            held_expires_at: held.map_or(0, Timestamp::secs),
            // A process may have more groups than a message may have selectors; they are evidence and decide nothing.
            facts: id::selectors_to_wire(facts.get(..SELECTORS_MAX).unwrap_or(facts)),
        };
        let ask = |channel| {
            let mut request = tonic::Request::new(message.clone());
            request.set_timeout(ISSUE_TIMEOUT);
            async move { NodeClient::new(channel).issue(request).await }
        };
        overload.spare_the_server(Instant::now())?;
        let unconnected = || Status::unavailable("there is no connection to the server");
        let (channel, connection) = self.channel().ok_or_else(unconnected)?;
        let answer = match ask(channel).await {
            // The agent's SVID was renewed while the call was under way on the connection of the one before: the new one is
            // used for the first time in that moment, or will be soon.
            Err(status) if status.code() == Code::PermissionDenied => {
                let patience = if denial::from_wire(&status) == Some(Reason::AgentNotActive) { RENEWED_TIMEOUT } else { Duration::ZERO };
                match self.next_channel(connection, patience).await {
                    Some(renewed) => ask(renewed).await,
                    None => Err(status),
                }
            }
            answer => answer,
        };
        overload.note(answer.as_ref().err(), Instant::now(), &self.random);
        let credential = answer?.into_inner().credential;
        self.heard();
        Ok(credential)
    }
}

impl Issuer for Sync {
    fn issue_x509<'a>(
        &'a self,
        entry: &'a Entry,
        csr: Vec<u8>,
        held: Option<Timestamp>,
        facts: &'a [Selector],
    ) -> Pending<'a, Result<Vec<Vec<u8>>, Status>> {
        Box::pin(async move {
            match self.issue(entry, issue_request::Credential::X509Csr(csr), held, facts).await? {
                Some(wire::issue_response::Credential::X509(svid)) => Ok(svid.cert_chain),
                _ => Err(Status::internal("the server's answer is not an X509-SVID")),
            }
        })
    }
}

enum Renewal {
    Done,
    Refused(Reason),
    Failed,
}

/// What a status says about the agent. Only an explicit reason counts as a refusal: an agent must not give up its
/// identity because of a server that is confused.
fn ended(status: &Status) -> Ended {
    match denial::from_wire(status) {
        Some(reason) => Ended::Refused(reason),
        None => Ended::Lost(format!("{}: {}", status.code(), status.message())),
    }
}

/// What a message says. An entry or bundle that this agent cannot read is left out, and said: the others still count.
fn update(message: FollowResponse) -> Update {
    fn read<W, T>(items: &[W], read: impl Fn(&W) -> Result<T, countersign_wire::ConvertError>) -> Vec<Arc<T>> {
        let usable = |item| match read(item) {
            Ok(item) => Some(Arc::new(item)),
            Err(error) => {
                tracing::warn!(%error, "The server sent what this agent cannot read, leaving it out");
                None
            }
        };
        items.iter().filter_map(usable).collect()
    }
    Update {
        reset: message.reset,
        entries: read(&message.entries, entry::from_wire),
        removed_entries: message.removed_entries,
        bundles: read(&message.bundles, bundle::from_wire),
        removed_bundles: message.removed_bundles,
        revision: message.cursor.map(|c| c.revision),
        caught_up: message.caught_up,
    }
}

#[cfg(test)]
mod tests;
