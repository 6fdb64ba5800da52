//! The authorities of this server: the last link of the chain, and their rotation by the clock.
//!
//! Only this room holds key handles. `sign` takes a `Recorded` and nothing else. States are in the log; this is their
//! working copy. Rotation is in `rotation.rs`.

mod rotation;
mod time_of_day;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign_identity::issue::{Credential, JwtIssuer, LintError, Linted, X509Issuer};
use countersign_identity::key::{KeyType, PublicKey};
use countersign_identity::x509::Subject;
use countersign_identity::{Timestamp, TrustDomain};
use countersign_plugins::keys::{KeyManager, KeyManagerError, random};
use countersign_store::{AuthorityFamily, AuthorityRecord, AuthorityState, Store, StoreError};
use countersign_transport::clock::SharedClock;

pub(crate) use rotation::public_key;

use crate::audit::{Journal, JournalError, Recorded};
use crate::policy::Allowed;

/// Beginnings of the names of authority keys, SPIRE's: X.509, then JWT. A letter for the slot follows.
pub(crate) const KEY_PREFIXES: [&str; 2] = ["x509-CA", "JWT-Signer"];

/// What decides how authorities look and live.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Name of this server in the log.
    pub server_id: Arc<str>,
    /// Kind of the X.509 authority's key, and of the server's own.
    pub ca_key_type: KeyType,
    /// Kind of the JWT authority's key.
    pub jwt_key_type: KeyType,
    /// Lifetime of both.
    pub ca_ttl: Duration,
    /// Subject of X.509 authorities.
    pub subject: Subject,
    /// `iss` of tokens.
    pub jwt_issuer: Option<String>,
    /// No JWT authority is made.
    pub disable_jwt_svids: bool,
}

/// A credential was not issued.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IssueError {
    /// No authority of this kind can sign now.
    #[error("no {0} authority is active")]
    NoAuthority(&'static str),
    /// The authority begins in the future: the clock was set back.
    #[error("the X.509 authority begins at {begins}, and by the clock of the server it is {now}; set the clock")]
    NotBegun {
        /// The begin of its validity.
        begins: Timestamp,
        /// What the clock says.
        now: Timestamp,
    },
    /// The bytes were unfit.
    #[error(transparent)]
    Lint(#[from] LintError),
    /// It could not be written down first.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The key manager failed.
    #[error("cannot sign: {0}")]
    Keys(#[from] KeyManagerError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A broken invariant.
    #[error("BUG: {0}")]
    Bug(String),
}

/// An issued X509-SVID.
#[derive(Debug, Clone)]
pub struct IssuedX509 {
    /// The certificate, DER; self-signed authorities need no more.
    pub certificate: Vec<u8>,
    /// In decimal.
    pub serial_number: String,
    /// End of its validity.
    pub expires_at: Timestamp,
}

/// An issued JWT-SVID.
#[derive(Debug, Clone)]
pub struct IssuedJwt {
    /// In compact form.
    pub token: String,
    /// Start.
    pub issued_at: Timestamp,
    /// End.
    pub expires_at: Timestamp,
}

/// An authority that can sign.
#[derive(Debug, Clone)]
struct Signing {
    record: Arc<AuthorityRecord>,
    x509: Option<X509Issuer>,
    jwt: Option<JwtIssuer>,
}

#[derive(Debug, Clone, Default)]
struct Active {
    x509: Option<Signing>,
    jwt: Option<Signing>,
}

/// The authorities of this server.
pub struct Authorities {
    settings: Settings,
    keys: Arc<dyn KeyManager>,
    store: Store,
    journal: Journal,
    clock: SharedClock,
    active: ArcSwap<Active>,
    /// Of prepared authorities only.
    published: Mutex<HashMap<Arc<str>, rotation::Published>>,
    /// As rotation has seen it.
    time_of_day: Mutex<time_of_day::TimeOfDay>,
}

impl std::fmt::Debug for Authorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorities")
    }
}

