//! The cache against a model that looks through a plain list, over random histories.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use countersign_identity::entry::AdditionalAttributes;
use countersign_identity::{Bundle, Entry, Selector, Timestamp, TrustDomain};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::{prop_assert, prop_assert_eq, prop_oneof, proptest};
use zeroize::Zeroizing;

use super::{Cache, Svid, Update};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const MAX: usize = 3;
const DOMAINS: [&str; 3] = ["example.org", "one.org", "two.org"];

/// What an entry of a history is made of: which one, its selectors as bits, and what makes an SVID fit no longer.
type Sketch = (u8, u8, bool, bool);

#[derive(Debug, Clone)]
enum Step {
    Update { reset: bool, entries: Vec<Sketch>, removed: Vec<u8>, bundles: Vec<u8>, removed_bundles: Vec<u8>, caught_up: bool },
    SvidPut(u8, bool),
    SvidFailed(u8),
    Ask(u8),
    Join(u8),
    Leave,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sketch = (0..8u8, 1..16u8, any::<bool>(), any::<bool>());
    let update = (any::<[bool; 2]>(), vec(sketch, 0..4), vec(0..8u8, 0..2), vec(0..3u8, 0..2), vec(1..3u8, 0..2));
    let update = update.prop_map(|([reset, caught_up], entries, removed, bundles, removed_bundles)| Step::Update {
        reset,
        entries,
        removed,
        bundles,
        removed_bundles,
        caught_up,
    });
    vec(
        prop_oneof![
            4 => update,
            4 => (0..8u8, any::<bool>()).prop_map(|(id, named)| Step::SvidPut(id, named)),
            1 => (0..8u8).prop_map(Step::SvidFailed),
            2 => (0..16u8).prop_map(Step::Ask),
            1 => (0..16u8).prop_map(Step::Join),
            1 => (0..1u8).prop_map(|_| Step::Leave),
        ],
        0..60,
    )
}

fn id(number: u8) -> String {
    format!("entry-{number}")
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").expect("a name")
}

fn selectors(bits: u8) -> Vec<Selector> {
    (0..4).filter(|n| bits & (1 << n) != 0).map(|n| Selector::new("unix", &format!("uid:{n}")).expect("a selector")).collect()
}

fn entry((number, bits, named, stored): Sketch) -> Entry {
    Entry {
        id: id(number),
        spiffe_id: trust_domain().with_path(&format!("/w{number}")).expect("a path"),
        parent_id: trust_domain().with_path("/node").expect("a path"),
        selectors: selectors(bits),
        x509_svid_ttl: None,
        jwt_svid_ttl: None,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: if named { vec!["name".to_owned()] } else { Vec::new() },
        revision_number: 0,
        store_svid: stored && number == 7,
        hint: String::new(),
        created_at: NOW,
        additional_attributes: AdditionalAttributes::default(),
    }
}

fn svid(number: u8, named: bool) -> Arc<Svid> {
    Arc::new(Svid {
        spiffe_id: trust_domain().with_path(&format!("/w{number}")).expect("a path"),
        chain: Vec::new(),
        key: Zeroizing::new(Vec::new()),
        expires_at: NOW.after(Duration::from_secs(3600)),
        renew_at: NOW,
        dns_names: if named { vec!["name".to_owned()] } else { Vec::new() },
        ttl: None,
    })
}

/// One entry of the model.
#[derive(Clone)]
struct Row {
    entry: Entry,
    svid: Option<Arc<Svid>>,
    failed: bool,
    used: u64,
}

#[derive(Default)]
struct Model {
    rows: BTreeMap<String, Row>,
    bundles: BTreeMap<String, Arc<Bundle>>,
    /// Names a reset has not mentioned.
    unmentioned: Option<(Vec<String>, Vec<String>)>,
    caught_up: bool,
    uses: u64,
}

