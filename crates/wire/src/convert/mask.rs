//! Masks: which fields of a message are wanted. A mask that is not set wants all.

use crate::types::{Agent, AgentMask, Bundle, BundleMask, Entry, EntryMask, FederationRelationship, FederationRelationshipMask};

/// Every field of an entry.
pub const ENTRY_ALL: EntryMask = EntryMask {
    spiffe_id: true,
    parent_id: true,
    selectors: true,
    x509_svid_ttl: true,
    federates_with: true,
    admin: true,
    downstream: true,
    expires_at: true,
    dns_names: true,
    revision_number: true,
    store_svid: true,
    jwt_svid_ttl: true,
    hint: true,
    created_at: true,
    additional_attributes: true,
};

/// Empties the fields of an entry that the mask leaves out; the ID always stays.
pub fn entry(mut entry: Entry, mask: Option<&EntryMask>) -> Entry {
    let Some(m) = mask else { return entry };
    macro_rules! keep {
        ($($field:ident),*) => { $(if !m.$field { entry.$field = Default::default(); })* };
    }
    keep!(
        spiffe_id,
        parent_id,
        selectors,
        x509_svid_ttl,
        federates_with,
        admin,
        downstream,
        expires_at,
        dns_names,
        revision_number,
        store_svid,
        jwt_svid_ttl,
        hint,
        created_at,
        additional_attributes
    );
    entry
}

/// Takes from `new` the fields the mask names and the rest from `old`, as an update with an input mask means it.
pub fn entry_update(old: Entry, new: Entry, mask: Option<&EntryMask>) -> Entry {
    let Some(m) = mask else { return Entry { id: old.id, revision_number: old.revision_number, created_at: old.created_at, ..new } };
    let mut merged = old;
    macro_rules! replace {
        ($($field:ident),*) => { $(if m.$field { merged.$field = new.$field; })* };
    }
    replace!(
        spiffe_id,
        parent_id,
        selectors,
        x509_svid_ttl,
        federates_with,
        admin,
        downstream,
        expires_at,
        dns_names,
        store_svid,
        jwt_svid_ttl,
        hint,
        additional_attributes
    );
    merged
}

/// Empties the fields of an agent that the mask leaves out.
pub fn agent(mut agent: Agent, mask: Option<&AgentMask>) -> Agent {
    let Some(m) = mask else { return agent };
    macro_rules! keep {
        ($($field:ident),*) => { $(if !m.$field { agent.$field = Default::default(); })* };
    }
    keep!(attestation_type, x509svid_serial_number, x509svid_expires_at, selectors, banned, can_reattest, agent_version);
    agent
}

/// Empties the fields of a bundle that the mask leaves out.
pub fn bundle(mut bundle: Bundle, mask: Option<&BundleMask>) -> Bundle {
    let Some(m) = mask else { return bundle };
    macro_rules! keep {
        ($($field:ident),*) => { $(if !m.$field { bundle.$field = Default::default(); })* };
    }
    keep!(x509_authorities, jwt_authorities, refresh_hint, sequence_number, wit_authorities);
    bundle
}

/// Empties the fields of a federation relationship that the mask leaves out; the trust domain always stays.
pub fn federation_relationship(
    mut relationship: FederationRelationship,
    mask: Option<&FederationRelationshipMask>,
) -> FederationRelationship {
    let Some(m) = mask else { return relationship };
    macro_rules! keep {
        ($($field:ident),*) => { $(if !m.$field { relationship.$field = Default::default(); })* };
    }
    keep!(bundle_endpoint_url, bundle_endpoint_profile, trust_domain_bundle);
    relationship
}
