//! The names are exactly those that were allowed: one URI, the permitted DNS names, nothing else (XSVID-1, XSVID-4, XSVID-9).

use super::LintError;
use crate::issue::Permission;
use crate::x509::Certificate;

pub(super) fn check_leaf(certificate: &Certificate, permission: &impl Permission) -> Result<(), LintError> {
    check(certificate, permission)?;
    if permission.spiffe_id().path().is_empty() {
        return Err(LintError::new("names", format!("`{}` has no path, a leaf needs one", permission.spiffe_id())));
    }
    if certificate.dns_names != permission.dns_names() {
        return Err(LintError::new("names", "the DNS names differ from those allowed"));
    }
    if certificate.subject_empty && !certificate.san_critical {
        return Err(LintError::new("names", "the subject is empty and the names are not critical"));
    }
    Ok(())
}

pub(super) fn check_authority(certificate: &Certificate, permission: &impl Permission) -> Result<(), LintError> {
    check(certificate, permission)?;
    if !permission.spiffe_id().path().is_empty() {
        return Err(LintError::new("names", format!("`{}` has a path, an authority has none", permission.spiffe_id())));
    }
    Ok(())
}

fn check(certificate: &Certificate, permission: &impl Permission) -> Result<(), LintError> {
    match certificate.uris.as_slice() {
        [uri] if uri == permission.spiffe_id().as_str() => {}
        uris => return Err(LintError::new("names", format!("the URIs are {uris:?}, allowed was `{}`", permission.spiffe_id()))),
    }
    if certificate.other_names {
        return Err(LintError::new("names", "there is a name that is neither URI nor DNS"));
    }
    Ok(())
}
