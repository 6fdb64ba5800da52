//! The server's half: who vouches for the certificate, has the node its key, and what is it called.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use countersign_config::{ConfigError, Section};
use countersign_identity::key::{PublicKeyKind, RSA_BITS_MAX, RSA_BITS_MIN};
use countersign_identity::x509::{Certificate, CertificateError, Names, PathError, verify_paths};
use countersign_identity::{SpiffeId, TrustDomain};

use super::NAME;
use super::files::Authorities;
use super::names;
use super::proof::{self, Answer, Evidence, NONCE_BYTES};
use crate::node::path_template::Template;
use crate::node::{AttestError, Attested, Circumstances, Conversation, ServerHalf};
use crate::{Pending, keys};

/// Intermediates a node may send by default, as in SPIRE.
const INTERMEDIATES: usize = 4;
/// Most intermediates that can be configured: the search for paths looks no further.
const INTERMEDIATES_MAX: i64 = 15;
/// Longest text about a certificate in an answer or a log line; a stranger chooses the names in it.
const SHOWN_CHARACTERS_MAX: usize = 300;

/// Who vouches for nodes.
#[derive(Debug)]
enum Mode {
    /// Authorities in files.
    ExternalPki(Authorities),
    /// The trust domain itself, for SVIDs whose path begins with this prefix.
    Spiffe { prefix: String },
}

/// The server's half.
#[derive(Debug)]
pub struct Server {
    verifier: Arc<Verifier>,
    template: Template,
    verify_client_ip: bool,
}

/// Decides whether anybody vouches for a certificate.
#[derive(Debug)]
struct Verifier {
    mode: Mode,
    intermediates_max: usize,
    rsa_bits_max: usize,
}

/// A certificate that somebody vouches for.
struct Verified {
    leaf: Certificate,
    /// The fingerprints of those who do.
    authorities: Vec<String>,
}

