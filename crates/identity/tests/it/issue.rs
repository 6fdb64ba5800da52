//! Issuing: what is signed is what was allowed, byte for byte, and others can read it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use countersign_identity::csr::{self, CSR_BYTES_MAX, Csr, CsrError};
use countersign_identity::issue::{Credential, Kind, Linted};
use countersign_identity::key::{KeyError, KeyType, hex};
use countersign_identity::rotation::BACKDATE;
use countersign_identity::x509::{Certificate, Subject, verify_chain};
use countersign_identity::{Timestamp, jwt, pem};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use crate::support::{HOUR, Leave, NOW, OWN, Own, P256, P384, RSA, Signer, WEB, id, raw_extension, set, td, uri};

fn lint_x509(leave: Leave, serial: [u8; 16], now: Timestamp) -> Result<Certificate, &'static str> {
    let linted = Linted::x509(leave, &OWN.x509_issuer(), &P256.public(), serial, now).map_err(|e| e.lint)?;
    let signature = OWN.key.sign(linted.algorithm(), linted.bytes());
    let Credential::X509(der) = linted.finish(&signature).unwrap() else { panic!("not a certificate") };
    Ok(Certificate::parse(&der).unwrap())
}

/// A directory of this test alone, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("countersign-identity-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What OpenSSL says: a second opinion.
fn openssl(arguments: &[&str]) -> Option<(bool, String)> {
    let output = Command::new("openssl").args(arguments).output().expect("openssl is installed; `cargo xtask test` does it");
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn every_key_type_issues_certificates_and_tokens_that_verify() {
    let scratch = Scratch::new("issue");
    for key_type in KeyType::ALL {
        let own = Own::of(key_type, "example.org");
        let bundles = set([own.bundle()]);
        let leaf = own.x509(Leave { dns_names: vec!["web.example.org".to_owned()], ..Leave::x509(WEB) });
        assert_eq!(verify_chain(&[&leaf], &bundles, NOW).unwrap().0, id(WEB), "{key_type:?}");
        let token = own.jwt(Leave::jwt(WEB, &["db"]), Some("id"));
        assert_eq!(jwt::verify(&token, "db", &bundles, NOW).unwrap().spiffe_id, id(WEB), "{key_type:?}");

        let root_file = scratch.put(&format!("{}.root.pem", key_type.name()), pem::write("CERTIFICATE", own.certificate.der()));
        let leaf_file = scratch.put(&format!("{}.leaf.pem", key_type.name()), pem::write("CERTIFICATE", &leaf));
        let attime = NOW.secs().to_string();
        for purpose in ["sslserver", "sslclient"] {
            let arguments = ["verify", "-x509_strict", "-purpose", purpose, "-attime", &attime, "-CAfile", &root_file, &leaf_file];
            if let Some((verified, text)) = openssl(&arguments) {
                assert!(verified, "{key_type:?}: {text}");
            }
        }
        let as_leaf = ["verify", "-purpose", "sslserver", "-attime", &attime, "-CAfile", &leaf_file, &leaf_file];
        if let Some((verified, _)) = openssl(&as_leaf) {
            assert!(!verified, "a leaf is no authority");
        }
    }
}

#[test]
fn others_read_the_certificate_as_we_meant_it() {
    use x509_parser::prelude::FromDer as _;
    let der = OWN.x509(Leave { dns_names: vec!["web.example.org".to_owned(), "w".to_owned()], ..Leave::x509(WEB) });
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&der).unwrap();
    assert_eq!(parsed.version(), x509_parser::x509::X509Version::V3);
    assert_eq!(parsed.subject().to_string(), "C=US, O=SPIRE, CN=web.example.org");
    assert_eq!(parsed.raw_serial(), [9; 16]);
    assert_eq!(parsed.tbs_certificate.signature, parsed.signature_algorithm);
    let oids: Vec<String> = parsed.extensions().iter().map(|e| e.oid.to_id_string()).collect();
    assert_eq!(oids, ["2.5.29.15", "2.5.29.37", "2.5.29.19", "2.5.29.14", "2.5.29.35", "2.5.29.17"]);
    let (_, root) = x509_parser::certificate::X509Certificate::from_der(OWN.certificate.der()).unwrap();
    assert_eq!(parsed.issuer(), root.subject());
    assert_eq!(root.subject().to_string(), format!("C=US, O=SPIFFE, serialNumber={}", OWN.certificate.serial_decimal()));
    assert_eq!(OWN.certificate.serial_decimal(), "9341084582143408800955381380479911687", "0x07 sixteen times");
}

