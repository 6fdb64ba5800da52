//! Registration entries: every rule, broken one at a time.

use countersign_identity::entry::{
    AdditionalAttributes, DNS_NAMES_MAX, ENTRY_BYTES_MAX, EntryError, FEDERATES_WITH_MAX, HINT_BYTES_MAX, check_dns_name, check_id,
};
use countersign_identity::selector::SELECTORS_MAX;
use countersign_identity::{Entry, Selector, Timestamp};

use crate::support::{NOW, WEB, id, td};

fn entry() -> Entry {
    Entry {
        id: "entry-1".to_owned(),
        spiffe_id: id(WEB),
        parent_id: id("spiffe://example.org/spire/agent/join_token/x"),
        selectors: vec![Selector::parse("unix:uid:1000").unwrap()],
        x509_svid_ttl: None,
        jwt_svid_ttl: None,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Vec::new(),
        revision_number: 0,
        store_svid: false,
        hint: String::new(),
        created_at: NOW,
        additional_attributes: AdditionalAttributes::default(),
    }
}

/// What is said about a proper entry after this change.
fn check(change: impl FnOnce(&mut Entry)) -> Result<(), String> {
    let mut entry = entry();
    change(&mut entry);
    entry.check(&td("example.org")).map_err(|e| e.to_string())
}

fn selectors(count: usize) -> Vec<Selector> {
    (0..count).map(|n| Selector::parse(&format!("unix:uid:{n}")).unwrap()).collect()
}

#[test]
fn a_proper_entry_passes() {
    assert_eq!(check(|_| ()), Ok(()));
    assert_eq!(check(|e| e.parent_id = td("example.org").server_id()), Ok(()));
}

#[test]
fn the_granted_identity_lies_in_the_trust_domain_has_a_path_and_is_not_reserved() {
    let message = |uri: &str| check(|e| e.spiffe_id = id(uri)).unwrap_err();
    assert_eq!(
        message("spiffe://other.org/web"),
        "invalid spiffe ID: `spiffe://other.org/web` is not a member of trust domain `example.org`"
    );
    assert_eq!(message("spiffe://example.org"), "invalid spiffe ID: `spiffe://example.org` has no path");
    assert_eq!(
        message("spiffe://example.org/spire/agent/x"),
        "invalid spiffe ID: `spiffe://example.org/spire/agent/x` is in the reserved namespace `/spire`"
    );
}

#[test]
fn the_parent_lies_in_the_trust_domain_and_has_a_path() {
    let message = |uri: &str| check(|e| e.parent_id = id(uri)).unwrap_err();
    assert_eq!(message("spiffe://example.org"), "invalid parent ID: `spiffe://example.org` has no path");
    assert!(message("spiffe://other.org/spire/server").starts_with("invalid parent ID: "));
}

#[test]
fn there_are_selectors_and_not_too_many_of_anything() {
    assert_eq!(check(|e| e.selectors.clear()), Err("selector list is empty".to_owned()));
    assert_eq!(check(|e| e.selectors = selectors(SELECTORS_MAX)), Ok(()));
    assert_eq!(check(|e| e.selectors = selectors(SELECTORS_MAX + 1)), Err("too many selectors: 1025, at most 1024 are allowed".to_owned()));
    assert!(check(|e| e.dns_names = vec!["a".to_owned(); DNS_NAMES_MAX]).is_ok());
    assert!(check(|e| e.dns_names = vec!["a".to_owned(); DNS_NAMES_MAX + 1]).is_err());
    assert!(check(|e| e.federates_with = vec![td("a"); FEDERATES_WITH_MAX]).is_ok());
    assert!(check(|e| e.federates_with = vec![td("a"); FEDERATES_WITH_MAX + 1]).is_err());
}

#[test]
fn dns_names_are_limited_in_bytes_together() {
    let label = "l".repeat(63);
    let names = |count: usize| -> Vec<String> { (0..count).map(|n| format!("{label}.{label}.{label}.{n:0>58}")).collect() };
    let checked = |last: &str| check(|e| e.dns_names = [names(131), vec![last.to_owned()]].concat());
    // 131 names of 250 bytes leave 18.
    assert_eq!(checked(&"l".repeat(18)), Ok(()));
    assert_eq!(checked(&"l".repeat(19)), Err("DNS names are too long: 32769 bytes together, at most 32768 are allowed".to_owned()));
}

#[test]
fn an_entry_is_limited_in_bytes_and_the_refusal_names_the_longest_field() {
    let selector = |n: usize, digits: usize| Selector::new("k", &format!("{n:0>digits$}")).unwrap();
    // The longest names of every kind, and selectors in the room they leave.
    let of_size = |bytes: usize| {
        check(|e| {
            e.id = "i".repeat(255);
            e.spiffe_id = id(&format!("spiffe://example.org/{}", "p".repeat(2027)));
            e.parent_id = e.spiffe_id.clone();
            e.hint = "h".repeat(HINT_BYTES_MAX);
            e.dns_names = (0..DNS_NAMES_MAX).map(|n| format!("{n:0>63}.{n:0>63}")).collect();
            e.federates_with = (0..FEDERATES_WITH_MAX).map(|n| td(&format!("{n:0>255}"))).collect();
            e.selectors = (0..19).map(|n| selector(n, 8000)).collect();
            e.selectors.push(selector(99, 2));
            let rest = bytes - e.bytes();
            e.selectors.pop();
            e.selectors.push(selector(99, 2 + rest));
            assert_eq!(e.bytes(), bytes);
        })
    };
    assert_eq!(of_size(ENTRY_BYTES_MAX), Ok(()));
    assert_eq!(
        of_size(ENTRY_BYTES_MAX + 1),
        Err("entry is too large: 262145 bytes, 154206 of them in selectors, at most 262144 are allowed".to_owned())
    );
    // By itself nothing in it is too long or too many.
    let text = check(|e| e.selectors = (0..SELECTORS_MAX).map(|n| selector(n, 8000)).collect()).unwrap_err();
    assert!(text.starts_with("entry is too large: ") && text.ends_with("at most 262144 are allowed"), "{text}");
}

