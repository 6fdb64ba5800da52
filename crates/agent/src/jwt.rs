//! JWT-SVIDs of workloads: kept by entry and audiences, fetched once however many ask, renewed behind the caller's back.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::jwt::TokenError;
use countersign_identity::rotation::next_renewal;
use countersign_identity::{Entry, Selector, Timestamp, jwt};
use countersign_transport::clock::SharedClock;
use countersign_transport::random::SharedRandom;
use serde_json::Value;
use tonic::Status;

use crate::metrics::Metrics;
use crate::sync::Sync;

/// How long a token waits for the bundle that has its key. A server of ours pushes that at the same time; one of SPIRE's
/// publishes a key long before it signs with it, and who is asked at intervals may take longer than anybody wants to wait.
const KEY_PATIENCE: Duration = Duration::from_millis(200);

/// What a token is kept under: the order of audiences does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    entry_id: String,
    audience: Vec<String>,
}

/// A token, and what is known of it.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) token: Arc<str>,
    /// The key that signed it; empty if it does not say.
    key_id: String,
    /// Whether the bundle has had that key, and the key the signature.
    is_verified: bool,
    spiffe_id: countersign_identity::SpiffeId,
    ttl: Option<Duration>,
    pub(crate) issued_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    renew_at: Timestamp,
    used: u64,
}

impl Kept {
    /// So near its end that whoever it is presented to may refuse it: the last fifth of its life.
    fn is_nearly_over(&self, now: Timestamp) -> bool {
        self.expires_at.since(now) < self.expires_at.since(self.issued_at) / 5
    }
}

#[derive(Default)]
struct Tokens {
    kept: HashMap<Key, Kept>,
    /// Requests under way; who comes second waits for the first.
    fetching: HashMap<Key, Arc<tokio::sync::Mutex<()>>>,
    clock: u64,
}

/// The tokens of all workloads.
pub(crate) struct Jwts {
    sync: Arc<Sync>,
    clock: SharedClock,
    random: SharedRandom,
    metrics: Arc<Metrics>,
    tokens: Mutex<Tokens>,
    max: usize,
}

