//! The plain HTTP listeners: `/live` and `/ready` for whoever supervises the process, and metrics for Prometheus.

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::api::Api;
use crate::config::HealthChecks;
use crate::metrics::ReadingSource;

/// Answers liveness and readiness. Alive: the process answers. Ready: it can issue.
pub(crate) fn serve_health(listener: TcpListener, settings: &HealthChecks, api: Api) {
    let ready_api = api;
    let router = Router::new()
        .route(&settings.live_path, get(|| async { (StatusCode::OK, [(CONTENT_TYPE, "application/json")], "{\"server\":{}}") }))
        .route(
            &settings.ready_path,
            get(move || {
                let ready = ready_api.authorities.is_ready() && ready_api.store.snapshot().bundle(ready_api.trust_domain.name()).is_some();
                async move {
                    let (status, body) = if ready {
                        (StatusCode::OK, "{\"server\":{},\"server.ca\":{}}")
                    } else {
                        (StatusCode::INTERNAL_SERVER_ERROR, "{\"server.ca\":{\"sign_x509_svid_err\":\"no X.509 authority is active\"}}")
                    };
                    (status, [(CONTENT_TYPE, "application/json")], body)
                }
            }),
        );
    serve(listener, router);
}

/// Answers with all metrics on every path, as SPIRE's listener does.
pub(crate) fn serve_metrics(listener: TcpListener, metrics: std::sync::Arc<crate::metrics::Metrics>, reading: ReadingSource) {
    let router = Router::new().fallback(get(move || {
        let text = metrics.render(&reading());
        async move { ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text) }
    }));
    serve(listener, router);
}

fn serve(listener: TcpListener, router: Router) {
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "An HTTP listener ended");
        }
    });
}
