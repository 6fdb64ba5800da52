//! A server and an agent as an operator runs them: configuration files, log files, signals, exit codes.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use crate::support::{PATIENCE, countersign};

/// A directory with the files of a server and an agent.
struct Place {
    directory: tempfile::TempDir,
}

/// A role that runs, killed when a test fails.
pub struct Role(pub Child);

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Role {
    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([&format!("-{signal}"), &self.0.id().to_string()]).status().unwrap().success());
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Ends it as a supervisor does, and returns its exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        let mut code = None;
        until("it ends", || {
            code = self.0.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code()
    }
}

/// Waits for a condition.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}: it does not come to that");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn write_server(&self, port: u16, lines: &str) {
        let dir = self.directory.path().display();
        let text = format!(
            "server {{\n  trust_domain = \"example.org\"\n  bind_address = \"localhost\"\n  bind_port = {port}\n  \
             socket_path = \"{dir}/server.sock\"\n  data_dir = \"{dir}/server\"\n  log_file = \"{dir}/server.log\"\n  {lines}\n}}\n\
             plugins {{\n  DataStore \"sql\" {{\n    plugin_data {{\n      database_type = \"sqlite3\"\n      \
             connection_string = \"{dir}/server/store.sqlite3\"\n    }}\n  }}\n  KeyManager \"disk\" {{\n    plugin_data {{\n      \
             keys_path = \"{dir}/server/keys.json\"\n    }}\n  }}\n}}\n"
        );
        std::fs::write(self.path("server.conf"), text).unwrap();
    }

    fn write_agent(&self, port: u16, unix: &str) {
        let dir = self.directory.path().display();
        let text = format!(
            "agent {{\n  trust_domain = \"example.org\"\n  server_address = \"localhost\"\n  server_port = \"{port}\"\n  \
             socket_path = \"{dir}/public/agent.sock\"\n  data_dir = \"{dir}/agent\"\n  log_file = \"{dir}/agent.log\"\n  \
             log_format = \"json\"\n  insecure_bootstrap = true\n  join_token_file = \"{dir}/token\"\n}}\n\
             plugins {{\n  KeyManager \"disk\" {{\n    plugin_data {{\n      directory = \"{dir}/agent\"\n    }}\n  }}\n  \
             NodeAttestor \"join_token\" {{\n    plugin_data {{}}\n  }}\n  WorkloadAttestor \"unix\" {{\n    {unix}\n  }}\n}}\n"
        );
        std::fs::write(self.path("agent.conf"), text).unwrap();
    }

    fn start(&self, role: &str) -> Role {
        let out = std::fs::OpenOptions::new().create(true).append(true).open(self.path(&format!("{role}.err"))).unwrap();
        let child = Command::new(countersign())
            .args([role, "run", "--config"])
            .arg(self.path(&format!("{role}.conf")))
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Role(child)
    }

    /// Starts a server and waits until its log says so `times` times, for both listeners.
    fn start_server(&self, times: usize) -> Role {
        let server = self.start("server");
        self.wait("server.log", "msg=\"Starting Server APIs\"", 2 * times);
        server
    }

    /// Waits until a file has so many lines with this.
    fn wait(&self, file: &str, wanted: &str, times: usize) {
        let begun = Instant::now();
        while self.text(file).lines().filter(|line| line.contains(wanted)).count() < times {
            assert!(begun.elapsed() < PATIENCE, "no `{wanted}` {times} times in {file}: {}", self.text(file));
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(countersign())
            .args(arguments)
            .env("COUNTERSIGN_SERVER_SOCKET", self.path("server.sock"))
            .env("SPIFFE_ENDPOINT_SOCKET", self.path("public/agent.sock"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The life of a token with the default TTL, in seconds.
    fn token_life(&self) -> u64 {
        use base64::Engine as _;
        let token = self.ok(&["jwt", "mint", "--spiffe-id", "spiffe://example.org/x", "--audience", "a"]);
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.trim().split('.').nth(1).unwrap()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap()
    }

    /// Asks a role to reload and returns what it then says of that.
    fn reload(&self, role: &Role, name: &str, outcome: &str) -> String {
        role.signal("USR1");
        let mut said = String::new();
        until(outcome, || {
            said = self.ok(&["healthcheck", name]);
            said.contains(&format!("Last reload of the configuration: {outcome}"))
        });
        said
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_server_reloads_all_of_a_configuration_or_nothing_and_says_which() {
    let place = Place::new();
    place.write_server(0, "");
    let server = place.start_server(1);
    assert_eq!(mode(&place.path("server.log")), 0o640);
    assert_eq!((place.token_life(), place.ok(&["healthcheck", "server"])), (300, "Server is healthy.\n".to_owned()));

    place.write_server(1, "default_jwt_svid_ttl = \"2m\"\n  log_level = \"debug\"");
    let said = place.reload(&server, "server", "done");
    assert!(said.contains("changed server.default_jwt_svid_ttl, server.log_level; waiting for a restart: server.bind_port\n"), "{said}");
    assert_eq!(place.token_life(), 120);
    assert_eq!(place.ok(&["logger", "get"]), "Logger Level : debug\nLaunch Level : debug\n");
    place.wait("server.log", "level=info msg=\"Reconfigure signal received\" subsystem_name=reconfigurer", 1);
    place.wait("server.log", "msg=\"Configuration reloaded\" changed=\"server.default_jwt_svid_ttl, server.log_level\"", 1);
    place.wait("server.log", "level=warning msg=\"Changed settings wait for a restart\"", 1);

    // One bad key: not even the good ones before it count.
    place.write_server(0, "default_jwt_svid_ttl = \"3m\"\n  log_level = \"error\"\n  ratelimits {\n  }");
    let said = place.reload(&server, "server", "failed");
    let line = "server.conf:10: unknown configuration detected: `server.ratelimits`;hint: did you mean `ratelimit`?";
    assert!(said.contains(line) && said.contains("the former configuration stays"), "{said}");
    place.wait("server.log", "level=error msg=\"Failed to reload the configuration, the former one stays\"", 1);
    assert_eq!(place.token_life(), 120);
    assert_eq!(place.ok(&["logger", "get"]), "Logger Level : debug\nLaunch Level : debug\n");

    // A level that somebody has set since stays where the file's did not change.
    place.ok(&["logger", "set", "--level", "warn"]);
    place.write_server(0, "default_jwt_svid_ttl = \"3m\"\n  log_level = \"debug\"");
    place.reload(&server, "server", "done");
    assert_eq!(place.token_life(), 180);
    assert_eq!(place.ok(&["logger", "get"]), "Logger Level : warn\nLaunch Level : debug\n");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_log_that_was_moved_away_is_opened_anew() {
    let place = Place::new();
    place.write_server(0, "log_source_location = true");
    let server = place.start_server(1);
    std::fs::rename(place.path("server.log"), place.path("server.log.1")).unwrap();
    server.signal("USR2");
    until("the new file is there", || place.path("server.log").is_file());
    assert_eq!(server.stop(), Some(0));
    let (former, new) = (place.text("server.log.1"), place.text("server.log"));
    assert!(former.contains("Starting Server APIs") && !former.contains("Server stopped gracefully"), "{former}");
    assert!(new.contains("msg=\"Server stopped gracefully\" file=\"run.rs:") && !new.contains("Starting"), "{new}");
}

#[test]
fn an_agent_takes_over_attestor_settings_and_tells_workloads_no_more_than_that() {
    let place = Place::new();
    let (server, agent) = joined(&place);
    let attested = |wanted: &str| place.text("agent.log").lines().any(|l| l.contains("PID attested") && l.contains(wanted));
    let lines = |port| {
        place.write_agent(port, "plugin_data {\n      discover_workload_path = true\n    }");
        let text = place.text("agent.conf").replacen("agent {\n", "agent {\n  log_level = \"debug\"\n", 1);
        std::fs::write(place.path("agent.conf"), text).unwrap();
    };
    lines(1);
    let said = place.reload(&agent, "agent", "done");
    assert!(said.contains("changed agent.log_level, plugins.WorkloadAttestor \"unix\".plugin_data.discover_workload_path;"), "{said}");
    assert!(said.contains("waiting for a restart: agent.server_port\n"), "{said}");
    place.wait("agent.log", "\"msg\":\"Plugin reconfigured\",\"plugin_name\":\"unix\",\"plugin_type\":\"WorkloadAttestor\"", 1);
    place.wait("agent.log", "\"msg\":\"Plugin not reconfigured since the config is unchanged\",\"plugin_name\":\"join_token\"", 1);
    until("selectors of the new settings", || {
        place.ok(&["fetch", "x509"]);
        attested("unix:path:")
    });
    let bad = place.text("agent.conf").replacen("agent {\n", "agent {\n  secret_word = 1\n", 1);
    std::fs::write(place.path("agent.conf"), bad).unwrap();
    let said = place.reload(&agent, "agent", "failed");
    assert!(said.contains("the log says why") && !said.contains("secret_word"), "{said}");
    place.wait("agent.log", "`agent.secret_word`", 1);
    place.ok(&["fetch", "x509"]);
    assert_eq!((agent.stop(), server.stop()), (Some(0), Some(0)));
}

/// A server, and an agent that has joined and serves this process.
fn joined(place: &Place) -> (Role, Role) {
    place.write_server(0, "");
    let server = place.start_server(1);
    let log = place.text("server.log");
    let address = log.lines().find(|l| l.contains("network=tcp")).unwrap().split("address=").nth(1).unwrap();
    let port = address.trim_start_matches('"').split(['"', ' ']).next().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    // From now on the same at each start.
    place.write_server(port, "");
    let token = place.ok(&["token", "generate", "--spiffe-id", "spiffe://example.org/node"]);
    std::fs::write(place.path("token"), token.trim().trim_start_matches("Token: ")).unwrap();
    entry(place, "first");
    place.write_agent(port, "plugin_data {}");
    let agent = place.start("agent");
    place.wait("agent.log", "\"msg\":\"Starting agent APIs\"", 1);
    until("a first identity", || place.run(&["fetch", "x509"]).status.success());
    (server, agent)
}

fn entry(place: &Place, name: &str) {
    let uid = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap();
    let (id, selector) = (format!("spiffe://example.org/{name}"), format!("unix:uid:{uid}"));
    place.ok(&["entry", "create", "--parent-id", "spiffe://example.org/node", "--spiffe-id", &id, "--selector", &selector]);
}

#[test]
fn agents_and_commands_live_through_a_restart_of_the_server() {
    let place = Place::new();
    let (server, mut agent) = joined(&place);
    assert_eq!(server.stop(), Some(0));
    place.wait("server.log", "level=info msg=\"Server stopped gracefully\"", 1);
    // Commands fail with one sentence and exit code 1.
    for command in [&["entry", "show"][..], &["agent", "list"], &["healthcheck", "server"], &["bundle", "show"]] {
        let output = place.run(command);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command:?}: {error}");
        assert!(error.starts_with("Error: ") && error.lines().count() <= 2 && output.stdout.is_empty(), "{command:?}: {error}");
    }
    // Workloads notice nothing.
    assert!(place.ok(&["fetch", "x509"]).contains("spiffe://example.org/first"));
    let server = place.start_server(2);
    entry(&place, "second");
    until("the change that was made after the restart", || place.ok(&["fetch", "x509"]).contains("spiffe://example.org/second"));
    assert!(agent.is_running());
    assert_eq!(agent.stop(), Some(0));
    place.wait("agent.log", "\"msg\":\"Agent stopped gracefully\"", 1);
    assert_eq!(server.stop(), Some(0));
    for name in ["server.log", "agent.log"] {
        let log = place.text(name);
        assert!(!log.contains("BUG:") && !log.contains("panic"), "{log}");
        let loud = log.lines().filter(|l| l.contains("level=error") || l.contains("\"level\":\"error\"")).count();
        assert!(loud <= 5, "{loud} errors in {name}: {log}");
    }
    assert_eq!((place.text("server.err"), place.text("agent.err")), (String::new(), String::new()));
}

#[test]
fn signals_of_rotation_and_reload_end_nobody_however_early_they_come() {
    let place = Place::new();
    place.write_server(0, "");
    let server = place.start_server(1);
    // No agent can join here: the token is nobody's.
    place.write_agent(1, "plugin_data {}");
    std::fs::write(place.path("token"), "00000000-0000-0000-0000-000000000000").unwrap();
    let mut agent = place.start("agent");
    place.wait("agent.log", "\"msg\":\"Starting agent\"", 1);
    agent.signal("USR1");
    agent.signal("USR2");
    place.wait("agent.log", "Failed to retrieve attestation result", 2);
    assert!(agent.is_running());
    assert_eq!((agent.stop(), server.stop()), (Some(0), Some(0)));
}
