//! Files with entries, and with IDs of entries, in SPIRE's form.

use std::path::Path;

use countersign_identity::SpiffeId;
use countersign_wire::{id, types};
use serde_json::Value;

use crate::output::Failure;

/// What becomes of members of an entry that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnknownMembers {
    /// They are an error: somebody mistyped.
    Refused,
    /// As SPIRE does, for files that were written for it.
    Ignored,
}

/// `{"entries": […]}` in SPIRE's form, with SPIFFE IDs as texts.
pub(crate) fn read_entries(path: &Path, unknown: UnknownMembers) -> Result<Vec<types::Entry>, Failure> {
    let value = read_json(path)?;
    let entries = value.get("entries").and_then(Value::as_array).ok_or_else(|| Failure::new("the file has no `entries` list"))?;
    let read = |(index, e)| read_entry(e, unknown).map_err(|what| Failure::new(format!("entry {index}: {what}")));
    entries.iter().enumerate().map(read).collect()
}

/// IDs from `{"ids": […]}`.
pub(crate) fn read_ids(path: &Path) -> Result<Vec<String>, Failure> {
    let value = read_json(path)?;
    let listed = value.get("ids").and_then(Value::as_array).ok_or_else(|| Failure::new("the file has no `ids` list"))?;
    Ok(listed.iter().filter_map(|v| v.as_str().map(ToOwned::to_owned)).collect())
}

fn read_json(path: &Path) -> Result<Value, Failure> {
    let failed = |e: String| Failure::new(format!("cannot read `{}`: {e}", path.display()));
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).map_err(|e| failed(e.to_string()))?
    } else {
        std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?
    };
    serde_json::from_str(&text).map_err(|e| failed(e.to_string()))
}

fn read_entry(value: &Value, unknown: UnknownMembers) -> Result<types::Entry, String> {
    let members = value.as_object().ok_or("it is not an object")?;
    let known = [
        "selectors",
        "spiffe_id",
        "parent_id",
        "x509_svid_ttl",
        "jwt_svid_ttl",
        "federates_with",
        "entry_id",
        "admin",
        "downstream",
        "entryExpiry",
        "dns_names",
        "revision_number",
        "store_svid",
        "hint",
        "created_at",
        "additional_attributes",
    ];
    if let Some(name) = members.keys().find(|k| !known.contains(&k.as_str()))
        && unknown == UnknownMembers::Refused
    {
        return Err(format!("unknown member `{name}`"));
    }
    let text = |name: &str| members.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let flag = |name: &str| members.get(name).and_then(Value::as_bool).unwrap_or(false);
    let number = |name: &str| members.get(name).and_then(Value::as_i64).unwrap_or(0);
    let list = |name: &str| -> Vec<String> {
        members.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(|v| v.as_str().map(ToOwned::to_owned)).collect()
    };
    let parse = |name: &str| SpiffeId::parse(&text(name)).map(|id| Some(id::to_wire(&id))).map_err(|e| format!("{name}: {e}"));
    let part = |s: &Value, name: &str| s.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let extra = members.get("additional_attributes").filter(|v| v.is_object()).map(|v| types::entry::AdditionalAttributes {
        disable_x509_svid_prefetch: v.get("disable_x509_svid_prefetch").and_then(Value::as_bool).unwrap_or(false),
        jwt_svid_include_jti: v.get("jwt_svid_include_jti").and_then(Value::as_bool).unwrap_or(false),
    });
    Ok(types::Entry {
        id: text("entry_id"),
        spiffe_id: parse("spiffe_id")?,
        parent_id: parse("parent_id")?,
        selectors: members
            .get("selectors")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|s| types::Selector { r#type: part(s, "type"), value: part(s, "value") })
            .collect(),
        x509_svid_ttl: i32::try_from(number("x509_svid_ttl")).map_err(|_| "x509_svid_ttl is out of range")?,
        jwt_svid_ttl: i32::try_from(number("jwt_svid_ttl")).map_err(|_| "jwt_svid_ttl is out of range")?,
        federates_with: list("federates_with"),
        admin: flag("admin"),
        downstream: flag("downstream"),
        expires_at: number("entryExpiry"),
        dns_names: list("dns_names"),
        revision_number: 0,
        store_svid: flag("store_svid"),
        hint: text("hint"),
        created_at: 0,
        additional_attributes: extra,
    })
}
