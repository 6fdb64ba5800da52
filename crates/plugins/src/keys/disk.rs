//! `disk`: keys in one JSON file in SPIRE's format, `{"keys": {"<id>": "<base64 of PKCS#8 DER>"}}`, mode 0600,
//! replaced atomically. A key counts as made once the file is synced.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::key::{KeyType, PublicKey, SigningAlgorithm};
use countersign_transport::files::replace;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::memory::{Memory, make};
use super::{KeyManager, KeyManagerError, KeyPair};
use crate::Pending;

/// Largest key file read; a handful of keys has a few kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The key manager `disk`.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    memory: Memory,
    /// Held while the file is written, so that two writers cannot lose each other's key.
    writing: Mutex<()>,
}

impl Disk {
    /// Reads the keys of a file; a missing file has none. Its directory is made when the first key is.
    ///
    /// # Errors
    /// The file cannot be read, or is not a key file.
    pub fn open(path: &Path) -> Result<Self, KeyManagerError> {
        let failed = |reason: String| KeyManagerError::File { path: path.display().to_string(), reason };
        let memory = Memory::default();
        match std::fs::metadata(path) {
            Ok(m) if m.len() > FILE_BYTES_MAX => return Err(failed(format!("it has {} bytes, more than {FILE_BYTES_MAX}", m.len()))),
            Ok(_) => {
                let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?);
                for (id, pair) in parse(&text).map_err(failed)? {
                    memory.keep(&id, Arc::new(pair));
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e.to_string())),
        }
        Ok(Self { path: path.to_owned(), memory, writing: Mutex::new(()) })
    }

    fn failed(&self, reason: impl std::fmt::Display) -> KeyManagerError {
        KeyManagerError::File { path: self.path.display().to_string(), reason: reason.to_string() }
    }

    async fn save(&self, keys: Vec<(String, Arc<KeyPair>)>) -> Result<(), KeyManagerError> {
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || replace(&path, render(keys).as_bytes(), 0o600))
            .await
            .map_err(|e| self.failed(e))?
            .map_err(|e| self.failed(e))
    }
}

fn parse(text: &str) -> Result<Vec<(String, KeyPair)>, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
    let keys = value.get("keys").and_then(Value::as_object).ok_or("it has no `keys` object")?;
    keys.iter()
        .map(|(id, key)| {
            let refuse = |what: &str| format!("key `{id}` {what}");
            let text = key.as_str().ok_or_else(|| refuse("is not a text"))?;
            let pkcs8 = Zeroizing::new(STANDARD.decode(text).map_err(|_| refuse("is not base64"))?);
            let pair = KeyPair::from_pkcs8(&pkcs8).map_err(|_| refuse("is not a PKCS#8 key of a supported kind"))?;
            Ok((id.clone(), pair))
        })
        .collect()
}

fn render(mut keys: Vec<(String, Arc<KeyPair>)>) -> Zeroizing<String> {
    keys.sort_by(|a, b| a.0.cmp(&b.0));
    let mut text = Zeroizing::new(String::from("{\n\t\"keys\": {"));
    for (index, (id, pair)) in keys.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let encoded = Zeroizing::new(STANDARD.encode(pair.pkcs8().as_slice()));
        text.push_str(&format!("{comma}\n\t\t{}: \"", json!(id)));
        text.push_str(&encoded);
        text.push('"');
    }
    text.push_str("\n\t}\n}");
    text
}

impl KeyManager for Disk {
    fn generate(&self, id: &str, kind: KeyType) -> Pending<'_, Result<PublicKey, KeyManagerError>> {
        let id = id.to_owned();
        Box::pin(async move {
            let pair = make(kind).await?;
            let _alone = self.writing.lock().await;
            let mut keys = self.memory.all();
            keys.retain(|(known, _)| *known != id);
            keys.push((id.clone(), Arc::clone(&pair)));
            self.save(keys).await?;
            let public = pair.public_key().clone();
            self.memory.keep(&id, pair);
            Ok(public)
        })
    }

    fn public_keys(&self) -> Pending<'_, Result<Vec<(String, PublicKey)>, KeyManagerError>> {
        self.memory.public_keys()
    }

    fn sign<'a>(&'a self, id: &'a str, algorithm: SigningAlgorithm, message: &'a [u8]) -> Pending<'a, Result<Vec<u8>, KeyManagerError>> {
        self.memory.sign(id, algorithm, message)
    }

    fn pair(&self, id: &str) -> Option<Arc<KeyPair>> {
        self.memory.find(id)
    }

    fn is_persistent(&self) -> bool {
        true
    }
}
