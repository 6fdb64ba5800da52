//! What workloads can ask on the agent's public socket (the Workload API, health, and reflection), and operators and delegates
//! on the admin socket.

mod admin;
mod admission;
mod debug;
mod delegated;
mod health;
mod logger;
mod reply;
mod security_header;
mod workload;

pub(crate) use admin::Admin;
pub(crate) use security_header::SecurityHeaderLayer;

use std::sync::Arc;

use countersign_identity::TrustDomain;
use countersign_transport::clock::SharedClock;
use countersign_transport::limits::MESSAGE_BYTES_MAX;
use countersign_transport::observe::LastReload;
use countersign_wire::workload as wire;
use tonic::service::Routes;

use crate::attest::Attestors;
use crate::cache::Cache;
use crate::denials::Denials;
use crate::jwt::Jwts;
use crate::metrics::Metrics;
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

/// The services of the public socket.
pub(crate) fn routes(api: &Api) -> Result<Routes, tonic_reflection::server::Error> {
    let v1 = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(wire::FILE_DESCRIPTOR_SET).build_v1()?;
    let v1alpha =
        tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(wire::FILE_DESCRIPTOR_SET).build_v1alpha()?;
    let workload = wire::spiffe_workload_api_server::SpiffeWorkloadApiServer::new(api.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    Ok(Routes::new(workload)
        .add_service(tonic_health::pb::health_server::HealthServer::new(api.clone()))
        .add_service(v1)
        .add_service(v1alpha))
}
