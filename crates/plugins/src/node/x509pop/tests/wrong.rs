//! Every kind of wrong certificate, and what is said about it: one text for the node, one for the operator.

use std::sync::Arc;

use rcgen::{BasicConstraints, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints, SanType};

use super::pki::{self, Leaf};
use super::texts;
use crate::Pending;
use crate::node::conformance::circumstances;
use crate::node::x509pop::Server;
use crate::node::x509pop::proof::{Bytes, Evidence, NodeKey};
use crate::node::{AttestError, Attested, Conversation, ServerHalf as _};

/// Answers with this key, whatever the chain says.
struct With<'a>(&'a KeyPair);

impl Conversation for With<'_> {
    fn challenge(&mut self, challenge: Vec<u8>) -> Pending<'_, Result<Vec<u8>, AttestError>> {
        Box::pin(async move {
            let key = NodeKey::from_der(self.0.serialized_der()).ok_or_else(|| AttestError::failed("no such key"))?;
            let answer = key.answer(&serde_json::from_slice(&challenge).unwrap()).map_err(AttestError::failed)?;
            Ok(serde_json::to_vec(&answer).unwrap())
        })
    }
}

fn payload(chain: &[&[u8]]) -> Vec<u8> {
    serde_json::to_vec(&Evidence { certificates: Some(chain.iter().map(|der| Bytes(der.to_vec())).collect()) }).unwrap()
}

async fn show(server: &Server, chain: &[&[u8]], key: &KeyPair) -> Result<Attested, AttestError> {
    server.attest(&payload(chain), &circumstances(), &mut With(key)).await
}

struct World {
    _directory: tempfile::TempDir,
    root: pki::Authority,
    between: pki::Authority,
    server: Server,
}

fn world(settings: &str) -> World {
    let directory = tempfile::tempdir().unwrap();
    let root = pki::root("Root");
    let between = pki::below(&root, pki::authority_params("Between"));
    let server = pki::server(directory.path(), &[&root], settings);
    World { _directory: directory, root, between, server }
}

fn with(change: impl FnOnce(&mut rcgen::CertificateParams)) -> rcgen::CertificateParams {
    let mut params = pki::leaf_params("node");
    change(&mut params);
    params
}

fn signed(issuer: &pki::Authority, params: &rcgen::CertificateParams) -> Leaf {
    pki::leaf_of(issuer, params, KeyPair::generate().unwrap())
}

/// Puts other bytes in the place of some.
fn replaced(der: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let at = der.windows(old.len()).position(|w| w == old).unwrap();
    [&der[..at], new, &der[at + old.len()..]].concat()
}

#[tokio::test]
async fn a_certificate_nobody_vouches_for_is_refused() {
    let w = world("");
    let good = pki::leaf(&w.between, "node");
    show(&w.server, &[&good.der, w.between.der()], &good.key).await.unwrap();

    let stranger = pki::root("Stranger");
    let theirs = pki::leaf(&stranger, "node");
    let same_name = pki::root("Root");
    let impostor = pki::leaf(&same_name, "node");
    let own = pki::root("self");
    let not_an_authority = {
        let mut params = pki::leaf_params("Not an authority");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        pki::below(&w.root, params)
    };
    let below_leaf = pki::leaf(&not_an_authority, "node");
    let may_not_sign = pki::below(&w.root, {
        let mut params = pki::authority_params("May not sign");
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
        params
    });
    let below_may_not = pki::leaf(&may_not_sign, "node");
    for (what, chain, key, told) in [
        (
            "another CA",
            vec![theirs.der.as_slice()],
            &theirs.key,
            "there is no certificate of `OU=Rack 7,CN=Stranger`, which issued the certificate of `OU=Rack 7,CN=node`",
        ),
        (
            "another CA, sent along",
            vec![&theirs.der, stranger.der()],
            &theirs.key,
            "`OU=Rack 7,CN=Stranger` vouches for itself alone and is not among the trusted authorities",
        ),
        (
            "a CA of the same name",
            vec![&impostor.der],
            &impostor.key,
            "the signature on the certificate of `OU=Rack 7,CN=node` was not made with the key of `OU=Rack 7,CN=Root`",
        ),
        ("self-signed", vec![own.der()], own.key(), "`OU=Rack 7,CN=self`"),
        (
            "no intermediate",
            vec![&good.der],
            &good.key,
            "there is no certificate of `OU=Rack 7,CN=Between`, which issued the certificate of `OU=Rack 7,CN=node`",
        ),
        (
            "an intermediate that is no CA",
            vec![&below_leaf.der, not_an_authority.der()],
            &below_leaf.key,
            "`OU=Rack 7,CN=Not an authority` is named as issuer and may not sign certificates",
        ),
        (
            "an intermediate without keyCertSign",
            vec![&below_may_not.der, may_not_sign.der()],
            &below_may_not.key,
            "`OU=Rack 7,CN=May not sign` is named as issuer and may not",
        ),
    ] {
        let (said, detail) = texts(show(&w.server, &chain, key).await);
        assert!(said.starts_with("certificate verification failed: ") && said.contains(told), "{what}: {said}");
        assert!(!said.contains("ca.pem"), "{what}: no path of the server: {said}");
        assert!(
            detail.contains("serial number 0a1b2c") && detail.contains("against 1 authorities of ") && detail.contains("ca.pem"),
            "{what}: {detail}"
        );
    }
}

