//! Rate limits with SPIRE's numbers: attestation by address, since nobody is known yet; signatures by the SPIFFE ID of who
//! asks, so that agents behind one address do not share a limit. Whoever is over its limit waits a while for its turn.
//!
//! The number of those who wait is bounded. Local callers are exempt.

mod lines;
mod sample;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign_identity::SpiffeId;
use countersign_transport::buckets::{Buckets, Rate};
use countersign_transport::clock::SharedClock;
use countersign_transport::prefix::Prefix;
use tonic::metadata::MetadataMap;

pub(crate) use lines::{About, Lines};
pub(crate) use sample::Samples;

/// Longest anybody is made to wait for tokens. Agents give up after 30 seconds, so that an answer after this much of it
/// still reaches them.
pub(crate) const PATIENCE_MAX: Duration = Duration::from_secs(20);
/// Buckets of one kind: more than the 100,000 agents we design for.
const KEYS_MAX: usize = 131_072;
/// Signatures in one request, and in a full bucket of an agent.
pub(crate) const SIGNING_BURST: u32 = 500;
/// One attestation a second from each address.
const ATTESTATION: Rate = Rate { burst: 1, every: Duration::from_secs(1) };
/// 500 signatures a second for each agent.
const SIGNING: Rate = Rate { burst: SIGNING_BURST, every: Duration::from_millis(2) };
/// Ten statuses a second of each agent, as in SPIRE; an agent tells its version once it has joined.
const STATUS: Rate = Rate { burst: 10, every: Duration::from_millis(100) };
/// Renewals of an agent at once: as many attempts as its backoff makes in six minutes.
const RENEWAL_BURST: u32 = 10;
/// One more renewal this often. Each is a record in the store's log for all, and an agent needs a few a day; a failed one is
/// tried again after five seconds, and later after a minute.
const RENEWAL_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// The same where agents' SVIDs live so short that ten seconds were too seldom: an agent renews after a quarter of the life
/// at the earliest, and may do so twice as often.
const RENEWALS_IN_A_LIFE: u32 = 8;
/// Shorter than this no agent waits between two renewals.
const RENEWAL_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Calls that wait at one limit, all callers together; each holds a stream and its request.
const WAITING_MAX: usize = 4096;
/// Calls of one caller that wait: as many as fit on one connection, so that one caller does not take all the places.
const WAITING_OF_CALLER_MAX: usize = 256;

/// Which limits are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) attestation: bool,
    pub(crate) signing: bool,
    /// Shortest life of agents' SVIDs, which says how often they are renewed.
    pub(crate) agent_ttl: Duration,
}

/// The caller is over its limit, and its turn does not come in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("rate limit exceeded, try again later")]
pub(crate) struct Exceeded;

/// The server's rate limits.
pub(crate) struct RateLimits {
    limiters: ArcSwap<Limiters>,
    status: Limiter<SpiffeId>,
    clock: SharedClock,
}

/// The limits that settings have a say in.
struct Limiters {
    settings: Settings,
    attestation: Option<Limiter<Prefix>>,
    x509: Option<Limiter<SpiffeId>>,
    jwt: Option<Limiter<SpiffeId>>,
    renewal: Option<Limiter<SpiffeId>>,
}

impl Limiters {
    fn new(settings: Settings, clock: &SharedClock) -> Self {
        let limiter = |rate| Limiter::new(rate, clock.clone());
        let interval = (settings.agent_ttl / RENEWALS_IN_A_LIFE).clamp(RENEWAL_INTERVAL_MIN, RENEWAL_INTERVAL_MAX);
        Self {
            settings,
            attestation: settings.attestation.then(|| Limiter::new(ATTESTATION, clock.clone())),
            x509: settings.signing.then(|| limiter(SIGNING)),
            jwt: settings.signing.then(|| limiter(SIGNING)),
            renewal: settings.signing.then(|| limiter(Rate { burst: RENEWAL_BURST, every: interval })),
        }
    }
}

impl RateLimits {
    pub(crate) fn new(settings: Settings, clock: &SharedClock) -> Self {
        Self {
            limiters: ArcSwap::from_pointee(Limiters::new(settings, clock)),
            status: Limiter::new(STATUS, clock.clone()),
            clock: clock.clone(),
        }
    }

    /// Goes by other settings from now on. Limits begin anew where something changed; who waits already goes on waiting.
    pub(crate) fn set(&self, settings: Settings) {
        if self.limiters.load().settings != settings {
            self.limiters.store(Arc::new(Limiters::new(settings, &self.clock)));
        }
    }

