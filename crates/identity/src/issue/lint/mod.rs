//! Every rule of the profile, checked on the very bytes that are about to be signed, one rule a file.
//!
//! The builder is not trusted: the bytes are parsed again and compared with what was allowed.

mod authority_usage;
mod kind;
mod leaf_usage;
mod names;
mod serial;
mod token_claims;
mod token_header;
mod trust_domain;
mod validity;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::der::{Writer, tag};
use crate::id::TrustDomain;
use crate::issue::{Permission, X509Issuer};
use crate::key::SigningAlgorithm;
use crate::time::Timestamp;
use crate::x509::Certificate;

/// A lint found the bytes unfit for signing: a fault of ours, or a request that no profile allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{lint}: {finding}")]
pub struct LintError {
    /// Which rule.
    pub lint: &'static str,
    /// What it found.
    pub finding: String,
}

impl LintError {
    fn new(lint: &'static str, finding: impl Into<String>) -> Self {
        Self { lint, finding: finding.into() }
    }
}

/// All rules for an X509-SVID.
pub(super) fn leaf(tbs: &[u8], issuer: &X509Issuer, permission: &impl Permission, now: Timestamp) -> Result<(), LintError> {
    kind::check(permission, kind::LEAF)?;
    trust_domain::check(permission, &issuer.trust_domain)?;
    let certificate = parse(tbs, issuer.algorithm)?;
    serial::check(&certificate)?;
    names::check_leaf(&certificate, permission)?;
    leaf_usage::check(&certificate)?;
    validity::check(&certificate, permission, (issuer.not_before, issuer.not_after), now)
}

/// All rules for a signing certificate.
pub(super) fn authority(tbs: &[u8], algorithm: SigningAlgorithm, permission: &impl Permission, now: Timestamp) -> Result<(), LintError> {
    kind::check(permission, kind::AUTHORITY)?;
    let certificate = parse(tbs, algorithm)?;
    serial::check(&certificate)?;
    names::check_authority(&certificate, permission)?;
    authority_usage::check(&certificate)?;
    validity::check(&certificate, permission, (certificate.not_before, certificate.not_after), now)
}

/// All rules for a JWT-SVID.
pub(super) fn token(
    signing_input: &str,
    permission: &impl Permission,
    issuer: &TrustDomain,
    issuer_expires_at: Timestamp,
    now: Timestamp,
) -> Result<(), LintError> {
    kind::check(permission, kind::TOKEN)?;
    trust_domain::check(permission, issuer)?;
    let (header, claims) = signing_input.split_once('.').ok_or_else(|| LintError::new("token", "not two parts"))?;
    token_header::check(&object(header)?)?;
    token_claims::check(&object(claims)?, permission, issuer_expires_at, now)
}

/// The certificate these bytes would become, with an empty signature.
fn parse(tbs: &[u8], algorithm: SigningAlgorithm) -> Result<Certificate, LintError> {
    let mut w = Writer::new();
    w.nest(tag::SEQUENCE, |w| {
        w.raw(tbs);
        algorithm.write_identifier(w);
        w.bit_string(&[]);
    });
    Certificate::parse(&w.finish()).map_err(|e| LintError::new("certificate", e.to_string()))
}

fn object(part: &str) -> Result<Map<String, Value>, LintError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| LintError::new("token", "not base64url"))?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(members)) => Ok(members),
        _ => Err(LintError::new("token", "not a JSON object")),
    }
}

#[cfg(test)]
mod tests;
