//! Key managers: they make keys, keep them and sign with them; keys never leave except where their format demands it.

mod disk;
mod memory;
mod pair;

use std::sync::Arc;

use countersign_config::{ConfigError, Section};
use countersign_identity::key::{KeyType, PublicKey, SigningAlgorithm};

pub use disk::Disk;
pub use memory::Memory;
pub use pair::{KeyPair, SHA256_BYTES, random, sha256};

use crate::{Pending, later};

/// Every built-in key manager, by its configuration name.
pub const ALL: &[&str] = &["disk", "memory"];

/// A key could not be made, found or used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeyManagerError {
    /// There is no key of this name.
    #[error("there is no key `{0}`")]
    Missing(String),
    /// The key is of another kind than the algorithm needs.
    #[error("key `{0}` does not fit the algorithm")]
    Mismatch(String),
    /// The cryptographic library refused.
    #[error("cannot {0}")]
    Crypto(&'static str),
    /// The file of a disk key manager.
    #[error("key file `{path}`: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Makes, keeps and uses keys by name.
pub trait KeyManager: Send + Sync {
    /// Makes a key, replacing the one of this name, and returns its public half once it is kept.
    fn generate(&self, id: &str, kind: KeyType) -> Pending<'_, Result<PublicKey, KeyManagerError>>;

    /// The public halves of all keys.
    fn public_keys(&self) -> Pending<'_, Result<Vec<(String, PublicKey)>, KeyManagerError>>;

    /// Signs; ECDSA signatures are in ASN.1 form.
    fn sign<'a>(&'a self, id: &'a str, algorithm: SigningAlgorithm, message: &'a [u8]) -> Pending<'a, Result<Vec<u8>, KeyManagerError>>;

    /// The key itself, for TLS, which signs by itself. `None` where keys never leave, or there is none of this name.
    fn pair(&self, id: &str) -> Option<Arc<KeyPair>>;

    /// Whether keys survive a restart.
    fn is_persistent(&self) -> bool;
}

/// Makes the key manager of this name from its `plugin_data`. `file_key` is the setting that names the file.
///
/// # Errors
/// Unknown, a wrong setting, or a file that cannot be used.
pub fn build(name: &str, block: &Section, mut data: Section) -> Result<Arc<dyn KeyManager>, ConfigError> {
    match name {
        "memory" => {
            data.finish()?;
            Ok(Arc::new(Memory::default()))
        }
        "disk" => {
            // The server names the file (`keys_path`), the agent its directory (`directory`), as in SPIRE.
            let path = match (data.string("keys_path")?, data.string("directory")?) {
                (Some(path), None) => path.map(std::path::PathBuf::from),
                (None, Some(directory)) => directory.map(|d| std::path::Path::new(&d).join("keys.json")),
                (Some(path), Some(_)) => return Err(path.error("`keys_path` and `directory` exclude each other")),
                (None, None) => return Err(data.missing("keys_path")),
            };
            data.finish()?;
            let disk = path.parse(|p| Disk::open(p))?;
            Ok(Arc::new(disk))
        }
        _ => Err(later::refuse("KeyManager", name, ALL, block)),
    }
}
