//! What is wrong with a configuration: where, which key, and what to do about it.

use std::fmt;
use std::sync::Arc;

/// A place in a file. Line 0 means the file as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file as the user named it.
    pub file: Arc<str>,
    /// From 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 { f.write_str(&self.file) } else { write!(f, "{}:{}", self.file, self.line) }
    }
}

/// One error: `file:line: what is wrong`, and a hint in a line of its own where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    place: Place,
    message: String,
    hint: Option<String>,
}

impl ConfigError {
    /// At this place.
    pub fn new(place: &Place, message: impl Into<String>) -> Self {
        Self { place: place.clone(), message: message.into(), hint: None }
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn unreadable(place: &Place, source: &std::io::Error) -> Self {
        let error = Self::new(place, format!("cannot be read: {source}"));
        match source.kind() {
            std::io::ErrorKind::NotFound => error.hint("name the configuration file with --config"),
            std::io::ErrorKind::InvalidData => error.hint("save the file as UTF-8"),
            _ => error,
        }
    }

    /// The sentence without its place.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
