//! TCP with TLS: accepting under limits, and handing each connection on with what its certificate proves.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use countersign_identity::x509::Certificate;
use countersign_identity::{SpiffeId, Timestamp};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::clock::{Clock as _, SystemClock};
use crate::gather::Gathered;
use crate::key_exchange::KeyExchange;
use crate::limits::{
    ANONYMOUS_AGE_MAX, ANONYMOUS_MAX, ANONYMOUS_PER_ADDRESS_MAX, CONNECTIONS_PER_IDENTITY_MAX, FIRST_REQUEST_TIMEOUT, HANDSHAKE_TIMEOUT,
    HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX, TCP_CONNECTIONS_MAX,
};
use crate::observe::Seldom;
use crate::prefix::Prefix;
use crate::proxy::{self, HeaderError, Proxies};

/// Peers that the operator's settings refuse have a line in the log this often, and the others are counted: anybody can be
/// refused as often as it likes.
const LOG_INTERVAL: std::time::Duration = std::time::Duration::from_secs(60);

/// What is known about a TLS peer. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct TlsPeer {
    /// Where it connects from.
    pub address: SocketAddr,
    /// What its certificate proves; nothing without one.
    pub identity: Option<Arc<TlsIdentity>>,
    has_asked: Arc<AtomicBool>,
    kept_by: Arc<watch::Sender<usize>>,
}

impl TlsPeer {
    /// To be called for each request of this peer: a connection without one does not live long.
    pub fn asks(&self) {
        self.has_asked.store(true, Relaxed);
    }

    /// Keeps the connection from being closed for its age, for as long as the guard lives.
    pub fn keep(&self) -> Kept {
        self.kept_by.send_modify(|count| *count += 1);
        Kept(Arc::clone(&self.kept_by))
    }

