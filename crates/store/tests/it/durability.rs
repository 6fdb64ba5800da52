//! What was acknowledged survives a power cut, whole; what was refused for want of room leaves no trace.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use countersign_store::{Change, Snapshot, Store, StoreError};
use countersign_testkit::powerloss::{PowerLoss, Unsynced};
use rusqlite::Connection;

use crate::world::{check_log, close, contents, on, put, put_hint, put_node, raw_on, write};

const SEEDS: u64 = 20;
const WRITERS: usize = 8;
/// Power cuts on the same disk, one after the other.
const ROUNDS: u64 = 3;

/// Numbers that look random and are the same for the same seed.
fn mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(n.wrapping_mul(0xd1b5_4a32_d192_ed03));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33
}

/// The changes of the n-th request of a writer: three that belong together.
fn request(round: u64, writer: usize, n: usize) -> Vec<Change> {
    let stamp = format!("{round}-{n}");
    vec![
        put_hint(&format!("w{writer}-{stamp}"), &"x".repeat(n % 7 * 900)),
        put_hint(&format!("w{writer}-last"), &stamp),
        put_node(&format!("w{writer}"), &[&format!("last:{stamp}")]),
    ]
}

/// The last request of each writer that a snapshot holds, having checked that each request is there whole or not at all.
fn check_whole(snapshot: &Snapshot, round: u64) -> BTreeMap<usize, usize> {
    let mut last = BTreeMap::new();
    for writer in 0..WRITERS {
        let hint = snapshot.entry(&format!("w{writer}-last")).map(|e| e.hint.clone());
        let fact = snapshot.node(&crate::world::agent(&format!("w{writer}"))).map(|n| n.selectors[0].value().to_owned());
        assert_eq!(hint, fact, "half of a request of writer {writer}");
        let this_round = hint.as_deref().and_then(|h| h.strip_prefix(&format!("{round}-"))).map(|n| n.parse::<usize>().unwrap());
        let count = snapshot.entries_after("").filter(|e| e.id.starts_with(&format!("w{writer}-{round}-"))).count();
        assert_eq!(count, this_round.map_or(0, |n| n + 1), "writer {writer} made one request after the other");
        last.extend(this_round.map(|n| (writer, n)));
    }
    last
}

