//! Registration entries.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::entry::AdditionalAttributes;
use countersign_identity::{Entry, Timestamp, TrustDomain};

use super::{Take, list, narrow, read_list, selectors, spiffe_id, time};
use crate::dialect::{Database, Row, Value};
use crate::error::StoreError;
use crate::log::Change;

pub(crate) const SCHEMA: &str = "
CREATE TABLE entry (
    id TEXT PRIMARY KEY,
    spiffe_id TEXT NOT NULL,
    parent_id TEXT NOT NULL,
    selectors TEXT NOT NULL,
    x509_svid_ttl_secs BIGINT NOT NULL,
    jwt_svid_ttl_secs BIGINT NOT NULL,
    federates_with TEXT NOT NULL,
    flags BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    dns_names TEXT NOT NULL,
    revision_number BIGINT NOT NULL,
    hint TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
";

const ADMIN: i64 = 1;
const DOWNSTREAM: i64 = 2;
const STORE_SVID: i64 = 4;
const DISABLE_X509_SVID_PREFETCH: i64 = 8;
const JWT_SVID_INCLUDE_JTI: i64 = 16;

pub(crate) fn put<D: Database>(database: &mut D, entry: &Entry) -> Result<(), StoreError> {
    let secs = |ttl: Option<Duration>| Value::Int(ttl.map_or(0, |t| i64::try_from(t.as_secs()).unwrap_or(i64::MAX)));
    let flag = |on: bool, bit: i64| if on { bit } else { 0 };
    let flags = flag(entry.admin, ADMIN)
        | flag(entry.downstream, DOWNSTREAM)
        | flag(entry.store_svid, STORE_SVID)
        | flag(entry.additional_attributes.disable_x509_svid_prefetch, DISABLE_X509_SVID_PREFETCH)
        | flag(entry.additional_attributes.jwt_svid_include_jti, JWT_SVID_INCLUDE_JTI);
    let selectors = list(entry.selectors.iter().map(countersign_identity::Selector::as_str));
    let federates_with = list(entry.federates_with.iter().map(TrustDomain::name));
    let dns_names = list(entry.dns_names.iter().map(String::as_str));
    database
        .execute(
            "INSERT INTO entry (id, spiffe_id, parent_id, selectors, x509_svid_ttl_secs, jwt_svid_ttl_secs, federates_with,
                 flags, expires_at, dns_names, revision_number, hint, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
             ON CONFLICT (id) DO UPDATE SET spiffe_id = excluded.spiffe_id, parent_id = excluded.parent_id,
                 selectors = excluded.selectors, x509_svid_ttl_secs = excluded.x509_svid_ttl_secs,
                 jwt_svid_ttl_secs = excluded.jwt_svid_ttl_secs, federates_with = excluded.federates_with,
                 flags = excluded.flags, expires_at = excluded.expires_at, dns_names = excluded.dns_names,
                 revision_number = excluded.revision_number, hint = excluded.hint, created_at = excluded.created_at",
            &[
                Value::Text(&entry.id),
                Value::Text(entry.spiffe_id.as_str()),
                Value::Text(entry.parent_id.as_str()),
                Value::Text(&selectors),
                secs(entry.x509_svid_ttl),
                secs(entry.jwt_svid_ttl),
                Value::Text(&federates_with),
                Value::Int(flags),
                Value::Int(entry.expires_at.map_or(0, Timestamp::secs)),
                Value::Text(&dns_names),
                Value::Int(entry.revision_number),
                Value::Text(&entry.hint),
                Value::Int(entry.created_at.secs()),
            ],
        )
        .map(|_| ())
}

pub(crate) fn delete<D: Database>(database: &mut D, id: &str) -> Result<(), StoreError> {
    database.execute("DELETE FROM entry WHERE id = $1", &[Value::Text(id)]).map(|_| ())
}

pub(crate) fn read<D: Database>(database: &mut D, key: Option<&str>, take: Take<'_>) -> Result<(), StoreError> {
    const ALL: &str = "SELECT id, spiffe_id, parent_id, selectors, x509_svid_ttl_secs, jwt_svid_ttl_secs, federates_with,
        flags, expires_at, dns_names, revision_number, hint, created_at FROM entry";
    const ONE: &str = "SELECT id, spiffe_id, parent_id, selectors, x509_svid_ttl_secs, jwt_svid_ttl_secs, federates_with,
        flags, expires_at, dns_names, revision_number, hint, created_at FROM entry WHERE id = $1";
    let mut each = |row: &dyn Row| take(Change::EntryPut(Arc::new(from_row(row)?)));
    match key {
        Some(key) => database.query(ONE, &[Value::Text(key)], &mut each),
        None => database.query(ALL, &[], &mut each),
    }
}

fn from_row(row: &dyn Row) -> Result<Entry, StoreError> {
    let flags = row.int(7)?;
    let ttl = |secs: i64| narrow(secs).map(|secs| (secs != 0).then(|| Duration::from_secs(secs)));
    let expires_at = row.int(8)?;
    Ok(Entry {
        id: row.text(0)?.to_owned(),
        spiffe_id: spiffe_id(row.text(1)?)?,
        parent_id: spiffe_id(row.text(2)?)?,
        selectors: selectors(row.text(3)?)?,
        x509_svid_ttl: ttl(row.int(4)?)?,
        jwt_svid_ttl: ttl(row.int(5)?)?,
        federates_with: read_list(row.text(6)?, |name| TrustDomain::parse(name).map_err(|e| StoreError::Corrupt(e.to_string())))?,
        admin: flags & ADMIN != 0,
        downstream: flags & DOWNSTREAM != 0,
        expires_at: (expires_at != 0).then(|| time(expires_at)),
        dns_names: read_list(row.text(9)?, |name| Ok(name.to_owned()))?,
        revision_number: row.int(10)?,
        store_svid: flags & STORE_SVID != 0,
        hint: row.text(11)?.to_owned(),
        created_at: time(row.int(12)?),
        additional_attributes: AdditionalAttributes {
            disable_x509_svid_prefetch: flags & DISABLE_X509_SVID_PREFETCH != 0,
            jwt_svid_include_jti: flags & JWT_SVID_INCLUDE_JTI != 0,
        },
    })
}
