//! The block `sds`: under which names Envoys get what has no name of its own, and how they are to verify others.

use countersign_config::{ConfigError, Section};
use countersign_identity::id::SPIFFE_ID_BYTES_MAX;

/// Longest name of a secret. No SPIFFE ID is longer, and other names are the operator's.
pub(crate) const RESOURCE_NAME_BYTES_MAX: usize = SPIFFE_ID_BYTES_MAX;

/// SPIRE's warning, word for word.
const SAME_NAME: &str = "The \"default_bundle_name\" and \"default_all_bundles_name\" configurables have the same value. \
                         \"default_all_bundles_name\" will be ignored. Please configure distinct values or use the defaults. This will be a \
                         configuration error in a future release.";

/// How the Secret Discovery Service answers. The defaults are SPIRE's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sds {
    /// Name of the first identity.
    pub(crate) svid_name: String,
    /// Name of the own trust domain's bundle.
    pub(crate) bundle_name: String,
    /// Name of all bundles together. If it is that of the one, it is never reached.
    pub(crate) all_bundles_name: String,
    /// Whether Envoys verify by the authorities alone, unless they say otherwise.
    pub(crate) disable_spiffe_cert_validation: bool,
}

/// Reads `sds` and `disable_sds_api`; nothing if the service is switched off.
pub(super) fn read(agent: &mut Section, warnings: &mut Vec<String>) -> Result<Option<Sds>, ConfigError> {
    let is_off = agent.boolean("disable_sds_api")?.is_some_and(|off| off.value);
    let mut block = agent.section("sds")?;
    let mut name = |key: &'static str, default: &str| -> Result<String, ConfigError> {
        let Some(text) = block.as_mut().map(|block| block.filled(key)).transpose()?.flatten() else { return Ok(default.to_owned()) };
        if text.value.len() > RESOURCE_NAME_BYTES_MAX {
            return Err(text.error(format!("at most {RESOURCE_NAME_BYTES_MAX} bytes are allowed")));
        }
        Ok(text.value)
    };
    let svid_name = name("default_svid_name", "default")?;
    let bundle_name = name("default_bundle_name", "ROOTCA")?;
    let all_bundles_name = name("default_all_bundles_name", "ALL")?;
    let disabled = block.as_mut().map(|block| block.boolean("disable_spiffe_cert_validation")).transpose()?.flatten();
    block.map_or(Ok(()), Section::finish)?;
    if bundle_name == all_bundles_name {
        warnings.push(SAME_NAME.to_owned());
    }
    let disable_spiffe_cert_validation = disabled.is_some_and(|disabled| disabled.value);
    Ok((!is_off).then_some(Sds { svid_name, bundle_name, all_bundles_name, disable_spiffe_cert_validation }))
}
