//! A SQLite file layer that forgets what was not synced, to prove that what a store acknowledges is durable.
//!
//! The model of the disk, which holds everything in memory:
//! - A file has two contents, *written* and *synced*. Reads see the written one; a sync copies it to the synced one.
//! - The directory has the same two images. A name that appears or goes is durable once the directory is synced: by a
//!   deletion that asks for it, or by the first sync of any new file, as SQLite's own layer does for its journals.
//! - Truncating is a write like any other.
//! - A power cut leaves the synced images, or ([`Unsynced::Torn`]) what a disk may have done in the meantime: any subset
//!   of the unsynced 512-byte sectors, and any of the unsynced names. Power is back at once, but handles from before it
//!   fail with `SQLITE_IOERR` for ever, and locks and shared memory are gone.
//!
//! One process, any number of connections and threads; WAL and rollback journals. What SQLite calls is in `vfs.rs`.

mod vfs;

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rusqlite::ffi;

/// What a disk writes at once.
const SECTOR_BYTES: usize = 512;
/// Lock slots of the WAL index (`SQLITE_SHM_NLOCK`).
const SHM_SLOTS: usize = 8;

/// What becomes of writes that were not synced when power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    /// All of them are lost.
    Dropped,
    /// Some sectors of them are lost, chosen by this seed.
    Torn(u64),
}

/// A disk that can lose power, registered with SQLite under a name of its own. The registration stays for the life of
/// the process, as connections may outlive this handle.
#[derive(Debug, Clone)]
pub struct PowerLoss {
    name: String,
    disk: Disk,
}

impl PowerLoss {
    /// A new, empty disk under a name nobody else has.
    #[expect(clippy::panic, reason = "without a name or a file layer there is no test")]
    pub fn register() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("powerloss-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let disk = Disk::default();
        if vfs::register(&name, disk.clone()) != ffi::SQLITE_OK {
            panic!("SQLite refuses the file layer `{name}`");
        }
        Self { name, disk }
    }

    /// The name to open connections with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Cuts the power: everything unsynced is gone, and every open handle fails from now on.
    pub fn lose_power(&self) {
        self.disk.state().lose(Unsynced::Dropped);
    }

    /// Cuts the power instead of this many writes, syncs, truncations and deletions from now; 0 is the next one.
    pub fn lose_power_after(&self, operations: u64, unsynced: Unsynced) {
        self.disk.state().cut = Some((operations, unsynced));
    }

    /// Writes, syncs, truncations and deletions so far.
    pub fn operations(&self) -> u64 {
        self.disk.state().operations
    }

    /// Power cuts so far.
    pub fn losses(&self) -> u64 {
        self.disk.state().generation
    }

    /// Lets this many more writes pass and then answers each with `SQLITE_FULL`.
    pub fn fill_after(&self, writes: u64) {
        self.disk.state().room = Some(writes);
    }

    /// Ends what [`PowerLoss::fill_after`] began.
    pub fn make_room(&self) {
        self.disk.state().room = None;
    }

    /// From now on it says that it has synced and has not.
    pub fn forget_syncs(&self) {
        self.disk.state().forgets = true;
    }

    /// Makes it as new: empty, and open handles fail.
    pub fn erase(&self) {
        let mut state = self.disk.state();
        *state = State { generation: state.generation + 1, files_made: state.files_made, ..State::default() };
    }
}

#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, name: String, flags: c_int) -> Option<Handle> {
        let mut state = self.state();
        let number = state.open(&name, flags)?;
        Some(Handle {
            disk: self.clone(),
            generation: state.generation,
            number,
            level: ffi::SQLITE_LOCK_NONE,
            shm: None,
            shm_shared: [false; SHM_SLOTS],
            shm_exclusive: [false; SHM_SLOTS],
            delete_on_close: (flags & ffi::SQLITE_OPEN_DELETEONCLOSE != 0).then_some(name),
        })
    }

    fn delete(&self, name: &str, sync: bool) -> c_int {
        let mut state = self.state();
        if state.tick() {
            return ffi::SQLITE_IOERR_DELETE;
        }
        if state.names.remove(name).is_none() {
            return ffi::SQLITE_IOERR_DELETE_NOENT;
        }
        if sync {
            state.names_sync();
        }
        ffi::SQLITE_OK
    }

    /// How long the file of this name is.
    fn size(&self, name: &str) -> Option<usize> {
        let state = self.state();
        state.names.get(name).and_then(|number| state.files.get(number)).map(|file| file.written.len())
    }
}

