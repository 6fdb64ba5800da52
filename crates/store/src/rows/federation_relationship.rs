//! Federation relationships: one row for each other trust domain.

use std::sync::Arc;

use countersign_identity::federation::{EndpointProfile, EndpointUrl};
use countersign_identity::{FederationRelationship, TrustDomain};

use super::{Take, spiffe_id};
use crate::dialect::{Database, Row, Value};
use crate::error::StoreError;
use crate::log::Change;

pub(crate) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS federation_relationship (
    trust_domain TEXT PRIMARY KEY,
    bundle_endpoint_url TEXT NOT NULL,
    bundle_endpoint_profile BIGINT NOT NULL,
    endpoint_spiffe_id TEXT
);
";

pub(crate) fn put<D: Database>(database: &mut D, relationship: &FederationRelationship) -> Result<(), StoreError> {
    let (profile, endpoint) = match &relationship.bundle_endpoint_profile {
        EndpointProfile::HttpsWeb => (1, Value::Null),
        EndpointProfile::HttpsSpiffe { endpoint_spiffe_id } => (2, Value::Text(endpoint_spiffe_id.as_str())),
    };
    database
        .execute(
            "INSERT INTO federation_relationship (trust_domain, bundle_endpoint_url, bundle_endpoint_profile, endpoint_spiffe_id)
             VALUES ($1, $2, $3, $4)
             ON CONFLICT (trust_domain) DO UPDATE SET bundle_endpoint_url = excluded.bundle_endpoint_url,
                 bundle_endpoint_profile = excluded.bundle_endpoint_profile, endpoint_spiffe_id = excluded.endpoint_spiffe_id",
            &[
                Value::Text(relationship.trust_domain.name()),
                Value::Text(relationship.bundle_endpoint_url.as_str()),
                Value::Int(profile),
                endpoint,
            ],
        )
        .map(|_| ())
}

pub(crate) fn delete<D: Database>(database: &mut D, name: &str) -> Result<(), StoreError> {
    database.execute("DELETE FROM federation_relationship WHERE trust_domain = $1", &[Value::Text(name)]).map(|_| ())
}

pub(crate) fn read<D: Database>(database: &mut D, key: Option<&str>, take: Take<'_>) -> Result<(), StoreError> {
    const ALL: &str = "SELECT trust_domain, bundle_endpoint_url, bundle_endpoint_profile, endpoint_spiffe_id FROM federation_relationship";
    const ONE: &str = "SELECT trust_domain, bundle_endpoint_url, bundle_endpoint_profile, endpoint_spiffe_id \
        FROM federation_relationship WHERE trust_domain = $1";
    let mut each = |row: &dyn Row| take(Change::FederationRelationshipPut(Arc::new(from_row(row)?)));
    match key {
        Some(key) => database.query(ONE, &[Value::Text(key)], &mut each),
        None => database.query(ALL, &[], &mut each),
    }
}

fn from_row(row: &dyn Row) -> Result<FederationRelationship, StoreError> {
    let name = row.text(0)?;
    let corrupt = |what: String| StoreError::Corrupt(format!("federation relationship with `{name}`: {what}"));
    Ok(FederationRelationship {
        trust_domain: TrustDomain::parse(name).map_err(|e| corrupt(e.to_string()))?,
        bundle_endpoint_url: EndpointUrl::parse(row.text(1)?).map_err(|e| corrupt(e.to_string()))?,
        bundle_endpoint_profile: match row.int(2)? {
            1 => EndpointProfile::HttpsWeb,
            2 => EndpointProfile::HttpsSpiffe { endpoint_spiffe_id: spiffe_id(row.text(3)?)? },
            other => return Err(corrupt(format!("unknown profile {other}"))),
        },
    })
}
