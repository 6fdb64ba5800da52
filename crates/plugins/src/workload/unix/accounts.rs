//! Names of users and groups, without the C library's lookup, so that a statically linked binary resolves them too.
//!
//! The local files come first and are read at once. A name that is not there (LDAP, sssd) is asked of `getent`, which may
//! take long: never on a thread that serves others, a few at a time, and what it said is remembered for a while.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::sync::Semaphore;

/// Largest account file read, and longest answer of `getent`: a directory's largest groups have some hundred thousand members.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// How long an answer of `getent`, a name or none, is believed.
const ANSWER_LIFETIME: Duration = Duration::from_secs(60);
/// How long an ID without an answer is not asked for again: a directory that hangs costs a caller its time once.
const SILENCE_LIFETIME: Duration = Duration::from_secs(10);
/// Most answers of `getent` remembered: the accounts of a large node, and what one user can invent does not fill memory.
const ANSWERS_MAX: usize = 4096;
/// How long a caller waits for names, its turn included; a directory that hangs must not hang workloads.
const GETENT_TIMEOUT: Duration = Duration::from_secs(2);
/// Processes of `getent` at once: one a core of a small node.
const GETENT_PROCESSES_MAX: usize = 4;
/// Most IDs of one caller that are asked for; a process may have 65,536 groups.
const IDS_MAX: usize = 256;

/// Both tables of names.
#[derive(Debug)]
pub(super) struct Accounts {
    users: Table,
    groups: Table,
    getent: Getent,
}

impl Default for Accounts {
    fn default() -> Self {
        Self::new("/etc/passwd", "/etc/group", "getent")
    }
}

/// IDs whose names the account files do not tell.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
}

impl Unknown {
    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }
}

impl Accounts {
    pub(super) fn new(passwd: impl AsRef<Path>, group: impl AsRef<Path>, getent: impl AsRef<Path>) -> Self {
        Self {
            users: Table::new(passwd, "passwd"),
            groups: Table::new(group, "group"),
            getent: Getent { program: getent.as_ref().to_owned(), places: Semaphore::new(GETENT_PROCESSES_MAX) },
        }
    }

    /// A user's name as far as it is known at once; else the ID is noted as one to ask for.
    pub(super) fn user(&self, uid: u32, now: Instant, unknown: &mut Unknown) -> Option<String> {
        self.users.name(uid, now, &mut unknown.users)
    }

    /// A group's name, as [`Accounts::user`].
    pub(super) fn group(&self, gid: u32, now: Instant, unknown: &mut Unknown) -> Option<String> {
        self.groups.name(gid, now, &mut unknown.groups)
    }

    /// Asks for what is unknown. Afterwards everything that could be had is known at once, for a while.
    pub(super) async fn ask(&self, unknown: &Unknown) {
        tokio::join!(self.users.ask(&self.getent, &unknown.users), self.groups.ask(&self.getent, &unknown.groups));
    }
}

/// The program that asks the directories of the node, and how often it may run at once.
#[derive(Debug)]
struct Getent {
    program: PathBuf,
    places: Semaphore,
}

