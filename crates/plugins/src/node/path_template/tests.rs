//! Templates, their paths, and what is said about those that are not taken.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use super::{Field, Kind, TEMPLATE_BYTES_MAX, Template, Value};

const FIELDS: &[Field] =
    &[("PluginName", Kind::Text), ("Subject.CommonName", Kind::Text), ("DNSNames", Kind::List), ("URISanSelectors", Kind::Map)];

fn fields() -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("PluginName", Value::Text("x509pop".to_owned())),
        ("Subject.CommonName", Value::Text("Host-7.dc1.example.org".to_owned())),
        ("DNSNames", Value::List(vec!["a.example.org".to_owned(), "b.example.org".to_owned()])),
        ("URISanSelectors", Value::Map(BTreeMap::from([("zone".to_owned(), "eu".to_owned())]))),
    ])
}

/// What becomes of a template; an error of a node's names begins with `node:`.
fn result(template: &str) -> String {
    match Template::parse(template, FIELDS) {
        Err(error) => error,
        Ok(template) => template.render(&fields()).unwrap_or_else(|e| format!("node: {e}")),
    }
}

#[test]
fn templates_mean_what_they_mean_in_go() {
    for (template, path) in [
        ("/{{ .PluginName }}/{{ .Subject.CommonName }}", "/x509pop/Host-7.dc1.example.org"),
        ("/cn/{{.Subject.CommonName|lower}}", "/cn/host-7.dc1.example.org"),
        ("/a/ {{- .PluginName -}} /b", "/a/x509pop/b"),
        ("/a{{/* a remark */}}/b", "/a/b"),
        ("/{{ trimSuffix \".dc1.example.org\" .Subject.CommonName }}", "/Host-7"),
        ("/{{ .Subject.CommonName | trimSuffix `.example.org` | replace \".\" \"/\" | upper }}", "/HOST-7/DC1"),
        ("/{{ index .DNSNames 1 }}", "/b.example.org"),
        ("/{{ first .DNSNames }}/{{ last .DNSNames }}/{{ len .DNSNames }}", "/a.example.org/b.example.org/2"),
        ("/{{ join \"-\" .DNSNames }}", "/a.example.org-b.example.org"),
        ("/{{ index (splitList \".\" .Subject.CommonName) 1 }}", "/dc1"),
        ("/{{ .URISanSelectors.zone }}/{{ index .URISanSelectors \"zone\" }}", "/eu/eu"),
        ("/{{ default \"none\" (index .URISanSelectors \"rack\") }}", "/none"),
        ("/{{ if hasPrefix \"Host\" .Subject.CommonName }}host{{ else }}other{{ end }}", "/host"),
        ("/{{ if contains \"x\" .Subject.CommonName | not }}a{{ else if eq .PluginName \"y\" \"x509pop\" }}b{{ else }}c{{ end }}", "/b"),
        ("/{{ trunc 4 .Subject.CommonName }}/{{ trunc -3 .Subject.CommonName }}/{{ substr 5 6 .Subject.CommonName }}", "/Host/org/7"),
        ("/{{ printf \"%s-%d%%\" .PluginName 7 | trimSuffix \"%\" }}", "/x509pop-7"),
        ("/{{ print 1 2 | nospace }}/{{ print \"a\" 1 \"b\" }}", "/12/a1b"),
        ("/{{ regexReplaceAll \"^([a-zA-Z]+)-([0-9]+).*$\" .Subject.CommonName \"${2}/${1}\" }}", "/7/Host"),
        ("/{{ regexFind \"[0-9]+\" .Subject.CommonName }}", "/7"),
        ("/{{ sha1sum \"abc\" }}", "/a9993e364706816aba3e25717850c26c9cd0d89d"),
        ("/{{ ternary \"yes\" \"no\" (has \"b.example.org\" .DNSNames) }}", "/yes"),
        ("/{{ coalesce \"\" .PluginName }}/{{ and .PluginName \"b\" }}/{{ or \"\" \"c\" }}", "/x509pop/b/c"),
        ("/{{ or .PluginName .URISanSelectors.rack }}{{ if and \"\" (first .DNSNames) }}a{{ end }}", "/x509pop"),
        ("/{{ if and \"\" .URISanSelectors.rack }}a{{ else }}b{{ end }}", "/b"),
        ("/{{ \"}}\" | trimAll \"}\" }}x", "/x"),
    ] {
        assert_eq!(result(template), path, "{template}");
    }
}

