//! The order of the log: commits without gaps, answers after publication, and what each record says.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use countersign_identity::{Bundle, Timestamp};
use countersign_store::{
    Actor, AuthorityFamily, AuthorityRecord, AuthorityState, Before, Change, Options, Snapshot, Store, StoreError, Transaction,
};
use countersign_testkit::powerloss::PowerLoss;
use rusqlite::Connection;

use crate::world::{Row, agent, check_log, close, log_rows, on, open, put, put_hint, put_node, raw_on, td, write, write_as};

const WRITERS: usize = 50;
const REQUESTS_EACH: usize = 6;

/// A request that waits in the writer until the sender goes, so that others queue up behind it. Returns once it runs.
async fn hold(store: &Store) -> std::sync::mpsc::Sender<()> {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (running, mut runs) = tokio::sync::mpsc::unbounded_channel();
    let store = store.clone();
    tokio::spawn(async move {
        let request = move |_: &mut countersign_store::Draft<'_>| {
            let _ = running.send(());
            let _ = held.recv();
            Ok(())
        };
        let _ = store.write(Actor::server(), request).await;
    });
    runs.recv().await.unwrap();
    release
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_have_no_gaps() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = open(&path);
    let mut watch = store.watch();
    let follower = tokio::spawn(async move {
        let mut seen = Arc::clone(&watch.borrow_and_update());
        while watch.changed().await.is_ok() {
            let next = Arc::clone(&watch.borrow_and_update());
            let missed: Vec<Arc<Transaction>> = next.since(&seen.cursor()).expect("a follower that keeps up never has to reload");
            let mut revision = seen.revision();
            for transaction in &missed {
                revision += transaction.changes.len() as u64;
                assert_eq!(transaction.revision, revision);
            }
            assert_eq!(revision, next.revision());
            seen = next;
        }
        seen.revision()
    });
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for request in 0..REQUESTS_EACH {
                    let keys: Vec<String> = (0..=request % 3).map(|n| format!("e-{writer}-{request}-{n}")).collect();
                    let before = store.snapshot().revision();
                    write_as(&store, &format!("writer {writer}"), keys.iter().map(|k| put(k))).await.unwrap();
                    let after = store.snapshot();
                    assert!(after.revision() >= before + keys.len() as u64);
                    assert!(keys.iter().all(|k| after.entry(k).is_some()), "answered before it was published");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let expected = (WRITERS * (0..REQUESTS_EACH).map(|r| r % 3 + 1).sum::<usize>()) as u64;
    let last = store.snapshot();
    assert_eq!((last.revision(), last.entries_count() as u64), (expected, expected));
    close(store).await;
    assert_eq!(follower.await.unwrap(), expected);
    let database = Connection::open(&path).unwrap();
    assert_eq!(check_log(&database), expected);
    // The changes of one request stand together and in their order.
    let rows = log_rows(&database);
    for (at, row) in rows.iter().enumerate().filter(|(_, r)| !r.item.ends_with("-0")) {
        let (prefix, n) = row.item.rsplit_once('-').unwrap();
        assert_eq!(rows[at - 1].item, format!("{prefix}-{}", n.parse::<usize>().unwrap() - 1));
    }
}

#[tokio::test]
async fn requests_that_wait_share_one_transaction_in_their_order() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    let release = hold(&store).await;
    let requests: Vec<_> = (0..WRITERS)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { write_as(&store, &format!("writer {n}"), [put_hint("one", &n.to_string())]).await })
        })
        .collect();
    tokio::task::yield_now().await;
    drop(release);
    for request in requests {
        request.await.unwrap().unwrap();
    }
    let database = raw_on(&disk);
    assert_eq!(check_log(&database), WRITERS as u64);
    assert_eq!(database.query_row("SELECT COUNT(*) FROM txn", [], |r| r.get::<_, i64>(0)).unwrap(), 1);
    let actors: Vec<String> = log_rows(&database).into_iter().map(|r| r.actor).collect();
    assert_eq!(actors, (0..WRITERS).map(|n| format!("writer {n}")).collect::<Vec<_>>());
    assert_eq!(store.snapshot().entry("one").unwrap().hint, (WRITERS - 1).to_string(), "the last request wins");
}

#[tokio::test]
async fn a_request_that_fails_does_not_harm_those_merged_with_it() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    let release = hold(&store).await;
    let requests: Vec<_> = (0..10)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let request = move |draft: &mut countersign_store::Draft<'_>| {
                    draft.change(put(&format!("e{n}")));
                    if n == 4 { Err(StoreError::Failed("changed its mind".to_owned())) } else { Ok(n) }
                };
                store.write(Actor::server(), request).await
            })
        })
        .collect();
    tokio::task::yield_now().await;
    drop(release);
    for (n, request) in requests.into_iter().enumerate() {
        let answer = request.await.unwrap();
        assert_eq!(answer.is_ok(), n != 4, "request {n}: {answer:?}");
        assert_eq!(store.snapshot().entry(&format!("e{n}")).is_some(), n != 4, "request {n}");
    }
    assert_eq!(check_log(&raw_on(&disk)), 9);
}

#[tokio::test]
async fn a_request_sees_those_before_it_in_the_same_transaction() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    let release = hold(&store).await;
    let requests: Vec<_> = (0..WRITERS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let request = |draft: &mut countersign_store::Draft<'_>| {
                    let count = draft.snapshot().entries_count();
                    draft.change(put(&format!("e{count}")));
                    assert_eq!(draft.snapshot().entries_count(), count + 1);
                    Ok(count)
                };
                store.write(Actor::server(), request).await.unwrap()
            })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(store.snapshot().entries_count(), 0, "nothing is visible before the commit");
    drop(release);
    for (n, request) in requests.into_iter().enumerate() {
        assert_eq!(request.await.unwrap(), n);
    }
}

