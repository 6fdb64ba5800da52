//! Settings of `agent.conf` that say whom the agent believes, what it shows and what it opens: how they are read.

use expect_test::{Expect, expect};

/// A good file with these lines in the `agent` block.
fn read(lines: &str) -> Result<countersign_agent::Config, String> {
    let text = format!(
        "agent {{\n trust_domain = \"example.org\"\n server_address = \"localhost\"\n server_port = 8081\n{lines}\n}}\nplugins {{\n \
         KeyManager \"memory\" {{\n plugin_data {{}}\n }}\n NodeAttestor \"join_token\" {{\n plugin_data {{}}\n }}\n \
         WorkloadAttestor \"unix\" {{\n plugin_data {{}}\n }}\n}}\n"
    );
    countersign_config::parse("agent.conf", &text).and_then(countersign_agent::Config::read).map_err(|e| e.to_string())
}

fn refused(lines: &str, expected: &Expect) {
    expected.assert_eq(&read(lines).expect_err("it is refused"));
}

#[test]
fn every_source_of_the_trust_bundle_is_read() {
    for good in [
        "trust_bundle_path = \"a.pem\"",
        "trust_bundle_path = \"a.json\"\n trust_bundle_format = \"spiffe\"",
        "trust_bundle_url = \"https://bundles.example.org/one?x=y\"",
        "trust_bundle_url = \"http://localhost/bundle\"\n trust_bundle_unix_socket = \"/run/bundle.sock\"",
        "trust_bundle_spiffe_workload_api = \"unix:///run/other/agent.sock\"",
        "trust_bundle_spiffe_workload_api = \"tcp://127.0.0.1:8000\"",
        "insecure_bootstrap = true",
        // What is empty is not set, as in SPIRE.
        "insecure_bootstrap = true\n trust_bundle_path = \"\"",
    ] {
        read(good).unwrap_or_else(|e| panic!("{good}: {e}"));
    }
}

