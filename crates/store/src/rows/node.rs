//! Attested nodes.

use std::sync::Arc;

use super::{Take, list, selectors, spiffe_id, time};
use crate::dialect::{Database, Row, Value};
use crate::error::StoreError;
use crate::log::Change;
use crate::model::Node;

pub(crate) const SCHEMA: &str = "
CREATE TABLE node (
    id TEXT PRIMARY KEY,
    attestation_type TEXT NOT NULL,
    serial_number TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    new_serial_number TEXT NOT NULL,
    new_expires_at BIGINT NOT NULL,
    can_reattest BIGINT NOT NULL,
    selectors TEXT NOT NULL
) KEYED;
";

pub(crate) fn put<D: Database>(database: &mut D, node: &Node) -> Result<(), StoreError> {
    let selectors = list(node.selectors.iter().map(countersign_identity::Selector::as_str));
    database
        .execute(
            "INSERT INTO node (id, attestation_type, serial_number, expires_at, new_serial_number, new_expires_at,
                 can_reattest, selectors)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (id) DO UPDATE SET attestation_type = excluded.attestation_type,
                 serial_number = excluded.serial_number, expires_at = excluded.expires_at,
                 new_serial_number = excluded.new_serial_number, new_expires_at = excluded.new_expires_at,
                 can_reattest = excluded.can_reattest, selectors = excluded.selectors",
            &[
                Value::Text(node.id.as_str()),
                Value::Text(&node.attestation_type),
                Value::Text(&node.serial_number),
                Value::Int(node.expires_at.secs()),
                Value::Text(&node.new_serial_number),
                Value::Int(node.new_expires_at.secs()),
                Value::Int(i64::from(node.can_reattest)),
                Value::Text(&selectors),
            ],
        )
        .map(|_| ())
}

pub(crate) fn delete<D: Database>(database: &mut D, id: &countersign_identity::SpiffeId) -> Result<(), StoreError> {
    database.execute("DELETE FROM node WHERE id = $1", &[Value::Text(id.as_str())]).map(|_| ())
}

pub(crate) fn read<D: Database>(database: &mut D, key: Option<&str>, take: Take<'_>) -> Result<(), StoreError> {
    const ALL: &str = "SELECT id, attestation_type, serial_number, expires_at, new_serial_number, new_expires_at, can_reattest,
        selectors FROM node";
    const ONE: &str = "SELECT id, attestation_type, serial_number, expires_at, new_serial_number, new_expires_at, can_reattest,
        selectors FROM node WHERE id = $1";
    let mut each = |row: &dyn Row| take(Change::NodePut(Arc::new(from_row(row)?)));
    match key {
        Some(key) => database.query(ONE, &[Value::Text(key)], &mut each),
        None => database.query(ALL, &[], &mut each),
    }
}

fn from_row(row: &dyn Row) -> Result<Node, StoreError> {
    Ok(Node {
        id: spiffe_id(row.text(0)?)?,
        attestation_type: row.text(1)?.into(),
        serial_number: row.text(2)?.to_owned(),
        expires_at: time(row.int(3)?),
        new_serial_number: row.text(4)?.to_owned(),
        new_expires_at: time(row.int(5)?),
        can_reattest: row.int(6)? != 0,
        selectors: selectors(row.text(7)?)?,
    })
}
