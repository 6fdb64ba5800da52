//! Join tokens that were not redeemed yet, as hashes. Not in the log: nobody follows them.

use countersign_identity::Timestamp;

use super::{spiffe_id, time};
use crate::dialect::{Database, Value};
use crate::error::StoreError;
use crate::model::JoinToken;

pub(crate) const SCHEMA: &str = "
CREATE TABLE join_token (
    hash BYTES PRIMARY KEY,
    expires_at BIGINT NOT NULL,
    alias TEXT
) KEYED;
";

/// Adds a token. Says whether it is new.
pub(crate) fn add<D: Database>(database: &mut D, token: &JoinToken) -> Result<bool, StoreError> {
    let alias = token.alias.as_ref().map_or(Value::Null, |id| Value::Text(id.as_str()));
    let added = database.execute(
        "INSERT INTO join_token (hash, expires_at, alias) VALUES ($1, $2, $3) ON CONFLICT (hash) DO NOTHING",
        &[Value::Blob(&token.hash), Value::Int(token.expires_at.secs()), alias],
    )?;
    Ok(added == 1)
}

/// Whether a token is there.
pub(crate) fn known<D: Database>(database: &mut D, hash: &[u8; 32]) -> Result<bool, StoreError> {
    let mut found = false;
    database.query("SELECT expires_at FROM join_token WHERE hash = $1", &[Value::Blob(hash)], &mut |_| {
        found = true;
        Ok(())
    })?;
    Ok(found)
}

/// Takes a token out: whoever gets it here is the only one. Expired ones are taken out too.
pub(crate) fn redeem<D: Database>(database: &mut D, hash: &[u8; 32]) -> Result<Option<JoinToken>, StoreError> {
    let mut found = None;
    database.query("DELETE FROM join_token WHERE hash = $1 RETURNING expires_at, alias", &[Value::Blob(hash)], &mut |row| {
        let alias = if row.is_null(1) { None } else { Some(spiffe_id(row.text(1)?)?) };
        found = Some(JoinToken { hash: *hash, expires_at: time(row.int(0)?), alias });
        Ok(())
    })?;
    Ok(found)
}

/// Drops tokens that ended before this time.
pub(crate) fn prune<D: Database>(database: &mut D, ended_before: Timestamp) -> Result<usize, StoreError> {
    database.execute("DELETE FROM join_token WHERE expires_at < $1", &[Value::Int(ended_before.secs())])
}
