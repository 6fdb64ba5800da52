//! The head of the log, the log itself, and the digest chain.

use std::sync::Arc;

use countersign_identity::Timestamp;

use super::narrow;
use crate::dialect::{Database, Value};
use crate::error::StoreError;
use crate::log::{Actor, Cursor, Noun, Record};

pub(crate) const SCHEMA: &str = "
CREATE TABLE head (
    id BIGINT PRIMARY KEY,
    schema_version BIGINT NOT NULL,
    min_reader BIGINT NOT NULL,
    epoch BYTES NOT NULL,
    revision BIGINT NOT NULL,
    digest BYTES NOT NULL
) KEYED;
CREATE TABLE txn (
    last_revision BIGINT PRIMARY KEY,
    id BYTES NOT NULL UNIQUE,
    first_revision BIGINT NOT NULL,
    digest BYTES NOT NULL
) KEYED;
CREATE TABLE log (
    revision BIGINT PRIMARY KEY,
    noun BIGINT NOT NULL,
    item TEXT NOT NULL,
    deleted BIGINT NOT NULL,
    at_millis BIGINT NOT NULL,
    actor TEXT NOT NULL
) KEYED;
";

/// The head row.
pub(crate) struct Head {
    pub(crate) schema_version: i64,
    pub(crate) min_reader: i64,
    pub(crate) cursor: Cursor,
}

pub(crate) fn insert<D: Database>(database: &mut D, head: &Head) -> Result<(), StoreError> {
    database
        .execute(
            "INSERT INTO head (id, schema_version, min_reader, epoch, revision, digest) VALUES (1, $1, $2, $3, $4, $5)",
            &[
                Value::Int(head.schema_version),
                Value::Int(head.min_reader),
                Value::Blob(&head.cursor.epoch),
                Value::Int(narrow_u64(head.cursor.revision)?),
                Value::Blob(&head.cursor.digest),
            ],
        )
        .map(|_| ())
}

pub(crate) fn read<D: Database>(database: &mut D) -> Result<Option<Head>, StoreError> {
    let mut head = None;
    database.query("SELECT schema_version, min_reader, epoch, revision, digest FROM head WHERE id = 1", &[], &mut |row| {
        head = Some(Head {
            schema_version: row.int(0)?,
            min_reader: row.int(1)?,
            cursor: Cursor { epoch: bytes(row.blob(2)?)?, revision: narrow(row.int(3)?)?, digest: bytes(row.blob(4)?)? },
        });
        Ok(())
    })?;
    Ok(head)
}

/// Moves the head, if it still stands where the transaction was decided. Says whether it did. Readers older than `first_reader`
/// are told to stop.
pub(crate) fn advance<D: Database>(database: &mut D, from: &Cursor, to: &Cursor, first_reader: i64) -> Result<bool, StoreError> {
    let moved = database.execute(
        "UPDATE head SET revision = $1, digest = $2, min_reader = CASE WHEN min_reader < $3 THEN $3 ELSE min_reader END
         WHERE id = 1 AND revision = $4 AND epoch = $5",
        &[
            Value::Int(narrow_u64(to.revision)?),
            Value::Blob(&to.digest),
            Value::Int(first_reader),
            Value::Int(narrow_u64(from.revision)?),
            Value::Blob(&from.epoch),
        ],
    )?;
    Ok(moved == 1)
}

pub(crate) fn epoch_replace<D: Database>(database: &mut D, epoch: &[u8; 16]) -> Result<(), StoreError> {
    database.execute("UPDATE head SET epoch = $1 WHERE id = 1", &[Value::Blob(epoch)]).map(|_| ())
}

pub(crate) fn append<D: Database>(
    database: &mut D,
    transaction: &[u8; 16],
    digest: &[u8; 32],
    records: &[Record],
) -> Result<(), StoreError> {
    let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(()) };
    for record in records {
        database.execute(
            "INSERT INTO log (revision, noun, item, deleted, at_millis, actor) VALUES ($1, $2, $3, $4, $5, $6)",
            &[
                Value::Int(narrow_u64(record.revision)?),
                Value::Int(record.noun.number()),
                Value::Text(&record.key),
                Value::Int(i64::from(record.delete)),
                Value::Int(record.at.millis()),
                Value::Text(record.actor.as_str()),
            ],
        )?;
    }
    database
        .execute(
            "INSERT INTO txn (last_revision, id, first_revision, digest) VALUES ($1, $2, $3, $4)",
            &[
                Value::Int(narrow_u64(last.revision)?),
                Value::Blob(transaction),
                Value::Int(narrow_u64(first.revision)?),
                Value::Blob(digest),
            ],
        )
        .map(|_| ())
}

/// Records after a revision, oldest first.
pub(crate) fn records_after<D: Database>(database: &mut D, revision: u64) -> Result<Vec<Record>, StoreError> {
    let mut records = Vec::new();
    database.query(
        "SELECT revision, noun, item, deleted, at_millis, actor FROM log WHERE revision > $1 ORDER BY revision",
        &[Value::Int(narrow_u64(revision)?)],
        &mut |row| {
            let number = row.int(1)?;
            records.push(Record {
                revision: narrow(row.int(0)?)?,
                noun: Noun::from_number(number).ok_or_else(|| StoreError::Corrupt(format!("unknown kind of record {number}")))?,
                key: Arc::from(row.text(2)?),
                delete: row.int(3)? != 0,
                at: Timestamp::from_millis(row.int(4)?),
                actor: Actor::new(row.text(5)?),
            });
            Ok(())
        },
    )?;
    Ok(records)
}

/// Writes the head as it is: proof that something can be written. There and back, since SQLite writes no page for a value that
/// stays.
pub(crate) fn rewrite<D: Database>(database: &mut D) -> Result<usize, StoreError> {
    database.execute("UPDATE head SET min_reader = min_reader + 1 WHERE id = 1", &[])?;
    database.execute("UPDATE head SET min_reader = min_reader - 1 WHERE id = 1", &[])
}

/// Drops records older than this that are not among the newest `keep`.
pub(crate) fn trim<D: Database>(database: &mut D, older_than: Timestamp, keep: u64) -> Result<usize, StoreError> {
    let keep = Value::Int(narrow_u64(keep)?);
    let dropped = database.execute(
        "DELETE FROM log WHERE at_millis < $1 AND revision <= (SELECT revision FROM head WHERE id = 1) - $2",
        &[Value::Int(older_than.millis()), keep],
    )?;
    database.execute("DELETE FROM txn WHERE last_revision < (SELECT COALESCE(MIN(revision), 0) FROM log)", &[])?;
    Ok(dropped)
}

fn bytes<const N: usize>(blob: &[u8]) -> Result<[u8; N], StoreError> {
    blob.try_into().map_err(|_| StoreError::Corrupt(format!("expected {N} bytes, found {}", blob.len())))
}

fn narrow_u64(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Corrupt(format!("revision {number} is out of range")))
}
