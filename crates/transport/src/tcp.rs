//! TCP with TLS: accepting under limits, and handing each connection on with what its certificate proves.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use countersign_identity::x509::Certificate;
use countersign_identity::{SpiffeId, Timestamp};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::limits::{ANONYMOUS_AGE_MAX, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX, TCP_CONNECTIONS_MAX};

/// What is known about a TLS peer. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct TlsPeer {
    /// Where it connects from.
    pub address: SocketAddr,
    /// What its certificate proves; nothing without one.
    pub identity: Option<Arc<TlsIdentity>>,
}

/// What a verified certificate proves.
#[derive(Debug)]
pub struct TlsIdentity {
    /// Who.
    pub spiffe_id: SpiffeId,
    /// Which certificate, in decimal.
    pub serial_number: String,
    /// Until when.
    pub not_after: Timestamp,
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: TlsPeer,
    /// When a connection without certificate is closed.
    closes: Option<Pin<Box<tokio::time::Sleep>>>,
    _place: OwnedSemaphorePermit,
}

/// Counters of what happens before a caller is known.
#[derive(Debug, Default)]
pub struct Counters {
    /// Handshakes that failed or took too long.
    pub handshakes_failed: std::sync::atomic::AtomicU64,
    /// Connections turned away because too many were open or in their handshake.
    pub turned_away: std::sync::atomic::AtomicU64,
}

/// Accepts connections for as long as somebody takes them. Handshakes run beside each other, bounded by address and in
/// total; whoever is too slow or one too many is turned away without an answer.
pub fn incoming(listener: TcpListener, config: Arc<ServerConfig>, counters: Arc<Counters>) -> ReceiverStream<io::Result<Connection>> {
    use std::sync::atomic::Ordering::Relaxed;
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(config);
        let connections = Arc::new(Semaphore::new(TCP_CONNECTIONS_MAX));
        let handshakes = Arc::new(Handshakes::default());
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "Connection failed during accept");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (Ok(place), Some(turn)) = (Arc::clone(&connections).try_acquire_owned(), handshakes.take(address.ip())) else {
                counters.turned_away.fetch_add(1, Relaxed);
                continue;
            };
            let (acceptor, sender, counters) = (acceptor.clone(), sender.clone(), Arc::clone(&counters));
            tokio::spawn(async move {
                // INVARIANT: without TCP_NODELAY each call waits 40 ms for a delayed acknowledgement.
                let shaken = stream.set_nodelay(true).is_ok().then(|| tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)));
                let outcome = match shaken {
                    Some(handshake) => handshake.await,
                    None => return,
                };
                drop(turn);
                match outcome {
                    Ok(Ok(stream)) => {
                        let identity = identity_of(&stream);
                        let closes = identity.is_none().then(|| Box::pin(tokio::time::sleep(ANONYMOUS_AGE_MAX)));
                        let _ = sender.send(Ok(Connection { stream, peer: TlsPeer { address, identity }, closes, _place: place })).await;
                    }
                    Ok(Err(error)) => {
                        counters.handshakes_failed.fetch_add(1, Relaxed);
                        tracing::debug!(%address, %error, "TLS handshake failed");
                    }
                    Err(_) => {
                        counters.handshakes_failed.fetch_add(1, Relaxed);
                        tracing::debug!(%address, "TLS handshake took too long");
                    }
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

/// The identity in the leaf that the handshake verified; the very bytes the verifier saw.
fn identity_of(stream: &TlsStream<TcpStream>) -> Option<Arc<TlsIdentity>> {
    let leaf = stream.get_ref().1.peer_certificates()?.first()?;
    let certificate = Certificate::parse(leaf).ok()?;
    Some(Arc::new(TlsIdentity {
        spiffe_id: certificate.spiffe_id()?,
        serial_number: certificate.serial_decimal(),
        not_after: certificate.not_after,
    }))
}

#[derive(Debug, Default)]
struct Handshakes(Mutex<(usize, HashMap<IpAddr, usize>)>);

impl Handshakes {
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Turn> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = counts.1.get(&address).copied().unwrap_or_default();
        if counts.0 >= HANDSHAKES_MAX || of_address >= HANDSHAKES_PER_ADDRESS_MAX {
            return None;
        }
        counts.0 += 1;
        counts.1.insert(address, of_address + 1);
        Some(Turn { handshakes: Arc::clone(self), address })
    }
}

struct Turn {
    handshakes: Arc<Handshakes>,
    address: IpAddr,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut counts = self.handshakes.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.0 -= 1;
        if let Some(of_address) = counts.1.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                counts.1.remove(&self.address);
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TlsPeer;

    fn connect_info(&self) -> TlsPeer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(closes) = &mut self.closes
            && closes.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
