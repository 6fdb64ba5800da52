//! The gate in front of every RPC: finds its row, decides whether this caller fits it, and hands the caller on.
//!
//! A refusal of an agent carries the reason in its details, because agents act on it: attest again, stop, delete.

use std::sync::Arc;
use std::task::{Context, Poll};

use countersign_identity::SpiffeId;
use countersign_store::{Change, Node, Store, StoreError};
use countersign_transport::clock::SharedClock;
use countersign_transport::tcp::{TlsIdentity, TlsPeer};
use countersign_wire::types::permission_denied_details::Reason;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::caller::{Caller, Kind, Proof};
use super::table;
use crate::api::access::Access;
use crate::api::status;
use crate::metrics::Metrics;
use crate::ratelimit::{About, Lines};

/// What the gate decides with. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) store: Store,
    pub(crate) clock: SharedClock,
    pub(crate) admin_ids: Arc<[SpiffeId]>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) lines: Arc<Lines>,
    /// Whether calls are written to the audit log.
    pub(crate) audit_log: bool,
}

/// Why an agent's SVID does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AgentRefusal {
    Expired,
    NotAttested,
    Banned,
    NotActive,
}

impl AgentRefusal {
    pub(crate) const fn reason(self) -> Reason {
        match self {
            Self::Expired => Reason::AgentExpired,
            Self::NotAttested => Reason::AgentNotAttested,
            Self::Banned => Reason::AgentBanned,
            Self::NotActive => Reason::AgentNotActive,
        }
    }

    /// The log line operators match on.
    pub(crate) const fn log_line(self) -> &'static str {
        match self {
            Self::Expired => "Agent SVID is expired",
            Self::NotAttested => "Agent is not attested",
            Self::Banned => "Agent is banned",
            Self::NotActive => "Agent SVID is not active",
        }
    }
}

/// Whether an agent's certificate counts, judged by its node row.
pub(crate) fn judge_agent(
    node: Option<&Node>,
    identity: &TlsIdentity,
    now: countersign_identity::Timestamp,
) -> Result<Standing, AgentRefusal> {
    if identity.not_after < now {
        return Err(AgentRefusal::Expired);
    }
    let node = node.ok_or(AgentRefusal::NotAttested)?;
    if node.is_banned() {
        return Err(AgentRefusal::Banned);
    }
    if node.serial_number == identity.serial_number {
        Ok(Standing::Current)
    } else if !node.new_serial_number.is_empty() && node.new_serial_number == identity.serial_number {
        Ok(Standing::Renewed)
    } else {
        Err(AgentRefusal::NotActive)
    }
}

/// Which of its SVIDs an agent used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The current one.
    Current,
    /// The renewed one for the first time: from now on it is the current one.
    Renewed,
}