impl Server {
    /// Reads its `plugin_data` and the files named there.
    ///
    /// # Errors
    /// A wrong setting, or a file that cannot be used.
    pub fn read(block: &Section, mut data: Section) -> Result<Self, ConfigError> {
        let mode = data.string("mode")?.filter(|m| !m.value.is_empty());
        let path = data.string("ca_bundle_path")?.filter(|p| !p.value.is_empty());
        let paths = data.strings("ca_bundle_paths")?;
        // SPIRE's documentation has one name, its code the other.
        let documented = data.string("svid_prefix")?;
        let coded = data.string("spiffe_prefix")?;
        let template = data.string("agent_path_template")?.filter(|t| !t.value.is_empty());
        let intermediates = data.integer("max_intermediates")?;
        let rsa_bits = data.integer("max_rsa_key_size")?;
        let verify_client_ip = data.boolean("verify_client_ip")?.is_some_and(|b| b.value);
        data.finish()?;

        if let (Some(_), Some(second)) = (&documented, &coded) {
            return Err(second.error("svid_prefix and spiffe_prefix are two names of one setting").hint("keep svid_prefix"));
        }
        let prefix = documented.or(coded);
        if let (Some(_), Some(second)) = (&path, paths.first()) {
            return Err(second
                .error("only one of ca_bundle_path or ca_bundle_paths can be configured, not both")
                .hint("keep ca_bundle_paths"));
        }
        let bundles: Vec<_> = path.into_iter().chain(paths).collect();
        let (mode, default) = match mode.as_ref().map_or("external_pki", |m| m.value.as_str()) {
            "external_pki" => {
                if let Some(prefix) = prefix {
                    return Err(prefix.error("is used in mode `spiffe` only").hint("leave it out, or set mode = \"spiffe\""));
                }
                let Some(first) = bundles.first() else {
                    return Err(block
                        .error("one of ca_bundle_path or ca_bundle_paths must be configured")
                        .hint("add `ca_bundle_path = \"…\"`, the certificates of those who vouch for your nodes, to plugin_data"));
                };
                let authorities = Authorities::read(bundles.iter().map(|b| PathBuf::from(&b.value)).collect())
                    .map_err(|(place, e)| bundles.get(place).unwrap_or(first).error(e))?;
                (Mode::ExternalPki(authorities), "/{{ .PluginName }}/{{ .Fingerprint }}")
            }
            "spiffe" => {
                if let Some(bundle) = bundles.first() {
                    return Err(bundle
                        .error("you can not use ca_bundle_path or ca_bundle_paths in spiffe mode")
                        .hint("leave it out; the trust domain's own authorities vouch for its SVIDs"));
                }
                let mut prefix = prefix.map_or_else(|| "/spire-exchange/".to_owned(), |p| p.value);
                if !prefix.ends_with('/') {
                    prefix.push('/');
                }
                (Mode::Spiffe { prefix }, "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}")
            }
            _ => {
                let wrong = mode.as_ref().map(|m| m.error("mode can only be either spiffe or external_pki"));
                return Err(wrong.unwrap_or_else(|| block.error("mode can only be either spiffe or external_pki")));
            }
        };
        let template = match template {
            Some(text) => text
                .parse(|t| Template::parse(t, names::FIELDS))
                .map_err(|e| e.hint("an example: agent_path_template = \"/x509pop/cn/{{ .Subject.CommonName }}\""))?,
            None => Template::parse(default, names::FIELDS).map_err(|e| block.error(format!("BUG: {e}")))?,
        };
        let intermediates_max = match intermediates {
            None => INTERMEDIATES,
            Some(n) if n.value <= 0 => return Err(n.error("max_intermediates must be greater than 0")),
            Some(n) if n.value > INTERMEDIATES_MAX => return Err(n.error(format!("must be at most {INTERMEDIATES_MAX}"))),
            Some(n) => usize::try_from(n.value).unwrap_or(INTERMEDIATES),
        };
        let rsa_bits_max = match rsa_bits {
            None => RSA_BITS_MAX,
            Some(n) => usize::try_from(n.value).ok().filter(|bits| (RSA_BITS_MIN..=RSA_BITS_MAX).contains(bits)).ok_or_else(|| {
                n.error(format!("must be {RSA_BITS_MIN} to {RSA_BITS_MAX}"))
                    .hint("smaller keys are never accepted, larger ones cost too much")
            })?,
        };
        Ok(Self { verifier: Arc::new(Verifier { mode, intermediates_max, rsa_bits_max }), template, verify_client_ip })
    }

    fn check_address(&self, names: &Names, address: Option<IpAddr>) -> Result<(), AttestError> {
        if !self.verify_client_ip {
            return Ok(());
        }
        let address = address.ok_or_else(|| AttestError::failed("client IP not available for verification"))?.to_canonical();
        if names.ip_addresses.iter().any(|a| a.to_canonical() == address) {
            return Ok(());
        }
        Err(AttestError::denied(format!("client IP {address} does not match any certificate IP SAN")))
    }

