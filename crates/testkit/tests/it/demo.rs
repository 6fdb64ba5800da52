//! `countersign up --demo` as a newcomer runs it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, countersign};

/// Longer than the demo may take, also without its pauses.
const WHOLE: Duration = Duration::from_secs(60);

/// A running demo whose directory is made in a directory of ours.
struct Demo {
    child: Child,
    lines: mpsc::Receiver<String>,
    told: Vec<String>,
    home: tempfile::TempDir,
}

impl Demo {
    fn start(more: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut child = Command::new(countersign())
            .args(["up", "--demo"])
            .args(more)
            .env("COUNTERSIGN_DEMO_FAST", "1")
            .env("TMPDIR", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines, told: Vec::new(), home }
    }

    /// Waits for a line that begins so, after its time.
    fn wait_for(&mut self, wanted: &str) {
        let begun = Instant::now();
        while !self.told.last().is_some_and(|line| said(line).starts_with(wanted)) {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => self.told.push(line),
                Err(_) => assert!(begun.elapsed() < PATIENCE, "`{wanted}` is not told: {:#?}", self.told),
            }
        }
    }

    fn processes(&self) -> String {
        let found = Command::new("pgrep").args(["-af", &self.home.path().display().to_string()]).output().unwrap();
        String::from_utf8(found.stdout).unwrap()
    }

    fn kill(&self, what: &str, signal: &str) {
        let processes = self.processes();
        let line = processes.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("no `{what}` in {processes}"));
        assert!(Command::new("kill").args([signal, line.split(' ').next().unwrap()]).status().unwrap().success());
    }

    fn interrupt(&self) {
        assert!(Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Waits for its end; returns the exit code, what it told and its last words. Nothing may be left of it.
    fn end(mut self) -> (Option<i32>, Vec<String>, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < WHOLE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        self.told.extend(self.lines.iter());
        let mut error = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        assert_eq!(self.processes(), "", "processes are left");
        assert_eq!(items(self.home.path()), Vec::<String>::new(), "files are left");
        (status.code(), std::mem::take(&mut self.told), error)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // A test that failed leaves nothing running: the children end with their parent.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn items(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory).unwrap().map(|item| item.unwrap().path().display().to_string()).collect()
}

/// A line without its time: who, and what.
fn said(line: &str) -> String {
    let words = line.split_once(" s  ").map_or(line, |(_, rest)| rest);
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_demo_plays_to_its_end_and_leaves_nothing() {
    let begun = Instant::now();
    let (code, told, error) = Demo::start(&[]).end();
    assert_eq!((code, error.as_str()), (Some(0), ""), "{told:#?}");
    assert!(begun.elapsed() < WHOLE);
    let lines: Vec<String> = told.iter().map(|line| said(line)).collect();
    let mut rest = lines.iter();
    for (who, what) in [
        ("server", "is up"),
        ("you", "register two programs"),
        ("agent", "is up"),
        ("warehouse", "it is spiffe://example.org/warehouse, proved for 2"),
        ("shop", "is spiffe://example.org/shop"),
        ("shop", "Each has checked the other's proof"),
        ("warehouse", "questions of the shop"),
        ("shop", "has a new proof"),
        ("shop", "0 connections dropped"),
        ("stranger", "hears: no identity issued"),
        ("you", "see why: it runs from programs/stranger"),
        ("you", "ban this machine"),
        ("agent", "it is banned"),
        ("shop", "still talks"),
        ("", "hangs up: the"),
        ("shop", "in vain: a proof that has ended proves nothing"),
        ("server", "written down before it was signed"),
        ("", "What to do next"),
    ] {
        assert!(rest.any(|line| line.starts_with(who) && line.contains(what)), "`{who} … {what}` is missing or too early: {lines:#?}");
    }
    assert!(!told.iter().any(|line| line.contains('\u{1b}')), "colours in a pipe: {told:#?}");
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing() {
    // While the server starts, while they talk, and after the ban.
    for moment in ["Everything below", "shop calls", "agent gave up"] {
        let mut demo = Demo::start(&[]);
        demo.wait_for(moment);
        demo.interrupt();
        let (code, told, error) = demo.end();
        assert_eq!(code, Some(1), "{moment}: {told:#?} {error}");
        assert_eq!(error, "Error: stopped before its end; nothing of it is left\n", "{moment}");
    }
}

#[test]
fn a_demo_whose_parts_die_says_which_and_fails() {
    for (what, wanted) in
        [("programs/shop", "the shop has ended by itself"), ("server run", "the server ended"), ("agent run", "the agent ended")]
    {
        let mut demo = Demo::start(&[]);
        demo.wait_for("shop calls");
        demo.kill(what, "-KILL");
        let (code, told, error) = demo.end();
        assert_eq!(code, Some(1), "{what}: {told:#?}");
        assert!(error.contains(wanted), "{what}: {error}");
    }
}

#[test]
fn the_demo_takes_an_empty_directory_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display().to_string();
    std::fs::write(directory.path().join("precious"), "mine").unwrap();
    let (code, _, error) = Demo::start(&["--dir", &path]).end();
    assert_eq!(code, Some(1));
    assert!(error.contains("is not empty"), "{error}");
    assert_eq!(items(directory.path()).len(), 1);

    let inside = directory.path().join("demo");
    let mut demo = Demo::start(&["--dir", &inside.display().to_string()]);
    demo.wait_for("server is up");
    demo.interrupt();
    let (code, ..) = demo.end();
    assert_eq!(code, Some(1));
    assert!(inside.join("server.conf").is_file(), "what the user named is kept");
    let running = Command::new("pgrep").args(["-f", &path]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&running.stdout), "");
}
