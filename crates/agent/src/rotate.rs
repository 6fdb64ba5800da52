//! When which SVID of a workload is fetched or renewed: a heap of due times, no scan.
//!
//! What a workload waits for comes first; what nobody waits for comes with jitter and a cap. Each credential draws its
//! jitter once.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::key::KeyType;
use countersign_identity::rotation::{next_renewal, renewal_by_availability};
use countersign_identity::x509::Certificate;
use countersign_identity::{Entry, Selector, Timestamp};
use countersign_plugins::Pending;
use countersign_plugins::keys::KeyPair;
use countersign_transport::clock::SharedClock;
use countersign_transport::observe::Seldom;
use countersign_transport::random::SharedRandom;
use tokio::sync::{Notify, Semaphore};
use tonic::Status;

use crate::cache::{Cache, Identity, Svid};
use crate::metrics::Metrics;

/// Requests under way at once.
const REQUESTS_MAX: usize = 32;
/// SVIDs nobody waits for are fetched within this time, so that a new entry for a fleet is not fetched by all at once.
const PREFETCH_SPREAD: Duration = Duration::from_secs(3);
/// First wait after a failure; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Whoever gets X509-SVIDs from the server.
pub(crate) trait Issuer: Send + Sync {
    /// Asks for an X509-SVID for this key; returns the chain, leaf first.
    fn issue_x509<'a>(
        &'a self,
        entry: &'a Entry,
        csr: Vec<u8>,
        held: Option<Timestamp>,
        facts: &'a [Selector],
    ) -> Pending<'a, Result<Vec<Vec<u8>>, Status>>;
}

/// An entry to fetch an SVID for, and what is known of the workload that waits for it.
type Item = (Arc<str>, Arc<[Selector]>);

/// When the first items of a plan are due.
struct Later {
    renewal: Option<Timestamp>,
    wait: Option<Duration>,
}

/// An item is stale if `due` says otherwise by now.
type Heap<T> = BinaryHeap<Reverse<(T, Arc<str>)>>;

#[derive(Debug, Default)]
struct Plan {
    renewals: Heap<Timestamp>,
    waits: Heap<Duration>,
    due: HashMap<Arc<str>, Planned>,
    /// Entries whose SVIDs are to be replaced although their time has not come.
    replaced: HashSet<Arc<str>>,
}

/// Failures said at level warning, in a minute: without server, all SVIDs that are due fail again and again. `explain` tells
/// of each.
const FAILURES_SAID_MAX: u32 = 20;
const FAILURES_EVERY: Duration = Duration::from_secs(60);

/// When an item is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// At this time of day, at which its certificate is to be renewed.
    At(Timestamp),
    /// Once this much steady time has passed: a clock that is set back makes nobody wait.
    After(Duration),
}

impl Due {
    fn has_come(self, now: Timestamp, steady: Duration) -> bool {
        match self {
            Self::At(at) => at <= now,
            Self::After(after) => after <= steady,
        }
    }
}

/// How it goes with an SVID, for whoever asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) in_flight: bool,
    /// In a row.
    pub(crate) failed_attempts: u32,
    /// How long until the next one after a failure.
    pub(crate) next_attempt: Duration,
}

#[derive(Debug, Clone)]
struct Planned {
    due: Due,
    attempts: u32,
    in_flight: bool,
    facts: Arc<[Selector]>,
}

impl Plan {
    fn set(&mut self, id: &Arc<str>, due: Due, attempts: u32, facts: Arc<[Selector]>) {
        self.due.insert(Arc::clone(id), Planned { due, attempts, in_flight: false, facts });
        match due {
            Due::At(at) => self.renewals.push(Reverse((at, Arc::clone(id)))),
            Due::After(after) => self.waits.push(Reverse((after, Arc::clone(id)))),
        }
    }