    /// Returns once nobody keeps the connection.
    pub async fn is_free(&self) {
        // The sender is held here, so that waiting cannot fail.
        let _ = self.kept_by.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Keeps a connection.
#[derive(Debug)]
pub struct Kept(Arc<watch::Sender<usize>>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
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
    stream: Gathered<TlsStream<TcpStream>>,
    peer: TlsPeer,
    /// When a connection without certificate is closed.
    closes: Option<Pin<Box<tokio::time::Sleep>>>,
    /// When it is closed if nothing has been asked on it.
    must_ask: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Its place among those without certificate.
    _anonymous: Option<Place<Prefix>>,
    /// Its place among those of the same identity.
    _known: Option<Place<SpiffeId>>,
    _place: OwnedSemaphorePermit,
    /// Dropped with the connection.
    gone: Option<oneshot::Sender<()>>,
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
/// total, and so are connections without certificate; those with one are bounded by identity and in total. Whoever is too
/// slow or one too many is turned away without an answer.
///
/// A connection from one of the `proxies` counts as one of whom it is for, where it says so.
pub fn incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    counters: Arc<Counters>,
    proxies: Proxies,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let connections = Arc::new(Semaphore::new(TCP_CONNECTIONS_MAX));
        let key_exchange = KeyExchange::of(config.crypto_provider());
        let door = Arc::new(Door {
            acceptor: TlsAcceptor::from(config),
            proxies,
            handshakes: Places::new(HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX),
            anonymous: Places::new(ANONYMOUS_MAX, ANONYMOUS_PER_ADDRESS_MAX),
            known: Places::new(TCP_CONNECTIONS_MAX, CONNECTIONS_PER_IDENTITY_MAX),
            key_exchange,
            refused_key_exchange: Seldom::new(1, LOG_INTERVAL),
        });
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
            let Ok(place) = Arc::clone(&connections).try_acquire_owned() else {
                counters.turned_away.fetch_add(1, Relaxed);
                continue;
            };
            // Before anything is read, so that nobody's tasks pile up. A proxy's header is read first: it says whose turn it is.
            let turn = if door.proxies.contain(address.ip()) { None } else { Some(door.handshakes.take(Prefix::of(address.ip()))) };
            if matches!(turn, Some(None)) {
                counters.turned_away.fetch_add(1, Relaxed);
                continue;
            }
            let (door, sender, counters) = (Arc::clone(&door), sender.clone(), Arc::clone(&counters));
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, door.shake(stream, address, turn.flatten(), place)).await {
                    Ok(Ok(connection)) => {
                        let _ = sender.send(Ok(connection)).await;
                    }
                    Ok(Err(Refused::OneTooMany { address, spiffe_id })) => {
                        counters.turned_away.fetch_add(1, Relaxed);
                        let spiffe_id = spiffe_id.as_ref().map(SpiffeId::as_str);
                        tracing::debug!(%address, spiffe_id, "Too many connections from there, turned away");
                    }
                    Ok(Err(Refused::Header(error))) => {
                        counters.handshakes_failed.fetch_add(1, Relaxed);
                        tracing::debug!(%address, %error, "PROXY header refused");
                    }
                    Ok(Err(Refused::Tls { address, error })) => {
                        counters.handshakes_failed.fetch_add(1, Relaxed);
                        door.tell(address, &error);
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

/// What connections go through before they are served.
struct Door {
    acceptor: TlsAcceptor,
    proxies: Proxies,
    handshakes: Arc<Places<Prefix>>,
    anonymous: Arc<Places<Prefix>>,
    known: Arc<Places<SpiffeId>>,
    key_exchange: KeyExchange,
    refused_key_exchange: Seldom,
}

/// Why a connection is not served.
enum Refused {
    Header(HeaderError),
    Tls { address: SocketAddr, error: io::Error },
    OneTooMany { address: SocketAddr, spiffe_id: Option<SpiffeId> },
}

impl Door {
    /// Says that a handshake failed. That the operator's own setting refuses somebody is worth a line that is seen.
    fn tell(&self, address: SocketAddr, error: &io::Error) {
        let blamed = self.key_exchange.blame(error);
        match blamed.as_ref().and_then(|_| self.refused_key_exchange.turn(SystemClock.steady())) {
            Some(left_out) => {
                let error = blamed.as_ref().unwrap_or(error);
                tracing::warn!(%address, %error, left_out, "Refused a TLS connection without post-quantum key exchange");
            }
            None => tracing::debug!(%address, %error, "TLS handshake failed"),
        }
    }

    async fn shake(
        &self,
        mut stream: TcpStream,
        mut address: SocketAddr,
        turn: Option<Place<Prefix>>,
        place: OwnedSemaphorePermit,
    ) -> Result<Connection, Refused> {
        // INVARIANT: without TCP_NODELAY each call waits 40 ms for a delayed acknowledgement.
        stream.set_nodelay(true).map_err(|error| Refused::Tls { address, error })?;
        let turn = match turn {
            // From anybody else a header is no TLS, and the handshake fails.
            Some(turn) => turn,
            None => {
                address = proxy::read_header(&mut stream).await.map_err(Refused::Header)?.unwrap_or(address);
                self.handshakes.take(Prefix::of(address.ip())).ok_or(Refused::OneTooMany { address, spiffe_id: None })?
            }
        };
        let stream = self.acceptor.accept(stream).await.map_err(|error| Refused::Tls { address, error })?;
        drop(turn);
        tracing::trace!(hop = "accepts a connection");
        let identity = identity_of(&stream);
        let (closes, stranger, member) = match &identity {
            Some(identity) => (None, None, self.known.take(identity.spiffe_id.clone())),
            None => (Some(Box::pin(tokio::time::sleep(ANONYMOUS_AGE_MAX))), self.anonymous.take(Prefix::of(address.ip())), None),
        };
        if stranger.is_none() && member.is_none() {
            return Err(Refused::OneTooMany { address, spiffe_id: identity.as_ref().map(|i| i.spiffe_id.clone()) });
        }
        Ok(Connection {
            stream: Gathered::new(stream),
            peer: TlsPeer { address, identity, has_asked: Arc::default(), kept_by: Arc::default() },
            closes,
            must_ask: Some(Box::pin(tokio::time::sleep(FIRST_REQUEST_TIMEOUT))),
            _anonymous: stranger,
            _known: member,
            _place: place,
            gone: None,
        })
    }
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

/// Places that are taken by address or identity and in total, for as long as whoever took one holds it.
#[derive(Debug)]
struct Places<K> {
    max: usize,
    of_one_max: usize,
    taken: Mutex<(usize, HashMap<K, usize>)>,
}

impl<K: Hash + Eq + Clone> Places<K> {
    fn new(max: usize, of_one_max: usize) -> Arc<Self> {
        Arc::new(Self { max, of_one_max, taken: Mutex::new((0, HashMap::new())) })
    }

    fn take(self: &Arc<Self>, whose: K) -> Option<Place<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = taken.1.get(&whose).copied().unwrap_or_default();
        if taken.0 >= self.max || of_one >= self.of_one_max {
            return None;
        }
        taken.0 += 1;
        taken.1.insert(whose.clone(), of_one + 1);
        Some(Place { places: Arc::clone(self), whose })
    }
}

#[derive(Debug)]
struct Place<K: Hash + Eq> {
    places: Arc<Places<K>>,
    whose: K,
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.0 -= 1;
        if let Some(of_one) = taken.1.get_mut(&self.whose) {
            *of_one -= 1;
            if *of_one == 0 {
                taken.1.remove(&self.whose);
            }
        }
    }
}

impl Connection {
    /// Answers once the connection is gone.
    pub fn gone(&mut self) -> oneshot::Receiver<()> {
        let (gone, is_gone) = oneshot::channel();
        self.gone = Some(gone);
        is_gone
    }

    /// Whether nothing has been asked in the time there is for it; wakes the task when that is over.
    fn is_mute(&mut self, cx: &mut Context<'_>) -> bool {
        if self.peer.has_asked.load(Relaxed) {
            self.must_ask = None;
        }
        self.must_ask.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready())
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
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        // After the reading: what has arrived counts, even where this machine was too slow to look at it in time.
        if read.is_pending() && self.is_mute(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_64_of_ipv6_has_the_places_of_one_address_and_the_total_is_bounded() {
        let take = |places: &Arc<Places<Prefix>>, address: &str| places.take(Prefix::of(address.parse().expect("an address")));
        let places = Places::new(3, 2);
        let first = take(&places, "2001:db8:0:1::1").expect("room");
        let _second = take(&places, "2001:db8:0:1::2").expect("room");
        assert!(take(&places, "2001:db8:0:1::3").is_none(), "its /64 is full");
        let _third = take(&places, "2001:db8:0:2::1").expect("room for others");
        assert!(take(&places, "192.0.2.1").is_none(), "all is full");
        drop(first);
        assert!(take(&places, "2001:db8:0:1::3").is_some(), "a place that is given back is free");
        drop((_second, _third));
        assert_eq!(*places.taken.lock().expect("the places"), (0, HashMap::new()), "nobody is remembered who holds nothing");
    }
}