#[derive(Debug, Default)]
struct State {
    /// Counts power cuts; a handle of an earlier generation is dead.
    generation: u64,
    operations: u64,
    cut: Option<(u64, Unsynced)>,
    room: Option<u64>,
    forgets: bool,
    names: BTreeMap<String, u64>,
    names_synced: BTreeMap<String, u64>,
    files: BTreeMap<u64, File>,
    files_made: u64,
}

impl State {
    /// Counts an operation that changes the disk. Says whether power went instead.
    fn tick(&mut self) -> bool {
        self.operations += 1;
        match self.cut {
            Some((0, unsynced)) => {
                self.lose(unsynced);
                true
            }
            Some((left, unsynced)) => {
                self.cut = Some((left - 1, unsynced));
                false
            }
            None => false,
        }
    }

    fn lose(&mut self, unsynced: Unsynced) {
        self.generation += 1;
        self.cut = None;
        let mut coin = match unsynced {
            Unsynced::Dropped => Coin { state: 0, fair: false },
            Unsynced::Torn(seed) => Coin { state: seed, fair: true },
        };
        let mut names = self.names_synced.clone();
        for (name, file) in &self.names {
            if names.get(name) != Some(file) && coin.heads() {
                names.insert(name.clone(), *file);
            }
        }
        names.retain(|name, _| self.names.contains_key(name) || !coin.heads());
        self.files.retain(|number, _| names.values().any(|n| n == number));
        for file in self.files.values_mut() {
            file.lose(&mut coin);
        }
        self.names_synced = names.clone();
        self.names = names;
    }

    fn names_sync(&mut self) {
        self.names_synced = self.names.clone();
    }

    /// The file of this name; made if need be and allowed.
    fn open(&mut self, name: &str, flags: c_int) -> Option<u64> {
        let exclusive = ffi::SQLITE_OPEN_CREATE | ffi::SQLITE_OPEN_EXCLUSIVE;
        match self.names.get(name) {
            Some(_) if flags & exclusive == exclusive => None,
            Some(number) => Some(*number),
            None if flags & ffi::SQLITE_OPEN_CREATE == 0 => None,
            None => {
                self.files_made += 1;
                self.names.insert(name.to_owned(), self.files_made);
                self.files.insert(self.files_made, File::default());
                Some(self.files_made)
            }
        }
    }
}

/// Decides what a torn write leaves; without fairness nothing unsynced survives.
struct Coin {
    state: u64,
    fair: bool,
}

impl Coin {
    fn heads(&mut self) -> bool {
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.fair && (z ^ (z >> 31)) & 1 == 1
    }
}

#[derive(Debug, Default)]
struct File {
    written: Vec<u8>,
    synced: Vec<u8>,
    /// The range of `written` that may differ from `synced`.
    dirty: Option<(usize, usize)>,
    locks: Locks,
    shm: Weak<Shm>,
}

impl File {
    fn touch(&mut self, from: usize, to: usize) {
        self.dirty = Some(self.dirty.map_or((from, to), |(a, b)| (a.min(from), b.max(to))));
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let (len, end) = (self.written.len(), at + bytes.len());
        if len < end {
            self.written.resize(end, 0);
        }
        if let Some(place) = self.written.get_mut(at..end) {
            place.copy_from_slice(bytes);
        }
        self.touch(at.min(len), end);
    }

    fn truncate(&mut self, size: usize) {
        let len = self.written.len();
        self.written.resize(size, 0);
        self.touch(size.min(len), size.max(len));
    }

    fn sync(&mut self) {
        self.synced.resize(self.written.len(), 0);
        if let Some((from, to)) = self.dirty.take() {
            let to = to.min(self.written.len());
            if let (Some(target), Some(source)) = (self.synced.get_mut(from..to), self.written.get(from..to)) {
                target.copy_from_slice(source);
            }
        }
    }

