//! SQLite: one file, WAL, every commit synced.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{Database, EachRow, Row, Value};
use crate::error::StoreError;

/// Statements kept prepared; we have a few dozen.
const STATEMENTS_MAX: usize = 128;
/// How long to wait for another process that writes, such as a backup taken with other tools.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// WAL pages after which the log is folded into the main file as soon as nobody waits (16 MiB).
const CHECKPOINT_PAGES: i64 = 4096;
/// WAL pages after which it is folded in whoever waits, or it would grow for as long as somebody does (64 MiB).
const CHECKPOINT_PAGES_BUSY: i64 = 16_384;

pub(crate) struct Sqlite {
    connection: Connection,
}

impl Sqlite {
    /// Opens or creates the file. `vfs` names another file layer, for tests that lose power.
    pub(crate) fn open(path: &Path, vfs: Option<&str>) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        let failed = |e: rusqlite::Error| StoreError::Open { path: shown.clone(), reason: e.to_string() };
        // Another file layer is a disk of a test, where everything is ours.
        if vfs.is_none() {
            refuse_foreign(path)?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = match vfs {
            Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs),
            None => Connection::open_with_flags(path, flags),
        }
        .map_err(failed)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        // What is not ours is only looked at: not even a write-ahead log that was left behind is folded into it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
        refuse_foreign_tables(&connection, &shown)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(failed)?;
        // INVARIANT: synchronous=FULL syncs the WAL at each commit; `a_commit_is_synced` holds it.
        connection
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0;
                 PRAGMA journal_size_limit=67108864; PRAGMA cache_size=-4096; PRAGMA temp_store=MEMORY;",
            )
            .map_err(failed)?;
        Ok(Self { connection })
    }

    pub(crate) fn raw(&self) -> &Connection {
        &self.connection
    }
}

/// Refuses what has tables that are not ours, so that nothing is left beside it: an ordinary reader makes a write-ahead log
/// and its index. What cannot be looked at at all is refused when it is opened.
///
/// # Errors
/// It is a SPIRE datastore, or somebody else's.
pub fn refuse_foreign(path: &Path) -> Result<(), StoreError> {
    let look = |opened: Result<Connection, rusqlite::Error>| opened.and_then(|connection| tables(&connection));
    let looked = if log_of(path).exists() {
        // Whoever holds it has made both files already.
        look(look_with_log(path)).or_else(|_| look(Connection::open_with_flags(path, READ_ONLY)))
    } else {
        look(look_at_file(path))
    };
    let Ok(tables) = looked else { return Ok(()) };
    refuse_tables(&tables, &path.display().to_string())
}

const READ_ONLY: OpenFlags = OpenFlags::SQLITE_OPEN_READ_ONLY.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

fn log_of(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

/// Without locks, log or index. Nobody is writing: whoever does has a log beside the file.
fn look_at_file(path: &Path) -> Result<Connection, rusqlite::Error> {
    let shown = path.to_str().ok_or_else(|| rusqlite::Error::InvalidPath(path.to_owned()))?;
    let escaped = shown.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    Connection::open_with_flags(format!("file:{escaped}?immutable=1"), READ_ONLY | OpenFlags::SQLITE_OPEN_URI)
}

/// With what a process that ended left in its log, which is neither folded in nor removed. Alone with the file, SQLite keeps
/// the log's index in memory.
fn look_with_log(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Whoever has it open keeps it for long.
    connection.busy_timeout(Duration::ZERO)?;
    connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE;")?;
    Ok(connection)
}

fn tables(connection: &Connection) -> Result<Vec<String>, rusqlite::Error> {
    let mut statement = connection.prepare("SELECT name FROM sqlite_master WHERE type = 'table'")?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// Refuses what has tables that are not ours, before anything is changed.
fn refuse_foreign_tables(connection: &Connection, path: &str) -> Result<(), StoreError> {
    let tables = tables(connection).map_err(|e| match e.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            StoreError::Foreign { path: path.to_owned(), reason: "it is not an SQLite database".to_owned() }
        }
        _ => StoreError::Open { path: path.to_owned(), reason: e.to_string() },
    })?;
    refuse_tables(&tables, path)
}

