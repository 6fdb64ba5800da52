//! Whoever watches the process: logging, `/live` and `/ready`, and Prometheus; SPIRE's configuration blocks for them,
//! which server and agent share.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use countersign_config::{ConfigError, Section, Spanned};
use tokio::net::TcpListener;

/// How the process logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    /// `panic` … `trace`.
    pub level: String,
    /// JSON instead of text.
    pub json: bool,
    /// A file instead of standard output.
    pub file: Option<PathBuf>,
    /// Adds file and line.
    pub source_location: bool,
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
        let level = match section.string("log_level")? {
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
        let json = match section.string("log_format")? {
            None => false,
            Some(text) => match text.value.to_ascii_lowercase().as_str() {
                "json" => true,
                "text" | "" => false,
                _ => return Err(text.error(format!("unknown logger format: {:?}; expected text or json", text.value))),
            },
        };
        Ok(Self {
            level,
            json,
            file: section.string("log_file")?.map(|s| PathBuf::from(s.value)),
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
        for sink in ["DogStatsd", "Statsd", "M3", "InMem"] {
            if let Some(found) = block.take_any(sink) {
                return Err(found.error("is recognised but not supported yet").hint("use `Prometheus { host = … port = … }` meanwhile"));
            }
        }
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