impl Gate {
    /// Decides one call.
    pub(crate) async fn admit(&self, method: &str, proof: Proof) -> Result<Caller, Status> {
        tracing::trace!(hop = "decides who may make the call");
        let Some(row) = table::find(method) else {
            return Err(status::not_there_yet(method));
        };
        let allows = |kind: Kind| row.kinds.contains(&kind);
        let let_through = |kind: Kind, via: &'static str| {
            let access = if self.audit_log { Access::of(method, kind, via, &proof) } else { Access::default() };
            Ok(Caller { proof: proof.clone(), kind, lines: Arc::clone(&self.lines), access })
        };
        if allows(Kind::Anyone) {
            return let_through(Kind::Anyone, "");
        }
        if let Proof::Local(_) = &proof {
            if allows(Kind::Local) {
                return let_through(Kind::Local, "transport");
            }
            return Err(self.refuse(method, &proof, None));
        }
        let snapshot = self.store.snapshot();
        let now = self.clock.now();
        // The handshake looked at the certificate once; the connection may have outlived it since.
        let in_force = proof.identity().is_some_and(|identity| identity.not_after >= now);
        if allows(Kind::Admin) && in_force {
            if proof.spiffe_id().is_some_and(|id| self.admin_ids.contains(id)) {
                return let_through(Kind::Admin, "config");
            }
            if proof.has_entry(&snapshot, |e| e.admin && !e.is_expired(now)) {
                return let_through(Kind::Admin, "entries");
            }
        }
        if allows(Kind::Downstream) && in_force && proof.has_entry(&snapshot, |e| e.downstream && !e.is_expired(now)) {
            return let_through(Kind::Downstream, "entries");
        }
        if allows(Kind::Agent)
            && let Some(identity) = proof.identity()
        {
            return match judge_agent(snapshot.node(&identity.spiffe_id).map(Arc::as_ref), identity, now) {
                Ok(Standing::Current) => let_through(Kind::Agent, "datastore"),
                Ok(Standing::Renewed) => {
                    self.activate(identity).await.map_err(|e| status::store(&e))?;
                    let_through(Kind::Agent, "datastore")
                }
                Err(refusal) => Err(self.refuse(method, &proof, Some(refusal))),
            };
        }
        Err(self.refuse(method, &proof, None))
    }

    fn refuse(&self, method: &str, proof: &Proof, agent: Option<AgentRefusal>) -> Status {
        let caller = proof.actor();
        let reason = agent.map_or("not allowed", AgentRefusal::log_line);
        self.metrics.refused(reason);
        // Nobody must be able to fill the log: of each caller, and of all strangers together, some lines a minute are written.
        let about = proof.about();
        if !self.lines.admit(&about) {
            tracing::debug!(caller = %caller, method, reason, "Failed to authenticate caller");
        } else if about == About::Strangers {
            tracing::warn!(caller = %caller, method, "Failed to authenticate caller");
        } else {
            if let Some(refusal) = agent {
                tracing::error!(caller_id = %caller, method, "{}", refusal.log_line());
            }
            tracing::error!(caller_id = %caller, method, reason, "Failed to authenticate caller");
        }
        let text = format!("authorization denied for method {method}");
        match agent {
            Some(refusal) => status::denied(refusal.reason(), &text),
            None => Status::permission_denied(text),
        }
    }

    /// The renewed SVID was used: it becomes the current one, and the one before counts no longer.
    async fn activate(&self, identity: &Arc<TlsIdentity>) -> Result<(), StoreError> {
        let identity = Arc::clone(identity);
        let actor = countersign_store::Actor::new(identity.spiffe_id.as_str());
        let store = self.store.clone();
        // In a task of its own: a caller that hangs up must not leave the change half waited for.
        let activation = tokio::spawn(async move {
            store
                .write(actor, move |draft| {
                    let Some(node) = draft.snapshot().node(&identity.spiffe_id) else { return Ok(()) };
                    if node.new_serial_number == identity.serial_number {
                        let promoted = Node {
                            serial_number: node.new_serial_number.clone(),
                            expires_at: node.new_expires_at,
                            new_serial_number: String::new(),
                            new_expires_at: countersign_identity::Timestamp::EPOCH,
                            ..Node::clone(node)
                        };
                        draft.change(Change::NodePut(Arc::new(promoted)));
                    }
                    Ok(())
                })
                .await
        });
        activation.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// Puts the gate in front of a service.
#[derive(Clone)]
pub(crate) struct GateLayer(pub(crate) Gate);

impl<S> Layer<S> for GateLayer {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: self.0.clone(), inner }
    }
}

/// A service behind the gate.
#[derive(Clone)]
pub(crate) struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Gated<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(peer) = request.extensions().get::<TlsPeer>() {
            peer.asks();
        }
        let gate = self.gate.clone();
        // The service that was polled ready serves the call; its clone takes its place.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let Some(proof) = Proof::of(request.extensions()) else {
                return Ok(Status::unauthenticated("the connection has no peer").into_http());
            };
            match gate.admit(request.uri().path(), proof).await {
                Ok(caller) => {
                    let unanswered = Unanswered(Some(caller.access.clone()));
                    request.extensions_mut().insert(caller);
                    let method = request.uri().path().to_owned();
                    let response = inner.call(request).await?;
                    // An error before the first message is in the headers; what comes later counts as answered.
                    let refusal = Status::from_header_map(response.headers());
                    gate.metrics.called(&method, refusal.as_ref().map_or(tonic::Code::Ok, Status::code));
                    unanswered.answered(refusal.as_ref());
                    Ok(response)
                }
                Err(status) => {
                    gate.metrics.called(request.uri().path(), status.code());
                    Ok(status.into_http())
                }
            }
        })
    }
}

/// A call under way. A caller that hangs up, or whose deadline passes, takes the task with it and not what was begun, so the
/// audit log has its line all the same.
struct Unanswered(Option<Access>);

impl Unanswered {
    fn answered(mut self, refusal: Option<&Status>) {
        if let Some(access) = self.0.take() {
            access.answered(refusal);
        }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(access) = self.0.take() {
            access.answered(Some(&Status::cancelled("the caller did not wait for the answer; what was begun is finished")));
        }
    }
}