impl Authorities {
    /// Not yet able to sign; [`Authorities::rotate`] makes it so.
    pub fn new(settings: Settings, keys: Arc<dyn KeyManager>, store: Store, journal: Journal, clock: SharedClock) -> Self {
        let (published, time_of_day) = (Mutex::default(), Mutex::default());
        Self { settings, keys, store, journal, clock, active: ArcSwap::default(), published, time_of_day }
    }

    /// The X509-SVIDs these permissions allow, for these keys. All are recorded in one group before any is signed;
    /// each has a result of its own.
    pub(crate) async fn issue_x509(&self, wanted: Vec<(Allowed, PublicKey)>) -> Vec<Result<IssuedX509, IssueError>> {
        let now = self.clock.now();
        let active = self.active.load_full();
        let issuer = active.x509.as_ref().and_then(|s| s.x509.as_ref()).filter(|i| i.not_after > now);
        let Some((signing, issuer)) = active.x509.as_ref().zip(issuer) else {
            return wanted.iter().map(|_| Err(IssueError::NoAuthority("X.509"))).collect();
        };
        // Nobody could use what it signs, and a new root in its place would be one that no agent knows.
        if issuer.not_before > now {
            return wanted.iter().map(|_| Err(IssueError::NotBegun { begins: issuer.not_before, now })).collect();
        }
        let mut linted = Vec::with_capacity(wanted.len());
        // Position of each request among the linted ones, or why it is none.
        let mut places = Vec::with_capacity(wanted.len());
        for (allowed, public_key) in wanted {
            // Named for the room it is in, which logs nothing itself.
            tracing::trace!(hop = "lints", room = std::any::type_name::<Linted<Allowed>>());
            let built = serial().and_then(|serial| Ok(Linted::x509(allowed, issuer, &public_key, serial, now)?));
            places.push(built.map(|l| linted.push(l)));
        }
        let mut recorded = match self.journal.record(linted).await {
            Ok(recorded) => recorded.into_iter(),
            Err(error) => return places.into_iter().map(|place| place.and(Err(IssueError::Journal(error.clone())))).collect(),
        };
        let mut results = Vec::with_capacity(places.len());
        for place in places {
            results.push(match (place, &mut recorded) {
                (Err(error), _) => Err(error),
                (Ok(()), rest) => match rest.next() {
                    Some(recorded) => self.sign_x509(recorded, signing).await,
                    None => Err(IssueError::Bug("a record is missing".to_owned())),
                },
            });
        }
        results
    }

    /// One X509-SVID.
    pub(crate) async fn issue_one_x509(&self, allowed: Allowed, public_key: PublicKey) -> Result<IssuedX509, IssueError> {
        match self.issue_x509(vec![(allowed, public_key)]).await.pop() {
            Some(result) => result,
            None => Err(IssueError::Bug("no result for a request".to_owned())),
        }
    }

    /// One JWT-SVID.
    pub(crate) async fn issue_jwt(&self, allowed: Allowed) -> Result<IssuedJwt, IssueError> {
        let now = self.clock.now();
        let active = self.active.load_full();
        let issuer = active.jwt.as_ref().and_then(|s| s.jwt.as_ref()).filter(|i| i.expires_at > now);
        let Some((signing, issuer)) = active.jwt.as_ref().zip(issuer) else { return Err(IssueError::NoAuthority("JWT")) };
        let token_id = if allowed.include_jti() { Some(uuid::Uuid::new_v4().to_string()) } else { None };
        let linted = Linted::jwt(allowed, issuer, token_id.as_deref(), now)?;
        let recorded = self.journal.record(vec![linted]).await?.pop().ok_or_else(|| IssueError::Bug("a record is missing".to_owned()))?;
        let (issued_at, expires_at) = (recorded.linted().facts().not_before, recorded.linted().facts().expires_at);
        match self.sign(recorded, signing).await? {
            Credential::Jwt(token) => Ok(IssuedJwt { token, issued_at, expires_at }),
            Credential::X509(_) => Err(IssueError::Bug("a token became a certificate".to_owned())),
        }
    }

