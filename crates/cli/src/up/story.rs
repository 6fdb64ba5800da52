//! What `up` does through the API, and what it tells: the greeting, and one line for each event.

use std::time::Duration;

use countersign_identity::{Selector, SpiffeId};
use countersign_wire::agent::CreateJoinTokenRequest;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::bundle_api::GetBundleRequest;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::entry_api::BatchCreateEntryRequest;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::workload::X509svidRequest;
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_wire::{id, types};
use serde_json::Value;
use tonic::Code;
use tonic::transport::Channel;

use super::You;
use super::layout::Layout;
use crate::client::{default_directory, workload_request};
use crate::commands::agent;
use crate::commands::bundle::{Format, render};
use crate::output::{self, Failure};

/// How long the first identity may take.
const FIRST_SVID_TIMEOUT: Duration = Duration::from_secs(15);
/// Lifetime of the token the agent joins with, in seconds.
const TOKEN_SECS: i32 = 600;

pub(super) async fn fetch_bundle(server: Channel) -> Result<String, Failure> {
    let own = BundleClient::new(server).get_bundle(GetBundleRequest { output_mask: None }).await?.into_inner();
    render(&own, Format::Pem)
}

pub(super) async fn make_token(server: Channel, layout: &Layout) -> Result<String, Failure> {
    let alias = SpiffeId::parse(&layout.node_alias()).map_err(|e| Failure::new(e.to_string()))?;
    let request = CreateJoinTokenRequest { ttl: TOKEN_SECS, token: String::new(), agent_id: Some(id::to_wire(&alias)) };
    Ok(AgentClient::new(server).create_join_token(request).await?.into_inner().value)
}

/// Registers an identity for whoever calls; one that is there stays.
pub(super) async fn register_user(server: Channel, layout: &Layout) -> Result<(String, String, bool), Failure> {
    let uid = rustix::process::geteuid().as_raw();
    let name = std::env::var("USER").ok().filter(|n| layout.trust_domain.with_path(&format!("/user/{n}")).is_ok());
    let path = format!("/user/{}", name.unwrap_or_else(|| uid.to_string()));
    let spiffe_id = layout.trust_domain.with_path(&path).map_err(|e| Failure::new(e.to_string()))?;
    let parent = SpiffeId::parse(&layout.node_alias()).map_err(|e| Failure::new(e.to_string()))?;
    let selector = Selector::new("unix", &format!("uid:{uid}")).map_err(|e| Failure::new(e.to_string()))?;
    let entry = types::Entry {
        spiffe_id: Some(id::to_wire(&spiffe_id)),
        parent_id: Some(id::to_wire(&parent)),
        selectors: id::selectors_to_wire(std::slice::from_ref(&selector)),
        ..types::Entry::default()
    };
    let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
    let results = EntryClient::new(server).batch_create_entry(request).await?.into_inner().results;
    let status = results.into_iter().next().and_then(|r| r.status).unwrap_or_default();
    match Code::from_i32(status.code) {
        Code::Ok => Ok((spiffe_id.to_string(), selector.to_string(), true)),
        Code::AlreadyExists => Ok((spiffe_id.to_string(), selector.to_string(), false)),
        _ => Err(Failure::new(format!("cannot register an identity for you: {}", status.message))),
    }
}

