//! Path validation for X509-SVIDs (RFC 5280 section 6, X509-SVID section 5).
//!
//! Our own, because the common path checker refuses every URI name constraint, and a constrained upstream authority
//! is legal. Chains are short and trust anchors belong to one trust domain, so the search is small and bounded.

use crate::bundle::BundleSet;
use crate::id::{IdError, SpiffeId};
use crate::time::Timestamp;
use crate::x509::certificate::{Certificate, CertificateError, Constraint};

/// Most certificates looked at in a presented chain.
pub const CHAIN_CERTIFICATES_MAX: usize = 16;
/// Most signatures checked for one chain: bounds what a stranger can make us compute.
const SIGNATURE_CHECKS_MAX: usize = 32;
/// Most comparisons of a name with a constraint for one leaf: a stranger who signs with an authority of his own chooses both,
/// and their product is thousands of times the bytes he sends. Go's verifier stops at as many.
pub(super) const COMPARISONS_MAX: usize = 250_000;

/// Why a chain does not prove an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Nothing was presented.
    #[error("no certificate was presented")]
    Empty,
    /// More than [`CHAIN_CERTIFICATES_MAX`].
    #[error("the chain has {0} certificates, more than the {CHAIN_CERTIFICATES_MAX} allowed")]
    TooLong(usize),
    /// A certificate cannot be parsed.
    #[error("certificate {index} of the chain: {source}")]
    Certificate {
        /// Position, the leaf is 0.
        index: usize,
        /// What is wrong with it.
        source: CertificateError,
    },
    /// Not exactly one URI SAN.
    #[error("the certificate has {0} URI names, an X509-SVID has exactly one")]
    Uris(usize),
    /// The URI is not a SPIFFE ID.
    #[error("the certificate's URI is not a SPIFFE ID: {0}")]
    SpiffeId(IdError),
    /// The SPIFFE ID has no path.
    #[error("the certificate's SPIFFE ID `{0}` has no path, so it names no workload")]
    RootPath(SpiffeId),
    /// The leaf is a CA.
    #[error("the certificate is a signing certificate, which identifies nobody")]
    LeafIsCa,
    /// The leaf may sign certificates or CRLs.
    #[error("the certificate's key usage allows signing certificates or CRLs")]
    LeafKeyUsage,
    /// Outside its validity.
    #[error("the certificate of `{subject}` is valid from {not_before} to {not_after}, it is now {now}")]
    Validity {
        /// SPIFFE ID or subject.
        subject: String,
        /// Start.
        not_before: Timestamp,
        /// End.
        not_after: Timestamp,
        /// Time of the check.
        now: Timestamp,
    },
    /// A critical extension nobody here understands.
    #[error("the certificate has a critical extension {0} that is not understood")]
    CriticalExtension(String),
    /// No bundle for the trust domain.
    #[error("there is no bundle for trust domain `{0}`")]
    NoBundle(String),
    /// No path to an authority of the trust domain.
    #[error("no authority of trust domain `{0}` vouches for the certificate (signed by unknown authority)")]
    UnknownAuthority(String),
    /// A name outside what the signer may vouch for.
    #[error("a name in the certificate lies outside its signer's name constraints")]
    NameConstraint,
    /// More than [`COMPARISONS_MAX`] would have to be made.
    #[error("the certificates have too many names and name constraints to compare")]
    TooManyNames,
}

/// Verifies a chain, leaf first, against the bundle of the leaf's own trust domain, and returns who it is.
///
/// # Errors
/// The first rule it breaks.
pub fn verify_chain<C: AsRef<[u8]>>(chain: &[C], bundles: &BundleSet, now: Timestamp) -> Result<(SpiffeId, Certificate), ChainError> {
    let (id, leaf, _) = verify_chain_any(chain, bundles, now)?;
    Ok((id, leaf))
}