/// Loads the store until power goes. Returns the last acknowledged request of each writer.
async fn load_until_power_goes(disk: &PowerLoss, store: &Store, round: u64) -> BTreeMap<usize, usize> {
    let acknowledged: Arc<Mutex<BTreeMap<usize, usize>>> = Arc::default();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, acknowledged, disk) = (store.clone(), Arc::clone(&acknowledged), disk.clone());
            tokio::spawn(async move {
                for n in 0.. {
                    if writer == 0 && n % 5 == 4 {
                        // Fold the write-ahead log into the file in the middle of it all. It may fail like anything else.
                        let fold = Connection::open_with_flags_and_vfs("store.db", rusqlite::OpenFlags::default(), disk.name())
                            .and_then(|c| c.execute_batch("PRAGMA wal_checkpoint(PASSIVE)"));
                        drop(fold);
                    }
                    match write(&store, request(round, writer, n)).await {
                        Ok(()) => acknowledged.lock().unwrap().insert(writer, n),
                        Err(_) => return,
                    };
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    Arc::try_unwrap(acknowledged).unwrap().into_inner().unwrap()
}

async fn check_power_cuts(seed: u64) {
    let disk = PowerLoss::register();
    for round in 0..ROUNDS {
        let store = Store::open(&on(&disk)).unwrap();
        let after = mix(seed, round) % 400;
        let unsynced = if seed.is_multiple_of(2) { Unsynced::Dropped } else { Unsynced::Torn(mix(seed, 100 + round)) };
        disk.lose_power_after(after, unsynced);
        let acknowledged = load_until_power_goes(&disk, &store, round).await;
        assert_eq!(disk.losses(), round + 1);
        assert!(write(&store, [put("late")]).await.is_err(), "a store without its disk acknowledges nothing");
        close(store).await;
        let store = Store::open(&on(&disk)).unwrap();
        let survived = check_whole(&store.snapshot(), round);
        for (writer, n) in acknowledged {
            let kept = survived.get(&writer);
            assert!(
                kept.is_some_and(|k| *k >= n),
                "seed {seed}, round {round}: request {n} of writer {writer} was acknowledged, {kept:?} kept"
            );
        }
        let raw = raw_on(&disk);
        assert_eq!(check_log(&raw), store.snapshot().revision());
        assert_eq!(raw.query_row("PRAGMA integrity_check", [], |r| r.get::<_, String>(0)).unwrap(), "ok");
        close(store).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_power_cuts_whole() {
    for seed in 0..SEEDS {
        check_power_cuts(seed).await;
    }
}

#[tokio::test]
async fn a_commit_is_synced() {
    let disk = PowerLoss::register();
    let mut store = Store::open(&on(&disk)).unwrap();
    for n in 0..5_u64 {
        write(&store, [put(&format!("e{n}"))]).await.unwrap();
        disk.lose_power();
        close(store).await;
        store = Store::open(&on(&disk)).unwrap();
        assert_eq!(store.snapshot().revision(), n + 1, "acknowledged and forgotten");
    }
}

/// The counterpart of the test above: on this disk a commit that is not synced is lost, so that test can fail.
#[test]
fn an_unsynced_commit_is_lost() {
    let disk = PowerLoss::register();
    let raw = raw_on(&disk);
    raw.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (n); INSERT INTO t VALUES (1);").unwrap();
    raw.execute_batch("PRAGMA synchronous=OFF; INSERT INTO t VALUES (2);").unwrap();
    let count = |c: &Connection| c.query_row("SELECT COUNT(*) FROM t", [], |r| r.get::<_, i64>(0));
    assert_eq!(count(&raw).unwrap(), 2);
    disk.lose_power();
    assert!(count(&raw).is_err(), "an old handle fails");
    assert_eq!(count(&raw_on(&disk)).unwrap(), 1);
}

#[test]
fn a_rollback_journal_works_on_this_disk_too() {
    for seed in 0..40 {
        let disk = PowerLoss::register();
        // Without EXTRA a journal's deletion is not synced, and a commit may be rolled back: this disk shows that too.
        raw_on(&disk).execute_batch("PRAGMA synchronous=EXTRA; CREATE TABLE t (n); INSERT INTO t VALUES (0);").unwrap();
        disk.lose_power_after(mix(seed, 0) % 30, Unsynced::Torn(seed));
        let raw = raw_on(&disk);
        raw.execute_batch("PRAGMA synchronous=EXTRA;").unwrap();
        let mut acknowledged = 0;
        while raw.execute("UPDATE t SET n = n + 1", []).is_ok() {
            acknowledged += 1;
        }
        let raw = raw_on(&disk);
        let n: i64 = raw.query_row("SELECT n FROM t", [], |r| r.get(0)).unwrap();
        assert!(n == acknowledged || n == acknowledged + 1, "seed {seed}: {acknowledged} acknowledged, {n} kept");
        assert_eq!(raw.query_row("PRAGMA integrity_check", [], |r| r.get::<_, String>(0)).unwrap(), "ok");
    }
}

#[tokio::test]
async fn a_power_cut_at_any_step_of_making_a_store_leaves_one_that_opens() {
    for unsynced in [Unsynced::Dropped, Unsynced::Torn(7), Unsynced::Torn(8)] {
        let mut made = false;
        for after in 0..200 {
            let disk = PowerLoss::register();
            disk.lose_power_after(after, unsynced);
            let first = Store::open(&on(&disk));
            made = disk.losses() == 0;
            if let Ok(store) = first {
                close(store).await;
            }
            let store = Store::open(&on(&disk)).unwrap_or_else(|e| panic!("cut after {after}, {unsynced:?}: {e}"));
            disk.lose_power_after(u64::MAX, unsynced);
            write(&store, [put("e")]).await.unwrap();
            close(store).await;
            if made {
                break;
            }
        }
        assert!(made, "making a store takes more steps than this test");
    }
}

#[tokio::test]
async fn a_full_disk_refuses_a_write_and_forgets_it() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    write(&store, [put("first")]).await.unwrap();
    let mut refused = 0;
    for room in 0..100 {
        let before = contents(&store.snapshot());
        disk.fill_after(room);
        let answer = write(&store, [put(&format!("a{room}")), put(&format!("b{room}")), put_node("n", &[&format!("n:{room}")])]).await;
        disk.make_room();
        match answer {
            Err(StoreError::Full) => refused += 1,
            Ok(()) => break,
            Err(other) => panic!("with room for {room} writes: {other:?}"),
        }
        assert_eq!(contents(&store.snapshot()), before, "part of a refused write is visible");
        assert_eq!(check_log(&raw_on(&disk)), before.0);
        write(&store, [put(&format!("after{room}"))]).await.expect("the store works again once there is room");
    }
    assert!(refused > 3, "{refused}");
    assert_eq!(store.snapshot().entries_count(), 1 + refused + 2);
    let before = contents(&store.snapshot());
    close(store).await;
    assert_eq!(contents(&Store::open(&on(&disk)).unwrap().snapshot()), before);
}

#[tokio::test]
async fn a_full_disk_refuses_merged_writes_one_by_one() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    write(&store, [put("first")]).await.unwrap();
    disk.fill_after(0);
    let requests: Vec<_> = (0..20)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { write(&store, [put(&format!("e{n}"))]).await })
        })
        .collect();
    for request in requests {
        assert!(matches!(request.await.unwrap(), Err(StoreError::Full)));
    }
    disk.make_room();
    assert_eq!(store.snapshot().revision(), 1);
    write(&store, [put("second")]).await.unwrap();
    assert_eq!(check_log(&raw_on(&disk)), 2);
}
