//! Where a listener is: an IP address, or a name that the resolver is asked for when the listener opens.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use countersign_identity::entry::check_dns_name;

/// Longest wait for a resolver: two servers that do not answer, at the five seconds that resolvers give each.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A host to listen on, checked as to its form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// This address, whatever a resolver says.
    Address(IpAddr),
    /// An address of this name.
    Name(String),
}

impl Host {
    /// Checks the form and asks nobody, so that a configuration can be read while the network is away.
    ///
    /// # Errors
    /// It is neither an address nor a name.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.trim_matches(['[', ']']).parse() {
            return Ok(Self::Address(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        // What ends with a number is meant as an address.
        let is_number = name.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
        if is_number || name.contains('*') || check_dns_name(name).is_err() {
            return Err(format!("`{text}` is neither an IP address nor a name"));
        }
        Ok(Self::Name(text.to_owned()))
    }

    /// The address to listen on. A name with addresses of both kinds stands for its first one of version 4, as in SPIRE.
    ///
    /// # Errors
    /// The name has no address, or no resolver answers.
    pub async fn address(&self) -> Result<IpAddr, String> {
        let name = match self {
            Self::Address(address) => return Ok(*address),
            Self::Name(name) => name,
        };
        let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((name.as_str(), 0))).await;
        let found = found.map_err(|_| format!("no resolver has answered for the name `{name}` within {RESOLVE_TIMEOUT:?}"))?;
        let mut addresses: Vec<IpAddr> =
            found.map_err(|e| format!("the name `{name}` has no address: {e}"))?.map(|socket| socket.ip()).collect();
        addresses.sort_by_key(IpAddr::is_ipv6);
        addresses.into_iter().next().ok_or_else(|| format!("the name `{name}` has no address"))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_told_apart_by_their_form() {
        for (text, address) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("[::1]", "::1")] {
            assert_eq!(Host::parse(text), Ok(Host::Address(address.parse().expect("an address"))), "{text}");
        }
        for text in ["localhost", "node-1.example.org", "node_1", "name.example.org.", "nobody.invalid", "1a"] {
            assert_eq!(Host::parse(text), Ok(Host::Name(text.to_owned())), "{text}");
        }
        for text in ["", ".", "no host", "10.0.0.300", "10.0.0", "a..b", "*.example.org", "http://localhost", "a:1", "[::1]:8081", "-a"] {
            assert_eq!(Host::parse(text), Err(format!("`{text}` is neither an IP address nor a name")), "{text}");
        }
    }

    #[tokio::test]
    async fn a_name_is_asked_for_when_it_is_used() {
        assert_eq!(Host::parse("localhost").expect("a name").address().await, Ok(IpAddr::from([127, 0, 0, 1])));
        let refusal = Host::parse("nobody.invalid").expect("a name").address().await.expect_err("nobody has it");
        assert!(refusal.contains("the name `nobody.invalid`"), "{refusal}");
    }
}
