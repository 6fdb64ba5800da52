//! `countersign completions`, `countersign man`: what shells and `man` show of the commands, made from the same definitions
//! as `--help`.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::aot;
use countersign_identity::Timestamp;
use countersign_transport::clock::{Clock as _, SystemClock};

use crate::output::{self, Failure, Outcome};

/// `countersign completions`
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// `countersign man`
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Where the pages go; made if it is not there
    #[arg(long, value_name = "DIRECTORY")]
    dir: PathBuf,
}

impl Completions {
    pub(crate) fn run(self) -> Outcome {
        let shell = match self.shell {
            Shell::Bash => aot::Shell::Bash,
            Shell::Zsh => aot::Shell::Zsh,
            Shell::Fish => aot::Shell::Fish,
        };
        let mut script = Vec::new();
        aot::generate(shell, &mut crate::Arguments::command(), "countersign", &mut script);
        output::text(&String::from_utf8_lossy(&script));
        Ok(())
    }
}

impl Man {
    pub(crate) fn run(self) -> Outcome {
        let failed = |e: std::io::Error| Failure::new(format!("cannot write manual pages into `{}`: {e}", self.dir.display()));
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        let mut command = crate::Arguments::command().disable_help_subcommand(true);
        command.build();
        // Packages that are built again must be the same byte for byte; this variable is how their builders say when "now" is.
        let fixed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|secs| secs.parse().ok()).map(Timestamp::from_secs);
        let made = fixed.unwrap_or_else(|| SystemClock.now()).rfc3339();
        let day = made.split('T').next().unwrap_or_default();
        let written = write(command, day, &self.dir).map_err(failed)?;
        output::line(&format!("{} written to {}", output::count(written, "manual page", "manual pages"), self.dir.display()));
        Ok(())
    }
}

/// Writes the page of a command and of all below it; returns how many.
fn write(command: clap::Command, day: &str, directory: &Path) -> std::io::Result<usize> {
    let mut written = 1;
    for below in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        written += write(below.clone(), day, directory)?;
    }
    let source = format!("countersign {}", crate::run::VERSION);
    let page = clap_mangen::Man::new(command).date(day).source(source).manual("Countersign");
    let mut text = Vec::new();
    page.render(&mut text)?;
    std::fs::write(directory.join(page.get_filename()), settled(&String::from_utf8_lossy(&text)))?;
    Ok(written)
}

/// A page that formatters read without complaint: an empty line is a break already.
fn settled(page: &str) -> String {
    let lines: Vec<&str> = page.lines().collect();
    let is_empty = |index: Option<usize>| index.and_then(|i| lines.get(i)).is_some_and(|line| line.is_empty());
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        if *line == ".br" && (is_empty(index.checked_sub(1)) || is_empty(index.checked_add(1))) {
            continue;
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}
