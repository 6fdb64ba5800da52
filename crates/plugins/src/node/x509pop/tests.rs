//! Both halves in conversation, with the messages of SPIRE.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod conformance;
mod names;
mod pki;
mod settings;
mod wrong;

use std::path::Path;

use countersign_identity::x509::Certificate;
use rcgen::KeyPair;

use super::proof::{Answer, Challenge, NodeKey, challenge, verify};
use crate::node::AttestError;
use crate::node::conformance::circumstances;
use pki::attempt;

pub(super) use conformance::halves;

/// The texts of a refusal: what the node is told, and what the operator reads beside it.
fn texts(result: Result<crate::node::Attested, AttestError>) -> (String, String) {
    let error = result.expect_err("it joined");
    (error.told().to_owned(), error.operator_detail().unwrap_or_default().to_owned())
}

/// Keys of every kind that can be asked.
fn keys() -> Vec<(&'static str, KeyPair)> {
    vec![
        ("p256", KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()),
        ("p384", KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap()),
        ("p521", KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap()),
        ("rsa", KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap()),
    ]
}

#[tokio::test]
async fn a_node_with_a_key_of_any_supported_kind_joins() {
    let root = pki::root("Root");
    let intermediate = pki::below(&root, pki::authority_params("Intermediate"));
    for (kind, key) in keys() {
        let directory = tempfile::tempdir().unwrap();
        let server = pki::server(directory.path(), &[&root], "");
        let leaf = pki::leaf_of(&intermediate, &pki::leaf_params("node-1"), key);
        let agent = pki::agent(directory.path(), &[&leaf.der, intermediate.der()], &leaf.key);
        let attested = attempt(&server, &agent, &circumstances()).await.unwrap_or_else(|e| panic!("{kind}: {e} {e:?}"));
        let fingerprint = super::names::fingerprint(&Certificate::parse(&leaf.der).unwrap());
        assert_eq!(attested.path, format!("/x509pop/{fingerprint}"));
        assert!(attested.can_reattest && attested.redeem.is_none());
        let ca =
            |a: &pki::Authority| format!("x509pop:ca:fingerprint:{}", super::names::fingerprint(&Certificate::parse(a.der()).unwrap()));
        let selectors: Vec<&str> = attested.selectors.iter().map(countersign_identity::Selector::as_str).collect();
        assert_eq!(selectors, ["x509pop:subject:cn:node-1", &ca(&intermediate), &ca(&root), "x509pop:serialnumber:0a1b2c"]);
    }
}

/// What a real SPIRE agent and server say to each other, recorded with Go's own code; see `spire_vectors` for each kind of key.
#[test]
fn the_messages_are_those_of_spire_byte_for_byte() {
    let key = KeyPair::generate().unwrap();
    let leaf = pki::leaf_of(&pki::root("Root"), &pki::leaf_params("node"), key);
    let asked = challenge(&Certificate::parse(&leaf.der).unwrap().public_key, [7; 32]).unwrap();
    let nonce = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    let written = serde_json::to_string(&asked).unwrap();
    assert_eq!(written, format!("{{\"rsa_signature\":null,\"ecdsa_signature\":{{\"nonce\":\"{nonce}\"}}}}"));
    let answer = NodeKey::from_der(leaf.key.serialized_der()).unwrap().answer(&asked).unwrap();
    let written = serde_json::to_string(&answer).unwrap();
    assert!(written.starts_with("{\"rsa_signature\":null,\"ecdsa_signature\":{\"nonce\":\""), "{written}");
    assert!(written.contains("\",\"r\":\"") && written.contains("\",\"s\":\""), "{written}");
}

