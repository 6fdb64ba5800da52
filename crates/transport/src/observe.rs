//! Whoever watches the process: logging, `/live` and `/ready`, and Prometheus; SPIRE's configuration blocks for them,
//! which server and agent share.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use countersign_config::{ConfigError, Section, Spanned};
use tokio::net::TcpListener;

/// Sinks other than Prometheus.
const SINKS_LATER: &[&str] = &["DogStatsd", "Statsd", "M3", "InMem"];
/// What names or leaves out metrics.
const NAMES_LATER: &[&str] = &["MetricPrefix", "AllowedPrefixes", "BlockedPrefixes", "AllowedLabels", "BlockedLabels"];

/// How the process logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    /// `panic` … `trace`.
    pub level: String,
    /// JSON instead of text.
    pub json: bool,
    /// Times with fractions of seconds: where the format is named, as in SPIRE.
    pub fractions: bool,
    /// A file instead of standard output.
    pub file: Option<PathBuf>,
    /// Adds file and line.
    pub source_location: bool,
}

/// A line of the log that can come as often as somebody likes, or whenever something fails: now and then some are written, and
/// the others are counted.
#[derive(Debug)]
pub struct Seldom {
    lines: u32,
    interval: Duration,
    state: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    /// When the interval began.
    since: Option<Duration>,
    /// Lines in it.
    lines: u32,
    /// How many were not written since the last that was.
    left_out: u64,
}

impl Seldom {
    /// So many lines in each interval.
    pub fn new(lines: u32, interval: Duration) -> Self {
        Self { lines, interval, state: Mutex::default() }
    }

    /// Whether one more is written, and how many were not since the last one; `now` is steady time.
    pub fn turn(&self, now: Duration) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now.saturating_sub(since) >= self.interval) {
            (state.since, state.lines) = (Some(now), 0);
        }
        if state.lines == self.lines {
            state.left_out += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

/// Reads and sets the log level of the process.
pub trait LogLevels: Send + Sync {
    /// The level now, by SPIRE's names (`panic` … `trace`).
    fn current(&self) -> String;
    /// The level at the start.
    fn launch(&self) -> String;
    /// Sets the level; false if it cannot be.
    fn set(&self, level: &str) -> bool;
}

/// The level of a process whose log is not ours to set.
#[derive(Debug)]
pub struct FixedLevel(pub String);

impl LogLevels for FixedLevel {
    fn current(&self) -> String {
        self.0.clone()
    }

    fn launch(&self) -> String {
        self.0.clone()
    }

    fn set(&self, _: &str) -> bool {
        false
    }
}

/// The listener for liveness and readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthChecks {
    /// Name or address.
    pub bind_address: String,
    /// Port.
    pub bind_port: u16,
    /// Path of liveness.
    pub live_path: String,
    /// Path of readiness.
    pub ready_path: String,
}

/// The listener for Prometheus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prometheus {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Logging {
    /// The logging keys, which server and agent share.
    ///
    /// # Errors
    /// A wrong level or format.
    pub fn read(section: &mut Section) -> Result<Self, ConfigError> {
        let level = match section.filled("log_level")? {
            None => "info".to_owned(),
            Some(text) => match text.value.to_ascii_lowercase().as_str() {
                "warning" => "warn".to_owned(),
                known @ ("panic" | "fatal" | "error" | "warn" | "info" | "debug" | "trace") => known.to_owned(),
                other => {
                    return Err(
                        text.error(format!("not a valid log level: {other:?}; expected panic, fatal, error, warn, info, debug or trace"))
                    );
                }
            },
        };
        let (json, fractions) = match section.filled("log_format")? {
            None => (false, false),
            Some(text) => match text.value.to_ascii_lowercase().as_str() {
                "json" => (true, true),
                "text" => (false, true),
                _ => return Err(text.error(format!("unknown logger format: {:?}; expected text or json", text.value))),
            },
        };
        Ok(Self {
            level,
            json,
            fractions,
            file: section.filled("log_file")?.map(|s| PathBuf::from(s.value)),
            source_location: section.boolean("log_source_location")?.is_some_and(|b| b.value),
        })
    }
}

impl HealthChecks {
    /// The `health_checks` block; nothing if the listener is not enabled.
    ///
    /// # Errors
    /// A wrong or unknown setting.
    pub fn read(mut block: Section) -> Result<Option<Self>, ConfigError> {
        let enabled = block.boolean("listener_enabled")?.is_some_and(|b| b.value);
        let path = |given: Option<Spanned<String>>, default: &str| match given {
            None => Ok(default.to_owned()),
            Some(text) if text.value.starts_with('/') && !text.value.contains(['{', '}']) => Ok(text.value),
            Some(text) => Err(text.error("expected a path that begins with a slash")),
        };
        let checks = Self {
            bind_address: block.string("bind_address")?.map_or_else(|| "localhost".to_owned(), |s| s.value),
            bind_port: block.port("bind_port")?.map_or(80, |p| p.value),
            live_path: path(block.string("live_path")?, "/live")?,
            ready_path: path(block.string("ready_path")?, "/ready")?,
        };
        if checks.live_path == checks.ready_path {
            return Err(block.error("live_path and ready_path must differ"));
        }
        block.finish()?;
        Ok(enabled.then_some(checks))
    }
}

