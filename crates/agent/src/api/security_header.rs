//! The header that keeps cross-protocol requests away from the Workload API (Workload Endpoint section 3).
//!
//! Demanded of the Workload API's own methods; Envoy's Secret Discovery Service, health and reflection on the same socket pass
//! without it, as in SPIRE, because set-ups depend on it.

use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// Puts the check in front of a service.
#[derive(Clone)]
pub(crate) struct SecurityHeaderLayer;

impl<S> Layer<S> for SecurityHeaderLayer {
    type Service = Checked<S>;

    fn layer(&self, inner: S) -> Checked<S> {
        Checked { inner }
    }
}

#[derive(Clone)]
pub(crate) struct Checked<S> {
    inner: S,
}

impl<S> Service<http::Request<Body>> for Checked<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        tracing::trace!(hop = "checks the header");
        if request.uri().path().starts_with("/SpiffeWorkloadAPI/") {
            let mut values = request.headers().get_all("workload.spiffe.io").iter();
            // Exactly once, exactly this value.
            let good = values.next().is_some_and(|v| v.as_bytes() == b"true") && values.next().is_none();
            if !good {
                return Box::pin(async { Ok(Status::invalid_argument("security header missing from request").into_http()) });
            }
        }
        Box::pin(self.inner.call(request))
    }
}
