//! Backups are taken while writes go on; a restored store begins a new life.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use countersign_store::{JoinToken, StoreError, backup, restore};
use rusqlite::Connection;

use crate::world::{NOW, check_log, close, contents, open, put, put_hint, write};

fn files<const N: usize>(names: [&str; N]) -> (tempfile::TempDir, [PathBuf; N]) {
    let directory = tempfile::tempdir().unwrap();
    let paths = names.map(|n| directory.path().join(n));
    (directory, paths)
}

/// Writes after which a backup that still has not ended never will.
const WRITES_MAX: usize = 3000;

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_ends_and_is_whole_while_writes_go_on() {
    let (_directory, [path, target]) = files(["store.db", "copy.db"]);
    let store = open(&path);
    // More than one step of pages, so that writes fall between the steps.
    let large = "x".repeat(1024);
    write(&store, (0..12_000).map(|n| put_hint(&format!("e{n:05}"), &large))).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, stop) = (store.clone(), Arc::clone(&stop));
        async move {
            let mut next = 12_000;
            while !stop.load(Ordering::SeqCst) && next < 12_000 + WRITES_MAX {
                write(&store, [put(&format!("e{next:05}"))]).await.unwrap();
                next += 1;
            }
            next
        }
    });
    let mut watch = store.watch();
    watch.wait_for(|s| s.revision() > 12_005).await.unwrap();
    let revision = tokio::task::spawn_blocking({
        let (path, target) = (path.clone(), target.clone());
        move || backup(&path, &target).unwrap()
    })
    .await
    .unwrap();
    stop.store(true, Ordering::SeqCst);
    let written = writer.await.unwrap();
    assert!(written < 12_000 + WRITES_MAX, "the backup did not end while writes went on");
    assert!((12_005..=written as u64).contains(&revision), "{revision}");
    let copied = open(&target);
    let snapshot = copied.snapshot();
    assert_eq!((snapshot.revision(), snapshot.entries_count() as u64), (revision, revision));
    let expected: Vec<String> = (0..revision).map(|n| format!("e{n:05}")).collect();
    assert!(snapshot.entries_after("").map(|e| &e.id).eq(&expected));
    assert_eq!(check_log(&Connection::open(&target).unwrap()), revision);
}

#[tokio::test]
async fn a_backup_overwrites_nothing() {
    let (_directory, [path, target]) = files(["store.db", "copy.db"]);
    close(open(&path)).await;
    std::fs::write(&target, "precious").unwrap();
    let error = backup(&path, &target).unwrap_err();
    assert!(matches!(&error, StoreError::Open { reason, .. } if reason.contains("exists")), "{error:?}");
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    assert!(backup(&path, &path).is_err());
}

#[test]
fn what_is_not_there_is_neither_backed_up_nor_restored_nor_made() {
    let (directory, [path, target]) = files(["store.db", "copy.db"]);
    for answer in [backup(&path, &target), restore(&path, &target)] {
        assert!(matches!(&answer, Err(StoreError::Open { path: p, .. }) if p.ends_with("store.db")), "{answer:?}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_restore_begins_a_new_epoch_and_keeps_the_old_store() {
    let (_directory, [path, copy, kept]) = files(["store.db", "copy.db", "store.before-restore"]);
    let store = open(&path);
    write(&store, [put("e1"), put("e2")]).await.unwrap();
    let token = JoinToken { hash: [1; 32], expires_at: NOW, alias: None };
    let added = token.clone();
    store.write(countersign_store::Actor::server(), move |draft| draft.token_add(&added)).await.unwrap();
    assert_eq!(backup(&path, &copy).unwrap(), 2);
    let backed_up = store.snapshot();
    write(&store, [put("e3")]).await.unwrap();
    let lost = store.snapshot();
    close(store).await;
    assert_eq!(restore(&copy, &path).unwrap(), 2);
    let store = open(&path);
    let restored = store.snapshot();
    assert_eq!(contents(&restored), contents(&backed_up));
    assert_ne!(restored.cursor().epoch, backed_up.cursor().epoch);
    assert_eq!(restored.since(&backed_up.cursor()).map(|t| t.len()), None, "every follower has to reload");
    assert_eq!(restored.since(&lost.cursor()).map(|t| t.len()), None);
    let redeemed = store.write(countersign_store::Actor::server(), |draft| draft.token_redeem(&[1; 32])).await.unwrap();
    assert_eq!(redeemed, Some(token));
    write(&store, [put("e4")]).await.unwrap();
    close(store).await;
    let old = open(&kept);
    assert_eq!(contents(&old.snapshot()), contents(&lost));
    assert_eq!(old.snapshot().cursor().epoch, lost.cursor().epoch);
    assert_eq!(check_log(&Connection::open(&path).unwrap()), 3);
    assert_eq!(check_log(&Connection::open(&copy).unwrap()), 2, "the backup stays what it was");
}

#[tokio::test]
async fn a_restore_where_no_store_was_makes_one() {
    let (_directory, [path, copy, fresh]) = files(["store.db", "copy.db", "fresh.db"]);
    let store = open(&path);
    write(&store, [put("e1")]).await.unwrap();
    backup(&path, &copy).unwrap();
    assert_eq!(restore(&copy, &fresh).unwrap(), 1);
    assert_eq!(open(&fresh).snapshot().entries_count(), 1);
    assert_eq!(restore(&copy, &fresh).unwrap(), 1, "and again");
}

#[tokio::test]
async fn a_restore_after_a_crash_does_not_mix_in_the_crashed_servers_log() {
    let (directory, [path, copy, crashed]) = files(["store.db", "copy.db", "crashed.db"]);
    let store = open(&path);
    write(&store, [put("e1")]).await.unwrap();
    backup(&path, &copy).unwrap();
    write(&store, [put("e2")]).await.unwrap();
    for suffix in ["", "-wal"] {
        std::fs::copy(format!("{}{suffix}", path.display()), format!("{}{suffix}", crashed.display())).unwrap();
    }
    assert_eq!(restore(&copy, &crashed).unwrap(), 1);
    assert_eq!(open(&crashed).snapshot().entries_after("").map(|e| e.id.clone()).collect::<Vec<_>>(), ["e1"]);
    let kept = open(&directory.path().join("crashed.before-restore"));
    assert_eq!(kept.snapshot().entries_count(), 2, "what the crashed server had acknowledged is kept");
}
