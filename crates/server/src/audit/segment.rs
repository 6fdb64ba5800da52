//! Segment files: frames that follow each other, each with format version and the digest of the one before.
//!
//! A frame is `length u32 | version u8 | type u8 | previous digest 32 | body`, little-endian, the length not counting
//! itself. The digest of a frame is SHA-256 over everything after its length.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use countersign_plugins::keys::sha256;
use countersign_wire::journal::Record;
use prost::Message as _;

const VERSION: u8 = 1;
const RECORD: u8 = 1;
const OUTCOMES: u8 = 2;
const HEADER_BYTES: usize = 4 + 2 + 32;
/// Largest frame read back; a record with a 2048-byte ID and its evidence stays well below.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Bytes at the end whose digests are checked when a segment is opened: more than one group of writes.
const TAIL_CHECKED_BYTES: u64 = 8 << 20;

pub(super) type Digest = [u8; 32];

/// What a frame holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Frame {
    Record(Box<Record>),
    /// Sequences that were signed, and that failed, as inclusive ranges.
    Outcomes {
        signed: Vec<(u64, u64)>,
        failed: Vec<(u64, u64)>,
    },
}

/// Appends a frame to `out` and returns its digest.
pub(super) fn append(out: &mut Vec<u8>, previous: &Digest, frame: &Frame) -> Digest {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.push(VERSION);
    match frame {
        Frame::Record(record) => {
            out.push(RECORD);
            out.extend_from_slice(previous);
            // Encoding into a growing vector cannot run out of room.
            let _ = record.encode(out);
        }
        Frame::Outcomes { signed, failed } => {
            out.push(OUTCOMES);
            out.extend_from_slice(previous);
            for ranges in [signed, failed] {
                out.extend_from_slice(&u32::try_from(ranges.len()).unwrap_or(u32::MAX).to_le_bytes());
                for (first, last) in ranges {
                    out.extend_from_slice(&first.to_le_bytes());
                    out.extend_from_slice(&last.to_le_bytes());
                }
            }
        }
    }
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    if let Some(slot) = out.get_mut(start..start + 4) {
        slot.copy_from_slice(&length.to_le_bytes());
    }
    sha256(out.get(start + 4..).unwrap_or_default())
}

/// A frame as it was read, with its place.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) offset: u64,
    pub(super) end: u64,
    pub(super) digest: Digest,
    pub(super) previous: Digest,
    pub(super) frame: Frame,
}

/// What comes next in a segment.
#[derive(Debug)]
pub(super) enum Step {
    Frame(Read),
    /// Bytes that are no frame; whether the next one can be found all the same.
    Damaged {
        offset: u64,
        goes_on: bool,
    },
    /// The file ends within a frame: a write that is under way, or was cut off.
    Torn {
        offset: u64,
    },
    End,
}

enum Next {
    Whole(usize),
    Torn,
    Impossible,
    End,
}

/// Reads frames and checks that each is the one its successor was chained to. So a flipped bit is found wherever it is,
/// but in the newest frame of all, which has no successor yet.
pub(super) struct Walk<'a> {
    reader: Reader<'a>,
    /// Whether nothing is added to the segment any more.
    sealed: bool,
    /// What the first frame of the next segment was chained to.
    successor: Option<Digest>,
    /// Offset and digest of the frame before.
    before: Option<(u64, Digest)>,
    /// Where something is wrong.
    pub(super) damage: Vec<u64>,
}

impl<'a> Walk<'a> {
    /// From a frame's offset; `next` is the segment that follows, if this one is sealed.
    pub(super) fn new(file: &'a File, offset: u64, next: Option<&Segment>) -> Self {
        let successor = next.and_then(|next| Reader::new(&File::open(&next.path).ok()?, 0).next().ok()?).map(|read| read.previous);
        Self { reader: Reader::new(file, offset), sealed: next.is_some(), successor, before: None, damage: Vec::new() }
    }

    /// Goes on at another frame.
    pub(super) fn jump(&mut self, file: &'a File, offset: u64) {
        self.reader = Reader::new(file, offset);
        self.before = None;
    }

