//! What a certificate says about its node.

use std::net::IpAddr;
use std::sync::Arc;

use countersign_identity::x509::Certificate;
use countersign_identity::{Bundle, TrustDomain};
use rcgen::{DnType, KeyPair, SanType};

use super::pki::{self, attempt, uri};
use super::texts;
use crate::node::conformance::circumstances;
use crate::node::{AttestError, Attested, Circumstances};

async fn joins(settings: &str, params: &rcgen::CertificateParams) -> Result<Attested, AttestError> {
    joins_in(settings, params, &circumstances()).await
}

async fn joins_in(settings: &str, params: &rcgen::CertificateParams, circumstances: &Circumstances) -> Result<Attested, AttestError> {
    let directory = tempfile::tempdir().unwrap();
    let root = pki::root("Root");
    let server = pki::server(directory.path(), &[&root], settings);
    let leaf = pki::leaf_of(&root, params, KeyPair::generate().unwrap());
    attempt(&server, &pki::agent(directory.path(), &[&leaf.der], &leaf.key), circumstances).await
}

fn values(attested: &Attested) -> Vec<String> {
    attested.selectors.iter().map(|s| s.value().to_owned()).filter(|v| !v.starts_with("ca:fingerprint:")).collect()
}

#[tokio::test]
async fn uris_of_the_trust_domain_become_selectors() {
    let mut params = pki::leaf_params("");
    params.distinguished_name = rcgen::DistinguishedName::new();
    for text in [
        "x509pop://example.org/zone/eu-1",
        "X509POP://example.org/rack/a%20b/c/",
        "x509pop://example.org/zone/eu-2",
        "x509pop://example.org/no-value",
        "x509pop://example.org/no-value/",
        "x509pop://example.org/broken/%zz",
        "x509pop://example.org",
        "x509pop://other.org/zone/theirs",
        "x509pop://example.org.evil.com/zone/theirs",
        "x509pop://example.org:1/zone/theirs",
        "https://example.org/zone/web",
    ] {
        params.subject_alt_names.push(uri(text));
    }
    let attested = joins("", &params).await.unwrap();
    assert_eq!(values(&attested), ["serialnumber:0a1b2c", "san:rack:a b/c", "san:zone:eu-2"]);
}

#[tokio::test]
async fn the_path_is_made_from_the_template() {
    let mut params = pki::leaf_params("first");
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.subject_alt_names = vec![
        SanType::DnsName("Node-1.example.org".try_into().unwrap()),
        SanType::IpAddress("10.1.2.3".parse().unwrap()),
        SanType::Rfc822Name("ops@example.org".try_into().unwrap()),
        uri("x509pop://example.org/zone/eu-1"),
    ];
    for (template, path) in [
        ("/a/{{ .Subject.CommonName }}", "/a/first"),
        ("/a/{{ .SerialNumberHex }}/{{ .SerialNumber }}", "/a/0a1b2c/662316"),
        ("/{{ .PluginName }}/{{ .TrustDomain }}/{{ .URISanSelectors.zone }}", "/x509pop/example.org/eu-1"),
        ("/{{ index .DNSNames 0 | lower }}/{{ index .IPAddresses 0 }}", "/node-1.example.org/10.1.2.3"),
        ("/{{ index .Subject.OrganizationalUnit 0 | nospace }}/{{ first .Subject.Organization }}", "/Rack7/Example"),
        ("/{{ .Issuer.CommonName }}/{{ index .EmailAddresses 0 | replace \"@\" \"-\" }}", "/Root/ops-example.org"),
    ] {
        let attested = joins(&format!("agent_path_template = {template:?}"), &params).await.unwrap_or_else(|e| panic!("{template}: {e}"));
        assert_eq!(attested.path, path);
    }
}

#[tokio::test]
async fn names_that_make_no_path_are_refused_by_name() {
    for (template, name, told) in [
        ("/{{ .Subject.CommonName }}", "two words", "failed to make spiffe id: "),
        ("/{{ .Subject.CommonName }}", "", "failed to make spiffe id: "),
        ("/{{ .Subject.CommonName }}", "a/../../server", "failed to make spiffe id: "),
        ("/{{ .URISanSelectors.zone }}", "a", "failed to make spiffe id: there is no `zone` in `.URISanSelectors`"),
        ("/{{ index .DNSNames 0 }}", "a", "failed to make spiffe id: `index` 0 of a list of 0"),
    ] {
        let (said, detail) = texts(joins(&format!("agent_path_template = {template:?}"), &pki::leaf_params(name)).await);
        assert!(said.starts_with(told), "{said}");
        assert!(detail.starts_with("certificate ") && detail.contains("serial number 0a1b2c"), "{detail}");
    }
    let (said, _) = texts(joins("agent_path_template = \"/{{ .Subject.CommonName }}\"", &pki::leaf_params(&"n".repeat(3000))).await);
    assert!(said.starts_with("failed to make spiffe id: ") && said.len() < 400, "{said}");
    let (said, _) = texts(joins("", &pki::leaf_params(&"n".repeat(9000))).await);
    assert_eq!(said, "the names in the certificate make no selectors: selector has 9019 bytes, more than the 8192 allowed");
}

#[tokio::test]
async fn the_address_must_be_in_the_certificate_where_that_is_wanted() {
    let mut params = pki::leaf_params("node");
    params.subject_alt_names = vec![SanType::IpAddress("10.1.2.3".parse().unwrap()), SanType::IpAddress("2001:db8::1".parse().unwrap())];
    let from = |address: Option<&str>| Circumstances { address: address.map(|a| a.parse::<IpAddr>().unwrap()), ..circumstances() };
    let wanted = "verify_client_ip = true";
    for good in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"] {
        joins_in(wanted, &params, &from(Some(good))).await.unwrap();
    }
    let refused = texts(joins_in(wanted, &params, &from(Some("10.1.2.4"))).await).0;
    assert_eq!(refused, "client IP 10.1.2.4 does not match any certificate IP SAN");
    assert_eq!(texts(joins_in(wanted, &params, &from(None)).await).0, "client IP not available for verification");
    joins_in("", &params, &from(Some("10.1.2.4"))).await.unwrap();
}

