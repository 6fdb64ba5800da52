//! What a running server says about itself.

use std::sync::Arc;

use countersign_identity::BundleSet;
use countersign_identity::x509::{Certificate, verify_chain_any};
use countersign_wire::debug::{self, debug_server, get_info_response};
use countersign_wire::id;
use tonic::{Request, Response, Status};

use super::Api;

#[tonic::async_trait]
impl debug_server::Debug for Api {
    async fn get_info(&self, _: Request<debug::GetInfoRequest>) -> Result<Response<debug::GetInfoResponse>, Status> {
        let snapshot = self.store.snapshot();
        let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let chain = self.own.chain();
        // Up to and with the root that proves it; without one while the bundle does not have it.
        let own = BundleSet::from_iter(snapshot.bundle(self.trust_domain.name()).map(Arc::clone));
        let root = verify_chain_any(&chain, &own, self.clock.now()).ok().map(|(_, _, root)| root);
        let svid_chain = chain.iter().filter_map(|der| Certificate::parse(der).ok()).chain(root).map(|c| get_info_response::Cert {
            id: c.spiffe_id().map(|i| id::to_wire(&i)),
            expires_at: c.not_after.secs(),
            subject: c.subject_text.clone(),
        });
        Ok(Response::new(debug::GetInfoResponse {
            svid_chain: svid_chain.collect(),
            uptime: i32::try_from(self.clock.now().since(self.started_at).as_secs()).unwrap_or(i32::MAX),
            agents_count: count(snapshot.nodes_count()),
            entries_count: count(snapshot.entries_count()),
            // With the own one among them, as SPIRE counts.
            federated_bundles_count: count(snapshot.bundles().iter().count()),
        }))
    }
}
