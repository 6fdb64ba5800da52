//! A trust domain for a test: real server and agents in this process, in a directory of their own, on free ports.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::key::KeyType;
use countersign_identity::x509::Certificate;
use countersign_identity::{Bundle, BundleSet, Selector, SpiffeId, TrustDomain};
use countersign_plugins::keys::KeyPair;
use countersign_server::api::LogLevels;
use countersign_transport::clock::{SharedClock, SystemClock};
use countersign_transport::random::Seeded;
use countersign_transport::{client, tls};
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::{self, attest_agent_request, attest_agent_response};
use countersign_wire::bundle_api::GetBundleRequest;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::entry_api::BatchCreateEntryRequest;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::{bundle, id, types};
use tonic::Status;
use tonic::transport::Channel;

use crate::powerloss::PowerLoss;

/// A server and the directory it lives in. Agents get directories of their own below it.
pub struct Domain {
    directory: tempfile::TempDir,
    /// The clock of everything in it.
    pub clock: SharedClock,
    /// The running server; `None` while it is stopped.
    pub server: Option<countersign_server::Running>,
    extra: String,
    plugins: String,
    disk: Option<PowerLoss>,
    /// From its next start on the server has SPIRE's services only.
    pub speaks_spire_only: bool,
    port: u16,
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Domain").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// A log level nobody changes.
#[derive(Debug)]
pub struct FixedLevels;

impl LogLevels for FixedLevels {
    fn current(&self) -> String {
        "info".to_owned()
    }

    fn launch(&self) -> String {
        "info".to_owned()
    }

    fn set(&self, _: &str) -> bool {
        true
    }
}

/// Ignores the difference between errors in tests: all end the test.
pub type Anyhow = Box<dyn std::error::Error + Send + Sync>;

/// The trust domain every test domain has.
pub fn trust_domain() -> TrustDomain {
    #[expect(clippy::expect_used, reason = "a constant name")]
    TrustDomain::parse("example.org").expect("a good name")
}

/// The SPIFFE ID with this path.
pub fn spiffe_id(path: &str) -> SpiffeId {
    #[expect(clippy::expect_used, reason = "tests name good paths")]
    trust_domain().with_path(path).expect("a good path")
}

impl Domain {
    /// A running server with the machine's clock and default settings.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start() -> Result<Self, Anyhow> {
        Self::start_with(Arc::new(SystemClock), "").await
    }

