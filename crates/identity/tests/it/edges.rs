//! Limits to the byte, one spelling of lengths, what is left out, and what is printed.

use std::time::Duration;

use countersign_identity::bundle::{BUNDLE_BYTES_MAX, BundleError};
use countersign_identity::csr::{self, CSR_BYTES_MAX, Csr, CsrError};
use countersign_identity::der::{Writer, tag};
use countersign_identity::issue::{Kind, Linted, Permission};
use countersign_identity::jwk::{self, JwkError};
use countersign_identity::jwt::{self, TOKEN_BYTES_MAX, TokenError};
use countersign_identity::key::{KeyError, PublicKey, PublicKeyKind, SPKI_BYTES_MAX, SigningAlgorithm};
use countersign_identity::pem::{self, PEM_BYTES_MAX};
use countersign_identity::x509::{CERTIFICATE_BYTES_MAX, Certificate, CertificateError, ChainError, Subject, verify_chain};
use countersign_identity::{Bundle, BundleSet, Selector, SpiffeId};
use serde_json::json;

use crate::support::{Ca, HOUR, NOW, OWN, P256, WEB, extension, id, name_constraints, roots, set, td, tlv};

#[test]
fn a_document_of_exactly_the_greatest_size_is_read() {
    let empty = r#"{"keys":[]}"#;
    let bundle = format!("{empty}{}", " ".repeat(BUNDLE_BYTES_MAX - empty.len()));
    assert_eq!(bundle.len(), BUNDLE_BYTES_MAX);
    assert!(Bundle::from_jwks(td("example.org"), bundle.as_bytes()).is_ok());
    assert_eq!(Bundle::from_jwks(td("example.org"), format!("{bundle} ").as_bytes()), Err(BundleError::TooLong(BUNDLE_BYTES_MAX + 1)));
    assert_eq!(pem::read(&" ".repeat(PEM_BYTES_MAX)), Ok(Vec::new()));
    let longest = "a".repeat(TOKEN_BYTES_MAX);
    let verify = |token: &str| jwt::verify(token, "db", &BundleSet::default(), NOW).unwrap_err();
    assert_eq!(verify(&longest), TokenError::Malformed("it has not three parts"));
    assert_eq!(verify(&(longest + "a")), TokenError::TooLong(TOKEN_BYTES_MAX + 1));
    assert_eq!(Csr::parse(&[0; CSR_BYTES_MAX]).unwrap_err(), CsrError::Malformed);
    assert_eq!(PublicKey::from_spki(&[0; SPKI_BYTES_MAX]), Err(KeyError::Malformed));
}

/// A certificate with this many bytes beside what every one has.
fn padded(root: &Ca, bytes: usize) -> Vec<u8> {
    root.leaf_with(WEB, |p| p.custom_extensions = vec![extension(&[1, 2, 3, 4], false, vec![0; bytes])])
}

#[test]
fn a_certificate_of_exactly_the_greatest_size_is_read() {
    let root = Ca::root("root");
    // A signature has one length or another, so certificates are made until one fits.
    let (mut seen, mut bytes) = (Vec::new(), CERTIFICATE_BYTES_MAX - 1024);
    while !(seen.contains(&CERTIFICATE_BYTES_MAX) && seen.contains(&(CERTIFICATE_BYTES_MAX + 1))) {
        let der = padded(&root, bytes);
        match Certificate::parse(&der) {
            Ok(_) => assert!(der.len() <= CERTIFICATE_BYTES_MAX, "{}", der.len()),
            Err(error) => {
                assert!(der.len() > CERTIFICATE_BYTES_MAX, "{} bytes are refused", der.len());
                assert_eq!(error, CertificateError::TooLong(der.len()));
            }
        }
        seen.push(der.len());
        // Towards the limit, and then around it.
        bytes = if der.len() + 8 < CERTIFICATE_BYTES_MAX { bytes + CERTIFICATE_BYTES_MAX - der.len() - 4 } else { bytes + 1 };
        if der.len() > CERTIFICATE_BYTES_MAX + 8 {
            bytes -= 16;
        }
        assert!(seen.len() < 1000, "no certificate of {CERTIFICATE_BYTES_MAX} bytes");
    }
}

