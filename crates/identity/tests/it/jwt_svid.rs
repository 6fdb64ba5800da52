//! JWT-SVIDs (JWT-SVID sections 2 to 6): what is accepted, what is refused, and in which order.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_identity::issue::Linted;
use countersign_identity::jwt::{self, Algorithm, TOKEN_BYTES_MAX, TokenError, Verified};
use countersign_identity::{Bundle, BundleSet};
use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::support::{
    Leave, NOW, OWN, P256, P384, P521, RSA, Signer, WEB, claims, encode, header, id, jwt_authority, jwt_keys, roots, set, td, token, with,
};

fn bundles() -> BundleSet {
    set([jwt_keys("example.org", &[("k", &P256)])])
}

fn verify(token: &str) -> Result<Verified, TokenError> {
    jwt::verify(token, "db", &bundles(), NOW)
}

/// A proper token but for these header members.
fn with_header(members: &Value) -> Result<Verified, TokenError> {
    verify(&token(&with(header(), members), &claims(), &P256))
}

/// A proper token but for these claims.
fn with_claims(members: &Value) -> Result<Verified, TokenError> {
    verify(&token(&header(), &with(claims(), members), &P256))
}

fn good() -> String {
    token(&header(), &claims(), &P256)
}

fn parts(token: &str) -> (Value, Value) {
    let part = |n: usize| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(n).unwrap()).unwrap()).unwrap();
    (part(0), part(1))
}

fn lint(leave: Leave) -> Result<(), &'static str> {
    Linted::jwt(leave, &OWN.jwt_issuer(), None, NOW).map(|_| ()).map_err(|e| e.lint)
}

const THREE_PARTS: TokenError = TokenError::Malformed("it has not three parts");

#[test]
fn jsvid_01_json_serialization_is_refused() {
    let token = good();
    assert!(verify(&token).is_ok());
    let [protected, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!() };
    let flattened = json!({"protected": protected, "payload": payload, "signature": signature});
    let general = json!({"payload": payload, "signatures": [{"protected": protected, "signature": signature}]});
    for json in [flattened, general, json!({"a.b": "c.d"})] {
        assert!(matches!(verify(&json.to_string()), Err(TokenError::Malformed(_))));
    }
}

#[test]
fn jsvid_02_issued_tokens_are_compact() {
    let token = OWN.jwt(Leave::jwt(WEB, &["db"]), None);
    assert_eq!(token.split('.').count(), 3);
    assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)));
    assert_eq!(verify(&format!("{token}=")).unwrap_err(), TokenError::Malformed("the signature is not base64url"));
}

#[test]
fn jsvid_03_encrypted_tokens_are_refused() {
    let token = good();
    assert!(verify(&token).is_ok());
    assert_eq!(verify(&format!("{token}.eHg.eHg")), Err(THREE_PARTS));
    assert_eq!(verify("eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.a.b.c.d"), Err(THREE_PARTS));
    for text in ["", ".", "a.b", "a.b.c.d"] {
        assert_eq!(verify(text), Err(THREE_PARTS), "`{text}`");
    }
}

#[test]
fn jsvid_04_issued_headers_hold_alg_kid_and_typ_alone() {
    let (header, _) = parts(&OWN.jwt(Leave::jwt(WEB, &["db"]), Some("id")));
    assert_eq!(header, json!({"alg": "ES256", "kid": "k", "typ": "JWT"}));
    // A foreign member is ignored when it needs no understanding, and never used to find a key.
    assert!(with_header(&json!({"jku": "https://evil.example", "x5c": ["AA"], "jwk": {"kty": "EC"}})).is_ok());
}

#[test]
fn jsvid_05_issued_tokens_have_an_algorithm_of_the_list() {
    let (header, _) = parts(&OWN.jwt(Leave::jwt(WEB, &["db"]), None));
    assert!(Algorithm::parse(header["alg"].as_str().unwrap()).is_some());
    assert!(Algorithm::parse("EdDSA").is_none());
}

