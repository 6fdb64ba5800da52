//! The `federation` block of `server.conf`: relationships that the operator wrote down. They are not shown by the API, as in
//! SPIRE, and will win over those made there for the same trust domain once bundles are fetched.

use countersign_config::{ConfigError, Section};
use countersign_identity::federation::{EndpointProfile, EndpointUrl};
use countersign_identity::{FederationRelationship, SpiffeId, TrustDomain};

/// Reads the block, if there is one.
pub(crate) fn read(server: &mut Section, own: &TrustDomain) -> Result<Vec<FederationRelationship>, ConfigError> {
    let Some(mut block) = server.section("federation")? else { return Ok(Vec::new()) };
    if let Some(endpoint) = block.take_any("bundle_endpoint") {
        return Err(endpoint
            .error("is recognised but not supported yet")
            .hint("leave the block out, and give the output of `bundle show --format spiffe` to the other trust domains meanwhile"));
    }
    let mut relationships: Vec<FederationRelationship> = Vec::new();
    for (name, relationship) in block.labelled("federates_with")? {
        let place = relationship.error(format!("trust domain `{name}` is named twice")).hint("keep one of the two blocks");
        let read = read_relationship(&name, relationship, own)?;
        if relationships.iter().any(|known| known.trust_domain == read.trust_domain) {
            return Err(place);
        }
        relationships.push(read);
    }
    block.finish()?;
    Ok(relationships)
}

fn read_relationship(name: &str, mut block: Section, own: &TrustDomain) -> Result<FederationRelationship, ConfigError> {
    let trust_domain = TrustDomain::parse_name_or_id(name).map_err(|e| block.error(format!("`{name}` is not a trust domain: {e}")))?;
    if trust_domain == *own {
        return Err(block.error(format!("`{name}` is the server's own trust domain")));
    }
    let url = block.string("bundle_endpoint_url")?.ok_or_else(|| block.missing("bundle_endpoint_url"))?;
    let bundle_endpoint_url = url.parse(|text| EndpointUrl::parse(text))?;
    let mut profiles = block.labelled("bundle_endpoint_profile")?;
    let (Some((profile, mut settings)), true) = (profiles.pop(), profiles.is_empty()) else {
        return Err(block.error("exactly one bundle_endpoint_profile must be set").hint(
            "add `bundle_endpoint_profile \"https_web\" {}` or `bundle_endpoint_profile \"https_spiffe\" { endpoint_spiffe_id = \"…\" }`",
        ));
    };
    let bundle_endpoint_profile = match profile.as_str() {
        "https_web" => EndpointProfile::HttpsWeb,
        "https_spiffe" => {
            let id = settings.string("endpoint_spiffe_id")?.ok_or_else(|| settings.missing("endpoint_spiffe_id"))?;
            EndpointProfile::HttpsSpiffe { endpoint_spiffe_id: id.parse(|text| SpiffeId::parse(text))? }
        }
        other => return Err(settings.error(format!("there is no profile `{other}`, expected https_web or https_spiffe"))),
    };
    settings.finish()?;
    block.finish()?;
    Ok(FederationRelationship { trust_domain, bundle_endpoint_url, bundle_endpoint_profile })
}
