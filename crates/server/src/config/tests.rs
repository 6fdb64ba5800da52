//! What the file says is what the server goes by: each setting by itself, and what holds without it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::*;

fn good(lines: &str) -> Config {
    let text = format!(
        "server {{\n trust_domain = \"example.org\"\n data_dir = \"d\"\n{lines}\n}}\nplugins {{\n DataStore \"sql\" {{\n plugin_data {{\n \
         database_type = \"sqlite3\"\n connection_string = \"d/s\"\n }}\n }}\n KeyManager \"memory\" {{\n plugin_data {{}}\n }}\n}}\n"
    );
    countersign_config::parse("server.conf", &text).and_then(Config::read).unwrap_or_else(|e| panic!("{lines}: {e}"))
}

#[test]
fn tokens_are_signed_with_keys_of_the_authoritys_kind_unless_another_is_named() {
    let kinds = |lines: &str| {
        let config = good(lines);
        (config.ca_key_type, config.jwt_key_type)
    };
    assert_eq!(kinds(""), (KeyType::EcP256, KeyType::EcP256));
    assert_eq!(kinds("ca_key_type = \"ec-p384\""), (KeyType::EcP384, KeyType::EcP384));
    assert_eq!(kinds("ca_key_type = \"ec-p384\"\n jwt_key_type = \"rsa-2048\""), (KeyType::EcP384, KeyType::Rsa2048));
}

#[test]
fn what_is_off_is_off_and_nothing_else() {
    let limits = |lines: &str| {
        let config = good(lines);
        (config.ratelimit.attestation, config.ratelimit.signing)
    };
    assert_eq!(limits(""), (true, true));
    assert_eq!(limits("ratelimit {\n attestation = false\n }"), (false, true));
    assert_eq!(limits("ratelimit {\n signing = false\n }"), (true, false));
    let (usual, changed) = (good(""), good("disable_jwt_svids = true\n audit_log_enabled = true"));
    assert!(!usual.disable_jwt_svids && !usual.audit_log_enabled && usual.node_pruning.is_none());
    assert!(changed.disable_jwt_svids && changed.audit_log_enabled);
}

#[test]
fn nodes_that_cannot_attest_again_are_pruned_only_where_that_is_said() {
    let pruning = |lines: &str| good(lines).node_pruning.map(|p| (p.expired_for.as_secs(), p.batch_size, p.non_reattestable));
    assert_eq!(pruning("prune_tofu_nodes = true"), None, "nothing says after how long");
    assert_eq!(pruning("prune_attested_nodes_expired_for = \"2h\""), Some((7200, 1000, false)));
    let all = "prune_attested_nodes_expired_for = \"2h\"\n prune_tofu_nodes = true\n prune_attested_nodes_batch_size = 5";
    assert_eq!(pruning(all), Some((7200, 5, true)));
}
