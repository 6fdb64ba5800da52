//! Ready means that something can be issued: `/ready`, gRPC health and the metric follow the journal's disk, and tell of the
//! store's.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use countersign_server::api::HEALTH_REASON_HEADER;
use countersign_testkit::file_limit;
use countersign_testkit::powerloss::PowerLoss;
use countersign_transport::clock::SystemClock;
use countersign_wire::agent::CreateJoinTokenRequest;
use countersign_wire::svid::MintX509svidRequest;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::world::{self, Domain, entry, key, spiffe_id, svids, until};

#[test]
fn readiness_ends_with_a_reason_while_the_journal_has_no_room_and_comes_back_by_itself() {
    if file_limit::alone("readiness::readiness_ends_with_a_reason_while_the_journal_has_no_room_and_comes_back_by_itself") {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(a_journal_without_room());
    }
}

/// Addresses of this machine that nobody listens on by default, and paths that are not the default ones.
const HEALTH: &str = "127.0.0.2";
const METRICS: &str = "127.0.0.3";
const READY: &str = "/are-you-ready";
const LIVE: &str = "/are-you-there";

/// A domain, and where it says whether it is ready and what it measures.
async fn domain(disk: Option<PowerLoss>) -> (Domain, u16, u16) {
    let free = |host| TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().port();
    let (ready, metrics) = (free(HEALTH), free(METRICS));
    let blocks = format!(
        "audit_log_enabled = true\n}}\nhealth_checks {{\n listener_enabled = true\n bind_address = \"{HEALTH}\"\n bind_port = {ready}\n \
         ready_path = \"{READY}\"\n live_path = \"{LIVE}\"\n}}\ntelemetry {{\n Prometheus {{\n host = \"{METRICS}\"\n port = {metrics}\n }}\n"
    );
    (Domain::start_on(disk, Arc::new(SystemClock), &blocks).await.unwrap(), ready, metrics)
}

async fn a_journal_without_room() {
    let (domain, ready, metrics) = domain(Some(PowerLoss::register())).await;
    assert_eq!(healthy(&domain).await, (true, None));
    let (status, body) = get(ready, READY);
    assert_eq!((status, body["server.journal"].to_string()), (200, "{}".to_owned()));

    let journal = domain.directory().join("server/journal/00000000000000000001.journal");
    file_limit::limit(Some(std::fs::metadata(&journal).unwrap().len()));
    let csr = key().request(Some(&spiffe_id("/w")), &[]).unwrap();
    svids(&domain).await.mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await.unwrap_err();
    let (serves, reason) = healthy(&domain).await;
    let reason = reason.unwrap();
    assert!(!serves && reason.contains("so nothing can be issued") && reason.contains("00000000000000000001.journal"), "{reason}");
    let (status, body) = get(ready, READY);
    assert_eq!((status, body["server.journal"]["write_err"].as_str()), (500, Some(reason.as_str())));
    assert_eq!(body["server.store"].to_string(), "{}");
    assert_eq!(get(ready, LIVE).0, 200, "the process is alive");
    assert_eq!((gauge(metrics, "journal"), gauge(metrics, "store")), (0, 1));

    // Nobody asks for anything but whether it is well again.
    file_limit::limit(None);
    until("it comes back by itself", async || healthy(&domain).await.0.then_some(())).await.unwrap();
    assert_eq!(healthy(&domain).await.1, None);
    assert_eq!((get(ready, READY).0, gauge(metrics, "journal")), (200, 1));
    world::minted(&domain, &spiffe_id("/w")).await;
}

#[test]
fn a_store_without_room_is_told_of_and_takes_nobody_out_of_service() {
    if file_limit::alone("readiness::a_store_without_room_is_told_of_and_takes_nobody_out_of_service") {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(a_store_without_room());
    }
}

