//! What `spire-server entry …` says when a call fails after others did not.

use countersign_wire::entry_api::entry_server::{self, EntryServer};
use countersign_wire::entry_api::{self, batch_delete_entry_response};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::super::super::connect::SERVER;
use super::*;

/// The ID that ends a call.
const LAST: &str = "last";

type Answer<T> = Result<Response<T>, Status>;

/// A server that deletes whatever it is asked to, until it is asked for [`LAST`].
struct Deleting;

#[tonic::async_trait]
impl entry_server::Entry for Deleting {
    async fn batch_delete_entry(&self, request: Request<entry_api::BatchDeleteEntryRequest>) -> Answer<BatchDeleteEntryResponse> {
        let ids = request.into_inner().ids;
        if ids.iter().any(|id| id == LAST) {
            return Err(Status::unavailable("gone"));
        }
        let results = ids.into_iter().map(|id| batch_delete_entry_response::Result { status: None, id }).collect();
        Ok(Response::new(BatchDeleteEntryResponse { results }))
    }

    async fn count_entries(&self, _: Request<entry_api::CountEntriesRequest>) -> Answer<entry_api::CountEntriesResponse> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn list_entries(&self, _: Request<entry_api::ListEntriesRequest>) -> Answer<entry_api::ListEntriesResponse> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn get_entry(&self, _: Request<entry_api::GetEntryRequest>) -> Answer<types::Entry> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn batch_create_entry(&self, _: Request<entry_api::BatchCreateEntryRequest>) -> Answer<entry_api::BatchCreateEntryResponse> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn batch_update_entry(&self, _: Request<entry_api::BatchUpdateEntryRequest>) -> Answer<entry_api::BatchUpdateEntryResponse> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn get_authorized_entries(
        &self,
        _: Request<entry_api::GetAuthorizedEntriesRequest>,
    ) -> Answer<entry_api::GetAuthorizedEntriesResponse> {
        Err(Status::unimplemented("not asked here"))
    }

    type SyncAuthorizedEntriesStream = Streaming<entry_api::SyncAuthorizedEntriesResponse>;

    async fn sync_authorized_entries(
        &self,
        _: Request<Streaming<entry_api::SyncAuthorizedEntriesRequest>>,
    ) -> Answer<Self::SyncAuthorizedEntriesStream> {
        Err(Status::unimplemented("not asked here"))
    }
}

#[tokio::test]
async fn a_deletion_that_ends_half_way_fails_and_says_how_far_it_came() {
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, file) = (directory.path().join("socket"), directory.path().join("ids.json"));
    let listener = tokio::net::UnixListener::bind(&socket).expect("bound");
    let server = tonic::transport::Server::builder().add_service(EntryServer::new(Deleting));
    let serving = tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));

    let mut ids: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    ids.push(LAST.to_owned());
    std::fs::write(&file, serde_json::json!({"ids": ids}).to_string()).expect("written");
    let arguments = ["-socketPath", &socket.display().to_string(), "-file", &file.display().to_string()].map(str::to_owned);
    let given = Given::parse(&[SERVER, DELETE, super::super::OUTPUT], &arguments).expect("flags");

    let said = delete(given).await.expect_err("failed").to_string();
    assert_eq!(said, "rpc error: code = Unavailable desc = gone; 500 of 501 entries were dealt with before that");
    serving.abort();
}

#[test]
fn what_was_done_before_a_call_failed_is_said() {
    let mut is_said = false;
    let outcome = say(Some(Status::unavailable("gone")), 1, 2, || {
        is_said = true;
        Ok(())
    });
    assert!(is_said && outcome.is_err());
}
