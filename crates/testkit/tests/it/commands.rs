//! Every command once, as its user types it.

use crate::support::Up;

#[test]
fn the_commands_of_an_administrator_do_what_they_say() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let node = "spiffe://example.org/up/node";

    let created = up.json(&[
        "entry",
        "create",
        "--parent-id",
        node,
        "--spiffe-id",
        "spiffe://example.org/web",
        "--selector",
        "unix:uid:4000000",
        "--dns",
        "web.test",
        "--hint",
        "w",
    ]);
    let id = created["results"][0]["entry"]["id"].as_str().unwrap().to_owned();
    let shown = up.ok(&["entry", "show", "--entry-id", &id]);
    assert!(shown.starts_with("Found 1 entry\nEntry ID                : "), "{shown}");
    assert!(
        shown.contains("Selector                : unix:uid:4000000\nDNS name                : web.test\nHint                    : w\n"),
        "{shown}"
    );
    let again =
        up.run(&["entry", "create", "--parent-id", node, "--spiffe-id", "spiffe://example.org/web", "--selector", "unix:uid:4000000"]);
    assert!(!again.status.success());
    let error = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(
        error.contains("(code: AlreadyExists, msg: \"similar entry already exists\")")
            && error.ends_with("Error: failed to create one or more entries\n"),
        "{error}"
    );
    assert_eq!(up.ok(&["entry", "delete", "--entry-id", &id]), format!("Deleted entry with ID: {id}\n"));
    assert!(!up.run(&["entry", "show", "--entry-id", &id]).status.success());

    let token = up.ok(&["token", "generate", "--spiffe-id", "spiffe://example.org/n"]);
    assert!(token.starts_with("Token: "), "{token}");
    assert!(up.ok(&["agent", "list"]).starts_with("Found 1 attested agent:\n"));
    assert_eq!(up.ok(&["healthcheck", "server"]), "Server is healthy.\n");
    assert_eq!(up.ok(&["healthcheck", "agent"]), "Agent is healthy.\n");

    let bundle = up.ok(&["bundle", "show"]);
    assert!(bundle.starts_with("-----BEGIN CERTIFICATE-----\n"));
    let spiffe = up.ok(&["bundle", "show", "--format", "spiffe"]);
    assert!(spiffe.contains("\"x509-svid\"") && spiffe.contains("\"jwt-svid\"") && spiffe.contains("\"spiffe_sequence\""), "{spiffe}");
    let foreign = directory.path().join("foreign.json");
    std::fs::write(&foreign, &spiffe).unwrap();
    assert_eq!(
        up.ok(&["bundle", "set", "--id", "other.test", "--format", "spiffe", "--path", &foreign.display().to_string()]),
        "bundle set.\n"
    );
    assert_eq!(up.ok(&["bundle", "count"]), "2 bundles\n");
    assert!(up.ok(&["bundle", "list"]).contains("* other.test\n"));
    assert_eq!(up.ok(&["bundle", "delete", "--id", "other.test"]), "bundle deleted.\n");

    let out = directory.path().join("out");
    std::fs::create_dir(&out).unwrap();
    up.ok(&["x509", "mint", "--spiffe-id", "spiffe://example.org/minted", "--write", &out.display().to_string()]);
    for name in ["svid.pem", "key.pem", "bundle.pem"] {
        assert!(out.join(name).is_file(), "{name}");
    }
    let verified = std::process::Command::new("openssl")
        .args(["verify", "-CAfile"])
        .arg(out.join("bundle.pem"))
        .arg(out.join("svid.pem"))
        .output()
        .expect("openssl is installed; `cargo xtask test` does it");
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let token = up.ok(&["jwt", "mint", "--spiffe-id", "spiffe://example.org/minted", "--audience", "a"]);
    let checked = up.ok(&["validate", "jwt", "--audience", "a", "--svid", token.trim()]);
    assert!(checked.starts_with("SVID is valid.\nSPIFFE ID : spiffe://example.org/minted\n"), "{checked}");
    let refused = up.run(&["validate", "jwt", "--audience", "b", "--svid", token.trim()]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("expected audience in"), "{refused:?}");

    up.ok(&["fetch", "x509", "--write", &out.display().to_string()]);
    assert!(out.join("svid.0.pem").is_file() && out.join("bundle.0.pem").is_file());
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(out.join("svid.0.key")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(up.ok(&["fetch", "bundle"]).starts_with("spiffe://example.org\n-----BEGIN CERTIFICATE-----\n"));

    assert_eq!(up.ok(&["logger", "set", "--level", "debug"]), "Logger Level : debug\nLaunch Level : info\n");
    assert_eq!(up.ok(&["logger", "reset"]), "Logger Level : info\nLaunch Level : info\n");

    let records = up.json(&["log", "issued", "--id", "spiffe://example.org/minted"]);
    let kinds: Vec<&str> = records["records"].as_array().unwrap().iter().map(|r| r["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["MINTED_X509", "MINTED_JWT"]);
    assert!(records["records"][0]["actor"].as_str().unwrap().starts_with("uid "), "{records}");

    let backup = directory.path().join("copy.sqlite3");
    let configuration = directory.path().join("server.conf").display().to_string();
    up.ok(&["store", "backup", "--config", &configuration, &backup.display().to_string()]);
    let running = up.run(&["store", "restore", "--config", &configuration, &backup.display().to_string()]);
    assert!(!running.status.success() && String::from_utf8_lossy(&running.stderr).contains("in use by another server"), "{running:?}");
    for role in ["server", "agent"] {
        let configuration = directory.path().join(format!("{role}.conf")).display().to_string();
        up.ok(&[role, "validate", "--config", &configuration]);
    }
    up.stop();

    let copies = std::process::Command::new(crate::support::countersign())
        .args(["store", "restore", "--config", &configuration])
        .arg(&backup)
        .output()
        .unwrap();
    assert!(copies.status.success(), "{}", String::from_utf8_lossy(&copies.stderr));
    let up = Up::start(directory.path());
    up.ok(&["whoami"]);
    up.stop();
}

#[test]
fn a_banned_agent_stops_and_an_evicted_one_joins_again_with_a_new_token() {
    let directory = tempfile::tempdir().unwrap();
    let mut up = Up::start(directory.path());
    let agents = up.json(&["agent", "list"]);
    let id = format!("spiffe://example.org{}", agents["agents"][0]["id"]["path"].as_str().unwrap());
    assert_eq!(up.ok(&["agent", "ban", "--spiffe-id", &id]), "Agent banned successfully\n");
    let (code, error) = up.ended();
    assert_eq!(code, Some(1));
    assert!(error.contains("banned"), "{error}");
    drop(up);
    // Under `up` the node gets a new token at each start, and so a new name.
    let up = Up::start(directory.path());
    assert_eq!(up.ok(&["agent", "evict", "--spiffe-id", &id]), "Agent evicted successfully\n");
    assert_eq!(up.json(&["agent", "count"])["count"], 1);
    up.ok(&["whoami"]);
    up.stop();
}

#[test]
fn more_than_a_message_holds_is_created_listed_and_deleted_by_one_command_each() {
    const COUNT: usize = 400;
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let file = |name: &str, value: serde_json::Value| {
        let path = directory.path().join(name);
        std::fs::write(&path, value.to_string()).unwrap();
        path.display().to_string()
    };
    // Twelve kilobytes each, nearly five MiB together: more than one message, and fewer in a page than asked for.
    let entry = |n: usize| {
        let selectors: Vec<_> = [1, 2].iter().map(|s| serde_json::json!({"type": "k8s", "value": format!("{s}:{n:0>6000}")})).collect();
        let ids = ["large", "large"].map(|name| format!("spiffe://example.org/{name}/{n}"));
        serde_json::json!({"entry_id": format!("large-{n}"), "spiffe_id": ids[0], "parent_id": ids[1], "selectors": selectors})
    };
    let data = file("entries.json", serde_json::json!({"entries": (0..COUNT).map(entry).collect::<Vec<_>>()}));
    let before = up.json(&["entry", "count"])["count"].as_u64().unwrap();
    for verb in ["create", "update"] {
        let results = up.json(&["entry", verb, "--data", &data]);
        assert_eq!(results["results"].as_array().unwrap().len(), COUNT);
    }
    let listed = up.json(&["entry", "show"]);
    let ids: std::collections::BTreeSet<&str> = listed["entries"].as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len() as u64, COUNT as u64 + before);
    let ids: Vec<String> = (0..COUNT).map(|n| format!("large-{n}")).collect();
    up.ok(&["entry", "delete", "--file", &file("ids.json", serde_json::json!({"ids": ids}))]);
    assert_eq!(up.json(&["entry", "count"])["count"], before);

    // One page of bundles has a hundred.
    let own = directory.path().join("own.pem");
    std::fs::write(&own, up.ok(&["bundle", "show"])).unwrap();
    for n in 0..101 {
        up.ok(&["bundle", "set", "--id", &format!("other-{n}.test"), "--path", &own.display().to_string()]);
    }
    assert_eq!(up.ok(&["bundle", "list"]).matches("-----BEGIN CERTIFICATE-----").count(), 101);
    up.stop();
}

#[test]
fn a_question_to_the_journal_that_finds_nothing_or_not_all_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let said = |arguments: &[&str]| String::from_utf8(up.run(arguments).stderr).unwrap();
    let record = &up.json(&["log", "issued", "--id", "spiffe://example.org/spire/server"])["records"][0];
    let serial = record["serial_or_jti"].as_str().unwrap();
    let hexadecimal = format!("0x{:x}", serial.parse::<u128>().unwrap());
    assert_eq!(&up.json(&["log", "issued", "--serial", &hexadecimal])["records"][0], record);
    assert!(!up.run(&["log", "issued", "--serial", "of the one that was lost"]).status.success());
    let nothing = "Nothing matches in this server's journal. It holds what this server issued, for 90 days unless configured.\n";
    assert_eq!(said(&["log", "issued", "--serial", "1"]), nothing);
    let part = "Only the newest 1 are shown. Older ones may match: raise --limit, or narrow the question.\n";
    assert_eq!(said(&["log", "issued", "--limit", "1"]), part);
    let backwards = ["log", "issued", "--between", "2026-01-31T14:04:00Z", "2026-01-31T14:03:00Z"];
    assert!(said(&backwards).contains("is not after"));
    up.stop();
}

