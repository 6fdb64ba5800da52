//! The binary under test as a child process, and what it and its clients print.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The binary `countersign`, built beside this test.
pub fn countersign() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    let path = path.join("countersign");
    assert!(path.is_file(), "{} is missing: run the tests with `cargo xtask test`, which builds it", path.display());
    path
}

/// A program prepared by `cargo xtask test`, from the environment, or where it puts it.
pub fn prepared(variable: &str, fallback: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = std::env::var_os(variable).map_or_else(|| root.join("target/clients").join(fallback), PathBuf::from);
    assert!(path.is_file(), "{} is missing: run the tests with `cargo xtask test`, which prepares it", path.display());
    path
}

/// A running `countersign up`.
pub struct Up {
    child: Child,
    lines: mpsc::Receiver<String>,
    pub directory: PathBuf,
    pub greeting: String,
}

impl Up {
    /// Starts it in this directory and waits until it says that it is up.
    pub fn start(directory: &Path) -> Self {
        let mut child = Command::new(countersign())
            .args(["up", "--dir"])
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env_remove("COUNTERSIGN_SERVER_SOCKET")
            .env_remove("COUNTERSIGN_AGENT_ADMIN_SOCKET")
            .env_remove("SPIFFE_ENDPOINT_SOCKET")
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut up = Self { child, lines, directory: directory.to_owned(), greeting: String::new() };
        let begun = Instant::now();
        while !up.greeting.contains("Events follow") {
            match up.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => up.greeting += &(line + "\n"),
                Err(_) if begun.elapsed() < PATIENCE && up.child.try_wait().unwrap().is_none() => {}
                Err(_) => {
                    let mut error = String::new();
                    let _ = up.child.kill();
                    let _ = up.child.stderr.take().unwrap().read_to_string(&mut error);
                    panic!("not up: {error}\n{}", up.greeting);
                }
            }
        }
        up
    }

    pub fn agent_socket(&self) -> String {
        format!("unix://{}/agent.sock", self.directory.display())
    }

    /// Waits for an event line that contains this.
    pub fn event(&self, wanted: &str) -> String {
        let begun = Instant::now();
        let mut seen = String::new();
        loop {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) if line.contains(wanted) => return line,
                Ok(line) => seen += &(line + "\n"),
                Err(_) => assert!(begun.elapsed() < PATIENCE, "no event with `{wanted}`: {seen}"),
            }
        }
    }

    /// Runs a command against it.
    pub fn run(&self, arguments: &[&str]) -> Output {
        Command::new(countersign())
            .args(arguments)
            .env("COUNTERSIGN_SERVER_SOCKET", self.directory.join("server.sock"))
            .env("SPIFFE_ENDPOINT_SOCKET", self.agent_socket())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a command that must succeed, and returns what it prints.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must succeed with `--output json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["--output", "json"]);
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// Sends a signal to the process of a role (`up`, `server`, `agent`).
    pub fn signal(&self, role: &str, signal: &str) {
        let pid = match role {
            "up" => self.child.id().to_string(),
            role => {
                let pattern =
                    format!("{role} run --config {}", self.directory.canonicalize().unwrap().join(format!("{role}.conf")).display());
                let found = Command::new("pgrep").args(["-f", &pattern]).output().unwrap();
                String::from_utf8_lossy(&found.stdout).lines().next().unwrap_or_else(|| panic!("no process `{pattern}`")).to_owned()
            }
        };
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
    }

    /// Kills everything at once.
    pub fn kill_all(&self) {
        let directory = self.directory.canonicalize().unwrap().display().to_string();
        assert!(Command::new("pkill").args(["-9", "-f", &directory]).status().unwrap().success());
    }

    /// Waits until it has ended, and returns its exit code and what it said on standard error.
    pub fn ended(&mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let mut error = String::new();
                let _ = self.child.stderr.take().unwrap().read_to_string(&mut error);
                return (status.code(), error);
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ctrl-C, and the end.
    pub fn stop(mut self) {
        self.signal("up", "INT");
        let (code, error) = self.ended();
        assert_eq!(code, Some(0), "{error}");
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // A test that failed leaves nothing running.
        if self.child.try_wait().is_ok_and(|s| s.is_none()) {
            for role in ["agent", "server"] {
                let pattern = format!("{role} run --config {}", self.directory.display());
                let _ = Command::new("pkill").args(["-9", "-f", &pattern]).status();
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
