//! Following a server of SPIRE's, which pushes nothing: entries and bundles are asked for at intervals, as SPIRE's agents do.
//! What comes of it is the same update of the cache that the stream brings.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Bundle, Entry, TrustDomain};
use countersign_wire::agent::PostStatusRequest;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::bundle_api::{GetBundleRequest, GetFederatedBundleRequest};
use countersign_wire::{bundle, denial, types};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::authorized::{Authorized, authorized};
use super::renewals::Renewals;
use super::{Ended, Place, RETRY_FIRST, Sync};
use crate::cache::Update;
use crate::rotate::Rotator;

/// Jitter of the interval, on both sides; SPIRE's number.
const JITTER: f64 = 0.1;
/// How the wait grows with each failure, and to what; SPIRE's numbers, so that a server in trouble is asked no more than it is used to.
const GROWTH: f64 = 1.5;
const INTERVALS_MAX: u32 = 48;
const INTERVAL_MAX: Duration = Duration::from_secs(8 * 60);
/// How long one round may take, entries and bundles together; SPIRE's number.
const ROUND_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the stream is tried again. A connection is made anew unseen, so a server that was swapped for one of ours between
/// two rounds shows itself only so; one refused call in a minute is nothing beside the rounds.
const LOOK_FOR_STREAM: Duration = Duration::from_secs(60);
/// Bundles of other trust domains asked for at once; SPIRE's number.
const BUNDLES_AT_ONCE: usize = 10;
/// Longest message of a bundle taken: that of the most authorities a bundle may have.
const BUNDLE_MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How it goes with one connection to a server of SPIRE's.
pub(super) struct Polling {
    /// Steady time of the next round.
    next_at: Duration,
    interval: Duration,
    complete: bool,
    told_version: bool,
    /// The server is too old for `SyncAuthorizedEntries`.
    only_whole_lists: bool,
}

/// A round that came to nothing.
struct Failure {
    what: &'static str,
    status: Status,
}

impl Failure {
    fn of(what: &'static str) -> impl Fn(Status) -> Self {
        move |status| Self { what, status }
    }

    fn text(&self) -> String {
        format!("{}: {}: {}", self.what, self.status.code(), self.status.message())
    }
}

impl Polling {
    /// The first round is due at once.
    pub(super) fn begin(now: Duration, interval: Duration) -> Self {
        Self { next_at: now, interval, complete: false, told_version: false, only_whole_lists: false }
    }
}

impl Sync {
    /// Asks at intervals until the connection ends, or for nothing, when it is time to look for the stream again.
    pub(super) async fn poll(
        &self,
        channel: &Channel,
        polling: &mut Polling,
        renewals: &mut Renewals<'_>,
        rotator: &Arc<Rotator>,
        retry: &mut Duration,
    ) -> Option<Ended> {
        let usual = self.node.sync_interval;
        let look_at = self.clock.steady() + LOOK_FOR_STREAM;
        loop {
            tokio::select! {
                () = self.clock.sleep_for(polling.next_at.saturating_sub(self.clock.steady())) => {}
                () = self.clock.sleep_for(look_at.saturating_sub(self.clock.steady())) => return None,
                () = renewals.due(self) => match renewals.renew(self).await {
                    Some(ended) => return Some(ended),
                    None => continue,
                },
            }
            let late = |_| Err(Failure::of("failed to fetch authorized entries")(Status::deadline_exceeded("the server takes too long")));
            match tokio::time::timeout(ROUND_TIMEOUT, self.round(channel, polling, rotator)).await.unwrap_or_else(late) {
                Ok(()) => {
                    self.heard();
                    self.node.standing.connected(self.clock.now());
                    *retry = RETRY_FIRST;
                    polling.interval = usual;
                    if !polling.complete {
                        polling.complete = true;
                        rotator.retry_now();
                    }
                }
                Err(failure) => {
                    if let Some(reason) = denial::from_wire(&failure.status) {
                        tracing::error!(error = failure.text(), "Synchronize failed");
                        return Some(Ended::Refused(reason));
                    }
                    // Made here, not sent by the server: the connection is gone.
                    if failure.status.source().is_some() {
                        return Some(Ended::Lost(failure.text()));
                    }
                    polling.interval = polling.interval.mul_f64(GROWTH).min(usual.saturating_mul(INTERVALS_MAX).min(INTERVAL_MAX));
                    tracing::error!(error = failure.text(), retry_interval = ?polling.interval, "Synchronize failed");
                    self.node.standing.failed(&failure.text(), self.clock.now());
                }
            }
            let jitter = 1.0 - JITTER + 2.0 * JITTER * self.random.fraction();
            polling.next_at = self.clock.steady() + polling.interval.mul_f64(jitter);
        }
    }

