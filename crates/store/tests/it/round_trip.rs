//! Whatever is written is read back, every field of it.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use countersign_identity::bundle::JwtAuthority;
use countersign_identity::entry::AdditionalAttributes;
use countersign_identity::x509::Certificate;
use countersign_identity::{Bundle, Entry, Selector, Timestamp, selector};
use countersign_store::{Actor, AuthorityFamily, AuthorityRecord, AuthorityState, Change, Node, Seen, Snapshot, Store};
use countersign_testkit::powerloss::PowerLoss;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::world::{NOW, agent, close, contents, entry, id, node, on, open, relationship, selectors, td, write};

static CERTIFICATES: LazyLock<Vec<Certificate>> = LazyLock::new(|| {
    (0..4)
        .map(|n| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, format!("root {n}"));
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let key = rcgen::KeyPair::generate().unwrap();
            Certificate::parse(params.self_signed(&key).unwrap().der()).unwrap()
        })
        .collect()
});

fn bundle(name: &str, roots: &[(usize, bool)], keys: &[(usize, bool, Option<i64>)], hint: Option<u64>, sequence: u64) -> Bundle {
    let mut bundle = Bundle::empty(td(name));
    for (root, tainted) in roots {
        bundle.add_x509_authority(CERTIFICATES[*root].clone(), *tainted).unwrap();
    }
    for (key, tainted, end) in keys {
        let authority = JwtAuthority {
            key_id: format!("key {key}\n\"ü\""),
            public_key: CERTIFICATES[*key].public_key.clone(),
            expires_at: end.map(Timestamp::from_secs),
            tainted: *tainted,
        };
        bundle.add_jwt_authority(authority).unwrap();
    }
    bundle.refresh_hint = hint.map(Duration::from_secs);
    bundle.sequence_number = sequence;
    bundle
}

fn full_entry() -> Entry {
    Entry {
        id: "full".to_owned(),
        spiffe_id: id("/all/of.it"),
        parent_id: agent("a"),
        selectors: selectors(&["unix:uid:1000", "k8s:ns:a,b\"c", "docker:label:x:ü", "unix:gid:0"]),
        x509_svid_ttl: Some(Duration::from_secs(1)),
        jwt_svid_ttl: Some(Duration::from_secs(i64::MAX as u64)),
        federates_with: vec![td("b.org"), td("a.org")],
        admin: true,
        downstream: true,
        expires_at: Some(NOW),
        dns_names: vec!["second.example".to_owned(), "first.example".to_owned()],
        revision_number: i64::MAX,
        store_svid: true,
        hint: "a \"hint\", it's\0odd\n☃".to_owned(),
        created_at: NOW.before(Duration::from_secs(5)),
        additional_attributes: AdditionalAttributes { disable_x509_svid_prefetch: true, jwt_svid_include_jti: true },
    }
}

fn full_node() -> Node {
    Node {
        id: agent("full"),
        attestation_type: "x509pop".into(),
        serial_number: "1234567890123456789012345678901234567890".to_owned(),
        expires_at: NOW,
        new_serial_number: "98765".to_owned(),
        new_expires_at: NOW.after(Duration::from_secs(60)),
        can_reattest: true,
        selectors: selectors(&["x509pop:ca:fingerprint:0b", "x509pop:subject:cn:it's"]),
    }
}

fn full_authority() -> AuthorityRecord {
    AuthorityRecord {
        id: "0123abcd".into(),
        server_id: "server-1".into(),
        family: AuthorityFamily::X509,
        key_id: "x509-CA-A".to_owned(),
        state: AuthorityState::Prepared,
        issued_at: Timestamp::from_millis(1_800_000_000_123),
        expires_at: Timestamp::from_millis(-1),
        public: vec![0, 255, 39, 0],
    }
}

