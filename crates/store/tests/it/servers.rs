//! Several writers on one file: another server's transactions are read before one's own are decided.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use countersign_store::{Actor, Change, Store, StoreError};
use countersign_testkit::powerloss::PowerLoss;
use rusqlite::Connection;

use crate::world::{check_log, close, contents, on, open, put, put_hint, put_node, raw_on, relationship, write};

fn file() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    (directory, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_file_share_one_order() {
    let (_directory, path) = file();
    let stores = [open(&path), open(&path)];
    let writers: Vec<_> = (0..20)
        .map(|writer| {
            let store = stores[writer % 2].clone();
            tokio::spawn(async move {
                for request in 0..5 {
                    // The count is only right if the other server's entries were read first.
                    let count = store
                        .write(Actor::server(), move |draft| {
                            let count = draft.snapshot().entries_count();
                            draft.change(put(&format!("e{count}")));
                            draft.change(put_hint("last", &format!("{writer}-{request}")));
                            Ok(count)
                        })
                        .await
                        .unwrap();
                    assert!(store.snapshot().entry(&format!("e{count}")).is_some());
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    for store in &stores {
        store.write(Actor::server(), |_| Ok(())).await.unwrap();
    }
    assert_eq!(contents(&stores[0].snapshot()), contents(&stores[1].snapshot()));
    assert_eq!(check_log(&Connection::open(&path).unwrap()), 200);
}

#[tokio::test]
async fn what_another_server_deleted_is_gone_here_too() {
    let disk = PowerLoss::register();
    let (ours, theirs) = (Store::open(&on(&disk)).unwrap(), Store::open(&on(&disk)).unwrap());
    write(&ours, [put("e1"), put("e2"), put_node("a", &["x:1"])]).await.unwrap();
    write(&theirs, [Change::EntryDelete("e1".into()), Change::NodeDelete(crate::world::agent("a"))]).await.unwrap();
    let before = ours.snapshot();
    write(&ours, [put("e3")]).await.unwrap();
    let after = ours.snapshot();
    assert_eq!(after.entries_after("").map(|e| e.id.as_str()).collect::<Vec<_>>(), ["e2", "e3"]);
    assert_eq!(after.nodes_count(), 0);
    let keys: BTreeSet<String> =
        after.since(&before.cursor()).unwrap().iter().flat_map(|t| &t.changes).map(|(c, _)| c.key().to_owned()).collect();
    assert_eq!(keys.len(), 3, "followers hear of the other server's changes too: {keys:?}");
    assert!(theirs.snapshot().entry("e3").is_none());
}

#[tokio::test]
async fn a_server_that_slept_past_the_trim_reads_everything() {
    let disk = PowerLoss::register();
    let (ours, theirs) = (Store::open(&on(&disk)).unwrap(), Store::open(&on(&disk)).unwrap());
    let cursor = theirs.snapshot().cursor();
    for n in 0..10 {
        write(&ours, [put(&format!("e{n}"))]).await.unwrap();
    }
    raw_on(&disk).execute_batch("DELETE FROM log WHERE revision <= 5; DELETE FROM txn WHERE last_revision <= 5;").unwrap();
    write(&theirs, [put("e10")]).await.unwrap();
    assert_eq!(theirs.snapshot().entries_count(), 11);
    assert!(theirs.snapshot().since(&cursor).is_none(), "followers must reload: what happened to the trimmed records is not known");
}

#[tokio::test]
async fn a_server_older_than_the_newest_records_stops_writing() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    write(&store, [put("e")]).await.unwrap();
    raw_on(&disk).execute_batch("UPDATE head SET min_reader = 3, revision = revision + 1").unwrap();
    let refused = write(&store, [put("f")]).await.unwrap_err();
    assert!(matches!(refused, StoreError::Newer { found: 3, known: 2 }), "{refused:?}");
    assert!(store.snapshot().entry("f").is_none());
}

/// What the head says about who may read.
fn versions(disk: &PowerLoss) -> (i64, i64) {
    raw_on(disk).query_row("SELECT schema_version, min_reader FROM head", [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap()
}

#[tokio::test]
async fn a_store_of_an_earlier_program_is_taken_over_and_can_go_back_until_it_holds_what_that_one_cannot_know() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    write(&store, [put("e")]).await.unwrap();
    close(store).await;
    raw_on(&disk).execute_batch("DROP TABLE federation_relationship").unwrap();

    let store = Store::open(&on(&disk)).unwrap();
    write(&store, [put("f")]).await.unwrap();
    assert_eq!(versions(&disk), (1, 1), "the earlier program can read everything");
    let known = relationship("other.org", None);
    write(&store, [put("g"), Change::FederationRelationshipPut(Arc::new(known.clone())), put("h")]).await.unwrap();
    assert_eq!(versions(&disk), (1, 2));
    write(&store, [Change::FederationRelationshipDelete("other.org".into())]).await.unwrap();
    assert_eq!(versions(&disk), (1, 2), "the records stay in the log");
    close(store).await;
    let store = Store::open(&on(&disk)).unwrap();
    assert_eq!((store.snapshot().entries_count(), store.snapshot().federation_relationship("other.org")), (4, None));
}

#[tokio::test]
async fn a_relationship_that_another_server_wrote_is_known_here_too() {
    let disk = PowerLoss::register();
    let (ours, theirs) = (Store::open(&on(&disk)).unwrap(), Store::open(&on(&disk)).unwrap());
    let written = relationship("other.org", Some("spiffe://other.org/endpoint"));
    write(&theirs, [Change::FederationRelationshipPut(Arc::new(written.clone()))]).await.unwrap();
    write(&ours, [put("e")]).await.unwrap();
    assert_eq!(ours.snapshot().federation_relationship("other.org").map(|r| (**r).clone()), Some(written));
    write(&theirs, [Change::FederationRelationshipDelete("other.org".into())]).await.unwrap();
    write(&ours, [put("f")]).await.unwrap();
    assert!(ours.snapshot().federation_relationship("other.org").is_none());
}

#[tokio::test]
async fn a_restore_under_a_running_server_is_noticed() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    write(&store, [put("e"), put("f")]).await.unwrap();
    let before = store.snapshot().cursor();
    raw_on(&disk).execute_batch("UPDATE head SET epoch = randomblob(16); DELETE FROM entry WHERE id = 'f';").unwrap();
    write(&store, [put("g")]).await.unwrap();
    let after: Arc<_> = store.snapshot();
    assert_ne!(after.cursor().epoch, before.epoch);
    assert!(after.since(&before).is_none());
    assert_eq!(after.entries_after("").map(|e| e.id.as_str()).collect::<Vec<_>>(), ["e", "g"]);
}

/// A reader that holds an old state keeps the write-ahead log from being folded; nobody may have to wait for it.
#[tokio::test]
async fn a_long_reader_does_not_hold_up_the_writer() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    write(&store, [put("e")]).await.unwrap();
    let reader = raw_on(&disk);
    reader.execute_batch("BEGIN; SELECT * FROM entry;").unwrap();
    let big = "x".repeat(1 << 20);
    let load = async {
        for n in 0..24 {
            write(&store, [put_hint(&format!("e{n}"), &big)]).await.unwrap();
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(8), load).await.expect("the writer waits for a reader");
    assert_eq!(reader.query_row("SELECT COUNT(*) FROM entry", [], |r| r.get::<_, i64>(0)).unwrap(), 1);
}
