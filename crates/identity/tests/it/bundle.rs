//! Bundles (SPIFFE Trust Domain and Bundle, sections 3 to 4.2): published as asked for, read leniently where told to.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::bundle::{AUTHORITIES_MAX, BUNDLE_BYTES_MAX, BundleError};
use countersign_identity::x509::{ChainError, verify_chain};
use countersign_identity::{Bundle, BundleSet, jwk, jwt, pem};
use serde_json::{Value, json};

use crate::support::{Ca, NOW, P256, P384, P521, RSA, WEB, at, claims, header, jwt_authority, jwt_keys, roots, set, td, token};

fn read(document: &Value) -> Result<Bundle, BundleError> {
    Bundle::from_jwks(td("example.org"), document.to_string().as_bytes())
}

/// A bundle with a root and a key of every kind.
fn full() -> (Ca, Bundle) {
    let root = Ca::root("root");
    let mut bundle = roots("example.org", &[&root.der]);
    for (name, key) in [("p256", &P256), ("p384", &P384), ("p521", &P521), ("rsa", &RSA)] {
        bundle.add_jwt_authority(jwt_authority(name, key)).unwrap();
    }
    bundle.sequence_number = 7;
    bundle.refresh_hint = Some(Duration::from_secs(60));
    (root, bundle)
}

/// A full bundle with one more key in front.
fn with_key(key: Value) -> Result<Bundle, BundleError> {
    let mut document = full().1.to_jwks();
    document["keys"].as_array_mut().unwrap().insert(0, key);
    read(&document)
}

#[test]
fn tdb_01_svids_are_judged_by_their_own_trust_domains_bundle() {
    let (a, b) = (Ca::root("a"), Ca::root("b"));
    let bundles = set([roots("example.org", &[&a.der]), roots("other.org", &[&b.der])]);
    assert!(verify_chain(&[a.leaf(WEB)], &bundles, NOW).is_ok());
    assert!(verify_chain(&[b.leaf(WEB)], &bundles, NOW).is_err());
    let bundles = set([jwt_keys("example.org", &[("a", &P256)]), jwt_keys("other.org", &[("k", &P256)])]);
    assert!(jwt::verify(&token(&header(), &claims(), &P256), "db", &bundles, NOW).is_err());
}

#[test]
fn tdb_02_a_bundle_is_a_json_web_key_set() {
    let document = full().1.to_jwks();
    assert_eq!(document["keys"].as_array().unwrap().len(), 5);
    assert_eq!(read(&document).unwrap(), full_like(&document));
    for text in ["", "x", "{", "\u{0}"] {
        assert!(matches!(Bundle::from_jwks(td("example.org"), text.as_bytes()), Err(BundleError::Json(_))), "`{text}`");
    }
    for text in ["[]", "null", "7", "\"keys\""] {
        assert_eq!(Bundle::from_jwks(td("example.org"), text.as_bytes()), Err(BundleError::NoKeys), "`{text}`");
    }
}

/// The same document read once more: reading is a function.
fn full_like(document: &Value) -> Bundle {
    read(document).unwrap()
}

#[test]
fn tdb_03_other_top_level_members_are_allowed() {
    let mut document = full().1.to_jwks();
    document["vendor"] = json!({"a": [1, 2]});
    assert_eq!(read(&document).unwrap().jwt_authorities().len(), 4);
}

#[test]
fn tdb_04_nothing_but_keys_is_needed() {
    let bundle = read(&json!({"keys": []})).unwrap();
    assert_eq!((bundle.sequence_number, bundle.refresh_hint), (0, None));
    assert_eq!(read(&json!({"spiffe_sequence": 1})), Err(BundleError::NoKeys));
}

#[test]
fn tdb_05_the_sequence_number_is_published() {
    assert_eq!(full().1.to_jwks()["spiffe_sequence"], 7);
    assert_eq!(Bundle::empty(td("example.org")).to_jwks()["spiffe_sequence"], 0);
}

