//! Unix sockets: listening, and handing each connection on with its peer.

mod authority;

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::limits::{SOCKET_PATH_BYTES_MAX, UNIX_CONNECTIONS_MAX, UNIX_CONNECTIONS_PER_USER_MAX};
use crate::peer::Peer;

pub use authority::Authority;

/// A socket that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Longer than the kernel takes.
    #[error("socket path `{path}` has {bytes} bytes, more than the {SOCKET_PATH_BYTES_MAX} the kernel allows; choose a shorter directory")]
    PathTooLong {
        /// The path.
        path: String,
        /// Its length.
        bytes: usize,
    },
    /// Another process answers on it.
    #[error("socket `{0}` is in use by another process; stop that one or choose another path")]
    InUse(String),
    /// The directory belongs to somebody else, who could put another socket there.
    #[error("directory `{0}` of the socket belongs to another user; remove it or choose another path")]
    ForeignDirectory(String),
    /// Something that is not a socket is there.
    #[error("`{0}` exists and is not a socket; remove it or choose another path")]
    NotASocket(String),
    /// Anything else.
    #[error("cannot open socket `{path}`: {source}")]
    Io {
        /// The path.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Checks what can be checked about a socket path without opening it.
///
/// # Errors
/// It is too long.
pub fn check_path(path: &Path) -> Result<(), SocketError> {
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(SocketError::PathTooLong { path: path.display().to_string(), bytes });
    }
    Ok(())
}

/// Opens a socket, replacing one that a dead process left behind. The mode is set before anybody can connect.
///
/// # Errors
/// The path is too long, in use, or not writable.
pub fn listen(path: &Path, directory_mode: u32, socket_mode: u32) -> Result<UnixListener, SocketError> {
    check_path(path)?;
    let shown = || path.display().to_string();
    let failed = |source| SocketError::Io { path: shown(), source };
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        make_directory(directory, directory_mode).map_err(failed)?;
        let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(directory).map_err(failed)?);
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(SocketError::ForeignDirectory(directory.display().to_string()));
        }
    }
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()) {
            return Err(SocketError::NotASocket(shown()));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(SocketError::InUse(shown()));
        }
    }
    // Bound under a name of its own and then moved, so that there is no moment without a socket or with the wrong mode.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push("~");
    let fresh = PathBuf::from(fresh);
    let (bind_at, rename) = if fresh.as_os_str().len() <= SOCKET_PATH_BYTES_MAX { (fresh.as_path(), true) } else { (path, false) };
    match std::fs::remove_file(bind_at) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(bind_at).map_err(failed)?;
    std::fs::set_permissions(bind_at, std::fs::Permissions::from_mode(socket_mode)).map_err(failed)?;
    if rename {
        std::fs::rename(bind_at, path).map_err(failed)?;
    }
    Ok(listener)
}

/// Makes a directory and those above it that are missing, each with this mode whatever the umask.
fn make_directory(directory: &Path, mode: u32) -> io::Result<()> {
    if directory.exists() {
        return Ok(());
    }
    if let Some(above) = directory.parent().filter(|d| !d.as_os_str().is_empty()) {
        make_directory(above, mode)?;
    }
    match std::fs::create_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode))),
    }
}

/// A connection with the process at its other end.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    peer: Peer,
    authority: Authority,
    _place: Place,
}

/// Accepts connections for as long as somebody takes them. A peer that cannot be identified is turned away.
pub fn incoming(listener: UnixListener) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let places = Arc::new(Places::default());
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, usually: wait a moment instead of spinning.
                    tracing::warn!(%error, "Connection failed during accept");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            tracing::trace!(hop = "accepts a connection");
            let peer = match Peer::of(&stream) {
                Ok(peer) => peer,
                Err(error) => {
                    tracing::warn!(%error, "Connection failed during accept");
                    continue;
                }
            };
            let Some(place) = places.take(peer.uid) else {
                tracing::warn!(uid = peer.uid, "Connection refused, too many are open");
                continue;
            };
            if sender.send(Ok(Connection { stream, peer, authority: Authority::default(), _place: place })).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// Counts open connections, in total and by user.
#[derive(Debug, Default)]
struct Places(Mutex<(usize, HashMap<u32, usize>)>);

impl Places {
    fn take(self: &Arc<Self>, uid: u32) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = counts.1.get(&uid).copied().unwrap_or_default();
        if counts.0 >= UNIX_CONNECTIONS_MAX || of_user >= UNIX_CONNECTIONS_PER_USER_MAX {
            return None;
        }
        counts.0 += 1;
        counts.1.insert(uid, of_user + 1);
        Some(Place { places: Arc::clone(self), uid })
    }
}

#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    uid: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.0 -= 1;
        if let Some(of_user) = counts.1.get_mut(&self.uid) {
            *of_user -= 1;
            if *of_user == 0 {
                counts.1.remove(&self.uid);
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.authority.pass(buf.filled_mut().get_mut(before..).unwrap_or_default());
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
