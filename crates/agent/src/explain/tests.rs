//! The search and the answer, on entries made for it.

use countersign_identity::TrustDomain;
use countersign_identity::selector::sorted;

use super::*;

const NOW: Timestamp = Timestamp::from_secs(1_000_000);

fn entry(id: &str, selectors: &[&str], change: impl FnOnce(&mut Entry)) -> Arc<Entry> {
    let domain = TrustDomain::parse("example.org").expect("a name");
    let wire = countersign_wire::types::Entry {
        id: id.to_owned(),
        spiffe_id: Some(countersign_wire::id::to_wire(&domain.with_path(&format!("/{id}")).expect("a path"))),
        parent_id: Some(countersign_wire::id::to_wire(&domain.with_path("/node").expect("a path"))),
        selectors: countersign_wire::id::selectors_to_wire(&of(selectors)),
        ..Default::default()
    };
    let mut entry = countersign_wire::entry::from_wire(&wire).expect("an entry");
    change(&mut entry);
    Arc::new(entry)
}

fn of(selectors: &[&str]) -> Vec<Selector> {
    sorted(selectors.iter().map(|s| Selector::parse(s).expect("a selector")).collect())
}

fn shown(found: &Found) -> Vec<(&str, Vec<&str>)> {
    found.nearest.iter().map(|n| (n.entry.id.as_str(), n.missing.iter().map(Selector::as_str).collect())).collect()
}

#[test]
fn the_nearest_lack_the_fewest_and_say_which() {
    let entries = [
        entry("match", &["unix:uid:1"], |_| ()),
        entry("two", &["unix:uid:1", "unix:a:1", "unix:b:1"], |_| ()),
        entry("stranger", &["unix:uid:2"], |_| ()),
        entry("one", &["unix:uid:1", "unix:a:1"], |_| ()),
        entry("over", &["unix:uid:1"], |e| e.expires_at = Some(NOW)),
        entry("stored", &["unix:uid:1"], |e| e.store_svid = true),
    ];
    let found = search(&entries, &of(&["unix:uid:1", "unix:gid:1"]), Reach::Everything, NOW);
    assert_eq!(found.matching.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["match"]);
    let nearest = [
        ("over", vec![]),
        ("stored", vec![]),
        ("one", vec!["unix:a:1"]),
        ("stranger", vec!["unix:uid:2"]),
        ("two", vec!["unix:a:1", "unix:b:1"]),
    ];
    assert_eq!(shown(&found), nearest);
    assert_eq!(found.usual_parent.map(|p| p.to_string()).as_deref(), Some("spiffe://example.org/node"));
}

#[test]
fn a_process_that_asks_about_itself_is_not_told_of_entries_that_have_nothing_to_do_with_it() {
    let entries = [entry("stranger", &["unix:uid:2"], |_| ()), entry("near", &["unix:uid:1", "unix:a:1"], |_| ())];
    let found = search(&entries, &of(&["unix:uid:1"]), Reach::Shared, NOW);
    assert_eq!(shown(&found), [("near", vec!["unix:a:1"])]);
    assert_eq!(found.nearest_left_out, 1);
}

#[test]
fn every_list_ends_and_says_how_much_more_there_is() {
    let many = |prefix: &str, selectors: &[&str], count: usize| {
        (0..count).map(|n| entry(&format!("{prefix}-{n:05}"), selectors, |_| ())).collect::<Vec<_>>()
    };
    let long: Vec<String> = (0..50).map(|n| format!("unix:x:{n}")).collect();
    let long: Vec<&str> = long.iter().map(String::as_str).collect();
    let entries = [many("match", &["unix:uid:1"], 300), many("far", &long, 3), many("near", &["unix:uid:2"], 2000)].concat();
    let found = search(&entries, &of(&["unix:uid:1"]), Reach::Everything, NOW);
    assert_eq!((found.matching.len(), found.matching_left_out), (MATCHING_MAX, 200));
    assert_eq!((found.nearest.len(), found.nearest_left_out), (NEAREST_MAX, 1993));
    assert!(found.nearest.iter().all(|n| n.entry.id.starts_with("near-0000")), "{:?}", shown(&found));
    let found = search(&many("far", &long, 3), &of(&["unix:uid:1"]), Reach::Everything, NOW);
    assert!(found.nearest.iter().all(|n| n.missing.len() == MISSING_MAX && n.missing_left_out == 30));
}

#[test]
fn the_answer_names_the_first_thing_that_is_in_the_way() {
    let ready = Readiness { attested: true, joined: true, entries_known: true, connected: true };
    let (held, failed, open) = (
        Holding { has_svid: true, has_failed: false, is_hidden: false },
        Holding { has_svid: false, has_failed: true, is_hidden: false },
        Holding { has_svid: false, has_failed: false, is_hidden: false },
    );
    let hidden = Holding { is_hidden: true, ..held };
    let off = Readiness { connected: false, ..ready };
    for (agent, matching, wanted) in [
        (Readiness { attested: false, joined: false, ..ready }, vec![], Conclusion::AttestationFailed),
        (Readiness { joined: false, ..ready }, vec![], Conclusion::AgentNotJoined),
        (Readiness { entries_known: false, ..ready }, vec![], Conclusion::EntriesUnknown),
        (ready, vec![], Conclusion::NoMatchingEntry),
        (ready, vec![hidden], Conclusion::NoMatchingEntry),
        (ready, vec![failed, held], Conclusion::HasIdentity),
        (off, vec![held], Conclusion::HasIdentity),
        (off, vec![failed], Conclusion::ServerUnreachable),
        (ready, vec![failed], Conclusion::IssuanceFailed),
        (ready, vec![failed, open], Conclusion::HasIdentity),
    ] {
        assert_eq!(conclude(agent, &matching), wanted, "{agent:?} {matching:?}");
    }
}
