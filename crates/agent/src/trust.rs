//! The bundle that an operator gave the agent, and when it may take the place of what the agent knows by now.

use std::path::Path;

use countersign_identity::bundle::BUNDLE_BYTES_MAX;
use countersign_identity::x509::Certificate;
use countersign_identity::{Bundle, Timestamp};

/// Reads a file, as far as a bundle may be long; what is cut off is no bundle.
///
/// # Errors
/// What the system says.
pub(crate) fn read_limited(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let limit = u64::try_from(BUNDLE_BYTES_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// What of a file may be believed by an agent that holds a bundle of its server: the authorities it holds anyway, and those
/// that begin later than all of them and all it has seen, whether or not they still count. Nothing, if none does.
///
/// INVARIANT: an authority that the server has withdrawn never comes back from a file that nobody has kept new; whoever stole
/// its key waits for exactly that. A server withdraws an authority only when its successor is published, which begins later.
/// Tests `an_authority_that_was_withdrawn_does_not_come_back_from_an_old_file` and
/// `an_authority_that_has_ended_still_says_what_is_too_old`.
pub(crate) fn successor(held: &Bundle, seen: &Bundle, found: &Bundle) -> Option<Bundle> {
    let newest = newest(held).max(newest(seen));
    let mut kept = Bundle::empty(held.trust_domain().clone());
    let mut has_news = false;
    for authority in found.x509_authorities() {
        let known = held.x509_authorities().iter().find(|h| h.certificate.der() == authority.certificate.der());
        let is_newer = newest.is_none_or(|newest| authority.certificate.not_before > newest);
        if known.is_some() || is_newer {
            let tainted = authority.tainted || known.is_some_and(|k| k.tainted);
            kept.add_x509_authority(authority.certificate.clone(), tainted).ok()?;
            has_news |= known.is_none();
        }
    }
    has_news.then_some(kept)
}

/// Roots seen before that have ended and begin later than all that are held. They prove nothing any more, and are kept because
/// they say which authorities of a file are too old to be believed.
pub(crate) fn ended_last(held: &Bundle, seen: &Bundle, now: Timestamp) -> Vec<Certificate> {
    let newest = newest(held);
    let seen = seen.x509_authorities().iter().map(|a| &a.certificate);
    seen.filter(|c| c.not_after <= now && Some(c.not_before) > newest).cloned().collect()
}

fn newest(bundle: &Bundle) -> Option<Timestamp> {
    bundle.x509_authorities().iter().map(|a| a.certificate.not_before).max()
}
