//! X509-SVIDs (X509-SVID sections 2 to 6), requirement by requirement.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::issue::Linted;
use countersign_identity::x509::{Certificate, ChainError, Profile, Subject, Tbs, verify_chain};
use countersign_identity::{Bundle, Timestamp};
use rcgen::{BasicConstraints, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use serde_json::{Value, json};

use crate::support::{Ca, Leave, NOW, OWN, P256, WEB, at, extension, id, name_constraints, raw_extension, roots, set, td, uri, verify};

const KEY_USAGE: &str = "2.5.29.15";
const BASIC_CONSTRAINTS: &str = "2.5.29.19";
const EXTENDED_KEY_USAGE: &str = "2.5.29.37";

fn unknown() -> ChainError {
    ChainError::UnknownAuthority("example.org".to_owned())
}

/// Asks our issuer for a leaf and only says whether the lints let it pass.
fn lint_leaf(leave: Leave) -> Result<(), &'static str> {
    Linted::x509(leave, &OWN.x509_issuer(), &P256.public(), [9; 16], NOW).map(|_| ()).map_err(|e| e.lint)
}

fn lint_authority(leave: Leave) -> Result<(), &'static str> {
    Linted::authority(leave, &Subject::default(), &P256.public(), OWN.algorithm, [9; 16], NOW).map(|_| ()).map_err(|e| e.lint)
}

/// Verifies one leaf of a fresh root that differs from a proper one in this way.
fn verify_leaf(adjust: impl FnOnce(&mut rcgen::CertificateParams)) -> Result<(), ChainError> {
    let root = Ca::root("root");
    verify(&root.der, &[&root.leaf_with(WEB, adjust)]).map(|_| ())
}

/// Verifies a proper leaf of a root that differs from a proper one in this way.
fn verify_root(adjust: impl FnOnce(&mut rcgen::CertificateParams)) -> Result<(), ChainError> {
    let root = Ca::root_with("root", adjust);
    verify(&root.der, &[&root.leaf(WEB)]).map(|_| ())
}

#[test]
fn xsvid_01_an_issued_leaf_has_exactly_one_uri() {
    let der = OWN.x509(Leave { dns_names: vec!["web.example.org".to_owned()], ..Leave::x509(WEB) });
    let certificate = Certificate::parse(&der).unwrap();
    assert_eq!(certificate.uris, [WEB]);
    assert_eq!(certificate.dns_names, ["web.example.org"]);
    assert_eq!(certificate.spiffe_id(), Some(id(WEB)));
}

#[test]
fn xsvid_02_two_uris_are_refused_whatever_the_second_is() {
    assert_eq!(verify_leaf(|_| ()), Ok(()));
    for second in ["spiffe://example.org/db", WEB, "https://example.org/a", "urn:x"] {
        assert_eq!(verify_leaf(|p| p.subject_alt_names.push(uri(second))), Err(ChainError::Uris(2)), "`{second}`");
    }
}

#[test]
fn xsvid_03_other_kinds_of_name_may_stand_beside_the_uri() {
    let others = [
        SanType::DnsName("web.example.org".try_into().unwrap()),
        SanType::IpAddress("192.0.2.1".parse().unwrap()),
        SanType::Rfc822Name("web@example.org".try_into().unwrap()),
    ];
    assert_eq!(verify_leaf(|p| p.subject_alt_names.extend(others.clone())), Ok(()));
    assert_eq!(verify_leaf(|p| p.subject_alt_names = others.to_vec()), Err(ChainError::Uris(0)));
}

#[test]
fn xsvid_04_a_leaf_for_the_trust_domain_itself_is_not_issued() {
    assert_eq!(lint_leaf(Leave::x509(WEB)), Ok(()));
    assert_eq!(lint_leaf(Leave::x509("spiffe://example.org")), Err("names"));
}

