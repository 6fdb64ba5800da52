//! A disk for the issuance journal that is full when the test says so and forgets what was not synced.
//!
//! The bytes are in real files. What is on the disk and what is only written is known by length, because segments only
//! grow. A power cut leaves the synced part, or, torn, some of the rest; whoever had files open before it gets errors
//! until the power is on again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use countersign_server::audit::Disk;

/// The disk. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct JournalDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// How much of each file stays.
    synced: HashMap<PathBuf, u64>,
    room: Option<u64>,
    dark: bool,
    forgets: bool,
}

impl JournalDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets this many more bytes be written and then answers as a full disk does.
    pub fn fill_after(&self, bytes: u64) {
        self.state().room = Some(bytes);
    }

    /// Ends what [`JournalDisk::fill_after`] began.
    pub fn make_room(&self) {
        self.state().room = None;
    }

    /// From now on it says that it has synced and has not.
    pub fn forget_syncs(&self) {
        self.state().forgets = true;
    }

    /// Cuts the power: of what was not synced, so many thousandths stay.
    ///
    /// # Errors
    /// A real file cannot be cut.
    pub fn lose_power(&self, thousandths: u64) -> io::Result<()> {
        let mut state = self.state();
        state.dark = true;
        for (path, synced) in &mut state.synced {
            let file = match OpenOptions::new().write(true).open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let rest = file.metadata()?.len().saturating_sub(*synced);
            let left = rest.saturating_mul(thousandths.min(1000)) / 1000;
            *synced += left;
            file.set_len(*synced)?;
        }
        Ok(())
    }

    /// Ends what [`JournalDisk::lose_power`] began, once nobody of before has files open.
    pub fn power_on(&self) {
        let mut state = self.state();
        state.dark = false;
        // A start may cut off what it cannot read.
        state.synced.clear();
    }
}

fn no_power() -> io::Error {
    io::Error::other("the disk has no power")
}

impl Disk for JournalDisk {
    fn append(&self, path: &Path, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        if state.dark {
            return Err(no_power());
        }
        // What was there before this process is not lost by it.
        if !state.synced.contains_key(path) {
            let length = file.metadata()?.len();
            state.synced.insert(path.to_owned(), length);
        }
        let wanted = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        match &mut state.room {
            Some(room) if *room < wanted => {
                let fits = usize::try_from(std::mem::take(room)).unwrap_or(usize::MAX);
                file.write_all(bytes.get(..fits).unwrap_or(bytes))?;
                return Err(io::ErrorKind::StorageFull.into());
            }
            Some(room) => *room -= wanted,
            None => {}
        }
        file.write_all(bytes)
    }

    fn sync(&self, path: &Path, file: &File) -> io::Result<()> {
        let mut state = self.state();
        if state.dark {
            return Err(no_power());
        }
        if !state.forgets {
            let length = file.metadata()?.len();
            state.synced.insert(path.to_owned(), length);
        }
        Ok(())
    }

    fn cut(&self, path: &Path, file: &File, length: u64) -> io::Result<()> {
        let mut state = self.state();
        if state.dark {
            return Err(no_power());
        }
        if let Some(synced) = state.synced.get_mut(path) {
            *synced = length.min(*synced);
        }
        file.set_len(length)
    }
}
