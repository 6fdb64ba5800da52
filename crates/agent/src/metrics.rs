//! What the agent counts, for Prometheus; what can be read from state is read when somebody asks.

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabel {
    method: &'static str,
    status: &'static str,
}

/// The agent's counters and gauges.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    calls: Family<CallLabel, Counter>,
    rate_limit_exceeded: Family<MethodLabel, Counter>,
    issued: Family<KindLabel, Counter>,
    failed: Family<KindLabel, Counter>,
    expires_in: Family<KindLabel, Gauge<i64>>,
    last_contact: Gauge<i64>,
    revision: Gauge<i64>,
    entries: Gauge<i64>,
    held_x509: Gauge<i64>,
    held_jwt: Gauge<i64>,
    streams: Gauge<i64>,
}

/// Values that are read from state when somebody asks.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) expires_in: Vec<(&'static str, i64)>,
    pub(crate) last_contact_secs: i64,
    pub(crate) revision: u64,
    pub(crate) entries: usize,
    pub(crate) held_x509: usize,
    pub(crate) held_jwt: usize,
    pub(crate) streams: usize,
}

impl Metrics {
    pub(crate) fn called(&self, method: &'static str, status: &'static str) {
        self.calls.get_or_create(&CallLabel { method, status }).inc();
    }

    pub(crate) fn rate_limit_exceeded(&self, method: &'static str) {
        self.rate_limit_exceeded.get_or_create(&MethodLabel { method }).inc();
    }

    pub(crate) fn issued(&self, kind: &'static str) {
        self.issued.get_or_create(&KindLabel { kind }).inc();
    }

    pub(crate) fn failed(&self, kind: &'static str) {
        self.failed.get_or_create(&KindLabel { kind }).inc();
    }

    /// All metrics in Prometheus's text form.
    pub(crate) fn render(&self, reading: &Reading) -> String {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for (kind, secs) in &reading.expires_in {
            self.expires_in.get_or_create(&KindLabel { kind }).set(*secs);
        }
        self.last_contact.set(reading.last_contact_secs);
        self.revision.set(i64::try_from(reading.revision).unwrap_or(i64::MAX));
        self.entries.set(count(reading.entries));
        self.held_x509.set(count(reading.held_x509));
        self.held_jwt.set(count(reading.held_jwt));
        self.streams.set(count(reading.streams));
        let mut registry = Registry::with_prefix("countersign_agent");
        registry.register("workload_api", "Workload API calls by method and outcome", self.calls.clone());
        registry.register(
            "rate_limit_exceeded",
            "Calls of workloads beyond the limits of `ratelimit`, by method",
            self.rate_limit_exceeded.clone(),
        );
        registry.register("issued", "Credentials fetched for workloads by kind", self.issued.clone());
        registry.register("issue_failed", "Credentials that could not be fetched by kind", self.failed.clone());
        registry.register(
            "expires_in_seconds",
            "Time to the end of the agent's SVID, and of the first of its workloads'",
            self.expires_in.clone(),
        );
        registry.register("last_contact_seconds", "Time since the server was last heard of", self.last_contact.clone());
        registry.register("revision", "Revision of the log the agent has applied", self.revision.clone());
        registry.register("entries", "Registration entries the agent has", self.entries.clone());
        registry.register("held_x509_svids", "X509-SVIDs held for workloads", self.held_x509.clone());
        registry.register("held_jwt_svids", "JWT-SVIDs held for workloads", self.held_jwt.clone());
        registry.register("streams", "Open workload streams", self.streams.clone());
        let mut text = String::new();
        // Writing into a text cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}
