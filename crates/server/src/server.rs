//! A server put together, from top to bottom: files, store, journal, authorities, services, listeners.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign_identity::Timestamp;
use countersign_store::{Options, Store, StoreError};
use countersign_transport::clock::SharedClock;
use countersign_transport::limits::{
    CALL_TIMEOUT, CONNECTION_AGE_SPREAD, CONNECTION_WINDOW_BYTES, HEADER_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT,
    STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION_MAX,
};
use countersign_transport::random::{Random as _, Seeded};
use countersign_transport::tls::SharedBundles;
use countersign_transport::unix::SocketError;
use countersign_transport::{observe, tcp, tls, unix};
use countersign_wire::journal::Kind;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::api::{self, Api, Context, LogLevels, NodeAttestors};
use crate::audit::{self, Journal, JournalError};
use crate::authorities::{Authorities, IssueError, Settings};
use crate::config::Config;
use crate::follow::Hub;
use crate::inventory::{self, Found, Issued, Mismatch};
use crate::jobs;
use crate::metrics::{Metrics, Reading};
use crate::own::OwnIdentity;
use crate::policy::allowed::Lifetimes;
use crate::policy::gate::{Gate, GateLayer};
use crate::ratelimit::{Lines, RateLimits};

/// How long calls under way may take once the server is told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A server that could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A file or directory of the server.
    #[error("cannot use `{path}`: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another server uses the data directory.
    #[error("data directory `{0}` is in use by another server; stop that one or choose another data_dir")]
    InUse(PathBuf),
    /// Another server uses the store.
    #[error("the store `{0}` is in use by another server; stop that one or choose another connection_string")]
    StoreInUse(PathBuf),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Store, keys and name do not belong together.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The first authority or the server's own SVID.
    #[error("cannot prepare the authorities: {0}")]
    Authorities(#[from] IssueError),
    /// The private socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A TCP listener.
    #[error("{0}")]
    Listen(String),
    /// The store belongs to another trust domain.
    #[error("the store belongs to trust domain `{found}`, the configuration says `{configured}`")]
    TrustDomain {
        /// In the store.
        found: String,
        /// In the configuration.
        configured: String,
    },
    /// TLS.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

impl ServerError {
    /// What to do about it, where the sentence does not say so already.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Mismatch(mismatch) => mismatch.hint(),
            Self::Store(StoreError::Spire { .. }) => Some(inventory::SPIRE_HINT.to_owned()),
            _ => None,
        }
    }
}

/// A running server.
pub struct Running {
    /// Where the TCP listener is.
    pub address: SocketAddr,
    /// Where the private socket is.
    pub socket_path: PathBuf,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    servers: JoinSet<Result<(), String>>,
    pub(crate) api: Api,
    _lock: (std::fs::File, std::fs::File),
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Running {
    /// Returns when a listener has ended by itself, which it never should.
    pub async fn failed(&mut self) -> String {
        match self.servers.join_next().await {
            Some(Ok(Err(reason))) => reason,
            _ => "a listener ended".to_owned(),
        }
    }

    /// Takes over what a running server can: the settings in [`Config::LIVE`] but for the log level. Calls under way end with
    /// what they began with.
    pub fn reload(&self, config: &Config) {
        self.api.lifetimes.store(Arc::new(lifetimes(config)));
        self.api.node_attestors.store(Arc::new(node_attestors(config)));
        self.api.rate_limits.set(config.ratelimit);
    }

    /// What whoever asks about health is told of the last reload.
    pub fn last_reload(&self) -> &observe::LastReload {
        &self.api.last_reload
    }

    /// Lets calls under way end, for a while, and stops.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        self.api.hub.close();
        let drained = tokio::time::timeout(STOP_TIMEOUT, async { while self.servers.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!("Calls under way were cut off after {STOP_TIMEOUT:?}");
        }
        self.servers.shutdown().await;
        self.api.journal.report_left_out().await;
        self.api.lines.report();
        self.tasks.shutdown().await;
        let _ = std::fs::remove_file(&self.socket_path);
        let Self { api, _lock, .. } = self;
        let ended = api.journal.ended();
        drop(api);
        // The last outcomes are written, and whoever starts a server here next finds the journal free.
        if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
            tracing::warn!("The issuance journal is still being written");
        }
    }
}

