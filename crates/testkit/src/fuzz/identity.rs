//! Names, keys, certificates, tokens and bundles: what the domain core reads.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use countersign_identity::csr::Csr;
use countersign_identity::id::{SPIFFE_ID_BYTES_MAX, TRUST_DOMAIN_BYTES_MAX};
use countersign_identity::jwt::LEEWAY;
use countersign_identity::key::PublicKey;
use countersign_identity::selector::SELECTOR_BYTES_MAX;
use countersign_identity::x509::{Certificate, verify_chain};
use countersign_identity::{Bundle, BundleSet, Selector, SpiffeId, TrustDomain, entry, jwk, jwt, pem};

use super::{NOW, Target, split};
use crate::domain::trust_domain;

pub(super) const TARGETS: &[Target] = &[
    Target { name: "spiffe_id", run: spiffe_id },
    Target { name: "trust_domain", run: trust_domain_name },
    Target { name: "selector", run: selector },
    Target { name: "entry_names", run: entry_names },
    Target { name: "pem", run: pem_blocks },
    Target { name: "bundle_pem", run: bundle_pem },
    Target { name: "bundle_jwks", run: bundle_jwks },
    Target { name: "jwk", run: json_web_key },
    Target { name: "public_key", run: public_key },
    Target { name: "certificate", run: certificate },
    Target { name: "certificate_chain", run: certificate_chain },
    Target { name: "csr", run: csr },
    Target { name: "jwt_svid", run: jwt_svid },
];

/// The audience of the tokens in the corpus.
pub(super) const AUDIENCE: &str = "db";

/// The bundle that vouches for what is in the corpora; `seeds` writes it together with them.
static TRUST: LazyLock<BundleSet> = LazyLock::new(|| {
    let document = std::fs::read(super::directory().join("trust.json")).expect("fuzz/trust.json can be read");
    let bundle = Bundle::from_jwks(trust_domain(), &document).expect("fuzz/trust.json is a bundle");
    BundleSet::from_iter([Arc::new(bundle)])
});

/// The grammar of section 2 of the SPIFFE-ID standard, written down without a look at the parser.
pub(super) fn assert_spiffe_id(text: &str) {
    let name_and_path = text.strip_prefix("spiffe://").expect("the scheme");
    let mut parts = name_and_path.split('/');
    assert_trust_domain(parts.next().expect("a first part"));
    for segment in parts {
        assert!(!segment.is_empty() && segment != "." && segment != "..", "segment of `{text}`");
        assert!(segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "path of `{text}`");
    }
    assert!(text.len() <= SPIFFE_ID_BYTES_MAX, "length of `{text}`");
}

fn assert_trust_domain(name: &str) {
    assert!(!name.is_empty() && name.len() <= TRUST_DOMAIN_BYTES_MAX, "length of trust domain `{name}`");
    assert!(
        name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)),
        "characters of trust domain `{name}`"
    );
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn spiffe_id(bytes: &[u8]) {
    let text = text(bytes);
    if let Ok(id) = SpiffeId::parse(text) {
        assert_spiffe_id(text);
        assert_eq!(id.to_string(), text);
        assert_eq!(id.trust_domain().id().to_string() + id.path(), text);
        assert!(id.is_member_of(&id.trust_domain()));
        let again = if id.path().is_empty() { Ok(id.trust_domain().id()) } else { id.trust_domain().with_path(id.path()) };
        assert_eq!(again, Ok(id));
    }
    if let Ok(id) = trust_domain().with_path(text) {
        assert_eq!(SpiffeId::parse(id.as_str()), Ok(id));
    }
}

fn trust_domain_name(bytes: &[u8]) {
    let text = text(bytes);
    if let Ok(name) = TrustDomain::parse(text) {
        assert_trust_domain(text);
        assert_eq!(name.to_string(), text);
        assert_eq!(TrustDomain::parse_name_or_id(text), Ok(name.clone()));
        assert_eq!(TrustDomain::parse_name_or_id(name.id().as_str()), Ok(name.clone()));
        for id in [name.id(), name.server_id()] {
            assert_eq!(SpiffeId::parse(id.as_str()), Ok(id));
        }
    }
    if let Ok(name) = TrustDomain::parse_name_or_id(text) {
        assert_trust_domain(name.name());
    }
}

fn selector(bytes: &[u8]) {
    let text = text(bytes);
    let Ok(selector) = Selector::parse(text) else { return };
    assert_eq!(selector.as_str(), text);
    assert!(!selector.kind().is_empty() && !selector.kind().contains(':') && !selector.value().is_empty());
    assert!(text.len() <= SELECTOR_BYTES_MAX);
    assert_eq!(Selector::new(selector.kind(), selector.value()), Ok(selector));
}

fn entry_names(bytes: &[u8]) {
    let text = text(bytes);
    if entry::check_id(text).is_ok() {
        assert!((1..=entry::ENTRY_ID_BYTES_MAX).contains(&text.len()));
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)), "entry ID `{text}`");
    }
    if entry::check_dns_name(text).is_ok() {
        let mut labels = text.split('.');
        assert!(text.len() <= 253 && text != "*", "DNS name `{text}`");
        let first = labels.next().expect("a first label");
        for label in labels.chain((first != "*").then_some(first)) {
            assert!((1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-'), "label `{label}`");
            assert!(label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)), "label `{label}`");
        }
    }
}

fn pem_blocks(bytes: &[u8]) {
    let Ok(blocks) = pem::read(text(bytes)) else { return };
    let written: String = blocks.iter().map(|(label, der)| pem::write(label, der)).collect();
    assert_eq!(pem::read(&written), Ok(blocks));
}

