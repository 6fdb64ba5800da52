//! Debian's PostgreSQL with the configuration of `docs/guides/postgresql.md`: certificates kept fresh by `--watch`, clients
//! known by their first DNS names.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use crate::kept::{Files, Heard, Kept, example, free_port, page_shows, until};
use crate::support::{PATIENCE, countersign};

/// The user that PostgreSQL runs as when the tests run as root, which it refuses to be.
const USER: &str = "postgres";

/// The newest version of a program that Debian keeps out of the way.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|v| v.path().join("bin").join(name)).filter(|p| p.is_file()).collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("`{name}` is missing: run the tests with `cargo xtask test`, which installs it"))
}

fn number(option: &str) -> u32 {
    let output = Command::new("id").args([option, USER]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().expect("there is no user `postgres`")
}

/// The user of the server's processes, if it is not ours.
fn other_user() -> Option<(u32, u32)> {
    rustix::process::geteuid().is_root().then(|| (number("-u"), number("-g")))
}

fn as_server_user(program: &Path) -> Command {
    match other_user() {
        None => Command::new(program),
        Some((uid, gid)) => {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]).arg(program);
            command
        }
    }
}

/// PostgreSQL in a directory of its own, its files kept fresh.
struct Stage {
    kept: Kept,
    entry: countersign_wire::types::Entry,
    watch: Heard,
    server: Heard,
    client: Files,
    place: PathBuf,
    files: PathBuf,
    port: u16,
}

impl Stage {
    fn start(lifetime_secs: i32) -> Self {
        let kept = Kept::start();
        let own = rustix::process::geteuid().as_raw();
        let entry = kept.entry("/postgresql", other_user().map_or(own, |(uid, _)| uid), &["localhost"], lifetime_secs);
        kept.entry("/orders", own, &["orders.example.org", "second.example.org"], 0);
        let client = Files::of(&kept.fetched("/orders", "client"));
        let (place, files) = (kept.directory("postgresql"), kept.directory("files"));
        // The server's user may not be able to reach the folder that our program is in.
        let binary = kept.directory("program").join("countersign");
        std::fs::copy(countersign(), &binary).unwrap();
        for directory in [&place, &files] {
            if let Some((uid, gid)) = other_user() {
                std::os::unix::fs::chown(directory, Some(uid), Some(gid)).unwrap();
            }
        }
        let data = place.join("data");
        let pid_file = data.join("postmaster.pid").display().to_string();
        let mut watch = kept.watch(as_server_user(&binary), "/postgresql", &files, &["--signal", "HUP", "--pid-file", &pid_file]);
        watch.line("wrote `spiffe://example.org/postgresql`");

        let mut begin = as_server_user(&program("initdb"));
        begin.args(["--username=postgres", "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8", "-D"]).arg(&data);
        let begun = begin.current_dir(&place).stdin(Stdio::null()).output().unwrap();
        assert!(begun.status.success(), "{}", String::from_utf8_lossy(&begun.stderr));
        let (shown, port) = (place.display().to_string(), free_port());
        let text = example("postgresql/spiffe.conf", &[("/run/countersign/postgresql/", &format!("{}/", files.display()))]);
        // What Debian has in files of its own: the places, and that the administrator comes in locally.
        let own = format!("port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{shown}'\nfsync = off\n{text}");
        std::fs::OpenOptions::new().append(true).open(data.join("postgresql.conf")).unwrap().write_all(own.as_bytes()).unwrap();
        let access = format!("local all postgres trust\n{}", example("postgresql/pg_hba.conf", &[]));
        std::fs::write(data.join("pg_hba.conf"), access).unwrap();
        std::fs::write(data.join("pg_ident.conf"), example("postgresql/pg_ident.conf", &[])).unwrap();
        let mut command = as_server_user(&program("postgres"));
        command.arg("-D").arg(&data).current_dir(&place);
        let mut server = Heard::start(command);
        server.line("database system is ready to accept connections");
        watch.line("SIGHUP was sent");
        let stage = Self { kept, entry, watch, server, client, place, files, port };
        let made = stage.psql(&format!("host={shown} user=postgres"), "CREATE ROLE orders LOGIN; CREATE ROLE billing LOGIN");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        stage
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new("psql");
        command.args(["-X", "-A", "-t", &format!("dbname=postgres port={} connect_timeout=20 {target}", self.port)]);
        command.current_dir(&self.place);
        command
    }

    fn psql(&self, target: &str, statement: &str) -> Output {
        self.command(target).args(["-c", statement]).stdin(Stdio::null()).output().unwrap()
    }