impl Getent {
    /// The lines for these IDs; nothing if there was no proper answer. All IDs are asked for in one process.
    async fn run(&self, database: &str, ids: &[u32]) -> Option<String> {
        let mut command = Command::new(&self.program);
        command.arg(database).args(ids.iter().map(u32::to_string)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = match command.kill_on_drop(true).spawn() {
            Ok(child) => child,
            // A node without it has nobody to ask.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Some(String::new()),
            Err(_) => return None,
        };
        let mut lines = Vec::new();
        child.stdout.take()?.take(FILE_BYTES_MAX).read_to_end(&mut lines).await.ok()?;
        // 0: all were found; 2: some were not. Anything else is no answer.
        match child.wait().await.ok()?.code() {
            Some(0 | 2) => Some(String::from_utf8_lossy(&lines).into_owned()),
            _ => None,
        }
    }
}

/// One table: a file `name:…:id:…` and what `getent` said of IDs that are not in it.
#[derive(Debug)]
struct Table {
    path: PathBuf,
    database: &'static str,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    stamp: Option<(u64, u64, i64, i64)>,
    names: HashMap<u32, String>,
    answers: HashMap<u32, Answer>,
}

#[derive(Debug)]
struct Answer {
    name: Option<String>,
    until: Instant,
}

impl Table {
    fn new(path: impl AsRef<Path>, database: &'static str) -> Self {
        Self { path: path.as_ref().to_owned(), database, known: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, id: u32, now: Instant, unknown: &mut BTreeSet<u32>) -> Option<String> {
        let mut known = self.lock();
        self.refresh(&mut known);
        if let Some(name) = known.names.get(&id) {
            return Some(name.clone());
        }
        match known.answers.get(&id) {
            Some(answer) if answer.until > now => answer.name.clone(),
            _ => {
                if unknown.len() < IDS_MAX {
                    unknown.insert(id);
                }
                None
            }
        }
    }

    async fn ask(&self, getent: &Getent, ids: &BTreeSet<u32>) {
        if ids.is_empty() {
            return;
        }
        let mut asked: Vec<u32> = Vec::new();
        let asking = tokio::time::timeout(GETENT_TIMEOUT, async {
            let _place = getent.places.acquire().await.ok()?;
            // Whoever was first may have brought them.
            asked = self.lock().unanswered(ids, Instant::now());
            if asked.is_empty() { Some(String::new()) } else { getent.run(self.database, &asked).await }
        });
        let answer = asking.await.ok().flatten();
        if answer.is_none() {
            tracing::warn!(
                database = self.database,
                ids = ids.len(),
                "The node's directory does not tell the names of a caller, the selectors with them are missing"
            );
        }
        // An ID whose turn did not come is asked for the next time.
        self.lock().remember(&asked, answer.as_deref(), Instant::now());
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

impl Known {
    fn unanswered(&self, ids: &BTreeSet<u32>, now: Instant) -> Vec<u32> {
        ids.iter().copied().filter(|id| self.answers.get(id).is_none_or(|a| a.until <= now)).collect()
    }

    /// Keeps what was said about each of these; no answer at all is kept too, but not for long.
    fn remember(&mut self, ids: &[u32], answer: Option<&str>, now: Instant) {
        let until = now + if answer.is_some() { ANSWER_LIFETIME } else { SILENCE_LIFETIME };
        let mut names: HashMap<u32, String> = HashMap::new();
        for (name, id) in answer.unwrap_or_default().lines().filter_map(parse) {
            names.entry(id).or_insert(name);
        }
        if self.answers.len() + ids.len() > ANSWERS_MAX {
            self.answers.retain(|_, a| a.until > now);
        }
        if self.answers.len() + ids.len() > ANSWERS_MAX {
            // Whoever invents IDs does not push out those that exist.
            self.answers.retain(|_, a| a.name.is_some());
        }
        if self.answers.len() + ids.len() > ANSWERS_MAX {
            self.answers.clear();
        }
        self.answers.extend(ids.iter().map(|id| (*id, Answer { name: names.remove(id), until })));
    }
}

/// `name:password:id:…`
fn parse(line: &str) -> Option<(String, u32)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
    let id = fields.nth(1)?.parse().ok()?;
    Some((name.to_owned(), id))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Waker};

    use super::*;

    /// Where `getent` is a shell script of the test's.
    struct Node {
        directory: tempfile::TempDir,
        accounts: Accounts,
    }

    impl Node {
        /// The script runs in a directory of its own.
        fn with(script: &str) -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let path = |name: &str| directory.path().join(name);
            std::fs::write(path("passwd"), "root:x:0:0::/:\n").expect("written");
            std::fs::write(path("group"), "wheel:x:0:\n").expect("written");
            std::fs::write(path("script"), format!("#!/bin/sh\ncd {}\n{script}\n", directory.path().display())).expect("written");
            // Written by another process: a child that a test beside this one has just forked may hold what this process has
            // open, and the kernel starts no program that somebody has open for writing.
            let mut install = std::process::Command::new("install");
            let made = install.args(["-m", "755"]).arg(path("script")).arg(path("getent")).status().expect("`install` of coreutils");
            assert!(made.success());
            let accounts = Accounts::new(path("passwd"), path("group"), path("getent"));
            Self { directory, accounts }
        }

        fn lines(&self, file: &str) -> Vec<String> {
            std::fs::read_to_string(self.directory.path().join(file)).unwrap_or_default().lines().map(str::to_owned).collect()
        }

        /// Names of these groups, asked for if need be.
        async fn groups(&self, gids: &[u32]) -> Vec<Option<String>> {
            let look = |unknown: &mut Unknown| gids.iter().map(|gid| self.accounts.group(*gid, Instant::now(), unknown)).collect();
            let mut unknown = Unknown::default();
            let known: Vec<Option<String>> = look(&mut unknown);
            if unknown.is_empty() {
                return known;
            }
            self.accounts.ask(&unknown).await;
            look(&mut Unknown::default())
        }
    }

