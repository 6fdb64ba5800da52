//! Node attestation: the exchange with a node that has no identity yet, and what it leaves behind.
//!
//! The one-time secret, the node and the serial number of its SVID are one transaction, in a task of its own: a node that
//! hangs up after its token was redeemed gets the same answer when it asks again with the same token and key.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::csr::Csr;
use countersign_identity::{Entry, Selector, SpiffeId, Timestamp, selector};
use countersign_plugins::Pending;
use countersign_plugins::keys::sha256;
use countersign_plugins::node::{AttestError, Attested, Blame, Circumstances, Conversation, MESSAGE_BYTES_MAX, join_token};
use countersign_store::{Change, Draft, Node, Snapshot, StoreError};
use countersign_wire::agent::{AttestAgentRequest, AttestAgentResponse, attest_agent_request, attest_agent_response};
use countersign_wire::{id, types};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status, Streaming};

use super::{Api, access, status};
use crate::authorities::IssuedX509;
use crate::policy::{Allowed, Caller};
use crate::ratelimit::About;

/// How long a node may take for each step of the exchange.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer is kept for a node that asks again with the same secret and key.
const ANSWER_LIFETIME: Duration = Duration::from_secs(120);
/// Answers kept at once.
const ANSWERS_MAX: usize = 10_000;
/// Secrets remembered as made here and not redeemed yet; 40 bytes each. Those beyond are looked up in the store.
const AWAITED_MAX: usize = 65_536;
/// Turns for admission, one of which each secret has by its hash: enough that strangers who guess do not stand in the way of
/// nodes with a token.
const TURNS: usize = 1024;

/// What the node is sent.
pub(crate) type Answers = Pin<Box<dyn Stream<Item = Result<AttestAgentResponse, Status>> + Send>>;

/// Begins an exchange. Ready with its first answer, as gRPC servers usually send their head with it: one packet, and a failure
/// comes in the head alone.
pub(crate) async fn start(api: Api, caller: Caller, messages: Streaming<AttestAgentRequest>) -> Result<Answers, Status> {
    let (out, mut answers) = mpsc::channel(1);
    caller.access.leave();
    tokio::spawn(async move {
        let mut exchange = Exchange { messages, out: out.clone() };
        let last = match attest(&api, &caller, &mut exchange).await {
            Ok(result) => Ok(AttestAgentResponse { step: Some(attest_agent_response::Step::Result(result)) }),
            Err(Refused { status, detail }) => {
                // Strangers can ask as often as they like: some lines a minute are written, the others counted.
                if api.lines.admit(&About::FailedAttestations) {
                    tracing::warn!(caller = %caller.actor(), error = status.message(), detail, "Agent attestation failed");
                } else {
                    tracing::debug!(caller = %caller.actor(), error = status.message(), detail, "Agent attestation failed");
                }
                api.metrics.refused("attestation");
                Err(status)
            }
        };
        caller.access.end(last.as_ref().map(|_| ()));
        let _ = out.send(last).await;
    });
    let first = answers.recv().await.unwrap_or_else(|| Err(Status::unavailable("the server is shutting down")))?;
    Ok(Box::pin(tokio_stream::once(Ok(first)).chain(ReceiverStream::new(answers))))
}

/// Why a node was not attested: what it is told, and what only the operator may read.
struct Refused {
    status: Status,
    detail: Option<String>,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self { status, detail: None }
    }
}

impl From<AttestError> for Refused {
    fn from(error: AttestError) -> Self {
        let told = format!("failed to attest: {}", error.told());
        let status = match error.blame {
            Blame::Invalid => Status::invalid_argument(told),
            Blame::Denied => Status::permission_denied(told),
            Blame::Failed => Status::internal(told),
        };
        Self { status, detail: error.operator_detail().map(str::to_owned) }
    }
}

struct Exchange {
    messages: Streaming<AttestAgentRequest>,
    out: mpsc::Sender<Result<AttestAgentResponse, Status>>,
}

impl Exchange {
    async fn receive(&mut self) -> Result<attest_agent_request::Step, Status> {
        let next = tokio::time::timeout(STEP_TIMEOUT, self.messages.next());
        match next.await {
            Ok(Some(message)) => message?.step.ok_or_else(|| Status::invalid_argument("malformed param: missing step")),
            Ok(None) => Err(Status::invalid_argument("the attestation ended early")),
            Err(_) => Err(Status::deadline_exceeded("the node took too long to answer")),
        }
    }
}

/// Why there is no answer to a challenge. Only what the node itself said wrongly is held against it: agents take that as
/// final and give up their identity, while a slow node or a broken connection is worth another attempt.
fn unanswered(status: &Status) -> AttestError {
    match status.code() {
        Code::InvalidArgument => AttestError::invalid(status.message()),
        Code::DeadlineExceeded => AttestError::failed(status.message()),
        _ => AttestError::failed("the connection to the node broke").detail(status.message()),
    }
}

