//! `countersign up` as its user runs it.

use std::path::Path;

use crate::support::Up;

#[test]
fn it_says_what_exists_and_what_to_try() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    for wanted in [
        "Trust domain `example.org` is up (created in",
        "export SPIFFE_ENDPOINT_SOCKET=unix://",
        "From command to identity served:",
        "whoami",
        "fetch jwt",
        "log issued",
    ] {
        assert!(up.greeting.contains(wanted), "`{wanted}` is not in:\n{}", up.greeting);
    }
    // From then on one line per event.
    let (node, told) = ("spiffe://example.org/up/node", "spiffe://example.org/told");
    up.ok(&["entry", "create", "--parent-id", node, "--spiffe-id", told, "--selector", &me()]);
    assert!(up.event(told).contains("agent  fetches an identity"));
    up.stop();
}

fn me() -> String {
    format!("unix:uid:{}", rustix::process::geteuid().as_raw())
}

#[test]
fn starting_again_keeps_the_trust_domain_and_the_nodes_identity() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let (bundle, agents) = (up.ok(&["bundle", "show"]), up.json(&["agent", "list"]));
    up.stop();
    let up = Up::start(directory.path());
    assert!(up.greeting.contains("(reopened in"), "{}", up.greeting);
    assert_eq!(up.ok(&["bundle", "show"]), bundle);
    assert_eq!(up.json(&["agent", "list"])["agents"][0]["id"], agents["agents"][0]["id"]);
    assert_eq!(up.json(&["agent", "count"])["count"], 1);
    up.stop();
}

#[test]
fn stopping_leaves_nothing_running_and_no_sockets() {
    let directory = tempfile::tempdir().unwrap();
    Up::start(directory.path()).stop();
    assert!(!directory.path().join("server.sock").exists() && !directory.path().join("agent.sock").exists());
    let running = std::process::Command::new("pgrep").args(["-f", &directory.path().display().to_string()]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&running.stdout), "");
}

#[test]
fn two_at_once_in_one_directory_are_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let second = up.run(&["up", "--dir", &directory.path().display().to_string()]);
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && error.contains("in use"), "{error}");
    up.ok(&["whoami"]);
    up.stop();
}

#[test]
fn a_server_that_dies_ends_it_with_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let mut up = Up::start(directory.path());
    up.signal("server", "KILL");
    let (code, error) = up.ended();
    assert_eq!(code, Some(1));
    assert!(error.contains("the server ended"), "{error}");
}

#[test]
fn a_directory_whose_socket_paths_would_be_too_long_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("x".repeat(100));
    let output = std::process::Command::new(crate::support::countersign()).args(["up", "--dir"]).arg(&long).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("choose one with --dir"), "{error}");
}

#[test]
fn files_with_secrets_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(directory.path()), 0o700);
    for name in ["server/keys.json", "agent/keys.json", "agent/agent-data.json", "join-token", "server.log"] {
        assert_eq!(mode(&directory.path().join(name)), 0o600, "{name}");
    }
    up.stop();
}
