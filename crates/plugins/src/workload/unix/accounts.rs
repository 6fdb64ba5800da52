//! Names of users and groups, without the C library's lookup, so that a statically linked binary resolves them too.
//!
//! The local files come first. A name that is not there (LDAP, sssd) is asked of `getent`, once a minute at most.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Largest account file read.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// How long an answer of `getent`, a name or none, is believed.
const ANSWER_LIFETIME: Duration = Duration::from_secs(60);
/// Most answers of `getent` remembered.
const ANSWERS_MAX: usize = 4096;
/// How long `getent` may take; a directory server that hangs must not hang workloads.
const GETENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Both tables of names.
#[derive(Debug)]
pub(super) struct Accounts {
    users: Table,
    groups: Table,
}

impl Default for Accounts {
    fn default() -> Self {
        Self { users: Table::new("/etc/passwd", "passwd"), groups: Table::new("/etc/group", "group") }
    }
}

impl Accounts {
    pub(super) fn user(&self, uid: u32) -> Option<String> {
        self.users.name(uid)
    }

    pub(super) fn group(&self, gid: u32) -> Option<String> {
        self.groups.name(gid)
    }
}

/// One table: a file `name:…:id:…` and what `getent` said of IDs that are not in it.
#[derive(Debug)]
pub(super) struct Table {
    path: PathBuf,
    database: &'static str,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    stamp: Option<(u64, u64, i64, i64)>,
    names: HashMap<u32, String>,
    answers: HashMap<u32, (Instant, Option<String>)>,
}

impl Table {
    pub(super) fn new(path: impl AsRef<Path>, database: &'static str) -> Self {
        Self { path: path.as_ref().to_owned(), database, known: Mutex::default() }
    }

    pub(super) fn name(&self, id: u32) -> Option<String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut known);
        if let Some(name) = known.names.get(&id) {
            return Some(name.clone());
        }
        if let Some((at, answer)) = known.answers.get(&id)
            && at.elapsed() < ANSWER_LIFETIME
        {
            return answer.clone();
        }
        drop(known);
        let answer = getent(self.database, id);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.answers.len() >= ANSWERS_MAX {
            known.answers.clear();
        }
        known.answers.insert(id, (Instant::now(), answer.clone()));
        answer
    }

    /// Reads the file again when it was replaced or changed.
    fn refresh(&self, known: &mut Known) {
        let Ok(metadata) = std::fs::metadata(&self.path) else { return };
        let stamp = Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()));
        if known.stamp == stamp || metadata.len() > FILE_BYTES_MAX {
            return;
        }
        let Ok(text) = std::fs::read(&self.path) else { return };
        known.stamp = stamp;
        known.names.clear();
        for line in String::from_utf8_lossy(&text).lines() {
            if let Some((name, id)) = parse(line) {
                // The first line of an ID wins, as in the C library.
                known.names.entry(id).or_insert(name);
            }
        }
    }
}

/// `name:password:id:…`
fn parse(line: &str) -> Option<(String, u32)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
    let id = fields.nth(1)?.parse().ok()?;
    Some((name.to_owned(), id))
}

fn getent(database: &str, id: u32) -> Option<String> {
    let mut child = Command::new("getent")
        .args([database, &id.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if start.elapsed() < GETENT_TIMEOUT => std::thread::sleep(Duration::from_millis(1)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
    let output = child.wait_with_output().ok()?;
    let (name, found) = String::from_utf8_lossy(&output.stdout).lines().find_map(parse)?;
    (found == id).then_some(name)
}
