//! What strangers, agents and local callers can cost the server, and that others are served meanwhile.

use countersign_transport::limits::ANONYMOUS_PER_ADDRESS_MAX;
use countersign_wire::bundle_api::GetBundleRequest;
use countersign_wire::bundle_api::bundle_client::BundleClient;

use crate::world::{self, Domain};

#[tokio::test]
async fn an_address_holds_a_bounded_number_of_connections_without_certificate() {
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    let served = async |channel| BundleClient::new(channel).get_bundle(GetBundleRequest::default()).await.is_ok();
    let mut held = Vec::new();
    // The node's own has gone by now, or will: no more than the limit are let in, and no fewer once it has.
    let full = async || {
        let channel = domain.connect(None).await.ok()?;
        let is_served = served(channel.clone()).await;
        is_served.then_some(channel)
    };
    while held.len() < ANONYMOUS_PER_ADDRESS_MAX {
        held.push(world::until("a place", &full).await.unwrap());
    }
    assert!(full().await.is_none(), "one more is let in");
    // Whoever has a certificate does not stand in that line.
    assert!(served(domain.connect(Some(&node)).await.unwrap()).await);
    drop(held.pop());
    world::until("the place that was given back", &full).await.unwrap();
}
