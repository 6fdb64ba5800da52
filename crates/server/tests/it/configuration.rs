//! Every way a server refuses to start, in the words its operator reads.

use std::sync::Arc;

use countersign_server::Config;
use countersign_testkit::domain::FixedLevels;
use countersign_transport::clock::SystemClock;
use expect_test::{Expect, expect};

use crate::world::Domain;

const PLUGINS: &str = "plugins {
  DataStore \"sql\" {
    plugin_data {
      database_type = \"sqlite3\"
      connection_string = \"/tmp/none/store.sqlite3\"
    }
  }
  KeyManager \"memory\" {
    plugin_data {}
  }
  PLUGIN
}
";

/// What reading says about a `server` block with these lines.
fn server(lines: &str, expected: Expect) {
    let required = "trust_domain = \"example.org\"\n  data_dir = \"/tmp/none\"";
    whole(&format!("server {{\n  {required}\n  {lines}\n}}\n{}", PLUGINS.replace("PLUGIN", "")), expected);
}

/// What reading says about one more plugin.
fn plugin(lines: &str, expected: Expect) {
    let text = format!("server {{\n  trust_domain = \"example.org\"\n  data_dir = \"/tmp/none\"\n}}\n{}", PLUGINS.replace("PLUGIN", lines));
    whole(&text, expected);
}

fn whole(text: &str, expected: Expect) {
    let read = countersign_config::parse("server.conf", text).and_then(Config::read);
    match read {
        Ok(config) => expected.assert_eq(&format!("fine; warnings: {:?}", config.warnings)),
        Err(error) => expected.assert_eq(&error.to_string()),
    }
}

