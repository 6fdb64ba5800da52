//! Who calls: what the connection proved, and which kinds of caller that makes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use countersign_identity::SpiffeId;
use countersign_store::{Actor, Snapshot};
use countersign_transport::peer::Peer;
use countersign_transport::tcp::{TlsIdentity, TlsPeer};

use crate::api::access::Access;
use crate::ratelimit::{About, Lines};

/// Kinds of caller, from the least to the most particular.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Whoever reaches the server, without any proof.
    Anyone,
    /// A process on the server's machine that may open its private socket.
    Local,
    /// A SPIFFE ID with the right to administer, by entry or by `admin_ids`.
    Admin,
    /// An attested node whose SVID counts.
    Agent,
    /// A SPIFFE ID whose entry says downstream.
    Downstream,
}

impl Kind {
    /// As it is written in logs and tables; SPIRE's words for `authorized_as`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anyone => "nobody",
            Self::Local => "local",
            Self::Admin => "admin",
            Self::Agent => "agent",
            Self::Downstream => "downstream",
        }
    }
}

/// What the connection proved.
#[derive(Debug, Clone)]
pub(crate) enum Proof {
    /// A process behind the private socket.
    Local(Peer),
    /// A TLS peer, with or without a certificate.
    Remote { address: SocketAddr, identity: Option<Arc<TlsIdentity>> },
}

/// A caller that was let through, as handlers see it.
#[derive(Debug, Clone)]
pub struct Caller {
    pub(crate) proof: Proof,
    /// As which kind it was let through.
    pub(crate) kind: Kind,
    /// Which lines about it are written to the log.
    pub(crate) lines: Arc<Lines>,
    /// Its call in the audit log.
    pub(crate) access: Access,
}

impl Proof {
    /// From what the listener attached to the connection.
    pub(crate) fn of(extensions: &http::Extensions) -> Option<Self> {
        if let Some(peer) = extensions.get::<Peer>() {
            return Some(Self::Local(peer.clone()));
        }
        let peer = extensions.get::<TlsPeer>()?;
        Some(Self::Remote { address: peer.address, identity: peer.identity.clone() })
    }

    /// Where a remote caller calls from.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Local(_) => None,
            Self::Remote { address, .. } => Some(address.ip()),
        }
    }

    pub(crate) fn spiffe_id(&self) -> Option<&SpiffeId> {
        self.identity().map(|i| &i.spiffe_id)
    }

    pub(crate) fn identity(&self) -> Option<&Arc<TlsIdentity>> {
        match self {
            Self::Local(_) => None,
            Self::Remote { identity, .. } => identity.as_ref(),
        }
    }

    /// Whom logs, the log and the journal name.
    pub(crate) fn actor(&self) -> Actor {
        match self {
            Self::Local(peer) => Actor::new(&peer.describe()),
            Self::Remote { identity: Some(identity), .. } => Actor::new(identity.spiffe_id.as_str()),
            Self::Remote { address, identity: None } => Actor::new(&format!("nobody at {}", address.ip())),
        }
    }

    /// Whose log lines a refusal of this caller is one of.
    pub(crate) fn about(&self) -> About {
        match self {
            Self::Local(_) | Self::Remote { identity: Some(_), .. } => About::Caller(self.actor()),
            Self::Remote { identity: None, .. } => About::Strangers,
        }
    }

    /// Whether its SPIFFE ID has an entry that says so.
    pub(crate) fn has_entry(&self, snapshot: &Snapshot, right: impl Fn(&countersign_identity::Entry) -> bool) -> bool {
        self.spiffe_id().is_some_and(|id| snapshot.entries_of(id).any(|entry| right(entry)))
    }
}

impl Caller {
    /// Whom logs, the log and the journal name.
    pub(crate) fn actor(&self) -> Actor {
        self.proof.actor()
    }

    /// Whether a line about what it got wrong is written to the log.
    pub(crate) fn is_logged(&self) -> bool {
        self.lines.admit(&self.proof.about())
    }

    /// The agent that calls. Handlers of agent methods have one; the table says so.
    pub(crate) fn agent(&self) -> Option<&Arc<TlsIdentity>> {
        if self.kind == Kind::Agent { self.proof.identity() } else { None }
    }
}
