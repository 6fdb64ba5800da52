//! Which secrets a caller gets under the names it asks for, and their messages. The rules are SPIRE's, with what is odd in them:
//! of the own bundle's three names one is answered at a time, and the first identity is `default` or goes by its own name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use countersign_identity::x509::Certificate;
use countersign_identity::{Bundle, pem};
use countersign_wire::envoy_core::data_source::Specifier;
use countersign_wire::envoy_core::{DataSource, TypedExtensionConfig};
use countersign_wire::envoy_tls as wire;
use countersign_wire::envoy_tls::secret::Type;
use countersign_wire::envoy_tls::spiffe_cert_validator_config::TrustDomain;
use prost::Message as _;
use prost_types::Any;
use tonic::Status;
use zeroize::{Zeroize as _, Zeroizing};

use super::validator::Validator;
use crate::cache::{Identity, Svid};
use crate::config::Sds;

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const VALIDATOR_CONFIG: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
/// By which Envoy knows its validator of SPIFFE IDs.
const VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";

/// What a caller may have.
pub(super) struct Held<'a> {
    /// By entry ID; the first is the default one.
    pub(super) identities: &'a [Identity],
    /// By the IDs of their trust domains.
    pub(super) bundles: &'a BTreeMap<String, Arc<Bundle>>,
    /// The ID of the own trust domain.
    pub(super) own: &'a str,
}

/// One secret, with the name it was asked for by.
pub(super) enum Secret {
    Svid { name: String, svid: Arc<Svid> },
    Bundles { name: String, bundles: Vec<Arc<Bundle>> },
}

/// Why a request cannot be answered.
pub(super) enum Unanswered {
    /// These identities have no SVID yet.
    Awaits(Vec<Identity>),
    /// Nothing of these names is for this caller.
    Unknown(Vec<String>),
    /// All bundles are asked for, by an Envoy that would not keep them apart.
    Inseparable,
}

/// Everything that is asked for, or nothing.
pub(super) fn select(names: &BTreeSet<String>, held: &Held<'_>, validator: Validator, settings: &Sds) -> Result<Vec<Secret>, Unanswered> {
    let is_all = names.is_empty();
    let mut left: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let mut secrets = Vec::new();
    if let Some(own) = held.bundles.get(held.own) {
        if is_all || left.remove(held.own) {
            secrets.push(Secret::Bundles { name: held.own.to_owned(), bundles: vec![Arc::clone(own)] });
        } else if left.remove(settings.bundle_name.as_str()) {
            secrets.push(Secret::Bundles { name: settings.bundle_name.clone(), bundles: vec![Arc::clone(own)] });
        } else if left.remove(settings.all_bundles_name.as_str()) {
            if validator == Validator::Plain {
                return Err(Unanswered::Inseparable);
            }
            let bundles = held.bundles.values().map(Arc::clone).collect();
            secrets.push(Secret::Bundles { name: settings.all_bundles_name.clone(), bundles });
        }
    }
    for (id, bundle) in held.bundles.iter().filter(|(id, _)| *id != held.own) {
        if is_all || left.remove(id.as_str()) {
            secrets.push(Secret::Bundles { name: id.clone(), bundles: vec![Arc::clone(bundle)] });
        }
    }
    let mut awaited = Vec::new();
    let mut found = 0_usize;
    for (index, identity) in held.identities.iter().enumerate() {
        let id = identity.entry.spiffe_id.as_str();
        let name = if is_all || left.remove(id) {
            id
        } else if index == 0 && left.remove(settings.svid_name.as_str()) {
            &settings.svid_name
        } else {
            continue;
        };
        match &identity.svid {
            Some(svid) => {
                found += 1;
                secrets.push(Secret::Svid { name: name.to_owned(), svid: Arc::clone(svid) });
            }
            None => awaited.push(identity.clone()),
        }
    }
    if !left.is_empty() {
        return Err(Unanswered::Unknown(left.into_iter().map(ToOwned::to_owned).collect()));
    }
    // Whoever names nothing gets what can be had now, as from the Workload API.
    let may_do_without = is_all && found > 0 && awaited.iter().all(|identity| identity.failure.is_some());
    if awaited.is_empty() || may_do_without { Ok(secrets) } else { Err(Unanswered::Awaits(awaited)) }
}