#[test]
fn sources_that_exclude_each_other_or_make_no_sense_are_refused_in_spires_words() {
    refused(
        "trust_bundle_path = \"a\"\n trust_bundle_url = \"https://b\"",
        &expect!["agent.conf:6: `agent.trust_bundle_url`: only one of trust_bundle_url or trust_bundle_path can be specified, not both"],
    );
    refused(
        "trust_bundle_path = \"a\"\n trust_bundle_spiffe_workload_api = \"unix:///b\"",
        &expect![
            "agent.conf:6: `agent.trust_bundle_spiffe_workload_api`: only one of trust_bundle_spiffe_workload_api or trust_bundle_path can be specified, not both"
        ],
    );
    refused(
        "insecure_bootstrap = true\n trust_bundle_url = \"https://b\"",
        &expect![[r#"
            agent.conf:6: `agent.trust_bundle_url`: only one of insecure_bootstrap or trust_bundle_url can be specified, not both
            hint: keep trust_bundle_url"#]],
    );
    refused(
        "trust_bundle_url = \"http://b\"",
        &expect!["agent.conf:5: `agent.trust_bundle_url`: trust bundle URL must start with https://"],
    );
    refused(
        "trust_bundle_url = \"https://b\"\n trust_bundle_unix_socket = \"/s\"",
        &expect![
            "agent.conf:5: `agent.trust_bundle_url`: trust bundle URL must start with http:// when used with trust bundle unix socket"
        ],
    );
    refused(
        "trust_bundle_path = \"a\"\n trust_bundle_unix_socket = \"/s\"",
        &expect!["agent.conf:6: `agent.trust_bundle_unix_socket`: if trust_bundle_unix_socket is specified, so must be trust_bundle_url"],
    );
    refused(
        "trust_bundle_spiffe_workload_api = \"unix:///a\"\n trust_bundle_unix_socket = \"/s\"",
        &expect![
            "agent.conf:6: `agent.trust_bundle_unix_socket`: trust_bundle_unix_socket can not be used with trust_bundle_spiffe_workload_api"
        ],
    );
    refused(
        "trust_bundle_url = \"http://b?x=1&spire-y=2\"\n trust_bundle_unix_socket = \"/s\"",
        &expect!["agent.conf:5: `agent.trust_bundle_url`: trust_bundle_url query params can not start with spire-"],
    );
    refused(
        "trust_bundle_url = \"http://b?spiffe-y=2\"\n trust_bundle_unix_socket = \"/s\"",
        &expect!["agent.conf:5: `agent.trust_bundle_url`: trust_bundle_url query params can not start with spiffe-"],
    );
    refused(
        "trust_bundle_url = \"https://user:word@b\"",
        &expect!["agent.conf:5: `agent.trust_bundle_url`: it must not carry a user name or password"],
    );
    refused(
        "trust_bundle_spiffe_workload_api = \"tcp://name:1\"",
        &expect![
            "agent.conf:5: `agent.trust_bundle_spiffe_workload_api`: trust_bundle_spiffe_workload_api is not a valid SPIFFE Workload API endpoint address: expected an IP address and a port behind `tcp://`"
        ],
    );
    refused(
        "trust_bundle_spiffe_workload_api = \"/run/a.sock\"",
        &expect![
            "agent.conf:5: `agent.trust_bundle_spiffe_workload_api`: trust_bundle_spiffe_workload_api is not a valid SPIFFE Workload API endpoint address: it must start with `unix://` or `tcp://`"
        ],
    );
    refused(
        "trust_bundle_spiffe_workload_api = \"unix:run/a.sock\"",
        &expect![
            "agent.conf:5: `agent.trust_bundle_spiffe_workload_api`: trust_bundle_spiffe_workload_api is not a valid SPIFFE Workload API endpoint address: the path must be absolute"
        ],
    );
    let long = "s".repeat(200);
    refused(
        &format!("trust_bundle_url = \"http://b\"\n trust_bundle_unix_socket = \"/{long}\""),
        &expect![
            "agent.conf:6: `agent.trust_bundle_unix_socket`: socket path `/ssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss` has 201 bytes, more than the 107 the kernel allows; choose a shorter directory"
        ],
    );
}

/// With a source that is good.
fn good(line: &str) -> String {
    format!("insecure_bootstrap = true\n {line}")
}

#[test]
fn delegates_are_of_the_own_trust_domain() {
    read(&good("authorized_delegates = [\"spiffe://example.org/cilium\", \"spiffe://example.org/other\"]")).unwrap();
    refused(
        &good("authorized_delegates = [\"spiffe://example.org/a\", \"spiffe://other.test/b\"]"),
        &expect!["agent.conf:6: `agent.authorized_delegates[1]`: `spiffe://other.test/b` is not a member of trust domain `example.org`"],
    );
    refused(
        &good("authorized_delegates = [\"cilium\"]"),
        &expect!["agent.conf:6: `agent.authorized_delegates[0]`: the scheme is missing or not `spiffe://`"],
    );
    let many = vec!["\"spiffe://example.org/a\""; 1025].join(", ");
    assert!(read(&good(&format!("authorized_delegates = [{many}]"))).unwrap_err().contains("at most 1024 delegates are allowed"));
}

#[test]
fn the_availability_target_is_a_day_at_least() {
    read(&good("availability_target = \"24h\"")).unwrap();
    refused(
        &good("availability_target = \"23h59m\""),
        &expect!["agent.conf:6: `agent.availability_target`: availability_target must be at least 24h0m0s"],
    );
}

#[test]
fn what_is_open_without_the_workload_api() {
    let sockets = "socket_path = \"/run/a/b.sock\"\n admin_socket_path = \"/run/a/c.sock\"";
    // Without a public socket nothing keeps the admin socket away from where it would be.
    read(&good(&format!("disable_sds_api = true\n disable_workload_api = true\n {sockets}"))).unwrap();
    for one in ["disable_sds_api = true", "disable_workload_api = true"] {
        read(&good(one)).unwrap();
        let refused = read(&good(&format!("{one}\n {sockets}"))).unwrap_err();
        assert!(refused.contains("must not be in the directory of the Workload API's socket"), "{refused}");
    }
}

#[test]
fn the_block_sds_is_read_whether_its_service_is_there_or_not() {
    let block = |lines: &str| good(&format!("sds {{\n {lines}\n }}"));
    read(&block("default_svid_name = \"web\"\n default_bundle_name = \"\"")).unwrap();
    read(&good("sds = { default_svid_name = \"web\" }")).unwrap();
    for switch in ["", "disable_sds_api = true\n "] {
        refused(
            &good(&format!("sds {{\n default_svid = \"web\"\n }}\n {switch}")),
            &expect![[r#"
                agent.conf:7: unknown configuration detected: `agent.sds.default_svid`
                hint: did you mean `default_svid_name`?"#]],
        );
    }
    refused(
        &block(&format!("default_bundle_name = \"{}\"", "n".repeat(2049))),
        &expect!["agent.conf:7: `agent.sds.default_bundle_name`: at most 2048 bytes are allowed"],
    );
    let warnings = |lines: &str| read(&block(lines)).unwrap().warnings.into_iter().filter(|w| w.contains("default_bundle_name")).count();
    assert_eq!(warnings("default_bundle_name = \"same\"\n default_all_bundles_name = \"same\""), 1);
    assert_eq!(warnings("default_bundle_name = \"ALL\""), 1);
    assert_eq!(warnings("default_svid_name = \"ROOTCA\""), 0);
}

#[test]
fn limits_of_every_method_are_read_and_negative_ones_refused() {
    let limit = |line: &str| good(&format!("experimental {{\n ratelimit {{\n {line}\n }}\n }}"));
    let methods = ["fetch_x509_svid", "fetch_jwt_svid", "fetch_x509_bundles", "fetch_jwt_bundles", "stream_secrets", "fetch_secrets"];
    for method in methods {
        for value in ["0", "1", "\"500\"", "9223372036854775807"] {
            read(&limit(&format!("{method} = {value}"))).unwrap_or_else(|e| panic!("{method} = {value}: {e}"));
        }
        let refusal = read(&limit(&format!("{method} = -1"))).unwrap_err();
        assert_eq!(refusal, format!("agent.conf:8: `agent.experimental.ratelimit.{method}`: must not be negative"));
    }
    refused(
        &limit("fetch_x509_svid = 1.5"),
        &expect!["agent.conf:8: `agent.experimental.ratelimit.fetch_x509_svid` is `1.5`, expected a whole number"],
    );
}

#[test]
fn an_unknown_feature_flag_is_an_error() {
    read(&good("experimental {\n feature_flags = [\"i_am_a_test_flag\"]\n }")).unwrap();
    refused(
        &good("experimental {\n feature_flags = [\"x\", \"i_am_a_test_flag\", \"y\"]\n }"),
        &expect!["agent.conf:7: `agent.experimental.feature_flags[0]`: unknown feature flag(s): [x y]"],
    );
}
