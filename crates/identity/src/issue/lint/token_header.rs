//! Token headers hold `alg`, `kid`, `typ` and nothing else (JSVID-4, JSVID-5, JSVID-10).

use serde_json::{Map, Value};

use super::LintError;
use crate::jwt::Algorithm;

pub(super) fn check(header: &Map<String, Value>) -> Result<(), LintError> {
    if let Some(name) = header.keys().find(|k| !matches!(k.as_str(), "alg" | "kid" | "typ")) {
        return Err(LintError::new("token_header", format!("member `{name}` is not allowed")));
    }
    if header.get("alg").and_then(Value::as_str).and_then(Algorithm::parse).is_none() {
        return Err(LintError::new("token_header", "`alg` is not one of the standard's"));
    }
    if header.get("kid").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(LintError::new("token_header", "`kid` is missing"));
    }
    if header.get("typ").and_then(Value::as_str) != Some("JWT") {
        return Err(LintError::new("token_header", "`typ` is not `JWT`"));
    }
    Ok(())
}
