//! Connections to our own services: over TLS to a server, over a Unix socket to whoever listens there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::key_exchange::KeyExchange;
use crate::limits::{
    CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES, HEADER_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAM_WINDOW_BYTES,
};

/// A connection could not be made. The whole chain of causes is in the text.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {target}: {reason}")]
pub struct ConnectError {
    /// Where to.
    pub target: String,
    /// Why not.
    pub reason: String,
    /// The server's certificate has no authority we know: the trust bundle and the server do not agree.
    pub unknown_authority: bool,
}

/// Connects to `host:port` with this TLS configuration.
///
/// # Errors
/// Nothing answers there, or the peers do not trust each other.
pub async fn tls(host: &str, port: u16, config: Arc<ClientConfig>) -> Result<Channel, ConnectError> {
    let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let failed = |reason: String| ConnectError { target: target.clone(), unknown_authority: reason.contains("UnknownIssuer"), reason };
    let address: Arc<str> = target.as_str().into();
    let connector = tower::service_fn(move |_: http::Uri| {
        let (address, config) = (Arc::clone(&address), Arc::clone(&config));
        async move {
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&*address))
                .await
                .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer"))??;
            // INVARIANT: without TCP_NODELAY each call waits 40 ms for a delayed acknowledgement.
            stream.set_nodelay(true)?;
            // Names mean nothing here: the verifier checks the SPIFFE ID.
            let name = ServerName::try_from("countersign.invalid").map_err(std::io::Error::other)?;
            let key_exchange = KeyExchange::of(config.crypto_provider());
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, TlsConnector::from(config).connect(name, stream))
                .await
                .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no TLS answer"))?
                .map_err(|error| key_exchange.blame(&error).unwrap_or(error))?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("https://countersign.invalid")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX);
    endpoint.connect_with_connector(connector).await.map_err(|e| failed(chain(&e)))
}

/// Connects to a Unix socket.
///
/// # Errors
/// Nothing listens there.
pub async fn unix(path: &Path) -> Result<Channel, ConnectError> {
    let target = path.display().to_string();
    let path: Arc<PathBuf> = Arc::new(path.to_owned());
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = Arc::clone(&path);
        async move { UnixStream::connect(&*path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.map_err(|e| ConnectError {
        target,
        reason: chain(&e),
        unknown_authority: false,
    })
}

/// Connects in clear text to a service on this address.
///
/// # Errors
/// Nothing listens there.
pub async fn tcp(address: SocketAddr) -> Result<Channel, ConnectError> {
    let failed = |reason| ConnectError { target: address.to_string(), reason, unknown_authority: false };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| failed(chain(&e)))?;
    endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await.map_err(|e| failed(chain(&e)))
}

/// The innermost cause, which is the one that says something.
fn chain(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