/// As [`verify_chain`], and also returns the trust anchor the path ends in.
///
/// # Errors
/// The first rule it breaks.
pub fn verify_chain_any<C: AsRef<[u8]>>(
    chain: &[C],
    bundles: &BundleSet,
    now: Timestamp,
) -> Result<(SpiffeId, Certificate, Certificate), ChainError> {
    if chain.len() > CHAIN_CERTIFICATES_MAX {
        return Err(ChainError::TooLong(chain.len()));
    }
    let mut parsed = Vec::with_capacity(chain.len());
    for (index, der) in chain.iter().enumerate() {
        parsed.push(Certificate::parse(der.as_ref()).map_err(|source| ChainError::Certificate { index, source })?);
    }
    let (leaf, intermediates) = parsed.split_first().ok_or(ChainError::Empty)?;
    let id = check_leaf(leaf, now)?;
    let bundle = bundles.get(id.trust_domain_name()).ok_or_else(|| ChainError::NoBundle(id.trust_domain_name().to_owned()))?;
    let mut search = Search { intermediates, now, checks: 0, comparisons: 0, refusal: None };
    let anchors: Vec<&Certificate> = bundle.x509_authorities().iter().map(|a| &a.certificate).collect();
    let mut path = vec![leaf];
    match search.extend(&mut path, &anchors) {
        Some(anchor) => Ok((id, leaf.clone(), anchor.clone())),
        None => Err(search.refusal.unwrap_or_else(|| ChainError::UnknownAuthority(id.trust_domain_name().to_owned()))),
    }
}

/// The rules for a leaf by itself (X509-SVID section 5.2).
fn check_leaf(leaf: &Certificate, now: Timestamp) -> Result<SpiffeId, ChainError> {
    let [uri] = leaf.uris.as_slice() else { return Err(ChainError::Uris(leaf.uris.len())) };
    let id = SpiffeId::parse(uri).map_err(ChainError::SpiffeId)?;
    if id.path().is_empty() {
        return Err(ChainError::RootPath(id));
    }
    if leaf.is_ca {
        return Err(ChainError::LeafIsCa);
    }
    if leaf.key_usage.is_some_and(|u| u.key_cert_sign || u.crl_sign) {
        return Err(ChainError::LeafKeyUsage);
    }
    check_times(leaf, now)?;
    Ok(id)
}

pub(super) fn check_times(certificate: &Certificate, now: Timestamp) -> Result<(), ChainError> {
    if let Some(oid) = &certificate.unknown_critical {
        return Err(ChainError::CriticalExtension(oid.clone()));
    }
    if certificate.is_valid_at(now) {
        return Ok(());
    }
    Err(ChainError::Validity {
        subject: certificate.uris.first().cloned().unwrap_or_else(|| certificate.subject_text.clone()),
        not_before: certificate.not_before,
        not_after: certificate.not_after,
        now,
    })
}

struct Search<'a> {
    intermediates: &'a [Certificate],
    now: Timestamp,
    checks: usize,
    comparisons: usize,
    /// The most telling reason why an otherwise fitting issuer was refused.
    refusal: Option<ChainError>,
}

impl<'a> Search<'a> {
    /// Extends the path (leaf first) by an anchor or an intermediate until it ends in an anchor.
    fn extend(&mut self, path: &mut Vec<&'a Certificate>, anchors: &[&'a Certificate]) -> Option<&'a Certificate> {
        let tip = *path.last()?;
        for anchor in anchors {
            if self.vouches(anchor, tip, path) {
                return Some(anchor);
            }
        }
        if path.len() > CHAIN_CERTIFICATES_MAX {
            return None;
        }
        for candidate in self.intermediates {
            if path.iter().any(|c| c.der() == candidate.der()) || !self.vouches(candidate, tip, path) {
                continue;
            }
            path.push(candidate);
            if let Some(anchor) = self.extend(path, anchors) {
                return Some(anchor);
            }
            path.pop();
        }
        None
    }

    /// Whether `issuer` may sign and did sign `subject`, the tip of `path`.
    fn vouches(&mut self, issuer: &Certificate, subject: &Certificate, path: &[&Certificate]) -> bool {
        if issuer.subject != subject.issuer {
            return false;
        }
        if let (Some(wanted), Some(has)) = (&subject.authority_key_id, &issuer.key_id)
            && wanted != has
        {
            return false;
        }
        if !issuer.is_ca || issuer.key_usage.is_some_and(|u| !u.key_cert_sign) {
            return false;
        }
        // Intermediates below this issuer: everything on the path but the leaf.
        if issuer.path_len.is_some_and(|max| path.len() - 1 > usize::try_from(max).unwrap_or(usize::MAX)) {
            return false;
        }
        if self.checks >= SIGNATURE_CHECKS_MAX {
            return false;
        }
        self.checks += 1;
        if subject.check_signed_by(&issuer.public_key).is_err() {
            return false;
        }
        if let Err(reason) = check_times(issuer, self.now) {
            self.refusal = Some(reason);
            return false;
        }
        for certificate in path {
            if let Err(reason) = within(issuer, certificate, &mut self.comparisons) {
                self.refusal = Some(reason);
                return false;
            }
        }
        true
    }
}

