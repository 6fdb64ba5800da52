//! The admin API: why a process gets the identities it gets, or none.
//!
//! The socket is open to everybody who can reach it; who may ask what goes by the credentials the kernel tells. Root and the
//! agent's own user may ask about every process, a process only about itself, and of other people's entries it is told only
//! those that it has a selector of.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use countersign_identity::{Entry, Selector, SpiffeId, Timestamp, selector};
use countersign_transport::clock::SharedClock;
use countersign_transport::limits::MESSAGE_BYTES_MAX;
use countersign_transport::observe::LogLevels;
use countersign_transport::peer::Peer;
use countersign_wire::agent_admin::admin_server::{self, AdminServer};
use countersign_wire::agent_admin::explain_request::Subject;
use countersign_wire::agent_admin::{
    Agent, AttestorVerdict, Denial, EntryName, ExplainRequest, ExplainResponse, MatchingEntry, NearEntry, Process, Server,
};
use countersign_wire::agent_debug::debug_server::DebugServer;
use countersign_wire::agent_logger::logger_server::LoggerServer;
use countersign_wire::delegated_identity::delegated_identity_server::DelegatedIdentityServer;
use countersign_wire::{id, types};
use tokio::sync::Semaphore;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Response, Status};

use super::Api;
use super::admission::Admission;
use crate::attest::{Attestors, Verdict};
use crate::cache::hint_owners;
use crate::config::Config;
use crate::denials::Denied;
use crate::explain::{self, Found, Holding, Near, Reach, Readiness};
use crate::node::Node;

/// How long an attestor may take for an explanation. Longer than any takes that works, and short enough for whoever waits. It
/// ends what waits and nothing that works in place: `unix` hashes a program to its end, however large a file its
/// `workload_size_limit` lets through.
const ATTESTOR_PATIENCE: Duration = Duration::from_secs(5);
/// Questions of root and the agent's user answered at once; more wait their turn.
const OPERATORS_MAX: usize = 4;
/// Questions of all others answered at once: each costs an attestation and a look at every entry, and the agent has workloads
/// to serve. More are refused.
const OTHERS_MAX: usize = 2;
/// Bytes of selectors told: a process may have 65,536 groups, and a message four MiB.
const SELECTORS_BYTES_MAX: usize = 1 << 20;
/// The last of gRPC's codes.
const LAST_CODE: i32 = 16;
/// Longest text of a server told, in characters: a sentence with a cause.
const TEXT_CHARS_MAX: usize = 1024;

/// The admin API. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Admin(pub(super) Arc<Context>);

/// What the services of the admin socket work with. One for the process.
pub(super) struct Context {
    node: Arc<Node>,
    attestors: Attestors,
    clock: SharedClock,
    /// The agent's own user.
    uid: u32,
    /// What there is once the node has joined.
    joined: OnceLock<Api>,
    /// Steady time at the start.
    started: Duration,
    /// Who may have the identities of others.
    pub(super) delegates: Vec<SpiffeId>,
    pub(super) log_levels: Arc<dyn LogLevels>,
    operators: Semaphore,
    others: Semaphore,
}

/// What is asked about.
enum About {
    /// A process that runs.
    Process(Peer),
    /// A process that has ended, and was denied before that.
    Denied(Denied),
    Selectors(Vec<Selector>),
}

impl Admin {
    pub(crate) fn new(node: Arc<Node>, attestors: Attestors, clock: SharedClock, config: &Config) -> Self {
        tracing::info!(launch_log_level = config.log_levels.launch(), "Logger service configured");
        Self(Arc::new(Context {
            node,
            attestors,
            started: clock.steady(),
            clock,
            delegates: config.authorized_delegates.clone(),
            log_levels: Arc::clone(&config.log_levels),
            uid: rustix::process::geteuid().as_raw(),
            joined: OnceLock::new(),
            operators: Semaphore::new(OPERATORS_MAX),
            others: Semaphore::new(OTHERS_MAX),
        }))
    }

    /// From now on there are entries and SVIDs to tell of.
    pub(crate) fn joined(&self, api: &Api) {
        // Called once; a second call would change nothing.
        let _ = self.0.joined.set(api.clone());
    }

