//! gRPC health of the agent as a whole.

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

use super::Api;

impl Api {
    /// Healthy: the agent has an identity that counts, and has once known all of its entries.
    pub(crate) fn is_healthy(&self) -> bool {
        self.cache.is_caught_up() && self.sync.svid().is_some_and(|s| s.expires_at > self.clock.now())
    }
}

#[tonic::async_trait]
impl health_server::Health for Api {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.into_inner().service.is_empty() {
            return Err(Status::invalid_argument("per-service health is not supported"));
        }
        let status = if self.is_healthy() { ServingStatus::Serving } else { ServingStatus::NotServing };
        let mut response = Response::new(HealthCheckResponse { status: status.into() });
        self.last_reload.add_to(response.metadata_mut());
        Ok(response)
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watching health is not implemented, use Check"))
    }
}
