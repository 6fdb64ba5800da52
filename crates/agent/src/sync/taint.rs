//! Authorities that the server calls tainted: what they signed is replaced at once, and served until its successor is there.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use countersign_identity::key::hex;
use countersign_identity::x509::{Certificate, verify_chain};
use countersign_identity::{Bundle, BundleSet};

use super::Sync;
use crate::rotate::Rotator;

impl Sync {
    /// Replaces what is held of X.509 authorities that were tainted since the last look. Each is looked at once: a server that goes
    /// on signing with it would be asked again and again.
    pub(super) fn look_for_taints(&self, rotator: &Rotator) {
        let bundles = self.cache.bundles();
        let Some(own) = bundles.get(self.node.trust_domain().name()) else { return };
        let mut tainted = Bundle::empty(own.trust_domain().clone());
        let mut names = BTreeSet::new();
        {
            let mut seen = self.tainted.lock().unwrap_or_else(PoisonError::into_inner);
            for authority in own.x509_authorities().iter().filter(|a| a.tainted) {
                let certificate = &authority.certificate;
                if seen.insert(certificate.der().to_vec()) {
                    names.insert(certificate.key_id.as_deref().map(hex).unwrap_or_default());
                    // Not more than the bundle has they come from.
                    let _ = tainted.add_x509_authority(certificate.clone(), true);
                }
            }
            // What left the bundle vouches for nothing any more.
            seen.retain(|der| own.x509_authorities().iter().any(|a| a.certificate.der() == der.as_slice()));
        }
        if names.is_empty() {
            return;
        }
        let names = names.into_iter().collect::<Vec<_>>().join(",");
        tracing::debug!(subject_key_ids = names, "New tainted X.509 authorities found");
        let tainted = BundleSet::from_iter([Arc::new(tainted)]);
        let now = self.clock.now();
        let held = self.cache.svids();
        let is_tainted = |chain: &[u8]| {
            let chain = Certificate::parse_concatenated(chain).unwrap_or_default();
            let chain: Vec<&[u8]> = chain.iter().map(Certificate::der).collect();
            verify_chain(&chain, &tainted, now).is_ok()
        };
        let ids: Vec<Arc<str>> = held.into_iter().filter(|(_, svid)| is_tainted(&svid.chain)).map(|(id, _)| id).collect();
        if !ids.is_empty() {
            tracing::info!(tainted_x509_svids = ids.len(), "Tainted X.509 SVIDs");
            rotator.replace(&ids);
        }
        if self.svid().is_some_and(|svid| is_tainted(&svid.chain.concat())) {
            tracing::info!("Agent SVID is tainted by a root authority, forcing rotation");
            self.renew_now.notify_one();
        }
    }
}