async fn a_store_without_room() {
    let (domain, ready, metrics) = domain(None).await;
    let log = domain.directory().join("server/store.sqlite3-wal");
    // The journal is far smaller and has room.
    file_limit::limit(Some(std::fs::metadata(&log).unwrap().len()));
    domain.entry_from(entry(&spiffe_id("/node"), "/w", &["uid:1"])).await.unwrap_err();
    let (serves, trouble) = healthy(&domain).await;
    let trouble = trouble.unwrap();
    assert!(serves && trouble.contains("store"), "{trouble}");
    let (status, body) = get(ready, READY);
    assert_eq!((status, body["server.store"]["write_err"].as_str()), (200, Some(trouble.as_str())));
    assert_eq!((gauge(metrics, "journal"), gauge(metrics, "store")), (1, 0));
    world::minted(&domain, &spiffe_id("/w")).await;

    file_limit::limit(None);
    // Requests that keep coming do not hide it.
    let look = async || {
        let wanted = CreateJoinTokenRequest { ttl: 60, token: String::new(), agent_id: None };
        let _ = world::agents(&domain).await.create_join_token(wanted).await;
        healthy(&domain).await.1.is_none().then_some(())
    };
    until("it comes back by itself", look).await.unwrap();
    assert_eq!(gauge(metrics, "store"), 1);
    domain.entry_from(entry(&spiffe_id("/node"), "/w", &["uid:1"])).await.unwrap();
}

/// Whether gRPC health says that it serves, and what is wrong.
async fn healthy(domain: &Domain) -> (bool, Option<String>) {
    let mut client = HealthClient::new(domain.admin().await.unwrap());
    let answer = client.check(HealthCheckRequest { service: String::new() }).await.unwrap();
    let reason = answer.metadata().get(HEALTH_REASON_HEADER).map(|r| r.to_str().unwrap().to_owned());
    (answer.get_ref().status == i32::from(ServingStatus::Serving), reason)
}

fn fetch(host: &str, port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect((host, port)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn get(port: u16, path: &str) -> (u16, serde_json::Value) {
    let (status, body) = fetch(HEALTH, port, path);
    (status, serde_json::from_str(&body).unwrap())
}

fn gauge(port: u16, part: &str) -> i64 {
    let (_, text) = fetch(METRICS, port, "/metrics");
    let start = format!("countersign_server_healthy{{part=\"{part}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_stops_although_somebody_holds_a_connection_to_its_listeners_of_http() {
    let (mut domain, ready, metrics) = domain(None).await;
    let held = [(HEALTH, ready, READY), (METRICS, metrics, "/metrics")].map(|(host, port, path)| {
        let mut connection = TcpStream::connect((host, port)).unwrap();
        write!(connection, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert!(connection.read(&mut [0; 64]).unwrap() > 0);
        connection
    });
    // It would wait for twice as long in vain.
    tokio::time::timeout(std::time::Duration::from_secs(5), domain.stop_server()).await.unwrap();
    drop(held);
}

#[test]
fn a_token_that_is_still_good_is_in_no_log() {
    if file_limit::alone("readiness::a_token_that_is_still_good_is_in_no_log") {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(a_token_that_is_still_good());
    }
}

async fn a_token_that_is_still_good() {
    let (domain, _, _) = domain(None).await;
    let log = Log::default();
    tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::TRACE).with_writer(log.clone()).init();
    let token = domain.token(None).await.unwrap();
    let journal = domain.directory().join("server/journal/00000000000000000001.journal");
    // The node attests, and nothing can be issued to it.
    file_limit::limit(Some(std::fs::metadata(&journal).unwrap().len()));
    domain.join(&token).await.unwrap_err();
    let failed =
        |text: &str| text.lines().any(|l| l.contains("API accessed") && l.contains("AttestAgent") && l.contains("status=\"error\""));
    until("the call is audited", async || failed(&log.text()).then_some(())).await.unwrap();
    assert!(!log.text().contains(&token), "{}", log.text());
    file_limit::limit(None);
    until("the token is good", async || domain.join(&token).await.ok()).await.unwrap();
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
