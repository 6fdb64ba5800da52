//! Logs in SPIRE's forms: `time="…" level=info msg="…" key=value` or one JSON object a line, fields sorted by name.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
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

/// Part of a program, by the beginning of its modules, and SPIRE's name for it, which log lines carry as `subsystem_name`. The
/// first that fits counts.
const SUBSYSTEMS: &[(&str, &str)] = &[
    ("countersign::reload", "reconfigurer"),
    ("countersign_server::server", "endpoints"),
    ("countersign_server::api", "api"),
    ("countersign_server::policy", "api"),
    ("countersign_server::authorities", "ca_manager"),
    ("countersign_server::jobs", "node_manager"),
    ("countersign_server::own", "svid_rotator"),
    ("countersign_store", "sql"),
    ("countersign_plugins", "catalog"),
    ("countersign_agent::agent", "endpoints"),
    ("countersign_agent::node", "attestor"),
    ("countersign_agent::api::admin", "debug_api"),
    ("countersign_agent::api", "endpoints"),
    ("countersign_agent::attest", "workload_attestor"),
    ("countersign_agent::cache", "cache_manager"),
    ("countersign_agent::sync", "manager"),
    ("countersign_agent::rotate", "manager"),
    ("countersign_agent::jwt", "manager"),
];

/// The process's log: how it looks, how loud it is, and where it goes.
pub(crate) struct Log {
    current: AtomicU8,
    launch: AtomicU8,
    json: bool,
    fractions: bool,
    source_location: bool,
    file: Option<PathBuf>,
    out: Mutex<Box<dyn Write + Send>>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("current", &self.current).field("file", &self.file).finish_non_exhaustive()
    }
}

impl Log {
    fn new(settings: &Logging) -> Result<Self, Failure> {
        let level = number(&settings.level).unwrap_or(4);
        let out: Box<dyn Write + Send> = match &settings.file {
            None => Box::new(std::io::stdout()),
            Some(path) => Box::new(open(path).map_err(|e| Failure::new(format!("cannot open log_file `{}`: {e}", path.display())))?),
        };
        Ok(Self {
            current: AtomicU8::new(level),
            launch: AtomicU8::new(level),
            json: settings.json,
            fractions: settings.fractions,
            source_location: settings.source_location,
            file: settings.file.clone(),
            out: Mutex::new(out),
        })
    }

    /// Opens the log file anew, after somebody has moved it away. If that fails the former one stays.
    pub(crate) fn reopen(&self) {
        let Some(path) = &self.file else { return };
        match open(path) {
            Ok(file) => *self.out.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(file),
            Err(error) => {
                let error = format!("unable to reopen {}: {error}", path.display());
                tracing::error!(error, "failed to rotate log after signal");
            }
        }
    }

