//! What is not ours is not touched, and what is broken is said to be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use countersign_identity::Bundle;
use countersign_store::{
    Actor, AuthorityFamily, AuthorityRecord, AuthorityState, Change, JoinToken, Seen, Store, StoreError, backup, restore,
};
use countersign_testkit::powerloss::PowerLoss;
use rusqlite::Connection;

use crate::world::{NOW, agent, close, on, open, options, put, put_node, raw_on, relationship, td, write};

fn file() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    (directory, path)
}

/// The names of the files of the directory, and their bytes.
fn beside(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |item: std::io::Result<std::fs::DirEntry>| {
        let item = item.unwrap();
        (item.file_name().into_string().unwrap(), std::fs::read(item.path()).unwrap())
    };
    std::fs::read_dir(path.parent().unwrap()).unwrap().map(read).collect()
}

/// Tries everything that takes a path on a file that is not ours, and checks that each leaves it as it was.
async fn check_refused(path: &Path, is_expected: fn(&StoreError) -> bool) {
    let before = beside(path);
    let elsewhere = tempfile::tempdir().unwrap();
    let ours = elsewhere.path().join("ours.db");
    close(open(&ours)).await;
    let answers = [
        ("open", Store::open(&options(path)).map(|_| 0)),
        ("backup", backup(path, &elsewhere.path().join("copy.db"))),
        ("restore from", restore(path, &elsewhere.path().join("new.db"))),
        ("restore over", restore(&ours, path)),
    ];
    for (what, answer) in answers {
        let error = answer.expect_err(what);
        assert!(is_expected(&error), "{what}: {error:?}");
        assert!(error.to_string().contains("store.db"), "{what}: {error}");
    }
    assert!(!elsewhere.path().join("new.db").exists());
    let after = beside(path);
    assert!(after.keys().eq(before.keys()), "{:?} were {:?}", after.keys(), before.keys());
    assert!(after == before, "it was touched");
}

const SPIRE: &str = "CREATE TABLE migrations (id INTEGER PRIMARY KEY, version INTEGER);
    CREATE TABLE registered_entries (id INTEGER PRIMARY KEY, entry_id TEXT, spiffe_id TEXT);
    INSERT INTO registered_entries VALUES (1, 'e', 'spiffe://example.org/web');";

#[tokio::test]
async fn a_spire_datastore_is_left_byte_for_byte() {
    for mode in ["DELETE", "WAL"] {
        let directory = tempfile::tempdir().unwrap();
        // What a URI would be read wrong with.
        let path = directory.path().join("100% SPIRE?#").join("store.db");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let spire = Connection::open(&path).unwrap();
        spire.execute_batch(&format!("PRAGMA journal_mode={mode}; {SPIRE}")).unwrap();
        drop(spire);
        check_refused(&path, |e| matches!(e, StoreError::Spire { .. })).await;
    }
}

#[tokio::test]
async fn a_spire_datastore_that_crashed_is_left_byte_for_byte() {
    for left in [&["store.db", "store.db-wal"] as &[_], &["store.db", "store.db-wal", "store.db-shm"]] {
        let (running, spires) = file();
        let spire = Connection::open(&spires).unwrap();
        spire.execute_batch("PRAGMA journal_mode=WAL;").unwrap();
        spire.execute_batch(SPIRE).unwrap();
        let (directory, path) = file();
        for name in left {
            std::fs::copy(running.path().join(name), directory.path().join(name)).unwrap();
        }
        assert!(!beside(&path)["store.db-wal"].is_empty(), "the tables are in the log alone");
        check_refused(&path, |e| matches!(e, StoreError::Spire { .. })).await;
    }
}

#[tokio::test]
async fn a_spire_datastore_that_is_in_use_is_refused_and_its_owner_goes_on() {
    let (_directory, path) = file();
    let spire = Connection::open(&path).unwrap();
    spire.execute_batch("PRAGMA journal_mode=WAL;").unwrap();
    spire.execute_batch(SPIRE).unwrap();
    let before = beside(&path);
    let error = Store::open(&options(&path)).unwrap_err();
    assert!(matches!(error, StoreError::Spire { .. }), "{error:?}");
    assert!(beside(&path).keys().eq(before.keys()));
    for name in ["store.db", "store.db-wal"] {
        assert!(beside(&path)[name] == before[name], "{name} was touched");
    }
    spire.execute("INSERT INTO registered_entries VALUES (2, 'f', 'spiffe://example.org/db')", []).unwrap();
}