#[tokio::test]
async fn the_order_of_a_chain_is_leaf_first_and_else_free() {
    let w = world("");
    let lower = pki::below(&w.between, pki::authority_params("Lower"));
    let leaf = pki::leaf(&lower, "node");
    for chain in [[&leaf.der, lower.der().as_ref(), w.between.der()], [&leaf.der, w.between.der().as_ref(), lower.der()]] {
        show(&w.server, &chain, &leaf.key).await.unwrap();
    }
    // The root may be sent along.
    show(&w.server, &[&leaf.der, lower.der(), w.between.der(), w.root.der()], &leaf.key).await.unwrap();
    // An authority first is taken for the leaf, and is not meant to sign challenges.
    let (said, _) = texts(show(&w.server, &[w.between.der(), &leaf.der], &leaf.key).await);
    assert_eq!(said, "certificate not intended for digital signature use");
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_refused() {
    let w = world("");
    let over = signed(&w.root, &with(|p| p.not_after = rcgen::date_time_ymd(2021, 1, 1)));
    let early = signed(&w.root, &with(|p| p.not_before = rcgen::date_time_ymd(2030, 1, 1)));
    let old_between = pki::below(&w.root, {
        let mut params = pki::authority_params("Old");
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        params
    });
    let below_old = pki::leaf(&old_between, "node");
    for (what, chain, key, told) in [
        (
            "expired",
            vec![over.der.as_slice()],
            &over.key,
            "`OU=Rack 7,CN=node` is valid from 2020-01-01T00:00:00Z to 2021-01-01T00:00:00Z, it is now 2026-05-28T",
        ),
        ("not yet valid", vec![&early.der], &early.key, "`OU=Rack 7,CN=node` is valid from 2030-01-01T00:00:00Z"),
        ("expired intermediate", vec![&below_old.der, old_between.der()], &below_old.key, "`OU=Rack 7,CN=Old` is valid from 2020-01-01"),
    ] {
        let (said, _) = texts(show(&w.server, &chain, key).await);
        assert!(said.starts_with("certificate verification failed: the certificate of ") && said.contains(told), "{what}: {said}");
    }
    // The very last second counts, the one after does not.
    let end = countersign_identity::Timestamp::from_secs(1_609_459_200);
    for (now, joins) in [(end, true), (countersign_identity::Timestamp::from_secs(end.secs() + 1), false)] {
        let at = crate::node::Circumstances { now, ..circumstances() };
        assert_eq!(w.server.attest(&payload(&[&over.der]), &at, &mut With(&over.key)).await.is_ok(), joins);
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_meant_for_this_is_refused() {
    let w = world("");
    let told = "certificate not intended for digital signature use";
    for usages in [vec![], vec![KeyUsagePurpose::KeyEncipherment]] {
        let leaf = signed(&w.root, &with(|p| p.key_usages = usages));
        let (said, detail) = texts(show(&w.server, &[&leaf.der], &leaf.key).await);
        assert_eq!(said, told);
        assert!(detail.contains("of `OU=Rack 7,CN=node`"), "{detail}");
    }
    // What it may be used for in TLS does not matter, as in SPIRE.
    let leaf = signed(&w.root, &with(|p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::EmailProtection]));
    show(&w.server, &[&leaf.der], &leaf.key).await.unwrap();
    let critical = signed(
        &w.root,
        &with(|p| {
            let mut unknown = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
            unknown.set_criticality(true);
            p.custom_extensions = vec![unknown];
        }),
    );
    let (said, _) = texts(show(&w.server, &[&critical.der], &critical.key).await);
    assert!(said.ends_with("has a critical extension 1.3.6.1.4.1.99999.1 that is not understood"), "{said}");
}

#[tokio::test]
async fn a_key_that_cannot_be_asked_or_is_too_small_or_too_large_is_refused() {
    let w = world("max_rsa_key_size = 2048");
    let ed25519 = pki::leaf_of(&w.root, &pki::leaf_params("node"), KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
    let (said, _) = texts(show(&w.server, &[&ed25519.der], &ed25519.key).await);
    assert_eq!(said, "unsupported public key type; supported are EC P-256, P-384, P-521 and RSA");

    let good = pki::leaf(&w.root, "node");
    let small = countersign_identity::pem::read(include_str!("../../../../../identity/tests/it/fixtures/rsa-1024.crt.pem")).unwrap();
    let p192 = replaced(&good.der, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07], &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x01]);
    let rsa = |bits| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, bits).unwrap();
    let large = pki::leaf_of(&w.root, &pki::leaf_params("node"), rsa(rcgen::RsaKeySize::_3072));
    let large_between = pki::Authority::signed_by(pki::authority_params("Between"), rsa(rcgen::RsaKeySize::_3072), &w.root).unwrap();
    let below_large = pki::leaf(&large_between, "node");
    for (what, chain, told) in [
        ("1024 bits", vec![small[0].1.as_slice()], "unable to parse leaf certificate: the RSA key has 1024 bits; allowed are 2048 to 8192"),
        ("another curve", vec![&p192], "unable to parse leaf certificate: the public key's algorithm or curve is not supported"),
        ("3072 bits", vec![&large.der], "leaf certificate key size too large: more than the 2048 bits allowed"),
        ("3072 bits between", vec![&below_large.der, large_between.der()], "intermediate certificate 0 key size too large"),
    ] {
        let (said, _) = texts(show(&w.server, &chain, &good.key).await);
        assert!(said.starts_with(told), "{what}: {said}");
    }
}