#[test]
fn tdb_06_the_sequence_number_is_an_integer() {
    assert!(full().1.to_jwks()["spiffe_sequence"].is_u64());
    for odd in [json!("7"), json!(7.5), json!(-1), json!(null), json!([7])] {
        assert_eq!(read(&json!({"keys": [], "spiffe_sequence": odd})), Err(BundleError::Number("spiffe_sequence")), "{odd}");
    }
}

#[test]
fn tdb_07_a_change_of_contents_is_noticed_so_that_the_number_can_grow() {
    let (_, bundle) = full();
    let mut same = bundle.clone();
    same.sequence_number += 1;
    assert!(bundle.same_content(&same), "the number alone is no content");
    let mut more = bundle.clone();
    more.add_jwt_authority(jwt_authority("new", &P256)).unwrap();
    let mut hinted = bundle.clone();
    hinted.refresh_hint = None;
    let mut tainted = bundle.clone();
    tainted.add_x509_authority(bundle.x509_authorities()[0].certificate.clone(), true).unwrap();
    let mut fewer = bundle.clone();
    fewer.clear_jwt_authorities();
    for other in [more, hinted, tainted, fewer] {
        assert!(!bundle.same_content(&other));
    }
}

#[test]
fn tdb_08_sequence_numbers_of_64_bits_survive() {
    for number in [(1 << 53) + 1, i64::MAX.unsigned_abs(), u64::MAX] {
        let mut bundle = Bundle::empty(td("example.org"));
        bundle.sequence_number = number;
        assert_eq!(read(&bundle.to_jwks()).unwrap().sequence_number, number);
    }
    let too_large = br#"{"keys":[],"spiffe_sequence":18446744073709551616}"#;
    assert_eq!(Bundle::from_jwks(td("example.org"), too_large), Err(BundleError::Number("spiffe_sequence")));
}

#[test]
fn tdb_09_the_refresh_hint_is_published_when_there_is_one() {
    assert_eq!(full().1.to_jwks()["spiffe_refresh_hint"], 60);
    assert_eq!(Bundle::empty(td("example.org")).to_jwks().get("spiffe_refresh_hint"), None);
}

#[test]
fn tdb_10_the_refresh_hint_is_in_whole_seconds() {
    let mut bundle = Bundle::empty(td("example.org"));
    bundle.refresh_hint = Some(Duration::from_millis(1900));
    assert_eq!(bundle.to_jwks()["spiffe_refresh_hint"], 1);
    for odd in [json!("60"), json!(0.5), json!(-60), json!({})] {
        assert_eq!(read(&json!({"keys": [], "spiffe_refresh_hint": odd})), Err(BundleError::Number("spiffe_refresh_hint")), "{odd}");
    }
}

#[test]
fn tdb_11_an_absent_hint_is_told_apart_from_a_hint_of_zero() {
    assert_eq!(read(&json!({"keys": []})).unwrap().refresh_hint, None);
    assert_eq!(read(&json!({"keys": [], "spiffe_refresh_hint": 0})).unwrap().refresh_hint, Some(Duration::ZERO));
    assert!(read(&json!({"keys": [], "spiffe_refresh_hint": u64::MAX})).is_ok());
}

#[test]
fn tdb_12_keys_is_always_an_array() {
    assert_eq!(Bundle::empty(td("example.org")).to_jwks()["keys"], json!([]));
    assert_eq!(Bundle::empty(td("example.org")).to_jwt_jwks(), json!({"keys": []}));
    for odd in [json!({}), json!({"keys": null}), json!({"keys": {}}), json!({"keys": "x"}), json!({"Keys": []})] {
        assert_eq!(read(&odd), Err(BundleError::NoKeys), "{odd}");
    }
}