    /// A running server with another clock and more lines in its `server` block.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_with(clock: SharedClock, extra: &str) -> Result<Self, Anyhow> {
        Self::start_on(None, clock, extra).await
    }

    /// As [`Domain::start_with`], the store on a disk that the test fills or cuts the power of.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_on(disk: Option<PowerLoss>, clock: SharedClock, extra: &str) -> Result<Self, Anyhow> {
        let directory = tempfile::Builder::new().prefix("cs").tempdir()?;
        let mut domain = Self {
            directory,
            clock,
            server: None,
            extra: extra.to_owned(),
            plugins: String::new(),
            disk,
            speaks_spire_only: false,
            port: 0,
        };
        domain.start_server().await?;
        Ok(domain)
    }

    /// As [`Domain::start_with`], with more blocks in `plugins`.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_with_plugins(clock: SharedClock, extra: &str, plugins: &str) -> Result<Self, Anyhow> {
        let directory = tempfile::Builder::new().prefix("cs").tempdir()?;
        let mut domain = Self {
            directory,
            clock,
            server: None,
            extra: extra.to_owned(),
            plugins: plugins.to_owned(),
            disk: None,
            speaks_spire_only: false,
            port: 0,
        };
        domain.start_server().await?;
        Ok(domain)
    }

    /// The directory of everything in it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The server's private socket.
    pub fn server_socket(&self) -> PathBuf {
        self.directory().join("server.sock")
    }

    /// The server's configuration as text. All nodes of a test join from one address, some at one virtual instant: the limit
    /// of attestations is off unless the test sets limits itself.
    pub fn server_configuration(&self) -> String {
        let dir = self.directory().display();
        let ratelimit = if self.extra.contains("ratelimit") { "" } else { "ratelimit {\n attestation = false\n }\n" };
        format!(
            "server {{\n trust_domain = \"example.org\"\n bind_address = \"127.0.0.1\"\n bind_port = {port}\n \
             socket_path = \"{dir}/server.sock\"\n data_dir = \"{dir}/server\"\n {ratelimit} {extra}\n}}\nplugins {{\n DataStore \"sql\" {{\n \
             plugin_data {{\n database_type = \"sqlite3\"\n connection_string = \"{dir}/server/store.sqlite3\"\n }}\n }}\n \
             KeyManager \"disk\" {{\n plugin_data {{\n keys_path = \"{dir}/server/keys.json\"\n }}\n }}\n{plugins}\n}}\n",
            port = self.port,
            extra = self.extra,
            plugins = self.plugins
        )
    }

    /// Starts the server, again or for the first time; it keeps its port.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_server(&mut self) -> Result<(), Anyhow> {
        let parsed = countersign_config::parse("server.conf", &self.server_configuration())?;
        let mut config = countersign_server::Config::read(parsed)?;
        config.store_file_layer = self.disk.as_ref().map(|disk| disk.name().to_owned());
        config.without_node_service = self.speaks_spire_only;
        let started = until("the journal of the server before is free", async || {
            match countersign_server::start(&config, Arc::clone(&self.clock), Arc::new(FixedLevels)).await {
                // In one process the tasks of a stopped server may hold it a moment longer.
                Err(countersign_server::ServerError::Journal(e)) if e.to_string().contains("another server") => None,
                started => Some(started),
            }
        });
        let running = started.await??;
        self.port = running.address.port();
        self.server = Some(running);
        Ok(())
    }

    /// Stops the server.
    pub async fn stop_server(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }

    /// The server's TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection to the private socket, as a local administrator has it.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn admin(&self) -> Result<Channel, Anyhow> {
        Ok(client::unix(&self.server_socket()).await?)
    }

    /// The own trust domain's bundle.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn bundle(&self) -> Result<Bundle, Anyhow> {
        let mut client = BundleClient::new(self.admin().await?);
        let own = client.get_bundle(GetBundleRequest { output_mask: None }).await?.into_inner();
        Ok(bundle::from_wire(&own)?)
    }

    /// A join token, with an alias if wanted.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn token(&self, alias: Option<&SpiffeId>) -> Result<String, Anyhow> {
        let request = agent::CreateJoinTokenRequest { ttl: 600, token: String::new(), agent_id: alias.map(id::to_wire) };
        Ok(AgentClient::new(self.admin().await?).create_join_token(request).await?.into_inner().value)
    }

    /// Creates an entry and returns it as the server keeps it.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn entry(&self, parent: &SpiffeId, granted: &SpiffeId, selectors: &[Selector]) -> Result<types::Entry, Anyhow> {
        self.entry_from(types::Entry {
            spiffe_id: Some(id::to_wire(granted)),
            parent_id: Some(id::to_wire(parent)),
            selectors: id::selectors_to_wire(selectors),
            ..types::Entry::default()
        })
        .await
    }

    /// Creates an entry from its message.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn entry_from(&self, entry: types::Entry) -> Result<types::Entry, Anyhow> {
        let mut client = EntryClient::new(self.admin().await?);
        let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
        let result = client.batch_create_entry(request).await?.into_inner().results.into_iter().next().ok_or("no result")?;
        let status = result.status.unwrap_or_default();
        if status.code != 0 {
            return Err(format!("code {}: {}", status.code, status.message).into());
        }
        Ok(result.entry.ok_or("no entry")?)
    }

    /// Joins with a token as an agent would, and returns what it got; for tests that speak the server's API themselves.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn join(&self, token: &str) -> Result<NodeIdentity, Anyhow> {
        self.join_with(token, Arc::new(KeyPair::generate(KeyType::EcP256)?)).await
    }

    /// As [`Domain::join`], with a key of the test's choice.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn join_with(&self, token: &str, pair: Arc<KeyPair>) -> Result<NodeIdentity, Anyhow> {
        let channel = self.connect(None).await?;
        let data = types::AttestationData { r#type: "join_token".to_owned(), payload: token.as_bytes().to_vec() };
        let params = Some(agent::AgentX509svidParams { csr: pair.request(None, &[])? });
        let step = attest_agent_request::Step::Params(attest_agent_request::Params { data: Some(data), params });
        let requests = tokio_stream::iter([agent::AttestAgentRequest { step: Some(step) }]);
        let mut answers = AgentClient::new(channel).attest_agent(requests).await?.into_inner();
        let answer = answers.message().await?.ok_or("no answer")?;
        let Some(attest_agent_response::Step::Result(result)) = answer.step else { return Err("not a result".into()) };
        let chain = result.svid.ok_or("no SVID")?.cert_chain;
        let leaf = Certificate::parse(chain.first().ok_or("no certificate")?)?;
        Ok(NodeIdentity { id: leaf.spiffe_id().ok_or("no SPIFFE ID")?, chain, pair, leaf })
    }

    /// A TLS connection to the server, with a node's identity or without any.
    ///
    /// # Errors
    /// The server does not answer, or the two do not trust each other.
    pub async fn connect(&self, node: Option<&NodeIdentity>) -> Result<Channel, Anyhow> {
        let identity = node.map(|n| tls::identity(&n.chain, n.pair.pkcs8())).transpose()?;
        let bundles = Arc::new(arc_swap_of(BundleSet::from_iter([Arc::new(self.bundle().await?)])));
        let server_id = trust_domain().server_id();
        let admit: tls::Admit = Arc::new(move |id| *id == server_id);
        let config = tls::client_config(identity, bundles, admit, Arc::clone(&self.clock))?;
        Ok(client::tls("127.0.0.1", self.port, Arc::new(config)).await?)
    }

    /// The configuration of an agent with its own directory, its bundle file written.
    ///
    /// # Errors
    /// The server does not answer, or the configuration is wrong.
    pub async fn agent_config(&self, name: &str, token: Option<&str>, extra: &str) -> Result<countersign_agent::Config, Anyhow> {
        let dir = self.directory().join(name);
        std::fs::create_dir_all(&dir)?;
        if self.server.is_some() {
            std::fs::write(dir.join("bundle.pem"), self.bundle().await?.to_pem())?;
        }
        let text = self.agent_configuration(name, token, extra);
        Ok(countersign_agent::Config::read(countersign_config::parse("agent.conf", &text)?)?)
    }

    /// The configuration of an agent as text.
    pub fn agent_configuration(&self, name: &str, token: Option<&str>, extra: &str) -> String {
        agent_configuration(&self.directory().join(name), self.port, token, extra)
    }

    /// Starts an agent with a new token and the alias `spiffe://example.org/node/<name>`.
    ///
    /// # Errors
    /// It does not start.
    pub async fn agent(&self, name: &str) -> Result<countersign_agent::Running, Anyhow> {
        let token = self.token(Some(&spiffe_id(&format!("/node/{name}")))).await?;
        let config = self.agent_config(name, Some(&token), "").await?;
        self.run_agent(&config).await
    }

    /// Starts an agent from its configuration.
    ///
    /// # Errors
    /// It does not start.
    pub async fn run_agent(&self, config: &countersign_agent::Config) -> Result<countersign_agent::Running, Anyhow> {
        Ok(countersign_agent::start(config, Arc::clone(&self.clock), Arc::new(Seeded::new(1)), "test").await?)
    }
}

