//! The middle of the way to a signature: a permission goes in, bytes that passed every lint come out.
//!
//! `Allowed → Linted → Recorded → sign`. This module makes `Linted` and nothing else can: its fields are private and
//! it consumes the permission it was built from. No keys here; the signature comes back as an argument.
//!
//! A [`Linted`] can be handed on, and not be made or changed by hand:
//!
//! ```
//! use countersign_identity::issue::Linted;
//! fn hand_on<P>(permission: P, linted: Linted<P>) -> (P, Linted<P>) { (permission, linted) }
//! ```
//! ```compile_fail
//! use countersign_identity::issue::Linted;
//! fn forge<P>(permission: P, linted: Linted<P>) -> Linted<P> { Linted { permission, ..linted } }
//! ```

mod lint;

use std::time::Duration;

pub use lint::LintError;

use crate::id::{SpiffeId, TrustDomain};
use crate::jwt;
use crate::key::{PublicKey, SigningAlgorithm, hex};
use crate::rotation::BACKDATE;
use crate::time::Timestamp;
use crate::x509::{self, Profile, Subject, Tbs};

/// Every kind of credential that is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// X509-SVID of a workload, asked for by its agent.
    WorkloadX509,
    /// JWT-SVID of a workload, asked for by its agent.
    WorkloadJwt,
    /// X509-SVID of an agent.
    AgentX509,
    /// X509-SVID an administrator asked for.
    MintedX509,
    /// JWT-SVID an administrator asked for.
    MintedJwt,
    /// The server's own X509-SVID.
    OwnX509,
    /// A self-signed X.509 authority.
    AuthorityX509,
}

/// Leave to have one credential. Whoever decides it implements this; `identity` only reads it.
pub trait Permission {
    /// What sort of credential.
    fn kind(&self) -> Kind;
    /// For whom.
    fn spiffe_id(&self) -> &SpiffeId;
    /// How long it may live.
    fn lifetime(&self) -> Duration;
    /// DNS names it may carry; the first becomes the common name.
    fn dns_names(&self) -> &[String] {
        &[]
    }
    /// Audiences of a token.
    fn audience(&self) -> &[String] {
        &[]
    }
}

/// The X.509 authority that is going to sign.
#[derive(Debug, Clone)]
pub struct X509Issuer {
    /// The trust domain it speaks for.
    pub trust_domain: TrustDomain,
    /// Its subject, DER.
    pub subject: Vec<u8>,
    /// Its key identifier.
    pub key_id: Vec<u8>,
    /// How it signs.
    pub algorithm: SigningAlgorithm,
    /// Its begin of validity, before which nothing it signs begins.
    pub not_before: Timestamp,
    /// Its end of validity, which nothing it signs outlives.
    pub not_after: Timestamp,
}

/// The JWT authority that is going to sign.
#[derive(Debug, Clone)]
pub struct JwtIssuer {
    /// The trust domain it speaks for.
    pub trust_domain: TrustDomain,
    /// Its name in token headers.
    pub key_id: String,
    /// How it signs.
    pub algorithm: SigningAlgorithm,
    /// Its end, which nothing it signs outlives.
    pub expires_at: Timestamp,
    /// `iss`, if the trust domain sets one.
    pub issuer: Option<String>,
}

/// What the journal writes down about a credential before it is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Serial number in decimal, or `jti`; empty for a token without one.
    pub serial_or_jti: String,
    /// Start.
    pub not_before: Timestamp,
    /// End.
    pub expires_at: Timestamp,
    /// Authority that signs.
    pub authority_id: String,
}

#[derive(Debug)]
enum Body {
    X509 { tbs: Vec<u8>, algorithm: SigningAlgorithm },
    Jwt { signing_input: String, algorithm: SigningAlgorithm },
}

/// A finished credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A certificate, DER.
    X509(Vec<u8>),
    /// A token in compact form.
    Jwt(String),
}

/// Bytes to be signed that passed every lint, with the permission they were built from.
#[derive(Debug)]
pub struct Linted<P> {
    permission: P,
    body: Body,
    facts: Facts,
}