    /// Waits until whoever calls from this address may attest; a local caller has none.
    pub(crate) async fn attestation(&self, address: Option<IpAddr>, patience: Duration) -> Result<(), Exceeded> {
        match (&self.limiters.load_full().attestation, address) {
            (Some(limiter), Some(address)) => limiter.pass(&Prefix::of(address), 1, patience).await,
            (Some(_), None) | (None, _) => Ok(()),
        }
    }

    /// Waits until this agent may have so many certificates.
    pub(crate) async fn x509(&self, agent: &SpiffeId, count: u32, patience: Duration) -> Result<(), Exceeded> {
        tracing::trace!(hop = "gives its turn");
        match &self.limiters.load_full().x509 {
            Some(limiter) => limiter.pass(agent, count, patience).await,
            None => Ok(()),
        }
    }

    /// Waits until this agent may renew its SVID. For its share of renewals it does not wait: whoever has used that up is told
    /// to come again later.
    pub(crate) async fn renewal(&self, agent: &SpiffeId, patience: Duration) -> Result<(), Exceeded> {
        if let Some(limiter) = &self.limiters.load_full().renewal {
            limiter.pass(agent, 1, Duration::ZERO).await?;
        }
        self.x509(agent, 1, patience).await
    }

    /// Waits until this agent may tell its status.
    pub(crate) async fn status(&self, agent: &SpiffeId, patience: Duration) -> Result<(), Exceeded> {
        self.status.pass(agent, 1, patience).await
    }

    /// Waits until this agent may have a token.
    pub(crate) async fn jwt(&self, agent: &SpiffeId, patience: Duration) -> Result<(), Exceeded> {
        match &self.limiters.load_full().jwt {
            Some(limiter) => limiter.pass(agent, 1, patience).await,
            None => Ok(()),
        }
    }
}

/// How long a caller lets itself be kept waiting, by its `grpc-timeout`, but not longer than [`PATIENCE_MAX`].
pub(crate) fn patience(metadata: &MetadataMap) -> Duration {
    let timeout = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(parse_timeout);
    timeout.map_or(PATIENCE_MAX, |timeout| timeout.min(PATIENCE_MAX))
}

/// At most eight digits and a unit, as gRPC writes it.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = Some(number).filter(|n| n.len() <= 8)?.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// One limit: buckets, and who waits at them.
struct Limiter<K> {
    state: Mutex<State<K>>,
    clock: SharedClock,
}

struct State<K> {
    buckets: Buckets<K>,
    waiting: HashMap<Option<K>, usize>,
    waiting_in_all: usize,
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    fn new(rate: Rate, clock: SharedClock) -> Self {
        Self { state: Mutex::new(State { buckets: Buckets::new(rate, KEYS_MAX), waiting: HashMap::new(), waiting_in_all: 0 }), clock }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pass(&self, key: &K, count: u32, patience: Duration) -> Result<(), Exceeded> {
        let Some(mut turn) = self.line_up(key, count, patience)? else { return Ok(()) };
        self.clock.sleep_for(turn.wait).await;
        turn.has_come = true;
        Ok(())
    }

    /// Takes the tokens; a turn if they are not there yet.
    fn line_up(&self, key: &K, count: u32, patience: Duration) -> Result<Option<Turn<'_, K>>, Exceeded> {
        let mut state = self.lock();
        let now = self.clock.steady();
        let own = state.waiting.get(&Some(key.clone())).copied().unwrap_or_default();
        let is_room = state.waiting_in_all < WAITING_MAX && own < WAITING_OF_CALLER_MAX;
        let patience = if is_room { patience } else { Duration::ZERO };
        let taken = state.buckets.take(key, count, patience, now).ok_or(Exceeded)?;
        if taken.wait.is_zero() {
            return Ok(None);
        }
        state.waiting_in_all += 1;
        *state.waiting.entry(taken.from.clone()).or_default() += 1;
        Ok(Some(Turn { limiter: self, from: taken.from, count, wait: taken.wait, has_come: false }))
    }
}

/// A place in the line, left however it goes.
struct Turn<'a, K: Hash + Eq + Clone> {
    limiter: &'a Limiter<K>,
    from: Option<K>,
    count: u32,
    wait: Duration,
    has_come: bool,
}

impl<K: Hash + Eq + Clone> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        let mut state = self.limiter.lock();
        state.waiting_in_all -= 1;
        if let Some(waiting) = state.waiting.get_mut(&self.from) {
            *waiting -= 1;
            if *waiting == 0 {
                state.waiting.remove(&self.from);
            }
        }
        if !self.has_come {
            // Whoever hangs up while it waits does not use up what others behind the same address wait for.
            state.buckets.give_back(&self.from, self.count);
        }
    }
}

#[cfg(test)]
mod tests;