#[test]
fn names_and_key_identifiers_are_written_byte_for_byte() {
    let der = OWN.x509(Leave { dns_names: vec!["a.b".to_owned()], ..Leave::x509("spiffe://example.org/w") });
    let mut san = vec![0x30, 0x1d, 0x82, 0x03];
    san.extend_from_slice(b"a.b");
    san.extend_from_slice(&[0x86, 0x16]);
    san.extend_from_slice(b"spiffe://example.org/w");
    assert_eq!(raw_extension(&der, "2.5.29.17"), Some((false, san)));
    let ski = [&[0x04, 0x14], &P256.public().key_id()[..]].concat();
    assert_eq!(raw_extension(&der, "2.5.29.14"), Some((false, ski)));
    let aki = [&[0x30, 0x16, 0x80, 0x14], &OWN.key.public().key_id()[..]].concat();
    assert_eq!(raw_extension(&der, "2.5.29.35"), Some((false, aki)));
    assert_eq!(raw_extension(OWN.certificate.der(), "2.5.29.35"), None);
    assert_eq!(OWN.certificate.authority_id(), hex(&OWN.key.public().key_id()));
}

#[test]
fn a_certificate_lives_as_long_as_allowed_and_never_longer_than_its_issuer() {
    let day = 24 * HOUR;
    for (lifetime, end) in
        [(HOUR, HOUR), (day, day), (2 * day, day), (Duration::MAX, day), (Duration::from_millis(1500), Duration::from_secs(1))]
    {
        let certificate = lint_x509(Leave { lifetime, ..Leave::x509(WEB) }, [1; 16], NOW).unwrap();
        assert_eq!(certificate.not_after, NOW.after(end), "{lifetime:?}");
        assert_eq!(certificate.not_before, NOW.before(BACKDATE));
    }
    for (lifetime, now) in [(Duration::ZERO, NOW), (Duration::from_millis(999), NOW), (HOUR, NOW.after(day)), (HOUR, NOW.after(2 * day))] {
        assert_eq!(lint_x509(Leave { lifetime, ..Leave::x509(WEB) }, [1; 16], now).unwrap_err(), "validity");
    }
}

#[test]
fn a_token_lives_as_long_as_allowed_and_never_longer_than_its_key() {
    let end = |lifetime, expires_at| {
        let issuer = countersign_identity::issue::JwtIssuer { expires_at, ..OWN.jwt_issuer() };
        Linted::jwt(Leave { lifetime, ..Leave::jwt(WEB, &["db"]) }, &issuer, None, NOW).map(|l| l.facts().expires_at).map_err(|e| e.lint)
    };
    assert_eq!(end(HOUR, NOW.after(2 * HOUR)), Ok(NOW.after(HOUR)));
    assert_eq!(end(2 * HOUR, NOW.after(HOUR)), Ok(NOW.after(HOUR)));
    assert_eq!(end(Duration::MAX, NOW.after(HOUR)), Ok(NOW.after(HOUR)));
    assert_eq!(end(HOUR, NOW), Err("token_claims"));
    assert_eq!(end(Duration::ZERO, NOW.after(HOUR)), Err("token_claims"));
}

#[test]
fn an_authority_lives_as_long_as_allowed_within_the_calendar() {
    let end = |lifetime| {
        let leave = Leave { lifetime, ..Leave::authority("spiffe://example.org") };
        Linted::authority(leave, &Subject::default(), &P256.public(), OWN.algorithm, [1; 16], NOW)
            .map(|l| l.facts().expires_at)
            .map_err(|e| e.lint)
    };
    assert_eq!(end(24 * HOUR), Ok(NOW.after(24 * HOUR)));
    let past_2050 = Duration::from_secs(40 * 365 * 24 * 3600);
    assert_eq!(end(past_2050), Ok(NOW.after(past_2050)));
    assert_eq!(end(Duration::ZERO), Err("validity"));
    for beyond in [Duration::from_secs(9000 * 365 * 24 * 3600), Duration::MAX] {
        assert_eq!(end(beyond), Err("validity"));
    }
}

