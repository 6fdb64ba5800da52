//! A server that does what a test says: refuses a call, dies in the middle of one, presents what it should not. It keeps
//! nothing and decides nothing; what agents need of a real one is in `domain`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_identity::bundle::JwtAuthority;
use countersign_identity::csr::Csr;
use countersign_identity::jwt::{self, Claims, signing_input};
use countersign_identity::key::{KeyType, PublicKey, SigningAlgorithm};
use countersign_identity::x509::{Certificate, Profile, Subject, Tbs, assemble};
use countersign_identity::{Bundle, BundleSet, SpiffeId, Timestamp};
use countersign_plugins::keys::{KeyPair, random};
use countersign_transport::clock::SharedClock;
use countersign_transport::proxy::Proxies;
use countersign_transport::{tcp, tls};
use countersign_wire::agent::{self, attest_agent_request, attest_agent_response};
use countersign_wire::node::{self, FollowResponse, issue_request, issue_response};
use countersign_wire::{bundle, bundle_api, id, types};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::domain::{Anyhow, spiffe_id, trust_domain};

/// An agent proves itself.
pub const ATTEST: &str = "/spire.api.server.agent.v1.Agent/AttestAgent";
/// An agent renews its SVID.
pub const RENEW: &str = "/spire.api.server.agent.v1.Agent/RenewAgent";
/// Anybody asks for the bundle.
pub const BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/GetBundle";
/// An agent follows.
pub const FOLLOW: &str = "/countersign.agent.v1.Node/Follow";
/// An agent asks for a credential.
pub const ISSUE: &str = "/countersign.agent.v1.Node/Issue";

mod spire;
pub use spire::{BATCH, ENTRIES, STATUS, SYNC, TOKENS};

/// The key that tokens say they are signed with.
pub const KEY_ID: &str = "scripted";

/// A node that shows this may attest again.
pub const AGAIN: &str = "again";

/// How long X509-SVIDs live.
const SVID_LIFETIME: Duration = Duration::from_secs(3600);
const JWT_LIFETIME: Duration = Duration::from_secs(300);

/// An authority of the test trust domain, with its key.
#[derive(Debug)]
pub struct Authority {
    /// Its certificate.
    pub certificate: Certificate,
    pair: KeyPair,
}

impl Authority {
    /// One that is valid from one time to another.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn new(not_before: Timestamp, not_after: Timestamp) -> Result<Self, Anyhow> {
        let pair = KeyPair::generate(KeyType::EcP256)?;
        let subject = Subject::default().to_der(&random::<16>()?);
        let der = certify_authority(&pair, &subject, (&subject, None), &pair, (not_before, not_after))?;
        Ok(Self { certificate: Certificate::parse(&der)?, pair })
    }

    /// An authority below this one.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn intermediate(&self, not_before: Timestamp, not_after: Timestamp) -> Result<Self, Anyhow> {
        let pair = KeyPair::generate(KeyType::EcP256)?;
        let subject = Subject::default().to_der(&random::<16>()?);
        let issuer = (self.certificate.subject_der(), Some(self.pair.public_key().key_id()));
        let der = certify_authority(&pair, &subject, issuer, &self.pair, (not_before, not_after))?;
        Ok(Self { certificate: Certificate::parse(&der)?, pair })
    }

    /// A certificate of this authority that names another as its issuer, though that one never signed it.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn as_if_signed_by(&self, other: &Self, not_before: Timestamp, not_after: Timestamp) -> Result<Vec<u8>, Anyhow> {
        let issuer = (other.certificate.subject_der(), Some(other.pair.public_key().key_id()));
        certify_authority(&self.pair, self.certificate.subject_der(), issuer, &self.pair, (not_before, not_after))
    }

    /// One that somebody else made.
    pub fn of(certificate: Certificate, pair: KeyPair) -> Self {
        Self { certificate, pair }
    }

    /// Certifies a key.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn issue(&self, id: &SpiffeId, key: &PublicKey, now: Timestamp) -> Result<Vec<u8>, Anyhow> {
        self.issue_until(id, key, now, now.after(SVID_LIFETIME))
    }

    /// Certifies a key until a certain time.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn issue_until(&self, id: &SpiffeId, key: &PublicKey, now: Timestamp, not_after: Timestamp) -> Result<Vec<u8>, Anyhow> {
        let tbs = Tbs {
            serial: positive(random()?),
            algorithm: self.pair.algorithm(),
            issuer: self.certificate.subject_der(),
            issuer_key_id: Some(&self.pair.public_key().key_id()),
            subject: &Subject::default().to_der(&[1]),
            not_before: now.before(Duration::from_secs(10)),
            not_after,
            public_key: key,
            spiffe_id: id,
            dns_names: &[],
            profile: Profile::Leaf,
        }
        .to_der();
        Ok(assemble(&tbs, self.pair.algorithm(), &self.pair.sign(self.pair.algorithm(), &tbs)?))
    }
}

