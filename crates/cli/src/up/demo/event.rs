//! What the demo's programs see, one line of JSON each on their standard output; the play tells only what was seen.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Something a program saw happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    /// It was given an identity, its first one or a newer one.
    Identity { spiffe_id: String, serial: String, expires_at: i64 },
    /// The agent refused it an identity.
    Denied { reason: String },
    /// The agent does not answer any more.
    NoAgent { reason: String },
    /// It waits for callers there.
    Listening { address: SocketAddr },
    /// A connection on which both have proved who they are. Connections are counted from 1.
    Connected { connection: u32, spiffe_id: String, serial: String },
    /// A question on this connection was answered.
    Answered { connection: u32 },
    /// It closed a connection that a newer one has taken the place of.
    Retired { connection: u32 },
    /// A connection ended that nobody meant to end.
    Dropped { connection: u32, reason: String },
    /// It hung up, because the certificate of whoever is at the other end has ended.
    HungUp { spiffe_id: String },
    /// A connection was not made.
    Refused { reason: String },
    /// It cannot go on.
    Failed { reason: String },
}