impl Model {
    fn update(&mut self, update: &Update) {
        if update.reset {
            self.unmentioned = Some((self.rows.keys().cloned().collect(), self.bundles.keys().cloned().collect()));
        }
        for bundle in &update.bundles {
            self.bundles.insert(bundle.trust_domain().name().to_owned(), Arc::clone(bundle));
        }
        for name in &update.removed_bundles {
            self.bundles.remove(name);
        }
        for entry in &update.entries {
            let former = self.rows.remove(&entry.id);
            let used = former.as_ref().map_or(0, |row| row.used);
            let svid = former.and_then(|row| row.svid).filter(|svid| svid.dns_names == entry.dns_names);
            self.rows.insert(entry.id.clone(), Row { entry: Entry::clone(entry), svid, failed: false, used });
        }
        for id in &update.removed_entries {
            self.rows.remove(id);
        }
        if let Some((ids, names)) = &mut self.unmentioned {
            ids.retain(|id| !update.entries.iter().any(|e| e.id == *id));
            names.retain(|name| !update.bundles.iter().any(|b| b.trust_domain().name() == name));
        }
        if update.caught_up {
            let (ids, names) = self.unmentioned.take().unwrap_or_default();
            self.rows.retain(|id, _| !ids.contains(id));
            self.bundles.retain(|name, _| !names.contains(name));
            self.caught_up = true;
        }
    }

    fn matching(&self, bits: u8) -> Vec<String> {
        let has = selectors(bits);
        let fits = |row: &&Row| !row.entry.store_svid && row.entry.selectors.iter().all(|s| has.contains(s));
        self.rows.values().filter(fits).map(|row| row.entry.id.clone()).collect()
    }

    fn held(&self) -> usize {
        self.rows.values().filter(|row| row.svid.is_some()).count()
    }

    /// What a stream of these selectors may show.
    fn visible(&self, bits: u8) -> String {
        let rows = self.matching(bits).into_iter().filter_map(|id| self.rows.get(&id)).map(|row| {
            let svid = row.svid.as_ref().map_or(0, |s| Arc::as_ptr(s).addr());
            format!("{:?} {svid} {}", row.entry, row.failed)
        });
        let bundles = self.bundles.values().map(|b| Arc::as_ptr(b).addr().to_string());
        rows.chain(bundles).chain([self.caught_up.to_string()]).collect::<Vec<_>>().join("\n")
    }
}