#[test]
fn xsvid_05_names_are_critical_exactly_when_the_subject_is_empty() {
    let key = P256.public();
    let spiffe_id = id(WEB);
    let certificate = |subject: &[u8]| {
        let tbs = Tbs {
            serial: [1; 16],
            algorithm: OWN.algorithm,
            issuer: &OWN.x509_issuer().subject,
            issuer_key_id: None,
            subject,
            not_before: NOW,
            not_after: NOW,
            public_key: &key,
            spiffe_id: &spiffe_id,
            dns_names: &[],
            profile: Profile::Leaf,
        };
        Certificate::parse(&countersign_identity::x509::assemble(&tbs.to_der(), OWN.algorithm, &[])).unwrap()
    };
    let empty = certificate(&[0x30, 0x00]);
    assert_eq!((empty.subject_empty, empty.san_critical), (true, true));
    let named = certificate(&OWN.x509_issuer().subject);
    assert_eq!((named.subject_empty, named.san_critical), (false, false));
    // Both kinds are read as well.
    assert_eq!(verify_leaf(|p| p.distinguished_name = DistinguishedName::new()), Ok(()));
}

#[test]
fn xsvid_06_only_a_leaf_identifies_a_peer() {
    let root = Ca::root_with("root", |p| p.subject_alt_names = vec![uri(WEB)]);
    assert_eq!(verify(&root.der, &[&root.leaf(WEB)]), Ok(id(WEB)));
    assert_eq!(verify(&root.der, &[&root.der]), Err(ChainError::LeafIsCa));
}

#[test]
fn xsvid_07_an_issued_authority_is_a_ca_that_may_sign() {
    assert!(OWN.certificate.is_ca && OWN.certificate.key_usage.unwrap().key_cert_sign);
    assert_eq!(verify_root(|p| p.is_ca = IsCa::ExplicitNoCa), Err(unknown()));
    assert_eq!(verify_root(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]), Err(unknown()));
}

#[test]
fn xsvid_08_an_issued_authority_has_one_uri_and_it_is_its_spiffe_id() {
    assert_eq!(OWN.certificate.spiffe_id(), Some(td("example.org").id()));
    let none = Ca::root("root");
    assert_eq!(none.certificate().spiffe_id(), None);
}

#[test]
fn xsvid_09_an_authority_with_a_path_is_not_issued() {
    assert_eq!(lint_authority(Leave::authority("spiffe://example.org")), Ok(()));
    assert_eq!(lint_authority(Leave::authority("spiffe://example.org/ca")), Err("names"));
}

#[test]
fn xsvid_10_an_authority_vouches_for_leaves_of_its_own_trust_domain_only() {
    let bundles = set([OWN.bundle()]);
    assert!(verify_chain(&[OWN.x509(Leave::x509(WEB))], &bundles, NOW).is_ok());
    let refused = Linted::x509(Leave::x509("spiffe://other.org/web"), &OWN.x509_issuer(), &P256.public(), [9; 16], NOW);
    assert_eq!(refused.map(|_| ()).map_err(|e| e.lint), Err("trust_domain"), "the issuer refuses");
    let foreign = Ca::root("root").leaf("spiffe://other.org/web");
    assert_eq!(verify_chain(&[&foreign], &bundles, NOW), Err(ChainError::NoBundle("other.org".to_owned())), "the validator refuses");
}

#[test]
fn xsvid_11_a_root_may_certify_an_intermediate_of_any_trust_domain() {
    let root = Ca::root("root");
    for name in ["spiffe://example.org", "spiffe://other.org"] {
        let sub = root.sub_with("sub", |p| p.subject_alt_names = vec![uri(name)]);
        assert_eq!(verify(&root.der, &[&sub.leaf(WEB), &sub.der]), Ok(id(WEB)));
        assert_eq!(verify(&root.der, &[&sub.leaf(WEB)]), Err(unknown()), "without the intermediate");
    }
}

#[test]
fn xsvid_12_a_signing_certificate_never_authenticates_though_its_chain_is_valid() {
    let root = Ca::root("root");
    let sub = root.sub_with("sub", |p| p.subject_alt_names = vec![uri(WEB)]);
    assert_eq!(verify(&root.der, &[&sub.leaf(WEB), &sub.der]), Ok(id(WEB)));
    assert_eq!(verify(&root.der, &[&sub.der]), Err(ChainError::LeafIsCa));
    assert_eq!(verify_chain(&[OWN.certificate.der()], &set([OWN.bundle()]), NOW), Err(ChainError::RootPath(id("spiffe://example.org"))));
}

