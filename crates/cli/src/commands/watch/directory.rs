//! The directory that programs read: one renewal at a time, never parts of two.
//!
//! The files of a renewal are in a directory of their own, `..version-N`. `..data` is a symbolic link to the newest, replaced
//! in one step, and the names that programs use are links through it:
//!
//!     svid.pem  ->  ..data/svid.pem        ..data  ->  ..version-7
//!
//! What a version holds never changes. It stays until the next but one is there, for whoever is still reading it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use countersign_identity::x509::Certificate;
use countersign_identity::{Timestamp, pem};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::svids::Svid;

const CURRENT: &str = "..data";
/// The next link, before it takes the place of its predecessor.
const NEXT_LINK: &str = "..next";
const VERSION: &str = "..version-";
/// Largest certificate file read back at the start: a leaf and its intermediates have a few kilobytes.
const CHAIN_BYTES_MAX: u64 = 1 << 20;

/// Who may read the keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    pub(super) key_mode: u32,
    pub(super) group: Option<u32>,
}

/// The directory, held by this process alone.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    access: Access,
    /// Holds the lock.
    held: OwnedFd,
}

/// A file of a version: a name and what is in it, or another name for a file of the same version.
enum Part<'a> {
    Open(&'a [u8]),
    Secret(&'a [u8]),
    SameAs(String),
}

/// True if the files here are kept by `--watch`.
pub(crate) fn is_kept(directory: &Path) -> bool {
    directory.join(CURRENT).is_symlink()
}

impl Directory {
    /// Makes it if needed, and holds it.
    pub(super) fn open(path: &Path, access: Access) -> Result<Self, String> {
        std::fs::create_dir_all(path).map_err(|e| format!("cannot make `{}`: {e}", path.display()))?;
        let held = hold(path)?;
        Ok(Self { path: path.to_owned(), access, held })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Identity and validity of the SVID that is there, if one is.
    pub(super) fn present(&self) -> Option<(String, Timestamp, Timestamp)> {
        use io::Read as _;
        let mut text = String::new();
        File::open(self.path.join("svid.pem")).ok()?.take(CHAIN_BYTES_MAX).read_to_string(&mut text).ok()?;
        let (_, der) = pem::read(&text).ok()?.into_iter().next()?;
        let leaf = Certificate::parse(&der).ok()?;
        Some((leaf.spiffe_id()?.to_string(), leaf.not_before, leaf.not_after))
    }

    /// Puts these SVIDs in the place of what is there. After an error the former files are whole and in place, or the new ones.
    /// What is old and could not be removed is said by the answer; the next renewal tries again.
    pub(super) fn replace(&mut self, svids: &[Svid]) -> Result<Option<String>, String> {
        self.hold_again()?;
        let directory = self.held.try_clone().map_err(|e| self.failed(&e))?;
        let former = current(&directory);
        let parts = parts(svids);
        let version = self.next_version().map_err(|e| self.failed(&e))?;
        let written = self.write_version(&directory, &version, &parts).and_then(|()| switch(&directory, &version, CURRENT));
        if let Err(error) = written {
            // Half a version is no use, and on a full disk its room is. But the last step may have failed after the switch.
            if current(&directory).as_deref() != Some(&version) {
                let _ = std::fs::remove_dir_all(self.path.join(&version));
            }
            return Err(self.failed(&error));
        }
        let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
        let linked = self.link(&directory, &names);
        // Also if a name could not be linked: the next attempt makes another version, with keys, and may fail likewise.
        let cleaned = self.clean(&names, &[Some(version.as_str()), former.as_deref()]);
        linked.map_err(|e| self.failed(&e))?;
        Ok(cleaned.err().map(|e| format!("cannot remove old files from `{}`: {e}", self.path.display())))
    }

    fn failed(&self, error: &io::Error) -> String {
        format!("cannot write to `{}`: {error}", self.path.display())
    }

    /// Somebody may have removed the directory and made another since.
    fn hold_again(&mut self) -> Result<(), String> {
        let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let held = rustix::fs::fstat(&self.held).ok().map(identity);
        if rustix::fs::stat(&self.path).ok().map(identity) != held {
            *self = Self::open(&self.path, self.access)?;
        }
        Ok(())
    }

    fn next_version(&self) -> io::Result<String> {
        let mut highest = 0_u64;
        for item in std::fs::read_dir(&self.path)? {
            let name = item?.file_name();
            let number = name.to_str().and_then(|n| n.strip_prefix(VERSION)).and_then(|n| n.parse().ok());
            highest = highest.max(number.unwrap_or(0));
        }
        Ok(format!("{VERSION}{}", highest.saturating_add(1)))
    }

    /// Everything is opened relative to what was opened before: whoever may rename things here cannot send a key elsewhere.
    fn write_version(&self, directory: &OwnedFd, version: &str, parts: &[(String, Part<'_>)]) -> io::Result<()> {
        rustix::fs::mkdirat(directory, version, Mode::from_raw_mode(0o700))?;
        let inside = rustix::fs::openat(directory, version, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        for (name, part) in parts {
            let (bytes, mode, group) = match part {
                Part::SameAs(other) => {
                    rustix::fs::symlinkat(other.as_str(), &inside, name.as_str())?;
                    continue;
                }
                Part::Open(bytes) => (bytes, 0o644, None),
                Part::Secret(bytes) => (bytes, self.access.key_mode, self.access.group),
            };
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(rustix::fs::openat(&inside, name.as_str(), flags, Mode::from_raw_mode(0o600))?);
            // Before there is anything to read; and whatever the umask is.
            if let Some(group) = group {
                rustix::fs::fchown(&file, None, Some(rustix::fs::Gid::from_raw(group)))?;
            }
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        rustix::fs::fchmod(&inside, Mode::from_raw_mode(0o755))?;
        rustix::fs::fsync(&inside)?;
        Ok(())
    }

    /// The names that programs use; a plain file of that name, as `--write` alone makes it, gives way.
    fn link(&self, directory: &OwnedFd, names: &[&str]) -> io::Result<()> {
        for name in names {
            let target = format!("{CURRENT}/{name}");
            if std::fs::read_link(self.path.join(name)).ok().as_deref() != Some(Path::new(&target)) {
                switch(directory, &target, name)?;
            }
        }
        rustix::fs::fsync(directory)?;
        Ok(())
    }

    /// Removes names of SVIDs that are no more, and versions but these.
    fn clean(&self, names: &[&str], versions: &[Option<&str>]) -> io::Result<()> {
        for item in std::fs::read_dir(&self.path)? {
            let item = item?;
            let name = item.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(VERSION) && !versions.contains(&Some(name)) {
                std::fs::remove_dir_all(item.path())?;
            } else if !names.contains(&name) && std::fs::read_link(item.path()).is_ok_and(|target| target == Path::new(CURRENT).join(name))
            {
                std::fs::remove_file(item.path())?;
            }
        }
        Ok(())
    }
}

/// The version that is in place.
fn current(directory: &OwnedFd) -> Option<String> {
    rustix::fs::readlinkat(directory, CURRENT, Vec::new()).ok().and_then(|link| link.into_string().ok())
}

fn parts(svids: &[Svid]) -> Vec<(String, Part<'_>)> {
    let mut parts = Vec::new();
    for (index, svid) in svids.iter().enumerate() {
        parts.push((format!("svid.{index}.pem"), Part::Open(svid.chain.as_bytes())));
        parts.push((format!("svid.{index}.key"), Part::Secret(svid.key.as_bytes())));
        parts.push((format!("bundle.{index}.pem"), Part::Open(svid.bundle.as_bytes())));
    }
    for (name, other) in [("svid.pem", "svid.0.pem"), ("svid.key", "svid.0.key"), ("bundle.pem", "bundle.0.pem")] {
        parts.push((name.to_owned(), Part::SameAs(other.to_owned())));
    }
    parts
}

/// A symbolic link in the place of whatever has this name, in one step, and on the disk.
fn switch(directory: &OwnedFd, target: &str, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, NEXT_LINK, AtFlags::empty()) {
        Err(e) if e != Errno::NOENT => return Err(e.into()),
        _ => {}
    }
    rustix::fs::symlinkat(target, directory, NEXT_LINK)?;
    rustix::fs::renameat(directory, NEXT_LINK, directory, name)?;
    rustix::fs::fsync(directory)?;
    Ok(())
}

fn hold(path: &Path) -> Result<OwnedFd, String> {
    let failed = |e: Errno| format!("cannot open `{}`: {e}", path.display());
    let directory = rustix::fs::openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&directory).map_err(failed)?;
    if stat.st_mode & 0o002 != 0 {
        return Err(format!("everybody may write to `{}`, and so replace the files; take a directory of your own", path.display()));
    }
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(format!("another `fetch x509 --watch` keeps the files in `{}`", path.display())),
        // A file system without locks: the operator's unit file keeps it to one process.
        _ => Ok(directory),
    }
}