    /// The services of the admin socket, which is this file: ours, and SPIRE's for whoever its mode would let in.
    pub(crate) fn routes(&self, socket: &Path) -> Routes {
        let admission = Admission::new(socket);
        let delegated = DelegatedIdentityServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let debug = DebugServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let logger = LoggerServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Routes::new(AdminServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(InterceptedService::new(delegated, admission.clone()))
            .add_service(InterceptedService::new(debug, admission.clone()))
            .add_service(InterceptedService::new(logger, admission))
    }

    /// What there is once the node has joined; before that nobody has an identity.
    pub(super) fn api(&self) -> Result<&Api, Status> {
        self.0.joined.get().ok_or_else(|| Status::unavailable("the agent has not joined its trust domain yet"))
    }

    /// Whether workloads can be served.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.joined.get().is_some_and(Api::is_healthy)
    }

    /// How long the agent has been running.
    pub(super) fn uptime(&self) -> Duration {
        self.0.clock.steady().saturating_sub(self.0.started)
    }

    fn is_operator(&self, peer: &Peer) -> bool {
        peer.uid == 0 || peer.uid == self.0.uid
    }

    /// Whom a caller asks about, if it may.
    fn subject(&self, asker: &Peer, subject: Option<Subject>) -> Result<About, Status> {
        match subject {
            None => Ok(About::Process(asker.clone())),
            Some(Subject::Pid(pid)) if pid == asker.pid => Ok(About::Process(asker.clone())),
            Some(_) if !self.is_operator(asker) => {
                tracing::warn!(pid = asker.pid, uid = asker.uid, "Refused to explain another process");
                Err(Status::permission_denied(format!(
                    "only root, the agent's own user (uid {}), and a process about itself may ask; you are uid {}",
                    self.0.uid, asker.uid
                )))
            }
            Some(Subject::Pid(pid)) => match Peer::of_process(pid) {
                Ok(peer) => Ok(About::Process(peer)),
                Err(_) => self.remembered(pid).ok_or_else(|| {
                    Status::not_found(format!("no process has the pid {pid} on the agent's node; it has ended, or never was"))
                }),
            },
            Some(Subject::Selectors(set)) => {
                let selectors = id::selectors_from_wire(&set.selectors).map_err(|e| Status::invalid_argument(e.to_string()))?;
                if selectors.is_empty() {
                    return Err(Status::invalid_argument("no selectors are given"));
                }
                Ok(About::Selectors(selectors))
            }
        }
    }

    fn remembered(&self, pid: u32) -> Option<About> {
        self.0.joined.get()?.denials.of(pid).map(About::Denied)
    }

