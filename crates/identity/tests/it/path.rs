//! Chains beyond the standard's list: intermediates, constraints, loops, algorithms, and what a stranger may make us compute.

use std::time::Instant;

use countersign_identity::key::{KeyError, PublicKeyKind};
use countersign_identity::pem;
use countersign_identity::x509::{CHAIN_CERTIFICATES_MAX, Certificate, CertificateError, ChainError, verify_chain, verify_chain_any};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, KeyIdMethod, KeyPair, NameConstraints, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ECDSA_P521_SHA256, PKCS_ECDSA_P521_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, PKCS_RSA_SHA384,
    PKCS_RSA_SHA512, RsaKeySize, SanType,
};

use crate::support::{Ca, LEAF_KEY, NOW, WEB, at, ca_params, extension, id, leaf_params, name_constraints, roots, set, tlv, uri, verify};

const URI: u8 = 0x86;
const DNS: u8 = 0x82;
const EMAIL: u8 = 0x81;
const DIRECTORY: u8 = 0xa4;

fn unknown() -> ChainError {
    ChainError::UnknownAuthority("example.org".to_owned())
}

/// Verifies a leaf with these names under a root with these constraints.
fn constrained(permitted: &[(u8, &[u8])], excluded: &[(u8, &[u8])], adjust: impl FnOnce(&mut CertificateParams)) -> Result<(), ChainError> {
    let root = Ca::root_with("root", |p| p.custom_extensions = vec![name_constraints(permitted, excluded)]);
    verify(&root.der, &[&root.leaf_with(WEB, adjust)]).map(|_| ())
}

#[test]
fn intermediates_are_found_in_any_order_and_strangers_among_them_are_passed_over() {
    let root = Ca::root("root");
    let one = root.sub("one");
    let two = one.sub("two");
    let leaf = two.leaf(WEB);
    let stranger = Ca::root("stranger");
    for chain in [
        vec![&leaf, &two.der, &one.der],
        vec![&leaf, &one.der, &two.der],
        vec![&leaf, &stranger.der, &one.der, &stranger.der, &two.der, &root.der],
    ] {
        let (found, _, anchor) = verify_chain_any(&chain, &set([roots("example.org", &[&root.der])]), NOW).unwrap();
        assert_eq!(found, id(WEB));
        assert_eq!(anchor.der(), root.der);
    }
    assert_eq!(verify(&root.der, &[&leaf, &one.der]), Err(unknown()), "a link is missing");
    assert_eq!(verify(&root.der, &[&two.der, &leaf]), Err(ChainError::Uris(0)), "the leaf comes first");
}

#[test]
fn a_path_length_counts_the_intermediates_below_it() {
    let root = Ca::root_with("root", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)));
    let one = root.sub("one");
    let two = one.sub("two");
    assert_eq!(verify(&root.der, &[&one.leaf(WEB), &one.der]), Ok(id(WEB)));
    assert_eq!(verify(&root.der, &[&two.leaf(WEB), &two.der, &one.der]), Err(unknown()));
    let free = Ca::root("free");
    let narrow = free.sub_with("narrow", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let below = narrow.sub("below");
    assert_eq!(verify(&free.der, &[&narrow.leaf(WEB), &narrow.der]), Ok(id(WEB)));
    assert_eq!(verify(&free.der, &[&below.leaf(WEB), &below.der, &narrow.der]), Err(unknown()));
}

#[test]
fn an_intermediate_or_root_outside_its_validity_is_refused() {
    let times = |p: &mut CertificateParams, from: i64, to: i64| {
        p.not_before = at(NOW.secs() + from);
        p.not_after = at(NOW.secs() + to);
    };
    for (from, to) in [(-60, -1), (1, 60)] {
        let root = Ca::root("root");
        let sub = root.sub_with("sub", |p| times(p, from, to));
        assert!(matches!(verify(&root.der, &[&sub.leaf(WEB), &sub.der]), Err(ChainError::Validity { .. })));
        let root = Ca::root_with("root", |p| times(p, from, to));
        assert!(matches!(verify(&root.der, &[&root.leaf(WEB)]), Err(ChainError::Validity { .. })));
    }
}

