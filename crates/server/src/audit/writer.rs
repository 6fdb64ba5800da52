//! The journal's one writer: takes what waits, writes it in one piece, syncs once, answers all.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_transport::clock::SharedClock;
use countersign_wire::journal::Record;
use tokio::sync::{mpsc, oneshot, watch};

use super::refusals::Refusals;
use super::segment::{Digest, Frame, Segment, Tail, append, tail};
use super::{JournalError, Settings, index};

/// Records in one group, after which the rest waits for the next sync.
const GROUP_RECORDS_MAX: usize = 4096;
/// How long outcomes may wait for a group to ride along with.
const IDLE: Duration = Duration::from_millis(500);
/// Idle turns between two looks at retention and room.
const TURNS_PER_HOUSEKEEPING: u32 = 120;
/// A warning is given when the volume is this full.
const WARN_AT_PERCENT: u64 = 80;
/// Room that there must be before a journal that failed counts as mended: some hundred records, so that it does not
/// come back for a single one.
const ROOM_BYTES: usize = 64 << 10;
/// Refusals of all callers written down in a second; more are only counted.
const REFUSALS_PER_SECOND_MAX: u32 = 1000;

/// Outcomes that may wait to be written; more are lost, which only a writer that hangs brings about.
const OUTCOMES_MAX: usize = 1 << 20;

/// Records that become durable together.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) records: Vec<Record>,
    /// Who waits for them; nobody for a refusal.
    pub(super) reply: Option<oneshot::Sender<Result<u64, JournalError>>>,
}

/// What came of records: a place of its own, so that noting it wakes nobody. Ranges of sequence numbers.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    signed: Vec<(u64, u64)>,
    failed: Vec<(u64, u64)>,
}

impl Outcomes {
    pub(super) fn push(&mut self, sequence: u64, signed: bool) {
        let ranges = if signed { &mut self.signed } else { &mut self.failed };
        if let Some((_, last)) = ranges.last_mut()
            && *last + 1 == sequence
        {
            *last = sequence;
        } else if ranges.len() < OUTCOMES_MAX {
            // One that finds no room is lost; the record itself then reads "recorded", which is true.
            ranges.push((sequence, sequence));
        }
    }

    fn append(&mut self, other: Self) {
        self.signed.extend(other.signed);
        self.failed.extend(other.failed);
    }
}

/// Why nothing could be written down when it was last tried.
pub(super) type Trouble = Arc<Mutex<Option<JournalError>>>;

/// What the writer shares with whoever hands it records.
#[derive(Debug, Default, Clone)]
pub(super) struct Shared {
    /// What came of records, to be written with the next group.
    pub(super) outcomes: Arc<Mutex<Outcomes>>,
    /// What was refused to each caller.
    pub(super) refusals: Arc<Refusals>,
    /// Why it cannot write now.
    pub(super) trouble: Trouble,
}

struct Writer {
    settings: Settings,
    clock: SharedClock,
    segment: Segment,
    file: File,
    length: u64,
    /// A failed write could not be cut off: nothing may follow it.
    torn: bool,
    digest: Digest,
    next_sequence: u64,
    /// Outcomes noted by those who sign.
    noted: Arc<Mutex<Outcomes>>,
    /// Taken from there and not yet written.
    outcomes: Outcomes,
    /// The second in which refusals were written last, and how many.
    refusals_now: (i64, u32),
    /// Where those are counted that are not written.
    refusals: Arc<Refusals>,
    trouble: Trouble,
    _lock: File,
}

