//! JSON Web Keys (RFC 7517, RFC 7518 section 6), public halves only.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use crate::der::{Writer, tag};
use crate::key::{KeyError, PublicKey, PublicKeyKind};

/// Why a JWK has no usable public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    /// A `kty` or curve we do not know; a bundle skips such a key (TDB-19).
    #[error("key type or curve is not known")]
    Unknown,
    /// A member the key type needs is missing or not base64url.
    #[error("member `{0}` is missing or not base64url")]
    Member(&'static str),
    /// The key itself is refused.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// The members `kty` and what it needs for this key; nothing for a kind that has no place in a bundle.
pub fn write(key: &PublicKey) -> Map<String, Value> {
    let value = match key.kind() {
        PublicKeyKind::EcP256 => ec("P-256", key.bits()),
        PublicKeyKind::EcP384 => ec("P-384", key.bits()),
        PublicKeyKind::EcP521 => ec("P-521", key.bits()),
        PublicKeyKind::Rsa => rsa(key.bits()),
        PublicKeyKind::Ed25519 => json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(key.bits())}),
    };
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

/// The public key of a JWK.
///
/// # Errors
/// Unknown type or curve, a missing member, or a key that is refused.
pub fn read(jwk: &Map<String, Value>) -> Result<PublicKey, JwkError> {
    match jwk.get("kty").and_then(Value::as_str) {
        Some("EC") => {
            let (kind, length) = match jwk.get("crv").and_then(Value::as_str) {
                Some("P-256") => (PublicKeyKind::EcP256, 32),
                Some("P-384") => (PublicKeyKind::EcP384, 48),
                Some("P-521") => (PublicKeyKind::EcP521, 66),
                _ => return Err(JwkError::Unknown),
            };
            let (x, y) = (member(jwk, "x")?, member(jwk, "y")?);
            if x.len() != length {
                return Err(JwkError::Member("x"));
            }
            if y.len() != length {
                return Err(JwkError::Member("y"));
            }
            let mut point = vec![4];
            point.extend_from_slice(&x);
            point.extend_from_slice(&y);
            Ok(PublicKey::from_bits(kind, &point)?)
        }
        Some("RSA") => {
            let mut w = Writer::new();
            let (n, e) = (member(jwk, "n")?, member(jwk, "e")?);
            w.nest(tag::SEQUENCE, |w| {
                w.unsigned(&n);
                w.unsigned(&e);
            });
            Ok(PublicKey::from_bits(PublicKeyKind::Rsa, &w.finish())?)
        }
        Some("OKP") if jwk.get("crv").and_then(Value::as_str) == Some("Ed25519") => {
            Ok(PublicKey::from_bits(PublicKeyKind::Ed25519, &member(jwk, "x")?)?)
        }
        _ => Err(JwkError::Unknown),
    }
}

fn member(jwk: &Map<String, Value>, name: &'static str) -> Result<Vec<u8>, JwkError> {
    let text = jwk.get(name).and_then(Value::as_str).ok_or(JwkError::Member(name))?;
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| JwkError::Member(name))
}

fn ec(curve: &str, point: &[u8]) -> Value {
    let coordinates = point.get(1..).unwrap_or_default();
    let (x, y) = coordinates.split_at(coordinates.len() / 2);
    json!({"kty": "EC", "crv": curve, "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)})
}

fn rsa(pkcs1: &[u8]) -> Value {
    use x509_parser::prelude::FromDer as _;
    let Ok((_, key)) = x509_parser::public_key::RSAPublicKey::from_der(pkcs1) else { return Value::Null };
    let trim = |bytes: &[u8]| {
        let skip = bytes.iter().take_while(|b| **b == 0).count();
        URL_SAFE_NO_PAD.encode(bytes.get(skip..).unwrap_or_default())
    };
    json!({"kty": "RSA", "n": trim(key.modulus), "e": trim(key.exponent)})
}
