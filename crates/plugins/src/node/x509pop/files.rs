//! PEM files of certificates and keys, read with a limit, and the authorities of the server's half, which follow their files.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::pem::{self, PEM_BYTES_MAX};
use countersign_identity::x509::Certificate;
use zeroize::Zeroizing;

use super::proof::NodeKey;

/// Largest file of a node's own certificates or key, in bytes: what is in it must fit into one message.
const OWN_FILE_BYTES_MAX: u64 = 256 << 10;
/// Most authorities in all files together: more are a mistake, and all are compared at each attestation.
const AUTHORITIES_MAX: usize = 4096;

fn read(path: &Path, bytes_max: u64) -> Result<Zeroizing<String>, String> {
    let failed = |e: std::io::Error| format!("the file `{}` cannot be read: {e}", path.display());
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = Zeroizing::new(String::new());
    file.take(bytes_max + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > bytes_max {
        return Err(format!("the file `{}` has more than the {bytes_max} bytes allowed", path.display()));
    }
    Ok(text)
}

/// The certificates in a file, of which there must be one at least. Other blocks are passed over, as Go does.
fn certificates_in(path: &Path, bytes_max: u64) -> Result<Vec<Certificate>, String> {
    let text = read(path, bytes_max)?;
    let blocks = pem::read(&text).map_err(|e| format!("the file `{}` is not PEM: {e}", path.display()))?;
    let mut found = Vec::new();
    for (label, der) in blocks {
        if label == "CERTIFICATE" {
            let number = found.len() + 1;
            let parsed = Certificate::parse(&der);
            found.push(parsed.map_err(|e| format!("certificate {number} in the file `{}`: {e}", path.display()))?);
        }
    }
    if found.is_empty() {
        return Err(format!("the file `{}` has no certificate", path.display()));
    }
    Ok(found)
}

/// The certificates of a node.
pub(super) fn own_certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    certificates_in(path, OWN_FILE_BYTES_MAX)
}

/// The private key of a node: the first one in the file.
pub(super) fn own_key(path: &Path) -> Result<NodeKey, String> {
    let text = read(path, OWN_FILE_BYTES_MAX)?;
    let about = |what: &str| format!("the file `{}` {what}", path.display());
    let mut lines = text.lines().map(str::trim).skip_while(|l| !(l.starts_with("-----BEGIN ") && l.ends_with("PRIVATE KEY-----")));
    let begin = lines.next().ok_or_else(|| about("has no private key in PEM"))?;
    let encrypted = || about("has a private key that is encrypted; expected one without a password");
    if begin.contains("ENCRYPTED") {
        return Err(encrypted());
    }
    // Not through the reader of certificates: everything on the way is wiped.
    let mut body = Zeroizing::new(String::with_capacity(text.len()));
    let mut ended = false;
    for line in lines {
        if line.starts_with("Proc-Type:") && line.contains("ENCRYPTED") {
            return Err(encrypted());
        }
        if line.starts_with("-----END ") {
            ended = true;
            break;
        }
        body.push_str(line);
    }
    let der = STANDARD.decode(body.as_bytes()).map(Zeroizing::new).ok().filter(|_| ended);
    let der = der.ok_or_else(|| about("has a private key that is not whole"))?;
    NodeKey::from_der(&der)
        .ok_or_else(|| about("has a private key that is not supported; expected EC P-256, P-384, P-521 or RSA from 2048 bits"))
}

/// What tells a file's versions apart without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    file: u64,
}

/// The authorities that vouch for nodes, kept in step with their files.
#[derive(Debug)]
pub(super) struct Authorities {
    paths: Vec<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Of the files as they were when `authorities` were read.
    stamps: Vec<Option<Stamp>>,
    /// Of the files as they were when they could not be used, which is said once.
    unusable: Option<Vec<Option<Stamp>>>,
    authorities: Arc<Vec<Certificate>>,
}

impl Authorities {
    /// Reads the files. An error comes with the place of its file among the paths.
    pub(super) fn read(paths: Vec<PathBuf>) -> Result<Self, (usize, String)> {
        // Before reading: a file that changes meanwhile is read again.
        let stamps = stamps(&paths);
        let authorities = Arc::new(all(&paths)?);
        Ok(Self { paths, state: Mutex::new(State { stamps, unusable: None, authorities }) })
    }

    /// The authorities now. Files that have changed are read again; while one of them cannot be used, what was read before
    /// counts, so that a file caught half written turns no node away.
    pub(super) fn now(&self) -> Arc<Vec<Certificate>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.paths);
        if stamps != state.stamps {
            match all(&self.paths) {
                Ok(authorities) => {
                    tracing::info!(authorities = authorities.len(), "Read the changed CA bundle of x509pop");
                    state.authorities = Arc::new(authorities);
                    state.stamps = stamps;
                    state.unusable = None;
                }
                // Read again the next time: what hindered may have passed, and an authority taken out must not count for long.
                Err((_, error)) => {
                    if state.unusable.as_ref() != Some(&stamps) {
                        tracing::error!(error, "The changed CA bundle of x509pop cannot be used; the authorities read before still count");
                    }
                    state.unusable = Some(stamps);
                }
            }
        }
        Arc::clone(&state.authorities)
    }

    /// Where they are from, for the log.
    pub(super) fn paths(&self) -> String {
        self.paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    use std::os::unix::fs::MetadataExt as _;
    let stamp = |m: std::fs::Metadata| Stamp { modified: m.modified().ok(), bytes: m.len(), file: m.ino() };
    paths.iter().map(|path| std::fs::metadata(path).ok().map(stamp)).collect()
}

fn all(paths: &[PathBuf]) -> Result<Vec<Certificate>, (usize, String)> {
    let mut found: Vec<Certificate> = Vec::new();
    for (place, path) in paths.iter().enumerate() {
        for certificate in certificates_in(path, PEM_BYTES_MAX as u64).map_err(|e| (place, e))? {
            if !found.iter().any(|known| known.der() == certificate.der()) {
                found.push(certificate);
            }
        }
        if found.len() > AUTHORITIES_MAX {
            return Err((place, format!("there are more than the {AUTHORITIES_MAX} authorities allowed")));
        }
    }
    Ok(found)
}
