//! What every test here needs: clients, identities of every kind, and short ways to ask and to look.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use countersign_identity::key::KeyType;
use countersign_identity::x509::Certificate;
use countersign_identity::{Bundle, BundleSet, SpiffeId, TrustDomain};
use countersign_plugins::keys::KeyPair;
pub use countersign_testkit::clock::VirtualClock;
pub use countersign_testkit::domain::{Anyhow, Domain, NodeIdentity, spiffe_id, trust_domain, until};
use countersign_transport::{client, tls};
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::types::permission_denied_details::Reason;
use countersign_wire::{agent, bundle, entry_api, id, svid, types};
use prost::Message as _;
use tonic::Status;
use tonic::transport::Channel;

/// How long anything awaited may take before the test has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub const HOUR: Duration = Duration::from_secs(3600);

/// A little more than the time between two rounds of the server's jobs.
pub const ROUND: Duration = Duration::from_secs(31);

/// A server whose time the test moves.
pub async fn virtual_domain(extra: &str) -> (Domain, VirtualClock) {
    let clock = VirtualClock::at_present();
    (Domain::start_with(Arc::new(clock.clone()), extra).await.unwrap(), clock)
}

pub async fn entries(domain: &Domain) -> EntryClient<Channel> {
    EntryClient::new(domain.admin().await.unwrap()).max_decoding_message_size(64 << 20)
}

pub async fn agents(domain: &Domain) -> AgentClient<Channel> {
    AgentClient::new(domain.admin().await.unwrap())
}

pub async fn bundles(domain: &Domain) -> BundleClient<Channel> {
    BundleClient::new(domain.admin().await.unwrap())
}

pub async fn svids(domain: &Domain) -> SvidClient<Channel> {
    SvidClient::new(domain.admin().await.unwrap())
}

/// A node that joined with a new token, without an alias.
pub async fn node(domain: &Domain) -> NodeIdentity {
    domain.join(&domain.token(None).await.unwrap()).await.unwrap()
}

pub fn key() -> Arc<KeyPair> {
    Arc::new(KeyPair::generate(KeyType::EcP256).unwrap())
}

