//! Questions to sealed and open segments, against reading everything.

use countersign_wire::journal::Kind;
use proptest::prelude::*;

use super::super::query::{Query, search};
use super::*;

/// The same question answered by reading everything.
fn naive(all: &[Record], query: &Query) -> Vec<Record> {
    let is = |wanted: &Option<String>, value: &String| match wanted {
        Some(wanted) => wanted == value,
        None => true,
    };
    let in_force = |r: &Record| {
        let end = if r.expires_at == 0 { r.time_millis } else { r.expires_at * 1000 };
        query.from_millis.unwrap_or(i64::MIN) <= end && r.time_millis < query.until_millis.unwrap_or(i64::MAX)
    };
    let limit = if query.limit == 0 { 10_000 } else { query.limit.min(10_000) };
    let matches = |r: &&Record| {
        is(&query.spiffe_id, &r.spiffe_id) && is(&query.serial_or_jti, &r.serial_or_jti) && is(&query.agent_id, &r.agent_id) && in_force(r)
    };
    let found: Vec<Record> = all.iter().filter(matches).cloned().collect();
    found[found.len().saturating_sub(limit)..].to_vec()
}

fn check(directory: &Path, all: &[Record], query: &Query) {
    let answer = search(directory, query).unwrap();
    assert_eq!(answer.records, naive(all, query), "{query:?}");
    assert_eq!(answer.damage, [], "{query:?}");
}

/// One record and what comes of it.
#[derive(Debug, Clone)]
struct Step {
    record: Record,
    after_millis: i64,
    outcome: Option<bool>,
    /// Records that are written before the outcome is known.
    outcome_delay: usize,
    ends_group: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let record =
        (0..4_u8, 0..12_u8, 0..4_u8, 0..36_000_i64, prop::bool::weighted(0.1)).prop_map(|(id, serial, agent, lifetime, refused)| {
            let agent_id = if agent == 0 { String::new() } else { format!("spiffe://example.org/agent/{agent}") };
            let spiffe_id = format!("spiffe://example.org/{id}");
            if refused {
                return Record { kind: Kind::Refused.into(), agent_id, spiffe_id, ..Record::default() };
            }
            // The end is counted from the time once that is known.
            Record {
                kind: Kind::WorkloadX509.into(),
                agent_id,
                spiffe_id,
                serial_or_jti: serial.to_string(),
                expires_at: lifetime,
                ..Record::default()
            }
        });
    // Now and then a little back: callers read the clock before they queue.
    let step = (record, -20..600_000_i64, prop::option::weighted(0.8, any::<bool>()), 0..6_usize, any::<bool>()).prop_map(
        |(record, after_millis, outcome, outcome_delay, ends_group)| {
            let outcome = if record.kind() == Kind::Refused { None } else { outcome };
            Step { record, after_millis, outcome, outcome_delay, ends_group }
        },
    );
    prop::collection::vec(step, 1..40)
}

fn queries() -> impl Strategy<Value = Vec<Query>> {
    let time = || prop::option::weighted(0.4, -1_000_000..16_000_000_i64);
    let query = (
        prop::option::of(0..5_u8),
        prop::option::weighted(0.3, 0..13_u8),
        prop::option::weighted(0.3, 1..5_u8),
        time(),
        time(),
        prop_oneof![Just(0), 1..6_usize, Just(usize::MAX)],
    );
    let query = query.prop_map(|(id, serial, agent, from, until, limit)| Query {
        spiffe_id: id.map(|n| format!("spiffe://example.org/{n}")),
        serial_or_jti: serial.map(|n| n.to_string()),
        agent_id: agent.map(|n| format!("spiffe://example.org/agent/{n}")),
        from_millis: from.map(|t| START_MILLIS + t),
        until_millis: until.map(|t| START_MILLIS + t),
        limit,
    });
    prop::collection::vec(query, 30)
}

