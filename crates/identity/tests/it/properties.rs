//! For every parser: what it prints it reads, and no input makes it panic.

use std::sync::LazyLock;

use countersign_identity::csr::Csr;
use countersign_identity::id::{SPIFFE_ID_BYTES_MAX, TRUST_DOMAIN_BYTES_MAX};
use countersign_identity::key::PublicKey;
use countersign_identity::x509::{Certificate, verify_chain};
use countersign_identity::{Bundle, BundleSet, Selector, SpiffeId, TrustDomain, jwk, jwt, pem};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::support::{Ca, LEAF_KEY, NOW, P256, P384, RSA, WEB, claims, header, jwt_keys, roots, set, td, token};

static ROOT: LazyLock<Ca> = LazyLock::new(|| {
    Ca::root_with("root", |p| p.custom_extensions = vec![crate::support::name_constraints(&[(0x86, b"example.org")], &[(0x82, b"x")])])
});
static LEAF: LazyLock<Vec<u8>> =
    LazyLock::new(|| ROOT.leaf_with(WEB, |p| p.subject_alt_names.push(rcgen::SanType::DnsName("a.b".try_into().unwrap()))));
static REQUEST: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![crate::support::uri(WEB)];
    params.serialize_request(&*LEAF_KEY).unwrap().der().to_vec()
});
static TRUST: LazyLock<BundleSet> = LazyLock::new(|| {
    let mut bundle = roots("example.org", &[&ROOT.der]);
    bundle.add_jwt_authority(crate::support::jwt_authority("k", &P256)).unwrap();
    set([bundle])
});
static TOKEN: LazyLock<String> = LazyLock::new(|| token(&header(), &claims(), &P256));
static DOCUMENT: LazyLock<String> = LazyLock::new(|| TRUST.get("example.org").map(|b| b.to_jwks().to_string()).unwrap());

