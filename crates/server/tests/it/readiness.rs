//! Ready means that something can be issued and kept: `/ready`, gRPC health and the metric follow the disks.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use countersign_server::api::HEALTH_REASON_HEADER;
use countersign_transport::clock::SystemClock;
use countersign_wire::svid::MintX509svidRequest;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::world::{self, Domain, entry, key, spiffe_id, svids, until};

/// Tells this test that it runs in the mount namespace with the small disk, and where that is.
const DISK: &str = "COUNTERSIGN_TEST_SMALL_DISK";
/// More than fit on the small disk, whatever is left in pages that are there already.
const ATTEMPTS: usize = 2000;

/// The test starts itself again in a user and mount namespace of its own, with a file system of 4 MiB; that needs no rights
/// and leaves nothing mounted. It fails where the system forbids it.
#[test]
fn a_full_disk_ends_readiness_with_a_reason_until_there_is_room_again() {
    if let Some(disk) = std::env::var_os(DISK) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(on_a_small_disk(Path::new(&disk)));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-ec"])
        .arg("mount -t tmpfs -o size=4m tmpfs \"$0\"; exec \"$@\"")
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "readiness::a_full_disk_ends_readiness_with_a_reason_until_there_is_room_again"])
        .env(DISK, directory.path())
        .env("TMPDIR", directory.path())
        .output()
        .expect("`unshare` of util-linux is needed to mount a small disk");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "in the namespace with the small disk:\n{stdout}\n{stderr}");
}

async fn on_a_small_disk(disk: &Path) {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (ready, metrics) = (free(), free());
    let blocks = format!(
        "}}\nhealth_checks {{\n listener_enabled = true\n bind_address = \"127.0.0.1\"\n bind_port = {ready}\n}}\n\
         telemetry {{\n Prometheus {{\n host = \"127.0.0.1\"\n port = {metrics}\n }}\n"
    );
    let domain = Domain::start_with(Arc::new(SystemClock), &blocks).await.unwrap();
    assert_eq!(healthy(&domain).await, Ok(()));
    let (status, body) = get(ready, "/ready");
    assert_eq!((status, body["server.journal"].to_string()), (200, "{}".to_owned()));

    let filler = disk.join("filler");
    std::fs::write(&filler, vec![0; 8 << 20]).unwrap_err();
    let mut refused = None;
    for _ in 0..ATTEMPTS {
        let csr = key().request(Some(&spiffe_id("/w")), &[]).unwrap();
        if let Err(status) = svids(&domain).await.mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await {
            refused = Some(status.message().to_owned());
            break;
        }
    }
    let refused = refused.expect("the journal's disk is full");
    assert!(refused.contains("the disk of the issuance journal is full"), "{refused}");
    assert_eq!(healthy(&domain).await, Err(refused.clone()));
    let (status, body) = get(ready, "/ready");
    assert_eq!((status, body["server.journal"]["write_err"].as_str()), (500, Some(refused.as_str())));
    assert_eq!(body["server.store"].to_string(), "{}");
    assert_eq!(get(ready, "/live").0, 200, "the process is alive");
    assert_eq!(gauge(metrics, "journal"), 0);
    assert_eq!(gauge(metrics, "store"), 1);

    let mut full = false;
    for n in 0..ATTEMPTS {
        let wanted = entry(&spiffe_id("/node"), &format!("/w{n}"), &["uid:1"]);
        if domain.entry_from(wanted).await.is_err() {
            full = true;
            break;
        }
    }
    assert!(full, "the store's disk is full");
    let (_, body) = get(ready, "/ready");
    assert_eq!(body["server.store"]["write_err"], "the store's disk is full");
    assert_eq!(gauge(metrics, "store"), 0);

    // Nobody asks for anything but whether it is well again.
    std::fs::remove_file(&filler).unwrap();
    until("it comes back by itself", async || healthy(&domain).await.ok()).await.unwrap();
    assert_eq!(get(ready, "/ready").0, 200);
    assert_eq!((gauge(metrics, "journal"), gauge(metrics, "store")), (1, 1));
    world::minted(&domain, &spiffe_id("/w")).await;
    domain.entry_from(entry(&spiffe_id("/node"), "/again", &["uid:1"])).await.unwrap();
}

/// What gRPC health says, with the reason if it is a no.
async fn healthy(domain: &Domain) -> Result<(), String> {
    let mut client = HealthClient::new(domain.admin().await.unwrap());
    let answer = client.check(HealthCheckRequest { service: String::new() }).await.unwrap();
    let reason = answer.metadata().get(HEALTH_REASON_HEADER).map(|r| r.to_str().unwrap().to_owned());
    match ServingStatus::try_from(answer.get_ref().status).unwrap() {
        ServingStatus::Serving => {
            assert_eq!(reason, None);
            Ok(())
        }
        _ => Err(reason.unwrap()),
    }
}

fn fetch(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn get(port: u16, path: &str) -> (u16, serde_json::Value) {
    let (status, body) = fetch(port, path);
    (status, serde_json::from_str(&body).unwrap())
}

fn gauge(port: u16, part: &str) -> i64 {
    let (_, text) = fetch(port, "/metrics");
    let start = format!("countersign_server_healthy{{part=\"{part}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
}
