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

#[cfg(test)]
mod tests {
    use countersign_testkit::scripted::{Authority, bundle_of};

    use super::*;

    /// One that begins at this second.
    fn authority(begins: i64) -> Authority {
        Authority::new(Timestamp::from_secs(begins), Timestamp::from_secs(begins + 1000)).expect("an authority")
    }

    #[test]
    fn only_an_authority_that_begins_later_than_all_that_was_seen_is_believed() {
        let (held, ended) = (authority(100), authority(200));
        let (known, seen) = (bundle_of(&[&held]).expect("a bundle"), bundle_of(&[&held, &ended]).expect("a bundle"));
        let believed = |found: &[&Authority]| {
            let kept = successor(&known, &seen, &bundle_of(found).expect("a bundle"))?;
            Some(kept.x509_authorities().iter().map(|a| a.certificate.not_before.secs()).collect::<Vec<_>>())
        };
        // The ended one came after the one that is held, and was withdrawn; another of the same second may be it, made again.
        for old in [&authority(50), &authority(100), &authority(200), &ended] {
            assert_eq!(believed(&[old, &held]), None);
        }
        assert_eq!(believed(&[&held, &authority(201), &authority(200)]), Some(vec![100, 201]));
        let mut tainted = Bundle::empty(known.trust_domain().clone());
        tainted.add_x509_authority(held.certificate.clone(), true).expect("added");
        let kept = successor(&tainted, &seen, &bundle_of(&[&held, &authority(201)]).expect("a bundle")).expect("news");
        assert_eq!(kept.x509_authorities().iter().map(|a| a.tainted).collect::<Vec<_>>(), [true, false], "no file lifts a taint");
    }

    #[test]
    fn of_a_file_without_end_no_more_is_read_than_shows_that_it_is_too_long() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(1 << 28).expect("long");
        assert_eq!(read_limited(file.path()).expect("read").len(), BUNDLE_BYTES_MAX + 1);
    }
}
