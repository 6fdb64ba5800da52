//! The server's `experimental` block. Most of it tunes caches that are not here: every change is in memory when its transaction
//! ends, so those settings must be right and have nothing left to do.

use std::time::Duration;

use countersign_config::{ConfigError, Section};
use countersign_transport::experimental;
use countersign_transport::key_exchange::KeyExchange;

/// How often SPIRE reloads its cache where nothing else is said.
const CACHE_RELOAD_INTERVAL: Duration = Duration::from_secs(5);
/// The same for the whole cache.
const FULL_CACHE_RELOAD_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// What is later, and what to do meanwhile.
const LATER: &[(&str, &str)] = &[
    ("auth_opa_policy_engine", "leave it out; who may call what is fixed as in SPIRE's own default policy"),
    ("wit_key_type", "leave it out; there are no WIT-SVIDs yet"),
    ("wit_issuer", "leave it out; there are no WIT-SVIDs yet"),
];

/// What of the block the server goes by.
#[derive(Default)]
pub(super) struct Experimental {
    /// Whether agents have their own SPIFFE ID among their selectors.
    pub(super) agent_spiffe_id_as_selector: bool,
    /// What agents must know to be connected with.
    pub(super) key_exchange: KeyExchange,
}

/// Checks the block, and says what the operator should know of it.
pub(super) fn read(mut block: Section, warnings: &mut Vec<String>) -> Result<Experimental, ConfigError> {
    if !block.is_empty() {
        warnings.push(experimental::WARNING.to_owned());
    }
    for (key, meanwhile) in LATER {
        if let Some(found) = block.take_any(key) {
            return Err(found.error("is recognised but not supported yet").hint(*meanwhile));
        }
    }
    let agent_spiffe_id_as_selector = block.boolean("agent_spiffe_id_as_selector")?.is_some_and(|selector| selector.value);
    let reload = block.duration("cache_reload_interval")?.map_or(CACHE_RELOAD_INTERVAL, |interval| interval.value);
    if let Some(full) = block.duration("full_cache_reload_interval")? {
        if full.value <= reload {
            return Err(full.error(format!("must be longer than cache_reload_interval, which is {reload:?}")));
        }
    } else if FULL_CACHE_RELOAD_INTERVAL <= reload {
        return Err(block.error(format!("cache_reload_interval must be shorter than {FULL_CACHE_RELOAD_INTERVAL:?}")));
    }
    block.boolean("events_based_cache")?;
    block.duration("prune_events_older_than")?;
    let timeout = block.duration("event_timeout")?;
    if let Some(former) = block.duration("sql_transaction_timeout")? {
        if timeout.is_some() {
            return Err(former.error("sql_transaction_timeout and event_timeout are the same setting").hint("keep event_timeout"));
        }
        warnings.push("experimental.sql_transaction_timeout is deprecated, use experimental.event_timeout instead".to_owned());
    }
    let key_exchange = experimental::read_shared(&mut block)?;
    block.finish()?;
    Ok(Experimental { agent_spiffe_id_as_selector, key_exchange })
}