#[test]
fn xsvid_13_a_path_length_of_zero_allows_leaves_and_no_intermediate() {
    let root = Ca::root_with("root", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    assert_eq!(verify(&root.der, &[&root.leaf(WEB)]), Ok(id(WEB)));
    let sub = root.sub("sub");
    assert_eq!(verify(&root.der, &[&sub.leaf(WEB), &sub.der]), Err(unknown()));
}

#[test]
fn xsvid_14_a_signer_that_is_no_ca_is_refused_and_never_issued() {
    assert_eq!(raw_extension(OWN.certificate.der(), BASIC_CONSTRAINTS), Some((true, vec![0x30, 0x03, 0x01, 0x01, 0xff])));
    let root = Ca::root("root");
    for not_a_ca in [IsCa::ExplicitNoCa, IsCa::NoCa] {
        let sub = root.sub_with("sub", |p| p.is_ca = not_a_ca);
        assert_eq!(verify(&root.der, &[&sub.leaf(WEB), &sub.der]), Err(unknown()));
    }
}

#[test]
fn xsvid_15_an_issued_leaf_says_it_is_no_ca() {
    assert_eq!(raw_extension(&OWN.x509(Leave::x509(WEB)), BASIC_CONSTRAINTS), Some((true, vec![0x30, 0x00])));
    assert_eq!(verify_leaf(|p| p.is_ca = IsCa::NoCa), Ok(()), "absent counts as false");
}

#[test]
fn xsvid_16_every_id_below_a_constrained_signer_lies_in_its_space() {
    let constrained = |host: &str| verify_root(|p| p.custom_extensions = vec![name_constraints(&[(0x86, host.as_bytes())], &[])]);
    assert_eq!(constrained("example.org"), Ok(()));
    assert_eq!(constrained("other.org"), Err(ChainError::NameConstraint));
}

#[test]
fn xsvid_17_a_name_constrained_signer_is_loadable() {
    let root = Ca::root_with("root", |p| p.custom_extensions = vec![name_constraints(&[(0x86, b"example.org")], &[])]);
    assert_eq!(roots("example.org", &[&root.der]).x509_authorities().len(), 1);
    let malformed = Ca::root_with("root", |p| p.custom_extensions = vec![extension(&[2, 5, 29, 30], true, vec![0x04, 0x00])]);
    assert!(Certificate::parse(&malformed.der).is_err());
}

#[test]
fn xsvid_18_key_usage_is_in_every_issued_certificate() {
    assert!(raw_extension(&OWN.x509(Leave::x509(WEB)), KEY_USAGE).is_some());
    assert!(raw_extension(OWN.certificate.der(), KEY_USAGE).is_some());
    let without = Ca::root_with("root", |p| p.key_usages.clear());
    assert_eq!(without.certificate().key_usage, None);
}

#[test]
fn xsvid_19_key_usage_is_critical() {
    for der in [&OWN.x509(Leave::x509(WEB))[..], OWN.certificate.der()] {
        assert!(raw_extension(der, KEY_USAGE).unwrap().0);
        assert!(Certificate::parse(der).unwrap().key_usage.unwrap().critical);
    }
}

#[test]
fn xsvid_20_a_signer_without_key_cert_sign_is_refused() {
    // keyCertSign is bit 5, cRLSign bit 6.
    assert_eq!(raw_extension(OWN.certificate.der(), KEY_USAGE).unwrap().1, [0x03, 0x02, 0x01, 0x06]);
    let root = Ca::root("root");
    for (usages, accepted) in [
        (vec![KeyUsagePurpose::KeyCertSign], true),
        (vec![KeyUsagePurpose::CrlSign], false),
        (vec![KeyUsagePurpose::DigitalSignature], false),
    ] {
        let sub = root.sub_with("sub", |p| p.key_usages = usages.clone());
        assert_eq!(verify(&root.der, &[&sub.leaf(WEB), &sub.der]).is_ok(), accepted, "{usages:?}");
    }
}

#[test]
fn xsvid_21_a_signer_may_sign_crls_too() {
    assert!(OWN.certificate.key_usage.unwrap().crl_sign);
    assert_eq!(verify_root(|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign]), Ok(()));
    assert_eq!(verify_root(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]), Err(unknown()));
}

