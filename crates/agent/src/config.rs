//! `agent.conf`: SPIRE's keys and defaults for everything that exists so far.
//!
//! Reading checks everything that can be checked without starting: types, values, names of plugins, files.

mod experimental;
mod sds;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_config::{ConfigError, Fingerprint, Section, Spanned};
use countersign_identity::key::KeyType;
use countersign_identity::{SpiffeId, TrustDomain};
use countersign_plugins::keys::{self, KeyManager};
use countersign_plugins::node::{self, AgentHalf, join_token};
use countersign_plugins::workload::{self, WorkloadAttestor};
use countersign_plugins::{Configured, configured, later};
use countersign_transport::experimental::read_profiling;
use countersign_transport::key_exchange::KeyExchange;
use countersign_transport::observe::{FixedLevel, HealthChecks, LogLevels, Logging, Prometheus};
use countersign_transport::unix;
use zeroize::Zeroizing;

use crate::other_workload_api::OtherWorkloadApi;
use crate::ratelimit;
use crate::trust_source::TrustSource;

pub(crate) use sds::{RESOURCE_NAME_BYTES_MAX, Sds};

const DEFAULT_SOCKET: &str = "/tmp/spire-agent/public/api.sock";
/// SVIDs held for workloads by default, as in SPIRE.
const CACHE_SIZE: usize = 1000;

/// Most delegates: each call of one compares with all of them, and a node has one or two.
const DELEGATES_MAX: usize = 1024;

/// How the server is trusted at the first contact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// By a bundle that the operator gives.
    From(TrustSource),
    /// Not at all but for its SPIFFE ID.
    Insecure,
}

/// When an agent gives up a trust bundle that does not know its server, and joins anew with what its source says then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rebootstrap {
    /// An agent that cannot join anew by itself does not start.
    pub(crate) always: bool,
    /// For so long the two must have disagreed.
    pub(crate) delay: Duration,
}

/// SPIRE's default.
const REBOOTSTRAP_DELAY: Duration = Duration::from_secs(600);

/// An agent's configuration, checked.
#[derive(Clone)]
pub struct Config {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Name or address of the server.
    pub server_address: String,
    /// Its port.
    pub server_port: u16,
    /// Where the agent keeps its files.
    pub data_dir: PathBuf,
    /// The socket of the Workload API.
    pub socket_path: PathBuf,
    /// The socket of the admin API, if wanted.
    pub admin_socket_path: Option<PathBuf>,
    /// How the server is trusted at the first contact.
    pub bootstrap: Bootstrap,
    /// Logging.
    pub logging: Logging,
    /// Listener for liveness and readiness, if wanted.
    pub health_checks: Option<HealthChecks>,
    /// Listener for metrics, if wanted.
    pub prometheus: Option<Prometheus>,
    /// How often entries are asked for where the server cannot push them.
    pub sync_interval: Duration,
    /// Things to tell the operator that do not stop the start.
    pub warnings: Vec<String>,
    /// What the file says, to tell later what another one changes.
    pub fingerprint: Fingerprint,
    /// The log level of the process; until somebody puts another in its place, one that nobody can change.
    pub log_levels: Arc<dyn LogLevels>,
    pub(crate) authorized_delegates: Vec<SpiffeId>,
    pub(crate) key_manager: Arc<dyn KeyManager>,
    pub(crate) node_attestor: Arc<dyn AgentHalf>,
    pub(crate) workload_attestors: Vec<Arc<dyn WorkloadAttestor>>,
    pub(crate) rebootstrap: Option<Rebootstrap>,
    pub(crate) workload_key_type: KeyType,
    /// How much life every X509-SVID is to have left, always.
    pub(crate) availability_target: Option<Duration>,
    /// Beginnings of selectors that may stand in the log where somebody is denied.
    pub(crate) log_selectors: Vec<String>,
    /// Whether the public socket has the Workload API.
    pub(crate) has_workload_api: bool,
    /// How the Secret Discovery Service on it answers; nothing without it.
    pub(crate) sds: Option<Sds>,
    pub(crate) allow_unauthenticated_verifiers: bool,
    pub(crate) allowed_foreign_jwt_claims: Vec<String>,
    pub(crate) key_exchange: KeyExchange,
    pub(crate) limits: ratelimit::Settings,
    pub(crate) x509_svid_cache_max_size: usize,
    pub(crate) jwt_svid_cache_max_size: usize,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("trust_domain", &self.trust_domain).field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

impl Config {
    /// Settings that [`crate::Running::reload`] takes over, and the log level, which belongs to the process.
    pub const LIVE: &[&str] = &["agent.log_level", "plugins.NodeAttestor", "plugins.WorkloadAttestor"];