/// Writes the steps down in their groups, and tells each outcome when its time has come.
async fn write(journal: &Journal, steps: &[Step]) {
    let mut due: Vec<(usize, u64, bool)> = Vec::new();
    let mut group = Vec::new();
    let mut time_millis = START_MILLIS;
    for ((at, step), sequence) in steps.iter().enumerate().zip(1..) {
        time_millis += step.after_millis;
        let expires_at = if step.record.expires_at == 0 { 0 } else { time_millis / 1000 + step.record.expires_at };
        due.extend(step.outcome.map(|signed| (at + step.outcome_delay, sequence, signed)));
        group.push(Record { time_millis, expires_at, ..step.record.clone() });
        if step.ends_group || at + 1 == steps.len() {
            submit(journal, std::mem::take(&mut group)).await.unwrap();
            for (_, sequence, signed) in due.extract_if(.., |(when, ..)| *when <= at) {
                journal.outcome(sequence, signed);
            }
        }
    }
    for (_, sequence, signed) in due {
        journal.outcome(sequence, signed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_question_gets_what_reading_everything_would_find(
        steps in steps(),
        queries in queries(),
        segment_bytes in prop_oneof![Just(1_u64), 100..3000_u64, Just(1 << 20)],
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8), 0..3),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let clock = TestClock::new();
        let journal = open(Settings { segment_bytes, ..settings(directory.path()) }, &clock);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(write(&journal, &steps));
        close(journal, &clock);
        let all = verify(directory.path());
        prop_assert_eq!(all.len(), steps.len());
        for (record, step) in all.iter().zip(&steps) {
            let expected = match step.outcome {
                None => Outcome::Recorded,
                Some(true) => Outcome::Signed,
                Some(false) => Outcome::Failed,
            };
            prop_assert_eq!(record.outcome(), expected);
        }
        let segments = segments(directory.path());
        for (which, how) in damage {
            let index = which.get(&segments).index_path();
            match (how, std::fs::read(&index)) {
                (_, Err(_)) => {}
                (0, _) => std::fs::remove_file(index).unwrap(),
                (1, Ok(bytes)) => std::fs::write(index, &bytes[..bytes.len() / 2]).unwrap(),
                (_, Ok(bytes)) => std::fs::write(index, vec![0xa5; bytes.len()]).unwrap(),
            }
        }
        for query in &queries {
            check(directory.path(), &all, query);
        }
    }
}

/// One sealed segment with these records, and an empty open one.
async fn sealed(directory: &Path, records: Vec<Record>) -> Vec<Record> {
    let clock = TestClock::new();
    let journal = open(rolling(directory), &clock);
    submit(&journal, records).await.unwrap();
    close(journal, &clock);
    let all = verify(directory);
    assert_eq!(segments(directory).len(), 2);
    all
}

#[tokio::test]
async fn a_span_of_time_is_found_within_a_long_segment() {
    let directory = tempfile::tempdir().unwrap();
    // 3000 records in 100 hours, each good for one; the index has a time for each 256.
    let minutes = |n: i64| START_MILLIS + n * 60_000;
    let record = |n: i64| Record { time_millis: minutes(2 * n), expires_at: minutes(2 * n + 60) / 1000, ..plain(&n.to_string()) };
    let all = sealed(directory.path(), (0..3000).map(record).collect()).await;
    for from in [-10, 0, 61, 1500, 1501, 3000, 5998, 6058, 6059, 9000].map(minutes) {
        for length in [0, 1, 100, 100_000] {
            let query = Query { from_millis: Some(from), until_millis: Some(from + length * 60_000), ..Query::default() };
            check(directory.path(), &all, &query);
            check(directory.path(), &all, &Query { limit: 3, ..query });
        }
        check(directory.path(), &all, &Query { from_millis: Some(from), ..Query::default() });
        check(directory.path(), &all, &Query { until_millis: Some(from), ..Query::default() });
    }
}

#[tokio::test]
async fn a_record_that_overtook_an_earlier_one_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let record = |millis: i64| Record { time_millis: START_MILLIS + millis, ..plain(&millis.to_string()) };
    let all = sealed(directory.path(), vec![record(5), record(3)]).await;
    check(directory.path(), &all, &Query { until_millis: Some(START_MILLIS + 4), ..Query::default() });
    check(directory.path(), &all, &Query { from_millis: Some(START_MILLIS + 4), ..Query::default() });
}