/// The certificate of an authority, whose key is `pair`, with the issuer's name and key ID, signed by `signer`.
fn certify_authority(
    pair: &KeyPair,
    subject: &[u8],
    (issuer, issuer_key_id): (&[u8], Option<Vec<u8>>),
    signer: &KeyPair,
    (not_before, not_after): (Timestamp, Timestamp),
) -> Result<Vec<u8>, Anyhow> {
    let tbs = Tbs {
        serial: positive(random()?),
        algorithm: signer.algorithm(),
        issuer,
        issuer_key_id: issuer_key_id.as_deref(),
        subject,
        not_before,
        not_after,
        public_key: pair.public_key(),
        spiffe_id: &SpiffeId::parse(&format!("spiffe://{}", trust_domain().name()))?,
        dns_names: &[],
        profile: Profile::Authority,
    }
    .to_der();
    Ok(assemble(&tbs, signer.algorithm(), &signer.sign(signer.algorithm(), &tbs)?))
}

fn positive(mut serial: [u8; 16]) -> [u8; 16] {
    // The first byte decides sign and length of the number.
    if let Some(first) = serial.first_mut() {
        *first = (*first & 0x7f) | 1;
    }
    serial
}

/// The bundle of these authorities.
///
/// # Errors
/// Too many.
pub fn bundle_of(authorities: &[&Authority]) -> Result<Bundle, Anyhow> {
    let mut bundle = Bundle::empty(trust_domain());
    for authority in authorities {
        bundle.add_x509_authority(authority.certificate.clone(), false)?;
    }
    Ok(bundle)
}

/// What becomes of a call that a test is interested in.
#[derive(Debug, Clone)]
pub enum Fate {
    /// It is answered with this status.
    Refused(Status),
    /// The connection ends instead of an answer, and no other is accepted until [`Scripted::revive`].
    Dies,
}

struct State {
    authority: Arc<Authority>,
    bundle: Bundle,
    entries: Vec<types::Entry>,
    fates: HashMap<&'static str, Fate>,
    calls: HashMap<&'static str, usize>,
    /// Where what is said to agents that follow goes.
    followers: Vec<mpsc::Sender<Result<FollowResponse, Status>>>,
    /// The answer to each question for a credential, instead of one.
    said_to_issue: Option<node::IssueResponse>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Alive {
    accepting: bool,
    cuts: u64,
}

struct Shared {
    state: Mutex<State>,
    presented: tls::SharedIdentity,
    /// Every authority it ever had, by which agents prove themselves.
    trusted: tls::SharedBundles,
    knocks: AtomicUsize,
    clock: SharedClock,
    /// Whether connections are let through, and how often all were cut.
    alive: watch::Sender<Alive>,
    /// How often agents acknowledged.
    acknowledged: watch::Sender<usize>,
}

/// A running server of this kind; gone when dropped.
pub struct Scripted {
    shared: Arc<Shared>,
    port: u16,
    tasks: Vec<AbortHandle>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scripted").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Scripted {
    /// Starts with one authority, which is all of its bundle.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(authority: Arc<Authority>, clock: SharedClock) -> Result<Self, Anyhow> {
        let state = State {
            bundle: bundle_of(&[&authority])?,
            authority: Arc::clone(&authority),
            entries: Vec::new(),
            fates: HashMap::new(),
            calls: HashMap::new(),
            followers: Vec::new(),
            said_to_issue: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            presented: Arc::default(),
            trusted: Arc::default(),
            knocks: AtomicUsize::new(0),
            clock: Arc::clone(&clock),
            alive: watch::channel(Alive { accepting: true, cuts: 0 }).0,
            acknowledged: watch::Sender::default(),
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let inner = listener.local_addr()?;
        let trusted = Arc::clone(&shared.trusted);
        let config = tls::server_config(Arc::clone(&shared.presented), trusted, Arc::new(|_| true), clock)?;
        let incoming = tcp::incoming(listener, Arc::new(config), Arc::default(), Proxies::default());
        let answering = Arc::clone(&shared);
        let layer = tower::layer::layer_fn(move |_: Routes| Answering(Arc::clone(&answering)));
        let serving = tonic::transport::Server::builder().layer(layer).add_routes(Routes::default()).serve_with_incoming(incoming);
        // Connections come through here, so that all can be cut at once as when a process is killed.
        let door = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = door.local_addr()?.port();
        let letting_in = let_in(door, inner, Arc::clone(&shared));
        let tasks = vec![tokio::spawn(async move { drop(serving.await) }).abort_handle(), tokio::spawn(letting_in).abort_handle()];
        let scripted = Self { shared, port, tasks };
        scripted.present(authority)?;
        Ok(scripted)
    }

