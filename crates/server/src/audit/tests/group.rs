//! Group commit: what an acknowledgement promises.

use std::collections::BTreeSet;

use countersign_wire::journal::Kind;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_record_is_on_disk_before_it_is_acknowledged() {
    // Written: another handle sees it at the moment of the answer.
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(settings(directory.path()), &clock);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..16 {
        let (journal, path) = (journal.clone(), newest(directory.path()).path);
        tasks.spawn(async move {
            for turn in 0..8 {
                let serial = |i: usize| format!("<{task}.{turn}.{i}>");
                let batch = (0..=turn % 3).map(|i| minted("/w", &serial(i))).collect();
                let recorded = journal.record(batch).await.unwrap();
                let file = std::fs::read(&path).unwrap();
                for (i, recorded) in recorded.iter().enumerate() {
                    let wanted = serial(i);
                    assert_eq!(recorded.linted().facts().serial_or_jti, wanted);
                    assert!(file.windows(wanted.len()).any(|w| w == wanted.as_bytes()), "{wanted} was acknowledged but is not in the file");
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    close(journal, &clock);

    // Synced: the null device takes every write and refuses every sync, and so nothing may be acknowledged.
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/null", Segment::new(directory.path(), 1).path).unwrap();
    let journal = open(settings(directory.path()), &clock);
    for _ in 0..2 {
        let answer = journal.record(vec![minted("/w", "a")]).await;
        assert!(matches!(answer, Err(JournalError::Failed { .. })), "acknowledged without a sync: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_batches_get_sequences_without_gaps() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    // Some rolls in between.
    let journal = open(Settings { segment_bytes: 20_000, ..settings(directory.path()) }, &clock);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..32 {
        let journal = journal.clone();
        tasks.spawn(async move {
            let mut acknowledged = Vec::new();
            for turn in 0..5 {
                let batch = (0..=(task + turn) % 4).map(|i| minted("/w", &format!("{task}.{turn}.{i}"))).collect();
                let recorded = journal.record(batch).await.unwrap();
                let sequences: Vec<u64> = recorded.iter().map(|r| r.sequence).collect();
                assert!(sequences.windows(2).all(|w| w[0] + 1 == w[1]), "a batch is not in one piece: {sequences:?}");
                acknowledged.extend(recorded.into_iter().map(|r| (r.sequence, r.settle(true).facts().serial_or_jti.clone())));
            }
            acknowledged
        });
    }
    let mut acknowledged = BTreeSet::new();
    let mut count = 0;
    while let Some(done) = tasks.join_next().await {
        let done = done.unwrap();
        count += done.len();
        acknowledged.extend(done);
    }
    close(journal, &clock);
    assert_eq!(acknowledged.len(), count, "sequences are distinct");
    let on_disk: BTreeSet<(u64, String)> = verify(directory.path()).into_iter().map(|r| (r.sequence, r.serial_or_jti)).collect();
    assert_eq!(on_disk, acknowledged);
    assert!(segments(directory.path()).len() > 1, "it rolled");
}

#[tokio::test]
async fn a_record_says_what_was_about_to_be_signed() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(settings(directory.path()), &clock);
    let linted = minted("/db", "jti-1");
    let body = sha256(linted.bytes()).to_vec();
    drop(journal.record(vec![linted]).await.unwrap());
    close(journal, &clock);
    let expected = Record {
        sequence: 1,
        server_id: "server-1".to_owned(),
        time_millis: START_MILLIS,
        kind: Kind::MintedJwt.into(),
        actor: "uid 0".to_owned(),
        spiffe_id: "spiffe://example.org/db".to_owned(),
        body_sha256: body,
        authority_id: "key-1".to_owned(),
        serial_or_jti: "jti-1".to_owned(),
        not_before: START_MILLIS / 1000,
        expires_at: START_MILLIS / 1000 + 3600,
        ..Record::default()
    };
    assert_eq!(verify(directory.path()), [expected]);
}

#[tokio::test]
async fn what_came_of_a_record_is_written_behind_it() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(settings(directory.path()), &clock);
    let batch = ["signed", "failed", "recorded", "signed too"].map(|jti| minted("/w", jti)).into();
    for recorded in journal.record(batch).await.unwrap() {
        match recorded.linted().facts().serial_or_jti.as_str() {
            "recorded" => drop(recorded),
            "failed" => drop(recorded.settle(false)),
            _ => drop(recorded.settle(true)),
        }
    }
    close(journal, &clock);
    let found = super::super::search(directory.path(), &super::super::Query::default()).unwrap().records;
    let outcomes: Vec<Outcome> = found.iter().map(Record::outcome).collect();
    assert_eq!(outcomes, [Outcome::Signed, Outcome::Failed, Outcome::Recorded, Outcome::Signed]);
    assert_eq!(found, verify(directory.path()));
}

#[tokio::test]
async fn outcomes_are_written_without_another_record() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(settings(directory.path()), &clock);
    for recorded in journal.record(vec![minted("/w", "a")]).await.unwrap() {
        recorded.settle(true);
    }
    eventually("the outcome is in the file", || verify(directory.path())[0].outcome() == Outcome::Signed);
    submit(&journal, vec![plain("b")]).await.unwrap();
    assert_eq!(serials(&verify(directory.path())), ["a", "b"]);
}

#[tokio::test]
async fn an_empty_batch_is_nothing_to_write_down() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(settings(directory.path()), &clock);
    assert!(journal.record(Vec::new()).await.unwrap().is_empty());
    close(journal, &clock);
    assert!(verify(directory.path()).is_empty());
}