/// Checks that every name of `certificate` is one that `signer` may vouch for (RFC 5280 section 4.2.1.10). Adds the
/// comparisons it makes to those made so far, and makes none beyond [`COMPARISONS_MAX`].
pub(super) fn within(signer: &Certificate, certificate: &Certificate, made: &mut usize) -> Result<(), ChainError> {
    let constraints = signer.permitted.len().saturating_add(signer.excluded.len());
    if constraints == 0 {
        return Ok(());
    }
    // One more than there are names: names of other types are looked at together.
    let names = certificate.uris.len().saturating_add(certificate.dns_names.len()).saturating_add(1);
    *made = made.saturating_add(names.saturating_mul(constraints));
    if *made > COMPARISONS_MAX {
        return Err(ChainError::TooManyNames);
    }
    let decide = |matches: &dyn Fn(&Constraint) -> Option<bool>| {
        let mut permitted = signer.permitted.iter().filter_map(matches).peekable();
        let allowed = permitted.peek().is_none() || permitted.any(|hit| hit);
        allowed && !signer.excluded.iter().filter_map(matches).any(|hit| hit)
    };
    let uris_fit = certificate.uris.iter().all(|uri| {
        let host = uri.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
        decide(&|c| match c {
            Constraint::Uri(base) => Some(host_within(host, base)),
            _ => None,
        })
    });
    let dns_fit = certificate.dns_names.iter().all(|name| {
        decide(&|c| match c {
            Constraint::Dns(base) => Some(name_within(name, base)),
            _ => None,
        })
    });
    // Constraints we cannot decide refuse whatever they could be about (RFC 5280: process or reject).
    let undecidable = signer.permitted.iter().chain(&signer.excluded).any(|c| match c {
        Constraint::Directory => certificate.other_names || !certificate.subject_empty,
        Constraint::Other => certificate.other_names,
        Constraint::Uri(_) | Constraint::Dns(_) => false,
    });
    if uris_fit && dns_fit && !undecidable { Ok(()) } else { Err(ChainError::NameConstraint) }
}

/// A URI constraint names one host, or all hosts below a domain when it begins with a dot; an empty one names them all.
/// Case does not matter, or an exclusion in capitals would exclude nobody.
fn host_within(host: &str, base: &str) -> bool {
    if base.is_empty() {
        return true;
    }
    match base.strip_prefix('.') {
        Some(domain) => before_ending(host, domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with(b".")),
        None => host.eq_ignore_ascii_case(base),
    }
}

/// A DNS constraint names a domain and everything below it.
fn name_within(name: &str, base: &str) -> bool {
    let base = base.trim_start_matches('.');
    base.is_empty() || before_ending(name, base).is_some_and(|rest| rest.is_empty() || rest.ends_with(b"."))
}

/// What stands before this ending, whose case does not matter. Makes no copy, as names may be long and compared often.
fn before_ending<'a>(name: &'a str, ending: &str) -> Option<&'a [u8]> {
    let (rest, end) = name.as_bytes().split_at_checked(name.len().checked_sub(ending.len())?)?;
    end.eq_ignore_ascii_case(ending.as_bytes()).then_some(rest)
}
