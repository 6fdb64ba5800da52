//! Selectors: read, printed, compared as sets.

use countersign_identity::Selector;
use countersign_identity::selector::{SELECTOR_BYTES_MAX, SelectorError, is_subset, sorted};

fn parse(text: &str) -> Selector {
    Selector::parse(text).unwrap()
}

#[test]
fn only_the_first_colon_separates() {
    for (text, kind, value) in
        [("unix:uid:1000", "unix", "uid:1000"), ("k8s:ns:a:b", "k8s", "ns:a:b"), ("a::", "a", ":"), ("é:ü", "é", "ü")]
    {
        let selector = parse(text);
        assert_eq!((selector.kind(), selector.value(), selector.as_str()), (kind, value, text));
        assert_eq!(selector.to_string(), text);
        assert_eq!(Selector::new(kind, value), Ok(selector));
    }
}

#[test]
fn texts_that_are_no_selectors_are_refused_with_the_reason() {
    let long = format!("unix:{}", "x".repeat(SELECTOR_BYTES_MAX));
    for (text, reason) in [
        ("", SelectorError::NoColon(String::new())),
        ("unix", SelectorError::NoColon("unix".to_owned())),
        (":uid", SelectorError::TypeEmpty),
        ("unix:", SelectorError::ValueEmpty),
        (&long, SelectorError::TooLong(SELECTOR_BYTES_MAX + 5)),
    ] {
        assert_eq!(Selector::parse(text), Err(reason), "`{text}`");
    }
    assert_eq!(Selector::new("a:b", "c"), Err(SelectorError::TypeColon("a:b".to_owned())));
    assert!(Selector::parse(&format!("unix:{}", "x".repeat(SELECTOR_BYTES_MAX - 5))).is_ok());
}

#[test]
fn a_set_is_a_subset_when_every_member_is_found() {
    let found = sorted(["unix:uid:1", "unix:gid:1", "unix:uid:1", "docker:a"].map(parse).to_vec());
    assert_eq!(found.len(), 3, "no repeats");
    assert!(found.is_sorted());
    for (wanted, fits) in [
        (vec![], true),
        (vec!["unix:uid:1"], true),
        (vec!["docker:a", "unix:uid:1"], true),
        (vec!["unix:uid:2"], false),
        (vec!["unix:uid:1", "unix:uid:2"], false),
        (vec!["unix:uid:10"], false),
    ] {
        let wanted = sorted(wanted.into_iter().map(parse).collect());
        assert_eq!(is_subset(&wanted, &found), fits, "{wanted:?}");
    }
}

#[test]
fn selectors_differ_by_case() {
    assert_ne!(parse("unix:user:Root"), parse("unix:user:root"));
}
