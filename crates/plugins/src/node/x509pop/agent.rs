//! The agent's half: shows the node's certificate and signs the server's nonce with its key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_config::{ConfigError, Section, Spanned};
use countersign_identity::x509::Certificate;
use zeroize::Zeroizing;

use super::NAME;
use super::files;
use super::proof::{Bytes, Challenge, Evidence, NodeKey};
use crate::Pending;
use crate::node::{AgentHalf, Answers, Attempt, AttestError, MESSAGE_BYTES_MAX};

/// Chain (leaf first, DER) and private key (PKCS#8) of an X509-SVID.
pub type Svid = (Vec<Vec<u8>>, Zeroizing<Vec<u8>>);

/// Fetches an X509-SVID from a Workload API. The agent has one; plugins speak no gRPC.
pub trait SvidSource: Send + Sync {
    /// The first SVID that the Workload API at this socket gives.
    fn fetch<'a>(&'a self, socket: &'a Path) -> Pending<'a, Result<Svid, String>>;
}

/// Where the identity is.
#[derive(Clone)]
enum Place {
    Files { key: PathBuf, certificate: PathBuf, intermediates: Option<PathBuf> },
    Endpoint { socket: PathBuf, source: Arc<dyn SvidSource> },
}

/// The agent's half.
pub struct Agent(Place);

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("x509pop::Agent")
    }
}

impl Agent {
    /// Reads its `plugin_data`, and the files to see that they can be used.
    ///
    /// # Errors
    /// A wrong setting, or a file that cannot be used.
    pub fn read(block: &Section, mut data: Section, source: Arc<dyn SvidSource>) -> Result<Self, ConfigError> {
        let mut path =
            |key| -> Result<Option<Spanned<String>>, ConfigError> { Ok(data.string(key)?.filter(|s| !s.value.trim().is_empty())) };
        let key = path("private_key_path")?;
        let certificate = path("certificate_path")?;
        let intermediates = path("intermediates_path")?;
        let endpoint = path("spiffe_endpoint_socket")?;
        // A misspelt name says more than that the right one is missing.
        data.finish()?;
        if let Some(endpoint) = endpoint {
            if let Some(unused) = key.as_ref().or(certificate.as_ref()).or(intermediates.as_ref()) {
                return Err(unused.error("is not used together with spiffe_endpoint_socket").hint("keep one of the two"));
            }
            return Ok(Self(Place::Endpoint { socket: socket(&endpoint)?, source }));
        }
        let missing = |key: &str| block.error(format!("{key} is required")).hint(format!("add `{key} = \"…\"` to plugin_data"));
        let key = key.ok_or_else(|| missing("private_key_path"))?;
        let certificate = certificate.ok_or_else(|| missing("certificate_path"))?;
        let of_files = |place: &Spanned<String>| PathBuf::from(&place.value);
        let found = files::own_certificates(Path::new(&certificate.value)).map_err(|e| certificate.error(e))?;
        let pair = files::own_key(Path::new(&key.value)).map_err(|e| key.error(e))?;
        if !found.first().is_some_and(|leaf| pair.fits(&leaf.public_key)) {
            return Err(key
                .error(format!("the private key does not fit the first certificate in `{}`", certificate.value))
                .hint("certificate_path begins with the node's own certificate, its intermediates follow"));
        }
        if let Some(place) = &intermediates {
            files::own_certificates(Path::new(&place.value)).map_err(|e| place.error(e))?;
        }
        Ok(Self(Place::Files {
            key: of_files(&key),
            certificate: of_files(&certificate),
            intermediates: intermediates.as_ref().map(of_files),
        }))
    }
}

/// The path of `unix:///path`, as SPIFFE writes endpoints.
fn socket(endpoint: &Spanned<String>) -> Result<PathBuf, ConfigError> {
    let path = endpoint.value.strip_prefix("unix:").map(|rest| rest.strip_prefix("//").unwrap_or(rest));
    match path.filter(|p| p.starts_with('/')) {
        Some(path) => Ok(PathBuf::from(path)),
        None => Err(endpoint
            .error(format!("`{}` is not the address of a Unix socket", endpoint.value))
            .hint("write it as `unix:///path/to/api.sock`; TCP is not supported")),
    }
}