impl Jwts {
    pub(crate) fn new(sync: Arc<Sync>, clock: SharedClock, random: SharedRandom, metrics: Arc<Metrics>, max: usize) -> Self {
        Self { sync, clock, random, metrics, tokens: Mutex::default(), max }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many tokens are kept.
    pub(crate) fn held(&self) -> usize {
        self.lock().kept.len()
    }

    /// A token of this entry for these audiences. One that has not ended is given at once; past half of its life it is
    /// renewed meanwhile.
    pub(crate) async fn fetch(self: &Arc<Self>, entry: &Arc<Entry>, audience: &[String], facts: &Arc<[Selector]>) -> Result<Kept, Status> {
        // A token with a `jti` is for one use.
        if entry.additional_attributes.jwt_svid_include_jti {
            return self.issue(entry, audience, facts).await;
        }
        let mut sorted = audience.to_vec();
        sorted.sort_unstable();
        let key = Key { entry_id: entry.id.clone(), audience: sorted };
        let now = self.clock.now();
        if let Some(kept) = self.find(&key, entry, now).filter(|kept| !kept.is_nearly_over(now)) {
            if kept.renew_at <= now {
                self.renew_behind(key, entry, audience, facts);
            }
            return Ok(kept);
        }
        match self.fetch_new(key.clone(), entry, audience, facts).await {
            Ok(new) => Ok(new),
            // A token with a little life left is better than none, unless its authority has gone meanwhile.
            Err(status) => self.find(&key, entry, self.clock.now()).ok_or(status),
        }
    }

    async fn fetch_new(&self, key: Key, entry: &Arc<Entry>, audience: &[String], facts: &Arc<[Selector]>) -> Result<Kept, Status> {
        let turn = Arc::clone(self.lock().fetching.entry(key.clone()).or_default());
        let alone = turn.lock().await;
        let over = Over { jwts: self, key: &key, turn: &turn };
        // Whoever was first may have brought it.
        let now = self.clock.now();
        if let Some(kept) = self.find(&key, entry, now).filter(|k| !k.is_nearly_over(now)) {
            return Ok(kept);
        }
        let kept = self.issue(entry, audience, facts).await?;
        self.lock().keep(key.clone(), kept.clone(), self.max);
        drop(over);
        drop(alone);
        Ok(kept)
    }

    fn find(&self, key: &Key, entry: &Entry, now: Timestamp) -> Option<Kept> {
        let mut tokens = self.lock();
        tokens.clock += 1;
        let used = tokens.clock;
        let bundles = self.sync.cache.bundles();
        let own = bundles.get(self.sync.node.trust_domain().name());
        let (key_id, is_verified) = tokens.kept.get(key).map(|kept| (kept.key_id.clone(), kept.is_verified))?;
        match own.and_then(|own| own.jwt_authority(&key_id)) {
            Some(authority) if authority.tainted => {
                let tainted_jwt_svids = tokens.drop_of(&key_id);
                tracing::info!(
                    jwt_authority_key_ids = key_id,
                    tainted_jwt_svids,
                    "JWT-SVIDs were removed from the JWT cache because they were issued by a tainted authority"
                );
                return None;
            }
            // The key has come since.
            Some(_) if !is_verified => {
                let kept = tokens.kept.get_mut(key)?;
                if let Err(error) = own.map_or(Ok(()), |own| jwt::verify_signature(&kept.token, own)) {
                    tracing::error!(spiffe_id = %kept.spiffe_id, jwt_authority_key_ids = key_id, %error, "Dropped a JWT-SVID of a wrong signature");
                    tokens.kept.remove(key);
                    return None;
                }
                kept.is_verified = true;
            }
            Some(_) => {}
            // Nobody believes it any more: the authority was revoked, or the agent has started over with another bundle. One
            // without any key is not the server's yet, and a key that was never there may still come.
            None if is_verified && own.is_some_and(|own| !own.jwt_authorities().is_empty()) => {
                let jwt_svids = tokens.drop_of(&key_id);
                tracing::info!(
                    jwt_authority_key_ids = key_id,
                    jwt_svids,
                    "JWT-SVIDs were removed from the JWT cache because their authority has left the bundle"
                );
                return None;
            }
            None => {}
        }
        let kept = tokens.kept.get_mut(key)?;
        if kept.expires_at <= now || kept.spiffe_id != entry.spiffe_id || kept.ttl != entry.jwt_svid_ttl {
            return None;
        }
        kept.used = used;
        Some(kept.clone())
    }

    fn renew_behind(self: &Arc<Self>, key: Key, entry: &Arc<Entry>, audience: &[String], facts: &Arc<[Selector]>) {
        let turn = Arc::clone(self.lock().fetching.entry(key.clone()).or_default());
        let (jwts, entry, audience, facts) = (Arc::clone(self), Arc::clone(entry), audience.to_vec(), Arc::clone(facts));
        tokio::spawn(async move {
            let Ok(_alone) = turn.try_lock() else { return };
            let _over = Over { jwts: &jwts, key: &key, turn: &turn };
            // Whoever was first may have renewed it.
            let now = jwts.clock.now();
            if jwts.find(&key, &entry, now).is_some_and(|kept| kept.renew_at > now) {
                return;
            }
            if let Ok(kept) = jwts.issue(&entry, &audience, &facts).await {
                jwts.lock().keep(key.clone(), kept, jwts.max);
            }
        });
    }

    /// Whether an authority of the own bundle signed a token; not, where the bundle does not have that key and does not get it
    /// soon. A server may sign with a key that this agent has not heard of yet, and whoever the token is presented to may have:
    /// it is handed out, and looked at again when the key has come.
    async fn verify(&self, token: &str) -> Result<bool, TokenError> {
        let waited = tokio::time::timeout(KEY_PATIENCE, async {
            loop {
                // From before the look, so that no change is missed.
                let mut changed = std::pin::pin!(self.sync.cache.bundles_changed.notified());
                changed.as_mut().enable();
                match self.verify_now(token) {
                    Err(TokenError::UnknownKey { .. }) => changed.await,
                    known => return known,
                }
            }
        });
        match waited.await {
            Ok(known) => known,
            Err(_) => {
                let jwt_authority_key_ids = jwt::key_id(token).unwrap_or_default();
                tracing::warn!(jwt_authority_key_ids, "Handing out a JWT-SVID of an authority that the bundle does not have yet");
                Ok(false)
            }
        }
    }

    fn verify_now(&self, token: &str) -> Result<bool, TokenError> {
        let bundles = self.sync.cache.bundles();
        match bundles.get(self.sync.node.trust_domain().name()).filter(|own| !own.jwt_authorities().is_empty()) {
            Some(own) => jwt::verify_signature(token, own).map(|()| true),
            // The bundle of a first contact has no key of this kind.
            None => Ok(false),
        }
    }

    async fn issue(&self, entry: &Entry, audience: &[String], facts: &[Selector]) -> Result<Kept, Status> {
        let answer = self.sync.issue_jwt(entry, audience.to_vec(), facts).await;
        let wrong = |why: String| Status::internal(format!("the server's answer {why}"));
        let checked = match answer {
            Ok(token) => match check(&token, entry, audience, self.clock.now()) {
                Ok(lives) => {
                    let verified = self.verify(&token).await.map_err(|e| wrong(format!("cannot be verified: {e}")));
                    verified.map(|is_verified| (token, lives, is_verified))
                }
                Err(why) => Err(wrong(why)),
            },
            Err(status) => Err(status),
        };
        match checked {
            Ok((token, (issued_at, expires_at), is_verified)) => {
                self.metrics.issued("jwt");
                tracing::debug!(method = "FetchJWTSVID", spiffe_id = %entry.spiffe_id, "Fetched JWT SVID");
                Ok(Kept {
                    key_id: jwt::key_id(&token).unwrap_or_default(),
                    is_verified,
                    token: token.into(),
                    spiffe_id: entry.spiffe_id.clone(),
                    ttl: entry.jwt_svid_ttl,
                    issued_at,
                    expires_at,
                    renew_at: next_renewal(self.clock.now(), issued_at, expires_at, self.random.fraction()),
                    used: 0,
                })
            }
            Err(status) => {
                self.metrics.failed("jwt");
                tracing::warn!(spiffe_id = %entry.spiffe_id, error = status.message(), "Could not fetch JWT-SVID");
                Err(status)
            }
        }
    }
}

/// Checks that a token is what was asked for, whatever the server says, and returns when it begins and ends.
fn check(token: &str, entry: &Entry, audience: &[String], now: Timestamp) -> Result<(Timestamp, Timestamp), String> {
    if token.len() > jwt::TOKEN_BYTES_MAX {
        return Err(format!("has {} bytes, more than the {} allowed", token.len(), jwt::TOKEN_BYTES_MAX));
    }
    let claims = jwt::peek(token).map_err(|e| format!("is no token: {e}"))?;
    if claims.get("sub").and_then(Value::as_str) != Some(entry.spiffe_id.as_str()) {
        return Err("is for another identity".to_owned());
    }
    let found: BTreeSet<&str> = match claims.get("aud") {
        Some(Value::String(one)) => BTreeSet::from([one.as_str()]),
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => BTreeSet::new(),
    };
    if found != audience.iter().map(String::as_str).collect() {
        return Err("is for other audiences".to_owned());
    }
    let time = |name: &str| claims.get(name).and_then(Value::as_i64).map(Timestamp::from_secs);
    let (Some(issued_at), Some(expires_at)) = (time("iat"), time("exp")) else {
        return Err("does not say when it begins and ends".to_owned());
    };
    // As good as none: kept, it would be renewed at once, and so would the next.
    if expires_at <= now {
        return Err(format!("ended at {expires_at}; do the clocks of server and agent differ?"));
    }
    Ok((issued_at, expires_at))
}

/// Ends a turn however it goes, also when its caller has gone away.
struct Over<'a> {
    jwts: &'a Jwts,
    key: &'a Key,
    turn: &'a Arc<tokio::sync::Mutex<()>>,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let mut tokens = self.jwts.lock();
        if tokens.fetching.get(self.key).is_some_and(|turn| Arc::ptr_eq(turn, self.turn)) {
            tokens.fetching.remove(self.key);
        }
    }
}

impl Tokens {
    /// Forgets the tokens that this key signed, and says how many there were.
    fn drop_of(&mut self, key_id: &str) -> usize {
        let before = self.kept.len();
        self.kept.retain(|_, kept| kept.key_id != key_id);
        before - self.kept.len()
    }

    /// Keeps a token; beyond the limit the one goes that was used longest ago.
    fn keep(&mut self, key: Key, kept: Kept, max: usize) {
        if self.kept.len() >= max && !self.kept.contains_key(&key) {
            let oldest = self.kept.iter().min_by_key(|(_, k)| k.used).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.kept.remove(&oldest);
            }
        }
        self.clock += 1;
        let used = self.clock;
        self.kept.insert(key, Kept { used, ..kept });
    }
}
