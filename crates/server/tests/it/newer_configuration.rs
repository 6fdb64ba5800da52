//! Files as they are written for SPIRE: every construct of the syntax, everything experimental, and what a newer SPIRE may have.

use std::sync::Arc;

use countersign_server::Config;
use countersign_transport::clock::SystemClock;
use countersign_wire::agent::GetAgentRequest;
use countersign_wire::types;
use expect_test::{Expect, expect};

use crate::world::{self, Domain, id_to_wire};

const HCL: &str = include_str!("files/constructs.conf");
const JSON: &str = include_str!("files/constructs.json");

fn read(name: &str, text: &str) -> Result<Config, String> {
    countersign_config::parse(name, text).and_then(Config::read).map_err(|e| e.to_string())
}

#[test]
fn every_construct_is_read_as_it_is_meant() {
    for (name, text) in [("server.conf", HCL), ("server.json", JSON)] {
        let config = read(name, text).unwrap();
        assert_eq!(config.bind_address.to_string(), "::1", "{name}");
        assert_eq!((config.bind_port, config.logging.level.as_str()), (18081, "warn"), "{name}");
        assert_eq!(config.store_path.display().to_string(), "/tmp/none/store.sqlite3", "{name}");
        assert_eq!(config.live_plugins(), [("NodeAttestor", "join_token")], "{name}");
        expect![[r#"
            [
                "Experimental features have been enabled. Please see doc/upgrading.md for upgrade and compatibility considerations for experimental features.",
            ]
        "#]]
        .assert_debug_eq(&config.warnings);
    }
}

#[test]
fn both_syntaxes_of_one_configuration_differ_in_nothing() {
    // In pieces: JSON numbers repeated blocks, HCL does not.
    let fingerprint = |name, text| {
        let mut all = countersign_config::Fingerprint::default();
        let mut server = countersign_config::parse(name, text).unwrap().section("server").unwrap().unwrap();
        all.add("ca_subject", &server.section("ca_subject").unwrap().unwrap());
        all.add("server", &server);
        all
    };
    let changes = fingerprint("server.conf", HCL).changes(&fingerprint("server.json", JSON), &[]);
    assert!(changes.is_empty(), "{changes:?}");
}

/// What is said of the file with one line more in the `server` block.
fn added(line: &str, expected: &Expect) {
    let text = HCL.replacen("    TRUST_DOMAIN", &format!("    {line}\n    TRUST_DOMAIN"), 1);
    expected.assert_eq(&read("server.conf", &text).unwrap_err());
}

/// The same for the `experimental` block.
fn experimental(from: &str, to: &str, expected: &Expect) {
    assert!(HCL.contains(from), "{from}");
    expected.assert_eq(&read("server.conf", &HCL.replacen(from, to, 1)).unwrap_err());
}

#[test]
fn keys_of_a_newer_spire_are_named_with_file_line_and_the_nearest_known_key() {
    added(
        "bind_ports = [1, 2]",
        &expect![[r#"
        server.conf:8: unknown configuration detected: `Server.bind_ports`
        hint: did you mean `bind_port`?"#]],
    );
    experimental(
        "events_based_cache  ",
        "events_based_caches ",
        &expect![[r#"
        server.conf:38: unknown configuration detected: `Server.experimental.events_based_caches`
        hint: did you mean `events_based_cache`?"#]],
    );
    experimental(
        "health_checks {",
        "health_checks {\n  startup_path = \"/\"",
        &expect![[r#"
        server.conf:77: unknown configuration detected: `health_checks.startup_path`
        hint: known here: listener_enabled, bind_address, bind_port, live_path, ready_path"#]],
    );
    experimental(
        "EnableTrustDomainLabel",
        "EnableTrustDomainLabels",
        &expect![[r#"
        server.conf:80: unknown configuration detected: `telemetry.EnableTrustDomainLabels`
        hint: did you mean `EnableTrustDomainLabel`?"#]],
    );
    experimental(
        "{ plugin_data = {} }",
        "{ plugin_data = {} plugin_checksums = \"x\" }",
        &expect![[r#"
        server.conf:62: unknown configuration detected: `plugins.KeyManager "memory".plugin_checksums`
        hint: did you mean `plugin_checksum`?"#]],
    );
}

#[test]
fn what_cannot_be_honoured_is_refused_with_what_to_do() {
    let last = "feature_flags              = []";
    experimental(
        last,
        "auth_opa_policy_engine {\n local {\n rego_path = \"x\"\n }\n }",
        &expect![[r#"
        server.conf:43: `Server.experimental.auth_opa_policy_engine`: is recognised but not supported yet
        hint: leave it out; who may call what is fixed as in SPIRE's own default policy"#]],
    );
    experimental(
        last,
        "named_pipe_name = \"x\"",
        &expect![
            "server.conf:43: `Server.experimental.named_pipe_name`: named_pipe_name is not supported in this platform; please use socket_path instead"
        ],
    );
    experimental(
        last,
        "feature_flags = [\"wit-svid\"]",
        &expect![[r#"
        server.conf:43: `Server.experimental.feature_flags[0]`: WIT-SVIDs are not supported yet
        hint: leave the flag out"#]],
    );
    experimental(
        last,
        "feature_flags = [\"x\", \"i_am_a_test_flag\", \"y\"]",
        &expect!["server.conf:43: `Server.experimental.feature_flags[0]`: unknown feature flag(s): [x y]"],
    );
    experimental(
        last,
        "wit_issuer = \"x\"",
        &expect![[r#"
        server.conf:43: `Server.experimental.wit_issuer`: is recognised but not supported yet
        hint: leave it out; there are no WIT-SVIDs yet"#]],
    );
    experimental(
        last,
        "sql_transaction_timeout = \"1m\"",
        &expect![[r#"
        server.conf:43: `Server.experimental.sql_transaction_timeout`: sql_transaction_timeout and event_timeout are the same setting
        hint: keep event_timeout"#]],
    );
    experimental(
        "\"12h\"",
        "\"3s\"",
        &expect![
            "server.conf:40: `Server.experimental.full_cache_reload_interval`: must be longer than cache_reload_interval, which is 3s"
        ],
    );
    experimental(
        "\"3s\"\n        full_cache_reload_interval = \"12h\"",
        "\"24h\"",
        &expect!["server.conf:37: `Server.experimental`: cache_reload_interval must be shorter than 86400s"],
    );
    experimental(
        "\"6h\"",
        "\"6 hours\"",
        &expect![
            "server.conf:41: `Server.experimental.prune_events_older_than`: `6 hours` is not a length of time, expected for example `1h30m`, `45s`, `500ms`"
        ],
    );
    experimental(
        "profiling_enabled     = false",
        "profiling_enabled = true",
        &expect![[r#"
        server.conf:50: `server.profiling_enabled`: there are no profiles of Go's runtime in this program
        hint: leave it out and use `perf record -g -p PID`, which needs no setting and no restart"#]],
    );
    experimental(
        "EnableTrustDomainLabel = false",
        "EnableTrustDomainLabel = true",
        &expect![[r#"
        server.conf:80: `telemetry.EnableTrustDomainLabel`: is recognised but not supported yet
        hint: give the scrape job a label with the trust domain meanwhile"#]],
    );
    experimental(
        "EnableTrustDomainLabel = false",
        "Statsd = [\n{ address = \"localhost:1\" },\n]",
        &expect![[r#"
        server.conf:80: `telemetry.Statsd`: is recognised but not supported yet
        hint: use `Prometheus { host = … port = … }` meanwhile"#]],
    );
    experimental(
        "EnableTrustDomainLabel = false",
        "MetricPrefix = \"x\"",
        &expect![[r#"
        server.conf:80: `telemetry.MetricPrefix`: is recognised but not supported yet
        hint: leave it out, and rename or drop metrics in the scrape job meanwhile"#]],
    );
}

#[test]
fn settings_with_nothing_left_to_do_change_nothing() {
    let last = "feature_flags              = []";
    for line in [
        "require_pq_kem = false",
        "agent_spiffe_id_as_selector = false",
        "named_pipe_name = \"\"",
        "feature_flags = [\"i_am_a_test_flag\"]",
    ] {
        read("server.conf", &HCL.replacen(last, line, 1)).unwrap();
    }
}

#[test]
fn an_empty_text_is_a_setting_that_is_not_there() {
    let plain = HCL.replacen("\"::1\"", "\"\"", 1).replacen("\"168h\"", "\"\"", 1).replacen("\"Warn\"", "\"\"", 1).replacen(
        "\"10h30m\"",
        "\"1h\"",
        1,
    );
    let lines = "socket_path = \"\"\n    ca_key_type = \"\"\n    log_file = \"\"\n    log_format = \"\"\n    TRUST_DOMAIN";
    let config = read("server.conf", &plain.replacen("TRUST_DOMAIN", lines, 1)).unwrap();
    assert_eq!((config.bind_address.to_string().as_str(), config.logging.level.as_str()), ("0.0.0.0", "info"));
    assert_eq!((config.socket_path.display().to_string().as_str(), config.logging.file), ("/tmp/spire-server/private/api.sock", None));
    // What must be there is missing.
    let error = read("server.conf", &HCL.replacen("\"example.org\"", "\"\"", 1)).unwrap_err();
    assert!(error.contains("trust_domain must be configured"), "{error}");
}

#[tokio::test]
async fn agents_have_their_own_id_among_their_selectors_where_that_is_asked_for() {
    for wanted in [false, true] {
        let extra = format!("experimental {{\n agent_spiffe_id_as_selector = {wanted}\n }}");
        let domain = Domain::start_with(Arc::new(SystemClock), &extra).await.unwrap();
        let node = domain.join(&domain.token(None).await.unwrap()).await.unwrap();
        let request = GetAgentRequest { id: Some(id_to_wire(&node.id)), output_mask: None };
        let agent = world::agents(&domain).await.get_agent(request).await.unwrap().into_inner();
        let own = types::Selector { r#type: "spiffe_id".to_owned(), value: node.id.to_string() };
        assert_eq!(agent.selectors.contains(&own), wanted, "{agent:?}");
    }
}