    fn lose(&mut self, coin: &mut Coin) {
        let mut left = std::mem::take(&mut self.synced);
        if left.len() != self.written.len() && coin.heads() {
            left.resize(self.written.len(), 0);
        }
        for (old, new) in left.chunks_mut(SECTOR_BYTES).zip(self.written.chunks(SECTOR_BYTES)) {
            let both = old.len().min(new.len());
            if let (Some(old), Some(new)) = (old.get_mut(..both), new.get(..both))
                && old != new
                && coin.heads()
            {
                old.copy_from_slice(new);
            }
        }
        *self = Self { written: left.clone(), synced: left, ..Self::default() };
    }
}

/// Who holds the database file, as far as others need to know.
#[derive(Debug, Default)]
struct Locks {
    shared: usize,
    reserved: bool,
    pending: bool,
    exclusive: bool,
}

/// The WAL index: shared by the connections of one file, gone with the last of them.
#[derive(Debug, Default)]
struct Shm {
    /// Atomics, because SQLite writes through the pointers we give out while we hold the regions.
    regions: Mutex<Vec<Arc<[AtomicU64]>>>,
    slots: Mutex<[Slot; SHM_SLOTS]>,
}

#[derive(Debug, Default)]
struct Slot {
    shared: usize,
    exclusive: bool,
}

/// One open file of one connection.
struct Handle {
    disk: Disk,
    generation: u64,
    number: u64,
    level: c_int,
    shm: Option<Arc<Shm>>,
    shm_shared: [bool; SHM_SLOTS],
    shm_exclusive: [bool; SHM_SLOTS],
    delete_on_close: Option<String>,
}

impl Handle {
    /// Does something with the file, or fails this way if power was lost since it was opened.
    fn with(&self, failure: c_int, act: impl FnOnce(&mut File) -> c_int) -> c_int {
        let mut state = self.disk.state();
        if state.generation != self.generation {
            return failure;
        }
        state.files.get_mut(&self.number).map_or(failure, act)
    }

    /// As [`Handle::with`], for what changes the disk.
    fn change(&self, failure: c_int, act: impl FnOnce(&mut File) -> c_int) -> c_int {
        {
            let mut state = self.disk.state();
            if state.generation != self.generation || state.tick() {
                return failure;
            }
        }
        self.with(failure, act)
    }

    fn write(&self, at: usize, bytes: &[u8]) -> c_int {
        match &mut self.disk.state().room {
            Some(0) => return ffi::SQLITE_FULL,
            Some(writes) => *writes -= 1,
            None => {}
        }
        self.change(ffi::SQLITE_IOERR_WRITE, |file| {
            file.write(at, bytes);
            ffi::SQLITE_OK
        })
    }

    fn sync(&self) -> c_int {
        if self.disk.state().forgets {
            return ffi::SQLITE_OK;
        }
        let synced = self.change(ffi::SQLITE_IOERR_FSYNC, |file| {
            file.sync();
            ffi::SQLITE_OK
        });
        let mut state = self.disk.state();
        if synced == ffi::SQLITE_OK && !state.names_synced.values().any(|n| *n == self.number) {
            state.names_sync();
        }
        synced
    }

    fn lock(&mut self, level: c_int) -> c_int {
        let mut held = self.level;
        let answer = self.with(ffi::SQLITE_IOERR_LOCK, |file| {
            let locks = &mut file.locks;
            if held >= level {
                return ffi::SQLITE_OK;
            }
            if held == ffi::SQLITE_LOCK_NONE {
                if locks.pending || locks.exclusive {
                    return ffi::SQLITE_BUSY;
                }
                locks.shared += 1;
                held = ffi::SQLITE_LOCK_SHARED;
            }
            if level == ffi::SQLITE_LOCK_RESERVED {
                if locks.reserved || locks.pending || locks.exclusive {
                    return ffi::SQLITE_BUSY;
                }
                locks.reserved = true;
            }
            if level == ffi::SQLITE_LOCK_EXCLUSIVE {
                if held < ffi::SQLITE_LOCK_PENDING {
                    if locks.pending {
                        return ffi::SQLITE_BUSY;
                    }
                    locks.pending = true;
                    locks.reserved |= held == ffi::SQLITE_LOCK_RESERVED;
                    held = ffi::SQLITE_LOCK_PENDING;
                }
                if locks.shared > 1 {
                    return ffi::SQLITE_BUSY;
                }
                locks.exclusive = true;
            }
            held = level;
            ffi::SQLITE_OK
        });
        self.level = held;
        answer
    }