#[tokio::test]
async fn a_foreign_database_is_left_byte_for_byte() {
    for mode in ["DELETE", "WAL"] {
        let (_directory, path) = file();
        let batch = format!("PRAGMA journal_mode={mode}; CREATE TABLE customers (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT);");
        Connection::open(&path).unwrap().execute_batch(&batch).unwrap();
        check_refused(&path, |e| matches!(e, StoreError::Foreign { reason, .. } if reason.contains("customers"))).await;
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_byte_for_byte() {
    for content in ["hello, this is a letter\n".to_owned(), "x".repeat(100_000)] {
        let (_directory, path) = file();
        std::fs::write(&path, content).unwrap();
        check_refused(&path, |e| matches!(e, StoreError::Foreign { .. })).await;
    }
}

#[test]
fn a_path_that_cannot_be_opened_is_named() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path().to_owned(), directory.path().join("missing/store.db")] {
        let error = Store::open(&options(&path)).unwrap_err();
        assert!(matches!(&error, StoreError::Open { .. }), "{error:?}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    for (column, newest) in [("schema_version", 1), ("min_reader", 2)] {
        let found = newest + 1;
        let disk = PowerLoss::register();
        close(Store::open(&on(&disk)).unwrap()).await;
        raw_on(&disk).execute(&format!("UPDATE head SET {column} = {found}"), []).unwrap();
        let error = Store::open(&on(&disk)).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: f, known } if f == found && known == newest), "{error:?}");
    }
}

/// A store on a disk with one row of everything.
async fn one_of_each() -> PowerLoss {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    let authority = AuthorityRecord {
        id: "a1".into(),
        server_id: "s1".into(),
        family: AuthorityFamily::X509,
        key_id: "k".to_owned(),
        state: AuthorityState::Active,
        issued_at: NOW,
        expires_at: NOW,
        public: vec![1],
    };
    let mut bundle = Bundle::empty(td("other.org"));
    bundle.refresh_hint = Some(std::time::Duration::from_secs(5));
    let changes = [
        put("e1"),
        put_node("n1", &["x:1"]),
        Change::BundlePut(bundle.into()),
        Change::AuthorityPut(authority.into()),
        Change::FederationRelationshipPut(relationship("other.org", Some("spiffe://other.org/endpoint")).into()),
    ];
    store
        .write(Actor::server(), move |draft| {
            changes.iter().for_each(|c| draft.change(c.clone()));
            draft.token_add(&JoinToken { hash: [1; 32], expires_at: NOW, alias: None })?;
            draft.seen_put(&Seen { id: agent("n1"), version: "1".to_owned(), at: NOW })
        })
        .await
        .unwrap();
    close(store).await;
    disk
}

