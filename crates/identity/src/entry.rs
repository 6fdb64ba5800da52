//! Registration entries: which selectors, on which node, earn which SPIFFE ID, and with what attributes.

use std::time::Duration;

use crate::id::{SpiffeId, TrustDomain};
use crate::selector::{SELECTORS_MAX, Selector, SelectorError};
use crate::time::Timestamp;

/// Longest entry ID, in bytes; SPIRE's limit, which controllers rely on.
pub const ENTRY_ID_BYTES_MAX: usize = 255;
/// Longest hint, in bytes (Workload API section 8: longer ones should not be supported).
pub const HINT_BYTES_MAX: usize = 1024;
/// Most DNS names in one entry: certificates grow with each and peers parse them all.
pub const DNS_NAMES_MAX: usize = 256;
/// Most bytes of one entry's DNS names together: half of what a TLS handshake holds of a peer's whole chain (64 KiB, in Go
/// and rustls alike). 256 names of the greatest length would be a certificate that nobody can read.
pub const DNS_NAMES_BYTES_MAX: usize = 32 << 10;
/// Most trust domains one entry federates with: every message to its workloads carries all their bundles.
pub const FEDERATES_WITH_MAX: usize = 256;
/// Most bytes of one entry in a message. The limits above allow eight MiB of selectors, and a message has four: whoever
/// lists or follows must be able to receive every entry, several at a time. Beside the longest names of every other kind
/// (104 KiB) this leaves 152 KiB for selectors.
pub const ENTRY_BYTES_MAX: usize = 256 << 10;
/// Most bytes a message needs beside the text of one item of a list, or of one name.
const ITEM_BYTES: usize = 9;
/// Most bytes a message needs for everything in an entry that is no text: five numbers of at most eleven, and switches.
const NUMBERS_BYTES: usize = 128;

/// Attributes beyond SPIRE's classic fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AdditionalAttributes {
    /// Issue the X509-SVID only when a workload asks.
    pub disable_x509_svid_prefetch: bool,
    /// Give each JWT-SVID a unique `jti`.
    pub jwt_svid_include_jti: bool,
}

/// A registration entry with all of SPIRE's fields. Selectors are sorted and unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its ID, unique in the trust domain.
    pub id: String,
    /// The identity it grants.
    pub spiffe_id: SpiffeId,
    /// The agent, alias or workload it hangs below.
    pub parent_id: SpiffeId,
    /// What a workload must have, all of it.
    pub selectors: Vec<Selector>,
    /// Lifetime of X509-SVIDs; `None` is the server's default.
    pub x509_svid_ttl: Option<Duration>,
    /// Lifetime of JWT-SVIDs; `None` is the server's default.
    pub jwt_svid_ttl: Option<Duration>,
    /// Trust domains whose bundles its workloads get.
    pub federates_with: Vec<TrustDomain>,
    /// Whether its identity may administer the server.
    pub admin: bool,
    /// Whether its identity may ask for an intermediate authority.
    pub downstream: bool,
    /// When it ends by itself; `None` is never.
    pub expires_at: Option<Timestamp>,
    /// DNS names in the X509-SVID; the first is also the common name.
    pub dns_names: Vec<String>,
    /// Counts changes of this entry, from 0.
    pub revision_number: i64,
    /// Whether its SVIDs go to a store instead of to workloads.
    pub store_svid: bool,
    /// A word that tells a workload with several identities which is which.
    pub hint: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// The rest.
    pub additional_attributes: AdditionalAttributes,
}

