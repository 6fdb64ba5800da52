//! Logs in SPIRE's forms: `time="…" level=info msg="…" key=value` or one JSON object a line, fields sorted by name.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use countersign_server::api::LogLevels;
use countersign_transport::observe::Logging;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{Layer, registry};

use crate::output::Failure;

/// SPIRE's level names, from quiet to loud. `panic` and `fatal` show nothing that is not also an error here.
const NAMES: [&str; 7] = ["panic", "fatal", "error", "warning", "info", "debug", "trace"];

/// The level of the process, shared with whoever may change it.
#[derive(Debug)]
pub(crate) struct Levels {
    current: AtomicU8,
    launch: u8,
}

impl LogLevels for Levels {
    fn current(&self) -> String {
        name(self.current.load(Ordering::Relaxed))
    }

    fn launch(&self) -> String {
        name(self.launch)
    }

    fn set(&self, level: &str) -> bool {
        let Some(number) = number(level) else { return false };
        self.current.store(number, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
        true
    }
}

fn number(level: &str) -> Option<u8> {
    let level = if level == "warn" { "warning" } else { level };
    NAMES.iter().position(|n| *n == level).and_then(|at| u8::try_from(at).ok())
}

fn name(number: u8) -> String {
    NAMES.get(usize::from(number)).copied().unwrap_or("info").to_owned()
}

fn number_of(level: Level) -> u8 {
    match level {
        Level::ERROR => 2,
        Level::WARN => 3,
        Level::INFO => 4,
        Level::DEBUG => 5,
        Level::TRACE => 6,
    }
}

/// Sets up the process's logging.
///
/// # Errors
/// The log file cannot be opened.
pub(crate) fn start(settings: &Logging) -> Result<Arc<Levels>, Failure> {
    let launch = number(&settings.level).unwrap_or(4);
    let levels = Arc::new(Levels { current: AtomicU8::new(launch), launch });
    let out: Box<dyn Write + Send> = match &settings.file {
        None => Box::new(std::io::stdout()),
        Some(path) => Box::new(
            OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o640)
                .open(path)
                .map_err(|e| Failure::new(format!("cannot open log_file `{}`: {e}", path.display())))?,
        ),
    };
    let lines = Lines { out: Mutex::new(out), json: settings.json, source_location: settings.source_location, levels: Arc::clone(&levels) };
    // A second start in one process, as tests do, keeps the first logger.
    let _ = tracing::subscriber::set_global_default(registry().with(lines));
    Ok(levels)
}

struct Lines {
    out: Mutex<Box<dyn Write + Send>>,
    json: bool,
    source_location: bool,
    levels: Arc<Levels>,
}

impl Lines {
    fn wanted(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries are heard when they warn; at trace level, always. Spans are never shown, and cost much where each
        // frame of HTTP/2 has one.
        let level = self.levels.current.load(Ordering::Relaxed);
        let ours = metadata.target().starts_with("countersign");
        metadata.is_event() && number_of(*metadata.level()) <= level && (ours || *metadata.level() <= Level::WARN || level == 6)
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    /// Asked once for each place in the code, and again when the level changes: what is not wanted then costs nothing.
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wanted(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wanted(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.levels.current.load(Ordering::Relaxed) {
            0 | 1 => LevelFilter::OFF,
            2 => LevelFilter::ERROR,
            3 => LevelFilter::WARN,
            4 => LevelFilter::INFO,
            5 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        if self.source_location {
            if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
                fields.values.insert("file".to_owned(), Value::from(format!("{file}:{line}")));
            }
            fields.values.insert("func".to_owned(), Value::from(metadata.module_path().unwrap_or_default()));
        }
        let level = name(number_of(*metadata.level()));
        let now = time::OffsetDateTime::now_utc().format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
        let line = if self.json { json_line(&fields, &level, &now) } else { text_line(&fields, &level, &now) };
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = out.write_all(line.as_bytes());
        let _ = out.flush();
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    values: BTreeMap<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), &value) {
            ("message", Value::String(text)) => self.message.clone_from(text),
            (name, _) => {
                self.values.insert(name.trim_start_matches("r#").to_owned(), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

fn json_line(fields: &Fields, level: &str, now: &str) -> String {
    let mut members: Map<String, Value> = fields.values.clone().into_iter().collect();
    members.insert("level".to_owned(), level.into());
    members.insert("msg".to_owned(), fields.message.clone().into());
    members.insert("time".to_owned(), now.into());
    Value::Object(members).to_string() + "\n"
}

fn text_line(fields: &Fields, level: &str, now: &str) -> String {
    use fmt::Write as _;
    let mut line = format!("time={} level={level} msg={}", quoted(now, true), quoted(&fields.message, true));
    for (name, value) in &fields.values {
        let shown = match value {
            Value::String(text) => quoted(text, false),
            other => other.to_string(),
        };
        let _ = write!(line, " {name}={shown}");
    }
    line + "\n"
}

/// Quoted where it is not one plain word, with everything escaped that could forge a line.
fn quoted(text: &str, always: bool) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '/' | '@' | '^' | '+');
    if !always && !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("{text:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_lines_have_spires_form_and_cannot_be_forged() {
        let mut fields = Fields { message: "Agent \"banned\"".to_owned(), ..Fields::default() };
        fields.values.insert("b".to_owned(), "x\nlevel=info".into());
        fields.values.insert("a".to_owned(), 5.into());
        let line = text_line(&fields, "info", "2026-01-01T00:00:00Z");
        assert_eq!(line, "time=\"2026-01-01T00:00:00Z\" level=info msg=\"Agent \\\"banned\\\"\" a=5 b=\"x\\nlevel=info\"\n");
    }

    #[test]
    fn levels_have_spires_names() {
        let levels = Levels { current: AtomicU8::new(4), launch: 4 };
        assert!(levels.set("warn"));
        assert_eq!(levels.current(), "warning");
        assert!(!levels.set("loud"));
        assert_eq!((levels.current(), levels.launch()), ("warning".to_owned(), "info".to_owned()));
    }
}
