//! Everything replaceable, and the traits it is replaced through. An attestor has a folder, with both halves side by side and
//! its user page; a key manager has a file. Each is in the list of its kind; `CONTRIBUTING.md` says how to add one.
//!
//! Plugins prove and keep; they never decide who may have which identity. Called by `server` and `agent`, never the
//! other way round.

pub mod keys;
pub mod node;
pub mod workload;

use std::future::Future;
use std::pin::Pin;

use countersign_config::{ConfigError, Section};

/// What an asynchronous method of a plugin returns.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The block of a plugin, for errors about it, and its `plugin_data`. External plugins are refused.
///
/// # Errors
/// A setting of plugin blocks that is wrong or not supported yet.
pub fn plugin_data(mut block: Section) -> Result<(Section, Section), ConfigError> {
    for key in ["plugin_cmd", "plugin_args", "plugin_checksum"] {
        if let Some(found) = block.take_any(key) {
            return Err(found.error("external plugins are not supported yet").hint("use a built-in plugin meanwhile"));
        }
    }
    if let Some(found) = block.take_any("plugin_data_file") {
        return Err(found.error("is recognised but not supported yet").hint("put the settings into `plugin_data { … }`"));
    }
    if block.boolean("enabled")?.is_some_and(|b| !b.value) {
        return Err(block.error("the plugin is disabled").hint("remove the block or `enabled = false`"));
    }
    let data = block.section("plugin_data")?.unwrap_or_else(|| Section::empty("plugin_data", &block.place().file));
    let about = block.clone();
    block.finish()?;
    Ok((about, data))
}
