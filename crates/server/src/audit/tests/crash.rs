//! What a crash leaves behind, and how the journal goes on from it.

use std::fs::File;
use std::ops::Range;

use super::super::segment::{Frame, append, tail};
use super::*;

/// Three sealed segments of a few records, and an open one with this many records in groups of two, some settled.
async fn template(directory: &Path, clock: &Arc<TestClock>, in_newest: u64) {
    let journal = open(rolling(directory), clock);
    for group in 0..3 {
        let first = submit(&journal, vec![plain(&format!("old-{group}")), plain("x")]).await.unwrap();
        journal.outcome(first, true);
    }
    // Ends with the roll, so that the next one begins with the outcome.
    close(journal, clock);
    let journal = open(settings(directory), clock);
    for _ in 0..in_newest / 2 {
        let first = submit(&journal, vec![plain("new"), plain("y")]).await.unwrap();
        journal.outcome(first, false);
    }
    close(journal, clock);
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.path().join(file.file_name())).unwrap();
    }
    to
}

/// A journal that a crash is going to damage.
struct Template {
    directory: tempfile::TempDir,
    clock: Arc<TestClock>,
    /// The newest segment.
    bytes: Vec<u8>,
    bounds: Vec<usize>,
    earlier: Vec<Record>,
    records: Vec<Record>,
}

impl Template {
    async fn new(in_newest: u64) -> Self {
        let (directory, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
        template(directory.path(), &clock, in_newest).await;
        let bytes = std::fs::read(newest(directory.path()).path).unwrap();
        let parsed = parse(&bytes, None);
        let all = verify(directory.path());
        let earlier = all[..all.len() - parsed.records.len()].to_vec();
        Self { directory, clock, bytes, bounds: parsed.bounds, earlier, records: parsed.records }
    }

    /// The last `count` frames.
    fn last(&self, count: usize) -> Range<usize> {
        self.bounds[self.bounds.len() - 1 - count]..self.bytes.len()
    }

    /// Where the whole frames before `offset` end.
    fn whole(&self, offset: usize) -> usize {
        self.bounds.iter().copied().filter(|b| *b <= offset).max().unwrap()
    }

    /// Opens a copy whose newest segment holds `bytes`, writes down one record more, and closes it. The chain must then
    /// be whole, the first `kept` bytes untouched, and nothing between them and what was appended, but at most one frame
    /// if `spared`.
    async fn reopen(&self, what: &str, bytes: &[u8], kept: usize, spared: bool) {
        let copy = copy(self.directory.path());
        let path = newest(copy.path()).path;
        std::fs::write(&path, bytes).unwrap();
        let journal = open(settings(copy.path()), &self.clock);
        let sequence = submit(&journal, vec![plain("after")]).await.unwrap();
        close(journal, &self.clock);

        let now = std::fs::read(&path).unwrap();
        assert!(now.starts_with(&self.bytes[..kept]), "{what}: a whole frame was lost");
        let whole = parse(&self.bytes[..kept], None);
        let expected = self.earlier.len() + whole.records.len();
        let all = verify(copy.path());
        assert_eq!(all.last().unwrap().sequence, sequence, "{what}");
        assert_eq!(all.last().unwrap().serial_or_jti, "after", "{what}");
        let more = all.len() - expected;
        assert!(more == 1 || spared && more == 2, "{what}: {more} records instead of one more");
        assert_eq!(serials(&all[..self.earlier.len()]), serials(&self.earlier), "{what}");
    }
}

#[tokio::test]
async fn a_file_cut_at_any_byte_keeps_every_whole_frame() {
    let template = Template::new(4).await;
    assert!(template.bounds.len() > 6, "records and outcomes: {:?}", template.bounds);
    // From the empty segment on: its first frame must follow the last of the segment before.
    for length in 0..=template.bytes.len() {
        template.reopen(&format!("cut at {length}"), &template.bytes[..length], template.whole(length), false).await;
    }
}

#[tokio::test]
async fn garbage_at_the_end_is_cut_off() {
    let template = Template::new(4).await;
    let length = template.bytes.len();
    let mut stranger = Vec::new();
    append(&mut stranger, &[7; 32], &Frame::Record(Box::new(Record { sequence: 11, ..plain("stranger") })));
    let mut misnumbered = Vec::new();
    let last = parse(&template.bytes, None).last_digest.unwrap();
    append(&mut misnumbered, &last, &Frame::Record(Box::new(Record { sequence: 99, ..plain("misnumbered") })));
    let garbage: [(&str, Vec<u8>); 8] = [
        ("a zero", vec![0]),
        ("zeros", vec![0; 5000]),
        ("ones", vec![0xff; 5000]),
        ("noise", (0..5000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
        ("a length without its frame", vec![200, 0, 0, 0, 1, 1]),
        ("a frame of another chain", stranger),
        ("a frame of another place", misnumbered),
        // More than is verified at the start.
        ("a hole", vec![0; 9 << 20]),
    ];
    for (what, garbage) in garbage {
        let bytes = [&template.bytes[..], &garbage].concat();
        template.reopen(what, &bytes, length, false).await;
        template.reopen(&format!("nothing but {what}"), &garbage, 0, false).await;
    }
}

#[tokio::test]
async fn a_flipped_bit_costs_no_frame_before_it_and_lets_none_behind_it_through() {
    let template = Template::new(6).await;
    for at in template.last(4) {
        let mut bytes = template.bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        // A frame has no digest of its own: one whose content still reads well may itself stay.
        template.reopen(&format!("flipped at {at}"), &bytes, template.whole(at), true).await;
    }
}

#[tokio::test]
async fn a_journal_that_only_just_rolled_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    for n in 0..5 {
        // Each start finds an empty newest segment, and seals the one it writes.
        let journal = open(rolling(directory.path()), &clock);
        assert_eq!(submit(&journal, vec![plain("a"), plain("b")]).await.unwrap(), 2 * n + 1);
        close(journal, &clock);
        assert_eq!(std::fs::metadata(newest(directory.path()).path).unwrap().len(), 0);
    }
    assert_eq!(verify(directory.path()).len(), 10);
}

#[tokio::test]
async fn a_start_without_a_crash_changes_nothing() {
    let template = Template::new(4).await;
    let before = verify(template.directory.path());
    for _ in 0..3 {
        close(open(settings(template.directory.path()), &template.clock), &template.clock);
        assert_eq!(std::fs::read(newest(template.directory.path()).path).unwrap(), template.bytes);
    }
    assert_eq!(verify(template.directory.path()), before);
    assert_eq!(template.records.len(), 4);
}

#[tokio::test]
async fn empty_segments_in_a_row_do_not_break_the_chain() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(settings(directory.path()), &clock);
    submit(&journal, vec![plain("a"), plain("b"), plain("c")]).await.unwrap();
    close(journal, &clock);
    // A roll that failed half way, after which the old segment went on.
    File::create(Segment::new(directory.path(), 2).path).unwrap();
    File::create(Segment::new(directory.path(), 3).path).unwrap();
    let journal = open(settings(directory.path()), &clock);
    assert_eq!(submit(&journal, vec![plain("d")]).await.unwrap(), 4);
    drop(journal);
    eventually("the writer has ended", || Arc::strong_count(&clock) == 1);
    let bytes = |first| std::fs::read(Segment::new(directory.path(), first).path).unwrap();
    let old = parse(&bytes(1), Some([0; 32]));
    assert_eq!(parse(&bytes(3), old.last_digest).records[0].sequence, 4);
}

#[tokio::test]
async fn a_journal_whose_sealed_segments_are_gone_goes_on() {
    let template = Template::new(4).await;
    for segment in segments(template.directory.path()).iter().rev().skip(1) {
        std::fs::remove_file(&segment.path).unwrap();
    }
    let journal = open(settings(template.directory.path()), &template.clock);
    let next = template.records.last().unwrap().sequence + 1;
    assert_eq!(submit(&journal, vec![plain("after")]).await.unwrap(), next);
    close(journal, &template.clock);
    assert_eq!(verify(template.directory.path()).len(), template.records.len() + 1);
}

/// Writes this many records, then outcomes of this many bytes and more.
fn large(path: &Path, first: u64, records: u64, outcome_bytes: usize) -> usize {
    let mut bytes = Vec::new();
    let mut digest = [0; 32];
    for sequence in (first..).take(usize::try_from(records).unwrap()) {
        digest = append(&mut bytes, &digest, &Frame::Record(Box::new(Record { sequence, ..plain("r") })));
    }
    let end = bytes.len() + outcome_bytes;
    while bytes.len() < end {
        let signed = (0..60_000).map(|n| (first + n % records, first + n % records)).collect();
        digest = append(&mut bytes, &digest, &Frame::Outcomes { signed, failed: Vec::new() });
    }
    std::fs::write(path, &bytes).unwrap();
    bytes.len()
}

#[tokio::test]
async fn the_next_sequence_is_known_when_only_outcomes_are_verified() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let segment = Segment::new(directory.path(), 1);
    let length = large(&segment.path, 1, 1000, 9 << 20);
    let found = tail(&File::open(&segment.path).unwrap(), 1).unwrap();
    assert_eq!((found.next_sequence, found.end), (1001, u64::try_from(length).unwrap()));

