//! A trust domain of server and agent, each a process of its own, so that a test stops one of them. Each language has a
//! SPIFFE ID of its own, by the path of its executable.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use countersign_testkit::domain::agent_configuration;
use serde_json::{Value, json};

use super::language::{LANGUAGES, Language};
use super::program::until;
use crate::support::countersign;

/// The name below which the workloads are registered.
const NODE: &str = "spiffe://example.org/node";

/// What the entries of all languages say beside the language.
#[derive(Clone, Copy, Default)]
pub(super) struct Entries<'a> {
    /// A certificate is another one when its entry asks for other DNS names.
    pub(super) dns_name: Option<&'a str>,
    pub(super) federates_with: Option<&'a str>,
}

pub(super) struct World {
    directory: tempfile::TempDir,
    server: Child,
    agent: Option<Child>,
}

impl World {
    /// A server and an agent; no workload has an identity yet.
    pub(super) fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("cs").tempdir().unwrap();
        let dir = directory.path();
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let data = |name: &str, data: &str| format!("{name} {{\n plugin_data {{\n {data}\n }}\n }}\n");
        let plugins = [
            data("DataStore \"sql\"", &format!("database_type = \"sqlite3\"\n connection_string = \"{}/store.sqlite3\"", dir.display())),
            data("KeyManager \"disk\"", &format!("keys_path = \"{}/keys.json\"", dir.display())),
            data("NodeAttestor \"join_token\"", ""),
        ];
        let server = format!(
            "server {{\n trust_domain = \"example.org\"\n bind_address = \"127.0.0.1\"\n bind_port = {port}\n \
             socket_path = \"{dir}/server.sock\"\n data_dir = \"{dir}/server\"\n}}\nplugins {{\n{plugins}}}\n",
            dir = dir.display(),
            plugins = plugins.concat()
        );
        std::fs::write(dir.join("server.conf"), server).unwrap();
        let server = role(dir, "server");
        let mut world = Self { directory, server, agent: None };
        until("the server is healthy", || world.run(&["healthcheck", "server"]).status.success().then_some(()));

        let agent = world.path("agent");
        std::fs::create_dir(&agent).unwrap();
        std::fs::write(agent.join("bundle.pem"), world.ok(&["bundle", "show"])).unwrap();
        let token = world.ok(&["token", "generate", "--spiffe-id", NODE]);
        let token = token.trim().strip_prefix("Token: ").unwrap();
        let plain = "WorkloadAttestor \"unix\" {\n plugin_data {}";
        let text = agent_configuration(&agent, port, Some(token), "");
        assert!(text.contains(plain), "{text}");
        let with_paths = text
            .replace(plain, "WorkloadAttestor \"unix\" {\n plugin_data {\n discover_workload_path = true\n workload_size_limit = -1\n }");
        std::fs::write(world.path("agent.conf"), with_paths).unwrap();
        world.start_agent();
        world
    }

    /// As [`World::start`], each language with its identity, which its program can fetch.
    pub(super) fn with_identities() -> Self {
        let world = Self::start();
        world.entries("create", Entries::default());
        world
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What programs get as SPIFFE_ENDPOINT_SOCKET.
    pub(super) fn socket(&self) -> String {
        format!("unix://{}", self.path("agent/agent.sock").display())
    }

    pub(super) fn start_agent(&mut self) {
        self.agent = Some(role(self.directory.path(), "agent"));
        until("the agent is healthy", || self.run(&["healthcheck", "agent"]).status.success().then_some(()));
    }

    /// Ends the agent with a signal.
    pub(super) fn stop_agent(&mut self, signal: &str) {
        let mut agent = self.agent.take().unwrap();
        let killed = Command::new("kill").arg(format!("-{signal}")).arg(agent.id().to_string()).status().unwrap();
        assert!(killed.success());
        until("the agent ends", || agent.try_wait().unwrap());
    }

    /// Creates or updates the entries of all languages.
    pub(super) fn entries(&self, verb: &str, entries: Entries<'_>) {
        let entry = |language: &Language| {
            json!({
                "entry_id": language.name,
                "spiffe_id": language.spiffe_id(),
                "parent_id": NODE,
                "selectors": [{"type": "unix", "value": format!("path:{}", language.executable().display())}],
                "dns_names": entries.dns_name.as_slice(),
                "federates_with": entries.federates_with.as_slice(),
            })
        };
        let file = self.write("entries.json", &json!({"entries": LANGUAGES.iter().map(entry).collect::<Vec<_>>()}));
        self.ok(&["entry", verb, "--data", &file]);
    }

    /// Takes the identity of every language away.
    pub(super) fn delete_entries(&self) {
        let ids: Vec<&str> = LANGUAGES.iter().map(|l| l.name).collect();
        let file = self.write("ids.json", &json!({"ids": ids}));
        self.ok(&["entry", "delete", "--file", &file]);
    }

    fn write(&self, name: &str, value: &Value) -> String {
        let path = self.path(name);
        std::fs::write(&path, value.to_string()).unwrap();
        path.display().to_string()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(countersign())
            .args(arguments)
            .env("COUNTERSIGN_SERVER_SOCKET", self.path("server.sock"))
            .env("SPIFFE_ENDPOINT_SOCKET", self.socket())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a command that must succeed, and returns what it prints.
    pub(super) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for role in ["server", "agent"] {
                let log = std::fs::read_to_string(self.path(&format!("{role}.log"))).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{role}.log, newest first: {tail:#?}\n").as_bytes());
            }
        }
        for child in self.agent.iter_mut().chain([&mut self.server]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A role of the binary, which writes into a log beside its configuration.
fn role(directory: &Path, role: &str) -> Child {
    let log = File::options().create(true).append(true).open(directory.join(format!("{role}.log"))).unwrap();
    Command::new(countersign())
        .args([role, "run", "--config"])
        .arg(directory.join(format!("{role}.conf")))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}