fn refuse_tables(tables: &[String], path: &str) -> Result<(), StoreError> {
    if tables.iter().any(|t| t == "registered_entries" || t == "attested_node_entries") {
        return Err(StoreError::Spire { path: path.to_owned() });
    }
    if tables.iter().any(|t| t == "head") {
        return Ok(());
    }
    match tables.iter().find(|t| !t.starts_with("sqlite_")) {
        Some(table) => Err(StoreError::Foreign { path: path.to_owned(), reason: format!("it has a table `{table}`") }),
        None => Ok(()),
    }
}

fn failed(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt(error.to_string()),
        _ => StoreError::Failed(error.to_string()),
    }
}

fn bind(statement: &mut rusqlite::Statement<'_>, values: &[Value<'_>]) -> Result<(), rusqlite::Error> {
    for (index, value) in values.iter().enumerate() {
        match *value {
            Value::Int(n) => statement.raw_bind_parameter(index + 1, n)?,
            Value::Text(t) => statement.raw_bind_parameter(index + 1, t)?,
            Value::Blob(b) => statement.raw_bind_parameter(index + 1, b)?,
            Value::Null => statement.raw_bind_parameter(index + 1, rusqlite::types::Null)?,
        }
    }
    Ok(())
}

impl Database for Sqlite {
    const BLOB: &'static str = "BLOB";
    const KEYED: &'static str = "WITHOUT ROWID";

    fn execute(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<usize, StoreError> {
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        bind(&mut statement, values).map_err(failed)?;
        statement.raw_execute().map_err(failed)
    }

    fn query(&mut self, sql: &'static str, values: &[Value<'_>], each: EachRow<'_>) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        bind(&mut statement, values).map_err(failed)?;
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().map_err(failed)? {
            each(&SqliteRow(row))?;
        }
        Ok(())
    }

    fn define(&mut self, sql: &str) -> Result<(), StoreError> {
        self.connection.execute_batch(sql).map_err(failed)
    }

    fn begin(&mut self) -> Result<(), StoreError> {
        self.execute("BEGIN IMMEDIATE", &[]).map(|_| ())
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        self.execute("COMMIT", &[]).map(|_| ())
    }

    fn rollback(&mut self) {
        // Fails only when SQLite has already rolled back by itself.
        let _ = self.execute("ROLLBACK", &[]);
    }

    fn tidy(&mut self, requests_wait: bool) -> Result<(), StoreError> {
        let mut pages = 0;
        self.query("PRAGMA wal_checkpoint(NOOP)", &[], &mut |row| {
            pages = row.int(1)?;
            Ok(())
        })?;
        if pages >= if requests_wait { CHECKPOINT_PAGES_BUSY } else { CHECKPOINT_PAGES } {
            // PASSIVE waits for nobody; what a reader still needs is folded in next time.
            self.query("PRAGMA wal_checkpoint(PASSIVE)", &[], &mut |_| Ok(()))?;
        }
        Ok(())
    }

    fn tables(&mut self) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        self.query("SELECT name FROM sqlite_master WHERE type = 'table'", &[], &mut |row| {
            names.push(row.text(0)?.to_owned());
            Ok(())
        })?;
        Ok(names)
    }
}

struct SqliteRow<'a>(&'a rusqlite::Row<'a>);

impl SqliteRow<'_> {
    fn value(&self, column: usize) -> Result<ValueRef<'_>, StoreError> {
        self.0.get_ref(column).map_err(failed)
    }
}

impl Row for SqliteRow<'_> {
    fn int(&self, column: usize) -> Result<i64, StoreError> {
        self.value(column)?.as_i64().map_err(|e| StoreError::Corrupt(format!("column {column}: {e}")))
    }

    fn text(&self, column: usize) -> Result<&str, StoreError> {
        self.value(column)?.as_str().map_err(|e| StoreError::Corrupt(format!("column {column}: {e}")))
    }

    fn blob(&self, column: usize) -> Result<&[u8], StoreError> {
        self.value(column)?.as_blob().map_err(|e| StoreError::Corrupt(format!("column {column}: {e}")))
    }

    fn is_null(&self, column: usize) -> bool {
        matches!(self.value(column), Ok(ValueRef::Null))
    }
}