#[test]
fn a_certificate_begins_no_earlier_than_its_issuer() {
    let begin = OWN.certificate.not_before;
    // A clock that was set back by less than what certificates are backdated by.
    let soon = lint_x509(Leave::x509(WEB), [1; 16], begin.after(Duration::from_secs(3))).unwrap();
    assert_eq!(soon.not_before, begin);
    assert_eq!(lint_x509(Leave::x509(WEB), [1; 16], begin.before(Duration::from_secs(1))).unwrap_err(), "validity");
}

#[test]
fn serial_numbers_are_positive_whatever_their_first_bit() {
    for (serial, decimal) in
        [([0xff; 16], "340282366920938463463374607431768211455"), ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "256")]
    {
        assert_eq!(lint_x509(Leave::x509(WEB), serial, NOW).unwrap().serial_decimal(), decimal);
    }
    assert_eq!(lint_x509(Leave::x509(WEB), [0; 16], NOW).unwrap_err(), "serial");
}

#[test]
fn the_facts_for_the_journal_are_those_of_the_credential() {
    let linted = Linted::x509(Leave::x509(WEB), &OWN.x509_issuer(), &P256.public(), [9; 16], NOW).unwrap();
    assert_eq!((linted.permission().kind, &linted.permission().spiffe_id), (Kind::WorkloadX509, &id(WEB)));
    let facts = linted.facts().clone();
    let certificate = lint_x509(Leave::x509(WEB), [9; 16], NOW).unwrap();
    assert_eq!(facts.serial_or_jti, certificate.serial_decimal());
    assert_eq!((facts.not_before, facts.expires_at), (certificate.not_before, certificate.not_after));
    assert_eq!(facts.authority_id, OWN.certificate.authority_id());
    let linted = Linted::jwt(Leave::jwt(WEB, &["db"]), &OWN.jwt_issuer(), Some("jti-1"), NOW).unwrap();
    assert_eq!((linted.facts().serial_or_jti.as_str(), linted.facts().authority_id.as_str()), ("jti-1", "k"));
    assert_eq!(linted.facts().expires_at, NOW.after(Duration::from_secs(300)));
}

#[test]
fn a_token_says_what_was_allowed_and_nothing_else() {
    let issuer = countersign_identity::issue::JwtIssuer { issuer: Some("https://issuer".to_owned()), ..OWN.jwt_issuer() };
    let linted = Linted::jwt(Leave::jwt(WEB, &["db", "cache"]), &issuer, Some("j"), NOW).unwrap();
    let signature = OWN.key.sign(linted.algorithm(), linted.bytes());
    let Credential::Jwt(token) = linted.finish(&signature).unwrap() else { panic!("not a token") };
    let claims = jwt::peek(&token).unwrap();
    let (now, end) = (NOW.secs(), NOW.secs() + 300);
    assert_eq!(
        Value::Object(claims),
        json!({"sub": WEB, "aud": ["db", "cache"], "iat": now, "exp": end, "iss": "https://issuer", "jti": "j"})
    );
    let bare = jwt::peek(&OWN.jwt(Leave::jwt(WEB, &["db"]), None)).unwrap();
    assert_eq!(Value::Object(bare), json!({"sub": WEB, "aud": ["db"], "iat": now, "exp": end}));
}

#[test]
fn a_signature_that_is_no_ecdsa_signature_makes_no_token() {
    for signature in [&b""[..], b"x", &[0; 64], &[0x30, 0x02, 0x02, 0x00]] {
        let linted = Linted::jwt(Leave::jwt(WEB, &["db"]), &OWN.jwt_issuer(), None, NOW).unwrap();
        assert!(linted.finish(signature).is_err(), "{signature:?}");
    }
}