/// Whether a stream was woken since this was asked last.
fn woken(subscription: &super::Subscription) -> bool {
    pin!(subscription.wake.notified()).as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

proptest! {
    #[test]
    fn the_cache_is_as_its_model_says(steps in steps()) {
        let cache = Cache::new(trust_domain(), Arc::default(), MAX);
        let mut model = Model::default();
        let mut streams: Vec<(u8, super::Subscription)> = Vec::new();
        for step in steps {
            let before: Vec<String> = streams.iter().map(|(bits, _)| model.visible(*bits)).collect();
            match step {
                Step::Update { reset, entries, removed, bundles, removed_bundles, caught_up } => {
                    let name = |n: u8| DOMAINS.get(usize::from(n)).map_or("", |name| name);
                    let bundle = |n| Arc::new(Bundle::empty(TrustDomain::parse(name(n)).expect("a name")));
                    let make = || Update {
                        reset,
                        entries: entries.iter().map(|e| Arc::new(entry(*e))).collect(),
                        removed_entries: removed.iter().map(|n| id(*n)).collect(),
                        bundles: Vec::new(),
                        removed_bundles: removed_bundles.iter().map(|n| name(*n).to_owned()).collect(),
                        revision: None,
                        caught_up,
                    };
                    // The model compares addresses, so both get the same bundles.
                    let bundles: Vec<_> = bundles.into_iter().map(bundle).collect();
                    model.update(&Update { bundles: bundles.clone(), ..make() });
                    let applied = cache.apply(Update { bundles, ..make() });
                    prop_assert_eq!(applied.caught_up, caught_up);
                    for wanted in applied.wanted {
                        prop_assert!(entries.iter().any(|e| id(e.0) == wanted.id), "{wanted:?} was not in the update");
                    }
                }
                Step::SvidPut(number, named) => {
                    let new = svid(number, named);
                    let kept = cache.svid_put(&id(number), Arc::clone(&new));
                    let fits = model.rows.get_mut(&id(number)).filter(|row| row.entry.dns_names == new.dns_names);
                    prop_assert_eq!(kept, fits.is_some());
                    if let Some(row) = fits {
                        row.svid = Some(new);
                        row.failed = false;
                        let subscribed = |e: &Entry| streams.iter().any(|(bits, _)| e.selectors.iter().all(|s| selectors(*bits).contains(s)));
                        let may_go = |row: &&Row| row.svid.is_some() && row.entry.id != id(number) && !subscribed(&row.entry);
                        let candidates: Vec<Row> = model.rows.values().filter(may_go).cloned().collect();
                        let (gone, stay): (Vec<Row>, Vec<Row>) =
                            candidates.into_iter().partition(|row| cache.identity(&row.entry.id).is_some_and(|i| i.svid.is_none()));
                        // As many as are too many, the oldest of those that may go.
                        prop_assert_eq!(gone.len(), model.held().saturating_sub(MAX).min(gone.len() + stay.len()));
                        let (newest_gone, oldest_stay) = (gone.iter().map(|r| r.used).max(), stay.iter().map(|r| r.used).min());
                        prop_assert!(newest_gone.zip(oldest_stay).is_none_or(|(gone, stays)| gone <= stays));
                        for row in gone {
                            if let Some(row) = model.rows.get_mut(&row.entry.id) {
                                row.svid = None;
                            }
                        }
                    }
                }
                Step::SvidFailed(number) => {
                    cache.svid_failed(&id(number), "a reason");
                    if let Some(row) = model.rows.get_mut(&id(number)) {
                        row.failed = true;
                    }
                }
                Step::Ask(bits) => {
                    let found: Vec<_> = cache.identities(&selectors(bits), NOW);
                    prop_assert_eq!(found.iter().map(|i| i.entry.id.clone()).collect::<Vec<_>>(), model.matching(bits));
                    model.uses += 1;
                    let uses = model.uses;
                    for identity in found {
                        let Some(row) = model.rows.get_mut(&identity.entry.id) else { continue };
                        row.used = uses;
                        prop_assert_eq!(identity.svid.map(|s| Arc::as_ptr(&s).addr()), row.svid.as_ref().map(|s| Arc::as_ptr(s).addr()));
                        prop_assert_eq!(identity.failure.is_some(), row.failed);
                    }
                }
                Step::Join(bits) => streams.push((bits, cache.subscribers.join(selectors(bits).into()))),
                Step::Leave => drop(streams.pop()),
            }
            // Whatever a stream could show differently, it hears of.
            for ((bits, stream), before) in streams.iter().zip(before) {
                let heard = woken(stream);
                prop_assert!(heard || model.visible(*bits) == before, "a change went unnoticed by {bits:#b}");
            }
            prop_assert_eq!((cache.held().0, cache.svids_held()), (model.held(), model.held()));
            prop_assert_eq!(cache.has_room(), model.held() < MAX);
            prop_assert_eq!(cache.is_caught_up(), model.caught_up);
            prop_assert_eq!(cache.subscribers.count(), streams.len());
            let mut ids: Vec<String> = cache.entries().iter().map(|e| e.id.clone()).collect();
            ids.sort_unstable();
            prop_assert_eq!(ids, model.rows.keys().cloned().collect::<Vec<_>>());
            let names: Vec<String> = cache.bundles().iter().map(|b| b.trust_domain().name().to_owned()).collect();
            prop_assert_eq!(names, model.bundles.keys().cloned().collect::<Vec<_>>());
        }
        // Nothing is left in the index of what is gone.
        let everything = cache.entries().iter().map(|e| e.id.clone()).collect();
        cache.apply(Update { removed_entries: everything, ..Update::default() });
        prop_assert!(cache.read().by_selector.is_empty() && cache.held().0 == 0);
    }
}

#[test]
fn the_end_of_a_reset_in_pieces_is_heard_by_who_has_nothing() {
    let cache = Cache::new(trust_domain(), Arc::default(), MAX);
    let waiting = cache.subscribers.join(selectors(8).into());
    cache.apply(Update { reset: true, entries: vec![Arc::new(entry((0, 1, false, false)))], ..Update::default() });
    assert!(woken(&waiting) && !cache.is_caught_up());
    cache.apply(Update { entries: vec![Arc::new(entry((1, 1, false, false)))], caught_up: true, ..Update::default() });
    assert!(woken(&waiting) && cache.is_caught_up());
}

#[test]
fn what_is_in_use_beyond_the_limit_is_not_looked_through_again_until_a_stream_leaves() {
    let cache = Cache::new(trust_domain(), Arc::default(), MAX);
    let streams = [1, 2].map(|bits| cache.subscribers.join(selectors(bits).into()));
    let of = |number: u8| entry((number, if number < 4 { 1 } else { 2 }, false, false));
    cache.apply(Update { entries: (0..6).map(|number| Arc::new(of(number))).collect(), ..Update::default() });
    for number in 0..5 {
        assert!(cache.svid_put(&id(number), svid(number, false)));
    }
    assert!(cache.svids_held() == 5 && cache.read().all_in_use.is_some());
    let [first, _second] = streams;
    drop(first);
    assert!(cache.svid_put(&id(5), svid(5, false)));
    assert!(cache.svids_held() == MAX && cache.read().all_in_use.is_none());
}
