//! Federation relationships: another trust domain, where its bundle is to be had, and who must be at the other end.

use std::fmt;
use std::sync::Arc;

use http::Uri;

use crate::{SpiffeId, TrustDomain};

/// Longest URL of a bundle endpoint, in bytes: as long as a SPIFFE ID may be, and what every proxy on the way takes.
pub const ENDPOINT_URL_BYTES_MAX: usize = 2048;

const SCHEME: &str = "https://";

/// Another trust domain and its bundle endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FederationRelationship {
    /// The other trust domain.
    pub trust_domain: TrustDomain,
    /// Where its bundle is to be had.
    pub bundle_endpoint_url: EndpointUrl,
    /// Who must be at the other end.
    pub bundle_endpoint_profile: EndpointProfile,
}

/// How a bundle endpoint proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointProfile {
    /// With a certificate that the public authorities vouch for.
    HttpsWeb,
    /// With the SVID of a SPIFFE ID.
    HttpsSpiffe {
        /// Which.
        endpoint_spiffe_id: SpiffeId,
    },
}

/// The URL of a bundle endpoint, as it was written. Cloning is cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointUrl(Arc<str>);

/// Why a text is not the URL of a bundle endpoint, in the words that SPIRE's clients read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointUrlError {
    /// Longer than [`ENDPOINT_URL_BYTES_MAX`].
    #[error("bundle endpoint URL has {0} bytes, more than {ENDPOINT_URL_BYTES_MAX}")]
    TooLong(usize),
    /// No URL.
    #[error("failed to parse bundle endpoint URL: {0}")]
    Malformed(String),
    /// Another scheme, or none.
    #[error("bundle endpoint URL must use the https scheme")]
    NotHttps,
    /// Nobody to ask.
    #[error("bundle endpoint URL must specify the host")]
    NoHost,
    /// A name or password in it.
    #[error("bundle endpoint URL must not contain user info")]
    UserInfo,
}

impl EndpointUrl {
    /// Reads a URL: `https`, a host, nobody's name in it.
    ///
    /// # Errors
    /// Says which of these it breaks.
    pub fn parse(text: &str) -> Result<Self, EndpointUrlError> {
        if text.len() > ENDPOINT_URL_BYTES_MAX {
            return Err(EndpointUrlError::TooLong(text.len()));
        }
        let Some(rest) = text.get(..SCHEME.len()).filter(|s| s.eq_ignore_ascii_case(SCHEME)).and_then(|_| text.get(SCHEME.len()..)) else {
            return Err(EndpointUrlError::NotHttps);
        };
        // A URL without a host is malformed to the parser; whoever wrote it shall read what is missing.
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        if host.is_empty() || host.starts_with(':') {
            return Err(EndpointUrlError::NoHost);
        }
        if authority.contains('@') {
            return Err(EndpointUrlError::UserInfo);
        }
        let uri: Uri = text.parse().map_err(|e: http::uri::InvalidUri| EndpointUrlError::Malformed(e.to_string()))?;
        let has_port = authority.rsplit(']').next().is_some_and(|tail| tail.contains(':'));
        if has_port && uri.port_u16().is_none() {
            return Err(EndpointUrlError::Malformed("invalid port".to_owned()));
        }
        Ok(Self(text.into()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_https_has_a_host_and_names_nobody() {
        for good in ["https://a.test", "https://a.test:8443/bundle.json?x=1", "HTTPS://[2001:db8::1]:443/", "https://192.0.2.1/b#f"] {
            assert_eq!(EndpointUrl::parse(good).map(|url| url.to_string()), Ok(good.to_owned()));
        }
        for (text, error) in [
            ("http://a.test", EndpointUrlError::NotHttps),
            ("a.test/bundle", EndpointUrlError::NotHttps),
            ("", EndpointUrlError::NotHttps),
            ("https://", EndpointUrlError::NoHost),
            ("https:///bundle", EndpointUrlError::NoHost),
            ("https://:443/", EndpointUrlError::NoHost),
            ("https://?q", EndpointUrlError::NoHost),
            ("https://user@a.test", EndpointUrlError::UserInfo),
            ("https://user:secret@a.test/", EndpointUrlError::UserInfo),
            ("https://a.test:port/", EndpointUrlError::Malformed("invalid port".to_owned())),
            ("https://a.test:70000/", EndpointUrlError::Malformed("invalid port".to_owned())),
            ("https://a b/", EndpointUrlError::Malformed("invalid uri character".to_owned())),
        ] {
            assert_eq!(EndpointUrl::parse(text), Err(error), "{text}");
        }
        let longest = format!("https://{}", "a".repeat(ENDPOINT_URL_BYTES_MAX - SCHEME.len()));
        assert!(EndpointUrl::parse(&longest).is_ok());
        assert_eq!(EndpointUrl::parse(&format!("{longest}a")), Err(EndpointUrlError::TooLong(ENDPOINT_URL_BYTES_MAX + 1)));
    }
}