    async fn answer(&self, about: About, reach: Reach) -> Result<ExplainResponse, Status> {
        let mut answer = ExplainResponse::default();
        let mut is_attested = true;
        let mut forgotten = 0;
        let selectors = match about {
            About::Process(peer) => {
                let verdicts = self.0.attestors.ask(&peer, Some(ATTESTOR_PATIENCE)).await;
                is_attested = verdicts.iter().any(|v| v.found.is_ok());
                let process = Process {
                    pid: peer.pid,
                    uid: peer.uid,
                    gid: peer.gid,
                    program: peer.path().map(|p| p.display().to_string()).unwrap_or_default(),
                    has_ended: false,
                };
                answer.attestors = verdicts.iter().map(verdict_to_wire).collect();
                // What was found belongs to the process only if it still lives.
                if !peer.is_alive() {
                    return Err(Status::not_found(format!("the process {} has ended while it was looked at", peer.pid)));
                }
                answer.process = Some(process);
                let denied = self.0.joined.get().and_then(|api| api.denials.of(peer.pid));
                answer.last_denial = denied.filter(|d| may_be_told(d, peer.uid, reach)).map(|d| denial_to_wire(&d));
                selector::sorted(verdicts.into_iter().filter_map(|v| v.found.ok()).flatten().collect())
            }
            About::Denied(denied) => {
                answer.process =
                    Some(Process { pid: denied.pid, uid: denied.uid, gid: denied.gid, program: String::new(), has_ended: true });
                answer.last_denial = Some(denial_to_wire(&denied));
                forgotten = denied.selectors_left_out;
                denied.selectors.to_vec()
            }
            About::Selectors(selectors) => selectors,
        };
        let line = self.0.node.standing.line();
        let operator = reach == Reach::Everything;
        let (last_error_at, last_error) = line.last_error.filter(|_| operator).unwrap_or_default();
        let mut server = Server {
            address: self.0.node.server_address(),
            connected: line.connected,
            since: line.since.secs(),
            last_error,
            last_error_at: last_error_at.secs(),
            last_contact: 0,
            revision: 0,
        };
        let mut readiness = Readiness { attested: is_attested, joined: false, entries_known: false, connected: line.connected };
        let mut agent = Agent::default();
        let mut holdings = Vec::new();
        if let Some(api) = self.0.joined.get() {
            let svid = api.sync.svid();
            readiness.joined = svid.is_some();
            readiness.entries_known = api.cache.is_caught_up();
            server.last_contact = api.sync.last_contact().secs();
            server.revision = api.cache.revision();
            let now = self.0.clock.now();
            let (cache, wanted) = (Arc::clone(&api.cache), selectors.clone());
            // In a thread of its own: with very many entries it would hold up a worker that serves workloads.
            let search = move || {
                let mut entries = cache.entries();
                entries.retain(|entry| !entry.names_a_node());
                (entries.len(), explain::search(&entries, &wanted, reach, now))
            };
            let searched = tokio::task::spawn_blocking(search).await;
            let (entries, found) = searched.map_err(|_| Status::unavailable("the agent is shutting down"))?;
            agent = Agent {
                spiffe_id: svid.as_ref().map(|s| s.id.to_string()).unwrap_or_default(),
                svid_expires_at: svid.as_ref().map_or(0, |s| s.expires_at.secs()),
                entries: number(entries),
                entries_known: readiness.entries_known,
                svids_held: number(api.cache.svids_held()),
                usual_parent_id: String::new(),
            };
            if operator {
                agent.usual_parent_id = found.usual_parent.as_ref().map(ToString::to_string).unwrap_or_default();
            }
            (answer.matching, holdings) = matching(api, &found, reach, now);
            answer.matching_left_out = number(found.matching_left_out);
            answer.nearest = found.nearest.iter().map(|near| near_to_wire(near, now)).collect();
            answer.nearest_left_out = number(found.nearest_left_out);
        }
        (answer.selectors, answer.selectors_left_out) = shown(&selectors);
        answer.selectors_left_out = answer.selectors_left_out.saturating_add(number(forgotten));
        answer.server = Some(server);
        answer.agent = Some(agent);
        answer.conclusion = explain::conclude(readiness, &holdings).into();
        Ok(answer)
    }
}

#[tonic::async_trait]
impl admin_server::Admin for Admin {
    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let asker = request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("BUG: a call without peer"))?;
        let about = self.subject(&asker, request.into_inner().subject)?;
        let closing = |_| Status::unavailable("the agent is shutting down");
        let (reach, _turn) = if self.is_operator(&asker) {
            (Reach::Everything, self.0.operators.acquire().await.map_err(closing)?)
        } else {
            let busy = |_| Status::resource_exhausted("the agent explains others right now, try again in a moment");
            (Reach::Shared, self.0.others.try_acquire().map_err(busy)?)
        };
        tracing::debug!(pid = asker.pid, uid = asker.uid, "Explains");
        self.answer(about, reach).await.map(Response::new)
    }
}

/// What is held for each entry that matches.
fn matching(api: &Api, found: &Found, reach: Reach, now: Timestamp) -> (Vec<MatchingEntry>, Vec<Holding>) {
    let owners = hint_owners(found.matching.iter());
    let one = |entry: &Arc<Entry>| {
        let held = api.cache.identity(&entry.id);
        let svid = held.as_ref().and_then(|h| h.svid.as_ref()).filter(|s| s.expires_at > now);
        let failure = held.as_ref().and_then(|h| h.failure.as_deref()).unwrap_or_default();
        let progress = api.rotator.progress(&entry.id);
        let hidden_by = owners.get(&entry.hint).filter(|owner| **owner != entry.id).cloned().unwrap_or_default();
        let holding = Holding { has_svid: svid.is_some(), has_failed: !failure.is_empty(), is_hidden: !hidden_by.is_empty() };
        let told = MatchingEntry {
            entry: Some(name_to_wire(entry)),
            svid_expires_at: svid.map_or(0, |s| s.expires_at.secs()),
            failure: match reach {
                Reach::Everything => failure.chars().take(TEXT_CHARS_MAX).collect(),
                Reach::Shared => code_alone(failure),
            },
            failed_attempts: progress.failed_attempts,
            in_flight: progress.in_flight,
            next_attempt_secs: u32::try_from(progress.next_attempt.as_millis().div_ceil(1000)).unwrap_or(u32::MAX),
            hidden_by,
        };
        (told, holding)
    };
    found.matching.iter().map(one).unzip()
}

