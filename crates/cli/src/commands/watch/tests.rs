//! The files, the program that reads them, and what the operator hears, without an agent.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use clap::Parser as _;
use countersign_identity::Timestamp;
use countersign_testkit::clock::VirtualClock;
use countersign_testkit::file_limit;
use countersign_wire::workload as wire;
use zeroize::Zeroizing;

use super::stream::{FromAgent, Trouble};
use super::svids::Svid;
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const LIFE: i64 = 3000;
const PRIVATE: Access = Access { key_mode: 0o600, group: None };

/// A certificate with its key as the agent sends them.
fn svid(path: &str, begin: Timestamp) -> wire::X509svid {
    let mut params = rcgen::CertificateParams::default();
    let id = format!("spiffe://example.org{path}");
    params.subject_alt_names = vec![rcgen::SanType::URI(id.as_str().try_into().unwrap())];
    params.not_before = time::OffsetDateTime::from_unix_timestamp(begin.secs()).unwrap();
    params.not_after = time::OffsetDateTime::from_unix_timestamp(begin.secs() + LIFE).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    wire::X509svid { spiffe_id: id, x509_svid: der.clone(), x509_svid_key: key.serialize_der(), bundle: der, hint: String::new() }
}

fn message(svids: &[&wire::X509svid]) -> FromAgent {
    FromAgent::Svids(wire::X509svidResponse { svids: svids.iter().map(|s| (*s).clone()).collect(), ..Default::default() })
}

/// Contents that can be told apart, for what only writes them.
fn contents(mark: u32) -> Svid {
    let text = |what: &str| format!("{what} {mark}\n").repeat(200);
    Svid {
        spiffe_id: String::new(),
        not_before: Timestamp::EPOCH,
        not_after: Timestamp::EPOCH,
        chain: text("svid"),
        key: Zeroizing::new(text("key")),
        bundle: text("bundle"),
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory).unwrap().map(|i| i.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mark(text: &str) -> u32 {
    text.lines().next().unwrap().split_once(' ').unwrap().1.parse().unwrap()
}

#[test]
fn a_reader_never_sees_parts_of_two_renewals() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let mut kept = Directory::open(&path, PRIVATE).unwrap();
    kept.replace(&[contents(0)]).unwrap();
    let reader = std::thread::spawn(move || {
        let (mut seen, mut last) = (std::collections::BTreeSet::new(), 0);
        while last < 300 {
            // The name that programs use is always there.
            last = mark(&std::fs::read_to_string(path.join("svid.pem")).unwrap());
            let version = path.join(std::fs::read_link(path.join("..data")).unwrap());
            let read = |name: &str| std::fs::read_to_string(version.join(name));
            // Two renewals may pass between two reads in this test; nothing renews so fast elsewhere.
            let (Ok(svid), Ok(key), Ok(bundle)) = (read("svid.pem"), read("svid.key"), read("bundle.pem")) else { continue };
            assert_eq!((mark(&svid), mark(&key)), (mark(&bundle), mark(&bundle)), "parts of two renewals");
            assert_eq!((svid.lines().count(), key.lines().count()), (200, 200), "a part of a file");
            seen.insert(mark(&svid));
        }
        seen.len()
    });
    let mut renewal = 0;
    while !reader.is_finished() {
        renewal += 1;
        kept.replace(&[contents(renewal)]).unwrap();
    }
    assert!(reader.join().unwrap() > 20, "the reader saw too few renewals for this to prove anything");
}

#[test]
fn a_version_stays_until_the_next_but_one_and_nothing_else_is_left_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    // What a run that was killed left, and what belongs to somebody else.
    std::fs::create_dir(path.join("..version-9")).unwrap();
    std::fs::write(path.join("..version-9/svid.0.key"), "half").unwrap();
    std::fs::write(path.join("note.txt"), "mine").unwrap();
    let mut kept = Directory::open(path, PRIVATE).unwrap();
    let own = |versions: &[&str]| {
        let mut all = vec!["..data".to_owned()];
        all.extend(versions.iter().map(|v| format!("..version-{v}")));
        for name in ["bundle.0.pem", "bundle.pem", "note.txt", "svid.0.key", "svid.0.pem", "svid.key", "svid.pem"] {
            all.push(name.to_owned());
        }
        all
    };
    kept.replace(&[contents(1)]).unwrap();
    assert_eq!(names(path), own(&["10"]));
    kept.replace(&[contents(2)]).unwrap();
    assert_eq!(names(path), own(&["10", "11"]));
    kept.replace(&[contents(3)]).unwrap();
    assert_eq!(names(path), own(&["11", "12"]));
    assert_eq!(mark(&std::fs::read_to_string(path.join("svid.key")).unwrap()), 3);
}