#[test]
fn jsvid_06_any_other_algorithm_is_refused_first_whatever_else_is_wrong() {
    assert!(with_header(&json!({"alg": "ES256"})).is_ok());
    for name in ["none", "None", "HS256", "HS512", "EdDSA", "ES256K", "es256", "RS1", ""] {
        let broken = json!({"alg": name, "typ": "at+jwt", "crit": ["x"], "kid": null});
        let text = format!("{}.!.!", encode(with(header(), &broken).to_string()));
        assert_eq!(verify(&text), Err(TokenError::Algorithm(name.to_owned())), "`{name}`");
        assert_eq!(with_header(&json!({"alg": name})), Err(TokenError::Algorithm(name.to_owned())));
    }
    assert_eq!(with_header(&json!({"alg": null})), Err(TokenError::Algorithm(String::new())));
    let number = format!("{}.e30.", encode(r#"{"alg":1,"kid":"k"}"#));
    assert_eq!(verify(&number), Err(TokenError::Algorithm(String::new())));
}

#[test]
fn jsvid_07_all_nine_algorithms_verify_and_none_stands_in_for_another() {
    let keys: [(&str, &Signer); 9] = [
        ("RS256", &RSA),
        ("RS384", &RSA),
        ("RS512", &RSA),
        ("PS256", &RSA),
        ("PS384", &RSA),
        ("PS512", &RSA),
        ("ES256", &P256),
        ("ES384", &P384),
        ("ES512", &P521),
    ];
    let bundles = set([jwt_keys("example.org", &[("r", &RSA), ("p256", &P256), ("p384", &P384), ("p521", &P521)])]);
    let key_id = |algorithm: &str| match algorithm {
        "ES256" => "p256",
        "ES384" => "p384",
        "ES512" => "p521",
        _ => "r",
    };
    for (algorithm, key) in keys {
        let header = |name: &str| json!({"alg": name, "kid": key_id(algorithm)});
        let signed = token(&header(algorithm), &claims(), key);
        assert_eq!(jwt::verify(&signed, "db", &bundles, NOW).map(|v| v.spiffe_id), Ok(id(WEB)), "{algorithm}");
        // The same signature under every other name.
        let signature = signed.rsplit('.').next().unwrap();
        for (other, _) in keys.iter().filter(|(o, _)| *o != algorithm) {
            let renamed = format!("{}.{}.{signature}", encode(header(other).to_string()), encode(claims().to_string()));
            assert_eq!(jwt::verify(&renamed, "db", &bundles, NOW), Err(TokenError::Signature), "{algorithm} as {other}");
        }
        // A proper signature of the right kind over the right bytes, made by another algorithm of the same key.
        if let Signer::Rsa(_) = key {
            for (other, _) in keys.iter().filter(|(o, _)| *o != algorithm && !o.starts_with("ES")) {
                let input = format!("{}.{}", encode(header(algorithm).to_string()), encode(claims().to_string()));
                let signed = format!("{input}.{}", encode(key.jws(other, input.as_bytes())));
                assert_eq!(jwt::verify(&signed, "db", &bundles, NOW), Err(TokenError::Signature), "{other} for {algorithm}");
            }
        }
    }
}

#[test]
fn jsvid_08_a_token_without_kid_is_refused_as_spire_does() {
    assert!(with_header(&json!({"kid": "k"})).is_ok());
    assert_eq!(with_header(&json!({"kid": null})), Err(TokenError::NoKeyId));
    assert_eq!(with_header(&json!({"kid": ""})), Err(TokenError::NoKeyId));
    assert_eq!(with_header(&json!({"kid": 7})), Err(TokenError::NoKeyId));
    let other = TokenError::UnknownKey { key_id: "K".to_owned(), trust_domain: "example.org".to_owned() };
    assert_eq!(with_header(&json!({"kid": "K"})), Err(other));
}

#[test]
fn jsvid_09_typ_may_be_missing() {
    assert!(with_header(&json!({"typ": null})).is_ok());
    assert!(matches!(with_header(&json!({"typ": 1})), Err(TokenError::Type(_))));
}

#[test]
fn jsvid_10_typ_is_jwt_or_jose_if_present() {
    for typ in ["JWT", "JOSE"] {
        assert!(with_header(&json!({ "typ": typ })).is_ok(), "`{typ}`");
    }
    for typ in ["wit+jwt", "at+jwt", "jwt", "JWE", ""] {
        assert!(matches!(with_header(&json!({ "typ": typ })), Err(TokenError::Type(_))), "`{typ}`");
    }
    assert_eq!(parts(&OWN.jwt(Leave::jwt(WEB, &["db"]), None)).0["typ"], "JWT");
}

#[test]
fn jsvid_11_other_claims_are_allowed_and_handed_on() {
    let verified = with_claims(&json!({"iss": "https://x", "jti": "1", "cnf": {"a": 1}, "https://x/role": "r"})).unwrap();
    assert_eq!(verified.claims["https://x/role"], "r");
    assert_eq!(verified.claims["cnf"]["a"], 1);
    assert!(matches!(with_claims(&json!({"iss": "https://x", "sub": null})), Err(TokenError::NoSubject)));
}

#[test]
fn jsvid_12_sub_is_a_spiffe_id_with_a_path() {
    assert_eq!(parts(&OWN.jwt(Leave::jwt(WEB, &["db"]), None)).1["sub"], WEB);
    assert_eq!(with_claims(&json!({})).unwrap().spiffe_id, id(WEB));
    for sub in [json!(null), json!(""), json!(7), json!([WEB])] {
        assert_eq!(with_claims(&json!({ "sub": sub })), Err(TokenError::NoSubject), "{sub}");
    }
    for sub in ["alice", "https://example.org/web", "spiffe://example.org", "spiffe://example.org/", "spiffe://Example.org/a"] {
        assert!(matches!(with_claims(&json!({ "sub": sub })), Err(TokenError::Subject(_))), "`{sub}`");
    }
    assert_eq!(lint(Leave::jwt("spiffe://example.org", &["db"])), Err("token_claims"));
}

#[test]
fn jsvid_13_issued_tokens_have_an_audience() {
    assert_eq!(parts(&OWN.jwt(Leave::jwt(WEB, &["a", "b"]), None)).1["aud"], json!(["a", "b"]));
    assert_eq!(lint(Leave::jwt(WEB, &[])), Err("token_claims"));
}

#[test]
fn jsvid_14_a_token_without_audience_is_refused_whatever_the_validator_answers_to() {
    for aud in [json!(null), json!([]), json!({}), json!(7), json!([7])] {
        let token = token(&header(), &with(claims(), &json!({ "aud": aud })), &P256);
        for wanted in ["db", ""] {
            assert!(matches!(jwt::verify(&token, wanted, &bundles(), NOW), Err(TokenError::Audience { .. })), "{aud}, `{wanted}`");
        }
    }
    assert!(with_claims(&json!({"aud": ["db"]})).is_ok());
}

#[test]
fn jsvid_15_the_own_audience_is_among_the_tokens() {
    for (aud, accepted) in [
        (json!(["db"]), true),
        (json!(["cache", "db", "web"]), true),
        (json!(["cache"]), false),
        (json!(["DB"]), false),
        (json!(["db2"]), false),
        (json!(["d", "b"]), false),
        (json!(" db"), false),
    ] {
        assert_eq!(with_claims(&json!({ "aud": aud })).is_ok(), accepted, "{aud}");
    }
}

#[test]
fn jsvid_17_issued_tokens_end() {
    assert_eq!(parts(&OWN.jwt(Leave::jwt(WEB, &["db"]), None)).1["exp"], NOW.secs() + 300);
    assert_eq!(lint(Leave { lifetime: std::time::Duration::ZERO, ..Leave::jwt(WEB, &["db"]) }), Err("token_claims"));
}

#[test]
fn jsvid_18_a_token_without_end_is_refused() {
    assert!(with_claims(&json!({"exp": NOW.secs() + 1})).is_ok());
    assert_eq!(with_claims(&json!({"exp": null})), Err(TokenError::NoExpiry));
    for exp in [json!("1800000300"), json!(true), json!([1]), json!({})] {
        assert_eq!(with_claims(&json!({ "exp": exp })), Err(TokenError::Malformed("a date claim is not a number")), "{exp}");
    }
    let null = r#"{"sub":"spiffe://example.org/web","aud":"db","exp":null}"#;
    let input = format!("{}.{}", encode(header().to_string()), encode(null));
    let signed = format!("{input}.{}", encode(P256.jws("ES256", input.as_bytes())));
    assert_eq!(verify(&signed), Err(TokenError::Malformed("a date claim is not a number")));
}

#[test]
fn jsvid_19_aud_is_a_string_or_a_list_and_exp_any_number() {
    for aud in [json!("db"), json!(["db"])] {
        let verified = with_claims(&json!({ "aud": aud })).unwrap();
        assert_eq!(verified.audience, ["db"]);
        assert_eq!(verified.claims["aud"], json!(["db"]), "always handed on as a list");
    }
    assert_eq!(with_claims(&json!({"exp": 1_800_000_300.75})).unwrap().expires_at.secs(), 1_800_000_300);
    assert!(with_claims(&json!({"exp": 1e300})).is_ok());
    assert!(with_claims(&json!({"exp": u64::MAX})).is_ok());
    for past in [json!(-1e300), json!(i64::MIN), json!(0), json!(NOW.secs() - 600)] {
        assert_eq!(with_claims(&json!({ "exp": past })), Err(TokenError::Expired), "{past}");
    }
}

#[test]
fn jsvid_20_the_leeway_is_a_minute_and_not_more() {
    let now = NOW.secs();
    for (claim, at, outcome) in [
        ("exp", now - 60, None),
        ("exp", now - 61, Some(TokenError::Expired)),
        ("exp", now - 600, Some(TokenError::Expired)),
        ("nbf", now + 60, None),
        ("nbf", now + 61, Some(TokenError::NotYet)),
        ("iat", now + 60, None),
        ("iat", now + 61, Some(TokenError::NotYet)),
        ("iat", now - 1_000_000, None),
    ] {
        assert_eq!(with_claims(&json!({ claim: at })).err(), outcome, "{claim} {at}");
    }
    assert!(matches!(with_claims(&json!({"nbf": "soon"})), Err(TokenError::Malformed(_))));
    assert!(with_claims(&json!({"iat": null})).is_ok());
}

#[test]
fn jsvid_21_a_jti_is_carried_and_not_tracked() {
    let token = OWN.jwt(Leave::jwt(WEB, &["db"]), Some("once"));
    let bundles = set([OWN.bundle()]);
    for _ in 0..2 {
        assert_eq!(jwt::verify(&token, "db", &bundles, NOW).unwrap().claims["jti"], "once");
    }
    assert_eq!(parts(&OWN.jwt(Leave::jwt(WEB, &["db"]), None)).1.get("jti"), None);
}

/// A published bundle with two JWT keys.
fn published() -> Vec<Value> {
    jwt_keys("example.org", &[("a", &P256), ("b", &P384)]).to_jwks()["keys"].as_array().unwrap().clone()
}

fn consumed(entries: &[Value]) -> Result<Bundle, countersign_identity::bundle::BundleError> {
    Bundle::from_jwks(td("example.org"), json!({ "keys": entries }).to_string().as_bytes())
}

#[test]
fn jsvid_24_published_keys_have_the_use_jwt_svid() {
    let mut entries = published();
    assert!(entries.iter().all(|e| e["use"] == "jwt-svid"));
    entries[0]["use"] = json!("sig");
    assert_eq!(consumed(&entries).unwrap().jwt_authorities().len(), 1);
}

#[test]
fn jsvid_25_published_keys_have_their_kid() {
    let mut entries = published();
    assert_eq!([&entries[0]["kid"], &entries[1]["kid"]], ["a", "b"]);
    entries[0].as_object_mut().unwrap().remove("kid");
    assert!(consumed(&entries).is_err());
}

#[test]
fn jsvid_26_a_key_of_another_use_does_not_verify_tokens() {
    let listed = |key_use: &str| {
        let mut entries = jwt_keys("example.org", &[("k", &P256)]).to_jwks()["keys"].as_array().unwrap().clone();
        entries[0]["use"] = json!(key_use);
        jwt::verify(&good(), "db", &set([consumed(&entries).unwrap()]), NOW).map(|_| ())
    };
    assert_eq!(listed("jwt-svid"), Ok(()));
    for key_use in ["x509-svid", "wit-svid", "JWT-SVID"] {
        assert_eq!(listed(key_use), Err(TokenError::NoBundle("example.org".to_owned())), "`{key_use}`");
    }
    // The root's own key, named like a token key would be.
    let root_only = set([roots("example.org", &[OWN.certificate.der()])]);
    let signed = OWN.jwt(Leave::jwt(WEB, &["db"]), None);
    assert!(jwt::verify(&signed, "db", &set([OWN.bundle()]), NOW).is_ok());
    assert_eq!(jwt::verify(&signed, "db", &root_only, NOW), Err(TokenError::NoBundle("example.org".to_owned())));
}

#[test]
fn jsvid_27_a_bundle_without_jwt_keys_refuses_every_token() {
    assert!(verify(&good()).is_ok());
    for bundles in [set([Bundle::empty(td("example.org"))]), set([]), set([jwt_keys("other.org", &[("k", &P256)])])] {
        assert_eq!(jwt::verify(&good(), "db", &bundles, NOW), Err(TokenError::NoBundle("example.org".to_owned())));
    }
}

#[test]
fn jsvid_28_every_signing_key_has_its_own_entry() {
    assert_eq!(published().len(), 2);
    let mut bundle = jwt_keys("example.org", &[("a", &P256)]);
    bundle.add_jwt_authority(jwt_authority("a", &P384)).unwrap();
    assert_eq!(bundle.to_jwks()["keys"].as_array().unwrap().len(), 1, "one name is one key");
    assert_eq!(bundle.jwt_authority("a").unwrap().public_key, P384.public());
}

#[test]
fn jsvid_29_signatures_are_checked_with_the_right_key_over_the_right_bytes() {
    let token = good();
    assert!(verify(&token).is_ok());
    // Any bit of any part.
    for position in (0..token.len()).step_by(7) {
        let mut bytes = token.clone().into_bytes();
        bytes[position] ^= 1;
        assert!(verify(&String::from_utf8(bytes).unwrap()).is_err(), "byte {position}");
    }
    let stem = &token[..=token.rfind('.').unwrap()];
    for signature in [String::new(), encode([0; 64]), encode([0; 63]), encode([0xff; 64]), encode([0; 65])] {
        assert_eq!(verify(&format!("{stem}{signature}")), Err(TokenError::Signature));
    }
    // The right name in another trust domain's bundle.
    let foreign = set([jwt_keys("example.org", &[("k", &P384)]), jwt_keys("other.org", &[("k", &P256)])]);
    assert_eq!(jwt::verify(&token, "db", &foreign, NOW), Err(TokenError::Signature));
    let nameless = set([jwt_keys("example.org", &[("j", &P384)]), jwt_keys("other.org", &[("k", &P256)])]);
    assert!(matches!(jwt::verify(&token, "db", &nameless, NOW), Err(TokenError::UnknownKey { .. })));
    // The right name, but an RSA key for an ECDSA signature, and the reverse.
    assert_eq!(jwt::verify(&token, "db", &set([jwt_keys("example.org", &[("k", &RSA)])]), NOW), Err(TokenError::Signature));
    let rsa = crate::support::token(&with(header(), &json!({"alg": "RS256"})), &claims(), &RSA);
    assert_eq!(verify(&rsa), Err(TokenError::Signature));
    for crit in [json!(["exp"]), json!(["b64"]), json!([]), json!("x")] {
        assert_eq!(with_header(&json!({ "crit": crit })), Err(TokenError::Critical), "{crit}");
    }
}

#[test]
fn a_signature_in_asn1_form_is_refused() {
    let key = Signer::authority(countersign_identity::key::KeyType::EcP256);
    let asn1 = token(&header(), &claims(), &key);
    assert_eq!(jwt::verify(&asn1, "db", &set([jwt_keys("example.org", &[("k", &key)])]), NOW), Err(TokenError::Signature));
}

#[test]
fn a_token_over_the_size_limit_is_refused_unread() {
    let long = "a".repeat(TOKEN_BYTES_MAX + 1);
    assert_eq!(verify(&long), Err(TokenError::TooLong(TOKEN_BYTES_MAX + 1)));
}

#[test]
fn parts_that_are_not_json_objects_are_refused() {
    let (header, payload) = (encode(header().to_string()), encode(claims().to_string()));
    for (header, payload) in [
        (&encode("[]"), &payload),
        (&encode("x"), &payload),
        (&header, &encode("[]")),
        (&header, &encode("\"x\"")),
        (&header, &encode([0xff, 0xfe])),
        (&format!("{header}="), &payload),
        (&header, &format!("{payload} ")),
    ] {
        assert!(matches!(verify(&format!("{header}.{payload}.")), Err(TokenError::Malformed(_))));
    }
}

#[test]
fn a_token_can_be_read_without_being_checked() {
    assert_eq!(jwt::peek(&good()).unwrap()["sub"], WEB);
    assert!(jwt::peek("x").is_err());
    assert!(jwt::peek("x.y.z").is_err());
}

#[test]
fn refusals_read_as_clients_know_them() {
    let check = |result: Result<Verified, TokenError>, expect: Expect| expect.assert_eq(&result.unwrap_err().to_string());
    check(with_claims(&json!({"exp": 0})), expect!["token has expired"]);
    check(with_claims(&json!({"exp": null})), expect!["token missing exp claim"]);
    check(with_claims(&json!({"sub": null})), expect!["token missing subject claim"]);
    check(with_header(&json!({"kid": null})), expect!["token header missing key id"]);
    check(with_claims(&json!({"aud": ["a", "b"]})), expect![[r#"expected audience in ["db"] (audience=["a", "b"])"#]]);
    check(with_header(&json!({"kid": "z"})), expect![[r#"public key "z" not found in trust domain "example.org""#]]);
    check(with_header(&json!({"alg": "none"})), expect!["unable to parse JWT token: unsupported signature algorithm `none`"]);
}
