//! How often workloads may call: SPIRE's limits, off unless they are set, for each method and set of selectors.
//!
//! A call is counted once its caller is attested, so that a limit spares the agent and its server what comes after, but not
//! the attestation. Nobody waits: one call too many is refused. A stream counts when it is opened. The agent never calls
//! itself, so nothing is exempt.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_transport::buckets::{Buckets, Rate};
use countersign_transport::clock::SharedClock;
use countersign_transport::observe::Seldom;
use tonic::Status;

use crate::attest::Caller;
use crate::metrics::Metrics;

/// Sets of selectors with a bucket of their own, for each method: a hundred times the pods that a kubelet runs. A bucket that
/// is full again is forgotten, and that takes a second, so that only programs made to have ever new selectors come near it;
/// from then on those without a bucket share one. Less than 10 MB for all methods.
const SETS_MAX: usize = 16_384;
/// The highest limit that is one: with a call each nanosecond a bucket is never empty.
const PER_SECOND_MAX: u32 = 1_000_000_000;
/// The log has a line of each method's refusals this often, and the number of the others. Who is refused can call as often as
/// it likes.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A method that can have a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    FetchX509Svid,
    FetchJwtSvid,
    FetchX509Bundles,
    FetchJwtBundles,
    StreamSecrets,
    FetchSecrets,
}

impl Method {
    /// In the order of their discriminants.
    pub(crate) const ALL: [Self; 6] =
        [Self::FetchX509Svid, Self::FetchJwtSvid, Self::FetchX509Bundles, Self::FetchJwtBundles, Self::StreamSecrets, Self::FetchSecrets];

    /// Its key in the block `ratelimit`.
    pub(crate) fn setting(self) -> &'static str {
        match self {
            Self::FetchX509Svid => "fetch_x509_svid",
            Self::FetchJwtSvid => "fetch_jwt_svid",
            Self::FetchX509Bundles => "fetch_x509_bundles",
            Self::FetchJwtBundles => "fetch_jwt_bundles",
            Self::StreamSecrets => "stream_secrets",
            Self::FetchSecrets => "fetch_secrets",
        }
    }

    /// Its path on the wire, which clients are told.
    fn path(self) -> &'static str {
        match self {
            Self::FetchX509Svid => "/SpiffeWorkloadAPI/FetchX509SVID",
            Self::FetchJwtSvid => "/SpiffeWorkloadAPI/FetchJWTSVID",
            Self::FetchX509Bundles => "/SpiffeWorkloadAPI/FetchX509Bundles",
            Self::FetchJwtBundles => "/SpiffeWorkloadAPI/FetchJWTBundles",
            Self::StreamSecrets => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
            Self::FetchSecrets => "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets",
        }
    }
}

/// Calls a second by method; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Settings([u32; Method::ALL.len()]);

impl Settings {
    /// A limit beyond what a clock can tell apart is as good as none.
    pub(crate) fn set(&mut self, method: Method, per_second: u64) {
        if let Some(limit) = self.0.get_mut(method as usize) {
            *limit = u32::try_from(per_second).map_or(PER_SECOND_MAX, |limit| limit.min(PER_SECOND_MAX));
        }
    }
}

/// The limits of this process.
pub(crate) struct RateLimits {
    limits: [Option<Mutex<Limit>>; Method::ALL.len()],
    hasher: RandomState,
    clock: SharedClock,
    metrics: Arc<Metrics>,
}

/// One method's buckets. A set of selectors is known by a hash of it under a key that nobody outside knows, so that a process
/// with thousands of groups costs no more memory than another, and nobody can aim at somebody else's bucket.
struct Limit {
    per_second: u32,
    buckets: Buckets<u64>,
    line: Seldom,
}

impl RateLimits {
    pub(crate) fn new(settings: Settings, clock: SharedClock, metrics: Arc<Metrics>) -> Self {
        let limit = |per_second: u32| {
            let rate = Rate { burst: per_second, every: Duration::from_secs(1).checked_div(per_second)? };
            Some(Mutex::new(Limit { per_second, buckets: Buckets::new(rate, SETS_MAX), line: Seldom::new(1, LOG_INTERVAL) }))
        };
        for (method, limit) in Method::ALL.into_iter().zip(settings.0).filter(|(_, limit)| *limit > 0) {
            tracing::info!(method = method.path(), limit, "Workload API/SDS rate limiting enabled");
        }
        Self { limits: settings.0.map(limit), hasher: RandomState::new(), clock, metrics }
    }

