//! Rotation by the clock: prepare at half of an authority's life, activate at five sixths, forget what has long ended.
//!
//! A prepared authority signs only once it has been published for a while ([`publication_needed`]), however late the
//! clock says it is: after a step forward or a long pause nobody would know it yet. The while is counted by steady time,
//! so a step does not shorten it; what passed before this process started is taken from the time of day. Without an
//! active authority nothing is waited for.
//!
//! What the clock says right after a jump is not believed for some minutes (`time_of_day.rs`): an authority that seems to
//! have ended by it is neither dropped nor replaced, and signs again as soon as the clock is corrected.
//!
//! Each step is one transaction: the authority's state and the bundle change together. The key comes first, so that a
//! crash between leaves a key nobody knows of, never an authority without a key.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use countersign_identity::bundle::JwtAuthority;
use countersign_identity::issue::{Credential, Linted};
use countersign_identity::key::PublicKey;
use countersign_identity::rotation::{activate_at, prepare_at, publication_needed};
use countersign_identity::x509::Certificate;
use countersign_identity::{Bundle, Timestamp};
use countersign_plugins::keys::random;
use countersign_store::{Actor, AuthorityFamily, AuthorityRecord, AuthorityState, Change, Draft, StoreError};

use super::{Authorities, IssueError, algorithm_of, serial};
use crate::policy::Allowed;

/// Authorities stay in the bundle this long after their end, against clocks that are behind.
const PRUNE_AFTER: Duration = Duration::from_secs(24 * 3600);
/// The bundle is looked over this often.
const PRUNE_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// First wait after a failed step; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Alphabet and length of `kid`, as SPIRE's.
const KEY_ID_CHARACTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const KEY_ID_LENGTH: usize = 32;

/// How long a prepared authority has been known to the fleet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Published {
    /// Before this process looked.
    before: Duration,
    /// When it first looked, in steady time.
    since: Duration,
}

impl Authorities {
    /// Brings both families to where they should be now, and says when to come again.
    ///
    /// # Errors
    /// A step failed; what was done before it stays.
    pub async fn rotate(&self) -> Result<Timestamp, IssueError> {
        let doubted = {
            let mut time_of_day = self.time_of_day.lock().unwrap_or_else(PoisonError::into_inner);
            time_of_day.look(self.clock.now(), self.clock.steady())
        };
        let mut next = self.rotate_family(AuthorityFamily::X509, doubted).await?;
        if !self.settings.disable_jwt_svids {
            next = next.min(self.rotate_family(AuthorityFamily::Jwt, doubted).await?);
        }
        if doubted.is_zero() {
            self.prune().await?;
        }
        Ok(next.min(self.clock.now().after(PRUNE_INTERVAL)))
    }

    /// Rotates for as long as the process lives.
    pub async fn run(self: Arc<Self>) {
        let mut retry = RETRY_FIRST;
        loop {
            let at = match self.rotate().await {
                Ok(at) => {
                    retry = RETRY_FIRST;
                    at
                }
                Err(error) => {
                    tracing::error!(%error, retry_interval = ?retry, "Unable to rotate authorities");
                    let at = self.clock.now().after(retry);
                    retry = (retry * 2).min(RETRY_MAX);
                    at
                }
            };
            // By both clocks: one that is set back must not put the next look off.
            let wait = at.since(self.clock.now());
            tokio::select! {
                () = self.clock.sleep_until(at) => {}
                () = self.clock.sleep_for(wait) => {}
            }
        }
    }

