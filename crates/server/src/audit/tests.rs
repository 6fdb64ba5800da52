//! The journal at its seams: groups, crashes, a full disk, sealing, retention, questions.
//!
//! Files are read back here by a parser of its own, so that writer and reader cannot be wrong together.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod crash;
mod full;
mod group;
mod refusals;
mod retention;
mod search;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use countersign_identity::issue::{JwtIssuer, Linted};
use countersign_identity::key::SigningAlgorithm;
use countersign_identity::{Timestamp, TrustDomain};
use countersign_plugins::keys::sha256;
use countersign_store::Actor;
use countersign_transport::clock::Clock;
use countersign_wire::journal::{Outcome, Record};
use prost::Message as _;
use tokio::sync::oneshot;

use super::segment::Segment;
use super::writer::Job;
use super::{Journal, JournalError, Settings};
use crate::policy::Allowed;

/// 2023-11-14, on a whole second.
const START_MILLIS: i64 = 1_700_000_000_000;
/// Longer than anything here takes on the slowest machine.
const DEADLINE: Duration = Duration::from_secs(30);

struct TestClock(AtomicI64);

impl TestClock {
    fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(START_MILLIS)))
    }

    fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn sleep_until(&self, _: Timestamp) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }

    fn steady(&self) -> Duration {
        self.now().since(Timestamp::from_millis(START_MILLIS))
    }

    fn sleep_for(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }
}

fn settings(directory: &Path) -> Settings {
    Settings::new(directory.to_owned())
}

/// Small enough that each group of writes seals its segment.
fn rolling(directory: &Path) -> Settings {
    Settings { segment_bytes: 1, ..settings(directory) }
}

fn open(settings: Settings, clock: &Arc<TestClock>) -> Journal {
    Journal::open(settings, "server-1".into(), Arc::clone(clock) as _).unwrap()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lets go of the journal and waits until its writer has ended, which then no longer holds the clock, and every
/// segment but the newest has its index.
fn close(journal: Journal, clock: &Arc<TestClock>) {
    let directory = journal.directory().to_owned();
    drop(journal);
    eventually("the writer has ended", || Arc::strong_count(clock) == 1);
    eventually("all but the newest are sealed", || segments(&directory).iter().rev().skip(1).all(|s| super::index::Index::open(s).is_ok()));
}

fn segments(directory: &Path) -> Vec<Segment> {
    Segment::list(directory).unwrap()
}

fn newest(directory: &Path) -> Segment {
    segments(directory).pop().unwrap()
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

/// A token that an administrator asked for, allowed and linted.
fn minted(path: &str, jti: &str) -> Linted<Allowed> {
    let id = trust_domain().with_path(path).unwrap();
    let lifetime = Duration::from_secs(3600);
    let allowed = Allowed::minted_jwt(id, vec!["db".to_owned()], lifetime, Actor::new("uid 0"), &trust_domain()).unwrap();
    let now = Timestamp::from_millis(START_MILLIS);
    let issuer = JwtIssuer {
        trust_domain: trust_domain(),
        key_id: "key-1".to_owned(),
        algorithm: SigningAlgorithm::EcdsaP256Sha256,
        expires_at: now.after(Duration::from_secs(86_400)),
        issuer: None,
    };
    Linted::jwt(allowed, &issuer, Some(jti), now).unwrap()
}

/// A record for the writer, past policy and lint.
fn plain(serial: &str) -> Record {
    Record { serial_or_jti: serial.to_owned(), time_millis: START_MILLIS, ..Record::default() }
}

/// Hands these to the writer as one batch and waits for its answer.
async fn submit(journal: &Journal, records: Vec<Record>) -> Result<u64, JournalError> {
    let (reply, answer) = oneshot::channel();
    journal.jobs.send(Job { records, reply: Some(reply) }).await.unwrap();
    answer.await.unwrap()
}

/// What one segment file holds, read without the code under test.
#[derive(Debug, Default)]
struct Parsed {
    /// Start of each frame, and the end of the last.
    bounds: Vec<usize>,
    records: Vec<Record>,
    /// First sequence, last sequence, and what came of them.
    outcomes: Vec<(u64, u64, Outcome)>,
    last_digest: Option<[u8; 32]>,
}

/// Parses a file that must hold whole frames only, each with the digest of the one before.
fn parse(bytes: &[u8], previous: Option<[u8; 32]>) -> Parsed {
    let mut parsed = Parsed { last_digest: previous, ..Parsed::default() };
    let mut at = 0;
    while at < bytes.len() {
        parsed.bounds.push(at);
        let number = |from: usize, to: usize| bytes[from..to].iter().rev().fold(0, |n: u64, b| n << 8 | u64::from(*b));
        let end = at + 4 + usize::try_from(number(at, at + 4)).unwrap();
        assert!(end <= bytes.len(), "a torn frame at {at}");
        assert_eq!(bytes[at + 4], 1, "format version at {at}");
        if let Some(previous) = parsed.last_digest {
            assert_eq!(bytes[at + 6..at + 38], previous, "the digest chain breaks at {at}");
        }
        parsed.last_digest = Some(sha256(&bytes[at + 4..end]));
        match bytes[at + 5] {
            1 => parsed.records.push(Record::decode(&bytes[at + 38..end]).unwrap()),
            2 => {
                let mut next = at + 38;
                for outcome in [Outcome::Signed, Outcome::Failed] {
                    let count = number(next, next + 4);
                    next += 4;
                    for _ in 0..count {
                        parsed.outcomes.push((number(next, next + 8), number(next + 8, next + 16), outcome));
                        next += 16;
                    }
                }
                assert_eq!(next, end, "bytes after the outcomes at {at}");
            }
            kind => panic!("frame of kind {kind} at {at}"),
        }
        at = end;
    }
    parsed.bounds.push(at);
    parsed
}

/// All records with their outcomes, after checking that the chain has no break and the sequences no gap.
fn verify(directory: &Path) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    let mut outcomes = Vec::new();
    let mut previous = None;
    for (at, segment) in segments(directory).iter().enumerate() {
        if at == 0 && segment.first_sequence == 1 {
            previous = Some([0; 32]);
        }
        let parsed = parse(&std::fs::read(&segment.path).unwrap(), previous);
        if let Some(first) = parsed.records.first() {
            assert_eq!(first.sequence, segment.first_sequence, "{}", segment.path.display());
        }
        previous = parsed.last_digest;
        records.extend(parsed.records);
        outcomes.extend(parsed.outcomes);
    }
    let sequences: Vec<u64> = records.iter().map(|r| r.sequence).collect();
    assert!(sequences.windows(2).all(|w| w[0] + 1 == w[1]), "a gap in the sequences: {sequences:?}");
    for (first, last, outcome) in outcomes {
        for record in records.iter_mut().filter(|r| (first..=last).contains(&r.sequence)) {
            record.outcome = outcome.into();
        }
    }
    records
}

fn serials(records: &[Record]) -> Vec<&str> {
    records.iter().map(|r| r.serial_or_jti.as_str()).collect()
}
