//! Who calls: every attestor is asked at the same time, and what they find is put together.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use countersign_identity::{Selector, selector};
use countersign_plugins::workload::{AttestorError, WorkloadAttestor};
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

/// What one attestor says.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) name: &'static str,
    pub(crate) took: Duration,
    pub(crate) found: Result<Vec<Selector>, AttestorError>,
}

/// All configured attestors.
#[derive(Clone)]
pub(crate) struct Attestors(Arc<ArcSwap<Vec<Arc<dyn WorkloadAttestor>>>>);

impl Attestors {
    pub(crate) fn new(attestors: Vec<Arc<dyn WorkloadAttestor>>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(attestors)))
    }

    /// Asks these from now on.
    pub(crate) fn replace(&self, attestors: Vec<Arc<dyn WorkloadAttestor>>) {
        self.0.store(Arc::new(attestors));
    }

    /// Attests the process behind a connection. One attestor that fails neither widens nor hides what the others found:
    /// its selectors are missing, and the log says so.
    pub(crate) async fn attest(&self, peer: &Peer) -> Result<Caller, AttestationFailed> {
        tracing::trace!(hop = "asks every attestor");
        let program = peer.program();
        let (mut found, mut failures) = (Vec::new(), 0);
        let verdicts = self.ask(peer, None).await;
        let asked = verdicts.len();
        for verdict in verdicts {
            match verdict.found {
                Ok(selectors) => found.extend(selectors),
                Err(error) => {
                    failures += 1;
                    tracing::error!(%error, pid = peer.pid, "Failed to collect all selectors");
                }
            }
        }
        if failures > 0 && failures == asked {
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

    /// What each attestor says of a process, and how long it took. With patience, an attestor that waits longer for
    /// something counts as failed; one that works in place, as `unix` does while it hashes a program, is not interrupted.
    pub(crate) async fn ask(&self, peer: &Peer, patience: Option<Duration>) -> Vec<Verdict> {
        let attestors = self.0.load_full();
        // The common case spawns nothing.
        if let [only] = attestors.as_slice() {
            return vec![ask_one(only.as_ref(), peer, patience).await];
        }
        let (mut asked, mut names) = (tokio::task::JoinSet::new(), HashMap::new());
        for attestor in attestors.iter() {
            let (attestor, peer, name) = (Arc::clone(attestor), peer.clone(), attestor.name());
            let task = asked.spawn(async move { ask_one(attestor.as_ref(), &peer, patience).await });
            names.insert(task.id(), name);
        }
        let begun = Instant::now();
        let mut verdicts = Vec::with_capacity(names.len());
        while let Some(answer) = asked.join_next_with_id().await {
            verdicts.push(answer.map(|(_, verdict)| verdict).unwrap_or_else(|failed| {
                let name = names.get(&failed.id()).copied().unwrap_or_default();
                let error = AttestorError { name, reason: "BUG: it broke off, see the agent's standard error".to_owned() };
                Verdict { name, took: begun.elapsed(), found: Err(error) }
            }));
        }
        verdicts
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

async fn ask_one(attestor: &dyn WorkloadAttestor, peer: &Peer, patience: Option<Duration>) -> Verdict {
    let (name, begun) = (attestor.name(), Instant::now());
    let answer = attestor.attest(peer);
    let found = match patience {
        None => answer.await,
        Some(patience) => match tokio::time::timeout(patience, answer).await {
            Ok(found) => found,
            Err(_) => Err(AttestorError { name, reason: format!("it has not answered within {patience:?}") }),
        },
    };
    Verdict { name, took: begun.elapsed(), found }
}

#[cfg(test)]
mod tests;
