//! The binary under SPIRE's names, line by line: what is typed, what comes out on which channel, with which exit code.
//!
//! `names/*.txt` is what SPIRE's own programs said. With `COUNTERSIGN_REFERENCE_PROGRAMS` naming their directory, the test writes
//! the files instead of comparing with them. What no fresh server answers, `names/answering.rs` does. What is only for people to read, such as help, is not there.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use regex::Regex;

use crate::support::{PATIENCE, countersign};

mod answering;

/// Where SPIRE's own programs are, if the files are to be written.
const REFERENCE: &str = "COUNTERSIGN_REFERENCE_PROGRAMS";

/// A running server and agent, started under SPIRE's names from SPIRE's configuration.
struct Spire {
    directory: PathBuf,
    programs: PathBuf,
    running: Vec<Child>,
    /// Serves `$DIR/answering.sock`.
    _answering: tokio::runtime::Runtime,
    token: String,
    last: String,
    masks: Vec<(Regex, &'static str)>,
}

impl Spire {
    fn start(directory: &Path, programs: &Path) -> Self {
        let mut spire = Self {
            directory: directory.to_owned(),
            programs: programs.to_owned(),
            running: Vec::new(),
            _answering: answering::answer(&directory.join("answering.sock")),
            token: String::new(),
            last: String::new(),
            masks: masks(),
        };
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let dir = directory.display();
        for sub in ["public", "private", "server", "agent", "out"] {
            std::fs::create_dir(directory.join(sub)).unwrap();
        }
        // Both configurations lack what flags say below.
        let server = format!(
            "server {{\n  bind_address = \"127.0.0.1\"\n  trust_domain = \"wrong.test\"\n  data_dir = \"{dir}/server\"\n}}\nplugins {{\n  DataStore \"sql\" {{\n    plugin_data {{\n      database_type = \"sqlite3\"\n      connection_string = \"{dir}/server/datastore.sqlite3\"\n    }}\n  }}\n  KeyManager \"disk\" {{\n    plugin_data {{\n      keys_path = \"{dir}/server/keys.json\"\n    }}\n  }}\n  NodeAttestor \"join_token\" {{\n    plugin_data {{}}\n  }}\n}}\n"
        );
        let agent = format!(
            "agent {{\n  data_dir = \"{dir}/agent\"\n  server_address = \"127.0.0.1\"\n  server_port = \"1\"\n  admin_socket_path = \"{dir}/private/admin.sock\"\n  trust_bundle_path = \"{dir}/bundle.pem\"\n  trust_domain = \"example.org\"\n}}\nplugins {{\n  KeyManager \"memory\" {{\n    plugin_data {{}}\n  }}\n  NodeAttestor \"join_token\" {{\n    plugin_data {{}}\n  }}\n  WorkloadAttestor \"unix\" {{\n    plugin_data {{}}\n  }}\n}}\n"
        );
        std::fs::write(directory.join("server.conf"), server).unwrap();
        std::fs::write(directory.join("agent.conf"), agent).unwrap();
        spire.run_forever(&format!(
            "spire-server run -config {dir}/server.conf -serverPort={port} --socketPath {dir}/server.sock -trustDomain example.org --logFile={dir}/server.log"
        ));
        spire.wait_for("spire-server healthcheck -socketPath $DIR/server.sock");
        for format in ["pem", "spiffe"] {
            let bundle = spire.output(&format!("spire-server bundle show -socketPath $DIR/server.sock -format {format}")).stdout;
            std::fs::write(directory.join("bundle").with_extension(format), bundle).unwrap();
        }
        spire.transcript("$ spire-server token generate -socketPath $DIR/server.sock -spiffeID spiffe://example.org/node");
        spire.token.clone_from(&spire.last);
        let token = &spire.token;
        spire.run_forever(&format!(
            "spire-agent run -config {dir}/agent.conf -serverPort {port} -socketPath {dir}/public/api.sock -joinToken {token} -logFile {dir}/agent.log"
        ));
        spire.wait_for("spire-agent healthcheck -socketPath $DIR/public/api.sock");
        spire
    }

    fn run_forever(&mut self, line: &str) {
        let child = self.command(line).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        self.running.push(child);
    }