#[tokio::test]
async fn a_busy_identity_does_not_hide_what_came_after() {
    let directory = tempfile::tempdir().unwrap();
    // More of one identity than one answer may hold, and only the last ones went to the other node.
    let record = |n: i64| Record {
        spiffe_id: "spiffe://example.org/busy".to_owned(),
        agent_id: if n < 10_500 { "spiffe://example.org/a" } else { "spiffe://example.org/b" }.to_owned(),
        time_millis: START_MILLIS + n,
        ..Record::default()
    };
    let records = (0..10_510).map(record).map(|r| Record { kind: Kind::Refused.into(), ..r }).collect();
    let all = sealed(directory.path(), records).await;
    let busy = Query { spiffe_id: Some("spiffe://example.org/busy".to_owned()), ..Query::default() };
    check(directory.path(), &all, &Query { agent_id: Some("spiffe://example.org/b".to_owned()), ..busy.clone() });
    check(directory.path(), &all, &Query { from_millis: Some(START_MILLIS + 10_505), ..busy });
    let everything = search(directory.path(), &Query::default()).unwrap().records;
    assert_eq!(everything.len(), 10_000, "one answer has an end");
}

#[tokio::test]
async fn the_open_segment_answers_while_it_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(settings(directory.path()), &clock);
    for n in 0..20 {
        submit(&journal, vec![plain(&n.to_string())]).await.unwrap();
        let query = Query { serial_or_jti: Some(n.to_string()), ..Query::default() };
        assert_eq!(serials(&search(directory.path(), &query).unwrap().records), [n.to_string()]);
    }
}

#[tokio::test]
async fn an_index_of_another_segment_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(rolling(directory.path()), &clock);
    submit(&journal, vec![plain("first")]).await.unwrap();
    submit(&journal, (0..50).map(|n| plain(&n.to_string())).chain([plain("second")]).collect()).await.unwrap();
    close(journal, &clock);
    let all = verify(directory.path());
    let [one, other, _] = &segments(directory.path())[..] else { panic!("three segments") };
    std::fs::copy(other.index_path(), one.index_path()).unwrap();
    check(directory.path(), &all, &Query { serial_or_jti: Some("second".to_owned()), ..Query::default() });
}

#[tokio::test]
async fn a_segment_that_retention_took_away_is_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(rolling(directory.path()), &clock);
    for n in 0..3 {
        submit(&journal, vec![plain(&n.to_string())]).await.unwrap();
    }
    close(journal, &clock);
    // Listed, but gone when it is opened.
    let gone = Segment::new(directory.path(), 2);
    std::fs::remove_file(&gone.path).unwrap();
    std::os::unix::fs::symlink("nowhere", &gone.path).unwrap();
    assert_eq!(serials(&search(directory.path(), &Query::default()).unwrap().records), ["0", "2"]);
    let by_serial = Query { serial_or_jti: Some("1".to_owned()), ..Query::default() };
    assert!(search(directory.path(), &by_serial).unwrap().records.is_empty());
}

#[tokio::test]
async fn what_lives_long_is_found_by_time_alone() {
    let directory = tempfile::tempdir().unwrap();
    let day = |n: i64| START_MILLIS + n * 86_400_000;
    // One credential for a month among many for an hour.
    let record = |n: i64| {
        let lifetime = if n == 300 { 30 * 86_400 } else { 3600 };
        Record { time_millis: day(0) + n * 1000, expires_at: (day(0) + n * 1000) / 1000 + lifetime, ..plain(&n.to_string()) }
    };
    let all = sealed(directory.path(), (0..3000).map(record).collect()).await;
    let query = Query { from_millis: Some(day(20)), until_millis: Some(day(21)), ..Query::default() };
    assert_eq!(serials(&search(directory.path(), &query).unwrap().records), ["300"]);
    check(directory.path(), &all, &query);
    check(directory.path(), &all, &Query { from_millis: Some(day(31)), ..Query::default() });
}

#[tokio::test]
async fn a_segment_of_what_ended_before_the_span_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let busy = "spiffe://example.org/busy".to_owned();
    let record = |n: i64| Record { spiffe_id: busy.clone(), expires_at: START_MILLIS / 1000 + 3600, ..plain(&n.to_string()) };
    let all = sealed(directory.path(), (0..300).map(record).collect()).await;
    let from = |millis: i64| Query { spiffe_id: Some(busy.clone()), from_millis: Some(START_MILLIS + millis), ..Query::default() };
    check(directory.path(), &all, &from(3_600_000));
    check(directory.path(), &all, &from(3_600_001));
    // Damage that came after the sealing is seen by who reads.
    let segment = &segments(directory.path())[0];
    let mut bytes = std::fs::read(&segment.path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment.path, bytes).unwrap();
    assert_ne!(search(directory.path(), &from(3_600_000)).unwrap().damage, []);
    assert_eq!(search(directory.path(), &from(3_600_001)).unwrap().damage, []);
}

