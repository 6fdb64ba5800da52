//! An authority speaks for its own trust domain only (SID-23, XSVID-10).

use super::LintError;
use crate::id::TrustDomain;
use crate::issue::Permission;

pub(super) fn check(permission: &impl Permission, issuer: &TrustDomain) -> Result<(), LintError> {
    if permission.spiffe_id().is_member_of(issuer) {
        return Ok(());
    }
    Err(LintError::new("trust_domain", format!("`{}` is not in trust domain `{issuer}`", permission.spiffe_id())))
}
