//! A trust domain whose agent can go away, `fetch x509 --watch` beside it, and the daemons that read its files.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use countersign_identity::{Bundle, TrustDomain};
use countersign_testkit::domain::{Domain, spiffe_id};
use countersign_wire::bundle_api::BatchSetFederatedBundleRequest;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::{BatchDeleteEntryRequest, BatchUpdateEntryRequest};
use countersign_wire::{bundle, id, types};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::{PATIENCE, countersign};

/// Server and agent in this process.
pub struct Kept {
    runtime: tokio::runtime::Runtime,
    domain: Domain,
    config: countersign_agent::Config,
    /// The agent and all that belongs to it.
    agent: Option<(tokio::runtime::Runtime, countersign_agent::Running)>,
    /// How many names an entry had added to it.
    renewals: u32,
}

impl Kept {
    pub fn start() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (domain, config) = runtime.block_on(async {
            let domain = Domain::start().await.unwrap();
            let token = domain.token(Some(&spiffe_id("/node"))).await.unwrap();
            let config = domain.agent_config("node", Some(&token), "").await.unwrap();
            (domain, config)
        });
        // Daemons run as users of their own, and have to reach their files.
        for directory in [domain.directory(), &domain.directory().join("node")] {
            std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut kept = Self { runtime, domain, config, agent: None, renewals: 0 };
        kept.start_agent();
        kept
    }

    pub fn start_agent(&mut self) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let running = runtime.block_on(self.domain.run_agent(&self.config)).unwrap();
        self.agent = Some((runtime, running));
    }

    /// Ends the agent in the midst of what it does, as `kill -9` would.
    pub fn kill_agent(&mut self) {
        let (runtime, running) = self.agent.take().unwrap();
        runtime.shutdown_timeout(PATIENCE);
        drop(running);
    }

    /// A directory below the domain's, which goes with it.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.domain.directory().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn socket(&self) -> String {
        format!("unix://{}/node/agent.sock", self.domain.directory().display())
    }

    /// An identity for the processes of this user.
    pub fn entry(&self, path: &str, uid: u32, dns_names: &[&str], lifetime_secs: i32) -> types::Entry {
        let selector = types::Selector { r#type: "unix".to_owned(), value: format!("uid:{uid}") };
        let entry = types::Entry {
            spiffe_id: Some(id::to_wire(&spiffe_id(path))),
            parent_id: Some(id::to_wire(&spiffe_id("/node"))),
            selectors: vec![selector],
            dns_names: dns_names.iter().map(|n| (*n).to_owned()).collect(),
            x509_svid_ttl: lifetime_secs,
            ..types::Entry::default()
        };
        self.runtime.block_on(self.domain.entry_from(entry)).unwrap()
    }

    /// Has the SVIDs of an entry issued anew, by giving it another name behind those it has.
    pub fn renew(&mut self, entry: &types::Entry) {
        self.renewals += 1;
        let name = format!("renewal-{}.test", self.renewals);
        self.update(entry, |entry| entry.dns_names.push(name));
    }

    /// Changes an entry, and returns it as it is then.
    pub fn update(&self, entry: &types::Entry, change: impl FnOnce(&mut types::Entry)) -> types::Entry {
        let mut entry = entry.clone();
        change(&mut entry);
        self.runtime.block_on(async {
            let mut client = EntryClient::new(self.domain.admin().await.unwrap());
            let request = BatchUpdateEntryRequest { entries: vec![entry.clone()], ..Default::default() };
            let results = client.batch_update_entry(request).await.unwrap().into_inner().results;
            assert_eq!(results[0].status.as_ref().unwrap().code, 0, "{results:?}");
        });
        entry
    }

    /// Has these authorities, as PEM, vouch for another trust domain.
    pub fn set_bundle(&self, trust_domain: &str, pem: &str) {
        let bundle = Bundle::from_pem(TrustDomain::parse(trust_domain).unwrap(), pem).unwrap();
        self.runtime.block_on(async {
            let mut client = BundleClient::new(self.domain.admin().await.unwrap());
            let request = BatchSetFederatedBundleRequest { bundle: vec![bundle::to_wire(&bundle)], output_mask: None };
            let results = client.batch_set_federated_bundle(request).await.unwrap().into_inner().results;
            assert_eq!(results[0].status.as_ref().unwrap().code, 0, "{results:?}");
        });
    }

    /// Takes an entry away.
    pub fn delete(&self, entry: &types::Entry) {
        self.runtime.block_on(async {
            let mut client = EntryClient::new(self.domain.admin().await.unwrap());
            let request = BatchDeleteEntryRequest { ids: vec![entry.id.clone()] };
            let results = client.batch_delete_entry(request).await.unwrap().into_inner().results;
            assert_eq!(results[0].status.as_ref().unwrap().code, 0, "{results:?}");
        });
    }

    /// The files of one identity, written once. Waits until the agent has it.
    pub fn fetched(&self, path: &str, into: &str) -> PathBuf {
        let directory = self.directory(into);
        let begun = Instant::now();
        loop {
            let output = Command::new(countersign())
                .args(["fetch", "x509", "--spiffe-id", &spiffe_id(path).to_string(), "--write"])
                .arg(&directory)
                .env("SPIFFE_ENDPOINT_SOCKET", self.socket())
                .output()
                .unwrap();
            if output.status.success() {
                return directory;
            }
            assert!(begun.elapsed() < PATIENCE, "{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// `fetch x509 --watch` with these options after those that every one has.
    pub fn watch(&self, mut command: Command, path: &str, directory: &Path, options: &[&str]) -> Heard {
        command.args(["fetch", "x509", "--watch", "--spiffe-id", &spiffe_id(path).to_string(), "--write"]);
        command.arg(directory).args(options).env("SPIFFE_ENDPOINT_SOCKET", self.socket());
        Heard::start(command)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.agent.is_some() {
            self.kill_agent();
        }
        self.runtime.block_on(self.domain.stop_server());
    }
}

/// A child process and what it says on standard error; asked to stop, and killed if it does not, when dropped.
pub struct Heard {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    read: usize,
}

impl Heard {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (from, to) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in from.lines().map_while(Result::ok) {
                to.lock().unwrap().push(line);
            }
        });
        Self { child, lines, read: 0 }
    }

    /// Waits for a line that contains this, after the last one that was waited for.
    pub fn line(&mut self, wanted: &str) -> String {
        self.line_within(wanted, PATIENCE)
    }

    /// The same for one that takes its time.
    pub fn line_within(&mut self, wanted: &str, limit: Duration) -> String {
        let begun = Instant::now();
        loop {
            let lines = self.lines.lock().unwrap().clone();
            if let Some(found) = lines.iter().skip(self.read).position(|l| l.contains(wanted)) {
                self.read += found + 1;
                return lines[self.read - 1].clone();
            }
            assert!(begun.elapsed() < limit, "no line with `{wanted}`: {lines:#?}");
            assert!(self.child.try_wait().unwrap().is_none(), "it has ended: {lines:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn said(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// Asks it to stop, and returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            if begun.elapsed() > PATIENCE {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.stop();
        }
    }
}

/// Waits for a condition.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A file below `examples/`, with these parts of it replaced; each is there, or the example has changed.
pub fn example(name: &str, replacements: &[(&str, &str)]) -> String {
    let mut text = std::fs::read_to_string(in_checkout(&format!("examples/{name}"))).unwrap();
    for (from, to) in replacements {
        assert!(text.contains(from), "`{from}` is not in examples/{name}");
        text = text.replace(from, to);
    }
    text
}

/// The page shows these files as they are.
pub fn page_shows(page: &str, examples: &[&str]) {
    let text = std::fs::read_to_string(in_checkout(page)).unwrap();
    for name in examples {
        let mut block = String::new();
        for line in example(name, &[]).lines() {
            writeln!(block, "{}", if line.is_empty() { String::new() } else { format!("    {line}") }).unwrap();
        }
        assert!(text.contains(&block), "{page} does not show examples/{name} as it is");
    }
}

fn in_checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A TLS connection of a client to this machine.
pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Client certificate, key and bundle of a directory of files.
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub bundle: PathBuf,
}