/// A node that shows an SVID of this authority with these URIs, in mode `spiffe`.
async fn exchanged(settings: &str, uris: &[&str], tainted: bool) -> Result<Attested, AttestError> {
    let directory = tempfile::tempdir().unwrap();
    let root = pki::root("Root");
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let mut bundle = Bundle::empty(trust_domain.clone());
    bundle.add_x509_authority(Certificate::parse(root.der()).unwrap(), tainted).unwrap();
    let server = pki::configured(&format!("mode = \"spiffe\"\n{settings}")).unwrap();
    let mut params = pki::leaf_params("svid");
    params.subject_alt_names = uris.iter().map(|u| uri(u)).collect();
    let leaf = pki::leaf_of(&root, &params, KeyPair::generate().unwrap());
    let agent = pki::agent(directory.path(), &[&leaf.der], &leaf.key);
    attempt(&server, &agent, &Circumstances { bundle: Some(Arc::new(bundle)), ..circumstances() }).await
}

#[tokio::test]
async fn an_svid_below_the_prefix_is_exchanged() {
    for (settings, id, path) in [
        ("", "spiffe://example.org/spire-exchange/testhost", "/x509pop/testhost"),
        ("svid_prefix = \"/hosts\"", "spiffe://example.org/hosts/a/b", "/x509pop/a/b"),
        ("spiffe_prefix = \"/hosts/\"", "spiffe://example.org/hosts/a", "/x509pop/a"),
        ("svid_prefix = \"\"", "spiffe://example.org/any/a", "/x509pop/any/a"),
        ("agent_path_template = \"/hosts/{{ .SVIDPathTrimmed }}\"", "spiffe://example.org/spire-exchange/a", "/hosts/a"),
    ] {
        let attested = exchanged(settings, &[id], false).await.unwrap_or_else(|e| panic!("{settings} {id}: {e}"));
        assert_eq!(attested.path, path);
    }
    let with_selector = exchanged("", &["x509pop://example.org/zone/eu", "spiffe://example.org/spire-exchange/a"], false).await.unwrap();
    assert!(values(&with_selector).contains(&"san:zone:eu".to_owned()));
}

#[tokio::test]
async fn an_svid_of_another_path_or_trust_domain_is_not_exchanged() {
    let good = "spiffe://example.org/spire-exchange/a";
    for (settings, uris, told) in [
        ("", &["spiffe://example.org/other/testhost"][..], "x509 cert doesnt match SVID prefix"),
        ("", &["spiffe://example.org/spire-exchangex/a"], "x509 cert doesnt match SVID prefix"),
        ("svid_prefix = \"/hosts\"", &["spiffe://example.org/hostsa/b"], "x509 cert doesnt match SVID prefix"),
        ("", &["spiffe://other.org/spire-exchange/a"], "x509 cert is of trust domain `other.org`"),
        (
            "",
            &["https://example.org/spire-exchange/a"],
            "valid SVID x509 cert not found: the certificate does not name exactly one SPIFFE ID",
        ),
        ("", &[], "valid SVID x509 cert not found: the certificate does not name exactly one SPIFFE ID"),
        (
            "",
            &[good, "spiffe://example.org/spire-exchange/b"],
            "valid SVID x509 cert not found: the certificate does not name exactly one SPIFFE ID",
        ),
        ("", &["spiffe://example.org/spire-exchange/a%20b"], "valid SVID x509 cert not found: "),
        ("", &["spiffe://example.org/spire-exchange/"], "valid SVID x509 cert not found: "),
    ] {
        let (said, _) = texts(exchanged(settings, uris, false).await);
        assert!(said.starts_with(told), "{uris:?}: {said}");
    }
    let (said, _) = texts(exchanged("", &[good], true).await);
    assert!(said.starts_with("certificate verification failed: there is no certificate of `OU=Rack 7,CN=Root"), "{said}");
}

#[tokio::test]
async fn every_authority_of_every_path_is_a_selector() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (pki::root("One"), pki::root("Other"));
    // One intermediate, certified by both roots.
    let key = || KeyPair::from_pem(INTERMEDIATE_KEY.get_or_init(|| KeyPair::generate().unwrap().serialize_pem())).unwrap();
    let by = |issuer: &pki::Authority| pki::Authority::signed_by(pki::authority_params("Between"), key(), issuer).unwrap();
    let (by_one, by_other) = (by(&one), by(&other));
    let leaf = pki::leaf(&by_one, "node");
    let server = pki::server(directory.path(), &[&one, &other], "");
    let agent = pki::agent(directory.path(), &[&leaf.der, by_one.der(), by_other.der()], &leaf.key);
    let attested = attempt(&server, &agent, &circumstances()).await.unwrap();
    let mut expected: Vec<String> = [&by_one, &by_other, &one, &other]
        .iter()
        .map(|a| format!("ca:fingerprint:{}", crate::node::x509pop::names::fingerprint(&Certificate::parse(a.der()).unwrap())))
        .collect();
    let mut found: Vec<String> = attested.selectors.iter().map(|s| s.value().to_owned()).filter(|v| v.starts_with("ca:")).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

static INTERMEDIATE_KEY: std::sync::OnceLock<String> = std::sync::OnceLock::new();
