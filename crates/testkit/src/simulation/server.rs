//! The server of a run, its disks, and its operator.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use countersign_transport::client;
use countersign_transport::clock::SharedClock;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::{self, ListAgentsRequest};
use countersign_wire::bundle_api::GetBundleRequest;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::{BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, ListEntriesRequest};
use countersign_wire::{bundle, id, types};
use tokio::sync::oneshot;
use tonic::transport::Channel;

use super::model::{self, Entry, Request, State};
use super::process::Process;
use crate::clock::VirtualClock;
use crate::domain::{Anyhow, FixedLevels, own_uid, spiffe_id};
use crate::journal_disk::JournalDisk;
use crate::powerloss::PowerLoss;

/// How long a call of the operator may take by the machine's clock; it takes milliseconds, but the machine may be busy.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The selector of entries the workload does not satisfy.
const STRANGER: &str = "unix:uid:4000000";

/// What stays when the server goes.
#[derive(Debug, Clone)]
pub(super) struct Disks {
    pub(super) store: PowerLoss,
    pub(super) journal: JournalDisk,
}

/// A running server and a connection of its operator.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) process: Process,
    pub(super) address: SocketAddr,
    admin: Channel,
}

impl Server {
    /// Starts it and returns once it serves.
    pub(super) async fn start(directory: &Path, disks: &Disks, clock: &VirtualClock) -> Result<Self, Anyhow> {
        let journal = directory.join("server/journal");
        until_free(&journal.join("journal.lock")).await?;
        disks.store.make_room();
        disks.journal.make_room();
        disks.journal.power_on();
        let mut config = countersign_server::Config::read(countersign_config::parse("server.conf", &configuration(directory))?)?;
        config.store_file_layer = Some(disks.store.name().to_owned());
        config.journal.disk = Arc::new(disks.journal.clone());
        let (tell, told) = oneshot::channel();
        let clock: SharedClock = Arc::new(clock.clone());
        let process = Process::start("server", async move {
            match countersign_server::start(&config, clock, Arc::new(FixedLevels)).await {
                Ok(mut running) => {
                    let _ = tell.send(Ok(running.address));
                    running.failed().await;
                }
                Err(error) => drop(tell.send(Err(error.to_string()))),
            }
        })?;
        let address = tokio::time::timeout(CALL_TIMEOUT, told).await?.map_err(|_| "the server's process ended")?;
        let address = address.map_err(|reason| format!("the server does not start: {reason}"))?;
        let admin = client::unix(&directory.join("server.sock")).await?;
        Ok(Self { process, address, admin })
    }

    /// Asks for something, as an operator does.
    pub(super) async fn request(&self, request: &Request, entry_id: Option<&str>) -> Result<Option<String>, Anyhow> {
        let message = |entry: &Entry, entry_id: Option<&str>| -> Result<types::Entry, Anyhow> {
            let selector = if entry.fits { own_uid() } else { countersign_identity::Selector::parse(STRANGER)? };
            Ok(types::Entry {
                id: entry_id.unwrap_or_default().to_owned(),
                spiffe_id: Some(id::to_wire(&countersign_identity::SpiffeId::parse(&entry.spiffe_id)?)),
                parent_id: Some(id::to_wire(&spiffe_id(&format!("/node/{}", entry.agent)))),
                selectors: id::selectors_to_wire(&[selector]),
                ..types::Entry::default()
            })
        };
        let mut entries = EntryClient::new(self.admin.clone());
        let mut agents = AgentClient::new(self.admin.clone());
        let node = |node: &str| -> Result<_, Anyhow> { Ok(Some(id::to_wire(&countersign_identity::SpiffeId::parse(node)?))) };
        let call = async {
            let (status, made) = match (request, entry_id) {
                (Request::Put { entry, .. }, None) => {
                    let request = BatchCreateEntryRequest { entries: vec![message(entry, None)?], output_mask: None };
                    let result = entries.batch_create_entry(request).await?.into_inner().results.into_iter().next().ok_or("no result")?;
                    (result.status, result.entry.map(|e| e.id))
                }
                (Request::Put { entry, .. }, entry_id) => {
                    let request =
                        BatchUpdateEntryRequest { entries: vec![message(entry, entry_id)?], ..BatchUpdateEntryRequest::default() };
                    let result = entries.batch_update_entry(request).await?.into_inner().results.into_iter().next().ok_or("no result")?;
                    (result.status, result.entry.map(|e| e.id))
                }
                (Request::Delete { .. }, entry_id) => {
                    let request = BatchDeleteEntryRequest { ids: vec![entry_id.unwrap_or_default().to_owned()] };
                    let result = entries.batch_delete_entry(request).await?.into_inner().results.into_iter().next().ok_or("no result")?;
                    (result.status, None)
                }
                (Request::Ban { node: banned }, _) => {
                    agents.ban_agent(agent::BanAgentRequest { id: node(banned)? }).await?;
                    (None, None)
                }
                (Request::Evict { node: evicted }, _) => {
                    agents.delete_agent(agent::DeleteAgentRequest { id: node(evicted)? }).await?;
                    (None, None)
                }
            };
            match status.filter(|s| s.code != 0) {
                Some(status) => Err(Anyhow::from(format!("code {}: {}", status.code, status.message))),
                None => Ok(made),
            }
        };
        tokio::time::timeout(CALL_TIMEOUT, call).await?
    }

