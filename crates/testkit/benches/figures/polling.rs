//! A fleet of SPIRE's agents that poll: the calls that one was seen to make, as often as it was seen to make them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_testkit::domain::spiffe_id;
use countersign_transport::client;
use countersign_transport::random::{Random as _, Seeded};
use countersign_wire::bundle_api::GetBundleRequest;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::{BatchCreateEntryRequest, SyncAuthorizedEntriesRequest};
use countersign_wire::types::EntryMask;
use rustls::ClientConfig;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::load::{self, Target};
use crate::measure;
use crate::process::Product;

const AGENTS: usize = 1000;
const ENTRIES: usize = 20;
/// Between one `SyncAuthorizedEntries` with one `GetBundle` and the next pair: SPIRE's agent 1.16 made these calls and no
/// others while nothing changed, after 4.4 to 5.1 seconds, 4.8 on average.
const PAUSE_MIN: Duration = Duration::from_millis(4400);
const PAUSE_SPREAD: Duration = Duration::from_millis(700);
/// Each connection is asked to go at this age, and each agent comes again.
const CONNECTION_AGE: Duration = Duration::from_secs(180);
/// How long the server is watched.
const ROUND: Duration = Duration::from_secs(30);

/// What SPIRE's agent asks of each entry.
const MASK: EntryMask = EntryMask {
    spiffe_id: true,
    parent_id: false,
    selectors: true,
    x509_svid_ttl: false,
    federates_with: true,
    admin: true,
    downstream: true,
    expires_at: false,
    dns_names: false,
    revision_number: true,
    store_svid: true,
    jwt_svid_ttl: false,
    hint: true,
    created_at: true,
    additional_attributes: true,
};

/// The share of a core that the fleet costs the server, with the calls of the round.
pub async fn share(product: &Product) -> (f64, usize) {
    let target = product.target(load::Kind::Attest);
    let fleet = join(&target).await;
    let until = Instant::now() + Duration::from_secs(8) + ROUND;
    let mut polling = JoinSet::new();
    for (number, config) in fleet.into_iter().enumerate() {
        polling.spawn(poll(target.port, Arc::new(config), Seeded::new(number as u64), until));
    }
    // Until all have connected and asked once.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let (cpu, begun) = (measure::cpu(product.server_pid()), Instant::now());
    let calls: usize = polling.join_all().await.into_iter().sum();
    let (cpu, wall) = (measure::cpu(product.server_pid()) - cpu, begun.elapsed());
    (cpu.as_secs_f64() / wall.as_secs_f64(), calls)
}

/// One agent: how many calls it made in the round.
async fn poll(port: u16, config: Arc<ClientConfig>, random: Seeded, until: Instant) -> usize {
    let connect = async || client::tls("127.0.0.1", port, Arc::clone(&config)).await.unwrap();
    tokio::time::sleep(PAUSE_MIN.mul_f64(random.fraction())).await;
    let (mut channel, mut calls) = (connect().await, 0);
    while Instant::now() < until {
        ask(channel.clone()).await;
        if until.saturating_duration_since(Instant::now()) < ROUND {
            calls += 2;
        }
        let pause = PAUSE_MIN + PAUSE_SPREAD.mul_f64(random.fraction());
        tokio::time::sleep(pause).await;
        if random.fraction() < pause.as_secs_f64() / CONNECTION_AGE.as_secs_f64() {
            channel = connect().await;
        }
    }
    calls
}

async fn ask(channel: Channel) {
    let (asked, asks) = tokio::sync::mpsc::channel(1);
    asked.send(SyncAuthorizedEntriesRequest { output_mask: Some(MASK), ids: Vec::new() }).await.unwrap();
    let mut client = EntryClient::new(channel.clone());
    let mut answers = client.sync_authorized_entries(tokio_stream::wrappers::ReceiverStream::new(asks)).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().entries.len(), ENTRIES);
    drop(asked);
    assert!(answers.message().await.unwrap().is_none());
    BundleClient::new(channel).get_bundle(GetBundleRequest::default()).await.unwrap();
}

/// The fleet, with its entries.
async fn join(target: &Target) -> Vec<ClientConfig> {
    let admin = target.admin.as_ref().unwrap();
    let tokens = load::make_tokens(admin, AGENTS).await;
    let mut entries = EntryClient::new(client::unix(admin).await.unwrap());
    let mut fleet = Vec::new();
    for token in tokens {
        let (node, config) = load::joined_with(target, &token).await;
        let of_node = (0..ENTRIES).map(|n| load::entry(&node, &spiffe_id(&format!("/w/{n}")), &format!("unix:uid:{n}"))).collect();
        let request = BatchCreateEntryRequest { entries: of_node, output_mask: None };
        let made = entries.batch_create_entry(request).await.unwrap().into_inner().results;
        assert!(made.iter().all(|r| r.status.as_ref().is_some_and(|s| s.code == 0)));
        fleet.push(config);
    }
    fleet
}