#[test]
fn xsvid_22_an_issued_leaf_may_sign_digitally() {
    // digitalSignature is bit 0, keyEncipherment bit 2, keyAgreement bit 4: exactly these, with three unused bits.
    assert_eq!(raw_extension(&OWN.x509(Leave::x509(WEB)), KEY_USAGE), Some((true, vec![0x03, 0x02, 0x03, 0xa8])));
    let usage = |usages: Vec<KeyUsagePurpose>| {
        let leaf = Ca::root("root").leaf_with(WEB, |p| p.key_usages = usages);
        Certificate::parse(&leaf).unwrap().key_usage.unwrap().digital_signature
    };
    assert!(usage(vec![KeyUsagePurpose::DigitalSignature]));
    assert!(!usage(vec![KeyUsagePurpose::KeyAgreement]));
}

#[test]
fn xsvid_23_a_leaf_may_also_encipher_and_agree_on_keys() {
    use KeyUsagePurpose as K;
    assert_eq!(verify_leaf(|p| p.key_usages = vec![K::DigitalSignature, K::KeyEncipherment, K::KeyAgreement]), Ok(()));
    assert_eq!(verify_leaf(|p| p.key_usages = vec![K::DigitalSignature, K::KeyEncipherment, K::CrlSign]), Err(ChainError::LeafKeyUsage));
}

#[test]
fn xsvid_24_an_issued_leaf_signs_neither_certificates_nor_crls() {
    let usage = Certificate::parse(&OWN.x509(Leave::x509(WEB))).unwrap().key_usage.unwrap();
    assert!(usage.digital_signature && !usage.key_cert_sign && !usage.crl_sign);
}

#[test]
fn xsvid_25_an_issued_authority_signs_nothing_but_certificates_and_crls() {
    let usage = OWN.certificate.key_usage.unwrap();
    assert!(!usage.digital_signature && usage.key_cert_sign && usage.crl_sign);
    // Common authorities set it; validators accept them.
    assert_eq!(verify_root(|p| p.key_usages.push(KeyUsagePurpose::DigitalSignature)), Ok(()));
}

#[test]
fn xsvid_26_an_issued_leaf_has_an_extended_key_usage() {
    assert!(raw_extension(&OWN.x509(Leave::x509(WEB)), EXTENDED_KEY_USAGE).is_some());
    assert!(raw_extension(OWN.certificate.der(), EXTENDED_KEY_USAGE).is_none(), "an authority needs none");
    assert_eq!(verify_leaf(|p| p.extended_key_usages.clear()), Ok(()));
}

#[test]
fn xsvid_27_extended_key_usage_may_be_critical() {
    let both = vec![
        0x30, 0x14, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02,
    ];
    let critical = |oid: &[u64], content: Vec<u8>| {
        verify_leaf(|p| {
            p.extended_key_usages.clear();
            p.custom_extensions = vec![extension(oid, true, content)];
        })
    };
    assert_eq!(critical(&[2, 5, 29, 37], both.clone()), Ok(()));
    assert_eq!(critical(&[1, 2, 3, 4], both), Err(ChainError::CriticalExtension("1.2.3.4".to_owned())));
}

