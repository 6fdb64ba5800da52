//! Serial numbers are positive, at most 16 bytes and not guessable small (RFC 5280 section 4.1.2.2).

use super::LintError;
use crate::x509::Certificate;

pub(super) fn check(certificate: &Certificate) -> Result<(), LintError> {
    let bytes = certificate.serial.len();
    if certificate.serial.iter().all(|b| *b == 0) {
        return Err(LintError::new("serial", "it is zero"));
    }
    if bytes > 16 {
        return Err(LintError::new("serial", format!("it has {bytes} bytes")));
    }
    Ok(())
}