    /// A token for a node that gets this agent's alias.
    pub(super) async fn token(&self, agent: usize) -> Result<String, Anyhow> {
        let alias = Some(id::to_wire(&spiffe_id(&format!("/node/{agent}"))));
        let request = agent::CreateJoinTokenRequest { ttl: 24 * 3600, token: String::new(), agent_id: alias };
        let mut client = AgentClient::new(self.admin.clone());
        Ok(tokio::time::timeout(CALL_TIMEOUT, client.create_join_token(request)).await??.into_inner().value)
    }

    /// The bundle an agent joins with.
    pub(super) async fn bundle(&self) -> Result<String, Anyhow> {
        let mut client = BundleClient::new(self.admin.clone());
        let own = tokio::time::timeout(CALL_TIMEOUT, client.get_bundle(GetBundleRequest { output_mask: None })).await??.into_inner();
        Ok(bundle::from_wire(&own)?.to_pem())
    }

    /// All it has, as an operator sees it, and the IDs of the entries by place.
    pub(super) async fn look(&self) -> Result<(State, Vec<(usize, String)>), Anyhow> {
        let mut state = State::default();
        let mut ids = Vec::new();
        let mut aliases = Vec::new();
        let mut client = EntryClient::new(self.admin.clone());
        let found = tokio::time::timeout(CALL_TIMEOUT, client.list_entries(ListEntriesRequest::default())).await??.into_inner();
        for entry in found.entries {
            let (parent, granted) = (id::from_wire(entry.parent_id.as_ref())?, id::from_wire(entry.spiffe_id.as_ref())?);
            let Some(agent) = parent.path().strip_prefix("/node/").and_then(|n| n.parse().ok()) else {
                aliases.push(parent.as_str().to_owned());
                continue;
            };
            let fits = entry.selectors == id::selectors_to_wire(&[own_uid()]);
            let place = model::place(granted.as_str()).ok_or_else(|| format!("an entry for `{granted}`, which nobody created"))?;
            if state.entries.insert(place, Entry { spiffe_id: granted.as_str().to_owned(), agent, fits }).is_some() {
                return Err(format!("two entries for place {place}").into());
            }
            ids.push((place, entry.id));
        }
        let mut client = AgentClient::new(self.admin.clone());
        let found = tokio::time::timeout(CALL_TIMEOUT, client.list_agents(ListAgentsRequest::default())).await??.into_inner();
        for agent in found.agents {
            state.nodes.insert(id::from_wire(agent.id.as_ref())?.as_str().to_owned(), agent.banned);
        }
        aliases.sort_unstable();
        if !aliases.iter().eq(state.nodes.keys()) {
            return Err(format!("the nodes are {:?}, aliases are there for {aliases:?}", state.nodes).into());
        }
        Ok((state, ids))
    }
}

/// Returns once the journal's writer of a server that was killed has noticed.
async fn until_free(lock: &Path) -> Result<(), Anyhow> {
    let Ok(file) = std::fs::OpenOptions::new().write(true).open(lock) else { return Ok(()) };
    crate::domain::until("the journal of the server before is free", async || file.try_lock().is_ok().then_some(())).await
}

fn configuration(directory: &Path) -> String {
    let dir = directory.display();
    format!(
        "server {{\n trust_domain = \"example.org\"\n bind_address = \"127.0.0.1\"\n bind_port = 0\n socket_path = \"{dir}/server.sock\"\n \
         data_dir = \"{dir}/server\"\n ca_ttl = \"24h\"\n agent_ttl = \"8h\"\n default_x509_svid_ttl = \"4h\"\n \
         ratelimit {{\n attestation = false\n }}\n}}\nplugins {{\n DataStore \"sql\" {{\n plugin_data {{\n database_type = \"sqlite3\"\n \
         connection_string = \"{dir}/server/store.sqlite3\"\n }}\n }}\n KeyManager \"disk\" {{\n plugin_data {{\n \
         keys_path = \"{dir}/server/keys.json\"\n }}\n }}\n}}\n"
    )
}
