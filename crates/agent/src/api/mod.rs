//! What workloads can ask on the agent's public socket (the Workload API, Envoy's Secret Discovery Service, health, and
//! reflection), and operators and delegates on the admin socket.

mod admin;
mod admission;
mod debug;
mod delegated;
mod health;
mod logger;
mod reply;
mod sds;
mod security_header;
mod workload;

pub(crate) use admin::Admin;
pub(crate) use security_header::SecurityHeaderLayer;

use std::sync::Arc;

use self::sds::SecretDiscovery;
use countersign_identity::TrustDomain;
use countersign_transport::clock::SharedClock;
use countersign_transport::limits::MESSAGE_BYTES_MAX;
use countersign_transport::observe::LastReload;
use countersign_transport::random::SharedRandom;
use countersign_wire::{secret_discovery, workload as wire};
use tonic::service::Routes;

use crate::attest::Attestors;
use crate::cache::Cache;
use crate::config::Sds;
use crate::denials::Denials;
use crate::jwt::Jwts;
use crate::metrics::Metrics;
use crate::ratelimit::RateLimits;
use crate::rotate::Rotator;
use crate::sync::Sync;

/// What handlers work with. One for the process.
pub(crate) struct Context {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) cache: Arc<Cache>,
    pub(crate) rotator: Arc<Rotator>,
    pub(crate) jwts: Arc<Jwts>,
    pub(crate) sync: Arc<Sync>,
    pub(crate) attestors: Attestors,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: RateLimits,
    pub(crate) denials: Denials,
    pub(crate) last_reload: LastReload,
    pub(crate) allow_unauthenticated_verifiers: bool,
    pub(crate) allowed_foreign_jwt_claims: Vec<String>,
    pub(crate) log_selectors: Vec<String>,
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

/// The services of the public socket: those two that are not switched off, and what tells of them.
pub(crate) fn routes(
    api: &Api,
    has_workload_api: bool,
    sds: Option<Sds>,
    random: SharedRandom,
) -> Result<Routes, tonic_reflection::server::Error> {
    let described = || {
        let mut builder = tonic_reflection::server::Builder::configure();
        if has_workload_api {
            builder = builder.register_encoded_file_descriptor_set(wire::FILE_DESCRIPTOR_SET);
        }
        if sds.is_some() {
            builder = builder.register_encoded_file_descriptor_set(secret_discovery::FILE_DESCRIPTOR_SET);
        }
        builder
    };
    let (v1, v1alpha) = (described().build_v1()?, described().build_v1alpha()?);
    let health = tonic_health::pb::health_server::HealthServer::new(api.clone());
    let mut routes = Routes::new(health).add_service(v1).add_service(v1alpha);
    if has_workload_api {
        let workload = wire::spiffe_workload_api_server::SpiffeWorkloadApiServer::new(api.clone());
        routes = routes.add_service(workload.max_decoding_message_size(MESSAGE_BYTES_MAX));
    }
    if let Some(settings) = sds {
        routes = routes.add_service(SecretDiscovery::server(api, settings, random));
    }
    Ok(routes)
}
