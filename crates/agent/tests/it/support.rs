//! A small trust domain with one agent, and what tests do with it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_agent::Running;
use countersign_identity::key::KeyType;
use countersign_identity::x509::{Certificate, verify_chain};
use countersign_identity::{Bundle, BundleSet, Selector, SpiffeId, Timestamp, TrustDomain};
use countersign_plugins::keys::KeyPair;
use countersign_testkit::clock::VirtualClock;
use countersign_testkit::domain::{Domain, own_uid, spiffe_id, trust_domain, until};
use countersign_testkit::workload::{Workload, first};
use countersign_transport::clock::{SharedClock, SystemClock};
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::bundle_api::{
    BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest, batch_delete_federated_bundle_request,
};
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::{BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest};
use countersign_wire::journal::journal_client::JournalClient;
use countersign_wire::journal::{IssuedRequest, Kind, Record};
use countersign_wire::workload::{X509svid, X509svidResponse};
use countersign_wire::{agent, id, types};
use tonic::{Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The own bundle's key in messages.
pub const OWN: &str = "spiffe://example.org";

/// A server, and an agent with the alias `/node/a`.
pub struct World {
    pub domain: Domain,
    pub agent: Option<Running>,
    pub clock: SharedClock,
}

impl World {
    pub async fn start() -> Self {
        Self::with("", "").await
    }

    /// With more lines in the `server` and in the `agent` block.
    pub async fn with(server: &str, agent: &str) -> Self {
        Self::at(Arc::new(SystemClock), server, agent).await
    }

    /// With time that stands still until the test moves it.
    pub async fn still(server: &str, agent: &str) -> (Self, VirtualClock) {
        let clock = VirtualClock::at_present();
        (Self::at(Arc::new(clock.clone()), server, agent).await, clock)
    }

    async fn at(clock: SharedClock, server: &str, agent: &str) -> Self {
        let mut world = Self::without_agent(clock, server).await;
        let config = world.config(true, agent).await;
        world.run(&config).await;
        // Before a test moves the clock under it, the agent knows what there is.
        let health = HealthClient::new(world.workload().await.channel);
        let look =
            || async { health.clone().check(HealthCheckRequest::default()).await.is_ok_and(|a| a.into_inner().status == 1).then_some(()) };
        until("the agent is healthy", look).await.unwrap();
        world
    }

    pub async fn without_agent(clock: SharedClock, server: &str) -> Self {
        Self { domain: Domain::start_with(Arc::clone(&clock), server).await.unwrap(), agent: None, clock }
    }

    /// The agent's configuration, with a new token if wanted.
    pub async fn config(&self, token: bool, extra: &str) -> countersign_agent::Config {
        let token = if token { Some(self.domain.token(Some(&node())).await.unwrap()) } else { None };
        self.domain.agent_config("a", token.as_deref(), extra).await.unwrap()
    }

    pub async fn run(&mut self, config: &countersign_agent::Config) {
        self.agent = Some(self.domain.run_agent(config).await.unwrap());
    }

    /// Stops the agent and starts it again without a token.
    pub async fn restart_agent(&mut self) {
        self.stop_agent().await;
        let config = self.config(false, "").await;
        self.run(&config).await;
    }

    pub async fn stop_agent(&mut self) {
        self.agent.take().unwrap().stop().await;
    }

    /// A file of the agent.
    pub fn file(&self, name: &str) -> PathBuf {
        self.domain.directory().join("a").join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.file("agent.sock")
    }

    pub async fn workload(&self) -> Workload {
        Workload::connect(&self.socket()).await.unwrap()
    }

    /// An entry for every process of this user.
    pub async fn entry(&self, path: &str) -> types::Entry {
        self.entry_with(path, |_| {}).await
    }

    pub async fn entry_with(&self, path: &str, change: impl FnOnce(&mut types::Entry)) -> types::Entry {
        let mut entry = message(path, &[own_uid()]);
        change(&mut entry);
        let own = id::selectors_to_wire(&[own_uid()]) == entry.selectors;
        let entry = self.domain.entry_from(entry).await.unwrap();
        if own && self.agent.is_some() {
            self.served().await;
        }
        entry
    }

    /// Returns once this process has an identity: pushing one takes some milliseconds.
    pub async fn served(&self) {
        let workload = self.workload().await;
        let look = || async { first(workload.x509_bundles().await.unwrap()).await.ok() };
        until("this process has an identity", look).await.unwrap();
    }

    /// Creates many at once.
    pub async fn entries(&self, entries: Vec<types::Entry>) {
        let mut client = EntryClient::new(self.domain.admin().await.unwrap());
        let answer = client.batch_create_entry(BatchCreateEntryRequest { entries, output_mask: None }).await.unwrap().into_inner();
        assert!(answer.results.iter().all(|r| r.status.as_ref().is_none_or(|s| s.code == 0)));
    }

    pub async fn update(&self, entry: &types::Entry, change: impl FnOnce(&mut types::Entry)) -> types::Entry {
        let mut entry = entry.clone();
        change(&mut entry);
        let request = BatchUpdateEntryRequest { entries: vec![entry], ..BatchUpdateEntryRequest::default() };
        let answer = EntryClient::new(self.domain.admin().await.unwrap()).batch_update_entry(request).await.unwrap().into_inner();
        let result = answer.results.into_iter().next().unwrap();
        assert_eq!(result.status.unwrap_or_default().message, "OK");
        result.entry.unwrap()
    }

    pub async fn delete(&self, entry: &types::Entry) {
        let request = BatchDeleteEntryRequest { ids: vec![entry.id.clone()] };
        EntryClient::new(self.domain.admin().await.unwrap()).batch_delete_entry(request).await.unwrap();
    }

    pub async fn set_bundle(&self, bundle: types::Bundle) {
        let request = BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None };
        let answer = BundleClient::new(self.domain.admin().await.unwrap()).batch_set_federated_bundle(request).await.unwrap().into_inner();
        assert_eq!(answer.results[0].status.clone().unwrap_or_default().code, 0, "{answer:?}");
    }

    pub async fn delete_bundle(&self, trust_domain: &str) {
        let mode = batch_delete_federated_bundle_request::Mode::Dissociate.into();
        let request = BatchDeleteFederatedBundleRequest { trust_domains: vec![trust_domain.to_owned()], mode };
        BundleClient::new(self.domain.admin().await.unwrap()).batch_delete_federated_bundle(request).await.unwrap();
    }

    /// What the journal says was issued of this kind.
    pub async fn issued(&self, kind: Kind) -> Vec<Record> {
        let request = IssuedRequest { limit: 100_000, ..IssuedRequest::default() };
        let mut stream = JournalClient::new(self.domain.admin().await.unwrap()).issued(request).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(record) = stream.message().await.unwrap() {
            if record.kind() == kind {
                found.push(record);
            }
        }
        found
    }

    /// The agent's own SPIFFE ID, from its SVID on disk; nothing if it has none.
    pub fn agent_leaf(&self) -> Option<Certificate> {
        let text = std::fs::read_to_string(self.file("agent-data.json")).ok()?;
        let data: serde_json::Value = serde_json::from_str(&text).ok()?;
        let pem = base64::engine::general_purpose::STANDARD.decode(data["svid"][0].as_str()?).ok()?;
        let (_, der) = countersign_identity::pem::read(std::str::from_utf8(&pem).ok()?).ok()?.into_iter().next()?;
        Certificate::parse(&der).ok()
    }

    pub fn agent_id(&self) -> SpiffeId {
        self.agent_leaf().unwrap().spiffe_id().unwrap()
    }

    pub async fn ban(&self) {
        let id = Some(id::to_wire(&self.agent_id()));
        AgentClient::new(self.domain.admin().await.unwrap()).ban_agent(agent::BanAgentRequest { id }).await.unwrap();
    }

    pub async fn evict(&self) {
        let id = Some(id::to_wire(&self.agent_id()));
        AgentClient::new(self.domain.admin().await.unwrap()).delete_agent(agent::DeleteAgentRequest { id }).await.unwrap();
    }
}