#[tokio::test]
async fn a_corrupt_row_is_said_to_be_corrupt() {
    let damages = [
        "UPDATE entry SET spiffe_id = 'nonsense'",
        "UPDATE entry SET parent_id = ''",
        "UPDATE entry SET selectors = 'not json'",
        "UPDATE entry SET selectors = '{}'",
        "UPDATE entry SET selectors = '[1]'",
        "UPDATE entry SET selectors = '[\"no colon\"]'",
        "UPDATE entry SET federates_with = '[\"UPPER\"]'",
        "UPDATE entry SET dns_names = 'null'",
        "UPDATE entry SET x509_svid_ttl_secs = -1",
        "UPDATE entry SET jwt_svid_ttl_secs = 'soon'",
        "UPDATE entry SET flags = 'many'",
        "UPDATE entry SET hint = x'ff'",
        "UPDATE entry SET hint = CAST(x'ff' AS TEXT)",
        "UPDATE node SET id = 'http://example.org'",
        "UPDATE node SET selectors = '['",
        "UPDATE node SET expires_at = 1.5",
        "UPDATE bundle SET trust_domain = 'spiffe://x'",
        "UPDATE bundle SET x509_authorities = '[{}]'",
        "UPDATE bundle SET x509_authorities = '[{\"der\": \"AAAA\"}]'",
        "UPDATE bundle SET jwt_authorities = '7'",
        "UPDATE bundle SET jwt_authorities = '[{\"kid\": \"k\", \"spki\": \"AAAA\"}]'",
        "UPDATE bundle SET jwt_authorities = '[{\"spki\": \"AAAA\"}]'",
        "UPDATE bundle SET refresh_hint_secs = -1",
        "UPDATE authority SET family = 3",
        "UPDATE authority SET state = 0",
        "UPDATE authority SET public = 'text'",
        "UPDATE federation_relationship SET trust_domain = 'UPPER'",
        "UPDATE federation_relationship SET bundle_endpoint_url = 'http://other.org'",
        "UPDATE federation_relationship SET bundle_endpoint_profile = 3",
        "UPDATE federation_relationship SET endpoint_spiffe_id = NULL",
        "UPDATE federation_relationship SET endpoint_spiffe_id = 'nonsense'",
        "UPDATE seen SET id = 'x'",
        "UPDATE head SET epoch = x'00'",
        "UPDATE head SET digest = x''",
        "UPDATE head SET revision = -1",
        "DELETE FROM head",
    ];
    for damage in damages {
        let disk = one_of_each().await;
        assert_eq!(raw_on(&disk).execute(damage, []).unwrap(), 1);
        match Store::open(&on(&disk)) {
            Err(StoreError::Corrupt(_)) => {}
            other => panic!("{damage}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_corrupt_join_token_is_refused_and_harms_nothing_else() {
    let disk = one_of_each().await;
    raw_on(&disk).execute("UPDATE join_token SET alias = 'nonsense'", []).unwrap();
    let store = Store::open(&on(&disk)).unwrap();
    let redeemed = store.write(Actor::server(), |draft| draft.token_redeem(&[1; 32])).await;
    assert!(matches!(redeemed, Err(StoreError::Corrupt(_))), "{redeemed:?}");
    write(&store, [put("e2")]).await.unwrap();
}

#[tokio::test]
async fn a_flipped_byte_in_the_file_never_makes_it_panic() {
    let (directory, path) = file();
    let store = open(&path);
    write(&store, (0..200).map(|n| put(&format!("e{n}")))).await.unwrap();
    close(store).await;
    let good = std::fs::read(&path).unwrap();
    for n in 0..200_usize {
        let mut bad = good.clone();
        let at = if n < 100 { n } else { n.wrapping_mul(2_654_435_761) % good.len() };
        bad[at] ^= 1 << (n % 8);
        let path = directory.path().join(format!("bad-{n}.db"));
        std::fs::write(&path, bad).unwrap();
        if let Ok(store) = Store::open(&options(&path)) {
            let _ = write(&store, [put("another")]).await;
            close(store).await;
        }
    }
}

#[tokio::test]
async fn an_empty_file_becomes_a_store() {
    let (_directory, path) = file();
    std::fs::write(&path, "").unwrap();
    let store = open(&path);
    write(&store, [put("e")]).await.unwrap();
    assert_eq!(store.snapshot().revision(), 1);
}

#[tokio::test]
async fn a_request_that_panics_changes_nothing_and_the_next_is_served() {
    let (_directory, path) = file();
    let store = open(&path);
    let before = store.snapshot().cursor();
    let text: Option<String> = None;
    let faulty = store.write(Actor::new("test"), move |draft| {
        draft.change(put("faulty"));
        Err(StoreError::Failed(text.clone().unwrap()))
    });
    let result: Result<(), _> = faulty.await;
    assert!(matches!(result, Err(StoreError::Failed(_))), "{result:?}");
    assert_eq!(store.snapshot().cursor(), before);
    write(&store, [put("sound")]).await.unwrap();
    assert!(store.snapshot().entry("faulty").is_none() && store.snapshot().entry("sound").is_some());
}