/// Opens the newest segment, cuts off what was never acknowledged, and starts the writer's thread. The answer ends with it.
pub(super) fn start(
    settings: Settings,
    clock: SharedClock,
    Shared { outcomes: noted, refusals, trouble }: Shared,
    queue: mpsc::Receiver<Job>,
) -> Result<watch::Receiver<()>, JournalError> {
    let failed = |e: &io::Error| failure(&settings.directory, e);
    std::fs::create_dir_all(&settings.directory).map_err(|e| failed(&e))?;
    let lock = lock(&settings.directory)?;
    let segments = Segment::list(&settings.directory).map_err(|e| failed(&e))?;
    let segment = segments.last().cloned().unwrap_or_else(|| Segment::new(&settings.directory, 1));
    let file = open(&segment.path).map_err(|e| failed(&e))?;
    let mut found = tail(&file, segment.first_sequence).map_err(|e| failed(&e))?;
    if found.end == 0
        && let Some(former) = former(&segments).map_err(|e| failed(&e))?
    {
        found.digest = former.digest;
        found.next_sequence = found.next_sequence.max(former.next_sequence);
    }
    let length = file.metadata().map_err(|e| failed(&e))?.len();
    if length > found.end {
        set_aside(&file, &segment.path, found.end, length).map_err(|e| failed(&e))?;
        file.set_len(found.end).and_then(|()| file.sync_all()).map_err(|e| failed(&e))?;
    }
    // Also when the segment was there: who made it may have ended before this.
    sync_directory(&settings.directory).map_err(|e| failed(&e))?;
    let followed = segments.iter().zip(segments.iter().skip(1)).rev();
    let unsealed: Vec<_> = followed.filter(|(s, _)| index::Index::open(s).is_err()).map(|(s, next)| (s.clone(), next.clone())).collect();
    let writer = Writer {
        clock,
        segment,
        file,
        length: found.end,
        torn: false,
        digest: found.digest,
        next_sequence: found.next_sequence,
        noted,
        outcomes: Outcomes::default(),
        refusals_now: (0, 0),
        refusals,
        trouble,
        settings,
        _lock: lock,
    };
    let (running, ended) = watch::channel(());
    std::thread::Builder::new()
        .name("journal-writer".to_owned())
        .spawn(move || {
            for (segment, next) in unsealed {
                seal(&segment, &next);
            }
            writer.run(queue);
            drop(running);
        })
        .map(|_| ended)
        .map_err(|e| JournalError::Failed { path: "the writer's thread".to_owned(), reason: e.to_string() })
}

/// Keeps what cannot be read as frames in a file beside the segment before it is cut off. After a crash it is a write nobody
/// was told of; after damage to the disk it may hold records, and those are not ours to throw away.
fn set_aside(file: &File, path: &Path, from: u64, to: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = vec![0; usize::try_from(to - from).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, from)?;
    let aside = path.with_extension(format!("cut-at-{from}"));
    tracing::error!(
        path = %path.display(), bytes = bytes.len(), kept_in = %aside.display(),
        "The end of the issuance journal cannot be read and is set aside; after a crash that is an unfinished write"
    );
    countersign_transport::files::replace(&aside, &bytes, 0o600)
}