#[test]
fn an_expired_root_does_not_hide_its_renewed_twin() {
    let old = Ca::root_with("root", |p| p.not_after = at(NOW.secs() - 1));
    let key = KeyPair::try_from(old.issuer.key().serialized_der()).unwrap();
    let new = Ca::root_of(key, "root", |_| ());
    let leaf = new.leaf(WEB);
    assert!(verify_chain(&[&leaf], &set([roots("example.org", &[&old.der, &new.der])]), NOW).is_ok());
    assert!(verify_chain(&[&leaf], &set([roots("example.org", &[&old.der])]), NOW).is_err());
}

#[test]
fn an_unknown_critical_extension_of_a_signer_is_refused() {
    let strange = || vec![extension(&[1, 3, 6, 1, 4, 1, 65980, 99], true, vec![5, 0])];
    let root = Ca::root("root");
    let sub = root.sub_with("sub", |p| p.custom_extensions = strange());
    assert!(matches!(verify(&root.der, &[&sub.leaf(WEB), &sub.der]), Err(ChainError::CriticalExtension(_))));
    let root = Ca::root_with("root", |p| p.custom_extensions = strange());
    assert!(matches!(verify(&root.der, &[&root.leaf(WEB)]), Err(ChainError::CriticalExtension(_))));
}

#[test]
fn a_signer_with_another_key_identifier_than_the_leaf_asks_for_is_passed_over() {
    let root = Ca::root_with("root", |p| p.key_identifier_method = KeyIdMethod::PreSpecified(vec![1; 20]));
    assert_eq!(verify(&root.der, &[&root.leaf(WEB)]), Ok(id(WEB)));
    let key = KeyPair::try_from(root.issuer.key().serialized_der()).unwrap();
    let twin = Ca::root_of(key, "root", |p| p.key_identifier_method = KeyIdMethod::PreSpecified(vec![2; 20]));
    assert_eq!(verify(&root.der, &[&twin.leaf(WEB)]), Err(unknown()));
    let silent = twin.leaf_with(WEB, |p| p.use_authority_key_identifier_extension = false);
    assert_eq!(verify(&root.der, &[&silent]), Ok(id(WEB)), "a leaf that asks for none");
}

#[test]
fn permitted_uris_name_one_host_or_everything_below_a_dot() {
    for (base, fits) in [
        ("example.org", true),
        (".org", true),
        (".example.org", false),
        ("org", false),
        ("ample.org", false),
        (".ample.org", false),
        ("other.org", false),
        ("EXAMPLE.org", true),
    ] {
        let result = constrained(&[(URI, base.as_bytes())], &[], |_| ());
        assert_eq!(result, if fits { Ok(()) } else { Err(ChainError::NameConstraint) }, "`{base}`");
    }
    assert_eq!(constrained(&[(URI, b"other.org"), (URI, b"example.org")], &[], |_| ()), Ok(()), "one of several");
}

#[test]
fn excluded_uris_are_refused_in_any_spelling_even_where_permitted() {
    for (base, hit) in [("example.org", true), (".org", true), ("EXAMPLE.ORG", true), (".ORG", true), ("other.org", false), ("", true)] {
        let result = constrained(&[], &[(URI, base.as_bytes())], |_| ());
        assert_eq!(result, if hit { Err(ChainError::NameConstraint) } else { Ok(()) }, "`{base}`");
    }
    assert_eq!(constrained(&[(URI, b"example.org")], &[(URI, b"example.org")], |_| ()), Err(ChainError::NameConstraint));
}