fn bundle_pem(bytes: &[u8]) {
    let Ok(bundle) = Bundle::from_pem(trust_domain(), text(bytes)) else { return };
    assert!(!bundle.x509_authorities().is_empty());
    let again = Bundle::from_pem(trust_domain(), &bundle.to_pem()).expect("what was written is read");
    assert!(bundle.same_content(&again));
    let together = Certificate::parse_concatenated(&bundle.x509_der()).expect("what was written is read");
    assert!(together.iter().eq(bundle.x509_authorities().iter().map(|a| &a.certificate)));
}

fn bundle_jwks(bytes: &[u8]) {
    let Ok(bundle) = Bundle::from_jwks(trust_domain(), bytes) else { return };
    assert_eq!(bundle.trust_domain(), &trust_domain());
    for authority in bundle.jwt_authorities() {
        assert!(!authority.key_id.is_empty() && !authority.tainted);
        assert_eq!(bundle.jwt_authority(&authority.key_id), Some(authority), "two authorities have one key ID");
    }
    let again = Bundle::from_jwks(trust_domain(), bundle.to_jwks().to_string().as_bytes()).expect("what was written is read");
    assert_eq!(again, bundle);
    let over_the_wire = countersign_wire::bundle::from_wire(&countersign_wire::bundle::to_wire(&bundle)).expect("a bundle's message");
    assert_eq!(over_the_wire.x509_authorities(), bundle.x509_authorities());
    assert_eq!(over_the_wire.jwt_authorities(), bundle.jwt_authorities());
}

fn json_web_key(bytes: &[u8]) {
    let Ok(serde_json::Value::Object(members)) = serde_json::from_slice(bytes) else { return };
    let Ok(key) = jwk::read(&members) else { return };
    assert_eq!(jwk::read(&jwk::write(&key)), Ok(key.clone()));
    assert_eq!(PublicKey::from_spki(key.spki()), Ok(key));
}

fn public_key(bytes: &[u8]) {
    let Ok(key) = PublicKey::from_spki(bytes) else { return };
    assert_eq!(key.spki(), bytes, "a key has one spelling");
    assert_eq!(PublicKey::from_bits(key.kind(), key.bits()), Ok(key.clone()));
    assert_eq!(key.key_id().len(), 20);
    assert_eq!(jwk::read(&jwk::write(&key)), Ok(key));
}

fn certificate(bytes: &[u8]) {
    let Ok(certificate) = Certificate::parse(bytes) else { return };
    assert_eq!(certificate.der(), bytes);
    assert_eq!(Certificate::parse_concatenated(&[bytes, bytes].concat()), Ok(vec![certificate.clone(), certificate.clone()]));
    assert!(Certificate::parse(&[bytes, &[0]].concat()).is_err(), "bytes after a certificate");
    assert!(certificate.serial_decimal().bytes().all(|b| b.is_ascii_digit()));
    if let Some(id) = certificate.spiffe_id() {
        assert_spiffe_id(id.as_str());
        assert_eq!(certificate.uris, [id.as_str()]);
    }
    assert!(!certificate.is_valid_at(certificate.not_after.after(Duration::from_secs(1))));
    // Any key may be asked about any certificate.
    let _ = certificate.check_signed_by(&certificate.public_key);
}

fn certificate_chain(bytes: &[u8]) {
    let chain = split(bytes);
    let Ok((id, leaf)) = verify_chain(&chain, &TRUST, NOW) else { return };
    assert_spiffe_id(id.as_str());
    assert!(id.is_member_of(&trust_domain()) && !id.path().is_empty(), "`{id}`");
    assert_eq!(leaf.spiffe_id(), Some(id));
    assert_eq!(Some(&leaf.der()), chain.first());
    assert!(!leaf.is_ca && leaf.key_usage.is_none_or(|u| !u.key_cert_sign && !u.crl_sign), "an authority is presented");
    assert!(leaf.is_valid_at(NOW));
    assert!(verify_chain(&chain, &BundleSet::default(), NOW).is_err(), "without a bundle nobody vouches");
    assert!(verify_chain(&chain, &TRUST, leaf.not_after.after(Duration::from_secs(1))).is_err(), "after its end");
    assert!(verify_chain(&chain, &TRUST, leaf.not_before.before(Duration::from_secs(1))).is_err(), "before its begin");
}

fn csr(bytes: &[u8]) {
    let Ok(csr) = Csr::parse(bytes) else { return };
    assert_eq!(PublicKey::from_spki(csr.public_key.spki()).as_ref(), Ok(&csr.public_key));
    if let Some(id) = &csr.spiffe_id {
        assert_spiffe_id(id.as_str());
    }
    assert!(Csr::parse(&[bytes, &[0]].concat()).is_err(), "bytes after a request");
    // The key stands in what was signed.
    assert!(bytes.windows(csr.public_key.spki().len()).any(|part| part == csr.public_key.spki()));
}

fn jwt_svid(bytes: &[u8]) {
    let token = text(bytes);
    let _ = jwt::peek(token);
    let Ok(verified) = jwt::verify(token, AUDIENCE, &TRUST, NOW) else { return };
    assert_spiffe_id(verified.spiffe_id.as_str());
    assert!(verified.spiffe_id.is_member_of(&trust_domain()) && !verified.spiffe_id.path().is_empty());
    assert!(verified.audience.iter().any(|a| a == AUDIENCE));
    assert!(verified.expires_at.after(LEEWAY) >= NOW);
    assert_eq!(token.split('.').count(), 3);
    assert!(jwt::verify(token, "somebody else's audience", &TRUST, NOW).is_err());
    assert!(jwt::verify(token, AUDIENCE, &BundleSet::default(), NOW).is_err(), "without a bundle nobody vouches");
    assert!(jwt::verify(token, AUDIENCE, &TRUST, verified.expires_at.after(LEEWAY + Duration::from_secs(1))).is_err(), "after its end");
}