#[test]
fn answers_made_by_spires_code_are_taken() {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("tests/spire_answers.json")).unwrap();
    let vectors = vectors.as_array().unwrap();
    assert_eq!(vectors.len(), 5);
    for vector in vectors {
        let text = |key: &str| vector[key].as_str().unwrap().to_owned();
        let leaf = Certificate::parse(&countersign_identity::pem::read(&text("certificate")).unwrap()[0].1).unwrap();
        let challenge: Challenge = serde_json::from_str(&text("challenge")).unwrap();
        let answer: Answer = serde_json::from_str(&text("answer")).unwrap();
        verify(&leaf.public_key, &challenge, &answer).unwrap_or_else(|e| panic!("{}: {e}", text("kind")));
        // Written again it is the same bytes.
        assert_eq!(serde_json::to_string(&challenge).unwrap(), text("challenge"));
        assert_eq!(serde_json::to_string(&answer).unwrap(), text("answer"));
    }
}

#[tokio::test]
async fn a_certificate_that_was_replaced_on_disk_counts_at_the_next_attempt() {
    let directory = tempfile::tempdir().unwrap();
    let root = pki::root("Root");
    let server = pki::server(directory.path(), &[&root], "agent_path_template = \"/x509pop/{{ .Subject.CommonName }}\"");
    let first = pki::leaf(&root, "first");
    let agent = pki::agent(directory.path(), &[&first.der], &first.key);
    assert_eq!(attempt(&server, &agent, &circumstances()).await.unwrap().path, "/x509pop/first");

    let second = pki::leaf(&root, "second");
    pki::write(directory.path(), "node.pem", &pki::pem(&[&second.der]));
    let half_replaced = attempt(&server, &agent, &circumstances()).await.unwrap_err();
    assert_eq!(half_replaced, AttestError::failed("the private key does not fit the node's certificate"));
    pki::write(directory.path(), "node.key", &second.key.serialize_pem());
    assert_eq!(attempt(&server, &agent, &circumstances()).await.unwrap().path, "/x509pop/second");

    std::fs::remove_file(directory.path().join("node.key")).unwrap();
    let gone = attempt(&server, &agent, &circumstances()).await.unwrap_err();
    assert!(gone.told().contains("node.key` cannot be read"), "{gone}");
}

#[tokio::test]
async fn the_ca_bundle_follows_its_file_and_a_broken_file_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (pki::root("Old"), pki::root("New"));
    let server = pki::server(directory.path(), &[&old], "");
    let of = |authority: &pki::Authority, place: &Path| {
        std::fs::create_dir_all(place).unwrap();
        let leaf = pki::leaf(authority, "node");
        pki::agent(place, &[&leaf.der], &leaf.key)
    };
    let (by_old, by_new) = (of(&old, &directory.path().join("old")), of(&new, &directory.path().join("new")));
    attempt(&server, &by_old, &circumstances()).await.unwrap();
    attempt(&server, &by_new, &circumstances()).await.unwrap_err();

    let path = pki::write(directory.path(), "ca.pem", "-----BEGIN CERTIFICATE-----\nhalf");
    attempt(&server, &by_old, &circumstances()).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    attempt(&server, &by_old, &circumstances()).await.unwrap();

    pki::write(directory.path(), "ca.pem", &pki::pem(&[new.der()]));
    attempt(&server, &by_new, &circumstances()).await.unwrap();
    attempt(&server, &by_old, &circumstances()).await.unwrap_err();
}

/// Reading may fail for reasons that leave no trace in the file; it is tried again although the file looks the same.
#[tokio::test]
async fn a_ca_bundle_that_could_not_be_used_is_read_again_although_it_looks_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (pki::root("Old"), pki::root("New"));
    let server = pki::server(directory.path(), &[&old], "");
    let leaf = pki::leaf(&new, "node");
    let agent = pki::agent(directory.path(), &[&leaf.der], &leaf.key);
    let good = pki::pem(&[new.der()]);
    let stamped = |text: &str| {
        let path = pki::write(directory.path(), "ca.pem", text);
        let changed = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(changed).unwrap();
    };
    stamped(&" ".repeat(good.len()));
    attempt(&server, &agent, &circumstances()).await.unwrap_err();
    stamped(&good);
    attempt(&server, &agent, &circumstances()).await.unwrap();
}