/// The configuration of an agent that keeps everything in one directory.
pub fn agent_configuration(directory: &Path, port: u16, token: Option<&str>, extra: &str) -> String {
    let token = token.map_or_else(String::new, |t| format!("join_token = \"{t}\"\n"));
    format!(
        "agent {{\n trust_domain = \"example.org\"\n server_address = \"127.0.0.1\"\n server_port = {port}\n \
         socket_path = \"{dir}/agent.sock\"\n data_dir = \"{dir}\"\n trust_bundle_path = \"{dir}/bundle.pem\"\n {token} {extra}\n}}\n\
         plugins {{\n KeyManager \"disk\" {{\n plugin_data {{\n directory = \"{dir}\"\n }}\n }}\n NodeAttestor \"join_token\" {{\n \
         plugin_data {{}}\n }}\n WorkloadAttestor \"unix\" {{\n plugin_data {{}}\n }}\n}}\n",
        dir = directory.display()
    )
}

/// What a node got when it joined.
#[derive(Debug, Clone)]
pub struct NodeIdentity {
    /// The agent's ID.
    pub id: SpiffeId,
    /// Chain, leaf first, DER.
    pub chain: Vec<Vec<u8>>,
    /// Its key.
    pub pair: Arc<KeyPair>,
    /// The leaf.
    pub leaf: Certificate,
}

fn arc_swap_of(bundles: BundleSet) -> arc_swap::ArcSwap<BundleSet> {
    arc_swap::ArcSwap::from_pointee(bundles)
}

/// The selector of this very process's user.
pub fn own_uid() -> Selector {
    #[expect(clippy::expect_used, reason = "a uid makes a good selector")]
    Selector::new("unix", &format!("uid:{}", rustix::process::geteuid().as_raw())).expect("a good selector")
}

/// Waits for a condition, looking again and again, at most this long.
///
/// # Errors
/// It does not come true in time.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> Result<T, Anyhow> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        if tokio::time::Instant::now() > deadline {
            return Err(format!("waited in vain: {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The status inside an error of this module, if it is one.
pub fn status(error: &Anyhow) -> Option<&Status> {
    error.downcast_ref::<Status>()
}