    // The same with a torn end that is longer than what is verified.
    File::options().append(true).open(&segment.path).unwrap().set_len(u64::try_from(length).unwrap() + (9 << 20)).unwrap();
    let journal = open(settings(directory.path()), &clock);
    assert_eq!(submit(&journal, vec![plain("after")]).await.unwrap(), 1001);
    close(journal, &clock);
    let parsed = parse(&std::fs::read(&segment.path).unwrap(), Some([0; 32]));
    assert_eq!(parsed.records.last().unwrap().sequence, 1001);
}

#[tokio::test]
async fn outcomes_that_a_crash_lost_leave_their_records_as_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(settings(directory.path()), &clock);
    let recorded = journal.record(vec![minted("/w", "a"), minted("/w", "b")]).await.unwrap();
    for recorded in recorded {
        recorded.settle(true);
    }
    close(journal, &clock);
    // The crash came before the outcomes.
    let segment = newest(directory.path());
    let bounds = parse(&std::fs::read(&segment.path).unwrap(), None).bounds;
    File::options().write(true).open(&segment.path).unwrap().set_len(u64::try_from(bounds[2]).unwrap()).unwrap();

    let journal = open(settings(directory.path()), &clock);
    for recorded in journal.record(vec![minted("/w", "c")]).await.unwrap() {
        recorded.settle(false);
    }
    close(journal, &clock);
    let found = super::super::search(directory.path(), &super::super::Query::default()).unwrap().records;
    assert_eq!(found.iter().map(Record::outcome).collect::<Vec<_>>(), [Outcome::Recorded, Outcome::Recorded, Outcome::Failed]);
    assert_eq!(found, verify(directory.path()));
}