/// Each field of an entry alone differs from the plain one, so that none can stand in for another.
fn single_entries() -> Vec<Entry> {
    let full = full_entry();
    let plain = |n: u32| entry(&format!("single-{n:02}"), &agent("a"), &id("/web"));
    vec![
        Entry { admin: true, ..plain(0) },
        Entry { downstream: true, ..plain(1) },
        Entry { store_svid: true, ..plain(2) },
        Entry { additional_attributes: AdditionalAttributes { disable_x509_svid_prefetch: true, jwt_svid_include_jti: false }, ..plain(3) },
        Entry { additional_attributes: AdditionalAttributes { disable_x509_svid_prefetch: false, jwt_svid_include_jti: true }, ..plain(4) },
        Entry { x509_svid_ttl: full.x509_svid_ttl, ..plain(5) },
        Entry { jwt_svid_ttl: full.jwt_svid_ttl, ..plain(6) },
        Entry { federates_with: full.federates_with, ..plain(7) },
        Entry { expires_at: full.expires_at, ..plain(8) },
        Entry { dns_names: full.dns_names, ..plain(9) },
        Entry { revision_number: i64::MIN, ..plain(10) },
        Entry { hint: full.hint, ..plain(11) },
        Entry { created_at: Timestamp::EPOCH, ..plain(12) },
        Entry { selectors: Vec::new(), ..plain(13) },
    ]
}

#[tokio::test]
async fn every_field_of_every_noun_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = open(&path);
    let mut entries = vec![full_entry()];
    entries.extend(single_entries());
    let nodes = vec![full_node(), Node { can_reattest: false, serial_number: String::new(), ..node("plain", &[]) }];
    let bundles = vec![
        bundle("a.org", &[(0, true), (1, false)], &[(2, false, Some(1_900_000_000)), (3, true, None)], Some(300), u64::MAX),
        bundle("b.org", &[], &[], None, 0),
        bundle("c.org", &[(3, false)], &[(0, true, Some(1))], Some(0), 1 << 63),
    ];
    let states = [AuthorityState::Prepared, AuthorityState::Active, AuthorityState::Old];
    let mut authorities = vec![full_authority()];
    for (n, state) in states.into_iter().enumerate() {
        let family = if n == 1 { AuthorityFamily::X509 } else { AuthorityFamily::Jwt };
        authorities.push(AuthorityRecord { id: format!("f{n}").into(), state, family, ..full_authority() });
    }
    let relationships = vec![
        relationship("a.org", Some("spiffe://b.org/endpoint")),
        relationship("b.org", None),
        relationship("c.org", Some("spiffe://c.org")),
    ];
    let changes = (entries.iter().cloned().map(|e| Change::EntryPut(Arc::new(e))))
        .chain(nodes.iter().cloned().map(|n| Change::NodePut(Arc::new(n))))
        .chain(bundles.iter().cloned().map(|b| Change::BundlePut(Arc::new(b))))
        .chain(authorities.iter().cloned().map(|a| Change::AuthorityPut(Arc::new(a))))
        .chain(relationships.iter().cloned().map(|r| Change::FederationRelationshipPut(Arc::new(r))));
    write(&store, changes.collect::<Vec<_>>()).await.unwrap();
    let check = |snapshot: &Snapshot| {
        assert_eq!(snapshot.entries_after("").map(|e| Entry::clone(e)).collect::<Vec<_>>(), entries);
        assert_eq!(snapshot.nodes_after(None).map(|n| Node::clone(n)).collect::<Vec<_>>(), nodes);
        assert_eq!(snapshot.bundles().iter().map(|b| Bundle::clone(b)).collect::<Vec<_>>(), bundles);
        assert_eq!(snapshot.authorities().map(|a| AuthorityRecord::clone(a)).collect::<Vec<_>>(), authorities);
        assert_eq!(snapshot.federation_relationships_after("").map(|r| (**r).clone()).collect::<Vec<_>>(), relationships);
        assert_eq!(snapshot.federation_relationships_after("a.org").count(), 2);
        assert_eq!(snapshot.federation_relationship("b.org").map(|r| (**r).clone()).as_ref(), relationships.get(1));
        assert!(snapshot.node(&agent("plain")).unwrap().is_banned() && !snapshot.node(&agent("full")).unwrap().is_banned());
    };
    check(&store.snapshot());
    close(store).await;
    check(&open(&path).snapshot());
}

