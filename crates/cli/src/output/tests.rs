//! YAML says what JSON says, and nothing from outside reaches a terminal as a control character.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use serde_json::{Value, json};
use yaml_rust2::{Yaml, YamlLoader};

use super::{Block, clean, yaml};

/// What a reader of YAML by somebody else makes of it.
fn read(yaml: Yaml) -> Value {
    match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(b) => b.into(),
        Yaml::Integer(n) => n.into(),
        Yaml::Real(text) => text.parse::<f64>().unwrap().into(),
        Yaml::String(text) => text.into(),
        Yaml::Array(items) => items.into_iter().map(read).collect(),
        Yaml::Hash(members) => Value::Object(members.into_iter().map(|(k, v)| (k.into_string().unwrap(), read(v))).collect()),
        other => panic!("{other:?}"),
    }
}

fn there_and_back(value: &Value) {
    let text = String::from_utf8(yaml(value).as_ref().to_vec()).expect("text");
    let back = YamlLoader::load_from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(back.len(), 1, "{text}");
    assert_eq!(&read(back.into_iter().next().unwrap()), value, "{text}");
    assert!(text.ends_with('\n') && text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
}

#[test]
fn yaml_says_what_json_says() {
    there_and_back(&json!({
        "entries": [{"id": "a", "parent_id": {"trust_domain": "example.org", "path": "/node"}, "ttl": 0, "admin": false, "extra": null,
            "selectors": [{"type": "unix", "value": "uid:1000"}], "federates_with": []}],
        "empty": {},
        "big": 9_007_199_254_740_991_i64,
        "negative": -1,
        "part": 0.5,
    }));
    // Texts that look like something else.
    for text in [
        "",
        " ",
        "no",
        "NO",
        "yes",
        "true",
        "null",
        "~",
        "1",
        "1e3",
        "0x10",
        "0o7",
        "1_000",
        "12:30:45",
        "2026-01-02",
        ".inf",
        "-",
        "--- a",
        "a: b",
        "a #b",
        "#a",
        "&a",
        "*a",
        "!a",
        "%a",
        "@a",
        "`a",
        "{a",
        "[a",
        "a,b",
        "'a'",
        "\"a\"",
        " a",
        "a ",
        "a\nb",
        "a\n",
        "\ta",
        "=",
        "<<",
        "spiffe://example.org/web",
        "k8s:ns:default",
        "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
    ] {
        there_and_back(&json!({ "text": text }));
        there_and_back(&json!([text, { text: text }]));
    }
    there_and_back(&json!({ "long": "word ".repeat(100) }));
}

#[test]
fn no_control_character_from_outside_reaches_a_terminal() {
    let control: Vec<char> = ('\0'..='\u{a0}').filter(|c| c.is_control()).collect();
    assert_eq!(control.len(), 65);
    for c in control {
        let text = format!("before{c}[31mafter");
        there_and_back(&json!({ "text": text, (text.as_str()): 1 }));
        let mut block = Block::new(4);
        block.row("Hint", &text);
        assert_eq!(block.finish(), "Hint: before\u{fffd}[31mafter\n\n");
        assert_eq!(clean(&text), "before\u{fffd}[31mafter");
    }
}
