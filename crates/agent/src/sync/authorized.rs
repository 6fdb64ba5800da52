//! Which entries a server of SPIRE's authorizes this agent for: `SyncAuthorizedEntries`, and `GetAuthorizedEntries` where the
//! server is too old for that.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use countersign_identity::Entry;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::{
    EntryRevision, GetAuthorizedEntriesRequest, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use countersign_wire::{entry, types};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Most entries taken from a server: the size we design a whole trust domain for.
const ENTRIES_MAX: usize = 1_000_000;
/// Longest message taken: a page has 500 entries, of some kilobytes each where they are large; an old server sends all in one.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// What a server authorizes this agent for.
pub(super) struct Authorized {
    /// Entries that are new, or differ from what is known.
    pub(super) entries: Vec<Arc<Entry>>,
    /// IDs of all entries; what is known and not among these is gone.
    pub(super) ids: HashSet<String>,
}

/// Asks for the entries. Those that are known as they are, by ID, are not sent again where there are many.
pub(super) async fn authorized(
    channel: &Channel,
    known: &HashMap<String, Arc<Entry>>,
    only_whole_lists: &mut bool,
) -> Result<Authorized, Status> {
    let mut client = EntryClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    if !*only_whole_lists {
        match synced(&mut client, known).await {
            Err(status) if status.code() == Code::Unimplemented => *only_whole_lists = true,
            answer => return answer,
        }
    }
    let answer = client.get_authorized_entries(GetAuthorizedEntriesRequest { output_mask: None }).await?.into_inner();
    whole(&answer.entries, known)
}

/// One exchange: the server sends all entries if they are few, else their revisions, and then those that are asked for.
async fn synced(client: &mut EntryClient<Channel>, known: &HashMap<String, Arc<Entry>>) -> Result<Authorized, Status> {
    let (out, requests) = mpsc::channel(1);
    let gone = || Status::unavailable("the server ended the exchange early");
    out.send(SyncAuthorizedEntriesRequest::default()).await.map_err(|_| gone())?;
    let mut pages = client.sync_authorized_entries(ReceiverStream::new(requests)).await?.into_inner();
    let mut page = next(&mut pages).await?;
    if page.entry_revisions.is_empty() {
        return whole(&page.entries, known);
    }
    // The server's pages are as long as its first.
    let page_size = page.entry_revisions.len();
    let (mut ids, mut wanted) = (HashSet::new(), Vec::new());
    loop {
        for revision in page.entry_revisions {
            if revision.id.is_empty() || revision.revision_number < 0 {
                tracing::warn!(
                    registration_id = revision.id,
                    revision_number = revision.revision_number,
                    "Received malformed entry revision from SPIRE server; are the server and agent versions compatible?"
                );
                continue;
            }
            if known.get(&revision.id).is_none_or(|entry| is_stale(entry, &revision)) {
                wanted.push(revision.id.clone());
            }
            ids.insert(revision.id);
        }
        check_count(ids.len())?;
        if !page.more {
            break;
        }
        page = next(&mut pages).await?;
        if !page.entries.is_empty() {
            return Err(Status::internal("unexpected entry in response receiving entry revisions"));
        }
    }
    // Servers look them up in this order.
    wanted.sort_unstable();
    let mut entries: Vec<Arc<Entry>> = Vec::with_capacity(wanted.len());
    for asked in wanted.chunks(page_size) {
        out.send(SyncAuthorizedEntriesRequest { ids: asked.to_vec(), output_mask: None }).await.map_err(|_| gone())?;
        // In one page, since there are not more than the server's pages have; in several if they are large.
        loop {
            let page = next(&mut pages).await?;
            if !page.entry_revisions.is_empty() {
                return Err(Status::internal("unexpected entry revisions in response while requesting entries"));
            }
            check_count(entries.len() + page.entries.len())?;
            entries.extend(page.entries.iter().filter_map(usable).filter(|e| ids.contains(&e.id)));
            if !page.more {
                break;
            }
        }
    }
    // What was asked for and did not come, or cannot be read, is as good as gone: nothing may live on in a form it no longer has.
    for id in &wanted {
        ids.remove(id);
    }
    ids.extend(entries.iter().map(|entry| entry.id.clone()));
    Ok(Authorized { entries, ids })
}

async fn next(pages: &mut Streaming<SyncAuthorizedEntriesResponse>) -> Result<SyncAuthorizedEntriesResponse, Status> {
    pages.message().await?.ok_or_else(|| Status::unavailable("the server ended the exchange early"))
}

/// A list of everything.
fn whole(list: &[types::Entry], known: &HashMap<String, Arc<Entry>>) -> Result<Authorized, Status> {
    check_count(list.len())?;
    let (mut ids, mut entries) = (HashSet::with_capacity(list.len()), Vec::new());
    for entry in list.iter().filter_map(usable) {
        ids.insert(entry.id.clone());
        if known.get(&entry.id) != Some(&entry) {
            entries.push(entry);
        }
    }
    Ok(Authorized { entries, ids })
}

fn check_count(count: usize) -> Result<(), Status> {
    match count {
        0..=ENTRIES_MAX => Ok(()),
        _ => Err(Status::out_of_range(format!("the server sends more than {ENTRIES_MAX} entries"))),
    }
}

/// An entry that can be read; the others are left out, and said.
fn usable(message: &types::Entry) -> Option<Arc<Entry>> {
    match entry::from_wire(message) {
        Ok(entry) if !entry.id.is_empty() => Some(Arc::new(entry)),
        Ok(_) => {
            tracing::warn!("Received malformed entry from SPIRE server; are the server and agent versions compatible?");
            None
        }
        Err(error) => {
            tracing::warn!(
                registration_id = message.id, revision_number = message.revision_number, %error,
                "Received malformed entry from SPIRE server; are the server and agent versions compatible?"
            );
            None
        }
    }
}

/// Whether the server has another entry under this ID by now. Old servers do not say when an entry was made; the others do,
/// because an entry that was deleted and made again under its ID begins again at its first revision.
fn is_stale(known: &Entry, revision: &EntryRevision) -> bool {
    known.revision_number != revision.revision_number || (revision.created_at != 0 && known.created_at.secs() != revision.created_at)
}

#[cfg(test)]
mod tests;
