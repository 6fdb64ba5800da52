//! Commands that are clients of a running server or agent, one file a noun.

pub(crate) mod agent;
pub(crate) mod bundle;
pub(crate) mod entry;
mod entry_explain;
pub(crate) mod entry_file;
pub(crate) mod explain;
pub(crate) mod fetch;
pub(crate) mod health;
pub(crate) mod journal;
pub(crate) mod logger;
pub(crate) mod mint;
pub(crate) mod shell;
pub(crate) mod show;
pub(crate) mod store;
pub(crate) mod token;
mod watch;

use clap::ValueEnum;
use countersign_identity::{Selector, SpiffeId};
use countersign_wire::types::selector_match::MatchBehavior;
use countersign_wire::{id, types};

/// Bytes read from a file or from standard input for one message, which can have four MiB.
pub(crate) const INPUT_BYTES_MAX: u64 = 4 << 20;

/// How a set that is asked for relates to the set something has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MatchOn {
    Exact,
    Any,
    Superset,
    Subset,
}

impl MatchOn {
    fn number(self) -> i32 {
        match self {
            Self::Exact => MatchBehavior::MatchExact,
            Self::Subset => MatchBehavior::MatchSubset,
            Self::Superset => MatchBehavior::MatchSuperset,
            Self::Any => MatchBehavior::MatchAny,
        }
        .into()
    }
}

fn selector_match(selectors: &[Selector], on: MatchOn) -> Option<types::SelectorMatch> {
    (!selectors.is_empty()).then(|| types::SelectorMatch { selectors: id::selectors_to_wire(selectors), r#match: on.number() })
}

fn optional_id(wanted: Option<&SpiffeId>) -> Option<types::Spiffeid> {
    wanted.map(id::to_wire)
}