/// Why an entry is refused. `Display` is a sentence for the caller, in SPIRE's words where there are any.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The ID has a foreign character or length.
    #[error("invalid entry ID: {0}")]
    Id(String),
    /// The SPIFFE ID or parent is not acceptable.
    #[error("invalid {field}: {reason}")]
    SpiffeId {
        /// `spiffe ID` or `parent ID`.
        field: &'static str,
        /// Which rule it breaks.
        reason: String,
    },
    /// No selectors.
    #[error("selector list is empty")]
    SelectorsEmpty,
    /// Too many of something.
    #[error("too many {what}: {count}, at most {max} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many came.
        count: usize,
        /// How many may come.
        max: usize,
    },
    /// The DNS names together are too long.
    #[error("DNS names are too long: {0} bytes together, at most {DNS_NAMES_BYTES_MAX} are allowed")]
    DnsNames(usize),
    /// All its texts together are too long.
    #[error("entry is too large: {bytes} bytes, {field_bytes} of them in {field}, at most {ENTRY_BYTES_MAX} are allowed")]
    TooLarge {
        /// How many bytes it has.
        bytes: usize,
        /// The field that has most of them.
        field: &'static str,
        /// How many that are.
        field_bytes: usize,
    },
    /// A selector is malformed.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// The hint is too long.
    #[error("hint is too long, max length is {HINT_BYTES_MAX} bytes")]
    Hint,
    /// A DNS name is malformed.
    #[error("invalid DNS name `{name}`: {reason}")]
    DnsName {
        /// As given.
        name: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// A negative lifetime.
    #[error("invalid {0}: it must not be negative")]
    Ttl(&'static str),
    /// A negative expiry.
    #[error("invalid expiry: it must not be negative")]
    Expiry,
    /// `store_svid` with selectors of several types.
    #[error("store_svid requires all selectors to have the same type")]
    StoreSelectors,
    /// `store_svid` together with the prefetch switch.
    #[error("store_svid cannot be combined with disable_x509_svid_prefetch")]
    StorePrefetch,
}

impl Entry {
    /// Checks every rule an entry of this trust domain must keep.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn check(&self, trust_domain: &TrustDomain) -> Result<(), EntryError> {
        check_id(&self.id)?;
        check_spiffe_id(&self.spiffe_id, trust_domain)?;
        check_parent_id(&self.parent_id, trust_domain)?;
        if self.selectors.is_empty() {
            return Err(EntryError::SelectorsEmpty);
        }
        for (what, count, max) in [
            ("selectors", self.selectors.len(), SELECTORS_MAX),
            ("DNS names", self.dns_names.len(), DNS_NAMES_MAX),
            ("federated trust domains", self.federates_with.len(), FEDERATES_WITH_MAX),
        ] {
            if count > max {
                return Err(EntryError::TooMany { what, count, max });
            }
        }
        let dns_names_bytes = self.dns_names.iter().map(String::len).sum();
        if dns_names_bytes > DNS_NAMES_BYTES_MAX {
            return Err(EntryError::DnsNames(dns_names_bytes));
        }
        let bytes = self.bytes();
        if bytes > ENTRY_BYTES_MAX {
            let (field, field_bytes) = self.lists().into_iter().max_by_key(|(_, bytes)| *bytes).unwrap_or_default();
            return Err(EntryError::TooLarge { bytes, field, field_bytes });
        }
        if self.hint.len() > HINT_BYTES_MAX {
            return Err(EntryError::Hint);
        }
        for name in &self.dns_names {
            check_dns_name(name)?;
        }
        if self.store_svid {
            let first = self.selectors.first().map(Selector::kind);
            if self.selectors.iter().any(|s| Some(s.kind()) != first) {
                return Err(EntryError::StoreSelectors);
            }
            if self.additional_attributes.disable_x509_svid_prefetch {
                return Err(EntryError::StorePrefetch);
            }
        }
        Ok(())
    }

    /// Bytes it takes in a message, at most.
    pub fn bytes(&self) -> usize {
        let names = [self.id.as_str(), self.spiffe_id.as_str(), self.parent_id.as_str(), &self.hint];
        NUMBERS_BYTES + list_bytes(names) + self.lists().iter().map(|(_, bytes)| bytes).sum::<usize>()
    }

    fn lists(&self) -> [(&'static str, usize); 3] {
        [
            ("selectors", list_bytes(self.selectors.iter().map(Selector::as_str))),
            ("DNS names", list_bytes(self.dns_names.iter().map(String::as_str))),
            ("federated trust domains", list_bytes(self.federates_with.iter().map(TrustDomain::name))),
        ]
    }

    /// Whether both grant the same identity below the same parent for the same selectors, which SPIRE calls similar.
    pub fn is_similar(&self, other: &Self) -> bool {
        self.spiffe_id == other.spiffe_id && self.parent_id == other.parent_id && self.selectors == other.selectors
    }

    /// Whether it is a node alias: it names a set of agents instead of a workload.
    pub fn is_alias(&self) -> bool {
        self.parent_id.path() == "/spire/server"
    }

    /// Whether it names nodes instead of a workload: a node alias, or what a join token brings to give its agent another ID.
    /// No workload has its selectors, and none is meant to.
    pub fn names_a_node(&self) -> bool {
        self.is_alias() || (self.parent_id.is_agent() && self.selectors.iter().all(|s| s.kind() == "spiffe_id"))
    }

    /// Whether it has ended at this time.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

fn list_bytes<'a>(texts: impl IntoIterator<Item = &'a str>) -> usize {
    texts.into_iter().map(|text| text.len() + ITEM_BYTES).sum()
}

/// Checks an entry ID that a client chose.
///
/// # Errors
/// Too long, empty, or a character outside `[-.0-9A-Za-z_]`.
pub fn check_id(id: &str) -> Result<(), EntryError> {
    if id.is_empty() || id.len() > ENTRY_ID_BYTES_MAX {
        return Err(EntryError::Id(format!("it has {} characters, allowed are 1 to {ENTRY_ID_BYTES_MAX}", id.len())));
    }
    match id.chars().find(|c| !matches!(c, '-' | '.' | '_' | '0'..='9' | 'A'..='Z' | 'a'..='z')) {
        Some(c) => Err(EntryError::Id(format!("character `{c}` is not allowed"))),
        None => Ok(()),
    }
}

/// Checks the identity an entry grants: in the trust domain, with a path, not reserved.
///
/// # Errors
/// Which of these it breaks.
pub fn check_spiffe_id(id: &SpiffeId, trust_domain: &TrustDomain) -> Result<(), EntryError> {
    let refuse = |reason: String| Err(EntryError::SpiffeId { field: "spiffe ID", reason });
    if !id.is_member_of(trust_domain) {
        return refuse(format!("`{id}` is not a member of trust domain `{trust_domain}`"));
    }
    if id.path().is_empty() {
        return refuse(format!("`{id}` has no path"));
    }
    if id.is_reserved() {
        return refuse(format!("`{id}` is in the reserved namespace `/spire`"));
    }
    Ok(())
}

fn check_parent_id(id: &SpiffeId, trust_domain: &TrustDomain) -> Result<(), EntryError> {
    let refuse = |reason: String| Err(EntryError::SpiffeId { field: "parent ID", reason });
    if !id.is_member_of(trust_domain) {
        return refuse(format!("`{id}` is not a member of trust domain `{trust_domain}`"));
    }
    if id.path().is_empty() {
        return refuse(format!("`{id}` has no path"));
    }
    Ok(())
}

/// Checks a DNS name label by label; a wildcard may be the whole leftmost label.
///
/// # Errors
/// Which rule it breaks.
pub fn check_dns_name(name: &str) -> Result<(), EntryError> {
    let refuse = |reason| Err(EntryError::DnsName { name: name.chars().take(120).collect(), reason });
    if name.is_empty() {
        return refuse("it is empty");
    }
    if name.len() > 253 {
        return refuse("it is longer than 253 characters");
    }
    for (index, label) in name.split('.').enumerate() {
        if index == 0 && label == "*" && name.len() > 1 {
            continue;
        }
        if label.is_empty() {
            return refuse("it has an empty label");
        }
        if label.len() > 63 {
            return refuse("a label is longer than 63 characters");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return refuse("a label begins or ends with a dash");
        }
        if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return refuse("a label has a character that is no letter, digit, dash or underscore");
        }
    }
    Ok(())
}