/// Starts a server and returns once it can issue.
///
/// # Errors
/// Says what stopped the start and what to do about it.
pub async fn start(config: &Config, clock: SharedClock, log_levels: Arc<dyn LogLevels>) -> Result<Running, ServerError> {
    if config.disable_jwt_svids {
        tracing::info!("JWT-SVID profile is disabled");
    }
    // First of all: beside what is somebody else's not even a lock is made.
    if config.store_file_layer.is_none() {
        countersign_store::refuse_foreign(&config.store_path)?;
    }
    let lock = (lock_data_dir(&config.data_dir)?, lock_store(&config.store_path)?);
    let store = open_store(config, &clock)?;
    let server_id = server_id(config, &store, clock.now()).await?;
    let journal = Journal::open(config.journal.clone(), Arc::clone(&server_id), Arc::clone(&clock))?;
    let settings = Settings {
        trust_domain: config.trust_domain.clone(),
        server_id,
        ca_key_type: config.ca_key_type,
        jwt_key_type: config.jwt_key_type,
        ca_ttl: config.ca_ttl,
        subject: config.ca_subject.clone(),
        jwt_issuer: config.jwt_issuer.clone(),
        disable_jwt_svids: config.disable_jwt_svids,
    };
    let authorities =
        Arc::new(Authorities::new(settings, Arc::clone(&config.key_manager), store.clone(), journal.clone(), Arc::clone(&clock)));
    authorities.rotate().await?;
    let own = Arc::new(OwnIdentity::new(config.trust_domain.clone(), config.default_x509_svid_ttl, config.ca_key_type));
    own.renew(&authorities, &clock).await?;

    let metrics = Arc::new(Metrics::default());
    let lines = Arc::new(Lines::new(Arc::clone(&clock)));
    let hub = Arc::new(Hub::new(store.snapshot()));
    let seen = store.seen_at_start().iter().map(|s| (s.id.clone(), countersign_store::Seen::clone(s))).collect();
    let api = Api(Arc::new(Context {
        trust_domain: config.trust_domain.clone(),
        store: store.clone(),
        journal,
        authorities: Arc::clone(&authorities),
        own: Arc::clone(&own),
        hub: Arc::clone(&hub),
        clock: Arc::clone(&clock),
        metrics: Arc::clone(&metrics),
        lifetimes: ArcSwap::from_pointee(lifetimes(config)),
        disable_jwt_svids: config.disable_jwt_svids,
        agent_spiffe_id_as_selector: config.agent_spiffe_id_as_selector,
        node_attestors: ArcSwap::from_pointee(node_attestors(config)),
        last_reload: observe::LastReload::default(),
        log_levels,
        started_at: clock.now(),
        attested: api::Recent::default(),
        rate_limits: RateLimits::new(config.ratelimit, &clock),
        lines: Arc::clone(&lines),
        seen: Mutex::new(seen),
        federates_with: config.federates_with.clone(),
        polled: api::polled::Answers::default(),
    }));
    let gate = Gate {
        store: store.clone(),
        clock: Arc::clone(&clock),
        admin_ids: config.admin_ids.as_slice().into(),
        metrics: Arc::clone(&metrics),
        lines,
        audit_log: config.audit_log_enabled,
    };

    // All listeners open before the first call is served, so that a start either works or says why not.
    let host = config.bind_address.address().await.map_err(|e| ServerError::Listen(format!("`server.bind_address`: {e}")))?;
    let listener = observe::listen(&host.to_string(), config.bind_port).await.map_err(ServerError::Listen)?;
    let address = listener.local_addr().map_err(|e| ServerError::Listen(e.to_string()))?;
    let private = unix::listen(&config.socket_path, 0o750, 0o770)?;
    let health = match &config.health_checks {
        Some(h) => Some((observe::listen(&h.bind_address, h.bind_port).await.map_err(ServerError::Listen)?, h)),
        None => None,
    };
    let prometheus = match &config.prometheus {
        Some(p) => Some(observe::listen(&p.host, p.port).await.map_err(ServerError::Listen)?),
        None => None,
    };

    let mut tasks = JoinSet::new();
    let bundles = follow_bundles(&store, &mut tasks);
    let counters = Arc::new(tcp::Counters::default());
    let admit = admit(config);
    config.key_exchange.log();
    let tls_config = tls::server_config_with(config.key_exchange, own.presented(), bundles, admit, Arc::clone(&clock))
        .map_err(|e| ServerError::Tls(e.to_string()))?;
    tasks.spawn(Arc::clone(&hub).run(store.clone()));
    tasks.spawn(Arc::clone(&authorities).run());
    tasks.spawn(Arc::clone(&own).run(Arc::clone(&authorities), Arc::clone(&clock)));
    tasks.spawn(jobs::run(api.clone(), config.node_pruning.clone()));

    if let Some((listener, settings)) = health {
        observe::serve_health(listener, settings, "{\"server\":{}}".to_owned(), readiness(&api));
    }
    if let Some(listener) = prometheus {
        let source = reading(&api, &counters);
        observe::serve_metrics(listener, Arc::new(move || source().map_or_else(String::new, |reading| metrics.render(&reading))));
    }
    let (stop, stopped) = watch::channel(false);
    let mut servers = JoinSet::new();
    if !config.proxy_protocol_trusted_cidrs.is_empty() {
        tracing::info!(trusted_cidrs = ?config.proxy_protocol_trusted_cidrs, "PROXY protocol enabled on TCP listener");
    }
    let public = tcp::incoming(listener, Arc::new(tls_config), counters, config.proxy_protocol_trusted_cidrs.clone().into());
    servers.spawn(serve_each(
        api::public_routes(&api, config.without_node_service),
        gate.clone(),
        public,
        config.connection_age_max,
        stopped.clone(),
    ));
    servers.spawn(serve(api::private_routes(&api), gate, unix::incoming(private), is_told(stopped)));
    tracing::info!(address = %address, network = "tcp", "Starting Server APIs");
    tracing::info!(address = %config.socket_path.display(), network = "unix", "Starting Server APIs");
    Ok(Running { address, socket_path: config.socket_path.clone(), stop, tasks, servers, api, _lock: lock })
}

