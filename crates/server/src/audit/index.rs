//! The index of a sealed segment: time, end, ID, serial or `jti`, and agent to offsets, searched on disk.
//!
//! Pages of 4096 bytes, each `payload 4080 | checksum 16`. The first holds `magic 8 | bytes of the segment u64 | where it is
//! damaged u64 | time of the newest record u64 | number of rows in each table, 5 × u32`; then come the tables, each on pages of its own, in rows of
//! `key u64, offset u32`. Times and ends have a row for each 256 records, in file order: the time of the first of them in
//! milliseconds, and the latest end of any. The other tables are sorted by key, the first 8 bytes of SHA-256 over the value.
//!
//! A question reads few pages and believes a page only with its checksum, which is bound to the segment and the page's place.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

use countersign_identity::Timestamp;
use countersign_plugins::keys::sha256;
use countersign_wire::journal::Record;

use super::segment::{Frame, Segment, Walk};

const MAGIC: &[u8; 8] = b"CSINDEX2";
const PAGE_BYTES: usize = 4096;
const CHECKSUM_BYTES: usize = 16;
const PAYLOAD_BYTES: usize = PAGE_BYTES - CHECKSUM_BYTES;
const ROW_BYTES: usize = 12;
const ROWS_PER_PAGE: u64 = 340;
const TABLES: usize = 5;
/// Records between two rows of times and of ends.
const STEP: usize = 256;
/// Nothing is damaged.
const WHOLE: u64 = u64::MAX;

/// What can be looked up.
#[derive(Debug, Clone, Copy)]
pub(super) enum Column {
    Time = 0,
    End = 1,
    SpiffeId = 2,
    SerialOrJti = 3,
    Agent = 4,
}

fn key(value: &str) -> u64 {
    let digest = sha256(value.as_bytes());
    digest.first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b))
}

/// When what a record is about ended; a refusal ends when it happens.
pub(super) const fn end_millis(record: &Record) -> i64 {
    if record.expires_at == 0 { record.time_millis } else { record.expires_at.saturating_mul(1000) }
}

fn checksum(segment: &Segment, page: u64, payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut bytes = Vec::with_capacity(16 + payload.len());
    bytes.extend_from_slice(&segment.first_sequence.to_le_bytes());
    bytes.extend_from_slice(&page.to_le_bytes());
    bytes.extend_from_slice(payload);
    sha256(&bytes).first_chunk().copied().unwrap_or_default()
}

/// Reads a whole segment and writes its index, under another name first. `next` is the segment that follows.
pub(super) fn build(segment: &Segment, next: Option<&Segment>) -> io::Result<()> {
    let file = File::open(&segment.path)?;
    let mut walk = Walk::new(&file, 0, next);
    let mut tables: [Vec<(u64, u32)>; TABLES] = Default::default();
    let (mut count, mut newest) = (0, 0);
    while let Some(read) = walk.next()? {
        let Frame::Record(record) = read.frame else { continue };
        let offset = u32::try_from(read.offset).map_err(io::Error::other)?;
        let [times, ends, ids, serials, agents] = &mut tables;
        let end = u64::try_from(end_millis(&record)).unwrap_or(0);
        newest = u64::try_from(record.time_millis).unwrap_or(0);
        if count % STEP == 0 {
            times.push((newest, offset));
            ends.push((end, offset));
        }
        if let Some((latest, _)) = ends.last_mut() {
            *latest = end.max(*latest);
        }
        count += 1;
        for (table, value) in [(ids, &record.spiffe_id), (serials, &record.serial_or_jti), (agents, &record.agent_id)] {
            if !value.is_empty() {
                table.push((key(value), offset));
            }
        }
    }
    if let Some(at) = walk.damage.first() {
        tracing::error!(path = %segment.path.display(), at, "A sealed segment of the issuance journal is damaged at this byte");
    }
    let [_, _, sorted @ ..] = &mut tables;
    sorted.iter_mut().for_each(|table| table.sort_unstable());

    let path = segment.index_path();
    let temporary = path.with_extension("index~");
    let mut pages = Pages { segment, out: io::BufWriter::new(File::create(&temporary)?), page: 0 };
    let mut head = Vec::with_capacity(PAYLOAD_BYTES);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&file.metadata()?.len().to_le_bytes());
    head.extend_from_slice(&walk.damage.first().copied().unwrap_or(WHOLE).to_le_bytes());
    head.extend_from_slice(&newest.to_le_bytes());
    for table in &tables {
        head.extend_from_slice(&u32::try_from(table.len()).map_err(io::Error::other)?.to_le_bytes());
    }
    pages.write(head)?;
    for table in &tables {
        for rows in table.chunks(PAYLOAD_BYTES / ROW_BYTES) {
            let mut payload = Vec::with_capacity(PAYLOAD_BYTES);
            for (key, offset) in rows {
                payload.extend_from_slice(&key.to_le_bytes());
                payload.extend_from_slice(&offset.to_le_bytes());
            }
            pages.write(payload)?;
        }
    }
    pages.out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(&temporary, &path)
}

struct Pages<'a> {
    segment: &'a Segment,
    out: io::BufWriter<File>,
    page: u64,
}

impl Pages<'_> {
    fn write(&mut self, mut payload: Vec<u8>) -> io::Result<()> {
        payload.resize(PAYLOAD_BYTES, 0);
        let checksum = checksum(self.segment, self.page, &payload);
        self.page += 1;
        self.out.write_all(&payload)?;
        self.out.write_all(&checksum)
    }
}

