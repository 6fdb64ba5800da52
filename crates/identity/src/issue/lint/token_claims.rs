//! Token claims are exactly those that were allowed (JSVID-12, JSVID-13, JSVID-17).

use serde_json::{Map, Value};

use super::LintError;
use crate::issue::Permission;
use crate::time::Timestamp;

pub(super) fn check(
    claims: &Map<String, Value>,
    permission: &impl Permission,
    issuer_expires_at: Timestamp,
    now: Timestamp,
) -> Result<(), LintError> {
    if claims.get("sub").and_then(Value::as_str) != Some(permission.spiffe_id().as_str()) {
        return Err(LintError::new("token_claims", "`sub` is not the identity that was allowed"));
    }
    if permission.spiffe_id().path().is_empty() {
        return Err(LintError::new("token_claims", format!("`{}` has no path", permission.spiffe_id())));
    }
    let audience: Vec<&str> = claims.get("aud").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    if audience.is_empty() || audience != permission.audience() {
        return Err(LintError::new("token_claims", "`aud` is empty or not what was allowed"));
    }
    let expires_at = claims
        .get("exp")
        .and_then(Value::as_i64)
        .map(Timestamp::from_secs)
        .ok_or_else(|| LintError::new("token_claims", "`exp` is missing"))?;
    if expires_at <= now {
        return Err(LintError::new("token_claims", format!("it would end at {expires_at}, which is past (now {now})")));
    }
    if expires_at > issuer_expires_at || expires_at > now.after(permission.lifetime()) {
        return Err(LintError::new("token_claims", "it would live longer than allowed"));
    }
    Ok(())
}
