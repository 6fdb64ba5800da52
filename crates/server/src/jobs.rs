//! What a server does now and then by itself: forget what has ended, write down what was seen, and how
//! many refusals were left out.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_store::{Actor, Change};

use crate::api::Api;

/// Entries and tokens that have ended are dropped this often. Nothing is issued for an ended entry meanwhile.
const PRUNE_INTERVAL: Duration = Duration::from_secs(30);
/// Entries dropped in one transaction.
const PRUNE_BATCH: usize = 1000;
/// Tokens that ended stay this long, so that their use gets the right answer.
const TOKEN_GRACE: Duration = Duration::from_secs(3600);

/// How nodes are pruned.
#[derive(Debug, Clone)]
pub(crate) struct NodePruning {
    /// Nodes whose SVID ended this long ago go.
    pub(crate) expired_for: Duration,
    /// At most so many at a time.
    pub(crate) batch_size: usize,
    /// Those too that cannot attest again.
    pub(crate) non_reattestable: bool,
}

/// Runs for as long as the process lives.
pub(crate) async fn run(api: Api, nodes: Option<NodePruning>) {
    loop {
        api.clock.sleep_for(PRUNE_INTERVAL).await;
        let now = api.clock.now();
        prune_entries(&api, now).await;
        if let Some(nodes) = &nodes {
            prune_nodes(&api, nodes, now).await;
        }
        write_seen(&api).await;
        api.journal.report_left_out().await;
        api.lines.report();
        let ended_before = now.before(TOKEN_GRACE);
        if let Err(error) = api.store.write(Actor::server(), move |draft| draft.token_prune(ended_before)).await {
            tracing::warn!(%error, "Could not prune join tokens");
        }
    }
}

async fn prune_entries(api: &Api, now: Timestamp) {
    let ended: Vec<(Arc<str>, String)> = api
        .store
        .snapshot()
        .entries_after("")
        .filter(|e| e.is_expired(now))
        .take(PRUNE_BATCH)
        .map(|e| (Arc::from(e.id.as_str()), e.spiffe_id.to_string()))
        .collect();
    if ended.is_empty() {
        return;
    }
    for (id, spiffe_id) in &ended {
        tracing::info!(registration_id = %id, spiffe_id, "Pruned an expired registration");
    }
    let dropped = api
        .store
        .write(Actor::server(), move |draft| {
            for (id, _) in &ended {
                // It may have been renewed meanwhile.
                if draft.snapshot().entry(id).is_some_and(|e| e.is_expired(now)) {
                    draft.change(Change::EntryDelete(Arc::clone(id)));
                }
            }
            Ok(())
        })
        .await;
    if let Err(error) = dropped {
        tracing::warn!(%error, "Could not prune expired entries");
    }
}

async fn prune_nodes(api: &Api, pruning: &NodePruning, now: Timestamp) {
    let before = now.before(pruning.expired_for);
    let wanted = pruning.clone();
    let dropped = api
        .store
        .write(Actor::server(), move |draft| {
            let ended: Vec<_> = draft
                .snapshot()
                .nodes_after(None)
                .filter(|n| !n.is_banned() && n.expires_at < before && (n.can_reattest || wanted.non_reattestable))
                .take(wanted.batch_size)
                .map(|n| n.id.clone())
                .collect();
            for id in &ended {
                draft.change(Change::NodeDelete(id.clone()));
                draft.seen_delete(id)?;
                for alias in crate::api::alias_entries(draft.snapshot(), id) {
                    draft.change(Change::EntryDelete(alias));
                }
            }
            Ok(ended)
        })
        .await;
    match dropped {
        Ok(ended) => {
            for id in ended {
                api.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                tracing::info!(agent_id = %id, "Pruned an agent whose SVID had ended");
            }
        }
        Err(error) => tracing::warn!(%error, "Could not prune agents"),
    }
}

/// Writes down what was seen of agents since the last time; losing the last half minute of it harms nobody.
async fn write_seen(api: &Api) {
    let since = api.clock.now().before(PRUNE_INTERVAL * 2);
    let fresh: Vec<_> = {
        let seen = api.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.values().filter(|s| s.at >= since).cloned().collect()
    };
    if fresh.is_empty() {
        return;
    }
    let written = api
        .store
        .write(Actor::server(), move |draft| {
            for seen in &fresh {
                draft.seen_put(seen)?;
            }
            Ok(())
        })
        .await;
    if let Err(error) = written {
        tracing::warn!(%error, "Could not write down when agents were seen");
    }
}