    /// Asks once for everything, and applies what changed. A round that fails changes nothing.
    async fn round(&self, channel: &Channel, polling: &mut Polling, rotator: &Arc<Rotator>) -> Result<(), Failure> {
        if !polling.told_version {
            polling.told_version = true;
            let request = PostStatusRequest { agent_version: self.version.clone(), ..PostStatusRequest::default() };
            // Only for people to read: a server that does not know the call is as good.
            if let Err(status) = AgentClient::new(channel.clone()).post_status(request).await {
                tracing::error!(agent_version = self.version, error = status.message(), "Failed to post agent status");
            }
        }
        let known: HashMap<String, Arc<Entry>> = self.cache.entries().into_iter().map(|e| (e.id.clone(), e)).collect();
        let authorized = authorized(channel, &known, &mut polling.only_whole_lists).await;
        let Authorized { entries, ids } = authorized.map_err(Failure::of("failed to fetch authorized entries"))?;
        let changed: HashSet<&str> = entries.iter().map(|e| e.id.as_str()).collect();
        let unchanged = known.values().filter(|e| ids.contains(&e.id) && !changed.contains(e.id.as_str()));
        let federated = unchanged.chain(&entries).flat_map(|e| &e.federates_with).cloned().collect();
        let found = self.bundles_of(channel, federated).await?;

        let held = self.cache.bundles();
        let names: HashSet<&str> = found.iter().map(|b| b.trust_domain().name()).collect();
        let removed_bundles = held.iter().map(|b| b.trust_domain().name()).filter(|n| !names.contains(n)).map(ToOwned::to_owned).collect();
        let update = Update {
            reset: false,
            removed_entries: known.into_keys().filter(|id| !ids.contains(id)).collect(),
            entries,
            removed_bundles,
            bundles: found.into_iter().filter(|b| held.get(b.trust_domain().name()) != Some(b)).collect(),
            revision: None,
            caught_up: true,
        };
        self.take(update, Place::Polled, rotator);
        Ok(())
    }

    /// The own bundle, and those of these trust domains that the server has.
    async fn bundles_of(&self, channel: &Channel, mut federated: BTreeSet<TrustDomain>) -> Result<Vec<Arc<Bundle>>, Failure> {
        let failed = Failure::of("failed to fetch bundle");
        let own = self.node.trust_domain();
        let answer = bundle_client(channel).get_bundle(Request::new(GetBundleRequest { output_mask: None })).await;
        let answer = read_bundle(&answer.map_err(&failed)?.into_inner(), own).map_err(&failed)?;
        if answer.x509_authorities().is_empty() {
            return Err(failed(Status::internal("the server's bundle has no X.509 authority")));
        }
        let mut found = vec![Arc::new(answer)];
        federated.remove(own);
        let mut waiting = federated.into_iter();
        let mut asking = JoinSet::new();
        loop {
            while asking.len() < BUNDLES_AT_ONCE
                && let Some(name) = waiting.next()
            {
                let channel = channel.clone();
                asking.spawn(async move { federated_bundle(&channel, name).await });
            }
            match asking.join_next().await {
                None => return Ok(found),
                Some(Ok(bundle)) => found.extend(bundle.map_err(Failure::of("failed to fetch federated bundle"))?.map(Arc::new)),
                Some(Err(_)) => return Err(failed(Status::cancelled("the agent is shutting down"))),
            }
        }
    }
}

fn bundle_client(channel: &Channel) -> BundleClient<Channel> {
    BundleClient::new(channel.clone()).max_decoding_message_size(BUNDLE_MESSAGE_BYTES_MAX)
}

/// The bundle of another trust domain; nothing if the server has none, or one that cannot be read.
async fn federated_bundle(channel: &Channel, name: TrustDomain) -> Result<Option<Bundle>, Status> {
    let request = GetFederatedBundleRequest { trust_domain: name.name().to_owned(), output_mask: None };
    match bundle_client(channel).get_federated_bundle(request).await {
        Ok(answer) => match read_bundle(&answer.into_inner(), &name) {
            Ok(bundle) => Ok(Some(bundle)),
            Err(status) => {
                tracing::warn!(
                    error = status.message(), federated_bundle = %name,
                    "Received malformed bundle from SPIRE server; are the server and agent versions compatible?"
                );
                Ok(None)
            }
        },
        Err(status) if status.code() == Code::NotFound => {
            tracing::warn!(error = status.message(), federated_bundle = %name, "Federated bundle not found");
            Ok(None)
        }
        Err(status) => {
            tracing::error!(error = status.message(), federated_bundle = %name, "Failed to fetch federated bundle");
            Err(status)
        }
    }
}

/// A bundle, if it is the one asked for.
fn read_bundle(answer: &types::Bundle, wanted: &TrustDomain) -> Result<Bundle, Status> {
    let found = bundle::from_wire(answer).map_err(|e| Status::internal(format!("the server's answer cannot be read: {e}")))?;
    if found.trust_domain() != wanted {
        return Err(Status::internal(format!("the server's answer is the bundle of trust domain `{}`", found.trust_domain())));
    }
    Ok(found)
}
