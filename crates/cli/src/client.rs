//! Where servers and agents are found, and connections to them.

use std::path::{Path, PathBuf};

use clap::Args;
use tonic::transport::Channel;

use crate::output::Failure;

pub(crate) const SERVER_SOCKET: &str = "/tmp/spire-server/private/api.sock";
pub(crate) const AGENT_SOCKET: &str = "/tmp/spire-agent/public/api.sock";
pub(crate) const ADMIN_SOCKET: &str = "/tmp/spire-agent/private/admin.sock";

/// Where `up` keeps its trust domain unless told otherwise.
pub(crate) fn default_directory() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    state.map_or_else(|| PathBuf::from(format!("/tmp/countersign-{}", rustix::process::geteuid().as_raw())), |s| s.join("countersign"))
}

/// Which server a command talks to.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerSocket {
    /// The server's private socket [default: that of a running `countersign up`, else /tmp/spire-server/private/api.sock]
    #[arg(long, env = "COUNTERSIGN_SERVER_SOCKET", value_name = "PATH")]
    socket_path: Option<PathBuf>,
}

impl ServerSocket {
    pub(crate) fn path(&self) -> PathBuf {
        self.socket_path.clone().unwrap_or_else(|| found_or(&default_directory().join("server.sock"), SERVER_SOCKET))
    }

    /// Connects to the server.
    pub(crate) async fn connect(&self) -> Result<Channel, Failure> {
        connect(&self.path(), "server", "start it, or name its socket with --socket-path").await
    }
}

/// Which Workload API a command talks to.
#[derive(Debug, Clone, Args)]
pub(crate) struct WorkloadSocket {
    /// The Workload API, a path or `unix:///path` [default: that of a running `countersign up`, else /tmp/spire-agent/public/api.sock]
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "PATH")]
    socket_path: Option<String>,
}

impl WorkloadSocket {
    pub(crate) fn path(&self) -> Result<PathBuf, Failure> {
        let Some(given) = &self.socket_path else { return Ok(found_or(&default_directory().join("agent.sock"), AGENT_SOCKET)) };
        // Workload Endpoint section 4: a unix URI has a path and nothing else.
        let path = match given.strip_prefix("unix:") {
            None if given.contains("://") => {
                return Err(Failure::new(format!("`{given}` is not a Unix socket; expected `unix:///path` or a path")));
            }
            None => given.as_str(),
            Some(rest) => match rest.strip_prefix("//") {
                Some(path) if path.starts_with('/') => path,
                Some(_) => return Err(Failure::new(format!("`{given}` has an authority; expected `unix:///path`"))),
                None => rest,
            },
        };
        if path.contains(['?', '#']) || !path.starts_with('/') && given.starts_with("unix:") {
            return Err(Failure::new(format!("`{given}` must be an absolute path and nothing else; expected `unix:///path`")));
        }
        Ok(PathBuf::from(path))
    }

    /// Connects to the agent.
    pub(crate) async fn connect(&self) -> Result<Channel, Failure> {
        connect(&self.path()?, "agent", "start it, or name its socket with SPIFFE_ENDPOINT_SOCKET").await
    }
}

/// Which agent a command asks about itself.
#[derive(Debug, Clone, Args)]
pub(crate) struct AdminSocket {
    /// The agent's admin socket, admin_socket_path in its configuration [default: that of a running `countersign up`, else /tmp/spire-agent/private/admin.sock]
    #[arg(long, env = "COUNTERSIGN_AGENT_ADMIN_SOCKET", value_name = "PATH")]
    socket_path: Option<PathBuf>,
}

impl AdminSocket {
    /// Connects to the agent.
    pub(crate) async fn connect(&self) -> Result<Channel, Failure> {
        let path = self.socket_path.clone().unwrap_or_else(|| found_or(&default_directory().join("admin.sock"), ADMIN_SOCKET));
        let hint = "is the agent running (one that is banned or has to join again stops, and its log says so), is admin_socket_path set in its configuration, and may you reach the socket's directory? \
                    Name the socket with --socket-path or COUNTERSIGN_AGENT_ADMIN_SOCKET";
        connect(&path, "agent", hint).await
    }
}

fn found_or(first: &Path, second: &str) -> PathBuf {
    if first.exists() { first.to_owned() } else { PathBuf::from(second) }
}

async fn connect(path: &Path, what: &str, hint: &str) -> Result<Channel, Failure> {
    countersign_transport::client::unix(path)
        .await
        .map_err(|e| Failure::new(format!("the {what} does not answer on `{}`: {}; {hint}", e.target, e.reason)))
}

/// A request of the Workload API, with the header it demands.
pub(crate) fn workload_request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
    request
}
