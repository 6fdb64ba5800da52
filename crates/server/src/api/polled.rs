//! What SPIRE's agents ask for every five seconds, each of them: their entries and the trust domain's bundle. Nothing has
//! changed nearly always, so the answers are kept as the bytes that are sent.
//!
//! A kept answer is given again only while it is what would be made anew: nothing in the log since concerns the agent, and no
//! entry in it is over.

use std::collections::HashMap;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, Bytes};
use countersign_identity::{Bundle, Entry, SpiffeId, Timestamp};
use countersign_store::{Concern, Cursor, Snapshot, Transaction};
use countersign_transport::limits::MESSAGE_BYTES_MAX;
use countersign_wire::bundle_api::GetBundleRequest;
use countersign_wire::entry_api::{GetAuthorizedEntriesRequest, GetAuthorizedEntriesResponse, SyncAuthorizedEntriesRequest};
use countersign_wire::types::{BundleMask, EntryMask};
use countersign_wire::{bundle, entry, mask};
use prost::Message;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::{Body, StdError};
use tonic::server::Grpc;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::{ProstCodec, ProstDecoder};
use tower::{Service, service_fn};

use super::Api;
use super::access::About;
use super::room::{self, Room};
use super::sync::{self, Answer};

const SYNC: &str = "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries";
const ENTRIES: &str = "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries";
const BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/GetBundle";
/// The methods that are answered here.
pub(crate) const METHODS: [&str; 3] = [SYNC, ENTRIES, BUNDLE];

/// Bytes of all kept answers: those of 16,000 agents with twenty entries each. Beyond, answers are made anew.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Agents that have not asked for this long have gone, or ask otherwise by now.
const KEPT_UNUSED_MAX: Duration = Duration::from_secs(60);
/// What a kept answer costs beside its messages, an empty one too: key, row and allocations.
const KEPT_OVERHEAD_BYTES: usize = 512;
/// Transactions looked through for what concerns an agent; with more, making its answer anew is cheaper.
const TRANSACTIONS_MAX: usize = 64;
/// Changes in them looked through: somebody who imports a hundred thousand entries must not have each agent look at all of them.
const CHANGES_MAX: usize = 256;

/// For the methods of the generated services whose calls come here instead.
pub(super) fn elsewhere() -> Status {
    Status::internal("BUG: this call is answered from bytes that are encoded already")
}

/// Which answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Sync,
    Entries,
}

/// An agent's answer.
#[derive(Debug, Clone)]
struct Kept {
    cursor: Cursor,
    mask: Option<EntryMask>,
    answer: Answer,
    /// When the first of its entries is over.
    ends: Option<Timestamp>,
    used: Duration,
}

impl Answer {
    fn bytes(&self) -> usize {
        KEPT_OVERHEAD_BYTES + self.messages.iter().map(Bytes::len).sum::<usize>()
    }
}

/// The answers that are kept.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    entries: Mutex<OfAgents>,
    bundle: Mutex<OfBundle>,
}

/// The answers with one bundle, for each mask.
#[derive(Debug, Default)]
struct OfBundle {
    bundle: Option<Arc<Bundle>>,
    kept: HashMap<Option<BundleMask>, Bytes>,
}

#[derive(Debug, Default)]
struct OfAgents {
    kept: HashMap<(SpiffeId, Kind), Kept>,
    bytes: usize,
    swept: Duration,
}

impl OfAgents {
    fn put(&mut self, key: (SpiffeId, Kind), kept: Kept) {
        let (now, bytes) = (kept.used, kept.answer.bytes());
        if let Some(before) = self.kept.remove(&key) {
            self.bytes = self.bytes.saturating_sub(before.answer.bytes());
        }
        // Also where there is room: nodes come and go under new names for years.
        if now.saturating_sub(self.swept) >= KEPT_UNUSED_MAX {
            self.kept.retain(|_, kept| now.saturating_sub(kept.used) < KEPT_UNUSED_MAX);
            self.bytes = self.kept.values().map(|kept| kept.answer.bytes()).sum();
            self.swept = now;
        }
        if self.bytes + bytes <= KEPT_BYTES_MAX {
            self.bytes += bytes;
            self.kept.insert(key, kept);
        }
    }
}

impl Answers {
    fn lock(&self) -> MutexGuard<'_, OfAgents> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kept answer, if it is still what would be made anew.
    fn find(&self, api: &Api, snapshot: &Snapshot, key: &(SpiffeId, Kind), mask: Option<EntryMask>) -> Option<Answer> {
        // Compared outside the lock, which all agents share.
        let kept = self.lock().kept.get(key).cloned()?;
        if kept.mask != mask || kept.ends.is_some_and(|end| end <= api.clock.now()) {
            return None;
        }
        let now = snapshot.cursor();
        if kept.cursor != now {
            let few = |transactions: &Vec<Arc<Transaction>>| {
                transactions.len() <= TRANSACTIONS_MAX && transactions.iter().map(|t| t.changes.len()).sum::<usize>() <= CHANGES_MAX
            };
            let transactions = snapshot.since(&kept.cursor).filter(few)?;
            match snapshot.concern_of(&key.0, &transactions) {
                Concern::Entries(ids) if ids.is_empty() => {}
                Concern::Entries(_) | Concern::All => return None,
            }
        }
        // Whoever replaced it meanwhile made a newer one.
        if let Some(same) = self.lock().kept.get_mut(key).filter(|same| same.cursor == kept.cursor) {
            (same.cursor, same.used) = (now, api.clock.steady());
        }
        Some(kept.answer)
    }

