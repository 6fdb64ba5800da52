//! Renewal of the agent's own SVID while it is used: at its time, and again a while after a failure.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tonic::Code;

use super::{Ended, Place, Sync, ended};
use crate::node::{NodeError, NodeSvid};

/// First wait after a failed renewal; it doubles up to [`RETRY_MAX`], with jitter.
pub(super) const RETRY_FIRST: Duration = Duration::from_secs(5);
/// Longest wait after a failed renewal: half of the SVID's life is left.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// When the SVID that a connection uses is renewed.
pub(super) struct Renewals<'a> {
    svid: &'a Arc<NodeSvid>,
    /// By steady time: a clock that is set back delays no second attempt.
    again_at: Option<Duration>,
    retry: Duration,
}

impl<'a> Renewals<'a> {
    pub(super) fn of(svid: &'a Arc<NodeSvid>) -> Self {
        Self { svid, again_at: None, retry: RETRY_FIRST }
    }

    /// Returns when the SVID is to be renewed.
    pub(super) async fn due(&self, sync: &Sync) {
        match self.again_at {
            Some(at) => sync.clock.sleep_for(at.saturating_sub(sync.clock.steady())).await,
            None => tokio::select! {
                () = sync.clock.sleep_until(self.svid.renew_at) => {}
                () = sync.renew_now.notified() => {}
            },
        }
    }

    /// Renews it. Says what that means for the connection; nothing if it goes on.
    pub(super) async fn renew(&mut self, sync: &Sync) -> Option<Ended> {
        match sync.node.renew(self.svid).await {
            Ok(renewed) => {
                // What is followed stays. Its file is bound to both serial numbers, and from the next writing on to the new one.
                // Another agent is told everything anew: a node whose certificate was replaced may be one.
                if renewed.id != self.svid.id {
                    tracing::warn!(before = %self.svid.id, now = %renewed.id, "Re-attestation made the node another agent");
                    sync.set_place(Place::Unknown);
                }
                sync.current.write().unwrap_or_else(PoisonError::into_inner).svid = Some(renewed);
                sync.dirty.notify_one();
                return Some(Ended::Renewed);
            }
            Err(NodeError::Server(status)) if status.code() == Code::PermissionDenied => {
                if let refused @ Ended::Refused(_) = ended(&status) {
                    return Some(refused);
                }
                tracing::error!(error = status.message(), hint = sync.node.how_to_join(), "Could not rotate agent SVID");
                let reason = format!("could not renew the agent's own SVID: {}: {}", status.code(), status.message());
                sync.node.standing.failed(&reason, sync.clock.now());
            }
            Err(error) => {
                tracing::error!(%error, "Could not rotate agent SVID");
                sync.node.standing.failed(&format!("could not renew the agent's own SVID: {error}"), sync.clock.now());
            }
        }
        if self.svid.expires_at <= sync.clock.now() {
            return Some(Ended::Lost("the agent's SVID has ended".to_owned()));
        }
        // Changes arrive meanwhile.
        let wait = self.retry.mul_f64(0.8 + 0.4 * sync.random.fraction());
        self.again_at = Some(sync.clock.steady() + wait);
        self.retry = (self.retry * 2).min(RETRY_MAX);
        None
    }
}