    /// Counts a call, and refuses it if there were too many of workloads with these selectors.
    pub(crate) fn pass(&self, method: Method, caller: &Caller) -> Result<(), Status> {
        let Some(limit) = self.limits.get(method as usize).and_then(Option::as_ref) else { return Ok(()) };
        let selectors = self.hasher.hash_one(&caller.selectors);
        let mut limit = limit.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.steady();
        if limit.buckets.take(&selectors, 1, Duration::ZERO, now).is_some() {
            return Ok(());
        }
        self.metrics.rate_limit_exceeded(method.path());
        if let Some(left_out) = limit.line.turn(now) {
            let (pid, uid, setting) = (caller.peer.pid, caller.peer.uid, method.setting());
            tracing::warn!(method = method.path(), pid, uid, setting, limit = limit.per_second, left_out, "Rate limit exceeded");
        }
        Err(Status::unavailable(format!("rate limit exceeded for {}", method.path())))
    }
}

impl std::fmt::Debug for RateLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("rate limits")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use countersign_testkit::clock::VirtualClock;
    use countersign_transport::peer::Peer;

    use super::*;
    use crate::attest::Attestors;
    use crate::metrics::Reading;

    #[test]
    fn limits_beyond_what_a_clock_tells_apart_refuse_nobody() {
        for per_second in [u64::from(PER_SECOND_MAX) + 1, u64::from(u32::MAX), u64::MAX] {
            let mut settings = Settings::default();
            settings.set(Method::FetchSecrets, per_second);
            assert_eq!(settings.0, [0, 0, 0, 0, 0, PER_SECOND_MAX], "{per_second}");
        }
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("the log").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn refusals_are_counted_and_have_a_line_in_the_log_each_minute() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _log = tracing::subscriber::set_default(subscriber);
        let (clock, metrics) = (VirtualClock::at_present(), Arc::new(Metrics::default()));
        let mut settings = Settings::default();
        settings.set(Method::StreamSecrets, 2);
        let limits = RateLimits::new(settings, Arc::new(clock.clone()), Arc::clone(&metrics));
        let ourselves = Peer::of_process(std::process::id()).expect("we run");
        let caller = Attestors::new(Vec::new()).attest(&ourselves).await.expect("it is attested");
        let refused = || (0..7).filter(|_| limits.pass(Method::StreamSecrets, &caller).is_err()).count();
        assert_eq!(refused(), 5);
        clock.advance(Duration::from_secs(30));
        assert_eq!(refused(), 5);
        clock.advance(Duration::from_secs(30));
        assert_eq!(refused(), 5);

        let said = String::from_utf8(log.0.lock().expect("the log").clone()).expect("text");
        let path = "method=\"/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets\"";
        let lines: Vec<&str> = said.lines().filter(|line| line.contains(path)).collect();
        let [enabled, first, second] = lines.as_slice() else { panic!("{said}") };
        assert!(enabled.contains("INFO") && enabled.contains("Workload API/SDS rate limiting enabled") && enabled.contains("limit=2"));
        for (line, left_out) in [(first, 0), (second, 9)] {
            let fields = format!("pid={} ", std::process::id());
            assert!(line.contains("WARN") && line.contains("Rate limit exceeded") && line.contains(&fields), "{line}");
            assert!(line.contains("setting=\"stream_secrets\" limit=2") && line.contains(&format!("left_out={left_out}")), "{line}");
        }
        let reading =
            Reading { expires_in: Vec::new(), last_contact_secs: 0, revision: 0, entries: 0, held_x509: 0, held_jwt: 0, streams: 0 };
        let counted = metrics.render(&reading);
        assert!(counted.contains(&format!("countersign_agent_rate_limit_exceeded_total{{{path}}} 15")), "{counted}");
    }
}