/// A request for an RSA key whose document has this many bytes. Nobody signed it: the key is looked at first.
fn with_large_key(spki_bytes: usize) -> (Vec<u8>, usize) {
    let document = |modulus: usize| {
        let mut w = Writer::new();
        w.nest(tag::SEQUENCE, |w| {
            w.nest(tag::SEQUENCE, |w| {
                w.element(tag::OID, countersign_identity::der::OID_RSA);
                w.element(tag::NULL, &[]);
            });
            let mut key = Writer::new();
            key.nest(tag::SEQUENCE, |w| {
                w.unsigned(&vec![0xff; modulus]);
                w.unsigned(&[1, 0, 1]);
            });
            w.bit_string(&key.finish());
        });
        w.finish()
    };
    let modulus = spki_bytes - (document(1500).len() - 1500);
    let spki = document(modulus);
    assert_eq!(spki.len(), spki_bytes);
    let mut info = Writer::new();
    info.nest(tag::SEQUENCE, |w| {
        w.element(tag::INTEGER, &[0]);
        w.element(tag::SEQUENCE, &[]);
        w.raw(&spki);
        w.element(0xa0, &[]);
    });
    (csr::assemble(&info.finish(), SigningAlgorithm::RsaPkcs1Sha256, &[0; 64]), modulus)
}

#[test]
fn the_limit_of_a_key_document_holds_inside_a_request_too() {
    let (request, modulus) = with_large_key(SPKI_BYTES_MAX);
    assert_eq!(Csr::parse(&request).unwrap_err(), CsrError::Key(KeyError::RsaBits(8 * modulus)), "not too long, but too large");
    let (request, _) = with_large_key(SPKI_BYTES_MAX + 1);
    assert_eq!(Csr::parse(&request).unwrap_err(), CsrError::Key(KeyError::TooLong(SPKI_BYTES_MAX + 1)));
}

#[test]
fn lengths_from_128_on_have_their_long_form_as_der_demands() {
    let head = |bytes: usize| {
        let mut w = Writer::new();
        w.element(tag::OCTET_STRING, &vec![0; bytes]);
        let der = w.finish();
        der[..der.len() - bytes].to_vec()
    };
    assert_eq!(head(127), [4, 0x7f]);
    assert_eq!(head(128), [4, 0x81, 0x80]);
    assert_eq!(head(255), [4, 0x81, 0xff]);
    assert_eq!(head(256), [4, 0x82, 1, 0]);
    assert_eq!(head(70_000), [4, 0x83, 1, 0x11, 0x70]);
}

/// A permission that says no more than it must.
#[derive(Debug)]
struct Bare(Kind, SpiffeId);

impl Permission for Bare {
    fn kind(&self) -> Kind {
        self.0
    }
    fn spiffe_id(&self) -> &SpiffeId {
        &self.1
    }
    fn lifetime(&self) -> Duration {
        HOUR
    }
}

#[test]
fn a_permission_that_names_neither_hosts_nor_audiences_allows_none() {
    assert_eq!(Bare(Kind::OwnX509, id(WEB)).dns_names(), [""; 0]);
    assert_eq!(Bare(Kind::WorkloadJwt, id(WEB)).audience(), [""; 0]);
    assert!(Linted::x509(Bare(Kind::OwnX509, id(WEB)), &OWN.x509_issuer(), &P256.public(), [9; 16], NOW).is_ok());
    let refused = Linted::jwt(Bare(Kind::WorkloadJwt, id(WEB)), &OWN.jwt_issuer(), None, NOW).unwrap_err();
    assert_eq!(refused.lint, "token_claims", "a token for nobody");
}

#[test]
fn a_key_of_another_edwards_curve_is_not_taken_for_ed25519() {
    let mut key = jwk::write(&PublicKey::from_bits(PublicKeyKind::Ed25519, &[7; 32]).unwrap());
    assert!(jwk::read(&key).is_ok());
    for curve in ["Ed448", "X25519"] {
        key.insert("crv".to_owned(), json!(curve));
        assert_eq!(jwk::read(&key), Err(JwkError::Unknown), "{curve}");
    }
}

#[test]
fn an_ed25519_key_signs_under_its_own_algorithm_alone() {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    let pair = Ed25519KeyPair::generate().unwrap();
    let key = PublicKey::from_bits(PublicKeyKind::Ed25519, pair.public_key().as_ref()).unwrap();
    let info = csr::request_info(&key, Some(&id(WEB)), &[]);
    let under = |oid: &[u8]| {
        let mut w = Writer::new();
        w.nest(tag::SEQUENCE, |w| {
            w.raw(&info);
            w.nest(tag::SEQUENCE, |w| w.element(tag::OID, oid));
            w.bit_string(pair.sign(&info).as_ref());
        });
        Csr::parse(&w.finish()).map(|csr| csr.spiffe_id)
    };
    assert_eq!(under(&[0x2b, 0x65, 0x70]), Ok(Some(id(WEB))));
    // Ed448, and something that is no algorithm at all.
    assert_eq!(under(&[0x2b, 0x65, 0x71]), Err(CsrError::Possession));
    assert_eq!(under(&[0x2a, 0x03]), Err(CsrError::Possession));
}

