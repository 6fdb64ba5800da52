//! The SPIFFE Workload API.
//!
//! The caller is attested at each call, and looked at again before each message that carries a key. A stream ends when
//! its process does, and with PERMISSION_DENIED when its last identity is gone.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::jwt::{self, AUDIENCE_BYTES_MAX, AUDIENCES_MAX};
use countersign_identity::{Bundle, Selector, SpiffeId};
use countersign_transport::peer::Peer;
use countersign_wire::workload as wire;
use countersign_wire::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::Api;
use super::reply::{self, Fingerprint, Kind};
use crate::attest::Caller;
use crate::cache::{Identity, Subscription};
use crate::denials::Denied;
use crate::jwt::Kept;
use crate::ratelimit::Method;

pub(super) type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service's name in the log.
const SERVICE: &str = "WorkloadAPI";
/// The text clients match on to tell "no identity" from other denials.
pub(super) const NO_IDENTITY: &str = "no identity issued";
/// A waiting call answers this much before the caller's deadline, so that the answer still arrives.
const BEFORE_DEADLINE: Duration = Duration::from_millis(50);

/// Most selectors in one line of the log: a process may have 65,536 groups.
const LOGGED_SELECTORS_MAX: usize = 256;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Api {
    type FetchX509SVIDStream = Messages<wire::X509svidResponse>;

    async fn fetch_x509svid(&self, request: Request<wire::X509svidRequest>) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        tracing::trace!(hop = "takes the call");
        let deadline = deadline(&request);
        let caller = self.attest(&request, SERVICE, "FetchX509SVID").await?;
        self.limits.pass(Method::FetchX509Svid, &caller)?;
        Ok(Response::new(self.stream(caller, deadline, Kind::X509Svids, x509_svids)))
    }

    type FetchX509BundlesStream = Messages<wire::X509BundlesResponse>;

    async fn fetch_x509_bundles(
        &self,
        request: Request<wire::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let deadline = deadline(&request);
        let caller = self.attest(&request, SERVICE, "FetchX509Bundles").await?;
        self.limits.pass(Method::FetchX509Bundles, &caller)?;
        Ok(Response::new(self.stream(caller, deadline, Kind::X509Bundles, x509_bundles)))
    }

    async fn fetch_jwtsvid(&self, request: Request<wire::JwtsvidRequest>) -> Result<Response<wire::JwtsvidResponse>, Status> {
        let deadline = deadline(&request);
        let audience = &request.get_ref().audience;
        check_audience(audience)?;
        let wanted = match request.get_ref().spiffe_id.as_str() {
            "" => None,
            text => Some(SpiffeId::parse(text).map_err(|e| Status::invalid_argument(format!("invalid requested SPIFFE ID: {e}")))?),
        };
        let caller = self.attest(&request, SERVICE, "FetchJWTSVID").await?;
        self.limits.pass(Method::FetchJwtSvid, &caller)?;
        let mut identities = self.identities_of_caller(&caller, deadline).await?;
        identities.retain(|i| wanted.as_ref().is_none_or(|w| *w == i.entry.spiffe_id));
        if identities.is_empty() {
            return Err(self.no_identity(&caller));
        }
        let caller = self.attestors.check_again(caller).await.map_err(|_| attestation_failed())?;
        let mut svids = Vec::with_capacity(identities.len());
        for identity in &identities {
            let kept = self.token(identity, audience, &caller.selectors, deadline).await?;
            svids.push(wire::Jwtsvid {
                spiffe_id: identity.entry.spiffe_id.as_str().to_owned(),
                svid: kept.token.to_string(),
                hint: identity.entry.hint.clone(),
            });
        }
        self.metrics.called("FetchJWTSVID", "OK");
        Ok(Response::new(wire::JwtsvidResponse { svids }))
    }

    type FetchJWTBundlesStream = Messages<wire::JwtBundlesResponse>;

    async fn fetch_jwt_bundles(&self, request: Request<wire::JwtBundlesRequest>) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let deadline = deadline(&request);
        let caller = self.attest(&request, SERVICE, "FetchJWTBundles").await?;
        self.limits.pass(Method::FetchJwtBundles, &caller)?;
        Ok(Response::new(self.stream(caller, deadline, Kind::JwtBundles, jwt_bundles)))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<wire::ValidateJwtsvidRequest>,
    ) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        let deadline = deadline(&request);
        if request.get_ref().audience.is_empty() {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        if request.get_ref().svid.is_empty() {
            return Err(Status::invalid_argument("svid must be specified"));
        }
        let caller = self.attest(&request, SERVICE, "ValidateJWTSVID").await?;
        self.know_bundles(&caller, deadline).await?;
        let request = request.into_inner();
        let identities = self.cache.identities(&caller.selectors, self.clock.now());
        let bundles = reply::bundles_of(&identities, &self.cache.bundles(), &self.trust_domain).into_values().collect();
        let verified = jwt::verify(&request.svid, &request.audience, &bundles, self.clock.now())
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let own = verified.spiffe_id.is_member_of(&self.trust_domain);
        let claims = verified
            .claims
            .into_iter()
            .filter(|(name, _)| own || matches!(name.as_str(), "sub" | "exp" | "aud") || self.allowed_foreign_jwt_claims.contains(name))
            .map(|(name, value)| (name, protobuf_value(value)))
            .collect();
        self.metrics.called("ValidateJWTSVID", "OK");
        Ok(Response::new(wire::ValidateJwtsvidResponse {
            spiffe_id: verified.spiffe_id.as_str().to_owned(),
            claims: Some(prost_types::Struct { fields: claims }),
        }))
    }

    type FetchWITSVIDStream = Messages<wire::WitsvidResponse>;

    async fn fetch_witsvid(&self, _: Request<wire::WitsvidRequest>) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(Status::unimplemented("fetching WIT-SVIDs is not implemented"))
    }

    type FetchWITBundlesStream = Messages<wire::WitBundlesResponse>;

    async fn fetch_wit_bundles(&self, _: Request<wire::WitBundlesRequest>) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(Status::unimplemented("fetching WIT bundles is not implemented"))
    }
}