#[test]
fn constraints_of_an_intermediate_count_and_so_do_names_of_intermediates() {
    let root = Ca::root("root");
    let narrow = root.sub_with("sub", |p| p.custom_extensions = vec![name_constraints(&[(URI, b"other.org")], &[])]);
    assert_eq!(verify(&root.der, &[&narrow.leaf(WEB), &narrow.der]), Err(ChainError::NameConstraint));
    let root = Ca::root_with("root", |p| p.custom_extensions = vec![name_constraints(&[(URI, b"example.org")], &[])]);
    let inside = root.sub_with("sub", |p| p.subject_alt_names = vec![uri("spiffe://example.org")]);
    assert_eq!(verify(&root.der, &[&inside.leaf(WEB), &inside.der]), Ok(id(WEB)));
    let outside = root.sub_with("sub", |p| p.subject_alt_names = vec![uri("spiffe://other.org")]);
    assert_eq!(verify(&root.der, &[&outside.leaf(WEB), &outside.der]), Err(ChainError::NameConstraint));
}

#[test]
fn dns_constraints_hold_for_dns_names_and_leave_the_uri_alone() {
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    for (name, fits) in
        [("example.org", true), ("a.b.example.org", true), ("A.EXAMPLE.ORG", true), ("badexample.org", false), ("other.org", false)]
    {
        let result = constrained(&[(DNS, b"Example.org")], &[], |p| p.subject_alt_names.push(dns(name)));
        assert_eq!(result.is_ok(), fits, "permitted, `{name}`");
        let result = constrained(&[], &[(DNS, b"Example.org")], |p| p.subject_alt_names.push(dns(name)));
        assert_eq!(result.is_ok(), !fits, "excluded, `{name}`");
    }
    assert_eq!(constrained(&[(DNS, b"other.org")], &[], |_| ()), Ok(()));
    let by_rcgen = Ca::root_with("root", |p| {
        p.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.org".to_owned())],
            excluded_subtrees: Vec::new(),
        });
    });
    assert_eq!(verify(&by_rcgen.der, &[&by_rcgen.leaf(WEB)]), Ok(id(WEB)));
}

#[test]
fn constraints_we_cannot_decide_refuse_the_names_they_are_about() {
    let mail = || SanType::Rfc822Name("web@example.org".try_into().unwrap());
    assert_eq!(constrained(&[(EMAIL, b"example.org")], &[], |_| ()), Ok(()));
    assert_eq!(constrained(&[(EMAIL, b"example.org")], &[], |p| p.subject_alt_names.push(mail())), Err(ChainError::NameConstraint));
    // A directory name constraint is about the subject too.
    let organization = tlv(0x30, &tlv(0x31, &tlv(0x30, &[tlv(0x06, &[0x55, 0x04, 0x0a]), tlv(0x0c, b"Other")].concat())));
    assert_eq!(constrained(&[(DIRECTORY, &organization)], &[], |_| ()), Err(ChainError::NameConstraint));
    assert_eq!(constrained(&[(DIRECTORY, &organization)], &[], |p| p.distinguished_name = rcgen::DistinguishedName::new()), Ok(()));
}

#[test]
fn a_chain_has_at_most_sixteen_certificates_and_at_least_one() {
    let root = Ca::root("root");
    let leaf = root.leaf(WEB);
    assert_eq!(verify(&root.der, &vec![&leaf[..]; CHAIN_CERTIFICATES_MAX]), Ok(id(WEB)));
    assert_eq!(verify(&root.der, &vec![&leaf[..]; CHAIN_CERTIFICATES_MAX + 1]), Err(ChainError::TooLong(17)));
    assert_eq!(verify(&root.der, &[]), Err(ChainError::Empty));
}

#[test]
fn the_longest_chain_that_fits_verifies() {
    let root = Ca::root("root");
    let mut ders = Vec::new();
    let mut tip = root.sub("sub 1");
    for number in 2..CHAIN_CERTIFICATES_MAX {
        ders.push(tip.der.clone());
        tip = tip.sub(&format!("sub {number}"));
    }
    ders.push(tip.der.clone());
    let leaf = tip.leaf(WEB);
    let chain: Vec<&[u8]> = std::iter::once(&leaf[..]).chain(ders.iter().rev().map(Vec::as_slice)).collect();
    assert_eq!(chain.len(), CHAIN_CERTIFICATES_MAX);
    assert_eq!(verify(&root.der, &chain), Ok(id(WEB)));
}

