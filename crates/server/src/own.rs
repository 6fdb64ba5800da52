//! The server's own X509-SVID: a key in memory, issued by the same chain as any other, renewed at half of its life.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign_identity::key::KeyType;
use countersign_identity::rotation::{BACKDATE, next_renewal};
use countersign_identity::{Timestamp, TrustDomain};
use countersign_plugins::keys::KeyPair;
use countersign_transport::clock::SharedClock;
use countersign_transport::tls::{self, SharedIdentity};

use crate::authorities::{Authorities, IssueError};
use crate::policy::Allowed;

/// Wait after a failed renewal.
const RETRY: Duration = Duration::from_secs(5);
/// Whether it is time is looked at this often, because no time of day comes when the clock was set back: for so long at most
/// the server presents what its agents cannot verify yet.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The identity the TCP listener presents.
pub(crate) struct OwnIdentity {
    trust_domain: TrustDomain,
    lifetime: Duration,
    key_type: KeyType,
    presented: SharedIdentity,
    current: ArcSwap<Current>,
}

impl std::fmt::Debug for OwnIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnIdentity")
    }
}

#[derive(Debug, Default)]
struct Current {
    chain: Vec<Vec<u8>>,
    issued_at: Timestamp,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

impl OwnIdentity {
    /// Nothing to present yet; [`OwnIdentity::renew`] makes it.
    pub(crate) fn new(trust_domain: TrustDomain, lifetime: Duration, key_type: KeyType) -> Self {
        Self { trust_domain, lifetime, key_type, presented: Arc::default(), current: ArcSwap::default() }
    }

    /// What the listener presents.
    pub(crate) fn presented(&self) -> SharedIdentity {
        Arc::clone(&self.presented)
    }

    /// The chain, leaf first.
    pub(crate) fn chain(&self) -> Vec<Vec<u8>> {
        self.current.load().chain.clone()
    }

    /// End of the certificate.
    pub(crate) fn expires_at(&self) -> Timestamp {
        self.current.load().expires_at
    }

    /// Gets a new certificate for a new key.
    ///
    /// # Errors
    /// It was not issued; the one before stays.
    pub(crate) async fn renew(&self, authorities: &Authorities, clock: &SharedClock) -> Result<(), IssueError> {
        let kind = self.key_type;
        let pair = tokio::task::spawn_blocking(move || KeyPair::generate(kind))
            .await
            .map_err(|_| IssueError::Bug("the process is shutting down".to_owned()))??;
        let issued = authorities.issue_one_x509(Allowed::own(&self.trust_domain, self.lifetime), pair.public_key().clone()).await?;
        let chain = vec![issued.certificate];
        let identity = tls::identity(&chain, pair.pkcs8()).map_err(|e| IssueError::Bug(e.to_string()))?;
        self.presented.store(Arc::new(Some(identity)));
        let issued_at = clock.now();
        let renew_at = next_renewal(issued_at, issued_at, issued.expires_at, 0.0);
        self.current.store(Arc::new(Current { chain, issued_at, renew_at, expires_at: issued.expires_at }));
        Ok(())
    }

    /// Renews for as long as the process lives.
    pub(crate) async fn run(self: Arc<Self>, authorities: Arc<Authorities>, clock: SharedClock) {
        loop {
            let (issued_at, renew_at) = {
                let current = self.current.load();
                (current.issued_at, current.renew_at)
            };
            tokio::select! {
                () = clock.sleep_until(renew_at) => {}
                () = clock.sleep_for(LOOK_AGAIN) => {}
            }
            // What was issued later than now begins later than now: the clock was ahead, and was set right.
            if (issued_at.before(BACKDATE)..renew_at).contains(&clock.now()) {
                continue;
            }
            match self.renew(&authorities, &clock).await {
                Ok(()) => tracing::info!(expires_at = %self.expires_at(), "Server SVID rotated"),
                Err(error) => {
                    tracing::error!(%error, "Could not rotate server SVID");
                    clock.sleep_for(RETRY).await;
                }
            }
        }
    }
}
