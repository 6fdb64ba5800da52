//! Workload attestors: what can be found out about a process that calls.

pub mod unix;

use std::sync::Arc;

use countersign_config::{ConfigError, Section};
use countersign_identity::Selector;
use countersign_transport::peer::Peer;

use crate::{Pending, later};

/// Every built-in workload attestor, by its configuration name, which is also its selector type.
pub const ALL: &[&str] = &[unix::NAME];

/// An attestor that found out nothing. Its selectors are missing; those of the others count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("workload attestor {name:?} failed: {reason}")]
pub struct AttestorError {
    /// Which attestor.
    pub name: &'static str,
    /// Why.
    pub reason: String,
}

/// Finds selectors of a process.
pub trait WorkloadAttestor: Send + Sync {
    /// Its configuration name.
    fn name(&self) -> &'static str;

    /// Looks at the process behind this connection.
    fn attest<'a>(&'a self, peer: &'a Peer) -> Pending<'a, Result<Vec<Selector>, AttestorError>>;
}

/// Makes the attestor of this name from its `plugin_data`.
///
/// # Errors
/// Unknown, or a wrong setting.
pub fn build(name: &str, block: &Section, data: Section) -> Result<Arc<dyn WorkloadAttestor>, ConfigError> {
    match name {
        unix::NAME => Ok(Arc::new(unix::Unix::configure(data)?)),
        _ => Err(later::refuse("WorkloadAttestor", name, ALL, block)),
    }
}
