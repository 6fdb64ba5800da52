//! Selectors of real processes.

use std::process::Command;

use countersign_config::Section;
use countersign_transport::peer::Peer;

use super::*;

fn configured(text: &str) -> Unix {
    let mut top = countersign_config::parse("agent.conf", &format!("d {{\n{text}\n}}")).expect("parses");
    Unix::configure(top.section("d").expect("a block").unwrap_or_else(|| Section::empty("d", "x"))).expect("configures")
}

/// Attests ourselves through a real socket.
async fn attest_self(unix: &Unix) -> Vec<String> {
    let (ours, _theirs) = tokio::net::UnixStream::pair().expect("a pair");
    let peer = Peer::of(&ours).expect("ourselves");
    let found = unix.attest(&peer).await.expect("attested");
    found.iter().map(|s| s.as_str().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn user_group_and_supplementary_groups_are_found_as_id_shows_them() {
    let id = |flags: &str| String::from_utf8(Command::new("id").arg(flags).output().expect("id").stdout).expect("text").trim().to_owned();
    let found = attest_self(&configured("")).await;
    for wanted in [
        format!("unix:uid:{}", id("-u")),
        format!("unix:gid:{}", id("-g")),
        format!("unix:user:{}", id("-un")),
        format!("unix:group:{}", id("-gn")),
    ] {
        assert!(found.contains(&wanted), "{wanted} is not in {found:?}");
    }
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let groups = status.lines().find_map(|l| l.strip_prefix("Groups:")).expect("groups");
    for gid in groups.split_whitespace() {
        assert!(found.contains(&format!("unix:supplementary_gid:{gid}")), "{gid} is not in {found:?}");
    }
    assert!(!found.iter().any(|s| s.starts_with("unix:path")), "the path is found only when asked for: {found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn path_and_hash_are_found_when_asked_for() {
    let found = attest_self(&configured("discover_workload_path = true")).await;
    let exe = std::env::current_exe().expect("exe");
    assert!(found.contains(&format!("unix:path:{}", exe.display())), "{found:?}");
    let sum = Command::new("sha256sum").arg(&exe).output().expect("sha256sum");
    let sum = String::from_utf8_lossy(&sum.stdout).split(' ').next().expect("a sum").to_owned();
    assert!(found.contains(&format!("unix:sha256:{sum}")), "{found:?}");
    let unhashed = attest_self(&configured("discover_workload_path = true\nworkload_size_limit = -1")).await;
    assert!(!unhashed.iter().any(|s| s.starts_with("unix:sha256")), "{unhashed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_over_the_limit_fails_the_attestor_instead_of_narrowing_the_identity() {
    let unix = configured("discover_workload_path = true\nworkload_size_limit = 10");
    let (ours, _theirs) = tokio::net::UnixStream::pair().expect("a pair");
    let error = unix.attest(&Peer::of(&ours).expect("ourselves")).await.expect_err("too large");
    assert!(error.to_string().contains("workload_size_limit = 10"), "{error}");
}