/// Where the chain ended before the newest segment, which has no frame yet.
fn former(segments: &[Segment]) -> io::Result<Option<Tail>> {
    for segment in segments.iter().rev().skip(1) {
        let found = tail(&File::open(&segment.path)?, segment.first_sequence)?;
        if found.end > 0 {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// One writer at a time: two would break the chain for each other.
fn lock(directory: &Path) -> Result<File, JournalError> {
    let path = directory.join("journal.lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(|e| failure(&path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(JournalError::Failed { path: directory.display().to_string(), reason: "another server writes to it".to_owned() })
        }
        Err(std::fs::TryLockError::Error(e)) => Err(failure(&path, &e)),
    }
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
        let mut turns = 0;
        self.housekeeping();
        loop {
            match runtime.block_on(async { tokio::time::timeout(IDLE, queue.recv()).await }) {
                Ok(Some(job)) => self.serve(job, &mut queue),
                Ok(None) => {
                    self.idle();
                    return;
                }
                Err(_) => self.idle(),
            }
            turns += 1;
            if turns >= TURNS_PER_HOUSEKEEPING {
                turns = 0;
                self.housekeeping();
            }
        }
    }

    fn serve(&mut self, first: Job, queue: &mut mpsc::Receiver<Job>) {
        // Whoever is about to ask joins this group: a sync costs more than the turn.
        std::thread::yield_now();
        let mut bytes = Vec::new();
        let mut replies = Vec::new();
        let (mut digest, mut sequence) = (self.digest, self.next_sequence);
        let mut job = Some(first);
        let mut taken = 0;
        while let Some(current) = job.take() {
            match current {
                Job { reply: None, records } if !self.refusal_fits() => records.iter().for_each(|r| self.refusals.leave_out(&r.actor)),
                Job { records, reply } => {
                    let start = sequence;
                    for mut record in records {
                        record.sequence = sequence;
                        sequence += 1;
                        taken += 1;
                        digest = append(&mut bytes, &digest, &Frame::Record(Box::new(record)));
                    }
                    replies.extend(reply.map(|reply| (reply, start)));
                }
            }
            if taken < GROUP_RECORDS_MAX {
                job = queue.try_recv().ok();
            }
        }
        if bytes.is_empty() {
            return;
        }
        digest = self.append_outcomes(&mut bytes, digest);
        match self.write(&bytes, !replies.is_empty()) {
            Ok(()) => {
                self.digest = digest;
                self.next_sequence = sequence;
                self.forget_outcomes();
                for (reply, start) in replies {
                    let _ = reply.send(Ok(start));
                }
                if self.length >= self.settings.segment_bytes {
                    self.roll();
                }
            }
            Err(error) => {
                for (reply, _) in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// Whether one more refusal may be written down in this second.
    fn refusal_fits(&mut self) -> bool {
        let second = self.clock.now().secs();
        if self.refusals_now.0 != second {
            self.refusals_now = (second, 0);
        }
        self.refusals_now.1 += 1;
        self.refusals_now.1 <= REFUSALS_PER_SECOND_MAX
    }

    /// Adds the outcomes that wait. They wait on until the write has succeeded.
    fn append_outcomes(&mut self, bytes: &mut Vec<u8>, digest: Digest) -> Digest {
        self.outcomes.append(std::mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner)));
        let Outcomes { signed, failed } = &self.outcomes;
        if signed.is_empty() && failed.is_empty() {
            return digest;
        }
        append(bytes, &digest, &Frame::Outcomes { signed: signed.clone(), failed: failed.clone() })
    }

    fn forget_outcomes(&mut self) {
        self.outcomes = Outcomes::default();
    }

    /// Writes one piece at the end, and syncs it if somebody waits for it. On failure nothing of it stays.
    fn write(&mut self, bytes: &[u8], sync: bool) -> Result<(), JournalError> {
        // INVARIANT: `sync_data` before any answer; `a_record_is_on_disk_before_it_is_acknowledged` holds it.
        let (disk, path) = (Arc::clone(&self.settings.disk), &self.segment.path);
        let whole = if self.torn { disk.cut(path, &self.file, self.length) } else { Ok(()) };
        let appended = whole.and_then(|()| disk.append(path, &mut self.file, bytes));
        let written = appended.and_then(|()| if sync { disk.sync(path, &self.file) } else { Ok(()) });
        match written {
            Ok(()) => {
                self.torn = false;
                self.length += u64::try_from(bytes.len()).unwrap_or(0);
                // What was only handed to the system proves nothing about the disk.
                if sync {
                    self.note(None);
                }
                Ok(())
            }
            Err(error) => {
                let cut = disk.cut(path, &self.file, self.length);
                self.torn = cut.is_err();
                if let Err(error) = cut {
                    tracing::error!(%error, "BUG: cannot cut off a failed write of the issuance journal");
                }
                let error = failure(&self.segment.path, &error);
                self.note(Some(error.clone()));
                Err(error)
            }
        }
    }

    fn note(&self, found: Option<JournalError>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match (&found, &*trouble) {
            (Some(error), None) => tracing::error!(%error, "Issuance stopped"),
            (None, Some(_)) => tracing::info!("The issuance journal can be written again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        *trouble = found;
    }

    /// Whether the journal, having failed, can be written again; nobody has to ask for a credential to find out. First
    /// that there is room, in a file that goes again, then a frame that says nothing, in the segment itself.
    fn probe(&mut self) {
        let path = self.settings.directory.join("room.probe");
        let room = File::create(&path).and_then(|mut file| file.write_all(&[0; ROOM_BYTES]).and_then(|()| file.sync_data()));
        let removed = std::fs::remove_file(&path);
        if let Err(error) = room.and(removed) {
            self.note(Some(failure(&path, &error)));
            return;
        }
        let mut bytes = Vec::new();
        let digest = append(&mut bytes, &self.digest, &Frame::Outcomes { signed: Vec::new(), failed: Vec::new() });
        if self.write(&bytes, true).is_ok() {
            self.digest = digest;
        }
    }

    fn idle(&mut self) {
        if self.trouble.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            self.probe();
        }
        let mut bytes = Vec::new();
        let digest = self.append_outcomes(&mut bytes, self.digest);
        if bytes.is_empty() {
            return;
        }
        match self.write(&bytes, false) {
            Ok(()) => {
                self.digest = digest;
                self.forget_outcomes();
            }
            Err(error) => tracing::warn!(%error, "Outcomes of issuance were not written down"),
        }
    }

    /// Seals the segment and begins the next.
    fn roll(&mut self) {
        let next = Segment::new(&self.settings.directory, self.next_sequence);
        // What nobody waited for is synced now, or a crash could leave a gap before the next segment.
        let opened = self.settings.disk.sync(&self.segment.path, &self.file).and_then(|()| open(&next.path));
        let opened = opened.and_then(|file| sync_directory(&self.settings.directory).map(|()| file));
        match opened {
            Ok(file) => {
                let sealed = std::mem::replace(&mut self.segment, next.clone());
                self.file = file;
                self.length = 0;
                // Built beside the writer: issuance does not wait for an index.
                let spawned = std::thread::Builder::new().name("journal-seal".to_owned()).spawn(move || seal(&sealed, &next));
                if let Err(error) = spawned {
                    tracing::warn!(%error, "A journal segment stays without index until the next start");
                }
            }
            Err(error) => tracing::warn!(%error, "Cannot begin a new journal segment, going on with the old one"),
        }
        self.housekeeping();
    }

    /// Drops the oldest sealed segments that are too old or too much, and warns when the volume fills up.
    fn housekeeping(&mut self) {
        let Ok(segments) = Segment::list(&self.settings.directory) else { return };
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
        let mut total: u64 = segments.iter().map(|s| size(&s.path) + size(&s.index_path())).sum();
        let oldest_kept = self.clock.now().before(self.settings.retention);
        for segment in segments.iter().filter(|s| **s != self.segment) {
            // A segment that is damaged at its beginning must not keep all behind it from going.
            let newest = index::newest(segment).or_else(|| written_at(&segment.path)).unwrap_or(oldest_kept);
            if total <= self.settings.bytes_max && newest >= oldest_kept {
                break;
            }
            total = total.saturating_sub(size(&segment.path) + size(&segment.index_path()));
            tracing::info!(path = %segment.path.display(), "Dropped the oldest segment of the issuance journal");
            let _ = std::fs::remove_file(&segment.path);
            let _ = std::fs::remove_file(segment.index_path());
        }
        let Ok(volume) = rustix::fs::statvfs(&self.settings.directory) else { return };
        if volume.f_bavail.saturating_mul(volume.f_frsize) < ROOM_BYTES as u64 {
            // Nobody has asked for a credential since; whoever watches should know all the same.
            self.probe();
        }
        if volume.f_blocks > 0 && (volume.f_blocks - volume.f_bavail) * 100 / volume.f_blocks >= WARN_AT_PERCENT {
            tracing::warn!(
                directory = %self.settings.directory.display(),
                free_mib = volume.f_bavail * volume.f_frsize / (1 << 20),
                "The volume of the issuance journal is more than {WARN_AT_PERCENT} % full; when it is full, nothing can be issued"
            );
        }
    }
}

/// When a file was last written to.
fn written_at(path: &Path) -> Option<countersign_identity::Timestamp> {
    let since_epoch = std::fs::metadata(path).ok()?.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(countersign_identity::Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).ok()?))
}

fn seal(segment: &Segment, next: &Segment) {
    if let Err(error) = index::build(segment, Some(next)) {
        tracing::warn!(path = %segment.path.display(), %error, "Cannot index a journal segment");
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn failure(path: &Path, error: &io::Error) -> JournalError {
    if error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded {
        return JournalError::Full(path.display().to_string());
    }
    JournalError::Failed { path: path.display().to_string(), reason: error.to_string() }
}
