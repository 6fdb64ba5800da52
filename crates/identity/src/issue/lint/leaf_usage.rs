//! A leaf may be presented and may not sign (XSVID-15, XSVID-18 to XSVID-28).

use super::LintError;
use crate::x509::Certificate;

pub(super) fn check(certificate: &Certificate) -> Result<(), LintError> {
    if certificate.is_ca {
        return Err(LintError::new("leaf_usage", "basicConstraints says CA"));
    }
    match certificate.key_usage {
        Some(u) if u.critical && u.digital_signature && !u.key_cert_sign && !u.crl_sign => {}
        _ => return Err(LintError::new("leaf_usage", "keyUsage must be critical, with digitalSignature, without keyCertSign and cRLSign")),
    }
    if certificate.extended_key_usage != Some((true, true)) {
        return Err(LintError::new("leaf_usage", "extKeyUsage must have serverAuth and clientAuth"));
    }
    if certificate.key_id.is_none() || certificate.authority_key_id.is_none() {
        return Err(LintError::new("leaf_usage", "a key identifier is missing"));
    }
    Ok(())
}
