//! The index against a model that looks at everything: authorization, and whom a change concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use countersign_identity::{Entry, Selector, SpiffeId};
use countersign_store::{Change, Concern, Snapshot, Store};
use countersign_testkit::powerloss::PowerLoss;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::world::{agent, entry, id, on, put_node, selectors, server, write};

const AGENTS: [&str; 4] = ["a", "b", "c", "never-attested"];
const FACTS: [&str; 3] = ["x:0", "x:1", "x:2"];

/// Where an entry hangs, and what identity it grants; few of each, so that trees, diamonds and cycles are common.
fn place(n: usize) -> SpiffeId {
    match n {
        0..=1 => server(),
        2..=5 => agent(AGENTS[n - 2]),
        _ => identity(n - 6),
    }
}

fn identity(n: usize) -> SpiffeId {
    id(&format!("/i{n}"))
}

fn facts(bits: u8) -> Vec<&'static str> {
    FACTS.into_iter().enumerate().filter(|(n, _)| bits & (1 << n) != 0).map(|(_, f)| f).collect()
}

fn some_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (0..8_u8, 0..10_usize, 0..4_usize, 0..8_u8, 0..3_u8).prop_map(|(n, parent, granted, bits, hint)| {
            let made = Entry { selectors: selectors(&facts(bits)), hint: hint.to_string(), ..entry(&format!("e{n}"), &place(parent), &identity(granted)) };
            Change::EntryPut(Arc::new(made))
        }),
        3 => (0..8_u8).prop_map(|n| Change::EntryDelete(format!("e{n}").into())),
        2 => (0..3_usize, 0..8_u8).prop_map(|(n, bits)| put_node(AGENTS[n], &facts(bits))),
        1 => (0..3_usize).prop_map(|n| Change::NodeDelete(agent(AGENTS[n]))),
    ]
}

/// The same state, as plain lists.
#[derive(Clone, Default)]
struct Model {
    entries: BTreeMap<String, Entry>,
    nodes: BTreeMap<SpiffeId, Vec<Selector>>,
}

impl Model {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::EntryPut(entry) => drop(self.entries.insert(entry.id.clone(), Entry::clone(entry))),
            Change::EntryDelete(id) => drop(self.entries.remove(&**id)),
            Change::NodePut(node) => drop(self.nodes.insert(node.id.clone(), node.selectors.clone())),
            Change::NodeDelete(id) => drop(self.nodes.remove(id)),
            _ => {}
        }
    }

    /// Grows the set of identities an agent stands for until nothing is added.
    fn authorized(&self, agent: &SpiffeId) -> BTreeMap<String, Entry> {
        let mut stands_for = BTreeSet::from([agent.clone()]);
        let has = self.nodes.get(agent);
        for alias in self.entries.values().filter(|e| e.parent_id == server()) {
            // An alias without selectors, which no check lets in, would be everybody's.
            if !alias.selectors.is_empty() && has.is_some_and(|has| alias.selectors.iter().all(|s| has.contains(s))) {
                stands_for.insert(alias.spiffe_id.clone());
            }
        }
        let mut found = BTreeMap::new();
        loop {
            let before = found.len();
            for entry in self.entries.values() {
                if stands_for.contains(&entry.parent_id) {
                    stands_for.insert(entry.spiffe_id.clone());
                    found.insert(entry.id.clone(), entry.clone());
                }
            }
            if found.len() == before {
                return found;
            }
        }
    }
}

fn check_authorized(snapshot: &Snapshot, model: &Model) {
    for agent in AGENTS.map(agent) {
        let expected = model.authorized(&agent);
        let found: BTreeMap<String, Entry> =
            snapshot.authorized_entries(&agent).into_iter().map(|(id, e)| (id.to_string(), Entry::clone(&e))).collect();
        assert_eq!(found, expected, "authorized_entries of {agent}");
        for entry in model.entries.values() {
            let expected = expected.contains_key(&entry.id);
            assert_eq!(snapshot.is_authorized(&agent, entry), expected, "is_authorized of {agent} for {entry:#?}");
        }
    }
}

/// The IDs of entries that an agent gains, loses, or has with other content.
fn differing(agent: &SpiffeId, before: &Model, after: &Model) -> BTreeSet<String> {
    let (old, new) = (before.authorized(agent), after.authorized(agent));
    old.keys().chain(new.keys()).filter(|id| old.get(*id) != new.get(*id)).cloned().collect()
}

