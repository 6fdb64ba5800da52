//! Refusals of known callers: written down, but never at the cost of issuance.

use countersign_identity::issue::Kind;
use countersign_wire::journal::Kind as WireKind;
use tokio::sync::mpsc;

use super::super::{DebugClock, QUEUE_MAX};
use super::*;

fn refuse(journal: &Journal, reason: &str) {
    refuse_to(journal, "spiffe://example.org/agent", reason);
}

fn refuse_to(journal: &Journal, actor: &str, reason: &str) {
    journal.refused(Kind::WorkloadX509, &Actor::new(actor), "spiffe://example.org/w", reason);
}

fn refused(directory: &Path) -> usize {
    verify(directory).iter().filter(|r| r.kind() == WireKind::Refused).count()
}

#[tokio::test]
async fn of_many_callers_a_thousand_refusals_a_second_are_written_down() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(settings(directory.path()), &clock);
    for round in 0..3 {
        for refusal in 0..500 {
            refuse_to(&journal, &format!("spiffe://example.org/agent/{round}/{}", refusal / 100), "entry not found");
        }
        // Once this is answered, the queue is empty again.
        submit(&journal, vec![plain("")]).await.unwrap();
    }
    assert_eq!(refused(directory.path()), 1000);
    assert_eq!(journal.refusals(), (1500, 500), "the others are counted");

    clock.advance(Duration::from_secs(1));
    refuse(&journal, "entry not found");
    submit(&journal, vec![plain("")]).await.unwrap();
    assert_eq!(refused(directory.path()), 1001, "the next second has room again");
    let record = verify(directory.path()).into_iter().rfind(|r| r.kind() == WireKind::Refused).unwrap();
    assert_eq!(record.reason, "X509-SVID of a workload: entry not found");
    assert_eq!((record.actor.as_str(), record.spiffe_id.as_str()), ("spiffe://example.org/agent", "spiffe://example.org/w"));
}

#[tokio::test]
async fn a_caller_that_keeps_asking_does_not_fill_the_journal_and_what_was_left_out_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(settings(directory.path()), &clock);
    let loud = "spiffe://example.org/loud";
    for _ in 0..10 {
        for _ in 0..1000 {
            refuse_to(&journal, loud, "entry not found");
        }
        submit(&journal, vec![plain("")]).await.unwrap();
    }
    refuse(&journal, "entry not found");
    submit(&journal, vec![plain("")]).await.unwrap();
    assert_eq!(refused(directory.path()), 101, "a hundred of the loud one and the only one of another");
    assert_eq!(journal.refusals(), (10_001, 9900));

    journal.report_left_out().await;
    journal.report_left_out().await;
    let records = verify(directory.path());
    let of_loud = || records.iter().filter(|r| r.actor == loud);
    assert_eq!(of_loud().count(), 101, "what was left out is said once");
    assert_eq!(of_loud().next_back().unwrap().reason, "9900 more refusals of this caller were counted and not written down");

    // Six a minute from then on.
    clock.advance(Duration::from_secs(60));
    for _ in 0..1000 {
        refuse_to(&journal, loud, "entry not found");
    }
    submit(&journal, vec![plain("")]).await.unwrap();
    assert_eq!(verify(directory.path()).iter().filter(|r| r.actor == loud).count(), 107);
    clock.advance(Duration::from_secs(60));
    journal.report_left_out().await;
    assert_eq!(
        verify(directory.path()).iter().rfind(|r| r.actor == loud).unwrap().reason,
        "994 more refusals of this caller were counted and not written down"
    );
}

#[tokio::test]
async fn a_report_that_cannot_be_written_is_made_again() {
    let (jobs, mut queue) = mpsc::channel(QUEUE_MAX);
    let journal = unwritten(jobs);
    for _ in 0..103 {
        refuse(&journal, "entry not found");
    }
    while queue.try_recv().is_ok() {}
    for outcome in [Err(JournalError::Full("/journal".to_owned())), Ok(1)] {
        let reporting = tokio::spawn({
            let journal = journal.clone();
            async move { journal.report_left_out().await }
        });
        let job = tokio::time::timeout(DEADLINE, queue.recv()).await.expect("a report").unwrap();
        assert_eq!(job.records[0].reason, "3 more refusals of this caller were counted and not written down");
        job.reply.unwrap().send(outcome).unwrap();
        reporting.await.unwrap();
    }
    journal.report_left_out().await;
    assert!(queue.try_recv().is_err(), "it is made once");
}

/// A journal whose jobs the test takes itself.
fn unwritten(jobs: mpsc::Sender<Job>) -> Journal {
    Journal {
        jobs,
        shared: super::super::writer::Shared::default(),
        directory: Arc::default(),
        clock: DebugClock(TestClock::new()),
        server_id: "server-1".into(),
        writing: tokio::sync::watch::channel(()).1,
    }
}

#[tokio::test]
async fn refusals_are_dropped_before_issuance_waits() {
    let (jobs, mut queue) = mpsc::channel(QUEUE_MAX);
    let journal = unwritten(jobs);
    for refusal in 0..2 * QUEUE_MAX {
        refuse_to(&journal, &format!("spiffe://example.org/agent/{}", refusal / 100), "entry not found");
    }
    assert_eq!(queue.len(), QUEUE_MAX / 2, "half of the queue is for issuance");
    let all = u64::try_from(QUEUE_MAX).unwrap();
    assert_eq!(journal.refusals(), (2 * all, 2 * all - all / 2), "all are counted");
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
    let journal = unwritten(jobs);
    assert!(matches!(journal.record(vec![minted("/w", "a")]).await, Err(JournalError::Closed)));
}