#[test]
fn short_ecdsa_integers_are_padded_and_long_ones_refused() {
    use countersign_identity::key::SigningAlgorithm::EcdsaP256Sha256;
    let fixed = jwt::assemble("a.b", EcdsaP256Sha256, &[0x30, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x02]).unwrap();
    let mut expected = [0; 64];
    (expected[31], expected[63]) = (1, 2);
    assert_eq!(fixed, format!("a.b.{}", crate::support::encode(expected)));
    let long = [&[0x30, 0x26, 0x02, 0x21][..], &[0x7f; 33], &[0x02, 0x01, 0x02]].concat();
    assert!(jwt::assemble("a.b", EcdsaP256Sha256, &long).is_err());
}

#[test]
fn an_authority_subject_takes_any_characters() {
    use x509_parser::prelude::FromDer as _;
    let subject =
        Subject { country: vec!["DE".to_owned()], organization: vec!["Müller & Söhne".to_owned()], common_name: "Wurzel".to_owned() };
    let linted =
        Linted::authority(Leave::authority("spiffe://example.org"), &subject, &P256.public(), OWN.algorithm, [1; 16], NOW).unwrap();
    let Credential::X509(der) = linted.finish(&[]).unwrap() else { panic!("not a certificate") };
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&der).unwrap();
    let text = parsed.subject().to_string();
    assert!(text.starts_with("C=DE, O=Müller & Söhne, CN=Wurzel, serialNumber="), "{text}");
}

/// A request as our own code writes it, signed by this key.
fn request(key: &Signer, key_type: KeyType, spiffe_id: Option<&str>, dns_names: &[&str]) -> Vec<u8> {
    let names: Vec<String> = dns_names.iter().map(|n| (*n).to_owned()).collect();
    let info = csr::request_info(&key.public(), spiffe_id.map(id).as_ref(), &names);
    csr::assemble(&info, key_type.algorithm(), &key.sign(key_type.algorithm(), &info))
}

#[test]
fn a_request_survives_being_written_and_read() {
    let scratch = Scratch::new("csr");
    for key_type in KeyType::ALL {
        let key = Signer::authority(key_type);
        for (spiffe_id, dns_names) in [(Some(WEB), &["a.b", "c"][..]), (None, &[]), (Some(WEB), &[]), (None, &["a.b"])] {
            let der = request(&key, key_type, spiffe_id, dns_names);
            let read = Csr::parse(&der).unwrap();
            assert_eq!(read.public_key, key.public());
            assert_eq!(read.spiffe_id, spiffe_id.map(id));
            assert_eq!(read.dns_names, dns_names);
            assert_eq!(read.common_name, None);
            let file = scratch.put("csr.pem", pem::write("CERTIFICATE REQUEST", &der));
            if let Some((verified, text)) = openssl(&["req", "-verify", "-noout", "-in", &file]) {
                assert!(verified && text.contains("OK"), "{key_type:?}: {text}");
            }
        }
    }
}

#[test]
fn requests_of_others_are_read() {
    let mut params = CertificateParams::new(vec!["web.example.org".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "web");
    params.subject_alt_names.push(uri(WEB));
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P521_SHA512, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let read = Csr::parse(params.serialize_request(&key).unwrap().der()).unwrap();
        assert_eq!(read.spiffe_id, Some(id(WEB)));
        assert_eq!(read.dns_names, ["web.example.org"]);
        assert_eq!(read.common_name.as_deref(), Some("web"));
    }
}