/// The agent's alias, which entries hang below.
pub fn node() -> SpiffeId {
    spiffe_id("/node/a")
}

/// An entry as it is asked for.
pub fn message(path: &str, selectors: &[Selector]) -> types::Entry {
    types::Entry {
        spiffe_id: Some(id::to_wire(&spiffe_id(path))),
        parent_id: Some(id::to_wire(&node())),
        selectors: id::selectors_to_wire(selectors),
        ..types::Entry::default()
    }
}

pub fn selector(text: &str) -> Selector {
    Selector::parse(text).unwrap()
}

/// The next message; fails the test if none comes.
pub async fn next<T>(stream: &mut Streaming<T>) -> T {
    answer(stream).await.expect("no error").expect("no end")
}

/// The next message, error or end.
pub async fn answer<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    tokio::time::timeout(PATIENCE, stream.message()).await.expect("something comes in time")
}

/// Reads messages until one fits.
pub async fn next_with<T>(stream: &mut Streaming<T>, fits: impl Fn(&T) -> bool) -> T {
    loop {
        let message = next(stream).await;
        if fits(&message) {
            return message;
        }
    }
}

/// The paths of a message's identities, in its order.
pub fn paths(message: &X509svidResponse) -> Vec<&str> {
    message.svids.iter().map(|s| s.spiffe_id.strip_prefix(OWN).unwrap()).collect()
}