/// A few changes to a document: replaced, removed and repeated bytes, and cuts.
fn mutate(document: &[u8], changes: &[(Index, u8, u8)]) -> Vec<u8> {
    let mut bytes = document.to_vec();
    for (index, how, value) in changes {
        if bytes.is_empty() {
            break;
        }
        let at = index.index(bytes.len());
        match how % 5 {
            0 => bytes[at] = *value,
            1 => bytes[at] ^= 1 << (value % 8),
            2 => drop(bytes.remove(at)),
            3 => bytes.insert(at, *value),
            _ => bytes.truncate(at.max(bytes.len() / 2)),
        }
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(Index, u8, u8)>> {
    vec((any::<Index>(), any::<u8>(), any::<u8>()), 1..4)
}

/// The part of a certificate or request that is signed: its first element.
fn signed(document: &[u8]) -> Vec<u8> {
    use x509_parser::der_parser::asn1_rs::{Any, FromDer as _};
    let (_, whole) = Any::from_der(document).unwrap();
    let (rest, _) = Any::from_der(whole.data).unwrap();
    whole.data[..whole.data.len() - rest.len()].to_vec()
}

/// Whether a change left the signed part alone: what is around it may be spelled in more than one way.
fn still_has(changed: &[u8], signed: &[u8]) -> bool {
    changed.windows(signed.len()).any(|w| w == signed)
}

fn trust_domain_name() -> impl Strategy<Value = String> {
    "[a-z0-9._-]{1,40}"
}

fn path() -> impl Strategy<Value = String> {
    vec("[A-Za-z0-9_-][A-Za-z0-9._-]{0,12}", 0..6).prop_map(|segments| segments.iter().map(|s| format!("/{s}")).collect())
}

/// The grammar written down a second time, without looking at the parser.
fn is_spiffe_id(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("spiffe://") else { return false };
    let mut parts = rest.split('/');
    let name = parts.next().unwrap_or_default();
    let of = |s: &str, upper: bool| {
        !s.is_empty()
            && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b) || (upper && b.is_ascii_uppercase()))
    };
    text.len() <= SPIFFE_ID_BYTES_MAX
        && name.len() <= TRUST_DOMAIN_BYTES_MAX
        && of(name, false)
        && parts.all(|s| of(s, true) && s != "." && s != "..")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_spiffe_id_prints_as_it_was_read(name in trust_domain_name(), path in path()) {
        let text = format!("spiffe://{name}{path}");
        let id = SpiffeId::parse(&text).unwrap();
        prop_assert_eq!(id.as_str(), &text);
        prop_assert_eq!(id.trust_domain_name(), &name);
        prop_assert_eq!(id.path(), &path);
        let domain = TrustDomain::parse(&name).unwrap();
        prop_assert_eq!(domain.to_string(), name);
        prop_assert!(id.is_member_of(&domain));
        if path.is_empty() {
            prop_assert_eq!(domain.id(), id);
        } else {
            prop_assert_eq!(domain.with_path(&path).unwrap(), id);
        }
    }

    #[test]
    fn the_parser_agrees_with_the_grammar(text in "(spiffe://)?[a-zA-Z0-9./_@:?#%é-]{0,12}(/[a-zA-Z./?]{0,4}){0,3}") {
        prop_assert_eq!(SpiffeId::parse(&text).is_ok(), is_spiffe_id(&text), "{}", text);
    }

    #[test]
    fn any_text_is_read_as_an_id_or_refused(text in any::<String>()) {
        prop_assert_eq!(SpiffeId::parse(&text).is_ok(), is_spiffe_id(&text));
        let _ = SpiffeId::parse(&format!("spiffe://{text}"));
        let _ = SpiffeId::parse(&format!("spiffe://a/{text}"));
        let _ = TrustDomain::parse(&text);
        let _ = TrustDomain::parse_name_or_id(&text);
        let _ = td("a").with_path(&text);
        let _ = countersign_identity::entry::check_dns_name(&text);
        let _ = countersign_identity::entry::check_id(&text);
    }

    #[test]
    fn a_selector_prints_as_it_was_read(kind in "[^:]{1,12}", value in ".{1,24}") {
        let text = format!("{kind}:{value}");
        let selector = Selector::parse(&text).unwrap();
        prop_assert_eq!((selector.kind(), selector.value()), (kind.as_str(), value.as_str()));
        prop_assert_eq!(selector.to_string(), text);
    }

    #[test]
    fn any_text_is_read_as_a_selector_or_refused(text in any::<String>()) {
        if let Ok(selector) = Selector::parse(&text) {
            prop_assert_eq!(selector.as_str(), text);
        }
    }

    #[test]
    fn pem_prints_as_it_was_read(blocks in vec(("[A-Z0-9]([A-Z0-9 ]{0,10}[A-Z0-9])?", vec(any::<u8>(), 0..200)), 0..4)) {
        let text: String = blocks.iter().map(|(label, der)| pem::write(label, der)).collect();
        prop_assert_eq!(pem::read(&text).unwrap(), blocks);
    }

    #[test]
    fn any_text_is_read_as_pem_or_refused(text in "(-----(BEGIN|END) [A-Z]?-{0,6}|[ -~\n\r]|é){0,40}") {
        let _ = pem::read(&text);
        let _ = Bundle::from_pem(td("example.org"), &text);
    }

    #[test]
    fn any_bytes_are_read_or_refused_by_every_parser(bytes in vec(any::<u8>(), 0..300)) {
        let _ = Certificate::parse(&bytes);
        let _ = Certificate::parse_concatenated(&bytes);
        let _ = Csr::parse(&bytes);
        let _ = PublicKey::from_spki(&bytes);
        let _ = Bundle::from_jwks(td("example.org"), &bytes);
        let _ = jwt::verify(&String::from_utf8_lossy(&bytes), "db", &TRUST, NOW);
        let _ = jwt::peek(&String::from_utf8_lossy(&bytes));
        let _ = verify_chain(&[&bytes], &TRUST, NOW);
    }

    #[test]
    fn a_changed_certificate_is_refused_or_unchanged(changes in changes()) {
        let bytes = mutate(&LEAF, &changes);
        if let Ok(certificate) = Certificate::parse(&bytes) {
            prop_assert_eq!(certificate.der(), &bytes);
        }
        prop_assert!(verify_chain(&[&bytes], &TRUST, NOW).is_err() || still_has(&bytes, &signed(&LEAF)));
        let _ = Certificate::parse(&mutate(&ROOT.der, &changes)).map(|c| (c.authority_id(), c.serial_decimal(), c.spiffe_id()));
    }

    #[test]
    fn a_changed_request_is_refused_or_unchanged(changes in changes()) {
        let bytes = mutate(&REQUEST, &changes);
        prop_assert!(Csr::parse(&bytes).is_err() || still_has(&bytes, &signed(&REQUEST)));
    }

    #[test]
    fn a_changed_public_key_is_refused_or_reads_back(changes in changes(), which in 0..3_usize) {
        let key = [&P256, &P384, &RSA][which].public();
        if let Ok(read) = PublicKey::from_spki(&mutate(key.spki(), &changes)) {
            prop_assert_eq!(PublicKey::from_spki(read.spki()).unwrap(), read.clone());
            let _ = jwk::read(&jwk::write(&read));
            let _ = read.key_id();
        }
    }

    #[test]
    fn a_changed_token_is_refused_or_unchanged(changes in changes()) {
        let bytes = mutate(TOKEN.as_bytes(), &changes);
        let text = String::from_utf8_lossy(&bytes);
        prop_assert_eq!(jwt::verify(&text, "db", &TRUST, NOW).is_ok(), text == TOKEN.as_str());
        let _ = jwt::peek(&text);
    }

    #[test]
    fn a_changed_bundle_is_refused_or_reads_back(changes in changes()) {
        if let Ok(bundle) = Bundle::from_jwks(td("example.org"), &mutate(DOCUMENT.as_bytes(), &changes)) {
            let again = Bundle::from_jwks(td("example.org"), bundle.to_jwks().to_string().as_bytes()).unwrap();
            prop_assert!(bundle.same_content(&again) && bundle.sequence_number == again.sequence_number);
        }
    }

    #[test]
    fn claims_of_any_shape_are_read_or_refused(
        name in "(sub|aud|exp|nbf|iat)",
        value in prop_oneof![any::<f64>().prop_map(|f| serde_json::json!(f)), any::<i64>().prop_map(|i| serde_json::json!(i)),
            any::<u64>().prop_map(|u| serde_json::json!(u)), any::<String>().prop_map(|s| serde_json::json!(s)), vec(any::<Option<String>>(), 0..3).prop_map(|v| serde_json::json!(v))],
    ) {
        let mut claims = claims();
        claims[name] = value;
        let _ = jwt::verify(&token(&header(), &claims, &P256), "db", &TRUST, NOW);
    }

    #[test]
    fn a_bundle_of_any_numbers_survives(sequence in any::<u64>(), hint in proptest::option::of(any::<u64>()), key_ids in proptest::collection::btree_set(".{1,20}", 0..4)) {
        let mut bundle = roots("example.org", &[&ROOT.der]);
        for key_id in &key_ids {
            bundle.add_jwt_authority(crate::support::jwt_authority(key_id, &P256)).unwrap();
        }
        bundle.sequence_number = sequence;
        bundle.refresh_hint = hint.map(std::time::Duration::from_secs);
        prop_assert_eq!(Bundle::from_jwks(td("example.org"), bundle.to_jwks().to_string().as_bytes()).unwrap(), bundle);
    }

    #[test]
    fn renewal_lies_between_beginning_and_end(begin in any::<i64>(), end in any::<i64>(), spread in any::<f64>()) {
        use countersign_identity::{Timestamp, rotation};
        let (begin, end) = (Timestamp::from_millis(begin.min(end)), Timestamp::from_millis(begin.max(end)));
        for at in [rotation::renew_at(begin, end, spread), rotation::prepare_at(begin, end), rotation::activate_at(begin, end)] {
            prop_assert!(begin <= at && at <= end);
        }
    }
}

#[test]
fn a_set_without_the_key_refuses_what_another_accepts() {
    assert!(jwt::verify(&TOKEN, "db", &TRUST, NOW).is_ok());
    assert!(jwt::verify(&TOKEN, "db", &set([jwt_keys("example.org", &[("k", &P384)])]), NOW).is_err());
}
