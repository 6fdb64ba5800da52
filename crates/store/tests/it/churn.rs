//! What comes and goes leaves nothing behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use countersign_identity::{Entry, Timestamp};
use countersign_store::{Actor, Change, Options, Store};
use countersign_testkit::powerloss::PowerLoss;

use crate::world::{NOW, agent, close, entry, id, on, open, put_hint, put_node, raw_on, selectors, server, td, write};

#[tokio::test]
async fn ten_thousand_comings_and_goings_leave_the_snapshot_as_it_was() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    let base = [
        Change::EntryPut(Arc::new(entry("base", &agent("a"), &id("/base")))),
        Change::EntryPut(Arc::new(Entry { selectors: selectors(&["x:1"]), ..entry("alias", &server(), &id("/alias")) })),
        put_node("a", &["x:1"]),
    ];
    write(&store, base).await.unwrap();
    let measure = || {
        let s = store.snapshot();
        let authorized: Vec<_> = s.authorized_entries(&agent("a")).into_keys().collect();
        let below: Vec<_> = [agent("a"), id("/base"), id("/alias"), server()].iter().map(|p| s.entries_below(p).count()).collect();
        let of: Vec<_> = [id("/web"), id("/base"), id("/alias")].iter().map(|p| s.entries_of(p).count()).collect();
        (s.entries_count(), s.nodes_count(), s.entries_federating("other.org").count(), authorized, below, of)
    };
    let before = measure();
    for _ in 0..10 {
        store
            .write(Actor::server(), |draft| {
                for n in 0..1000 {
                    let parent = [agent("a"), id("/base"), id("/alias"), server()][n % 4].clone();
                    let new = Entry { federates_with: vec![td("other.org")], ..entry("guest", &parent, &id("/web")) };
                    draft.change(Change::EntryPut(Arc::new(new)));
                    if n % 8 >= 4 {
                        let moved = entry("guest", &agent("b"), &id("/base"));
                        draft.change(Change::EntryPut(Arc::new(moved)));
                    }
                    draft.change(put_node("guest", &["x:1", "y:2"]));
                    draft.change(Change::EntryDelete("guest".into()));
                    draft.change(Change::NodeDelete(agent("guest")));
                }
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(measure(), before);
    }
    let rows = |table| raw_on(&disk).query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |r| r.get::<_, i64>(0)).unwrap();
    assert_eq!((rows("entry"), rows("node")), (2, 1));
}

/// Whether or not requests wait: who asks again at once is often faster than the writer's look at its queue.
#[tokio::test]
async fn the_write_ahead_log_is_folded_in_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = open(&path);
    let mut longest = 0;
    let requests = (0..100_u8).map(|n| {
        let other_each_time = char::from(b'A' + n % 26).to_string().repeat(1 << 20);
        put_hint("e", &other_each_time)
    });
    for two in requests.collect::<Vec<_>>().chunks(2) {
        let (first, second) = tokio::join!(write(&store, [two[0].clone()]), write(&store, [two[1].clone()]));
        first.and(second).unwrap();
        longest = longest.max(std::fs::metadata(directory.path().join("store.db-wal")).unwrap().len());
    }
    assert!((8 << 20..80 << 20).contains(&longest), "{longest} bytes");
}

/// A store whose log has this many records of one change each, written at this time.
async fn old_log(disk: &PowerLoss, records: i64, at: Timestamp) {
    close(Store::open(&on(disk)).unwrap()).await;
    let fill = format!(
        "WITH RECURSIVE n(r) AS (SELECT 1 UNION ALL SELECT r + 1 FROM n WHERE r < {records})
            INSERT INTO log SELECT r, 1, 'e', 1, {at}, 'tester' FROM n;
         INSERT INTO txn SELECT revision, randomblob(16), revision, zeroblob(32) FROM log WHERE revision <= 1000;
         UPDATE head SET revision = {records};",
        at = at.millis()
    );
    raw_on(disk).execute_batch(&fill).unwrap();
}

#[tokio::test]
async fn the_log_is_trimmed_while_requests_keep_coming() {
    const KEPT: i64 = 100_000;
    const HOUR: Duration = Duration::from_secs(3600);
    for (age, first_left) in [(25, 203), (23, 1)] {
        let disk = PowerLoss::register();
        old_log(&disk, KEPT + 200, NOW).await;
        let clock = Arc::new(AtomicI64::new(NOW.millis()));
        let now = Arc::clone(&clock);
        let options = Options { now: Arc::new(move || Timestamp::from_millis(now.load(Ordering::SeqCst))), ..on(&disk) };
        let store = Store::open(&options).unwrap();
        let left = || raw_on(&disk).query_row("SELECT MIN(revision) FROM log", [], |r| r.get::<_, i64>(0)).unwrap();
        write(&store, [put_hint("e", "1")]).await.unwrap();
        assert_eq!(left(), 1);
        clock.store(NOW.after(age * HOUR).millis(), Ordering::SeqCst);
        write(&store, [put_hint("e", "2")]).await.unwrap();
        // It is trimmed behind the answer and before the next request.
        store.write(Actor::server(), |_| Ok(())).await.unwrap();
        assert_eq!(left(), first_left, "older than a day and not among the newest");
        let oldest = raw_on(&disk).query_row("SELECT MIN(first_revision) FROM txn", [], |r| r.get::<_, i64>(0)).unwrap();
        assert_eq!(oldest, first_left);
    }
}
