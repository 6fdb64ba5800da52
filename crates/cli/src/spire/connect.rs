//! Where the APIs are found under SPIRE's names, and connections to them.

use std::path::PathBuf;

use tonic::Status;
use tonic::transport::Channel;

use super::flags::{Flag, Given, Kind, flag};
use super::go;
use crate::client::{ADMIN_SOCKET, AGENT_SOCKET, SERVER_SOCKET};
use crate::output::Failure;

/// Which server.
pub(super) const SERVER: &[Flag] = &[
    Flag { name: "socketPath", kind: Kind::Text, default: SERVER_SOCKET, help: "The server's private socket." },
    flag("instance", Kind::Text, "Which of several servers: takes the place of %i in SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE."),
];
/// Which agent's Workload API.
pub(super) const WORKLOAD: &[Flag] = &[
    Flag { name: "socketPath", kind: Kind::Text, default: AGENT_SOCKET, help: "The socket of the Workload API." },
    flag("instance", Kind::Text, "Which of several agents: takes the place of %i in SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE."),
];
/// Which agent's admin API.
pub(super) const ADMIN: &[Flag] =
    &[Flag { name: "socketPath", kind: Kind::Text, default: ADMIN_SOCKET, help: "The agent's admin socket." }];

/// A socket, and how SPIRE's programs write it when nobody listens there.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    dialled: String,
}

impl Target {
    /// The server that is meant.
    pub(super) fn server(given: &Given) -> Result<Self, Failure> {
        let path = socket(given, SERVER_SOCKET, "SPIRE_SERVER_PRIVATE_SOCKET", |template| {
            format!("you must define {template} to use the instance flag")
        })?;
        Ok(Self { dialled: format!("//{}", path.display()), path })
    }

    /// The Workload API that is meant.
    pub(super) fn workload(given: &Given) -> Result<Self, Failure> {
        let path = socket(given, AGENT_SOCKET, "SPIRE_AGENT_PUBLIC_SOCKET", |template| {
            // The space is SPIRE's.
            format!(" {template} environment variable must be defined when using the instance flag")
        })?;
        let path = std::path::absolute(&path).unwrap_or(path);
        Ok(Self { dialled: path.display().to_string(), path })
    }

    /// The admin API that is meant.
    pub(super) fn admin(given: &Given) -> Self {
        let path = PathBuf::from(given.text("socketPath"));
        Self { dialled: format!("//{}", path.display()), path }
    }

    /// Connects. If nobody answers, that is a refusal like that of a call: SPIRE's programs connect with their first call.
    pub(super) async fn connect(&self) -> Result<Channel, Status> {
        countersign_transport::client::unix(&self.path).await.map_err(|e| {
            let reason = go::system_error(e.reason.rsplit(": ").next().unwrap_or_default());
            let quoted = go::quoted(&format!("transport: Error while dialing: dial unix {}: connect: {reason}", self.dialled));
            Status::unavailable(format!("connection error: desc = {quoted}"))
        })
    }
}

/// A path that is not the default, the instance, the environment, the default, in this order.
fn socket(given: &Given, default: &str, variable: &str, no_template: impl Fn(&str) -> String) -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    let template_variable = format!("{variable}_TEMPLATE");
    let instance = given.text("instance");
    let mut of_instance = None;
    if !instance.is_empty() {
        let template = set(&template_variable).and_then(|t| t.into_string().ok()).unwrap_or_default();
        if template.is_empty() {
            return Err(Failure::new(no_template(&template_variable)));
        }
        if !template.contains("%i") {
            return Err(Failure::new(format!("failed to find %i in {template_variable}")));
        }
        of_instance = Some(PathBuf::from(template.replace("%i", instance)));
    }
    let path = given.text("socketPath");
    if path != default {
        return Ok(PathBuf::from(path));
    }
    Ok(of_instance.or_else(|| set(variable).map(PathBuf::from)).unwrap_or_else(|| PathBuf::from(default)))
}
