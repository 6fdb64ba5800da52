//! Authorities and node certificates of every kind, good and bad, and both halves made from them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_config::ConfigError;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};

use crate::Pending;
use crate::node::x509pop::{Agent, Server, Svid, SvidSource};
use crate::node::{AgentHalf, AttestError, Attested, Circumstances, Conversation, ServerHalf};

pub(super) type Authority = CertifiedIssuer<'static, KeyPair>;

/// A certificate with its key.
pub(super) struct Leaf {
    pub(super) der: Vec<u8>,
    pub(super) key: KeyPair,
}

pub(super) fn authority_params(name: &str) -> CertificateParams {
    let mut params = leaf_params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(super) fn leaf_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationalUnitName, "Rack 7");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2035, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x0a, 0x1b, 0x2c]));
    params
}

pub(super) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(super) fn root(name: &str) -> Authority {
    CertifiedIssuer::self_signed(authority_params(name), KeyPair::generate().unwrap()).unwrap()
}

pub(super) fn below(issuer: &Authority, params: CertificateParams) -> Authority {
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), issuer).unwrap()
}

pub(super) fn leaf_of(issuer: &Authority, params: &CertificateParams, key: KeyPair) -> Leaf {
    Leaf { der: params.signed_by(&key, issuer).unwrap().der().to_vec(), key }
}

pub(super) fn leaf(issuer: &Authority, name: &str) -> Leaf {
    leaf_of(issuer, &leaf_params(name), KeyPair::generate().unwrap())
}

pub(super) fn pem(certificates: &[&[u8]]) -> String {
    certificates.iter().map(|der| countersign_identity::pem::write("CERTIFICATE", der)).collect()
}

/// Writes a file and returns its path.
pub(super) fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// The server's half with these settings.
pub(super) fn configured(settings: &str) -> Result<Server, ConfigError> {
    let data = countersign_config::parse("server.conf", settings).unwrap();
    Server::read(&data.clone(), data)
}

/// The server's half that trusts these authorities, with more settings.
pub(super) fn server(directory: &Path, roots: &[&Authority], settings: &str) -> Server {
    let ders: Vec<&[u8]> = roots.iter().map(|r| r.der().as_ref()).collect();
    let path = write(directory, "ca.pem", &pem(&ders));
    configured(&format!("ca_bundle_path = \"{}\"\n{settings}", path.display())).unwrap()
}

pub(super) struct NoSource;

impl SvidSource for NoSource {
    fn fetch<'a>(&'a self, _: &'a Path) -> Pending<'a, Result<Svid, String>> {
        Box::pin(async { Err("unable to fetch SVID from workload API: nobody is there".to_owned()) })
    }
}

/// The agent's half with these settings.
pub(super) fn agent_configured(settings: &str) -> Result<Agent, ConfigError> {
    let data = countersign_config::parse("agent.conf", settings).unwrap();
    Agent::read(&data.clone(), data, Arc::new(NoSource))
}

/// The agent's half that shows this chain, leaf first, and has this key.
pub(super) fn agent(directory: &Path, chain: &[&[u8]], key: &KeyPair) -> Agent {
    let certificate = write(directory, "node.pem", &pem(chain));
    let key = write(directory, "node.key", &key.serialize_pem());
    agent_configured(&format!("certificate_path = \"{}\"\nprivate_key_path = \"{}\"", certificate.display(), key.display())).unwrap()
}

/// Both halves in conversation.
pub(super) struct Straight(pub(super) Box<dyn crate::node::Answers>);

impl Conversation for Straight {
    fn challenge(&mut self, challenge: Vec<u8>) -> Pending<'_, Result<Vec<u8>, AttestError>> {
        Box::pin(async move { self.0.answer(&challenge).await })
    }
}

/// An honest attempt of this agent with this server.
pub(super) async fn attempt(server: &Server, agent: &Agent, circumstances: &Circumstances) -> Result<Attested, AttestError> {
    let attempt = agent.begin().await?;
    server.attest(&attempt.payload, circumstances, &mut Straight(attempt.answers)).await
}
