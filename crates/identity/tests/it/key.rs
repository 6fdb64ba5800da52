//! Public keys in their three spellings, and PEM around them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_identity::der::{Writer, tag};
use countersign_identity::jwk::{self, JwkError};
use countersign_identity::key::{KeyError, KeyType, PublicKey, PublicKeyKind, SPKI_BYTES_MAX, SigningAlgorithm, hex};
use countersign_identity::pem::{self, PemError};
use serde_json::json;

use crate::support::{P256, P384, P521, RSA, Signer};

fn keys() -> [PublicKey; 5] {
    let ed25519 = PublicKey::from_bits(PublicKeyKind::Ed25519, &[7; 32]).unwrap();
    [P256.public(), P384.public(), P521.public(), RSA.public(), ed25519]
}

#[test]
fn every_kind_survives_each_spelling() {
    for key in keys() {
        assert_eq!(PublicKey::from_spki(key.spki()).as_ref(), Ok(&key));
        assert_eq!(PublicKey::from_bits(key.kind(), key.bits()).as_ref(), Ok(&key));
        assert_eq!(jwk::read(&jwk::write(&key)).as_ref(), Ok(&key));
    }
}

#[test]
fn the_key_identifier_is_the_sha1_of_the_bits() {
    let key = P256.public();
    let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, key.bits());
    assert_eq!(key.key_id(), expected.as_ref());
    assert_eq!(hex(&[0, 0xab, 0x0f]), "00ab0f");
}

#[test]
fn points_that_are_not_whole_and_uncompressed_are_refused() {
    let compressed = |key: &PublicKey| {
        let coordinates = &key.bits()[1..];
        let (x, y) = coordinates.split_at(coordinates.len() / 2);
        [&[2 + (y[y.len() - 1] & 1)], x].concat()
    };
    for key in [P256.public(), P384.public(), P521.public()] {
        let bits = key.bits();
        let mut long = bits.to_vec();
        long.push(0);
        for bad in [compressed(&key), bits[..bits.len() - 1].to_vec(), long, vec![4], vec![0], Vec::new()] {
            assert_eq!(PublicKey::from_bits(key.kind(), &bad), Err(KeyError::Malformed), "{:?}, {} bytes", key.kind(), bad.len());
        }
    }
    assert_eq!(PublicKey::from_bits(PublicKeyKind::EcP384, P256.public().bits()), Err(KeyError::Malformed));
    for length in [0, 31, 33] {
        assert_eq!(PublicKey::from_bits(PublicKeyKind::Ed25519, &vec![7; length]), Err(KeyError::Malformed));
    }
}

fn rsa_bits(modulus: &[u8]) -> Vec<u8> {
    let mut w = Writer::new();
    w.nest(tag::SEQUENCE, |w| {
        w.element(tag::INTEGER, modulus);
        w.unsigned(&[1, 0, 1]);
    });
    w.finish()
}

#[test]
fn rsa_keys_have_2048_to_8192_bits_however_they_are_padded() {
    let modulus = |bytes: usize| {
        let mut modulus = vec![0xff; bytes + 1];
        modulus[0] = 0;
        modulus
    };
    let size = |modulus: &[u8]| PublicKey::from_bits(PublicKeyKind::Rsa, &rsa_bits(modulus));
    assert!(size(&modulus(256)).is_ok());
    assert!(size(&modulus(1024)).is_ok());
    assert_eq!(size(&modulus(128)), Err(KeyError::RsaBits(1024)));
    assert_eq!(size(&modulus(255)), Err(KeyError::RsaBits(2040)));
    assert_eq!(size(&modulus(1025)), Err(KeyError::RsaBits(8200)));
    // 1,024 bits behind zeros are 1,024 bits.
    let mut padded = vec![0; 129];
    padded.extend(vec![0xff; 128]);
    assert!(size(&padded).is_err());
    assert!(size(&[]).is_err());
    assert!(size(&[0]).is_err());
    let with_rest = [RSA.public().bits(), &[0]].concat();
    assert!(PublicKey::from_bits(PublicKeyKind::Rsa, &with_rest).is_err(), "bytes after the key");
}

#[test]
fn the_numbers_of_an_rsa_key_are_positive_and_in_their_shortest_form() {
    let key = |modulus: &[u8], exponent: &[u8]| {
        let mut w = Writer::new();
        w.nest(tag::SEQUENCE, |w| {
            w.element(tag::INTEGER, modulus);
            w.element(tag::INTEGER, exponent);
        });
        PublicKey::from_bits(PublicKeyKind::Rsa, &w.finish())
    };
    let positive = [&[0][..], &[0xff; 256]].concat();
    assert!(key(&positive, &[1, 0, 1]).is_ok());
    // A JWK has positive numbers only: what is negative here would be another key there.
    assert_eq!(key(&positive, &[0x8c, 0, 1]), Err(KeyError::Malformed), "a negative exponent");
    assert!(key(&[0xff; 257], &[1, 0, 1]).is_err(), "a negative modulus");
    assert_eq!(key(&[&[0][..], &positive].concat(), &[1, 0, 1]), Err(KeyError::Malformed), "a modulus behind two zeros");
    assert_eq!(key(&positive, &[0, 1, 0, 1]), Err(KeyError::Malformed), "an exponent behind a zero");
}

