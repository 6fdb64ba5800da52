//! Whether the server can do its work, and if not, why; told by gRPC health, `/ready` and a metric. No health by service.
//!
//! Nothing is tried here: authorities, journal and store say what came of their last attempt, and try again by themselves.

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

use super::Api;

/// Header of the answer that says why the server does not serve.
pub const HEALTH_REASON_HEADER: &str = "countersign-health-reason";

impl Api {
    /// Each part that issuance needs, and what is wrong with it.
    pub(crate) fn health(&self) -> [(&'static str, Option<String>); 3] {
        let has_bundle = || self.store.snapshot().bundle(self.trust_domain.name()).is_some();
        let authority = (!self.authorities.is_ready()).then_some("no X.509 authority is active");
        let authority = authority.or_else(|| (!has_bundle()).then_some("the trust domain has no bundle"));
        [
            ("authority", authority.map(str::to_owned)),
            ("journal", self.journal.trouble().map(|e| e.to_string())),
            ("store", self.store.trouble().map(|e| e.to_string())),
        ]
    }
}

#[tonic::async_trait]
impl health_server::Health for Api {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.into_inner().service.is_empty() {
            return Err(Status::invalid_argument("per-service health is not supported"));
        }
        let troubles: Vec<String> = self.health().into_iter().filter_map(|(_, trouble)| trouble).collect();
        let status = if troubles.is_empty() { ServingStatus::Serving } else { ServingStatus::NotServing };
        let mut response = Response::new(HealthCheckResponse { status: status.into() });
        // The message has no place for a reason; who looks for it finds it beside.
        if let Some(reason) = MetadataValue::try_from(troubles.join("; ")).ok().filter(|_| !troubles.is_empty()) {
            response.metadata_mut().insert(HEALTH_REASON_HEADER, reason);
        }
        Ok(response)
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watching health is not implemented, use Check"))
    }
}
