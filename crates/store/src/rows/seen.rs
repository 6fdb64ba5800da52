//! What was last seen of agents. Observed, not desired: written in batches, never followed.

use std::sync::Arc;

use countersign_identity::{SpiffeId, Timestamp};

use super::spiffe_id;
use crate::dialect::{Database, Value};
use crate::error::StoreError;
use crate::model::Seen;

pub(crate) const SCHEMA: &str = "
CREATE TABLE seen (
    id TEXT PRIMARY KEY,
    version TEXT NOT NULL,
    at_millis BIGINT NOT NULL
) KEYED;
";

pub(crate) fn put<D: Database>(database: &mut D, seen: &Seen) -> Result<(), StoreError> {
    database
        .execute(
            "INSERT INTO seen (id, version, at_millis) VALUES ($1, $2, $3)
             ON CONFLICT (id) DO UPDATE SET version = excluded.version, at_millis = excluded.at_millis",
            &[Value::Text(seen.id.as_str()), Value::Text(&seen.version), Value::Int(seen.at.millis())],
        )
        .map(|_| ())
}

pub(crate) fn delete<D: Database>(database: &mut D, id: &SpiffeId) -> Result<(), StoreError> {
    database.execute("DELETE FROM seen WHERE id = $1", &[Value::Text(id.as_str())]).map(|_| ())
}

pub(crate) fn read_all<D: Database>(database: &mut D) -> Result<Vec<Arc<Seen>>, StoreError> {
    let mut all = Vec::new();
    database.query("SELECT id, version, at_millis FROM seen", &[], &mut |row| {
        all.push(Arc::new(Seen {
            id: spiffe_id(row.text(0)?)?,
            version: row.text(1)?.to_owned(),
            at: Timestamp::from_millis(row.int(2)?),
        }));
        Ok(())
    })?;
    Ok(all)
}
