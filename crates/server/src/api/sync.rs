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
use super::room::Room;

/// Entries in one page, fewer where they are large; agents derive theirs from it.
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
    let all: Vec<&Arc<Entry>> = entries.values().collect();
    let (whole, rest) = page(&all, mask.as_ref());
    if rest.is_empty() {
        let _ = out.send(Ok(SyncAuthorizedEntriesResponse { entries: whole, ..SyncAuthorizedEntriesResponse::default() })).await;
        return Ok(());
    }
    drop(whole);
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
        let ids = request?.ids;
        let wanted: Vec<&Arc<Entry>> = ids.iter().filter_map(|id| entries.get(id.as_str())).collect();
        let mut wanted = wanted.as_slice();
        loop {
            let (entries, rest) = page(wanted, mask.as_ref());
            let more = !rest.is_empty();
            if out.send(Ok(SyncAuthorizedEntriesResponse { entries, more, ..SyncAuthorizedEntriesResponse::default() })).await.is_err() {
                return Ok(());
            }
            if !more {
                break;
            }
            wanted = rest;
        }
    }
    Ok(())
}

/// As many as go into one page, and the rest.
fn page<'a>(wanted: &'a [&'a Arc<Entry>], mask: Option<&types::EntryMask>) -> (Vec<types::Entry>, &'a [&'a Arc<Entry>]) {
    let (mut room, mut page) = (Room::default(), Vec::new());
    for found in wanted.iter().take(PAGE) {
        let shown = mask::entry(entry::to_wire(found), mask);
        if !room.takes(&shown) && !page.is_empty() {
            break;
        }
        page.push(shown);
    }
    let rest = wanted.get(page.len()..).unwrap_or_default();
    (page, rest)
}