/// Waits until the identity is really served.
pub(super) async fn first_svid(layout: &Layout) -> Result<(), Failure> {
    let channel = countersign_transport::client::unix(&layout.agent_socket()).await.map_err(|e| Failure::new(e.to_string()))?;
    let mut client = SpiffeWorkloadApiClient::new(channel);
    let deadline = tokio::time::Instant::now() + FIRST_SVID_TIMEOUT;
    loop {
        let mut request = workload_request(X509svidRequest {});
        request.set_timeout(FIRST_SVID_TIMEOUT);
        let answer = async { client.fetch_x509svid(request).await?.into_inner().message().await }.await;
        match answer {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(status) if tokio::time::Instant::now() > deadline => {
                return Err(Failure::new(format!("your identity is not served: {}", status.message())));
            }
            // The entry is on its way to the agent.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

pub(super) async fn newest_agent(server: Channel) -> Result<String, Failure> {
    let mut agents = agent::all(&mut AgentClient::new(server), None).await?;
    agents.sort_by_key(|a| a.x509svid_expires_at);
    let newest = agents.pop().and_then(|a| a.id);
    Ok(newest.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path)).unwrap_or_default())
}

/// What now exists, in plain words, and three things to try next.
pub(super) fn tell(layout: &Layout, you: &You, took: Duration) {
    let dir = layout.directory().display();
    let verb = if layout.is_new { "created" } else { "reopened" };
    let entry = if you.created { "registered for you" } else { "yours since an earlier run" };
    let home = if layout.directory() == default_directory() {
        String::new()
    } else {
        format!("  export COUNTERSIGN_SERVER_SOCKET={dir}/server.sock COUNTERSIGN_AGENT_ADMIN_SOCKET={dir}/admin.sock\n")
    };
    output::text(&format!(
        "\
Trust domain `{td}` is up ({verb} in {dir}).

  server   listens on 127.0.0.1:{port}; log {dir}/server.log
  agent    joined as {agent}; log {dir}/agent.log
  you      {spiffe_id}
           {entry}: processes with selector {selector} get this identity

From command to identity served: {millis} ms.

Point any SPIFFE program at it, in another terminal:

  export SPIFFE_ENDPOINT_SOCKET=unix://{dir}/agent.sock
{home}
Three things to try there (`{program}` is this program):

  {program} whoami
  {program} fetch jwt --audience my-service
  {program} log issued --id {spiffe_id}

Events follow; Ctrl-C stops everything and keeps it for the next time.

",
        td = layout.trust_domain,
        port = layout.port(),
        agent = you.agent_joined,
        spiffe_id = you.spiffe_id,
        selector = you.selector,
        millis = took.as_millis(),
        program = program(),
    ));
}

/// The program as the user can call it again.
pub(super) fn program() -> String {
    let called = std::env::args().next().unwrap_or_default();
    let current = std::env::current_exe().ok();
    let on_path = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|d| current.as_deref() == Some(&*d.join("countersign"))));
    if on_path || called.is_empty() { "countersign".to_owned() } else { called }
}

/// A line of a child, read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// What to show, if it matters to a person.
    pub(super) text: Option<String>,
    /// If it is an error, what it says.
    pub(super) error: Option<String>,
}

/// Puts a log line into plain words.
pub(super) fn event(role: &str, line: &str) -> Event {
    let Ok(Value::Object(record)) = serde_json::from_str::<Value>(line) else {
        let error = line.strip_prefix("Error: ").map(ToOwned::to_owned);
        return Event { text: None, error };
    };
    let field = |name: &str| record.get(name).map(|v| v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned)).unwrap_or_default();
    let (level, message) = (field("level"), field("msg"));
    let time = field("time");
    let clock = time.get(11..19).unwrap_or_default();
    let say = |what: String| Some(format!("{clock}  {role:<7}{what}"));
    let text = match message.as_str() {
        "Creating X509-SVID" => say(format!("fetches an identity: {}", field("spiffe_id"))),
        "Renewing X509-SVID" => say(format!("renews an identity: {}", field("spiffe_id"))),
        "Agent attestation request completed" => say(format!("admitted a node: {}", field("agent_id"))),
        "Node attestation was successful" => say(format!("joined as {} until {}", field("spiffe_id"), field("expires_at"))),
        "Successfully rotated agent SVID" => say(format!("renewed its own identity until {}", field("expires_at"))),
        "X509 CA prepared" => say(format!("prepared the next X.509 authority {}", field("local_authority_id"))),
        "X509 CA activated" => say(format!("signs with X.509 authority {}", field("local_authority_id"))),
        "JWT key prepared" => say(format!("prepared the next JWT authority {}", field("local_authority_id"))),
        "JWT key activated" => say(format!("signs with JWT authority {}", field("local_authority_id"))),
        "Server SVID rotated" => say("renewed its own identity".to_owned()),
        "Agent banned" => say(format!("banned {}", field("agent_id"))),
        "Agent deleted" => say(format!("evicted {}", field("agent_id"))),
        "No identity issued" => {
            say(format!("denied process {0} (uid {1}): no entry fits it; `countersign explain --pid {0}`", field("pid"), field("uid")))
        }
        _ if level == "warning" || level == "error" => {
            let error = field("error");
            say(format!("{level}: {message}{}{error}", if error.is_empty() { "" } else { ": " }))
        }
        _ => None,
    };
    let error = (level == "error").then(|| if field("error").is_empty() { message } else { field("error") });
    Event { text, error }
}
