//! The index of a sealed segment: time, ID, serial or `jti`, and agent to offsets, searched on disk.
//!
//! `magic 8 | four tables`, each `count u32 | count × (key u64, offset u32)` sorted by key. Times are milliseconds, one
//! for each 256 records and one for the last; the other keys are the first 8 bytes of SHA-256 over the value.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

use countersign_identity::Timestamp;
use countersign_plugins::keys::sha256;

use super::segment::{Frame, Reader, Segment};

const MAGIC: &[u8; 8] = b"CSINDEX1";
const ROW_BYTES: u64 = 12;
/// Records between two times in the index.
const TIME_STEP: usize = 256;

/// What can be looked up.
#[derive(Debug, Clone, Copy)]
pub(super) enum Column {
    Time = 0,
    SpiffeId = 1,
    SerialOrJti = 2,
    Agent = 3,
}

fn key(value: &str) -> u64 {
    let digest = sha256(value.as_bytes());
    digest.first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b))
}

/// Reads a whole segment and writes its index, under another name first.
pub(super) fn build(segment: &Segment) -> io::Result<()> {
    let file = File::open(&segment.path)?;
    let mut reader = Reader::new(&file, 0);
    let mut columns: [Vec<(u64, u32)>; 4] = Default::default();
    let mut count = 0;
    let mut last = None;
    while let Some(read) = reader.next()? {
        let Frame::Record(record) = read.frame else { continue };
        let offset = u32::try_from(read.offset).map_err(io::Error::other)?;
        let [times, ids, serials, agents] = &mut columns;
        let time = u64::try_from(record.time_millis).unwrap_or(0);
        if count % TIME_STEP == 0 {
            times.push((time, offset));
        }
        last = Some((time, offset));
        count += 1;
        for (column, value) in [(ids, &record.spiffe_id), (serials, &record.serial_or_jti), (agents, &record.agent_id)] {
            if !value.is_empty() {
                column.push((key(value), offset));
            }
        }
    }
    let [times, rest @ ..] = &mut columns;
    times.extend(last);
    for column in rest {
        column.sort_unstable();
    }
    let path = segment.index_path();
    let temporary = path.with_extension("index~");
    let mut out = io::BufWriter::new(File::create(&temporary)?);
    out.write_all(MAGIC)?;
    for column in &columns {
        out.write_all(&u32::try_from(column.len()).map_err(io::Error::other)?.to_le_bytes())?;
        for (key, offset) in column {
            out.write_all(&key.to_le_bytes())?;
            out.write_all(&offset.to_le_bytes())?;
        }
    }
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(&temporary, &path)
}

/// An index opened for questions.
pub(super) struct Index {
    file: File,
    /// Offset of the first row and number of rows, by column.
    tables: [(u64, u64); 4],
}

impl Index {
    pub(super) fn open(segment: &Segment) -> io::Result<Self> {
        let file = File::open(segment.index_path())?;
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, 0)?;
        if magic != *MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not an index"));
        }
        let mut tables = [(0, 0); 4];
        let mut at = 8;
        for table in &mut tables {
            let mut count = [0; 4];
            file.read_exact_at(&mut count, at)?;
            let count = u64::from(u32::from_le_bytes(count));
            *table = (at + 4, count);
            at += 4 + count * ROW_BYTES;
        }
        if file.metadata()?.len() != at {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the index is not whole"));
        }
        Ok(Self { file, tables })
    }

    fn row(&self, column: Column, index: u64) -> io::Result<(u64, u64)> {
        let (start, _) = self.table(column);
        let mut bytes = [0; 12];
        self.file.read_exact_at(&mut bytes, start + index * ROW_BYTES)?;
        let (key, offset) = bytes.split_at(8);
        let key = key.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        let offset = offset.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        Ok((key, u64::from(offset)))
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

    /// First and last time in the segment.
    pub(super) fn times(&self) -> io::Result<Option<(i64, i64)>> {
        let count = self.table(Column::Time).1;
        if count == 0 {
            return Ok(None);
        }
        let millis = |row: (u64, u64)| i64::try_from(row.0).unwrap_or(i64::MAX);
        Ok(Some((millis(self.row(Column::Time, 0)?), millis(self.row(Column::Time, count - 1)?))))
    }

    /// An offset at or before the first record of this time or later. Clocks may step back, so a little earlier is searched.
    pub(super) fn offset_of(&self, time_millis: i64) -> io::Result<u64> {
        let wanted = u64::try_from(time_millis).unwrap_or(0);
        match self.lower_bound(Column::Time, wanted)? {
            0 => Ok(0),
            at => Ok(self.row(Column::Time, at - 1)?.1),
        }
    }
}

/// Time of the newest record of a sealed segment.
pub(super) fn newest(segment: &Segment) -> Option<Timestamp> {
    let (_, last) = Index::open(segment).ok()?.times().ok()??;
    Some(Timestamp::from_millis(last))
}