#[test]
fn what_is_not_supported_or_can_be_no_path_is_said_when_the_template_is_read() {
    let long = format!("/{}", "a".repeat(TEMPLATE_BYTES_MAX));
    let deep = format!("/{{{{ {}.PluginName{} }}}}", "(".repeat(40), ")".repeat(40));
    for (template, error) in [
        ("", "does not begin with `/`"),
        ("x509pop/{{ .PluginName }}", "does not begin with `/`"),
        ("{{ .PluginName }}/x", "does not begin with `/`"),
        ("{{ if .PluginName }}/a{{ end }}", "does not begin with `/`"),
        ("/a b", "is not a character that a path may have"),
        ("/ü", "is not a character that a path may have"),
        ("/{{ .Fingerprint }}", "there is no field `.Fingerprint`, supported are .PluginName"),
        ("/{{ .Subject }}", "there is no field `.Subject`"),
        ("/{{ . }}", "there is no field `.`"),
        ("/{{ .PluginName", "has no end"),
        ("/{{ .URISanSelectors.a.b }}", "there is no field"),
        ("/{{ .DNSNames }}", "is a list, which is no part of a path"),
        ("/{{ uuidv4 }}", "there is no function `uuidv4`, supported are and, coalesce"),
        ("/{{ range .DNSNames }}x{{ end }}", "`range` is not supported"),
        ("/{{ with .PluginName }}x{{ end }}", "`with` is not supported"),
        ("/{{ $x := .PluginName }}", "variables are not supported"),
        ("/{{ if .PluginName }}x", "`if` without `end`"),
        ("/x{{ end }}", "`end` without `if`"),
        ("/x{{ else }}", "`else` without `if`"),
        ("/{{ if .PluginName }}a{{ else }}b{{ else }}c{{ end }}", "`else` twice"),
        ("/{{ lower }}", "`lower` takes 1 arguments, not 0"),
        ("/{{ lower .DNSNames }}", "argument 1 of `lower` is a list, expected a text"),
        ("/{{ trunc .PluginName 3 }}", "argument 1 of `trunc` is a text, expected a number"),
        ("/{{ index .DNSNames \"a\" }}", "`index` takes a list and a number"),
        ("/{{ .PluginName | .PluginName }}", "piped into what is no function"),
        ("/{{ .PluginName \"a\" }}", "a value has arguments"),
        ("/{{ (.PluginName }}", "lacks a `)`"),
        ("/{{ .PluginName) }}", "a `)` too many"),
        ("/{{ }}", "lacks a value"),
        ("/{{ .PluginName | }}", "lacks a value"),
        ("/{{ \"a\\q\" }}", "a text that is not one of Go's"),
        ("/{{ regexFind .PluginName .PluginName }}", "must be a regular expression in quotes"),
        ("/{{ regexFind \"(\" .PluginName }}", "is not a regular expression"),
        ("/{{ printf \"%x\" .PluginName }}", "knows the verbs"),
        ("/{{ printf \"%s\" }}", "more verbs than arguments"),
        ("/{{ printf \"a\" .PluginName }}", "more arguments than verbs"),
        ("/{{ printf \"%d\" .PluginName }}", "does not take a text"),
        ("/{{ or .PluginName 1 }}", "must be of one kind"),
        ("/{{ .PluginName & 1 }}", "is not supported"),
        (&long, "more than the 4096 allowed"),
        (&deep, "parentheses more than 16 deep"),
    ] {
        let said = Template::parse(template, FIELDS).err().unwrap_or_else(|| format!("nothing, it was taken: {}", result(template)));
        assert!(said.contains(error), "{template}: {said}");
    }
}

#[test]
fn what_a_node_lacks_is_said_by_name() {
    for (template, error) in [
        ("/{{ .URISanSelectors.rack }}", "node: there is no `rack` in `.URISanSelectors`"),
        ("/{{ index .DNSNames 2 }}", "node: `index` 2 of a list of 2"),
        ("/{{ index .DNSNames -1 }}", "node: `index` -1 of a list of 2"),
        ("/{{ substr 90 95 .PluginName }}", "node: a text is cut outside it or within a character"),
    ] {
        assert_eq!(result(template), error);
    }
}

#[test]
fn a_text_that_grows_without_end_is_cut_off() {
    let growing = "(replace \"a\" \"aaaaaaaaaaaaaaaa\" ".repeat(8);
    let template = format!("/{{{{ {growing} \"a\"{} }}}}", ")".repeat(8));
    assert!(result(&template).starts_with("node: what `replace` makes becomes too long"), "{}", result(&template));
}
