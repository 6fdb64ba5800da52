//! An agent put together, from top to bottom: files, identity, cache, line to the server, sockets.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_transport::clock::SharedClock;
use countersign_transport::limits::{CALL_TIMEOUT, HEADER_BYTES_MAX, STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION_MAX};
use countersign_transport::random::SharedRandom;
use countersign_transport::unix::SocketError;
use countersign_transport::{observe, unix};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Server;

use crate::api::{self, Admin, Api, Context, SecurityHeaderLayer};
use crate::attest::Attestors;
use crate::cache::Cache;
use crate::config::Config;
use crate::denials::Denials;
use crate::jwt::Jwts;
use crate::metrics::{Metrics, Reading};
use crate::node::{Node, NodeError, NodeSvid};
use crate::ratelimit::RateLimits;
use crate::rotate::{Issuer, Rotator};
use crate::state::{Files, StateError};
use crate::sync::{Stop, Sync};

/// First wait after a failed attestation at the start; it doubles up to [`JOIN_RETRY_MAX`].
const JOIN_RETRY_FIRST: Duration = Duration::from_millis(500);
const JOIN_RETRY_MAX: Duration = Duration::from_secs(30);
/// How long calls under way may take once the agent is told to stop; streams are cut.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// An agent that could not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its files.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its public socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Its identity.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The node was refused, and trying again will not help.
    #[error("{reason}; {hint}")]
    Refused {
        /// What the server said.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// An HTTP listener.
    #[error("{0}")]
    Listen(String),
    /// Another agent uses the data directory.
    #[error("data directory `{0}` is in use by another agent; stop that one or choose another data_dir")]
    InUse(PathBuf),
    /// A broken invariant.
    #[error("BUG: {0}")]
    Bug(String),
}

/// Why a running agent ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was banned.
    Banned,
    /// It must join again and cannot do so by itself; what to do.
    MustJoinAgain(String),
    /// Its listener failed.
    Failed(String),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Banned => f.write_str("the agent is banned; an administrator must evict it before the node can join again"),
            Self::MustJoinAgain(what) => f.write_str(what),
            Self::Failed(reason) => write!(f, "the public socket failed: {reason}"),
        }
    }
}

/// A running agent.
pub struct Running {
    /// Where the Workload API is.
    pub socket_path: PathBuf,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    api: Api,
    node: Arc<Node>,
    ended: oneshot::Receiver<End>,
    /// Whether there is a public socket.
    is_public: bool,
    _admin_socket: Option<SocketFile>,
    _lock: std::fs::File,
}

/// A socket's file, gone when dropped.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("socket_path", &self.socket_path).finish_non_exhaustive()
    }
}

impl Running {
    /// Returns when the agent cannot go on.
    pub async fn ended(&mut self) -> End {
        (&mut self.ended).await.unwrap_or_else(|_| End::Failed("the agent's main task is gone".to_owned()))
    }

    /// Takes over what a running agent can: the settings in [`Config::LIVE`] but for the log level. Callers being attested are
    /// attested by whom it began with; the node proves itself by other means from its next attestation on.
    pub fn reload(&self, config: &Config) {
        self.api.attestors.replace(config.workload_attestors.clone());
        self.node.attest_with(Arc::clone(&config.node_attestor));
    }

    /// What whoever asks about health is told of the last reload.
    pub fn last_reload(&self) -> &observe::LastReload {
        &self.api.last_reload
    }

    /// Stops: sockets close, open streams end, what is followed is on disk already.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        let _ = tokio::time::timeout(STOP_TIMEOUT, async { while self.tasks.join_next().await.is_some() {} }).await;
        self.tasks.shutdown().await;
        // Without one of its own, what is there is somebody else's.
        if self.is_public {
            let _ = std::fs::remove_file(&self.socket_path);
        }
    }
}

