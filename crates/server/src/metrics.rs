//! What the server counts, for Prometheus. One registry a process part; everything that can be read from state is read
//! when somebody asks.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabel {
    part: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabel {
    method: &'static str,
    status: &'static str,
}

/// The server's counters and gauges.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    calls: Family<CallLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    issued: Family<KindLabel, Counter>,
    expires_in: Family<KindLabel, Gauge<i64>>,
    healthy: Family<PartLabel, Gauge<i64>>,
    revision: Gauge<i64>,
    entries: Gauge<i64>,
    agents: Gauge<i64>,
    streams: Gauge<i64>,
    lag: Gauge<i64>,
    handshakes_failed: Gauge<u64, AtomicU64>,
    turned_away: Gauge<u64, AtomicU64>,
    refusals: Gauge<u64, AtomicU64>,
    refusals_left_out: Gauge<u64, AtomicU64>,
}

/// Values that are read from state when somebody asks.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) revision: u64,
    pub(crate) entries: usize,
    pub(crate) agents: usize,
    pub(crate) streams: usize,
    pub(crate) lag: u64,
    pub(crate) expires_in: Vec<(&'static str, i64)>,
    pub(crate) healthy: [(&'static str, bool); 3],
    pub(crate) handshakes_failed: u64,
    pub(crate) turned_away: u64,
    /// Refusals of known callers, and those of them that are not in the journal.
    pub(crate) refusals: (u64, u64),
}

impl Metrics {
    pub(crate) fn called(&self, path: &str, code: tonic::Code) {
        // Methods come from the table, so a stranger's paths make no series.
        let method = crate::policy::table::find(path).map_or("unknown", |row| row.method);
        self.calls.get_or_create(&CallLabel { method, status: code_name(code) }).inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn issued(&self, kind: &'static str, count: u64) {
        self.issued.get_or_create(&KindLabel { kind }).inc_by(count);
    }

    /// All metrics in Prometheus's text form.
    pub(crate) fn render(&self, reading: &Reading) -> String {
        let narrow = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.revision.set(narrow(reading.revision));
        self.entries.set(i64::try_from(reading.entries).unwrap_or(i64::MAX));
        self.agents.set(i64::try_from(reading.agents).unwrap_or(i64::MAX));
        self.streams.set(i64::try_from(reading.streams).unwrap_or(i64::MAX));
        self.lag.set(narrow(reading.lag));
        self.handshakes_failed.set(reading.handshakes_failed);
        self.turned_away.set(reading.turned_away);
        self.refusals.set(reading.refusals.0);
        self.refusals_left_out.set(reading.refusals.1);
        for (kind, secs) in &reading.expires_in {
            self.expires_in.get_or_create(&KindLabel { kind }).set(*secs);
        }
        for (part, healthy) in reading.healthy {
            self.healthy.get_or_create(&PartLabel { part }).set(i64::from(healthy));
        }
        let mut registry = Registry::with_prefix("countersign_server");
        registry.register("rpc", "Calls by method and status", self.calls.clone());
        registry.register("refused", "Refused calls by reason", self.refused.clone());
        registry.register("issued", "Issued credentials by kind", self.issued.clone());
        registry.register("expires_in_seconds", "Time to the end of the server's own credentials and authorities", self.expires_in.clone());
        registry.register(
            "healthy",
            "Whether authority, journal and store can do their work; nothing is issued without the first two",
            self.healthy.clone(),
        );
        registry.register("revision", "Newest revision of the log", self.revision.clone());
        registry.register("entries", "Registration entries", self.entries.clone());
        registry.register("agents", "Attested agents", self.agents.clone());
        registry.register("streams", "Agents that follow now", self.streams.clone());
        registry.register("lag_revisions", "Revisions the slowest following agent is behind", self.lag.clone());
        registry.register("handshakes_failed", "TLS handshakes that failed", self.handshakes_failed.clone());
        registry.register("connections_turned_away", "Connections beyond the limits", self.turned_away.clone());
        registry.register("journal_refusals", "Credentials refused to known callers", self.refusals.clone());
        registry.register(
            "journal_refusals_left_out",
            "Of these, counted in the journal and not written one by one",
            self.refusals_left_out.clone(),
        );
        let mut text = String::new();
        // Writing into a text cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

/// gRPC's names of status codes, as SPIRE's `status` label has them.
pub(crate) const fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// A source of readings, asked at each scrape; dry once the server has stopped.
pub(crate) type ReadingSource = Arc<dyn Fn() -> Option<Reading> + Send + Sync>;