/// Three sealed segments and an open one that is empty, with frames of all kinds.
async fn three_segments(directory: &Path) -> Vec<Record> {
    let clock = TestClock::new();
    let journal = open(rolling(directory), &clock);
    for n in 0..3_u8 {
        let first = submit(
            &journal,
            (0..2).map(|k| Record { spiffe_id: format!("spiffe://example.org/{n}"), ..plain(&format!("{n}-{k}")) }).collect(),
        );
        journal.outcome(first.await.unwrap(), true);
    }
    close(journal, &clock);
    assert_eq!(segments(directory).len(), 4);
    verify(directory)
}

/// Questions of every kind that together concern every record.
fn every_question() -> Vec<Query> {
    let id = |n: u8| Query { spiffe_id: Some(format!("spiffe://example.org/{n}")), ..Query::default() };
    let span = Query { from_millis: Some(START_MILLIS), until_millis: Some(START_MILLIS + 1), ..Query::default() };
    vec![id(0), id(1), id(2), span, Query::default()]
}

#[tokio::test]
async fn a_flipped_bit_in_a_sealed_segment_is_never_missed_in_silence() {
    let directory = tempfile::tempdir().unwrap();
    let all = three_segments(directory.path()).await;
    // The last sealed segment ends with the newest frame of all, which nothing follows yet.
    for pair in segments(directory.path())[..3].windows(2) {
        let [segment, next] = pair else { panic!("two") };
        let good = std::fs::read(&segment.path).unwrap();
        for at in (0..good.len()).step_by(3) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(&segment.path, &bad).unwrap();
            let mut damage = Vec::new();
            for query in every_question() {
                let answer = search(directory.path(), &query).unwrap();
                assert!(answer.records == naive(&all, &query) || !answer.damage.is_empty(), "byte {at}: {query:?}");
                damage.extend(answer.damage);
            }
            assert!(!damage.is_empty(), "byte {at} of {}", good.len());
            // What the first frame was chained to speaks against the end of the segment before as well.
            assert!(damage.iter().any(|d| d.path == segment.path && d.at <= at as u64), "byte {at}: {damage:?}");
            std::fs::remove_file(segment.index_path()).unwrap();
            let found: Vec<Record> = every_question().iter().flat_map(|q| search(directory.path(), q).unwrap().records).collect();
            let right: Vec<Record> = every_question().iter().flat_map(|q| naive(&all, q)).collect();
            let says = every_question().iter().any(|q| !search(directory.path(), q).unwrap().damage.is_empty());
            assert!(found == right || says, "byte {at} without an index");
            std::fs::write(&segment.path, &good).unwrap();
            super::super::index::build(segment, Some(next)).unwrap();
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_in_an_index_changes_no_answer_and_the_index_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let all = three_segments(directory.path()).await;
    let segment = segments(directory.path()).remove(1);
    let good = std::fs::read(segment.index_path()).unwrap();
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(segment.index_path(), &bad).unwrap();
        for query in every_question() {
            check(directory.path(), &all, &query);
        }
        let serial = Query { serial_or_jti: Some("1-0".to_owned()), ..Query::default() };
        check(directory.path(), &all, &serial);
        let agent = Query { agent_id: Some("spiffe://example.org/nobody".to_owned()), ..Query::default() };
        check(directory.path(), &all, &agent);
        assert_eq!(std::fs::read(segment.index_path()).unwrap(), good, "byte {at}");
    }
}

#[tokio::test]
async fn a_segment_that_was_damaged_before_it_was_sealed_says_so_at_every_question() {
    let directory = tempfile::tempdir().unwrap();
    three_segments(directory.path()).await;
    let [first, next, ..] = &segments(directory.path())[..] else { panic!("four segments") };
    let mut bytes = std::fs::read(&first.path).unwrap();
    let second = parse(&bytes, None).bounds[1];
    bytes[second + 3] = 0xff;
    std::fs::write(&first.path, bytes).unwrap();
    super::super::index::build(first, Some(next)).unwrap();
    // Whoever is asked for may have stood where nothing can be read.
    let id = Query { spiffe_id: Some("spiffe://example.org/nobody".to_owned()), ..Query::default() };
    for query in [id, Query::default()] {
        let damage = search(directory.path(), &query).unwrap().damage;
        assert_eq!(damage.iter().map(|d| (&d.path, d.at)).collect::<Vec<_>>(), [(&first.path, second as u64)], "{query:?}");
    }
}
