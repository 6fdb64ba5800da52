//! What comes out of both syntaxes, and what the errors say.

use expect_test::{Expect, expect};

use crate::{Fingerprint, Section, expand, parse};

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
        server.conf:3: `server.ca_ttl` is set twice, first in line 2
        hint: keep one of the two"#]],
    );
    check(
        "server {\n  ca_ttl = \"1h\"\n}\nserver {\n  ca_ttl = \"2h\"\n}",
        expect![[r#"
        server.conf:5: `server.ca_ttl` is set twice, first in line 2
        hint: keep one of the two"#]],
    );
}

#[test]
fn a_block_in_several_pieces_is_their_sum() {
    let whole = read("server {\n  ca_ttl = \"1h\"\n  bind_port = 1\n}\n").unwrap();
    for pieces in [
        "server {\n  ca_ttl = \"1h\"\n}\nserver {\n  bind_port = \"1\"\n}\n",
        "server = { ca_ttl = \"1h\" }\nSERVER {\n  Bind_Port = 1\n}\n",
        "{\"server\": [{\"ca_ttl\": \"1h\"}, {\"bind_port\": 1}]}",
    ] {
        assert_eq!(read(pieces).map_err(|e| e.to_string()).unwrap(), whole, "{pieces}");
    }
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
        server.conf:2: `server.trust_domain` has a `${…}` in it
        hint: start with --expand-env to replace environment variables"#]],
    );
}

#[test]
fn every_form_that_hcl_1_has_is_read() {
    let whole = read("server {\n  ca_ttl = \"1h\"\n  bind_port = 8081\n  admin_ids = [\"a\", \"b\"]\n}\n").unwrap();
    for same in [
        "\"server\" { \"ca_ttl\" = \"1h\" bind_port = 0x1F91 admin_ids = [\"a\",\"b\",] }",
        "\u{feff}server = {\r\n ca_ttl = \"1\\u0068\", bind_port = 017621, /* * / ** */ admin_ids = [ # }\n \"a\" // ]\n , \"\\U00000062\" ] }",
        "server{ca_ttl=\"1h\"}server{bind_port=8081 admin_ids=[<<-X\n  a\n  X\n, \"b\"]}",
    ] {
        assert_eq!(
            read(same).map_err(|e| e.to_string()).unwrap(),
            whole.replace("\"a\"", if same.contains("<<") { "\"a\\n\"" } else { "\"a\"" }),
            "{same}"
        );
    }
}

/// The trust domain that a text over several lines gives.
fn over_lines(text: &str, expected: &str) {
    let mut top = parse("x", &format!("server {{\n  trust_domain = {text}\n}}\n")).unwrap();
    let value = top.section("server").unwrap().unwrap().string("trust_domain").unwrap().unwrap().value;
    assert_eq!(value, expected, "{text}");
}

#[test]
fn texts_over_several_lines_keep_their_lines() {
    over_lines("<<EOF\n  a\n\"b\" # }\n  EOF", "  a\n\"b\" # }\n");
    over_lines("<<EOF\nEOF not yet\nEOF", "EOF not yet\n");
    over_lines("<<-EOF\n    a\n      b\n    EOF", "a\n  b\n");
    // Not all lines are indented as the last: nothing is taken away, as in SPIRE.
    over_lines("<<-EOF\n  a\n    b\n    EOF", "  a\n    b\n");
    over_lines("<<EOF\nEOF", "");
}