/// The state a message is made from.
struct Message<'a> {
    identities: &'a [Identity],
    bundles: &'a BTreeMap<String, Arc<Bundle>>,
    api: &'a Api,
}

fn x509_svids(message: &Message<'_>) -> wire::X509svidResponse {
    reply::x509_svids(message.identities, &message.api.cache.bundles(), &message.api.trust_domain)
}

fn x509_bundles(message: &Message<'_>) -> wire::X509BundlesResponse {
    reply::x509_bundles(message.bundles)
}

fn jwt_bundles(message: &Message<'_>) -> wire::JwtBundlesResponse {
    reply::jwt_bundles(message.bundles)
}

impl Api {
    /// Finds out who calls a method of a service; the latter by its name in the log.
    pub(super) async fn attest<T>(&self, request: &Request<T>, service: &'static str, method: &'static str) -> Result<Caller, Status> {
        let peer = request.extensions().get::<Peer>().ok_or_else(|| Status::internal("BUG: a call without peer"))?;
        match self.attestors.attest(peer).await {
            Ok(caller) => Ok(caller),
            Err(_) => {
                self.metrics.called(method, "Unavailable");
                tracing::error!(service, method, pid = peer.pid, "Workload attestation failed");
                Err(attestation_failed())
            }
        }
    }

    fn no_identity(&self, caller: &Caller) -> Status {
        self.metrics.called("any", "PermissionDenied");
        self.note_denied(caller, SERVICE);
        Status::permission_denied(NO_IDENTITY)
    }

    /// Tells the log of a caller that has no identity, and remembers it for whoever asks why.
    pub(super) fn note_denied(&self, caller: &Caller, service: &'static str) {
        let (pid, uid, gid) = (caller.peer.pid, caller.peer.uid, caller.peer.gid);
        let hint = format!("countersign explain --pid {pid}");
        let selectors = self.loggable(&caller.selectors);
        tracing::error!(service, pid, uid, registered = false, selectors, hint, "No identity issued");
        let selectors = Arc::clone(&caller.selectors);
        self.denials.note(Denied { pid, uid, gid, at: self.clock.now(), selectors, selectors_left_out: 0 });
    }

    /// Those of the selectors that `log_selectors` lets into the log; nothing if there are none.
    fn loggable(&self, selectors: &[Selector]) -> Option<String> {
        let is_under = |text: &str, prefix: &str| text.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
        let is_wanted = |text: &&str| self.log_selectors.iter().any(|prefix| is_under(text, prefix));
        let wanted: Vec<&str> = selectors.iter().map(Selector::as_str).filter(is_wanted).take(LOGGED_SELECTORS_MAX).collect();
        (!wanted.is_empty()).then(|| wanted.join(","))
    }