#[tokio::test]
async fn what_is_no_certificate_is_refused() {
    let w = world("max_intermediates = 1");
    let good = pki::leaf(&w.root, "node");
    let trailing = [good.der.as_slice(), &[0]].concat();
    for (what, payload, told) in [
        ("nothing", payload(&[]), "no certificate to attest"),
        ("null", b"{\"certificates\":null}".to_vec(), "no certificate to attest"),
        ("another object", b"{}".to_vec(), "no certificate to attest"),
        ("no JSON", b"certificates".to_vec(), "failed to unmarshal data: the attestation data is malformed"),
        ("no base64", b"{\"certificates\":[\"!\"]}".to_vec(), "failed to unmarshal data: the attestation data is malformed"),
        ("deep JSON", vec![b'['; 60_000], "failed to unmarshal data: the attestation data is malformed"),
        ("an empty one", payload(&[&[]]), "unable to parse leaf certificate: malformed certificate"),
        ("garbage", payload(&[&[0x30, 0x03, 1, 2, 3]]), "unable to parse leaf certificate: malformed certificate"),
        ("trailing bytes", payload(&[&trailing]), "unable to parse leaf certificate: 1 bytes follow the certificate"),
        ("garbage between", payload(&[&good.der, &[1, 2, 3]]), "unable to parse intermediate certificate 0: malformed certificate"),
        ("too many", payload(&[&good.der, w.between.der(), w.between.der()]), "too many intermediate certificates: 2, allowed are 1"),
    ] {
        let (said, _) = texts(w.server.attest(&payload, &circumstances(), &mut With(&good.key)).await);
        assert_eq!(said, told, "{what}");
    }
}

#[tokio::test]
async fn a_key_that_is_not_the_certificates_is_refused() {
    let w = world("");
    let (good, other) = (pki::leaf(&w.root, "node"), pki::leaf(&w.root, "other"));
    let (said, detail) = texts(show(&w.server, &[&good.der], &other.key).await);
    assert_eq!(said, "challenge response verification failed: ECDSA signature verify failed");
    assert!(detail.contains("of `OU=Rack 7,CN=node`"), "{detail}");
    let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let rsa = pki::leaf_of(&w.root, &pki::leaf_params("rsa"), rsa);
    show(&w.server, &[&rsa.der], &rsa.key).await.unwrap();
    let another = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let (said, _) = texts(show(&w.server, &[&rsa.der], &another).await);
    assert_eq!(said, "challenge response verification failed: RSA signature verify failed");
}

