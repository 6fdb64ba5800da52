//! One writer task per server: merges the requests of the moment into one transaction, commits it durably, publishes
//! the next snapshot, and only then answers each request.
//!
//! A request is a closure over a [`Draft`]: it reads the exact head of the log, as changed by the requests before it in
//! the same transaction, and adds its changes. It runs again if another server moved the head meanwhile.

use std::fs::File;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use countersign_identity::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use crate::dialect::{Database, Sqlite};
use crate::error::StoreError;
use crate::log::{Actor, Before, Change, Cursor, Record, Transaction, next_digest};
use crate::model::{JoinToken, Seen};
use crate::rows::{self, head, join_token, seen};
use crate::snapshot::Snapshot;

/// Requests that may wait for the writer; more wait at their callers.
const QUEUE_MAX: usize = 1024;
/// Records in one transaction after which no further request joins it: bounds the latency of each commit.
const RECORDS_MAX: usize = 4096;
/// Records younger than this stay, so that a follower that was away for a night needs no reload.
const TRIM_AGE: Duration = Duration::from_secs(24 * 3600);
/// The newest records stay however old they are.
const TRIM_KEEP: u64 = 100_000;
/// How often the writer trims while nobody writes.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);
/// How often a store that failed is tried again while nobody writes.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Room that there must be before a store that failed counts as mended: some large requests, so that it does not come
/// back for one page.
const ROOM_BYTES: usize = 64 << 10;
/// How often it trims while somebody always does.
const TRIM_INTERVAL: Duration = Duration::from_secs(600);
/// Attempts to commit when another server keeps moving the head.
const ATTEMPTS_MAX: usize = 16;

/// How a store is opened.
#[derive(Clone)]
pub struct Options {
    /// The SQLite file.
    pub path: PathBuf,
    /// Another SQLite file layer, for tests.
    pub vfs: Option<String>,
    /// The time now; stamped on records.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A handle on the store. Cloning shares it; the writer ends when the last handle goes.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::Sender<Box<dyn Job>>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    seen: Arc<Vec<Arc<Seen>>>,
    trouble: Trouble,
}

/// Why nothing could be written when it was last tried.
type Trouble = Arc<Mutex<Option<StoreError>>>;

impl Store {
    /// Opens or creates a store and starts its writer.
    ///
    /// # Errors
    /// The file cannot be opened, is not ours, is newer than this program, or is corrupt.
    pub fn open(options: &Options) -> Result<Self, StoreError> {
        let mut database = Sqlite::open(&options.path, options.vfs.as_deref())?;
        let snapshot = Arc::new(load(&mut database)?);
        let seen = Arc::new(seen::read_all(&mut database)?);
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let (publish, snapshots) = watch::channel(Arc::clone(&snapshot));
        let now = Arc::clone(&options.now);
        let trimmed_at = now();
        let trouble = Trouble::default();
        let room = options.vfs.is_none().then(|| options.path.with_extension("room-probe"));
        let writer =
            Writer { database, snapshot, publish, now, trimmed_at, trouble: Arc::clone(&trouble), probed_at: Instant::now(), room };
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|e| StoreError::Failed(format!("cannot start the writer: {e}")))?;
        Ok(Self { jobs, snapshots, seen, trouble })
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// Follows the snapshots.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Why nothing can be written now, as the last attempt found; tried again by the writer itself until it can.
    pub fn trouble(&self) -> Option<StoreError> {
        if self.jobs.is_closed() {
            return Some(StoreError::Closed);
        }
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was seen of agents before the store was opened.
    pub fn seen_at_start(&self) -> &[Arc<Seen>] {
        &self.seen
    }

    /// Decides on the head of the log and changes it. Returns once the changes are durable and published.
    /// `decide` may run several times; only its last run counts.
    ///
    /// # Errors
    /// The changes did not become durable; none of them happened.
    pub async fn write<R, F>(&self, actor: Actor, decide: F) -> Result<R, StoreError>
    where
        R: Send + 'static,
        F: FnMut(&mut Draft<'_>) -> Result<R, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Decision { actor, decide, outcome: None, reply };
        self.jobs.send(Box::new(job)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

/// The head of the log while a request decides.
pub struct Draft<'a> {
    snapshot: &'a mut Snapshot,
    changes: &'a mut Vec<(Change, Before, Actor)>,
    database: &'a mut Sqlite,
    actor: Actor,
    now: Timestamp,
}

impl std::fmt::Debug for Draft<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draft").field("snapshot", &self.snapshot).finish_non_exhaustive()
    }
}

impl Draft<'_> {
    /// The state as it would be if the transaction ended now.
    pub fn snapshot(&self) -> &Snapshot {
        self.snapshot
    }

