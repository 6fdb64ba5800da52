//! The directory of a trust domain that `up` keeps: which file is where, and the two configuration files in it.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_identity::TrustDomain;

use crate::output::Failure;

/// Where the agent opens the Workload API. In a directory of its own, because the admin socket must not be in or below it;
/// `agent.sock` leads there.
const WORKLOAD_SOCKET: &str = "public/agent.sock";

/// A directory and the trust domain in it.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    directory: PathBuf,
    pub(crate) trust_domain: TrustDomain,
    /// Whether the trust domain is new.
    pub(crate) is_new: bool,
    port: u16,
    /// Whether the agent finds out which programs its callers run.
    discovers_programs: bool,
    /// Held for as long as the directory is in use.
    _lock: Arc<File>,
}

impl Layout {
    /// Opens the directory, or makes it. A trust domain that is there keeps its name.
    pub(crate) fn open(directory: &Path, wanted: &TrustDomain) -> Result<Self, Failure> {
        let failed = |e: std::io::Error| Failure::new(format!("cannot use `{}`: {e}", directory.display()));
        std::fs::create_dir_all(directory).map_err(failed)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
        let directory = directory.canonicalize().map_err(failed)?;
        let lock = lock(&directory.join("up.lock")).map_err(failed)?;
        let Some(lock) = lock else {
            return Err(Failure::new(format!(
                "`{}` is in use by another `countersign up`; stop that one or choose another --dir",
                directory.display()
            )));
        };
        let longest = directory.join(WORKLOAD_SOCKET).with_extension("sock~");
        countersign_transport::unix::check_path(&longest).map_err(|e| Failure::new(format!("{e}; choose one with --dir")))?;
        let name = directory.join("trust-domain");
        let (trust_domain, is_new) = match std::fs::read_to_string(&name) {
            Ok(text) => {
                let known = TrustDomain::parse(text.trim()).map_err(|e| {
                    Failure::new(format!("`{}` does not name a trust domain: {e}; remove the directory to start over", name.display()))
                })?;
                (known, false)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                std::fs::write(&name, format!("{wanted}\n")).map_err(failed)?;
                (wanted.clone(), true)
            }
            Err(e) => return Err(failed(e)),
        };
        let port = choose_port(&directory.join("port")).map_err(failed)?;
        Ok(Self { directory, trust_domain, is_new, port, discovers_programs: false, _lock: Arc::new(lock) })
    }

    /// The same, with an agent that tells its callers apart by the programs they run.
    pub(crate) fn with_programs_discovered(mut self) -> Self {
        self.discovers_programs = true;
        self
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn server_configuration(&self) -> PathBuf {
        self.directory.join("server.conf")
    }

    pub(crate) fn agent_configuration(&self) -> PathBuf {
        self.directory.join("agent.conf")
    }

    pub(crate) fn server_socket(&self) -> PathBuf {
        self.directory.join("server.sock")
    }

    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The name below which workloads of this machine are registered, whatever token its agent joined with.
    pub(crate) fn node_alias(&self) -> String {
        format!("spiffe://{}/up/node", self.trust_domain)
    }

    /// Writes a file that only its owner may read.
    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        use std::io::Write as _;
        let path = self.directory.join(name);
        let failed = |e: std::io::Error| Failure::new(format!("cannot write `{}`: {e}", path.display()));
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)
    }

    pub(crate) fn write_bundle(&self, pem: &str) -> Result<(), Failure> {
        self.write("bundle.pem", pem)
    }

    pub(crate) fn write_server_configuration(&self) -> Result<(), Failure> {
        let (dir, td) = (self.directory.display(), &self.trust_domain);
        let text = format!(
            r#"# Written by `countersign up` at each start.
server {{
  trust_domain = "{td}"
  bind_address = "127.0.0.1"
  bind_port = {port}
  socket_path = "{dir}/server.sock"
  data_dir = "{dir}/server"
  log_format = "json"
}}

plugins {{
  DataStore "sql" {{
    plugin_data {{
      database_type = "sqlite3"
      connection_string = "{dir}/server/store.sqlite3"
    }}
  }}
  KeyManager "disk" {{
    plugin_data {{
      keys_path = "{dir}/server/keys.json"
    }}
  }}
  NodeAttestor "join_token" {{
    plugin_data {{}}
  }}
}}
"#,
            port = self.port
        );
        self.write("server.conf", &text)
    }

    /// Makes the name lead to the socket, whatever stands there from an earlier run.
    fn link_agent_socket(&self) -> Result<(), Failure> {
        let link = self.agent_socket();
        let failed = |e: std::io::Error| Failure::new(format!("cannot make `{}`: {e}", link.display()));
        match std::fs::remove_file(&link) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        std::os::unix::fs::symlink(WORKLOAD_SOCKET, &link).map_err(failed)
    }

    pub(crate) fn write_agent_configuration(&self, token: &str) -> Result<(), Failure> {
        let (dir, td) = (self.directory.display(), &self.trust_domain);
        self.link_agent_socket()?;
        self.write("join-token", &format!("{token}\n"))?;
        // By path alone: hashing a large program at each call would say nothing more here.
        let discovery =
            if self.discovers_programs { "\n      discover_workload_path = true\n      workload_size_limit = -1\n    " } else { "" };
        let text = format!(
            r#"# Written by `countersign up` at each start.
agent {{
  trust_domain = "{td}"
  server_address = "127.0.0.1"
  server_port = {port}
  socket_path = "{dir}/{WORKLOAD_SOCKET}"
  admin_socket_path = "{dir}/admin.sock"
  data_dir = "{dir}/agent"
  trust_bundle_path = "{dir}/bundle.pem"
  join_token_file = "{dir}/join-token"
  log_format = "json"
}}

plugins {{
  KeyManager "disk" {{
    plugin_data {{
      directory = "{dir}/agent"
    }}
  }}
  NodeAttestor "join_token" {{
    plugin_data {{}}
  }}
  WorkloadAttestor "unix" {{
    plugin_data {{{discovery}}}
  }}
}}
"#,
            port = self.port
        );
        self.write("agent.conf", &text)
    }
}

/// Locks a file; nothing if somebody else holds it.
fn lock(path: &Path) -> std::io::Result<Option<File>> {
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// The port of the last run if it is free, else any free one.
fn choose_port(file: &Path) -> std::io::Result<u16> {
    let former = std::fs::read_to_string(file).ok().and_then(|t| t.trim().parse::<u16>().ok());
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).and_then(|l| l.local_addr()).map(|a| a.port());
    let port = match former.map(free) {
        Some(Ok(port)) => port,
        _ => free(0)?,
    };
    std::fs::write(file, format!("{port}\n"))?;
    Ok(port)
}
