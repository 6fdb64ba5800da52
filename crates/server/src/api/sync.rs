//! The exchange by which SPIRE's agents follow: the full list when it is short, else revisions first and then what changed.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use countersign_identity::{Entry, SpiffeId};
use countersign_store::Snapshot;
use countersign_wire::entry_api::{EntryRevision, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse};
use countersign_wire::{entry, mask, types};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Status, Streaming};

use super::Api;
use super::room::Room;
use crate::policy::Caller;

/// Entries in one page, fewer where they are large; agents derive theirs from it.
const PAGE: usize = 500;

/// Messages, encoded.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) messages: Arc<[Bytes]>,
    /// Whether they say everything, so that no question follows.
    pub(crate) is_whole: bool,
}

/// Messages as they are sent.
pub(super) type Pages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// What an agent is authorized for. Entries that are over are left out.
pub(crate) fn authorized(api: &Api, snapshot: &Snapshot, agent: &SpiffeId) -> BTreeMap<Arc<str>, Arc<Entry>> {
    let now = api.clock.now();
    let mut entries = snapshot.authorized_entries(agent);
    entries.retain(|_, e| !e.is_expired(now));
    entries
}

/// Begins an exchange. Where the first answer says everything, as it nearly always does, it ends with it.
pub(super) async fn start(
    api: Api,
    caller: Caller,
    agent: SpiffeId,
    mut requests: Streaming<SyncAuthorizedEntriesRequest>,
) -> Result<Pages, Status> {
    let Some(asked) = requests.next().await else { return Ok(Box::pin(tokio_stream::empty())) };
    let asked = asked?;
    if !asked.ids.is_empty() {
        return Err(Status::invalid_argument("specifying IDs on initial request is not supported"));
    }
    if asked.output_mask.as_ref().is_some_and(|m| !m.revision_number) {
        return Err(Status::invalid_argument("revision number cannot be masked"));
    }
    let mask = asked.output_mask;
    let answer = api.polled.sync(&api, &agent, mask)?;
    let first = tokio_stream::iter(Vec::from_iter(answer.messages.iter().cloned().map(Ok)));
    if answer.is_whole {
        return Ok(Box::pin(first));
    }
    let (out, pages) = mpsc::channel(2);
    caller.access.leave();
    tokio::spawn(async move {
        let outcome = rest(&api, &agent, mask.as_ref(), requests, &out).await;
        caller.access.end(outcome.as_ref().copied());
        if let Err(status) = outcome {
            let _ = out.send(Err(status)).await;
        }
    });
    Ok(Box::pin(first.chain(ReceiverStream::new(pages))))
}

/// Answers what is asked after the revisions.
async fn rest(
    api: &Api,
    agent: &SpiffeId,
    mask: Option<&types::EntryMask>,
    mut requests: Streaming<SyncAuthorizedEntriesRequest>,
    out: &mpsc::Sender<Result<Bytes, Status>>,
) -> Result<(), Status> {
    let mut entries = None;
    while let Some(request) = requests.next().await {
        // IDs that are unknown or not the agent's are passed over without a word.
        let ids = request?.ids;
        let entries = entries.get_or_insert_with(|| authorized(api, &api.store.snapshot(), agent));
        let wanted: Vec<&Arc<Entry>> = ids.iter().filter_map(|id| entries.get(id.as_str())).collect();
        let mut wanted = wanted.as_slice();
        loop {
            let (entries, rest) = page(wanted, mask);
            let more = !rest.is_empty();
            let message = SyncAuthorizedEntriesResponse { entries, more, ..SyncAuthorizedEntriesResponse::default() };
            if out.send(Ok(message.encode_to_vec().into())).await.is_err() {
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

/// What an exchange begins with: all entries where they go into one page, else the revisions of all, page by page.
pub(super) fn first(all: &[&Arc<Entry>], mask: Option<&types::EntryMask>) -> Answer {
    let (entries, rest) = page(all, mask);
    if rest.is_empty() {
        let message = SyncAuthorizedEntriesResponse { entries, ..SyncAuthorizedEntriesResponse::default() };
        return Answer { messages: [message.encode_to_vec().into()].into(), is_whole: true };
    }
    drop(entries);
    let pages = all.chunks(PAGE).count();
    let revision =
        |e: &&Arc<Entry>| EntryRevision { id: e.id.clone(), revision_number: e.revision_number, created_at: e.created_at.secs() };
    let page = |(index, page): (usize, &[&Arc<Entry>])| {
        let entry_revisions = page.iter().map(revision).collect();
        let message =
            SyncAuthorizedEntriesResponse { entry_revisions, more: index + 1 < pages, ..SyncAuthorizedEntriesResponse::default() };
        Bytes::from(message.encode_to_vec())
    };
    Answer { messages: all.chunks(PAGE).enumerate().map(page).collect(), is_whole: false }
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
