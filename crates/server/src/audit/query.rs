//! Questions to the journal: who held this identity then, by which entry, from which agent.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use countersign_wire::journal::{Kind, Outcome, Record};

use super::index::{Column, Index, end_millis};
use super::segment::{Frame, Read, Segment, Walk};

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
    /// Most records wanted, the newest of all that match; at most [`RESULTS_MAX`].
    pub limit: usize,
}

impl Query {
    /// Time conditions ask who *held* a credential: one that was issued before the span and still valid in it counts.
    fn matches(&self, record: &Record) -> bool {
        let same = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
        same(&self.spiffe_id, &record.spiffe_id)
            && same(&self.serial_or_jti, &record.serial_or_jti)
            && same(&self.agent_id, &record.agent_id)
            && self.from_millis.is_none_or(|from| end_millis(record) >= from)
            && self.until_millis.is_none_or(|until| record.time_millis < until)
    }

    fn indexed(&self) -> Option<(Column, &str)> {
        let serial = self.serial_or_jti.as_deref().map(|v| (Column::SerialOrJti, v));
        let id = self.spiffe_id.as_deref().map(|v| (Column::SpiffeId, v));
        let agent = self.agent_id.as_deref().map(|v| (Column::Agent, v));
        serial.or(id).or(agent)
    }
}

/// A place in the journal that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damage {
    /// The segment's file.
    pub path: PathBuf,
    /// First byte of the frame.
    pub at: u64,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is damaged at byte {}", self.path.display(), self.at)
    }
}

/// What a question finds.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The newest records that match, in the order in which they were written.
    pub records: Vec<Record>,
    /// Where the journal was damaged on the way: something may be missing from the records, or be wrong in them.
    pub damage: Vec<Damage>,
}