    #[test]
    fn account_files_are_read_again_when_they_change_and_the_first_name_wins() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("passwd");
        let lines = "root:x:0:0::/:\nfirst:x:4000000000:1::/:\nsecond:x:4000000000:1::/:\nbroken\n";
        std::fs::write(&path, lines).expect("written");
        let table = Table::new(&path, "passwd");
        let name = |id| {
            let mut unknown = BTreeSet::new();
            (table.name(id, Instant::now(), &mut unknown), unknown.len())
        };
        assert_eq!(name(4_000_000_000), (Some("first".to_owned()), 0));
        assert_eq!(name(4_000_000_001), (None, 1));
        std::fs::write(&path, "other:x:4000000000:1::/:\n").expect("written");
        assert_eq!(name(4_000_000_000), (Some("other".to_owned()), 0));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_directory_that_takes_its_time_holds_up_nobody_but_the_caller_it_is_asked_for() {
        let node = Node::with("while [ ! -e go ]; do sleep 0.01; done\necho late:x:$2:");
        let started = Instant::now();
        let mut slow = Box::pin(node.groups(&[4_000_000_000]));
        assert!(slow.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        // The only thread of this runtime is free again.
        assert_eq!(node.groups(&[0]).await, [Some("wheel".to_owned())]);
        assert!(started.elapsed() < GETENT_TIMEOUT, "{:?}", started.elapsed());
        std::fs::write(node.directory.path().join("go"), "").expect("written");
        assert_eq!(slow.await, [Some("late".to_owned())]);
    }

    #[tokio::test]
    async fn all_groups_of_a_caller_are_asked_for_at_once_and_remembered_with_those_that_do_not_exist() {
        let node = Node::with("echo $* >> asked\necho one:x:4000000001:\necho three:x:4000000003:\nexit 2");
        let wanted = [Some("one".to_owned()), None, Some("three".to_owned()), Some("wheel".to_owned())];
        for _ in 0..3 {
            assert_eq!(node.groups(&[4_000_000_001, 4_000_000_002, 4_000_000_003, 0]).await, wanted);
        }
        assert_eq!(node.lines("asked"), ["group 4000000001 4000000002 4000000003"]);
        // Not for ever.
        let (mut unknown, later) = (Unknown::default(), Instant::now() + ANSWER_LIFETIME);
        assert_eq!(node.accounts.group(4_000_000_002, later, &mut unknown), None);
        assert_eq!(node.accounts.group(4_000_000_003, later, &mut unknown), None);
        assert_eq!(unknown.groups.len(), 2);
    }

    #[tokio::test]
    async fn an_error_is_no_answer_and_is_asked_about_again_soon() {
        let node = Node::with("echo $* >> asked\necho one:x:4000000001:\nexit 1");
        assert_eq!(node.groups(&[4_000_000_001]).await, [None]);
        assert_eq!(node.groups(&[4_000_000_001]).await, [None]);
        assert_eq!(node.lines("asked").len(), 1);
        let mut unknown = Unknown::default();
        node.accounts.group(4_000_000_001, Instant::now() + SILENCE_LIFETIME, &mut unknown);
        assert!(!unknown.is_empty());
    }

    #[tokio::test]
    async fn an_answer_longer_than_a_pipe_is_read_to_its_end() {
        let node = Node::with("printf 'large:x:4000000001:'\nhead -c 300000 /dev/zero | tr '\\0' 'm'\necho");
        assert_eq!(node.groups(&[4_000_000_001]).await, [Some("large".to_owned())]);
    }

    #[tokio::test]
    async fn however_many_ask_only_a_few_processes_run() {
        let script = "mkdir run-$$\nls -d run-* | wc -l >> seen\nwhile [ ! -e go ]; do sleep 0.01; done\nrmdir run-$$\nexit 2";
        let node = Arc::new(Node::with(script));
        let mut asking = tokio::task::JoinSet::new();
        for gid in 0..20 {
            let node = Arc::clone(&node);
            asking.spawn(async move { node.groups(&[4_000_000_000 + gid]).await });
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while node.lines("seen").len() < GETENT_PROCESSES_MAX {
            assert!(Instant::now() < deadline, "they run beside each other");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        std::fs::write(node.directory.path().join("go"), "").expect("written");
        while asking.join_next().await.is_some() {}
        let most = node.lines("seen").iter().filter_map(|n| n.trim().parse::<usize>().ok()).max();
        assert_eq!(most, Some(GETENT_PROCESSES_MAX));
    }

    #[test]
    fn invented_ids_push_out_no_real_name_and_do_not_fill_memory() {
        let now = Instant::now();
        let mut known = Known::default();
        known.remember(&[7], Some("real:x:7:"), now);
        for id in 1000..1000 + 3 * u32::try_from(ANSWERS_MAX).expect("small") {
            known.remember(&[id], Some(""), now);
            assert!(known.answers.len() <= ANSWERS_MAX);
        }
        assert_eq!(known.answers.get(&7).and_then(|a| a.name.as_deref()), Some("real"));
        // Not even with names.
        for id in 100_000..100_000 + 2 * u32::try_from(ANSWERS_MAX).expect("small") {
            known.remember(&[id], Some(&format!("n:x:{id}:")), now);
            assert!(known.answers.len() <= ANSWERS_MAX);
        }
    }
}
