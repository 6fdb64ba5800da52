//! Registration entries.

use std::time::Duration;

use countersign_identity::entry::{AdditionalAttributes, EntryError, FEDERATES_WITH_MAX};
use countersign_identity::{Entry, Timestamp, TrustDomain};

use super::{ConvertError, id};
use crate::types;

/// An entry as its owner describes it. The rules of the trust domain are checked by [`Entry::check`] afterwards.
///
/// # Errors
/// The first field that is malformed.
pub fn from_wire(entry: &types::Entry) -> Result<Entry, ConvertError> {
    if entry.federates_with.len() > FEDERATES_WITH_MAX {
        return Err(ConvertError::new(format!(
            "too many federated trust domains: {}, at most {FEDERATES_WITH_MAX} are allowed",
            entry.federates_with.len()
        )));
    }
    let federates_with: Result<Vec<_>, _> = entry
        .federates_with
        .iter()
        .map(|name| TrustDomain::parse_name_or_id(name).map_err(|e| ConvertError::new(format!("invalid federated trust domain: {e}"))))
        .collect();
    let mut federates_with = federates_with?;
    federates_with.sort_unstable();
    federates_with.dedup();
    let extra = entry.additional_attributes.unwrap_or_default();
    Ok(Entry {
        id: entry.id.clone(),
        spiffe_id: id::from_wire(entry.spiffe_id.as_ref()).map_err(|e| ConvertError::new(format!("invalid spiffe ID: {e}")))?,
        parent_id: id::from_wire(entry.parent_id.as_ref()).map_err(|e| ConvertError::new(format!("invalid parent ID: {e}")))?,
        selectors: id::selectors_from_wire(&entry.selectors)?,
        x509_svid_ttl: ttl(entry.x509_svid_ttl, "X509-SVID TTL")?,
        jwt_svid_ttl: ttl(entry.jwt_svid_ttl, "JWT-SVID TTL")?,
        federates_with,
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: match entry.expires_at {
            0 => None,
            secs if secs < 0 => return Err(ConvertError::new(EntryError::Expiry.to_string())),
            secs => Some(Timestamp::from_secs(secs)),
        },
        dns_names: entry.dns_names.clone(),
        revision_number: entry.revision_number,
        store_svid: entry.store_svid,
        hint: entry.hint.clone(),
        created_at: Timestamp::from_secs(entry.created_at),
        additional_attributes: AdditionalAttributes {
            disable_x509_svid_prefetch: extra.disable_x509_svid_prefetch,
            jwt_svid_include_jti: extra.jwt_svid_include_jti,
        },
    })
}

fn ttl(secs: i32, field: &'static str) -> Result<Option<Duration>, ConvertError> {
    match u64::try_from(secs) {
        Ok(0) => Ok(None),
        Ok(secs) => Ok(Some(Duration::from_secs(secs))),
        Err(_) => Err(ConvertError::new(EntryError::Ttl(field).to_string())),
    }
}

/// An entry with all its fields.
pub fn to_wire(entry: &Entry) -> types::Entry {
    let secs = |ttl: Option<Duration>| ttl.map_or(0, |t| i32::try_from(t.as_secs()).unwrap_or(i32::MAX));
    types::Entry {
        id: entry.id.clone(),
        spiffe_id: Some(id::to_wire(&entry.spiffe_id)),
        parent_id: Some(id::to_wire(&entry.parent_id)),
        selectors: id::selectors_to_wire(&entry.selectors),
        x509_svid_ttl: secs(entry.x509_svid_ttl),
        federates_with: entry.federates_with.iter().map(|td| td.name().to_owned()).collect(),
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: entry.expires_at.map_or(0, Timestamp::secs),
        dns_names: entry.dns_names.clone(),
        revision_number: entry.revision_number,
        store_svid: entry.store_svid,
        jwt_svid_ttl: secs(entry.jwt_svid_ttl),
        hint: entry.hint.clone(),
        created_at: entry.created_at.secs(),
        additional_attributes: (entry.additional_attributes != AdditionalAttributes::default()).then_some(
            types::entry::AdditionalAttributes {
                disable_x509_svid_prefetch: entry.additional_attributes.disable_x509_svid_prefetch,
                jwt_svid_include_jti: entry.additional_attributes.jwt_svid_include_jti,
            },
        ),
    }
}