fn check_concerns(previous: (&Snapshot, &Model), next: (&Snapshot, &Model)) {
    let transactions = next.0.since(&previous.0.cursor()).unwrap();
    let concerns = next.0.concerns(previous.0, &transactions);
    for agent in AGENTS.map(agent) {
        let differing = differing(&agent, previous.1, next.1);
        let covers = |concern: &Concern| match concern {
            Concern::All => true,
            Concern::Entries(ids) => differing.iter().all(|id| ids.contains(id.as_str())),
        };
        let named = concerns.get(&agent);
        assert!(differing.is_empty() || named.is_some_and(covers), "concerns: {agent} is told {named:?}, but {differing:?} differ");
        let told = next.0.concern_of(&agent, &transactions);
        assert!(covers(&told), "concern_of: {agent} is told {told:?}, but {differing:?} differ");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_answers_as_if_it_had_looked_at_everything(requests in vec(vec(some_change(), 1..5), 1..16), stride in 1..4_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = Store::open(&on(&PowerLoss::register())).unwrap();
            let mut model = Model::default();
            let mut past: Vec<(Arc<Snapshot>, Model)> = vec![(store.snapshot(), model.clone())];
            for changes in requests {
                changes.iter().for_each(|c| model.apply(c));
                write(&store, changes).await.unwrap();
                past.push((store.snapshot(), model.clone()));
                let next = past.last().unwrap();
                check_authorized(&next.0, &next.1);
                for previous in past.iter().rev().skip(1).step_by(stride).take(3) {
                    check_concerns((&previous.0, &previous.1), (&next.0, &next.1));
                }
            }
        });
    }
}

async fn concerns_of(store: &Store, changes: Vec<Change>) -> BTreeMap<SpiffeId, Concern> {
    let before = store.snapshot();
    write(store, changes).await.unwrap();
    let after = store.snapshot();
    after.concerns(&before, &after.since(&before.cursor()).unwrap())
}

fn put(entry_id: &str, parent_id: &SpiffeId, spiffe_id: &SpiffeId, facts: &[&str]) -> Change {
    Change::EntryPut(Arc::new(Entry { selectors: selectors(facts), ..entry(entry_id, parent_id, spiffe_id) }))
}

fn only(ids: &[&str]) -> Concern {
    Concern::Entries(ids.iter().map(|i| Arc::from(*i)).collect())
}

#[tokio::test]
async fn a_change_concerns_only_the_agents_above_it() {
    let store = Store::open(&on(&PowerLoss::register())).unwrap();
    let nodes = vec![put_node("a", &["x:0"]), put_node("b", &["x:0", "x:1"]), put_node("c", &["x:2"])];
    assert_eq!(concerns_of(&store, nodes).await.into_keys().collect::<Vec<_>>(), ["a", "b", "c"].map(agent));
    let direct = concerns_of(&store, vec![put("d", &agent("a"), &id("/d"), &["u:1"])]).await;
    assert_eq!(direct, BTreeMap::from([(agent("a"), only(&["d"]))]));
    let nested = concerns_of(&store, vec![put("n", &id("/d"), &id("/n"), &["u:1"])]).await;
    assert_eq!(nested, BTreeMap::from([(agent("a"), only(&["n"]))]));
    let alias = concerns_of(&store, vec![put("alias", &server(), &id("/alias"), &["x:0"])]).await;
    assert_eq!(alias, BTreeMap::from([(agent("a"), Concern::All), (agent("b"), Concern::All)]));
    let narrow = concerns_of(&store, vec![put("narrow", &server(), &id("/narrow"), &["x:0", "x:1"])]).await;
    assert_eq!(narrow, BTreeMap::from([(agent("b"), Concern::All)]), "an agent must have all selectors of an alias");
    let below = concerns_of(&store, vec![put("w", &id("/alias"), &id("/w"), &["u:1"])]).await;
    assert_eq!(below, BTreeMap::from([(agent("a"), only(&["w"])), (agent("b"), only(&["w"]))]));
    let moved = concerns_of(&store, vec![put("w", &agent("c"), &id("/w"), &["u:1"])]).await;
    assert_eq!(moved.into_keys().collect::<Vec<_>>(), ["a", "b", "c"].map(agent), "who loses it and who gains it");
    let dangling = concerns_of(&store, vec![put("x", &id("/nowhere"), &id("/x"), &["u:1"])]).await;
    assert_eq!(dangling, BTreeMap::new());
    let same = concerns_of(&store, vec![put_node("a", &["x:0"])]).await;
    assert_eq!(same, BTreeMap::new(), "a renewal of a node's certificate changes nobody's entries");
}

