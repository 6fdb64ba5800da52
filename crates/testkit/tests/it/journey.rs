//! The map of one call in ARCHITECTURE.md against a real one: the same hops in the same order, each in a
//! file that is there and has the function named.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use countersign_testkit::domain::{Domain, own_uid, spiffe_id, until};
use countersign_testkit::workload::Workload;
use countersign_wire::{id, types};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// What was said so far, as `crate/module`.
static HOPS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn take() -> Vec<String> {
    let mut hops = std::mem::take(&mut *HOPS.lock().unwrap_or_else(PoisonError::into_inner));
    hops.dedup();
    hops
}

/// Hears hops and nothing else.
struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.fields().field("hop").is_some()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut room = Room(event.metadata().target().to_owned());
        event.record(&mut room);
        HOPS.lock().unwrap_or_else(PoisonError::into_inner).push(room.0.trim_start_matches("countersign_").replace("::", "/"));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The module that speaks, or the one of the type it names in its place.
struct Room(String);

impl Visit for Room {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "room" {
            let path = value.split('<').next().unwrap();
            self.0 = path.rsplit_once("::").unwrap().0.to_owned();
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

/// The text of a room's module.
fn source(path: &Path) -> Option<String> {
    let file = path.with_extension("rs");
    if file.is_file() {
        return Some(std::fs::read_to_string(file).unwrap());
    }
    std::fs::read_to_string(path.join("mod.rs")).ok()
}

/// The hops that the numbered list names, in its order. What is quoted without a slash is a function of the hop before.
fn listed() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let section = text.split("## The journey of one `FetchX509SVID`").nth(1).expect("the section").split("\n## ").next().unwrap();
    let steps = section.lines().filter(|line| line.split_once(". ").is_some_and(|(number, _)| number.parse::<u32>().is_ok()));
    let mut hops: Vec<String> = Vec::new();
    let mut functions = 0;
    for quoted in steps.flat_map(|step| step.split('`').skip(1).step_by(2)) {
        let hop = if quoted.contains('/') { quoted } else { hops.last().expect("a hop before its function") };
        let (room, module) = hop.split_once('/').unwrap();
        let text = source(&root.join("crates").join(room).join("src").join(module)).unwrap_or_else(|| panic!("`{hop}` is no module"));
        if quoted == hop {
            hops.push(quoted.to_owned());
        } else {
            let found = ["(", "<"].iter().any(|after| text.contains(&format!("fn {quoted}{after}")));
            assert!(found, "`{hop}` has no function `{quoted}`");
            functions += 1;
        }
    }
    assert!(functions >= hops.len(), "a hop names no function");
    hops
}

/// Hops of the connection, which is older than the call.
const OF_THE_CONNECTION: [&str; 2] = ["transport/tls", "transport/tcp"];

#[tokio::test(flavor = "multi_thread")]
async fn the_journey_of_one_fetch_is_the_one_that_the_architecture_describes() {
    tracing::subscriber::set_global_default(Listener).unwrap();
    let listed = listed();
    assert!(listed.len() > 15, "{listed:?}");

    let domain = Domain::start().await.unwrap();
    let lazy = types::entry::AdditionalAttributes { disable_x509_svid_prefetch: true, ..types::entry::AdditionalAttributes::default() };
    let entry = types::Entry {
        spiffe_id: Some(id::to_wire(&spiffe_id("/web"))),
        parent_id: Some(id::to_wire(&spiffe_id("/node/a"))),
        selectors: id::selectors_to_wire(&[own_uid()]),
        additional_attributes: Some(lazy),
        ..types::Entry::default()
    };
    domain.entry_from(entry).await.unwrap();
    let _agent = domain.agent("a").await.unwrap();
    let socket = domain.directory().join("a/agent.sock");
    // Not by a stream: for one that waits, the SVID would be fetched before the call.
    let health = HealthClient::new(Workload::connect(&socket).await.unwrap().channel);
    let knows = async || health.clone().check(HealthCheckRequest::default()).await.ok().filter(|a| a.get_ref().status == 1);
    until("the agent knows the entry", knows).await.unwrap();
    let before = take();
    for hop in OF_THE_CONNECTION {
        assert!(listed.iter().any(|l| l == hop) && before.iter().any(|b| b == hop), "{hop} is not in {before:#?}");
    }

    let answer = Workload::connect(&socket).await.unwrap().x509_svid().await.unwrap();
    assert_eq!(answer.svids.len(), 1);
    let made = take();
    let wanted: Vec<&String> = listed.iter().filter(|hop| !OF_THE_CONNECTION.contains(&hop.as_str())).collect();
    // A room with several files may speak from any of them.
    let same = made.len() == wanted.len() && made.iter().zip(&wanted).all(|(made, wanted)| Path::new(made).starts_with(wanted));
    assert!(same, "the call made the hops\n{made:#?}\nand ARCHITECTURE.md lists\n{wanted:#?}");
}
