//! A Workload API that answers what a test says, where no agent of ours would: a bundle that is not there, a certificate
//! that ends in a moment. It attests nobody.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign_identity::key::KeyType;
use countersign_identity::x509::Certificate;
use countersign_plugins::keys::KeyPair;
use countersign_testkit::domain::spiffe_id;
use countersign_testkit::scripted;
use countersign_transport::clock::{Clock as _, SystemClock};
use countersign_transport::unix;
use countersign_wire::workload as wire;
use countersign_wire::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

/// The own trust domain of every answer.
pub(super) const OWN: &str = "spiffe://example.org";

const HOUR: Duration = Duration::from_secs(3600);

/// What it answers.
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) x509_svids: wire::X509svidResponse,
    pub(super) x509_bundles: HashMap<String, Vec<u8>>,
    pub(super) jwt_bundles: HashMap<String, Vec<u8>>,
}

/// An authority of `example.org`.
pub(super) struct Authority(scripted::Authority);

impl Authority {
    pub(super) fn new() -> Self {
        let now = SystemClock.now();
        Self(scripted::Authority::new(now.before(HOUR), now.after(HOUR)).unwrap())
    }

    /// Its certificate, DER.
    pub(super) fn certificate(&self) -> Vec<u8> {
        self.0.certificate.der().to_vec()
    }

    /// An authority below this one.
    pub(super) fn intermediate(&self) -> Self {
        let now = SystemClock.now();
        Self(self.0.intermediate(now.before(HOUR), now.after(HOUR)).unwrap())
    }

    /// An expired certificate of this authority that names another as its issuer, though that one never signed it.
    pub(super) fn as_if_signed_by(&self, other: &Self) -> Vec<u8> {
        let now = SystemClock.now();
        self.0.as_if_signed_by(&other.0, now.before(2 * HOUR), now.before(HOUR)).unwrap()
    }

    /// An identity for an hour and the bundle of this authority.
    pub(super) fn state(&self, path: &str) -> State {
        self.state_for(path, HOUR)
    }

    /// An identity that ends after this time.
    pub(super) fn state_for(&self, path: &str, lifetime: Duration) -> State {
        let pair = KeyPair::generate(KeyType::EcP256).unwrap();
        let now = SystemClock.now();
        let leaf = self.0.issue_until(&spiffe_id(path), pair.public_key(), now, now.after(lifetime)).unwrap();
        assert!(Certificate::parse(&leaf).is_ok());
        let svid = wire::X509svid {
            spiffe_id: spiffe_id(path).as_str().to_owned(),
            x509_svid: leaf,
            x509_svid_key: pair.pkcs8().to_vec(),
            bundle: self.certificate(),
            hint: String::new(),
        };
        State {
            x509_svids: wire::X509svidResponse { svids: vec![svid], ..wire::X509svidResponse::default() },
            x509_bundles: HashMap::from([(OWN.to_owned(), self.certificate())]),
            jwt_bundles: HashMap::new(),
        }
    }
}

/// The Workload API of a socket, until it is dropped.
pub(super) struct Fake {
    directory: tempfile::TempDir,
    runtime: Option<tokio::runtime::Runtime>,
    state: Arc<watch::Sender<State>>,
    x509_streams: Arc<AtomicUsize>,
    without_bundle: Arc<AtomicUsize>,
}

impl Fake {
    pub(super) fn start(state: State) -> Self {
        let directory = tempfile::Builder::new().prefix("cs").tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let state = Arc::new(watch::channel(state).0);
        let (x509_streams, without_bundle) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let service =
            Service { state: Arc::clone(&state), x509_streams: Arc::clone(&x509_streams), without_bundle: Arc::clone(&without_bundle) };
        let service = SpiffeWorkloadApiServer::new(service);
        // Our own acceptor, because gRPC's C core sends an authority that is none.
        let incoming = runtime.block_on(async { unix::incoming(UnixListener::bind(directory.path().join("agent.sock")).unwrap()) });
        runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        Self { directory, runtime: Some(runtime), state, x509_streams, without_bundle }
    }

    pub(super) fn socket(&self) -> String {
        format!("unix://{}", self.directory.path().join("agent.sock").display())
    }

    /// Answers this from now on, on open streams too.
    pub(super) fn publish(&self, state: State) {
        self.state.send_replace(state);
    }

    /// How many messages without the bundle of the own trust domain went out on streams of X509-SVIDs.
    pub(super) fn without_bundle(&self) -> usize {
        self.without_bundle.load(Ordering::SeqCst)
    }

    /// How many streams of X509-SVIDs were asked for.
    pub(super) fn x509_streams(&self) -> usize {
        self.x509_streams.load(Ordering::SeqCst)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Service {
    state: Arc<watch::Sender<State>>,
    x509_streams: Arc<AtomicUsize>,
    without_bundle: Arc<AtomicUsize>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn answers<T: 'static>(&self, take: fn(State) -> T) -> Response<Answers<T>> {
        Response::new(Box::pin(WatchStream::new(self.state.subscribe()).map(move |state| Ok(take(state)))))
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Answers<wire::X509svidResponse>;

    async fn fetch_x509svid(&self, _: Request<wire::X509svidRequest>) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.x509_streams.fetch_add(1, Ordering::SeqCst);
        let without_bundle = Arc::clone(&self.without_bundle);
        let answers = self.answers(|state| state.x509_svids).into_inner().map(move |answer| {
            if answer.as_ref().is_ok_and(|a| a.svids.iter().any(|svid| svid.bundle.is_empty())) {
                without_bundle.fetch_add(1, Ordering::SeqCst);
            }
            answer
        });
        Ok(Response::new(Box::pin(answers)))
    }

    type FetchX509BundlesStream = Answers<wire::X509BundlesResponse>;

    async fn fetch_x509_bundles(&self, _: Request<wire::X509BundlesRequest>) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Ok(self.answers(|state| wire::X509BundlesResponse { bundles: state.x509_bundles, ..wire::X509BundlesResponse::default() }))
    }

    async fn fetch_jwtsvid(&self, _: Request<wire::JwtsvidRequest>) -> Result<Response<wire::JwtsvidResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    type FetchJWTBundlesStream = Answers<wire::JwtBundlesResponse>;

    async fn fetch_jwt_bundles(&self, _: Request<wire::JwtBundlesRequest>) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Ok(self.answers(|state| wire::JwtBundlesResponse { bundles: state.jwt_bundles }))
    }

    async fn validate_jwtsvid(&self, _: Request<wire::ValidateJwtsvidRequest>) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        // As an agent says it of a token whose trust domain it has no bundle of.
        Err(Status::invalid_argument("no bundle found for trust domain"))
    }

    type FetchWITSVIDStream = Answers<wire::WitsvidResponse>;

    async fn fetch_witsvid(&self, _: Request<wire::WitsvidRequest>) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    type FetchWITBundlesStream = Answers<wire::WitBundlesResponse>;

    async fn fetch_wit_bundles(&self, _: Request<wire::WitBundlesRequest>) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}
