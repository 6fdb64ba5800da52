//! Questions to the journal: who held this identity then, by which entry, from which agent.

use std::fs::File;
use std::io;
use std::path::Path;

use countersign_wire::journal::{Kind, Outcome, Record};

use super::index::{Column, Index};
use super::segment::{Frame, Read, Reader, Segment};

/// Most records one question returns.
pub(super) const RESULTS_MAX: usize = 10_000;
/// How far behind a record its outcome is looked for; outcomes follow within a second.
const OUTCOME_BYTES_MAX: u64 = 8 << 20;

/// What is asked. Conditions that are set must all hold.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// The identity.
    pub spiffe_id: Option<String>,
    /// The credential.
    pub serial_or_jti: Option<String>,
    /// The node that received it.
    pub agent_id: Option<String>,
    /// In force at or after this time, Unix milliseconds.
    pub from_millis: Option<i64>,
    /// Issued before this time, Unix milliseconds.
    pub until_millis: Option<i64>,
    /// Most records wanted; at most [`RESULTS_MAX`].
    pub limit: usize,
}

impl Query {
    /// Time conditions ask who *held* a credential: one that was issued before the span and still valid in it counts.
    fn matches(&self, record: &Record) -> bool {
        let same = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
        let end_millis = if record.expires_at == 0 { record.time_millis } else { record.expires_at.saturating_mul(1000) };
        same(&self.spiffe_id, &record.spiffe_id)
            && same(&self.serial_or_jti, &record.serial_or_jti)
            && same(&self.agent_id, &record.agent_id)
            && self.from_millis.is_none_or(|from| end_millis >= from)
            && self.until_millis.is_none_or(|until| record.time_millis < until)
    }

    fn indexed(&self) -> Option<(Column, &str)> {
        let serial = self.serial_or_jti.as_deref().map(|v| (Column::SerialOrJti, v));
        let id = self.spiffe_id.as_deref().map(|v| (Column::SpiffeId, v));
        let agent = self.agent_id.as_deref().map(|v| (Column::Agent, v));
        serial.or(id).or(agent)
    }
}

/// Searches all segments of a journal, oldest first. Blocks; runs beside the writer without disturbing it.
///
/// # Errors
/// A segment cannot be read.
pub fn search(directory: &Path, query: &Query) -> io::Result<Vec<Record>> {
    let limit = if query.limit == 0 { RESULTS_MAX } else { query.limit.min(RESULTS_MAX) };
    let mut found = Vec::new();
    let segments = Segment::list(directory)?;
    for (at, segment) in segments.iter().enumerate() {
        let left = limit.saturating_sub(found.len());
        if left == 0 {
            break;
        }
        // An index that cannot be used only makes the answer slower.
        let searched = match Index::open(segment).and_then(|index| sealed(segment, &index, query, left)) {
            Ok(records) => Ok(records),
            Err(_) => scan(segment, 0, query, left),
        };
        match searched {
            Ok(mut records) => {
                settle_late(&mut records, segments.get(at + 1..).unwrap_or_default())?;
                found.extend(records);
            }
            // Retention may take a segment away while we read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn sealed(segment: &Segment, index: &Index, query: &Query, limit: usize) -> io::Result<Vec<Record>> {
    let Some((first, _)) = index.times()? else { return Ok(Vec::new()) };
    if query.until_millis.is_some_and(|until| until.saturating_add(CLOCK_STEP_MILLIS) <= first) {
        return Ok(Vec::new());
    }
    let Some((column, value)) = query.indexed() else {
        // Only a span of time: begin where a credential that is still in force can have been issued.
        let from = query.from_millis.map_or(Ok(0), |from| index.offset_of(from.saturating_sub(LIFETIME_LOOKED_BACK_MILLIS)))?;
        return scan(segment, from, query, limit);
    };
    let file = File::open(&segment.path)?;
    let mut records = Vec::new();
    for offset in index.find(column, value)? {
        let mut reader = Reader::new(&file, offset);
        let Some(Read { frame: Frame::Record(record), .. }) = reader.next()? else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the index does not fit its segment"));
        };
        if query.matches(&record) {
            records.push(with_outcome(*record, &mut reader, offset)?);
            if records.len() >= limit {
                break;
            }
        }
    }
    Ok(records)
}

/// How much earlier than a span of time issuance is searched for credentials in force in it: agents' and workloads'
/// SVIDs live hours; longer-lived ones are found by ID or serial.
const LIFETIME_LOOKED_BACK_MILLIS: i64 = 24 * 3600 * 1000;

fn scan(segment: &Segment, from: u64, query: &Query, limit: usize) -> io::Result<Vec<Record>> {
    let file = File::open(&segment.path)?;
    let mut reader = Reader::new(&file, from);
    let mut records: Vec<Record> = Vec::new();
    let (mut complete, mut newest) = (false, from);
    while let Some(read) = reader.next()? {
        match read.frame {
            Frame::Record(record) => {
                complete |= query.until_millis.is_some_and(|until| record.time_millis >= until.saturating_add(CLOCK_STEP_MILLIS));
                if !complete && query.matches(&record) {
                    records.push(*record);
                    newest = read.offset;
                    complete = records.len() >= limit;
                }
            }
            Frame::Outcomes { signed, failed } => settle(&mut records, &signed, &failed),
        }
        if complete && (read.offset > newest + OUTCOME_BYTES_MAX || !records.iter().rev().any(is_unsettled)) {
            break;
        }
    }
    Ok(records)
}

/// Clocks may step back by about this much within a segment.
const CLOCK_STEP_MILLIS: i64 = 2 * 3600 * 1000;

/// Whether an outcome may still follow.
fn is_unsettled(record: &Record) -> bool {
    record.outcome == 0 && record.kind() != Kind::Refused
}

/// Looks into the segments that follow for outcomes that were written after the records' own was sealed.
fn settle_late(records: &mut [Record], later: &[Segment]) -> io::Result<()> {
    let mut passed = 0;
    for segment in later {
        if passed > OUTCOME_BYTES_MAX || !records.iter().any(is_unsettled) {
            break;
        }
        let file = match File::open(&segment.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut reader = Reader::new(&file, 0);
        while let Some(read) = reader.next()? {
            passed += read.end - read.offset;
            if let Frame::Outcomes { signed, failed } = &read.frame {
                settle(records, signed, failed);
                if !records.iter().any(is_unsettled) {
                    break;
                }
            }
            if passed > OUTCOME_BYTES_MAX {
                break;
            }
        }
    }
    Ok(())
}

fn settle(records: &mut [Record], signed: &[(u64, u64)], failed: &[(u64, u64)]) {
    for (ranges, outcome) in [(signed, Outcome::Signed), (failed, Outcome::Failed)] {
        for (first, last) in ranges {
            let from = records.partition_point(|r| r.sequence < *first);
            for record in records.iter_mut().skip(from).take_while(|r| r.sequence <= *last) {
                record.outcome = outcome.into();
            }
        }
    }
}

fn with_outcome(mut record: Record, reader: &mut Reader<'_>, offset: u64) -> io::Result<Record> {
    while is_unsettled(&record)
        && let Some(read) = reader.next()?
    {
        if let Frame::Outcomes { signed, failed } = &read.frame {
            let mut one = [record];
            settle(&mut one, signed, failed);
            let [settled] = one;
            record = settled;
        }
        if read.offset > offset + OUTCOME_BYTES_MAX {
            break;
        }
    }
    Ok(record)
}