/// Starts an agent. With an identity on disk its sockets open at once, whether the server answers or not; without one they
/// open when the node has joined.
///
/// # Errors
/// Says what stopped the start and what to do about it.
pub async fn start(config: &Config, clock: SharedClock, random: SharedRandom, version: &str) -> Result<Running, AgentError> {
    tracing::info!(data_dir = %config.data_dir.display(), version, "Starting agent");
    config.key_exchange.log();
    let files = Files::new(&config.data_dir)?;
    let lock = lock_data_dir(config)?;
    unix::check_path(&config.socket_path)?;
    let node = Arc::new(Node::new(config, files.clone(), Arc::clone(&clock), Arc::clone(&random)));
    let health = match &config.health_checks {
        Some(h) => Some((observe::listen(&h.bind_address, h.bind_port).await.map_err(AgentError::Listen)?, h)),
        None => None,
    };
    let prometheus = match &config.prometheus {
        Some(p) => Some(observe::listen(&p.host, p.port).await.map_err(AgentError::Listen)?),
        None => None,
    };
    let (stop, mut stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    // Before anything that may take long: whoever asks why the node does not join is answered too.
    let attestors = Attestors::new(config.workload_attestors.clone());
    let admin = Admin::new(Arc::clone(&node), attestors.clone(), Arc::clone(&clock), config);
    let admin_socket = match &config.admin_socket_path {
        Some(path) => Some(serve_admin(path, &admin, stop.subscribe(), &mut tasks)?),
        None => None,
    };
    if let Some((listener, settings)) = health {
        observe::serve_health(listener, settings, "{\"agent\":{}}".to_owned(), readiness(&admin));
    }
    let svid = match node.load()? {
        Some(svid) => svid,
        None => join(&node, &clock, &random).await?,
    };
    node.check_rebootstrap(&svid)?;

    let metrics = Arc::new(Metrics::default());
    let cache = Arc::new(Cache::new(config.trust_domain.clone(), node.bundles(), config.x509_svid_cache_max_size));
    let sync =
        Arc::new(Sync::new(Arc::clone(&node), Arc::clone(&cache), files, Arc::clone(&clock), Arc::clone(&random), version.to_owned()));
    sync.restore(&svid);
    let rotator = Rotator::new(Arc::clone(&cache), Arc::clone(&clock), Arc::clone(&random), config.workload_key_type, Arc::clone(&metrics));
    let rotator = Arc::new(rotator.with_availability(config.availability_target));
    rotator.want_entries(&cache.entries());
    let jwts = Arc::new(Jwts::new(
        Arc::clone(&sync),
        Arc::clone(&clock),
        Arc::clone(&random),
        Arc::clone(&metrics),
        config.jwt_svid_cache_max_size,
    ));
    let api = Api(Arc::new(Context {
        trust_domain: config.trust_domain.clone(),
        cache,
        rotator: Arc::clone(&rotator),
        jwts,
        sync: Arc::clone(&sync),
        attestors,
        limits: RateLimits::new(config.limits, Arc::clone(&clock), Arc::clone(&metrics)),
        clock,
        metrics: Arc::clone(&metrics),
        denials: Denials::default(),
        last_reload: observe::LastReload::default(),
        allow_unauthenticated_verifiers: config.allow_unauthenticated_verifiers,
        allowed_foreign_jwt_claims: config.allowed_foreign_jwt_claims.clone(),
        log_selectors: config.log_selectors.clone(),
    }));

    let apis = public_apis(config.has_workload_api, config.sds.is_some());
    let listener = apis.map(|_| unix::listen(&config.socket_path, 0o755, 0o777)).transpose()?;
    let routes = api::routes(&api, config.has_workload_api, config.sds.clone(), random).map_err(|e| AgentError::Bug(e.to_string()))?;
    admin.joined(&api);
    let (end, ended) = oneshot::channel();
    if let Some(listener) = prometheus {
        let api = api.clone();
        observe::serve_metrics(listener, Arc::new(move || api.metrics.render(&reading(&api))));
    }
    let issuer: Arc<dyn Issuer> = Arc::clone(&sync) as Arc<dyn Issuer>;
    tasks.spawn(Arc::clone(&rotator).run(issuer));
    let stopping = async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let is_public = listener.is_some();
    let serving = async move {
        let Some(listener) = listener else {
            stopping.await;
            return Ok(());
        };
        Server::builder()
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .layer(SecurityHeaderLayer)
            .add_routes(routes)
            .serve_with_incoming_shutdown(unix::incoming(listener), stopping)
            .await
    };
    tasks.spawn(async move {
        let following = sync.run(rotator);
        let reason = tokio::select! {
            stop = following => match stop {
                Stop::Banned => End::Banned,
                Stop::MustJoinAgain(what) => End::MustJoinAgain(what),
            },
            served = serving => match served {
                Ok(()) => return,
                Err(error) => End::Failed(error.to_string()),
            },
        };
        let _ = end.send(reason);
    });
    match apis {
        Some(apis) => tracing::info!(address = %config.socket_path.display(), network = "unix", apis, "Starting agent APIs"),
        None => tracing::info!(apis = "Workload and SDS APIs", "Skipping agent APIs because public endpoint is disabled"),
    }
    let socket_path = config.socket_path.clone();
    Ok(Running { socket_path, stop, tasks, api, node, ended, is_public, _admin_socket: admin_socket, _lock: lock })
}

/// What the public socket has, in SPIRE's words; nothing if there is no such socket.
fn public_apis(has_workload_api: bool, has_sds: bool) -> Option<&'static str> {
    match (has_workload_api, has_sds) {
        (true, true) => Some("Workload and SDS APIs"),
        (true, false) => Some("Workload API"),
        (false, true) => Some("SDS API"),
        (false, false) => None,
    }
}

