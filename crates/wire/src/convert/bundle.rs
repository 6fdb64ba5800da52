//! Bundles. Taints survive both directions.

use std::time::Duration;

use countersign_identity::bundle::{Bundle, JwtAuthority, KEY_ID_BYTES_MAX};
use countersign_identity::key::PublicKey;
use countersign_identity::x509::Certificate;
use countersign_identity::{Timestamp, TrustDomain};

use super::ConvertError;
use crate::types;

/// A whole bundle. The trust domain may be a name or a SPIFFE ID without path, as SPIRE takes both.
///
/// # Errors
/// The first part that is malformed.
pub fn from_wire(bundle: &types::Bundle) -> Result<Bundle, ConvertError> {
    let trust_domain = TrustDomain::parse_name_or_id(&bundle.trust_domain)
        .map_err(|e| ConvertError::new(format!("trust domain argument is not valid: {e}")))?;
    let mut parsed = Bundle::empty(trust_domain);
    add_authorities(&mut parsed, &bundle.x509_authorities, &bundle.jwt_authorities)?;
    parsed.refresh_hint = match u64::try_from(bundle.refresh_hint) {
        Ok(0) => None,
        Ok(secs) => Some(Duration::from_secs(secs)),
        Err(_) => return Err(ConvertError::new("invalid refresh hint: it must not be negative")),
    };
    parsed.sequence_number = bundle.sequence_number;
    Ok(parsed)
}

/// Adds authorities from the wire to a bundle.
///
/// # Errors
/// The first that is malformed, or the bundle is full.
pub fn add_authorities(bundle: &mut Bundle, x509: &[types::X509Certificate], jwt: &[types::JwtKey]) -> Result<(), ConvertError> {
    for authority in x509 {
        let refuse = |e: String| ConvertError::new(format!("unable to parse X.509 authority: {e}"));
        let certificates = Certificate::parse_concatenated(&authority.asn1).map_err(|e| refuse(e.to_string()))?;
        if certificates.is_empty() {
            return Err(refuse("it is empty".to_owned()));
        }
        for certificate in certificates {
            bundle.add_x509_authority(certificate, authority.tainted).map_err(|e| refuse(e.to_string()))?;
        }
    }
    for key in jwt {
        let refuse = |e: String| ConvertError::new(format!("unable to parse JWT authority: {e}"));
        if key.key_id.is_empty() || key.key_id.len() > KEY_ID_BYTES_MAX {
            return Err(refuse("missing key ID, or a key ID that is too long".to_owned()));
        }
        let public_key = PublicKey::from_spki(&key.public_key).map_err(|e| refuse(e.to_string()))?;
        bundle
            .add_jwt_authority(JwtAuthority {
                key_id: key.key_id.clone(),
                public_key,
                expires_at: (key.expires_at != 0).then(|| Timestamp::from_secs(key.expires_at)),
                tainted: key.tainted,
            })
            .map_err(|e| refuse(e.to_string()))?;
    }
    Ok(())
}

/// A whole bundle with all its fields.
pub fn to_wire(bundle: &Bundle) -> types::Bundle {
    types::Bundle {
        trust_domain: bundle.trust_domain().name().to_owned(),
        x509_authorities: bundle
            .x509_authorities()
            .iter()
            .map(|a| types::X509Certificate { asn1: a.certificate.der().to_vec(), tainted: a.tainted })
            .collect(),
        jwt_authorities: bundle
            .jwt_authorities()
            .iter()
            .map(|a| types::JwtKey {
                public_key: a.public_key.spki().to_vec(),
                key_id: a.key_id.clone(),
                expires_at: a.expires_at.map_or(0, Timestamp::secs),
                tainted: a.tainted,
            })
            .collect(),
        refresh_hint: bundle.refresh_hint.map_or(0, |h| i64::try_from(h.as_secs()).unwrap_or(i64::MAX)),
        sequence_number: bundle.sequence_number,
        wit_authorities: Vec::new(),
    }
}
