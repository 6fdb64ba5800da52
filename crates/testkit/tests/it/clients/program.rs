//! A client program as a child process: what it is told, what it says, how it ends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::language::Language;

/// How long anything may take before a test gives up. Runtimes start slowly on a busy machine, and libraries wait between
/// two attempts.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A running client program. It ends with the test.
pub(super) struct Program {
    what: String,
    child: Child,
    input: ChildStdin,
    lines: mpsc::Receiver<Value>,
    errors: Option<JoinHandle<String>>,
}

/// How a program ended.
pub(super) struct End {
    pub(super) pid: u32,
    pub(super) code: Option<i32>,
    pub(super) lines: Vec<Value>,
    pub(super) errors: String,
}

impl Program {
    pub(super) fn start(language: &Language, socket: &str, arguments: &[&str]) -> Self {
        let mut child = language
            .command()
            .args(arguments)
            .env("SPIFFE_ENDPOINT_SOCKET", socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let mut stderr = child.stderr.take().unwrap();
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let input = child.stdin.take().unwrap();
        let what = format!("{} {arguments:?}", language.name);
        Self { what, child, input, lines, errors: Some(errors) }
    }

    /// Runs a command that must succeed with one line.
    pub(super) fn said(language: &Language, socket: &str, arguments: &[&str]) -> Value {
        let end = Self::start(language, socket, arguments).ended();
        assert_eq!((end.code, end.lines.len()), (Some(0), 1), "{} {arguments:?}: {:?} {}", language.name, end.lines, end.errors);
        end.lines.into_iter().next().unwrap()
    }

    /// Its next line.
    pub(super) fn line(&mut self) -> Value {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(why) => {
                let _ = self.child.kill();
                let errors = self.errors.take().map(|e| e.join().unwrap()).unwrap_or_default();
                panic!("{} says nothing ({why}): {errors}", self.what)
            }
        }
    }

    /// The next line of which this is true, and those before it.
    pub(super) fn line_where(&mut self, wanted: &str, is_it: impl Fn(&Value) -> bool) -> (Value, Vec<Value>) {
        let (begun, mut before) = (Instant::now(), Vec::new());
        loop {
            let line = self.line();
            if is_it(&line) {
                return (line, before);
            }
            before.push(line);
            assert!(begun.elapsed() < PATIENCE, "{} does not say {wanted}: {before:?}", self.what);
        }
    }

    /// Its answer to a line.
    pub(super) fn ask(&mut self, line: &str) -> Value {
        writeln!(self.input, "{line}").unwrap_or_else(|e| panic!("{} does not listen: {e}", self.what));
        self.line()
    }

    /// What it said that nobody read yet.
    pub(super) fn unread(&self) -> Vec<Value> {
        self.lines.try_iter().collect()
    }

    /// Waits for its end.
    pub(super) fn ended(mut self) -> End {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < PATIENCE, "{} does not end: {:?}", self.what, self.unread());
            std::thread::sleep(Duration::from_millis(5));
        };
        let errors = self.errors.take().unwrap().join().unwrap();
        let lines = std::iter::from_fn(|| self.lines.recv_timeout(PATIENCE).ok()).collect();
        End { pid: self.child.id(), code: status.code(), lines, errors }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl End {
    /// It gave up as every program does: one line that says why, and the command that says more.
    pub(super) fn gave_up(&self, what: &str) -> &str {
        let errors: Vec<&str> = self.errors.trim_end().lines().collect();
        let explain = format!("to learn why, run: countersign explain --pid {}", self.pid);
        // A program that watches may have said so before it gave up.
        let only_errors = self.lines.iter().all(|line| line["error"].is_string());
        assert!(self.code == Some(3) && only_errors, "{what}: {:?} {:?} {}", self.code, self.lines, self.errors);
        assert!(errors.len() >= 2 && errors.last() == Some(&explain.as_str()), "{what}: {}", self.errors);
        errors[errors.len() - 2]
    }
}

/// Looks again and again until there is something to see.
pub(super) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