#[test]
fn authorities_that_sign_each_other_do_not_keep_us_busy() {
    // Eight certificates of one name and key vouch for each other in every order: a hundred thousand paths, were all tried.
    let root = Ca::root("root");
    let looped = Ca::root("loop");
    let leaf = looped.leaf(WEB);
    let again = |serial: u8| {
        let key = KeyPair::try_from(looped.issuer.key().serialized_der()).unwrap();
        Ca::root_of(key, "loop", |p| p.serial_number = Some(vec![serial].into())).der
    };
    let circle: Vec<Vec<u8>> = (1..=8).map(again).collect();
    let chain: Vec<&[u8]> = std::iter::once(&leaf[..]).chain(circle.iter().map(Vec::as_slice)).collect();
    let started = Instant::now();
    assert_eq!(verify(&root.der, &chain), Err(unknown()));
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    // With a way out it is found.
    let out = looped.cross_signed_by("loop", &root);
    assert_eq!(verify(&root.der, &[&leaf, &circle[0], &circle[1], &out]), Ok(id(WEB)));
}

#[test]
fn two_authorities_that_certify_each_other_end_in_a_refusal() {
    let (a, b) = (Ca::root("a"), Ca::root("b"));
    let (a_by_b, b_by_a) = (a.cross_signed_by("a", &b), b.cross_signed_by("b", &a));
    let elsewhere = Ca::root("elsewhere");
    assert_eq!(verify(&elsewhere.der, &[&a.leaf(WEB), &a_by_b, &b_by_a]), Err(unknown()));
    assert_eq!(verify(&b.der, &[&a.leaf(WEB), &a_by_b, &b_by_a]), Ok(id(WEB)));
}

#[test]
fn every_signature_algorithm_of_a_signer_verifies() {
    let rsa = |algorithm| KeyPair::generate_rsa_for(algorithm, RsaKeySize::_2048).unwrap();
    let plain = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    for (key, kind) in [
        (plain(&PKCS_ECDSA_P256_SHA256), PublicKeyKind::EcP256),
        (plain(&PKCS_ECDSA_P384_SHA384), PublicKeyKind::EcP384),
        (plain(&PKCS_ECDSA_P521_SHA256), PublicKeyKind::EcP521),
        (plain(&PKCS_ECDSA_P521_SHA384), PublicKeyKind::EcP521),
        (plain(&PKCS_ECDSA_P521_SHA512), PublicKeyKind::EcP521),
        (plain(&PKCS_ED25519), PublicKeyKind::Ed25519),
        (rsa(&PKCS_RSA_SHA256), PublicKeyKind::Rsa),
        (rsa(&PKCS_RSA_SHA384), PublicKeyKind::Rsa),
        (rsa(&PKCS_RSA_SHA512), PublicKeyKind::Rsa),
    ] {
        let root = Ca::root_of(key, "root", |_| ());
        assert_eq!(root.certificate().public_key.kind(), kind);
        let leaf = root.leaf(WEB);
        assert_eq!(verify(&root.der, &[&leaf]), Ok(id(WEB)), "{kind:?}");
        let mut changed = leaf;
        *changed.last_mut().unwrap() ^= 1;
        assert_eq!(verify(&root.der, &[&changed]), Err(unknown()), "{kind:?}");
    }
}

fn fixture(text: &str) -> Vec<u8> {
    pem::read(text).unwrap().remove(0).1
}

