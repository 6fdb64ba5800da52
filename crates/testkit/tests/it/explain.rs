//! `countersign explain` and `countersign entry explain`, as somebody types them who was woken.

use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::support::{PATIENCE, Up, countersign};

const NODE: &str = "spiffe://example.org/up/node";

struct Sleeper(std::process::Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn explain(up: &Up, arguments: &[&str]) -> Output {
    Command::new(countersign())
        .arg("explain")
        .args(arguments)
        .env("COUNTERSIGN_AGENT_ADMIN_SOCKET", up.directory.join("admin.sock"))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The last answer, once it has this exit code.
fn answered(code: i32, ask: impl Fn() -> Output) -> String {
    let begun = Instant::now();
    loop {
        let output = ask();
        if output.status.code() == Some(code) {
            return out(&output);
        }
        assert!(begun.elapsed() < PATIENCE, "not {code}: {output:?}");
    }
}

#[test]
fn it_says_whether_a_process_gets_an_identity_and_the_command_it_names_gives_it_one() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let own = explain(&up, &[]);
    assert_eq!(own.status.code(), Some(0), "{own:?}");
    assert!(out(&own).contains(" gets 1 identity.\n") && out(&own).contains("What to do: nothing.\n"), "{}", out(&own));

    // A wrong selector, and the command that is printed, taken at its word.
    let wrong = ["--selector", "unix:uid:4000001"];
    let text = answered(1, || explain(&up, &wrong));
    for wanted in [
        "A process with these selectors gets no identity: no entry on this node matches.\n",
        "Nearest entries that do not match:\n  spiffe://example.org/user/",
        "connected since ",
        "What to do: create an entry, on the server:\n",
    ] {
        assert!(text.contains(wanted), "`{wanted}` is not in:\n{text}");
    }
    let command = text.split("on the server:\n").nth(1).unwrap().replace("\\\n", "");
    let words: Vec<&str> = command.split_whitespace().collect();
    let ["countersign", arguments @ ..] = words.as_slice() else { panic!("{command}") };
    let created: Value = up.json(arguments);
    let id = created["results"][0]["entry"]["id"].as_str().unwrap().to_owned();
    let text = answered(0, || explain(&up, &wrong));
    assert!(text.contains(&id), "{text}");

    let json = explain(&up, &["--selector", "unix:uid:4000001", "--output", "json"]);
    let json: Value = serde_json::from_str(&out(&json)).unwrap();
    assert_eq!((json["conclusion"].as_str(), json["matching"][0]["entry"]["id"].as_str()), (Some("HAS_IDENTITY"), Some(id.as_str())));
    let mut names: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    let stable = [
        "advice",
        "agent",
        "attestors",
        "conclusion",
        "last_denial",
        "matching",
        "matching_left_out",
        "nearest",
        "nearest_left_out",
        "process",
        "selectors",
        "selectors_left_out",
        "server",
    ];
    assert_eq!(names, stable, "scripts go by these names");
    up.stop();
}

#[test]
fn what_cannot_be_found_out_is_another_exit_code_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let mut sleeper = Sleeper(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap());
    let pid = sleeper.0.id().to_string();
    let running = explain(&up, &["--pid", &pid]);
    assert_eq!(running.status.code(), Some(0), "{running:?}");
    assert!(out(&running).contains(&format!("Process: pid {pid}, uid ")), "{}", out(&running));
    sleeper.0.kill().unwrap();
    sleeper.0.wait().unwrap();
    let gone = explain(&up, &["--pid", &pid]);
    let error = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(gone.status.code() == Some(2) && error.contains("has ended, or never was") && error.contains("--selector"), "{gone:?}");
    let nobody = Command::new(countersign()).args(["explain", "--socket-path", "/nowhere/admin.sock"]).output().unwrap();
    let error = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(nobody.status.code() == Some(2) && error.contains("is admin_socket_path set in its configuration"), "{error}");
    // The Workload API's socket is no admin socket.
    let workloads = directory.path().join("agent.sock").display().to_string();
    let wrong = explain(&up, &["--socket-path", &workloads]);
    let error = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(2) && error.contains("is this the admin socket of an agent?"), "{error}");
    up.stop();
}

#[test]
fn a_denied_fetch_names_the_command_and_the_log_line_names_it_with_the_pid() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let user = up.json(&["entry", "show"])["entries"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|e| e["spiffe_id"]["path"].as_str().unwrap().starts_with("/user/").then(|| e["id"].as_str().unwrap().to_owned()));
    up.ok(&["entry", "delete", "--entry-id", &user.unwrap()]);
    let begun = Instant::now();
    let error = loop {
        let fetched = up.run(&["fetch", "x509"]);
        if !fetched.status.success() {
            break String::from_utf8_lossy(&fetched.stderr).into_owned();
        }
        assert!(begun.elapsed() < PATIENCE, "still served");
    };
    assert!(error.contains("no identity issued: no registration entry fits this process"), "{error}");
    assert!(error.contains("`countersign explain`") && error.contains("`countersign explain --pid N`"), "{error}");
    let event = up.event("denied process ");
    let command = event.split('`').nth(1).unwrap().to_owned();
    let log = std::fs::read_to_string(directory.path().join("agent.log")).unwrap();
    let line = log.lines().find(|l| l.contains("No identity issued")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["hint"].as_str(), Some(command.as_str()));
    assert_eq!(command, format!("countersign explain --pid {}", line["pid"]));
    // The one that was denied is gone, and still explained.
    let arguments: Vec<&str> = command.split(' ').skip(2).collect();
    let remembered = explain(&up, &arguments);
    assert_eq!(remembered.status.code(), Some(1), "{remembered:?}");
    assert!(out(&remembered).contains("has ended; what follows is what the agent remembers of it"), "{}", out(&remembered));
    assert!(out(&remembered).contains("It was denied last at "), "{}", out(&remembered));
    up.stop();
}

#[test]
fn an_entry_is_followed_from_a_mistyped_parent_to_whoever_holds_it() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let uid = format!("unix:uid:{}", rustix::process::geteuid().as_raw());
    let create = |parent: &str, path: &str| {
        let id = format!("spiffe://example.org/{path}");
        let made = up.json(&["entry", "create", "--parent-id", parent, "--spiffe-id", &id, "--selector", &uid]);
        made["results"][0]["entry"]["id"].as_str().unwrap().to_owned()
    };
    let lost = create("spiffe://example.org/up/nod", "lost");
    let answer = up.run(&["entry", "explain", &lost]);
    assert_eq!(answer.status.code(), Some(1), "{answer:?}");
    for wanted in
        ["No agent gets it.", "Nothing has the SPIFFE ID spiffe://example.org/up/nod", "Did you mean spiffe://example.org/up/node"]
    {
        assert!(out(&answer).contains(wanted), "`{wanted}` is not in:\n{}", out(&answer));
    }
    let web = create(NODE, "web");
    let holds = || {
        let answer = up.run(&["entry", "explain", &web]);
        if out(&answer).contains("1 agent holds an X509-SVID of it, the last until ") { answer } else { up.run(&["no-such-command"]) }
    };
    let text = answered(0, holds);
    assert!(text.contains("The one agent it is for has it as it is.") && text.contains("has it; applied revision "), "{text}");
    let json = up.json(&["entry", "explain", &web]);
    assert_eq!((json["agents"][0]["state"].as_str(), json["holders"].as_u64()), (Some("HAS_IT"), Some(1)));
    let missing = up.run(&["entry", "explain", "no-such-entry"]);
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
    up.stop();
}
