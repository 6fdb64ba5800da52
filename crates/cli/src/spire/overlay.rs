//! `run` and `validate`: a configuration file with flags laid over it.

use std::path::PathBuf;

use countersign_config::{Override, Section};

use super::flags::{Flag, Given, Kind};
use crate::output::Failure;

/// Reads the file, and puts the flags that were given in the place of its settings. A flag with the zero value of its kind counts as
/// not given, as in SPIRE: it cannot switch off what the file switches on.
pub(super) fn load(given: &Given, block: &str, default: &str, flags: &[Flag], settings: &[(&str, &str)]) -> Result<Section, Failure> {
    let path = match given.text("config") {
        "" => PathBuf::from(default),
        path => PathBuf::from(path),
    };
    if !path.exists() {
        let path = std::path::absolute(&path).unwrap_or(path);
        return Err(Failure::new(format!("could not find config file {}: please use the -config flag", path.display())));
    }
    let mut top = countersign_config::load(&path, given.is_on("expandEnv")).map_err(|e| Failure::new(e.to_string()))?;
    for (flag, key) in settings.iter().filter_map(|(name, key)| Some((flags.iter().find(|f| f.name == *name)?, key))) {
        let value = match flag.kind {
            Kind::Text if !given.text(flag.name).is_empty() => Override::Text(given.text(flag.name).to_owned()),
            Kind::Number if given.number(flag.name) != 0 => Override::Number(given.number(flag.name)),
            Kind::Switch if given.is_on(flag.name) => Override::True,
            _ => continue,
        };
        countersign_config::lay_over(&mut top, block, key, flag.name, value);
    }
    Ok(top)
}

#[cfg(test)]
mod tests;