#[test]
fn rsa_pss_is_verified_when_the_salt_is_as_long_as_the_hash() {
    for (text, good) in [
        (include_str!("fixtures/pss-sha256-salt32.crt.pem"), true),
        (include_str!("fixtures/pss-sha384-salt48.crt.pem"), true),
        (include_str!("fixtures/pss-sha512-salt64.crt.pem"), true),
        (include_str!("fixtures/pss-sha256-salt20.crt.pem"), false),
    ] {
        let certificate = Certificate::parse(&fixture(text)).unwrap();
        assert_eq!(certificate.check_signed_by(&certificate.public_key).is_ok(), good);
    }
}

#[test]
fn a_curve_may_be_used_with_the_hash_of_another() {
    for text in [include_str!("fixtures/ecdsa-p256-sha384.crt.pem"), include_str!("fixtures/ecdsa-p384-sha256.crt.pem")] {
        let certificate = Certificate::parse(&fixture(text)).unwrap();
        assert_eq!(certificate.check_signed_by(&certificate.public_key), Ok(()));
    }
}

#[test]
fn a_certificate_with_a_small_or_foreign_key_is_refused() {
    let small = fixture(include_str!("fixtures/rsa-1024.crt.pem"));
    assert_eq!(Certificate::parse(&small), Err(CertificateError::Key(KeyError::RsaBits(1024))));
    let foreign = KeyPair::generate_for(&rcgen::PKCS_ML_DSA_44).unwrap();
    let der = ca_params("root").self_signed(&foreign).unwrap().der().to_vec();
    assert_eq!(Certificate::parse(&der), Err(CertificateError::Key(KeyError::Unsupported)));
}

#[test]
fn an_extension_that_comes_twice_is_refused() {
    let root = Ca::root("root");
    let second = tlv(0x30, &tlv(URI, b"spiffe://example.org/db"));
    let twice = root.leaf_with(WEB, |p| p.custom_extensions = vec![extension(&[2, 5, 29, 17], false, second)]);
    assert!(matches!(verify(&root.der, &[&twice]), Err(ChainError::Certificate { index: 0, source: CertificateError::Malformed })));
}

#[test]
fn a_name_with_a_zero_byte_names_nobody() {
    let root = Ca::root("root");
    let san = tlv(0x30, &tlv(URI, b"spiffe://example.org/web\0.evil"));
    let leaf = root.leaf_with(WEB, |p| {
        p.subject_alt_names.clear();
        p.custom_extensions = vec![extension(&[2, 5, 29, 17], false, san)];
    });
    assert!(verify(&root.der, &[&leaf]).is_err());
}

#[test]
fn bytes_after_a_certificate_are_refused_unless_they_are_certificates() {
    let root = Ca::root("root");
    let mut der = root.der.clone();
    der.extend_from_slice(&root.leaf(WEB));
    assert_eq!(Certificate::parse_concatenated(&der).unwrap().len(), 2);
    assert!(matches!(Certificate::parse(&der), Err(CertificateError::Trailing(_))));
    der.push(0);
    assert!(Certificate::parse_concatenated(&der).is_err());
    assert_eq!(Certificate::parse_concatenated(&[]), Ok(Vec::new()));
}

#[test]
fn a_certificate_over_the_size_limit_is_refused() {
    let big = Ca::root_with("root", |p| {
        p.custom_extensions = vec![extension(&[1, 2, 3], false, {
            let mut octets = vec![0x04, 0x83, 0x01, 0x00, 0x01];
            octets.extend(vec![0; 0x1_0001]);
            octets
        })]
    });
    assert!(matches!(Certificate::parse(&big.der), Err(CertificateError::TooLong(_))));
}

#[test]
fn a_leaf_of_another_key_with_the_same_issuer_name_is_refused() {
    let (root, impostor) = (Ca::root("root"), Ca::root("root"));
    let leaf = leaf_params(WEB).signed_by(&*LEAF_KEY, &impostor.issuer).unwrap();
    assert_eq!(verify(&root.der, &[leaf.der()]), Err(unknown()));
    let sneaky = impostor.leaf_with(WEB, |p| p.use_authority_key_identifier_extension = false);
    assert_eq!(verify(&root.der, &[&sneaky, &impostor.der]), Err(unknown()));
}
