//! The PROXY protocol, versions 1 and 2: how a load balancer says for whom it connects. Whose word counts is configured; from
//! everybody else a header is refused, because whoever may name an address could take another's place in every limit and log.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Longest header of version 1, by its specification.
const TEXT_BYTES_MAX: usize = 107;
/// Longest header of version 2 accepted after its first sixteen bytes: addresses, and a few hundred bytes of what cloud load
/// balancers add. The format itself would allow 64 KiB.
const BINARY_BYTES_MAX: usize = 4096;
/// What a header of version 2 begins with. Nothing else that a client may send first does: TLS begins with 0x16.
const SIGNATURE: [u8; 12] = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];

/// Bytes of a header of version 2 before its addresses.
const HEAD_BYTES: usize = 16;

/// A range of addresses, such as `10.0.0.0/8`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    bits: u32,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("`{text}` is not a range of addresses, expected for example 10.0.0.0/8 or 2001:db8::/32");
        let (address, bits) = text.split_once('/').ok_or_else(malformed)?;
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let is_number = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
        let bits: u32 = bits.parse().ok().filter(|_| is_number).ok_or_else(malformed)?;
        if bits > width(address) {
            return Err(malformed());
        }
        Ok(Self { network: masked(address, bits), bits })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.bits)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Cidr {
    /// Whether the address is in it. An IPv4 address that a listener on `::` shows as IPv6 is one of IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        width(address) == width(self.network) && masked(address, self.bits) == self.network
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, bits: u32) -> IpAddr {
    match address {
        IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() & u32::MAX.checked_shl(32 - bits).unwrap_or(0)).into(),
        IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() & u128::MAX.checked_shl(128 - bits).unwrap_or(0)).into(),
    }
}

/// Whose word about addresses counts. Cloning shares it; without a range nobody's does.
#[derive(Debug, Clone, Default)]
pub struct Proxies(Arc<[Cidr]>);

impl From<Vec<Cidr>> for Proxies {
    fn from(ranges: Vec<Cidr>) -> Self {
        Self(ranges.into())
    }
}

impl Proxies {
    /// Whether this address may say for whom it connects.
    pub fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(address))
    }
}

