//! `server.conf`: SPIRE's keys and defaults for everything that exists so far, and a `journal` block of ours.
//!
//! Reading checks everything that can be checked without starting: types, values, names of plugins.

mod experimental;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_config::{ConfigError, Fingerprint, Section, Spanned};
use countersign_identity::key::KeyType;
use countersign_identity::rotation::guaranteed_lifetime;
use countersign_identity::x509::Subject;
use countersign_identity::{FederationRelationship, SpiffeId, TrustDomain};
use countersign_plugins::keys::{self, KeyManager};
use countersign_plugins::node::{self, ServerHalf, join_token};
use countersign_plugins::{Configured, configured, later};
use countersign_transport::experimental::read_profiling;
use countersign_transport::host::Host;
use countersign_transport::key_exchange::KeyExchange;
use countersign_transport::limits::CONNECTION_AGE_MAX;
use countersign_transport::observe::{HealthChecks, Logging, Prometheus};
use countersign_transport::proxy::Cidr;
use countersign_transport::unix;

use crate::audit;
use crate::federation;
use crate::jobs::NodePruning;
use crate::ratelimit;

const DEFAULT_SOCKET: &str = "/tmp/spire-server/private/api.sock";
const HOUR: Duration = Duration::from_secs(3600);

/// A server's configuration, checked.
#[derive(Clone)]
pub struct Config {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Where the TCP listener is.
    pub bind_address: Host,
    /// Port of the TCP listener; 0 takes a free one.
    pub bind_port: u16,
    /// The private socket.
    pub socket_path: PathBuf,
    /// Where the server keeps its files.
    pub data_dir: PathBuf,
    /// The SQLite file.
    pub store_path: PathBuf,
    /// Another SQLite file layer under the store, by name: the seam for disks that are full or lose power. No file sets it.
    pub store_file_layer: Option<String>,
    /// Leaves `countersign.agent.v1` out, as SPIRE's servers do: the seam for tests of agents against those. No file sets it.
    pub without_node_service: bool,
    /// The issuance journal; its disk is the seam for one that is full or loses power.
    pub journal: audit::Settings,
    /// Logging.
    pub logging: Logging,
    /// Listener for liveness and readiness, if wanted.
    pub health_checks: Option<HealthChecks>,
    /// Listener for metrics, if wanted.
    pub prometheus: Option<Prometheus>,
    /// X.509 authorities whose lost keys or lost records the operator has given up, so that new ones may take their place. Never in the
    /// file: it is said once, when it happens.
    pub replace_lost_authorities: Vec<String>,
    /// Things to tell the operator that do not stop the start.
    pub warnings: Vec<String>,
    /// How long a TCP connection may live; [`CONNECTION_AGE_MAX`]. The seam for tests that do not wait for minutes. No file sets it.
    pub connection_age_max: Duration,
    /// What the file says, to tell later what another one changes.
    pub fingerprint: Fingerprint,
    pub(crate) admin_ids: Vec<SpiffeId>,
    pub(crate) agent_spiffe_id_as_selector: bool,
    pub(crate) key_exchange: KeyExchange,
    pub(crate) agent_ttl: Duration,
    pub(crate) audit_log_enabled: bool,
    pub(crate) ca_key_type: KeyType,
    pub(crate) jwt_key_type: KeyType,
    pub(crate) ca_subject: Subject,
    pub(crate) ca_ttl: Duration,
    pub(crate) default_x509_svid_ttl: Duration,
    pub(crate) default_jwt_svid_ttl: Duration,
    pub(crate) disable_jwt_svids: bool,
    pub(crate) jwt_issuer: Option<String>,
    pub(crate) node_pruning: Option<NodePruning>,
    pub(crate) federates_with: Vec<FederationRelationship>,
    pub(crate) proxy_protocol_trusted_cidrs: Vec<Cidr>,

    pub(crate) ratelimit: ratelimit::Settings,
    pub(crate) key_manager: Arc<dyn KeyManager>,
    pub(crate) node_attestors: Vec<Arc<dyn ServerHalf>>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("trust_domain", &self.trust_domain).field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

impl Config {
    /// Settings that [`crate::Running::reload`] takes over, and the log level, which belongs to the process.
    pub const LIVE: &[&str] = &[
        "server.log_level",
        "server.agent_ttl",
        "server.default_x509_svid_ttl",
        "server.default_jwt_svid_ttl",
        "server.ratelimit",
        "plugins.NodeAttestor",
    ];

