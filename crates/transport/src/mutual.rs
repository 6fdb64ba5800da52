//! Mutual TLS between two workloads, each with the X509-SVID it has at the moment: what a program does with its identity.
//!
//! Both ends prove who they are, or there is no connection. An identity that is renewed counts from the next connection
//! on; those that are open go on. It must never hand out a connection whose other end was not verified.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use countersign_identity::x509::Certificate;
use countersign_identity::{BundleSet, SpiffeId, Timestamp};
use rustls::CertificateError;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::clock::SharedClock;
use crate::limits::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT};
use crate::tls::{self, Admit, IdentityError, SharedBundles, SharedIdentity};

/// A connection that was not made, in words. The other end may know a better reason than this one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counterpart {
    /// Its verified identity.
    pub spiffe_id: SpiffeId,
    /// Serial number of the certificate that proved it, in decimal.
    pub serial: String,
    /// When that certificate ends.
    pub expires_at: Timestamp,
}

/// An encrypted connection.
pub type Connection = TlsStream<TcpStream>;

/// One workload: its identity and what it trusts, both replaced as they are renewed.
#[derive(Clone)]
pub struct Party {
    identity: SharedIdentity,
    bundles: SharedBundles,
    clock: SharedClock,
}

impl fmt::Debug for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Party")
    }
}

impl Party {
    /// Somebody without an identity yet.
    pub fn new(clock: SharedClock) -> Self {
        Self { identity: Arc::new(ArcSwap::from_pointee(None)), bundles: Arc::new(ArcSwap::from_pointee(BundleSet::default())), clock }
    }

    /// Takes an identity, the chain with the leaf first and its key as PKCS#8, and what to trust, in the place of the former.
    ///
    /// # Errors
    /// TLS does not know that kind of key.
    pub fn take(&self, chain: &[Vec<u8>], pkcs8: &[u8], bundles: BundleSet) -> Result<(), IdentityError> {
        let identity = tls::identity(chain, pkcs8)?;
        self.bundles.store(Arc::new(bundles));
        self.identity.store(Arc::new(Some(identity)));
        Ok(())
    }

    /// Connects to somebody who must prove to be `wanted`.
    ///
    /// # Errors
    /// Nobody is there, or it is somebody else.
    pub async fn connect(&self, address: SocketAddr, wanted: &SpiffeId) -> Result<(Connection, Counterpart), Refused> {
        let identity = Option::clone(&self.identity.load());
        let mut config = tls::client_config(identity, Arc::clone(&self.bundles), only(wanted), Arc::clone(&self.clock))
            .map_err(|e| Refused(e.to_string()))?;
        config.alpn_protocols.clear();
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(Arc::new(config)).connect(address.ip().into(), stream).await
        };
        let stream = within(CONNECT_TIMEOUT, connecting).await?;
        counterpart(TlsStream::from(stream))
    }

    /// Answers somebody who must prove to be `wanted`.
    ///
    /// # Errors
    /// It is somebody else, or nobody.
    pub async fn accept(&self, stream: TcpStream, wanted: &SpiffeId) -> Result<(Connection, Counterpart), Refused> {
        let mut config = tls::server_config(Arc::clone(&self.identity), Arc::clone(&self.bundles), only(wanted), Arc::clone(&self.clock))
            .map_err(|e| Refused(e.to_string()))?;
        config.alpn_protocols.clear();
        let accepting = async {
            stream.set_nodelay(true)?;
            TlsAcceptor::from(Arc::new(config)).accept(stream).await
        };
        let stream = within(HANDSHAKE_TIMEOUT, accepting).await?;
        counterpart(TlsStream::from(stream))
    }
}

fn only(wanted: &SpiffeId) -> Admit {
    let wanted = wanted.clone();
    Arc::new(move |id| *id == wanted)
}

async fn within<T>(limit: std::time::Duration, making: impl Future<Output = std::io::Result<T>>) -> Result<T, Refused> {
    match tokio::time::timeout(limit, making).await {
        Ok(Ok(made)) => Ok(made),
        Ok(Err(error)) => Err(Refused(reason(&error))),
        Err(_) => Err(Refused("no answer in time".to_owned())),
    }
}

/// Our verifier's own words travel inside the TLS error, which shows them as a program sees them.
fn reason(error: &std::io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(broken))) => broken.0.to_string(),
        Some(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
            "the other end has proved to be somebody else".to_owned()
        }
        _ => error.to_string(),
    }
}

/// INVARIANT: a connection without a verified certificate of the other end is refused, whichever end asks; held by
/// `nobody_without_an_identity_gets_a_connection`.
fn counterpart(stream: Connection) -> Result<(Connection, Counterpart), Refused> {
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(|leaf| Certificate::parse(leaf).ok());
    let found = leaf.and_then(|leaf| {
        let spiffe_id = leaf.spiffe_id()?;
        Some(Counterpart { spiffe_id, serial: leaf.serial_decimal(), expires_at: leaf.not_after })
    });
    match found {
        Some(found) => Ok((stream, found)),
        None => Err(Refused("the other end has shown no certificate".to_owned())),
    }
}
