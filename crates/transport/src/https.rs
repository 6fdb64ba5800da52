//! Fetches one document over HTTP: from the web, whose server proves itself by name, or from whoever listens on a Unix socket.
//!
//! Nothing of the answer is believed but its length: what is too long is cut off unread, and the caller says how long it waits.

use std::path::Path;
use std::sync::Arc;

use http::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::tls::provider;

/// Redirects followed, as Go's client does.
const REDIRECTS_MAX: usize = 10;
/// Longest address of a document: what servers commonly take.
pub const ADDRESS_BYTES_MAX: usize = 8192;

/// How to get to the document.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    /// Over TLS, to a server that one of these authorities vouches for.
    Tls(&'a Arc<RootCertStore>),
    /// In clear text, to whoever listens on this socket.
    Unix(&'a Path),
}

/// Reads the address of a document, which must have this scheme.
///
/// # Errors
/// What is wrong with it, as a sentence.
pub fn address(text: &str, scheme: &Scheme) -> Result<Uri, String> {
    if text.len() > ADDRESS_BYTES_MAX {
        return Err(format!("it has {} bytes, more than {ADDRESS_BYTES_MAX}", text.len()));
    }
    let uri: Uri = text.parse().map_err(|e| format!("it is not a URL: {e}"))?;
    if uri.scheme() != Some(scheme) {
        return Err(format!("it must start with {scheme}://"));
    }
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => Err("it must not carry a user name or password".to_owned()),
        Some(authority) if !authority.host().is_empty() => Ok(uri),
        _ => Err("it names no host".to_owned()),
    }
}

/// The authorities that the machine's administrator trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.
///
/// # Errors
/// There are none.
pub fn system_roots() -> Result<Arc<RootCertStore>, String> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added > 0 {
        return Ok(Arc::new(roots));
    }
    let reason = loaded.errors.first().map_or_else(|| "none are installed".to_owned(), ToString::to_string);
    Err(format!("the system's certificate authorities cannot be used: {reason}"))
}

/// Fetches the document; the answer must be 200 and have at most so many bytes.
///
/// # Errors
/// What went wrong, as a sentence.
pub async fn get(uri: &Uri, way: Way<'_>, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut uri = uri.clone();
    for _ in 0..=REDIRECTS_MAX {
        let answer = match way {
            Way::Tls(roots) => ask(over_tls(&uri, roots).await?, &uri).await?,
            Way::Unix(socket) => ask(UnixStream::connect(socket).await.map_err(|e| e.to_string())?, &uri).await?,
        };
        if answer.status().is_redirection()
            && let Some(location) = answer.headers().get(LOCATION)
        {
            uri = redirected(&uri, location.to_str().map_err(|_| "it redirects to something that is no text".to_owned())?)?;
            continue;
        }
        if answer.status() != StatusCode::OK {
            return Err(format!("it answers {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), bytes_max).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() { format!("it has more than {bytes_max} bytes") } else { error.to_string() }
        })?;
        return Ok(body.to_bytes().to_vec());
    }
    Err(format!("it redirects more than {REDIRECTS_MAX} times"))
}

/// Where a redirect leads: another place of the same kind, so that nobody is led from TLS to clear text.
fn redirected(from: &Uri, location: &str) -> Result<Uri, String> {
    let scheme = from.scheme().cloned().unwrap_or(Scheme::HTTPS);
    // Without its query, which may hold a secret.
    let refused =
        |e: &dyn std::fmt::Display| format!("it redirects to `{}`: {e}", location.split_once('?').map_or(location, |(shown, _)| shown));
    if !location.starts_with('/') || location.starts_with("//") {
        return address(location, &scheme).map_err(|e| refused(&e));
    }
    let path: PathAndQuery = location.parse().map_err(|e| refused(&e))?;
    let mut parts = from.clone().into_parts();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).map_err(|e| e.to_string())
}

async fn over_tls(uri: &Uri, roots: &Arc<RootCertStore>) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static, String> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("`{host}` is neither a name nor an address"))?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await.map_err(|e| format!("cannot connect: {e}"))?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| e.to_string())
}

async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, uri: &Uri) -> Result<http::Response<Incoming>, String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // Ends with the sender and the body.
    tokio::spawn(connection);
    let request = Request::get(uri.path_and_query().map_or("/", PathAndQuery::as_str))
        .header(HOST, uri.authority().map_or("localhost", Authority::as_str))
        .header(USER_AGENT, "countersign")
        .header(ACCEPT, "*/*")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    sender.send_request(request).await.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests;
