//! What workloads are answered: messages made from what the cache holds. Every message is the whole state.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use countersign_identity::{Bundle, BundleSet, TrustDomain};
use countersign_wire::workload::{JwtBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse};

use crate::cache::{Identity, Svid};

/// What a stream sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    X509Svids,
    X509Bundles,
    JwtBundles,
}

/// The bundles a caller with these identities may use: the own one and those its entries federate with.
pub(super) fn bundles_of(identities: &[Identity], all: &BundleSet, own: &TrustDomain) -> BTreeMap<String, Arc<Bundle>> {
    let mut found = BTreeMap::new();
    let foreign = identities.iter().flat_map(|i| &i.entry.federates_with).map(TrustDomain::name);
    for name in std::iter::once(own.name()).chain(foreign) {
        if let Some(bundle) = all.get(name) {
            found.insert(format!("spiffe://{name}"), Arc::clone(bundle));
        }
    }
    found
}

/// Every identity that has an SVID, with keys and bundles.
pub(super) fn x509_svids(identities: &[Identity], all: &BundleSet, own: &TrustDomain) -> X509svidResponse {
    tracing::trace!(hop = "makes the message");
    let own_bundle = all.get(own.name()).map(|b| b.x509_der()).unwrap_or_default();
    let svids = identities
        .iter()
        .filter_map(|i| i.svid.as_ref().map(|svid| (i, svid)))
        .map(|(i, svid)| X509svid {
            spiffe_id: svid.spiffe_id.as_str().to_owned(),
            x509_svid: svid.chain.clone(),
            x509_svid_key: svid.key.to_vec(),
            bundle: own_bundle.clone(),
            hint: i.entry.hint.clone(),
        })
        .collect();
    let mut bundles = bundles_of(identities, all, own);
    bundles.remove(own.id().as_str());
    let federated_bundles = bundles.into_iter().map(|(id, bundle)| (id, bundle.x509_der())).collect();
    X509svidResponse { svids, crl: Vec::new(), federated_bundles }
}

/// X.509 bundles as concatenated DER.
pub(super) fn x509_bundles(bundles: &BTreeMap<String, Arc<Bundle>>) -> X509BundlesResponse {
    let bundles: HashMap<String, Vec<u8>> = bundles.iter().map(|(id, bundle)| (id.clone(), bundle.x509_der())).collect();
    X509BundlesResponse { crl: Vec::new(), bundles }
}

/// JWT keys as JWK Sets.
pub(super) fn jwt_bundles(bundles: &BTreeMap<String, Arc<Bundle>>) -> JwtBundlesResponse {
    let bundles = bundles.iter().map(|(id, bundle)| (id.clone(), bundle.to_jwt_jwks().to_string().into_bytes())).collect();
    JwtBundlesResponse { bundles }
}

/// What a message shows, to tell whether the next one would show anything else: a stream is told only what is new to it.
#[derive(Debug)]
pub(super) struct Fingerprint {
    /// Weak, so that a key is not kept for this, and that no other SVID takes its address meanwhile.
    svids: Vec<(Option<Weak<Svid>>, String)>,
    bundles: Vec<Arc<Bundle>>,
}

impl Fingerprint {
    pub(super) fn of(identities: &[Identity], bundles: &BTreeMap<String, Arc<Bundle>>) -> Self {
        Self {
            svids: identities.iter().map(|i| (i.svid.as_ref().map(Arc::downgrade), i.entry.hint.clone())).collect(),
            bundles: bundles.values().map(Arc::clone).collect(),
        }
    }

    /// Whether messages of this kind made from both show the same.
    pub(super) fn shows_same(&self, other: &Self, kind: Kind) -> bool {
        let same_svid = |a: &Option<Weak<Svid>>, b: &Option<Weak<Svid>>| match (a, b) {
            (Some(a), Some(b)) => a.ptr_eq(b),
            (a, b) => a.is_none() && b.is_none(),
        };
        let same_bundle = |a: &Arc<Bundle>, b: &Arc<Bundle>| {
            Arc::ptr_eq(a, b)
                || a.trust_domain() == b.trust_domain()
                    && match kind {
                        Kind::X509Svids | Kind::X509Bundles => a.x509_der() == b.x509_der(),
                        Kind::JwtBundles => a.to_jwt_jwks() == b.to_jwt_jwks(),
                    }
        };
        self.svids.len() == other.svids.len()
            && self.bundles.len() == other.bundles.len()
            && self.svids.iter().zip(&other.svids).all(|((a, hint_a), (b, hint_b))| same_svid(a, b) && hint_a == hint_b)
            && self.bundles.iter().zip(&other.bundles).all(|(a, b)| same_bundle(a, b))
    }
}
