//! What the tables hold beside entries and bundles: nodes, authorities, join tokens, and what was seen of agents.

use std::sync::Arc;

use countersign_identity::{Selector, SpiffeId, Timestamp};

/// An attested node, which runs an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The agent's ID, below `/spire/agent/`.
    pub id: SpiffeId,
    /// How it proved itself.
    pub attestation_type: Arc<str>,
    /// Serial number of the SVID it uses, in decimal; empty when it is banned.
    pub serial_number: String,
    /// End of that SVID.
    pub expires_at: Timestamp,
    /// Serial number of the renewed SVID it has not used yet; empty for none.
    pub new_serial_number: String,
    /// End of the renewed SVID.
    pub new_expires_at: Timestamp,
    /// Whether it can prove itself again.
    pub can_reattest: bool,
    /// What is known about it, sorted.
    pub selectors: Vec<Selector>,
}

impl Node {
    /// Whether it was banned: the row stays, its SVIDs count no longer.
    pub fn is_banned(&self) -> bool {
        self.serial_number.is_empty()
    }
}

/// What an authority signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthorityFamily {
    /// X.509 certificates.
    X509,
    /// JWTs.
    Jwt,
}

/// Where an authority is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthorityState {
    /// In the bundle, does not sign yet.
    Prepared,
    /// Signs.
    Active,
    /// Signs no more; what it signed is still trusted.
    Old,
}

/// An authority of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityRecord {
    /// Its ID: hexadecimal key identifier, or `kid`.
    pub id: Arc<str>,
    /// The server whose key manager has the key.
    pub server_id: Arc<str>,
    /// What it signs.
    pub family: AuthorityFamily,
    /// Its key in the key manager.
    pub key_id: String,
    /// Where it is in its life.
    pub state: AuthorityState,
    /// When it was made.
    pub issued_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// The certificate, or the public key, DER.
    pub public: Vec<u8>,
}

/// An unredeemed join token. The token itself is not kept, only its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// When it ends.
    pub expires_at: Timestamp,
    /// The alias entry that redeeming it creates.
    pub alias: Option<SpiffeId>,
}

/// What was last seen of an agent; observed, not desired, so it is not in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The agent.
    pub id: SpiffeId,
    /// Its version, as it says.
    pub version: String,
    /// When it last called.
    pub at: Timestamp,
}
