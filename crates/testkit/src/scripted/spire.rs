//! The calls by which agents follow a server of SPIRE's.

use std::pin::Pin;
use std::sync::Arc;

use countersign_wire::entry_api::{
    GetAuthorizedEntriesRequest, GetAuthorizedEntriesResponse, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use countersign_wire::svid::{
    BatchNewX509svidRequest, BatchNewX509svidResponse, NewJwtsvidRequest, NewJwtsvidResponse, NewX509svidParams,
    batch_new_x509svid_response,
};
use countersign_wire::{agent, types};
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Request, Response, Status, Streaming};

use super::{Shared, codec};

/// An agent asks for its entries, and sends those it has to be told of.
pub const SYNC: &str = "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries";
/// An agent asks for its entries.
pub const ENTRIES: &str = "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries";
/// An agent asks for X509-SVIDs.
pub const BATCH: &str = "/spire.api.server.svid.v1.SVID/BatchNewX509SVID";
/// An agent asks for a JWT-SVID.
pub const TOKENS: &str = "/spire.api.server.svid.v1.SVID/NewJWTSVID";
/// An agent tells its version.
pub const STATUS: &str = "/spire.api.server.agent.v1.Agent/PostStatus";

type Pages = Pin<Box<dyn Stream<Item = Result<SyncAuthorizedEntriesResponse, Status>> + Send>>;

/// Answers one of these calls.
pub(super) async fn answer(shared: Arc<Shared>, method: &str, request: http::Request<Body>) -> http::Response<Body> {
    match method {
        SYNC => {
            // All in one page, whatever is asked.
            let service = tower::service_fn(move |_: Request<Streaming<SyncAuthorizedEntriesRequest>>| {
                let entries = shared.lock().entries.clone();
                let page = SyncAuthorizedEntriesResponse { entries, ..SyncAuthorizedEntriesResponse::default() };
                let pages: Pages = Box::pin(tokio_stream::iter([Ok(page)]));
                async move { Ok::<_, Status>(Response::new(pages)) }
            });
            Grpc::new(codec()).streaming(service, request).await
        }
        ENTRIES => {
            let service = tower::service_fn(move |_: Request<GetAuthorizedEntriesRequest>| {
                let entries = shared.lock().entries.clone();
                async move { Ok::<_, Status>(Response::new(GetAuthorizedEntriesResponse { entries })) }
            });
            Grpc::new(codec()).unary(service, request).await
        }
        BATCH => {
            let service = tower::service_fn(move |r: Request<BatchNewX509svidRequest>| {
                let results = r.into_inner().params.iter().map(|params| certified(&shared, params)).collect();
                async move { Ok::<_, Status>(Response::new(BatchNewX509svidResponse { results })) }
            });
            Grpc::new(codec()).unary(service, request).await
        }
        TOKENS => {
            let service = tower::service_fn(move |r: Request<NewJwtsvidRequest>| {
                let request = r.into_inner();
                let svid = shared.token(&request.entry_id, &request.audience);
                async move { Ok::<_, Status>(Response::new(NewJwtsvidResponse { svid: Some(svid?) })) }
            });
            Grpc::new(codec()).unary(service, request).await
        }
        _ => {
            let service = tower::service_fn(move |_: Request<agent::PostStatusRequest>| async move {
                Ok::<_, Status>(Response::new(agent::PostStatusResponse {}))
            });
            Grpc::new(codec()).unary(service, request).await
        }
    }
}

fn certified(shared: &Shared, params: &NewX509svidParams) -> batch_new_x509svid_response::Result {
    match shared.granted(&params.entry_id).and_then(|id| shared.certify(&id, &params.csr)) {
        Ok(svid) => batch_new_x509svid_response::Result { status: Some(types::Status::default()), svid: Some(svid) },
        Err(status) => {
            let status = types::Status { code: status.code().into(), message: status.message().to_owned() };
            batch_new_x509svid_response::Result { status: Some(status), svid: None }
        }
    }
}
