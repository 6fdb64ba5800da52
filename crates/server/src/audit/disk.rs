//! How the journal's segments are written: a seam, so that tests fill the disk and cut its power.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

/// Writes to segments, each an open file and its path.
pub trait Disk: std::fmt::Debug + Send + Sync {
    /// Adds bytes at the end.
    ///
    /// # Errors
    /// Not all of them were written.
    fn append(&self, path: &Path, file: &mut File, bytes: &[u8]) -> io::Result<()>;

    /// Returns once what was written stays, whatever happens to the machine.
    ///
    /// # Errors
    /// It may not stay.
    fn sync(&self, path: &Path, file: &File) -> io::Result<()>;

    /// Cuts everything off behind this length.
    ///
    /// # Errors
    /// It may still be there.
    fn cut(&self, path: &Path, file: &File, length: u64) -> io::Result<()>;
}

/// The machine's disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn append(&self, _: &Path, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, _: &Path, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn cut(&self, _: &Path, file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }
}