    fn unlock(&mut self, level: c_int) -> c_int {
        let held = self.level;
        self.level = level.min(held);
        self.with(ffi::SQLITE_OK, |file| {
            let locks = &mut file.locks;
            if held >= ffi::SQLITE_LOCK_RESERVED && level < ffi::SQLITE_LOCK_RESERVED {
                *locks = Locks { shared: locks.shared, ..Locks::default() };
            }
            if held >= ffi::SQLITE_LOCK_SHARED && level < ffi::SQLITE_LOCK_SHARED {
                locks.shared = locks.shared.saturating_sub(1);
            }
            ffi::SQLITE_OK
        })
    }

    /// The address of a region of the WAL index, null if it is not there and not wanted.
    fn shm_map(&mut self, region: usize, bytes: usize, extend: bool) -> Result<*mut c_void, c_int> {
        let mut shm = self.shm.take();
        let answer = self.with(ffi::SQLITE_IOERR_SHMMAP, |file| {
            if shm.is_none() {
                shm = file.shm.upgrade();
            }
            if shm.is_none() {
                let fresh = Arc::new(Shm::default());
                file.shm = Arc::downgrade(&fresh);
                shm = Some(fresh);
            }
            ffi::SQLITE_OK
        });
        self.shm = shm;
        let Some(shm) = self.shm.as_ref().filter(|_| answer == ffi::SQLITE_OK) else { return Err(ffi::SQLITE_IOERR_SHMMAP) };
        let mut regions = shm.regions.lock().unwrap_or_else(PoisonError::into_inner);
        while extend && regions.len() <= region {
            regions.push((0..bytes.div_ceil(8)).map(|_| AtomicU64::new(0)).collect());
        }
        Ok(regions.get(region).map_or(std::ptr::null_mut(), |r| r.as_ptr().cast_mut().cast()))
    }

    fn shm_lock(&mut self, from: usize, count: usize, flags: c_int) -> c_int {
        let alive = self.with(ffi::SQLITE_IOERR_SHMLOCK, |_| ffi::SQLITE_OK);
        let Some(shm) = self.shm.clone() else { return ffi::SQLITE_IOERR_SHMLOCK };
        let mut slots = shm.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted: Vec<_> = slots.iter_mut().zip(&mut self.shm_shared).zip(&mut self.shm_exclusive).skip(from).take(count).collect();
        if flags & ffi::SQLITE_SHM_UNLOCK != 0 {
            for ((slot, shared), exclusive) in wanted {
                slot.shared -= usize::from(std::mem::take(shared));
                slot.exclusive &= !std::mem::take(exclusive);
            }
            return ffi::SQLITE_OK;
        }
        if alive != ffi::SQLITE_OK {
            return alive;
        }
        let shares = flags & ffi::SQLITE_SHM_SHARED != 0;
        let others = |slot: &Slot, mine: bool| slot.shared > usize::from(mine);
        if wanted.iter().any(|((slot, shared), exclusive)| (slot.exclusive && !**exclusive) || (!shares && others(slot, **shared))) {
            return ffi::SQLITE_BUSY;
        }
        for ((slot, shared), exclusive) in &mut wanted {
            if shares {
                slot.shared += usize::from(!std::mem::replace(*shared, true));
            } else {
                slot.exclusive = true;
                **exclusive = true;
            }
        }
        ffi::SQLITE_OK
    }

    fn shm_unmap(&mut self) {
        if self.shm.is_some() {
            self.shm_lock(0, SHM_SLOTS, ffi::SQLITE_SHM_UNLOCK);
            self.shm = None;
        }
    }

    fn close(&mut self) {
        self.unlock(ffi::SQLITE_LOCK_NONE);
        self.shm_unmap();
        if let Some(name) = self.delete_on_close.take() {
            self.disk.state().names.remove(&name);
        }
    }
}