/// Answers with this, whatever is asked.
struct Saying(Vec<u8>);

impl Conversation for Saying {
    fn challenge(&mut self, _: Vec<u8>) -> Pending<'_, Result<Vec<u8>, AttestError>> {
        Box::pin(async move { Ok(self.0.clone()) })
    }
}

#[tokio::test]
async fn a_long_malformed_answer_is_cut_in_the_log() {
    let w = world("");
    let good = pki::leaf(&w.root, "node");
    let answer = format!("\"{}\"", "x".repeat(60_000)).into_bytes();
    let (said, detail) = texts(w.server.attest(&payload(&[&good.der]), &circumstances(), &mut Saying(answer)).await);
    assert_eq!(said, "unable to unmarshal challenge response: it is malformed");
    assert!(detail.contains("invalid type") && detail.len() < 1000, "{}", detail.len());
}

#[tokio::test]
async fn limits_that_authorities_have_hold() {
    let w = world("");
    let short = pki::below(&w.root, {
        let mut params = pki::authority_params("Short");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params
    });
    let lower = pki::below(&short, pki::authority_params("Lower"));
    let leaf = pki::leaf(&lower, "node");
    let (said, _) = texts(show(&w.server, &[&leaf.der, lower.der(), short.der()], &leaf.key).await);
    assert!(said.ends_with("more authorities stand below `OU=Rack 7,CN=Short` than it allows"), "{said}");

    let constrained = pki::below(&w.root, {
        let mut params = pki::authority_params("Constrained");
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("dc1.example.org".to_owned())],
            excluded_subtrees: vec![],
        });
        params
    });
    for (name, joins) in [("a.dc1.example.org", true), ("a.dc2.example.org", false)] {
        let leaf = signed(&constrained, &with(|p| p.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())]));
        let outcome = show(&w.server, &[&leaf.der, constrained.der()], &leaf.key).await;
        assert_eq!(outcome.is_ok(), joins, "{name}: {outcome:?}");
        if let Err(error) = outcome {
            assert!(error.told().ends_with("lies outside its signer's name constraints"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_leaf_that_is_itself_in_the_bundle_is_trusted_for_itself_alone() {
    let directory = tempfile::tempdir().unwrap();
    let pinned = pki::Authority::self_signed(pki::leaf_params("pinned"), KeyPair::generate().unwrap()).unwrap();
    let server = pki::server(directory.path(), &[&pinned], "");
    let attested = show(&server, &[pinned.der()], pinned.key()).await.unwrap();
    let selectors: Vec<&str> = attested.selectors.iter().map(|s| s.value()).collect();
    assert_eq!(selectors, ["subject:cn:pinned", "serialnumber:0a1b2c"]);
    let below = pki::leaf(&pinned, "below");
    let (said, _) = texts(show(&server, &[&below.der], &below.key).await);
    assert!(said.ends_with("`OU=Rack 7,CN=pinned` is named as issuer and may not sign certificates"), "{said}");
}

/// Authorities that all certify each other make many ways; the work for a stranger's chain is bounded.
#[tokio::test]
async fn authorities_that_certify_each_other_cost_a_bounded_number_of_signatures() {
    let w = world("max_intermediates = 15");
    let keys: Vec<Arc<str>> = (0..4).map(|_| KeyPair::generate().unwrap().serialize_pem().into()).collect();
    let by = |subject: usize, issuer: usize| {
        let issuer = rcgen::Issuer::new(pki::authority_params(&format!("A{issuer}")), KeyPair::from_pem(&keys[issuer]).unwrap());
        let mut params = pki::authority_params(&format!("A{subject}"));
        params.serial_number = None;
        params.signed_by(&KeyPair::from_pem(&keys[subject]).unwrap(), &issuer).unwrap().der().to_vec()
    };
    let mut chain: Vec<Vec<u8>> =
        (0..4).flat_map(|s| (0..4).filter(move |i| *i != s).map(move |i| (s, i))).map(|(s, i)| by(s, i)).collect();
    let issuer = rcgen::Issuer::new(pki::authority_params("A0"), KeyPair::from_pem(&keys[0]).unwrap());
    let key = KeyPair::generate().unwrap();
    let leaf = pki::leaf_params("node").signed_by(&key, &issuer).unwrap().der().to_vec();
    chain.insert(0, leaf);
    let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
    let (said, _) = texts(show(&w.server, &chain, &key).await);
    assert!(said.starts_with("certificate verification failed: "), "{said}");
}