#[test]
fn tdb_13_elements_of_unknown_type_or_use_are_skipped_and_the_rest_is_kept() {
    let (root, bundle) = full();
    let mut document = bundle.to_jwks();
    document["keys"].as_array_mut().unwrap().extend([
        json!({"kty": "AKP", "alg": "ML-DSA-44", "use": "x509-svid", "pub": "AA", "x5c": ["AA"]}),
        json!({"kty": "EC", "crv": "secp256k1", "use": "jwt-svid", "kid": "a", "x": "AA", "y": "AA"}),
        json!({"kty": "EC", "use": "carrier-pigeon"}),
        json!(7),
        json!(null),
    ]);
    let read = read(&document).unwrap();
    assert_eq!(read.x509_der(), root.der);
    assert_eq!(read.jwt_authorities(), bundle.jwt_authorities());
}

#[test]
fn tdb_14_an_empty_or_effectively_empty_bundle_trusts_nobody() {
    let (root, bundle) = full();
    let leaf = root.leaf(WEB);
    let token = token(&json!({"alg": "ES256", "kid": "p256"}), &claims(), &P256);
    let trusts = |document: &Value| {
        let bundles = set([read(document).unwrap()]);
        (verify_chain(&[&leaf], &bundles, NOW).is_ok(), jwt::verify(&token, "db", &bundles, NOW).is_ok())
    };
    assert_eq!(trusts(&bundle.to_jwks()), (true, true));
    assert_eq!(trusts(&json!({"keys": []})), (false, false));
    let mut foreign = bundle.to_jwks();
    for key in foreign["keys"].as_array_mut().unwrap() {
        key["use"] = json!("sig");
    }
    assert_eq!(trusts(&foreign), (false, false));
    let empty = set([Bundle::empty(td("example.org"))]);
    assert_eq!(verify_chain(&[&leaf], &empty, NOW), Err(ChainError::UnknownAuthority("example.org".to_owned())));
}

#[test]
fn tdb_17_published_keys_have_no_members_beyond_those_defined() {
    for key in full().1.to_jwks()["keys"].as_array().unwrap() {
        for name in key.as_object().unwrap().keys() {
            assert!(["kty", "use", "kid", "crv", "x", "y", "n", "e", "x5c"].contains(&name.as_str()), "{name}");
        }
    }
    // A consumer takes them nevertheless.
    let mut key = jwk::write(&P256.public());
    key.extend([("use", "jwt-svid"), ("kid", "more"), ("alg", "ES256"), ("x5t", "x")].map(|(n, v)| (n.to_owned(), json!(v))));
    assert!(with_key(Value::Object(key)).unwrap().jwt_authority("more").is_some());
}

#[test]
fn tdb_18_published_keys_have_a_type() {
    let document = full().1.to_jwks();
    let types: Vec<&str> = document["keys"].as_array().unwrap().iter().map(|k| k["kty"].as_str().unwrap()).collect();
    assert_eq!(types, ["EC", "EC", "EC", "EC", "RSA"]);
    let typeless = json!({"use": "jwt-svid", "kid": "typeless", "crv": "P-256", "x": "AA", "y": "AA"});
    assert!(with_key(typeless).unwrap().jwt_authority("typeless").is_none());
}

#[test]
fn tdb_19_a_key_of_unknown_type_is_ignored_whole() {
    for kty in [json!("AKP"), json!("oct"), json!("ec"), json!(""), json!(7), json!(null)] {
        let jwt = json!({"kty": kty, "use": "jwt-svid", "kid": "odd"});
        assert_eq!(with_key(jwt).unwrap().jwt_authorities().len(), 4, "{kty}");
        let x509 = json!({"kty": kty, "use": "x509-svid", "x5c": ["not even base64"]});
        assert_eq!(with_key(x509).unwrap().x509_authorities().len(), 1, "{kty}");
    }
}

#[test]
fn tdb_20_published_keys_have_a_use() {
    let document = full().1.to_jwks();
    let uses: Vec<&str> = document["keys"].as_array().unwrap().iter().map(|k| k["use"].as_str().unwrap()).collect();
    assert_eq!(uses, ["x509-svid", "jwt-svid", "jwt-svid", "jwt-svid", "jwt-svid"]);
    // What the Workload API sends has none.
    let workload = full().1.to_jwt_jwks();
    assert_eq!(workload["keys"].as_array().unwrap().len(), 4);
    assert!(workload["keys"].as_array().unwrap().iter().all(|k| k.get("use").is_none() && k["kid"].is_string()));
}

