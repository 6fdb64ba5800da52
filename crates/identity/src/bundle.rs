//! Bundles: the authorities of one trust domain (SPIFFE Trust Domain and Bundle, sections 4 and 6).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::id::TrustDomain;
use crate::jwk;
use crate::key::PublicKey;
use crate::pem::{self, PemError};
use crate::time::Timestamp;
use crate::x509::{Certificate, CertificateError};

/// Largest bundle document read, in bytes.
pub const BUNDLE_BYTES_MAX: usize = 4 << 20;
/// Most authorities of one kind in a bundle; a fleet of servers in mid-rotation has a few dozen.
pub const AUTHORITIES_MAX: usize = 1024;
/// Longest key ID, in bytes.
pub const KEY_ID_BYTES_MAX: usize = 1024;

/// A root that may vouch for X509-SVIDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct X509Authority {
    /// The certificate.
    pub certificate: Certificate,
    /// Compromised: what it signed is to be replaced.
    pub tainted: bool,
}

/// A key that may vouch for JWT-SVIDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtAuthority {
    /// Its name in token headers.
    pub key_id: String,
    /// The key.
    pub public_key: PublicKey,
    /// When it stops signing; `None` if the bundle does not say.
    pub expires_at: Option<Timestamp>,
    /// Compromised: what it signed is to be replaced.
    pub tainted: bool,
}

/// The bundle of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    trust_domain: TrustDomain,
    x509_authorities: Vec<X509Authority>,
    jwt_authorities: Vec<JwtAuthority>,
    /// How often a consumer may look for a newer one.
    pub refresh_hint: Option<Duration>,
    /// Grows with every change.
    pub sequence_number: u64,
}

