//! SPIFFE IDs and trust domain names (SPIFFE-ID, sections 2 to 2.4).
//!
//! Parsing is strict: what is accepted is already in its one canonical form, so comparison is byte comparison (SID-21).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest SPIFFE ID accepted, in bytes (SPIFFE-ID section 2.3: support 2048, do not generate more).
pub const SPIFFE_ID_BYTES_MAX: usize = 2048;
/// Longest trust domain name, in bytes (SPIFFE-ID section 2.3, the limit of a URI host).
pub const TRUST_DOMAIN_BYTES_MAX: usize = 255;
/// The scheme with its separator.
pub const SCHEME: &str = "spiffe://";

/// Why a text is not a SPIFFE ID or trust domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// Longer than the limit.
    #[error("it has {bytes} bytes, more than the {max} allowed")]
    TooLong {
        /// Length found.
        bytes: usize,
        /// Length allowed.
        max: usize,
    },
    /// The scheme is not `spiffe`.
    #[error("the scheme is missing or not `spiffe://`")]
    Scheme,
    /// No trust domain between scheme and path.
    #[error("the trust domain name is missing")]
    TrustDomainMissing,
    /// A character outside `a-z 0-9 . - _`.
    #[error("the trust domain name has `{0}`; allowed are lower-case letters, digits, dots, dashes and underscores")]
    TrustDomainCharacter(char),
    /// The path is needed here.
    #[error("the path is missing")]
    PathMissing,
    /// A path that does not begin with a slash.
    #[error("the path does not begin with a slash")]
    PathStart,
    /// Two slashes in a row.
    #[error("the path has an empty segment")]
    EmptySegment,
    /// Ends in a slash.
    #[error("the path ends in a slash")]
    TrailingSlash,
    /// `.` or `..` as a segment.
    #[error("the path has a `.` or `..` segment")]
    DotSegment,
    /// A character outside `A-Z a-z 0-9 . - _`.
    #[error("the path has `{0}`; allowed are letters, digits, dots, dashes and underscores")]
    PathCharacter(char),
}

/// A trust domain name, for example `example.org`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a bare name. Names that look like addresses or unusual DNS names are not special (SID-11).
    ///
    /// # Errors
    /// Says which rule the name breaks.
    pub fn parse(name: &str) -> Result<Self, IdError> {
        check_trust_domain(name)?;
        Ok(Self(name.into()))
    }

    /// Parses a bare name or the `spiffe://name` form, as SPIRE's configuration takes both.
    ///
    /// # Errors
    /// Says which rule the text breaks; a path is refused.
    pub fn parse_name_or_id(text: &str) -> Result<Self, IdError> {
        Self::parse(text.strip_prefix(SCHEME).unwrap_or(text))
    }

    /// The bare name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The trust domain's own SPIFFE ID, which has no path.
    pub fn id(&self) -> SpiffeId {
        SpiffeId { uri: format!("{SCHEME}{}", self.0).into(), path_start: path_start(self.0.len()) }
    }

    /// The SPIFFE ID with this path.
    ///
    /// # Errors
    /// Says which rule the path breaks.
    pub fn with_path(&self, path: &str) -> Result<SpiffeId, IdError> {
        check_path(path)?;
        let bytes = SCHEME.len() + self.0.len() + path.len();
        if bytes > SPIFFE_ID_BYTES_MAX {
            return Err(IdError::TooLong { bytes, max: SPIFFE_ID_BYTES_MAX });
        }
        Ok(SpiffeId { uri: format!("{SCHEME}{}{path}", self.0).into(), path_start: path_start(self.0.len()) })
    }

    /// The SPIFFE ID of a server of this trust domain, as SPIRE spells it.
    pub fn server_id(&self) -> SpiffeId {
        SpiffeId { uri: format!("{SCHEME}{}/spire/server", self.0).into(), path_start: path_start(self.0.len()) }
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        Self::parse(s)
    }
}

/// A SPIFFE ID in its one canonical spelling. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    uri: Arc<str>,
    path_start: u16,
}

impl SpiffeId {
    /// Parses a whole URI.
    ///
    /// # Errors
    /// Says which rule of the SPIFFE-ID standard the text breaks.
    pub fn parse(uri: &str) -> Result<Self, IdError> {
        let path_at = check_uri(uri)?;
        Ok(Self { uri: uri.into(), path_start: path_start(path_at - SCHEME.len()) })
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain's bare name.
    pub fn trust_domain_name(&self) -> &str {
        self.uri.get(SCHEME.len()..usize::from(self.path_start)).unwrap_or_default()
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_name().into())
    }

    /// The path with its leading slash, or nothing.
    pub fn path(&self) -> &str {
        self.uri.get(usize::from(self.path_start)..).unwrap_or_default()
    }

    /// Whether it lies in this trust domain.
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain_name() == trust_domain.name()
    }

    /// Whether the path is `/spire` or below it, which SPIRE reserves for servers and agents.
    pub fn is_reserved(&self) -> bool {
        let path = self.path();
        path == "/spire" || path.starts_with("/spire/")
    }

    /// Whether it has the form of an agent's ID, `/spire/agent/<type>/…`.
    pub fn is_agent(&self) -> bool {
        self.path().starts_with("/spire/agent/")
    }
}

fn path_start(trust_domain_bytes: usize) -> u16 {
    // A trust domain name has at most 255 bytes, so this fits.
    u16::try_from(SCHEME.len() + trust_domain_bytes).unwrap_or(u16::MAX)
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        Self::parse(s)
    }
}

/// Checks a URI and returns where its path begins.
fn check_uri(uri: &str) -> Result<usize, IdError> {
    if uri.is_empty() {
        return Err(IdError::Empty);
    }
    if uri.len() > SPIFFE_ID_BYTES_MAX {
        return Err(IdError::TooLong { bytes: uri.len(), max: SPIFFE_ID_BYTES_MAX });
    }
    let rest = uri.strip_prefix(SCHEME).ok_or(IdError::Scheme)?;
    let name_bytes = rest.find('/').unwrap_or(rest.len());
    let (name, path) = rest.split_at(name_bytes);
    if name.is_empty() {
        return Err(IdError::TrustDomainMissing);
    }
    check_trust_domain(name)?;
    if !path.is_empty() {
        check_path(path)?;
    }
    Ok(SCHEME.len() + name_bytes)
}

fn check_trust_domain(name: &str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::TrustDomainMissing);
    }
    if name.len() > TRUST_DOMAIN_BYTES_MAX {
        return Err(IdError::TooLong { bytes: name.len(), max: TRUST_DOMAIN_BYTES_MAX });
    }
    match name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')) {
        Some(c) => Err(IdError::TrustDomainCharacter(c)),
        None => Ok(()),
    }
}

/// Checks a path that is not empty.
fn check_path(path: &str) -> Result<(), IdError> {
    if path.is_empty() {
        return Err(IdError::PathMissing);
    }
    let rest = path.strip_prefix('/').ok_or(IdError::PathStart)?;
    if rest.is_empty() || rest.ends_with('/') {
        return Err(IdError::TrailingSlash);
    }
    for segment in rest.split('/') {
        match segment {
            "" => return Err(IdError::EmptySegment),
            "." | ".." => return Err(IdError::DotSegment),
            _ => {}
        }
        if let Some(c) = segment.chars().find(|c| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_')) {
            return Err(IdError::PathCharacter(c));
        }
    }
    Ok(())
}
