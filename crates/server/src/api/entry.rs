//! Registration entries.

use std::pin::Pin;
use std::sync::Arc;

use countersign_identity::{Entry, Timestamp};
use countersign_store::{Change, Draft};
use countersign_wire::entry_api::{self, batch_create_entry_response, entry_server};
use countersign_wire::{entry, mask, types};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::access::About;
use super::filter::{self, EntryFilter, EntryFilterMessage};
use super::room::{REFUSAL_BYTES, Room};
use super::{Api, polled, status};
use crate::policy::Caller;

/// Most entries in one batch; the message limit comes first for entries of ordinary size.
const BATCH_MAX: usize = 10_000;

#[tonic::async_trait]
impl entry_server::Entry for Api {
    async fn count_entries(
        &self,
        request: Request<entry_api::CountEntriesRequest>,
    ) -> Result<Response<entry_api::CountEntriesResponse>, Status> {
        let caller = Self::caller(&request)?;
        let snapshot = self.store.snapshot();
        let count = match request.into_inner().filter {
            None => snapshot.entries_count(),
            Some(wanted) => {
                let message = EntryFilterMessage::from(wanted).0;
                let filter = EntryFilter::new(Some(&message)).map_err(|e| status::invalid_plain(&caller, &e))?;
                snapshot.entries_after("").filter(|e| filter.matches(e)).count()
            }
        };
        Ok(Response::new(entry_api::CountEntriesResponse { count: i32::try_from(count).unwrap_or(i32::MAX) }))
    }

    async fn list_entries(
        &self,
        request: Request<entry_api::ListEntriesRequest>,
    ) -> Result<Response<entry_api::ListEntriesResponse>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        let filter = EntryFilter::new(request.filter.as_ref()).map_err(|e| status::invalid_plain(&caller, &e))?;
        let snapshot = self.store.snapshot();
        let matching = snapshot.entries_after(&request.page_token).filter(|e| filter.matches(e));
        let show = |found: &Arc<Entry>| mask::entry(entry::to_wire(found), request.output_mask.as_ref());
        let (entries, next_page_token) = filter::page(matching, request.page_size, |e| e.id.clone(), show)?;
        Ok(Response::new(entry_api::ListEntriesResponse { entries, next_page_token }))
    }

    async fn get_entry(&self, request: Request<entry_api::GetEntryRequest>) -> Result<Response<types::Entry>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        caller.access.about(|| About::entry_id(&request.id));
        if request.id.is_empty() {
            return Err(status::invalid_plain(&caller, "missing ID"));
        }
        let snapshot = self.store.snapshot();
        let found = snapshot.entry(&request.id).ok_or_else(|| Status::not_found("entry not found"))?;
        Ok(Response::new(mask::entry(entry::to_wire(found), request.output_mask.as_ref())))
    }

    async fn batch_create_entry(
        &self,
        request: Request<entry_api::BatchCreateEntryRequest>,
    ) -> Result<Response<entry_api::BatchCreateEntryResponse>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        limit(&caller, request.entries.len())?;
        let mut abouts = caller.access.each(&request.entries, About::entry);
        let now = self.clock.now();
        let wanted: Vec<Result<Arc<Entry>, Status>> =
            request.entries.into_iter().map(|e| self.new_entry(&caller, e, now).map(Arc::new)).collect();
        let mask = request.output_mask;
        let outcomes = self.decide(&caller, move |draft| Echo::each(&wanted, mask, |w, echo| create(draft, w.clone()?, echo))).await?;
        let results = outcomes
            .into_iter()
            .map(|outcome| {
                let (status, shown) = match outcome {
                    Ok(Created::New(entry)) => (status::ok(), Some(entry)),
                    Ok(Created::Similar(entry)) => (similar(), Some(entry)),
                    Err(refusal) => (status::of(&refusal), None),
                };
                caller.access.item(status.as_ref(), || abouts.next().map(|about| named(about, shown.as_ref())));
                entry_api::batch_create_entry_response::Result { status, entry: shown }
            })
            .collect();
        Ok(Response::new(entry_api::BatchCreateEntryResponse { results }))
    }

    async fn batch_update_entry(
        &self,
        request: Request<entry_api::BatchUpdateEntryRequest>,
    ) -> Result<Response<entry_api::BatchUpdateEntryResponse>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        limit(&caller, request.entries.len())?;
        let mut abouts = caller.access.each(&request.entries, About::entry);
        let (wanted, input_mask) = (request.entries, request.input_mask);
        let trust_domain = self.trust_domain.clone();
        let mask = request.output_mask;
        let outcomes = self
            .decide(&caller, move |draft| {
                Echo::each(&wanted, mask, |w, echo| update(draft, w.clone(), input_mask.as_ref(), &trust_domain, echo))
            })
            .await?;
        let results = outcomes
            .into_iter()
            .map(|outcome| {
                let (status, shown) = match outcome {
                    Ok(updated) => (status::ok(), Some(updated)),
                    Err(refusal) => (status::of(&refusal), None),
                };
                caller.access.item(status.as_ref(), || abouts.next());
                entry_api::batch_update_entry_response::Result { status, entry: shown }
            })
            .collect();
        Ok(Response::new(entry_api::BatchUpdateEntryResponse { results }))
    }

    async fn batch_delete_entry(
        &self,
        request: Request<entry_api::BatchDeleteEntryRequest>,
    ) -> Result<Response<entry_api::BatchDeleteEntryResponse>, Status> {
        let caller = Self::caller(&request)?;
        let ids = request.into_inner().ids;
        limit(&caller, ids.len())?;
        let wanted = ids.clone();
        let found = self
            .decide(&caller, move |draft| {
                wanted
                    .iter()
                    .map(|id| {
                        let known = !id.is_empty() && draft.snapshot().entry(id).is_some();
                        if known {
                            draft.change(Change::EntryDelete(id.as_str().into()));
                        }
                        known
                    })
                    .collect::<Vec<_>>()
            })
            .await?;
        let results = ids
            .into_iter()
            .zip(found)
            .map(|(id, found)| {
                let status = match (found, id.is_empty()) {
                    (true, _) => status::ok(),
                    (false, true) => Some(status::item(Code::InvalidArgument, "missing entry ID")),
                    (false, false) => Some(status::item(Code::NotFound, "entry not found")),
                };
                caller.access.item(status.as_ref(), || Some(About::entry_id(&id)));
                entry_api::batch_delete_entry_response::Result { status, id }
            })
            .collect();
        Ok(Response::new(entry_api::BatchDeleteEntryResponse { results }))
    }

    async fn get_authorized_entries(
        &self,
        _: Request<entry_api::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<entry_api::GetAuthorizedEntriesResponse>, Status> {
        Err(polled::elsewhere())
    }

    type SyncAuthorizedEntriesStream = Pin<Box<dyn Stream<Item = Result<entry_api::SyncAuthorizedEntriesResponse, Status>> + Send>>;

    async fn sync_authorized_entries(
        &self,
        _: Request<Streaming<entry_api::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        Err(polled::elsewhere())
    }
}

