//! What is different on a terminal: colours, and a progress bar for what takes its time.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, Up, countersign};

/// What a command prints in a terminal of its own.
fn in_terminal(arguments: &str, environment: &[(&str, &str)]) -> String {
    let line = format!("{} {arguments}", countersign().display());
    let output = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let has_colour = |arguments: &str, environment: &[(&str, &str)]| {
        let printed = in_terminal(arguments, environment);
        assert!(printed.contains("Usage:") || printed.contains("Error:"), "{printed}");
        printed.contains('\u{1b}')
    };
    for arguments in ["--help", "whoami --socket-path /nowhere", "entry nonsense"] {
        let with = |more: &str| format!("{arguments} {more}");
        assert!(has_colour(arguments, &[]), "{arguments}");
        assert!(!has_colour(arguments, &[("NO_COLOR", "1")]), "{arguments}");
        assert!(!has_colour(arguments, &[("TERM", "dumb")]), "{arguments}");
        assert!(!has_colour(&with("--color never"), &[]), "{arguments}");
        assert!(has_colour(&with("--color=always"), &[("NO_COLOR", "1")]), "{arguments}");
    }
    let piped = |more: &[&str]| {
        let output = Command::new(countersign()).args(["whoami", "--socket-path", "/nowhere"]).args(more).output().unwrap();
        String::from_utf8(output.stderr).unwrap().contains('\u{1b}')
    };
    assert!(!piped(&[]));
    assert!(piped(&["--color", "always"]));
}

#[test]
fn a_progress_bar_comes_after_a_second_goes_at_the_end_and_stays_out_of_pipes() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let socket = directory.path().join("server.sock").display().to_string();
    let begun = Instant::now();
    let quick = in_terminal("entry show", &[("COUNTERSIGN_SERVER_SOCKET", &socket)]);
    // On a busy machine it may have taken longer than a second, and shown it.
    assert!(!quick.contains("reading") || begun.elapsed() >= Duration::from_secs(1), "{quick}");

    // A server that stands still for a while.
    up.signal("server", "STOP");
    let line = format!("{} entry show --socket-path {socket}", countersign().display());
    let (shown, piped) = (directory.path().join("shown"), directory.path().join("piped"));
    let begun = Instant::now();
    let mut on_terminal = Command::new("script")
        .args(["-qefc", &line])
        .arg(&shown)
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut in_pipe = Command::new(countersign())
        .args(["entry", "show", "--socket-path", &socket])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&piped).unwrap())
        .spawn()
        .unwrap();
    let read = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    while !read(&shown).contains("reading entries: 0 so far") {
        assert!(begun.elapsed() < PATIENCE, "no progress is shown: {}", read(&shown));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(begun.elapsed() >= Duration::from_secs(1), "it came after {:?}", begun.elapsed());
    up.signal("server", "CONT");
    assert!(on_terminal.wait().unwrap().success() && in_pipe.wait().unwrap().success());
    let shown = read(&shown);
    let (before, after) = shown.rsplit_once("reading entries").unwrap();
    assert!(after.contains("\u{1b}[2K"), "the bar is not wiped away: {after:?}");
    assert!(!before.contains("Found") && after.contains("Found 2 entries"), "{shown:?}");
    assert_eq!(read(&piped), "");
    up.stop();
}
