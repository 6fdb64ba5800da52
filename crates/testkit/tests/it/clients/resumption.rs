//! A TLS session that is resumed asks nobody whether the peer may come in: the answer is that of its first handshake,
//! whatever was withdrawn since. So no server of the guides resumes one, but for Java's, which cannot do with less than a
//! second.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_identity::x509::Certificate;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, SignatureScheme, SupportedProtocolVersion, version};

use super::language::LANGUAGES;
use super::program::{PATIENCE, Program, until};
use super::workload_api::{Authority, Fake, State};

/// After this time nobody resumes.
const RESUMED_MAX: Duration = Duration::from_secs(1);

#[test]
fn no_server_resumes_a_session_after_a_second() {
    let authority = Authority::new();
    let api = Fake::start(authority.state("/web"));
    for language in LANGUAGES {
        let mut server = Program::start(language, &api.socket(), &["serve", "spiffe://example.org/web"]);
        let port = u16::try_from(server.line()["listening"].as_u64().unwrap()).unwrap();
        for version in [&version::TLS13, &version::TLS12] {
            let client = client(&authority.state("/web"), version);
            ping(&client, port).unwrap_or_else(|e| panic!("{}, {version:?}: {e}", language.name));
            let met = Instant::now();
            until("the session is too old", || (met.elapsed() > 2 * RESUMED_MAX).then_some(()));
            let again = ping(&client, port).unwrap_or_else(|e| panic!("{}, {version:?}: {e}", language.name));
            assert_ne!(again, HandshakeKind::Resumed, "{}, {version:?}", language.name);
        }
    }
}

/// One connection that is answered, and how its handshake went.
pub(super) fn ping(client: &Arc<ClientConfig>, port: u16) -> io::Result<HandshakeKind> {
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut connection = ClientConnection::new(Arc::clone(client), ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST))).unwrap();
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    stream.write_all(b"ping\n")?;
    // Tickets come before the answer.
    let mut answer = String::new();
    BufReader::new(&mut stream).read_line(&mut answer)?;
    if !answer.contains("spiffe://example.org/web") {
        return Err(io::Error::other(format!("no answer: `{answer}`")));
    }
    Ok(connection.handshake_kind().unwrap())
}

/// A client that resumes whatever it can. It keeps to no lifetime that a server asks for, because its time stands still.
pub(super) fn client(state: &State, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let svid = &state.x509_svids.svids[0];
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = Certificate::parse_concatenated(&svid.x509_svid).unwrap();
    let chain = chain.iter().map(|certificate| CertificateDer::from(certificate.der().to_vec())).collect();
    let key = PrivatePkcs8KeyDer::from(svid.x509_svid_key.clone());
    let config = ClientConfig::builder_with_details(Arc::clone(&provider), Arc::new(StoppedClock(UnixTime::now())))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_client_auth_cert(chain, key.into())
        .unwrap();
    Arc::new(config)
}

#[derive(Debug)]
struct StoppedClock(UnixTime);

impl TimeProvider for StoppedClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

/// Who the server is does not matter here.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
