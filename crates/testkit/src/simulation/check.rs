//! What is compared with the journal: every credential that anybody was ever given.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_identity::x509::{Certificate, verify_chain};
use countersign_identity::{Bundle, BundleSet, Timestamp};
use countersign_plugins::keys::{KeyPair, sha256};
use countersign_server::audit;
use countersign_wire::journal::{Kind, Record};
use countersign_wire::workload::X509svid;

use crate::domain::{Anyhow, trust_domain};

/// More than a run ever makes; the journal answers with no more.
const RECORDS_MAX: usize = 10_000;

/// Something that was given to somebody.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) kind: Kind,
    pub(super) spiffe_id: String,
    /// Serial number of a certificate, digest of the signed bytes of a token.
    pub(super) mark: String,
    /// The node it was given on, or that it was given to.
    pub(super) node: String,
    /// Entries it may be of; any for a node.
    pub(super) entries: Option<BTreeSet<String>>,
}

/// The records of the journal, by what was given.
pub(super) struct Records(HashMap<String, Record>);

impl Records {
    /// Reads the whole journal as it is on the disk now.
    pub(super) fn read(directory: &Path) -> Result<Self, Anyhow> {
        let query = audit::Query { limit: RECORDS_MAX, ..audit::Query::default() };
        let answer = audit::search(&directory.join("server/journal"), &query)?;
        if !answer.damage.is_empty() {
            return Err(format!("the journal is damaged: {:?}", answer.damage).into());
        }
        let mark = |record: &Record| match record.kind() {
            Kind::WorkloadJwt => hex(&record.body_sha256),
            _ => record.serial_or_jti.clone(),
        };
        Ok(Self(answer.records.into_iter().map(|record| (mark(&record), record)).collect()))
    }

    /// Whether it was written down, and rightly.
    pub(super) fn check(&self, given: &Given) -> Result<(), String> {
        let Some(record) = self.0.get(&given.mark) else {
            return Err(format!("{given:?} is not in the journal"));
        };
        let is_right = record.kind() == given.kind
            && record.spiffe_id == given.spiffe_id
            && match &given.entries {
                Some(entries) => record.agent_id == given.node && entries.contains(&record.entry_id),
                None => record.spiffe_id == given.node,
            };
        if is_right { Ok(()) } else { Err(format!("{given:?} is in the journal as {record:?}")) }
    }
}

/// What is looked at in a certificate.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    pub(super) serial_number: String,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
}

/// SVIDs that were looked at before: the same one is shown again and again.
#[derive(Debug, Default)]
pub(super) struct Verified(HashMap<(Vec<u8>, Vec<u8>), Leaf>);

impl Verified {
    /// Checks an SVID as a careful client does, but for the time.
    pub(super) fn look(&mut self, svid: &X509svid) -> Result<Leaf, Anyhow> {
        let key = (svid.x509_svid.clone(), svid.bundle.clone());
        if let Some(leaf) = self.0.get(&key) {
            return Ok(leaf.clone());
        }
        let leaf = verify(svid)?;
        let leaf = Leaf { serial_number: leaf.serial_decimal(), not_before: leaf.not_before, not_after: leaf.not_after };
        self.0.insert(key, leaf.clone());
        Ok(leaf)
    }
}

fn verify(svid: &X509svid) -> Result<Certificate, Anyhow> {
    let chain = Certificate::parse_concatenated(&svid.x509_svid)?;
    let leaf = chain.first().ok_or("an empty chain")?.clone();
    let mut bundle = Bundle::empty(trust_domain());
    for authority in Certificate::parse_concatenated(&svid.bundle)? {
        bundle.add_x509_authority(authority, false)?;
    }
    // Whether it is in force is looked at where clocks are known to be right.
    let ders: Vec<&[u8]> = chain.iter().map(Certificate::der).collect();
    verify_chain(&ders, &BundleSet::from_iter([Arc::new(bundle)]), leaf.not_before).map_err(|e| format!("{}: {e}", svid.spiffe_id))?;
    if leaf.spiffe_id().is_none_or(|id| id.as_str() != svid.spiffe_id) {
        return Err(format!("the SVID of `{}` names {:?}", svid.spiffe_id, leaf.uris).into());
    }
    if *KeyPair::from_pkcs8(&svid.x509_svid_key)?.public_key() != leaf.public_key {
        return Err(format!("the key of `{}` is not the SVID's", svid.spiffe_id).into());
    }
    Ok(leaf)
}

/// What the journal knows a token by, and its end.
pub(super) fn token(token: &str) -> Result<(String, i64), Anyhow> {
    let (signed, _) = token.rsplit_once('.').ok_or("a token without signature")?;
    let (_, claims) = signed.rsplit_once('.').ok_or("a token without claims")?;
    let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    let end = claims.get("exp").and_then(serde_json::Value::as_i64).ok_or("a token without end")?;
    Ok((hex(&sha256(signed.as_bytes())), end))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