/// An entry as a client writes it down.
pub fn entry(parent: &SpiffeId, path: &str, selectors: &[&str]) -> types::Entry {
    types::Entry {
        spiffe_id: Some(id::to_wire(&spiffe_id(path))),
        parent_id: Some(id::to_wire(parent)),
        selectors: selectors.iter().map(|value| types::Selector { r#type: "unix".to_owned(), value: (*value).to_owned() }).collect(),
        ..types::Entry::default()
    }
}

/// The identity of a workload, as its agent gets it by `BatchNewX509SVID`.
pub async fn workload(domain: &Domain, agent: &NodeIdentity, entry: &types::Entry) -> NodeIdentity {
    let pair = key();
    let params = vec![svid::NewX509svidParams { entry_id: entry.id.clone(), csr: pair.request(None, &[]).unwrap() }];
    let mut client = SvidClient::new(domain.connect(Some(agent)).await.unwrap());
    let results = client.batch_new_x509svid(svid::BatchNewX509svidRequest { params }).await.unwrap().into_inner().results;
    assert_eq!(results[0].status.as_ref().unwrap().code, 0, "{:?}", results[0].status);
    identity(results[0].svid.clone().unwrap(), pair)
}

/// An identity that the server minted for an administrator.
pub async fn minted(domain: &Domain, id: &SpiffeId) -> NodeIdentity {
    let pair = key();
    let request = svid::MintX509svidRequest { csr: pair.request(Some(id), &[]).unwrap(), ttl: 0 };
    let answer = svids(domain).await.mint_x509svid(request).await.unwrap().into_inner();
    identity(answer.svid.unwrap(), pair)
}

pub fn identity(svid: types::X509svid, pair: Arc<KeyPair>) -> NodeIdentity {
    let leaf = Certificate::parse(&svid.cert_chain[0]).unwrap();
    NodeIdentity { id: leaf.spiffe_id().unwrap(), chain: svid.cert_chain, pair, leaf }
}

/// A certificate authority that the server did not make.
pub struct Foreign {
    pub trust_domain: TrustDomain,
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Foreign {
    pub fn new(name: &str) -> Self {
        let trust_domain = TrustDomain::parse(name).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![rcgen::SanType::URI(trust_domain.id().as_str().try_into().unwrap())];
        let issuer = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        Self { trust_domain, issuer }
    }

    pub fn root(&self) -> Certificate {
        Certificate::parse(self.issuer.der()).unwrap()
    }

    pub fn bundle(&self) -> Bundle {
        let mut bundle = Bundle::empty(self.trust_domain.clone());
        bundle.add_x509_authority(self.root(), false).unwrap();
        bundle
    }

    pub fn wire(&self, sequence_number: u64) -> types::Bundle {
        types::Bundle { sequence_number, ..bundle::to_wire(&self.bundle()) }
    }

    /// An identity it signed, whatever the trust domain.
    pub fn identity(&self, id: &str) -> NodeIdentity {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        let pair = Arc::new(KeyPair::from_pkcs8(&key.serialize_der()).unwrap());
        let leaf = Certificate::parse(&der).unwrap();
        NodeIdentity { id: SpiffeId::parse(id).unwrap(), chain: vec![der], pair, leaf }
    }
}

/// A connection that presents a certificate as it is, without looking at it first.
pub async fn present(domain: &Domain, who: &NodeIdentity) -> Result<Channel, Anyhow> {
    let bundles = Arc::new(arc_swap::ArcSwap::from_pointee(BundleSet::from_iter([Arc::new(domain.bundle().await?)])));
    let server_id = trust_domain().server_id();
    let identity = tls::identity(&who.chain, who.pair.pkcs8())?;
    let config = tls::client_config(Some(identity), bundles, Arc::new(move |id| *id == server_id), Arc::clone(&domain.clock))?;
    Ok(client::tls("127.0.0.1", domain.port(), Arc::new(config)).await?)
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// The reason inside a PERMISSION_DENIED, as agents read it.
pub fn reason(status: &Status) -> Option<Reason> {
    if status.details().is_empty() {
        return None;
    }
    let rpc = RpcStatus::decode(status.details()).unwrap();
    assert_eq!((rpc.code, rpc.message.as_str()), (i32::from(status.code()), status.message()));
    let [any] = rpc.details.as_slice() else { panic!("{} details", rpc.details.len()) };
    assert_eq!(any.type_url, "type.googleapis.com/spire.api.types.PermissionDeniedDetails");
    Some(types::PermissionDeniedDetails::decode(any.value.as_slice()).unwrap().reason())
}

/// Ends the test when something takes too long.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(done) => done,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

/// Polls a call this many times, each time when it is woken, and hangs up. What it answered, if it did before.
pub async fn hung_up<T>(polls: usize, call: impl Future<Output = T>) -> Option<T> {
    let mut call = std::pin::pin!(call);
    let mut left = polls;
    std::future::poll_fn(move |cx| {
        left = left.saturating_sub(1);
        match call.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

pub fn id_to_wire(id: &SpiffeId) -> types::Spiffeid {
    id::to_wire(id)
}

/// The renewed identity of a node; nothing has used it yet.
pub async fn renewed(domain: &Domain, node: &NodeIdentity) -> NodeIdentity {
    let pair = key();
    let params = Some(agent::AgentX509svidParams { csr: pair.request(None, &[]).unwrap() });
    let mut client = AgentClient::new(domain.connect(Some(node)).await.unwrap());
    let answer = client.renew_agent(agent::RenewAgentRequest { params }).await.unwrap().into_inner();
    identity(answer.svid.unwrap(), pair)
}

/// The entry as it is afterwards, or the status of the item.
pub async fn update(domain: &Domain, entry: types::Entry, input_mask: Option<types::EntryMask>) -> Result<types::Entry, types::Status> {
    let request = entry_api::BatchUpdateEntryRequest { entries: vec![entry], input_mask, output_mask: None };
    let mut results = entries(domain).await.batch_update_entry(request).await.unwrap().into_inner().results;
    let result = results.remove(0);
    result.entry.ok_or_else(|| result.status.unwrap())
}

pub async fn delete(domain: &Domain, id: &str) -> Result<(), types::Status> {
    let request = entry_api::BatchDeleteEntryRequest { ids: vec![id.to_owned()] };
    let mut results = entries(domain).await.batch_delete_entry(request).await.unwrap().into_inner().results;
    let result = results.remove(0);
    assert_eq!(result.id, id);
    match result.status.unwrap() {
        types::Status { code: 0, .. } => Ok(()),
        status => Err(status),
    }
}

/// Every entry there is.
pub async fn list(domain: &Domain) -> Vec<types::Entry> {
    entries(domain).await.list_entries(entry_api::ListEntriesRequest::default()).await.unwrap().into_inner().entries
}

/// A request whose signature is another key's.
pub fn forged_request() -> Vec<u8> {
    let (owner, thief) = (key(), key());
    let info = countersign_identity::csr::request_info(owner.public_key(), None, &[]);
    let signature = thief.sign(thief.algorithm(), &info).unwrap();
    countersign_identity::csr::assemble(&info, thief.algorithm(), &signature)
}

/// How to open the domain's store beside or instead of its server.
pub fn store_options(domain: &Domain) -> countersign_store::Options {
    let clock = Arc::clone(&domain.clock);
    let path = domain.directory().join("server/store.sqlite3");
    countersign_store::Options { path, vfs: None, now: Arc::new(move || clock.now()) }
}

/// Waits for something that a job does now and then, moving the clock on by this much each time nothing has come of it.
pub async fn rounds<T>(what: &str, clock: &VirtualClock, step: Duration, look: impl AsyncFn() -> Option<T>) -> T {
    for _ in 0..50 {
        clock.advance(step);
        let patience = tokio::time::Instant::now() + Duration::from_millis(300);
        while tokio::time::Instant::now() < patience {
            if let Some(found) = look().await {
                return found;
            }
            tokio::task::yield_now().await;
        }
    }
    panic!("waited in vain: {what}");
}

/// Gives a node selectors, as an attestor that finds some would have. The server must not run.
pub async fn select(domain: &Domain, node: &SpiffeId, values: &[&str]) {
    let store = countersign_store::Store::open(&store_options(domain)).unwrap();
    let selectors = values.iter().map(|value| countersign_identity::Selector::new("unix", value).unwrap()).collect();
    let selectors = countersign_identity::selector::sorted(selectors);
    let node = node.clone();
    let written = store.write(countersign_store::Actor::server(), move |draft| {
        let known = draft.snapshot().node(&node).unwrap();
        let selected = countersign_store::Node { selectors: selectors.clone(), ..countersign_store::Node::clone(known) };
        draft.change(countersign_store::Change::NodePut(Arc::new(selected)));
        Ok(())
    });
    written.await.unwrap();
}

/// Waits until the server has a certificate of its own again that is in force, after the clock was moved beyond its end.
pub async fn settled(domain: &Domain) {
    until("the server's own certificate", async || domain.connect(None).await.ok()).await.unwrap();
}
