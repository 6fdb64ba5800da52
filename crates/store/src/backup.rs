//! Copies of a store: taken while it runs, put back while it does not.

use std::path::Path;
use std::time::Duration;

use crate::dialect::{Database, Sqlite};
use crate::error::StoreError;
use crate::rows::head;

/// Pages copied at a time, so that a running server is never held up for long.
const PAGES_PER_STEP: i32 = 1024;
const PAUSE: Duration = Duration::from_millis(2);

/// Copies the store into a new file. The server may run meanwhile.
///
/// # Errors
/// There is no store, the target exists, or the copy fails.
pub fn backup(store: &Path, target: &Path) -> Result<u64, StoreError> {
    require(store)?;
    refuse_existing(target)?;
    let source = Sqlite::open(store, None)?;
    copy(&source, target)?;
    let mut copied = Sqlite::open(target, None)?;
    let head = head::read(&mut copied)?;
    head.map(|h| h.cursor.revision).ok_or_else(|| foreign(store))
}

/// Puts a backup in the place of a store that must not be in use; the old one is kept beside it as `….before-restore`.
/// The store gets a new epoch, so that every follower is told to reload.
///
/// # Errors
/// There is no backup, it is not ours, or the files cannot be written.
pub fn restore(backup: &Path, store: &Path) -> Result<u64, StoreError> {
    require(backup)?;
    let mut source = Sqlite::open(backup, None)?;
    if !source.tables()?.iter().any(|t| t == "head") {
        return Err(foreign(backup));
    }
    // First, so that nothing is left beside what is not ours.
    let old = if store.exists() { Some(Sqlite::open(store, None)?) } else { None };
    let fresh = store.with_extension("restoring");
    let failed = |e: std::io::Error| StoreError::Failed(format!("cannot put the backup in place: {e}"));
    if fresh.exists() {
        std::fs::remove_file(&fresh).map_err(failed)?;
    }
    copy(&source, &fresh)?;
    let revision = {
        let mut restored = Sqlite::open(&fresh, None)?;
        restored.begin()?;
        head::epoch_replace(&mut restored, uuid::Uuid::new_v4().as_bytes())?;
        restored.commit()?;
        restored.define("PRAGMA wal_checkpoint(TRUNCATE)")?;
        head::read(&mut restored)?.map(|h| h.cursor.revision).ok_or_else(|| foreign(backup))?
    };
    if let Some(old) = old {
        let kept = store.with_extension("before-restore");
        if kept.exists() {
            std::fs::remove_file(&kept).map_err(failed)?;
        }
        copy(&old, &kept)?;
        drop(old);
    }
    for leftover in ["-wal", "-shm"] {
        let mut path = store.as_os_str().to_owned();
        path.push(leftover);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
    }
    std::fs::rename(&fresh, store).map_err(failed)?;
    if let Some(directory) = store.parent() {
        std::fs::File::open(directory).and_then(|d| d.sync_all()).map_err(failed)?;
    }
    Ok(revision)
}

fn copy(source: &Sqlite, target: &Path) -> Result<(), StoreError> {
    let failed = |e: rusqlite::Error| StoreError::Failed(format!("cannot copy the store to `{}`: {e}", target.display()));
    let mut out = rusqlite::Connection::open(target).map_err(failed)?;
    {
        // One read transaction for all steps: a write between two of them would make SQLite begin anew each time.
        let _reading = source.raw().unchecked_transaction().map_err(failed)?;
        source.raw().query_row("SELECT COUNT(*) FROM sqlite_master", [], |_| Ok(())).map_err(failed)?;
        let copying = rusqlite::backup::Backup::new(source.raw(), &mut out).map_err(failed)?;
        copying.run_to_completion(PAGES_PER_STEP, PAUSE, None).map_err(failed)?;
    }
    out.close().map_err(|(_, e)| failed(e))?;
    std::fs::File::open(target).and_then(|f| f.sync_all()).map_err(|e| StoreError::Failed(format!("cannot sync the copy: {e}")))
}

fn require(path: &Path) -> Result<(), StoreError> {
    if path.is_file() {
        return Ok(());
    }
    Err(StoreError::Open { path: path.display().to_string(), reason: "there is no such file".to_owned() })
}

fn refuse_existing(path: &Path) -> Result<(), StoreError> {
    if path.exists() {
        return Err(StoreError::Open { path: path.display().to_string(), reason: "it exists already and is not overwritten".to_owned() });
    }
    Ok(())
}

fn foreign(path: &Path) -> StoreError {
    StoreError::Foreign { path: path.display().to_string(), reason: "it has no log".to_owned() }
}