#[tokio::test]
async fn an_evicted_agent_is_concerned() {
    let store = Store::open(&on(&PowerLoss::register())).unwrap();
    let world =
        vec![put_node("a", &["x:0"]), put("alias", &server(), &id("/alias"), &["x:0"]), put("w", &id("/alias"), &id("/w"), &["u:1"])];
    write(&store, world).await.unwrap();
    assert_eq!(store.snapshot().authorized_entries(&agent("a")).len(), 1);
    let before = store.snapshot();
    let gone = concerns_of(&store, vec![Change::NodeDelete(agent("a"))]).await;
    assert_eq!(gone, BTreeMap::from([(agent("a"), Concern::All)]));
    let after = store.snapshot();
    let missed = after.since(&before.cursor()).unwrap();
    assert_eq!(after.concern_of(&agent("a"), &missed), Concern::All, "also if it was away meanwhile");
    assert_eq!(after.concern_of(&agent("b"), &missed), only(&[]));
    assert!(store.snapshot().authorized_entries(&agent("a")).is_empty());
}

#[tokio::test]
async fn an_alias_is_neither_delivered_nor_authorized() {
    let store = Store::open(&on(&PowerLoss::register())).unwrap();
    write(&store, [put_node("a", &["x:0"]), put("alias", &server(), &id("/alias"), &["x:0"])]).await.unwrap();
    let snapshot = store.snapshot();
    assert!(snapshot.authorized_entries(&agent("a")).is_empty());
    assert!(!snapshot.is_authorized(&agent("a"), snapshot.entry("alias").unwrap()));
}

#[tokio::test]
async fn an_alias_without_selectors_is_nobodys() {
    let store = Store::open(&on(&PowerLoss::register())).unwrap();
    let world = [put_node("a", &["x:0"]), put("alias", &server(), &id("/alias"), &[]), put("w", &id("/alias"), &id("/w"), &["u:1"])];
    write(&store, world).await.unwrap();
    let snapshot = store.snapshot();
    assert!(!snapshot.is_authorized(&agent("a"), snapshot.entry("w").unwrap()));
    assert!(snapshot.authorized_entries(&agent("a")).is_empty());
}

#[tokio::test]
async fn similar_entries_are_found_by_identity_parent_and_selectors() {
    let store = Store::open(&on(&PowerLoss::register())).unwrap();
    write(&store, [put("one", &agent("a"), &id("/w"), &["u:1"]), put("two", &agent("b"), &id("/w"), &["u:1"])]).await.unwrap();
    let snapshot = store.snapshot();
    let similar = |parent: &SpiffeId, granted: &str, facts: &[&str]| {
        let wanted = Entry { selectors: selectors(facts), ..entry("new", parent, &id(granted)) };
        snapshot.similar_entry(&wanted).map(|e| e.id.clone())
    };
    assert_eq!(similar(&agent("a"), "/w", &["u:1"]), Some("one".to_owned()));
    assert_eq!(similar(&agent("b"), "/w", &["u:1"]), Some("two".to_owned()));
    assert_eq!(similar(&agent("b"), "/w", &["u:1", "u:2"]), None);
    assert_eq!(similar(&agent("b"), "/v", &["u:1"]), None);
}

#[tokio::test]
async fn a_similar_id_is_looked_for_within_limits() {
    let store = Store::open(&on(&PowerLoss::register())).unwrap();
    let long = |end: &str| id(&format!("/{}{end}", "l".repeat(2000)));
    let granted = [("short", id("/racks/seven")), ("long", long("seven"))];
    write(&store, granted.map(|(name, granted)| Change::EntryPut(Arc::new(entry(name, &agent("a"), &granted))))).await.unwrap();
    let snapshot = store.snapshot();
    let below = entry("below", &agent("a"), &id("/below"));
    let nearest = |wanted: &SpiffeId, searches| snapshot.nearest_parent(wanted, &below, searches);
    assert_eq!(nearest(&id("/racks/sevn"), 20), Some(id("/racks/seven")));
    assert_eq!(nearest(&long("sevn"), 1), Some(long("seven")));
    // Comparing these two takes more than a twentieth of what may be spent.
    assert_eq!(nearest(&long("sevn"), 20), None);
}
