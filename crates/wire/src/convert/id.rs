//! SPIFFE IDs and selectors.

use countersign_identity::{Selector, SpiffeId, TrustDomain, selector};

use super::ConvertError;
use crate::types;

/// A SPIFFE ID that must be there.
///
/// # Errors
/// Not set, or not a SPIFFE ID.
pub fn from_wire(id: Option<&types::Spiffeid>) -> Result<SpiffeId, ConvertError> {
    let id = id.ok_or_else(|| ConvertError::new("request must specify SPIFFE ID"))?;
    let trust_domain = TrustDomain::parse(&id.trust_domain).map_err(|e| ConvertError::new(format!("trust domain: {e}")))?;
    if id.path.is_empty() {
        return Ok(trust_domain.id());
    }
    trust_domain.with_path(&id.path).map_err(|e| ConvertError::new(format!("path: {e}")))
}

/// The two parts of a SPIFFE ID.
pub fn to_wire(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() }
}

/// Selectors, sorted and without repeats.
///
/// # Errors
/// The first that is malformed, or too many.
pub fn selectors_from_wire(selectors: &[types::Selector]) -> Result<Vec<Selector>, ConvertError> {
    if selectors.len() > selector::SELECTORS_MAX {
        return Err(ConvertError::new(format!("too many selectors: {}, at most {} are allowed", selectors.len(), selector::SELECTORS_MAX)));
    }
    let parsed: Result<Vec<_>, _> = selectors.iter().map(|s| Selector::new(&s.r#type, &s.value)).collect();
    parsed.map(selector::sorted).map_err(|e| ConvertError::new(e.to_string()))
}

/// Selectors in their order.
pub fn selectors_to_wire(selectors: &[Selector]) -> Vec<types::Selector> {
    selectors.iter().map(|s| types::Selector { r#type: s.kind().to_owned(), value: s.value().to_owned() }).collect()
}