    /// For this long the time of day is in doubt.
    async fn rotate_family(&self, family: AuthorityFamily, doubted: Duration) -> Result<Timestamp, IssueError> {
        self.drop_unusable(family, !doubted.is_zero()).await?;
        let now = self.clock.now();
        let mut active = self.mine(family, AuthorityState::Active);
        // No successor either: it would begin at a time that may be wrong, and take the place of another key.
        if !doubted.is_zero() && active.as_ref().is_none_or(|a| a.expires_at <= now) {
            self.reload();
            return Ok(now.after(doubted));
        }
        let mut prepared = self.mine(family, AuthorityState::Prepared);
        let due = active.as_ref().is_none_or(|a| now >= prepare_at(a.issued_at, a.expires_at));
        if prepared.is_none() && due {
            self.prepare(family, active.as_deref()).await?;
            prepared = self.mine(family, AuthorityState::Prepared);
        }
        if let Some(next) = &prepared
            && self.activation_due(active.as_deref(), next, now)
        {
            self.activate(next).await?;
            active = self.mine(family, AuthorityState::Active);
            prepared = None;
        }
        self.reload();
        let Some(active) = active else { return Err(IssueError::NoAuthority("usable")) };
        Ok(match prepared {
            Some(next) => activate_at(active.issued_at, active.expires_at)
                .max(now.after(self.publication_left(&active, &next, now)))
                .max(next.issued_at.min(active.expires_at)),
            None => prepare_at(active.issued_at, active.expires_at),
        })
    }

    fn activation_due(&self, active: Option<&AuthorityRecord>, next: &AuthorityRecord, now: Timestamp) -> bool {
        active.is_none_or(|active| {
            // One that was made while the clock was ahead has not begun: with it in force nothing could be signed.
            now >= activate_at(active.issued_at, active.expires_at).max(next.issued_at)
                && self.publication_left(active, next, now).is_zero()
        })
    }

    /// How much longer a prepared authority has to be published before it may sign.
    fn publication_left(&self, active: &AuthorityRecord, next: &AuthorityRecord, now: Timestamp) -> Duration {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let steady = self.clock.steady();
        // Prepared before this process started, when only the time of day was there to count by.
        let at = published.entry(Arc::clone(&next.id)).or_insert_with(|| Published { before: now.since(next.issued_at), since: steady });
        let published_for = at.before.saturating_add(steady.saturating_sub(at.since));
        publication_needed(published_for, active.expires_at.since(now)).saturating_sub(published_for)
    }

    fn mine(&self, family: AuthorityFamily, state: AuthorityState) -> Option<Arc<AuthorityRecord>> {
        let snapshot = self.store.snapshot();
        snapshot.authorities().find(|a| a.server_id == self.settings.server_id && a.family == family && a.state == state).map(Arc::clone)
    }

    /// Forgets authorities of this server that have ended, whose key is gone, or that are not in the bundle. None has ended
    /// while the time of day is in doubt.
    async fn drop_unusable(&self, family: AuthorityFamily, is_doubted: bool) -> Result<(), IssueError> {
        let now = self.clock.now();
        let keys = self.keys.public_keys().await?;
        let snapshot = self.store.snapshot();
        let bundle = snapshot.bundle(self.settings.trust_domain.name());
        let usable = |a: &AuthorityRecord| {
            let Some(public) = public_key(a) else { return false };
            let has_key = keys.iter().any(|(id, key)| *id == a.key_id && *key == public);
            let published = bundle.is_some_and(|b| match family {
                AuthorityFamily::X509 => b.x509_authorities().iter().any(|x| x.certificate.der() == a.public),
                AuthorityFamily::Jwt => b.jwt_authority(&a.id).is_some(),
            });
            (is_doubted || a.expires_at > now) && published && (has_key || a.state == AuthorityState::Old)
        };
        let gone: Vec<Arc<AuthorityRecord>> = snapshot
            .authorities()
            .filter(|a| a.server_id == self.settings.server_id && a.family == family && !usable(a))
            .map(Arc::clone)
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        for authority in &gone {
            if authority.expires_at > now {
                tracing::warn!(
                    local_authority_id = %authority.id, expiration = %authority.expires_at,
                    "Authority has lost its key or is not in the bundle, it is used no longer; what it signed stays good until it ends"
                );
            } else {
                tracing::info!(local_authority_id = %authority.id, "Authority has ended, it is used no longer");
            }
        }
        self.store
            .write(Actor::server(), move |draft| {
                for authority in &gone {
                    draft.change(Change::AuthorityDelete(Arc::clone(&authority.id)));
                }
                Ok(())
            })
            .await?;
        Ok(())
    }

