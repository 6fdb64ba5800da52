//! The two images under the real Docker engine: ours, with a data directory of its own, where we are root; else the machine's.
//!
//! No network is needed: the containers share the loopback device of one that has no other.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{PATIENCE, countersign};

/// How long the engine may take to start, or to take an image.
const ENGINE_PATIENCE: Duration = Duration::from_secs(120);
/// How long Docker waits before it kills; a container that stops when told is gone long before.
const GRACE_SECONDS: &str = "60";
/// Version and so tag of the images.
const TAG: &str = env!("CARGO_PKG_VERSION");

/// A Docker engine and what a test has started on it.
struct Engine {
    directory: tempfile::TempDir,
    daemon: Option<Child>,
    host: Option<String>,
    containers: Vec<String>,
}

impl Engine {
    fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("cs").tempdir().unwrap();
        let mut engine = Self { directory, daemon: None, host: None, containers: Vec::new() };
        if rustix::process::geteuid().is_root() {
            let (root, socket) = (engine.directory.path().to_owned(), engine.directory.path().join("docker.sock"));
            let log = std::fs::File::create(root.join("log")).unwrap();
            let daemon = Command::new("/usr/sbin/dockerd")
                .args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--host"])
                .arg(format!("unix://{}", socket.display()))
                .arg("--data-root")
                .arg(root.join("data"))
                .arg("--exec-root")
                .arg(root.join("exec"))
                .arg("--pidfile")
                .arg(root.join("pid"))
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .expect("dockerd is missing: run the tests with `cargo xtask test`, which installs it");
            engine.daemon = Some(daemon);
            engine.host = Some(format!("unix://{}", socket.display()));
        }
        let begun = Instant::now();
        while !engine.docker(&["version"]).status.success() {
            let has_ended = engine.daemon.as_mut().is_none_or(|daemon| daemon.try_wait().unwrap().is_some());
            let log = std::fs::read_to_string(engine.directory.path().join("log")).unwrap_or_default();
            assert!(!has_ended && begun.elapsed() < ENGINE_PATIENCE, "no Docker engine answers\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        engine
    }

    fn docker(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("docker");
        if let Some(host) = &self.host {
            command.env("DOCKER_HOST", host).env("DOCKER_CONFIG", self.directory.path());
        }
        command.args(arguments).stdin(Stdio::null()).output().expect("the program `docker` is there")
    }

    /// A command that must succeed, and what it prints.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.docker(arguments);
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn load(&self, image: &str) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let folder = std::env::var_os("COUNTERSIGN_TEST_IMAGES").map_or_else(|| root.join("target/images/debug"), PathBuf::from);
        let archive = folder.join(format!("{image}.tar"));
        assert!(archive.is_file(), "{} is missing: run the tests with `cargo xtask test`, which makes it", archive.display());
        assert!(self.ok(&["load", "--input", &archive.display().to_string()]).contains(&format!("{image}:{TAG}")));
    }

    /// Starts a container and returns its ID.
    fn run(&mut self, arguments: &[&str]) -> String {
        let id = self.ok(&[&["run", "--detach"], arguments].concat());
        self.containers.push(id.clone());
        id
    }

    fn inspect(&self, thing: &str) -> Value {
        let all: Value = serde_json::from_str(&self.ok(&["inspect", thing])).unwrap();
        all[0].clone()
    }

