//! What a wrong `agent.conf` is answered with.

use expect_test::{Expect, expect};

const GOOD: &str = r#"agent {
    trust_domain = "example.org"
    server_address = "localhost"
    server_port = 8081
    insecure_bootstrap = true
}
plugins {
    KeyManager "memory" {
        plugin_data {}
    }
    NodeAttestor "join_token" {
        plugin_data {}
    }
    WorkloadAttestor "unix" {
        plugin_data {}
    }
}
"#;

fn read(text: &str) -> Result<countersign_agent::Config, countersign_config::ConfigError> {
    countersign_agent::Config::read(countersign_config::parse("agent.conf", text)?)
}

/// What is said about the good file with one part replaced.
fn check(from: &str, to: &str, expected: &Expect) {
    assert!(GOOD.contains(from), "{from}");
    expected.assert_eq(&read(&GOOD.replacen(from, to, 1)).unwrap_err().to_string());
}

/// The same for a line added to the `agent` block.
fn added(line: &str, expected: &Expect) {
    check("    insecure_bootstrap = true\n", &format!("    insecure_bootstrap = true\n    {line}\n"), expected);
}

#[test]
fn a_good_file_is_read() {
    read(GOOD).unwrap();
}

#[test]
fn what_is_missing_is_named() {
    check(
        "    trust_domain = \"example.org\"\n",
        "",
        &expect![[r#"
        agent.conf:1: trust_domain must be configured
        hint: add `trust_domain = …` to the `agent` block"#]],
    );
    check(
        "    server_address = \"localhost\"\n",
        "",
        &expect![[r#"
        agent.conf:1: server_address must be configured
        hint: add `server_address = …` to the `agent` block"#]],
    );
    check(
        "    server_port = 8081\n",
        "",
        &expect![[r#"
        agent.conf:1: server_port must be configured
        hint: add `server_port = …` to the `agent` block"#]],
    );
    check(
        "    insecure_bootstrap = true\n",
        "",
        &expect![[r#"
        agent.conf:1: `agent`: trust_bundle_path, trust_bundle_url, or trust_bundle_spiffe_workload_api must be configured unless insecure_bootstrap is set
        hint: write the server's bundle to a file with `countersign bundle show` and set trust_bundle_path to it"#]],
    );
    expect![[r#"
        agent.conf:1: plugins section must be configured
        hint: add a `plugins { … }` block"#]]
    .assert_eq(&read(GOOD.split("plugins").next().unwrap()).unwrap_err().to_string());
    expect![[r#"
        agent.conf:1: agent section must be configured
        hint: add an `agent { … }` block"#]]
    .assert_eq(&read("plugins {}\n").unwrap_err().to_string());
    check(
        "    KeyManager \"memory\" {\n        plugin_data {}\n    }\n",
        "",
        &expect![[r#"
        agent.conf:7: `plugins`: plugin type "KeyManager" constraint not satisfied: expected exactly 1 but got 0
        hint: add `KeyManager "memory" { plugin_data {} }`"#]],
    );
    check(
        "    NodeAttestor \"join_token\" {\n        plugin_data {}\n    }\n",
        "",
        &expect![[r#"
        agent.conf:7: `plugins`: plugin type "NodeAttestor" constraint not satisfied: expected exactly 1 but got 0
        hint: add `NodeAttestor "join_token" { plugin_data {} }`"#]],
    );
    check(
        "    WorkloadAttestor \"unix\" {\n        plugin_data {}\n    }\n",
        "",
        &expect![[r#"
        agent.conf:7: `plugins`: plugin type "WorkloadAttestor" constraint not satisfied: expected at least 1 but got 0
        hint: add `WorkloadAttestor "unix" { plugin_data {} }`"#]],
    );
}

#[test]
fn what_is_wrong_is_shown_with_its_place() {
    check(
        "\"example.org\"",
        "\"Example.org\"",
        &expect![
            "agent.conf:2: `agent.trust_domain`: the trust domain name has `E`; allowed are lower-case letters, digits, dots, dashes and underscores"
        ],
    );
    check("8081", "\"many\"", &expect!["agent.conf:4: `agent.server_port` is `many`, expected a whole number"]);
    check("8081", "65536", &expect!["agent.conf:4: `agent.server_port`: 65536 is not a port, expected 0 to 65535"]);
    check(
        "insecure_bootstrap = true",
        "insecure_bootstrap = \"perhaps\"",
        &expect!["agent.conf:5: `agent.insecure_bootstrap` is a string, expected true or false"],
    );
    added(
        "trust_bundle_path = \"bundle.pem\"",
        &expect![[r#"
        agent.conf:6: `agent.trust_bundle_path`: only one of insecure_bootstrap or trust_bundle_path can be specified, not both
        hint: keep trust_bundle_path"#]],
    );
    added(
        "trust_bundle_format = \"der\"",
        &expect!["agent.conf:6: `agent.trust_bundle_format`: invalid value for trust_bundle_format, expected \"pem\" or \"spiffe\""],
    );
    added(
        "rebootstrap_mode = \"auto\"",
        &expect!["agent.conf:6: `agent.rebootstrap_mode`: insecure_bootstrap option can not be used with rebootstrapping"],
    );
    added("x509_svid_cache_max_size = -1", &expect!["agent.conf:6: `agent.x509_svid_cache_max_size`: must not be negative"]);
    added(
        "workload_x509_svid_key_type = \"rsa-4096\"",
        &expect![
            "agent.conf:6: `agent.workload_x509_svid_key_type`: `rsa-4096` is not a key type for workloads, expected ec-p256, ec-p384 or rsa-2048"
        ],
    );
    added(
        "log_level = \"loud\"",
        &expect![[
            r#"agent.conf:6: `agent.log_level`: not a valid log level: "loud"; expected panic, fatal, error, warn, info, debug or trace"#
        ]],
    );
    added(
        "socket_path = \"unix:///tmp/agent.sock\"",
        &expect![[r#"
        agent.conf:6: `agent.socket_path`: expected a path
        hint: the agent listens on a Unix socket only; leave out the scheme"#]],
    );
    added(
        &format!("socket_path = \"/{}\"", "s".repeat(107)),
        &expect![
            "agent.conf:6: `agent.socket_path`: socket path `/sssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss` has 108 bytes, more than the 107 the kernel allows; choose a shorter directory"
        ],
    );
}

#[test]
fn the_admin_socket_is_not_where_workloads_find_theirs() {
    let refused = |path: &str| {
        let text =
            format!("insecure_bootstrap = true\n    socket_path = \"/run/spire/public/api.sock\"\n    admin_socket_path = \"{path}\"");
        read(&GOOD.replacen("insecure_bootstrap = true", &text, 1)).err().map(|e| e.to_string())
    };
    for good in
        ["/run/spire/private/admin.sock", "/run/spire/admin.sock", "/run/spire/public-admin/a.sock", "/run/spire/public/../a/a.sock"]
    {
        assert_eq!(refused(good), None, "{good}");
    }
    for bad in
        ["/run/spire/public/admin.sock", "/run/spire/public/admin/a.sock", "/run/spire/a/../public/x.sock", "/run/spire/public/api.sock"]
    {
        let error = refused(bad).unwrap_or_else(|| panic!("{bad} is taken"));
        assert!(error.contains("must not be in the directory of the Workload API's socket, `/run/spire/public`"), "{error}");
    }
    // By another name for the same directory.
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("public")).unwrap();
    std::os::unix::fs::symlink("public", directory.path().join("alias")).unwrap();
    let dir = directory.path().display();
    let text =
        format!("insecure_bootstrap = true\n    socket_path = \"{dir}/public/a.sock\"\n    admin_socket_path = \"{dir}/alias/b.sock\"");
    assert!(read(&GOOD.replacen("insecure_bootstrap = true", &text, 1)).is_err());
    added(
        "admin_socket_path = \"unix:///run/x\"",
        &expect![[r#"
        agent.conf:6: `agent.admin_socket_path`: expected a path
        hint: the agent listens on a Unix socket only; leave out the scheme"#]],
    );
    added(
        "admin_socket_path = \"\"",
        &expect![[r#"
        agent.conf:6: `agent.admin_socket_path`: expected a path
        hint: leave the line out for an agent without admin API"#]],
    );
}

#[test]
fn tokens_are_checked_and_never_shown() {
    added(
        "join_token = \"a/b\"",
        &expect!["agent.conf:6: `agent.join_token`: the path has `/`; allowed are letters, digits, dots, dashes and underscores"],
    );
    added(
        "join_token = \"a\"\n    join_token_file = \"b\"",
        &expect!["agent.conf:6: `agent.join_token`: join_token and join_token_file exclude each other"],
    );
    added(
        "join_token_file = \"/nowhere/token\"",
        &expect!["agent.conf:6: `agent.join_token_file`: the file `/nowhere/token` cannot be read: No such file or directory (os error 2)"],
    );
    let shown = format!("{:?}", read(&GOOD.replace("8081", "8081\n    join_token = \"s3cret\"")).unwrap());
    assert!(!shown.contains("s3cret"), "{shown}");
}

#[test]
fn what_is_unknown_or_not_there_yet_is_said_to_be() {
    added(
        "socket_pth = \"x\"",
        &expect![[r#"
        agent.conf:6: unknown configuration detected: `agent.socket_pth`
        hint: did you mean `socket_path`?"#]],
    );
    check(
        "KeyManager \"memory\"",
        "KeyManager \"kms\"",
        &expect![[r#"
            agent.conf:8: `plugins.KeyManager "kms"`: no built-in plugin "kms" for type "KeyManager"
            hint: built-in are disk, memory; to come are aws_kms, azure_key_vault, gcp_kms, hashicorp_vault"#]],
    );
    check(
        "NodeAttestor \"join_token\"",
        "NodeAttestor \"aws_iid\"",
        &expect![[r#"
            agent.conf:11: `plugins.NodeAttestor "aws_iid"`: plugin "NodeAttestor"/"aws_iid" is recognised but not supported yet
            hint: join nodes with `x509pop` or with a join token meanwhile"#]],
    );
    check(
        "WorkloadAttestor \"unix\"",
        "WorkloadAttestor \"k8s\"",
        &expect![[r#"
            agent.conf:14: `plugins.WorkloadAttestor "k8s"`: plugin "WorkloadAttestor"/"k8s" is recognised but not supported yet
            hint: tell workloads apart by user with `unix` meanwhile"#]],
    );
    check(
        "plugins {\n",
        "plugins {\n    SVIDStore \"disk\" {\n        plugin_data {}\n    }\n",
        &expect![[r#"
            agent.conf:8: `plugins.SVIDStore "disk"`: no built-in plugin "disk" for type "SVIDStore"
            hint: none is built in; to come are aws_secretsmanager, gcp_secretmanager"#]],
    );
    check(
        "plugins {\n",
        "plugins {\n    WorkloadAttestor \"unix\" {\n        plugin_data {}\n    }\n",
        &expect![[r#"agent.conf:17: `plugins.WorkloadAttestor "unix"`: plugin "WorkloadAttestor"/"unix" declared more than once"#]],
    );
}

/// Everything that SPIRE's syntax allows, and every experimental setting that has nothing left to do.
const CONSTRUCTS: &str = include_str!("files/constructs.conf");

#[test]
fn every_construct_is_read_as_it_is_meant() {
    let config = read(CONSTRUCTS).unwrap();
    assert_eq!((config.server_port, config.logging.level.as_str(), config.logging.fractions), (8081, "debug", true));
    assert_eq!((config.sync_interval.as_secs(), config.socket_path.display().to_string().as_str()), (60, "/tmp/none/api.sock"));
    assert_eq!(config.live_plugins(), [("NodeAttestor", "join_token"), ("WorkloadAttestor", "unix")]);
    expect![[r#"
        [
            "Experimental features have been enabled. Please see doc/upgrading.md for upgrade and compatibility considerations for experimental features.",
            "The use of 'jwt_svid_cache_hit_timeout' is experimental",
            "The 'use_sync_authorized_entries' configuration is deprecated. The option to disable it will be removed in SPIRE 1.13.",
        ]
    "#]].assert_debug_eq(&config.warnings);
}

#[test]
fn experimental_settings_that_cannot_be_honoured_are_refused_with_what_to_do() {
    let refused = |from: &str, to: &str, expected: &Expect| {
        assert!(CONSTRUCTS.contains(from), "{from}");
        expected.assert_eq(&read(&CONSTRUCTS.replacen(from, to, 1)).unwrap_err().to_string());
    };
    refused(
        "sync_interval  ",
        "sync_intervals ",
        &expect![[r#"
        agent.conf:13: unknown configuration detected: `agent.experimental.sync_intervals`
        hint: did you mean `sync_interval`?"#]],
    );
    refused(
        "fetch_secrets   = \"0\"",
        "fetch_secrets   = -1",
        &expect!["agent.conf:19: `agent.experimental.ratelimit.fetch_secrets`: must not be negative"],
    );
    refused(
        "fetch_secrets ",
        "fetch_secret ",
        &expect![[r#"
        agent.conf:19: unknown configuration detected: `agent.experimental.ratelimit.fetch_secret`
        hint: did you mean `fetch_secrets`?"#]],
    );
    refused(
        "\"5s\"",
        "\"4s\"",
        &expect![
            "agent.conf:14: `agent.experimental.jwt_svid_cache_hit_timeout`: jwt_svid_cache_hit_timeout must be at least 5s and less than 30s"
        ],
    );
    refused("\"1m\"", "\"10ms\"", &expect!["agent.conf:13: `agent.experimental.sync_interval`: must be at least one second"]);
    refused(
        "require_pq_kem              = false",
        "broker {\n }",
        &expect![[r#"
        agent.conf:16: `agent.experimental.broker`: is recognised but not supported yet
        hint: leave the block out; the Broker API comes later"#]],
    );
    refused(
        "require_pq_kem              = false",
        "admin_named_pipe_name = \"x\"",
        &expect![
            "agent.conf:16: `agent.experimental.admin_named_pipe_name`: admin_named_pipe_name is not supported in this platform; please use admin_socket_path instead"
        ],
    );
    refused(
        "profiling_port ",
        "profiling_enabled = true\n    profiling_port ",
        &expect![[r#"
        agent.conf:9: `agent.profiling_enabled`: there are no profiles of Go's runtime in this program
        hint: leave it out and use `perf record -g -p PID`, which needs no setting and no restart"#]],
    );
}
