//! Node attestors: how a machine proves to the server which one it is. `ARCHITECTURE.md` says how to add one.

#[cfg(test)]
mod conformance;
pub mod join_token;
pub mod path_template;
pub mod x509pop;

use std::net::IpAddr;
use std::sync::Arc;

use countersign_config::{ConfigError, Section};
use countersign_identity::{Bundle, Selector, Timestamp, TrustDomain};

use crate::{Pending, later};

/// Every built-in node attestor. Server, agent and conformance suite know those that are here, and no others.
pub const ALL: &[Attestor] = &[join_token::ATTESTOR, x509pop::ATTESTOR];

/// Largest payload or answer of a node attestor; a TPM's with certificates has a few kilobytes.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// A built-in node attestor, as its own folder describes it.
#[derive(Debug)]
pub struct Attestor {
    /// Its configuration name, which is also its folder, its selector type and its path segment.
    pub name: &'static str,
    /// Makes the server's half from the block, for errors about it, and its `plugin_data`.
    server: fn(&Section, Section) -> Made<dyn ServerHalf>,
    /// Makes the agent's half in the same way.
    agent: fn(&Section, Section, Provided) -> Made<dyn AgentHalf>,
    /// Good pairs of halves, and strangers, for the conformance suite.
    #[cfg(test)]
    halves: fn() -> Vec<conformance::Halves>,
}

/// A half, or what is wrong with its settings.
type Made<H> = Result<Arc<H>, ConfigError>;

/// What an agent gives to its half besides `plugin_data`.
struct Provided {
    /// From the `agent` block, where SPIRE has it; empty without one.
    join_token: zeroize::Zeroizing<String>,
    /// Fetches SVIDs of another Workload API.
    svids: Arc<dyn x509pop::SvidSource>,
}

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

/// Whose fault it is that a node was not attested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// What it sent is malformed or does not prove anything.
    Invalid,
    /// It may not join.
    Denied,
    /// The attestor could not decide; it may at another time.
    Failed,
}

/// Why a node was not attested, in two texts: one for the node, which tells no secrets, one for the operator's log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{told}")]
pub struct AttestError {
    /// Whose fault it is.
    pub blame: Blame,
    told: String,
    detail: Option<String>,
}

impl AttestError {
    /// What the node sent is malformed or does not prove anything.
    pub fn invalid(told: impl Into<String>) -> Self {
        Self { blame: Blame::Invalid, told: told.into(), detail: None }
    }

    /// The node may not join.
    pub fn denied(told: impl Into<String>) -> Self {
        Self { blame: Blame::Denied, told: told.into(), detail: None }
    }

    /// The attestor could not decide.
    pub fn failed(told: impl Into<String>) -> Self {
        Self { blame: Blame::Failed, told: told.into(), detail: None }
    }

    /// With what only the operator may read.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The text for the node.
    pub fn told(&self) -> &str {
        &self.told
    }

    /// What only the operator may read.
    pub fn operator_detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }
}

/// The exchange of challenges with a node that attests.
pub trait Conversation: Send {
    /// Sends a challenge and returns the answer.
    fn challenge(&mut self, challenge: Vec<u8>) -> Pending<'_, Result<Vec<u8>, AttestError>>;
}

/// What the server knows about an attempt besides what the node says.
#[derive(Debug, Clone)]
pub struct Circumstances {
    /// The trust domain to be joined.
    pub trust_domain: TrustDomain,
    /// Its bundle; `None` before it has one.
    pub bundle: Option<Arc<Bundle>>,
    /// The time.
    pub now: Timestamp,
    /// Where the node calls from; `None` on a local socket.
    pub address: Option<IpAddr>,
}

/// The server's half.
pub trait ServerHalf: Send + Sync {
    /// Its configuration name.
    fn name(&self) -> &'static str;

    /// Checks a payload, with challenges if it needs them.
    fn attest<'a>(
        &'a self,
        payload: &'a [u8],
        circumstances: &'a Circumstances,
        conversation: &'a mut dyn Conversation,
    ) -> Pending<'a, Result<Attested, AttestError>>;
}

/// One attempt of a node to prove itself.
pub struct Attempt {
    /// What it sends first.
    pub payload: Vec<u8>,
    /// Who answers the challenges.
    pub answers: Box<dyn Answers>,
}

impl std::fmt::Debug for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Attempt")
    }
}

/// Answers the challenges of one attempt, with the evidence that it began with.
pub trait Answers: Send {
    /// Its answer to a challenge.
    fn answer<'a>(&'a mut self, challenge: &'a [u8]) -> Pending<'a, Result<Vec<u8>, AttestError>>;
}

/// The agent's half.
pub trait AgentHalf: Send + Sync {
    /// Its configuration name.
    fn name(&self) -> &'static str;

    /// Begins an attempt. An error of the blame `Failed` is worth another attempt later.
    fn begin(&self) -> Pending<'_, Result<Attempt, AttestError>>;

    /// What to do when the server refuses the node.
    fn how_to_join(&self) -> String;
}

/// Makes the server's half of this name from its `plugin_data`.
///
/// # Errors
/// Unknown, or a wrong setting.
pub fn build_server(name: &str, block: &Section, data: Section) -> Result<Arc<dyn ServerHalf>, ConfigError> {
    (find(name, block)?.server)(block, data)
}

/// Makes the agent's half of this name from its `plugin_data`. The join token is in the `agent` block, as in SPIRE; SVIDs of
/// another Workload API are fetched by the agent.
///
/// # Errors
/// Unknown, or a wrong setting.
pub fn build_agent(
    name: &str,
    block: &Section,
    data: Section,
    token: zeroize::Zeroizing<String>,
    svids: Arc<dyn x509pop::SvidSource>,
) -> Result<Arc<dyn AgentHalf>, ConfigError> {
    (find(name, block)?.agent)(block, data, Provided { join_token: token, svids })
}

fn find(name: &str, block: &Section) -> Result<&'static Attestor, ConfigError> {
    ALL.iter().find(|attestor| attestor.name == name).ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|attestor| attestor.name).collect();
        later::refuse("NodeAttestor", name, &names, block)
    })
}
