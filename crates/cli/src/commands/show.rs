//! How entries, agents and bundles look: SPIRE's blocks for people, proto field names for programs.

use countersign_wire::types;
use serde_json::{Value, json};

use crate::output::Block;

pub(crate) fn spiffe_id(id: Option<&types::Spiffeid>) -> String {
    id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path)).unwrap_or_default()
}

fn id_json(id: Option<&types::Spiffeid>) -> Value {
    id.map_or(Value::Null, |id| json!({"trust_domain": id.trust_domain, "path": id.path}))
}

pub(crate) fn selectors_json(selectors: &[types::Selector]) -> Value {
    selectors.iter().map(|s| json!({"type": s.r#type, "value": s.value})).collect()
}

pub(crate) fn entry(entry: &types::Entry, time: fn(i64) -> String) -> String {
    let mut block = Block::new(24);
    let ttl = |secs: i32| if secs == 0 { "default".to_owned() } else { secs.to_string() };
    block.row("Entry ID", if entry.id.is_empty() { "(none)" } else { &entry.id });
    block.row("SPIFFE ID", spiffe_id(entry.spiffe_id.as_ref()));
    block.row("Parent ID", spiffe_id(entry.parent_id.as_ref()));
    block.row("Revision", entry.revision_number);
    if entry.downstream {
        block.row("Downstream", true);
    }
    block.row("X509-SVID TTL", ttl(entry.x509_svid_ttl));
    block.row("JWT-SVID TTL", ttl(entry.jwt_svid_ttl));
    if entry.expires_at != 0 {
        block.row("Expiration time", time(entry.expires_at));
    }
    for selector in &entry.selectors {
        block.row("Selector", format!("{}:{}", selector.r#type, selector.value));
    }
    for name in &entry.federates_with {
        block.row("FederatesWith", name);
    }
    for name in &entry.dns_names {
        block.row("DNS name", name);
    }
    if entry.admin {
        block.row("Admin", true);
    }
    if entry.store_svid {
        block.row("StoreSvid", true);
    }
    if !entry.hint.is_empty() {
        block.row("Hint", &entry.hint);
    }
    let extra = entry.additional_attributes.unwrap_or_default();
    if extra.disable_x509_svid_prefetch {
        block.row("DisableX509SvidPrefetch", true);
    }
    if extra.jwt_svid_include_jti {
        block.row("JwtSvidIncludeJti", true);
    }
    block.finish()
}

pub(crate) fn entry_json(entry: &types::Entry) -> Value {
    let extra = entry.additional_attributes.as_ref();
    json!({
        "id": entry.id,
        "spiffe_id": id_json(entry.spiffe_id.as_ref()),
        "parent_id": id_json(entry.parent_id.as_ref()),
        "selectors": selectors_json(&entry.selectors),
        "x509_svid_ttl": entry.x509_svid_ttl,
        "jwt_svid_ttl": entry.jwt_svid_ttl,
        "federates_with": entry.federates_with,
        "admin": entry.admin,
        "downstream": entry.downstream,
        "expires_at": entry.expires_at.to_string(),
        "dns_names": entry.dns_names,
        "revision_number": entry.revision_number.to_string(),
        "store_svid": entry.store_svid,
        "hint": entry.hint,
        "created_at": entry.created_at.to_string(),
        "additional_attributes": extra.map(|e| json!({
            "disable_x509_svid_prefetch": e.disable_x509_svid_prefetch, "jwt_svid_include_jti": e.jwt_svid_include_jti})),
    })
}

pub(crate) fn agent(agent: &types::Agent, with_selectors: bool, time: fn(i64) -> String) -> String {
    let mut block = Block::new(18);
    block.row("SPIFFE ID", spiffe_id(agent.id.as_ref()));
    block.row("Attestation type", &agent.attestation_type);
    block.row("Expiration time", time(agent.x509svid_expires_at));
    if agent.banned {
        block.row("Banned", true);
    } else {
        block.row("Serial number", &agent.x509svid_serial_number);
    }
    block.row("Can re-attest", agent.can_reattest);
    if !agent.agent_version.is_empty() {
        block.row("Agent version", &agent.agent_version);
    }
    let mut text = block.finish();
    if with_selectors && !agent.selectors.is_empty() {
        let mut block = Block::new(18);
        for selector in &agent.selectors {
            block.row("Selectors", format!("{}:{}", selector.r#type, selector.value));
        }
        text += block.finish().trim_end_matches('\n');
        text.push('\n');
    }
    text
}

pub(crate) fn agent_json(agent: &types::Agent) -> Value {
    json!({
        "id": id_json(agent.id.as_ref()),
        "attestation_type": agent.attestation_type,
        "x509svid_serial_number": agent.x509svid_serial_number,
        "x509svid_expires_at": agent.x509svid_expires_at.to_string(),
        "selectors": selectors_json(&agent.selectors),
        "banned": agent.banned,
        "can_reattest": agent.can_reattest,
        "agent_version": agent.agent_version,
    })
}