    /// Takes the level of a new configuration, also as the one to go back to.
    pub(crate) fn configure(&self, level: &str) {
        if self.set(level) {
            self.launch.store(self.current.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

impl LogLevels for Log {
    fn current(&self) -> String {
        name(self.current.load(Ordering::Relaxed))
    }

    fn launch(&self) -> String {
        name(self.launch.load(Ordering::Relaxed))
    }

    fn set(&self, level: &str) -> bool {
        let Some(number) = number(level) else { return false };
        self.current.store(number, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
        true
    }
}

/// The group may read it, nobody else; what is there stays.
fn open(path: &Path) -> std::io::Result<std::fs::File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
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
pub(crate) fn start(settings: &Logging) -> Result<Arc<Log>, Failure> {
    let log = Arc::new(Log::new(settings)?);
    // A second start in one process, as tests do, keeps the first logger.
    let _ = tracing::subscriber::set_global_default(registry().with(Lines(Arc::clone(&log))));
    Ok(log)
}

struct Lines(Arc<Log>);

impl Lines {
    fn wanted(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries are heard when they warn; at trace level, always. Spans are never shown, and cost much where each
        // frame of HTTP/2 has one.
        let level = self.0.current.load(Ordering::Relaxed);
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
        Some(match self.0.current.load(Ordering::Relaxed) {
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
        let module = metadata.module_path().unwrap_or_default();
        if let Some((_, subsystem)) = SUBSYSTEMS.iter().find(|(prefix, _)| module.starts_with(prefix)) {
            fields.values.entry("subsystem_name".to_owned()).or_insert_with(|| Value::from(*subsystem));
        }
        if self.0.source_location {
            if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
                let file = Path::new(file).file_name().map_or_else(Default::default, |name| name.to_string_lossy());
                fields.values.insert("file".to_owned(), Value::from(format!("{file}:{line}")));
            }
            fields.values.insert("func".to_owned(), Value::from(module));
        }
        let level = name(number_of(*metadata.level()));
        let now = time_text(time::OffsetDateTime::now_utc(), self.0.fractions);
        let line = if self.0.json { json_line(&fields, &level, &now) } else { text_line(&fields, &level, &now) };
        let mut out = self.0.out.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = out.write_all(line.as_bytes());
        let _ = out.flush();
    }
}

/// Whole seconds unless `log_format` is set, as in SPIRE.
fn time_text(now: time::OffsetDateTime, fractions: bool) -> String {
    let now = if fractions { now } else { now.replace_nanosecond(0).unwrap_or(now) };
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
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
    let mut line = format!("time={} level={level}", quoted(now));
    if !fields.message.is_empty() {
        line += &format!(" msg={}", quoted(&fields.message));
    }
    for (name, value) in &fields.values {
        let shown = match value {
            Value::String(text) => quoted(text),
            other => other.to_string(),
        };
        line += &format!(" {name}={shown}");
    }
    line + "\n"
}

/// Quoted where it is not one plain word or empty, in Go's way, with everything escaped that could forge a line.
fn quoted(text: &str) -> String {
    use fmt::Write as _;
    if text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '/' | '@' | '^' | '+')) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        let code = u32::from(c);
        let _ = match c {
            '"' | '\\' => write!(quoted, "\\{c}"),
            '\n' => write!(quoted, "\\n"),
            '\r' => write!(quoted, "\\r"),
            '\t' => write!(quoted, "\\t"),
            _ if code < 0x20 || code == 0x7f => write!(quoted, "\\x{code:02x}"),
            // Rust escapes what cannot be seen, as Go does, and quotes, which stay here.
            '\'' => write!(quoted, "{c}"),
            _ if c.escape_debug().len() == 1 => write!(quoted, "{c}"),
            _ if code < 0x1_0000 => write!(quoted, "\\u{code:04x}"),
            _ => write!(quoted, "\\U{code:08x}"),
        };
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(file: Option<PathBuf>) -> Logging {
        Logging { level: "info".to_owned(), json: false, fractions: false, file, source_location: false }
    }

    #[test]
    fn text_lines_have_spires_form_and_cannot_be_forged() {
        let mut fields = Fields { message: "Agent \"banned\"".to_owned(), ..Fields::default() };
        for (name, value) in [("b", "x\nlevel=info"), ("c", ""), ("d", "it's \u{7f}\u{202e}\u{1}ü"), ("e", "/run/a-b@c^d+e_f.sock")] {
            fields.values.insert(name.to_owned(), value.into());
        }
        fields.values.insert("a".to_owned(), 5.into());
        let line = text_line(&fields, "info", "2026-01-01T00:00:00Z");
        let expected = concat!(
            "time=\"2026-01-01T00:00:00Z\" level=info msg=\"Agent \\\"banned\\\"\" a=5 b=\"x\\nlevel=info\" c= ",
            "d=\"it's \\x7f\\u202e\\x01ü\" e=/run/a-b@c^d+e_f.sock\n"
        );
        assert_eq!(line, expected);
        fields.message = "Stopped".to_owned();
        assert!(text_line(&fields, "info", "t").starts_with("time=t level=info msg=Stopped a=5"));
    }

    #[test]
    fn json_lines_have_spires_keys_in_order() {
        let mut fields = Fields { message: "Starting Server APIs".to_owned(), ..Fields::default() };
        fields.values.insert("subsystem_name".to_owned(), "endpoints".into());
        fields.values.insert("address".to_owned(), "127.0.0.1:8081".into());
        let line = json_line(&fields, "info", "t");
        assert_eq!(
            line,
            "{\"address\":\"127.0.0.1:8081\",\"level\":\"info\",\"msg\":\"Starting Server APIs\",\"subsystem_name\":\"endpoints\",\"time\":\"t\"}\n"
        );
    }

    #[test]
    fn fractions_of_seconds_are_shown_where_the_format_is_named() {
        let now = time::OffsetDateTime::from_unix_timestamp_nanos(1_767_225_600_123_456_789).unwrap();
        assert_eq!(time_text(now, false), "2026-01-01T00:00:00Z");
        assert_eq!(time_text(now, true), "2026-01-01T00:00:00.123456789Z");
    }

    #[test]
    fn levels_have_spires_names() {
        let log = Log::new(&settings(None)).unwrap();
        assert!(log.set("warn"));
        assert_eq!(log.current(), "warning");
        assert!(!log.set("loud"));
        assert_eq!((log.current(), log.launch()), ("warning".to_owned(), "info".to_owned()));
        log.configure("debug");
        assert_eq!((log.current(), log.launch()), ("debug".to_owned(), "debug".to_owned()));
    }

    #[test]
    fn a_log_file_that_was_moved_is_opened_anew_and_never_truncated() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.log");
        std::fs::write(&path, "before\n").unwrap();
        let log = Log::new(&settings(Some(path.clone()))).unwrap();
        let write = |text: &str| log.out.lock().unwrap().write_all(text.as_bytes()).unwrap();
        write("first\n");
        let moved = directory.path().join("server.log.1");
        std::fs::rename(&path, &moved).unwrap();
        write("still the old file\n");
        log.reopen();
        write("second\n");
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "before\nfirst\nstill the old file\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "second\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777 & !0o640, 0, "nobody else may read it");
        // Where the new file cannot be opened the old one stays.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        log.reopen();
        write("third\n");
    }
}