/// A failure without the server's words, which are for root and the agent's user: the meaning of its code, which comes first.
fn code_alone(failure: &str) -> String {
    if failure.is_empty() {
        return String::new();
    }
    let is_first = |code: &String| failure.strip_prefix(code.as_str()).is_some_and(|words| words.starts_with(": "));
    let code = (1..=LAST_CODE).map(|code| Code::from(code).to_string()).find(is_first);
    code.unwrap_or_else(|| "the agent's log says why".to_owned())
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn verdict_to_wire(verdict: &Verdict) -> AttestorVerdict {
    AttestorVerdict {
        name: verdict.name.to_owned(),
        error: verdict.found.as_ref().err().map(|e| e.reason.chars().take(TEXT_CHARS_MAX).collect()).unwrap_or_default(),
        selectors: verdict.found.as_ref().map_or(0, |found| number(found.len())),
        took_micros: u64::try_from(verdict.took.as_micros()).unwrap_or(u64::MAX),
    }
}

/// Whether a denial may be told of to who asks about a process of this user. The number may have been another user's process
/// when it was denied.
fn may_be_told(denied: &Denied, uid: u32, reach: Reach) -> bool {
    reach == Reach::Everything || denied.uid == uid
}

fn denial_to_wire(denied: &Denied) -> Denial {
    Denial { at: denied.at.secs(), pid: denied.pid, uid: denied.uid }
}

fn name_to_wire(entry: &Entry) -> EntryName {
    EntryName {
        id: entry.id.clone(),
        spiffe_id: entry.spiffe_id.to_string(),
        parent_id: entry.parent_id.to_string(),
        hint: entry.hint.clone(),
    }
}

fn near_to_wire(near: &Near, now: Timestamp) -> NearEntry {
    NearEntry {
        entry: Some(name_to_wire(&near.entry)),
        missing: id::selectors_to_wire(&near.missing),
        missing_left_out: number(near.missing_left_out),
        shared: number(near.shared),
        expired_at: near.entry.expires_at.filter(|_| near.entry.is_expired(now)).map_or(0, Timestamp::secs),
        store_svid: near.entry.store_svid,
    }
}

/// The first selectors that fit, and how many do not.
fn shown(selectors: &[Selector]) -> (Vec<types::Selector>, u32) {
    let mut left = SELECTORS_BYTES_MAX;
    let fits = |s: &&Selector| {
        // The text, and at most ten bytes of framing.
        let bytes = s.as_str().len() + 10;
        let fits = bytes <= left;
        left = left.saturating_sub(bytes);
        fits
    };
    let told: Vec<Selector> = selectors.iter().take_while(fits).cloned().collect();
    let left_out = selectors.len() - told.len();
    (id::selectors_to_wire(&told), number(left_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_failure_others_are_told_the_code_alone() {
        for code in (1..=LAST_CODE).map(Code::from) {
            assert_eq!(code_alone(&format!("{code}: the key of spiffe://example.org/x: is lost")), code.to_string());
        }
        assert_eq!(code_alone(""), "");
        assert_eq!(code_alone("the server's answer is for another key: of spiffe://example.org/x"), "the agent's log says why");
    }

    #[test]
    fn the_denial_of_another_user_who_had_the_number_is_for_operators() {
        let at = Timestamp::from_secs(1);
        let denied = Denied { pid: 7, uid: 1, gid: 1, at, selectors: Arc::default(), selectors_left_out: 0 };
        let told = [(1, Reach::Shared), (2, Reach::Shared), (2, Reach::Everything)].map(|(uid, reach)| may_be_told(&denied, uid, reach));
        assert_eq!(told, [true, false, true]);
    }

    #[test]
    fn what_does_not_fit_into_a_message_is_counted() {
        let of = |count: usize, bytes: usize| -> Vec<Selector> {
            (0..count).map(|n| Selector::new("unix", &format!("{n:0>bytes$}")).expect("a selector")).collect()
        };
        // As many groups as a process may have, and the longest texts there are.
        for (selectors, told) in [(of(65_536, 28), SELECTORS_BYTES_MAX / 43), (of(300, 8187), 127), (of(100, 20), 100)] {
            let (first, left_out) = shown(&selectors);
            assert_eq!((first.len(), left_out), (told, number(selectors.len() - told)));
            let message = ExplainResponse { selectors: first, ..ExplainResponse::default() };
            assert!(prost::Message::encoded_len(&message) <= SELECTORS_BYTES_MAX);
        }
    }
}