#[test]
fn keys_nobody_knows_name_the_nearest_that_is_known() {
    server(
        "bind_prot = 8081",
        expect![[r#"
        server.conf:4: unknown configuration detected: `server.bind_prot`
        hint: did you mean `bind_port`?"#]],
    );
    server(
        "zzzzzz = 1",
        expect![[r#"
            server.conf:4: unknown configuration detected: `server.zzzzzz`
            hint: known here: trust_domain, data_dir, profiling_port, profiling_freq, profiling_names, profiling_enabled, experimental, max_attested_node_info_staleness, bind_address, bind_port, socket_path, default_x509_svid_ttl, default_jwt_svid_ttl, agent_ttl, ca_ttl, ca_key_type, prune_attested_nodes_batch_size, prune_tofu_nodes, prune_attested_nodes_expired_for, federation, journal, ratelimit, jwt_key_type, ca_subject, admin_ids, audit_log_enabled, disable_jwt_svids, jwt_issuer, log_level, log_format, log_file, log_source_location, proxy_protocol_trusted_cidrs"#]],
    );
    server(
        "ca_subject {\n    countri = [\"US\"]\n  }",
        expect![[r#"
        server.conf:5: unknown configuration detected: `server.ca_subject.countri`
        hint: did you mean `country`?"#]],
    );
    server(
        "journal {\n    retension = \"1h\"\n  }",
        expect![[r#"
        server.conf:5: unknown configuration detected: `server.journal.retension`
        hint: did you mean `retention`?"#]],
    );
    server(
        "ratelimit {\n    atestation = false\n  }",
        expect![[r#"
        server.conf:5: unknown configuration detected: `server.ratelimit.atestation`
        hint: did you mean `attestation`?"#]],
    );
    whole(
        "serverr {\n}\n",
        expect![[r#"
            server.conf:1: unknown configuration detected: `serverr`
            hint: did you mean `server`?"#]],
    );
    plugin(
        "KeyManger \"disk\" {\n    plugin_data {}\n  }",
        expect![[r#"
        server.conf:15: unknown configuration detected: `plugins.KeyManger`
        hint: did you mean `KeyManager`?"#]],
    );
}

#[test]
fn values_of_another_kind_or_out_of_range_are_refused() {
    server("bind_port = \"many\"", expect!["server.conf:4: `server.bind_port` is `many`, expected a whole number"]);
    server("ratelimit {\n    signing = 500\n  }", expect!["server.conf:5: `server.ratelimit.signing` is a number, expected true or false"]);
    server("ratelimit {\n    attestation = false\n    signing = true\n  }", expect!["fine; warnings: []"]);
    server("bind_port = 70000", expect!["server.conf:4: `server.bind_port`: 70000 is not a port, expected 0 to 65535"]);
    server("bind_address = \"no host\"", expect!["server.conf:4: `server.bind_address`: `no host` is neither an IP address nor a name"]);
    // The resolver is not asked: a reload and `validate` must not depend on it.
    server("bind_address = \"nobody.invalid\"", expect!["fine; warnings: []"]);
    server("socket_path = 5", expect!["server.conf:4: `server.socket_path` is a number, expected a string in double quotes"]);
    server("audit_log_enabled = \"perhaps\"", expect!["server.conf:4: `server.audit_log_enabled` is a string, expected true or false"]);
    server(
        "default_x509_svid_ttl = \"soon\"",
        expect![
            "server.conf:4: `server.default_x509_svid_ttl`: `soon` is not a length of time, expected for example `1h30m`, `45s`, `500ms`"
        ],
    );
    server("default_x509_svid_ttl = \"10ms\"", expect!["server.conf:4: `server.default_x509_svid_ttl`: must be at least one second"]);
    server("ca_ttl = \"0s\"", expect!["server.conf:4: `server.ca_ttl`: must be at least one second"]);
    server(
        "ca_key_type = \"rsa-1024\"",
        expect!["server.conf:4: `server.ca_key_type`: `rsa-1024` is not a key type, expected ec-p256, ec-p384, rsa-2048, rsa-4096"],
    );
    server(
        "admin_ids = \"spiffe://example.org/admin\"",
        expect!["server.conf:4: `server.admin_ids` is a string, expected a list of strings in brackets"],
    );
    server(
        "admin_ids = [\"https://example.org/admin\"]",
        expect!["server.conf:4: `server.admin_ids[0]`: the scheme is missing or not `spiffe://`"],
    );
    server(
        "proxy_protocol_trusted_cidrs = [\"10.0.0.0/8\", \"10.0.0.1\"]",
        expect![
            "server.conf:4: `server.proxy_protocol_trusted_cidrs[1]`: `10.0.0.1` is not a range of addresses, expected for example 10.0.0.0/8 or 2001:db8::/32"
        ],
    );
    server("proxy_protocol_trusted_cidrs = [\"10.0.0.0/8\", \"::/0\"]", expect!["fine; warnings: []"]);
    server(
        "log_level = \"loud\"",
        expect![[
            r#"server.conf:4: `server.log_level`: not a valid log level: "loud"; expected panic, fatal, error, warn, info, debug or trace"#
        ]],
    );
    server("log_format = \"xml\"", expect![[r#"server.conf:4: `server.log_format`: unknown logger format: "xml"; expected text or json"#]]);
    server("prune_attested_nodes_batch_size = 0", expect!["server.conf:4: `server.prune_attested_nodes_batch_size`: must be at least 1"]);
    server("journal {\n    max_size_mib = 1\n  }", expect!["server.conf:5: `server.journal.max_size_mib`: must be at least 128"]);
    server("ca_subject = \"CN=x\"", expect!["server.conf:4: `server.ca_subject` is a string, expected a block"]);
    server(
        "data_dir = \"/elsewhere\"",
        expect![[r#"
        server.conf:4: `server.data_dir` is set twice, first in line 3
        hint: keep one of the two"#]],
    );
    server(
        &format!("socket_path = \"/tmp/{}\"", "long/".repeat(30)),
        expect![
            "server.conf:4: `server.socket_path`: socket path `/tmp/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/` has 155 bytes, more than the 107 the kernel allows; choose a shorter directory"
        ],
    );
}

#[test]
fn what_must_be_there_is_asked_for() {
    let plugins = PLUGINS.replace("PLUGIN", "");
    whole(
        "",
        expect![[r#"
        server.conf:1: server section must be configured
        hint: add a `server { … }` block"#]],
    );
    whole(
        "server {\n}\n",
        expect![[r#"
        server.conf:1: plugins section must be configured
        hint: add a `plugins { … }` block"#]],
    );
    whole(
        &format!("server {{\n}}\n{plugins}"),
        expect![[r#"
        server.conf:1: trust_domain must be configured
        hint: add `trust_domain = …` to the `server` block"#]],
    );
    whole(
        &format!("server {{\n  trust_domain = \"example.org\"\n}}\n{plugins}"),
        expect![[r#"
        server.conf:1: data_dir must be configured
        hint: add `data_dir = …` to the `server` block"#]],
    );
    whole(
        &format!("server {{\n  trust_domain = \"Example Org\"\n  data_dir = \"/tmp/none\"\n}}\n{plugins}"),
        expect![
            "server.conf:2: `server.trust_domain`: the trust domain name has `E`; allowed are lower-case letters, digits, dots, dashes and underscores"
        ],
    );
    let base = "server {\n  trust_domain = \"example.org\"\n  data_dir = \"/tmp/none\"\n}\n";
    whole(
        &format!("{base}plugins {{\n}}\n"),
        expect![[r#"
        server.conf:5: `plugins`: exactly one DataStore must be configured
        hint: add `DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "…" } }`"#]],
    );
    let store = |data: &str| format!("{base}plugins {{\n  DataStore \"sql\" {{\n    plugin_data {{\n{data}\n    }}\n  }}\n}}\n");
    whole(
        &store(""),
        expect![[r#"
        server.conf:6: database_type must be configured
        hint: add `database_type = …` to the `plugins.DataStore "sql"` block"#]],
    );
    whole(
        &store("database_type = \"sqlite3\""),
        expect![[r#"
        server.conf:6: connection_string must be configured
        hint: add `connection_string = …` to the `plugins.DataStore "sql"` block"#]],
    );
    whole(
        &store("database_type = \"postgres\""),
        expect![[r#"
        server.conf:8: `plugins.DataStore "sql".plugin_data.database_type`: `postgres` is not supported yet, expected `sqlite3`
        hint: PostgreSQL comes later"#]],
    );
    whole(
        &store("database_type = \"sqlite3\"\nconnection_string = \":memory:\""),
        expect![[r#"server.conf:9: `plugins.DataStore "sql".plugin_data.connection_string`: expected the path of a file"#]],
    );
    whole(
        &store("database_type = \"sqlite3\"\nconnection_string = \"/tmp/none/s\"\nro_connection_string = \"/tmp/none/r\""),
        expect![[r#"
            server.conf:10: `plugins.DataStore "sql".plugin_data.ro_connection_string`: is for databases that are reached over a network
            hint: leave it out; `sqlite3` is a file"#]],
    );
    whole(
        &store("database_type = \"sqlite3\"\nconnection_string = \"/tmp/none/s\""),
        expect![[r#"
        server.conf:5: `plugins`: exactly one KeyManager must be configured
        hint: add `KeyManager "disk" { plugin_data { keys_path = "…/keys.json" } }`"#]],
    );
}

#[test]
fn what_comes_later_says_so() {
    let base = "server {\n  trust_domain = \"example.org\"\n  data_dir = \"/tmp/none\"\n}\n";
    whole(
        &format!("{base}{}", PLUGINS.replace("PLUGIN", "").replace("\"memory\"", "\"aws_kms\"")),
        expect![[r#"
            server.conf:12: `plugins.KeyManager "aws_kms"`: plugin "KeyManager"/"aws_kms" is recognised but not supported yet
            hint: use `KeyManager "disk"` meanwhile; its file holds the keys, so keep it on an encrypted disk"#]],
    );
    plugin(
        "NodeAttestor \"k8s_psat\" {\n    plugin_data {}\n  }",
        expect![[r#"
            server.conf:15: `plugins.NodeAttestor "k8s_psat"`: plugin "NodeAttestor"/"k8s_psat" is recognised but not supported yet
            hint: join nodes with `x509pop` or with a join token meanwhile"#]],
    );
    plugin(
        "UpstreamAuthority \"disk\" {\n    plugin_data {}\n  }",
        expect![[r#"
        server.conf:15: `plugins.UpstreamAuthority "disk"`: plugin "UpstreamAuthority"/"disk" is recognised but not supported yet
        hint: leave the block out; the server signs with its own authority meanwhile"#]],
    );
    plugin(
        "NodeAttestor \"join_token\" {\n    plugin_data {}\n  }\n  NodeAttestor \"join_token\" {\n    plugin_data {}\n  }",
        expect![[r#"server.conf:18: `plugins.NodeAttestor "join_token"`: plugin "NodeAttestor"/"join_token" declared more than once"#]],
    );
}

#[test]
fn lifetimes_that_cannot_always_be_kept_are_a_warning() {
    server(
        "default_x509_svid_ttl = \"5h\"",
        expect![[
            r#"fine; warnings: ["agent_ttl is longer than 14400s, which is guaranteed with ca_ttl = 86400s; SVIDs may end earlier", "default_x509_svid_ttl is longer than 14400s, which is guaranteed with ca_ttl = 86400s; SVIDs may end earlier"]"#
        ]],
    );
    server(
        "ca_ttl = \"1h\"",
        expect![[
            r#"fine; warnings: ["agent_ttl is longer than 600s, which is guaranteed with ca_ttl = 3600s; SVIDs may end earlier", "default_x509_svid_ttl is longer than 600s, which is guaranteed with ca_ttl = 3600s; SVIDs may end earlier"]"#
        ]],
    );
}

/// What starting says, with paths made the same on every machine.
async fn start(domain: &Domain, change: impl FnOnce(String) -> String) -> String {
    let text = change(domain.server_configuration());
    let config = countersign_config::parse("server.conf", &text).and_then(Config::read).map_err(|e| e.to_string()).unwrap();
    let started = countersign_server::start(&config, Arc::new(SystemClock), Arc::new(FixedLevels)).await;
    let Err(error) = started else { panic!("it starts") };
    let port = domain.port().to_string();
    error.to_string().replace(&domain.directory().display().to_string(), "DIR").replace(&port, "PORT")
}

#[tokio::test]
async fn what_another_server_uses_is_left_alone() {
    let domain = Domain::start().await.unwrap();
    expect!["data directory `DIR/server` is in use by another server; stop that one or choose another data_dir"]
        .assert_eq(&start(&domain, |text| text).await);
    // With a data directory of its own: first the port, then the socket.
    let other = |text: String, name: &str| text.replace("/server\"", &format!("/{name}\"")).replace("/server/", &format!("/{name}/"));
    expect!["cannot listen on 127.0.0.1:PORT: the port is in use; stop whoever uses it or configure another"]
        .assert_eq(&start(&domain, |text| other(text, "second")).await);
    let port = format!("bind_port = {}", domain.port());
    expect!["socket `DIR/server.sock` is in use by another process; stop that one or choose another path"]
        .assert_eq(&start(&domain, |text| other(text, "third").replace(&port, "bind_port = 0")).await);
    // The store of a running server, by another name for its directory.
    let store = |text: String| text.replace("/server\"\n", "/fourth\"\n").replace(&port, "bind_port = 0");
    expect!["the store `DIR/server/store.sqlite3` is in use by another server; stop that one or choose another connection_string"]
        .assert_eq(&start(&domain, store).await);
    // The one that was there has not noticed.
    domain.bundle().await.unwrap();
}

#[tokio::test]
async fn a_name_to_listen_on_is_asked_for_at_the_start() {
    let domain = Domain::start().await.unwrap();
    // Each in a directory of its own: a start that failed may hold its journal a moment longer.
    let named = |name: &str, directory: &'static str| {
        let (port, address) = (format!("bind_port = {}", domain.port()), format!("bind_address = \"{name}\""));
        move |text: String| {
            let text = text.replace("/server\"", &format!("/{directory}\"")).replace("/server/", &format!("/{directory}/"));
            text.replace("bind_address = \"127.0.0.1\"", &address).replace(&port, "bind_port = 0")
        }
    };
    let refusal = start(&domain, named("nobody.invalid", "second")).await;
    assert!(refusal.starts_with("`server.bind_address`: ") && refusal.contains("the name `nobody.invalid`"), "{refusal}");
    // Beyond the name: the socket is that of the server that runs.
    expect!["socket `DIR/server.sock` is in use by another process; stop that one or choose another path"]
        .assert_eq(&start(&domain, named("localhost", "third")).await);
}

#[tokio::test]
async fn stores_of_others_are_left_alone() {
    let mut domain = Domain::start().await.unwrap();
    domain.entry_from(crate::world::entry(&crate::world::spiffe_id("/parent"), "/x", &["uid:1"])).await.unwrap();
    domain.stop_server().await;
    expect!["the store belongs to trust domain `example.org`, the configuration says `other.test`"]
        .assert_eq(&start(&domain, |text| text.replace("\"example.org\"", "\"other.test\"")).await);
    let path = domain.directory().join("server/store.sqlite3");
    for leftover in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{leftover}", path.display()));
    }
    std::fs::write(&path, "this is no database, although it is long enough to look like the beginning of one of them").unwrap();
    expect!["`DIR/server/store.sqlite3` is not a Countersign store: it is not an SQLite database"]
        .assert_eq(&start(&domain, |text| text).await);
    std::fs::remove_file(&path).unwrap();
    let spire = rusqlite::Connection::open(&path).unwrap();
    spire
        .execute_batch(
            "CREATE TABLE migrations (id INTEGER, version INTEGER, code_version TEXT); CREATE TABLE registered_entries (id INTEGER);",
        )
        .unwrap();
    drop(spire);
    let before = std::fs::read(&path).unwrap();
    expect!["`DIR/server/store.sqlite3` holds a SPIRE datastore, which is never touched"].assert_eq(&start(&domain, |text| text).await);
    assert_eq!(std::fs::read(&path).unwrap(), before, "not a byte of it was touched");
    std::fs::remove_file(&path).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE recipes (id INTEGER)").unwrap();
    expect!["`DIR/server/store.sqlite3` is not a Countersign store: it has a table `recipes`"]
        .assert_eq(&start(&domain, |text| text).await);
}

#[tokio::test]
async fn places_that_cannot_be_written_are_named() {
    let mut domain = Domain::start().await.unwrap();
    domain.stop_server().await;
    std::fs::write(domain.directory().join("file"), "").unwrap();
    let below_a_file = |text: String| text.replace("/server\"\n", "/file/data\"\n");
    expect!["cannot use `DIR/file/data`: Not a directory (os error 20)"].assert_eq(&start(&domain, below_a_file).await);
    std::fs::write(domain.server_socket(), "not a socket").unwrap();
    expect!["`DIR/server.sock` exists and is not a socket; remove it or choose another path"].assert_eq(&start(&domain, |text| text).await);
}

/// What reading says about a `federation` block with these lines.
fn federation(lines: &str, expected: Expect) {
    server(&format!("federation {{\n{lines}\n  }}"), expected);
}

/// A relationship with this trust domain, of these lines.
fn relationship(name: &str, lines: &str) -> String {
    format!("    federates_with \"{name}\" {{\n      {lines}\n    }}")
}

#[test]
fn relationships_of_the_configuration_are_read_and_what_is_still_to_come_is_said() {
    let url = "bundle_endpoint_url = \"https://one.test:8443/bundle\"";
    let web = format!("{url}\n      bundle_endpoint_profile \"https_web\" {{}}");
    let spiffe = |id: &str| format!("{url}\n      bundle_endpoint_profile \"https_spiffe\" {{\n        {id}\n      }}");
    let good =
        [relationship("one.test", &web), relationship("spiffe://two.test", &spiffe("endpoint_spiffe_id = \"spiffe://two.test/endpoint\""))];
    federation(
        &good.join("\n"),
        expect![[r#"fine; warnings: ["bundles of the trust domains in federates_with are not fetched yet; set them with `bundle set`"]"#]],
    );
    federation("", expect!["fine; warnings: []"]);
    federation(
        "    bundle_endpoint {\n      address = \"0.0.0.0\"\n      port = 8443\n    }",
        expect![[r#"
            server.conf:5: `server.federation.bundle_endpoint`: is recognised but not supported yet
            hint: leave the block out, and give the output of `bundle show --format spiffe` to the other trust domains meanwhile"#]],
    );
    federation(
        &relationship("one.test", "bundle_endpoint_profile \"https_web\" {}"),
        expect![[r#"
        server.conf:5: bundle_endpoint_url must be configured
        hint: add `bundle_endpoint_url = …` to the `server.federation.federates_with "one.test"` block"#]],
    );
    federation(
        &relationship("one.test", &web.replace("https://", "http://")),
        expect![[
            r#"server.conf:6: `server.federation.federates_with "one.test".bundle_endpoint_url`: bundle endpoint URL must use the https scheme"#
        ]],
    );
    federation(
        &relationship("one.test", &web.replace("https://", "https://me@")),
        expect![[
            r#"server.conf:6: `server.federation.federates_with "one.test".bundle_endpoint_url`: bundle endpoint URL must not contain user info"#
        ]],
    );
    federation(
        &relationship("One", &web),
        expect![[
            r#"server.conf:5: `server.federation.federates_with "One"`: `One` is not a trust domain: the trust domain name has `O`; allowed are lower-case letters, digits, dots, dashes and underscores"#
        ]],
    );
    federation(
        &relationship("example.org", &web),
        expect![[r#"server.conf:5: `server.federation.federates_with "example.org"`: `example.org` is the server's own trust domain"#]],
    );
    federation(
        &relationship("one.test", url),
        expect![[r#"
        server.conf:5: `server.federation.federates_with "one.test"`: exactly one bundle_endpoint_profile must be set
        hint: add `bundle_endpoint_profile "https_web" {}` or `bundle_endpoint_profile "https_spiffe" { endpoint_spiffe_id = "…" }`"#]],
    );
    federation(
        &relationship("one.test", &web.replace("https_web", "https_wep")),
        expect![[
            r#"server.conf:7: `server.federation.federates_with "one.test".bundle_endpoint_profile "https_wep"`: there is no profile `https_wep`, expected https_web or https_spiffe"#
        ]],
    );
    federation(
        &relationship("one.test", &format!("{web}\n      {}", spiffe("endpoint_spiffe_id = \"spiffe://one.test/e\"").replace(url, ""))),
        expect![[r#"
            server.conf:5: `server.federation.federates_with "one.test"`: exactly one bundle_endpoint_profile must be set
            hint: add `bundle_endpoint_profile "https_web" {}` or `bundle_endpoint_profile "https_spiffe" { endpoint_spiffe_id = "…" }`"#]],
    );
    federation(
        &relationship("one.test", &web.replace("{}", "{\n        endpoint_spiffe_id = \"spiffe://one.test/endpoint\"\n      }")),
        expect![[r#"
            server.conf:8: unknown configuration detected: `server.federation.federates_with "one.test".bundle_endpoint_profile "https_web".endpoint_spiffe_id`
            hint: nothing can be set here"#]],
    );
    federation(
        &relationship("one.test", &spiffe("")),
        expect![[r#"
        server.conf:7: endpoint_spiffe_id must be configured
        hint: add `endpoint_spiffe_id = …` to the `server.federation.federates_with "one.test".bundle_endpoint_profile "https_spiffe"` block"#]],
    );
    federation(
        &relationship("one.test", &spiffe("endpoint_spiffe_id = \"two.test\"")),
        expect![[
            r#"server.conf:8: `server.federation.federates_with "one.test".bundle_endpoint_profile "https_spiffe".endpoint_spiffe_id`: the scheme is missing or not `spiffe://`"#
        ]],
    );
    federation(
        &relationship("one.test", &format!("{web}\n      refresh = 1")),
        expect![[r#"
        server.conf:8: unknown configuration detected: `server.federation.federates_with "one.test".refresh`
        hint: known here: bundle_endpoint_url, bundle_endpoint_profile"#]],
    );
    federation(
        &[relationship("one.test", &web), relationship("spiffe://one.test", &web)].join("\n"),
        expect![[r#"
        server.conf:9: `server.federation.federates_with "spiffe://one.test"`: trust domain `spiffe://one.test` is named twice
        hint: keep one of the two blocks"#]],
    );
}
