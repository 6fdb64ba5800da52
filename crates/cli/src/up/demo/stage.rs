//! Where the demo plays: a directory of its own, three programs in it, and what they report.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use countersign_identity::TrustDomain;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::event::Event;
use super::program;
use crate::output::Failure;
use crate::up::Layout;

/// Reports that may wait to be read: the programs make a dozen a second, and the play pauses for seconds.
const REPORTS_MAX: usize = 4096;
/// How long a program may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Who plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Player {
    Shop,
    Warehouse,
    Stranger,
}

impl Player {
    const ALL: [Self; 3] = [Self::Shop, Self::Warehouse, Self::Stranger];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Shop => "shop",
            Self::Warehouse => "warehouse",
            Self::Stranger => "stranger",
        }
    }
}

/// What a program reports; nothing once it has ended.
pub(super) type Report = (Player, Option<Event>);

/// The directory and the programs.
pub(super) struct Stage {
    pub(super) layout: Layout,
    /// Removed at the end; not if the user named it.
    own: Option<TempDir>,
    running: Vec<Child>,
    sender: mpsc::Sender<Report>,
}

impl Stage {
    /// Makes the directory, or takes one that is named and empty, and puts the programs there.
    pub(super) fn open(directory: Option<&Path>, trust_domain: &TrustDomain) -> Result<(Self, mpsc::Receiver<Report>), Failure> {
        let own = match directory {
            Some(named) => {
                refuse_full(named)?;
                None
            }
            None => Some(
                tempfile::Builder::new()
                    .prefix("countersign-demo-")
                    .tempdir()
                    .map_err(|e| Failure::new(format!("cannot make a directory for the demo: {e}; name one with --dir")))?,
            ),
        };
        let path = directory.or(own.as_ref().map(TempDir::path)).map(Path::to_owned).unwrap_or_default();
        let layout = Layout::open(&path, trust_domain)?.with_programs_discovered();
        put_programs(&layout)?;
        let (sender, receiver) = mpsc::channel(REPORTS_MAX);
        Ok((Self { layout, own, running: Vec::new(), sender }, receiver))
    }

    /// Where a program is; by this path the agent knows it.
    pub(super) fn program(&self, player: Player) -> PathBuf {
        path_of(&self.layout, player)
    }

    /// Starts a program, and returns its process ID.
    pub(super) fn start(&mut self, player: Player, arguments: &[&str]) -> Result<u32, Failure> {
        let path = self.program(player);
        let failed = |e: std::io::Error| {
            let hint = if e.kind() == std::io::ErrorKind::PermissionDenied {
                "; if programs may not run in that directory, name another one with --dir"
            } else {
                ""
            };
            Failure::new(format!("cannot start `{}`: {e}{hint}", path.display()))
        };
        let mut child = Command::new(&path)
            .args([program::NAME, player.name(), "--socket"])
            .arg(self.layout.agent_socket())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // What it fails with is in its last report too.
            .stderr(Stdio::null())
            .process_group(0)
            .env(crate::run::CHILD_OF, std::process::id().to_string())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let pid = child.id().unwrap_or_default();
        if let Some(stdout) = child.stdout.take() {
            let sender = self.sender.clone();
            tokio::spawn(async move {
                let mut lines = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if let Ok(event) = serde_json::from_str(&line) {
                        let _ = sender.send((player, Some(event))).await;
                    }
                }
                let _ = sender.send((player, None)).await;
            });
        }
        self.running.push(child);
        Ok(pid)
    }

    /// Stops the programs.
    pub(super) async fn dismiss(&mut self) {
        for child in &self.running {
            if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        for mut child in self.running.drain(..) {
            if timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }

    /// Removes the directory. Nothing may run in it any more.
    pub(super) fn clear(self) -> Result<(), Failure> {
        let path = self.layout.directory().to_owned();
        drop(self.layout);
        let Some(own) = self.own else { return Ok(()) };
        own.close().map_err(|e| Failure::new(format!("cannot remove `{}`: {e}", path.display())))
    }
}

/// The demo bans an agent and registers its own programs: it must not do that to a trust domain that somebody uses.
fn refuse_full(named: &Path) -> Result<(), Failure> {
    match std::fs::read_dir(named) {
        Ok(mut items) => match items.next() {
            None => Ok(()),
            Some(_) => Err(Failure::new(format!("`{}` is not empty; the demo needs a directory of its own", named.display()))),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Failure::new(format!("cannot use `{}`: {e}", named.display()))),
    }
}

fn path_of(layout: &Layout, player: Player) -> PathBuf {
    layout.directory().join("programs").join(player.name())
}

/// The same executable under three names, so that they are told apart by their path as any three programs are. Linked where
/// that goes, copied from one file system to another.
fn put_programs(layout: &Layout) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::new(format!("cannot put the demo's programs into `{}`: {e}", layout.directory().display()));
    let folder = layout.directory().join("programs");
    std::fs::create_dir(&folder).map_err(failed)?;
    let mut from = std::env::current_exe().map_err(failed)?;
    for player in Player::ALL {
        let to = path_of(layout, player);
        if std::fs::hard_link(&from, &to).is_err() {
            std::fs::copy(&from, &to).map_err(failed)?;
            from = to;
        }
    }
    Ok(())
}
