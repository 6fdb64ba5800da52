//! SPIRE's command line, for a binary that is called `spire-server` or `spire-agent`.
//!
//! A table of commands and flags over the code of our own commands. What scripts match on is SPIRE's: names, defaults, texts,
//! exit codes, JSON. Sentences that only people read, such as the help of a flag, are ours.

mod agent;
mod command;
mod connect;
mod flags;
mod go;
mod json;
mod overlay;
mod server;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::path::Path;

use command::{Command, NOT_FOUND, WRONG};

use crate::output::{self, Failure, Outcome};

/// Under which of SPIRE's names the binary was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    Server,
    Agent,
}

impl Face {
    /// By the file name of the program: a symlink, a hard link and a copy have it alike.
    pub(crate) fn of(program: Option<&OsStr>) -> Option<Self> {
        match Path::new(program?).file_name()?.to_str()? {
            "spire-server" => Some(Self::Server),
            "spire-agent" => Some(Self::Agent),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Server => "spire-server",
            Self::Agent => "spire-agent",
        }
    }

    fn commands(self) -> Vec<&'static Command> {
        match self {
            Self::Server => server::commands(&std::env::var("SPIRE_SERVER_FFLAGS").unwrap_or_default()),
            Self::Agent => agent::COMMANDS.iter().collect(),
        }
    }

    /// Runs one command line. It says itself what went wrong; what is left is the exit code.
    pub(crate) async fn run_line(self, arguments: impl Iterator<Item = OsString>) -> Outcome {
        let arguments: Result<Vec<String>, OsString> = arguments.map(OsString::into_string).collect();
        let arguments = arguments.map_err(|wrong| Failure::new(format!("`{}` is not UTF-8", wrong.display())))?;
        match self.run(&arguments).await {
            0 => Ok(()),
            code => Err(Failure::silent(code)),
        }
    }

    async fn run(self, arguments: &[String]) -> u8 {
        let commands = self.commands();
        let line = Line::read(&commands, arguments);
        if line.is_version {
            output::note(crate::run::VERSION);
            return 0;
        }
        let found = commands.iter().find(|c| c.name == line.words);
        let is_group = !line.words.is_empty() && commands.iter().any(|c| below(c.name, &line.words).is_some());
        match found {
            _ if line.is_help && line.words.is_empty() => {
                output::note(&self.overview(&commands));
                0
            }
            None if !is_group => {
                output::note(&self.overview(&commands));
                NOT_FOUND
            }
            _ if line.is_help => {
                output::error_text(&help(&commands, &line.words));
                0
            }
            _ if line.has_flags_before => {
                output::note(
                    "Invalid flags before the subcommand. If these flags are for\nthe subcommand, please put them after the subcommand.\n",
                );
                output::error_text(&help(&commands, &line.words));
                WRONG
            }
            Some(command) => command.run(line.rest).await,
            None => {
                output::error_text(&help(&commands, &line.words));
                WRONG
            }
        }
    }

    fn overview(self, commands: &[&Command]) -> String {
        let head = format!("Usage: {} [--version] [--help] <command> [<args>]\n\nAvailable commands are:\n", self.name());
        listed(commands, "").iter().fold(head, |text, (name, synopsis)| text + &format!("    {name}    {synopsis}\n"))
    }
}

/// A command line, cut into the command and what is for it.
struct Line<'a> {
    /// The command's name, or that of a group, or a word that is neither.
    words: String,
    rest: &'a [String],
    is_help: bool,
    is_version: bool,
    has_flags_before: bool,
}

impl<'a> Line<'a> {
    /// Help is asked for anywhere before `--`, even where another flag's value stands. A command's name may be followed by words.
    fn read(commands: &[&Command], arguments: &'a [String]) -> Self {
        let mut line = Self { words: String::new(), rest: &[], is_help: false, is_version: false, has_flags_before: false };
        for (index, argument) in arguments.iter().enumerate().take_while(|(_, a)| *a != "--") {
            if matches!(argument.as_str(), "-h" | "-help" | "--help") {
                line.is_help = true;
            } else if !line.words.is_empty() || argument.is_empty() {
                // It belongs to the command.
            } else if matches!(argument.as_str(), "-v" | "-version" | "--version") {
                line.is_version = true;
            } else if argument.starts_with('-') {
                line.has_flags_before = true;
            } else if argument.contains(' ') {
                return line;
            } else {
                let tail = arguments.get(index..).unwrap_or_default();
                let words: Vec<&str> =
                    tail.iter().map(String::as_str).take_while(|w| !w.is_empty() && !w.starts_with('-') && !w.contains(' ')).collect();
                let known = |name: &str| commands.iter().any(|c| c.name == name || below(c.name, name).is_some());
                let count = (1..=words.len()).rev().find(|n| known(&words.get(..*n).unwrap_or_default().join(" "))).unwrap_or(1);
                line.words = words.get(..count).unwrap_or_default().join(" ");
                line.rest = tail.get(count..).unwrap_or_default();
            }
        }
        line
    }
}

/// What of a command's name stands below a group: `show` of `entry show` below `entry`. Everything is below the empty group.
fn below<'a>(name: &'a str, group: &str) -> Option<&'a str> {
    if group.is_empty() { Some(name) } else { name.strip_prefix(group)?.strip_prefix(' ') }
}

/// The words directly below a group with what they do, sorted, padded to the same width.
fn listed(commands: &[&Command], group: &str) -> Vec<(String, &'static str)> {
    let mut found: Vec<(&str, &'static str)> = Vec::new();
    for command in commands {
        let Some(rest) = below(command.name, group) else { continue };
        let word = rest.split(' ').next().unwrap_or(rest);
        let synopsis = if word == rest { command.synopsis } else { "" };
        match found.iter_mut().find(|(known, _)| *known == word) {
            Some(known) if known.1.is_empty() => known.1 = synopsis,
            Some(_) => {}
            None => found.push((word, synopsis)),
        }
    }
    found.sort_unstable();
    let width = found.iter().map(|(word, _)| word.len()).max().unwrap_or_default();
    found.into_iter().map(|(word, synopsis)| (format!("{word:<width$}"), synopsis)).collect()
}

/// The help of a command or group: first the flags of everything that is listed, then the list.
fn help(commands: &[&Command], words: &str) -> String {
    let own = commands.iter().find(|c| c.name == words);
    let mut text = own.map(|c| c.usage()).unwrap_or_default();
    let subcommands = listed(commands, words);
    for (word, _) in &subcommands {
        let name = format!("{words} {}", word.trim_end());
        text += &commands.iter().find(|c| c.name == name).map(|c| c.usage()).unwrap_or_default();
    }
    text += own.map_or("This command is accessed by using one of the subcommands below.", |c| c.manner.help_end);
    if !subcommands.is_empty() {
        text += "\n\nSubcommands:";
        for (word, synopsis) in &subcommands {
            text += &format!("\n    {word}    {synopsis}");
        }
    }
    text + "\n"
}
