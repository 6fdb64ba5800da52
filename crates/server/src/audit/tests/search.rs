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
    all.iter().filter(matches).take(limit).cloned().collect()
}

fn check(directory: &Path, all: &[Record], query: &Query) {
    assert_eq!(search(directory, query).unwrap(), naive(all, query), "{query:?}");
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
    let everything = search(directory.path(), &Query::default()).unwrap();
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
        assert_eq!(serials(&search(directory.path(), &query).unwrap()), [n.to_string()]);
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
    assert_eq!(serials(&search(directory.path(), &Query::default()).unwrap()), ["0", "2"]);
    let by_serial = Query { serial_or_jti: Some("1".to_owned()), ..Query::default() };
    assert!(search(directory.path(), &by_serial).unwrap().is_empty());
}
