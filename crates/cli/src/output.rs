//! What commands print: tables for people, JSON for programs. A closed pipe ends the output, not the program in a panic.

use std::fmt;
use std::io::Write as _;

use anstyle::AnsiColor;
use clap::ValueEnum;
use serde_json::Value;

use crate::colour;

mod wiped;

pub(crate) use wiped::{Wiped, WipedValue};

/// What a command failed with: a sentence for whoever typed it, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    text: String,
    code: u8,
}

/// The result of a command.
pub(crate) type Outcome = Result<(), Failure>;

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: 1 }
    }

    /// With another exit code, and nothing to say.
    pub(crate) fn silent(code: u8) -> Self {
        Self { text: String::new(), code }
    }

    /// Nothing went wrong, and the answer, which was printed, is no.
    pub(crate) fn no() -> Self {
        Self { text: String::new(), code: 1 }
    }

    /// For commands whose exit code 1 is the answer no: there was no answer.
    pub(crate) fn unanswered(self) -> Self {
        Self { code: 2, ..self }
    }

    /// Says it on standard error, if there is anything to say, and gives the exit code.
    pub(crate) fn report(&self) -> u8 {
        if !self.text.is_empty() {
            error(&self.text);
        }
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A gRPC status is said in its own words; the code only where it says more.
impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self::new(format!("rpc error: code = {:?} desc = {}", status.code(), status.message()))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people.
    Table,
    /// For programs; proto field names, 64-bit integers as strings.
    Json,
    /// The same as JSON has, in YAML.
    Yaml,
}

/// The option every command with a result has.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct OutputArgs {
    /// Form of the output
    #[arg(long, value_enum, default_value = "table", value_name = "FORM")]
    pub(crate) output: Form,
}

impl OutputArgs {
    /// Prints a result in the form asked for.
    pub(crate) fn show(self, json: impl FnOnce() -> Value, table: impl FnOnce() -> String) {
        match self.output {
            Form::Json => Wiped::json(&WipedValue(json()).0).print_line(),
            Form::Yaml => yaml(&WipedValue(json()).0).print(),
            Form::Table => text(&table()),
        }
    }
}

/// A value as YAML. Texts stay on one line: what is in them may have come from anywhere.
fn yaml(value: &Value) -> Wiped {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let mut text = Wiped::default();
    if serde_saphyr::to_io_writer_with_options(&mut text, value, options).is_err() {
        // JSON is YAML too.
        text = Wiped::json(value);
        let _ = text.write_all(b"\n");
    }
    text
}

/// A line on standard output.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Text on standard output, as it is.
pub(crate) fn text(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// A line on standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Text on standard error, as it is.
pub(crate) fn error_text(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// An error on standard error.
pub(crate) fn error(text: &str) {
    note(&format!("{} {text}", colour::paint_error(AnsiColor::Red.on_default().bold(), "Error:")));
}

/// Lines of `label : value`, labels padded to the same width.
pub(crate) struct Block {
    width: usize,
    text: String,
}

impl Block {
    pub(crate) fn new(width: usize) -> Self {
        Self { width, text: String::new() }
    }

    pub(crate) fn row(&mut self, label: &str, value: impl fmt::Display) {
        use std::fmt::Write as _;
        let _ = writeln!(self.text, "{label:<width$}: {value}", width = self.width, value = clean(&value.to_string()));
    }

    pub(crate) fn finish(self) -> String {
        self.text + "\n"
    }
}

/// A value as it may be shown. Values come from agents and files; none may move the cursor or forge a line.
pub(crate) fn clean(value: &str) -> String {
    value.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `1 entry`, `2 entries`.
pub(crate) fn count(n: usize, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

/// A time as people read it; nothing for 0.
pub(crate) fn time(secs: i64) -> String {
    countersign_identity::Timestamp::from_secs(secs).rfc3339()
}

#[cfg(test)]
mod tests;