#[tokio::test]
async fn what_was_seen_of_agents_survives_a_restart() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    assert!(store.seen_at_start().is_empty());
    let seen =
        |name: &str, version: &str, millis| Seen { id: agent(name), version: version.to_owned(), at: Timestamp::from_millis(millis) };
    let puts = [seen("a", "1.0", 1), seen("b", "", -5), seen("c", "1.2", 3), seen("a", "2.0 \"x\"", 1_800_000_000_777)];
    store
        .write(Actor::server(), move |draft| {
            puts.iter().try_for_each(|s| draft.seen_put(s))?;
            draft.seen_delete(&agent("c"))
        })
        .await
        .unwrap();
    assert_eq!(store.snapshot().revision(), 0, "what is only observed is not in the log");
    close(store).await;
    let mut found: Vec<Seen> = Store::open(&on(&disk)).unwrap().seen_at_start().iter().map(|s| Seen::clone(s)).collect();
    found.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(found, [seen("a", "2.0 \"x\"", 1_800_000_000_777), seen("b", "", -5)]);
}

fn some_selectors() -> impl Strategy<Value = Vec<Selector>> {
    vec("[a-c]{1,2}:\\PC{1,4}", 0..4).prop_map(|texts| selector::sorted(texts.iter().map(|t| Selector::parse(t).unwrap()).collect()))
}

/// Whole seconds other than 0, which stands for "none".
fn some_time() -> impl Strategy<Value = Timestamp> {
    prop_oneof![1..4_000_000_000_i64, -1000..-1_i64].prop_map(Timestamp::from_secs)
}

fn some_entry() -> impl Strategy<Value = Entry> {
    let ttl = || option::of((1..u64::from(u32::MAX)).prop_map(Duration::from_secs));
    let names = (0..6_u8, 0..4_u8, 0..4_u8, some_selectors(), vec(0..3_u8, 0..3), vec("[a-z*.]{0,9}", 0..3));
    let rest = (ttl(), ttl(), any::<[bool; 5]>(), option::of(some_time()), any::<i64>(), any::<String>(), some_time());
    (names, rest).prop_map(|((entry_id, parent, spiffe_id, selectors, friends, dns_names), rest)| {
        let (x509_svid_ttl, jwt_svid_ttl, flags, expires_at, revision_number, hint, created_at) = rest;
        Entry {
            id: format!("e{entry_id}"),
            spiffe_id: id(&format!("/w{spiffe_id}")),
            parent_id: if parent == 0 { crate::world::server() } else { id(&format!("/w{parent}")) },
            selectors,
            x509_svid_ttl,
            jwt_svid_ttl,
            federates_with: friends.into_iter().map(|n| td(&format!("friend{n}.org"))).collect(),
            admin: flags[0],
            downstream: flags[1],
            expires_at,
            dns_names,
            revision_number,
            store_svid: flags[2],
            hint,
            created_at,
            additional_attributes: AdditionalAttributes { disable_x509_svid_prefetch: flags[3], jwt_svid_include_jti: flags[4] },
        }
    })
}

fn some_node() -> impl Strategy<Value = Node> {
    (0..4_u8, any::<String>(), any::<String>(), some_time(), any::<String>(), some_time(), any::<bool>(), some_selectors()).prop_map(
        |(n, kind, serial_number, expires_at, new_serial_number, new_expires_at, can_reattest, selectors)| Node {
            id: agent(&format!("n{n}")),
            attestation_type: kind.into(),
            serial_number,
            expires_at,
            new_serial_number,
            new_expires_at,
            can_reattest,
            selectors,
        },
    )
}