    fn wait_for(&self, line: &str) {
        let begun = Instant::now();
        loop {
            let output = self.output(line);
            if output.status.success() {
                return;
            }
            let logs =
                || ["server.log", "agent.log"].map(|n| std::fs::read_to_string(self.directory.join(n)).unwrap_or_default()).join("\n");
            assert!(begun.elapsed() < PATIENCE, "{line}: {output:?}\n{}", logs());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// A line as one would type it: `NAME=value` before the program, words in single quotes, `< text` for standard input.
    fn command(&self, line: &str) -> Command {
        let line = line.replace("$DIR", &self.directory.display().to_string()).replace("$LAST", &self.last).replace("$TOKEN", &self.token);
        let line = line.replace("$UID", &rustix::process::getuid().as_raw().to_string());
        let words: Vec<String> = Regex::new(r"'([^']*)'|(\S+)")
            .unwrap()
            .captures_iter(&line)
            .map(|c| c.get(1).or_else(|| c.get(2)).unwrap().as_str().to_owned())
            .collect();
        let settings = words.iter().take_while(|w| !w.starts_with("spire-")).count();
        let mut command = Command::new(self.programs.join(&words[settings]));
        command.args(&words[settings + 1..]).current_dir(&self.directory);
        for name in ["SPIRE_SERVER_PRIVATE_SOCKET", "SPIRE_AGENT_PUBLIC_SOCKET", "SPIRE_SERVER_FFLAGS", "SPIFFE_ENDPOINT_SOCKET"] {
            command.env_remove(name).env_remove(format!("{name}_TEMPLATE"));
        }
        command.envs(words[..settings].iter().map(|w| w.split_once('=').unwrap()));
        command
    }

    fn output(&self, line: &str) -> Output {
        let (line, input) = line.split_once(" < ").unwrap_or((line, ""));
        let mut child = self.command(line).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // One that does not read its input may have ended.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Runs a line until it has written its second empty line, and interrupts it then.
    fn interrupted(&self, line: &str) -> Output {
        let mut child = self.command(line).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut seen = String::new();
        while seen.lines().filter(|l| l.is_empty()).count() < 2 && stdout.read_line(&mut seen).unwrap() > 0 {}
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
        stdout.read_to_string(&mut seen).unwrap();
        let output = child.wait_with_output().unwrap();
        Output { stdout: seen.into_bytes(), ..output }
    }

    /// Waits until every line that begins with `@ ` succeeds, runs those that begin with `$ `, `% ` or (until interrupted) `^ `, and writes all down anew: standard output after `1|`, standard error after `2|`.
    fn transcript(&mut self, script: &str) -> String {
        let mut text = String::new();
        for line in script.lines() {
            if line.starts_with('#') || line.is_empty() {
                text += &format!("{line}\n");
            }
            if let Some(until) = line.strip_prefix("@ ") {
                self.wait_for(until);
                text += &format!("{line}\n");
            }
            if let Some(typed) = line.strip_prefix("% ") {
                text += &format!("{line}\n{}", ends(&self.output(typed)));
            }
            let output = match (line.strip_prefix("$ "), line.strip_prefix("^ ")) {
                (Some(typed), _) => self.output(typed),
                (_, Some(typed)) => self.interrupted(typed),
                _ => continue,
            };
            let stdout = String::from_utf8(output.stdout.clone()).unwrap();
            // The last word of the first line is what a script would take: a token, an ID.
            if let Some(word) = stdout.lines().next().and_then(|l| l.split(' ').next_back()) {
                self.last = word.to_owned();
            }
            text += &format!("{line}\n{}", self.written("1", &stdout));
            text += &self.written("2", &String::from_utf8(output.stderr.clone()).unwrap());
            text += &code(&output);
        }
        text
    }

    fn written(&self, channel: &str, text: &str) -> String {
        let uid = rustix::process::getuid().as_raw();
        let text = text.replace(&self.directory.display().to_string(), "$DIR").replace(&format!("unix:uid:{uid}\n"), "unix:uid:$UID\n");
        let text = self.masks.iter().fold(text, |text, (mask, with)| mask.replace_all(&text, *with).into_owned());
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\\\n" };
        text.lines()
            .map(|l| format!("{channel}|{l}\n"))
            .collect::<String>()
            .trim_end_matches(if end.is_empty() { '\0' } else { '\n' })
            .to_owned()
            + end
    }
}

/// How a line ended that did not succeed.
fn code(output: &Output) -> String {
    match output.status.code() {
        Some(0) => String::new(),
        Some(code) => format!("? {code}\n"),
        None => "? signal\n".to_owned(),
    }
}

/// The ends of an output that is too long, and too much our own words, to be compared.
fn ends(output: &Output) -> String {
    assert!(output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    let lines: Vec<&str> = said.lines().filter(|l| !l.is_empty()).collect();
    let last = lines.iter().skip(1).next_back().filter(|l| !l.starts_with(' '));
    let kept: String = lines.first().into_iter().chain(last).map(|l| format!("2|{l}\n")).collect();
    kept + &code(output)
}

impl Drop for Spire {
    fn drop(&mut self) {
        for child in self.running.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What differs from run to run.
fn masks() -> Vec<(Regex, &'static str)> {
    let mask = |pattern: &str, with| (Regex::new(pattern).unwrap(), with);
    vec![
        // Its members stand in another order, and in SPIRE on lines of their own.
        mask(r"(bundle\(\S+\):\n\t)\{[^\]]+\]\s*\}", "$1<jwks>"),
        // SPIRE counts from another number.
        mask(r#"("sequence_number"):"[1-9]\d*""#, "$1:\"<number>\""),
        mask(r"-----BEGIN ([A-Z ]+)-----\n[^-]+-----END [A-Z ]+-----", "<pem $1>"),
        mask(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "<token>"),
        mask(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>"),
        mask(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \+0000 UTC", "<time>"),
        mask(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", "<time>"),
        mask(r#"("\w*(?:created_at|expires_at|issued_at|last_sync_success)"):"1\d{9}""#, "$1:\"<seconds>\""),
        mask(r#"("(?:uptime|exp|iat|svids_count|cached_x509_svids_count)"):\d+"#, "$1:<number>"),
        // SPIRE's agent holds SVIDs of node aliases too, which nobody can ask for.
        mask(r"(Cached X.509 SVIDs: +)\d+", "$1<number>"),
        mask(r"\b\d{25,}\b", "<serial>"),
        mask(r"after [\d.]+[mµ]?s\b", "after <duration>"),
        mask(r"(Uptime: +)[\dhms]+", "$1<duration>"),
        mask(r#"(Agent version     : |"agent_version":")[\w.-]+"#, "$1<version>"),
        mask(r#"([:\[] ?| {8,})"[A-Za-z0-9_+/-]{20,}={0,2}""#, "$1\"<id or key>\""),
    ]
}

/// Replays a file against our binary under SPIRE's names; or writes it from SPIRE's own programs.
fn check(name: &str) {
    let directory = tempfile::Builder::new().prefix("cs").tempdir().unwrap();
    let directory = directory.path().canonicalize().unwrap();
    let own = directory.join("bin");
    std::fs::create_dir(&own).unwrap();
    // A symlink and a hard link or copy are the same to the program: the name is what counts.
    symlink(countersign(), own.join("spire-server")).unwrap();
    if std::fs::hard_link(countersign(), own.join("spire-agent")).is_err() {
        std::fs::copy(countersign(), own.join("spire-agent")).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/names").join(name);
    let script = std::fs::read_to_string(&path).unwrap();
    let reference = std::env::var_os(REFERENCE).map(PathBuf::from);
    let mut spire = Spire::start(&directory, reference.as_deref().unwrap_or(&own));
    let said = spire.transcript(&script);
    if reference.is_some() {
        std::fs::write(path, said).unwrap();
        return;
    }
    let blocks = |text: &str| text.replace("\n% ", "\n$ ").replace("\n^ ", "\n$ ").split("\n$ ").map(str::to_owned).collect::<Vec<_>>();
    let (expected, said) = (blocks(&script), blocks(&said));
    let different: String =
        expected.iter().zip(&said).filter(|(e, s)| e != s).map(|(e, s)| format!("\n--- SPIRE's\n$ {e}\n--- ours\n$ {s}\n")).collect();
    assert!(different.is_empty() && expected.len() == said.len(), "{different}");
}

#[test]
fn the_server_commands_say_what_spires_say() {
    check("server.txt");
}

#[test]
fn the_federation_commands_say_what_spires_say() {
    check("federation.txt");
}

#[test]
fn what_is_typed_wrong_ends_as_it_does_in_spire() {
    check("wrong.txt");
}

#[test]
fn the_agent_commands_say_what_spires_say() {
    check("agent.txt");
}

#[test]
fn every_flag_that_is_left_does_what_it_does_in_spire() {
    check("flags.txt");
}