/// Serves each TCP connection by a server of its own, so that one can be asked to go without the others.
async fn serve_each(
    routes: Routes,
    gate: Gate,
    mut incoming: ReceiverStream<io::Result<tcp::Connection>>,
    age_max: Duration,
    stopped: watch::Receiver<bool>,
) -> Result<(), String> {
    let routes = routes.prepare();
    let random = Seeded::from_entropy();
    let mut connections = JoinSet::new();
    let mut told = pin!(is_told(stopped.clone()));
    loop {
        tokio::select! {
            () = &mut told => break,
            Some(_) = connections.join_next() => {}
            accepted = incoming.next() => {
                let mut connection = accepted.ok_or("the TCP listener ended")?.map_err(|e| e.to_string())?;
                let age = age_max.mul_f64(1.0 + CONNECTION_AGE_SPREAD * (2.0 * random.fraction() - 1.0));
                let going = goes(&mut connection, age, stopped.clone());
                // Pending once it has been handed on: a server without anybody to come would ask the one it has to go.
                let only = tokio_stream::once(Ok::<_, io::Error>(connection)).chain(tokio_stream::pending());
                connections.spawn(serve(routes.clone(), gate.clone(), only, going));
            }
        }
    }
    drop(incoming);
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Returns when a connection is to go: its age, the server's end, or that it is gone.
fn goes(connection: &mut tcp::Connection, age: Duration, stopped: watch::Receiver<bool>) -> impl Future<Output = ()> + Send + use<> {
    let (peer, gone) = (connection.connect_info(), connection.gone());
    let is_old = async move {
        tokio::time::sleep(age).await;
        peer.is_free().await;
    };
    async move {
        tokio::select! {
            () = is_old => {}
            _ = gone => {}
            () = is_told(stopped) => {}
        }
    }
}

/// Returns when the server is told to stop.
async fn is_told(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

fn lifetimes(config: &Config) -> Lifetimes {
    Lifetimes { x509_svid: config.default_x509_svid_ttl, jwt_svid: config.default_jwt_svid_ttl, agent: config.agent_ttl }
}

fn node_attestors(config: &Config) -> NodeAttestors {
    config.node_attestors.iter().map(|attestor| (attestor.name(), Arc::clone(attestor))).collect()
}

async fn serve<I>(
    routes: Routes,
    gate: Gate,
    incoming: impl Stream<Item = io::Result<I>>,
    told: impl Future<Output = ()>,
) -> Result<(), String>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Connected + Unpin + Send + 'static,
{
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .timeout(CALL_TIMEOUT)
        .layer(GateLayer(gate))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, told)
        .await
        .map_err(|e| e.to_string())
}

/// Which SPIFFE IDs may complete a handshake: those of the trust domain, and foreign administrators.
fn admit(config: &Config) -> tls::Admit {
    let (trust_domain, admins) = (config.trust_domain.clone(), config.admin_ids.clone());
    Arc::new(move |id| id.is_member_of(&trust_domain) || admins.contains(id))
}

/// The bundles that handshakes are verified with, kept as new as the snapshot.
fn follow_bundles(store: &Store, tasks: &mut JoinSet<()>) -> SharedBundles {
    let bundles: SharedBundles = Arc::new(ArcSwap::new(Arc::clone(store.snapshot().bundles())));
    let (mut snapshots, shared) = (store.watch(), Arc::clone(&bundles));
    tasks.spawn(async move {
        loop {
            shared.store(Arc::clone(snapshots.borrow_and_update().bundles()));
            if snapshots.changed().await.is_err() {
                return;
            }
        }
    });
    bundles
}

/// Ready: it can issue. The names of the parts are SPIRE's where it has them. Listeners of HTTP live as long as the process,
/// so they hold nothing of a server that has stopped.
fn readiness(api: &Api) -> observe::Readiness {
    let api = Arc::downgrade(&api.0);
    Arc::new(move || {
        let Some(api) = api.upgrade().map(Api) else { return Err("{\"server\":{}}".to_owned()) };
        let mut body = serde_json::json!({ "server": {} });
        let mut ready = true;
        for part in api.health() {
            let (name, error) = match part.name {
                "authority" => ("server.ca", "sign_x509_svid_err"),
                "journal" => ("server.journal", "write_err"),
                _ => ("server.store", "write_err"),
            };
            ready &= part.trouble.is_none() || !part.is_essential;
            let details = part.trouble.map_or_else(|| serde_json::json!({}), |trouble| serde_json::json!({ error: trouble }));
            if let Some(parts) = body.as_object_mut() {
                parts.insert(name.to_owned(), details);
            }
        }
        if ready { Ok(body.to_string()) } else { Err(body.to_string()) }
    })
}

fn reading(api: &Api, counters: &Arc<tcp::Counters>) -> crate::metrics::ReadingSource {
    let (api, counters) = (Arc::downgrade(&api.0), Arc::clone(counters));
    Arc::new(move || {
        let api = Api(api.upgrade()?);
        let snapshot = api.store.snapshot();
        let (streams, slowest) = api.hub.standing();
        let now = api.clock.now();
        let left = |end: countersign_identity::Timestamp| end.secs().saturating_sub(now.secs());
        let mut expires_in: Vec<(&'static str, i64)> = api
            .authorities
            .expiries()
            .into_iter()
            .map(|(kind, end)| (if kind == "x509" { "x509_authority" } else { "jwt_authority" }, left(end)))
            .collect();
        expires_in.push(("server_x509_svid", left(api.own.expires_at())));
        Some(Reading {
            revision: snapshot.revision(),
            entries: snapshot.entries_count(),
            agents: snapshot.nodes_count(),
            streams,
            lag: slowest.map_or(0, |applied| snapshot.revision().saturating_sub(applied)),
            expires_in,
            healthy: api.health().map(|part| (part.name, part.trouble.is_none())),
            handshakes_failed: counters.handshakes_failed.load(Ordering::Relaxed),
            turned_away: counters.turned_away.load(Ordering::Relaxed),
            refusals: api.journal.refusals(),
        })
    })
}

/// Holds the store for this server. Until servers follow each other's changes, a second one on the same file would refuse
/// agents that joined at the first.
fn lock_store(store: &Path) -> Result<std::fs::File, ServerError> {
    let mut path = store.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    if let Some(directory) = store.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).map_err(|source| ServerError::File { path: directory.to_owned(), source })?;
    }
    let opened = std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = opened.map_err(|source| ServerError::File { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(ServerError::StoreInUse(store.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(ServerError::File { path, source }),
    }
}

/// Makes the data directory and locks it: two servers on one SQLite store would each believe to be alone.
///
/// # Errors
/// The directory cannot be made, or another server uses it.
pub fn lock_data_dir(data_dir: &Path) -> Result<std::fs::File, ServerError> {
    let failed = |path: PathBuf| move |source| ServerError::File { path, source };
    std::fs::create_dir_all(data_dir).map_err(failed(data_dir.to_owned()))?;
    let path = data_dir.join("server.lock");
    let file =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed(path.clone()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(ServerError::InUse(data_dir.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(ServerError::File { path, source }),
    }
}

/// The server's name in the log and the journal, made once; taken from the store if it got lost. Compares on the way what
/// the server finds at its start.
async fn server_id(config: &Config, store: &Store, now: Timestamp) -> Result<Arc<str>, ServerError> {
    let path = config.data_dir.join("server.id");
    let failed = |source| ServerError::File { path: path.clone(), source };
    let named = match std::fs::read_to_string(&path) {
        Ok(text) => Some(text.trim().to_owned()).filter(|t| !t.is_empty()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(failed(source)),
    };
    let keys = config.key_manager.public_keys().await.map_err(Mismatch::Keys)?;
    let snapshot = store.snapshot();
    let judged = inventory::judge(&Found {
        server_id: named.as_deref(),
        snapshot: &snapshot,
        trust_domain: &config.trust_domain,
        store_path: &config.store_path,
        keys: &keys,
        keys_persist: config.key_manager.is_persistent(),
        issued: &|| issued(config),
        given_up: &config.replace_lost_authorities,
        now,
    })?;
    for warning in &judged.warnings {
        tracing::warn!("{warning}");
    }
    let id = judged.server_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string().into());
    if named.as_deref() != Some(&*id) {
        countersign_transport::files::replace(&path, format!("{id}\n").as_bytes(), 0o644).map_err(failed)?;
    }
    Ok(id)
}

/// Asks the journal for certificates of this server.
fn issued(config: &Config) -> Result<Issued, Mismatch> {
    let spiffe_id = Some(config.trust_domain.server_id().to_string());
    let query = audit::Query { spiffe_id, limit: 1, ..audit::Query::default() };
    let answer = match audit::search(&config.journal.directory, &query) {
        Ok(answer) => answer,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Issued::Never),
        Err(source) => return Err(Mismatch::Journal { path: config.journal.directory.clone(), source }),
    };
    // The newest may have been where the journal is damaged.
    if !answer.damage.is_empty() {
        return Ok(Issued::Unclear);
    }
    Ok(match answer.records.last() {
        Some(own) if own.kind() == Kind::OwnX509 => Issued::By(own.authority_id.clone()),
        Some(_) => Issued::Unclear,
        None => Issued::Never,
    })
}

fn open_store(config: &Config, clock: &SharedClock) -> Result<Store, ServerError> {
    let now = Arc::clone(clock);
    let store =
        Store::open(&Options { path: config.store_path.clone(), vfs: config.store_file_layer.clone(), now: Arc::new(move || now.now()) })?;
    let snapshot = store.snapshot();
    let foreign = snapshot.entries_after("").next().filter(|e| !e.spiffe_id.is_member_of(&config.trust_domain));
    if let Some(entry) = foreign {
        let found = entry.spiffe_id.trust_domain_name().to_owned();
        return Err(ServerError::TrustDomain { found, configured: config.trust_domain.name().to_owned() });
    }
    Ok(store)
}