    /// The next item if it is due; what is waited for goes before what is renewed. If none is, when the first ones are.
    fn take(&mut self, now: Timestamp, steady: Duration) -> Result<Item, Later> {
        let wait = first(&mut self.waits, &self.due, Due::After);
        let renewal = first(&mut self.renewals, &self.due, Due::At);
        let id = match (&wait, &renewal) {
            (Some((after, id)), _) if *after <= steady => id,
            (_, Some((at, id))) if *at <= now => id,
            _ => return Err(Later { renewal: renewal.map(|(at, _)| at), wait: wait.map(|(after, _)| after) }),
        };
        let facts = self.due.get_mut(id).map(|planned| {
            planned.in_flight = true;
            Arc::clone(&planned.facts)
        });
        Ok((Arc::clone(id), facts.unwrap_or_default()))
    }
}

/// The first item that still counts; those before it that do not are dropped.
fn first<T: Copy + Ord>(heap: &mut Heap<T>, due: &HashMap<Arc<str>, Planned>, of: fn(T) -> Due) -> Option<(T, Arc<str>)> {
    while let Some(Reverse((at, id))) = heap.peek() {
        if due.get(id).is_some_and(|planned| planned.due == of(*at) && !planned.in_flight) {
            return Some((*at, Arc::clone(id)));
        }
        heap.pop();
    }
    None
}

/// Fetches and renews the SVIDs of workloads.
pub(crate) struct Rotator {
    cache: Arc<Cache>,
    clock: SharedClock,
    random: SharedRandom,
    key_type: KeyType,
    availability_target: Option<Duration>,
    metrics: Arc<Metrics>,
    plan: Mutex<Plan>,
    failures: Seldom,
    wake: Notify,
}

impl Rotator {
    pub(crate) fn new(cache: Arc<Cache>, clock: SharedClock, random: SharedRandom, key_type: KeyType, metrics: Arc<Metrics>) -> Self {
        let (plan, wake) = (Mutex::default(), Notify::new());
        let failures = Seldom::new(FAILURES_SAID_MAX, FAILURES_EVERY);
        Self { cache, clock, random, key_type, availability_target: None, metrics, plan, failures, wake }
    }

