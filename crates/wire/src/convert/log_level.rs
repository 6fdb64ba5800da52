//! Levels of a log, by SPIRE's names.

use crate::types::LogLevel;

const NAMES: [(LogLevel, &str); 7] = [
    (LogLevel::Panic, "panic"),
    (LogLevel::Fatal, "fatal"),
    (LogLevel::Error, "error"),
    (LogLevel::Warn, "warning"),
    (LogLevel::Info, "info"),
    (LogLevel::Debug, "debug"),
    (LogLevel::Trace, "trace"),
];

/// The name of a level; nothing for what is none.
pub fn from_wire(level: i32) -> Option<&'static str> {
    NAMES.iter().find(|(known, _)| i32::from(*known) == level).map(|(_, name)| *name)
}

/// The level of this name; `warn` is `warning`, as in configurations.
pub fn to_wire(name: &str) -> LogLevel {
    let name = if name == "warn" { "warning" } else { name };
    NAMES.iter().find(|(_, known)| *known == name).map_or(LogLevel::Unspecified, |(level, _)| *level)
}
