//! The processes under test, each on core 0.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use countersign_transport::client;
use countersign_wire::agent::CreateJoinTokenRequest;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::bundle_api::GetBundleRequest;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::entry_api::BatchCreateEntryRequest;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::{bundle, types};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::load::{Kind, Target};

/// Longest a process may take to be healthy.
const PATIENCE: Duration = Duration::from_secs(20);

fn binary() -> PathBuf {
    // target/release/deps/figures-… → target/release/countersign
    let path = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("countersign");
    assert!(path.is_file(), "{} is missing: `cargo build --release` first", path.display());
    path
}

fn pinned(program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(program).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn healthy(socket: &Path) {
    let begun = Instant::now();
    loop {
        if socket.exists()
            && let Ok(channel) = client::unix(socket).await
            && let Ok(answer) = HealthClient::new(channel).check(HealthCheckRequest::default()).await
            && answer.into_inner().status == 1
        {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{} is not healthy", socket.display());
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

/// A server and an agent, keys in memory, log level WARN.
pub struct Product {
    pub directory: tempfile::TempDir,
    server: Running,
    agent: Option<Running>,
    pub port: u16,
    pub server_start: Duration,
    pub agent_start: Duration,
}

impl Product {
    pub async fn start(kind: Kind) -> Self {
        let directory = tempfile::Builder::new().prefix("csb").tempdir().unwrap();
        let dir = directory.path().display();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server_conf = format!(
            "server {{\n trust_domain = \"example.org\"\n bind_address = \"127.0.0.1\"\n bind_port = {port}\n socket_path = \"{dir}/server.sock\"\n \
             data_dir = \"{dir}/server\"\n log_level = \"WARN\"\n ratelimit {{\n attestation = false\n signing = false\n }}\n}}\nplugins {{\n DataStore \"sql\" {{\n plugin_data {{\n database_type = \"sqlite3\"\n \
             connection_string = \"{dir}/server/store.sqlite3\"\n }}\n }}\n KeyManager \"memory\" {{\n plugin_data {{}}\n }}\n}}\n"
        );
        std::fs::write(directory.path().join("server.conf"), server_conf).unwrap();
        let begun = Instant::now();
        let server = Running(pinned(&binary()).args(["server", "run", "-c"]).arg(directory.path().join("server.conf")).spawn().unwrap());
        let socket = directory.path().join("server.sock");
        healthy(&socket).await;
        let server_start = begun.elapsed();
        let mut product = Self { directory, server, agent: None, port, server_start, agent_start: Duration::ZERO };
        if matches!(kind, Kind::X509Workload | Kind::JwtWorkload) {
            product.start_agent().await;
        }
        product
    }

    async fn start_agent(&mut self) {
        let channel = client::unix(&self.server_socket()).await.unwrap();
        let own = BundleClient::new(channel.clone()).get_bundle(GetBundleRequest { output_mask: None }).await.unwrap().into_inner();
        let path = self.directory.path().to_owned();
        let dir = path.display();
        std::fs::write(path.join("bundle.pem"), bundle::from_wire(&own).unwrap().to_pem()).unwrap();
        let alias = types::Spiffeid { trust_domain: "example.org".to_owned(), path: "/node".to_owned() };
        let token = AgentClient::new(channel.clone())
            .create_join_token(CreateJoinTokenRequest { ttl: 600, token: String::new(), agent_id: Some(alias.clone()) })
            .await
            .unwrap()
            .into_inner()
            .value;
        let uid = rustix::process::geteuid().as_raw();
        let entry = types::Entry {
            spiffe_id: Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: "/bench".to_owned() }),
            parent_id: Some(alias),
            selectors: vec![types::Selector { r#type: "unix".to_owned(), value: format!("uid:{uid}") }],
            ..types::Entry::default()
        };
        EntryClient::new(channel).batch_create_entry(BatchCreateEntryRequest { entries: vec![entry], output_mask: None }).await.unwrap();
        let conf = format!(
            "agent {{\n trust_domain = \"example.org\"\n server_address = \"127.0.0.1\"\n server_port = {port}\n socket_path = \"{dir}/public/agent.sock\"\n \
             admin_socket_path = \"{dir}/admin.sock\"\n data_dir = \"{dir}/agent\"\n trust_bundle_path = \"{dir}/bundle.pem\"\n join_token = \"{token}\"\n log_level = \"WARN\"\n}}\nplugins {{\n \
             KeyManager \"memory\" {{\n plugin_data {{}}\n }}\n NodeAttestor \"join_token\" {{\n plugin_data {{}}\n }}\n WorkloadAttestor \"unix\" {{\n \
             plugin_data {{}}\n }}\n}}\n",
            port = self.port
        );
        std::fs::write(path.join("agent.conf"), conf).unwrap();
        let begun = Instant::now();
        self.agent = Some(Running(pinned(&binary()).args(["agent", "run", "-c"]).arg(path.join("agent.conf")).spawn().unwrap()));
        healthy(&self.agent_socket()).await;
        self.agent_start = begun.elapsed();
    }

    pub fn server_socket(&self) -> PathBuf {
        self.directory.path().join("server.sock")
    }

    pub fn agent_socket(&self) -> PathBuf {
        self.directory.path().join("public/agent.sock")
    }

    pub fn admin_socket(&self) -> PathBuf {
        self.directory.path().join("admin.sock")
    }

    pub fn server_pid(&self) -> u32 {
        self.server.0.id()
    }

    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().unwrap().0.id()
    }

    pub fn pid(&self, kind: Kind) -> u32 {
        if matches!(kind, Kind::X509Workload | Kind::JwtWorkload) { self.agent_pid() } else { self.server_pid() }
    }

    pub fn target(&self, _: Kind) -> Target {
        Target { workload: self.agent_socket(), admin: Some(self.server_socket()), port: self.port }
    }
}

/// The bare server.
pub struct Bare {
    directory: tempfile::TempDir,
    server: Running,
    port: u16,
}

impl Bare {
    pub async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("csb").tempdir().unwrap();
        let socket = directory.path().join("bare.sock");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let program = std::env::current_exe().unwrap();
        let child = pinned(&program).arg("bare-server").arg(&socket).arg(port.to_string()).spawn().unwrap();
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() || !socket.exists() {
            assert!(begun.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Self { directory, server: Running(child), port }
    }

    pub fn pid(&self) -> u32 {
        self.server.0.id()
    }

    pub fn target(&self, _: Kind) -> Target {
        Target { workload: self.directory.path().join("bare.sock"), admin: None, port: self.port }
    }
}

/// How long the command takes that explains a process, from its start to its end.
pub fn explain_command(admin_socket: &Path, pid: u32) -> Duration {
    let begun = Instant::now();
    let output = Command::new(binary())
        .args(["explain", "--pid", &pid.to_string(), "--socket-path"])
        .arg(admin_socket)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let took = begun.elapsed();
    assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
    took
}

/// How long a command of SPIRE's command line takes that lists so many rows and a few more.
pub fn spire_server(socket: &Path, arguments: &[&str], form: &str, rows: usize) -> Duration {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("spire-server");
    std::os::unix::fs::symlink(binary(), &name).unwrap();
    let begun = Instant::now();
    let output = Command::new(name).args(arguments).args(["-output", form, "-socketPath"]).arg(socket).output().unwrap();
    let took = begun.elapsed();
    let ids = String::from_utf8_lossy(&output.stdout).matches(if form == "json" { "\"trust_domain\"" } else { "SPIFFE ID" }).count();
    assert!(output.status.success() && ids >= rows, "{ids} of {rows}: {}", String::from_utf8_lossy(&output.stderr));
    took
}

/// What `up` says of itself, from nothing.
pub fn up_millis() -> f64 {
    use std::io::BufRead as _;
    let directory = tempfile::tempdir().unwrap();
    let mut child =
        Command::new(binary()).args(["up", "--dir"]).arg(directory.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut millis = None;
    for line in lines.map_while(Result::ok) {
        if let Some(rest) = line.strip_prefix("From command to identity served: ") {
            millis = rest.strip_suffix(" ms.").and_then(|n| n.parse().ok());
        }
        if line.starts_with("Events follow") {
            break;
        }
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    child.wait().unwrap();
    millis.expect("up says how long it took")
}
