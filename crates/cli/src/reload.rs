//! SIGUSR1: the configuration is read again. Either all of it is right, and what a running process can take over is taken over;
//! or one thing in it is wrong, and the former configuration stays, all of it.

use std::sync::Arc;

use countersign_config::{Changes, Fingerprint};
use countersign_identity::Timestamp;
use countersign_transport::observe::Logging;

use crate::logging::Log;
use crate::output::Failure;

/// Beyond this many names of settings a line says only how many more there are.
const NAMES_MAX: usize = 20;

/// A configuration that was read, as far as every role has it.
pub(crate) struct Read<'a> {
    fingerprint: &'a Fingerprint,
    logging: &'a Logging,
    warnings: &'a [String],
    live_plugins: Vec<(&'static str, &'static str)>,
}

/// Both roles' configurations have these parts under the same names.
macro_rules! read_of {
    ($config:ty) => {
        impl<'a> From<&'a $config> for Read<'a> {
            fn from(config: &'a $config) -> Self {
                let live_plugins = config.live_plugins();
                Self { fingerprint: &config.fingerprint, logging: &config.logging, warnings: &config.warnings, live_plugins }
            }
        }
    };
}

read_of!(countersign_server::Config);
read_of!(countersign_agent::Config);

/// What a role takes over while it runs, and what is in force.
pub(crate) struct Reload {
    pub(crate) in_force: Fingerprint,
    /// Settings that can be taken over.
    pub(crate) live: &'static [&'static str],
    /// Whether whoever may ask what came of it may read the errors too.
    pub(crate) tells_errors: bool,
    pub(crate) log: Arc<Log>,
}

impl Reload {
    /// Compares a configuration with the one in force, and takes over what can be. Says what came of it in the log, and in a
    /// sentence for whoever asks later.
    pub(crate) fn take<'a, C>(&mut self, config: &'a Result<C, Failure>, take_over: impl FnOnce(&'a C), now: Timestamp) -> String
    where
        Read<'a>: From<&'a C>,
    {
        tracing::info!("Reconfigure signal received");
        let config = match config {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(%error, "Failed to reload the configuration, the former one stays");
                let why = if self.tells_errors { error.to_string() } else { "the log says why".to_owned() };
                return format!("failed at {}, the former configuration stays: {why}", now.rfc3339());
            }
        };
        let read = Read::from(config);
        let changes = self.in_force.changes(read.fingerprint, self.live);
        take_over(config);
        // Only where the file changed: else the level that somebody has set since would be lost.
        if self.live.iter().any(|name| name.ends_with(".log_level") && changes.has(name)) {
            self.log.configure(&read.logging.level);
        }
        self.in_force.take_over(read.fingerprint, &changes);
        for (plugin_type, plugin_name) in read.live_plugins {
            if changes.has(&format!("plugins.{plugin_type} {plugin_name:?}")) {
                tracing::info!(subsystem_name = "catalog", external = false, plugin_name, plugin_type, "Plugin reconfigured");
            } else {
                tracing::info!(
                    subsystem_name = "catalog",
                    external = false,
                    plugin_name,
                    plugin_type,
                    "Plugin not reconfigured since the config is unchanged"
                );
            }
        }
        for warning in read.warnings {
            tracing::warn!("{warning}");
        }
        let (changed, needs_restart) = (names(&changes.live), names(&changes.restart));
        if !changes.restart.is_empty() {
            tracing::warn!(settings = needs_restart, "Changed settings wait for a restart");
        }
        tracing::info!(changed, needs_restart, "Configuration reloaded");
        format!("done at {}, {}", now.rfc3339(), sentence(&changes))
    }
}

fn sentence(changes: &Changes) -> String {
    let changed = if changes.live.is_empty() { "nothing changed".to_owned() } else { format!("changed {}", names(&changes.live)) };
    if changes.restart.is_empty() { changed } else { format!("{changed}; waiting for a restart: {}", names(&changes.restart)) }
}

fn names(settings: &[String]) -> String {
    let mut names = settings.iter().take(NAMES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    if let Some(more) = settings.len().checked_sub(NAMES_MAX).filter(|more| *more > 0) {
        names += &format!(" and {more} more");
    }
    names
}
