//! `run` and `validate` under SPIRE's names: each flag takes the place of its key, whatever the file says there.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use countersign_testkit::workload::{Workload, first};
use serde_json::Value;

use crate::kept::free_port;
use crate::roles::{Role, until};
use crate::support::countersign;
use crate::surface::rows::{Status, rows};

/// Flags of `run` and `validate`, their keys, and a good value; none for a switch.
const SERVER: &[(&str, &str, &str)] = &[
    ("bindAddress", "bind_address", "127.0.0.2"),
    ("dataDir", "data_dir", "DIR/other"),
    ("logFile", "log_file", "DIR/other.log"),
    ("logFormat", "log_format", "json"),
    ("logLevel", "log_level", "debug"),
    ("logSourceLocation", "log_source_location", ""),
    ("serverPort", "bind_port", "8081"),
    ("socketPath", "socket_path", "DIR/other.sock"),
    ("trustDomain", "trust_domain", "other.test"),
];
const AGENT: &[(&str, &str, &str)] = &[
    ("allowUnauthenticatedVerifiers", "allow_unauthenticated_verifiers", ""),
    ("dataDir", "data_dir", "DIR/other"),
    ("disableSDSAPI", "disable_sds_api", ""),
    ("disableWorkloadAPI", "disable_workload_api", ""),
    ("insecureBootstrap", "insecure_bootstrap", ""),
    ("joinToken", "join_token", "token"),
    ("joinTokenFile", "join_token_file", "DIR/token"),
    ("logFile", "log_file", "DIR/other.log"),
    ("logFormat", "log_format", "json"),
    ("logLevel", "log_level", "debug"),
    ("logSourceLocation", "log_source_location", ""),
    ("rebootstrapDelay", "rebootstrap_delay", "7m"),
    ("rebootstrapMode", "rebootstrap_mode", "auto"),
    ("serverAddress", "server_address", "localhost"),
    ("serverPort", "server_port", "8081"),
    ("socketPath", "socket_path", "DIR/other.sock"),
    ("trustBundle", "trust_bundle_path", "DIR/bundle.pem"),
    ("trustBundleFormat", "trust_bundle_format", "spiffe"),
    ("trustBundleUrl", "trust_bundle_url", "https://other.test/bundle"),
    ("trustDomain", "trust_domain", "other.test"),
];
const SERVER_PLUGINS: &str = "plugins {\n DataStore \"sql\" {\n plugin_data {\n database_type = \"sqlite3\"\n \
    connection_string = \"$ELSEWHERE/store.sqlite3\"\n }\n }\n KeyManager \"memory\" {\n plugin_data {}\n }\n \
    NodeAttestor \"join_token\" {\n plugin_data {}\n }\n}\n";
const AGENT_PLUGINS: &str = "plugins {\n KeyManager \"memory\" {\n plugin_data {}\n }\n NodeAttestor \"join_token\" {\n \
    plugin_data {}\n }\n WorkloadAttestor \"unix\" {\n plugin_data {}\n }\n}\n";

