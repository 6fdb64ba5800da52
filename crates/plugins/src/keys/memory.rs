//! `memory`: keys that live as long as the process. A restart means new authorities, or a new attestation.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use countersign_identity::key::{KeyType, PublicKey, SigningAlgorithm};

use super::{KeyManager, KeyManagerError, KeyPair};
use crate::Pending;

/// The key manager `memory`.
#[derive(Debug, Default)]
pub struct Memory {
    keys: RwLock<HashMap<String, Arc<KeyPair>>>,
}

impl Memory {
    pub(super) fn find(&self, id: &str) -> Option<Arc<KeyPair>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).get(id).map(Arc::clone)
    }

    pub(super) fn keep(&self, id: &str, pair: Arc<KeyPair>) {
        self.keys.write().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), pair);
    }

    pub(super) fn all(&self) -> Vec<(String, Arc<KeyPair>)> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).iter().map(|(id, pair)| (id.clone(), Arc::clone(pair))).collect()
    }

    pub(super) fn sign_now(&self, id: &str, algorithm: SigningAlgorithm, message: &[u8]) -> Result<Vec<u8>, KeyManagerError> {
        tracing::trace!(hop = "signs");
        let pair = self.find(id).ok_or_else(|| KeyManagerError::Missing(id.to_owned()))?;
        if pair.algorithm() != algorithm {
            return Err(KeyManagerError::Mismatch(id.to_owned()));
        }
        pair.sign(algorithm, message)
    }
}

/// Makes a key off the event loop.
pub(super) async fn make(kind: KeyType) -> Result<Arc<KeyPair>, KeyManagerError> {
    tokio::task::spawn_blocking(move || KeyPair::generate(kind).map(Arc::new))
        .await
        .map_err(|_| KeyManagerError::Crypto("make a key: the process is shutting down"))?
}

impl KeyManager for Memory {
    fn generate(&self, id: &str, kind: KeyType) -> Pending<'_, Result<PublicKey, KeyManagerError>> {
        let id = id.to_owned();
        Box::pin(async move {
            let pair = make(kind).await?;
            let public = pair.public_key().clone();
            self.keep(&id, pair);
            Ok(public)
        })
    }

    fn public_keys(&self) -> Pending<'_, Result<Vec<(String, PublicKey)>, KeyManagerError>> {
        Box::pin(async move { Ok(self.all().into_iter().map(|(id, pair)| (id, pair.public_key().clone())).collect()) })
    }

    fn sign<'a>(&'a self, id: &'a str, algorithm: SigningAlgorithm, message: &'a [u8]) -> Pending<'a, Result<Vec<u8>, KeyManagerError>> {
        Box::pin(async move { self.sign_now(id, algorithm, message) })
    }

    fn pair(&self, id: &str) -> Option<Arc<KeyPair>> {
        self.find(id)
    }

    fn is_persistent(&self) -> bool {
        false
    }
}