#[test]
fn xsvid_28_extended_key_usage_names_server_and_client() {
    let certificate = Certificate::parse(&OWN.x509(Leave::x509(WEB))).unwrap();
    assert_eq!(certificate.extended_key_usage, Some((true, true)));
    let half = Ca::root("root").leaf_with(WEB, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert_eq!(Certificate::parse(&half).unwrap().extended_key_usage, Some((true, false)));
}

#[test]
fn xsvid_29_a_signer_may_have_an_extended_key_usage() {
    let purposes = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    assert_eq!(verify_root(|p| p.extended_key_usages = purposes), Ok(()));
}

#[test]
fn xsvid_30_paths_are_validated_as_rfc_5280_says() {
    let root = Ca::root("root");
    let times = |p: &mut rcgen::CertificateParams, from: i64, to: i64| {
        p.not_before = at(NOW.secs() + from);
        p.not_after = at(NOW.secs() + to);
    };
    assert_eq!(verify_leaf(|p| times(p, 0, 0)), Ok(()), "both ends belong to the validity");
    assert!(matches!(verify_leaf(|p| times(p, -60, -1)), Err(ChainError::Validity { .. })), "expired");
    assert!(matches!(verify_leaf(|p| times(p, 1, 60)), Err(ChainError::Validity { .. })), "not yet valid");
    let mut bad_signature = root.leaf(WEB);
    *bad_signature.last_mut().unwrap() ^= 1;
    assert_eq!(verify(&root.der, &[&bad_signature]), Err(unknown()));
    assert_eq!(
        verify_leaf(|p| p.custom_extensions = vec![extension(&[1, 2, 3, 4], true, vec![5, 0])]),
        Err(ChainError::CriticalExtension("1.2.3.4".to_owned()))
    );
    assert_eq!(verify_leaf(|p| p.custom_extensions = vec![extension(&[1, 2, 3, 4], false, vec![5, 0])]), Ok(()));
    let same_key_other_name = {
        let key = rcgen::KeyPair::try_from(root.issuer.key().serialized_der()).unwrap();
        Ca::root_of(key, "another name", |_| ())
    };
    assert_eq!(verify(&root.der, &[&same_key_other_name.leaf(WEB)]), Err(unknown()), "issuer and subject differ");
}

#[test]
fn xsvid_31_a_leaf_that_is_a_ca_is_refused() {
    assert_eq!(verify_leaf(|p| p.is_ca = IsCa::ExplicitNoCa), Ok(()));
    assert_eq!(verify_leaf(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), Err(ChainError::LeafIsCa));
}

#[test]
fn xsvid_32_a_leaf_that_may_sign_certificates_or_crls_is_refused() {
    use KeyUsagePurpose as K;
    assert_eq!(verify_leaf(|p| p.key_usages = vec![K::DigitalSignature]), Ok(()));
    assert_eq!(verify_leaf(|p| p.key_usages = vec![K::DigitalSignature, K::KeyCertSign]), Err(ChainError::LeafKeyUsage));
    assert_eq!(verify_leaf(|p| p.key_usages = vec![K::DigitalSignature, K::CrlSign]), Err(ChainError::LeafKeyUsage));
}

#[test]
fn xsvid_33_a_uri_of_another_scheme_or_none_at_all_is_refused() {
    use countersign_identity::id::IdError;
    assert_eq!(verify_leaf(|p| p.subject_alt_names = vec![uri(WEB)]), Ok(()));
    assert_eq!(verify_leaf(|p| p.subject_alt_names = vec![uri("https://example.org/a")]), Err(ChainError::SpiffeId(IdError::Scheme)));
    assert_eq!(verify_leaf(|p| p.subject_alt_names.clear()), Err(ChainError::Uris(0)));
}

#[test]
fn xsvid_34_a_leaf_whose_id_has_no_path_is_refused() {
    assert_eq!(verify_leaf(|p| p.subject_alt_names = vec![uri("spiffe://example.org/w")]), Ok(()));
    assert_eq!(
        verify_leaf(|p| p.subject_alt_names = vec![uri("spiffe://example.org")]),
        Err(ChainError::RootPath(id("spiffe://example.org")))
    );
}

/// The `x509-svid` entries of a published bundle with these roots.
fn published(ders: &[&[u8]]) -> Vec<Value> {
    roots("example.org", ders).to_jwks()["keys"].as_array().unwrap().clone()
}

/// How many roots a bundle of these entries has.
fn consumed(entries: &[Value]) -> Bundle {
    Bundle::from_jwks(td("example.org"), json!({ "keys": entries }).to_string().as_bytes()).unwrap()
}

#[test]
fn xsvid_35_every_root_has_its_own_entry() {
    let (a, b) = (Ca::root("a"), Ca::root("b"));
    assert_eq!(published(&[&a.der, &b.der]).len(), 2);
    assert_eq!(published(&[&a.der, &a.der]).len(), 1, "the same root twice is one root");
}

#[test]
fn xsvid_36_published_roots_have_the_use_x509_svid() {
    let mut entries = published(&[OWN.certificate.der()]);
    assert_eq!(entries[0]["use"], "x509-svid");
    entries[0]["use"] = json!("jwt");
    assert!(consumed(&entries).x509_authorities().is_empty());
}

#[test]
fn xsvid_37_published_roots_have_no_kid() {
    let mut entries = published(&[OWN.certificate.der()]);
    assert_eq!(entries[0].get("kid"), None);
    // One that has a kid nevertheless is read all the same.
    entries[0]["kid"] = json!("k");
    assert_eq!(consumed(&entries).x509_authorities().len(), 1);
}

#[test]
fn xsvid_38_x5c_holds_the_root_in_standard_base64() {
    let mut entries = published(&[OWN.certificate.der()]);
    let der = STANDARD.decode(entries[0]["x5c"][0].as_str().unwrap()).unwrap();
    assert_eq!(der, OWN.certificate.der());
    let key = countersign_identity::jwk::read(entries[0].as_object().unwrap()).unwrap();
    assert_eq!(key, OWN.certificate.public_key);
    entries[0]["x5c"] = json!([base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&der).replace('A', "_")]);
    assert!(Bundle::from_jwks(td("example.org"), json!({ "keys": entries }).to_string().as_bytes()).is_err());
}

