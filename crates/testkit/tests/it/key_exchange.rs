//! `require_pq_kem`: what the servers' and agents' setting does to their connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use countersign_testkit::domain::{Domain, agent_configuration};
use countersign_transport::client;
use countersign_transport::clock::SystemClock;
use countersign_transport::random::Seeded;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{PeerIncompatible, ServerConfig};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

/// How long an agent may take to call.
const PATIENCE: Duration = Duration::from_secs(20);
const REQUIRED: &str = "experimental {\n require_pq_kem = true\n}";

/// What our side knows without the setting, but for the hybrid.
fn classical() -> Arc<CryptoProvider> {
    let kx_groups = vec![kx_group::X25519, kx_group::SECP256R1];
    Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_requires_post_quantum_key_exchange_serves_agents_that_know_it_and_nobody_else() {
    let domain = Domain::start_with(Arc::new(SystemClock), REQUIRED).await.unwrap();
    domain.agent("a").await.unwrap().stop().await;
    let token = domain.token(None).await.unwrap();
    let config = domain.agent_config("b", Some(&token), REQUIRED).await.unwrap();
    domain.run_agent(&config).await.unwrap().stop().await;
    domain.connect(None).await.unwrap();

    let roots = rustls::RootCertStore::empty();
    let versions = rustls::ClientConfig::builder_with_provider(classical()).with_safe_default_protocol_versions().unwrap();
    let config = versions.with_root_certificates(roots).with_no_client_auth();
    let refusal = client::tls("127.0.0.1", domain.port(), Arc::new(config.clone())).await.unwrap_err().to_string();
    assert!(refusal.ends_with("received fatal alert: HandshakeFailure"), "{refusal}");
    // Without the setting it would get as far as the certificate.
    let open = Domain::start().await.unwrap();
    let refusal = client::tls("127.0.0.1", open.port(), Arc::new(config)).await.unwrap_err();
    assert!(refusal.unknown_authority, "{refusal}");
}

/// A server that anybody believes who does not look closely, and that knows no hybrid; what became of each handshake.
async fn classical_server() -> (u16, mpsc::Receiver<io::Result<()>>) {
    let id = rcgen::SanType::URI("spiffe://example.org/spire/server".try_into().unwrap());
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![id];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let config = ServerConfig::builder_with_provider(classical()).with_safe_default_protocol_versions().unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate], key.into()).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = listener.local_addr().unwrap().port();
    let (sender, handshakes) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = sender.send(acceptor.accept(stream).await.map(drop)).await;
        }
    });
    (port, handshakes)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_requires_post_quantum_key_exchange_shows_nothing_to_a_server_without_it() {
    let domain = Domain::start().await.unwrap();
    let bundle = domain.bundle().await.unwrap().to_pem();
    for (is_required, is_insecure) in [(true, false), (true, true), (false, true)] {
        let (port, mut handshakes) = classical_server().await;
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("bundle.pem"), &bundle).unwrap();
        let mut text = agent_configuration(directory.path(), port, Some("token"), if is_required { REQUIRED } else { "" });
        if is_insecure {
            let bundle = format!("trust_bundle_path = \"{}/bundle.pem\"", directory.path().display());
            assert!(text.contains(&bundle));
            text = text.replace(&bundle, "insecure_bootstrap = true");
        }
        let config = countersign_agent::Config::read(countersign_config::parse("agent.conf", &text).unwrap()).unwrap();
        let agent = tokio::spawn(async move {
            let _ = countersign_agent::start(&config, Arc::new(SystemClock), Arc::new(Seeded::new(1)), "test").await;
        });
        let handshake = tokio::time::timeout(PATIENCE, handshakes.recv()).await.expect("it calls").unwrap();
        agent.abort();
        match handshake {
            Ok(()) => assert!(!is_required, "insecure bootstrap: {is_insecure}"),
            Err(error) => {
                let error = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()).cloned();
                let refused = rustls::Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon);
                assert!(is_required && error.as_ref() == Some(&refused), "insecure bootstrap: {is_insecure}, {error:?}");
            }
        }
    }
}
