//! Federation relationships. The bundle of the other trust domain travels beside the relationship.

use countersign_identity::federation::{EndpointProfile, EndpointUrl};
use countersign_identity::{Bundle, FederationRelationship, SpiffeId, TrustDomain};

use super::{ConvertError, bundle};
use crate::types;
use crate::types::federation_relationship::BundleEndpointProfile;

/// A whole relationship, and the bundle that came with it. The refusals are worded as SPIRE words them.
///
/// # Errors
/// The first part that is malformed.
pub fn from_wire(wire: &types::FederationRelationship) -> Result<(FederationRelationship, Option<Bundle>), ConvertError> {
    let trust_domain =
        TrustDomain::parse_name_or_id(&wire.trust_domain).map_err(|e| ConvertError::new(format!("failed to parse trust domain: {e}")))?;
    let bundle_endpoint_url = EndpointUrl::parse(&wire.bundle_endpoint_url).map_err(|e| ConvertError::new(e.to_string()))?;
    let bundle_endpoint_profile = match &wire.bundle_endpoint_profile {
        Some(BundleEndpointProfile::HttpsWeb(_)) => EndpointProfile::HttpsWeb,
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => {
            let endpoint_spiffe_id = SpiffeId::parse(&profile.endpoint_spiffe_id)
                .map_err(|e| ConvertError::new(format!("failed to parse endpoint SPIFFE ID: {e}")))?;
            EndpointProfile::HttpsSpiffe { endpoint_spiffe_id }
        }
        None => return Err(ConvertError::new("unsupported bundle endpoint profile type: <nil>")),
    };
    let bundle = match &wire.trust_domain_bundle {
        None => None,
        Some(wire) => {
            let parsed = bundle::from_wire(wire).map_err(|e| ConvertError::new(format!("failed to parse bundle: {e}")))?;
            if *parsed.trust_domain() != trust_domain {
                return Err(ConvertError::new(format!(
                    "trust domain bundle ({:?}) must match the trust domain of the federation relationship ({:?})",
                    wire.trust_domain,
                    trust_domain.name()
                )));
            }
            Some(parsed)
        }
    };
    Ok((FederationRelationship { trust_domain, bundle_endpoint_url, bundle_endpoint_profile }, bundle))
}

/// A whole relationship with the bundle that is held of the other trust domain.
pub fn to_wire(relationship: &FederationRelationship, held: Option<&Bundle>) -> types::FederationRelationship {
    types::FederationRelationship {
        trust_domain: relationship.trust_domain.name().to_owned(),
        bundle_endpoint_url: relationship.bundle_endpoint_url.as_str().to_owned(),
        bundle_endpoint_profile: Some(match &relationship.bundle_endpoint_profile {
            EndpointProfile::HttpsWeb => BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}),
            EndpointProfile::HttpsSpiffe { endpoint_spiffe_id } => {
                BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id: endpoint_spiffe_id.as_str().to_owned() })
            }
        }),
        trust_domain_bundle: held.map(bundle::to_wire),
    }
}
