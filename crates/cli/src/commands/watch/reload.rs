//! Telling the program that reads the files: a command that is run, or a signal to the process that a file names.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::process::Command;

/// Longest pid file read; PostgreSQL's has eight lines, of which the first is the pid.
const PID_FILE_BYTES_MAX: u64 = 4096;
/// Longest `/proc/PID/status` read; the kernel's has some sixty lines.
const STATUS_BYTES_MAX: u64 = 64 << 10;

/// The signals that programs reload at, or end at to be started again.
const SIGNALS: &[(&str, Signal)] = &[
    ("HUP", Signal::HUP),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("TERM", Signal::TERM),
    ("WINCH", Signal::WINCH),
];

/// What is done after each change of the files.
#[derive(Debug, Clone)]
pub(super) enum Reload {
    /// Run this, at most so long.
    Command { arguments: Vec<OsString>, timeout: Duration },
    /// Send this to the process in that file.
    Signal { name: String, signal: Signal, pid_file: PathBuf },
}

/// The name of a signal, with or without `SIG`.
pub(super) fn parse_signal(text: &str) -> Result<(String, Signal), String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let found = SIGNALS.iter().find(|(known, _)| *known == name);
    let known = || SIGNALS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    found.map(|(name, signal)| ((*name).to_owned(), *signal)).ok_or_else(|| format!("`{text}` is not one of the signals {}", known()))
}

impl Reload {
    /// Does it; the sentence says what was done, or why it was not.
    pub(super) async fn run(self) -> Result<String, String> {
        match self {
            Self::Command { arguments, timeout } => run_command(&arguments, timeout).await,
            Self::Signal { name, signal, pid_file } => send(&name, signal, &pid_file),
        }
    }
}

async fn run_command(arguments: &[OsString], limit: Duration) -> Result<String, String> {
    let shown = arguments.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let Some((program, rest)) = arguments.split_first() else { return Err("there is no command to run".to_owned()) };
    let spawned = Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        // A group of its own, so that what it starts ends with it if it takes too long.
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(|e| format!("cannot run `{shown}`: {e}"))?;
    let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(Ok(status)) => {
            group.ended();
            if status.success() { Ok(format!("`{shown}` was run")) } else { Err(format!("`{shown}` failed: {status}")) }
        }
        Ok(Err(error)) => Err(format!("`{shown}` failed: {error}")),
        Err(_) => {
            drop(group);
            let _ = child.wait().await;
            Err(format!("`{shown}` was killed: it took longer than {} s", limit.as_secs()))
        }
    }
}

/// The processes of a command; killed when dropped before it has ended, which is when we are told to stop as well.
struct Group(Option<Pid>);

impl Group {
    /// It has ended by itself. What it left running is meant to be.
    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

fn send(name: &str, signal: Signal, pid_file: &Path) -> Result<String, String> {
    let pid = read_pid(pid_file)?;
    let number = pid.as_raw_nonzero();
    let file = pid_file.display();
    if pid == getpid() || number.get() == 1 {
        return Err(format!("no signal is sent to pid {number}, which `{file}` names: that is not a program that reads the files"));
    }
    // Whoever has this pid later cannot get the signal: the descriptor is of this process.
    let process = pidfd_open(pid, PidfdFlags::empty())
        .map_err(|_| format!("pid {number}, which `{file}` names, is not running; the file may be left over"))?;
    if !expects(number.get(), signal)? {
        return Err(format!(
            "no signal is sent to pid {number}, which `{file}` names: it does not handle SIG{name}, which would end it; \
             it may still be starting, or be another program"
        ));
    }
    pidfd_send_signal(process, signal).map_err(|e| format!("cannot send SIG{name} to pid {number}, which `{file}` names: {e}"))?;
    Ok(format!("SIG{name} was sent to pid {number}"))
}

fn read_pid(path: &Path) -> Result<Pid, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|f| f.take(PID_FILE_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|e| format!("cannot read the pid file `{}`: {e}", path.display()))?;
    let first = text.lines().next().unwrap_or_default().trim();
    let pid = first.parse::<i32>().ok().filter(|n| *n > 0).and_then(Pid::from_raw);
    pid.ok_or_else(|| format!("the pid file `{}` does not begin with a process number", path.display()))
}

/// Whether the process catches, ignores or blocks the signal. To most other processes SIGHUP is the end, be it a daemon that
/// has not come so far yet, or a stranger that has got the number of a daemon that crashed.
fn expects(pid: i32, signal: Signal) -> Result<bool, String> {
    let mut status = String::new();
    let read = File::open(format!("/proc/{pid}/status")).and_then(|f| f.take(STATUS_BYTES_MAX).read_to_string(&mut status));
    read.map_err(|e| format!("cannot find out whether pid {pid} handles the signal: {e}"))?;
    let handled = ["SigCgt:", "SigIgn:", "SigBlk:"]
        .iter()
        .filter_map(|label| status.lines().find_map(|l| l.strip_prefix(label)))
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .fold(0, |all, mask| all | mask);
    let bit = u32::try_from(signal.as_raw().saturating_sub(1)).unwrap_or(u32::MAX);
    Ok(handled.checked_shr(bit).is_some_and(|rest| rest & 1 == 1))
}
