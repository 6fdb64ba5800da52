//! What the conformance suite attacks: nodes with certificates of one authority, and keys of both kinds of signature.

use std::collections::HashSet;
use std::path::Path;

use countersign_identity::Timestamp;

use super::pki;
use crate::node::conformance::{Halves, circumstances};

pub(in crate::node::x509pop) fn halves() -> Vec<Halves> {
    // The unused sibling in each message is there as null, as in SPIRE; its name is not looked at.
    let kinds: [(_, &'static [&'static str]); 2] =
        [(&rcgen::PKCS_ECDSA_P256_SHA256, &["rsa_signature"]), (&rcgen::PKCS_RSA_SHA256, &["ecdsa_signature"])];
    let pair = |(algorithm, idle)| {
        let (own, theirs, ca) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = pki::root("Root");
        let of = |name: &str, place: &Path| {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let leaf = pki::leaf_of(&root, &pki::leaf_params(name), key);
            Box::new(pki::agent(place, &[&leaf.der], &leaf.key))
        };
        Halves {
            server: Box::new(pki::server(ca.path(), &[&root], "")),
            agent: of("node", own.path()),
            stranger: of("stranger", theirs.path()),
            circumstances: circumstances(),
            over: Ok(Timestamp::from_secs(2_100_000_000)),
            challenges: 1,
            redeemable: HashSet::new(),
            idle,
            files: vec![own, theirs, ca],
        }
    };
    kinds.into_iter().map(pair).collect()
}