#[test]
fn plain_files_give_way_and_svids_that_are_gone_lose_their_names() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    for name in ["svid.0.pem", "svid.0.key", "svid.pem"] {
        std::fs::write(path.join(name), "of an earlier fetch").unwrap();
    }
    let mut kept = Directory::open(path, PRIVATE).unwrap();
    kept.replace(&[contents(1), contents(2)]).unwrap();
    let read = |name: &str| std::fs::read_to_string(path.join(name)).map(|text| mark(&text)).ok();
    assert_eq!([read("svid.pem"), read("svid.0.key"), read("svid.1.key"), read("bundle.1.pem")], [Some(1), Some(1), Some(2), Some(2)]);
    kept.replace(&[contents(3)]).unwrap();
    assert_eq!([read("svid.0.pem"), read("svid.1.pem")], [Some(3), None]);
    assert!(!path.join("svid.1.pem").is_symlink(), "a link to nothing is left");
}

#[test]
fn a_directory_with_the_name_of_a_file_leaves_no_keys_behind_however_often_it_is_tried() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    std::fs::create_dir(path.join("svid.pem")).unwrap();
    let mut kept = Directory::open(path, PRIVATE).unwrap();
    for attempt in 1..5 {
        assert!(kept.replace(&[contents(attempt)]).unwrap_err().starts_with("cannot write to `"));
    }
    let versions = |path: &Path| names(path).into_iter().filter(|name| name.starts_with("..version-")).count();
    assert_eq!(versions(path), 2, "{:?}", names(path));
    std::fs::remove_dir(path.join("svid.pem")).unwrap();
    assert_eq!(kept.replace(&[contents(5)]).unwrap(), None);
    assert_eq!(mark(&std::fs::read_to_string(path.join("svid.pem")).unwrap()), 5);
    assert_eq!(versions(path), 2);
}

#[test]
fn keys_have_the_mode_and_group_asked_for_and_certificates_are_for_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let mode = |name: &str| std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
    let mut kept = Directory::open(path, PRIVATE).unwrap();
    kept.replace(&[contents(1)]).unwrap();
    assert_eq!((mode("svid.key"), mode("svid.pem"), mode("bundle.pem"), mode("..data")), (0o600, 0o644, 0o644, 0o755));
    drop(kept);
    // Root may give files to any group, others to their own.
    let group = if rustix::process::geteuid().is_root() { 12345 } else { rustix::process::getegid().as_raw() };
    let mut kept = Directory::open(path, Access { key_mode: 0o640, group: Some(group) }).unwrap();
    kept.replace(&[contents(2)]).unwrap();
    assert_eq!((mode("svid.key"), std::fs::metadata(path.join("svid.key")).unwrap().gid()), (0o640, group));
}

#[test]
fn a_full_disk_leaves_the_former_files_whole() {
    if !file_limit::alone("commands::watch::tests::a_full_disk_leaves_the_former_files_whole") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let mut kept = Directory::open(path, PRIVATE).unwrap();
    kept.replace(&[contents(1)]).unwrap();
    let before = names(path);
    file_limit::limit(Some(100));
    let error = kept.replace(&[contents(2)]).unwrap_err();
    file_limit::limit(None);
    assert!(error.starts_with(&format!("cannot write to `{}`: ", path.display())), "{error}");
    assert_eq!(names(path), before, "half a version is left");
    for name in ["svid.pem", "svid.key", "bundle.pem"] {
        let text = std::fs::read_to_string(path.join(name)).unwrap();
        assert_eq!((mark(&text), text.lines().count()), (1, 200), "{name}");
    }
    kept.replace(&[contents(3)]).unwrap();
    assert_eq!(mark(&std::fs::read_to_string(path.join("svid.pem")).unwrap()), 3);
}