impl Conversation for Exchange {
    fn challenge(&mut self, challenge: Vec<u8>) -> Pending<'_, Result<Vec<u8>, AttestError>> {
        Box::pin(async move {
            let message = AttestAgentResponse { step: Some(attest_agent_response::Step::Challenge(challenge)) };
            self.out.send(Ok(message)).await.map_err(|_| AttestError::failed("the node has gone"))?;
            match self.receive().await.map_err(|e| unanswered(&e))? {
                attest_agent_request::Step::ChallengeResponse(answer) if answer.len() <= MESSAGE_BYTES_MAX => Ok(answer),
                attest_agent_request::Step::ChallengeResponse(_) => Err(AttestError::invalid("the answer is too long")),
                attest_agent_request::Step::Params(_) => Err(AttestError::invalid("expected the answer to a challenge")),
            }
        })
    }
}

async fn attest(api: &Api, caller: &Caller, exchange: &mut Exchange) -> Result<attest_agent_response::Result, Refused> {
    let attest_agent_request::Step::Params(params) = exchange.receive().await? else {
        return Err(Status::invalid_argument("malformed param: missing params").into());
    };
    let missing = |what: &str| Status::invalid_argument(format!("malformed param: missing {what}"));
    let data = params.data.ok_or_else(|| missing("attestation data"))?;
    if data.r#type.is_empty() {
        return Err(missing("attestation data type").into());
    }
    if data.payload.is_empty() {
        return Err(missing("attestation data payload").into());
    }
    if data.payload.len() > MESSAGE_BYTES_MAX {
        return Err(Status::invalid_argument("malformed param: the attestation data payload is too long").into());
    }
    let csr = params.params.map(|p| p.csr).filter(|csr| !csr.is_empty()).ok_or_else(|| missing("X509-SVID parameters"))?;
    let csr = Csr::parse(&csr).map_err(|e| Status::invalid_argument(format!("malformed CSR: {e}")))?;

    let attestor = api.node_attestors.load().get(data.r#type.as_str()).cloned().ok_or_else(|| {
        let kind: String = data.r#type.chars().take(64).collect();
        Status::failed_precondition(format!("error getting node attestor: could not find node attestor type {kind:?}"))
    })?;
    let name = attestor.name();
    let about = || access::About { node_attestor_type: Some(name.to_owned()), ..access::About::default() };
    caller.access.about(about);
    let circumstances = Circumstances {
        trust_domain: api.trust_domain.clone(),
        bundle: api.store.snapshot().bundle(api.trust_domain.name()).map(Arc::clone),
        now: api.clock.now(),
        address: caller.proof.address(),
    };
    let attested = attestor.attest(&data.payload, &circumstances, exchange).await?;
    let agent_id = api
        .trust_domain
        .with_path(&format!("/spire/agent{}", attested.path))
        .map_err(|e| Status::internal(format!("failed to attest: the agent's ID is not valid: {e}")))?;
    if !attested.path.strip_prefix('/').and_then(|p| p.strip_prefix(name)).is_some_and(|p| p.starts_with('/')) {
        tracing::warn!(agent_id = %agent_id, node_attestor_type = name, "The agent's ID is not in the agent namespace of its attestor");
    }
    // In a task of its own: from the first durable step on it runs to its end, and what it did can be asked for again.
    let (api, of, id) = (api.clone(), caller.clone(), agent_id.clone());
    let admission = tokio::spawn(async move { admit(&api, &of, name, id, attested, csr).await });
    let admitted = admission.await.map_err(|_| Status::unavailable("the server is shutting down"))??;
    // Only now: the ID of an agent that joins by token shows the token, which is spent only now.
    caller.access.about(|| access::About { agent_id: Some(agent_id.as_str().to_owned()), ..about() });
    Ok(admitted)
}

