//! SPIRE's Delegated Identity API: a workload that the configuration names as a delegate gets the identities of others on this
//! node, by their selectors or by their process. Who may call is decided anew with each message.
//!
//! Identities of administrators, of servers below and of nodes are never handed out.

use std::collections::BTreeMap;
use std::sync::Arc;

use countersign_identity::{Bundle, Selector};
use countersign_transport::peer::Peer;
use countersign_wire::delegated_identity as wire;
use countersign_wire::delegated_identity::delegated_identity_server::DelegatedIdentity;
use countersign_wire::{id, types};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::reply::{self, Fingerprint, Kind};
use super::workload::{Messages, NO_IDENTITY, attestation_failed, check_audience, deadline, messages, within};
use super::{Admin, Api};
use crate::attest::Caller;
use crate::cache::Identity;

/// The service's name in the log.
const SERVICE: &str = "DelegatedIdentity";

type Out<T> = mpsc::Sender<Result<T, Status>>;

/// Bundles by the names of their trust domains.
type Bundles = BTreeMap<String, Arc<Bundle>>;

/// What a stream of bundles tells.
struct BundleStream<T> {
    method: &'static str,
    kind: Kind,
    make: fn(&Bundles) -> T,
}

/// Whose identities a delegate asks for.
struct Subject {
    selectors: Arc<[Selector]>,
    /// The process they were found of; nothing if the delegate gave them itself.
    process: Option<Caller>,
}

impl Subject {
    /// Returns when the process has ended; never without one.
    async fn ended(&self) {
        match &self.process {
            Some(process) => process.peer.ended().await,
            None => std::future::pending().await,
        }
    }
}

#[tonic::async_trait]
impl DelegatedIdentity for Admin {
    type SubscribeToX509SVIDsStream = Messages<wire::SubscribeToX509sviDsResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<wire::SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        let patience = deadline(&request);
        let api = self.api()?.clone();
        let delegate = self.delegate(&api, &request, "SubscribeToX509SVIDs", patience).await?;
        let wire::SubscribeToX509sviDsRequest { selectors, pid } = request.into_inner();
        let subject = subject(&api, &selectors, pid).await?;
        let admin = self.clone();
        let watched = delegate.peer.clone();
        Ok(Response::new(messages(watched, |out| async move { admin.feed_svids(&api, delegate, subject, patience, &out).await })))
    }

    type SubscribeToX509BundlesStream = Messages<wire::SubscribeToX509BundlesResponse>;

    async fn subscribe_to_x509_bundles(
        &self,
        request: Request<wire::SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        let make = |bundles: &Bundles| wire::SubscribeToX509BundlesResponse { ca_certificates: reply::x509_bundles(bundles).bundles };
        self.bundles(&request, BundleStream { method: "SubscribeToX509Bundles", kind: Kind::X509Bundles, make }).await
    }

    async fn fetch_jwtsvi_ds(&self, request: Request<wire::FetchJwtsviDsRequest>) -> Result<Response<wire::FetchJwtsviDsResponse>, Status> {
        let patience = deadline(&request);
        check_audience(&request.get_ref().audience)?;
        let api = self.api()?.clone();
        let delegate = self.delegate(&api, &request, "FetchJWTSVIDs", patience).await?;
        let wire::FetchJwtsviDsRequest { audience, selectors, pid } = request.into_inner();
        let subject = subject(&api, &selectors, pid).await?;
        let mut svids = Vec::new();
        for identity in api.handed_out(&subject.selectors) {
            let kept = api.token(&identity, &audience, &subject.selectors, patience).await?;
            svids.push(types::Jwtsvid {
                token: kept.token.to_string(),
                id: Some(id::to_wire(&identity.entry.spiffe_id)),
                expires_at: kept.expires_at.secs(),
                issued_at: kept.issued_at.secs(),
                hint: identity.entry.hint.clone(),
            });
        }
        if svids.is_empty() {
            tracing::error!(service = SERVICE, method = "FetchJWTSVIDs", "No identity issued");
            return Err(Status::permission_denied(NO_IDENTITY));
        }
        // The server may have taken its time. Tokens go to nobody, and are of nobody, who has become another program meanwhile.
        let delegate = api.attestors.check_again(delegate).await.map_err(|_| attestation_failed())?;
        self.authorize(&api, &delegate)?;
        if let Some(process) = subject.process {
            let process = api.attestors.check_again(process).await.map_err(|_| attestation_failed())?;
            if process.selectors != subject.selectors {
                return Err(attestation_failed());
            }
        }
        api.metrics.called("FetchJWTSVIDs", "OK");
        Ok(Response::new(wire::FetchJwtsviDsResponse { svids }))
    }

    type SubscribeToJWTBundlesStream = Messages<wire::SubscribeToJwtBundlesResponse>;

    async fn subscribe_to_jwt_bundles(
        &self,
        request: Request<wire::SubscribeToJwtBundlesRequest>,
    ) -> Result<Response<Self::SubscribeToJWTBundlesStream>, Status> {
        let make = |bundles: &Bundles| wire::SubscribeToJwtBundlesResponse { bundles: reply::jwt_bundles(bundles).bundles };
        self.bundles(&request, BundleStream { method: "SubscribeToJWTBundles", kind: Kind::JwtBundles, make }).await
    }
}