#[test]
fn a_directory_is_kept_by_one_process_and_not_open_to_all() {
    let directory = tempfile::tempdir().unwrap();
    let _kept = Directory::open(directory.path(), PRIVATE).unwrap();
    let second = Directory::open(directory.path(), PRIVATE).unwrap_err();
    assert!(second.contains("another `fetch x509 --watch`"), "{second}");
    let open = tempfile::tempdir().unwrap();
    std::fs::set_permissions(open.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let refused = Directory::open(open.path(), PRIVATE).unwrap_err();
    assert!(refused.contains("everybody may write"), "{refused}");
}

/// A keeper under virtual time, the stream in the test's hand.
struct Stage {
    directory: tempfile::TempDir,
    clock: VirtualClock,
    to: mpsc::Sender<FromAgent>,
    said: Arc<Mutex<Vec<String>>>,
    again: Arc<Notify>,
    _task: tokio::task::JoinHandle<()>,
}

impl Stage {
    fn new(choice: Choice, reload: Option<Reload>) -> Self {
        Self::in_directory(tempfile::tempdir().unwrap(), choice, reload)
    }

    fn in_directory(directory: tempfile::TempDir, choice: Choice, reload: Option<Reload>) -> Self {
        let clock = VirtualClock::at_present();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (to, messages) = mpsc::channel(1);
        let again = Arc::new(Notify::new());
        let (heard, place) = (Arc::clone(&said), directory.path().display().to_string());
        let say = Box::new(move |text: &str| heard.lock().unwrap().push(text.replace(&place, "DIR")));
        let kept = Directory::open(directory.path(), PRIVATE).unwrap();
        let keeper = Keeper::new(kept, choice, reload, Arc::new(clock.clone()), Arc::clone(&again), say);
        let task = tokio::spawn(keeper.run(messages));
        Self { directory, clock, to, said, again, _task: task }
    }

    fn now(&self) -> Timestamp {
        use countersign_transport::clock::Clock as _;
        self.clock.now()
    }

    fn end(&self, begin: Timestamp) -> String {
        Timestamp::from_secs(begin.secs() + LIFE).rfc3339()
    }

    async fn send(&self, message: FromAgent) {
        self.to.send(message).await.unwrap();
    }

    /// Waits for so many lines, and returns all there are.
    async fn lines(&self, count: usize) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let said = self.said.lock().unwrap().clone();
            if said.len() >= count {
                return said;
            }
            assert!(begun.elapsed() < PATIENCE, "{count} lines were expected: {said:#?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The last of so many lines.
    async fn line(&self, count: usize) -> String {
        let lines = self.lines(count).await;
        assert_eq!(lines.len(), count, "{lines:#?}");
        lines.last().unwrap().clone()
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(name)).unwrap()
    }
}

fn away(why: &str) -> FromAgent {
    FromAgent::Trouble(Trouble::Away(why.to_owned()))
}

#[tokio::test]
async fn an_agent_that_is_away_is_told_of_once_and_its_return_too() {
    let stage = Stage::new(Choice::default(), None);
    stage.send(away("no socket")).await;
    assert_eq!(stage.line(1).await, "the agent is away (no socket); there are no files in `DIR` yet");
    let first = svid("/web", stage.now());
    let end = stage.end(stage.now());
    stage.send(message(&[&first])).await;
    assert_eq!(
        stage.lines(3).await[1..],
        ["the agent is back".to_owned(), format!("wrote `spiffe://example.org/web` to `DIR`, valid until {end}")]
    );
    let chain = stage.file("svid.pem");
    stage.send(away("the connection was lost")).await;
    stage.send(away("no socket")).await;
    // The same again after the connection came back is not written again.
    stage.send(message(&[&first])).await;
    let lines = stage.lines(5).await;
    assert_eq!(
        lines[3..],
        [
            format!("the agent is away (the connection was lost); the files in `DIR` stay, valid until {end}"),
            "the agent is back".to_owned()
        ]
    );
    assert_eq!(std::fs::read_link(stage.directory.path().join("..data")).unwrap(), Path::new("..version-1"));
    let second = svid("/web", stage.now());
    stage.send(message(&[&second])).await;
    stage.line(6).await;
    assert_ne!(stage.file("svid.pem"), chain);
}

#[tokio::test]
async fn a_denial_leaves_the_files_where_they_are_and_is_told() {
    let stage = Stage::new(Choice::default(), None);
    let begin = stage.now();
    stage.send(message(&[&svid("/web", begin)])).await;
    stage.line(1).await;
    let key = stage.file("svid.key");
    stage.send(FromAgent::Trouble(Trouble::Denied("no identity issued".to_owned()))).await;
    let said = stage.line(2).await;
    let end = stage.end(begin);
    assert_eq!(
        said,
        format!(
            "the agent grants no identity (no identity issued); the files in `DIR` stay, valid until {end}; \
             if it was taken away on purpose, stop this process and remove them"
        )
    );
    assert_eq!(stage.file("svid.key"), key);
}

#[tokio::test]
async fn files_that_near_their_end_are_told_of_loudly_and_the_connection_is_tried_anew() {
    let stage = Stage::new(Choice::default(), None);
    let begin = stage.now();
    stage.send(message(&[&svid("/web", begin)])).await;
    stage.line(1).await;
    let again = Arc::clone(&stage.again);
    let tried = tokio::spawn(async move { again.notified().await });
    tokio::task::yield_now().await;
    stage.clock.advance(Duration::from_secs(2001));
    let late = stage.line(2).await;
    assert!(late.starts_with("warning: `spiffe://example.org/web` in `DIR` should have been renewed; it expires in 16 min: "), "{late}");
    tokio::time::timeout(PATIENCE, tried).await.expect("the connection is tried anew").unwrap();
    stage.send(away("no socket")).await;
    stage.line(3).await;
    stage.clock.advance(Duration::from_secs(700));
    let ending = stage.line(4).await;
    assert!(ending.starts_with("WARNING: ") && ending.ends_with("expires in 4 min: the agent is away (no socket)"), "{ending}");
    stage.clock.advance(Duration::from_secs(300));
    let ended = stage.line(5).await;
    assert!(ended.contains("HAS EXPIRED"), "{ended}");
    stage.clock.advance(Duration::from_secs(601));
    assert!(stage.line(6).await.contains("HAS EXPIRED"));
    // A renewal ends it.
    stage.send(message(&[&svid("/web", stage.now())])).await;
    assert!(stage.lines(8).await[7].starts_with("wrote "));
}

#[tokio::test]
async fn old_files_at_the_start_say_nothing_of_an_agent_that_was_not_heard_yet() {
    let directory = tempfile::tempdir().unwrap();
    let begin = VirtualClock::at_present();
    let begin = countersign_transport::clock::Clock::now(&begin).before(Duration::from_secs(4000));
    let FromAgent::Svids(old) = message(&[&svid("/web", begin)]) else { panic!("SVIDs") };
    Directory::open(directory.path(), PRIVATE).unwrap().replace(&svids::read(old, &Choice::default()).unwrap()).unwrap();
    let choice = Choice { spiffe_id: Some("spiffe://example.org/web".parse().unwrap()), hint: None };
    let stage = Stage::in_directory(directory, choice, None);
    let ended = stage.line(2).await;
    assert!(ended.contains("HAS EXPIRED") && ended.ends_with(": the agent has not answered yet"), "{ended}");
    stage.send(away("no socket")).await;
    stage.line(3).await;
    // It is back, with another identity than the chosen one.
    stage.send(message(&[&svid("/other", stage.now())])).await;
    stage.line(5).await;
    stage.clock.advance(Duration::from_secs(601));
    let ended = stage.line(6).await;
    let why = ": no SVID with the identity or hint asked for; the agent sent `spiffe://example.org/other`";
    assert!(ended.contains("HAS EXPIRED") && ended.ends_with(why), "{ended}");
}

#[tokio::test]
async fn files_of_an_earlier_run_are_told_of_while_the_agent_is_away() {
    let directory = tempfile::tempdir().unwrap();
    let begin = VirtualClock::at_present();
    let begin = countersign_transport::clock::Clock::now(&begin).before(Duration::from_secs(2600));
    let FromAgent::Svids(message) = message(&[&svid("/web", begin)]) else { panic!("SVIDs") };
    let svids = svids::read(message, &Choice::default()).unwrap();
    Directory::open(directory.path(), PRIVATE).unwrap().replace(&svids).unwrap();
    let stage = Stage::in_directory(directory, Choice::default(), None);
    let lines = stage.lines(2).await;
    assert!(lines[0].starts_with("`DIR` holds `spiffe://example.org/web` from an earlier run, valid until "), "{lines:?}");
    assert!(lines[1].starts_with("warning: "), "{lines:?}");
}

#[tokio::test]
async fn what_cannot_be_written_is_tried_again_until_it_can() {
    let stage = Stage::new(Choice::default(), None);
    let path = stage.directory.path().to_owned();
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::write(&path, "in the way").unwrap();
    stage.send(message(&[&svid("/old", stage.now())])).await;
    let said = stage.line(1).await;
    assert!(said.starts_with("cannot make `DIR`: ") && said.ends_with("there are no files in `DIR` yet; trying again"), "{said}");
    // The newest is written then, and the same failure is not told again.
    let newest = svid("/web", stage.now());
    stage.send(message(&[&newest])).await;
    stage.send(away("gone")).await;
    assert!(stage.line(3).await.starts_with("the agent is away"));
    std::fs::remove_file(&path).unwrap();
    stage.clock.advance(Duration::from_secs(1));
    assert!(stage.line(4).await.starts_with("wrote `spiffe://example.org/web`"));
    assert!(stage.file("svid.pem").starts_with("-----BEGIN CERTIFICATE-----"));
}

#[tokio::test]
async fn a_command_that_fails_is_run_again_and_told_of_once() {
    let other = tempfile::tempdir().unwrap();
    let (flag, log) = (other.path().join("flag"), other.path().join("log"));
    let script = format!("echo x >> {}; test -e {}", log.display(), flag.display());
    let arguments = ["sh", "-c", &script].map(OsString::from).to_vec();
    let stage = Stage::new(Choice::default(), Some(Reload::Command { arguments, timeout: PATIENCE }));
    let runs = |log: &Path| std::fs::read_to_string(log).unwrap_or_default().lines().count();
    stage.send(message(&[&svid("/web", stage.now())])).await;
    let said = stage.lines(2).await[1].clone();
    assert!(said.contains("failed: exit status: 1; the program may not use the new files yet; trying again"), "{said}");
    for _ in 0..3 {
        let (before, log, clock) = (runs(&log), log.clone(), stage.clock.clone());
        let another = move || {
            clock.advance(Duration::from_secs(1));
            runs(&log) > before
        };
        tokio::task::spawn_blocking(move || until("another run", another)).await.unwrap();
    }
    std::fs::write(&flag, "").unwrap();
    let (said, clock) = (Arc::clone(&stage.said), stage.clock.clone());
    let told = move || {
        clock.advance(Duration::from_secs(1));
        said.lock().unwrap().last().unwrap().ends_with("was run")
    };
    tokio::task::spawn_blocking(move || until("its success", told)).await.unwrap();
    // The same failure was not told again, and with time passing only the certificate's age is.
    let failures = stage.lines(3).await.iter().filter(|l| l.contains("failed: ")).count();
    assert_eq!(failures, 1);
}

#[tokio::test]
async fn an_unusable_message_or_one_without_the_chosen_identity_changes_nothing() {
    let choice = Choice { spiffe_id: Some("spiffe://example.org/web".parse().unwrap()), hint: None };
    let stage = Stage::new(choice, None);
    let (web, other) = (svid("/web", stage.now()), svid("/other", stage.now()));
    stage.send(message(&[&other, &web])).await;
    assert!(stage.line(1).await.starts_with("wrote `spiffe://example.org/web` to"));
    let key = stage.file("svid.key");
    assert!(!stage.directory.path().join("svid.1.key").exists());
    stage.send(message(&[&other])).await;
    let said = stage.line(2).await;
    assert!(
        said.starts_with("no SVID with the identity or hint asked for; the agent sent `spiffe://example.org/other`; the files"),
        "{said}"
    );
    let mixed = wire::X509svid { x509_svid_key: other.x509_svid_key.clone(), ..web.clone() };
    stage.send(message(&[&mixed])).await;
    let said = stage.line(3).await;
    assert!(said.contains("unusable key for `spiffe://example.org/web`: it is not the certificate's"), "{said}");
    assert_eq!(stage.file("svid.key"), key);
}

/// A process of the test, ended with it.
struct Other(Child);

impl Other {
    fn shell(script: &str) -> Self {
        Self(Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn hangup(pid_file: &Path) -> Result<String, String> {
    let (name, signal) = reload::parse_signal("SIGHUP").unwrap();
    Reload::Signal { name, signal, pid_file: pid_file.to_owned() }.run().await
}

#[tokio::test]
async fn a_signal_reaches_the_process_of_the_pid_file_and_nobody_who_would_die_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let (pid_file, ready, got) = (directory.path().join("pid"), directory.path().join("ready"), directory.path().join("got"));
    let missing = hangup(&pid_file).await.unwrap_err();
    assert!(missing.starts_with("cannot read the pid file `"), "{missing}");
    for (text, wanted) in [
        ("", "does not begin with a process number"),
        ("-1\n", "does not begin with a process number"),
        ("0", "does not begin with a process number"),
        ("1", "no signal is sent to pid 1,"),
        (&std::process::id().to_string(), "that is not a program that reads the files"),
        ("2147483647", "is not running; the file may be left over"),
    ] {
        std::fs::write(&pid_file, text).unwrap();
        let error = hangup(&pid_file).await.unwrap_err();
        assert!(error.contains(wanted), "{text}: {error}");
    }
    let mut stranger = Other(Command::new("sleep").arg("1000").spawn().unwrap());
    std::fs::write(&pid_file, stranger.0.id().to_string()).unwrap();
    let error = hangup(&pid_file).await.unwrap_err();
    assert!(error.contains("it does not handle SIGHUP, which would end it"), "{error}");
    assert!(stranger.0.try_wait().unwrap().is_none(), "it was killed");
    let daemon = Other::shell(&format!("trap 'echo > {}' HUP; echo > {}; while :; do sleep 0.01; done", got.display(), ready.display()));
    until("the trap", || ready.exists());
    // As PostgreSQL writes it.
    std::fs::write(&pid_file, format!("{}\n/var/lib/postgresql\n", daemon.0.id())).unwrap();
    assert_eq!(hangup(&pid_file).await.unwrap(), format!("SIGHUP was sent to pid {}", daemon.0.id()));
    until("the signal", || got.exists());
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_with_what_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display());
    let arguments = ["sh", "-c", &script].map(OsString::from).to_vec();
    let done = Reload::Command { arguments, timeout: Duration::from_secs(1) }.run().await;
    assert!(done.unwrap_err().ends_with("was killed: it took longer than 1 s"));
    let pid = std::fs::read_to_string(&file).unwrap();
    let status = format!("/proc/{}/status", pid.trim());
    until("the end of what it started", || std::fs::read_to_string(&status).map_or(true, |text| text.contains("State:\tZ")));
}

#[derive(Debug, clap::Parser)]
struct Line {
    #[arg(long)]
    write: Option<PathBuf>,
    #[arg(long, default_value = "table")]
    output: String,
    #[arg(long, default_value = "5")]
    timeout: u64,
    #[command(flatten)]
    watch: Watch,
}

#[test]
fn the_options_that_belong_together_are_asked_for_together() {
    let parse = |line: &str| Line::try_parse_from(format!("fetch {line}").split_whitespace());
    let good = parse("--write d --watch --group www-data --exec nginx -s reload --watch").unwrap();
    assert_eq!(good.watch.exec, ["nginx", "-s", "reload", "--watch"]);
    assert!(parse("--write d --watch --signal sighup --pid-file p").is_ok());
    for bad in [
        "--watch",
        "--write d --exec true",
        "--write d --watch --signal HUP",
        "--write d --watch --signal SEGV --pid-file p",
        "--write d --watch --pid-file p",
        "--write d --watch --signal HUP --pid-file p --exec true",
        "--write d --watch --key-mode 0644",
        "--write d --watch --key-mode 0066",
        "--write d --watch --output json",
        "--write d --watch --exec",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    assert_eq!(parse("--write d --watch --key-mode 0440").unwrap().watch.key_mode, Some(0o440));
    assert_eq!(group_number("root"), Ok(0));
    assert!(group_number("no such group").unwrap_err().contains("is given by its number"));
}
