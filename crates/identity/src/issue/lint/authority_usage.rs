//! A signing certificate may sign and may not be presented (XSVID-7, XSVID-14, XSVID-20, XSVID-25).

use super::LintError;
use crate::x509::Certificate;

pub(super) fn check(certificate: &Certificate) -> Result<(), LintError> {
    if !certificate.is_ca {
        return Err(LintError::new("authority_usage", "basicConstraints does not say CA"));
    }
    match certificate.key_usage {
        Some(u) if u.critical && u.key_cert_sign && !u.digital_signature => {}
        _ => return Err(LintError::new("authority_usage", "keyUsage must be critical, with keyCertSign, without digitalSignature")),
    }
    if certificate.key_id.is_none() {
        return Err(LintError::new("authority_usage", "the key identifier is missing"));
    }
    Ok(())
}