    /// A token for one identity.
    pub(super) async fn token(
        &self,
        identity: &Identity,
        audience: &[String],
        facts: &Arc<[Selector]>,
        deadline: Option<tokio::time::Instant>,
    ) -> Result<Kept, Status> {
        within(deadline, self.jwts.fetch(&identity.entry, audience, facts)).await?.map_err(|e| not_issued(&e))
    }

    /// The caller's identities. While the agent does not know its entries yet, this waits instead of denying.
    pub(super) async fn identities_of_caller(
        &self,
        caller: &Caller,
        deadline: Option<tokio::time::Instant>,
    ) -> Result<Vec<Identity>, Status> {
        let known = self.cache.identities(&caller.selectors, self.clock.now());
        if !known.is_empty() {
            return Ok(known);
        }
        let subscription = self.cache.subscribers.join(Arc::clone(&caller.selectors));
        loop {
            let identities = self.cache.identities(&caller.selectors, self.clock.now());
            if !identities.is_empty() {
                return Ok(identities);
            }
            if self.cache.is_caught_up() {
                return Err(self.no_identity(caller));
            }
            within(deadline, subscription.wake.notified()).await?;
        }
    }

    /// Waits until the agent has its bundles, instead of refusing good tokens before.
    async fn know_bundles(&self, caller: &Caller, deadline: Option<tokio::time::Instant>) -> Result<(), Status> {
        let subscription = self.cache.subscribers.join(Arc::clone(&caller.selectors));
        while !self.cache.is_caught_up() {
            within(deadline, subscription.wake.notified()).await?;
        }
        Ok(())
    }

    /// A stream of full states, one whenever it differs from the one before.
    fn stream<T: Send + 'static>(
        &self,
        caller: Caller,
        deadline: Option<tokio::time::Instant>,
        kind: Kind,
        make: fn(&Message<'_>) -> T,
    ) -> Messages<T> {
        let (api, watched) = (self.clone(), caller.peer.clone());
        messages(watched, |out| async move { api.feed(caller, deadline, kind, make, &out).await })
    }