    /// The next frame that can be read.
    pub(super) fn next(&mut self) -> io::Result<Option<Read>> {
        loop {
            match self.reader.step()? {
                Step::Frame(read) => {
                    self.check(Some(read.previous));
                    self.before = Some((read.offset, read.digest));
                    return Ok(Some(read));
                }
                Step::Damaged { offset, goes_on } => {
                    self.damage.push(offset);
                    self.before = None;
                    if !goes_on {
                        return Ok(None);
                    }
                }
                Step::Torn { offset } => {
                    if self.sealed {
                        self.damage.push(offset);
                    }
                    return Ok(None);
                }
                Step::End => {
                    self.check(self.successor);
                    self.before = None;
                    return Ok(None);
                }
            }
        }
    }

    /// Reads one frame more than is wanted: it tells whether the last that was used is as it was written.
    pub(super) fn confirm(&mut self) -> io::Result<()> {
        self.next().map(drop)
    }

    fn check(&mut self, chained_to: Option<Digest>) {
        if let (Some((offset, digest)), Some(chained_to)) = (self.before, chained_to)
            && digest != chained_to
        {
            self.damage.push(offset);
        }
    }
}

/// Reads frames one after the other until the first that is not whole.
pub(super) struct Reader<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Offset in the file of the first byte in the buffer.
    base: u64,
    at: usize,
    /// Least that is read at once: little for one record, then more and more.
    chunk: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a File, offset: u64) -> Self {
        Self { file, buffer: Vec::new(), base: offset, at: 0, chunk: 4 << 10 }
    }

    /// Makes at least `wanted` bytes available, if the file has them.
    fn fill(&mut self, wanted: usize) -> io::Result<bool> {
        if self.buffer.len() - self.at >= wanted {
            return Ok(true);
        }
        self.buffer.drain(..self.at);
        self.base += u64::try_from(self.at).unwrap_or(0);
        self.at = 0;
        let have = self.buffer.len();
        self.buffer.resize(have + wanted.max(self.chunk), 0);
        self.chunk = (2 * self.chunk).min(256 << 10);
        let mut filled = have;
        while filled < self.buffer.len() {
            let Some(rest) = self.buffer.get_mut(filled..) else { break };
            let read = self.file.read_at(rest, self.base + u64::try_from(filled).unwrap_or(0))?;
            if read == 0 {
                break;
            }
            filled += read;
        }
        self.buffer.truncate(filled);
        Ok(filled >= wanted)
    }

    /// The length of the next frame, and whether it is whole.
    fn next_length(&mut self) -> io::Result<Next> {
        if !self.fill(4)? {
            return Ok(if self.buffer.len() > self.at { Next::Torn } else { Next::End });
        }
        let length = self.buffer.get(self.at..self.at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if !(HEADER_BYTES - 4..=FRAME_BYTES_MAX).contains(&length) {
            return Ok(Next::Impossible);
        }
        Ok(if self.fill(4 + length)? { Next::Whole(length) } else { Next::Torn })
    }

    /// The next frame, or why there is none.
    pub(super) fn step(&mut self) -> io::Result<Step> {
        let next = self.next_length()?;
        let offset = self.base + u64::try_from(self.at).unwrap_or(0);
        let length = match next {
            Next::Whole(length) => length,
            Next::End => return Ok(Step::End),
            Next::Torn => return Ok(Step::Torn { offset }),
            Next::Impossible => return Ok(Step::Damaged { offset, goes_on: false }),
        };
        let bytes = self.buffer.get(self.at + 4..self.at + 4 + length).unwrap_or_default();
        let end = offset + 4 + u64::try_from(length).unwrap_or(0);
        let step = match decode(bytes) {
            Some((previous, frame)) => Step::Frame(Read { offset, end, digest: sha256(bytes), previous, frame }),
            None => Step::Damaged { offset, goes_on: true },
        };
        self.at += 4 + length;
        Ok(step)
    }

    /// The next frame, if it can be read.
    pub(super) fn next(&mut self) -> io::Result<Option<Read>> {
        Ok(match self.step()? {
            Step::Frame(read) => Some(read),
            Step::Damaged { .. } | Step::Torn { .. } | Step::End => None,
        })
    }

    /// Passes over a frame without decoding it: where it ended, its digest, and whether it is a record.
    fn skip(&mut self) -> io::Result<Option<(u64, Digest, bool)>> {
        let Next::Whole(length) = self.next_length()? else { return Ok(None) };
        let bytes = self.buffer.get(self.at + 4..self.at + 4 + length).unwrap_or_default();
        let (digest, is_record) = (sha256(bytes), bytes.get(1) == Some(&RECORD));
        self.at += 4 + length;
        Ok(Some((self.base + u64::try_from(self.at).unwrap_or(0), digest, is_record)))
    }
}

