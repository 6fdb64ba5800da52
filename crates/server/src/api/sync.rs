//! The exchange by which SPIRE's agents follow: the full list when it is short, else revisions first and then what changed.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use countersign_identity::{Entry, SpiffeId};
use countersign_wire::entry_api::{EntryRevision, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse};
use countersign_wire::{entry, mask, types};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Status, Streaming};

use super::Api;

/// Entries in one page; agents derive theirs from it.
const PAGE: usize = 500;

type Pages = Pin<Box<dyn Stream<Item = Result<SyncAuthorizedEntriesResponse, Status>> + Send>>;

/// What an agent is authorized for, on the newest snapshot. Entries that are over are left out.
pub(crate) fn authorized(api: &Api, agent: &SpiffeId) -> BTreeMap<Arc<str>, Arc<Entry>> {
    let now = api.clock.now();
    let mut entries = api.store.snapshot().authorized_entries(agent);
    entries.retain(|_, e| !e.is_expired(now));
    entries
}

/// Begins an exchange.
pub(crate) fn start(api: Api, agent: SpiffeId, requests: Streaming<SyncAuthorizedEntriesRequest>) -> Pages {
    let (out, pages) = mpsc::channel(2);
    tokio::spawn(async move {
        if let Err(status) = exchange(&api, &agent, requests, &out).await {
            let _ = out.send(Err(status)).await;
        }
    });
    Box::pin(ReceiverStream::new(pages))
}

async fn exchange(
    api: &Api,
    agent: &SpiffeId,
    mut requests: Streaming<SyncAuthorizedEntriesRequest>,
    out: &mpsc::Sender<Result<SyncAuthorizedEntriesResponse, Status>>,
) -> Result<(), Status> {
    let Some(first) = requests.next().await else { return Ok(()) };
    let first = first?;
    if !first.ids.is_empty() {
        return Err(Status::invalid_argument("specifying IDs on initial request is not supported"));
    }
    if first.output_mask.as_ref().is_some_and(|m| !m.revision_number) {
        return Err(Status::invalid_argument("revision number cannot be masked"));
    }
    let entries = authorized(api, agent);
    let mask = first.output_mask;
    if entries.len() <= PAGE {
        let entries = entries.values().map(|e| mask::entry(entry::to_wire(e), mask.as_ref())).collect();
        let _ = out.send(Ok(SyncAuthorizedEntriesResponse { entries, ..SyncAuthorizedEntriesResponse::default() })).await;
        return Ok(());
    }
    let revisions: Vec<EntryRevision> = entries
        .values()
        .map(|e| EntryRevision { id: e.id.clone(), revision_number: e.revision_number, created_at: e.created_at.secs() })
        .collect();
    for (index, page) in revisions.chunks(PAGE).enumerate() {
        let more = (index + 1) * PAGE < revisions.len();
        let response = SyncAuthorizedEntriesResponse { entry_revisions: page.to_vec(), more, ..SyncAuthorizedEntriesResponse::default() };
        if out.send(Ok(response)).await.is_err() {
            return Ok(());
        }
    }
    while let Some(request) = requests.next().await {
        // IDs that are unknown or not the agent's are passed over without a word.
        let wanted: Vec<types::Entry> =
            request?.ids.iter().filter_map(|id| entries.get(id.as_str())).map(|e| mask::entry(entry::to_wire(e), mask.as_ref())).collect();
        let pages = wanted.chunks(PAGE).count().max(1);
        for index in 0..pages {
            let page = wanted.chunks(PAGE).nth(index).unwrap_or_default().to_vec();
            let response =
                SyncAuthorizedEntriesResponse { entries: page, more: index + 1 < pages, ..SyncAuthorizedEntriesResponse::default() };
            if out.send(Ok(response)).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
