//! What the file says is what the agent goes by: each setting by itself, and what holds without it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::*;

fn read(lines: &str) -> Result<Config, String> {
    let text = format!(
        "agent {{\n trust_domain = \"example.org\"\n server_address = \"localhost\"\n server_port = 8081\n{lines}\n}}\nplugins {{\n \
         KeyManager \"memory\" {{\n plugin_data {{}}\n }}\n NodeAttestor \"join_token\" {{\n plugin_data {{}}\n }}\n \
         WorkloadAttestor \"unix\" {{\n plugin_data {{}}\n }}\n}}\n"
    );
    countersign_config::parse("agent.conf", &text).and_then(Config::read).map_err(|e| e.to_string())
}

fn good(lines: &str) -> Config {
    read(&format!(" trust_bundle_path = \"a.pem\"\n {lines}")).unwrap_or_else(|e| panic!("{lines}: {e}"))
}

#[test]
fn caches_hold_a_thousand_unless_another_number_is_given_and_none_means_that_too() {
    let sizes = |lines: &str| {
        let config = good(lines);
        (config.x509_svid_cache_max_size, config.jwt_svid_cache_max_size)
    };
    assert_eq!(sizes(""), (1000, 1000));
    assert_eq!(sizes("x509_svid_cache_max_size = 0\n jwt_svid_cache_max_size = 0"), (1000, 1000));
    assert_eq!(sizes("x509_svid_cache_max_size = 7\n jwt_svid_cache_max_size = 9"), (7, 9));
    assert!(read("insecure_bootstrap = true\n x509_svid_cache_max_size = -1").is_err());
}

#[test]
fn starting_over_is_off_unless_it_is_asked_for() {
    let rebootstrap = |lines: &str| good(lines).rebootstrap.map(|r| (r.always, r.delay.as_secs()));
    assert_eq!(rebootstrap(""), None);
    assert_eq!(rebootstrap("rebootstrap_delay = \"5m\""), None);
    assert_eq!(rebootstrap("rebootstrap_mode = \"never\""), None);
    assert_eq!(rebootstrap("rebootstrap_mode = \"auto\""), Some((false, 600)));
    assert_eq!(rebootstrap("rebootstrap_mode = \"always\"\n rebootstrap_delay = \"5m\""), Some((true, 300)));
}

#[test]
fn what_is_open_to_others_is_what_the_file_opens() {
    let closed = good("");
    assert!(!closed.allow_unauthenticated_verifiers && closed.has_workload_api);
    assert!(closed.allowed_foreign_jwt_claims.is_empty() && closed.authorized_delegates.is_empty() && closed.log_selectors.is_empty());
    assert_eq!((closed.availability_target, closed.workload_key_type), (None, KeyType::EcP256));
    let open = good(
        "allow_unauthenticated_verifiers = true\n disable_workload_api = true\n disable_sds_api = true\n \
         allowed_foreign_jwt_claims = [\"iss\", \"nbf\"]\n authorized_delegates = [\"spiffe://example.org/cni\"]\n \
         log_selectors = [\"unix:uid\"]\n availability_target = \"24h\"\n workload_x509_svid_key_type = \"rsa-2048\"",
    );
    assert!(open.allow_unauthenticated_verifiers && !open.has_workload_api);
    assert_eq!((open.allowed_foreign_jwt_claims, open.log_selectors), (vec!["iss".into(), "nbf".into()], vec!["unix:uid".into()]));
    assert_eq!(open.authorized_delegates.first().map(SpiffeId::as_str), Some("spiffe://example.org/cni"));
    assert_eq!((open.availability_target, open.workload_key_type), (Some(AVAILABILITY_TARGET_MIN), KeyType::Rsa2048));
    let many = vec!["\"unix\""; LOG_SELECTORS_MAX + 1].join(", ");
    let refused = read(&format!("insecure_bootstrap = true\n log_selectors = [{many}]")).unwrap_err();
    assert!(refused.contains("at most 256 prefixes are allowed"), "{refused}");
}

#[test]
fn a_file_without_a_token_is_refused_and_not_taken_for_an_agent_without_one() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "\n").unwrap();
    let refused = read(&format!("insecure_bootstrap = true\n join_token_file = \"{}\"", file.path().display())).unwrap_err();
    assert!(refused.ends_with("is empty"), "{refused}");
}
