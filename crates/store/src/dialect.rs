//! The seam between our SQL and a database. SQLite is the first dialect; a second one implements [`Database`].
//!
//! SQL here is what both SQLite and PostgreSQL understand: `$1` parameters numbered in order of appearance, `ON CONFLICT`,
//! `BIGINT`, `TEXT` and, through [`Database::BLOB`] and [`Database::KEYED`], bytes and tables kept by key.

mod sqlite;

pub(crate) use sqlite::Sqlite;
pub use sqlite::refuse_foreign;

use crate::error::StoreError;

/// A value on its way into the database.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    Int(i64),
    Text(&'a str),
    Blob(&'a [u8]),
    Null,
}

/// One row on its way out.
pub(crate) trait Row {
    fn int(&self, column: usize) -> Result<i64, StoreError>;
    fn text(&self, column: usize) -> Result<&str, StoreError>;
    fn blob(&self, column: usize) -> Result<&[u8], StoreError>;
    fn is_null(&self, column: usize) -> bool;
}

/// What a row is handed to; an error ends the query.
pub(crate) type EachRow<'a> = &'a mut dyn FnMut(&dyn Row) -> Result<(), StoreError>;

/// A connection, used by one thread.
pub(crate) trait Database: Send {
    /// The dialect's type for bytes.
    const BLOB: &'static str;
    /// What the dialect says after a table that is kept in the order of its primary key, or nothing: one page to change for a
    /// small row instead of one in the table and one in its index.
    const KEYED: &'static str;

    /// Runs a statement and says how many rows it changed.
    fn execute(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<usize, StoreError>;

    /// Runs a query and hands out its rows.
    fn query(&mut self, sql: &'static str, values: &[Value<'_>], each: EachRow<'_>) -> Result<(), StoreError>;

    /// Runs statements that are made at run time; for the schema only.
    fn define(&mut self, sql: &str) -> Result<(), StoreError>;

    /// Begins a transaction that may write, and waits for whoever writes now.
    fn begin(&mut self) -> Result<(), StoreError>;

    /// Commits durably: when this returns, the transaction survives a power cut.
    fn commit(&mut self) -> Result<(), StoreError>;

    /// Gives the transaction up.
    fn rollback(&mut self);

    /// Does the housekeeping that is due, or while requests wait only what is overdue.
    fn tidy(&mut self, requests_wait: bool) -> Result<(), StoreError>;

    /// The names of all tables, to recognise foreign schemas.
    fn tables(&mut self) -> Result<Vec<String>, StoreError>;
}
