//! What one message of the Workload API gives a program that reads files: checked, chosen, and as the bytes of the files.

use countersign_identity::x509::Certificate;
use countersign_identity::{SpiffeId, Timestamp, pem};
use countersign_plugins::keys::KeyPair;
use countersign_wire::workload as wire;
use zeroize::Zeroizing;

/// Most SVIDs written: SPIFFE client libraries take no more in a message either.
const SVIDS_MAX: usize = 100;

/// Which of the workload's SVIDs are wanted.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Choice {
    /// Only the SVID with this identity
    #[arg(long, value_name = "ID")]
    pub(crate) spiffe_id: Option<SpiffeId>,
    /// Only the SVIDs with this hint
    #[arg(long, value_name = "HINT")]
    pub(crate) hint: Option<String>,
}

impl Choice {
    /// Drops the SVIDs that are not wanted. Says what there was if none is left.
    pub(crate) fn apply(&self, svids: &mut Vec<wire::X509svid>) -> Result<(), String> {
        let names: Vec<String> = svids.iter().map(|s| format!("`{}`", s.spiffe_id)).collect();
        let id = self.spiffe_id.as_ref().map(ToString::to_string);
        let fits = |svid: &wire::X509svid| {
            id.as_ref().is_none_or(|id| *id == svid.spiffe_id) && self.hint.as_ref().is_none_or(|hint| *hint == svid.hint)
        };
        // Those that go carry keys as well.
        for svid in svids.iter_mut().filter(|s| !fits(s)) {
            drop(Zeroizing::new(std::mem::take(&mut svid.x509_svid_key)));
        }
        svids.retain(fits);
        if svids.is_empty() {
            return Err(format!("no SVID with the identity or hint asked for; the agent sent {}", names.join(", ")));
        }
        Ok(())
    }
}

/// One SVID as the contents of its files.
#[derive(PartialEq, Eq)]
pub(super) struct Svid {
    pub(super) spiffe_id: String,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
    pub(super) chain: String,
    pub(super) key: Zeroizing<String>,
    pub(super) bundle: String,
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid").field("spiffe_id", &self.spiffe_id).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// The SVIDs of a message that are wanted, in the agent's order; the first is the one with the stable names.
/// A message of which one part is unusable is refused whole: the files must not mix it with what came before.
pub(super) fn read(message: wire::X509svidResponse, choice: &Choice) -> Result<Vec<Svid>, String> {
    let mut svids = message.svids;
    if svids.len() > SVIDS_MAX {
        return Err(format!("the agent sent {} SVIDs, more than the {SVIDS_MAX} allowed", svids.len()));
    }
    choice.apply(&mut svids)?;
    // All keys at once: none may stay in memory because another SVID is unusable.
    let keys: Vec<_> = svids.iter_mut().map(|svid| Zeroizing::new(std::mem::take(&mut svid.x509_svid_key))).collect();
    svids.into_iter().zip(keys).map(|(svid, key)| read_one(svid, &key)).collect()
}

fn read_one(svid: wire::X509svid, key: &[u8]) -> Result<Svid, String> {
    let unusable = |what: &str, why: String| format!("the agent sent an unusable {what} for `{}`: {why}", svid.spiffe_id);
    let chain = Certificate::parse_concatenated(&svid.x509_svid).map_err(|e| unusable("certificate", e.to_string()))?;
    let bundle = Certificate::parse_concatenated(&svid.bundle).map_err(|e| unusable("bundle", e.to_string()))?;
    let leaf = chain.first().ok_or_else(|| unusable("certificate", "there is none".to_owned()))?;
    if bundle.is_empty() {
        return Err(unusable("bundle", "it is empty".to_owned()));
    }
    let pair = KeyPair::from_pkcs8(key).map_err(|e| unusable("key", e.to_string()))?;
    if *pair.public_key() != leaf.public_key {
        return Err(unusable("key", "it is not the certificate's".to_owned()));
    }
    let text = |certificates: &[Certificate]| certificates.iter().map(|c| pem::write("CERTIFICATE", c.der())).collect();
    Ok(Svid {
        not_before: leaf.not_before,
        not_after: leaf.not_after,
        chain: text(&chain),
        key: Zeroizing::new(pem::write("PRIVATE KEY", key)),
        bundle: text(&bundle),
        spiffe_id: svid.spiffe_id,
    })
}
