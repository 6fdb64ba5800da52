//! Places in the log: which ones fit, and which mean starting over.

use countersign_store::{Cursor, Store};
use countersign_testkit::powerloss::PowerLoss;

use crate::world::{close, on, put, put_hint, write};

/// Transactions a snapshot remembers (`RECENT_TRANSACTIONS_MAX`).
const REMEMBERED: usize = 4096;

async fn three(disk: &PowerLoss) -> (Store, Vec<Cursor>) {
    let store = Store::open(&on(disk)).unwrap();
    let mut cursors = vec![store.snapshot().cursor()];
    for keys in [&["a1", "a2"][..], &["b1"], &["c1", "c2", "c3"]] {
        write(&store, keys.iter().map(|k| put(k))).await.unwrap();
        cursors.push(store.snapshot().cursor());
    }
    (store, cursors)
}

fn revisions(store: &Store, cursor: &Cursor) -> Option<Vec<u64>> {
    store.snapshot().since(cursor).map(|ts| ts.iter().map(|t| t.revision).collect())
}

#[tokio::test]
async fn a_fitting_cursor_gets_the_whole_transactions_after_it() {
    let (store, cursors) = three(&PowerLoss::register()).await;
    let answers: Vec<_> = cursors.iter().map(|c| revisions(&store, c)).collect();
    assert_eq!(answers, [Some(vec![2, 3, 6]), Some(vec![3, 6]), Some(vec![6]), Some(vec![])]);
}

#[tokio::test]
async fn a_cursor_of_another_epoch_does_not_fit() {
    let (store, cursors) = three(&PowerLoss::register()).await;
    for cursor in cursors {
        assert_eq!(revisions(&store, &Cursor { epoch: [7; 16], ..cursor }), None);
    }
}

#[tokio::test]
async fn a_cursor_with_another_digest_does_not_fit() {
    let (store, cursors) = three(&PowerLoss::register()).await;
    for cursor in cursors {
        let mut digest = cursor.digest;
        digest[31] ^= 1;
        assert_eq!(revisions(&store, &Cursor { digest, ..cursor }), None, "{cursor:?}");
    }
}

#[tokio::test]
async fn a_cursor_inside_a_transaction_or_beyond_the_head_does_not_fit() {
    let (store, cursors) = three(&PowerLoss::register()).await;
    for revision in [1, 4, 5, 7, u64::MAX] {
        for cursor in &cursors {
            assert_eq!(revisions(&store, &Cursor { revision, ..*cursor }), None, "{revision}");
        }
    }
}

#[tokio::test]
async fn after_a_restart_the_head_of_that_time_is_where_memory_begins() {
    let disk = PowerLoss::register();
    let (store, cursors) = three(&disk).await;
    close(store).await;
    let store = Store::open(&on(&disk)).unwrap();
    assert_eq!(revisions(&store, &cursors[3]), Some(vec![]));
    write(&store, [put("d1")]).await.unwrap();
    assert_eq!(revisions(&store, &cursors[3]), Some(vec![7]), "agents at the head must not reload for one write");
    assert_eq!(revisions(&store, &cursors[2]), None);
    let forged = Cursor { digest: cursors[2].digest, ..cursors[3] };
    assert_eq!(revisions(&store, &forged), None);
}

#[tokio::test]
async fn a_cursor_older_than_memory_does_not_fit() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    let mut cursors = vec![store.snapshot().cursor()];
    for n in 0..REMEMBERED + 2 {
        write(&store, [put_hint("e", &n.to_string())]).await.unwrap();
        cursors.push(store.snapshot().cursor());
    }
    assert_eq!(revisions(&store, &cursors[1]), None);
    assert_eq!(revisions(&store, &cursors[2]).map(|r| (r.len(), r[0])), Some((REMEMBERED, 3)), "all that is remembered");
    assert_eq!(revisions(&store, &cursors[3]).map(|r| r.len()), Some(REMEMBERED - 1));
}