/// Issues the SVID and keeps the node.
async fn admit(
    api: &Api,
    caller: &Caller,
    attestor: &'static str,
    agent_id: SpiffeId,
    attested: Attested,
    csr: Csr,
) -> Result<attest_agent_response::Result, Status> {
    let banned = || Status::permission_denied("failed to attest: agent is banned");
    // A node that asks again while its first call is still under way waits for that call's answer.
    let _turn = match attested.redeem {
        Some(secret) => Some(api.attested.turn(&secret).await),
        None => None,
    };
    let snapshot = api.store.snapshot();
    let node = snapshot.node(&agent_id);
    if node.is_some_and(|n| n.is_banned()) {
        return Err(banned());
    }
    // Before a signature is spent; the transaction looks again.
    if node.is_some_and(|n| &*n.attestation_type != attestor) {
        return Err(of_another_attestor(&agent_id, attestor));
    }
    let question = attested.redeem.map(|secret| Question { secret, key: sha256(csr.public_key.spki()) });
    // An evicted node is not told its old answer: nothing would let it in with that.
    if let Some(answer) = question.filter(|_| node.is_some()).and_then(|q| api.attested.find(&q, api.clock.now())) {
        tracing::info!(agent_id = %agent_id, "Repeated an answer to a node that asked again");
        return Ok(answer);
    }
    let mut selectors = attested.selectors;
    if api.agent_spiffe_id_as_selector {
        selectors.push(own_selector(&agent_id).map_err(|e| Status::internal(format!("failed to attest: {e}")))?);
    }
    let selectors = selector::sorted(selectors);
    // The secret is looked at before anything is signed, and redeemed with the node; a stranger costs no signature.
    if let Some(secret) = attested.redeem
        && !api.attested.awaits(&secret)
    {
        refuse_unknown_token(api, caller, secret).await?;
    }
    let allowed = Allowed::agent(&agent_id, selectors.clone(), caller.actor(), &api.lifetimes.load());
    let issued = api.authorities.issue_one_x509(allowed, csr.public_key).await.map_err(|e| status::issue(&e))?;
    let node = Node {
        id: agent_id.clone(),
        attestation_type: attestor.into(),
        serial_number: issued.serial_number.clone(),
        expires_at: issued.expires_at,
        new_serial_number: String::new(),
        new_expires_at: Timestamp::EPOCH,
        can_reattest: attested.can_reattest,
        selectors,
    };
    let now = api.clock.now();
    let node = Arc::new(node);
    let redeem = attested.redeem;
    let outcome = api.store.write(caller.actor(), move |draft| keep(draft, &node, redeem, now)).await.map_err(|e| status::store(&e))?;
    // Whatever came of it, the next who shows this secret is looked up before a signature is spent on it.
    if let Some(secret) = redeem {
        api.attested.redeemed(&secret);
    }
    match outcome {
        Kept::Yes => {}
        Kept::Banned => return Err(banned()),
        Kept::OtherAttestor => return Err(of_another_attestor(&agent_id, attestor)),
        Kept::NoToken => return Err(unknown_token()),
        Kept::Expired => return Err(Status::invalid_argument("join token expired")),
    }
    api.saw(&agent_id, None);
    api.metrics.issued("agent_x509", 1);
    tracing::info!(agent_id = %agent_id, caller = %caller.actor(), node_attestor_type = attestor, "Agent attestation request completed");
    let result = attest_agent_response::Result { svid: Some(svid(&agent_id, issued)), reattestable: attested.can_reattest };
    if let Some(question) = question {
        api.attested.keep(question, result.clone(), now);
    }
    Ok(result)
}

/// The refusal of a node whose ID is that of a node which another attestor let in.
fn of_another_attestor(agent_id: &SpiffeId, attestor: &str) -> Status {
    let hint = "evict that agent if this node is to take its place";
    tracing::warn!(agent_id = %agent_id, node_attestor_type = attestor, hint, "Another attestor let in the agent of this ID");
    Status::permission_denied("failed to attest: an agent of this ID was attested in another way")
}

fn unknown_token() -> Status {
    Status::invalid_argument("failed to attest: join token does not exist or has already been used")
}

/// Refuses a secret that nobody made, before the work of an issuance is spent on it. Asked of the store only for secrets that
/// this server did not make since its start: it is a second wait for the store's writer.
async fn refuse_unknown_token(api: &Api, caller: &Caller, secret: [u8; 32]) -> Result<(), Status> {
    let known = api.store.write(caller.actor(), move |draft| draft.token_known(&secret)).await.map_err(|e| status::store(&e))?;
    if known { Ok(()) } else { Err(unknown_token()) }
}

enum Kept {
    Yes,
    Banned,
    OtherAttestor,
    NoToken,
    Expired,
}

/// One transaction: the secret is redeemed, the node is there, and the alias its secret grants.
fn keep(draft: &mut Draft<'_>, node: &Arc<Node>, redeem: Option<[u8; 32]>, now: Timestamp) -> Result<Kept, StoreError> {
    if let Some(present) = draft.snapshot().node(&node.id) {
        if present.is_banned() {
            return Ok(Kept::Banned);
        }
        // A template whose names a node chose must not make it the node of another attestor.
        if present.attestation_type != node.attestation_type {
            return Ok(Kept::OtherAttestor);
        }
    }
    if let Some(secret) = redeem {
        let Some(token) = draft.token_redeem(&secret)? else { return Ok(Kept::NoToken) };
        if token.expires_at <= now {
            return Ok(Kept::Expired);
        }
        if let Some(alias) = token.alias {
            let entry = alias_entry(&node.id, alias, now)?;
            if draft.snapshot().similar_entry(&entry).is_none() {
                draft.change(Change::EntryPut(Arc::new(entry)));
            }
        }
    }
    draft.change(Change::NodePut(Arc::clone(node)));
    Ok(Kept::Yes)
}