#[test]
fn a_request_that_does_not_prove_possession_is_refused() {
    let key = Signer::authority(KeyType::EcP256);
    let good = request(&key, KeyType::EcP256, Some(WEB), &[]);
    assert!(Csr::parse(&good).is_ok());
    // Somebody else's key in an otherwise proper request.
    let info = csr::request_info(&P256.public(), Some(&id(WEB)), &[]);
    let algorithm = KeyType::EcP256.algorithm();
    let stolen = csr::assemble(&info, algorithm, &key.sign(algorithm, &info));
    assert_eq!(Csr::parse(&stolen).unwrap_err(), CsrError::Possession);
    assert_eq!(Csr::parse(&csr::assemble(&info, algorithm, &[])).unwrap_err(), CsrError::Possession);
    // Another name after signing.
    let at = good.windows(WEB.len()).position(|w| w == WEB.as_bytes()).unwrap() + WEB.len() - 1;
    let mut renamed = good.clone();
    renamed[at] = b'c';
    assert_eq!(Csr::parse(&renamed).unwrap_err(), CsrError::Possession);
    // Any bit of what is signed, and of the signature. The names in between tell how to check it and are not signed.
    let info = csr::request_info(&key.public(), Some(&id(WEB)), &[]);
    let signed = good.windows(info.len()).position(|w| w == info).unwrap();
    let signature = signed + info.len() + 12;
    for position in (signed..signed + info.len()).chain(signature..good.len()) {
        let mut changed = good.clone();
        changed[position] ^= 1;
        assert!(Csr::parse(&changed).is_err(), "byte {position}");
    }
    // An algorithm that is not the key's.
    for (public, algorithm) in [(P384.public(), KeyType::EcP256), (RSA.public(), KeyType::EcP256), (P256.public(), KeyType::Rsa2048)] {
        let info = csr::request_info(&public, None, &[]);
        let signature = key.sign(KeyType::EcP256.algorithm(), &info);
        assert_eq!(Csr::parse(&csr::assemble(&info, algorithm.algorithm(), &signature)).unwrap_err(), CsrError::Possession);
    }
}

#[test]
fn a_request_for_a_small_rsa_key_is_refused() {
    let der = pem::read(include_str!("fixtures/rsa-1024.csr.pem")).unwrap().remove(0).1;
    assert_eq!(Csr::parse(&der).unwrap_err(), CsrError::Key(KeyError::RsaBits(1024)));
}

#[test]
fn a_request_names_at_most_one_spiffe_id() {
    let parse = |names: &[&str]| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.iter().map(|n| uri(n)).collect();
        Csr::parse(params.serialize_request(&*crate::support::LEAF_KEY).unwrap().der())
    };
    assert_eq!(parse(&[WEB]).unwrap().spiffe_id, Some(id(WEB)));
    assert_eq!(parse(&[]).unwrap().spiffe_id, None);
    assert_eq!(parse(&[WEB, "spiffe://example.org/db"]).unwrap_err(), CsrError::TooManyUris);
    assert_eq!(parse(&[WEB, WEB]).unwrap_err(), CsrError::TooManyUris);
    for odd in ["https://example.org/a", "spiffe://Example.org/a", "urn:x"] {
        assert!(matches!(parse(&[odd]), Err(CsrError::Uri { .. })), "`{odd}`");
    }
}

#[test]
fn a_request_over_the_limit_or_with_a_tail_is_refused() {
    assert_eq!(Csr::parse(&vec![0; CSR_BYTES_MAX + 1]).unwrap_err(), CsrError::TooLong(CSR_BYTES_MAX + 1));
    let mut tail = request(&Signer::authority(KeyType::EcP256), KeyType::EcP256, None, &[]);
    tail.push(0);
    assert_eq!(Csr::parse(&tail).unwrap_err(), CsrError::Malformed);
    assert_eq!(Csr::parse(OWN.certificate.der()).unwrap_err(), CsrError::Malformed);
}

#[test]
fn an_agent_and_a_server_get_their_ids_in_the_reserved_space() {
    for (kind, id) in [
        (Kind::AgentX509, td("example.org").with_path("/spire/agent/join_token/x").unwrap()),
        (Kind::OwnX509, td("example.org").server_id()),
    ] {
        let certificate = lint_x509(Leave { kind, spiffe_id: id.clone(), ..Leave::x509(WEB) }, [1; 16], NOW).unwrap();
        assert_eq!(certificate.spiffe_id(), Some(id));
    }
}

#[test]
fn a_permission_for_one_sort_of_credential_never_becomes_another() {
    let token_leave = Leave::jwt(WEB, &["a"]);
    assert_eq!(lint_x509(token_leave, [9; 16], NOW), Err("kind"));
    let refused = Linted::jwt(Leave::x509(WEB), &OWN.jwt_issuer(), None, NOW).map(|_| ()).map_err(|e| e.lint);
    assert_eq!(refused, Err("kind"));
    let refused = Linted::authority(Leave::x509(WEB), &Subject::default(), &P256.public(), OWN.algorithm, [9; 16], NOW);
    assert_eq!(refused.map(|_| ()).map_err(|e| e.lint), Err("kind"));
}
