//! A process ends and its number is another's at once, forced: in a pid namespace of its own, where a test says which number
//! comes next and nobody else takes it. The test starts itself again in there.

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use countersign_testkit::domain::until;
use countersign_testkit::workload::Workload;
use countersign_transport::peer::{Peer, PeerError};
use tonic::Code;

use crate::child::Caller;
use crate::support::{PATIENCE, World, paths};

/// Set for the process in the namespace.
const INSIDE: &str = "COUNTERSIGN_TEST_INSIDE_A_PID_NAMESPACE";

/// Runs one test of this file alone, in a pid namespace of its own.
fn inside(test: &str) {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(std::env::current_exe().unwrap());
    let output = command.args(["--exact", &format!("reused_pid::{test}"), "--nocapture"]).env(INSIDE, "1").output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", said(&output.stdout), said(&output.stderr));
    assert!(said(&output.stdout).contains("1 passed"), "{}", said(&output.stdout));
}

fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// A process that has a number which was another's.
struct Successor(Child);

impl Successor {
    fn take(pid: u32) -> Self {
        let begun = Instant::now();
        loop {
            std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
            let successor = Self(Command::new("sleep").arg("600").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
            if successor.0.id() == pid {
                return successor;
            }
            assert!(begun.elapsed() < PATIENCE, "pid {pid} cannot be had again");
        }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_successor_of_a_caller_gives_it_no_identity() {
    inside("inside_the_successor_of_a_caller");
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_the_successor_of_a_caller() {
    if !is_inside() {
        return;
    }
    let world = World::start().await;
    world.entry("/web").await;
    let (mut caller, stream) = Caller::connect(&world.socket(), None);
    let workload = Workload::over(tokio::net::UnixStream::from_std(stream).unwrap()).await.unwrap();
    assert_eq!(paths(&workload.x509_svid().await.unwrap()), ["/web"]);
    let pid = caller.pid();
    caller.end();
    // Of the same user, so that by its number it would get the same.
    let _successor = Successor::take(pid);
    assert!(Peer::of_process(pid).unwrap().is_alive());
    for status in [workload.x509_svid().await.unwrap_err(), workload.jwt_svids(&["a"], "").await.unwrap_err()] {
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "workload attestation failed"));
    }
}

#[test]
fn the_successor_of_a_peer_is_not_taken_for_it() {
    inside("inside_the_successor_of_a_peer");
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_the_successor_of_a_peer() {
    if !is_inside() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    for by_connection in [true, false] {
        let (mut caller, theirs) = Caller::connect(&path, None);
        let pid = caller.pid();
        let pinned = Peer::of_process(pid).unwrap();
        caller.end();
        drop(theirs);
        let _successor = Successor::take(pid);
        // Looked at only now.
        let (ours, _) = listener.accept().await.unwrap();
        match Peer::with(&ours, by_connection) {
            Err(PeerError::Gone(gone)) => assert_eq!(gone, pid),
            Err(error) => panic!("{error}"),
            Ok(peer) => assert!(by_connection && !peer.is_alive() && peer.program().is_none() && peer.path().is_none()),
        }
        // And one that was pinned before by its number.
        assert!(!pinned.is_alive() && pinned.program().is_none() && pinned.path().is_none());
        assert!(Peer::of_process(pid).unwrap().is_alive(), "the successor itself is another process");
    }
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn callers_that_end_before_they_are_attested_leave_a_line_in_the_log_and_nothing_else() {
    inside("inside_callers_that_end");
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_callers_that_end() {
    if !is_inside() {
        return;
    }
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    let world = World::start().await;
    world.entry("/web").await;
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for _ in 0..20 {
        let (mut caller, stream) = Caller::connect(&world.socket(), None);
        let pid = caller.pid();
        let workload = Workload::over(tokio::net::UnixStream::from_std(stream).unwrap()).await.unwrap();
        caller.end();
        // A pid that is somebody else's by then changes nothing.
        let _successor = Successor::take(pid);
        let outcome = workload.x509_svid().await.unwrap_err();
        assert_eq!((outcome.code(), outcome.message()), (Code::Unavailable, "workload attestation failed"));
        let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let of_pid: Vec<&str> = said.lines().filter(|l| l.contains(&format!("pid={pid}"))).collect();
        assert!(of_pid.iter().any(|l| l.contains("ERROR") && l.contains("Workload attestation failed")), "{said}");
        assert!(of_pid.iter().any(|l| l.contains("ended")), "the reason is said: {of_pid:?}");
        assert!(!of_pid.iter().any(|l| l.contains("attested to have selectors")), "{of_pid:?}");
    }
    until("every descriptor is closed", || async { (open() <= before).then_some(()) }).await.unwrap();
}