#[test]
fn tdb_21_a_key_of_missing_or_unknown_use_is_ignored_whole() {
    let root = Ca::root("another");
    for key_use in [json!(null), json!("foo"), json!("X509-SVID"), json!("wit-svid"), json!(7), json!(["x509-svid"])] {
        let mut key = json!({"kty": "EC", "crv": "P-256", "x5c": [STANDARD.encode(&root.der)], "kid": "odd"});
        if !key_use.is_null() {
            key["use"] = key_use.clone();
        }
        let bundle = with_key(key).unwrap();
        assert_eq!((bundle.x509_authorities().len(), bundle.jwt_authorities().len()), (1, 4), "{key_use}");
    }
    assert_eq!(
        with_key(json!({"kty": "EC", "use": "x509-svid", "crv": "P-256", "x5c": [STANDARD.encode(&root.der)]}))
            .unwrap()
            .x509_authorities()
            .len(),
        2
    );
}

#[test]
fn a_malformed_key_of_a_known_kind_is_refused_with_its_place() {
    let p256 = jwk::write(&P256.public());
    let jwt = |members: Value| {
        let mut key = p256.clone();
        key.insert("use".to_owned(), json!("jwt-svid"));
        key.insert("kid".to_owned(), json!("k"));
        key.extend(members.as_object().unwrap().clone());
        Value::Object(key)
    };
    assert!(with_key(jwt(json!({}))).is_ok());
    for members in [
        json!({"x": "AA"}),
        json!({"y": 7}),
        json!({"x": "!"}),
        json!({"kid": ""}),
        json!({"kid": "k".repeat(1025)}),
        json!({"kty": "RSA"}),
        json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"}),
    ] {
        assert!(matches!(with_key(jwt(members.clone())), Err(BundleError::Key { index: 0, .. })), "{members}");
    }
    for x5c in [json!(["!"]), json!(["AAAA"]), json!([7])] {
        let key = json!({"kty": "EC", "crv": "P-256", "use": "x509-svid", "x5c": x5c});
        assert!(matches!(with_key(key), Err(BundleError::Key { index: 0, .. })), "{x5c}");
    }
}

#[test]
fn a_bundle_survives_being_published_and_read() {
    let (_, bundle) = full();
    assert_eq!(read(&bundle.to_jwks()), Ok(bundle.clone()));
    let from_pem = Bundle::from_pem(td("example.org"), &bundle.to_pem()).unwrap();
    assert_eq!(from_pem.x509_authorities(), bundle.x509_authorities());
    assert_eq!(bundle.x509_der(), bundle.x509_authorities()[0].certificate.der());
}

#[test]
fn pem_bundles_need_a_certificate_and_skip_other_blocks() {
    let (root, bundle) = full();
    let mixed = format!("comment\n{}{}", pem::write("PUBLIC KEY", b"x"), bundle.to_pem());
    assert_eq!(Bundle::from_pem(td("example.org"), &mixed).unwrap().x509_der(), root.der);
    assert_eq!(Bundle::from_pem(td("example.org"), ""), Err(BundleError::Empty));
    assert_eq!(Bundle::from_pem(td("example.org"), &pem::write("PUBLIC KEY", b"x")), Err(BundleError::Empty));
    assert!(matches!(Bundle::from_pem(td("example.org"), &pem::write("CERTIFICATE", b"x")), Err(BundleError::Certificate(_))));
    for text in ["-----BEGIN CERTIFICATE-----\nAAAA\n", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
        assert!(matches!(Bundle::from_pem(td("example.org"), text), Err(BundleError::Pem(_))), "`{text}`");
    }
}