/// With the ID that the server gave.
fn named(mut about: About, shown: Option<&types::Entry>) -> About {
    if let Some(created) = shown.filter(|created| !created.id.is_empty()) {
        about.entry_id = Some(created.id.clone());
    }
    about
}

fn limit(caller: &Caller, count: usize) -> Result<(), Status> {
    if count > BATCH_MAX {
        return Err(status::invalid_plain(caller, &format!("the batch has {count} items, at most {BATCH_MAX} are allowed")));
    }
    Ok(())
}

/// What became of a request to create an entry, and the entry as the caller gets to see it.
enum Created {
    New(types::Entry),
    Similar(types::Entry),
}

/// The answer to a batch, which repeats its entries: as the caller wants them, and no more than the caller can receive.
struct Echo {
    mask: Option<types::EntryMask>,
    room: Room,
    to_come: usize,
}

impl Echo {
    /// Decides one item after the other.
    fn each<W, T>(
        wanted: &[W],
        mask: Option<types::EntryMask>,
        mut decide: impl FnMut(&W, &mut Self) -> Result<T, Status>,
    ) -> Vec<Result<T, Status>> {
        let mut echo = Self { mask, room: Room::default(), to_come: wanted.len() };
        let mut one = |w| {
            echo.to_come = echo.to_come.saturating_sub(1);
            let outcome = decide(w, &mut echo);
            if let Err(refusal) = &outcome {
                echo.room.take(&batch_create_entry_response::Result { status: status::of(refusal), entry: None });
            }
            outcome
        };
        wanted.iter().map(&mut one).collect()
    }