    /// Its TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.lock()
    }

    /// From now on it signs with this authority and presents a certificate of it; its bundle stays as it is.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn present(&self, authority: Arc<Authority>) -> Result<(), Anyhow> {
        let pair = KeyPair::generate(KeyType::EcP256)?;
        let leaf = authority.issue(&trust_domain().server_id(), pair.public_key(), self.shared.clock.now())?;
        let mut trusted =
            self.shared.trusted.load().get(trust_domain().name()).map_or_else(|| Bundle::empty(trust_domain()), |b| Bundle::clone(b));
        trusted.add_x509_authority(authority.certificate.clone(), false)?;
        self.shared.trusted.store(Arc::new(BundleSet::from_iter([Arc::new(trusted)])));
        self.shared.presented.store(Arc::new(Some(tls::identity(&[leaf], pair.pkcs8())?)));
        self.lock().authority = authority;
        Ok(())
    }

    /// From now on this is its bundle.
    pub fn publish(&self, bundle: Bundle) {
        self.lock().bundle = bundle;
    }

    /// Its bundle now.
    pub fn bundle(&self) -> Bundle {
        self.lock().bundle.clone()
    }

    /// From now on these are its entries.
    pub fn register(&self, entries: Vec<types::Entry>) {
        self.lock().entries = entries;
    }

    /// From now on this becomes of such calls; `None` is the ordinary answer.
    pub fn decide(&self, method: &'static str, fate: Option<Fate>) {
        match fate {
            Some(fate) => self.lock().fates.insert(method, fate),
            None => self.lock().fates.remove(method),
        };
    }

    /// How often this was called.
    pub fn calls(&self, method: &str) -> usize {
        self.lock().calls.get(method).copied().unwrap_or_default()
    }

    /// How many connections were tried, good ones and others.
    pub fn knocks(&self) -> usize {
        self.shared.knocks.load(Ordering::Relaxed)
    }

    /// Says something to every agent that follows, and waits until one has acknowledged something since.
    pub async fn say(&self, message: FollowResponse) {
        let mut acknowledged = self.shared.acknowledged.subscribe();
        let before = *acknowledged.borrow_and_update();
        let followers = self.lock().followers.clone();
        for follower in followers {
            let _ = follower.send(Ok(message.clone())).await;
        }
        let _ = acknowledged.wait_for(|now| *now > before).await;
    }

    /// From now on this is the answer to every question for a credential; `None` is the ordinary one.
    pub fn say_to_issue(&self, answer: Option<node::IssueResponse>) {
        self.lock().said_to_issue = answer;
    }

    /// Cuts every connection, as when a process is killed; none is accepted until [`Scripted::revive`].
    pub fn kill(&self) {
        self.shared.kill();
    }

    /// Accepts connections again.
    pub fn revive(&self) {
        self.shared.alive.send_modify(|alive| alive.accepting = true);
    }
}