#[test]
fn documents_over_the_limits_are_refused() {
    let long = " ".repeat(BUNDLE_BYTES_MAX + 1);
    assert_eq!(Bundle::from_jwks(td("example.org"), long.as_bytes()), Err(BundleError::TooLong(BUNDLE_BYTES_MAX + 1)));
    assert!(matches!(Bundle::from_pem(td("example.org"), &long), Err(BundleError::Pem(_))));
    let mut bundle = Bundle::empty(td("example.org"));
    for number in 0..AUTHORITIES_MAX {
        bundle.add_jwt_authority(jwt_authority(&number.to_string(), &P256)).unwrap();
    }
    assert_eq!(bundle.add_jwt_authority(jwt_authority("one more", &P256)), Err(BundleError::TooMany));
    assert_eq!(bundle.add_jwt_authority(jwt_authority("0", &P384)), Ok(()), "a known name is replaced");
    let deep = "[".repeat(100_000);
    assert!(matches!(Bundle::from_jwks(td("example.org"), deep.as_bytes()), Err(BundleError::Json(_))));
}

#[test]
fn a_taint_is_never_lifted() {
    let root = Ca::root("root");
    let mut bundle = roots("example.org", &[&root.der]);
    for (tainted, expected) in [(false, false), (true, true), (false, true)] {
        bundle.add_x509_authority(root.certificate(), tainted).unwrap();
        assert_eq!(bundle.x509_authorities()[0].tainted, expected);
        bundle.add_jwt_authority(countersign_identity::bundle::JwtAuthority { tainted, ..jwt_authority("k", &P256) }).unwrap();
        assert_eq!(bundle.jwt_authorities()[0].tainted, expected);
    }
    assert_eq!(bundle.x509_authorities().len(), 1);
}

#[test]
fn pruning_drops_what_ended_but_never_the_last_of_a_kind() {
    let old = Ca::root_with("old", |p| p.not_after = at(NOW.secs() - 1));
    let new = Ca::root_with("new", |p| p.not_after = at(NOW.secs()));
    let ended = |key_id, secs| countersign_identity::bundle::JwtAuthority {
        expires_at: Some(countersign_identity::Timestamp::from_secs(secs)),
        ..jwt_authority(key_id, &P256)
    };
    let mut bundle = roots("example.org", &[&old.der, &new.der]);
    bundle.add_jwt_authority(ended("old", NOW.secs() - 1)).unwrap();
    bundle.add_jwt_authority(ended("new", NOW.secs())).unwrap();
    bundle.add_jwt_authority(jwt_authority("endless", &P256)).unwrap();
    assert!(bundle.prune(NOW));
    assert_eq!(bundle.x509_der(), new.der);
    assert!(bundle.jwt_authority("old").is_none() && bundle.jwt_authority("new").is_some());
    assert!(!bundle.prune(NOW), "nothing more to do");
    let mut last = roots("example.org", &[&old.der]);
    last.add_jwt_authority(ended("old", NOW.secs() - 1)).unwrap();
    assert!(!last.prune(NOW));
    assert_eq!((last.x509_authorities().len(), last.jwt_authorities().len()), (1, 1));
}

#[test]
fn a_set_of_bundles_keeps_each_under_its_own_name() {
    let mut bundles: BundleSet = set([jwt_keys("example.org", &[("a", &P256)]), jwt_keys("other.org", &[("b", &P256)])]);
    assert!(bundles.get("example.org").unwrap().jwt_authority("a").is_some());
    assert!(bundles.get("other.org").unwrap().jwt_authority("a").is_none());
    let before = bundles.clone();
    bundles.put(std::sync::Arc::new(Bundle::empty(td("example.org"))));
    bundles.remove("other.org");
    assert_eq!(bundles.iter().map(|b| b.trust_domain().name()).collect::<Vec<_>>(), ["example.org"]);
    assert!(bundles.get("example.org").unwrap().jwt_authorities().is_empty());
    assert_eq!(before.iter().count(), 2, "a copy does not change with it");
}
