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

#[tokio::test]
async fn the_write_ahead_log_is_folded_in_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = open(&path);
    let mut longest = 0;
    for n in 0..40 {
        write(&store, [big(n)]).await.unwrap();
        longest = longest.max(std::fs::metadata(directory.path().join("store.db-wal")).unwrap().len());
    }
    assert!((8 << 20..80 << 20).contains(&longest), "{longest} bytes");
}

/// An entry of 1 MiB that differs from the one before.
fn big(n: u8) -> Change {
    put_hint("e", &char::from(b'A' + n % 26).to_string().repeat(1 << 20))
}

/// Requests too large to be merged wait in the queue until the last, so that the writer is never idle.
#[tokio::test]
async fn the_write_ahead_log_is_folded_in_even_while_requests_wait() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = open(&path);
    let requests: Vec<_> = (0..14)
        .map(|request| {
            let store = store.clone();
            tokio::spawn(async move {
                let large = (0..10).map(|n| put_hint(&format!("e{n}"), &char::from(b'A' + request).to_string().repeat(1 << 20)));
                let many = std::iter::repeat_n(Change::EntryDelete("none".into()), 4096);
                write(&store, large.chain(many)).await
            })
        })
        .collect();
    for request in requests {
        request.await.unwrap().unwrap();
    }
    let longest = std::fs::metadata(directory.path().join("store.db-wal")).unwrap().len();
    assert!((60 << 20..90 << 20).contains(&longest), "{longest} bytes");
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
    // The newest that stay are counted from the request before or behind which the trim runs.
    for (age, first_left) in [(25, 202..=203), (23, 1..=1)] {
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
        // It is trimmed behind an answer and before the next request.
        store.write(Actor::server(), |_| Ok(())).await.unwrap();
        assert!(first_left.contains(&left()), "{} is the oldest left after {age} h", left());
        let oldest = raw_on(&disk).query_row("SELECT MIN(first_revision) FROM txn", [], |r| r.get::<_, i64>(0)).unwrap();
        assert_eq!(oldest, left(), "transactions go with their records");
    }
}