/// An index opened for questions.
pub(super) struct Index {
    segment: Segment,
    file: File,
    /// First page and number of rows, by column.
    tables: [(u64, u64); TABLES],
    /// Where the segment was damaged when the index was made; what follows may not be in it.
    pub(super) damaged_at: Option<u64>,
    newest: i64,
    /// Pages that were read and found good.
    pages: RefCell<BTreeMap<u64, Vec<u8>>>,
}

impl Index {
    pub(super) fn open(segment: &Segment) -> io::Result<Self> {
        let file = File::open(segment.index_path())?;
        let mut index =
            Self { segment: segment.clone(), file, tables: [(0, 0); TABLES], damaged_at: None, newest: 0, pages: RefCell::default() };
        let mut counts = [0_u64; TABLES];
        let (bytes, damaged_at, newest) = index.with_page(0, |payload| {
            let (magic, rest) = payload.split_first_chunk::<8>()?;
            let (bytes, rest) = rest.split_first_chunk::<8>()?;
            let (damaged_at, rest) = rest.split_first_chunk::<8>()?;
            let (newest, mut rest) = rest.split_first_chunk::<8>()?;
            for count in &mut counts {
                let (number, tail) = rest.split_first_chunk::<4>()?;
                *count = u64::from(u32::from_le_bytes(*number));
                rest = tail;
            }
            (magic == MAGIC).then_some((u64::from_le_bytes(*bytes), u64::from_le_bytes(*damaged_at), u64::from_le_bytes(*newest)))
        })?;
        let mut page = 1;
        for (table, count) in index.tables.iter_mut().zip(counts) {
            *table = (page, count);
            page += count.div_ceil(ROWS_PER_PAGE);
        }
        if index.file.metadata()?.len() != page * PAGE_BYTES as u64 || std::fs::metadata(&segment.path)?.len() != bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the index does not fit its segment"));
        }
        index.newest = millis(newest);
        index.damaged_at = (damaged_at != WHOLE).then_some(damaged_at);
        Ok(index)
    }

    /// Reads something from a page that is good.
    fn with_page<T>(&self, page: u64, read: impl FnOnce(&[u8]) -> Option<T>) -> io::Result<T> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("page {page} of the index is damaged"));
        let mut pages = self.pages.borrow_mut();
        let payload = match pages.entry(page) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let mut bytes = vec![0; PAGE_BYTES];
                self.file.read_exact_at(&mut bytes, page * PAGE_BYTES as u64)?;
                let (payload, found) = bytes.split_at(PAYLOAD_BYTES);
                if found != checksum(&self.segment, page, payload) {
                    return Err(damaged());
                }
                bytes.truncate(PAYLOAD_BYTES);
                place.insert(bytes)
            }
        };
        read(payload).ok_or_else(damaged)
    }

    fn row(&self, column: Column, index: u64) -> io::Result<(u64, u64)> {
        let (start, _) = self.table(column);
        let at = usize::try_from(index % ROWS_PER_PAGE).unwrap_or(0) * ROW_BYTES;
        self.with_page(start + index / ROWS_PER_PAGE, |payload| {
            let (key, rest) = payload.get(at..)?.split_first_chunk::<8>()?;
            let (offset, _) = rest.split_first_chunk::<4>()?;
            Some((u64::from_le_bytes(*key), u64::from(u32::from_le_bytes(*offset))))
        })
    }

    fn table(&self, column: Column) -> (u64, u64) {
        self.tables.get(column as usize).copied().unwrap_or_default()
    }

    /// Index of the first row whose key is not below this one.
    fn lower_bound(&self, column: Column, wanted: u64) -> io::Result<u64> {
        let (mut low, mut high) = (0, self.table(column).1);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.row(column, middle)?.0 < wanted { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// Offsets of records that may have this value, in file order.
    pub(super) fn find(&self, column: Column, value: &str) -> io::Result<Vec<u64>> {
        let wanted = key(value);
        let mut offsets = Vec::new();
        let count = self.table(column).1;
        let mut at = self.lower_bound(column, wanted)?;
        while at < count {
            let (key, offset) = self.row(column, at)?;
            if key != wanted {
                break;
            }
            offsets.push(offset);
            at += 1;
        }
        Ok(offsets)
    }

    /// Time of the first record.
    pub(super) fn first_time(&self) -> io::Result<Option<i64>> {
        if self.table(Column::Time).1 == 0 {
            return Ok(None);
        }
        Ok(Some(millis(self.row(Column::Time, 0)?.0)))
    }

    /// Stretches of the segment, from offset to offset, that may hold records written before `until` of something that
    /// ended at `from` or later. The last one goes to the end of the segment.
    pub(super) fn stretches(&self, from: Option<i64>, until: Option<i64>) -> io::Result<Vec<(u64, u64)>> {
        let mut stretches: Vec<(u64, u64)> = Vec::new();
        let count = self.table(Column::Time).1;
        for at in 0..count {
            let (time, offset) = self.row(Column::Time, at)?;
            let (end, _) = self.row(Column::End, at)?;
            if from.is_some_and(|from| millis(end) < from) || until.is_some_and(|until| millis(time) >= until) {
                continue;
            }
            let to = if at + 1 < count { self.row(Column::Time, at + 1)?.1 } else { u64::MAX };
            match stretches.last_mut() {
                Some((_, end)) if *end == offset => *end = to,
                _ => stretches.push((offset, to)),
            }
        }
        Ok(stretches)
    }
}

fn millis(key: u64) -> i64 {
    i64::try_from(key).unwrap_or(i64::MAX)
}

/// Time of the newest record of a sealed segment.
pub(super) fn newest(segment: &Segment) -> Option<Timestamp> {
    let index = Index::open(segment).ok()?;
    index.first_time().ok()??;
    Some(Timestamp::from_millis(index.newest))
}
