//! The log: what changed, in the order of commits, without gaps; and cursors, which are places in it.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use countersign_identity::{Bundle, Entry, FederationRelationship, SpiffeId, Timestamp};

use crate::model::{AuthorityRecord, Node};

/// Who asked for a change: a SPIFFE ID, a local caller (`uid 0, pid 17, /usr/bin/countersign`), or the server itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Actor(Arc<str>);

impl Actor {
    /// Longest description kept, in bytes.
    pub const BYTES_MAX: usize = 4096;

    /// From a description, cut to [`Actor::BYTES_MAX`].
    pub fn new(text: &str) -> Self {
        let mut end = text.len().min(Self::BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text.get(..end).unwrap_or_default().into())
    }

    /// The server acting by itself.
    pub fn server() -> Self {
        Self("server".into())
    }

    /// The description.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kinds of desired state. Numbers are stored; they are never used again for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Noun {
    /// A registration entry.
    Entry,
    /// An attested node.
    Node,
    /// A bundle.
    Bundle,
    /// An authority and its state.
    Authority,
    /// A federation relationship.
    FederationRelationship,
}

impl Noun {
    pub(crate) const fn number(self) -> i64 {
        match self {
            Self::Entry => 1,
            Self::Node => 2,
            Self::Bundle => 3,
            Self::Authority => 4,
            Self::FederationRelationship => 5,
        }
    }

    /// The first reader that knows records of this kind. One is written only after the head says that older ones must stop.
    pub(crate) const fn first_reader(self) -> i64 {
        match self {
            Self::Entry | Self::Node | Self::Bundle | Self::Authority => 1,
            Self::FederationRelationship => 2,
        }
    }

    pub(crate) const fn from_number(number: i64) -> Option<Self> {
        match number {
            1 => Some(Self::Entry),
            2 => Some(Self::Node),
            3 => Some(Self::Bundle),
            4 => Some(Self::Authority),
            5 => Some(Self::FederationRelationship),
            _ => None,
        }
    }
}

/// One change of desired state.
#[derive(Debug, Clone)]
pub enum Change {
    /// An entry is created or replaced.
    EntryPut(Arc<Entry>),
    /// An entry is gone.
    EntryDelete(Arc<str>),
    /// A node is attested or changed.
    NodePut(Arc<Node>),
    /// A node is gone.
    NodeDelete(SpiffeId),
    /// A bundle is new or changed.
    BundlePut(Arc<Bundle>),
    /// A bundle is gone; the trust domain's name.
    BundleDelete(Arc<str>),
    /// An authority is new or has another state.
    AuthorityPut(Arc<AuthorityRecord>),
    /// An authority is gone.
    AuthorityDelete(Arc<str>),
    /// A federation relationship is new or changed.
    FederationRelationshipPut(Arc<FederationRelationship>),
    /// A federation relationship is gone; the other trust domain's name.
    FederationRelationshipDelete(Arc<str>),
}

impl Change {
    /// What kind of thing changed.
    pub const fn noun(&self) -> Noun {
        match self {
            Self::EntryPut(_) | Self::EntryDelete(_) => Noun::Entry,
            Self::NodePut(_) | Self::NodeDelete(_) => Noun::Node,
            Self::BundlePut(_) | Self::BundleDelete(_) => Noun::Bundle,
            Self::AuthorityPut(_) | Self::AuthorityDelete(_) => Noun::Authority,
            Self::FederationRelationshipPut(_) | Self::FederationRelationshipDelete(_) => Noun::FederationRelationship,
        }
    }

    /// Which one.
    pub fn key(&self) -> &str {
        match self {
            Self::EntryPut(entry) => &entry.id,
            Self::EntryDelete(key) | Self::BundleDelete(key) | Self::AuthorityDelete(key) | Self::FederationRelationshipDelete(key) => key,
            Self::NodePut(node) => node.id.as_str(),
            Self::NodeDelete(id) => id.as_str(),
            Self::BundlePut(bundle) => bundle.trust_domain().name(),
            Self::AuthorityPut(authority) => &authority.id,
            Self::FederationRelationshipPut(relationship) => relationship.trust_domain.name(),
        }
    }

    /// Whether the thing is gone afterwards.
    pub const fn is_delete(&self) -> bool {
        matches!(
            self,
            Self::EntryDelete(_)
                | Self::NodeDelete(_)
                | Self::BundleDelete(_)
                | Self::AuthorityDelete(_)
                | Self::FederationRelationshipDelete(_)
        )
    }
}

/// A record of the log as it is stored: what changed, not the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place, counted from 1 without gaps.
    pub revision: u64,
    /// What kind of thing changed.
    pub noun: Noun,
    /// Which one.
    pub key: Arc<str>,
    /// Whether it is gone.
    pub delete: bool,
    /// When.
    pub at: Timestamp,
    /// Who asked.
    pub actor: Actor,
}

/// A transaction as followers see it: whole or not at all.
#[derive(Debug)]
pub struct Transaction {
    /// Revision of its last record.
    pub revision: u64,
    /// Digest of the log up to here.
    pub digest: [u8; 32],
    /// What it changed, with the state before, which followers need to know whom it concerned.
    pub changes: Vec<(Change, Before)>,
}

/// What stood in the place of a change.
#[derive(Debug, Clone)]
pub enum Before {
    /// Nothing, or something that concerns nobody.
    Nothing,
    /// An entry.
    Entry(Arc<Entry>),
    /// A node.
    Node(Arc<Node>),
}

/// Names one life of a store; a restored backup gets a new one.
pub type Epoch = [u8; 16];

/// A place in the log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The store's life.
    pub epoch: Epoch,
    /// The last revision seen.
    pub revision: u64,
    /// Digest of the log up to it.
    pub digest: [u8; 32],
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cursor({})", self.revision)
    }
}

/// The digest after one more transaction: SHA-256 over the previous digest, the transaction's id, first revision and count.
pub(crate) fn next_digest(previous: &[u8; 32], transaction: &[u8; 16], first_revision: u64, count: u64) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(previous);
    context.update(transaction);
    context.update(&first_revision.to_be_bytes());
    context.update(&count.to_be_bytes());
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}