    /// Makes the next authority and publishes it in the bundle.
    async fn prepare(&self, family: AuthorityFamily, active: Option<&AuthorityRecord>) -> Result<(), IssueError> {
        let [x509, jwt] = super::KEY_PREFIXES;
        let (prefix, kind) = match family {
            AuthorityFamily::X509 => (x509, self.settings.ca_key_type),
            AuthorityFamily::Jwt => (jwt, self.settings.jwt_key_type),
        };
        let slot_a = format!("{prefix}-A");
        let key_id = if active.is_some_and(|a| a.key_id == slot_a) { format!("{prefix}-B") } else { slot_a };
        let public = self.keys.generate(&key_id, kind).await?;
        let record = match family {
            AuthorityFamily::X509 => self.prepare_x509(key_id, &public).await?,
            AuthorityFamily::Jwt => self.prepare_jwt(key_id, &public)?,
        };
        let record = Arc::new(record);
        let stored = Arc::clone(&record);
        let (trust_domain, server_id) = (self.settings.trust_domain.clone(), Arc::clone(&self.settings.server_id));
        let published = Published { before: Duration::ZERO, since: self.clock.steady() };
        self.store
            .write(Actor::server(), move |draft| {
                // The key that stood in this slot is overwritten, so whatever was old is gone.
                let old: Vec<Arc<str>> = draft
                    .snapshot()
                    .authorities()
                    .filter(|a| a.server_id == server_id && a.family == family && a.key_id == stored.key_id)
                    .map(|a| Arc::clone(&a.id))
                    .collect();
                for id in old {
                    draft.change(Change::AuthorityDelete(id));
                }
                let mut bundle = own_bundle(draft, &trust_domain);
                publish(&mut bundle, &stored)?;
                bundle.sequence_number += 1;
                draft.change(Change::BundlePut(Arc::new(bundle)));
                draft.change(Change::AuthorityPut(Arc::clone(&stored)));
                Ok(())
            })
            .await?;
        self.published.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(&record.id), published);
        log(family, &record, "prepared");
        Ok(())
    }

    async fn prepare_x509(&self, key_id: String, public: &PublicKey) -> Result<AuthorityRecord, IssueError> {
        let algorithm = algorithm_of(public).ok_or_else(|| IssueError::Bug("an authority's key cannot sign".to_owned()))?;
        let allowed = Allowed::authority(&self.settings.trust_domain, self.settings.ca_ttl);
        let linted = Linted::authority(allowed, &self.settings.subject, public, algorithm, serial()?, self.clock.now())?;
        let recorded = self.journal.record(vec![linted]).await?.pop().ok_or_else(|| IssueError::Bug("a record is missing".to_owned()))?;
        let Credential::X509(der) = self.sign_with(recorded, &key_id).await? else {
            return Err(IssueError::Bug("a certificate became a token".to_owned()));
        };
        let certificate = Certificate::parse(&der).map_err(|e| IssueError::Bug(format!("our own authority does not parse: {e}")))?;
        Ok(self.record(certificate.authority_id(), AuthorityFamily::X509, key_id, certificate.not_before, certificate.not_after, der))
    }

    fn prepare_jwt(&self, key_id: String, public: &PublicKey) -> Result<AuthorityRecord, IssueError> {
        let now = self.clock.now();
        let kid: String = random::<KEY_ID_LENGTH>()?
            .iter()
            // 62 of 256: the slight bias does not matter in a name.
            .filter_map(|b| KEY_ID_CHARACTERS.get(usize::from(*b) % KEY_ID_CHARACTERS.len()).map(|c| char::from(*c)))
            .collect();
        let end = Timestamp::from_secs(now.after(self.settings.ca_ttl).secs());
        Ok(self.record(kid, AuthorityFamily::Jwt, key_id, now, end, public.spki().to_vec()))
    }

    fn record(
        &self,
        id: String,
        family: AuthorityFamily,
        key_id: String,
        issued_at: Timestamp,
        expires_at: Timestamp,
        public: Vec<u8>,
    ) -> AuthorityRecord {
        let server_id = Arc::clone(&self.settings.server_id);
        AuthorityRecord { id: id.into(), server_id, family, key_id, state: AuthorityState::Prepared, issued_at, expires_at, public }
    }

    /// Lets the prepared authority sign, and the active one sign no more.
    async fn activate(&self, next: &Arc<AuthorityRecord>) -> Result<(), IssueError> {
        let next = Arc::clone(next);
        let stored = Arc::clone(&next);
        self.store
            .write(Actor::server(), move |draft| {
                let former: Vec<Arc<AuthorityRecord>> = draft
                    .snapshot()
                    .authorities()
                    .filter(|a| a.server_id == stored.server_id && a.family == stored.family && a.state == AuthorityState::Active)
                    .map(Arc::clone)
                    .collect();
                for record in former {
                    let old = AuthorityRecord { state: AuthorityState::Old, ..AuthorityRecord::clone(&record) };
                    draft.change(Change::AuthorityPut(Arc::new(old)));
                }
                let active = AuthorityRecord { state: AuthorityState::Active, ..AuthorityRecord::clone(&stored) };
                draft.change(Change::AuthorityPut(Arc::new(active)));
                Ok(())
            })
            .await?;
        self.published.lock().unwrap_or_else(PoisonError::into_inner).remove(&next.id);
        self.reload();
        log(next.family, &next, "activated");
        Ok(())
    }

    /// Takes authorities out of the bundle that ended a day ago.
    async fn prune(&self) -> Result<(), IssueError> {
        let ended_before = self.clock.now().before(PRUNE_AFTER);
        let trust_domain = self.settings.trust_domain.clone();
        let snapshot = self.store.snapshot();
        let Some(bundle) = snapshot.bundle(trust_domain.name()) else { return Ok(()) };
        if !Bundle::clone(bundle).prune(ended_before) {
            return Ok(());
        }
        self.store
            .write(Actor::server(), move |draft| {
                let mut bundle = own_bundle(draft, &trust_domain);
                if bundle.prune(ended_before) {
                    bundle.sequence_number += 1;
                    draft.change(Change::BundlePut(Arc::new(bundle)));
                }
                Ok(())
            })
            .await?;
        tracing::info!("Pruned authorities from the bundle that had ended");
        Ok(())
    }
}