async fn let_in(door: TcpListener, inner: SocketAddr, shared: Arc<Shared>) {
    let mut open = JoinSet::new();
    while let Ok((mut outside, _)) = door.accept().await {
        shared.knocks.fetch_add(1, Ordering::Relaxed);
        let mut alive = shared.alive.subscribe();
        let before = *alive.borrow();
        open.spawn(async move {
            let cut = async move { drop(alive.wait_for(|now| !now.accepting || *now != before).await) };
            let pass = async {
                if let Ok(mut inside) = TcpStream::connect(inner).await {
                    let _ = outside.set_nodelay(true);
                    let _ = inside.set_nodelay(true);
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                }
            };
            tokio::select! {
                biased;
                () = cut => {}
                () = pass => {}
            }
        });
        while open.try_join_next().is_some() {}
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill(&self) {
        self.alive.send_modify(|alive| *alive = Alive { accepting: false, cuts: alive.cuts + 1 });
    }

    fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.lock().authority)
    }

    fn certify(&self, id: &SpiffeId, csr: &[u8]) -> Result<types::X509svid, Status> {
        let csr = Csr::parse(csr).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let now = self.clock.now();
        let leaf = self.authority().issue(id, &csr.public_key, now).map_err(|e| Status::internal(e.to_string()))?;
        let expires_at = now.after(SVID_LIFETIME).secs();
        Ok(types::X509svid { cert_chain: vec![leaf], id: Some(id::to_wire(id)), expires_at, hint: String::new() })
    }

    async fn answer(self: Arc<Self>, request: http::Request<Body>) -> http::Response<Body> {
        let Some(method) =
            [ATTEST, RENEW, BUNDLE, FOLLOW, ISSUE, SYNC, ENTRIES, BATCH, TOKENS, STATUS].into_iter().find(|m| *m == request.uri().path())
        else {
            return Status::unimplemented("not in the script").into_http();
        };
        let fate = {
            let mut state = self.lock();
            *state.calls.entry(method).or_default() += 1;
            state.fates.get(method).cloned()
        };
        match fate {
            Some(Fate::Refused(status)) => return status.into_http(),
            Some(Fate::Dies) => {
                self.kill();
                return std::future::pending().await;
            }
            None => {}
        }
        match method {
            ATTEST => {
                let service = tower::service_fn(move |r: Request<Streaming<agent::AttestAgentRequest>>| attest(Arc::clone(&self), r));
                Grpc::new(codec()).streaming(service, request).await
            }
            RENEW => {
                let service = tower::service_fn(move |r: Request<agent::RenewAgentRequest>| {
                    let caller = r.extensions().get::<tcp::TlsPeer>().and_then(|peer| peer.identity.clone());
                    let csr = r.into_inner().params.map(|p| p.csr).unwrap_or_default();
                    let unknown = || Status::permission_denied("no certificate was presented");
                    let svid = caller.ok_or_else(unknown).and_then(|caller| self.certify(&caller.spiffe_id, &csr));
                    async move { Ok::<_, Status>(Response::new(agent::RenewAgentResponse { svid: Some(svid?) })) }
                });
                Grpc::new(codec()).unary(service, request).await
            }
            BUNDLE => {
                let service = tower::service_fn(move |_: Request<bundle_api::GetBundleRequest>| {
                    let own = bundle::to_wire(&self.lock().bundle);
                    async move { Ok::<_, Status>(Response::new(own)) }
                });
                Grpc::new(codec()).unary(service, request).await
            }
            SYNC | ENTRIES | BATCH | TOKENS | STATUS => spire::answer(self, method, request).await,
            FOLLOW => {
                let service = tower::service_fn(move |r: Request<Streaming<node::FollowRequest>>| follow(Arc::clone(&self), r));
                Grpc::new(codec()).streaming(service, request).await
            }
            _ => {
                let service = tower::service_fn(move |r: Request<node::IssueRequest>| {
                    let issued = self.issue(r.into_inner());
                    async move { issued.map(Response::new) }
                });
                Grpc::new(codec()).unary(service, request).await
            }
        }
    }

    /// The SPIFFE ID that this entry grants.
    fn granted(&self, entry_id: &str) -> Result<SpiffeId, Status> {
        let found = self.lock().entries.iter().find(|e| e.id == entry_id).and_then(|e| e.spiffe_id.clone());
        id::from_wire(found.as_ref()).map_err(|e| Status::not_found(e.to_string()))
    }

    fn token(&self, entry_id: &str, audience: &[String]) -> Result<types::Jwtsvid, Status> {
        let id = self.granted(entry_id)?;
        let issued_at = self.clock.now();
        let expires_at = issued_at.after(JWT_LIFETIME);
        let token = token(&id, audience, issued_at, expires_at);
        let id = Some(id::to_wire(&id));
        Ok(types::Jwtsvid { token, id, issued_at: issued_at.secs(), expires_at: expires_at.secs(), ..types::Jwtsvid::default() })
    }

    fn issue(&self, request: node::IssueRequest) -> Result<node::IssueResponse, Status> {
        if let Some(said) = self.lock().said_to_issue.clone() {
            return Ok(said);
        }
        let credential = match request.credential {
            Some(issue_request::Credential::X509Csr(csr)) => {
                issue_response::Credential::X509(self.certify(&self.granted(&request.entry_id)?, &csr)?)
            }
            Some(issue_request::Credential::Jwt(params)) => {
                issue_response::Credential::Jwt(self.token(&request.entry_id, &params.audience)?)
            }
            None => return Err(Status::invalid_argument("missing credential")),
        };
        Ok(node::IssueResponse { credential: Some(credential) })
    }
}

