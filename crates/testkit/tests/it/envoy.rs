//! A real Envoy with the configuration of `docs/guides/envoy.md`: its certificate and whom it believes come from the agent by
//! SDS, and change while it runs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_wire::types;

use crate::kept::{Files, Heard, Kept, connect, example, free_port, get, page_shows, shown, until};
use crate::nginx::{Authority, svid_names};
use crate::support::{PATIENCE, prepared};

/// What the program behind Envoy answers with: who Envoy says is calling.
const CALLER: &str = "x-forwarded-client-cert";

/// The program that the Envoy is beside: it answers each request with who is calling.
fn program() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer(&connection));
        }
    });
    port
}

fn answer(mut connection: &TcpStream) {
    let mut lines = BufReader::new(connection).lines().map_while(Result::ok);
    loop {
        let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        if head.is_empty() {
            return;
        }
        let caller = head.iter().filter_map(|line| line.split_once(": ")).find(|(name, _)| name.eq_ignore_ascii_case(CALLER));
        // Beside the name there are Envoy's own and a digest.
        let caller = caller.and_then(|(_, parts)| parts.split(';').find_map(|part| part.strip_prefix("URI="))).unwrap_or("nobody");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{caller}", caller.len());
        if connection.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Envoy in a directory of its own.
struct Envoy {
    process: Heard,
    inbound: u16,
    outbound: u16,
}

impl Envoy {
    /// Starts it with the example's configuration, its other end being itself.
    fn start(directory: &Path, socket: &str) -> Self {
        let (inbound, outbound) = (free_port(), free_port());
        let places = [
            ("address: 0.0.0.0, port_value: 8443", format!("address: 127.0.0.1, port_value: {inbound}")),
            ("port_value: 8081", format!("port_value: {outbound}")),
            ("/tmp/spire-agent/public/api.sock", socket.trim_start_matches("unix://").to_owned()),
            ("port_value: 8080", format!("port_value: {}", program())),
            ("address: other.example.org, port_value: 8443", format!("address: 127.0.0.1, port_value: {inbound}")),
            ("spiffe://example.org/other", "spiffe://example.org/web".to_owned()),
            // So that it may call itself.
            ("exact: \"spiffe://example.org/client\"", "safe_regex: { regex: \"spiffe://example.org/(client|web)\" }".to_owned()),
        ];
        let places: Vec<(&str, &str)> = places.iter().map(|(from, to)| (*from, to.as_str())).collect();
        let file = directory.join("envoy.yaml");
        std::fs::write(&file, example("envoy/envoy.yaml", &places)).unwrap();
        let mut command = Command::new(prepared("COUNTERSIGN_TEST_ENVOY", "envoy/bin/envoy"));
        command.args(["--disable-hot-restart", "--concurrency", "2", "--config-path"]).arg(file);
        Self { process: Heard::start(command), inbound, outbound }
    }

    fn is_listening(&self) -> bool {
        assert!(!self.process.said().contains("error initializing configuration"), "{}", self.process.said());
        TcpStream::connect(("127.0.0.1", self.inbound)).is_ok()
    }

    /// Who the program behind it is told that a client is, on a connection of its own.
    fn caller(&self, files: &Files) -> std::io::Result<String> {
        get(&mut connect(self.inbound, files, true)?, "/").map(|(status, body)| {
            assert_eq!(status, 200, "{body}");
            body
        })
    }

    /// The same for a program beside it that calls through it.
    fn through_itself(&self) -> std::io::Result<String> {
        let mut connection = TcpStream::connect(("127.0.0.1", self.outbound))?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(b"GET / HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

/// A trust domain with an Envoy in it.
struct Stage {
    kept: Kept,
    entry: types::Entry,
    envoy: Envoy,
    client: Files,
}

impl Stage {
    fn start() -> Self {
        let kept = Kept::start();
        let uid = rustix::process::geteuid().as_raw();
        kept.entry("/client", uid, &[], 0);
        let client = Files::of(&kept.fetched("/client", "client"));
        let envoy = Envoy::start(&kept.directory("envoy"), &kept.socket());
        // Envoy is there first: it listens once it has its certificate.
        let entry = kept.entry("/web", uid, &["localhost"], 0);
        until("Envoy listens", || envoy.is_listening());
        until("Envoy lets the client in", || envoy.caller(&client).is_ok());
        Self { kept, entry, envoy, client }
    }

    /// The trust domain `other.test`, which Envoy's entry federates with.
    fn federate(&mut self) -> (Authority, PathBuf) {
        let (authority, directory) = (Authority::new(), self.kept.directory("other"));
        self.kept.set_bundle("other.test", &authority.pem);
        self.entry = self.kept.update(&self.entry, |entry| entry.federates_with = vec!["other.test".to_owned()]);
        (authority, directory)
    }

    /// Files of a client with this name, signed by this authority, that believes the trust domain's server.
    fn of(&self, authority: &Authority, directory: &Path, id: &str) -> Files {
        let name = id.replace([':', '/'], "_");
        Files { bundle: self.client.bundle.clone(), ..authority.files(directory, &name, &svid_names(&[id]), &[]) }
    }
}

#[test]
fn envoy_lets_in_whom_the_bundles_prove_and_proves_itself() {
    let mut stage = Stage::start();
    assert_eq!(stage.envoy.caller(&stage.client).unwrap(), "spiffe://example.org/client");
    // Of a trust domain that it does not know, and without any certificate.
    let (stranger, place) = (Authority::new(), stage.kept.directory("stranger"));
    for id in ["spiffe://other.test/client", "spiffe://example.org/client", "spiffe://stranger.test/client"] {
        let files = stage.of(&stranger, &place, id);
        stage.envoy.caller(&files).expect_err(id);
    }
    connect(stage.envoy.inbound, &stage.client, false).and_then(|mut tls| get(&mut tls, "/")).expect_err("no certificate");
    // An identity that is proven and not named.
    let uid = rustix::process::geteuid().as_raw();
    stage.kept.entry("/stranger", uid, &[], 0);
    let files = Files::of(&stage.kept.fetched("/stranger", "own-stranger"));
    stage.envoy.caller(&files).expect_err("an identity that is not named");

    // Federated with, the other trust domain vouches for its own names, and for no other.
    let (other, place) = stage.federate();
    let theirs = stage.of(&other, &place, "spiffe://other.test/client");
    until("the other trust domain's client is let in", || stage.envoy.caller(&theirs).is_ok());
    assert_eq!(stage.envoy.caller(&theirs).unwrap(), "spiffe://other.test/client");
    stage.envoy.caller(&stage.of(&other, &place, "spiffe://example.org/client")).expect_err("a name of somebody else's");
    assert_eq!(stage.envoy.caller(&stage.client).unwrap(), "spiffe://example.org/client");

    // Both ends of a connection.
    until("Envoy calls itself", || stage.envoy.through_itself().is_ok_and(|answer| answer.ends_with("spiffe://example.org/web")));
}

#[test]
fn a_renewal_reaches_envoy_and_drops_no_connection() {
    let mut stage = Stage::start();
    let port = stage.envoy.inbound;
    let mut open = connect(port, &stage.client, true).unwrap();
    assert_eq!(get(&mut open, "/").unwrap().0, 200);
    let before = shown(&open);
    for _ in 0..3 {
        let former = shown(&connect(port, &stage.client, true).unwrap());
        stage.kept.renew(&stage.entry);
        until("Envoy shows the new certificate", || {
            let mut new = connect(port, &stage.client, true).unwrap();
            assert_eq!(get(&mut new, "/").unwrap().0, 200, "a request was refused during the renewal");
            shown(&new) != former
        });
    }
    // The same connection, before and after.
    assert_eq!(get(&mut open, "/").unwrap(), (200, "spiffe://example.org/client".to_owned()));
    assert_eq!(shown(&open), before);

    // While the agent is away Envoy goes on with what it has, and it takes up again with the one that comes.
    stage.kept.kill_agent();
    let held = shown(&connect(port, &stage.client, true).unwrap());
    assert_eq!(stage.envoy.caller(&stage.client).unwrap(), "spiffe://example.org/client");
    stage.kept.start_agent();
    stage.kept.renew(&stage.entry);
    until("Envoy shows the new agent's certificate", || shown(&connect(port, &stage.client, true).unwrap()) != held);
    assert_eq!(get(&mut open, "/").unwrap().0, 200);
    assert_eq!(stage.envoy.process.stop(), Some(0), "{}", stage.envoy.process.said());
}

#[test]
fn the_page_shows_the_configuration_that_envoy_is_tested_with() {
    page_shows("docs/guides/envoy.md", &["envoy/envoy.yaml"]);
}