/// Why a header is not taken.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The connection broke off.
    #[error("the connection broke off in its PROXY header: {0}")]
    Broken(#[from] io::Error),
    /// No header by the specification, or one of a kind of connection that this is not.
    #[error("malformed PROXY header: {0}")]
    Malformed(&'static str),
}

/// Reads the header, if the connection begins with one, and not a byte more. The address of whom the connection is for; none
/// where the proxy speaks for itself or does not know.
///
/// # Errors
/// There is a header and it is malformed, or the connection breaks off.
pub async fn read_header(stream: &mut TcpStream) -> Result<Option<SocketAddr>, HeaderError> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(None);
    }
    match first {
        [b'P'] => text(stream).await,
        [0x0d] => binary(stream).await,
        _ => Ok(None),
    }
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 40000 8081\r\n`
async fn text(stream: &mut TcpStream) -> Result<Option<SocketAddr>, HeaderError> {
    let mut line = Vec::with_capacity(TEXT_BYTES_MAX);
    // One byte after the other: what comes after the line belongs to TLS.
    while !line.ends_with(b"\r\n") {
        if line.len() >= TEXT_BYTES_MAX {
            return Err(HeaderError::Malformed("the line has no end"));
        }
        line.push(stream.read_u8().await?);
    }
    parse(&line)
}

/// What a whole header says, of either version.
///
/// # Errors
/// It is malformed, or not whole.
pub fn parse(header: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
    match header.split_first_chunk::<HEAD_BYTES>() {
        Some((&[signature @ .., command, family, high, low], rest)) if signature == SIGNATURE => {
            let length = usize::from(u16::from_be_bytes([high, low]));
            parse_binary(command, family, rest.get(..length).ok_or(HeaderError::Malformed("it is not whole"))?)
        }
        _ => parse_text(header.strip_suffix(b"\r\n").ok_or(HeaderError::Malformed("the line has no end"))?),
    }
}

fn parse_text(line: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
    let line = std::str::from_utf8(line).map_err(|_| HeaderError::Malformed("the line is not text"))?;
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, source_port, destination_port] => {
            let is_of_family = |address: &IpAddr| address.is_ipv4() == (*family == "TCP4");
            let address = |text: &str| {
                let parsed = text.parse::<IpAddr>().ok().filter(is_of_family);
                parsed.ok_or(HeaderError::Malformed("an address is not one of its family"))
            };
            let port = |text: &str| text.parse::<u16>().map_err(|_| HeaderError::Malformed("a port is not a number"));
            let _itself = (address(destination)?, port(destination_port)?);
            Ok(Some(SocketAddr::new(address(source)?, port(source_port)?)))
        }
        _ => Err(HeaderError::Malformed("the line does not name two addresses and two ports")),
    }
}

async fn binary(stream: &mut TcpStream) -> Result<Option<SocketAddr>, HeaderError> {
    let mut header = vec![0; HEAD_BYTES];
    stream.read_exact(&mut header).await?;
    let Some(&[.., high, low]) = header.first_chunk::<HEAD_BYTES>().filter(|head| head.starts_with(&SIGNATURE)) else {
        return Err(HeaderError::Malformed("it does not begin as one"));
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > BINARY_BYTES_MAX {
        return Err(HeaderError::Malformed("it is too long"));
    }
    header.resize(HEAD_BYTES + length, 0);
    stream.read_exact(header.get_mut(HEAD_BYTES..).unwrap_or_default()).await?;
    parse(&header)
}

fn parse_binary(command: u8, family: u8, rest: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
    let short = HeaderError::Malformed("it is too short for its addresses");
    match (command, family) {
        // LOCAL: a health check of the proxy itself. What follows is to be passed over.
        (0x20, _) => Ok(None),
        (0x21, 0x00) => Ok(None),
        (0x21, 0x11) => {
            let Some((&[a, b, c, d, _, _, _, _, high, low, _, _], _)) = rest.split_first_chunk::<12>() else { return Err(short) };
            Ok(Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([high, low]))))
        }
        (0x21, 0x21) => {
            let Some((source, rest)) = rest.split_first_chunk::<16>() else { return Err(short) };
            let Some((_, rest)) = rest.split_first_chunk::<16>() else { return Err(short) };
            let Some((&[high, low, _, _], _)) = rest.split_first_chunk::<4>() else { return Err(short) };
            Ok(Some(SocketAddr::new(Ipv6Addr::from(*source).into(), u16::from_be_bytes([high, low]))))
        }
        (0x21, _) => Err(HeaderError::Malformed("it is not of a TCP connection")),
        _ => Err(HeaderError::Malformed("its version or command is unknown")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn ranges_contain_what_they_name() {
        let contains = |range: &str, address: &str| range.parse::<Cidr>().expect("a range").contains(address.parse().expect("an address"));
        for (range, address, expected) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.1.2.3/8", "10.9.9.9", true),
            ("192.0.2.1/32", "192.0.2.1", true),
            ("192.0.2.1/32", "192.0.2.2", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "10.0.0.1", false),
            ("2001:db8::/64", "10.0.0.1", false),
        ] {
            assert_eq!(contains(range, address), expected, "{range} and {address}");
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0/8", "::/129", "", "/8", "10.0.0.0/8/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn headers_of_the_first_version_name_whom_the_connection_is_for() {
        let parse = |line: &str| parse_text(line.as_bytes()).map(|a| a.map(|a| a.to_string())).map_err(|e| e.to_string());
        assert_eq!(parse("PROXY TCP4 203.0.113.7 10.0.0.1 40000 8081"), Ok(Some("203.0.113.7:40000".to_owned())));
        assert_eq!(parse("PROXY TCP6 2001:db8::7 ::1 1 2"), Ok(Some("[2001:db8::7]:1".to_owned())));
        assert_eq!(parse("PROXY UNKNOWN"), Ok(None));
        assert_eq!(parse("PROXY UNKNOWN whatever follows"), Ok(None));
        for bad in [
            "PROXY",
            "PROXY TCP4",
            "PROXY TCP5 203.0.113.7 10.0.0.1 1 2",
            "PROXY TCP4 203.0.113.7 10.0.0.1 1",
            "PROXY TCP4 203.0.113.7 10.0.0.1 1 2 3",
            "PROXY TCP4 2001:db8::7 ::1 1 2",
            "PROXY TCP4 203.0.113.7 ::1 1 2",
            "PROXY TCP6 203.0.113.7 10.0.0.1 1 2",
            "PROXY TCP4 203.0.113.7 10.0.0.1 1 65536",
            "PROXY TCP4 203.0.113.7 10.0.0.1 x 2",
            "PROXY  TCP4 203.0.113.7 10.0.0.1 1 2",
            "proxy TCP4 203.0.113.7 10.0.0.1 1 2",
            "POST / HTTP/1.1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn headers_of_the_second_version_name_whom_the_connection_is_for() {
        let parse = |command, family, rest: &[u8]| parse_binary(command, family, rest).map(|a| a.map(|a| a.to_string())).ok();
        let v4 = [203, 0, 113, 7, 10, 0, 0, 1, 0x9c, 0x40, 0, 1, 0xee, 0, 0];
        assert_eq!(parse(0x21, 0x11, &v4), Some(Some("203.0.113.7:40000".to_owned())), "with what may follow the addresses");
        let mut v6 = [0; 36];
        v6[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
        v6[15] = 7;
        v6[33] = 9;
        assert_eq!(parse(0x21, 0x21, &v6), Some(Some("[2001:db8::7]:9".to_owned())));
        assert_eq!(parse(0x20, 0x11, &[]), Some(None), "the proxy speaks for itself");
        assert_eq!(parse(0x21, 0x00, &[1, 2]), Some(None));
        assert_eq!(parse(0x21, 0x11, &v4[..11]), None);
        assert_eq!(parse(0x21, 0x21, &v6[..35]), None);
        assert_eq!(parse(0x21, 0x12, &v4), None, "datagrams");
        assert_eq!(parse(0x21, 0x31, &[0; 216]), None, "local sockets");
        assert_eq!(parse(0x22, 0x11, &v4), None);
        assert_eq!(parse(0x11, 0x11, &v4), None);
    }

    /// What is read of these bytes, and what is left for TLS.
    async fn read(bytes: &[u8]) -> (Result<Option<SocketAddr>, HeaderError>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connects");
        let (mut server, _) = listener.accept().await.expect("accepts");
        client.write_all(bytes).await.expect("written");
        client.shutdown().await.expect("closed");
        let outcome = read_header(&mut server).await;
        let mut left = Vec::new();
        server.read_to_end(&mut left).await.expect("the rest");
        (outcome, left)
    }

    #[tokio::test]
    async fn not_a_byte_more_than_the_header_is_read() {
        let named = Some("203.0.113.7:40000".parse().expect("an address"));
        let hello = b"\x16\x03\x01rest";
        let (outcome, left) = read(&[b"PROXY TCP4 203.0.113.7 10.0.0.1 40000 8081\r\n", &hello[..]].concat()).await;
        assert_eq!((outcome.expect("a header"), left.as_slice()), (named, &hello[..]));
        let second = [&SIGNATURE[..], &[0x21, 0x11, 0, 12, 203, 0, 113, 7, 10, 0, 0, 1, 0x9c, 0x40, 0, 1], &hello[..]].concat();
        let (outcome, left) = read(&second).await;
        assert_eq!((outcome.expect("a header"), left.as_slice()), (named, &hello[..]));
        let (outcome, left) = read(hello).await;
        assert_eq!((outcome.expect("no header"), left.as_slice()), (None, &hello[..]));
        assert!(read(b"").await.0.expect("nothing at all").is_none());
    }

    #[tokio::test]
    async fn a_header_without_end_is_given_up() {
        assert!(matches!(read(&[b'P'; 200]).await.0, Err(HeaderError::Malformed(_))));
        assert!(matches!(read(b"PROXY TCP4 203").await.0, Err(HeaderError::Broken(_))));
        let long = [&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat();
        assert!(matches!(read(&long).await.0, Err(HeaderError::Malformed(_))), "it does not wait for what it would not take");
        assert!(matches!(read(&SIGNATURE).await.0, Err(HeaderError::Broken(_))));
        assert!(matches!(read(&[0x0d; 16]).await.0, Err(HeaderError::Malformed(_))));
    }
}