impl Prometheus {
    /// The `telemetry` block; nothing without a Prometheus listener.
    ///
    /// # Errors
    /// A wrong or unknown setting, or a sink that is not there yet.
    pub fn read(mut block: Section) -> Result<Option<Self>, ConfigError> {
        for (keys, hint) in [
            (SINKS_LATER, "use `Prometheus { host = … port = … }` meanwhile"),
            (NAMES_LATER, "leave it out, and rename or drop metrics in the scrape job meanwhile"),
        ] {
            for key in keys {
                if let Some(found) = block.take_any(key) {
                    return Err(found.error("is recognised but not supported yet").hint(hint));
                }
            }
        }
        if let Some(label) = block.boolean("EnableTrustDomainLabel")?.filter(|label| label.value) {
            return Err(label
                .error("is recognised but not supported yet")
                .hint("give the scrape job a label with the trust domain meanwhile"));
        }
        // Prometheus itself names the host of what it scrapes, so that there is nothing to do either way.
        block.boolean("EnableHostnameLabel")?;
        let Some(mut prometheus) = block.section("Prometheus")? else {
            block.finish()?;
            return Ok(None);
        };
        if let Some(found) = prometheus.take_any("tls") {
            return Err(found.error("is recognised but not supported yet").hint("bind to localhost meanwhile"));
        }
        let host = prometheus.string("host")?.map_or_else(|| "localhost".to_owned(), |s| s.value);
        let port = prometheus.port("port")?.ok_or_else(|| prometheus.missing("port"))?.value;
        prometheus.finish()?;
        block.finish()?;
        Ok(Some(Self { host, port }))
    }
}

/// Header of an answer about health that says what came of the last reload of the configuration, if there was one.
pub const RELOAD_HEADER: &str = "countersign-last-reload";
/// What a reload may say in that header; clients take 16 KiB of headers in all.
const RELOAD_BYTES_MAX: usize = 2048;

/// What came of the last reload of the configuration, for whoever asks about health.
#[derive(Debug, Default)]
pub struct LastReload(Mutex<Option<String>>);

impl LastReload {
    /// Takes down what came of a reload.
    pub fn set(&self, text: &str) {
        // A header has neither line ends nor anything beyond ASCII.
        let shown = text.chars().map(|c| if c == '\n' { ';' } else { c }).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown.take(RELOAD_BYTES_MAX).collect());
    }

    /// Adds it to an answer.
    pub fn add_to(&self, metadata: &mut tonic::metadata::MetadataMap) {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(value) = text.and_then(|text| tonic::metadata::MetadataValue::try_from(text).ok()) {
            metadata.insert(RELOAD_HEADER, value);
        }
    }
}

/// Tells whether the process can do its work: a JSON body for yes, one for no.
pub type Readiness = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// Makes the text of all metrics.
pub type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// Opens a TCP port for plain listening.
///
/// # Errors
/// In use, or not permitted; the text says what to do.
pub async fn listen(host: &str, port: u16) -> Result<TcpListener, String> {
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    TcpListener::bind(format!("{host}:{port}")).await.map_err(|e| {
        let reason = match e.kind() {
            std::io::ErrorKind::AddrInUse => "the port is in use; stop whoever uses it or configure another".to_owned(),
            std::io::ErrorKind::PermissionDenied => "not permitted; ports below 1024 need privileges".to_owned(),
            _ => e.to_string(),
        };
        format!("cannot listen on {host}:{port}: {reason}")
    })
}

/// Answers liveness (the process answers) and readiness.
pub fn serve_health(listener: TcpListener, settings: &HealthChecks, live: String, readiness: Readiness) {
    let json = |status, body| (status, [(CONTENT_TYPE, "application/json")], body);
    let router = Router::new().route(&settings.live_path, get(move || async move { json(StatusCode::OK, live.clone()) })).route(
        &settings.ready_path,
        get(move || {
            let ready = readiness();
            async move {
                match ready {
                    Ok(body) => json(StatusCode::OK, body),
                    Err(body) => json(StatusCode::INTERNAL_SERVER_ERROR, body),
                }
            }
        }),
    );
    serve(listener, router);
}

/// Answers with all metrics on every path, as SPIRE's listener does.
pub fn serve_metrics(listener: TcpListener, text: MetricsText) {
    let router = Router::new().fallback(get(move || {
        let text = text();
        async move { ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text) }
    }));
    serve(listener, router);
}

fn serve(listener: TcpListener, router: Router) {
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "An HTTP listener ended");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_lines_are_written_in_each_interval_and_the_others_counted_with_the_next() {
        let minute = Duration::from_secs(60);
        let lines = Seldom::new(20, minute);
        let written = |count: usize, now: Duration| (0..count).filter_map(|_| lines.turn(now)).collect::<Vec<_>>();
        assert_eq!(written(700, minute), vec![0; 20]);
        assert_eq!(lines.turn(minute * 2 - Duration::from_nanos(1)), None);
        assert_eq!(written(3, minute * 9), [681, 0, 0]);
        assert_eq!(lines.turn(minute * 10), Some(0), "counted once");
    }
}