    fn of_agent(
        &self,
        api: &Api,
        agent: &SpiffeId,
        kind: Kind,
        mask: Option<EntryMask>,
        make: impl FnOnce(&[&Arc<Entry>]) -> Result<Answer, Status>,
    ) -> Result<Answer, Status> {
        let snapshot = api.store.snapshot();
        let key = (agent.clone(), kind);
        if let Some(answer) = self.find(api, &snapshot, &key, mask) {
            return Ok(answer);
        }
        let entries = sync::authorized(api, &snapshot, agent);
        let all: Vec<&Arc<Entry>> = entries.values().collect();
        let answer = make(&all)?;
        let ends = entries.values().filter_map(|entry| entry.expires_at).min();
        let kept = Kept { cursor: snapshot.cursor(), mask, answer: answer.clone(), ends, used: api.clock.steady() };
        self.lock().put(key, kept);
        Ok(answer)
    }

    /// What an exchange begins with.
    pub(crate) fn sync(&self, api: &Api, agent: &SpiffeId, mask: Option<EntryMask>) -> Result<Answer, Status> {
        self.of_agent(api, agent, Kind::Sync, mask, |entries| Ok(sync::first(entries, mask.as_ref())))
    }

    fn entries(&self, api: &Api, agent: &SpiffeId, mask: Option<EntryMask>) -> Result<Bytes, Status> {
        let answer = self.of_agent(api, agent, Kind::Entries, mask, |entries| {
            let mut room = Room::default();
            // SPIRE's agents keep the limit of gRPC, and say in their log what a refusal says.
            let show = |found: &&Arc<Entry>| {
                let shown = mask::entry(entry::to_wire(found), mask.as_ref());
                if room.takes(&shown) { Ok(shown) } else { Err(room::too_large("let the agent use SyncAuthorizedEntries")) }
            };
            let entries = entries.iter().map(show).collect::<Result<_, _>>()?;
            let message = GetAuthorizedEntriesResponse { entries }.encode_to_vec();
            Ok(Answer { messages: [message.into()].into(), is_whole: true })
        })?;
        Ok(answer.messages.first().cloned().unwrap_or_default())
    }

    fn bundle(&self, own: &Arc<Bundle>, wanted: Option<BundleMask>) -> Bytes {
        let mut held = self.bundle.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.bundle.as_ref().is_some_and(|of| Arc::ptr_eq(of, own)) {
            *held = OfBundle { bundle: Some(Arc::clone(own)), kept: HashMap::new() };
        }
        let make = || mask::bundle(bundle::to_wire(own), wanted.as_ref()).encode_to_vec().into();
        held.kept.entry(wanted).or_insert_with(make).clone()
    }
}

/// The service of [`METHODS`].
#[derive(Clone)]
pub(crate) struct Polled(pub(crate) Api);

impl<B> Service<http::Request<B>> for Polled
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let api = self.0.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                SYNC => {
                    let exchange = service_fn(|asked: Request<Streaming<SyncAuthorizedEntriesRequest>>| {
                        let api = api.clone();
                        async move {
                            let caller = Api::caller(&asked)?;
                            let agent = Api::agent(&asked)?;
                            api.saw(&agent.spiffe_id, None);
                            sync::start(api, caller, agent.spiffe_id.clone(), asked.into_inner()).await.map(Response::new)
                        }
                    });
                    encoded().streaming(exchange, request).await
                }
                ENTRIES => {
                    let list = service_fn(|asked: Request<GetAuthorizedEntriesRequest>| {
                        let api = api.clone();
                        async move {
                            let agent = Api::agent(&asked)?;
                            api.saw(&agent.spiffe_id, None);
                            api.polled.entries(&api, &agent.spiffe_id, asked.into_inner().output_mask).map(Response::new)
                        }
                    });
                    encoded().unary(list, request).await
                }
                _ => {
                    let own = service_fn(|asked: Request<GetBundleRequest>| {
                        let api = api.clone();
                        async move {
                            Api::caller(&asked)?.access.about(|| About::trust_domain(api.trust_domain.name()));
                            let snapshot = api.store.snapshot();
                            let own = snapshot.bundle(api.trust_domain.name()).ok_or_else(|| Status::not_found("bundle not found"))?;
                            Ok::<_, Status>(Response::new(api.polled.bundle(own, asked.into_inner().output_mask)))
                        }
                    });
                    encoded().unary(own, request).await
                }
            })
        })
    }
}

fn encoded<Q: Message + Default + Send + 'static>() -> Grpc<Encoded<Q>> {
    Grpc::new(Encoded(PhantomData)).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Reads messages, and writes bytes that are one.
struct Encoded<Q>(PhantomData<Q>);

impl<Q: Message + Default + Send + 'static> Codec for Encoded<Q> {
    type Encode = Bytes;
    type Decode = Q;
    type Encoder = AsTheyAre;
    type Decoder = ProstDecoder<Q>;

    fn encoder(&mut self) -> AsTheyAre {
        AsTheyAre
    }

    fn decoder(&mut self) -> ProstDecoder<Q> {
        ProstCodec::<Q, Q>::default().decoder()
    }
}

struct AsTheyAre;

impl Encoder for AsTheyAre {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
