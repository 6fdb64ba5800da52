//! Filters of listings, and the paging all listings share.

use std::collections::BTreeSet;

use countersign_identity::{Entry, Selector, SpiffeId};
use countersign_wire::types::selector_match::MatchBehavior;
use countersign_wire::{entry_api, id, types};
use prost::Message;
use tonic::Status;

use super::room::{self, Room};

/// How a set that is asked for relates to the set something has.
#[derive(Debug)]
pub(crate) enum SetMatch<T> {
    Exact(BTreeSet<T>),
    Subset(BTreeSet<T>),
    Superset(BTreeSet<T>),
    Any(BTreeSet<T>),
}

impl<T: Ord> SetMatch<T> {
    fn new(wanted: BTreeSet<T>, behavior: i32) -> Result<Self, String> {
        // Both enumerations of the wire have the same numbers.
        match MatchBehavior::try_from(behavior) {
            Ok(MatchBehavior::MatchExact) => Ok(Self::Exact(wanted)),
            Ok(MatchBehavior::MatchSubset) => Ok(Self::Subset(wanted)),
            Ok(MatchBehavior::MatchSuperset) => Ok(Self::Superset(wanted)),
            Ok(MatchBehavior::MatchAny) => Ok(Self::Any(wanted)),
            Err(_) => Err(format!("unsupported match behavior {behavior}")),
        }
    }

    pub(crate) fn matches(&self, has: &BTreeSet<T>) -> bool {
        match self {
            Self::Exact(wanted) => has == wanted,
            // SPIRE looks at what has something of this sort only: who federates with nobody is not found by a subset.
            Self::Subset(wanted) => !has.is_empty() && has.is_subset(wanted),
            Self::Superset(wanted) => has.is_superset(wanted),
            Self::Any(wanted) => !has.is_disjoint(wanted),
        }
    }
}

/// A selector filter.
pub(crate) fn selectors(wanted: &types::SelectorMatch) -> Result<SetMatch<Selector>, String> {
    if wanted.selectors.is_empty() {
        return Err("empty selector set".to_owned());
    }
    let set = id::selectors_from_wire(&wanted.selectors).map_err(|e| e.to_string())?.into_iter().collect();
    SetMatch::new(set, wanted.r#match)
}

/// Which entries a listing wants.
#[derive(Debug, Default)]
pub(crate) struct EntryFilter {
    spiffe_id: Option<SpiffeId>,
    parent_id: Option<SpiffeId>,
    selectors: Option<SetMatch<Selector>>,
    federates_with: Option<SetMatch<String>>,
    hint: Option<String>,
    downstream: Option<bool>,
}

impl EntryFilter {
    pub(crate) fn new(filter: Option<&entry_api::list_entries_request::Filter>) -> Result<Self, String> {
        let Some(filter) = filter else { return Ok(Self::default()) };
        let parse = |field: &Option<types::Spiffeid>, name: &str| match field {
            Some(wanted) => id::from_wire(Some(wanted)).map(Some).map_err(|e| format!("malformed {name} filter: {e}")),
            None => Ok(None),
        };
        let federates_with = match &filter.by_federates_with {
            None => None,
            Some(wanted) if wanted.trust_domains.is_empty() => return Err("empty trust domain set".to_owned()),
            Some(wanted) => {
                let names: Result<BTreeSet<String>, String> = wanted
                    .trust_domains
                    .iter()
                    .map(|name| {
                        countersign_identity::TrustDomain::parse_name_or_id(name)
                            .map(|td| td.name().to_owned())
                            .map_err(|e| format!("malformed federates with filter: {e}"))
                    })
                    .collect();
                Some(SetMatch::new(names?, wanted.r#match)?)
            }
        };
        Ok(Self {
            spiffe_id: parse(&filter.by_spiffe_id, "SPIFFE ID")?,
            parent_id: parse(&filter.by_parent_id, "parent ID")?,
            selectors: filter.by_selectors.as_ref().map(selectors).transpose().map_err(|e| format!("malformed selectors filter: {e}"))?,
            federates_with,
            hint: filter.by_hint.clone(),
            downstream: filter.by_downstream,
        })
    }

    pub(crate) fn matches(&self, entry: &Entry) -> bool {
        self.spiffe_id.as_ref().is_none_or(|wanted| *wanted == entry.spiffe_id)
            && self.parent_id.as_ref().is_none_or(|wanted| *wanted == entry.parent_id)
            && self.hint.as_ref().is_none_or(|wanted| *wanted == entry.hint)
            && self.downstream.is_none_or(|wanted| wanted == entry.downstream)
            && self.selectors.as_ref().is_none_or(|wanted| wanted.matches(&entry.selectors.iter().cloned().collect()))
            && self
                .federates_with
                .as_ref()
                .is_none_or(|wanted| wanted.matches(&entry.federates_with.iter().map(|td| td.name().to_owned()).collect()))
    }
}

impl From<entry_api::count_entries_request::Filter> for EntryFilterMessage {
    fn from(f: entry_api::count_entries_request::Filter) -> Self {
        Self(entry_api::list_entries_request::Filter {
            by_spiffe_id: f.by_spiffe_id,
            by_parent_id: f.by_parent_id,
            by_selectors: f.by_selectors,
            by_federates_with: f.by_federates_with,
            by_hint: f.by_hint,
            by_downstream: f.by_downstream,
        })
    }
}

/// The filter of a count as the filter of a listing.
pub(crate) struct EntryFilterMessage(pub(crate) entry_api::list_entries_request::Filter);

/// One page of what matches, as it is shown; shorter than asked for when more would not fit into an answer. `page_size` 0 is
/// everything, or a refusal: clients that ask so do not look for a next page, and would take a part for the whole. The token
/// is the key of the last item, and is given as long as the page is not empty, as SPIRE's clients expect.
pub(crate) fn page<T: Copy, M: Message>(
    items: impl Iterator<Item = T>,
    page_size: i32,
    key: impl Fn(T) -> String,
    show: impl Fn(T) -> M,
) -> Result<(Vec<M>, String), Status> {
    let size = usize::try_from(page_size).ok().filter(|size| *size > 0);
    let (mut room, mut page, mut last) = (Room::default(), Vec::new(), None);
    for item in items {
        if size.is_some_and(|size| page.len() >= size) {
            break;
        }
        let shown = show(item);
        let fits = room.takes(&shown);
        if !fits && size.is_none() {
            return Err(room::too_large("ask for pages, with a page size"));
        }
        // What is too large by itself is sent all the same: some clients accept more, and nobody gets past it otherwise.
        if !fits && !page.is_empty() {
            break;
        }
        page.push(shown);
        last = Some(item);
    }
    Ok((page, last.filter(|_| size.is_some()).map(key).unwrap_or_default()))
}