fn decode(bytes: &[u8]) -> Option<(Digest, Frame)> {
    let (version, rest) = bytes.split_first()?;
    let (kind, rest) = rest.split_first()?;
    let (previous, body) = rest.split_first_chunk::<32>()?;
    if *version != VERSION {
        return None;
    }
    let frame = match *kind {
        RECORD => Frame::Record(Box::new(Record::decode(body).ok()?)),
        OUTCOMES => {
            let (signed, rest) = ranges(body)?;
            let (failed, rest) = ranges(rest)?;
            if !rest.is_empty() {
                return None;
            }
            Frame::Outcomes { signed, failed }
        }
        _ => return None,
    };
    Some((*previous, frame))
}

type Ranges = Vec<(u64, u64)>;

fn ranges(bytes: &[u8]) -> Option<(Ranges, &[u8])> {
    let (count, mut rest) = bytes.split_first_chunk::<4>()?;
    let mut found = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let (first, tail) = rest.split_first_chunk::<8>()?;
        let (last, tail) = tail.split_first_chunk::<8>()?;
        found.push((u64::from_le_bytes(*first), u64::from_le_bytes(*last)));
        rest = tail;
    }
    Some((found, rest))
}

/// A segment file, named for the sequence of its first record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    pub(super) first_sequence: u64,
    pub(super) path: PathBuf,
}

impl Segment {
    pub(super) fn new(directory: &Path, first_sequence: u64) -> Self {
        Self { first_sequence, path: directory.join(format!("{first_sequence:020}.journal")) }
    }

    /// The index beside it, there once it is sealed.
    pub(super) fn index_path(&self) -> PathBuf {
        self.path.with_extension("index")
    }

    /// All segments of a directory, oldest first.
    pub(super) fn list(directory: &Path) -> io::Result<Vec<Self>> {
        let mut segments = Vec::new();
        for file in std::fs::read_dir(directory)? {
            let path = file?.path();
            let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
            if let (Some(first_sequence), Some("journal")) = (number, path.extension().and_then(|e| e.to_str())) {
                segments.push(Self { first_sequence, path });
            }
        }
        segments.sort();
        Ok(segments)
    }
}

/// Where a segment's whole frames end.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) end: u64,
    /// Digest of its last frame; zeros if it has none.
    pub(super) digest: Digest,
    /// Sequence after its last record.
    pub(super) next_sequence: u64,
}

/// Finds the end of the last whole frame. Bytes after it were never acknowledged.
pub(super) fn tail(file: &File, first_sequence: u64) -> io::Result<Tail> {
    let length = file.metadata()?.len();
    let check_from = length.saturating_sub(TAIL_CHECKED_BYTES);
    let mut found = Tail { end: 0, digest: [0; 32], next_sequence: first_sequence };
    let mut hop = Reader::new(file, 0);
    while found.end < check_from {
        let Some((end, digest, is_record)) = hop.skip()? else { break };
        found = Tail { end, digest, next_sequence: found.next_sequence + u64::from(is_record) };
    }
    // What was passed over was not verified, so the first frame after it is taken at its word; and the first of a
    // segment continues the segment before, which may be gone.
    let mut previous: Option<Digest> = None;
    let mut expected = (found.end == 0).then_some(first_sequence);
    let mut reader = Reader::new(file, found.end);
    while let Some(read) = reader.next()? {
        if previous.is_some_and(|p| p != read.previous) {
            break;
        }
        if let Frame::Record(record) = &read.frame {
            if expected.is_some_and(|e| e != record.sequence) {
                break;
            }
            found.next_sequence = record.sequence.saturating_add(1);
            expected = Some(found.next_sequence);
        }
        previous = Some(read.digest);
        found.end = read.end;
        found.digest = read.digest;
    }
    Ok(found)
}
