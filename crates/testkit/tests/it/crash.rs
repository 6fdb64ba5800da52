//! kill -9 at any point: nothing half done afterwards, nothing acknowledged lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Up, countersign};

#[test]
fn entries_that_were_acknowledged_survive_a_killed_server() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let mut up = Up::start(directory.path());
        let before: u64 = count(&up);
        let stop = Arc::new(AtomicBool::new(false));
        let socket = directory.path().join("server.sock");
        let creating = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut acknowledged = Vec::new();
                for n in 0.. {
                    let path = format!("spiffe://example.org/r{round}/n{n}");
                    let output = std::process::Command::new(countersign())
                        .args([
                            "entry",
                            "create",
                            "--parent-id",
                            "spiffe://example.org/up/node",
                            "--spiffe-id",
                            &path,
                            "--selector",
                            "unix:uid:4000000",
                        ])
                        .env("COUNTERSIGN_SERVER_SOCKET", &socket)
                        .output()
                        .unwrap();
                    if output.status.success() {
                        acknowledged.push(path);
                    } else if stop.load(Ordering::Relaxed) {
                        return acknowledged;
                    }
                }
                acknowledged
            })
        };
        // Somewhere in the middle of it.
        while count(&up) < before + 3 + round {}
        stop.store(true, Ordering::Relaxed);
        up.signal("server", "KILL");
        up.ended();
        let acknowledged = creating.join().unwrap();
        drop(up);
        let up = Up::start(directory.path());
        let entries = up.json(&["entry", "show"]);
        let there: Vec<String> = entries["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| format!("spiffe://example.org{}", e["spiffe_id"]["path"].as_str().unwrap()))
            .collect();
        assert!(acknowledged.len() >= 3, "{acknowledged:?}");
        for path in &acknowledged {
            assert!(there.contains(path), "{path} was acknowledged and is lost");
        }
        up.stop();
    }
}

#[test]
fn every_credential_that_left_the_server_is_in_the_journal_of_a_killed_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut up = Up::start(directory.path());
    let mut tokens = Vec::new();
    for n in 0..5 {
        let minted = up.run(&["x509", "mint", "--spiffe-id", &format!("spiffe://example.org/m{n}"), "--output", "json"]);
        tokens.push((n, minted.status.success()));
    }
    up.signal("server", "KILL");
    up.ended();
    drop(up);
    let up = Up::start(directory.path());
    for (n, issued) in tokens {
        let found = up.json(&["log", "issued", "--id", &format!("spiffe://example.org/m{n}")]);
        assert_eq!(found["records"].as_array().unwrap().len(), usize::from(issued), "m{n}");
    }
    up.stop();
}

#[test]
fn the_whole_of_it_comes_back_when_everything_was_killed() {
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mut up = Up::start(directory.path());
        up.ok(&["fetch", "jwt", "--audience", "a"]);
        up.kill_all();
        up.ended();
    }
    let up = Up::start(directory.path());
    assert_eq!(up.json(&["agent", "count"])["count"], 1, "the node kept its identity");
    up.stop();
}

fn count(up: &Up) -> u64 {
    up.json(&["entry", "count"])["count"].as_u64().unwrap()
}