    /// When the transaction happens.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Adds a change.
    pub fn change(&mut self, change: Change) {
        let before = self.snapshot.apply(&change);
        self.changes.push((change, before, self.actor.clone()));
    }

    /// Adds a join token. Says whether it is new.
    ///
    /// # Errors
    /// The database failed.
    pub fn token_add(&mut self, token: &JoinToken) -> Result<bool, StoreError> {
        join_token::add(self.database, token)
    }

    /// Whether a join token waits to be redeemed.
    ///
    /// # Errors
    /// The database failed.
    pub fn token_known(&mut self, hash: &[u8; 32]) -> Result<bool, StoreError> {
        join_token::known(self.database, hash)
    }

    /// Takes a join token out; only one request ever gets it.
    ///
    /// # Errors
    /// The database failed.
    pub fn token_redeem(&mut self, hash: &[u8; 32]) -> Result<Option<JoinToken>, StoreError> {
        join_token::redeem(self.database, hash)
    }

    /// Drops join tokens that ended before this time.
    ///
    /// # Errors
    /// The database failed.
    pub fn token_prune(&mut self, ended_before: Timestamp) -> Result<usize, StoreError> {
        join_token::prune(self.database, ended_before)
    }

    /// Writes down what was seen of an agent.
    ///
    /// # Errors
    /// The database failed.
    pub fn seen_put(&mut self, seen: &Seen) -> Result<(), StoreError> {
        seen::put(self.database, seen)
    }

    /// Forgets what was seen of an agent.
    ///
    /// # Errors
    /// The database failed.
    pub fn seen_delete(&mut self, id: &countersign_identity::SpiffeId) -> Result<(), StoreError> {
        seen::delete(self.database, id)
    }
}

/// A request in the writer's queue.
trait Job: Send {
    fn actor(&self) -> Actor;
    fn decide(&mut self, draft: &mut Draft<'_>) -> Result<(), StoreError>;
    fn answer(self: Box<Self>, result: Result<(), StoreError>);
}

struct Decision<R, F> {
    actor: Actor,
    decide: F,
    outcome: Option<R>,
    reply: oneshot::Sender<Result<R, StoreError>>,
}

impl<R, F> Job for Decision<R, F>
where
    R: Send,
    F: FnMut(&mut Draft<'_>) -> Result<R, StoreError> + Send,
{
    fn actor(&self) -> Actor {
        self.actor.clone()
    }

    fn decide(&mut self, draft: &mut Draft<'_>) -> Result<(), StoreError> {
        self.outcome = Some((self.decide)(draft)?);
        Ok(())
    }

    fn answer(self: Box<Self>, result: Result<(), StoreError>) {
        let Self { outcome, reply, .. } = *self;
        // The caller may have gone; what it asked for is done all the same.
        let _ = reply.send(result.and_then(|()| outcome.ok_or(StoreError::Closed)));
    }
}

struct Writer<D> {
    database: D,
    snapshot: Arc<Snapshot>,
    publish: watch::Sender<Arc<Snapshot>>,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    trimmed_at: Timestamp,
    trouble: Trouble,
    probed_at: Instant,
    /// A file beside the store by which it is found out whether there is room; none where the disk is a test's.
    room: Option<PathBuf>,
}

impl Writer<Sqlite> {
    fn run(mut self, mut queue: mpsc::Receiver<Box<dyn Job>>) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
        loop {
            let patience = if self.is_troubled() { RETRY_INTERVAL } else { IDLE_INTERVAL };
            let first = runtime.block_on(async { tokio::time::timeout(patience, queue.recv()).await });
            let first = match first {
                Ok(Some(job)) => job,
                Ok(None) => return,
                Err(_) if self.is_troubled() => {
                    self.probe();
                    continue;
                }
                Err(_) => {
                    self.trim();
                    continue;
                }
            };
            self.serve(first, &mut queue);
            // Requests that keep coming must not hide that there is room again.
            if self.is_troubled() && self.probed_at.elapsed() >= RETRY_INTERVAL {
                self.probe();
            }
            if (self.now)().since(self.trimmed_at) >= TRIM_INTERVAL {
                self.trim();
            }
            if let Err(error) = self.database.tidy(!queue.is_empty()) {
                tracing::warn!(%error, "Could not fold the write-ahead log into the store");
            }
        }
    }

    fn is_troubled(&self) -> bool {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Remembers whether anything can be written. A request may fail by its own fault, so what counts is this: room in a
    /// file that goes again, and a write that changes nothing.
    fn probe(&mut self) {
        self.probed_at = Instant::now();
        let tried = self.room.as_deref().map_or(Ok(()), has_room).and_then(|()| self.database.begin()).and_then(|()| {
            self.catch_up()?;
            head::rewrite(&mut self.database)?;
            self.database.commit()
        });
        if tried.is_err() {
            self.database.rollback();
        }
        self.note(tried.err());
    }

    fn note(&self, found: Option<StoreError>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match (&found, &*trouble) {
            (Some(error), None) => tracing::error!(%error, "The store cannot be written, trying again until it can"),
            (None, Some(_)) => tracing::info!("The store can be written again"),
            _ => {}
        }
        *trouble = found;
    }

    fn trim(&mut self) {
        self.trimmed_at = (self.now)();
        let result = self.database.begin().and_then(|()| {
            head::trim(&mut self.database, self.trimmed_at.before(TRIM_AGE), TRIM_KEEP)?;
            self.database.commit()
        });
        if let Err(error) = result {
            self.database.rollback();
            tracing::warn!(%error, "Could not trim the log");
            self.probe();
        }
    }

    /// Serves this request and whatever waits behind it, in one transaction.
    fn serve(&mut self, first: Box<dyn Job>, queue: &mut mpsc::Receiver<Box<dyn Job>>) {
        // Whoever is about to ask joins this transaction: a sync costs more than the turn.
        std::thread::yield_now();
        let mut jobs = vec![first];
        let mut result = Err(StoreError::Failed("another server kept changing the store".to_owned()));
        for attempt in 0..ATTEMPTS_MAX {
            match self.attempt(&mut jobs, if attempt == 0 { Some(&mut *queue) } else { None }) {
                Ok(true) => {
                    result = Ok(());
                    break;
                }
                Ok(false) => self.database.rollback(),
                Err(error) => {
                    self.database.rollback();
                    result = Err(error);
                    break;
                }
            }
        }
        if jobs.len() > 1
            && let Err(error) = &result
        {
            tracing::warn!(%error, requests = jobs.len(), "A merged transaction failed, trying its requests one by one");
            for job in jobs {
                self.serve_alone(job);
            }
            return;
        }
        // A success may have changed nothing, which succeeds on a full disk as well; the probe tells when there is room.
        if result.is_err() {
            self.probe();
        }
        for job in jobs {
            job.answer(result.clone());
        }
    }

    fn serve_alone(&mut self, job: Box<dyn Job>) {
        let mut jobs = vec![job];
        let result = match self.attempt(&mut jobs, None) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::Failed("another server changed the store at the same time".to_owned())),
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.database.rollback();
            self.probe();
        }
        for job in jobs {
            job.answer(result.clone());
        }
    }