    /// Plugins that a reload can give other settings, by kind and name.
    pub fn live_plugins(&self) -> Vec<(&'static str, &'static str)> {
        let workload = self.workload_attestors.iter().map(|attestor| ("WorkloadAttestor", attestor.name()));
        std::iter::once(("NodeAttestor", self.node_attestor.name())).chain(workload).collect()
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place and what to do.
    pub fn load(path: &Path, expand_env: bool) -> Result<Self, ConfigError> {
        Self::read(countersign_config::load(path, expand_env)?)
    }

    /// Reads a parsed file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn read(mut top: Section) -> Result<Self, ConfigError> {
        let plugins = top.section("plugins")?;
        let (mut fingerprint, mut warnings) = (Fingerprint::default(), Vec::new());
        fingerprint.add("", &top);
        let agent = top.section("agent")?;
        let telemetry = top.section("telemetry")?;
        let health = top.section("health_checks")?;
        let plugins = plugins.ok_or_else(|| top.error("plugins section must be configured").hint("add a `plugins { … }` block"))?;
        let mut agent = agent.ok_or_else(|| top.error("agent section must be configured").hint("add an `agent { … }` block"))?;
        top.finish()?;
        let trust_domain = required(&mut agent, "trust_domain")?.parse(|t| TrustDomain::parse_name_or_id(t))?;
        let server_address = required(&mut agent, "server_address")?.value;
        read_profiling(&mut agent)?;
        let experimental = match agent.section("experimental")? {
            Some(block) => experimental::read(block, &mut warnings)?,
            None => experimental::Experimental::default(),
        };
        let server_port = agent.port("server_port")?.ok_or_else(|| agent.missing("server_port"))?.value;
        let data_dir = PathBuf::from(agent.string("data_dir")?.map_or_else(|| ".".to_owned(), |s| s.value));
        let socket_path = socket_path(&mut agent, "socket_path")?.map_or_else(|| PathBuf::from(DEFAULT_SOCKET), |(path, _)| path);
        let has_workload_api = !agent.boolean("disable_workload_api")?.is_some_and(|off| off.value);
        let sds = sds::read(&mut agent, &mut warnings)?;
        let public = Some(socket_path.as_path()).filter(|_| has_workload_api || sds.is_some());
        let admin_socket_path = admin_socket_path(&mut agent, public)?;
        let bootstrap = bootstrap(&mut agent)?;
        let rebootstrap = rebootstrap(&mut agent, bootstrap == Bootstrap::Insecure)?;
        let token = join_token(&mut agent)?;
        let (key_manager, node_attestor, workload_attestors) = read_plugins(plugins, token, &mut fingerprint)?;
        let authorized_delegates = authorized_delegates(&mut agent, &trust_domain)?;
        let logging = Logging::read(&mut agent)?;
        let config = Self {
            trust_domain,
            server_address,
            server_port,
            data_dir,
            socket_path,
            admin_socket_path,
            bootstrap,
            log_levels: Arc::new(FixedLevel(logging.level.clone())),
            logging,
            authorized_delegates,
            health_checks: health.map(HealthChecks::read).transpose()?.flatten(),
            prometheus: telemetry.map(Prometheus::read).transpose()?.flatten(),
            sync_interval: experimental.sync_interval,
            key_exchange: experimental.key_exchange,
            limits: experimental.limits,
            warnings,
            fingerprint,
            key_manager,
            node_attestor,
            workload_attestors,
            rebootstrap,
            workload_key_type: workload_key_type(&mut agent)?,
            availability_target: availability_target(&mut agent)?,
            log_selectors: log_selectors(&mut agent)?,
            has_workload_api,
            sds,
            allow_unauthenticated_verifiers: agent.boolean("allow_unauthenticated_verifiers")?.is_some_and(|b| b.value),
            allowed_foreign_jwt_claims: agent.strings("allowed_foreign_jwt_claims")?.into_iter().map(|s| s.value).collect(),
            x509_svid_cache_max_size: size(&mut agent, "x509_svid_cache_max_size")?,
            jwt_svid_cache_max_size: size(&mut agent, "jwt_svid_cache_max_size")?,
        };
        agent.finish()?;
        Ok(config)
    }
}

fn socket_path(agent: &mut Section, key: &'static str) -> Result<Option<(PathBuf, Spanned<String>)>, ConfigError> {
    let Some(text) = agent.string(key)? else { return Ok(None) };
    if text.value.starts_with("unix:") || text.value.starts_with("tcp:") {
        return Err(text.error("expected a path").hint("the agent listens on a Unix socket only; leave out the scheme"));
    }
    text.parse(|t| unix::check_path(Path::new(t)))?;
    Ok(Some((PathBuf::from(&text.value), text)))
}

/// The directory of the Workload API is what is mounted into containers; the admin API must not come along. SPIRE's rule.
fn admin_socket_path(agent: &mut Section, public: Option<&Path>) -> Result<Option<PathBuf>, ConfigError> {
    let Some((path, text)) = socket_path(agent, "admin_socket_path")? else { return Ok(None) };
    if text.value.is_empty() {
        return Err(text.error("expected a path").hint("leave the line out for an agent without admin API"));
    }
    let Some(public) = public else { return Ok(Some(path)) };
    let directory = |path: &Path| lexical(path).parent().map_or_else(PathBuf::new, Path::to_owned);
    let (public, admin) = (directory(public), directory(&path));
    let is_below = |admin: &Path, public: &Path| admin.starts_with(public);
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    if is_below(&admin, &public) || real(&admin).zip(real(&public)).is_some_and(|(admin, public)| is_below(&admin, &public)) {
        return Err(text
            .error(format!("must not be in the directory of the Workload API's socket, `{}`, or below it", public.display()))
            .hint("workloads get that directory; choose another one that they do not, for example `/run/countersign-admin/agent.sock`"));
    }
    Ok(Some(path))
}

/// The path without `.` and `..`, from the root.
fn lexical(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            std::path::Component::CurDir => {}
            part => clean.push(part),
        }
    }
    clean
}

