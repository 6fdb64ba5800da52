//! Everything replaceable, and the traits it is replaced through. An attestor has a folder, with both halves side by side and
//! its user page; a key manager has a file. Each is in the list of its kind; `CONTRIBUTING.md` says how to add one.
//!
//! Plugins prove and keep; they never decide who may have which identity. Called by `server` and `agent`, never the
//! other way round.

pub mod keys;
pub mod later;
pub mod node;
pub mod workload;

use std::future::Future;
use std::pin::Pin;

use countersign_config::{ConfigError, Fingerprint, Section, Spanned};

/// What an asynchronous method of a plugin returns.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A plugin as it is configured.
#[derive(Debug)]
pub struct Configured {
    /// Its name, the label of the block.
    pub name: String,
    /// Its block, for errors about it.
    pub block: Section,
    /// Its settings, from `plugin_data` or from the file that `plugin_data_file` names.
    pub data: Section,
}

/// The plugins of a kind, in the order of the file, without those that are disabled. External ones are refused. What they are
/// configured with goes into `fingerprint`.
///
/// # Errors
/// A wrong setting, a name that is there twice, or a file that cannot be read.
pub fn configured(plugins: &mut Section, kind: &'static str, fingerprint: &mut Fingerprint) -> Result<Vec<Configured>, ConfigError> {
    let mut all: Vec<Configured> = Vec::new();
    for (name, mut block) in plugins.labelled(kind)? {
        let about = block.clone();
        if all.iter().any(|plugin| plugin.name == name) {
            return Err(about.error(format!("plugin \"{kind}\"/{name:?} declared more than once")));
        }
        if block.boolean("enabled")?.is_some_and(|enabled| !enabled.value) {
            continue;
        }
        for key in ["plugin_cmd", "plugin_args", "plugin_checksum"] {
            if let Some(found) = block.take_any(key) {
                return Err(found
                    .error(format!("the plugin \"{kind}\"/{name:?} is external, and external plugins are not supported yet"))
                    .hint("use a built-in plugin meanwhile, or set `enabled = false` in the block"));
            }
        }
        let inline = block.section("plugin_data")?;
        let data = match (block.string("plugin_data_file")?, inline) {
            (Some(file), None) => from_file(&file)?,
            (Some(file), Some(_)) => return Err(file.error("only one of [plugin_data, plugin_data_file] can be used")),
            (None, Some(data)) => data,
            (None, None) => Section::empty("plugin_data", &about.place().file),
        };
        block.finish()?;
        fingerprint.add(&format!("plugins.{kind} {name:?}"), &about);
        fingerprint.add(&format!("plugins.{kind} {name:?}.plugin_data"), &data);
        all.push(Configured { name, block: about, data });
    }
    Ok(all)
}

/// The settings in a file of their own, which may be HCL or JSON too. The beginning of the sentence is SPIRE's.
fn from_file(file: &Spanned<String>) -> Result<Section, ConfigError> {
    // Not opened for a look: a pipe would be empty the second time.
    if let Err(error) = std::fs::metadata(&file.value) {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        return Err(file.error(format!("failed to read plugin configuration: open {}: {reason}", file.value)));
    }
    countersign_config::load(std::path::Path::new(&file.value), false)
}

#[cfg(test)]
mod tests;
