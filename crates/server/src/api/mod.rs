//! The server's gRPC services: each handler parses, asks the rooms that decide and keep, and answers.
//!
//! Nothing is decided here about who may call (the gate did) or what may be issued (policy does). Shared by both
//! listeners; the private socket serves a few services more.

pub(crate) mod access;
mod agent;
mod attest;
pub(crate) use attest::{Recent, alias_entries};
mod bundle;
mod debug;
mod entry;
mod explain;
mod filter;
mod health;
pub use health::HEALTH_REASON_HEADER;
mod journal;
mod local_authority;
mod logger;
mod node;
pub(crate) mod polled;
mod room;
pub(crate) mod status;
mod svid;
mod sync;
mod trust_domain;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use countersign_identity::{FederationRelationship, SpiffeId, Timestamp, TrustDomain};
use countersign_plugins::node::ServerHalf;
use countersign_store::{Seen, Store};
use countersign_transport::clock::SharedClock;
use countersign_transport::limits::MESSAGE_BYTES_MAX;
use countersign_transport::observe::LastReload;
use countersign_transport::tcp::TlsIdentity;
use tonic::service::Routes;
use tonic::{Request, Status};

use crate::audit::Journal;
use crate::authorities::Authorities;
use crate::follow::Hub;
use crate::metrics::Metrics;
use crate::own::OwnIdentity;
use crate::policy::Caller;
use crate::policy::allowed::Lifetimes;
use crate::ratelimit::{Exceeded, Lines, RateLimits};

pub use countersign_transport::observe::LogLevels;

/// The attestors of nodes, by name.
pub(crate) type NodeAttestors = HashMap<&'static str, Arc<dyn ServerHalf>>;

/// What handlers work with. One for the process.
pub(crate) struct Context {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) store: Store,
    pub(crate) journal: Journal,
    pub(crate) authorities: Arc<Authorities>,
    pub(crate) own: Arc<OwnIdentity>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) lifetimes: ArcSwap<Lifetimes>,
    pub(crate) disable_jwt_svids: bool,
    pub(crate) agent_spiffe_id_as_selector: bool,
    pub(crate) node_attestors: ArcSwap<NodeAttestors>,
    pub(crate) log_levels: Arc<dyn LogLevels>,
    pub(crate) last_reload: LastReload,
    pub(crate) started_at: Timestamp,
    pub(crate) attested: attest::Recent,
    pub(crate) rate_limits: RateLimits,
    pub(crate) lines: Arc<Lines>,
    pub(crate) seen: Mutex<HashMap<SpiffeId, Seen>>,
    pub(crate) federates_with: Vec<FederationRelationship>,
    pub(crate) polled: polled::Answers,
}

/// A handle on the context; what every service is made of.
#[derive(Clone)]
pub(crate) struct Api(pub(crate) Arc<Context>);

impl std::ops::Deref for Api {
    type Target = Context;

    fn deref(&self) -> &Context {
        &self.0
    }
}

/// Does what leaves durable traces in a task of its own: if the caller hangs up it still runs to its end, and only the answer
/// is lost.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, Status> {
    tokio::spawn(work).await.map_err(|_| Status::unavailable("the server is shutting down"))
}

impl Api {
    /// The caller the gate let through.
    fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
        request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::internal("BUG: a call came past the gate"))
    }

    /// The agent the gate let through.
    fn agent<T>(request: &Request<T>) -> Result<Arc<TlsIdentity>, Status> {
        Self::caller(request)?.agent().cloned().ok_or_else(|| Status::internal("BUG: an agent's call without agent"))
    }

    /// A caller that is over its rate limit. Not its end: clients try again later.
    fn over_limit(&self, caller: &Caller, exceeded: Exceeded) -> Status {
        if caller.is_logged() {
            tracing::warn!(caller = %caller.actor(), "Rate limit exceeded");
        }
        self.metrics.refused("rate limit");
        Status::resource_exhausted(exceeded.to_string())
    }

    /// Remembers that an agent called, and with which version.
    fn saw(&self, id: &SpiffeId, version: Option<&str>) {
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = self.clock.now();
        match seen.get_mut(id) {
            Some(known) => {
                known.at = at;
                if let Some(version) = version {
                    version.clone_into(&mut known.version);
                }
            }
            None => {
                let version = version.unwrap_or_default().to_owned();
                seen.insert(id.clone(), Seen { id: id.clone(), version, at });
            }
        }
    }
}

/// The services of the TCP listener.
pub(crate) fn public_routes(api: &Api, without_node_service: bool) -> Routes {
    macro_rules! limited {
        ($server:ty, $api:expr) => {
            <$server>::new($api).max_decoding_message_size(MESSAGE_BYTES_MAX)
        };
    }
    use countersign_wire::{agent, bundle_api, entry_api, explained, journal, local_authority, node, svid, trust_domain};
    let services = Routes::new(limited!(agent::agent_server::AgentServer<Api>, api.clone()))
        .add_service(limited!(bundle_api::bundle_server::BundleServer<Api>, api.clone()))
        .add_service(limited!(entry_api::entry_server::EntryServer<Api>, api.clone()))
        .add_service(limited!(svid::svid_server::SvidServer<Api>, api.clone()))
        .add_service(limited!(trust_domain::trust_domain_server::TrustDomainServer<Api>, api.clone()))
        .add_service(limited!(local_authority::local_authority_server::LocalAuthorityServer<Api>, api.clone()))
        .add_service(limited!(explained::entry_explainer_server::EntryExplainerServer<Api>, api.clone()))
        .add_service(limited!(journal::journal_server::JournalServer<Api>, api.clone()));
    let services =
        if without_node_service { services } else { services.add_service(limited!(node::node_server::NodeServer<Api>, api.clone())) };
    // A path of its own comes before that of a whole service.
    let router = services.into_axum_router();
    Routes::from(polled::METHODS.iter().fold(router, |router, path| router.route_service(path, polled::Polled(api.clone()))))
}

/// The services of the private socket: those of TCP, and those about the process.
pub(crate) fn private_routes(api: &Api) -> Routes {
    use countersign_wire::{debug, logger};
    public_routes(api, false)
        .add_service(debug::debug_server::DebugServer::new(api.clone()))
        .add_service(logger::logger_server::LoggerServer::new(api.clone()))
        .add_service(tonic_health::pb::health_server::HealthServer::new(api.clone()))
}

#[cfg(test)]
mod hang_up;