    /// Renews so early that every SVID always has this much life left.
    pub(crate) fn with_availability(self, target: Option<Duration>) -> Self {
        Self { availability_target: target, ..self }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// New or changed entries: those a stream waits for at once, the others a little later, while there is room.
    pub(crate) fn want_entries(&self, entries: &[Arc<Entry>]) {
        if entries.is_empty() {
            return;
        }
        let steady = self.clock.steady();
        let room = self.cache.has_room();
        let mut plan = self.lock();
        // An entry that names a node is nobody's identity.
        for entry in entries.iter().filter(|e| !e.store_svid && !e.names_a_node()) {
            let id: Arc<str> = entry.id.as_str().into();
            // Under way already, for a stream that was quicker; what does not fit when it comes is asked for again.
            if plan.due.get(&id).is_some_and(|planned| planned.in_flight) {
                continue;
            }
            if self.cache.subscribers.concerns(entry) {
                plan.set(&id, Due::After(steady), 0, Arc::default());
            } else if room && !entry.additional_attributes.disable_x509_svid_prefetch {
                let spread = PREFETCH_SPREAD.mul_f64(self.random.fraction());
                plan.set(&id, Due::After(steady + spread), 0, Arc::default());
            }
        }
        drop(plan);
        self.wake.notify_one();
    }

    /// The SVIDs of these entries are to be replaced before their time; until their successors are there they are served.
    pub(crate) fn replace(&self, ids: &[Arc<str>]) {
        let steady = self.clock.steady();
        let mut plan = self.lock();
        for id in ids {
            plan.replaced.insert(Arc::clone(id));
            // One that is under way may have been signed before.
            if plan.due.get(id).is_none_or(|planned| !planned.in_flight) {
                let spread = PREFETCH_SPREAD.mul_f64(self.random.fraction());
                plan.set(id, Due::After(steady + spread), 0, Arc::default());
            }
        }
        drop(plan);
        self.wake.notify_one();
    }

    /// A workload with these selectors waits for these identities.
    pub(crate) fn want(&self, identities: &[Identity], facts: &Arc<[Selector]>) {
        let (now, steady) = (self.clock.now(), self.clock.steady());
        let mut plan = self.lock();
        for identity in identities {
            let id: Arc<str> = identity.entry.id.as_str().into();
            match plan.due.get(&id) {
                // Under way, or failed a moment ago: its time will come.
                Some(planned) if planned.in_flight || planned.attempts > 0 || planned.due.has_come(now, steady) => {}
                _ => plan.set(&id, Due::After(steady), 0, Arc::clone(facts)),
            }
        }
        drop(plan);
        self.wake.notify_one();
    }

    /// How it goes with the SVID of this entry, if it is waited for or was asked for in vain.
    pub(crate) fn progress(&self, id: &str) -> Progress {
        let steady = self.clock.steady();
        let plan = self.lock();
        let Some(planned) = plan.due.get(id) else { return Progress::default() };
        let next_attempt = match planned.due {
            Due::After(after) if planned.attempts > 0 => after.saturating_sub(steady),
            Due::After(_) | Due::At(_) => Duration::ZERO,
        };
        Progress { in_flight: planned.in_flight, failed_attempts: planned.attempts, next_attempt }
    }

    /// The server is back: what failed is tried at once.
    pub(crate) fn retry_now(&self) {
        let steady = self.clock.steady();
        let mut plan = self.lock();
        let failed: Vec<(Arc<str>, Arc<[Selector]>)> =
            plan.due.iter().filter(|(_, p)| p.attempts > 0 && !p.in_flight).map(|(id, p)| (Arc::clone(id), Arc::clone(&p.facts))).collect();
        for (id, facts) in failed {
            plan.set(&id, Due::After(steady), 0, facts);
        }
        drop(plan);
        self.wake.notify_one();
    }

    /// Works for as long as the process lives.
    pub(crate) async fn run(self: Arc<Self>, issuer: Arc<dyn Issuer>) {
        let places = Arc::new(Semaphore::new(REQUESTS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (id, facts) = self.next().await;
            let (rotator, issuer) = (Arc::clone(&self), Arc::clone(&issuer));
            tokio::spawn(async move {
                rotator.fetch(issuer.as_ref(), &id, &facts).await;
                drop(place);
            });
        }
    }

    /// Waits for the next entry that is due.
    async fn next(&self) -> Item {
        loop {
            let taken = self.lock().take(self.clock.now(), self.clock.steady());
            let Later { renewal, wait } = match taken {
                Ok(item) => return item,
                Err(later) => later,
            };
            tokio::select! {
                () = self.clock.sleep_until(renewal.unwrap_or_default()), if renewal.is_some() => {}
                () = self.clock.sleep_for(wait.unwrap_or_default().saturating_sub(self.clock.steady())), if wait.is_some() => {}
                () = self.wake.notified() => {}
            }
        }
    }

    async fn fetch(&self, issuer: &dyn Issuer, id: &Arc<str>, facts: &Arc<[Selector]>) {
        let Some(identity) = self.cache.identity(id) else {
            let mut plan = self.lock();
            plan.due.remove(id);
            plan.replaced.remove(id);
            return;
        };
        let now = self.clock.now();
        // What nobody uses is fetched while there is room; what was evicted meanwhile comes back when somebody asks.
        if identity.svid.is_none() && !self.cache.has_room() && !self.cache.subscribers.concerns(&identity.entry) {
            self.lock().due.remove(id);
            return;
        }
        let is_replaced = self.lock().replaced.remove(id);
        if let Some(svid) = identity.svid.as_ref().filter(|s| s.renew_at > now && !is_replaced) {
            self.lock().set(id, Due::At(svid.renew_at), 0, Arc::default());
            return;
        }
        let entry = &identity.entry;
        let verb = if identity.svid.is_some() { "Renewing X509-SVID" } else { "Creating X509-SVID" };
        tracing::info!(spiffe_id = %entry.spiffe_id, entry_id = %entry.id, "{verb}");
        match self.fetch_svid(issuer, &identity, facts).await {
            Ok(svid) => {
                self.metrics.issued("x509");
                let at = svid.renew_at;
                let kept = self.cache.svid_put(id, svid);
                let mut plan = self.lock();
                if kept && plan.replaced.contains(id) {
                    // Tainted while the request was under way.
                    plan.set(id, Due::After(self.clock.steady()), 0, Arc::clone(facts));
                } else if kept {
                    plan.set(id, Due::At(at), 0, Arc::default());
                } else if self.cache.identity(id).is_some() {
                    // The entry changed while the request was under way.
                    plan.set(id, Due::After(self.clock.steady()), 0, Arc::clone(facts));
                } else {
                    plan.due.remove(id);
                }
            }
            Err(reason) => {
                self.metrics.failed("x509");
                let attempts = self.lock().due.get(id).map_or(0, |p| p.attempts) + 1;
                let wait =
                    (RETRY_FIRST * 2u32.saturating_pow(attempts.min(16) - 1)).min(RETRY_MAX).mul_f64(0.8 + 0.4 * self.random.fraction());
                let mut plan = self.lock();
                plan.set(id, Due::After(self.clock.steady() + wait), attempts, Arc::clone(facts));
                if is_replaced {
                    plan.replaced.insert(Arc::clone(id));
                }
                drop(plan);
                macro_rules! failed {
                    ($level:ident $(, $more:ident)?) => {
                        tracing::$level!(spiffe_id = %entry.spiffe_id, entry_id = %entry.id, error = reason, retry_interval = ?wait, $($more,)? "Failed to mint X509 SVID")
                    };
                }
                match self.failures.turn(self.clock.steady()) {
                    Some(left_out) => failed!(warn, left_out),
                    None => failed!(debug),
                }
                self.cache.svid_failed(id, &reason);
            }
        }
        self.wake.notify_one();
    }

    async fn fetch_svid(&self, issuer: &dyn Issuer, identity: &Identity, facts: &[Selector]) -> Result<Arc<Svid>, String> {
        tracing::trace!(hop = "makes a key and a request");
        let entry = &identity.entry;
        let kind = self.key_type;
        let pair = match kind {
            KeyType::EcP256 | KeyType::EcP384 => KeyPair::generate(kind),
            KeyType::Rsa2048 | KeyType::Rsa4096 => {
                tokio::task::spawn_blocking(move || KeyPair::generate(kind)).await.map_err(|_| "the process is shutting down".to_owned())?
            }
        };
        let pair = pair.map_err(|e| e.to_string())?;
        let csr = pair.request(Some(&entry.spiffe_id), &[]).map_err(|e| e.to_string())?;
        let held = identity.svid.as_ref().map(|s| s.expires_at);
        let chain = issuer.issue_x509(entry, csr, held, facts).await.map_err(|s| format!("{}: {}", s.code(), s.message()))?;
        tracing::trace!(hop = "checks the answer");
        let leaf = chain.first().ok_or("the server's answer is empty")?;
        let leaf = Certificate::parse(leaf).map_err(|e| e.to_string())?;
        // What is handed to a workload is what was asked for, whatever the server says.
        if leaf.public_key != *pair.public_key() || leaf.spiffe_id().as_ref() != Some(&entry.spiffe_id) {
            return Err("the server's answer is for another key or identity".to_owned());
        }
        // As good as none: kept, it would be renewed at once, and so would the next.
        if leaf.not_after <= self.clock.now() {
            return Err(format!("the server's answer ended at {}; do the clocks of server and agent differ?", leaf.not_after));
        }
        Ok(Arc::new(Svid {
            spiffe_id: entry.spiffe_id.clone(),
            chain: chain.concat(),
            key: pair.pkcs8().clone(),
            expires_at: leaf.not_after,
            renew_at: renewal(self.availability_target, self.clock.now(), &leaf, self.random.fraction()),
            dns_names: entry.dns_names.clone(),
            ttl: entry.x509_svid_ttl,
        }))
    }
}

/// When to renew an SVID that was received now, of a workload or of the agent itself.
pub(crate) fn renewal(availability_target: Option<Duration>, now: Timestamp, leaf: &Certificate, spread: f64) -> Timestamp {
    let by_availability = availability_target.map(|target| renewal_by_availability(now, leaf.not_before, leaf.not_after, target, spread));
    if by_availability == Some(None) {
        tracing::warn!(
            "X509 SVID lifetime isn't long enough to guarantee the availability_target, falling back to the default rotation strategy"
        );
    }
    by_availability.flatten().unwrap_or_else(|| next_renewal(now, leaf.not_before, leaf.not_after, spread))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use countersign_identity::TrustDomain;
    use countersign_testkit::clock::VirtualClock;
    use countersign_testkit::log::Log;
    use countersign_transport::random::Seeded;

    use super::*;
    use crate::cache::Update;

    /// A rotator, a clock, and an entry that a stream with these facts waits for.
    fn rotator() -> (Rotator, Arc<Cache>, VirtualClock, Entry, Arc<[Selector]>) {
        let own = TrustDomain::parse("example.org").expect("a name");
        let cache = Arc::new(Cache::new(own.clone(), Arc::default(), 10));
        let clock = VirtualClock::at(Timestamp::from_secs(1_800_000_000));
        let rotator = Rotator::new(Arc::clone(&cache), Arc::new(clock.clone()), Arc::new(Seeded::new(1)), KeyType::EcP256, Arc::default());
        let facts: Arc<[Selector]> = Arc::new([Selector::new("unix", "uid:1").expect("a selector")]);
        let entry = countersign_wire::entry::from_wire(&countersign_wire::types::Entry {
            id: "web".to_owned(),
            spiffe_id: Some(countersign_wire::id::to_wire(&own.with_path("/web").expect("a path"))),
            parent_id: Some(countersign_wire::id::to_wire(&own.with_path("/node").expect("a path"))),
            selectors: countersign_wire::id::selectors_to_wire(&facts),
            ..Default::default()
        });
        (rotator, cache, clock, entry.expect("an entry"), facts)
    }

    struct Failing;

    impl Issuer for Failing {
        fn issue_x509<'a>(
            &'a self,
            _: &'a Entry,
            _: Vec<u8>,
            _: Option<Timestamp>,
            _: &'a [Selector],
        ) -> Pending<'a, Result<Vec<Vec<u8>>, Status>> {
            Box::pin(std::future::ready(Err(Status::unavailable("away"))))
        }
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_delays_no_retry() {
        let (rotator, cache, clock, entry, facts) = rotator();
        cache.apply(Update { entries: vec![Arc::new(entry)], ..Update::default() });
        rotator.want(&cache.identities(&facts, Timestamp::EPOCH), &facts);
        let (id, facts) = rotator.next().await;
        rotator.fetch(&Failing, &id, &facts).await;
        let next_is_ready = || pin!(rotator.next()).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        clock.step_back(Duration::from_secs(3600));
        assert!(!next_is_ready(), "it is not tried again at once");
        clock.advance(RETRY_FIRST.mul_f64(1.2));
        assert!(next_is_ready());
    }

    #[tokio::test]
    async fn an_outage_does_not_fill_the_log() {
        Log::listen();
        let (rotator, cache, clock, entry, facts) = rotator();
        cache.apply(Update { entries: vec![Arc::new(entry)], ..Update::default() });
        let id: Arc<str> = "web".into();
        for _ in 0..30 {
            rotator.fetch(&Failing, &id, &facts).await;
        }
        let said = |level| Log::count(level, "Failed to mint X509 SVID");
        assert_eq!((said("WARN"), said("DEBUG")), (20, 10));
        clock.advance(FAILURES_EVERY);
        rotator.fetch(&Failing, &id, &facts).await;
        assert_eq!(Log::count("WARN", "left_out=10"), 1);
    }

    #[test]
    fn what_is_under_way_is_not_asked_for_a_second_time() {
        let (rotator, cache, _clock, entry, facts) = rotator();
        let _stream = cache.subscribers.join(Arc::clone(&facts));
        let applied = cache.apply(Update { entries: vec![Arc::new(entry)], ..Update::default() });
        let next_is_ready = || pin!(rotator.next()).poll(&mut Context::from_waker(Waker::noop())).is_ready();

        // The stream, woken by the update, is quicker than whoever applied it.
        rotator.want(&cache.identities(&facts, Timestamp::EPOCH), &facts);
        assert!(next_is_ready());
        rotator.want_entries(&applied.wanted);
        assert!(!next_is_ready());
        // The other way round it is the same.
        rotator.want(&cache.identities(&facts, Timestamp::EPOCH), &facts);
        assert!(!next_is_ready());
    }
}
