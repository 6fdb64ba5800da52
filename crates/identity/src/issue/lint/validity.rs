//! A certificate lives no longer than was allowed, within its issuer's life, and not only in the past.

use super::LintError;
use crate::issue::Permission;
use crate::rotation::BACKDATE;
use crate::time::Timestamp;
use crate::x509::Certificate;

pub(super) fn check(
    certificate: &Certificate,
    permission: &impl Permission,
    (issuer_not_before, issuer_not_after): (Timestamp, Timestamp),
    now: Timestamp,
) -> Result<(), LintError> {
    if certificate.not_after <= now {
        return Err(LintError::new("validity", format!("it would end at {}, which is past (now {now})", certificate.not_after)));
    }
    if certificate.not_after > issuer_not_after {
        return Err(LintError::new("validity", "it would outlive its issuer"));
    }
    if certificate.not_before < issuer_not_before {
        return Err(LintError::new("validity", "it would begin before its issuer"));
    }
    if certificate.not_after > now.after(permission.lifetime()) {
        return Err(LintError::new("validity", "it would live longer than allowed"));
    }
    if certificate.not_before > now || certificate.not_before < Timestamp::from_secs(now.before(BACKDATE).secs()) {
        return Err(LintError::new("validity", "it would not begin now"));
    }
    Ok(())
}
