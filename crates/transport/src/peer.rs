//! Who is at the other end of a Unix socket: credentials from the kernel, and a pidfd that pins the process.
//!
//! The pidfd is taken from the connection itself where the kernel offers it (`SO_PEERPIDFD`, Linux 6.5), so that a pid
//! that was reused meanwhile can never be mistaken. Elsewhere it is opened by pid; start time and owner are checked, and that
//! somebody still holds the connection, which ends with its process unless it was handed on.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// `SO_PEERPIDFD` of Linux, the same number on every architecture we build for.
const SO_PEERPIDFD: libc::c_int = 77;

/// A process at the other end of a socket, held for the life of the connection. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Process ID in our pid namespace.
    pub pid: u32,
    /// Effective user ID when it connected.
    pub uid: u32,
    /// Effective group ID when it connected.
    pub gid: u32,
    pidfd: Arc<OwnedFd>,
}

/// The program a process runs: device and inode of its executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    device: u64,
    inode: u64,
}

/// The peer cannot be identified.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The kernel does not say who it is.
    #[error("the kernel does not tell the peer's credentials")]
    Credentials(#[source] io::Error),
    /// The caller lives in a pid namespace that cannot be seen from here.
    #[error("the peer's process is not visible from this pid namespace")]
    Invisible,
    /// It ended, or its pid belongs to another process now.
    #[error("the peer's process {0} has ended")]
    Gone(u32),
}

impl Peer {
    /// Identifies the process behind a connected Unix socket.
    ///
    /// # Errors
    /// It cannot be seen, or has ended.
    pub fn of(stream: &tokio::net::UnixStream) -> Result<Self, PeerError> {
        Self::with(stream, true)
    }

    /// As [`Peer::of`], with the choice of the way for kernels without `SO_PEERPIDFD`.
    ///
    /// # Errors
    /// It cannot be seen, or has ended.
    pub fn with(stream: &tokio::net::UnixStream, use_peer_pidfd: bool) -> Result<Self, PeerError> {
        tracing::trace!(hop = "asks the kernel who it is");
        let credentials = stream.peer_cred().map_err(PeerError::Credentials)?;
        let (uid, gid) = (credentials.uid(), credentials.gid());
        let raw = credentials.pid().filter(|pid| *pid > 0).ok_or(PeerError::Invisible)?;
        let pid = u32::try_from(raw).map_err(|_| PeerError::Invisible)?;
        if use_peer_pidfd {
            match peer_pidfd(stream) {
                Ok(pidfd) => return Ok(Self { pid, uid, gid, pidfd: Arc::new(pidfd) }),
                Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {}
                // INVARIANT: a kernel that knows the question and has no answer says that the peer has ended. Its pid may be
                // somebody else's by now, so it must not be looked up.
                Err(_) => return Err(PeerError::Gone(pid)),
            }
        }
        // The pid could have been reused between connect and now: the process must still be owned by the same user and
        // must have the same start time before and after its pidfd is opened.
        let before = start_time(pid).ok_or(PeerError::Gone(pid))?;
        let target = Pid::from_raw(raw).ok_or(PeerError::Invisible)?;
        let pidfd = pidfd_open(target, PidfdFlags::empty()).map_err(|_| PeerError::Gone(pid))?;
        let same_owner = effective_ids(pid).is_some_and(|(owner, _)| owner == uid);
        // A pid is free only after its process has closed what it held: a connection that is still open there is its own.
        if start_time(pid) != Some(before) || !same_owner || is_hung_up(stream) {
            return Err(PeerError::Gone(pid));
        }
        Ok(Self { pid, uid, gid, pidfd: Arc::new(pidfd) })
    }

    /// Pins the process that has this number now, for questions about it. It need not be connected.
    ///
    /// # Errors
    /// There is none, or it has ended.
    pub fn of_process(pid: u32) -> Result<Self, PeerError> {
        let target = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(PeerError::Gone(pid))?;
        let pidfd = pidfd_open(target, PidfdFlags::empty()).map_err(|_| PeerError::Gone(pid))?;
        let (uid, gid) = effective_ids(pid).ok_or(PeerError::Gone(pid))?;
        let peer = Self { pid, uid, gid, pidfd: Arc::new(pidfd) };
        // Only now: what was read by number was the process's own if it is still alive after the reading.
        if peer.is_alive() { Ok(peer) } else { Err(PeerError::Gone(pid)) }
    }

    /// Whether the process still runs.
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        // A pidfd becomes readable when its process ends.
        matches!(poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
    }

    /// Whether it was in this group when it connected, or is now.
    pub fn is_in_group(&self, gid: u32) -> bool {
        let supplementary = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
            let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"))?;
            let is_in = groups.split_ascii_whitespace().any(|group| group.parse() == Ok(gid));
            // Only now: the pid was the peer's own if the peer is still alive after the reading.
            Some(is_in && self.is_alive())
        };
        self.gid == gid || supplementary().unwrap_or(false)
    }

    /// The pidfd, to wait on.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Returns when the process has ended.
    pub async fn ended(&self) {
        // Out of descriptors: the caller is not gone for that; its connection tells in time.
        let Ok(copy) = self.pidfd.try_clone() else { return std::future::pending().await };
        // SAFETY: an `OwnedFd` keeps its descriptor open, and the same one, until `watched` is dropped with it.
        let registered = unsafe { tokio::io::unix::AsyncFd::register_with_interest(copy, tokio::io::Interest::READABLE) };
        let Ok(watched) = registered else { return std::future::pending().await };
        let _ = watched.readable().await;
    }

    /// The program it runs now. `None` if it has ended or may not be looked at.
    pub fn program(&self) -> Option<Program> {
        let exe = rustix::fs::stat(format!("/proc/{}/exe", self.pid)).ok()?;
        // Only now: the pid was the peer's own if the peer is still alive after the reading.
        self.is_alive().then_some(Program { device: exe.st_dev, inode: exe.st_ino })
    }

    /// The path of its program, for people and logs.
    pub fn path(&self) -> Option<PathBuf> {
        let path = std::fs::read_link(format!("/proc/{}/exe", self.pid)).ok()?;
        self.is_alive().then_some(path)
    }

    /// `uid 1000, pid 17, /usr/bin/program`, as logs and the journal name a local caller.
    pub fn describe(&self) -> String {
        let path = self.path().map_or_else(String::new, |p| format!(", {}", p.display()));
        format!("uid {}, pid {}{path}", self.uid, self.pid)
    }
}

/// Asks the connection for the pidfd of its peer; `ENOPROTOOPT` on kernels that do not know the question.
fn peer_pidfd(stream: &impl AsFd) -> io::Result<OwnedFd> {
    let mut raw: libc::c_int = -1;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the socket is open for the length of the call, and `raw` and `length` are valid for writes of the sizes given.
    let answer = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            std::ptr::from_mut(&mut raw).cast(),
            std::ptr::from_mut(&mut length),
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    if raw < 0 {
        return Err(io::Error::other("the kernel gave no descriptor"));
    }
    // SAFETY: on success the kernel has installed a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Whether everybody at the other end has closed the connection.
fn is_hung_up(stream: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::HUP)];
    !matches!(poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

/// Effective user and group.
fn effective_ids(pid: u32) -> Option<(u32, u32)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let id = |name: &str| status.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().nth(1)?.parse().ok();
    Some((id("Uid:")?, id("Gid:")?))
}

/// Field 22 of `/proc/<pid>/stat`: start time in clock ticks. The name in field 2 may hold anything, parentheses too.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}