    /// The path of the SVID behind the prefix; empty where certificates are no SVIDs.
    fn svid_path(&self, leaf: &Certificate, trust_domain: &TrustDomain) -> Result<String, AttestError> {
        let Mode::Spiffe { prefix } = &self.verifier.mode else { return Ok(String::new()) };
        let mut ids = leaf.uris.iter().filter(|u| u.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:")));
        let (Some(id), None) = (ids.next(), ids.next()) else {
            return Err(AttestError::denied("valid SVID x509 cert not found: the certificate does not name exactly one SPIFFE ID"));
        };
        let id = SpiffeId::parse(id).map_err(|e| AttestError::denied(shown(&format!("valid SVID x509 cert not found: {e}"))))?;
        // SPIRE does not look at this; an authority that signs for other trust domains too must not name our agents.
        if !id.is_member_of(trust_domain) {
            return Err(AttestError::denied(shown(&format!("x509 cert is of trust domain `{}`", id.trust_domain_name()))));
        }
        match id.path().strip_prefix(prefix.as_str()) {
            Some(path) => Ok(path.to_owned()),
            None => {
                Err(AttestError::denied("x509 cert doesnt match SVID prefix")
                    .detail(shown(&format!("`{id}` does not begin with `{prefix}`"))))
            }
        }
    }

    async fn decide(
        &self,
        payload: &[u8],
        circumstances: &Circumstances,
        conversation: &mut dyn Conversation,
    ) -> Result<Attested, AttestError> {
        // Files and many signatures: not on a thread that others wait for.
        let (verifier, payload, known) = (Arc::clone(&self.verifier), payload.to_vec(), circumstances.clone());
        let verified = tokio::task::spawn_blocking(move || verifier.verify(&payload, &known)).await;
        let Verified { leaf, authorities } = verified.map_err(|_| AttestError::failed("the certificate could not be verified"))??;
        let about = describe(&leaf);
        let names = leaf.names().map_err(|e| AttestError::invalid(format!("unable to parse leaf certificate: {e}")).detail(&about))?;
        self.check_address(&names, circumstances.address).map_err(|e| e.detail(&about))?;
        if !leaf.key_usage.is_some_and(|u| u.digital_signature) {
            return Err(AttestError::denied("certificate not intended for digital signature use").detail(&about));
        }

        // The certificate is trusted by now; is the node the one it was given to?
        let nonce = keys::random::<NONCE_BYTES>().map_err(|e| AttestError::failed("unable to generate challenge").detail(e.to_string()))?;
        let challenge = proof::challenge(&leaf.public_key, nonce).ok_or_else(|| {
            AttestError::denied("unsupported public key type; supported are EC P-256, P-384, P-521 and RSA").detail(&about)
        })?;
        let message = serde_json::to_vec(&challenge).map_err(|e| AttestError::failed(format!("BUG: {e}")))?;
        let answer = conversation.challenge(message).await?;
        let answer: Answer = serde_json::from_slice(&answer).map_err(|e| {
            AttestError::invalid("unable to unmarshal challenge response: it is malformed")
                .detail(format!("{about}: {}", shown(&e.to_string())))
        })?;
        proof::verify(&leaf.public_key, &challenge, &answer)
            .map_err(|what| AttestError::denied(format!("challenge response verification failed: {what}")).detail(&about))?;

        let trust_domain = &circumstances.trust_domain;
        let svid_path = self.svid_path(&leaf, trust_domain)?;
        let san = names::san_selectors(&leaf.uris, trust_domain);
        let selectors = names::selectors(&leaf, &names, &authorities, &san)
            .map_err(|e| AttestError::denied(format!("the names in the certificate make no selectors: {e}")).detail(&about))?;
        let cannot_name = |e: String| AttestError::denied(shown(&format!("failed to make spiffe id: {e}"))).detail(&about);
        let path = self.template.render(&names::fields(&leaf, &names, trust_domain, &svid_path, san)).map_err(cannot_name)?;
        if !path.starts_with('/') {
            return Err(cannot_name("the path does not begin with `/`".to_owned()));
        }
        trust_domain.with_path(&format!("/spire/agent{path}")).map_err(|e| cannot_name(e.to_string()))?;
        Ok(Attested { path, selectors, can_reattest: true, redeem: None })
    }
}

impl Verifier {
    fn parse(&self, der: &[u8], what: &str) -> Result<Certificate, AttestError> {
        let refuse = |why: &str| AttestError::invalid(shown(&format!("unable to parse {what}: {why}")));
        let certificate = Certificate::parse(der).map_err(|e| match e {
            CertificateError::Key(key) => refuse(&key.to_string()),
            other => refuse(&other.to_string()),
        })?;
        if certificate.public_key.kind() == PublicKeyKind::Rsa && rsa_bits(&certificate) > self.rsa_bits_max {
            return Err(AttestError::invalid(format!("{what} key size too large: more than the {} bits allowed", self.rsa_bits_max)));
        }
        Ok(certificate)
    }

