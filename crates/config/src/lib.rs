//! Configuration files as one tree that remembers file, line and key of everything in it.
//!
//! Two syntaxes, HCL and JSON, give the same tree. Readers take what they know from a [`Section`]; what is left over
//! is an error that names the nearest known key. This crate knows no setting by name and reads nothing but files.

mod env;
mod error;
mod fingerprint;
mod hcl;
mod json;
mod overlay;
mod section;

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

pub use env::expand;
pub use error::{ConfigError, Place};
pub use fingerprint::{Changes, Fingerprint};
pub use overlay::{Override, lay_over};
pub use section::{Node, Section, Spanned};

/// Largest configuration file read, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Deepest nesting of blocks, lists and brackets; SPIRE's deepest setting has six.
pub const DEPTH_MAX: usize = 64;

/// Reads and parses a file. With `expand_env`, `$NAME` and `${NAME}` are replaced first, as SPIRE's `-expandEnv` does.
///
/// # Errors
/// Says what is wrong, with file and line, and what to do.
pub fn load(path: &Path, expand_env: bool) -> Result<Section, ConfigError> {
    let name: Arc<str> = path.display().to_string().into();
    let about = Place { file: Arc::clone(&name), line: 0 };
    let mut text = String::new();
    // Not by its length: a pipe and a device have none.
    let file = std::fs::File::open(path).map_err(|e| ConfigError::unreadable(&about, &e))?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|e| ConfigError::unreadable(&about, &e))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::new(&about, format!("the file has more than the {FILE_BYTES_MAX} bytes allowed")));
    }
    let text = if expand_env { expand(&text, |key| std::env::var(key).ok()) } else { text };
    parse(&name, &text)
}

/// Parses a text; `name` stands for the file in errors. A text that begins with `{` is JSON, anything else HCL.
///
/// # Errors
/// As [`load`].
pub fn parse(name: &str, text: &str) -> Result<Section, ConfigError> {
    let file: Arc<str> = name.into();
    if !text.trim_start().starts_with('{') {
        return hcl::parse(&file, text);
    }
    if let Some(line) = deep_line(text) {
        return Err(too_deep(&Place { file, line }));
    }
    json::parse(&file, text)
}

fn too_deep(place: &Place) -> ConfigError {
    ConfigError::new(place, format!("nested deeper than {DEPTH_MAX} levels"))
}

/// The line in which brackets nest too deep for the parser of JSON, which recurses.
fn deep_line(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut line = 1;
    let (mut in_text, mut is_escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_text => is_escaped = true,
            b'"' => in_text = !in_text,
            b'\n' => line += 1,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Some(line);
        }
    }
    None
}

/// From byte offset to line, counted from 1.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

#[cfg(test)]
mod tests;
