//! Bundles: one row a trust domain, authorities as JSON lists with their taints.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::bundle::{Bundle, JwtAuthority};
use countersign_identity::key::PublicKey;
use countersign_identity::x509::Certificate;
use countersign_identity::{Timestamp, TrustDomain};
use serde_json::{Value as Json, json};

use super::{Take, narrow};
use crate::dialect::{Database, Row, Value};
use crate::error::StoreError;
use crate::log::Change;

pub(crate) const SCHEMA: &str = "
CREATE TABLE bundle (
    trust_domain TEXT PRIMARY KEY,
    x509_authorities TEXT NOT NULL,
    jwt_authorities TEXT NOT NULL,
    refresh_hint_secs BIGINT,
    sequence_number BIGINT NOT NULL
);
";

pub(crate) fn put<D: Database>(database: &mut D, bundle: &Bundle) -> Result<(), StoreError> {
    let x509: Json =
        bundle.x509_authorities().iter().map(|a| json!({"der": STANDARD.encode(a.certificate.der()), "tainted": a.tainted})).collect();
    let jwt: Json = bundle
        .jwt_authorities()
        .iter()
        .map(|a| {
            json!({"kid": a.key_id, "spki": STANDARD.encode(a.public_key.spki()), "expires_at": a.expires_at.map(Timestamp::secs),
                "tainted": a.tainted})
        })
        .collect();
    let hint = bundle.refresh_hint.map_or(Value::Null, |h| Value::Int(i64::try_from(h.as_secs()).unwrap_or(i64::MAX)));
    database
        .execute(
            "INSERT INTO bundle (trust_domain, x509_authorities, jwt_authorities, refresh_hint_secs, sequence_number)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (trust_domain) DO UPDATE SET x509_authorities = excluded.x509_authorities,
                 jwt_authorities = excluded.jwt_authorities, refresh_hint_secs = excluded.refresh_hint_secs,
                 sequence_number = excluded.sequence_number",
            &[
                Value::Text(bundle.trust_domain().name()),
                Value::Text(&x509.to_string()),
                Value::Text(&jwt.to_string()),
                hint,
                // Two's complement keeps all 64 bits of the sequence.
                Value::Int(bundle.sequence_number.cast_signed()),
            ],
        )
        .map(|_| ())
}

pub(crate) fn delete<D: Database>(database: &mut D, name: &str) -> Result<(), StoreError> {
    database.execute("DELETE FROM bundle WHERE trust_domain = $1", &[Value::Text(name)]).map(|_| ())
}

pub(crate) fn read<D: Database>(database: &mut D, key: Option<&str>, take: Take<'_>) -> Result<(), StoreError> {
    const ALL: &str = "SELECT trust_domain, x509_authorities, jwt_authorities, refresh_hint_secs, sequence_number FROM bundle";
    const ONE: &str =
        "SELECT trust_domain, x509_authorities, jwt_authorities, refresh_hint_secs, sequence_number FROM bundle WHERE trust_domain = $1";
    let mut each = |row: &dyn Row| take(Change::BundlePut(Arc::new(from_row(row)?)));
    match key {
        Some(key) => database.query(ONE, &[Value::Text(key)], &mut each),
        None => database.query(ALL, &[], &mut each),
    }
}

fn from_row(row: &dyn Row) -> Result<Bundle, StoreError> {
    let name = row.text(0)?;
    let corrupt = |what: &str| StoreError::Corrupt(format!("bundle of `{name}`: {what}"));
    let mut bundle = Bundle::empty(TrustDomain::parse(name).map_err(|e| corrupt(&e.to_string()))?);
    let items = |text: &str| match serde_json::from_str(text) {
        Ok(Json::Array(items)) => Ok(items),
        _ => Err(corrupt("authorities are not a list")),
    };
    let tainted = |item: &Json| item.get("tainted").and_then(Json::as_bool).unwrap_or(false);
    let bytes = |item: &Json, member: &str| {
        item.get(member).and_then(Json::as_str).and_then(|t| STANDARD.decode(t).ok()).ok_or_else(|| corrupt("an authority is not base64"))
    };
    for item in items(row.text(1)?)? {
        let certificate = Certificate::parse(&bytes(&item, "der")?).map_err(|e| corrupt(&e.to_string()))?;
        bundle.add_x509_authority(certificate, tainted(&item)).map_err(|e| corrupt(&e.to_string()))?;
    }
    for item in items(row.text(2)?)? {
        let authority = JwtAuthority {
            key_id: item.get("kid").and_then(Json::as_str).ok_or_else(|| corrupt("a key has no name"))?.to_owned(),
            public_key: PublicKey::from_spki(&bytes(&item, "spki")?).map_err(|e| corrupt(&e.to_string()))?,
            expires_at: item.get("expires_at").and_then(Json::as_i64).map(Timestamp::from_secs),
            tainted: tainted(&item),
        };
        bundle.add_jwt_authority(authority).map_err(|e| corrupt(&e.to_string()))?;
    }
    if !row.is_null(3) {
        bundle.refresh_hint = Some(Duration::from_secs(narrow(row.int(3)?)?));
    }
    bundle.sequence_number = row.int(4)?.cast_unsigned();
    Ok(bundle)
}