/// Opens the admin socket. Everybody may connect, because every process may ask about itself; who may ask what is decided by
/// who the kernel says is calling.
fn serve_admin(path: &Path, admin: &Admin, mut stopped: watch::Receiver<bool>, tasks: &mut JoinSet<()>) -> Result<SocketFile, SocketError> {
    let listener = unix::listen(path, 0o755, 0o777)?;
    let socket = SocketFile(path.to_owned());
    let serving = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .timeout(CALL_TIMEOUT)
        .add_routes(admin.routes(path))
        .serve_with_incoming_shutdown(unix::incoming(listener), async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        });
    tasks.spawn(async move {
        // Workloads are served without it.
        if let Err(error) = serving.await {
            tracing::error!(%error, "The admin socket failed");
        }
    });
    tracing::info!(address = %path.display(), network = "unix", "Starting Admin APIs");
    Ok(socket)
}

/// Joins the trust domain, patiently while the server is away, but not when it refuses.
async fn join(node: &Node, clock: &SharedClock, random: &SharedRandom) -> Result<Arc<NodeSvid>, AgentError> {
    let mut retry = JOIN_RETRY_FIRST;
    loop {
        let error = match node.attest(None).await {
            Ok(svid) => return Ok(svid),
            Err(error) => error,
        };
        match &error {
            NodeError::Server(status)
                if matches!(
                    status.code(),
                    Code::InvalidArgument | Code::PermissionDenied | Code::FailedPrecondition | Code::Unimplemented
                ) =>
            {
                return Err(AgentError::Refused { reason: error.to_string(), hint: node.how_to_join() });
            }
            NodeError::Attestor(_) if !error.may_pass() => {
                return Err(AgentError::Refused { reason: error.to_string(), hint: node.how_to_join() });
            }
            NodeError::Keys(_) | NodeError::State(_) | NodeError::Bootstrap(_) | NodeError::CannotRebootstrap => return Err(error.into()),
            NodeError::Connect(_)
            | NodeError::Source(_)
            | NodeError::StartOver
            | NodeError::Server(_)
            | NodeError::Answer(_)
            | NodeError::Attestor(_) => {
                tracing::warn!(%error, retry_interval = ?retry, "Failed to retrieve attestation result");
                node.standing.failed(&error.to_string(), clock.now());
                // Jitter: a rack that comes back after a power cut must not ask in step.
                clock.sleep_for(retry.mul_f64(0.8 + 0.4 * random.fraction())).await;
                retry = (retry * 2).min(JOIN_RETRY_MAX);
                // A clock that was ahead at the start may have been corrected meanwhile.
                if let Some(svid) = node.load()? {
                    return Ok(svid);
                }
            }
        }
    }
}

fn lock_data_dir(config: &Config) -> Result<std::fs::File, AgentError> {
    let path = config.data_dir.join("agent.lock");
    let failed = |e: std::io::Error| StateError { path: path.display().to_string(), reason: e.to_string() };
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(AgentError::InUse(config.data_dir.clone())),
        Err(std::fs::TryLockError::Error(e)) => Err(failed(e).into()),
    }
}

/// Asked from the start on: whoever probes an agent that joins gets an answer, and that it is not ready.
fn readiness(admin: &Admin) -> observe::Readiness {
    let admin = admin.clone();
    Arc::new(move || {
        if admin.is_ready() {
            Ok("{\"agent\":{}}".to_owned())
        } else {
            Err("{\"agent\":{\"make_new_x509_err\":\"the agent has no identity, or has never heard from its server\"}}".to_owned())
        }
    })
}

fn reading(api: &Api) -> Reading {
    let now = api.clock.now();
    let left = |end: countersign_identity::Timestamp| end.secs().saturating_sub(now.secs());
    let (held_x509, first_end) = api.cache.held();
    let mut expires_in = Vec::new();
    expires_in.extend(api.sync.svid().map(|s| ("agent_x509_svid", left(s.expires_at))));
    expires_in.extend(first_end.map(|end| ("first_workload_x509_svid", left(end))));
    Reading {
        expires_in,
        last_contact_secs: now.secs().saturating_sub(api.sync.last_contact().secs()),
        revision: api.cache.revision(),
        entries: api.cache.entries().len(),
        held_x509,
        held_jwt: api.jwts.held(),
        streams: api.cache.subscribers.count(),
    }
}