/// Those who may have the identities of others; SPIRE's rule is that they are of the agent's own trust domain.
fn authorized_delegates(agent: &mut Section, own: &TrustDomain) -> Result<Vec<SpiffeId>, ConfigError> {
    let listed = agent.strings("authorized_delegates")?;
    if let Some(one_too_many) = listed.get(DELEGATES_MAX) {
        return Err(one_too_many.error(format!("at most {DELEGATES_MAX} delegates are allowed")));
    }
    let read = |text: Spanned<String>| {
        let id = text.parse(|t| SpiffeId::parse(t))?;
        if id.is_member_of(own) { Ok(id) } else { Err(text.error(format!("`{id}` is not a member of trust domain `{own}`"))) }
    };
    listed.into_iter().map(read).collect()
}

fn required(section: &mut Section, key: &'static str) -> Result<Spanned<String>, ConfigError> {
    section.string(key)?.filter(|s| !s.value.is_empty()).ok_or_else(|| section.missing(key))
}

fn size(agent: &mut Section, key: &'static str) -> Result<usize, ConfigError> {
    match agent.integer(key)? {
        None => Ok(CACHE_SIZE),
        Some(n) if n.value == 0 => Ok(CACHE_SIZE),
        Some(n) => usize::try_from(n.value).map_err(|_| n.error("must not be negative")),
    }
}

/// SPIRE's smallest: less is what half of an ordinary life leaves anyway.
const AVAILABILITY_TARGET_MIN: Duration = Duration::from_secs(24 * 3600);

fn availability_target(agent: &mut Section) -> Result<Option<Duration>, ConfigError> {
    match agent.duration("availability_target")? {
        Some(target) if target.value < AVAILABILITY_TARGET_MIN => Err(target.error("availability_target must be at least 24h0m0s")),
        target => Ok(target.map(|t| t.value)),
    }
}

/// Most prefixes: each selector of whoever is denied is compared with all of them.
const LOG_SELECTORS_MAX: usize = 256;

fn log_selectors(agent: &mut Section) -> Result<Vec<String>, ConfigError> {
    let prefixes = agent.strings("log_selectors")?;
    match prefixes.get(LOG_SELECTORS_MAX) {
        Some(one_too_many) => Err(one_too_many.error(format!("at most {LOG_SELECTORS_MAX} prefixes are allowed"))),
        None => Ok(prefixes.into_iter().map(|s| s.value).collect()),
    }
}

fn workload_key_type(agent: &mut Section) -> Result<KeyType, ConfigError> {
    let Some(text) = agent.string("workload_x509_svid_key_type")? else { return Ok(KeyType::EcP256) };
    match KeyType::parse(&text.value.to_ascii_lowercase()) {
        Some(kind) if kind != KeyType::Rsa4096 => Ok(kind),
        _ => Err(text.error(format!("`{}` is not a key type for workloads, expected ec-p256, ec-p384 or rsa-2048", text.value))),
    }
}