impl Files {
    /// As `--write` names them.
    pub fn of(directory: &Path) -> Self {
        let file = |name: &str| directory.join(name);
        Self { certificate: file("svid.0.pem"), key: file("svid.0.key"), bundle: file("bundle.0.pem") }
    }

    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(&self.certificate).unwrap().map(Result::unwrap).collect()
    }
}

/// Connects to `localhost`, which the server must prove to be, with the certificate or without one.
pub fn connect(port: u16, files: &Files, with_certificate: bool) -> std::io::Result<Tls> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(&files.bundle).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let config = if with_certificate {
        // Without rustls's own look at the certificate: some tests have one that it would not send.
        let key = any_supported_type(&PrivateKeyDer::from_pem_file(&files.key).unwrap()).unwrap();
        builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(files.chain(), key))))
    } else {
        builder.with_no_client_auth()
    };
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Without it each request waits for a delayed acknowledgement.
    stream.set_nodelay(true)?;
    let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap(), stream);
    tls.flush()?;
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    Ok(tls)
}

/// The certificate the server has shown.
pub fn shown(tls: &Tls) -> CertificateDer<'static> {
    tls.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

/// The head of an answer of HTTP/1.1.
pub struct Head {
    pub status: u16,
    pub length: usize,
}

/// Asks for a path and reads the head of the answer.
pub fn ask(tls: &mut Tls, path: &str) -> std::io::Result<Head> {
    tls.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
    tls.flush()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length:")).map_or(0, |l| l.trim().parse().unwrap());
    Ok(Head { status: head.split(' ').nth(1).unwrap().parse().unwrap(), length })
}

/// Status and body of a path.
pub fn get(tls: &mut Tls, path: &str) -> std::io::Result<(u16, String)> {
    let head = ask(tls, path)?;
    let mut body = vec![0; head.length];
    tls.read_exact(&mut body)?;
    Ok((head.status, String::from_utf8(body).unwrap()))
}