/// The selector that names an agent by its own SPIFFE ID.
fn own_selector(agent_id: &SpiffeId) -> Result<Selector, selector::SelectorError> {
    Selector::new("spiffe_id", agent_id.as_str())
}

/// The entry that gives a node that joined by token a name of the administrator's choice, as SPIRE shapes it.
fn alias_entry(agent_id: &SpiffeId, alias: SpiffeId, now: Timestamp) -> Result<Entry, StoreError> {
    let selector = own_selector(agent_id).map_err(|e| StoreError::Failed(e.to_string()))?;
    Ok(Entry {
        id: uuid::Uuid::new_v4().to_string(),
        spiffe_id: alias,
        parent_id: agent_id.clone(),
        selectors: vec![selector],
        x509_svid_ttl: None,
        jwt_svid_ttl: None,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Vec::new(),
        revision_number: 0,
        store_svid: false,
        hint: String::new(),
        created_at: now,
        additional_attributes: countersign_identity::entry::AdditionalAttributes::default(),
    })
}

/// The alias entries that join tokens created for this agent.
pub(crate) fn alias_entries(snapshot: &Snapshot, agent_id: &SpiffeId) -> Vec<Arc<str>> {
    if !agent_id.path().starts_with(&format!("/spire/agent/{}/", join_token::NAME)) {
        return Vec::new();
    }
    snapshot
        .entries_below(agent_id)
        .filter(|e| matches!(e.selectors.as_slice(), [s] if s.kind() == "spiffe_id" && s.value() == agent_id.as_str()))
        .map(|e| Arc::from(e.id.as_str()))
        .collect()
}

/// An issued certificate as a message. Self-signed authorities need no intermediates.
pub(crate) fn svid(spiffe_id: &SpiffeId, issued: IssuedX509) -> types::X509svid {
    types::X509svid {
        cert_chain: vec![issued.certificate],
        id: Some(id::to_wire(spiffe_id)),
        expires_at: issued.expires_at.secs(),
        hint: String::new(),
    }
}

/// A one-time secret together with the key it was presented with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Question {
    secret: [u8; 32],
    key: [u8; 32],
}

/// Answers given a short time ago, turns by which calls with the same secret follow each other, and the secrets (by hash,
/// with their end) that are awaited. The last only says that asking is worth a signature; the store alone redeems.
pub(crate) struct Recent {
    awaited: Mutex<HashMap<[u8; 32], Timestamp>>,
    answers: Mutex<HashMap<Question, (Timestamp, attest_agent_response::Result)>>,
    turns: Vec<tokio::sync::Mutex<()>>,
}

impl Default for Recent {
    fn default() -> Self {
        Self { awaited: Mutex::default(), answers: Mutex::default(), turns: (0..TURNS).map(|_| tokio::sync::Mutex::default()).collect() }
    }
}

impl Recent {
    /// Remembers a secret that was just made.
    pub(crate) fn await_secret(&self, secret: [u8; 32], expires_at: Timestamp, now: Timestamp) {
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        if awaited.len() >= AWAITED_MAX {
            awaited.retain(|_, end| *end > now);
        }
        if awaited.len() < AWAITED_MAX {
            awaited.insert(secret, expires_at);
        }
    }

    fn awaits(&self, secret: &[u8; 32]) -> bool {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner).contains_key(secret)
    }

    fn redeemed(&self, secret: &[u8; 32]) {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner).remove(secret);
    }

    async fn turn(&self, secret: &[u8; 32]) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let [first, second, ..] = secret;
        Some(self.turns.get(usize::from(u16::from_be_bytes([*first, *second])) % TURNS)?.lock().await)
    }

    fn find(&self, question: &Question, now: Timestamp) -> Option<attest_agent_response::Result> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(question).filter(|(at, _)| now.since(*at) < ANSWER_LIFETIME).map(|(_, answer)| answer.clone())
    }

    fn keep(&self, question: Question, answer: attest_agent_response::Result, now: Timestamp) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= ANSWERS_MAX {
            answers.retain(|_, (at, _)| now.since(*at) < ANSWER_LIFETIME);
        }
        if answers.len() < ANSWERS_MAX {
            answers.insert(question, (now, answer));
        }
    }
}
