//! JWT-SVIDs (JWT-SVID sections 2 to 4): checked completely, and the bytes of new ones.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use crate::bundle::{Bundle, BundleSet};
use crate::id::{IdError, SpiffeId};
use crate::key::SigningAlgorithm;
use crate::time::Timestamp;

/// Longest token read, in bytes; gRPC and HTTP headers end well before it.
pub const TOKEN_BYTES_MAX: usize = 64 << 10;
/// Clocks may differ by this much (JWT-SVID leaves the number open; go-spiffe and SPIRE use a minute).
pub const LEEWAY: Duration = Duration::from_secs(60);
/// Most audiences in one request or token; one is advised, clients refuse more than 32.
pub const AUDIENCES_MAX: usize = 32;
/// Longest audience, in bytes.
pub const AUDIENCE_BYTES_MAX: usize = 2048;

/// The nine algorithms of the standard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are RFC 7518's")]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
    Ps256,
    Ps384,
    Ps512,
}

impl Algorithm {
    /// From a token header; anything else is refused before further processing (JSVID-6).
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            _ => return None,
        })
    }
}

/// Why a token is refused. The texts of the common cases are those SPIRE's clients know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Over [`TOKEN_BYTES_MAX`].
    #[error("unable to parse JWT token: it has {0} bytes, more than the {TOKEN_BYTES_MAX} allowed")]
    TooLong(usize),
    /// Not three base64url parts of JSON.
    #[error("unable to parse JWT token: {0}")]
    Malformed(&'static str),
    /// An algorithm outside the standard's list.
    #[error("unable to parse JWT token: unsupported signature algorithm `{0}`")]
    Algorithm(String),
    /// `typ` is neither `JWT` nor `JOSE`.
    #[error("token header has type `{0}`, expected `JWT` or `JOSE`")]
    Type(String),
    /// An extension that must be understood.
    #[error("token header has critical extensions, none is understood")]
    Critical,
    /// No key ID.
    #[error("token header missing key id")]
    NoKeyId,
    /// No subject.
    #[error("token missing subject claim")]
    NoSubject,
    /// A subject that is no SPIFFE ID.
    #[error("token has an invalid subject claim: {0}")]
    Subject(IdError),
    /// No expiry.
    #[error("token missing exp claim")]
    NoExpiry,
    /// Past its expiry.
    #[error("token has expired")]
    Expired,
    /// `nbf` or `iat` in the future.
    #[error("token is not valid yet")]
    NotYet,
    /// The own audience is not among the token's.
    #[error("expected audience in {wanted:?} (audience={found:?})")]
    Audience {
        /// What the validator answers to.
        wanted: Vec<String>,
        /// What the token says.
        found: Vec<String>,
    },
    /// No bundle, or a bundle without JWT keys.
    #[error("no keys found for trust domain {0:?}")]
    NoBundle(String),
    /// The key is not in the bundle of the subject's trust domain.
    #[error("public key {key_id:?} not found in trust domain {trust_domain:?}")]
    UnknownKey {
        /// The key asked for.
        key_id: String,
        /// Where it should be.
        trust_domain: String,
    },
    /// The signature is wrong.
    #[error("token signature does not verify")]
    Signature,
}

/// A token that passed every check.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// Who it names.
    pub spiffe_id: SpiffeId,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Its audiences.
    pub audience: Vec<String>,
    /// Every claim; `aud` always as a list.
    pub claims: Map<String, Value>,
}

