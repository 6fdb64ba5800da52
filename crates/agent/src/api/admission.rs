//! Who may use SPIRE's services on the admin socket: root, the agent's own user, and the group of the socket.
//!
//! SPIRE leaves that to the file, whose mode is 0770. Ours can be connected to by everybody, because every process may ask why
//! it has no identity; so what the mode of SPIRE's socket says is decided here, by the credentials that the kernel tells.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use countersign_transport::peer::Peer;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// The check in front of a service. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    socket: Arc<Path>,
    uid: u32,
}

impl Admission {
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.into(), uid: rustix::process::geteuid().as_raw() }
    }

    fn admits(&self, peer: &Peer) -> bool {
        // The group is asked for each time: an operator may give the socket to another one while the agent runs.
        let is_in_group = || std::fs::metadata(&self.socket).is_ok_and(|socket| peer.is_in_group(socket.gid()));
        peer.uid == 0 || peer.uid == self.uid || is_in_group()
    }
}

impl Interceptor for Admission {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let peer = request.extensions().get::<Peer>().ok_or_else(|| Status::internal("BUG: a call without peer"))?;
        if self.admits(peer) {
            return Ok(request);
        }
        tracing::warn!(pid = peer.pid, uid = peer.uid, gid = peer.gid, "Refused a call on the admin socket");
        Err(Status::permission_denied(format!(
            "only root, the agent's own user (uid {}), and the group of the admin socket may ask; you are uid {}, gid {}",
            self.uid, peer.uid, peer.gid
        )))
    }
}