    async fn sign_x509(&self, recorded: Recorded, signing: &Signing) -> Result<IssuedX509, IssueError> {
        let facts = recorded.linted().facts();
        let (serial_number, expires_at) = (facts.serial_or_jti.clone(), facts.expires_at);
        match self.sign(recorded, signing).await? {
            Credential::X509(certificate) => Ok(IssuedX509 { certificate, serial_number, expires_at }),
            Credential::Jwt(_) => Err(IssueError::Bug("a certificate became a token".to_owned())),
        }
    }

    /// The one place where something is signed.
    async fn sign(&self, recorded: Recorded, signing: &Signing) -> Result<Credential, IssueError> {
        self.sign_with(recorded, &signing.record.key_id).await
    }

    async fn sign_with(&self, recorded: Recorded, key_id: &str) -> Result<Credential, IssueError> {
        tracing::trace!(hop = "signs");
        let linted = recorded.linted();
        let signature = self.keys.sign(key_id, linted.algorithm(), linted.bytes()).await;
        let linted = recorded.settle(signature.is_ok());
        linted.finish(&signature?).map_err(|e| IssueError::Bug(e.to_string()))
    }

    /// Whether an X.509 authority can sign now; what readiness asks.
    pub fn is_ready(&self) -> bool {
        self.active
            .load()
            .x509
            .as_ref()
            .and_then(|s| s.x509.as_ref())
            .is_some_and(|i| (i.not_before..i.not_after).contains(&self.clock.now()))
    }

    /// End of the active authorities, for metrics: family and end.
    pub fn expiries(&self) -> Vec<(&'static str, Timestamp)> {
        let active = self.active.load();
        let end = |family, signing: &Option<Signing>| signing.as_ref().map(|s| (family, s.record.expires_at));
        [end("x509", &active.x509), end("jwt", &active.jwt)].into_iter().flatten().collect()
    }

    /// Takes the active authorities of this server from the newest snapshot.
    fn reload(&self) {
        let snapshot = self.store.snapshot();
        let find = |family| {
            snapshot
                .authorities()
                .find(|a| a.server_id == self.settings.server_id && a.family == family && a.state == AuthorityState::Active)
                .map(Arc::clone)
        };
        let x509 = find(AuthorityFamily::X509).and_then(|record| {
            let certificate = countersign_identity::x509::Certificate::parse(&record.public).ok()?;
            let issuer = X509Issuer {
                trust_domain: self.settings.trust_domain.clone(),
                subject: certificate.subject_der().to_vec(),
                key_id: certificate.public_key.key_id(),
                algorithm: algorithm_of(&certificate.public_key)?,
                not_before: certificate.not_before,
                not_after: certificate.not_after,
            };
            Some(Signing { record, x509: Some(issuer), jwt: None })
        });
        let jwt = find(AuthorityFamily::Jwt).and_then(|record| {
            let public_key = PublicKey::from_spki(&record.public).ok()?;
            let issuer = JwtIssuer {
                trust_domain: self.settings.trust_domain.clone(),
                key_id: record.id.to_string(),
                algorithm: algorithm_of(&public_key)?,
                expires_at: record.expires_at,
                issuer: self.settings.jwt_issuer.clone(),
            };
            Some(Signing { record, x509: None, jwt: Some(issuer) })
        });
        self.active.store(Arc::new(Active { x509, jwt }));
    }
}

fn serial() -> Result<[u8; 16], IssueError> {
    let mut serial = random::<16>()?;
    // Positive, and never shorter than 16 bytes by chance of a leading zero that would make it negative or zero.
    let [first, ..] = &mut serial;
    *first = (*first & 0x7f) | 0x40;
    Ok(serial)
}

/// The algorithm an authority's key signs with.
fn algorithm_of(key: &PublicKey) -> Option<countersign_identity::key::SigningAlgorithm> {
    use countersign_identity::key::{PublicKeyKind, SigningAlgorithm};
    match key.kind() {
        PublicKeyKind::EcP256 => Some(SigningAlgorithm::EcdsaP256Sha256),
        PublicKeyKind::EcP384 => Some(SigningAlgorithm::EcdsaP384Sha384),
        PublicKeyKind::Rsa => Some(SigningAlgorithm::RsaPkcs1Sha256),
        PublicKeyKind::EcP521 | PublicKeyKind::Ed25519 => None,
    }
}
