//! Selectors: one attested fact each, a type (the attestor that found it) and a value.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest selector, type and value together, in bytes: a path or a label fits, a document does not.
pub const SELECTOR_BYTES_MAX: usize = 8192;
/// Most selectors one entry or one workload may have; an entry with more could hardly ever match.
pub const SELECTORS_MAX: usize = 1024;

/// Why a text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// No colon in `type:value`.
    #[error("selector `{0}` must be formatted as type:value")]
    NoColon(String),
    /// Nothing before the colon.
    #[error("selector type is empty")]
    TypeEmpty,
    /// A colon within the type.
    #[error("selector type `{0}` contains `:`")]
    TypeColon(String),
    /// Nothing after the colon.
    #[error("selector value is empty")]
    ValueEmpty,
    /// Longer than [`SELECTOR_BYTES_MAX`].
    #[error("selector has {0} bytes, more than the {SELECTOR_BYTES_MAX} allowed")]
    TooLong(usize),
}

/// One fact about a node or a workload, for example `unix:uid:1000`. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    text: Arc<str>,
    colon: u16,
}

impl Selector {
    /// From its two parts.
    ///
    /// # Errors
    /// The type is empty or holds a colon, the value is empty, or both are too long.
    pub fn new(kind: &str, value: &str) -> Result<Self, SelectorError> {
        if kind.is_empty() {
            return Err(SelectorError::TypeEmpty);
        }
        if kind.contains(':') {
            return Err(SelectorError::TypeColon(kind.to_owned()));
        }
        if value.is_empty() {
            return Err(SelectorError::ValueEmpty);
        }
        let bytes = kind.len() + 1 + value.len();
        if bytes > SELECTOR_BYTES_MAX {
            return Err(SelectorError::TooLong(bytes));
        }
        // SELECTOR_BYTES_MAX fits into 16 bits.
        let colon = u16::try_from(kind.len()).map_err(|_| SelectorError::TooLong(bytes))?;
        Ok(Self { text: format!("{kind}:{value}").into(), colon })
    }

    /// Parses `type:value`; only the first colon separates.
    ///
    /// # Errors
    /// As [`Selector::new`], or there is no colon.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let (kind, value) = text.split_once(':').ok_or_else(|| SelectorError::NoColon(text.to_owned()))?;
        Self::new(kind, value)
    }

    /// The attestor that finds it.
    pub fn kind(&self) -> &str {
        self.text.get(..usize::from(self.colon)).unwrap_or_default()
    }

    /// What it says.
    pub fn value(&self) -> &str {
        self.text.get(usize::from(self.colon) + 1..).unwrap_or_default()
    }

    /// `type:value`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(s: &str) -> Result<Self, SelectorError> {
        Self::parse(s)
    }
}

/// Whether every selector of `wanted` is among `found`. Both must be sorted.
pub fn is_subset(wanted: &[Selector], found: &[Selector]) -> bool {
    wanted.iter().all(|s| found.binary_search(s).is_ok())
}

/// Sorted and without repeats, the form in which sets of selectors are kept and compared.
pub fn sorted(mut selectors: Vec<Selector>) -> Vec<Selector> {
    selectors.sort_unstable();
    selectors.dedup();
    selectors
}
