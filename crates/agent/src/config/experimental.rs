//! The agent's `experimental` block.

use std::time::Duration;

use countersign_config::{ConfigError, Section};
use countersign_transport::experimental;
use countersign_transport::key_exchange::KeyExchange;

use crate::ratelimit::{self, Method};

/// How often entries are asked for where the server cannot push them, as in SPIRE.
const SYNC_INTERVAL: Duration = Duration::from_secs(5);
/// Bounds of SPIRE's for the time that a renewal of a token may take while a valid one is in hand.
const CACHE_HIT_TIMEOUT: std::ops::Range<Duration> = Duration::from_secs(5)..Duration::from_secs(30);

/// What of the block the agent goes by.
pub(super) struct Experimental {
    pub(super) sync_interval: Duration,
    pub(super) limits: ratelimit::Settings,
    pub(super) key_exchange: KeyExchange,
}

impl Default for Experimental {
    fn default() -> Self {
        Self { sync_interval: SYNC_INTERVAL, limits: ratelimit::Settings::default(), key_exchange: KeyExchange::Any }
    }
}

/// Reads the block, and says what the operator should know of it.
pub(super) fn read(mut block: Section, warnings: &mut Vec<String>) -> Result<Experimental, ConfigError> {
    if !block.is_empty() {
        warnings.push(experimental::WARNING.to_owned());
    }
    if let Some(found) = block.take_any("broker") {
        return Err(found.error("is recognised but not supported yet").hint("leave the block out; the Broker API comes later"));
    }
    let sync_interval = match block.duration("sync_interval")? {
        Some(interval) if interval.value < Duration::from_secs(1) => return Err(interval.error("must be at least one second")),
        Some(interval) => interval.value,
        None => SYNC_INTERVAL,
    };
    // A valid token in hand is given out at once and renewed behind it, so that nobody waits for this.
    if let Some(timeout) = block.duration("jwt_svid_cache_hit_timeout")? {
        if !CACHE_HIT_TIMEOUT.contains(&timeout.value) {
            return Err(timeout.error(format!(
                "jwt_svid_cache_hit_timeout must be at least {:?} and less than {:?}",
                CACHE_HIT_TIMEOUT.start, CACHE_HIT_TIMEOUT.end
            )));
        }
        warnings.push("The use of 'jwt_svid_cache_hit_timeout' is experimental".to_owned());
    }
    if block.boolean("use_sync_authorized_entries")?.is_some() {
        warnings.push(
            "The 'use_sync_authorized_entries' configuration is deprecated. The option to disable it will be removed in SPIRE 1.13."
                .to_owned(),
        );
    }
    let limits = block.section("ratelimit")?.map(read_limits).transpose()?.unwrap_or_default();
    let key_exchange = experimental::read_shared(&mut block)?;
    block.finish()?;
    Ok(Experimental { sync_interval, limits, key_exchange })
}

/// Calls a second of workloads with the same selectors; 0 is no limit.
fn read_limits(mut block: Section) -> Result<ratelimit::Settings, ConfigError> {
    let mut limits = ratelimit::Settings::default();
    for method in Method::ALL {
        let Some(limit) = block.integer(method.setting())? else { continue };
        let per_second = u64::try_from(limit.value).map_err(|_| limit.error("must not be negative"))?;
        limits.set(method, per_second);
    }
    block.finish()?;
    Ok(limits)
}