impl Admin {
    /// The caller, if it is a delegate. While the agent does not know its entries yet, this waits instead of denying.
    async fn delegate<T>(
        &self,
        api: &Api,
        request: &Request<T>,
        method: &'static str,
        patience: Option<Instant>,
    ) -> Result<Caller, Status> {
        let peer = request.extensions().get::<Peer>().ok_or_else(|| Status::internal("BUG: a call without peer"))?;
        let caller = api.attestors.attest(peer).await.map_err(|_| {
            tracing::error!(service = SERVICE, method, pid = peer.pid, "Workload attestation failed");
            attestation_failed()
        })?;
        api.identities_of_caller(&caller, patience).await?;
        self.authorize(api, &caller)?;
        Ok(caller)
    }

    /// Whether an identity of the caller's is named in `authorized_delegates`, now.
    fn authorize(&self, api: &Api, caller: &Caller) -> Result<(), Status> {
        let entries = api.cache.matching(&caller.selectors, api.clock.now());
        let pid = caller.peer.pid;
        let Some(first) = entries.first() else {
            tracing::error!(service = SERVICE, pid, registered = false, "No identity issued");
            return Err(Status::permission_denied(NO_IDENTITY));
        };
        if entries.iter().any(|i| self.0.delegates.contains(&i.entry.spiffe_id)) {
            return Ok(());
        }
        api.metrics.called("DelegatedIdentity", "PermissionDenied");
        let (num_registered_entries, default_id) = (entries.len(), &first.entry.spiffe_id);
        tracing::error!(service = SERVICE, pid, num_registered_entries, %default_id, "Permission denied; caller not configured as an authorized delegate.");
        Err(Status::permission_denied("caller not configured as an authorized delegate"))
    }

    async fn bundles<Q, T: Send + 'static>(&self, request: &Request<Q>, stream: BundleStream<T>) -> Result<Response<Messages<T>>, Status> {
        let patience = deadline(request);
        let api = self.api()?.clone();
        let delegate = self.delegate(&api, request, stream.method, patience).await?;
        let (admin, watched) = (self.clone(), delegate.peer.clone());
        Ok(Response::new(messages(watched, |out| async move { admin.feed_bundles(&api, &delegate, &stream, patience, &out).await })))
    }

    /// All bundles the agent has, one message whenever they differ from the ones before.
    async fn feed_bundles<T>(
        &self,
        api: &Api,
        delegate: &Caller,
        stream: &BundleStream<T>,
        patience: Option<Instant>,
        out: &Out<T>,
    ) -> Result<(), Status> {
        let subscription = api.cache.subscribers.join(Arc::clone(&delegate.selectors));
        let mut sent: Option<Fingerprint> = None;
        loop {
            let revision = api.cache.revision();
            self.authorize(api, delegate)?;
            let bundles: Bundles = api.cache.bundles().iter().map(|b| (b.trust_domain().id().to_string(), Arc::clone(b))).collect();
            let fingerprint = Fingerprint::of(&[], &bundles);
            // Without the own bundle the agent does not know what there is yet.
            let is_known = bundles.contains_key(api.trust_domain.id().as_str());
            if is_known && !sent.as_ref().is_some_and(|s| s.shows_same(&fingerprint, stream.kind)) {
                api.metrics.called(stream.method, "OK");
                if out.send(Ok((stream.make)(&bundles))).await.is_err() {
                    return Ok(());
                }
                sent = Some(fingerprint);
            }
            api.delivered(&subscription, revision);
            within(patience.filter(|_| sent.is_none()), subscription.wake.notified()).await?;
        }
    }

    /// X509-SVIDs of a subject, one message whenever they differ from the ones before. Without any the list is empty, and the
    /// stream stays open.
    async fn feed_svids(
        &self,
        api: &Api,
        mut delegate: Caller,
        mut subject: Subject,
        patience: Option<Instant>,
        out: &Out<wire::SubscribeToX509sviDsResponse>,
    ) -> Result<(), Status> {
        // Both: a delegate that loses its own identity hears of it at once.
        let mut own = api.cache.subscribers.join(Arc::clone(&delegate.selectors));
        let mut of_subject = api.cache.subscribers.join(Arc::clone(&subject.selectors));
        let mut sent: Option<(Fingerprint, Vec<String>)> = None;
        loop {
            let revision = api.cache.revision();
            self.authorize(api, &delegate)?;
            let identities = api.handed_out(&subject.selectors);
            let is_complete = if identities.is_empty() { api.cache.is_caught_up() } else { api.has_svids(&identities, &subject.selectors) };
            if is_complete {
                let federates_with = api.federates_with(&identities);
                let shown: Vec<Identity> = identities.into_iter().filter(|i| i.svid.is_some()).collect();
                let fingerprint = Fingerprint::of(&shown, &BTreeMap::new());
                let is_news =
                    !sent.as_ref().is_some_and(|(s, names)| s.shows_same(&fingerprint, Kind::X509Svids) && *names == federates_with);
                if is_news {
                    // Keys go to nobody, and are of nobody, who has become another program since the last look.
                    let before = Arc::clone(&delegate.selectors);
                    delegate = api.attestors.check_again(delegate).await.map_err(|_| attestation_failed())?;
                    let mut is_same = delegate.selectors == before;
                    if let Some(process) = subject.process.take() {
                        let process = api.attestors.check_again(process).await.map_err(|_| attestation_failed())?;
                        is_same &= process.selectors == subject.selectors;
                        subject = Subject { selectors: Arc::clone(&process.selectors), process: Some(process) };
                    }
                    if !is_same {
                        own = api.cache.subscribers.join(Arc::clone(&delegate.selectors));
                        of_subject = api.cache.subscribers.join(Arc::clone(&subject.selectors));
                        continue;
                    }
                    api.metrics.called("SubscribeToX509SVIDs", "OK");
                    let x509_svids = shown.iter().filter_map(svid_to_wire).collect();
                    let message = wire::SubscribeToX509sviDsResponse { x509_svids, federates_with: federates_with.clone() };
                    if out.send(Ok(message)).await.is_err() {
                        return Ok(());
                    }
                    for identity in &shown {
                        tracing::debug!(service = SERVICE, spiffe_id = %identity.entry.spiffe_id, "Fetched X.509 SVID for delegated identity");
                    }
                    sent = Some((fingerprint, federates_with));
                }
            }
            api.delivered(&own, revision);
            api.delivered(&of_subject, revision);
            let news = async {
                tokio::select! {
                    () = own.wake.notified() => Ok(()),
                    () = of_subject.wake.notified() => Ok(()),
                    // SPIRE leaves it to the delegate to notice; whoever has the number next is somebody else.
                    () = subject.ended() => Err(attestation_failed()),
                }
            };
            within(patience.filter(|_| sent.is_none()), news).await??;
        }
    }
}

