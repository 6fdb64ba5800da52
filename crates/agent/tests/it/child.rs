//! Another process at the other end of a connection: this very program, started again. It connects, hands its connection
//! over, and does as it is told; the kernel goes on naming it as the peer.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Names the socket to connect to, for the process that is started.
const VARIABLE: &str = "COUNTERSIGN_TEST_CHILD_CONNECTS_TO";
/// What the process does after it was told to run another program.
pub const OTHER_PROGRAM: &str = "/bin/sleep";

/// A running process; ended when dropped.
pub struct Caller {
    child: Child,
    control: UnixStream,
}

impl Caller {
    /// Starts a process, as another user if wanted, that connects to a socket, and takes over its connection.
    pub fn connect(socket: &Path, user: Option<u32>) -> (Self, UnixStream) {
        // By this name another user can start the program too, wherever it is.
        Self::start(Command::new("/proc/self/exe"), socket, user)
    }

    /// As [`Caller::connect`], of a process that has these groups too, which takes root.
    pub fn in_groups(socket: &Path, groups: &str) -> (Self, UnixStream) {
        let mut command = Command::new("setpriv");
        command.args(["--groups", groups]).arg(std::env::current_exe().unwrap());
        Self::start(command, socket, None)
    }

    fn start(mut command: Command, socket: &Path, user: Option<u32>) -> (Self, UnixStream) {
        let (control, theirs) = UnixStream::pair().unwrap();
        command.args(["--exact", "child::the_process_at_the_other_end", "--nocapture"]).env(VARIABLE, socket);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(user) = user {
            command.uid(user).gid(user).current_dir("/");
        }
        let caller = Self { child: command.spawn().unwrap(), control };
        let stream = UnixStream::from(caller.receive());
        stream.set_nonblocking(true).unwrap();
        (caller, stream)
    }

    fn receive(&self) -> OwnedFd {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(&self.control, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
        let received = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        received.expect("the process hands its connection over")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it and waits until it is gone.
    pub fn end(&mut self) {
        let _ = self.control.write_all(b"x");
        self.child.wait().unwrap();
    }

    /// Makes it run another program; returns once it does.
    pub fn run_another(&mut self) {
        self.control.write_all(b"e").unwrap();
        let wanted = std::fs::canonicalize(OTHER_PROGRAM).unwrap();
        let deadline = std::time::Instant::now() + crate::support::PATIENCE;
        // While one thread replaces the others the link may be missing.
        while std::fs::read_link(format!("/proc/{}/exe", self.pid())).ok().as_ref() != Some(&wanted) {
            assert!(std::time::Instant::now() < deadline, "it does not run {OTHER_PROGRAM}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// No test, but what [`Caller`] starts: without the variable there is nothing to do.
#[test]
fn the_process_at_the_other_end() {
    let Some(socket) = std::env::var_os(VARIABLE) else { return };
    let stream = UnixStream::connect(Path::new(&socket)).unwrap();
    let descriptors = [stream.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(std::io::stdin(), &[IoSlice::new(b"c")], &mut ancillary, SendFlags::empty()).unwrap();
    let mut told = [0];
    let read = std::io::stdin().read(&mut told).unwrap_or_default();
    if read == 1 && told[0] == b'e' {
        let error = Command::new(OTHER_PROGRAM).arg("600").exec();
        panic!("{error}");
    }
    std::process::exit(0);
}