    async fn feed<T>(
        &self,
        mut caller: Caller,
        deadline: Option<tokio::time::Instant>,
        kind: Kind,
        make: fn(&Message<'_>) -> T,
        out: &mpsc::Sender<Result<T, Status>>,
    ) -> Result<(), Status> {
        let mut subscription = self.cache.subscribers.join(Arc::clone(&caller.selectors));
        let mut sent: Option<Fingerprint> = None;
        loop {
            let revision = self.cache.revision();
            let identities = self.cache.identities(&caller.selectors, self.clock.now());
            let known = self.cache.is_caught_up();
            if identities.is_empty() && known && !(kind != Kind::X509Svids && self.allow_unauthenticated_verifiers) {
                return Err(self.no_identity(&caller));
            }
            if self.is_complete(&identities, kind, known, &caller) {
                let bundles = reply::bundles_of(&identities, &self.cache.bundles(), &self.trust_domain);
                let shown: Vec<Identity> =
                    if kind == Kind::X509Svids { identities.into_iter().filter(|i| i.svid.is_some()).collect() } else { Vec::new() };
                let fingerprint = Fingerprint::of(&shown, &bundles);
                if !sent.as_ref().is_some_and(|s| s.shows_same(&fingerprint, kind)) {
                    if kind == Kind::X509Svids {
                        let before = Arc::clone(&caller.selectors);
                        caller = self.attestors.check_again(caller).await.map_err(|_| attestation_failed())?;
                        if caller.selectors != before {
                            // Another program, other facts: everything is looked at anew.
                            subscription = self.cache.subscribers.join(Arc::clone(&caller.selectors));
                            continue;
                        }
                    }
                    let message = make(&Message { identities: &shown, bundles: &bundles, api: self });
                    self.metrics.called(if kind == Kind::X509Svids { "FetchX509SVID" } else { "FetchBundles" }, "OK");
                    if out.send(Ok(message)).await.is_err() {
                        return Ok(());
                    }
                    sent = Some(fingerprint);
                }
            }
            self.delivered(&subscription, revision);
            // A stream that has told its caller something waits for news as long as it takes.
            let patience = if sent.is_some() { None } else { deadline };
            within(patience, subscription.wake.notified()).await?;
        }
    }

    /// Whether there is something to send. Identities without SVID are asked for; a message waits for all of them, but not
    /// for those that cannot be had now.
    fn is_complete(&self, identities: &[Identity], kind: Kind, known: bool, caller: &Caller) -> bool {
        if kind != Kind::X509Svids {
            return known && self.cache.bundles().get(self.trust_domain.name()).is_some();
        }
        self.has_svids(identities, &caller.selectors)
    }

    /// Whether all SVIDs are there that can be had now, and one at least; those that are missing are asked for.
    pub(super) fn has_svids(&self, identities: &[Identity], facts: &Arc<[Selector]>) -> bool {
        let missing: Vec<Identity> = identities.iter().filter(|i| i.svid.is_none()).cloned().collect();
        if !missing.is_empty() {
            self.rotator.want(&missing, facts);
        }
        identities.iter().any(|i| i.svid.is_some()) && missing.iter().all(|i| i.failure.is_some())
    }

    pub(super) fn delivered(&self, subscription: &Subscription, revision: u64) {
        subscription.delivered(revision);
        self.sync.progressed();
    }
}

/// The messages of a task, which ends with the process that called, and when nobody reads them any more.
pub(super) fn messages<T: Send + 'static, F: Future<Output = Result<(), Status>> + Send + 'static>(
    caller: Peer,
    feed: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F,
) -> Messages<T> {
    let (out, messages) = mpsc::channel(1);
    let feeding = feed(out.clone());
    tokio::spawn(async move {
        let ended = tokio::select! {
            result = feeding => result.err(),
            () = caller.ended() => None,
            () = out.closed() => None,
        };
        if let Some(status) = ended {
            let _ = out.send(Err(status)).await;
        }
    });
    Box::pin(ReceiverStream::new(messages))
}

/// Refuses audiences that no token can be for.
pub(super) fn check_audience(audience: &[String]) -> Result<(), Status> {
    if audience.is_empty() || audience.iter().any(String::is_empty) {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    if audience.len() > AUDIENCES_MAX || audience.iter().any(|a| a.len() > AUDIENCE_BYTES_MAX) {
        return Err(Status::invalid_argument(format!(
            "at most {AUDIENCES_MAX} audiences of at most {AUDIENCE_BYTES_MAX} bytes are allowed"
        )));
    }
    Ok(())
}

/// Why there is no token, for the workload. What the server or the network said stands in the agent's log, unless it is
/// about the workload's own question.
fn not_issued(error: &Status) -> Status {
    let reason = match error.code() {
        Code::InvalidArgument => error.message(),
        Code::ResourceExhausted => "the server is asked too much, try again later",
        Code::NotFound | Code::PermissionDenied => "the server does not grant it",
        _ => "the server is not reachable, or cannot issue now",
    };
    Status::unavailable(format!("could not fetch JWT-SVID: {reason}"))
}

pub(super) fn attestation_failed() -> Status {
    Status::unavailable("workload attestation failed")
}

/// The caller's own deadline, from gRPC's `grpc-timeout`.
pub(super) fn deadline<T>(request: &Request<T>) -> Option<tokio::time::Instant> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(number.checked_mul(3600)?),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    tokio::time::Instant::now().checked_add(timeout.saturating_sub(BEFORE_DEADLINE))
}

/// Waits at most until the caller's deadline; past it the agent is unavailable, it does not deny.
pub(super) async fn within<T>(deadline: Option<tokio::time::Instant>, wait: impl Future<Output = T>) -> Result<T, Status> {
    match deadline {
        None => Ok(wait.await),
        Some(at) => tokio::time::timeout_at(at, wait).await.map_err(|_| {
            Status::new(Code::Unavailable, "the identity cannot be had now: the server is not reachable, or has not answered yet")
        }),
    }
}

fn protobuf_value(value: serde_json::Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(b) => Kind::BoolValue(b),
        serde_json::Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        serde_json::Value::String(s) => Kind::StringValue(s),
        serde_json::Value::Array(items) => {
            Kind::ListValue(prost_types::ListValue { values: items.into_iter().map(protobuf_value).collect() })
        }
        serde_json::Value::Object(members) => {
            Kind::StructValue(prost_types::Struct { fields: members.into_iter().map(|(k, v)| (k, protobuf_value(v))).collect() })
        }
    };
    prost_types::Value { kind: Some(kind) }
}
