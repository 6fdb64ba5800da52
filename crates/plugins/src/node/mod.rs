//! Node attestors: how a machine proves to the server which one it is.

pub mod join_token;

use std::sync::Arc;

use countersign_config::{ConfigError, Section};
use countersign_identity::Selector;

use crate::Pending;

/// Every built-in node attestor, by its configuration name, which is also its selector type and path segment.
pub const ALL: &[&str] = &[join_token::NAME];

/// Largest payload or answer of a node attestor; a TPM's with certificates has a few kilobytes.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// What a node proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    /// The agent's path, below `/spire/agent`.
    pub path: String,
    /// What is known about it.
    pub selectors: Vec<Selector>,
    /// Whether it can prove itself again in the same way.
    pub can_reattest: bool,
    /// A one-time secret, as its hash, that the server redeems in the transaction that creates the node.
    pub redeem: Option<[u8; 32]>,
}

/// Why a node was not attested. The text goes to the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// What it sent is malformed or does not prove anything.
    #[error("{0}")]
    Invalid(String),
    /// It proved who it is, and that one may not join.
    #[error("{0}")]
    Denied(String),
    /// The attestor could not decide.
    #[error("{0}")]
    Failed(String),
}

/// The exchange of challenges with a node that attests.
pub trait Conversation: Send {
    /// Sends a challenge and returns the answer.
    fn challenge(&mut self, challenge: Vec<u8>) -> Pending<'_, Result<Vec<u8>, AttestError>>;
}

/// The server's half.
pub trait ServerHalf: Send + Sync {
    /// Its configuration name.
    fn name(&self) -> &'static str;

    /// Checks a payload, with challenges if it needs them.
    fn attest<'a>(&'a self, payload: &'a [u8], conversation: &'a mut dyn Conversation) -> Pending<'a, Result<Attested, AttestError>>;
}

/// The agent's half.
pub trait AgentHalf: Send + Sync {
    /// Its configuration name.
    fn name(&self) -> &'static str;

    /// What it sends first.
    fn payload(&self) -> Pending<'_, Result<Vec<u8>, AttestError>>;

    /// Its answer to a challenge.
    fn answer<'a>(&'a self, challenge: &'a [u8]) -> Pending<'a, Result<Vec<u8>, AttestError>>;
}

/// Makes the server's half of this name from its `plugin_data`.
///
/// # Errors
/// Unknown, or a wrong setting.
pub fn build_server(name: &str, block: &Section, data: Section) -> Result<Arc<dyn ServerHalf>, ConfigError> {
    match name {
        join_token::NAME => {
            data.finish()?;
            Ok(Arc::new(join_token::Server))
        }
        _ => Err(unknown(name, block)),
    }
}

/// The error for a name that is not in the list.
pub fn unknown(name: &str, block: &Section) -> ConfigError {
    block
        .error(format!("there is no built-in NodeAttestor `{name}`"))
        .hint(format!("built-in are {}; others come later, join nodes with a token meanwhile", ALL.join(", ")))
}