/// What a secret was when it was sent.
pub(super) enum Sent {
    /// Weak, so that a key is not kept for this, and that no other SVID takes its address meanwhile.
    Svid(String, Weak<Svid>),
    Bundles(String, Vec<Arc<Bundle>>),
}

impl Secret {
    pub(super) fn has_key(&self) -> bool {
        matches!(self, Self::Svid { .. })
    }

    /// To tell later whether there is anything new to it.
    pub(super) fn sent(&self) -> Sent {
        match self {
            Self::Svid { name, svid } => Sent::Svid(name.clone(), Arc::downgrade(svid)),
            Self::Bundles { name, bundles } => Sent::Bundles(name.clone(), bundles.clone()),
        }
    }

    pub(super) fn is_same(&self, sent: &Sent) -> bool {
        let same_bundle = |(a, b): (&Arc<Bundle>, &Arc<Bundle>)| {
            Arc::ptr_eq(a, b) || a.trust_domain() == b.trust_domain() && a.x509_der() == b.x509_der()
        };
        match (self, sent) {
            (Self::Svid { name, svid }, Sent::Svid(sent_name, sent)) => name == sent_name && Weak::ptr_eq(&Arc::downgrade(svid), sent),
            (Self::Bundles { name, bundles }, Sent::Bundles(sent_name, sent)) => {
                name == sent_name && bundles.len() == sent.len() && bundles.iter().zip(sent).all(same_bundle)
            }
            (Self::Svid { .. }, Sent::Bundles(..)) | (Self::Bundles { .. }, Sent::Svid(..)) => false,
        }
    }

    /// The message, wrapped as Envoy wants it.
    pub(super) fn to_wire(&self, validator: Validator) -> Result<Any, Status> {
        let (name, content) = match self {
            Self::Svid { name, svid } => (name, Type::TlsCertificate(certificate(svid)?)),
            Self::Bundles { name, bundles } => (name, Type::ValidationContext(validation_context(bundles, validator))),
        };
        let mut secret = wire::Secret { name: name.clone(), r#type: Some(content) };
        let value = secret.encode_to_vec();
        if let Some(Type::TlsCertificate(certificate)) = &mut secret.r#type
            && let Some(DataSource { specifier: Some(Specifier::InlineBytes(key)) }) = &mut certificate.private_key
        {
            key.zeroize();
        }
        Ok(Any { type_url: SECRET.to_owned(), value })
    }
}

fn inline(bytes: Vec<u8>) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes)) })
}

fn certificate(svid: &Svid) -> Result<wire::TlsCertificate, Status> {
    let chain = Certificate::parse_concatenated(&svid.chain).map_err(|e| Status::internal(format!("BUG: an SVID that is none: {e}")))?;
    let chain: String = chain.iter().map(|certificate| pem::write("CERTIFICATE", certificate.der())).collect();
    let mut key = Zeroizing::new(pem::write("PRIVATE KEY", &svid.key));
    // Moved, not copied: whoever has encoded the message wipes it.
    let private_key = inline(std::mem::take(&mut *key).into_bytes());
    Ok(wire::TlsCertificate { certificate_chain: inline(chain.into_bytes()), private_key })
}

fn validation_context(bundles: &[Arc<Bundle>], validator: Validator) -> wire::CertificateValidationContext {
    match validator {
        Validator::Plain => {
            let authorities: String = bundles.iter().map(|bundle| bundle.to_pem()).collect();
            wire::CertificateValidationContext { trusted_ca: inline(authorities.into_bytes()), custom_validator_config: None }
        }
        Validator::Spiffe => {
            let trust_domain = |bundle: &Arc<Bundle>| TrustDomain {
                name: bundle.trust_domain().name().to_owned(),
                trust_bundle: inline(bundle.to_pem().into_bytes()),
            };
            let config = wire::SpiffeCertValidatorConfig { trust_domains: bundles.iter().map(trust_domain).collect() };
            let typed_config = Some(Any { type_url: VALIDATOR_CONFIG.to_owned(), value: config.encode_to_vec() });
            let custom_validator_config = Some(TypedExtensionConfig { name: VALIDATOR.to_owned(), typed_config });
            wire::CertificateValidationContext { trusted_ca: None, custom_validator_config }
        }
    }
}
