//! TLS by SPIFFE ID: our own verifiers over our own path checker, no host names, no resumption.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use countersign_identity::x509::{ChainError, verify_chain};
use countersign_identity::{BundleSet, SpiffeId};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};

use crate::clock::SharedClock;
use crate::key_exchange::KeyExchange;

/// Which SPIFFE IDs may be at the other end. Whether one may do anything is decided call by call.
pub type Admit = Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>;

/// Bundles that a verifier reads at each handshake.
pub type SharedBundles = Arc<ArcSwap<BundleSet>>;

/// The certificate and key presented at the next handshake.
pub type SharedIdentity = Arc<ArcSwap<Option<Arc<CertifiedKey>>>>;

/// A key or certificate that TLS cannot use.
#[derive(Debug, thiserror::Error)]
#[error("the TLS identity cannot be used: {0}")]
pub struct IdentityError(String);

/// The process's crypto provider.
pub fn provider() -> Arc<CryptoProvider> {
    KeyExchange::Any.provider()
}

/// An identity to present: chain, leaf first, and its key as PKCS#8.
///
/// # Errors
/// The key is of a kind that TLS does not know.
pub fn identity(chain: &[Vec<u8>], pkcs8: &[u8]) -> Result<Arc<CertifiedKey>, IdentityError> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.to_vec()));
    let key = provider().key_provider.load_private_key(key).map_err(|e| IdentityError(e.to_string()))?;
    Ok(Arc::new(CertifiedKey::new(chain.iter().map(|der| CertificateDer::from(der.clone())).collect(), key)))
}

/// A server that presents `identity` and asks for a client certificate without demanding one.
///
/// # Errors
/// The provider lacks a protocol version.
pub fn server_config(identity: SharedIdentity, bundles: SharedBundles, admit: Admit, clock: SharedClock) -> Result<ServerConfig, Error> {
    server_config_with(KeyExchange::Any, identity, bundles, admit, clock)
}

/// As [`server_config`], for clients that know such a key exchange.
///
/// # Errors
/// As [`server_config`].
pub fn server_config_with(
    key_exchange: KeyExchange,
    identity: SharedIdentity,
    bundles: SharedBundles,
    admit: Admit,
    clock: SharedClock,
) -> Result<ServerConfig, Error> {
    let verifier = Arc::new(Verifier::new(bundles, admit, clock));
    let mut config = ServerConfig::builder_with_provider(key_exchange.provider())
        .with_protocol_versions(key_exchange.versions())?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Presented(identity)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // INVARIANT: no resumption: every connection verifies its peer anew.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A client that demands a server whose SPIFFE ID is admitted, and presents `identity` if there is one.
///
/// # Errors
/// The provider lacks a protocol version.
pub fn client_config(
    identity: Option<Arc<CertifiedKey>>,
    bundles: SharedBundles,
    admit: Admit,
    clock: SharedClock,
) -> Result<ClientConfig, Error> {
    client_config_with(KeyExchange::Any, identity, bundles, admit, clock)
}

/// As [`client_config`], for servers that know such a key exchange.
///
/// # Errors
/// As [`client_config`].
pub fn client_config_with(
    key_exchange: KeyExchange,
    identity: Option<Arc<CertifiedKey>>,
    bundles: SharedBundles,
    admit: Admit,
    clock: SharedClock,
) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(key_exchange.provider())
        .with_protocol_versions(key_exchange.versions())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(bundles, admit, clock)));
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(Presenting(identity))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// A client that trusts whoever has a certificate with an admitted SPIFFE ID, whoever signed it: SPIRE's insecure bootstrap.
///
/// # Errors
/// The provider lacks a protocol version.
pub fn insecure_client_config(key_exchange: KeyExchange, admit: Admit) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(key_exchange.provider())
        .with_protocol_versions(key_exchange.versions())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(LooksRight { admit, algorithms: provider().signature_verification_algorithms }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

struct Presented(SharedIdentity);

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Presented")
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Option::clone(&self.0.load())
    }
}

#[derive(Debug)]
struct Presenting(Arc<CertifiedKey>);

impl rustls::client::ResolvesClientCert for Presenting {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Verifies X509-SVIDs in both directions.
struct Verifier {
    bundles: SharedBundles,
    admit: Admit,
    clock: SharedClock,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(bundles: SharedBundles, admit: Admit, clock: SharedClock) -> Self {
        Self { bundles, admit, clock, algorithms: provider().signature_verification_algorithms }
    }

    /// The chain must end in the bundle of the leaf's own trust domain at the clock's time, not at rustls's.
    fn check(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<(), Error> {
        tracing::trace!(hop = "verifies a certificate");
        let chain: Vec<&[u8]> = std::iter::once(leaf).chain(rest).map(AsRef::as_ref).collect();
        let (id, _) = verify_chain(&chain, &self.bundles.load(), self.clock.now()).map_err(refuse)?;
        if (self.admit)(&id) { Ok(()) } else { Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) }
    }
}

/// The chain error travels inside the TLS error, so that logs and clients say what was wrong.
fn refuse(error: ChainError) -> Error {
    match error {
        ChainError::UnknownAuthority(_) | ChainError::NoBundle(_) => Error::InvalidCertificate(CertificateError::UnknownIssuer),
        error => Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(error)))),
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(leaf, rest).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(m, c, d, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(m, c, d, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], _: UnixTime) -> Result<ClientCertVerified, Error> {
        self.check(leaf, rest).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(m, c, d, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(m, c, d, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Only looks whether the leaf carries an admitted SPIFFE ID.
struct LooksRight {
    admit: Admit,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for LooksRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LooksRight")
    }
}

impl ServerCertVerifier for LooksRight {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let id = countersign_identity::x509::Certificate::parse(leaf).ok().and_then(|c| c.spiffe_id());
        match id {
            Some(id) if (self.admit)(&id) => Ok(ServerCertVerified::assertion()),
            _ => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(m, c, d, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(m, c, d, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
