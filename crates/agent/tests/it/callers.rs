//! Who calls: the process that connected, for as long as it lives and is what it was.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use countersign_testkit::domain::own_uid;
use countersign_testkit::file_limit;
use countersign_testkit::log::Log;
use countersign_testkit::workload::Workload;
use countersign_transport::peer::{Peer, PeerError};
use countersign_transport::unix;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio_stream::StreamExt as _;
use tonic::Code;

use crate::child::{Caller, OTHER_PROGRAM};
use crate::support::{World, answer, message, next, paths, selector};

/// The user of whom nobody expects anything.
const NOBODY: u32 = 65_534;

async fn over(stream: std::os::unix::net::UnixStream) -> Workload {
    Workload::over(tokio::net::UnixStream::from_std(stream).unwrap()).await.unwrap()
}

/// A world whose agent looks at the programs of its callers.
pub async fn with_paths() -> World {
    let mut world = World::without_agent(std::sync::Arc::new(countersign_transport::clock::SystemClock), "").await;
    let token = world.domain.token(Some(&crate::support::node())).await.unwrap();
    world.config(false, "").await;
    let text = world.domain.agent_configuration("a", Some(&token), "").replace(
        "WorkloadAttestor \"unix\" {\n plugin_data {}",
        "WorkloadAttestor \"unix\" {\n plugin_data {\n discover_workload_path = true\n workload_size_limit = -1\n }",
    );
    let config = countersign_agent::Config::read(countersign_config::parse("agent.conf", &text).unwrap()).unwrap();
    world.run(&config).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn wep_19_processes_of_two_users_get_two_identities() {
    let world = World::start().await;
    world.entry("/mine").await;
    world.entries(vec![message("/nobody", &[selector(&format!("unix:uid:{NOBODY}"))])]).await;
    let root = rustix::process::geteuid().is_root();
    // The directory of a test is its user's only.
    std::fs::set_permissions(world.domain.directory(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (_caller, stream) = Caller::connect(&world.socket(), root.then_some(NOBODY));
    let workload = over(stream).await;
    let wanted = if root { "/nobody" } else { "/mine" };
    let look = || async { workload.x509_svid().await.ok() };
    let theirs = countersign_testkit::domain::until("it has an identity", look).await.unwrap();
    assert_eq!(paths(&theirs), [wanted]);
    assert_eq!(paths(&world.workload().await.x509_svid().await.unwrap()), ["/mine"]);
    let token = workload.jwt_svids(&["a"], "").await.unwrap();
    assert!(token.len() == 1 && token[0].spiffe_id.ends_with(wanted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_process_and_so_do_calls_on_its_connection() {
    let world = World::start().await;
    world.entry("/web").await;
    let mut own = world.workload().await.x509_svids().await.unwrap();
    next(&mut own).await;
    let (mut caller, stream) = Caller::connect(&world.socket(), None);
    let workload = over(stream).await;
    let mut svids = workload.x509_svids().await.unwrap();
    let mut bundles = workload.x509_bundles().await.unwrap();
    next(&mut svids).await;
    next(&mut bundles).await;
    caller.end();
    assert!(answer(&mut svids).await.unwrap().is_none());
    assert!(answer(&mut bundles).await.unwrap().is_none());
    for status in [workload.x509_svid().await.unwrap_err(), workload.jwt_svids(&["a"], "").await.unwrap_err()] {
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "workload attestation failed"));
    }
    // What others have goes on.
    world.entry("/api").await;
    assert_eq!(next(&mut own).await.svids.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ends_before_it_is_attested_gets_nothing() {
    let world = World::start().await;
    world.entry("/web").await;
    for _ in 0..5 {
        let (mut caller, stream) = Caller::connect(&world.socket(), None);
        caller.end();
        let stream = tokio::net::UnixStream::from_std(stream).unwrap();
        // Turned away at once, or answered that nobody is there.
        if let Ok(workload) = Workload::over(stream).await {
            assert_eq!(workload.x509_svid().await.unwrap_err().code(), Code::Unavailable);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_runs_another_program_is_attested_again_before_it_gets_another_key() {
    let world = with_paths().await;
    let program = std::fs::canonicalize("/proc/self/exe").unwrap();
    let path = |program: &std::path::Path| selector(&format!("unix:path:{}", program.display()));
    let (mut caller, stream) = Caller::connect(&world.socket(), None);
    let workload = over(stream).await;
    world.entries(vec![message("/tests", &[path(&program)])]).await;
    let look = || async {
        let mut stream = workload.x509_svids().await.unwrap();
        let first = answer(&mut stream).await.ok().flatten()?;
        Some((stream, first))
    };
    let (mut stream, first) = countersign_testkit::domain::until("it has an identity", look).await.unwrap();
    assert_eq!(paths(&first), ["/tests"]);
    caller.run_another();
    // Something for the former program: whoever sits there now must not get it.
    world.entries(vec![message("/tests/more", &[path(&program)])]).await;
    let denied = answer(&mut stream).await.unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "no identity issued"));
    // A new call is judged by the new program from the start.
    let other = std::fs::canonicalize(OTHER_PROGRAM).unwrap();
    world.entries(vec![message("/other", &[path(&other)])]).await;
    let look = || async { workload.x509_svid().await.ok() };
    let found = countersign_testkit::domain::until("the other program has an identity", look).await.unwrap();
    assert_eq!(paths(&found), ["/other"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_process_that_runs_another_program_becomes_the_other_programs() {
    let world = with_paths().await;
    let program = std::fs::canonicalize("/proc/self/exe").unwrap();
    let other = std::fs::canonicalize(OTHER_PROGRAM).unwrap();
    let path = |program: &std::path::Path| selector(&format!("unix:path:{}", program.display()));
    world.entries(vec![message("/tests", &[path(&program)]), message("/other", &[path(&other)])]).await;
    let (mut caller, stream) = Caller::connect(&world.socket(), None);
    let workload = over(stream).await;
    let look = || async {
        let mut stream = workload.x509_svids().await.unwrap();
        let first = answer(&mut stream).await.ok().flatten()?;
        Some((stream, first))
    };
    let (mut stream, first) = countersign_testkit::domain::until("it has an identity", look).await.unwrap();
    assert_eq!(paths(&first), ["/tests"]);
    caller.run_another();
    world.entries(vec![message("/everybody", &[own_uid()])]).await;
    let mut found = paths(&next(&mut stream).await).join(" ");
    if !found.contains("/everybody") || !found.contains("/other") {
        // The two SVIDs may have come one after the other.
        found = paths(&next(&mut stream).await).join(" ");
    }
    assert!(found.contains("/everybody") && found.contains("/other") && !found.contains("/tests"), "{found}");
}

/// A listener of the test's own, and a process connected to it.
async fn connected() -> (Caller, tokio::net::UnixStream, std::os::unix::net::UnixStream, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let (caller, theirs) = Caller::connect(&path, None);
    let (ours, _) = listener.accept().await.unwrap();
    (caller, ours, theirs, directory)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_pinned_with_and_without_help_of_the_kernel() {
    for by_connection in [true, false] {
        let (mut caller, ours, _theirs, _directory) = connected().await;
        let peer = Peer::with(&ours, by_connection).unwrap();
        assert_eq!(peer.pid, caller.pid());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert!(peer.is_alive());
        let program = peer.program().unwrap();
        caller.run_another();
        assert!(peer.is_alive());
        assert_ne!(peer.program().unwrap(), program, "another program, the same process");
        assert!(peer.describe().contains(&format!("pid {}", caller.pid())), "{}", peer.describe());
        drop(caller);
        tokio::time::timeout(Duration::from_secs(20), peer.ended()).await.unwrap();
        assert!(!peer.is_alive());
        assert!(peer.program().is_none() && peer.path().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_has_ended_is_not_looked_up_by_its_number() {
    for by_connection in [true, false] {
        let (mut caller, ours, _theirs, _directory) = connected().await;
        let pid = caller.pid();
        caller.end();
        match Peer::with(&ours, by_connection) {
            Err(PeerError::Gone(gone)) => assert_eq!(gone, pid),
            Err(error) => panic!("{error}"),
            // Newer kernels give a descriptor of the process that was.
            Ok(peer) => assert!(by_connection && !peer.is_alive() && peer.program().is_none()),
        }
    }
}

#[test]
fn while_no_descriptor_is_left_nobody_is_let_in_and_the_log_says_so() {
    if file_limit::alone("callers::while_no_descriptor_is_left_nobody_is_let_in_and_the_log_says_so") {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(without_descriptors());
    }
}

async fn without_descriptors() {
    Log::listen();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.sock");
    let listener = unix::listen(&path, 0o755, 0o777).unwrap();
    let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let before = getrlimit(Resource::Nofile);
    // The lowest number that is free is the first one that there may not be.
    let free = rustix::io::dup(&listener).unwrap().as_raw_fd();
    setrlimit(Resource::Nofile, Rlimit { current: Some(free.try_into().unwrap()), ..before }).unwrap();
    let mut incoming = unix::incoming(listener);
    Log::says("WARN", "Connection failed during accept").await.unwrap();
    setrlimit(Resource::Nofile, before).unwrap();
    tokio::time::timeout(Duration::from_secs(20), incoming.next()).await.expect("it is let in").unwrap().unwrap();
}
