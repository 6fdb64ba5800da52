//! A permission for one sort of credential never becomes another sort.

use super::LintError;
use crate::issue::{Kind, Permission};

pub(super) const LEAF: &[Kind] = &[Kind::WorkloadX509, Kind::AgentX509, Kind::MintedX509, Kind::OwnX509];
pub(super) const AUTHORITY: &[Kind] = &[Kind::AuthorityX509];
pub(super) const TOKEN: &[Kind] = &[Kind::WorkloadJwt, Kind::MintedJwt];

pub(super) fn check(permission: &impl Permission, fit: &[Kind]) -> Result<(), LintError> {
    if fit.contains(&permission.kind()) {
        return Ok(());
    }
    Err(LintError::new("kind", format!("{:?} was allowed, something else would be signed", permission.kind())))
}