#[test]
fn what_is_no_hcl_is_named_with_its_line() {
    for (text, expected) in [
        ("server {\n  a = 1\n", expect!["server.conf:1: not valid HCL: the block that begins here does not end\nhint: end it with `}`"]),
        ("server {\n}\n}\n", expect!["server.conf:3: not valid HCL: a `}` ends nothing\nhint: count the braces before it"]),
        (
            "server {\n  a =\n}\n",
            expect!["server.conf:2: not valid HCL: `server.a` has no value\nhint: each setting is `key = value`, each block `name { … }`"],
        ),
        (
            "server {\n  a \"b\" = 1\n}\n",
            expect!["server.conf:2: not valid HCL: `a` has no value\nhint: each setting is `key = value`, each block `name { … }`"],
        ),
        (
            "server {\n  a = \"b\n}\n",
            expect!["server.conf:2: not valid HCL: the text of `server.a` does not end in its line\nhint: end it with `\"`"],
        ),
        (
            "server {\n  a = \"\\.\"\n}\n",
            expect![
                "server.conf:2: not valid HCL: the text of `server.a` has a `\\` before something it does not stand before\nhint: write `\\\\` for a `\\`"
            ],
        ),
        (
            "server {\n  a = [1 2]\n}\n",
            expect!["server.conf:2: not valid HCL: the list `server.a` has no comma after item 1\nhint: put commas between the items"],
        ),
        ("server {\n  a = [1,\n", expect!["server.conf:2: not valid HCL: the list `server.a` does not end\nhint: end it with `]`"]),
        (
            "server {\n  a = 08\n}\n",
            expect!["server.conf:2: not valid HCL: `server.a` is `08`, which is no number\nhint: put a text in double quotes"],
        ),
        (
            "server {\n  a = 1h\n}\n",
            expect!["server.conf:2: not valid HCL: `server.a` is `1h`, which is no number\nhint: put a text in double quotes"],
        ),
        (
            "server {\n  a = <<EOF\n x\n}\n",
            expect![
                "server.conf:2: not valid HCL: `server.a` begins a text over several lines that does not end\nhint: end it with a line that has the marker alone"
            ],
        ),
        (
            "server {\n  a = <<EOF x\nEOF\n}\n",
            expect![
                "server.conf:2: not valid HCL: `server.a` begins a text over several lines wrongly\nhint: write `<<EOF` and nothing behind it"
            ],
        ),
        ("/* a\nserver {}\n", expect!["server.conf:1: not valid HCL: the comment does not end\nhint: end it with `*/`"]),
        (
            "server {\n  a = 1 / 2\n}\n",
            expect!["server.conf:2: not valid HCL: a `/` stands alone\nhint: comments begin with `#`, `//` or `/*`"],
        ),
        (
            "server {\n  [a] = 1\n}\n",
            expect![
                "server.conf:2: not valid HCL: `[` stands where a key should\nhint: each setting is `key = value`, each block `name { … }`"
            ],
        ),
    ] {
        check(text, expected);
    }
}

#[test]
fn a_syntax_error_names_the_line_that_an_editor_shows_whatever_ends_a_line_elsewhere() {
    for text in ["{\r\r\r \"a\": 1,\n\"b\": }", "{ \"a\": 1,\r\n\"b\": }"] {
        assert!(read(text).expect_err(text).to_string().starts_with("server.conf:2: not valid JSON"), "{text:?}");
    }
}

fn fingerprint(text: &str) -> Fingerprint {
    let mut all = Fingerprint::default();
    all.add("", &parse("x", text).unwrap());
    all
}

#[test]
fn what_another_configuration_changes_is_told_by_name() {
    let old = fingerprint("server {\n  a = 1\n  b = [\"x\"]\n  c { d = true }\n  gone = 1\n}\n");
    let same = fingerprint("# moved\nSERVER = {\n  c = { D = \"true\" }\n  gone = 1\n  b = [\n    \"x\",\n  ]\n  a = \"1\"\n}\n");
    assert!(old.changes(&same, &[]).is_empty());
    let new = fingerprint("server {\n  a = 2\n  b = [\"x\", \"y\"]\n  c { d = false }\n  cc = 1\n}\n");
    let changes = old.changes(&new, &["server.A", "server.c"]);
    assert_eq!(changes.live, ["server.a", "server.c.d"]);
    assert_eq!(changes.restart, ["server.b", "server.cc", "server.gone"]);
    assert!(changes.has("server.c") && !changes.has("server.cc") && !changes.has("server.b"));
    // What waits for a restart is told again and again; what was taken over is not.
    let mut in_force = old;
    in_force.take_over(&new, &changes);
    let again = in_force.changes(&new, &["server.a", "server.c"]);
    assert_eq!((again.live.len(), again.restart), (0, changes.restart));
}