#[test]
fn yaml_says_what_json_says_command_by_command() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    for command in [
        &["entry", "show"][..],
        &["entry", "count"],
        &["agent", "list"],
        &["agent", "count"],
        &["bundle", "count"],
        &["log", "issued", "--id", "spiffe://example.org/spire/server"],
        &["logger", "get"],
        &["whoami"],
        &["fetch", "bundle"],
    ] {
        let yaml = up.ok(&[command, &["--output", "yaml"]].concat());
        let text = std::str::from_utf8(yaml.as_bytes()).unwrap();
        let documents = yaml_rust2::YamlLoader::load_from_str(text).unwrap_or_else(|e| panic!("{command:?}: {e}: {text}"));
        assert_eq!(documents.len(), 1, "{command:?}");
        assert_eq!(as_json(&documents[0]), up.json(command), "{command:?}");
    }
    up.stop();
}

fn as_json(yaml: &yaml_rust2::Yaml) -> serde_json::Value {
    use yaml_rust2::Yaml;
    match yaml {
        Yaml::Null => serde_json::Value::Null,
        Yaml::Boolean(b) => (*b).into(),
        Yaml::Integer(n) => (*n).into(),
        Yaml::String(text) => text.clone().into(),
        Yaml::Array(items) => items.iter().map(as_json).collect(),
        Yaml::Hash(members) => {
            members.iter().map(|(k, v)| (k.as_str().unwrap().to_owned(), as_json(v))).collect::<serde_json::Map<_, _>>().into()
        }
        other => panic!("{other:?}"),
    }
}