#[expect(clippy::expect_used, reason = "the library makes keys, or no test runs")]
static JWT_KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate(KeyType::EcP256).expect("a key"));

/// The authority of its tokens, which is in its bundle only if a test publishes it.
pub fn jwt_authority(tainted: bool) -> JwtAuthority {
    JwtAuthority { key_id: KEY_ID.to_owned(), public_key: JWT_KEY.public_key().clone(), expires_at: None, tainted }
}

/// A token with these claims.
pub fn token(id: &SpiffeId, audience: &[String], issued_at: Timestamp, expires_at: Timestamp) -> String {
    let claims = Claims { spiffe_id: id, audience, issued_at, expires_at, issuer: None, token_id: None };
    let input = signing_input(&claims, SigningAlgorithm::EcdsaP256Sha256, KEY_ID);
    let signed = JWT_KEY.sign(SigningAlgorithm::EcdsaP256Sha256, input.as_bytes()).unwrap_or_default();
    jwt::assemble(&input, SigningAlgorithm::EcdsaP256Sha256, &signed).unwrap_or_default()
}

fn codec<T: Message + Send + 'static, U: Message + Default + Send + 'static>() -> ProstCodec<T, U> {
    ProstCodec::default()
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

async fn attest(
    shared: Arc<Shared>,
    request: Request<Streaming<agent::AttestAgentRequest>>,
) -> Result<Response<Answers<agent::AttestAgentResponse>>, Status> {
    let Some(Ok(agent::AttestAgentRequest { step: Some(attest_agent_request::Step::Params(params)) })) = request.into_inner().next().await
    else {
        return Err(Status::invalid_argument("missing params"));
    };
    let csr = params.params.map(|p| p.csr).unwrap_or_default();
    let svid = Some(shared.certify(&spiffe_id("/spire/agent/join_token/scripted"), &csr)?);
    let reattestable = params.data.is_some_and(|data| data.payload == AGAIN.as_bytes());
    let result = attest_agent_response::Result { svid, reattestable };
    let answer = agent::AttestAgentResponse { step: Some(attest_agent_response::Step::Result(result)) };
    Ok(Response::new(Box::pin(tokio_stream::iter([Ok(answer)]))))
}

/// One message with everything, and then silence.
async fn follow(
    shared: Arc<Shared>,
    request: Request<Streaming<node::FollowRequest>>,
) -> Result<Response<Answers<FollowResponse>>, Status> {
    let mut requests = request.into_inner();
    let (out, answers) = mpsc::channel(1);
    tokio::spawn(async move {
        let message = {
            let state = shared.lock();
            FollowResponse {
                reset: true,
                caught_up: true,
                cursor: Some(node::Cursor { epoch: vec![7; 16], revision: 1, digest: vec![7; 32] }),
                entries: state.entries.clone(),
                bundles: vec![bundle::to_wire(&state.bundle)],
                ..FollowResponse::default()
            }
        };
        let _ = out.send(Ok(message)).await;
        {
            let mut state = shared.lock();
            state.followers.retain(|follower| !follower.is_closed());
            state.followers.push(out);
        }
        while let Some(Ok(message)) = requests.next().await {
            if matches!(message.step, Some(node::follow_request::Step::Ack(_))) {
                shared.acknowledged.send_modify(|count| *count += 1);
            }
        }
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
}

/// Stands where a server's services stand.
#[derive(Clone)]
struct Answering(Arc<Shared>);

impl tower::Service<http::Request<Body>> for Answering {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move { Ok(shared.answer(request).await) })
    }
}