/// Verifies a token for one audience, with the bundle of its subject's own trust domain.
///
/// # Errors
/// The first rule it breaks.
pub fn verify(token: &str, audience: &str, bundles: &BundleSet, now: Timestamp) -> Result<Verified, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::TooLong(token.len()));
    }
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(TokenError::Malformed("it has not three parts"));
    };
    let (algorithm, key_id) = check_header(&object(header)?)?;
    let mut claims = object(payload)?;
    let subject = claims.get("sub").and_then(Value::as_str).filter(|s| !s.is_empty()).ok_or(TokenError::NoSubject)?;
    let spiffe_id = SpiffeId::parse(subject).map_err(TokenError::Subject)?;
    if spiffe_id.path().is_empty() {
        return Err(TokenError::Subject(IdError::PathMissing));
    }
    let expires_at = numeric_date(&claims, "exp")?.ok_or(TokenError::NoExpiry)?;

    let bundle = bundles
        .get(spiffe_id.trust_domain_name())
        .filter(|b| !b.jwt_authorities().is_empty())
        .ok_or_else(|| TokenError::NoBundle(spiffe_id.trust_domain_name().to_owned()))?;
    let signed = token.get(..header.len() + 1 + payload.len()).unwrap_or_default();
    check_signature(signed, signature, algorithm, &key_id, bundle)?;

    if now > expires_at.after(LEEWAY) {
        return Err(TokenError::Expired);
    }
    for name in ["nbf", "iat"] {
        if numeric_date(&claims, name)?.is_some_and(|t| t > now.after(LEEWAY)) {
            return Err(TokenError::NotYet);
        }
    }
    let found = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many.iter().filter_map(|v| v.as_str().map(ToOwned::to_owned)).collect(),
        _ => Vec::new(),
    };
    // An absent or empty list never fits, whatever the validator answers to (JSVID-14).
    if !found.iter().any(|a| a == audience) {
        return Err(TokenError::Audience { wanted: vec![audience.to_owned()], found });
    }
    claims.insert("aud".to_owned(), json!(found));
    Ok(Verified { spiffe_id, expires_at, audience: found, claims })
}

/// Verifies only that an authority of this bundle signed a token, for whoever has just received it from the issuer.
///
/// # Errors
/// It is no token, the bundle has no such key, or the key did not sign it.
pub fn verify_signature(token: &str, bundle: &Bundle) -> Result<(), TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::TooLong(token.len()));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed("it has not three parts"))?;
    let header = signed.split('.').next().unwrap_or_default();
    let (algorithm, key_id) = check_header(&object(header)?)?;
    check_signature(signed, signature, algorithm, &key_id, bundle)
}

fn check_signature(signed: &str, signature: &str, algorithm: Algorithm, key_id: &str, bundle: &Bundle) -> Result<(), TokenError> {
    let authority = bundle
        .jwt_authority(key_id)
        .ok_or_else(|| TokenError::UnknownKey { key_id: key_id.to_owned(), trust_domain: bundle.trust_domain().name().to_owned() })?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed("the signature is not base64url"))?;
    authority.public_key.verify_jws(algorithm, signed.as_bytes(), &signature).map_err(|_| TokenError::Signature)
}

fn object(part: &str) -> Result<Map<String, Value>, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed("a part is not base64url"))?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(members)) => Ok(members),
        _ => Err(TokenError::Malformed("a part is not a JSON object")),
    }
}

fn check_header(header: &Map<String, Value>) -> Result<(Algorithm, String), TokenError> {
    let name = header.get("alg").and_then(Value::as_str).unwrap_or("");
    let algorithm = Algorithm::parse(name).ok_or_else(|| TokenError::Algorithm(name.chars().take(40).collect()))?;
    match header.get("typ") {
        None => {}
        Some(Value::String(t)) if t == "JWT" || t == "JOSE" => {}
        Some(other) => return Err(TokenError::Type(other.to_string().chars().take(40).collect())),
    }
    if header.contains_key("crit") {
        return Err(TokenError::Critical);
    }
    // The standard leaves `kid` optional; like go-spiffe and SPIRE we need it (JSVID-8, documented).
    let key_id = header.get("kid").and_then(Value::as_str).filter(|k| !k.is_empty()).ok_or(TokenError::NoKeyId)?;
    Ok((algorithm, key_id.to_owned()))
}

fn numeric_date(claims: &Map<String, Value>, name: &str) -> Result<Option<Timestamp>, TokenError> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => match (value.as_i64(), value.as_f64()) {
            (Some(secs), _) => Ok(Some(Timestamp::from_secs(secs))),
            #[allow(clippy::cast_possible_truncation, reason = "float to int casts saturate")]
            (None, Some(secs)) if secs.is_finite() => Ok(Some(Timestamp::from_secs(secs as i64))),
            _ => Err(TokenError::Malformed("a date claim is not a number")),
        },
    }
}

