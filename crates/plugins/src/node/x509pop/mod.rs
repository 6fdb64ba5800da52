//! `x509pop`: a node proves that it has the private key of a certificate that was given to it by other means. See `README.md` here.
//!
//! Messages and signatures are SPIRE's, byte for byte: an agent of either joins a server of either.

mod agent;
mod files;
mod names;
mod proof;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::Attestor;

pub use agent::{Agent, Svid, SvidSource};
pub use server::Server;

/// Its configuration name.
pub const NAME: &str = "x509pop";

pub(super) const ATTESTOR: Attestor = Attestor {
    name: NAME,
    server: |block, data| Ok(Arc::new(Server::read(block, data)?)),
    agent: |block, data, provided| Ok(Arc::new(Agent::read(block, data, provided.svids)?)),
    #[cfg(test)]
    halves: tests::halves,
};
