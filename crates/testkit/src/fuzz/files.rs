//! The issuance journal as it is found on a disk, and bytes of a connection before a library reads them: HTTP/2, and what a
//! proxy says before TLS.

use std::sync::Arc;

use countersign_server::audit::{Journal, Query, Settings, search};
use countersign_transport::proxy;
use countersign_transport::unix::Authority;

use super::{NOW, Target, split};
use crate::clock::VirtualClock;

pub(super) const TARGETS: &[Target] = &[
    Target { name: "journal", run: journal },
    Target { name: "http2_authority", run: http2_authority },
    Target { name: "proxy_header", run: proxy_header },
];

/// A segment, and the index beside it if there is a second piece.
fn journal(bytes: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory");
    let pieces = split(bytes);
    let (segment, index) = (pieces.first().copied().unwrap_or_default(), pieces.get(1));
    std::fs::write(directory.path().join("00000000000000000001.journal"), segment).expect("a segment");
    if let Some(index) = index {
        std::fs::write(directory.path().join("00000000000000000001.index"), index).expect("an index");
    }
    let all = Query::default();
    let before = search(directory.path(), &all).expect("a damaged journal can be searched");
    let named = before.records.iter().map(|r| r.spiffe_id.clone()).next_back();
    let by_id = search(directory.path(), &Query { spiffe_id: named.clone(), limit: 3, ..Query::default() }).expect("by ID");
    assert!(by_id.records.len() <= 3);
    assert!(named.is_none_or(|named| by_id.records.iter().all(|r| r.spiffe_id == named)));

    // Whatever a crash left, the server starts, and loses no record that could be read before a place that cannot.
    let settings = Settings::new(directory.path().to_owned());
    let opened = Journal::open(settings, Arc::from("fuzz"), Arc::new(VirtualClock::at(NOW)));
    drop(opened);
    let after = search(directory.path(), &all).expect("a journal that was opened can be searched");
    if before.damage.is_empty() && index.is_none() {
        assert_eq!(after.records, before.records, "opening changed what the journal says");
    }
}

/// The first byte says in what pieces the others come.
fn http2_authority(bytes: &[u8]) {
    let Some((size, sent)) = bytes.split_first() else { return };
    let mut whole = sent.to_vec();
    Authority::default().pass(&mut whole);
    let is_of_a_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    let changed = |(before, after): (&u8, &u8)| before != after && (is_of_a_host(*before) || *after != b'-');
    assert!(!sent.iter().zip(&whole).any(changed), "something was changed that can be in the name of a host");

    let mut in_pieces = sent.to_vec();
    let mut authority = Authority::default();
    for piece in in_pieces.chunks_mut(usize::from(*size).max(1)) {
        authority.pass(piece);
    }
    assert_eq!(in_pieces, whole, "the pieces make a difference");

    let mut again = whole.clone();
    Authority::default().pass(&mut again);
    assert_eq!(again, whole, "what is mended needs no mending");
}

/// Whom a header names is who stands in its place for the source, and of the family that the header says.
fn proxy_header(bytes: &[u8]) {
    let Ok(Some(named)) = proxy::parse(bytes) else { return };
    if let Ok(line) = std::str::from_utf8(bytes)
        && line.starts_with("PROXY ")
    {
        let mut words = line.trim_end().split(' ').skip(1);
        assert_eq!(words.next(), Some(if named.is_ipv4() { "TCP4" } else { "TCP6" }));
        assert_eq!(words.next().and_then(|word| word.parse().ok()), Some(named.ip()));
        return;
    }
    let source = match named.ip() {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
    let family = if named.is_ipv4() { 0x11 } else { 0x21 };
    assert_eq!(bytes.get(12..14), Some(&[0x21, family][..]), "another command or family");
    assert_eq!(bytes.get(16..16 + source.len()), Some(source.as_slice()));
}
