//! Registration entries.

use std::pin::Pin;
use std::sync::Arc;

use countersign_identity::{Entry, Timestamp};
use countersign_store::{Change, Draft};
use countersign_wire::entry_api::{self, entry_server};
use countersign_wire::{entry, mask, types};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::filter::{self, EntryFilter, EntryFilterMessage};
use super::{Api, status, sync};
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
        self.audit(&caller, "CountEntries", "", "success");
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
        let (entries, next_page_token) = filter::page(matching, request.page_size, |e| e.id.clone());
        let entries = entries.into_iter().map(|e| mask::entry(entry::to_wire(e), request.output_mask.as_ref())).collect();
        self.audit(&caller, "ListEntries", "", "success");
        Ok(Response::new(entry_api::ListEntriesResponse { entries, next_page_token }))
    }

    async fn get_entry(&self, request: Request<entry_api::GetEntryRequest>) -> Result<Response<types::Entry>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        if request.id.is_empty() {
            return Err(status::invalid_plain(&caller, "missing ID"));
        }
        let snapshot = self.store.snapshot();
        let found = snapshot.entry(&request.id).ok_or_else(|| Status::not_found("entry not found"))?;
        self.audit(&caller, "GetEntry", &request.id, "success");
        Ok(Response::new(mask::entry(entry::to_wire(found), request.output_mask.as_ref())))
    }

    async fn batch_create_entry(
        &self,
        request: Request<entry_api::BatchCreateEntryRequest>,
    ) -> Result<Response<entry_api::BatchCreateEntryResponse>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        limit(&caller, request.entries.len())?;
        let now = self.clock.now();
        let wanted: Vec<Result<Arc<Entry>, Status>> =
            request.entries.into_iter().map(|e| self.new_entry(&caller, e, now).map(Arc::new)).collect();
        let outcomes = self
            .decide(&caller, move |draft| wanted.iter().map(|w| w.clone().map(|entry| create(draft, entry))).collect::<Vec<_>>())
            .await?;
        let mask = request.output_mask;
        let results = outcomes
            .into_iter()
            .map(|outcome| {
                let (status, found) = match outcome {
                    Ok(Created::New(entry)) => (status::ok(), Some(entry)),
                    Ok(Created::Similar(entry)) => (Some(status::item(Code::AlreadyExists, "similar entry already exists")), Some(entry)),
                    Ok(Created::Refused(refusal)) | Err(refusal) => (status::of(&refusal), None),
                };
                let shown = found.map(|e| mask::entry(entry::to_wire(&e), mask.as_ref()));
                let subject = shown.as_ref().map_or("", |e| e.id.as_str());
                self.audit(&caller, "BatchCreateEntry", subject, status.as_ref().map_or("", |s| s.message.as_str()));
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
        let (wanted, input_mask) = (request.entries, request.input_mask);
        let trust_domain = self.trust_domain.clone();
        let outcomes = self
            .decide(&caller, move |draft| {
                wanted.iter().map(|w| update(draft, w.clone(), input_mask.as_ref(), &trust_domain)).collect::<Vec<_>>()
            })
            .await?;
        let mask = request.output_mask;
        let results = outcomes
            .into_iter()
            .map(|outcome| {
                let (status, shown) = match outcome {
                    Ok(updated) => (status::ok(), Some(mask::entry(entry::to_wire(&updated), mask.as_ref()))),
                    Err(refusal) => (status::of(&refusal), None),
                };
                let subject = shown.as_ref().map_or("", |e| e.id.as_str());
                self.audit(&caller, "BatchUpdateEntry", subject, status.as_ref().map_or("", |s| s.message.as_str()));
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
                self.audit(&caller, "BatchDeleteEntry", &id, status.as_ref().map_or("", |s| s.message.as_str()));
                entry_api::batch_delete_entry_response::Result { status, id }
            })
            .collect();
        Ok(Response::new(entry_api::BatchDeleteEntryResponse { results }))
    }

    async fn get_authorized_entries(
        &self,
        request: Request<entry_api::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<entry_api::GetAuthorizedEntriesResponse>, Status> {
        let agent = Self::agent(&request)?;
        self.saw(&agent.spiffe_id, None);
        let mask = request.into_inner().output_mask;
        let entries = sync::authorized(self, &agent.spiffe_id).values().map(|e| mask::entry(entry::to_wire(e), mask.as_ref())).collect();
        Ok(Response::new(entry_api::GetAuthorizedEntriesResponse { entries }))
    }

    type SyncAuthorizedEntriesStream = Pin<Box<dyn Stream<Item = Result<entry_api::SyncAuthorizedEntriesResponse, Status>> + Send>>;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<entry_api::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        let agent = Self::agent(&request)?;
        self.saw(&agent.spiffe_id, None);
        Ok(Response::new(sync::start(self.clone(), agent.spiffe_id.clone(), request.into_inner())))
    }
}

fn limit(caller: &Caller, count: usize) -> Result<(), Status> {
    if count > BATCH_MAX {
        return Err(status::invalid_plain(caller, &format!("the batch has {count} items, at most {BATCH_MAX} are allowed")));
    }
    Ok(())
}

/// What became of a request to create an entry.
enum Created {
    New(Arc<Entry>),
    Similar(Arc<Entry>),
    Refused(Status),
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

fn create(draft: &mut Draft<'_>, entry: Arc<Entry>) -> Created {
    if let Some(similar) = draft.snapshot().similar_entry(&entry) {
        return Created::Similar(Arc::clone(similar));
    }
    if draft.snapshot().entry(&entry.id).is_some() {
        return Created::Refused(Status::already_exists("failed to create entry: an entry with this ID already exists"));
    }
    if let Err(refusal) = check_federation(draft, &entry, "create") {
        return Created::Refused(refusal);
    }
    draft.change(Change::EntryPut(Arc::clone(&entry)));
    Created::New(entry)
}

fn update(
    draft: &mut Draft<'_>,
    wanted: types::Entry,
    input_mask: Option<&types::EntryMask>,
    trust_domain: &countersign_identity::TrustDomain,
) -> Result<Arc<Entry>, Status> {
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
    let updated = Arc::new(updated);
    draft.change(Change::EntryPut(Arc::clone(&updated)));
    Ok(updated)
}

/// A trust domain can be federated with once its bundle is here; SPIRE's text and code.
fn check_federation(draft: &Draft<'_>, entry: &Entry, verb: &str) -> Result<(), Status> {
    match entry.federates_with.iter().find(|td| draft.snapshot().bundle(td.name()).is_none()) {
        None => Ok(()),
        Some(td) => Err(Status::internal(format!("failed to {verb} entry: unable to find federated bundle {:?}", td.id().as_str()))),
    }
}
