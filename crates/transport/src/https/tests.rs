//! Against a server that does what a test says.

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A server for `localhost` that answers every request with these bytes, and who vouches for it.
async fn server(answer: Vec<u8>) -> (u16, Arc<RootCertStore>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let der: CertificateDer<'static> = made.cert.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(der.clone()).expect("a root");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().expect("versions");
    let config = config.with_no_client_auth().with_single_cert(vec![der], key).expect("an identity");
    let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.expect("a port"));
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await?;
                stream.write_all(&answer).await?;
                stream.shutdown().await
            });
        }
    });
    (port, Arc::new(roots))
}

fn page(head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn fetch(host: &str, port: u16, roots: &Arc<RootCertStore>) -> Result<Vec<u8>, String> {
    let uri = address(&format!("https://{host}:{port}/one?x=y"), &Scheme::HTTPS).expect("an address");
    get(&uri, Way::Tls(roots), 16).await
}

#[tokio::test]
async fn a_server_proves_itself_by_its_name() {
    let (port, roots) = server(page("200 OK", "a bundle")).await;
    assert_eq!(fetch("localhost", port, &roots).await, Ok(b"a bundle".to_vec()));
    let (_, of_another) = server(Vec::new()).await;
    let stranger = fetch("localhost", port, &of_another).await.expect_err("nobody we trust vouches for it");
    assert!(stranger.contains("UnknownIssuer") || stranger.contains("BadSignature"), "{stranger}");
    let other_name = fetch("127.0.0.1", port, &roots).await.expect_err("it has another name");
    assert!(other_name.contains("not valid for name"), "{other_name}");
}

#[tokio::test]
async fn what_is_too_long_or_no_document_is_refused() {
    for (answer, expected) in [
        (page("200 OK", "seventeen letters"), "it has more than 16 bytes"),
        (page("500 Internal Server Error", ""), "it answers 500 Internal Server Error"),
        (page("302 Found\r\nLocation: /again", ""), "it redirects more than 10 times"),
        (
            page("302 Found\r\nLocation: http://localhost/?key=s3cret", ""),
            "it redirects to `http://localhost/`: it must start with https://",
        ),
        (page("304 Not Modified", ""), "it answers 304 Not Modified"),
    ] {
        let (port, roots) = server(answer).await;
        assert_eq!(fetch("localhost", port, &roots).await, Err(expected.to_owned()));
    }
    // Without an end that is told, too.
    let (port, roots) = server([&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[b'x'; 1 << 16]].concat()).await;
    assert_eq!(fetch("localhost", port, &roots).await, Err("it has more than 16 bytes".to_owned()));
}

#[test]
fn addresses_that_lead_nowhere_are_refused() {
    for (text, expected) in [
        ("http://a", "it must start with https://"),
        ("/a", "it must start with https://"),
        ("https://u:p@a/", "it must not carry a user name or password"),
        ("https://:80/", "it names no host"),
    ] {
        assert_eq!(address(text, &Scheme::HTTPS).expect_err(text), expected);
    }
    let longest = format!("https://a/{}", "x".repeat(ADDRESS_BYTES_MAX));
    assert!(address(&longest, &Scheme::HTTPS).is_err());
}