#[test]
fn environment_variables_expand_as_in_spire() {
    let lookup = |name: &str| (name == "TD").then(|| "example.org".to_owned());
    assert_eq!(expand("a $TD ${TD}x $MISSING| $$TD $ 5$", lookup), "a example.org example.orgx | $TD $ 5$");
}

#[test]
fn a_file_nested_too_deep_is_refused_before_it_is_parsed() {
    let error = parse("x", &format!("server {} {{}}", "a ".repeat(100_000))).expect_err("must be refused").to_string();
    assert!(error.starts_with("x:1: not valid HCL: `server` has more than 8 labels"), "{error}");
    // What looks like brackets in texts and comments neither opens nor closes anything.
    for (begin, middle) in [("a = ", "["), ("a = ", "[# ]]]]\n"), ("", "a {# }}}}\n"), ("{\"a\": ", "["), ("{\"a\": ", "[\"]]]]\\\"]\", ")]
    {
        let error = parse("x", &format!("{begin}{}", middle.repeat(100_000))).expect_err("must be refused").to_string();
        assert!(error.ends_with(": nested deeper than 64 levels"), "{middle}: {error}");
    }
    parse("x", &format!("a = \"{}\"", "[".repeat(1000))).expect("a text");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = parse("x", &text);
        let _ = parse("x", &format!("{{{text}"));
    }

    #[test]
    fn no_order_of_what_the_language_is_made_of_makes_it_panic(
        words in proptest::collection::vec(proptest::sample::select(vec![
            "a", "b = ", "\"", "\"c\"", "{", "}", "[", "]", ",", "<<EOF\n", "<<-EOF\n", "EOF", "\n", " ", "#", "//", "/*", "*/", "0x1f", "017",
            "-1.5", "true", "\\u00e9", "\\", "$", "${", "=", "\r\n", "é", "<", "-",
        ]), 0..60)
    ) {
        let _ = parse("x", &words.concat());
    }
}

/// The page for operators, whose table of refused syntax this test reads.
const PAGE: &str = include_str!("../../../docs/configuration.md");

#[test]
fn what_the_page_says_is_refused_is_refused_with_the_hint_it_names() {
    let table = PAGE.split("| written | the hint |").nth(1).unwrap();
    let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() >= 2, "{rows:?}");
    for row in rows {
        let (code, hint) = row.trim_matches(['|', ' ']).split_once(" | ").unwrap();
        let text = format!("server {{\n  {}\n}}\n", code.trim_matches('`').replace('⏎', "\n  "));
        let error = read(&text).expect_err(&text).to_string();
        assert!(error.split_once("\nhint: ").is_some_and(|(_, shown)| shown.contains(hint)), "{text}{error}");
    }
}

#[test]
fn a_flag_takes_the_place_of_the_file_and_errors_name_it() {
    let texts = [
        "server {\n  Trust_Domain = \"a.test\"\n  bind_port = 1\n}\n",
        "server {\n  trust_domain = \"a.test\"\n}\nserver {\n  bind_port = 1\n}\n",
        r#"{"server": [{"trust_domain": "a.test"}, {"bind_port": 1}]}"#,
        "",
    ];
    for text in texts {
        let mut top = crate::parse("f", text).unwrap();
        crate::lay_over(&mut top, "server", "trust_domain", "trustDomain", crate::Override::Text("b.test".to_owned()));
        crate::lay_over(&mut top, "server", "bind_port", "serverPort", crate::Override::Number(70_000));
        crate::lay_over(&mut top, "server", "log_source_location", "logSourceLocation", crate::Override::True);
        let mut server = top.section("server").unwrap().unwrap();
        assert_eq!(server.string("trust_domain").unwrap().unwrap().value, "b.test", "{text}");
        assert!(server.boolean("log_source_location").unwrap().unwrap().value);
        let error = server.port("bind_port").unwrap_err().to_string();
        assert_eq!(error, "flag -serverPort: `server.bind_port`: 70000 is not a port, expected 0 to 65535");
        server.finish().unwrap();
        top.finish().unwrap();
    }
}