impl<P: Permission> Linted<P> {
    /// An X509-SVID for this key. `serial` is 16 random bytes.
    ///
    /// # Errors
    /// A lint found the certificate unfit.
    pub fn x509(permission: P, issuer: &X509Issuer, public_key: &PublicKey, serial: [u8; 16], now: Timestamp) -> Result<Self, LintError> {
        // A clock that was set back a little since the authority began is no reason to begin before it.
        let not_before = Timestamp::from_secs(now.before(BACKDATE).secs()).max(issuer.not_before);
        let not_after = x509::not_after(now, permission.lifetime(), issuer.not_after);
        let mut subject = crate::der::Writer::new();
        x509::write_spire_subject(&mut subject, permission.dns_names().first().map(String::as_str));
        let tbs = Tbs {
            serial,
            algorithm: issuer.algorithm,
            issuer: &issuer.subject,
            issuer_key_id: Some(&issuer.key_id),
            subject: &subject.finish(),
            not_before,
            not_after,
            public_key,
            spiffe_id: permission.spiffe_id(),
            dns_names: permission.dns_names(),
            profile: Profile::Leaf,
        }
        .to_der();
        lint::leaf(&tbs, issuer, &permission, now)?;
        let facts = Facts { serial_or_jti: x509::decimal(&serial), not_before, expires_at: not_after, authority_id: hex(&issuer.key_id) };
        Ok(Self { permission, body: Body::X509 { tbs, algorithm: issuer.algorithm }, facts })
    }

    /// A self-signed authority certificate with this key.
    ///
    /// # Errors
    /// A lint found the certificate unfit.
    pub fn authority(
        permission: P,
        subject: &Subject,
        public_key: &PublicKey,
        algorithm: SigningAlgorithm,
        serial: [u8; 16],
        now: Timestamp,
    ) -> Result<Self, LintError> {
        let not_before = Timestamp::from_secs(now.before(BACKDATE).secs());
        let not_after = Timestamp::from_secs(now.after(permission.lifetime()).secs());
        let name = subject.to_der(&serial);
        let tbs = Tbs {
            serial,
            algorithm,
            issuer: &name,
            issuer_key_id: None,
            subject: &name,
            not_before,
            not_after,
            public_key,
            spiffe_id: permission.spiffe_id(),
            dns_names: &[],
            profile: Profile::Authority,
        }
        .to_der();
        lint::authority(&tbs, algorithm, &permission, now)?;
        let facts =
            Facts { serial_or_jti: x509::decimal(&serial), not_before, expires_at: not_after, authority_id: hex(&public_key.key_id()) };
        Ok(Self { permission, body: Body::X509 { tbs, algorithm }, facts })
    }

    /// A JWT-SVID. `token_id` becomes its `jti`.
    ///
    /// # Errors
    /// A lint found the token unfit.
    pub fn jwt(permission: P, issuer: &JwtIssuer, token_id: Option<&str>, now: Timestamp) -> Result<Self, LintError> {
        let expires_at = x509::not_after(now, permission.lifetime(), issuer.expires_at);
        let claims = jwt::Claims {
            spiffe_id: permission.spiffe_id(),
            audience: permission.audience(),
            issued_at: now,
            expires_at,
            issuer: issuer.issuer.as_deref(),
            token_id,
        };
        let signing_input = jwt::signing_input(&claims, issuer.algorithm, &issuer.key_id);
        lint::token(&signing_input, &permission, &issuer.trust_domain, issuer.expires_at, now)?;
        let facts = Facts {
            serial_or_jti: token_id.unwrap_or_default().to_owned(),
            not_before: now,
            expires_at,
            authority_id: issuer.key_id.clone(),
        };
        Ok(Self { permission, body: Body::Jwt { signing_input, algorithm: issuer.algorithm }, facts })
    }

    /// What was allowed.
    pub fn permission(&self) -> &P {
        &self.permission
    }
}

impl<P> Linted<P> {
    /// The bytes to be signed.
    pub fn bytes(&self) -> &[u8] {
        match &self.body {
            Body::X509 { tbs, .. } => tbs,
            Body::Jwt { signing_input, .. } => signing_input.as_bytes(),
        }
    }

    /// How they are to be signed.
    pub fn algorithm(&self) -> SigningAlgorithm {
        match &self.body {
            Body::X509 { algorithm, .. } | Body::Jwt { algorithm, .. } => *algorithm,
        }
    }

    /// What the journal writes down.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The credential, once the signature is there.
    ///
    /// # Errors
    /// The signature is not of the algorithm's form.
    pub fn finish(self, signature: &[u8]) -> Result<Credential, jwt::TokenError> {
        match self.body {
            Body::X509 { tbs, algorithm } => Ok(Credential::X509(x509::assemble(&tbs, algorithm, signature))),
            Body::Jwt { signing_input, algorithm } => jwt::assemble(&signing_input, algorithm, signature).map(Credential::Jwt),
        }
    }
}