#[test]
fn documents_that_are_no_public_keys_are_refused() {
    let key = P256.public();
    let mut trailing = key.spki().to_vec();
    trailing.push(0);
    assert_eq!(PublicKey::from_spki(&trailing), Err(KeyError::Malformed));
    assert_eq!(PublicKey::from_spki(&[]), Err(KeyError::Malformed));
    assert_eq!(PublicKey::from_spki(&[0; SPKI_BYTES_MAX + 1]), Err(KeyError::TooLong(SPKI_BYTES_MAX + 1)));
    // A third element inside the sequence, and a bit string that is not of whole bytes.
    for (rest, unused_bits) in [(&[0x05, 0x00][..], 0), (&[], 1)] {
        let mut w = Writer::new();
        w.nest(tag::SEQUENCE, |w| {
            w.nest(tag::SEQUENCE, |w| {
                w.element(tag::OID, countersign_identity::der::OID_EC_PUBLIC_KEY);
                w.element(tag::OID, countersign_identity::der::OID_P256);
            });
            w.element(tag::BIT_STRING, &[&[unused_bits], key.bits()].concat());
            w.raw(rest);
        });
        assert_eq!(PublicKey::from_spki(&w.finish()), Err(KeyError::Malformed));
    }
    let mut secp256k1 = Writer::new();
    secp256k1.nest(tag::SEQUENCE, |w| {
        w.nest(tag::SEQUENCE, |w| {
            w.element(tag::OID, countersign_identity::der::OID_EC_PUBLIC_KEY);
            w.element(tag::OID, &[0x2b, 0x81, 0x04, 0x00, 0x0a]);
        });
        w.bit_string(key.bits());
    });
    assert_eq!(PublicKey::from_spki(&secp256k1.finish()), Err(KeyError::Unsupported));
}

#[test]
fn json_keys_are_read_with_care() {
    let good = jwk::write(&P256.public());
    let changed = |name: &str, value| {
        let mut key = good.clone();
        key.insert(name.to_owned(), value);
        jwk::read(&key).map(|_| ())
    };
    assert_eq!(changed("alg", json!("ES256")), Ok(()));
    assert_eq!(changed("kty", json!("oct")), Err(JwkError::Unknown));
    assert_eq!(changed("crv", json!("P-999")), Err(JwkError::Unknown));
    assert_eq!(changed("crv", json!("P-384")), Err(JwkError::Member("x")));
    assert_eq!(changed("x", json!("+/+/")), Err(JwkError::Member("x")));
    assert_eq!(changed("y", json!(URL_SAFE_NO_PAD.encode([1; 31]))), Err(JwkError::Member("y")));
    let padded = format!("{}=", good["x"].as_str().unwrap());
    assert_eq!(changed("x", json!(padded)), Ok(()), "padding is tolerated");
    assert_eq!(jwk::write(&RSA.public())["e"], "AQAB");
}

#[test]
fn key_types_are_read_without_regard_to_case() {
    for key_type in KeyType::ALL {
        assert_eq!(KeyType::parse(key_type.name()), Some(key_type));
        assert_eq!(KeyType::parse(&key_type.name().to_uppercase()), Some(key_type));
    }
    for name in ["", "ec", "ec-p521", "rsa-1024", "rsa-2048 "] {
        assert_eq!(KeyType::parse(name), None, "`{name}`");
    }
}

#[test]
fn a_signature_verifies_with_its_own_key_and_algorithm_only() {
    let signers: Vec<(Signer, SigningAlgorithm)> =
        [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048].map(|t| (Signer::authority(t), t.algorithm())).into();
    for (index, (signer, algorithm)) in signers.iter().enumerate() {
        let signature = signer.sign(*algorithm, b"message");
        for (other, (key, _)) in signers.iter().enumerate() {
            for wanted in signers.iter().map(|(_, a)| *a) {
                let fits = index == other && wanted == *algorithm;
                assert_eq!(key.public().verify(wanted, b"message", &signature).is_ok(), fits);
            }
        }
        assert!(signer.public().verify(*algorithm, b"massage", &signature).is_err());
    }
}

#[test]
fn pem_is_written_in_lines_of_64_and_read_leniently() {
    let text = pem::write("CERTIFICATE", &[0xff; 50]);
    assert_eq!(text.lines().map(str::len).collect::<Vec<_>>(), [27, 64, 4, 25]);
    let block = |label: &str, der: &[u8]| (label.to_owned(), der.to_vec());
    assert_eq!(pem::read(&text), Ok(vec![block("CERTIFICATE", &[0xff; 50])]));
    let messy = format!("# comment\r\n  {}trailing", text.replace('\n', "\r\n  "));
    assert_eq!(pem::read(&messy), Ok(vec![block("CERTIFICATE", &[0xff; 50])]));
    assert_eq!(pem::read(&pem::write("EMPTY", &[])), Ok(vec![block("EMPTY", &[])]));
    assert_eq!(pem::read("-----END NOTHING-----"), Ok(Vec::new()));
}

#[test]
fn broken_pem_is_refused_with_its_line() {
    let unterminated = |label: &str, line| PemError::Unterminated { label: label.to_owned(), line };
    assert_eq!(pem::read("\n-----BEGIN A-----\nAAAA\n"), Err(unterminated("A", 2)));
    assert_eq!(pem::read("-----BEGIN A-----\n-----BEGIN B-----\n-----END B-----\n"), Err(unterminated("A", 1)));
    assert_eq!(pem::read("-----BEGIN A-----\nA*AA\n-----END A-----\n"), Err(PemError::Base64 { label: "A".to_owned(), line: 1 }));
    assert!(matches!(pem::read(&" ".repeat(pem::PEM_BYTES_MAX + 1)), Err(PemError::TooLong(_))));
}