/// Searches all segments of a journal, newest first, until there are as many records as wanted. Blocks; runs beside the
/// writer without disturbing it.
///
/// # Errors
/// A segment cannot be read.
pub fn search(directory: &Path, query: &Query) -> io::Result<Answer> {
    let limit = if query.limit == 0 { RESULTS_MAX } else { query.limit.min(RESULTS_MAX) };
    let mut found: Vec<Vec<Record>> = Vec::new();
    let mut damage = Vec::new();
    let mut left = limit;
    let segments = Segment::list(directory)?;
    for (at, segment) in segments.iter().enumerate().rev() {
        if left == 0 {
            break;
        }
        let later = segments.get(at + 1..).unwrap_or_default();
        match search_segment(segment, later.first(), query, left) {
            Ok((mut records, places)) => {
                damage.extend(settle_late(&mut records, later)?);
                left = left.saturating_sub(records.len());
                found.push(records);
                damage.extend(places.into_iter().map(|at| Damage { path: segment.path.clone(), at }));
            }
            // Retention may take a segment away while we read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    damage.sort();
    damage.dedup();
    Ok(Answer { records: found.into_iter().rev().flatten().collect(), damage })
}

/// The newest records of one segment that match, and where it is damaged.
type Part = (Vec<Record>, Vec<u64>);

fn search_segment(segment: &Segment, next: Option<&Segment>, query: &Query, limit: usize) -> io::Result<Part> {
    let by_index = match Index::open(segment) {
        Ok(index) => sealed(segment, &index, next, query, limit),
        Err(error) => Err(error),
    };
    // Without an index the segment is not sealed yet, or its index is still being made.
    let error = match by_index {
        Ok(part) => return Ok(part),
        Err(error) => error,
    };
    let part = scan(segment, &[(0, u64::MAX)], next, query, limit)?;
    if error.kind() != io::ErrorKind::NotFound {
        tracing::warn!(
            path = %segment.index_path().display(), %error,
            "An index of the issuance journal cannot be believed; its segment was read instead, and the index is made again"
        );
        if let Err(error) = super::index::build(segment, next) {
            tracing::warn!(path = %segment.path.display(), %error, "Cannot index a journal segment");
        }
    }
    Ok(part)
}

fn sealed(segment: &Segment, index: &Index, next: Option<&Segment>, query: &Query, limit: usize) -> io::Result<Part> {
    let until = query.until_millis.map(|until| until.saturating_add(CLOCK_STEP_MILLIS));
    let Some(first) = index.first_time()? else { return Ok((Vec::new(), index.damaged_at.into_iter().collect())) };
    if until.is_some_and(|until| until <= first) {
        return Ok((Vec::new(), Vec::new()));
    }
    let Some((column, value)) = query.indexed() else {
        let (records, mut damage) = scan(segment, &index.stretches(query.from_millis, until)?, next, query, limit)?;
        damage.extend(index.damaged_at);
        return Ok((records, damage));
    };
    // What ended before the span would be read record by record only to be left out.
    if query.from_millis.is_some() && index.stretches(query.from_millis, None)?.is_empty() {
        return Ok((Vec::new(), index.damaged_at.into_iter().collect()));
    }
    let file = File::open(&segment.path)?;
    let mut walk = Walk::new(&file, 0, next);
    let mut records = Vec::new();
    for offset in index.find(column, value)?.into_iter().rev() {
        walk.jump(&file, offset);
        // A record that cannot be read any more is among the damage.
        let Some(Read { frame: Frame::Record(record), offset: found, .. }) = walk.next()? else { continue };
        // Read on at least once: only the frame that follows tells whether one is as it was written.
        let record = with_outcome(*record, &mut walk, found)?;
        if found == offset && query.matches(&record) {
            records.push(record);
            if records.len() >= limit {
                break;
            }
        }
    }
    records.reverse();
    walk.damage.extend(index.damaged_at);
    Ok((records, walk.damage))
}

/// Reads these stretches of a segment, the newest first.
fn scan(segment: &Segment, stretches: &[(u64, u64)], next: Option<&Segment>, query: &Query, limit: usize) -> io::Result<Part> {
    let file = File::open(&segment.path)?;
    let mut walk = Walk::new(&file, 0, next);
    let mut found: Vec<Vec<Record>> = Vec::new();
    let mut left = limit;
    for (from, to) in stretches.iter().rev() {
        if left == 0 {
            break;
        }
        walk.jump(&file, *from);
        let records = scan_stretch(&mut walk, *to, query, left)?;
        left -= records.len().min(left);
        found.push(records);
    }
    Ok((found.into_iter().rev().flatten().collect(), walk.damage))
}

fn scan_stretch(walk: &mut Walk<'_>, to: u64, query: &Query, limit: usize) -> io::Result<Vec<Record>> {
    let mut records: Vec<Record> = Vec::new();
    let (mut complete, mut newest) = (false, 0);
    while let Some(read) = walk.next()? {
        complete |= read.offset >= to;
        match read.frame {
            Frame::Record(record) => {
                complete |= query.until_millis.is_some_and(|until| record.time_millis >= until.saturating_add(CLOCK_STEP_MILLIS));
                if !complete && query.matches(&record) {
                    records.push(*record);
                    newest = read.offset;
                    // Only the newest are wanted; the others go now and then.
                    if records.len() >= limit.saturating_mul(2) {
                        records.drain(..records.len() - limit);
                    }
                }
            }
            Frame::Outcomes { signed, failed } => settle(&mut records, &signed, &failed),
        }
        if complete && (read.offset > newest + OUTCOME_BYTES_MAX || !records.iter().rev().any(is_unsettled)) {
            walk.confirm()?;
            break;
        }
    }
    records.drain(..records.len().saturating_sub(limit));
    Ok(records)
}

/// Clocks may step back by about this much within a segment.
const CLOCK_STEP_MILLIS: i64 = 2 * 3600 * 1000;

/// Whether an outcome may still follow.
fn is_unsettled(record: &Record) -> bool {
    record.outcome == 0 && record.kind() != Kind::Refused
}

/// Looks into the segments that follow for outcomes that were written after the records' own was sealed. Returns where they
/// are damaged: an outcome may have been there.
fn settle_late(records: &mut [Record], later: &[Segment]) -> io::Result<Vec<Damage>> {
    let mut damage = Vec::new();
    let mut passed = 0;
    for (at, segment) in later.iter().enumerate() {
        if passed > OUTCOME_BYTES_MAX || !records.iter().any(is_unsettled) {
            break;
        }
        let file = match File::open(&segment.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut walk = Walk::new(&file, 0, later.get(at + 1));
        while let Some(read) = walk.next()? {
            passed += read.end - read.offset;
            if let Frame::Outcomes { signed, failed } = &read.frame {
                settle(records, signed, failed);
                if !records.iter().any(is_unsettled) {
                    walk.confirm()?;
                    break;
                }
            }
            if passed > OUTCOME_BYTES_MAX {
                break;
            }
        }
        damage.extend(walk.damage.into_iter().map(|at| Damage { path: segment.path.clone(), at }));
    }
    Ok(damage)
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

/// Reads on for what came of a record; at least one frame, and no outcome for a refusal.
fn with_outcome(mut record: Record, walk: &mut Walk<'_>, offset: u64) -> io::Result<Record> {
    while let Some(read) = walk.next()? {
        if let Frame::Outcomes { signed, failed } = &read.frame
            && is_unsettled(&record)
        {
            let mut one = [record];
            settle(&mut one, signed, failed);
            let [settled] = one;
            record = settled;
        }
        if !is_unsettled(&record) || read.offset > offset + OUTCOME_BYTES_MAX {
            walk.confirm()?;
            break;
        }
    }
    Ok(record)
}
