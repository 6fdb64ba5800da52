//! Whether the server can do its work, and if not, why; told by gRPC health, `/ready` and a metric. No health by service.
//!
//! Not ready means that nothing can be issued. A store that cannot be written is told of and does not count: agents go on
//! being served from the snapshot, and taking the server out of its load balancer would end exactly that.
//!
//! Nothing is tried here: authorities, journal and store say what came of their last attempt, and try again by themselves.

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

use super::Api;

/// Header of the answer that says what is wrong, whether the server serves or not.
pub const HEALTH_REASON_HEADER: &str = "countersign-health-reason";

/// A part of the server that can fail.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    /// What is wrong with it, for the operator.
    pub(crate) trouble: Option<String>,
    /// Whether nothing can be issued without it.
    pub(crate) is_essential: bool,
}

impl Api {
    /// Each part, and what is wrong with it.
    pub(crate) fn health(&self) -> [Part; 3] {
        let has_bundle = || self.store.snapshot().bundle(self.trust_domain.name()).is_some();
        let authority = (!self.authorities.is_ready()).then_some("no X.509 authority is active");
        let authority = authority.or_else(|| (!has_bundle()).then_some("the trust domain has no bundle"));
        [
            Part { name: "authority", trouble: authority.map(str::to_owned), is_essential: true },
            Part { name: "journal", trouble: self.journal.trouble().map(|e| e.to_string()), is_essential: true },
            Part { name: "store", trouble: self.store.trouble().map(|e| e.to_string()), is_essential: false },
        ]
    }
}

#[tonic::async_trait]
impl health_server::Health for Api {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.into_inner().service.is_empty() {
            return Err(Status::invalid_argument("per-service health is not supported"));
        }
        let parts = self.health();
        let fails = parts.iter().any(|part| part.is_essential && part.trouble.is_some());
        let status = if fails { ServingStatus::NotServing } else { ServingStatus::Serving };
        let troubles: Vec<String> = parts.into_iter().filter_map(|part| part.trouble).collect();
        let mut response = Response::new(HealthCheckResponse { status: status.into() });
        // The message has no place for a reason; who looks for it finds it beside.
        if let Some(reason) = MetadataValue::try_from(troubles.join("; ")).ok().filter(|_| !troubles.is_empty()) {
            response.metadata_mut().insert(HEALTH_REASON_HEADER, reason);
        }
        self.last_reload.add_to(response.metadata_mut());
        Ok(response)
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watching health is not implemented, use Check"))
    }
}
