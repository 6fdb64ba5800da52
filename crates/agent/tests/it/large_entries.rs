//! Entries as large as an entry may be: they come with the stream like any other, and are served.

use std::sync::Arc;

use countersign_identity::entry::{DNS_NAMES_MAX, ENTRY_BYTES_MAX, FEDERATES_WITH_MAX, HINT_BYTES_MAX};
use countersign_identity::id::SPIFFE_ID_BYTES_MAX;
use countersign_identity::x509::Certificate;
use countersign_transport::clock::SystemClock;
use countersign_wire::types;
use prost::Message as _;

use crate::support::{Foreign, World, next_with};

/// Selectors that leave no room for one more.
fn selectors() -> Vec<types::Selector> {
    let of = |n: usize, bytes: usize| types::Selector { r#type: "unix".to_owned(), value: format!("{n:0>bytes$}") };
    (0..32).map(|n| of(n, 8100)).chain([of(99, 2000)]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_entries_reach_the_agent_and_the_one_with_the_longest_names_is_served() {
    let mut world = World::without_agent(Arc::new(SystemClock), "").await;
    // Twice what fits into a message, and what the workload needs beside it: all of it comes when the agent joins.
    for n in 0..32 {
        let entry = world.entry_with(&format!("/large/{n}"), |e| e.selectors = selectors()).await;
        assert!(entry.encoded_len() > ENTRY_BYTES_MAX - 1000, "{}", entry.encoded_len());
    }
    let foreign = Foreign::new("other.org");
    let names: Vec<String> = (0..FEDERATES_WITH_MAX).map(|n| format!("{n:0>255}")).collect();
    for name in &names {
        world.set_bundle(types::Bundle { trust_domain: name.clone(), ..foreign.bundle() }).await;
    }
    let path = format!("/{}", "p".repeat(SPIFFE_ID_BYTES_MAX - "spiffe://example.org/".len()));
    let dns_names: Vec<String> = (0..DNS_NAMES_MAX).map(|n| format!("{n:0>63}.{n:0>63}")).collect();
    let entry = world
        .entry_with(&path, |e| {
            e.hint = "h".repeat(HINT_BYTES_MAX);
            e.dns_names.clone_from(&dns_names);
            e.federates_with.clone_from(&names);
        })
        .await;
    let config = world.config(true, "").await;
    world.run(&config).await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    let served = next_with(&mut stream, |m| m.federated_bundles.len() == names.len()).await;
    let svid = &served.svids[0];
    assert_eq!((&svid.spiffe_id, &svid.hint), (&format!("spiffe://example.org{path}"), &entry.hint));
    assert_eq!(Certificate::parse_concatenated(&svid.x509_svid).unwrap()[0].dns_names, dns_names);
}