fn bootstrap(agent: &mut Section) -> Result<Bootstrap, ConfigError> {
    let insecure = agent.boolean("insecure_bootstrap")?.is_some_and(|b| b.value);
    match TrustSource::configured(agent, insecure)? {
        Some(source) => Ok(Bootstrap::From(source)),
        None if insecure => Ok(Bootstrap::Insecure),
        None => Err(agent
            .error("trust_bundle_path, trust_bundle_url, or trust_bundle_spiffe_workload_api must be configured unless insecure_bootstrap is set")
            .hint("write the server's bundle to a file with `countersign bundle show` and set trust_bundle_path to it")),
    }
}

/// Whether, and when, the agent gives up a bundle that does not know its server.
fn rebootstrap(agent: &mut Section, insecure: bool) -> Result<Option<Rebootstrap>, ConfigError> {
    let delay = agent.duration("rebootstrap_delay")?.map_or(REBOOTSTRAP_DELAY, |d| d.value);
    let Some(mode) = agent.string("rebootstrap_mode")? else { return Ok(None) };
    let always = match mode.value.as_str() {
        "" | "never" => return Ok(None),
        "auto" => false,
        "always" => true,
        other => return Err(mode.error(format!("unknown rebootstrap mode specified: {other}")).hint("expected never, auto or always")),
    };
    if insecure {
        return Err(mode.error("insecure_bootstrap option can not be used with rebootstrapping"));
    }
    Ok(Some(Rebootstrap { always, delay }))
}

/// The join token, from the file or, less safely, from the configuration itself.
fn join_token(agent: &mut Section) -> Result<Option<Zeroizing<String>>, ConfigError> {
    let token = agent.string("join_token")?;
    let file = agent.string("join_token_file")?;
    match (token, file) {
        (Some(token), Some(_)) => Err(token.error("join_token and join_token_file exclude each other")),
        (Some(token), None) => {
            token.parse(|t| join_token::check(t))?;
            Ok(Some(Zeroizing::new(token.value)))
        }
        (None, Some(file)) => {
            let text = file.parse(|path| {
                std::fs::read_to_string(path).map(Zeroizing::new).map_err(|e| format!("the file `{path}` cannot be read: {e}"))
            })?;
            let token = Zeroizing::new(text.trim().to_owned());
            if token.is_empty() {
                return Err(file.error(format!("the file `{}` is empty", file.value)));
            }
            file.parse(|_| join_token::check(&token))?;
            Ok(Some(token))
        }
        (None, None) => Ok(None),
    }
}

type Plugins = (Arc<dyn KeyManager>, Arc<dyn AgentHalf>, Vec<Arc<dyn WorkloadAttestor>>);

fn read_plugins(mut plugins: Section, token: Option<Zeroizing<String>>, fingerprint: &mut Fingerprint) -> Result<Plugins, ConfigError> {
    let key_managers: [Configured; 1] = configured(&mut plugins, "KeyManager", fingerprint)?.try_into().map_err(|found: Vec<_>| {
        plugins
            .error(format!("plugin type \"KeyManager\" constraint not satisfied: expected exactly 1 but got {}", found.len()))
            .hint("add `KeyManager \"memory\" { plugin_data {} }`")
    })?;
    let [Configured { name, block, data }] = key_managers;
    let key_manager = keys::build(&name, &block, data)?;

    let attestors: [Configured; 1] = configured(&mut plugins, "NodeAttestor", fingerprint)?.try_into().map_err(|found: Vec<_>| {
        plugins
            .error(format!("plugin type \"NodeAttestor\" constraint not satisfied: expected exactly 1 but got {}", found.len()))
            .hint("add `NodeAttestor \"join_token\" { plugin_data {} }`")
    })?;
    let [Configured { name, block, data }] = attestors;
    let node_attestor = node::build_agent(&name, &block, data, token.unwrap_or_default(), Arc::new(OtherWorkloadApi))?;

    let mut workload_attestors: Vec<Arc<dyn WorkloadAttestor>> = Vec::new();
    for Configured { name, block, data } in configured(&mut plugins, "WorkloadAttestor", fingerprint)? {
        workload_attestors.push(workload::build(&name, &block, data)?);
    }
    if workload_attestors.is_empty() {
        return Err(plugins
            .error("plugin type \"WorkloadAttestor\" constraint not satisfied: expected at least 1 but got 0")
            .hint("add `WorkloadAttestor \"unix\" { plugin_data {} }`"));
    }
    if let Some(Configured { name, block, .. }) = configured(&mut plugins, "SVIDStore", fingerprint)?.into_iter().next() {
        return Err(later::refuse("SVIDStore", &name, &[], &block));
    }
    plugins.finish()?;
    Ok((key_manager, node_attestor, workload_attestors))
}

#[cfg(test)]
mod tests;