#[test]
fn certificates_that_follow_each_other_keep_their_own_bytes() {
    let (first, second) = (Ca::root("first"), Ca::root("second"));
    let both = Certificate::parse_concatenated(&[first.der.as_slice(), &second.der].concat()).unwrap();
    assert_eq!(both.iter().map(Certificate::der).collect::<Vec<_>>(), [&first.der, &second.der]);
}

#[test]
fn a_certificate_with_a_name_that_cannot_be_read_is_refused() {
    let dns = |name: &[u8]| {
        let names = tlv(0x30, &[tlv(0x86, WEB.as_bytes()), tlv(0x82, name)].concat());
        Ca::root("root").leaf_with(WEB, |p| {
            p.subject_alt_names.clear();
            p.custom_extensions = vec![extension(&[2, 5, 29, 17], false, names)];
        })
    };
    assert_eq!(Certificate::parse(&dns(b"web")).unwrap().dns_names, ["web"]);
    assert_eq!(Certificate::parse(&dns(&[0xff, 0xfe])), Err(CertificateError::Malformed));
}

#[test]
fn the_subject_of_an_authority_is_the_issuer_of_what_it_signs() {
    let root = Ca::root("root");
    let subject = root.certificate().subject_der().to_vec();
    assert!(subject.windows(4).any(|part| part == b"root"));
    let leaf = root.leaf(WEB);
    assert!(leaf.windows(subject.len()).any(|part| part == subject));
}

#[test]
fn a_subject_is_written_as_printable_text_where_that_can_hold_it() {
    let subject = |common_name: &str| Subject { common_name: common_name.to_owned(), ..Subject::default() }.to_der(&[1]);
    let has = |der: &[u8], tag: u8, text: &str| der.windows(text.len() + 2).any(|part| part == tlv(tag, text.as_bytes()));
    // RFC 5280 appendix A.1: a country has no other form.
    assert!(has(&subject(""), tag::PRINTABLE_STRING, "US"));
    assert!(has(&subject("a b'(c)+,-./:=?"), tag::PRINTABLE_STRING, "a b'(c)+,-./:=?"));
    for text in ["é", "a*b", "a_b", "a@b"] {
        assert!(has(&subject(text), tag::UTF8_STRING, text), "{text}");
    }
}

#[test]
fn a_constraint_on_all_hosts_below_a_domain_leaves_out_the_host_without_a_name() {
    let root = Ca::root_with("root", |p| p.custom_extensions = vec![name_constraints(&[(0x86, b".example.org")], &[])]);
    let verify = |host: &str| {
        let leaf = root.leaf(&format!("spiffe://{host}/web"));
        verify_chain(&[&leaf], &set([roots(host, &[&root.der])]), NOW).map(|(id, _)| id.trust_domain_name().to_owned())
    };
    assert_eq!(verify("a.example.org"), Ok("a.example.org".to_owned()));
    assert_eq!(verify(".example.org"), Err(ChainError::NameConstraint));
    assert_eq!(verify("example.org"), Err(ChainError::NameConstraint));
}

#[test]
fn a_bundle_that_was_cleared_trusts_nobody() {
    let mut bundle = roots("example.org", &[&Ca::root("root").der]);
    bundle.add_jwt_authority(crate::support::jwt_authority("k", &P256)).unwrap();
    bundle.clear_x509_authorities();
    assert!(bundle.x509_authorities().is_empty());
    assert_eq!(bundle.jwt_authorities().len(), 1, "the other kind stays");
    bundle.clear_jwt_authorities();
    assert_eq!(bundle, Bundle::empty(td("example.org")));
}

#[test]
fn what_is_printed_for_the_developer_names_the_thing_and_holds_no_more() {
    assert_eq!(format!("{:?} {:?}", td("example.org"), id(WEB)), format!("example.org {WEB}"));
    assert_eq!(format!("{:?}", Selector::parse("unix:uid:1").unwrap()), "unix:uid:1");
    assert_eq!(format!("{NOW:?}"), "2027-01-15T08:00:00Z");
    let key = PublicKey::from_bits(PublicKeyKind::Ed25519, &[7; 32]).unwrap();
    assert_eq!(format!("{key:?}"), format!("PublicKey(Ed25519, {})", countersign_identity::key::hex(&key.key_id())));
}