    /// One try at a transaction. `Ok(false)`: the head had moved, decide again.
    fn attempt(&mut self, jobs: &mut Vec<Box<dyn Job>>, queue: Option<&mut mpsc::Receiver<Box<dyn Job>>>) -> Result<bool, StoreError> {
        self.database.begin()?;
        self.catch_up()?;
        let from = self.snapshot.cursor();
        let now = (self.now)();
        let mut draft = Snapshot::clone(&self.snapshot);
        let mut changes: Vec<(Change, Before, Actor)> = Vec::new();
        for job in jobs.iter_mut() {
            decide(job.as_mut(), &mut draft, &mut changes, &mut self.database, now)?;
        }
        if let Some(queue) = queue {
            while changes.len() < RECORDS_MAX {
                let Ok(job) = queue.try_recv() else { break };
                jobs.push(job);
                if let Some(job) = jobs.last_mut() {
                    decide(job.as_mut(), &mut draft, &mut changes, &mut self.database, now)?;
                }
            }
        }
        if changes.is_empty() {
            self.database.commit()?;
            return Ok(true);
        }
        // INVARIANT: rows, then head, then log, then commit; `revisions_have_no_gaps` holds what readers rely on.
        for (change, _, _) in &changes {
            rows::write(&mut self.database, change)?;
        }
        let count = u64::try_from(changes.len()).unwrap_or(u64::MAX);
        let id = *uuid::Uuid::new_v4().as_bytes();
        let digest = next_digest(&from.digest, &id, from.revision + 1, count);
        let to = Cursor { epoch: from.epoch, revision: from.revision + count, digest };
        let first_reader = changes.iter().map(|(change, _, _)| change.noun().first_reader()).max().unwrap_or_default();
        if !head::advance(&mut self.database, &from, &to, first_reader)? {
            return Ok(false);
        }
        let records: Vec<Record> = changes
            .iter()
            .zip(from.revision + 1..)
            .map(|((change, _, actor), revision)| Record {
                revision,
                noun: change.noun(),
                key: change.key().into(),
                delete: change.is_delete(),
                at: now,
                actor: actor.clone(),
            })
            .collect();
        head::append(&mut self.database, &id, &digest, &records)?;
        self.database.commit()?;
        let changes = changes.into_iter().map(|(change, before, _)| (change, before)).collect();
        draft.advance(Arc::new(Transaction { revision: to.revision, digest, changes }));
        self.snapshot = Arc::new(draft);
        self.publish.send_replace(Arc::clone(&self.snapshot));
        Ok(true)
    }