/// Reads the claims of a token without checking it; for a caller that just received it from the issuer.
///
/// # Errors
/// It is no token.
pub fn peek(token: &str) -> Result<Map<String, Value>, TokenError> {
    object(token.split('.').nth(1).ok_or(TokenError::Malformed("it has not three parts"))?)
}

/// The name of the key that a token says it was signed with, not checked.
pub fn key_id(token: &str) -> Option<String> {
    let header = object(token.split('.').next()?).ok()?;
    header.get("kid").and_then(Value::as_str).map(ToOwned::to_owned)
}

/// What a new token says.
#[derive(Debug, Clone)]
pub struct Claims<'a> {
    /// Who.
    pub spiffe_id: &'a SpiffeId,
    /// For whom; at least one.
    pub audience: &'a [String],
    /// From when.
    pub issued_at: Timestamp,
    /// Until when.
    pub expires_at: Timestamp,
    /// `iss`, if the trust domain sets one.
    pub issuer: Option<&'a str>,
    /// `jti`, if the entry asks for one.
    pub token_id: Option<&'a str>,
}

/// The bytes of a token that are signed.
pub fn signing_input(claims: &Claims<'_>, algorithm: SigningAlgorithm, key_id: &str) -> String {
    let header = json!({"alg": algorithm.jws_name(), "kid": key_id, "typ": "JWT"});
    let mut payload = json!({
        "sub": claims.spiffe_id.as_str(),
        "aud": claims.audience,
        "iat": claims.issued_at.secs(),
        "exp": claims.expires_at.secs(),
    });
    if let Value::Object(members) = &mut payload {
        if let Some(issuer) = claims.issuer {
            members.insert("iss".to_owned(), json!(issuer));
        }
        if let Some(id) = claims.token_id {
            members.insert("jti".to_owned(), json!(id));
        }
    }
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(payload.to_string()))
}

/// The finished token. ECDSA signatures come in ASN.1 form and leave as two fixed-length integers.
///
/// # Errors
/// The signature is not of the algorithm's form.
pub fn assemble(signing_input: &str, algorithm: SigningAlgorithm, signature: &[u8]) -> Result<String, TokenError> {
    let fixed = match algorithm {
        SigningAlgorithm::EcdsaP256Sha256 => fixed_length(signature, 32)?,
        SigningAlgorithm::EcdsaP384Sha384 => fixed_length(signature, 48)?,
        SigningAlgorithm::RsaPkcs1Sha256 => signature.to_vec(),
    };
    Ok(format!("{signing_input}.{}", URL_SAFE_NO_PAD.encode(fixed)))
}

/// `SEQUENCE { r INTEGER, s INTEGER }` as r and s of this many bytes each.
fn fixed_length(asn1: &[u8], length: usize) -> Result<Vec<u8>, TokenError> {
    use x509_parser::der_parser::der::{parse_der_integer, parse_der_sequence_defined_g};
    let bad = TokenError::Malformed("the signature is not an ECDSA signature");
    let (_, (r, s)) = parse_der_sequence_defined_g(|i, _| {
        let (i, r) = parse_der_integer(i)?;
        let (i, s) = parse_der_integer(i)?;
        Ok((i, (r, s)))
    })(asn1)
    .map_err(|_: x509_parser::nom::Err<x509_parser::der_parser::error::BerError>| bad.clone())?;
    let mut fixed = vec![0; 2 * length];
    for (number, slot) in [r, s].iter().zip(fixed.chunks_exact_mut(length)) {
        let bytes = number.as_slice().map_err(|_| bad.clone())?;
        let skip = bytes.iter().take_while(|b| **b == 0).count();
        let digits = bytes.get(skip..).unwrap_or_default();
        let start = length.checked_sub(digits.len()).ok_or_else(|| bad.clone())?;
        slot.get_mut(start..).ok_or_else(|| bad.clone())?.copy_from_slice(digits);
    }
    Ok(fixed)
}
