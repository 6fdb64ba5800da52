//! `countersign fetch x509 --write DIRECTORY --watch`: files for programs that know nothing of SPIFFE, kept fresh.
//!
//! `stream` follows the agent, `svids` checks what it sends, `directory` writes it, `reload` tells the program that reads it,
//! `keeper` decides when. It never removes the last files: what to do with an identity that was taken away is the operator's
//! decision, and a program without certificate is down.

mod directory;
mod keeper;
mod ready;
mod reload;
mod stream;
mod svids;
#[cfg(test)]
mod tests;
mod validity;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use countersign_transport::clock::{SharedClock, SystemClock};
use rustix::process::Signal;
use tokio::sync::{Notify, mpsc};

pub(crate) use directory::is_kept;
pub(crate) use svids::Choice;

use crate::client::WorkloadSocket;
use crate::output::{self, Failure, Outcome};
use directory::{Access, Directory};
use keeper::Keeper;
use reload::Reload;

/// Longest time a command may be given: one that takes longer is not a reload.
const EXEC_TIMEOUT_SECS_MAX: u64 = 3600;
/// Where groups are looked up by name.
const GROUPS: &str = "/etc/group";
/// Largest list of groups read.
const GROUPS_BYTES_MAX: u64 = 16 << 20;
/// Messages of the agent that wait to be written: only the newest counts, so one is enough.
const MESSAGES_WAITING: usize = 1;

/// How `--watch` keeps the files.
#[derive(Debug, Clone, Args)]
pub(crate) struct Watch {
    /// Stay, and replace the files at every renewal; svid.pem, svid.key and bundle.pem are those of the first SVID
    #[arg(long, requires = "write", conflicts_with_all = ["output", "timeout"])]
    watch: bool,
    /// Mode of the keys, in octal; never readable by others [default: 0600, with --group 0640]
    #[arg(long, value_name = "MODE", value_parser = parse_key_mode, requires = "watch")]
    key_mode: Option<u32>,
    /// Group of the keys, by name or number, for a program that runs as another user
    #[arg(long, value_name = "GROUP", requires = "watch")]
    group: Option<String>,
    /// Send this signal (such as HUP) after each change to the process in --pid-file
    #[arg(long, value_name = "SIGNAL", value_parser = reload::parse_signal, requires_all = ["watch", "pid_file"])]
    signal: Option<(String, Signal)>,
    /// File whose first line is the number of the process to signal
    #[arg(long, value_name = "FILE", requires = "signal")]
    pid_file: Option<PathBuf>,
    /// How long the command of --exec may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=EXEC_TIMEOUT_SECS_MAX))]
    exec_timeout: u64,
    /// Run this after each change; the last option: all that follows is the command and its arguments, without a shell
    #[arg(long, value_name = "COMMAND", num_args = 1.., allow_hyphen_values = true, requires = "watch", conflicts_with = "signal")]
    exec: Vec<OsString>,
}

impl Watch {
    pub(crate) fn is_asked_for(&self) -> bool {
        self.watch
    }

    /// Keeps the files until a signal.
    pub(crate) async fn run(self, socket: WorkloadSocket, directory: &Path, choice: Choice) -> Outcome {
        let group = self.group.as_deref().map(group_number).transpose().map_err(Failure::new)?;
        let key_mode = self.key_mode.unwrap_or(if group.is_some() { 0o640 } else { 0o600 });
        let directory = Directory::open(directory, Access { key_mode, group }).map_err(Failure::new)?;
        let reload = match (self.signal, self.pid_file) {
            (Some((name, signal)), Some(pid_file)) => Some(Reload::Signal { name, signal, pid_file }),
            _ if self.exec.is_empty() => None,
            _ => Some(Reload::Command { arguments: self.exec, timeout: Duration::from_secs(self.exec_timeout) }),
        };
        let stopped = crate::run::stop_signal()?;
        let clock: SharedClock = Arc::new(SystemClock);
        let (to, messages) = mpsc::channel(MESSAGES_WAITING);
        let again = Arc::new(Notify::new());
        let following = tokio::spawn(stream::follow(socket, Arc::clone(&clock), Arc::clone(&again), to));
        let keeper = Keeper::new(directory, choice, reload, clock, again, Box::new(output::note));
        tokio::select! {
            () = keeper.run(messages) => {}
            () = stopped => {}
        }
        following.abort();
        Ok(())
    }
}

fn parse_key_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).map_err(|_| format!("`{text}` is not a mode in octal, such as 0640"))?;
    if mode & !0o660 != 0 || mode & 0o400 == 0 {
        return Err(format!("`{text}` must let the owner read the key, and nobody but owner and group do anything with it"));
    }
    Ok(mode)
}

/// The number of a group of this machine.
fn group_number(name: &str) -> Result<u32, String> {
    use std::io::Read as _;
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let mut text = Vec::new();
    let read = std::fs::File::open(GROUPS).and_then(|f| f.take(GROUPS_BYTES_MAX).read_to_end(&mut text));
    read.map_err(|e| format!("cannot read `{GROUPS}`: {e}"))?;
    let found = String::from_utf8_lossy(&text).lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1).and_then(|number| number.parse().ok())).flatten()
    });
    found.ok_or_else(|| format!("there is no group `{name}` in `{GROUPS}`; one of a directory service is given by its number"))
}
