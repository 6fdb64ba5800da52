//! Who calls: every attestor is asked at the same time, and what they find is put together.

use std::sync::Arc;

use countersign_identity::{Selector, selector};
use countersign_plugins::workload::WorkloadAttestor;
use countersign_transport::peer::{Peer, Program};

/// No attestor could say anything about the caller.
#[derive(Debug)]
pub(crate) struct AttestationFailed;

/// What was found out about a caller.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) peer: Peer,
    /// Sorted and unique.
    pub(crate) selectors: Arc<[Selector]>,
    program: Option<Program>,
}

/// All configured attestors.
pub(crate) struct Attestors(pub(crate) Vec<Arc<dyn WorkloadAttestor>>);

impl Attestors {
    /// Attests the process behind a connection. One attestor that fails neither widens nor hides what the others found:
    /// its selectors are missing, and the log says so.
    pub(crate) async fn attest(&self, peer: &Peer) -> Result<Caller, AttestationFailed> {
        tracing::trace!(hop = "asks every attestor");
        let program = peer.program();
        let mut found = Vec::new();
        let mut failures = 0;
        match self.0.as_slice() {
            // The common case spawns nothing.
            [only] => collect(only.attest(peer).await, &mut found, &mut failures),
            many => {
                let mut asked = tokio::task::JoinSet::new();
                for attestor in many {
                    let (attestor, peer) = (Arc::clone(attestor), peer.clone());
                    asked.spawn(async move { attestor.attest(&peer).await });
                }
                while let Some(answer) = asked.join_next().await {
                    match answer {
                        Ok(answer) => collect(answer, &mut found, &mut failures),
                        Err(_) => failures += 1,
                    }
                }
            }
        }
        if failures > 0 && failures == self.0.len() {
            return Err(AttestationFailed);
        }
        if !peer.is_alive() {
            tracing::warn!(pid = peer.pid, "The caller has ended during its attestation");
            return Err(AttestationFailed);
        }
        let selectors: Arc<[Selector]> = selector::sorted(found).into();
        tracing::debug!(pid = peer.pid, selectors = ?selectors, "PID attested to have selectors");
        Ok(Caller { peer: peer.clone(), selectors, program })
    }

    /// Makes sure that a caller is still who it was, before it is given a key. If it runs another program by now it is
    /// attested again.
    pub(crate) async fn check_again(&self, caller: Caller) -> Result<Caller, AttestationFailed> {
        tracing::trace!(hop = "looks at the caller once more");
        if !caller.peer.is_alive() {
            return Err(AttestationFailed);
        }
        if caller.peer.program() == caller.program {
            return Ok(caller);
        }
        tracing::info!(pid = caller.peer.pid, "The caller runs another program now, attesting it again");
        self.attest(&caller.peer).await
    }
}

fn collect(answer: Result<Vec<Selector>, countersign_plugins::workload::AttestorError>, found: &mut Vec<Selector>, failures: &mut usize) {
    match answer {
        Ok(selectors) => found.extend(selectors),
        Err(error) => {
            *failures += 1;
            tracing::error!(%error, "Failed to collect all selectors");
        }
    }
}