impl Api {
    /// The identities that a delegate may have for these selectors. Duplicate hints stay, as in SPIRE.
    fn handed_out(&self, selectors: &[Selector]) -> Vec<Identity> {
        let mut identities = self.cache.matching(selectors, self.clock.now());
        // No attestor finds a node's selectors of a process, but a delegate may say them.
        identities.retain(|i| !i.entry.admin && !i.entry.downstream && !i.entry.names_a_node());
        identities
    }

    /// The trust domains that these identities federate with and whose bundles are known, by name.
    fn federates_with(&self, identities: &[Identity]) -> Vec<String> {
        let mut names = reply::bundles_of(identities, &self.cache.bundles(), &self.trust_domain);
        names.remove(self.trust_domain.id().as_str());
        names.into_keys().collect()
    }
}

/// Whose identities are asked for: what the delegate says is taken for attested, a process is attested.
async fn subject(api: &Api, selectors: &[types::Selector], pid: i32) -> Result<Subject, Status> {
    if selectors.is_empty() == (pid == 0) {
        tracing::error!(service = SERVICE, "Invalid argument; must provide either selectors or non-zero PID, but not both");
        return Err(Status::invalid_argument("must provide either selectors or non-zero PID, but not both"));
    }
    if !selectors.is_empty() {
        let selectors = id::selectors_from_wire(selectors).map_err(|error| {
            tracing::error!(service = SERVICE, %error, "Invalid argument; could not parse provided selectors");
            Status::invalid_argument("could not parse provided selectors")
        })?;
        return Ok(Subject { selectors: selectors.into(), process: None });
    }
    let failed = |error: &dyn std::fmt::Display| {
        tracing::error!(service = SERVICE, %error, subject_pid = pid, "Workload attestation failed");
        attestation_failed()
    };
    let peer = u32::try_from(pid).map_err(|e| failed(&e)).and_then(|pid| Peer::of_process(pid).map_err(|e| failed(&e)))?;
    let process = api.attestors.attest(&peer).await.map_err(|_| failed(&"no attestor could say anything about it"))?;
    Ok(Subject { selectors: Arc::clone(&process.selectors), process: Some(process) })
}

fn svid_to_wire(identity: &Identity) -> Option<wire::X509svidWithKey> {
    let svid = identity.svid.as_ref()?;
    let chain = countersign_identity::x509::Certificate::parse_concatenated(&svid.chain).ok()?;
    let x509_svid = types::X509svid {
        cert_chain: chain.iter().map(|certificate| certificate.der().to_vec()).collect(),
        id: Some(id::to_wire(&svid.spiffe_id)),
        expires_at: svid.expires_at.secs(),
        hint: identity.entry.hint.clone(),
    };
    Some(wire::X509svidWithKey { x509_svid: Some(x509_svid), x509_svid_key: svid.key.to_vec() })
}