#[test]
fn a_hint_is_limited_in_bytes() {
    assert_eq!(check(|e| e.hint = "h".repeat(HINT_BYTES_MAX)), Ok(()));
    assert_eq!(check(|e| e.hint = "ü".repeat(HINT_BYTES_MAX / 2 + 1)), Err("hint is too long, max length is 1024 bytes".to_owned()));
}

#[test]
fn ids_have_1_to_255_plain_characters() {
    for good in ["a", "A-z_0.9", &"x".repeat(255)] {
        assert_eq!(check_id(good), Ok(()));
    }
    for bad in ["", "a b", "a/b", "ä", &"x".repeat(256)] {
        assert!(matches!(check_id(bad), Err(EntryError::Id(_))), "`{bad}`");
        assert!(check(|e| e.id = bad.to_owned()).is_err());
    }
}

#[test]
fn dns_names_are_checked_label_by_label() {
    let label = "l".repeat(63);
    let longest = [&label[..], &label, &label, &label[..61]].join(".");
    for good in ["a", "example.org", "*.example.org", "x_y.example", "1.2.3.4", "A-b.C", &label, &longest] {
        assert_eq!(check_dns_name(good), Ok(()), "`{good}`");
    }
    let too_long = format!("{longest}l");
    for bad in ["", ".", "a.", ".a", "a..b", "*", "*a.b", "a.*.b", "*.", "-a", "a-", "a b", "ä.org", "a:b", &format!("{label}l"), &too_long]
    {
        assert!(matches!(check_dns_name(bad), Err(EntryError::DnsName { .. })), "`{bad}`");
        assert!(check(|e| e.dns_names = vec![bad.to_owned()]).is_err());
    }
}

#[test]
fn a_stored_svid_has_selectors_of_one_type_and_is_always_fetched_ahead() {
    let stored = |texts: &[&str], lazy: bool| {
        check(|e| {
            e.store_svid = true;
            e.selectors = texts.iter().map(|t| Selector::parse(t).unwrap()).collect();
            e.additional_attributes.disable_x509_svid_prefetch = lazy;
        })
    };
    assert_eq!(stored(&["disk:a:1", "disk:b:2"], false), Ok(()));
    assert_eq!(stored(&["disk:a:1", "aws:b:2"], false), Err("store_svid requires all selectors to have the same type".to_owned()));
    assert_eq!(stored(&["disk:a:1"], true), Err("store_svid cannot be combined with disable_x509_svid_prefetch".to_owned()));
    assert_eq!(check(|e| e.additional_attributes.disable_x509_svid_prefetch = true), Ok(()));
}

#[test]
fn entries_are_similar_when_identity_parent_and_selectors_agree() {
    let similar = |change: fn(&mut Entry)| {
        let mut other = entry();
        change(&mut other);
        entry().is_similar(&other)
    };
    assert!(similar(|e| e.id = "other".to_owned()));
    assert!(similar(|e| e.hint = "other".to_owned()));
    assert!(!similar(|e| e.spiffe_id = id("spiffe://example.org/other")));
    assert!(!similar(|e| e.parent_id = id("spiffe://example.org/other")));
    assert!(!similar(|e| e.selectors = selectors(1)));
}

#[test]
fn an_entry_ends_at_its_expiry_and_not_before() {
    let expired = |expires_at: Option<Timestamp>| Entry { expires_at, ..entry() }.is_expired(NOW);
    assert!(!expired(None));
    assert!(expired(Some(NOW)));
    assert!(!expired(Some(Timestamp::from_millis(NOW.millis() + 1))));
}

#[test]
fn an_entry_below_the_server_is_an_alias() {
    assert!(!entry().is_alias());
    assert!(Entry { parent_id: td("example.org").server_id(), ..entry() }.is_alias());
}

#[test]
fn an_alias_and_what_a_join_token_brings_name_a_node() {
    let agent = "spiffe://example.org/spire/agent/join_token/a";
    let of = |parent: &str, selector: &str| Entry { parent_id: id(parent), selectors: vec![Selector::parse(selector).unwrap()], ..entry() };
    let named = format!("spiffe_id:{agent}");
    assert!(of("spiffe://example.org/spire/server", "unix:uid:1").names_a_node());
    assert!(of(agent, &named).names_a_node());
    assert!(!of(agent, "unix:uid:1").names_a_node());
    assert!(!of("spiffe://example.org/host", &named).names_a_node());
    let mixed = [named.as_str(), "unix:uid:1"].map(|s| Selector::parse(s).unwrap()).to_vec();
    assert!(!Entry { selectors: mixed, ..of(agent, &named) }.names_a_node());
}