fn some_authority() -> impl Strategy<Value = AuthorityRecord> {
    (0..4_u8, any::<bool>(), 0..3_usize, any::<String>(), any::<i64>(), any::<i64>(), any::<Vec<u8>>()).prop_map(
        |(n, x509, state, key_id, issued, ends, public)| AuthorityRecord {
            id: format!("a{n}").into(),
            server_id: format!("s{n}").into(),
            family: if x509 { AuthorityFamily::X509 } else { AuthorityFamily::Jwt },
            key_id,
            state: [AuthorityState::Prepared, AuthorityState::Active, AuthorityState::Old][state],
            issued_at: Timestamp::from_millis(issued),
            expires_at: Timestamp::from_millis(ends),
            public,
        },
    )
}

fn some_bundle() -> impl Strategy<Value = Bundle> {
    let roots = vec((0..4_usize, any::<bool>()), 0..4);
    let keys = vec((0..4_usize, any::<bool>(), option::of(-9..9_i64)), 0..4);
    (0..3_u8, roots, keys, option::of(0..u64::from(u32::MAX)), any::<u64>())
        .prop_map(|(n, roots, keys, hint, sequence)| bundle(&format!("friend{n}.org"), &roots, &keys, hint, sequence))
}

fn some_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => some_entry().prop_map(|e| Change::EntryPut(Arc::new(e))),
        2 => (0..6_u8).prop_map(|n| Change::EntryDelete(format!("e{n}").into())),
        2 => some_node().prop_map(|n| Change::NodePut(Arc::new(n))),
        1 => (0..4_u8).prop_map(|n| Change::NodeDelete(agent(&format!("n{n}")))),
        2 => some_bundle().prop_map(|b| Change::BundlePut(Arc::new(b))),
        1 => (0..3_u8).prop_map(|n| Change::BundleDelete(format!("friend{n}.org").into())),
        2 => some_authority().prop_map(|a| Change::AuthorityPut(Arc::new(a))),
        1 => (0..4_u8).prop_map(|n| Change::AuthorityDelete(format!("a{n}").into())),
        2 => (0..3_u8, option::of(0..2_u8)).prop_map(|(n, endpoint)| {
            let endpoint = endpoint.map(|e| format!("spiffe://friend{n}.org/e{e}"));
            Change::FederationRelationshipPut(Arc::new(relationship(&format!("friend{n}.org"), endpoint.as_deref())))
        }),
        1 => (0..3_u8).prop_map(|n| Change::FederationRelationshipDelete(format!("friend{n}.org").into())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_reopened_store_is_the_one_that_was_closed(requests in vec(vec(some_change(), 0..6), 1..10)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let disk = PowerLoss::register();
        runtime.block_on(async {
            let mut store = Store::open(&on(&disk)).unwrap();
            for changes in requests {
                write(&store, changes).await.unwrap();
            }
            let mut seen = Vec::new();
            for _ in 0..2 {
                let snapshot = store.snapshot();
                seen.push((contents(&snapshot), (0..4).map(|n| index(&snapshot, n)).collect::<Vec<_>>()));
                close(store).await;
                store = Store::open(&on(&disk)).unwrap();
            }
            assert_eq!(seen[0], seen[1]);
        });
    }
}

/// What the indexes answer for the n-th name of each kind.
fn index(snapshot: &Snapshot, n: usize) -> [Vec<String>; 3] {
    let ids = |entries: &mut dyn Iterator<Item = &Arc<Entry>>| entries.map(|e| e.id.clone()).collect();
    [
        ids(&mut snapshot.entries_of(&id(&format!("/w{n}")))),
        ids(&mut snapshot.entries_below(&id(&format!("/w{n}")))),
        ids(&mut snapshot.entries_federating(&format!("friend{n}.org"))),
    ]
}