    /// Brings the snapshot to the head, when somebody else wrote. Runs inside the transaction.
    fn catch_up(&mut self) -> Result<(), StoreError> {
        let Some(head) = head::read(&mut self.database)? else {
            return Err(StoreError::Corrupt("the head of the log is gone".to_owned()));
        };
        check_version(&head)?;
        let known = self.snapshot.cursor();
        if head.cursor == known {
            return Ok(());
        }
        let records = head::records_after(&mut self.database, known.revision)?;
        let missed = head.cursor.revision.saturating_sub(known.revision);
        // Fewer records than revisions: the others trimmed what was never read here.
        if head.cursor.epoch != known.epoch || missed == 0 || u64::try_from(records.len()) != Ok(missed) {
            let mut fresh = Snapshot::empty(head.cursor);
            rows::read_all(&mut self.database, &mut |change| {
                fresh.apply(&change);
                Ok(())
            })?;
            self.snapshot = Arc::new(fresh);
        } else {
            let mut next = Snapshot::clone(&self.snapshot);
            let mut changes = Vec::with_capacity(records.len());
            for record in records {
                let change = rows::read(&mut self.database, record.noun, &record.key)?;
                let before = next.apply(&change);
                changes.push((change, before));
            }
            next.advance(Arc::new(Transaction { revision: head.cursor.revision, digest: head.cursor.digest, changes }));
            self.snapshot = Arc::new(next);
        }
        self.publish.send_replace(Arc::clone(&self.snapshot));
        Ok(())
    }
}

fn has_room(path: &Path) -> Result<(), StoreError> {
    let written = File::create(path).and_then(|mut file| file.write_all(&[0; ROOM_BYTES]).and_then(|()| file.sync_data()));
    let removed = std::fs::remove_file(path);
    written.and(removed).map_err(|e| match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full,
        _ => StoreError::Failed(format!("`{}`: {e}", path.display())),
    })
}

fn decide(
    job: &mut dyn Job,
    snapshot: &mut Snapshot,
    changes: &mut Vec<(Change, Before, Actor)>,
    database: &mut Sqlite,
    now: Timestamp,
) -> Result<(), StoreError> {
    let actor = job.actor();
    // A fault in one request must not end the writer for all. The transaction is rolled back and the draft with it dropped,
    // so nothing half done is seen again.
    catch_unwind(AssertUnwindSafe(|| job.decide(&mut Draft { snapshot, changes, database, actor, now })))
        .unwrap_or_else(|_| Err(StoreError::Failed("the request failed unexpectedly (a bug); see the log".to_owned())))
}

/// Creates the schema or checks it, and reads everything.
fn load(database: &mut Sqlite) -> Result<Snapshot, StoreError> {
    let tables = database.tables()?;
    if !tables.iter().any(|t| t == "head") {
        database.begin()?;
        rows::create(database)?;
        let cursor = Cursor { epoch: *uuid::Uuid::new_v4().as_bytes(), revision: 0, digest: [0; 32] };
        head::insert(database, &head::Head { schema_version: rows::SCHEMA_VERSION, min_reader: 1, cursor })?;
        database.commit()?;
    }
    let head = head::read(database)?.ok_or_else(|| StoreError::Corrupt("the head of the log is missing".to_owned()))?;
    check_version(&head)?;
    if tables.iter().any(|t| t == "head") && !tables.iter().any(|t| t == "federation_relationship") {
        database.begin()?;
        rows::create_later(database)?;
        database.commit()?;
    }
    let mut snapshot = Snapshot::empty(head.cursor);
    rows::read_all(database, &mut |change| {
        snapshot.apply(&change);
        Ok(())
    })?;
    Ok(snapshot)
}

/// INVARIANT: a server that may not know a kind of record stops; `a_server_older_than_the_newest_records_stops_writing`.
fn check_version(head: &head::Head) -> Result<(), StoreError> {
    for (found, known) in [(head.schema_version, rows::SCHEMA_VERSION), (head.min_reader, rows::READER_VERSION)] {
        if found > known {
            return Err(StoreError::Newer { found, known });
        }
    }
    Ok(())
}
