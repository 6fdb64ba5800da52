//! Where the trust bundle comes from at the first contact: each source works, and one that hangs, is huge or empty is tried
//! again until it is good.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign_testkit::clock::VirtualClock;
use countersign_testkit::domain::{agent_configuration, until};
use countersign_transport::clock::SystemClock;
use countersign_transport::random::Seeded;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use crate::support::{PATIENCE, World};

/// The configuration of another agent, `b`, with another source.
async fn config(world: &World, lines: &str) -> countersign_agent::Config {
    let token = world.domain.token(None).await.unwrap();
    let text = agent_configuration(&directory(world), world.domain.port(), Some(&token), lines);
    let text: Vec<&str> = text.lines().filter(|l| !l.contains("trust_bundle_path")).collect();
    countersign_agent::Config::read(countersign_config::parse("agent.conf", &text.join("\n")).unwrap()).unwrap()
}

fn directory(world: &World) -> PathBuf {
    let directory = world.domain.directory().join("b");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// A service that answers each request with what `answer` makes of its head; no answer at all where it makes nothing.
fn serve(socket: &Path, answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) {
    let (listener, answer) = (UnixListener::bind(socket).unwrap(), Arc::new(answer));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                match answer(&String::from_utf8_lossy(&head)) {
                    Some(bytes) => stream.write_all(&bytes).await,
                    None => std::future::pending().await,
                }
            });
        }
    });
}

fn page(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn through(socket: &Path) -> String {
    format!("trust_bundle_url = \"http://localhost/bundle?site=here\"\n trust_bundle_unix_socket = \"{}\"", socket.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_on_a_unix_socket_is_told_who_asks_and_believed() {
    let world = World::without_agent(Arc::new(SystemClock), "").await;
    let bundle = world.domain.bundle().await.unwrap();
    for (format, body) in [("pem", bundle.to_pem()), ("spiffe", bundle.to_jwks().to_string())] {
        let socket = directory(&world).join(format!("{format}.sock"));
        let asked = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&asked);
        serve(&socket, move |head| {
            head.clone_into(&mut heard.lock().unwrap());
            Some(page(body.as_bytes()))
        });
        let config = config(&world, &format!("{}\n trust_bundle_format = \"{format}\"", through(&socket))).await;
        world.domain.run_agent(&config).await.unwrap().stop().await;
        let asked = asked.lock().unwrap().clone();
        let port = world.domain.port();
        let (first, rest) = asked.split_once("&spire-attest-start-time=").unwrap();
        assert_eq!(first, "GET /bundle?site=here&spire-attest-mode=bootstrap&spire-connection-attempts=1");
        let behind = format!("&spire-server-address=127.0.0.1&spire-server-port={port}&spiffe-trust-domain=example.org HTTP/1.1\r\n");
        assert!(rest.contains(&behind), "{rest}");
        assert!(asked.to_lowercase().contains("\r\nhost: localhost\r\n"), "{asked}");
        std::fs::remove_file(directory(&world).join("agent-data.json")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hangs_is_huge_or_is_empty_is_asked_again_until_it_is_good() {
    let clock = VirtualClock::at_present();
    let world = World::without_agent(Arc::new(clock.clone()), "").await;
    let pem = world.domain.bundle().await.unwrap().to_pem();
    let socket = directory(&world).join("bundle.sock");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    serve(&socket, move |head| {
        let mut heard = heard.lock().unwrap();
        heard.push(head.to_owned());
        match heard.len() {
            1 => None,
            2 => Some(page(&vec![b'x'; 64 << 20])),
            3 => Some(page(b"")),
            4 => Some(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()),
            5 => Some(page(b"no bundle")),
            6 => Some(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n".to_vec()),
            _ => Some(page(pem.as_bytes())),
        }
    });
    let config = config(&world, &through(&socket)).await;
    let starting = async { countersign_agent::start(&config, Arc::new(clock.clone()), Arc::new(Seeded::new(1)), "test").await.unwrap() };
    let ticking = async {
        loop {
            clock.advance(Duration::from_millis(50));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let agent = tokio::select! {
        agent = tokio::time::timeout(PATIENCE, starting) => agent.expect("it starts in time"),
        () = ticking => unreachable!("it never ends"),
    };
    agent.stop().await;
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 7, "{asked:?}");
    assert!(asked[5].contains("spire-connection-attempts=6&"), "{}", asked[5]);
    assert!(asked[6].starts_with("GET /elsewhere HTTP/1.1"), "{}", asked[6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_workload_api_gives_the_bundle() {
    let world = World::start().await;
    let lines = format!("trust_bundle_spiffe_workload_api = \"unix://{}\"", world.socket().display());
    let config = config(&world, &lines).await;
    let starting =
        tokio::spawn(async move { countersign_agent::start(&config, Arc::new(SystemClock), Arc::new(Seeded::new(2)), "test").await });
    // It denies this process as long as it has no identity for it; then it is asked again.
    world.entry("/web").await;
    let agent = tokio::time::timeout(PATIENCE, starting).await.expect("in time").unwrap().unwrap();
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_agent_joins_its_health_is_told_and_then_its_metrics() {
    let world = World::without_agent(Arc::new(SystemClock), "").await;
    let socket = directory(&world).join("nobody.sock");
    // Addresses of this machine that nobody listens on by default.
    let free = |host| std::net::TcpListener::bind((host, 0)).unwrap().local_addr().unwrap();
    let (health_at, metrics_at): (SocketAddr, SocketAddr) = (free("127.0.0.2"), free("127.0.0.3"));
    let token = world.domain.token(None).await.unwrap();
    let text = agent_configuration(&directory(&world), world.domain.port(), Some(&token), &through(&socket));
    let text: Vec<&str> = text.lines().filter(|l| !l.contains("trust_bundle_path")).collect();
    let health = format!(
        "\nhealth_checks {{\n listener_enabled = true\n bind_address = \"127.0.0.2\"\n bind_port = \"{}\"\n live_path = \"/l\"\n ready_path = \"/r\"\n}}\n\
         telemetry {{\n Prometheus {{\n host = \"127.0.0.3\"\n port = {}\n }}\n}}\n",
        health_at.port(),
        metrics_at.port()
    );
    let config = countersign_agent::Config::read(countersign_config::parse("agent.conf", &(text.join("\n") + &health)).unwrap()).unwrap();
    let starting =
        tokio::spawn(async move { countersign_agent::start(&config, Arc::new(SystemClock), Arc::new(Seeded::new(2)), "test").await });
    let get_from = |address: SocketAddr, path: &'static str| async move {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.get(9..12)?.to_owned(), body.to_owned()))
    };
    let get = |path| get_from(health_at, path);
    let live = until("it answers", || get("/l")).await.unwrap();
    assert_eq!(live, ("200".to_owned(), "{\"agent\":{}}".to_owned()));
    let (code, body) = get("/r").await.unwrap();
    assert!(code == "500" && body.starts_with("{\"agent\":{\"make_new_x509_err\":\""), "{code} {body}");
    serve(&socket, {
        let pem = world.domain.bundle().await.unwrap().to_pem();
        move |_| Some(page(pem.as_bytes()))
    });
    let ready = until("it is ready", || async { get("/r").await.filter(|(code, _)| code == "200") }).await.unwrap();
    assert_eq!(ready.1, "{\"agent\":{}}");
    let agent = starting.await.unwrap().unwrap();
    let (code, metrics) = get_from(metrics_at, "/metrics").await.unwrap();
    assert!(code == "200" && metrics.contains("countersign_agent_"), "{code} {metrics}");
    agent.stop().await;
}