/// Why a bundle document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Over [`BUNDLE_BYTES_MAX`].
    #[error("the bundle has {0} bytes, more than the {BUNDLE_BYTES_MAX} allowed")]
    TooLong(usize),
    /// Not JSON.
    #[error("the bundle is not JSON: {0}")]
    Json(String),
    /// No `keys` array.
    #[error("the bundle has no `keys` array")]
    NoKeys,
    /// A top-level number that is none.
    #[error("`{0}` is not a non-negative integer")]
    Number(&'static str),
    /// A key entry that is malformed although its kind is known.
    #[error("key {index} of the bundle: {reason}")]
    Key {
        /// Position, from 0.
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// More than [`AUTHORITIES_MAX`].
    #[error("the bundle has more than {AUTHORITIES_MAX} authorities of a kind")]
    TooMany,
    /// PEM trouble.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A certificate in PEM or DER form that cannot be parsed.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// PEM without any certificate.
    #[error("no certificates found in trust bundle")]
    Empty,
}

impl Bundle {
    /// A bundle without authorities: everything of this trust domain is untrusted.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, x509_authorities: Vec::new(), jwt_authorities: Vec::new(), refresh_hint: None, sequence_number: 0 }
    }

    /// Whose bundle it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Roots for X509-SVIDs.
    pub fn x509_authorities(&self) -> &[X509Authority] {
        &self.x509_authorities
    }

    /// Keys for JWT-SVIDs.
    pub fn jwt_authorities(&self) -> &[JwtAuthority] {
        &self.jwt_authorities
    }

    /// The JWT authority of this name.
    pub fn jwt_authority(&self, key_id: &str) -> Option<&JwtAuthority> {
        self.jwt_authorities.iter().find(|a| a.key_id == key_id)
    }

    /// Adds a root, or updates the taint of one that is there (a taint is never lifted).
    ///
    /// # Errors
    /// The bundle is full.
    pub fn add_x509_authority(&mut self, certificate: Certificate, tainted: bool) -> Result<(), BundleError> {
        if let Some(known) = self.x509_authorities.iter_mut().find(|a| a.certificate.der() == certificate.der()) {
            known.tainted |= tainted;
            return Ok(());
        }
        if self.x509_authorities.len() >= AUTHORITIES_MAX {
            return Err(BundleError::TooMany);
        }
        self.x509_authorities.push(X509Authority { certificate, tainted });
        Ok(())
    }

    /// Adds a JWT key, or replaces the one of the same name (a taint is never lifted).
    ///
    /// # Errors
    /// The bundle is full.
    pub fn add_jwt_authority(&mut self, authority: JwtAuthority) -> Result<(), BundleError> {
        if let Some(known) = self.jwt_authorities.iter_mut().find(|a| a.key_id == authority.key_id) {
            let tainted = known.tainted || authority.tainted;
            *known = JwtAuthority { tainted, ..authority };
            return Ok(());
        }
        if self.jwt_authorities.len() >= AUTHORITIES_MAX {
            return Err(BundleError::TooMany);
        }
        self.jwt_authorities.push(authority);
        Ok(())
    }

    /// Drops every X.509 authority.
    pub fn clear_x509_authorities(&mut self) {
        self.x509_authorities.clear();
    }

    /// Drops every JWT authority.
    pub fn clear_jwt_authorities(&mut self) {
        self.jwt_authorities.clear();
    }

    /// Drops authorities that ended before this time, but never the last of a kind. Says whether anything went.
    pub fn prune(&mut self, ended_before: Timestamp) -> bool {
        let before = (self.x509_authorities.len(), self.jwt_authorities.len());
        if self.x509_authorities.iter().any(|a| a.certificate.not_after >= ended_before) {
            self.x509_authorities.retain(|a| a.certificate.not_after >= ended_before);
        }
        let keeps = |a: &JwtAuthority| a.expires_at.is_none_or(|end| end >= ended_before);
        if self.jwt_authorities.iter().any(keeps) {
            self.jwt_authorities.retain(keeps);
        }
        before != (self.x509_authorities.len(), self.jwt_authorities.len())
    }

    /// Whether both hold the same authorities and hint, whatever their sequence numbers.
    pub fn same_content(&self, other: &Self) -> bool {
        self.x509_authorities == other.x509_authorities
            && self.jwt_authorities == other.jwt_authorities
            && self.refresh_hint == other.refresh_hint
    }

    /// All roots as concatenated DER, as the Workload API sends them.
    pub fn x509_der(&self) -> Vec<u8> {
        self.x509_authorities.iter().flat_map(|a| a.certificate.der().iter().copied()).collect()
    }

    /// All roots as PEM.
    pub fn to_pem(&self) -> String {
        self.x509_authorities.iter().map(|a| pem::write("CERTIFICATE", a.certificate.der())).collect()
    }

    /// Reads roots from PEM.
    ///
    /// # Errors
    /// Not PEM, a block that is no certificate, or none at all.
    pub fn from_pem(trust_domain: TrustDomain, text: &str) -> Result<Self, BundleError> {
        let mut bundle = Self::empty(trust_domain);
        for (label, der) in pem::read(text)? {
            if label == "CERTIFICATE" {
                bundle.add_x509_authority(Certificate::parse(&der)?, false)?;
            }
        }
        if bundle.x509_authorities.is_empty() { Err(BundleError::Empty) } else { Ok(bundle) }
    }

    /// The SPIFFE bundle document: a JWK Set with both kinds of key (section 4).
    pub fn to_jwks(&self) -> Value {
        let roots = self.x509_authorities.iter().map(|a| {
            let mut key = jwk::write(&a.certificate.public_key);
            key.insert("use".to_owned(), json!("x509-svid"));
            key.insert("x5c".to_owned(), json!([STANDARD.encode(a.certificate.der())]));
            Value::Object(key)
        });
        let keys = self.jwt_authorities.iter().map(|a| {
            let mut key = jwk::write(&a.public_key);
            key.insert("use".to_owned(), json!("jwt-svid"));
            key.insert("kid".to_owned(), json!(a.key_id));
            Value::Object(key)
        });
        let mut document = Map::new();
        document.insert("keys".to_owned(), roots.chain(keys).collect());
        document.insert("spiffe_sequence".to_owned(), json!(self.sequence_number));
        if let Some(hint) = self.refresh_hint {
            document.insert("spiffe_refresh_hint".to_owned(), json!(hint.as_secs()));
        }
        Value::Object(document)
    }

    /// The JWT keys alone, without `use`, as the Workload API sends them.
    pub fn to_jwt_jwks(&self) -> Value {
        let keys: Vec<Value> = self
            .jwt_authorities
            .iter()
            .map(|a| {
                let mut key = jwk::write(&a.public_key);
                key.insert("kid".to_owned(), json!(a.key_id));
                Value::Object(key)
            })
            .collect();
        json!({ "keys": keys })
    }

    /// Reads a SPIFFE bundle document. Keys of unknown type or use are skipped, as the standard demands (TDB-19, TDB-21).
    ///
    /// # Errors
    /// Not a bundle, or a key of a known kind that is malformed.
    pub fn from_jwks(trust_domain: TrustDomain, document: &[u8]) -> Result<Self, BundleError> {
        if document.len() > BUNDLE_BYTES_MAX {
            return Err(BundleError::TooLong(document.len()));
        }
        let value: Value = serde_json::from_slice(document).map_err(|e| BundleError::Json(e.to_string()))?;
        let mut bundle = Self::empty(trust_domain);
        let number = |name: &'static str| match value.get(name) {
            None => Ok(None),
            Some(n) => n.as_u64().map(Some).ok_or(BundleError::Number(name)),
        };
        bundle.sequence_number = number("spiffe_sequence")?.unwrap_or(0);
        bundle.refresh_hint = number("spiffe_refresh_hint")?.map(Duration::from_secs);
        let keys = value.get("keys").and_then(Value::as_array).ok_or(BundleError::NoKeys)?;
        for (index, key) in keys.iter().enumerate() {
            let refuse = |reason: String| BundleError::Key { index, reason };
            let Some(key) = key.as_object() else { continue };
            match key.get("use").and_then(Value::as_str) {
                Some("x509-svid") => {
                    if matches!(jwk::read(key), Err(jwk::JwkError::Unknown)) {
                        continue;
                    }
                    // Only the first certificate counts; none at all means the entry is skipped (XSVID-41, XSVID-42).
                    let Some(first) = key.get("x5c").and_then(Value::as_array).and_then(|c| c.first()) else { continue };
                    let der =
                        first.as_str().and_then(|t| STANDARD.decode(t).ok()).ok_or_else(|| refuse("`x5c` is not base64".to_owned()))?;
                    let certificate = Certificate::parse(&der).map_err(|e| refuse(e.to_string()))?;
                    bundle.add_x509_authority(certificate, false)?;
                }
                Some("jwt-svid") => {
                    let public_key = match jwk::read(key) {
                        Ok(public_key) => public_key,
                        Err(jwk::JwkError::Unknown) => continue,
                        Err(e) => return Err(refuse(e.to_string())),
                    };
                    let key_id = key
                        .get("kid")
                        .and_then(Value::as_str)
                        .filter(|k| !k.is_empty() && k.len() <= KEY_ID_BYTES_MAX)
                        .ok_or_else(|| refuse("`kid` is missing or too long".to_owned()))?;
                    bundle.add_jwt_authority(JwtAuthority { key_id: key_id.to_owned(), public_key, expires_at: None, tainted: false })?;
                }
                _ => {}
            }
        }
        Ok(bundle)
    }
}

/// Bundles by trust domain name. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct BundleSet(BTreeMap<String, Arc<Bundle>>);

impl BundleSet {
    /// The bundle of this trust domain.
    pub fn get(&self, trust_domain_name: &str) -> Option<&Arc<Bundle>> {
        self.0.get(trust_domain_name)
    }

    /// Adds or replaces a bundle.
    pub fn put(&mut self, bundle: Arc<Bundle>) {
        self.0.insert(bundle.trust_domain().name().to_owned(), bundle);
    }

    /// Removes a bundle.
    pub fn remove(&mut self, trust_domain_name: &str) {
        self.0.remove(trust_domain_name);
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Bundle>> {
        self.0.values()
    }
}

impl FromIterator<Arc<Bundle>> for BundleSet {
    fn from_iter<I: IntoIterator<Item = Arc<Bundle>>>(bundles: I) -> Self {
        let mut set = Self::default();
        for bundle in bundles {
            set.put(bundle);
        }
        set
    }
}
