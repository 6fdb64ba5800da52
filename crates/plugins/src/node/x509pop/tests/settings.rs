//! Settings of both halves: each mistake is one error with its place and what to do.

use super::pki::{self, agent_configured, configured};

fn said(result: Result<impl std::fmt::Debug, countersign_config::ConfigError>) -> String {
    result.expect_err("it was taken").to_string()
}

#[test]
fn mistakes_in_the_servers_settings_are_said_with_line_and_key() {
    let directory = tempfile::tempdir().unwrap();
    let root = pki::root("Root");
    let good = pki::write(directory.path(), "ca.pem", &pki::pem(&[root.der()])).display().to_string();
    let file = |name: &str, text: &str| pki::write(directory.path(), name, text).display().to_string();
    let (empty, not_pem) = (file("empty.pem", ""), file("half.pem", "-----BEGIN CERTIFICATE-----\nAAAA"));
    let garbage = file("garbage.pem", &pki::pem(&[root.der(), &[1, 2, 3]]));
    let large = file("large.pem", &"x".repeat((4 << 20) + 1));
    let gone = directory.path().join("gone.pem").display().to_string();
    let ca = format!("ca_bundle_path = {good:?}\n");
    for (settings, wanted) in [
        (String::new(), "one of ca_bundle_path or ca_bundle_paths must be configured\nhint: add"),
        (
            "ca_bundel_path = \"x\"".to_owned(),
            "server.conf:1: unknown configuration detected: `ca_bundel_path`\nhint: did you mean `ca_bundle_path`?",
        ),
        ("mode = \"pki\"".to_owned(), "server.conf:1: `mode`: mode can only be either spiffe or external_pki"),
        (format!("{ca}ca_bundle_paths = [{good:?}]"), "server.conf:2: `ca_bundle_paths"),
        (
            format!("{ca}mode = \"spiffe\""),
            "server.conf:1: `ca_bundle_path`: you can not use ca_bundle_path or ca_bundle_paths in spiffe mode",
        ),
        (format!("{ca}svid_prefix = \"/a\""), "server.conf:2: `svid_prefix`: is used in mode `spiffe` only"),
        (
            "mode = \"spiffe\"\nsvid_prefix = \"/a\"\nspiffe_prefix = \"/b\"".to_owned(),
            "server.conf:3: `spiffe_prefix`: svid_prefix and spiffe_prefix are two names",
        ),
        (format!("{ca}max_intermediates = 0"), "server.conf:2: `max_intermediates`: max_intermediates must be greater than 0"),
        (format!("{ca}max_intermediates = 16"), "must be at most 15"),
        (format!("{ca}max_rsa_key_size = 1024"), "server.conf:2: `max_rsa_key_size`: must be 2048 to 8192\nhint: "),
        (format!("{ca}max_rsa_key_size = 16384"), "must be 2048 to 8192"),
        (format!("{ca}verify_client_ip = 1"), "`verify_client_ip` is a number, expected true or false"),
        (
            format!("{ca}agent_path_template = \"/{{{{ .Nobody }}}}\""),
            "server.conf:2: `agent_path_template`: there is no field `.Nobody`, supported are .PluginName",
        ),
        (format!("ca_bundle_path = {gone:?}"), "gone.pem` cannot be read: No such file"),
        (format!("ca_bundle_path = {empty:?}"), "empty.pem` has no certificate"),
        (format!("ca_bundle_path = {not_pem:?}"), "half.pem` is not PEM: block `CERTIFICATE` that begins in line 1 has no end"),
        (format!("ca_bundle_paths = [{good:?}, {garbage:?}]"), "certificate 2 in the file `"),
        (format!("ca_bundle_paths = [{good:?},\n{garbage:?}]"), "server.conf:2: `ca_bundle_paths"),
        (format!("ca_bundle_path = {large:?}"), "large.pem` has more than the 4194304 bytes allowed"),
    ] {
        let said = said(configured(&settings));
        assert!(said.contains(wanted), "{settings}: {said}");
    }
    configured(&format!("ca_bundle_paths = [{good:?}]\nmode = \"external_pki\"\nmax_intermediates = 15\nmax_rsa_key_size = 4096")).unwrap();
}