/// A directory with the programs under SPIRE's names.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("cs").tempdir().unwrap();
        for program in ["spire-server", "spire-agent"] {
            symlink(countersign(), directory.path().join(program)).unwrap();
        }
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// `DIR` is this directory.
    fn placed(&self, text: &str) -> String {
        text.replace("DIR", &self.0.path().display().to_string())
    }

    /// Writes a configuration with these settings in its block.
    fn write(&self, side: &str, settings: &[(&str, String)]) {
        let block = settings.iter().fold(String::new(), |mut block, (key, value)| {
            writeln!(block, " {key} = {value}").unwrap();
            block
        });
        let plugins = if side == "server" { SERVER_PLUGINS } else { AGENT_PLUGINS };
        std::fs::write(self.path(&format!("{side}.conf")), self.placed(&format!("{side} {{\n{block}}}\n{plugins}"))).unwrap();
    }

    /// A line as one would type it.
    fn command(&self, line: &str) -> Command {
        let line = self.placed(line);
        let mut words = line.split(' ');
        let mut command = Command::new(self.path(words.next().unwrap()));
        command.args(words).stdin(Stdio::null()).current_dir(self.0.path());
        command.env("TRUST_DOMAIN", "example.org").env("ELSEWHERE", self.path("elsewhere"));
        command
    }

    fn output(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn ok(&self, line: &str) -> String {
        let output = self.output(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a line says that must fail.
    fn refusal(&self, line: &str) -> String {
        let output = self.output(line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts a line, its output in a file of this name.
    fn start(&self, line: &str, name: &str) -> Role {
        let out = std::fs::File::create(self.path(name)).unwrap();
        Role(self.command(line).stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap())
    }

    /// Waits until a file has this text.
    fn wait(&self, file: &str, wanted: &str) {
        until(&format!("`{wanted}` in {file}"), || self.text(file).contains(wanted));
    }
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// A good file in which this key, and nothing else, is wrong.
fn settings(side: &str, wrong: &str) -> Vec<(&'static str, String)> {
    let mut all: Vec<(&str, String)> = match side {
        "server" => vec![("trust_domain", quoted("example.org")), ("data_dir", quoted("DIR/server"))],
        _ => vec![
            ("trust_domain", quoted("example.org")),
            ("data_dir", quoted("DIR/agent")),
            ("server_address", quoted("localhost")),
            ("server_port", quoted("8081")),
            ("disable_sds_api", "true".to_owned()),
        ],
    };
    // Of the sources of trust only one may be named.
    if side == "agent" && !["insecure_bootstrap", "trust_bundle_path", "trust_bundle_url"].contains(&wrong) {
        all.push(("trust_bundle_path", quoted("DIR/bundle.pem")));
    }
    all.retain(|(key, _)| *key != wrong);
    all
}

#[test]
fn each_flag_of_validate_takes_the_place_of_its_key() {
    let place = Place::new();
    std::fs::write(place.path("token"), "token").unwrap();
    for (side, table) in [("server", SERVER), ("agent", AGENT)] {
        let program = format!("spire-{side}");
        let mut lines = settings(side, "trust_domain");
        lines.push(("trust_domain", quoted("$TRUST_DOMAIN")));
        place.write(side, &lines);
        let line = format!("{program} validate -config DIR/{side}.conf");
        assert!(place.refusal(&line).contains("trust_domain"));
        place.ok(&format!("{line} -expandEnv"));
        for (flag, key, value) in table {
            let mut lines = settings(side, key);
            // No text, no number and no boolean: with the flag nobody looks at it.
            let key: &'static str = key;
            lines.push((key, "[]".to_owned()));
            place.write(side, &lines);
            let refusal = place.refusal(&line);
            assert!(refusal.contains(&format!("`{side}.{key}`")), "{refusal}");
            let flag = if value.is_empty() { format!("-{flag}") } else { format!("-{flag} {value}") };
            assert_eq!(place.ok(&format!("{line} {flag}")), format!("SPIRE {side} configuration file is valid.\n"), "{flag}");
        }
        for command in ["run", "validate"] {
            let of_rows = |row: &&super::surface::rows::Row| row.get("program") == program && row.get("command") == command;
            let of_rows =
                rows("flags").iter().filter(of_rows).filter(|r| r.status() == Status::Done).map(|r| r.get("flag")).collect::<Vec<_>>();
            let missing: Vec<_> =
                of_rows.iter().filter(|flag| !["config", "expandEnv"].contains(flag) && !table.iter().any(|(f, ..)| f == *flag)).collect();
            assert!(missing.is_empty(), "{program} {command} has {missing:?}");
        }
    }
}

/// Every line of a JSON log.
fn json(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

/// A log as `-logFormat json -logLevel debug -logSourceLocation` make it.
fn is_full_json(log: &str) {
    let lines = json(log);
    assert!(lines.iter().any(|line| line["level"] == "debug"), "{log}");
    assert!(lines.iter().all(|line| line["file"].as_str().unwrap().contains(".rs:") && line["func"].is_string()), "{log}");
}

/// A server with all of its flags, over a file that says otherwise, and its port.
fn server(place: &Place) -> (Role, u16) {
    let wrong = [
        ("trust_domain", quoted("wrong.test")),
        ("bind_address", quoted("127.0.0.1")),
        ("bind_port", "1".to_owned()),
        ("socket_path", quoted("DIR/wrong.sock")),
        ("data_dir", quoted("DIR/wrong")),
        ("log_file", quoted("DIR/wrong.log")),
        ("log_level", quoted("error")),
        ("log_format", quoted("text")),
    ];
    place.write("server", &wrong);
    std::fs::create_dir(place.path("elsewhere")).unwrap();
    let port = free_port();
    let line = format!(
        "spire-server run -config DIR/server.conf -expandEnv -bindAddress 127.0.0.2 -serverPort {port} -dataDir DIR/server -logFile DIR/server.log \
         -logFormat json -logLevel debug -logSourceLocation -socketPath DIR/server.sock -trustDomain right.test"
    );
    let role = place.start(&line, "server.out");
    until("the server answers", || place.output("spire-server healthcheck -socketPath DIR/server.sock").status.success());
    (role, port)
}

#[test]
fn each_flag_of_run_takes_the_place_of_its_key_in_a_server() {
    let place = Place::new();
    let (server, port) = server(&place);
    place.ok("spire-server x509 mint -socketPath DIR/server.sock -spiffeID spiffe://right.test/web");
    let log = place.text("server.log");
    is_full_json(&log);
    let address = format!("127.0.0.2:{port}");
    assert!(json(&log).iter().any(|l| l["msg"] == "Starting Server APIs" && l["address"] == address.as_str()), "{log}");
    assert!(place.path("server").is_dir() && place.path("elsewhere/store.sqlite3").is_file());
    for wrong in ["wrong", "wrong.log", "wrong.sock"] {
        assert!(!place.path(wrong).exists(), "{wrong}");
    }
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn each_flag_of_run_takes_the_place_of_its_key_in_an_agent() {
    let place = Place::new();
    let (_server, port) = server(&place);
    let token = || {
        let said = place.ok("spire-server token generate -socketPath DIR/server.sock -spiffeID spiffe://right.test/node");
        said.lines().next().unwrap().strip_prefix("Token: ").unwrap().to_owned()
    };
    for format in ["pem", "spiffe"] {
        let bundle = place.ok(&format!("spire-server bundle show -socketPath DIR/server.sock -format {format}"));
        std::fs::write(place.path(&format!("bundle.{format}")), bundle).unwrap();
    }
    std::fs::write(place.path("token"), token()).unwrap();
    let wrong = |more: &[(&'static str, &str)]| {
        let mut all = vec![
            ("trust_domain", quoted("wrong.test")),
            ("server_address", quoted("127.0.0.1")),
            ("server_port", quoted("1")),
            ("data_dir", quoted("DIR/wrong")),
            ("socket_path", quoted("DIR/wrong.sock")),
            ("log_file", quoted("DIR/wrong.log")),
            ("rebootstrap_mode", quoted("never")),
            ("rebootstrap_delay", quoted("1s")),
        ];
        all.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
        place.write("agent", &all);
    };
    let line = |name: &str, more: &str| {
        format!(
            "spire-agent run -config DIR/agent.conf -serverAddress 127.0.0.2 -serverPort {port} -trustDomain right.test -dataDir DIR/{name} \
             -socketPath DIR/{name}-public/api.sock -logFile DIR/{name}.log {more}"
        )
    };

    wrong(&[
        ("admin_socket_path", "\"$ELSEWHERE/admin.sock\""),
        ("trust_bundle_path", "\"DIR/none\""),
        ("trust_bundle_format", "\"pem\""),
        ("join_token_file", "\"DIR/none\""),
        ("log_level", "\"error\""),
        ("log_format", "\"text\""),
    ]);
    let flags = "-expandEnv -trustBundle DIR/bundle.spiffe -trustBundleFormat spiffe -joinTokenFile DIR/token -allowUnauthenticatedVerifiers \
                 -logFormat json -logLevel debug -logSourceLocation";
    let agent = place.start(&line("first", flags), "first.out");
    until("the agent answers", || place.output("spire-agent healthcheck -socketPath DIR/first-public/api.sock").status.success());
    assert!(place.path("first/agent-data.json").is_file() && place.path("elsewhere/admin.sock").exists());
    // It has no identity, and gets the bundle.
    let bundles =
        async { first(Workload::connect(&place.path("first-public/api.sock")).await.unwrap().x509_bundles().await.unwrap()).await };
    let bundles = tokio::runtime::Runtime::new().unwrap().block_on(bundles).unwrap().bundles;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://right.test"]);
    assert_eq!(agent.stop(), Some(0));
    is_full_json(&place.text("first.log"));

    wrong(&[("join_token", "\"wrong\""), ("log_source_location", "true")]);
    let flags = format!("-insecureBootstrap -joinToken {} -disableWorkloadAPI -disableSDSAPI", token());
    let agent = place.start(&line("second", &flags), "second.out");
    place.wait("second.log", "msg=\"Skipping agent APIs because public endpoint is disabled\"");
    assert!(place.text("second.log").contains(" file=\"agent.rs:"), "by the file: {}", place.text("second.log"));
    assert!(!place.path("second-public/api.sock").exists());
    assert_eq!(agent.stop(), Some(0));

    let listener = UnixListener::bind(place.path("bundles.sock")).unwrap();
    let bundle = place.text("bundle.pem");
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 1024];
        let length = stream.read(&mut head).unwrap();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{bundle}", bundle.len()).unwrap();
        String::from_utf8_lossy(&head[..length]).into_owned()
    });
    wrong(&[("trust_bundle_url", "\"http://localhost/wrong\""), ("trust_bundle_unix_socket", "\"DIR/bundles.sock\"")]);
    let flags = format!("-trustBundleUrl http://localhost/right -joinToken {} -rebootstrapMode always", token());
    // Whoever joined by a token cannot do so again.
    let refusal = place.refusal(&line("third", &flags));
    assert!(refusal.contains("you have requested rebootstrap support but the NodeAttestor plugin"), "{refusal}");
    assert!(asked.join().unwrap().starts_with("GET /right?"));

    // It has seen another authority, of which alone its file knows.
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://right.test".try_into().unwrap())];
    let stranger = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
    std::fs::write(place.path("stranger.pem"), &stranger).unwrap();
    let mut data: Value = serde_json::from_str(&place.text("first/agent-data.json")).unwrap();
    data["svid"] = Value::Null;
    data["bundle"] = serde_json::json!([base64::engine::general_purpose::STANDARD.encode(&stranger)]);
    std::fs::create_dir(place.path("fourth")).unwrap();
    std::fs::write(place.path("fourth/agent-data.json"), data.to_string()).unwrap();
    wrong(&[("trust_bundle_path", "\"DIR/stranger.pem\""), ("log_format", "\"json\"")]);
    let flags = format!("-joinToken {} -rebootstrapMode auto -rebootstrapDelay 7m", token());
    let agent = place.start(&line("fourth", &flags), "fourth.out");
    let disagreed = "Trust Bundle and Server don't agree, ignoring for now";
    place.wait("fourth.log", disagreed);
    assert_eq!(agent.stop(), Some(0));
    let log = json(&place.text("fourth.log"));
    let left = log.iter().find(|l| l["msg"] == disagreed).unwrap()["time_left"].as_str().unwrap().trim_end_matches('s').to_owned();
    assert!((400.0..=420.0).contains(&left.parse::<f64>().unwrap()), "{left}");
}

#[test]
fn a_server_that_cannot_start_says_so_in_spires_lines() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut lines = settings("server", "");
    lines.extend([("bind_address", quoted("127.0.0.1")), ("log_file", quoted("DIR/server.log")), ("socket_path", quoted("DIR/s.sock"))]);
    place.write("server", &lines);
    let refusal = place.refusal(&format!("spire-server run -config DIR/server.conf -serverPort {port}"));
    assert!(refusal.contains("the port is in use"), "{refusal}");
    let log = place.text("server.log");
    for line in ["level=error msg=\"Fatal run error\" ", "level=error msg=\"Server crashed\" "] {
        assert!(log.contains(line), "{log}");
    }
}