    /// Leaf and intermediates out of the payload.
    fn chain(&self, payload: &[u8]) -> Result<(Certificate, Vec<Certificate>), AttestError> {
        let evidence: Evidence = serde_json::from_slice(payload).map_err(|e| {
            AttestError::invalid("failed to unmarshal data: the attestation data is malformed").detail(shown(&e.to_string()))
        })?;
        let certificates = evidence.certificates.unwrap_or_default();
        let (leaf, intermediates) = certificates.split_first().ok_or_else(|| AttestError::invalid("no certificate to attest"))?;
        // Counted before any is parsed.
        if intermediates.len() > self.intermediates_max {
            let told = format!("too many intermediate certificates: {}, allowed are {}", intermediates.len(), self.intermediates_max);
            return Err(AttestError::invalid(told));
        }
        let leaf = self.parse(&leaf.0, "leaf certificate")?;
        let mut parsed = Vec::with_capacity(intermediates.len());
        for (index, der) in intermediates.iter().enumerate() {
            parsed.push(self.parse(&der.0, &format!("intermediate certificate {index}"))?);
        }
        Ok((leaf, parsed))
    }

    /// Those who vouch for nodes now, and where they are from.
    fn authorities(&self, circumstances: &Circumstances) -> Result<(Arc<Vec<Certificate>>, String), AttestError> {
        match &self.mode {
            Mode::ExternalPki(authorities) => Ok((authorities.now(), authorities.paths())),
            Mode::Spiffe { .. } => {
                let bundle = circumstances.bundle.as_ref().ok_or_else(|| AttestError::failed("failed to get trust bundle"))?;
                // One that is tainted vouches for nobody new.
                let own = bundle.x509_authorities().iter().filter(|a| !a.tainted).map(|a| a.certificate.clone()).collect();
                Ok((Arc::new(own), "the trust domain's bundle".to_owned()))
            }
        }
    }

    /// The leaf in the payload, and who vouches for it.
    fn verify(&self, payload: &[u8], circumstances: &Circumstances) -> Result<Verified, AttestError> {
        let (leaf, intermediates) = self.chain(payload)?;
        let (authorities, from) = self.authorities(circumstances)?;
        let paths = verify_paths(&leaf, &intermediates, &authorities, circumstances.now).map_err(|e| {
            let about = describe(&leaf);
            let detail =
                format!("{about}, with {} intermediates, against {} authorities of {from}", intermediates.len(), authorities.len());
            not_verified(&e).detail(detail)
        })?;
        let authorities = names::authorities(&paths);
        Ok(Verified { leaf, authorities })
    }
}

impl ServerHalf for Server {
    fn name(&self) -> &'static str {
        NAME
    }

    fn attest<'a>(
        &'a self,
        payload: &'a [u8],
        circumstances: &'a Circumstances,
        conversation: &'a mut dyn Conversation,
    ) -> Pending<'a, Result<Attested, AttestError>> {
        Box::pin(self.decide(payload, circumstances, conversation))
    }
}

fn not_verified(error: &PathError) -> AttestError {
    AttestError::denied(shown(&format!("certificate verification failed: {error}")))
}

/// The certificate for the operator's log.
fn describe(leaf: &Certificate) -> String {
    let fingerprint = names::fingerprint(leaf);
    shown(&format!("certificate {fingerprint}, serial number {}, of `{}`", names::serial_number(leaf), leaf.subject_text))
}

/// A text that a stranger had a part in, fit for one line.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARACTERS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn rsa_bits(certificate: &Certificate) -> usize {
    certificate.public_key.rsa_bits().unwrap_or(0)
}
