//! Fuzz targets: one function for everything that reads bytes from outside. A target does not only fail to panic, it
//! asserts what must be true of whatever was accepted.
//!
//! The fuzzer in `fuzz/` and the plain test command call the same functions: what was found once is tried in every test.
//! A finding is a panic, so this module may panic.

#![allow(clippy::panic, clippy::expect_used, reason = "a finding is a panic")]

mod calls;
mod configuration;
mod files;
mod identity;
mod live;
pub mod seeds;
mod streams;

use std::path::PathBuf;

use countersign_identity::Timestamp;

/// The time of every target: 2027-01-15 08:00:00 UTC. What the corpora hold was made at this time.
pub const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// One thing that reads bytes from outside.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its corpus: a word, or the method that takes the message, `package.Service.Method`.
    pub name: &'static str,
    /// Reads the bytes and asserts what must be true; panics where it is not.
    pub run: fn(&[u8]),
}

/// Every target.
pub fn targets() -> Vec<Target> {
    [identity::TARGETS, configuration::TARGETS, files::TARGETS, streams::TARGETS, calls::TARGETS].concat()
}

/// The target of this name.
pub fn find(name: &str) -> Option<Target> {
    targets().into_iter().find(|target| target.name == name)
}

/// Where the fuzzer, the corpora, and the bundle that vouches for them are.
pub fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz"))
}

/// Where the corpora are.
pub fn corpora() -> PathBuf {
    directory().join("corpus")
}

/// Joins pieces for a target that takes several: each but the last with its length before it, in two bytes.
fn join<P: AsRef<[u8]>>(pieces: &[P]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, piece) in pieces.iter().map(AsRef::as_ref).enumerate() {
        if index + 1 < pieces.len() {
            let length = u16::try_from(piece.len()).expect("a short piece");
            bytes.extend_from_slice(&length.to_be_bytes());
        } else {
            bytes.extend_from_slice(&[0xff, 0xff]);
        }
        bytes.extend_from_slice(piece);
    }
    bytes
}

/// The pieces again, whatever the bytes are. There is one at least.
fn split(bytes: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let (piece, tail) = tail.split_at(usize::from(u16::from_be_bytes(*length)).min(tail.len()));
        pieces.push(piece);
        rest = tail;
    }
    if pieces.is_empty() {
        pieces.push(rest);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_were_joined_are_the_same_when_split() {
        for pieces in [&[&b""[..]][..], &[b"one"], &[b"one", b"", b"three"], &[b"", b""]] {
            assert_eq!(split(&join(pieces)), pieces);
        }
        assert_eq!(split(b""), [b""]);
        assert_eq!(split(b"x"), [b"x"]);
        assert_eq!(split(b"\x00\x09abc"), [b"abc"]);
    }
}
