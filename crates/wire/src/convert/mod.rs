//! Conversions, one file a noun. From the wire they check; to the wire they cannot fail.

pub mod bundle;
pub mod denial;
pub mod entry;
pub mod federation;
pub mod id;
pub mod log_level;
pub mod mask;

/// Why a message is not what it should be: a sentence for the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConvertError(pub String);

impl ConvertError {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}
