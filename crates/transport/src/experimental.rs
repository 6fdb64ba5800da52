//! Settings that the `experimental` blocks of server and agent have in common, and the profiling keys, which both have too.

use countersign_config::{ConfigError, Section};

use crate::key_exchange::KeyExchange;

/// SPIRE's own switch for its tests, which does nothing there either.
const TEST_FLAG: &str = "i_am_a_test_flag";
/// The warning about anything in the block, in SPIRE's words.
pub const WARNING: &str = "Experimental features have been enabled. Please see doc/upgrading.md for upgrade and compatibility considerations for experimental features.";

/// Reads what both blocks have: flags, key exchange after quantum computers, and the names of Windows.
///
/// # Errors
/// A wrong setting, or one that cannot be honoured.
pub fn read_shared(block: &mut Section) -> Result<KeyExchange, ConfigError> {
    for (key, instead) in [("named_pipe_name", "socket_path"), ("admin_named_pipe_name", "admin_socket_path")] {
        if let Some(name) = block.string(key)?.filter(|name| !name.value.is_empty()) {
            return Err(name.error(format!("{key} is not supported in this platform; please use {instead} instead")));
        }
    }
    let is_required = block.boolean("require_pq_kem")?.is_some_and(|required| required.value);
    let key_exchange = if is_required { KeyExchange::PostQuantum } else { KeyExchange::Any };
    let flags = block.strings("feature_flags")?;
    if let Some(wit) = flags.iter().find(|flag| flag.value == "wit-svid") {
        return Err(wit.error("WIT-SVIDs are not supported yet").hint("leave the flag out"));
    }
    let unknown: Vec<&str> = flags.iter().map(|flag| flag.value.as_str()).filter(|flag| *flag != TEST_FLAG).collect();
    match flags.first() {
        Some(first) if !unknown.is_empty() => Err(first.error(format!("unknown feature flag(s): [{}]", unknown.join(" ")))),
        _ => Ok(key_exchange),
    }
}

/// The profiling keys. They are profiles of Go's runtime, which is not here; the system's profilers look into a running process
/// without its help.
///
/// # Errors
/// A wrong setting, or profiling switched on.
pub fn read_profiling(section: &mut Section) -> Result<(), ConfigError> {
    section.integer("profiling_port")?;
    section.integer("profiling_freq")?;
    section.strings("profiling_names")?;
    match section.boolean("profiling_enabled")? {
        Some(enabled) if enabled.value => Err(enabled
            .error("there are no profiles of Go's runtime in this program")
            .hint("leave it out and use `perf record -g -p PID`, which needs no setting and no restart")),
        _ => Ok(()),
    }
}
