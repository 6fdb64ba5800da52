//! Path validation for certificates that are not SVIDs (RFC 5280 section 6), for example those a machine was delivered with.
//!
//! Finds every path to a trust anchor, because an attestor names the authorities of all of them. The rules are those of Go's
//! verifier with any extended key usage, which SPIRE uses: a leaf may itself be an anchor or an authority. Stricter is
//! what [`Certificate`] reads at all (RSA from 2048 bits, no SHA-1), and that an anchor must say it is an authority.

use super::certificate::Certificate;
use super::chain::{CHAIN_CERTIFICATES_MAX, ChainError, check_times, within};
use crate::time::Timestamp;

/// Most signatures checked for one leaf: bounds what a stranger can make us compute. A leaf below four intermediates that
/// all sign each other needs fewer.
const SIGNATURE_CHECKS_MAX: usize = 100;
/// Most paths looked for: more authorities than these can hardly be meant.
const PATHS_MAX: usize = 32;

/// Why no path was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A certificate on the way is not acceptable.
    #[error(transparent)]
    Certificate(#[from] ChainError),
    /// An authority signed more than its path length allows.
    #[error("more authorities stand below `{0}` than it allows")]
    PathLength(String),
    /// A certificate that is no authority is named as the issuer of another.
    #[error("`{0}` is named as issuer and may not sign certificates")]
    NotAuthority(String),
    /// The issuer's key did not make the signature.
    #[error("the signature on the certificate of `{subject}` was not made with the key of `{issuer}`")]
    Signature {
        /// Whose certificate.
        subject: String,
        /// Who should have signed.
        issuer: String,
    },
    /// There is no certificate of an issuer.
    #[error("there is no certificate of `{issuer}`, which issued the certificate of `{subject}`")]
    NoIssuer {
        /// Whose certificate.
        subject: String,
        /// Who is missing.
        issuer: String,
    },
    /// Signed by itself, and not an anchor.
    #[error("`{0}` vouches for itself alone and is not among the trusted authorities")]
    NotTrusted(String),
    /// Those who vouch for it lead back to each other.
    #[error("those who vouch for `{0}` lead to each other and to no trusted authority")]
    NoAnchor(String),
    /// More signatures than [`SIGNATURE_CHECKS_MAX`] would have to be checked.
    #[error("the certificates can be put together in too many ways")]
    TooManyWays,
}

/// Every path from the leaf to an anchor, leaf and anchor included.
///
/// # Errors
/// There is none; the most telling reason of those met.
pub fn verify_paths<'a>(
    leaf: &'a Certificate,
    intermediates: &'a [Certificate],
    anchors: &'a [Certificate],
    now: Timestamp,
) -> Result<Vec<Vec<&'a Certificate>>, PathError> {
    check_times(leaf, now)?;
    if anchors.iter().any(|a| a.der() == leaf.der()) {
        return Ok(vec![vec![leaf]]);
    }
    let mut search = Search { intermediates, anchors, now, checks: 0, comparisons: 0, paths: Vec::new(), refusal: None };
    search.extend(&mut vec![leaf]);
    if search.paths.is_empty() {
        return Err(search.refusal.map_or_else(|| no_issuer(leaf), |(_, error)| error));
    }
    Ok(search.paths)
}

fn no_issuer(tip: &Certificate) -> PathError {
    if tip.subject == tip.issuer {
        return PathError::NotTrusted(name(tip));
    }
    PathError::NoIssuer { subject: name(tip), issuer: tip.issuer_text.clone() }
}

/// A certificate's name for people.
fn name(certificate: &Certificate) -> String {
    if certificate.subject_empty {
        certificate.uris.first().or(certificate.dns_names.first()).cloned().unwrap_or_default()
    } else {
        certificate.subject_text.clone()
    }
}

struct Search<'a> {
    intermediates: &'a [Certificate],
    anchors: &'a [Certificate],
    now: Timestamp,
    checks: usize,
    comparisons: usize,
    paths: Vec<Vec<&'a Certificate>>,
    /// Why the way that came furthest ended, with its length.
    refusal: Option<(usize, PathError)>,
}

impl<'a> Search<'a> {
    fn extend(&mut self, path: &mut Vec<&'a Certificate>) {
        let Some(tip) = path.last().copied() else { return };
        let mut issuers = 0;
        let (anchors, intermediates) = (self.anchors, self.intermediates);
        // An authority is on a way once.
        let is_new = |c: &&Certificate, path: &[&Certificate]| !path.iter().any(|p| p.subject == c.subject && p.public_key == c.public_key);
        for anchor in anchors.iter().filter(|c| c.subject == tip.issuer && is_new(c, path)) {
            issuers += 1;
            if self.vouches(anchor, tip, path) && self.paths.len() < PATHS_MAX {
                let mut found = path.clone();
                found.push(anchor);
                self.paths.push(found);
            }
        }
        // An anchor that is sent along may lead on to another one, as in Go.
        for candidate in intermediates.iter().filter(|c| c.subject == tip.issuer) {
            if !is_new(&candidate, path) || path.len() >= CHAIN_CERTIFICATES_MAX {
                continue;
            }
            issuers += 1;
            if self.vouches(candidate, tip, path) {
                path.push(candidate);
                self.extend(path);
                path.pop();
            }
        }
        if issuers == 0 {
            let on_the_way = tip.subject != tip.issuer && path.iter().any(|c| c.subject == tip.issuer);
            self.refuse(path.len(), if on_the_way { PathError::NoAnchor(name(tip)) } else { no_issuer(tip) });
        }
    }

    fn refuse(&mut self, length: usize, error: PathError) {
        // What was not looked at is told before what was.
        let length =
            if matches!(error, PathError::TooManyWays | PathError::Certificate(ChainError::TooManyNames)) { usize::MAX } else { length };
        if self.refusal.as_ref().is_none_or(|(furthest, _)| length > *furthest) {
            self.refusal = Some((length, error));
        }
    }

    /// Whether `issuer`, whose name fits, may sign and did sign `subject`, the tip of `path`.
    fn vouches(&mut self, issuer: &Certificate, subject: &Certificate, path: &[&Certificate]) -> bool {
        match self.judge(issuer, subject, path) {
            Ok(()) => true,
            Err(error) => {
                self.refuse(path.len(), error);
                false
            }
        }
    }

    fn judge(&mut self, issuer: &Certificate, subject: &Certificate, path: &[&Certificate]) -> Result<(), PathError> {
        if !issuer.is_ca || issuer.key_usage.is_some_and(|u| !u.key_cert_sign) {
            return Err(PathError::NotAuthority(name(issuer)));
        }
        // Authorities below this issuer: everything on the path but the leaf.
        if issuer.path_len.is_some_and(|max| path.len().saturating_sub(1) > usize::try_from(max).unwrap_or(usize::MAX)) {
            return Err(PathError::PathLength(name(issuer)));
        }
        if self.checks >= SIGNATURE_CHECKS_MAX {
            return Err(PathError::TooManyWays);
        }
        self.checks += 1;
        if subject.check_signed_by(&issuer.public_key).is_err() {
            return Err(PathError::Signature { subject: name(subject), issuer: name(issuer) });
        }
        check_times(issuer, self.now)?;
        for certificate in path {
            within(issuer, certificate, &mut self.comparisons)?;
        }
        Ok(())
    }
}