    /// Plugins that a reload can give other settings, by kind and name.
    pub fn live_plugins(&self) -> Vec<(&'static str, &'static str)> {
        self.node_attestors.iter().map(|attestor| ("NodeAttestor", attestor.name())).collect()
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
        let mut fingerprint = Fingerprint::default();
        fingerprint.add("", &top);
        let server = top.section("server")?;
        let telemetry = top.section("telemetry")?;
        let health = top.section("health_checks")?;
        let no_server = top.error("server section must be configured").hint("add a `server { … }` block");
        let no_plugins = top.error("plugins section must be configured").hint("add a `plugins { … }` block");
        // A misspelt name says more than that the right one is missing.
        top.finish()?;
        let (mut server, plugins) = (server.ok_or(no_server)?, plugins.ok_or(no_plugins)?);

        let mut warnings = Vec::new();
        let trust_domain = required(&mut server, "trust_domain")?.parse(|t| TrustDomain::parse_name_or_id(t))?;
        let data_dir = PathBuf::from(required(&mut server, "data_dir")?.value);
        read_profiling(&mut server)?;
        let experimental = match server.section("experimental")? {
            Some(block) => experimental::read(block, &mut warnings)?,
            None => experimental::Experimental::default(),
        };
        // Agents are authorized from memory, which is never stale; nothing is left to do.
        server.duration("max_attested_node_info_staleness")?;
        let bind_address = match server.filled("bind_address")? {
            Some(text) => text.parse(|t| Host::parse(t))?,
            None => Host::Address(IpAddr::from([0, 0, 0, 0])),
        };
        let bind_port = server.port("bind_port")?.map_or(8081, |p| p.value);
        let socket_path = match server.filled("socket_path")? {
            Some(text) => {
                text.parse(|t| unix::check_path(Path::new(t)))?;
                PathBuf::from(text.value)
            }
            None => PathBuf::from(DEFAULT_SOCKET),
        };
        let default_x509_svid_ttl = positive(&mut server, "default_x509_svid_ttl")?.unwrap_or(HOUR);
        let default_jwt_svid_ttl = positive(&mut server, "default_jwt_svid_ttl")?.unwrap_or(Duration::from_secs(300));
        let agent_ttl = positive(&mut server, "agent_ttl")?.unwrap_or(default_x509_svid_ttl);
        let ca_ttl = positive(&mut server, "ca_ttl")?.unwrap_or(24 * HOUR);
        for (key, ttl) in
            [("agent_ttl", agent_ttl), ("default_x509_svid_ttl", default_x509_svid_ttl), ("default_jwt_svid_ttl", default_jwt_svid_ttl)]
        {
            if ttl > guaranteed_lifetime(ca_ttl) {
                warnings.push(format!(
                    "{key} is longer than {:?}, which is guaranteed with ca_ttl = {ca_ttl:?}; SVIDs may end earlier",
                    guaranteed_lifetime(ca_ttl)
                ));
            }
        }
        let ca_key_type = key_type(&mut server, "ca_key_type")?.unwrap_or(KeyType::EcP256);
        let node_pruning = node_pruning(&mut server)?;
        let federates_with = federation::read(&mut server, &trust_domain)?;
        if !federates_with.is_empty() {
            warnings.push("bundles of the trust domains in federates_with are not fetched yet; set them with `bundle set`".to_owned());
        }
        let (key_manager, node_attestors, store_path) = read_plugins(plugins, &mut fingerprint)?;
        let config = Self {
            journal: read_journal(&mut server, &data_dir)?,
            ratelimit: read_ratelimit(&mut server, agent_ttl.min(guaranteed_lifetime(ca_ttl)))?,
            jwt_key_type: key_type(&mut server, "jwt_key_type")?.unwrap_or(ca_key_type),
            ca_subject: ca_subject(&mut server, &mut warnings)?,
            admin_ids: server.strings("admin_ids")?.iter().map(|s| s.parse(|t| SpiffeId::parse(t))).collect::<Result<_, _>>()?,
            audit_log_enabled: server.boolean("audit_log_enabled")?.is_some_and(|b| b.value),
            disable_jwt_svids: server.boolean("disable_jwt_svids")?.is_some_and(|b| b.value),
            jwt_issuer: server.filled("jwt_issuer")?.map(|s| s.value),
            logging: Logging::read(&mut server)?,
            health_checks: health.map(HealthChecks::read).transpose()?.flatten(),
            prometheus: telemetry.map(Prometheus::read).transpose()?.flatten(),
            trust_domain,
            bind_address,
            bind_port,
            socket_path,
            data_dir,
            store_path,
            replace_lost_authorities: Vec::new(),
            store_file_layer: None,
            without_node_service: false,
            connection_age_max: CONNECTION_AGE_MAX,
            proxy_protocol_trusted_cidrs: server
                .strings("proxy_protocol_trusted_cidrs")?
                .iter()
                .map(|range| range.parse(|text| text.parse::<Cidr>()))
                .collect::<Result<_, _>>()?,
            fingerprint,
            agent_spiffe_id_as_selector: experimental.agent_spiffe_id_as_selector,
            key_exchange: experimental.key_exchange,
            agent_ttl,
            ca_key_type,
            ca_ttl,
            default_x509_svid_ttl,
            default_jwt_svid_ttl,
            node_pruning,
            federates_with,
            key_manager,
            node_attestors,
            warnings,
        };
        server.finish()?;
        Ok(config)
    }
}

fn required(section: &mut Section, key: &'static str) -> Result<Spanned<String>, ConfigError> {
    section.filled(key)?.ok_or_else(|| section.missing(key))
}

fn positive(section: &mut Section, key: &'static str) -> Result<Option<Duration>, ConfigError> {
    match section.duration(key)? {
        Some(d) if d.value < Duration::from_secs(1) => Err(d.error("must be at least one second")),
        other => Ok(other.map(|d| d.value)),
    }
}

fn key_type(section: &mut Section, key: &'static str) -> Result<Option<KeyType>, ConfigError> {
    let Some(text) = section.filled(key)? else { return Ok(None) };
    match KeyType::parse(&text.value) {
        Some(kind) => Ok(Some(kind)),
        None => Err(text.error(format!("`{}` is not a key type, expected {}", text.value, KeyType::ALL.map(KeyType::name).join(", ")))),
    }
}

fn ca_subject(server: &mut Section, warnings: &mut Vec<String>) -> Result<Subject, ConfigError> {
    let Some(mut block) = server.section("ca_subject")? else { return Ok(Subject::default()) };
    let texts = |list: Vec<Spanned<String>>| list.into_iter().map(|s| s.value).collect();
    let subject = Subject {
        country: texts(block.strings("country")?),
        organization: texts(block.strings("organization")?),
        common_name: block.string("common_name")?.map(|s| s.value).unwrap_or_default(),
    };
    block.finish()?;
    if subject.country.is_empty() && subject.organization.is_empty() && subject.common_name.is_empty() {
        warnings.push("ca_subject configurable is set but empty; the default will be used".to_owned());
        return Ok(Subject::default());
    }
    Ok(subject)
}

fn node_pruning(server: &mut Section) -> Result<Option<NodePruning>, ConfigError> {
    let batch_size = match server.integer("prune_attested_nodes_batch_size")? {
        None => 1000,
        Some(n) => usize::try_from(n.value).ok().filter(|n| *n > 0).ok_or_else(|| n.error("must be at least 1"))?,
    };
    let non_reattestable = server.boolean("prune_tofu_nodes")?.is_some_and(|b| b.value);
    let expired_for = server.duration("prune_attested_nodes_expired_for")?.map(|d| d.value);
    Ok(expired_for.map(|expired_for| NodePruning { expired_for, batch_size, non_reattestable }))
}

/// `journal { directory, retention, max_size_mib }`, ours.
fn read_journal(server: &mut Section, data_dir: &Path) -> Result<audit::Settings, ConfigError> {
    let mut settings = audit::Settings::new(data_dir.join("journal"));
    let Some(mut block) = server.section("journal")? else { return Ok(settings) };
    if let Some(directory) = block.string("directory")? {
        settings.directory = PathBuf::from(directory.value);
    }
    if let Some(retention) = block.duration("retention")? {
        settings.retention = retention.value;
    }
    if let Some(size) = block.integer("max_size_mib")? {
        let mib = u64::try_from(size.value).ok().filter(|n| *n >= 128).ok_or_else(|| size.error("must be at least 128"))?;
        settings.bytes_max = mib << 20;
    }
    block.finish()?;
    Ok(settings)
}

/// `ratelimit { attestation, signing }`, both on unless switched off.
fn read_ratelimit(server: &mut Section, agent_ttl: Duration) -> Result<ratelimit::Settings, ConfigError> {
    let mut settings = ratelimit::Settings { attestation: true, signing: true, agent_ttl };
    let Some(mut block) = server.section("ratelimit")? else { return Ok(settings) };
    if let Some(attestation) = block.boolean("attestation")? {
        settings.attestation = attestation.value;
    }
    if let Some(signing) = block.boolean("signing")? {
        settings.signing = signing.value;
    }
    block.finish()?;
    Ok(settings)
}

type Plugins = (Arc<dyn KeyManager>, Vec<Arc<dyn ServerHalf>>, PathBuf);

fn read_plugins(mut plugins: Section, fingerprint: &mut Fingerprint) -> Result<Plugins, ConfigError> {
    let store_path = read_datastore(&mut plugins, fingerprint)?;
    let key_managers: [Configured; 1] = configured(&mut plugins, "KeyManager", fingerprint)?.try_into().map_err(|_| {
        plugins
            .error("exactly one KeyManager must be configured")
            .hint("add `KeyManager \"disk\" { plugin_data { keys_path = \"…/keys.json\" } }`")
    })?;
    let [Configured { name, block, data }] = key_managers;
    let key_manager = keys::build(&name, &block, data)?;
    let mut node_attestors: Vec<Arc<dyn ServerHalf>> = Vec::new();
    for Configured { name, block, data } in configured(&mut plugins, "NodeAttestor", fingerprint)? {
        node_attestors.push(node::build_server(&name, &block, data)?);
    }
    // Tokens work without a block, as in SPIRE.
    if !node_attestors.iter().any(|a| a.name() == join_token::NAME) {
        node_attestors.push(Arc::new(join_token::Server));
    }
    for kind in ["UpstreamAuthority", "Notifier", "BundlePublisher", "CredentialComposer"] {
        if let Some(Configured { name, block, .. }) = configured(&mut plugins, kind, fingerprint)?.into_iter().next() {
            return Err(later::refuse(kind, &name, &[], &block));
        }
    }
    plugins.finish()?;
    Ok((key_manager, node_attestors, store_path))
}

fn read_datastore(plugins: &mut Section, fingerprint: &mut Fingerprint) -> Result<PathBuf, ConfigError> {
    let wanted = || "add `DataStore \"sql\" { plugin_data { database_type = \"sqlite3\" connection_string = \"…\" } }`";
    let [Configured { name, block, mut data }]: [Configured; 1] = configured(plugins, "DataStore", fingerprint)?
        .try_into()
        .map_err(|_| plugins.error("exactly one DataStore must be configured").hint(wanted()))?;
    if name != "sql" {
        return Err(block.error(format!("there is no DataStore `{name}`, expected `sql`")));
    }
    if let Some((database, settings)) = data.clone().labelled("database_type").unwrap_or_default().into_iter().next() {
        return Err(settings.error(format!("`{database}` is not supported yet, expected `sqlite3`")).hint("PostgreSQL comes later"));
    }
    let kind = data.string("database_type")?.ok_or_else(|| block.missing("database_type"))?;
    if kind.value != "sqlite3" {
        return Err(kind.error(format!("`{}` is not supported yet, expected `sqlite3`", kind.value)).hint("PostgreSQL comes later"));
    }
    let connection = data.string("connection_string")?.ok_or_else(|| block.missing("connection_string"))?;
    // SPIRE's form may be a plain path or a URI; options of its driver mean nothing here.
    let path = connection.value.strip_prefix("file:").unwrap_or(&connection.value);
    let path = path.split('?').next().unwrap_or_default();
    if path.is_empty() || path == ":memory:" {
        return Err(connection.error("expected the path of a file"));
    }
    for key in ["ro_connection_string", "root_ca_path", "client_cert_path", "client_key_path"] {
        if let Some(found) = data.take_any(key) {
            return Err(found.error("is for databases that are reached over a network").hint("leave it out; `sqlite3` is a file"));
        }
    }
    // There is one writer, readers have the snapshot, and the schema is brought up to date in one transaction: nothing is left to do.
    data.integer("max_open_conns")?;
    data.integer("max_idle_conns")?;
    data.duration("conn_max_lifetime")?;
    data.boolean("disable_migration")?;
    data.boolean("log_sql")?;
    data.finish()?;
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests;