#[test]
fn xsvid_39_x5c_holds_one_certificate() {
    let (root, other) = (Ca::root("root"), Ca::root("other"));
    for entry in published(&[&root.der, &root.sub("sub").der, &other.der]) {
        assert_eq!(entry["x5c"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn xsvid_40_the_root_we_make_is_self_signed() {
    let entries = published(&[OWN.certificate.der()]);
    let der = STANDARD.decode(entries[0]["x5c"][0].as_str().unwrap()).unwrap();
    let root = Certificate::parse(&der).unwrap();
    assert!(root.check_signed_by(&root.public_key).is_ok());
    let sub = Ca::root("root").sub("sub").certificate();
    assert!(sub.check_signed_by(&sub.public_key).is_err());
}

#[test]
fn xsvid_41_an_entry_without_a_certificate_is_skipped() {
    let (a, b) = (Ca::root("a"), Ca::root("b"));
    for empty in [Value::Null, json!([])] {
        let mut entries = published(&[&a.der, &b.der]);
        if empty.is_null() {
            entries[0].as_object_mut().unwrap().remove("x5c");
        } else {
            entries[0]["x5c"] = empty;
        }
        assert_eq!(consumed(&entries).x509_der(), b.der);
    }
}

#[test]
fn xsvid_42_only_the_first_certificate_of_an_entry_counts() {
    let (a, b) = (Ca::root("a"), Ca::root("b"));
    let mut entries = published(&[&a.der]);
    entries[0]["x5c"] = json!([STANDARD.encode(&a.der), STANDARD.encode(&b.der)]);
    let bundles = set([consumed(&entries)]);
    assert!(verify_chain(&[a.leaf(WEB)], &bundles, NOW).is_ok());
    assert_eq!(verify_chain(&[b.leaf(WEB)], &bundles, NOW), Err(unknown()));
}

#[test]
fn xsvid_43_all_roots_count_and_without_any_nobody_is_trusted() {
    let (a, b) = (Ca::root("a"), Ca::root("b"));
    let both = set([consumed(&published(&[&a.der, &b.der]))]);
    assert!(verify_chain(&[a.leaf(WEB)], &both, NOW).is_ok());
    assert!(verify_chain(&[b.leaf(WEB)], &both, NOW).is_ok());
    let jwt_only = set([crate::support::jwt_keys("example.org", &[("k", &P256)])]);
    assert_eq!(verify_chain(&[a.leaf(WEB)], &jwt_only, NOW), Err(unknown()));
}

#[test]
fn xsvid_44_a_root_of_one_trust_domain_does_not_vouch_for_another() {
    let (a, b) = (Ca::root("a"), Ca::root("b"));
    let bundles = set([roots("example.org", &[&a.der]), roots("other.org", &[&b.der])]);
    assert!(verify_chain(&[b.leaf("spiffe://other.org/w")], &bundles, NOW).is_ok());
    assert_eq!(verify_chain(&[b.leaf(WEB)], &bundles, NOW), Err(unknown()));
    assert_eq!(verify_chain(&[b.leaf("spiffe://third.org/w")], &bundles, NOW), Err(ChainError::NoBundle("third.org".to_owned())));
}

#[test]
fn a_time_before_the_epoch_is_a_time_too() {
    let leaf = OWN.x509(Leave::x509(WEB));
    assert!(matches!(verify_chain(&[leaf], &set([OWN.bundle()]), Timestamp::from_secs(-1)), Err(ChainError::Validity { .. })));
}
