//! The tables, one file a noun: its columns, and how a row is written and read.

pub(crate) mod authority;
pub(crate) mod bundle;
pub(crate) mod entry;
pub(crate) mod federation_relationship;
pub(crate) mod head;
pub(crate) mod join_token;
pub(crate) mod node;
pub(crate) mod seen;

use countersign_identity::{Selector, SpiffeId, Timestamp};
use serde_json::Value as Json;

use crate::dialect::Database;
use crate::error::StoreError;
use crate::log::{Change, Noun};

/// Version of the tables there always were. A store with a newer one is refused.
pub(crate) const SCHEMA_VERSION: i64 = 1;
/// Which kinds of records this program knows. A store in whose log newer kinds were written is refused, so that the program
/// before this one can be put back until then.
pub(crate) const READER_VERSION: i64 = 2;

/// Creates every table.
pub(crate) fn create<D: Database>(database: &mut D) -> Result<(), StoreError> {
    for schema in [head::SCHEMA, entry::SCHEMA, node::SCHEMA, bundle::SCHEMA, authority::SCHEMA, join_token::SCHEMA, seen::SCHEMA] {
        database.define(&schema.replace("BYTES", D::BLOB).replace("KEYED", D::KEYED))?;
    }
    create_later(database)
}

/// Creates the tables that a store of an earlier version lacks. Programs that do not know them pass over them.
pub(crate) fn create_later<D: Database>(database: &mut D) -> Result<(), StoreError> {
    database.define(federation_relationship::SCHEMA)
}

/// Writes the row of one change.
pub(crate) fn write<D: Database>(database: &mut D, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::EntryPut(entry) => entry::put(database, entry),
        Change::EntryDelete(id) => entry::delete(database, id),
        Change::NodePut(node) => node::put(database, node),
        Change::NodeDelete(id) => node::delete(database, id),
        Change::BundlePut(bundle) => bundle::put(database, bundle),
        Change::BundleDelete(name) => bundle::delete(database, name),
        Change::AuthorityPut(authority) => authority::put(database, authority),
        Change::AuthorityDelete(id) => authority::delete(database, id),
        Change::FederationRelationshipPut(relationship) => federation_relationship::put(database, relationship),
        Change::FederationRelationshipDelete(name) => federation_relationship::delete(database, name),
    }
}

/// Reads the row of one key as a change: put if it is there, delete if it is not.
pub(crate) fn read<D: Database>(database: &mut D, noun: Noun, key: &str) -> Result<Change, StoreError> {
    let mut found = None;
    let mut take = |change| {
        found = Some(change);
        Ok(())
    };
    match noun {
        Noun::Entry => entry::read(database, Some(key), &mut take)?,
        Noun::Node => node::read(database, Some(key), &mut take)?,
        Noun::Bundle => bundle::read(database, Some(key), &mut take)?,
        Noun::Authority => authority::read(database, Some(key), &mut take)?,
        Noun::FederationRelationship => federation_relationship::read(database, Some(key), &mut take)?,
    }
    Ok(match found {
        Some(change) => change,
        None => match noun {
            Noun::Entry => Change::EntryDelete(key.into()),
            Noun::Node => Change::NodeDelete(spiffe_id(key)?),
            Noun::Bundle => Change::BundleDelete(key.into()),
            Noun::Authority => Change::AuthorityDelete(key.into()),
            Noun::FederationRelationship => Change::FederationRelationshipDelete(key.into()),
        },
    })
}

/// Reads every row of desired state.
pub(crate) fn read_all<D: Database>(database: &mut D, take: Take<'_>) -> Result<(), StoreError> {
    bundle::read(database, None, take)?;
    authority::read(database, None, take)?;
    federation_relationship::read(database, None, take)?;
    node::read(database, None, take)?;
    entry::read(database, None, take)
}

/// What rows are handed to.
pub(crate) type Take<'a> = &'a mut dyn FnMut(Change) -> Result<(), StoreError>;

fn spiffe_id(text: &str) -> Result<SpiffeId, StoreError> {
    SpiffeId::parse(text).map_err(|e| StoreError::Corrupt(format!("`{text}` is not a SPIFFE ID: {e}")))
}

/// Whole seconds, 0 for none; the finest unit of registration data.
fn time(secs: i64) -> Timestamp {
    Timestamp::from_secs(secs)
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    Json::from(items.collect::<Vec<_>>()).to_string()
}

fn read_list<T>(text: &str, parse: impl Fn(&str) -> Result<T, StoreError>) -> Result<Vec<T>, StoreError> {
    let corrupt = || StoreError::Corrupt(format!("`{text}` is not a list of texts"));
    let Ok(Json::Array(items)) = serde_json::from_str(text) else { return Err(corrupt()) };
    items.iter().map(|item| item.as_str().ok_or_else(corrupt).and_then(&parse)).collect()
}

fn selectors(text: &str) -> Result<Vec<Selector>, StoreError> {
    read_list(text, |s| Selector::parse(s).map_err(|e| StoreError::Corrupt(e.to_string())))
}

/// A number that is stored as a 64-bit integer and was in range when it was written.
fn narrow<T: TryFrom<i64>>(number: i64) -> Result<T, StoreError> {
    T::try_from(number).map_err(|_| StoreError::Corrupt(format!("number {number} is out of range")))
}