    /// Asks as a client with these files, and returns the answer, or what was said in its place.
    fn ask(&self, files: &Files, role: &str, statement: &str) -> Result<String, String> {
        let output = self.psql(&target(files, role), statement);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// The serial number of the certificate that the server shows now.
    fn serial(&self) -> String {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-starttls", "postgres", "-connect", &format!("127.0.0.1:{}", self.port), "-showcerts"]);
        let shown = command.stdin(Stdio::null()).output().expect("openssl is installed; `cargo xtask test` does it");
        let certificate = String::from_utf8_lossy(&shown.stdout).into_owned();
        let mut read =
            Command::new("openssl").args(["x509", "-noout", "-serial"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        read.stdin.take().unwrap().write_all(certificate.as_bytes()).unwrap();
        let serial = String::from_utf8(read.wait_with_output().unwrap().stdout).unwrap();
        assert!(serial.starts_with("serial="), "{certificate}");
        serial
    }
}

fn target(files: &Files, role: &str) -> String {
    let (certificate, key, bundle) = (files.certificate.display(), files.key.display(), files.bundle.display());
    format!("host=localhost hostaddr=127.0.0.1 user={role} sslmode=verify-full sslrootcert={bundle} sslcert={certificate} sslkey={key}")
}

/// A connection that stays open.
struct Open {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Open {
    fn new(stage: &Stage) -> Self {
        let mut command = stage.command(&target(&stage.client, "orders"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    fn ask(&mut self, statement: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{statement};").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn postgresql_gives_roles_by_the_first_dns_name_and_keeps_connections_through_a_renewal() {
    let mut stage = Stage::start(0);
    let own = rustix::process::geteuid().as_raw();
    let who = "SELECT current_user || ' ' || (SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid())";
    let answer = stage.ask(&stage.client, "orders", who).unwrap();
    assert!(answer.starts_with("orders ") && answer.contains("CN=orders.example.org"), "{answer}");
    // The map names one role for this name.
    let other = stage.ask(&stage.client, "billing", "SELECT 1").unwrap_err();
    assert!(other.contains("certificate authentication failed for user \"billing\""), "{other}");
    // Names that are not in the map; a name of it that is not the first; none at all. The SPIFFE ID counts for nothing.
    for (index, (path, names)) in [
        ("/stranger", &["stranger.example.org"][..]),
        ("/prefix", &["orders.example.org.evil.test"]),
        ("/second", &["stranger.example.org", "orders.example.org"]),
        ("/nameless", &[]),
    ]
    .into_iter()
    .enumerate()
    {
        stage.kept.entry(path, own, names, 0);
        let files = Files::of(&stage.kept.fetched(path, &format!("stranger-{index}")));
        let refused = stage.ask(&files, "orders", "SELECT 1").unwrap_err();
        assert!(refused.contains("certificate authentication failed for user \"orders\""), "{path}: {refused}");
    }
    let nobody = format!("host=localhost hostaddr=127.0.0.1 user=orders sslmode=verify-full sslrootcert={}", stage.client.bundle.display());
    let refused = stage.psql(&nobody, "SELECT 1");
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && error.contains("connection requires a valid client certificate"), "{error}");
    let plain = stage.psql("host=127.0.0.1 user=orders sslmode=disable", "SELECT 1");
    assert!(!plain.status.success(), "came in without TLS");

    let (mut open, before) = (Open::new(&stage), stage.serial());
    let process = open.ask("SELECT pg_backend_pid()");
    stage.kept.renew(&stage.entry);
    stage.watch.line("wrote `spiffe://example.org/postgresql`");
    stage.watch.line("SIGHUP was sent");
    until("PostgreSQL shows the new certificate", || stage.serial() != before);
    assert_eq!(open.ask("SELECT pg_backend_pid()"), process, "the connection was dropped");
    assert_eq!(stage.ask(&stage.client, "orders", "SELECT 7"), Ok("7".to_owned()));
    assert!(stage.server.said().contains("received SIGHUP"), "{}", stage.server.said());
    assert_eq!(stage.watch.stop(), Some(0), "{}", stage.watch.said());
}

#[test]
fn postgresql_goes_on_while_the_agent_is_gone_at_renewal_and_gets_the_new_files_when_it_is_back() {
    // An agent renews at half; a third left is late, and time enough for a busy machine.
    let lifetime = Duration::from_secs(60);
    let mut stage = Stage::start(60);
    let mut open = Open::new(&stage);
    let process = open.ask("SELECT pg_backend_pid()");
    stage.kept.kill_agent();
    stage.watch.line("the agent is away (");
    let before = stage.serial();
    stage.watch.line_within("should have been renewed; it expires in", lifetime + PATIENCE);
    assert_eq!((stage.ask(&stage.client, "orders", "SELECT 7"), stage.serial()), (Ok("7".to_owned()), before.clone()));

    stage.kept.start_agent();
    stage.watch.line("the agent is back");
    stage.watch.line("wrote `spiffe://example.org/postgresql`");
    stage.watch.line("SIGHUP was sent");
    until("PostgreSQL shows the new certificate", || stage.serial() != before);
    assert_eq!(stage.ask(&stage.client, "orders", "SELECT 7"), Ok("7".to_owned()));
    assert_eq!(open.ask("SELECT pg_backend_pid()"), process, "the connection was dropped");
    // PostgreSQL refuses a key that others could read, so this is what it has accepted all along.
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(stage.files.join("svid.key")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_page_shows_the_configuration_that_is_tested() {
    let names = ["spiffe.conf", "pg_hba.conf", "pg_ident.conf", "countersign-postgresql.service"].map(|n| format!("postgresql/{n}"));
    page_shows("docs/guides/postgresql.md", &names.each_ref().map(String::as_str));
}
