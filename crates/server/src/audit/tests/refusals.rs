//! Refusals of known callers: written down, but never at the cost of issuance.

use countersign_identity::issue::Kind;
use countersign_wire::journal::Kind as WireKind;
use tokio::sync::mpsc;

use super::super::{DebugClock, QUEUE_MAX};
use super::*;

fn refuse(journal: &Journal, reason: &str) {
    journal.refused(Kind::WorkloadX509, &Actor::new("spiffe://example.org/agent"), "spiffe://example.org/w", reason);
}

fn refused(directory: &Path) -> usize {
    verify(directory).iter().filter(|r| r.kind() == WireKind::Refused).count()
}

#[tokio::test]
async fn a_thousand_refusals_a_second_are_written_down() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(settings(directory.path()), &clock);
    for _ in 0..3 {
        for _ in 0..500 {
            refuse(&journal, "entry not found");
        }
        // Once this is answered, the queue is empty again.
        submit(&journal, vec![plain("")]).await.unwrap();
    }
    assert_eq!(refused(directory.path()), 1000);

    clock.advance(Duration::from_secs(1));
    refuse(&journal, "entry not found");
    submit(&journal, vec![plain("")]).await.unwrap();
    assert_eq!(refused(directory.path()), 1001, "the next second has room again");
    let record = verify(directory.path()).into_iter().rfind(|r| r.kind() == WireKind::Refused).unwrap();
    assert_eq!(record.reason, "WorkloadX509: entry not found");
    assert_eq!((record.actor.as_str(), record.spiffe_id.as_str()), ("spiffe://example.org/agent", "spiffe://example.org/w"));
}

#[tokio::test]
async fn refusals_are_dropped_before_issuance_waits() {
    let (jobs, mut queue) = mpsc::channel(QUEUE_MAX);
    let journal = Journal {
        jobs,
        outcomes: Arc::default(),
        directory: Arc::default(),
        clock: DebugClock(TestClock::new()),
        server_id: "server-1".into(),
        refused: Arc::default(),
    };
    for _ in 0..2 * QUEUE_MAX {
        refuse(&journal, "entry not found");
    }
    assert_eq!(queue.len(), QUEUE_MAX / 2, "half of the queue is for issuance");
    assert_eq!(journal.refused.load(Ordering::Relaxed), 2 * u64::try_from(QUEUE_MAX).unwrap(), "all are counted");
    let waiting = tokio::spawn(async move { journal.record(vec![minted("/w", "a")]).await.map(|_| ()) });
    while let Some(job) = queue.recv().await {
        if let Job { reply: Some(reply), .. } = job {
            reply.send(Ok(1)).unwrap();
        }
    }
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refusal_for_an_endless_reason_does_not_end_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(settings(directory.path()), &clock);
    refuse(&journal, &"é".repeat(3 << 20));
    submit(&journal, vec![plain("after")]).await.unwrap();
    close(journal, &clock);
    close(open(settings(directory.path()), &clock), &clock);
    assert_eq!(serials(&verify(directory.path())), ["", "after"]);
}

#[tokio::test]
async fn a_journal_without_writer_records_nothing() {
    let (jobs, queue) = mpsc::channel(1);
    drop(queue);
    let clock = DebugClock(TestClock::new());
    let journal =
        Journal { jobs, outcomes: Arc::default(), directory: Arc::default(), clock, server_id: "server-1".into(), refused: Arc::default() };
    assert!(matches!(journal.record(vec![minted("/w", "a")]).await, Err(JournalError::Closed)));
}