fn own_bundle(draft: &Draft<'_>, trust_domain: &countersign_identity::TrustDomain) -> Bundle {
    draft.snapshot().bundle(trust_domain.name()).map_or_else(|| Bundle::empty(trust_domain.clone()), |b| Bundle::clone(b))
}

fn publish(bundle: &mut Bundle, record: &AuthorityRecord) -> Result<(), StoreError> {
    let failed = |e: String| StoreError::Failed(format!("cannot publish an authority: {e}"));
    match record.family {
        AuthorityFamily::X509 => {
            let certificate = Certificate::parse(&record.public).map_err(|e| failed(e.to_string()))?;
            bundle.add_x509_authority(certificate, false).map_err(|e| failed(e.to_string()))
        }
        AuthorityFamily::Jwt => {
            let public_key = PublicKey::from_spki(&record.public).map_err(|e| failed(e.to_string()))?;
            bundle
                .add_jwt_authority(JwtAuthority {
                    key_id: record.id.to_string(),
                    public_key,
                    expires_at: Some(record.expires_at),
                    tainted: false,
                })
                .map_err(|e| failed(e.to_string()))
        }
    }
}

/// The key that verifies what this authority signs.
pub(crate) fn public_key(record: &AuthorityRecord) -> Option<PublicKey> {
    match record.family {
        AuthorityFamily::X509 => Certificate::parse(&record.public).ok().map(|c| c.public_key),
        AuthorityFamily::Jwt => PublicKey::from_spki(&record.public).ok(),
    }
}

/// The log lines operators match on: `X509 CA prepared`, `JWT key activated`, and so on.
fn log(family: AuthorityFamily, record: &AuthorityRecord, what: &str) {
    let name = match family {
        AuthorityFamily::X509 => "X509 CA",
        AuthorityFamily::Jwt => "JWT key",
    };
    let slot = record.key_id.chars().last().unwrap_or('?');
    tracing::info!(%slot, issued_at = %record.issued_at, expiration = %record.expires_at, local_authority_id = %record.id, "{name} {what}");
    if family == AuthorityFamily::X509 && what == "activated" {
        tracing::debug!(local_authority_id = %record.id, "Successfully rotated X.509 CA");
    }
}
