//! Real handshakes over TCP, between ends that know different key exchanges.

use std::io::Write;
use std::sync::Mutex;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, NamedGroup, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::StreamExt as _;

use super::*;
use crate::clock::SystemClock;
use crate::proxy::Proxies;
use crate::{client, tcp, tls};

type Groups = Vec<&'static dyn rustls::crypto::SupportedKxGroup>;
type Versions = &'static [&'static SupportedProtocolVersion];

static TLS12: Versions = &[&version::TLS12];
static TLS13: Versions = &[&version::TLS13];

fn classical() -> Groups {
    vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1]
}

fn provider(kx_groups: Groups) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() })
}

/// A certificate for the name that clients use, and its key as PKCS#8.
struct Certificate {
    der: CertificateDer<'static>,
    pkcs8: Vec<u8>,
}

impl Certificate {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["countersign.invalid".to_owned()]).expect("a certificate");
        Self { der: made.cert.der().clone(), pkcs8: made.signing_key.serialize_der() }
    }

    fn client(&self, groups: Groups, versions: Versions) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).expect("a root");
        let config = ClientConfig::builder_with_provider(provider(groups)).with_protocol_versions(versions).expect("versions");
        config.with_root_certificates(roots).with_no_client_auth()
    }

    fn server(&self, groups: Groups, versions: Versions) -> ServerConfig {
        let config = ServerConfig::builder_with_provider(provider(groups)).with_protocol_versions(versions).expect("versions");
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(self.pkcs8.clone()).into();
        config.with_no_client_auth().with_single_cert(vec![self.der.clone()], key).expect("an identity")
    }

    /// Our server's side.
    fn ours(&self, key_exchange: KeyExchange) -> ServerConfig {
        let identity = tls::identity(&[self.der.to_vec()], &self.pkcs8).expect("an identity");
        let identity = Arc::new(ArcSwap::from_pointee(Some(identity)));
        tls::server_config_with(key_exchange, identity, Arc::default(), Arc::new(|_| true), Arc::new(SystemClock)).expect("a server")
    }
}

/// Our server's door, for as long as the test runs.
async fn door(config: ServerConfig) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut incoming = tcp::incoming(listener, Arc::new(config), Arc::default(), Proxies::default());
    tokio::spawn(async move { while incoming.next().await.is_some() {} });
    port
}

/// The group that a handshake with our server ends with.
async fn shake(port: u16, config: ClientConfig) -> io::Result<NamedGroup> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = "countersign.invalid".try_into().expect("a name");
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let group = stream.get_ref().1.negotiated_key_exchange_group().map(|group| group.name());
    group.ok_or_else(|| io::Error::other("no group"))
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("the log").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_server_that_demands_it_lets_hybrid_clients_in_and_says_whom_it_refuses() {
    let log = Log::default();
    let writer = log.clone();
    let _logging =
        tracing::subscriber::set_default(tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish());
    let certificate = Certificate::new();
    let port = door(certificate.ours(KeyExchange::PostQuantum)).await;
    let all = || aws_lc_rs::default_provider().kx_groups;
    assert_eq!(shake(port, certificate.client(all(), KeyExchange::Any.versions())).await.expect("let in"), NamedGroup::X25519MLKEM768);
    let other = vec![kx_group::SECP256R1MLKEM768];
    assert_eq!(shake(port, certificate.client(other, TLS13)).await.expect("let in"), NamedGroup::secp256r1MLKEM768);
    assert!(log.0.lock().expect("the log").is_empty());

    for (groups, versions) in [(classical(), TLS13), (classical(), KeyExchange::Any.versions()), (all(), TLS12)] {
        let refusal = shake(port, certificate.client(groups, versions)).await.expect_err("it is refused").to_string();
        assert!(refusal.contains("HandshakeFailure") || refusal.contains("ProtocolVersion"), "{refusal}");
    }
    let said = String::from_utf8(log.0.lock().expect("the log").clone()).expect("text");
    assert_eq!(said.lines().count(), 1, "one line a minute: {said}");
    assert!(said.contains("WARN") && said.contains("Refused a TLS connection without post-quantum key exchange"), "{said}");
    assert!(said.contains("`experimental.require_pq_kem` is set") && said.contains("address=127.0.0.1:"), "{said}");
}

#[tokio::test]
async fn a_server_that_demands_nothing_takes_the_best_that_both_know() {
    let certificate = Certificate::new();
    let port = door(certificate.ours(KeyExchange::Any)).await;
    let all = aws_lc_rs::default_provider().kx_groups;
    assert_eq!(shake(port, certificate.client(all, TLS13)).await.expect("let in"), NamedGroup::X25519MLKEM768);
    assert_eq!(shake(port, certificate.client(classical(), TLS13)).await.expect("let in"), NamedGroup::X25519);
    assert_eq!(shake(port, certificate.client(vec![kx_group::SECP384R1], TLS12)).await.expect("let in"), NamedGroup::secp384r1);
}

#[tokio::test]
async fn a_client_that_demands_it_refuses_other_servers_and_names_the_setting() {
    let certificate = Certificate::new();
    let connect = |key_exchange, config: ServerConfig| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let served = tokio::spawn(async move { acceptor.accept(listener.accept().await?.0).await.map(drop) });
        let admit: tls::Admit = Arc::new(|_| true);
        let ours = tls::client_config_with(key_exchange, None, Arc::default(), admit, Arc::new(SystemClock)).expect("a client");
        let error = client::tls("127.0.0.1", port, Arc::new(ours)).await.expect_err("nobody is trusted here");
        assert!(served.await.expect("not cancelled").is_err());
        error
    };
    let blame = "; `experimental.require_pq_kem` is set, and the other end may know no post-quantum key exchange or no TLS 1.3";
    for versions in [TLS13, TLS12] {
        let error = connect(KeyExchange::PostQuantum, certificate.server(classical(), versions)).await;
        assert!(error.to_string().ends_with(blame), "{error}");
        let error = connect(KeyExchange::Any, certificate.server(classical(), versions)).await;
        assert!(error.to_string().contains("invalid peer certificate"), "it gets as far as the certificate: {error}");
    }
    // Where both know one, what is wrong with a certificate is said as ever.
    let error = connect(KeyExchange::PostQuantum, certificate.ours(KeyExchange::Any)).await;
    assert!(error.to_string().contains("invalid peer certificate") && !error.to_string().contains("require_pq_kem"), "{error}");
}