#[tokio::test]
async fn a_request_whose_caller_hangs_up_still_happens() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    let release = hold(&store).await;
    let request = tokio::spawn({
        let store = store.clone();
        async move { write(&store, [put("orphan")]).await }
    });
    tokio::task::yield_now().await;
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    drop(release);
    write(&store, [put("next")]).await.unwrap();
    assert!(store.snapshot().entry("orphan").is_some());
}

#[tokio::test]
async fn a_request_without_changes_makes_no_revision() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    write(&store, [put("one")]).await.unwrap();
    let before = store.snapshot().cursor();
    let answer = store.write(Actor::server(), |draft| Ok(draft.snapshot().entries_count())).await.unwrap();
    assert_eq!((answer, store.snapshot().cursor()), (1, before));
    assert_eq!(check_log(&raw_on(&disk)), 1);
}

#[tokio::test]
async fn a_snapshot_in_hand_never_changes() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    write(&store, [put("one"), put_node("a", &["x:1"])]).await.unwrap();
    let held = store.snapshot();
    let before = crate::world::contents(&held);
    write(&store, [Change::EntryDelete("one".into()), put("two"), Change::NodeDelete(agent("a"))]).await.unwrap();
    assert_eq!(crate::world::contents(&held), before);
    assert!(store.snapshot().entry("one").is_none());
}

#[tokio::test]
async fn a_record_says_what_changed_when_and_who_asked() {
    let disk = PowerLoss::register();
    let clock = Arc::new(AtomicI64::new(1_800_000_000_123));
    let now = Arc::clone(&clock);
    let options = Options { now: Arc::new(move || Timestamp::from_millis(now.load(Ordering::SeqCst))), ..on(&disk) };
    let store = Store::open(&options).unwrap();
    let authority = AuthorityRecord {
        id: "a1b2".into(),
        server_id: "s1".into(),
        family: AuthorityFamily::Jwt,
        key_id: "k".to_owned(),
        state: AuthorityState::Active,
        issued_at: Timestamp::EPOCH,
        expires_at: Timestamp::EPOCH,
        public: vec![1],
    };
    let puts = [
        put("e1"),
        put_node("a", &[]),
        Change::BundlePut(Arc::new(Bundle::empty(td("other.org")))),
        Change::AuthorityPut(Arc::new(authority)),
        Change::FederationRelationshipPut(Arc::new(crate::world::relationship("other.org", None))),
    ];
    write_as(&store, "spiffe://example.org/admin", puts).await.unwrap();
    clock.store(1_800_000_060_456, Ordering::SeqCst);
    let deletes = [
        Change::EntryDelete("e1".into()),
        Change::NodeDelete(agent("a")),
        Change::BundleDelete("other.org".into()),
        Change::AuthorityDelete("a1b2".into()),
        Change::FederationRelationshipDelete("other.org".into()),
    ];
    let seen_at = store
        .write(Actor::new("uid 0, pid 17, /usr/bin/countersign"), move |draft| {
            for change in &deletes {
                draft.change(change.clone());
            }
            Ok(draft.now())
        })
        .await
        .unwrap();
    assert_eq!(seen_at, Timestamp::from_millis(1_800_000_060_456));
    let items = ["e1", "spiffe://example.org/spire/agent/test/a", "other.org", "a1b2", "other.org"];
    let expected: Vec<Row> = (0..10)
        .map(|n| Row {
            revision: n + 1,
            noun: n % 5 + 1,
            item: items[n as usize % 5].to_owned(),
            deleted: n >= 5,
            at_millis: if n < 5 { 1_800_000_000_123 } else { 1_800_000_060_456 },
            actor: if n < 5 { "spiffe://example.org/admin" } else { "uid 0, pid 17, /usr/bin/countersign" }.to_owned(),
        })
        .collect();
    assert_eq!(log_rows(&raw_on(&disk)), expected);
    let last = store.snapshot();
    assert_eq!(crate::world::contents(&last).2, Vec::<String>::new());
}

#[test]
fn an_actor_is_cut_between_characters() {
    let long = "ü".repeat(Actor::BYTES_MAX);
    let kept = Actor::new(&format!("x{long}"));
    assert!(kept.as_str().len() < Actor::BYTES_MAX && kept.as_str().len() > Actor::BYTES_MAX - 4);
    assert!(kept.as_str().ends_with('ü'));
    assert_eq!(Actor::server().to_string(), "server");
}

#[tokio::test]
async fn a_transaction_tells_followers_what_stood_before() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    let start: Arc<Snapshot> = store.snapshot();
    write(&store, [put_hint("e", "1"), put_hint("e", "2"), put_node("a", &["x:1"]), Change::EntryDelete("e".into())]).await.unwrap();
    write(&store, [put_node("a", &["x:2"]), Change::EntryDelete("e".into())]).await.unwrap();
    let transactions = store.snapshot().since(&start.cursor()).unwrap();
    let befores: Vec<String> = transactions
        .iter()
        .flat_map(|t| &t.changes)
        .map(|(_, before)| match before {
            Before::Nothing => "nothing".to_owned(),
            Before::Entry(e) => format!("entry {}", e.hint),
            Before::Node(n) => format!("node {:?}", n.selectors),
        })
        .collect();
    assert_eq!(befores, ["nothing", "entry 1", "nothing", "entry 2", "node [x:1]", "nothing"]);
}
