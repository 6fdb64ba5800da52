//! One row of the table: a command, its flags, and the manner in which it fails.

use std::pin::Pin;

use super::flags::{self, Flag, Given};
use super::{go, json};
use crate::output::{self, Failure, Outcome, WipedValue};

/// Exit code of everything that fails.
pub(super) const WRONG: u8 = 1;
/// Exit code where there is no such command.
pub(super) const NOT_FOUND: u8 = 127;

/// A command at work.
pub(super) type Work = Pin<Box<dyn Future<Output = Outcome>>>;

/// A command.
#[derive(Debug)]
pub(super) struct Command {
    /// All words: `entry create`.
    pub(super) name: &'static str,
    /// What `Usage of …` calls it, which is not always the name.
    pub(super) called: &'static str,
    pub(super) synopsis: &'static str,
    pub(super) manner: Manner,
    pub(super) flags: &'static [&'static [Flag]],
    pub(super) work: fn(Given) -> Work,
}

/// How a command speaks of errors; SPIRE's commands do so in several ways.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// Before an error.
    pub(super) prefix: &'static str,
    /// Whether an error in the flags is said once more after the usage.
    pub(super) repeats: bool,
    /// The last line of the help.
    pub(super) help_end: &'static str,
}

const HELP_END: &str = "flag: help requested";

impl Manner {
    /// Clients of the server and of the agent's admin API.
    pub(super) const CLIENT: Self = Self { prefix: "Error: ", repeats: false, help_end: HELP_END };
    /// `run`, and what else repeats itself.
    pub(super) const PLAIN: Self = Self { prefix: "", repeats: true, help_end: HELP_END };
    /// Clients of the Workload API.
    pub(super) const WORKLOAD: Self = Self { prefix: "", repeats: true, help_end: "" };
}

impl Command {
    pub(super) fn usage(&self) -> String {
        flags::usage(self.called, self.flags)
    }

    /// Runs it and gives its exit code.
    pub(super) async fn run(&self, arguments: &[String]) -> u8 {
        let failed = match Given::parse(self.flags, arguments) {
            Ok(given) => match (self.work)(given).await {
                Ok(()) => return 0,
                Err(failure) => failure.to_string(),
            },
            Err(refused) => {
                let first = if refused == flags::Refused::Help { String::new() } else { format!("{}\n", refused.text()) };
                output::error_text(&(first + &self.usage()));
                if !self.manner.repeats {
                    return WRONG;
                }
                refused.text().to_owned()
            }
        };
        if !failed.is_empty() {
            output::note(&format!("{}{failed}", self.manner.prefix));
        }
        WRONG
    }
}

/// An error with a call's refusal at its end.
pub(super) fn refused(before: &str) -> impl Fn(tonic::Status) -> Failure {
    move |status| {
        let said = go::status(&status);
        Failure::new(if before.is_empty() { said } else { format!("{before}: {said}") })
    }
}

/// Prints an answer: as JSON if that is asked for, else what `pretty` makes of it.
pub(super) fn answer<M: prost::Message>(given: &Given, kind: &str, message: &M, pretty: impl FnOnce(&M) -> Outcome) -> Outcome {
    if !given.is_json() {
        return pretty(message);
    }
    go::json(&WipedValue(json::value(kind, message)?).0).print_line();
    Ok(())
}