    fn logs(&self, container: &str) -> String {
        let output = self.docker(&["logs", container]);
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    /// Waits until something is so in or about a container.
    fn until(&self, what: &str, container: &str, is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}\n{}", self.logs(container));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Tells a container to stop, which it does by itself, without an error, saying so.
    fn stop(&self, container: &str, last_words: &str) {
        let begun = Instant::now();
        self.ok(&["stop", "--time", GRACE_SECONDS, container]);
        assert!(begun.elapsed() < PATIENCE, "it stops when it is told to");
        assert_eq!(self.inspect(container)["State"]["ExitCode"], 0, "{}", self.logs(container));
        assert!(self.logs(container).contains(last_words), "{}", self.logs(container));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for container in &self.containers {
            self.docker(&["rm", "--force", container]);
        }
        let Some(daemon) = &mut self.daemon else { return };
        let _ = Command::new("kill").arg(daemon.id().to_string()).status();
        let _ = daemon.wait();
        // It leaves the network name space of its containers mounted.
        let mounted = self.directory.path().join("exec/netns");
        for item in std::fs::read_dir(mounted).into_iter().flatten().flatten() {
            let _ = Command::new("umount").arg(item.path()).status();
        }
    }
}

fn server_configuration() -> String {
    json!({
        "server": {
            "trust_domain": "example.org", "data_dir": "/var/lib/spire/server", "log_level": "DEBUG",
        },
        "plugins": {
            "DataStore": { "sql": { "plugin_data": {
                "database_type": "sqlite3", "connection_string": "/var/lib/spire/server/datastore.sqlite3",
            } } },
            "KeyManager": { "disk": { "plugin_data": { "keys_path": "/var/lib/spire/server/keys.json" } } },
        },
    })
    .to_string()
}

fn agent_configuration(token: &str) -> String {
    json!({
        "agent": {
            "trust_domain": "example.org", "server_address": "server.test", "server_port": 8081, "data_dir": "/var/lib/spire/agent",
            "insecure_bootstrap": true, "join_token": token,
        },
        "plugins": {
            "KeyManager": { "memory": { "plugin_data": {} } },
            "NodeAttestor": { "join_token": { "plugin_data": {} } },
            "WorkloadAttestor": { "unix": { "plugin_data": {} } },
        },
    })
    .to_string()
}

fn identity() -> String {
    String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap().trim().to_owned()
}

/// A process in the server's container whose parent is gone, and which ends a moment later. The shell is the node's: the image
/// has none.
fn leave_an_orphan(engine: &Engine, server: &str) {
    let (libraries, script) = ("/host/usr/lib/x86_64-linux-gnu", "(i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done) >/dev/null &");
    let loader = format!("{libraries}/ld-linux-x86-64.so.2");
    engine.ok(&["exec", server, &loader, "--library-path", libraries, "/host/usr/bin/dash", "-c", script]);
}

#[test]
fn a_trust_domain_runs_from_the_images_and_process_1_behaves() {
    let mut engine = Engine::start();
    engine.load("countersign-server");
    engine.load("countersign-agent");
    let directory = engine.directory.path().to_owned();
    let file = |name: &str, text: &str| {
        std::fs::write(directory.join(name), text).unwrap();
        directory.join(name).display().to_string()
    };

    // The server, as its own user, with no network but its own and a name that only /etc/hosts knows.
    let configuration = format!("{}:/etc/spire/server/server.conf:ro", file("server.conf", &server_configuration()));
    let server = engine.run(&[
        "--network",
        "none",
        "--add-host",
        "server.test:127.0.0.1",
        "--volume",
        &configuration,
        "--volume",
        "/:/host:ro",
        &format!("countersign-server:{TAG}"),
        "-config",
        "/etc/spire/server/server.conf",
    ]);
    engine.until("the server is healthy", &server, || {
        engine.docker(&["exec", &server, "/opt/spire/bin/spire-server", "healthcheck"]).status.success()
    });
    assert_eq!(engine.inspect(&server)["Config"]["User"], "1000:1000");
    let token = engine.ok(&["exec", &server, "/opt/spire/bin/spire-server", "token", "generate", "-spiffeID", "spiffe://example.org/node"]);
    let token = token.lines().find_map(|line| line.strip_prefix("Token: ")).unwrap().to_owned();

    // The agent sees the processes of the node, and knows its users from the node's files.
    let sockets = directory.join("sockets");
    std::fs::create_dir(&sockets).unwrap();
    let configuration = format!("{}:/etc/spire/agent/agent.conf:ro", file("agent.conf", &agent_configuration(&token)));
    let agent = engine.run(&[
        "--network",
        &format!("container:{server}"),
        "--pid",
        "host",
        "--volume",
        &configuration,
        "--volume",
        &format!("{}:/tmp/spire-agent/public", sockets.display()),
        "--volume",
        "/etc/passwd:/etc/passwd:ro",
        "--volume",
        "/etc/group:/etc/group:ro",
        &format!("countersign-agent:{TAG}"),
        "-config",
        "/etc/spire/agent/agent.conf",
    ]);
    let selector = format!("unix:user:{}", identity());
    engine.ok(&[
        "exec",
        &server,
        "/opt/spire/bin/spire-server",
        "entry",
        "create",
        "-parentID",
        "spiffe://example.org/node",
        "-spiffeID",
        "spiffe://example.org/program",
        "-selector",
        &selector,
    ]);
    engine.until("a program of the node has its identity", &agent, || {
        let socket = format!("unix://{}/api.sock", sockets.display());
        let fetched = Command::new(countersign()).args(["fetch", "x509"]).env("SPIFFE_ENDPOINT_SOCKET", socket).output().unwrap();
        String::from_utf8_lossy(&fetched.stdout).contains("spiffe://example.org/program")
    });

    leave_an_orphan(&engine, &server);
    engine.until("process 1 is alone again", &server, || engine.ok(&["top", &server]).lines().skip(1).count() == 1);

    engine.stop(&agent, "Agent stopped gracefully");
    engine.stop(&server, "Server stopped gracefully");
}