#[test]
fn mistakes_in_the_agents_settings_are_said_with_line_and_key() {
    let directory = tempfile::tempdir().unwrap();
    let root = pki::root("Root");
    let (leaf, other) = (pki::leaf(&root, "node"), pki::leaf(&root, "other"));
    let file = |name: &str, text: &str| pki::write(directory.path(), name, text).display().to_string();
    let certificate = file("node.pem", &pki::pem(&[&leaf.der]));
    let wrong_order = file("order.pem", &pki::pem(&[root.der(), &leaf.der]));
    let key = file("node.key", &leaf.key.serialize_pem());
    let other_key = file("other.key", &other.key.serialize_pem());
    let encrypted = file("encrypted.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let old_encrypted =
        file("old.key", "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAAAA\n-----END RSA PRIVATE KEY-----\n");
    let whole = leaf.key.serialize_pem();
    let half = file("half.key", whole.split("-----END").next().unwrap());
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let unsupported = file("ed25519.key", &ed25519.serialize_pem());
    let both = |certificate: &str, key: &str| format!("certificate_path = {certificate:?}\nprivate_key_path = {key:?}");
    for (settings, wanted) in [
        (format!("certificate_path = {certificate:?}"), "private_key_path is required\nhint: add"),
        (format!("private_key_path = {key:?}"), "certificate_path is required"),
        (
            "certificate_file = \"x\"".to_owned(),
            "agent.conf:1: unknown configuration detected: `certificate_file`\nhint: did you mean `certificate_path`?",
        ),
        (both(&certificate, &other_key), "agent.conf:2: `private_key_path`: the private key does not fit the first certificate"),
        (both(&wrong_order, &key), "the private key does not fit the first certificate"),
        (both(&certificate, &certificate), "node.pem` has no private key in PEM"),
        (both(&certificate, &encrypted), "encrypted.key` has a private key that is encrypted"),
        (both(&certificate, &old_encrypted), "old.key` has a private key that is encrypted"),
        (both(&certificate, &half), "half.key` has a private key that is not whole"),
        (both(&certificate, &unsupported), "ed25519.key` has a private key that is not supported"),
        (both(&key, &key), "agent.conf:1: `certificate_path`: the file `"),
        (
            format!("{}\nintermediates_path = \"/nowhere\"", both(&certificate, &key)),
            "agent.conf:3: `intermediates_path`: the file `/nowhere` cannot be read",
        ),
        (
            "spiffe_endpoint_socket = \"tcp://127.0.0.1:1\"".to_owned(),
            "is not the address of a Unix socket\nhint: write it as `unix:///path",
        ),
        ("spiffe_endpoint_socket = \"unix:relative\"".to_owned(), "is not the address of a Unix socket"),
        (
            format!("{}\nspiffe_endpoint_socket = \"unix:///a\"", both(&certificate, &key)),
            "`private_key_path`: is not used together with spiffe_endpoint_socket",
        ),
    ] {
        let said = said(agent_configured(&settings));
        assert!(said.contains(wanted), "{settings}: {said}");
        assert!(!said.contains(whole.lines().nth(1).unwrap()), "no key in an error");
    }
    agent_configured("spiffe_endpoint_socket = \"unix:///run/a.sock\"").unwrap();
    agent_configured("spiffe_endpoint_socket = \"unix:/run/a.sock\"").unwrap();
    agent_configured(&both(&certificate, &key)).unwrap();
}

/// PKCS#8, SEC 1 and PKCS#1, as OpenSSL writes them.
#[test]
fn keys_in_every_usual_form_are_read() {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [("sec1", include_str!("sec1.key")), ("pkcs1", include_str!("pkcs1.key")), ("pkcs8", include_str!("pkcs8.key"))] {
        let path = pki::write(directory.path(), name, text);
        let found = crate::node::x509pop::files::own_key(&path);
        assert!(found.is_ok(), "{name}: {:?}", found.err());
    }
}
