//! What comes out of both syntaxes, and what the errors say.

use expect_test::{Expect, expect};

use crate::{Section, expand, parse};

fn read(text: &str) -> Result<String, crate::ConfigError> {
    let mut top = parse("server.conf", text)?;
    let mut server = top.section("server")?.unwrap_or_else(|| Section::empty("server", "server.conf"));
    let mut out = format!("{:?}", server.string("trust_domain")?.map(|s| s.value));
    out += &format!(" {:?}", server.port("bind_port")?.map(|s| s.value));
    out += &format!(" {:?}", server.duration("ca_ttl")?.map(|s| s.value));
    out += &format!(" {:?}", server.boolean("audit_log_enabled")?.map(|s| s.value));
    out += &format!(" {:?}", server.strings("admin_ids")?.into_iter().map(|s| s.value).collect::<Vec<_>>());
    server.finish()?;
    if let Some(mut plugins) = top.section("plugins")? {
        for (label, mut plugin) in plugins.labelled("KeyManager")? {
            out += &format!(" KeyManager {label}");
            if let Some(mut data) = plugin.section("plugin_data")? {
                out += &format!(" {:?}", data.string("keys_path")?.map(|s| s.value));
                data.finish()?;
            }
            plugin.finish()?;
        }
        plugins.finish()?;
    }
    top.finish()?;
    Ok(out)
}

#[allow(clippy::needless_pass_by_value)]
fn check(text: &str, expected: Expect) {
    expected.assert_eq(&match read(text) {
        Ok(out) => out,
        Err(e) => e.to_string(),
    });
}

#[test]
fn hcl_and_json_give_the_same_tree() {
    let hcl = r#"
# three kinds
// of comment
/* stand here */
server {
  trust_domain = "example.org"
  bind_port = "8081"
  ca_ttl = "1h30m"
  audit_log_enabled = true
  admin_ids = ["spiffe://example.org/a", "spiffe://example.org/b"]
}
plugins {
  KeyManager "disk" {
    plugin_data { keys_path = "./keys.json" }
  }
}
"#;
    let json = r#"{"server": {"trust_domain": "example.org", "bind_port": 8081, "ca_ttl": "90m", "audit_log_enabled": true,
      "admin_ids": ["spiffe://example.org/a", "spiffe://example.org/b"]},
      "plugins": {"KeyManager": [{"disk": {"plugin_data": {"keys_path": "./keys.json"}}}]}}"#;
    assert_eq!(read(hcl).map_err(|e| e.to_string()), read(json).map_err(|e| e.to_string()));
    check(
        json,
        expect![[
            r#"Some("example.org") Some(8081) Some(5400s) Some(true) ["spiffe://example.org/a", "spiffe://example.org/b"] KeyManager disk Some("./keys.json")"#
        ]],
    );
}

#[test]
fn an_unknown_key_names_line_and_nearest_key() {
    check(
        "server {\n  trust_domian = \"a\"\n}\n",
        expect![[r#"
        server.conf:2: unknown configuration detected: `server.trust_domian`
        hint: did you mean `trust_domain`?"#]],
    );
    check(
        "{\"server\": {\n\"zzz\": 1}}",
        expect![[r#"
        server.conf:2: unknown configuration detected: `server.zzz`
        hint: known here: trust_domain, bind_port, ca_ttl, audit_log_enabled, admin_ids"#]],
    );
    check(
        "server {}\nserveur {}\n",
        expect![[r#"
        server.conf:2: unknown configuration detected: `serveur`
        hint: did you mean `server`?"#]],
    );
}

#[test]
fn a_wrong_type_says_what_is_expected() {
    check(
        "server {\n  trust_domain = 5\n}",
        expect!["server.conf:2: `server.trust_domain` is a number, expected a string in double quotes"],
    );
    check("server {\n\n  bind_port = \"http\"\n}", expect!["server.conf:3: `server.bind_port` is `http`, expected a whole number"]);
    check("server {\n  bind_port = 70000\n}", expect!["server.conf:2: `server.bind_port`: 70000 is not a port, expected 0 to 65535"]);
    check(
        "server {\n  ca_ttl = \"1 day\"\n}",
        expect!["server.conf:2: `server.ca_ttl`: `1 day` is not a length of time, expected for example `1h30m`, `45s`, `500ms`"],
    );
    check("server = 3", expect!["server.conf:1: `server` is a number, expected a block"]);
}

#[test]
fn twice_the_same_is_refused_with_both_lines() {
    check(
        "server {\n  ca_ttl = \"1h\"\n  ca_ttl = \"2h\"\n}",
        expect![[r#"
        server.conf:3: `ca_ttl` is set twice in this block
        hint: keep one of the two"#]],
    );
    check(
        "server {\n}\nserver {\n}",
        expect![[r#"
        server.conf:3: block `server` is there twice, first in line 1
        hint: put both into one block"#]],
    );
}

#[test]
fn what_would_need_evaluation_is_refused_with_a_hint() {
    check(
        "server {\n  trust_domain = EXAMPLE\n}",
        expect![[r#"
        server.conf:2: `server.trust_domain` has the bare word `EXAMPLE`
        hint: put the text in double quotes"#]],
    );
    check(
        "server {\n  trust_domain = \"${TD}\"\n}",
        expect![[r#"
        server.conf:2: `server.trust_domain` has a `${…}` or `%{…}` in it
        hint: start with --expand-env to replace environment variables, or write `$${` for the text itself"#]],
    );
    check(
        "server {\n  trust_domain = 1 + 2\n}",
        expect![[r#"
        server.conf:2: `server.trust_domain` is an expression
        hint: write the value itself"#]],
    );
}

#[test]
fn what_hcl_1_allowed_and_hcl_2_does_not_has_a_hint() {
    for (text, hint) in [
        ("\"server\" = 1\n", "without quotes"),
        ("server {\n  ca_ttl = \"1h\",\n}\n", "leave it out"),
        ("plugins {\n  KeyManager \"disk\" { plugin_data { keys_path = \"x\" } }\n}\n", "line of its own"),
    ] {
        let error = read(text).expect_err(text).to_string();
        assert!(error.contains(hint), "{error}");
    }
}

#[test]
fn a_syntax_error_names_the_line_that_an_editor_shows_whatever_ends_a_line_elsewhere() {
    for text in ["{\r\r\r \"a\": 1,\n\"b\": }", "{ \"a\": 1,\r\n\"b\": }"] {
        assert!(read(text).expect_err(text).to_string().starts_with("server.conf:2: not valid JSON"), "{text:?}");
    }
}

#[test]
fn environment_variables_expand_as_in_spire() {
    let lookup = |name: &str| (name == "TD").then(|| "example.org".to_owned());
    assert_eq!(expand("a $TD ${TD}x $MISSING| $$TD $ 5$", lookup), "a example.org example.orgx | $TD $ 5$");
}

#[test]
fn a_file_nested_too_deep_is_refused_before_it_is_parsed() {
    let error = parse("x", &"[".repeat(100_000)).expect_err("must be refused").to_string();
    assert_eq!(error, "x:1: nested deeper than 64 levels");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = parse("x", &text);
        let _ = parse("x", &format!("{{{text}"));
    }
}