    /// The entry as it is shown; or a refusal of this item, before anything is done that the caller would not hear of.
    fn of(&mut self, found: &Entry) -> Result<types::Entry, Status> {
        let shown = mask::entry(entry::to_wire(found), self.mask.as_ref());
        // Every kind of batch answers alike; the longest status that comes with an entry is this one.
        let result = batch_create_entry_response::Result { status: similar(), entry: Some(shown) };
        if !self.room.takes_leaving(&result, self.to_come * REFUSAL_BYTES) {
            return Err(Status::resource_exhausted("the answer has no room for this entry; send it in a smaller batch"));
        }
        Ok(result.entry.unwrap_or_default())
    }
}

fn similar() -> Option<types::Status> {
    Some(status::item(Code::AlreadyExists, "similar entry already exists"))
}

impl Api {
    /// Runs a batch in one transaction, in a task of its own: a caller that hangs up does not undo it.
    async fn decide<R: Send + 'static>(
        &self,
        caller: &Caller,
        mut decide: impl FnMut(&mut Draft<'_>) -> R + Send + 'static,
    ) -> Result<R, Status> {
        let (store, actor) = (self.store.clone(), caller.actor());
        let writing = tokio::spawn(async move { store.write(actor, move |draft| Ok(decide(draft))).await });
        writing.await.map_err(|_| Status::unavailable("the server is shutting down"))?.map_err(|e| status::store(&e))
    }

    /// An entry that a client wants created, complete and checked.
    fn new_entry(&self, caller: &Caller, wanted: types::Entry, now: Timestamp) -> Result<Entry, Status> {
        let refuse = |cause: String| status::invalid(caller, "failed to convert entry", cause);
        let mut entry = entry::from_wire(&wanted).map_err(|e| refuse(e.to_string()))?;
        if entry.id.is_empty() {
            entry.id = uuid::Uuid::new_v4().to_string();
        }
        entry.revision_number = 0;
        entry.created_at = Timestamp::from_secs(now.secs());
        entry.check(&self.trust_domain).map_err(|e| refuse(e.to_string()))?;
        Ok(entry)
    }
}

fn create(draft: &mut Draft<'_>, entry: Arc<Entry>, echo: &mut Echo) -> Result<Created, Status> {
    if let Some(similar) = draft.snapshot().similar_entry(&entry) {
        return echo.of(similar).map(Created::Similar);
    }
    if draft.snapshot().entry(&entry.id).is_some() {
        return Err(Status::already_exists("failed to create entry: an entry with this ID already exists"));
    }
    check_federation(draft, &entry, "create")?;
    let shown = echo.of(&entry)?;
    draft.change(Change::EntryPut(entry));
    Ok(Created::New(shown))
}

fn update(
    draft: &mut Draft<'_>,
    wanted: types::Entry,
    input_mask: Option<&types::EntryMask>,
    trust_domain: &countersign_identity::TrustDomain,
    echo: &mut Echo,
) -> Result<types::Entry, Status> {
    let refuse = |cause: String| Status::invalid_argument(format!("failed to convert entry: {cause}"));
    if wanted.id.is_empty() {
        return Err(refuse("missing entry ID".to_owned()));
    }
    let known = Arc::clone(draft.snapshot().entry(&wanted.id).ok_or_else(|| Status::not_found("failed to update entry"))?);
    let merged = mask::entry_update(entry::to_wire(&known), wanted, input_mask);
    let mut updated = entry::from_wire(&merged).map_err(|e| refuse(e.to_string()))?;
    updated.revision_number = known.revision_number + 1;
    updated.created_at = known.created_at;
    updated.check(trust_domain).map_err(|e| refuse(e.to_string()))?;
    if let Some(similar) = draft.snapshot().similar_entry(&updated)
        && similar.id != updated.id
    {
        return Err(Status::already_exists(format!("failed to update entry: entry `{}` is similar", similar.id)));
    }
    check_federation(draft, &updated, "update")?;
    let shown = echo.of(&updated)?;
    draft.change(Change::EntryPut(Arc::new(updated)));
    Ok(shown)
}

/// A trust domain can be federated with once its bundle is here; SPIRE's text and code.
fn check_federation(draft: &Draft<'_>, entry: &Entry, verb: &str) -> Result<(), Status> {
    match entry.federates_with.iter().find(|td| draft.snapshot().bundle(td.name()).is_none()) {
        None => Ok(()),
        Some(td) => Err(Status::internal(format!("failed to {verb} entry: unable to find federated bundle {:?}", td.id().as_str()))),
    }
}