/// What one attempt begins with. Read anew each time, so that a certificate that was replaced on disk counts.
async fn identity(place: &Place) -> Result<(Vec<Certificate>, NodeKey), String> {
    match place {
        Place::Files { key, certificate, intermediates } => {
            let (key, certificate, intermediates) = (key.clone(), certificate.clone(), intermediates.clone());
            let reading = tokio::task::spawn_blocking(move || {
                let mut chain = files::own_certificates(&certificate)?;
                if let Some(intermediates) = intermediates {
                    chain.extend(files::own_certificates(&intermediates)?);
                }
                Ok((chain, files::own_key(&key)?))
            });
            reading.await.map_err(|e| e.to_string())?
        }
        Place::Endpoint { socket, source } => {
            let (chain, key) = source.fetch(socket).await?;
            let chain = chain.iter().map(|der| Certificate::parse(der)).collect::<Result<Vec<_>, _>>();
            let key = NodeKey::from_der(&key).ok_or("the private key of the SVID is not supported")?;
            Ok((chain.map_err(|e| format!("the SVID cannot be read: {e}"))?, key))
        }
    }
}

impl AgentHalf for Agent {
    fn name(&self) -> &'static str {
        NAME
    }

    fn begin(&self) -> Pending<'_, Result<Attempt, AttestError>> {
        Box::pin(async move {
            // All of these pass by themselves when somebody is just replacing the files.
            let (chain, key) = identity(&self.0).await.map_err(AttestError::failed)?;
            if !chain.first().is_some_and(|leaf| key.fits(&leaf.public_key)) {
                return Err(AttestError::failed("the private key does not fit the node's certificate"));
            }
            let evidence = Evidence { certificates: Some(chain.iter().map(|c| Bytes(c.der().to_vec())).collect()) };
            let payload = serde_json::to_vec(&evidence).map_err(|e| AttestError::failed(format!("BUG: {e}")))?;
            if payload.len() > MESSAGE_BYTES_MAX {
                return Err(AttestError::failed(format!(
                    "the node's certificates make a message of {} bytes, more than the {MESSAGE_BYTES_MAX} allowed",
                    payload.len()
                )));
            }
            Ok(Attempt { payload, answers: Box::new(OneAnswer(Some(key))) })
        })
    }

    fn how_to_join(&self) -> String {
        let what = match &self.0 {
            Place::Files { certificate, .. } => format!("certificate_path (`{}`)", certificate.display()),
            Place::Endpoint { socket, .. } => format!("spiffe_endpoint_socket (`{}`)", socket.display()),
        };
        format!(
            "check that the certificate of {what} is in force and that the server's x509pop trusts its issuer, and start the agent again; the server's log says more"
        )
    }
}

/// The key of this attempt, until it was used: a server that asks twice is no server of ours.
struct OneAnswer(Option<NodeKey>);

impl Answers for OneAnswer {
    fn answer<'a>(&'a mut self, challenge: &'a [u8]) -> Pending<'a, Result<Vec<u8>, AttestError>> {
        Box::pin(async move {
            let key = self.0.take().ok_or_else(|| AttestError::invalid("the server sent a second challenge"))?;
            if challenge.len() > MESSAGE_BYTES_MAX {
                return Err(AttestError::invalid("the server's challenge is too long"));
            }
            let challenge: Challenge =
                serde_json::from_slice(challenge).map_err(|_| AttestError::invalid("the server's challenge is malformed"))?;
            // RSA takes milliseconds.
            let answering = tokio::task::spawn_blocking(move || key.answer(&challenge));
            let answer = answering.await.map_err(|e| AttestError::failed(e.to_string()))?;
            let answer = answer.map_err(|what| AttestError::invalid(format!("cannot answer the server's challenge: {what}")))?;
            serde_json::to_vec(&answer).map_err(|e| AttestError::failed(format!("BUG: {e}")))
        })
    }
}
