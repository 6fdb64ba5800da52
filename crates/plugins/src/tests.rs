//! Blocks of plugins, whichever plugin they are of.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use countersign_config::{Fingerprint, parse};
use expect_test::{Expect, expect};

use crate::configured;

/// The plugins of kind `Kind`, or what is wrong with them.
fn check(text: &str, expected: Expect) {
    let mut plugins = parse("x.conf", &format!("plugins {{\n{text}\n}}\n")).unwrap().section("plugins").unwrap().unwrap();
    expected.assert_eq(&match configured(&mut plugins, "Kind", &mut Fingerprint::default()) {
        Ok(all) => all
            .into_iter()
            .map(|mut plugin| format!("{} {:?}\n", plugin.name, plugin.data.string("key").unwrap().map(|s| s.value)))
            .collect(),
        Err(error) => error.to_string(),
    });
}

#[test]
fn settings_come_from_the_block_or_from_a_file_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let (file, json) = (directory.path().join("a.conf"), directory.path().join("a.json"));
    std::fs::write(&file, "# HCL\nkey = \"from a file\"\n").unwrap();
    std::fs::write(&json, "{\"key\": \"from JSON\"}").unwrap();
    let blocks = [
        "Kind \"a\" {\n plugin_data {\n key = \"here\"\n}\n}".to_owned(),
        format!("Kind \"b\" {{\n plugin_data_file = {file:?}\n}}"),
        format!("kind \"c\" {{\n plugin_data_file = {json:?}\n enabled = true\n}}"),
        "Kind \"d\" {\n}".to_owned(),
        "Kind \"e\" {\n enabled = false\n plugin_cmd = \"/x\"\n plugin_data_file = \"/nowhere\"\n}".to_owned(),
    ];
    check(
        &blocks.join("\n"),
        expect![[r#"
            a Some("here")
            b Some("from a file")
            c Some("from JSON")
            d None
        "#]],
    );
}

#[test]
fn what_a_block_says_wrong_is_named() {
    check(
        "Kind \"a\" {\n plugin_data {}\n plugin_data_file = \"x\"\n}",
        expect![[r#"x.conf:4: `plugins.Kind "a".plugin_data_file`: only one of [plugin_data, plugin_data_file] can be used"#]],
    );
    check(
        "Kind \"a\" {\n plugin_data_file = \"/nowhere/x.conf\"\n}",
        expect![[
            r#"x.conf:3: `plugins.Kind "a".plugin_data_file`: failed to read plugin configuration: open /nowhere/x.conf: no such file or directory"#
        ]],
    );
    check("Kind \"a\" {\n}\nKind \"a\" {\n}", expect![[r#"x.conf:4: `plugins.Kind "a"`: plugin "Kind"/"a" declared more than once"#]]);
    check(
        "Kind \"a\" {\n plugin_cmd = \"/opt/a\"\n}",
        expect![[r#"
            x.conf:3: `plugins.Kind "a".plugin_cmd`: the plugin "Kind"/"a" is external, and external plugins are not supported yet
            hint: use a built-in plugin meanwhile, or set `enabled = false` in the block"#]],
    );
    check(
        "Kind \"a\" {\n plugin_dat {}\n}",
        expect![[r#"
            x.conf:3: unknown configuration detected: `plugins.Kind "a".plugin_dat`
            hint: did you mean `plugin_data`?"#]],
    );
}

#[test]
fn what_a_file_of_settings_says_is_part_of_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.conf");
    let read = |content: &str| {
        std::fs::write(&file, content).unwrap();
        let text = format!("plugins {{\n Kind \"a\" {{\n plugin_data_file = {file:?}\n}}\n}}\n");
        let mut plugins = parse("x.conf", &text).unwrap().section("plugins").unwrap().unwrap();
        let mut fingerprint = Fingerprint::default();
        configured(&mut plugins, "Kind", &mut fingerprint).unwrap();
        fingerprint
    };
    let (old, same, new) = (read("key = \"a\"\n"), read("# moved\nkey = \"a\"\n"), read("key = \"b\"\n"));
    assert!(old.changes(&same, &[]).is_empty());
    let changes = old.changes(&new, &["plugins.Kind"]);
    assert_eq!(changes.live, ["plugins.Kind \"a\".plugin_data.key"]);
    assert!(changes.has("plugins.Kind \"a\"") && !changes.has("plugins.Kind \"b\""));
}
