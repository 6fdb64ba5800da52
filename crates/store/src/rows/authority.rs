//! Authorities of every server and where they are in their lives.

use std::sync::Arc;

use countersign_identity::Timestamp;

use super::Take;
use crate::dialect::{Database, Row, Value};
use crate::error::StoreError;
use crate::log::Change;
use crate::model::{AuthorityFamily, AuthorityRecord, AuthorityState};

pub(crate) const SCHEMA: &str = "
CREATE TABLE authority (
    id TEXT PRIMARY KEY,
    server_id TEXT NOT NULL,
    family BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    state BIGINT NOT NULL,
    issued_at_millis BIGINT NOT NULL,
    expires_at_millis BIGINT NOT NULL,
    public BYTES NOT NULL
);
";

pub(crate) fn put<D: Database>(database: &mut D, authority: &AuthorityRecord) -> Result<(), StoreError> {
    database
        .execute(
            "INSERT INTO authority (id, server_id, family, key_id, state, issued_at_millis, expires_at_millis, public)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (id) DO UPDATE SET server_id = excluded.server_id, family = excluded.family,
                 key_id = excluded.key_id, state = excluded.state, issued_at_millis = excluded.issued_at_millis,
                 expires_at_millis = excluded.expires_at_millis, public = excluded.public",
            &[
                Value::Text(&authority.id),
                Value::Text(&authority.server_id),
                Value::Int(match authority.family {
                    AuthorityFamily::X509 => 1,
                    AuthorityFamily::Jwt => 2,
                }),
                Value::Text(&authority.key_id),
                Value::Int(match authority.state {
                    AuthorityState::Prepared => 1,
                    AuthorityState::Active => 2,
                    AuthorityState::Old => 3,
                }),
                Value::Int(authority.issued_at.millis()),
                Value::Int(authority.expires_at.millis()),
                Value::Blob(&authority.public),
            ],
        )
        .map(|_| ())
}

pub(crate) fn delete<D: Database>(database: &mut D, id: &str) -> Result<(), StoreError> {
    database.execute("DELETE FROM authority WHERE id = $1", &[Value::Text(id)]).map(|_| ())
}

pub(crate) fn read<D: Database>(database: &mut D, key: Option<&str>, take: Take<'_>) -> Result<(), StoreError> {
    const ALL: &str = "SELECT id, server_id, family, key_id, state, issued_at_millis, expires_at_millis, public FROM authority";
    const ONE: &str =
        "SELECT id, server_id, family, key_id, state, issued_at_millis, expires_at_millis, public FROM authority WHERE id = $1";
    let mut each = |row: &dyn Row| take(Change::AuthorityPut(Arc::new(from_row(row)?)));
    match key {
        Some(key) => database.query(ONE, &[Value::Text(key)], &mut each),
        None => database.query(ALL, &[], &mut each),
    }
}

fn from_row(row: &dyn Row) -> Result<AuthorityRecord, StoreError> {
    Ok(AuthorityRecord {
        id: row.text(0)?.into(),
        server_id: row.text(1)?.into(),
        family: match row.int(2)? {
            1 => AuthorityFamily::X509,
            2 => AuthorityFamily::Jwt,
            other => return Err(StoreError::Corrupt(format!("unknown authority family {other}"))),
        },
        key_id: row.text(3)?.to_owned(),
        state: match row.int(4)? {
            1 => AuthorityState::Prepared,
            2 => AuthorityState::Active,
            3 => AuthorityState::Old,
            other => return Err(StoreError::Corrupt(format!("unknown authority state {other}"))),
        },
        issued_at: Timestamp::from_millis(row.int(5)?),
        expires_at: Timestamp::from_millis(row.int(6)?),
        public: row.blob(7)?.to_vec(),
    })
}