/// Checks everything about an SVID that a careful client checks, and returns its leaf.
pub fn verify(svid: &X509svid, now: Timestamp) -> Certificate {
    let chain = Certificate::parse_concatenated(&svid.x509_svid).unwrap();
    let ders: Vec<&[u8]> = chain.iter().map(Certificate::der).collect();
    let bundles = BundleSet::from_iter([Arc::new(x509_bundle(&trust_domain(), &svid.bundle))]);
    let (id, leaf) = verify_chain(&ders, &bundles, now).unwrap();
    assert_eq!(id.as_str(), svid.spiffe_id);
    let pair = KeyPair::from_pkcs8(&svid.x509_svid_key).unwrap();
    assert_eq!(*pair.public_key(), leaf.public_key, "the key belongs to the leaf");
    leaf
}

/// A bundle from concatenated DER.
pub fn x509_bundle(trust_domain: &TrustDomain, der: &[u8]) -> Bundle {
    let mut bundle = Bundle::empty(trust_domain.clone());
    for certificate in Certificate::parse_concatenated(der).unwrap() {
        bundle.add_x509_authority(certificate, false).unwrap();
    }
    bundle
}

/// Another trust domain, of which only its keys exist.
pub struct Foreign {
    pub trust_domain: TrustDomain,
    pub root: Vec<u8>,
    pair: KeyPair,
}

impl Foreign {
    pub fn new(name: &str) -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![rcgen::SanType::URI(format!("spiffe://{name}").as_str().try_into().unwrap())];
        let root = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec();
        Self { trust_domain: TrustDomain::parse(name).unwrap(), root, pair: KeyPair::generate(KeyType::EcP256).unwrap() }
    }

    pub fn bundle(&self) -> types::Bundle {
        let key = types::JwtKey {
            public_key: self.pair.public_key().spki().to_vec(),
            key_id: "foreign-key".to_owned(),
            ..types::JwtKey::default()
        };
        types::Bundle {
            trust_domain: self.trust_domain.name().to_owned(),
            x509_authorities: vec![types::X509Certificate { asn1: self.root.clone(), tainted: false }],
            jwt_authorities: vec![key],
            refresh_hint: 0,
            sequence_number: 1,
            wit_authorities: Vec::new(),
        }
    }

    /// A token of this trust domain with these claims.
    pub fn token(&self, claims: &serde_json::Value) -> String {
        let header = serde_json::json!({"alg": "ES256", "kid": "foreign-key", "typ": "JWT"});
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self.pair.sign(self.pair.algorithm(), input.as_bytes()).unwrap();
        countersign_identity::jwt::assemble(&input, self.pair.algorithm(), &signature).unwrap()
    }
}

/// The claims of a token, not verified.
pub fn claims(token: &str) -> serde_json::Map<String, serde_json::Value> {
    countersign_identity::jwt::peek(token).unwrap()
}

/// A protobuf struct as JSON, to compare.
pub fn json(fields: prost_types::Struct) -> BTreeMap<String, serde_json::Value> {
    fn convert(value: prost_types::Value) -> serde_json::Value {
        use prost_types::value::Kind::{BoolValue, ListValue, NullValue, NumberValue, StringValue, StructValue};
        match value.kind.unwrap() {
            NullValue(_) => serde_json::Value::Null,
            BoolValue(b) => b.into(),
            NumberValue(n) => n.into(),
            StringValue(s) => s.into(),
            ListValue(list) => list.values.into_iter().map(convert).collect(),
            StructValue(fields) => json(fields).into_iter().collect(),
        }
    }
    fields.fields.into_iter().map(|(name, v)| (name, convert(v))).collect()
}
