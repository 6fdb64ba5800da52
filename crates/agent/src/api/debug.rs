//! What a running agent says about itself.

use std::sync::Arc;

use countersign_identity::x509::{Certificate, verify_chain};
use countersign_identity::{Bundle, BundleSet};
use countersign_wire::agent_debug::{self, debug_server, get_info_response};
use countersign_wire::id;
use tonic::{Request, Response, Status};

use super::{Admin, Api};

#[tonic::async_trait]
impl debug_server::Debug for Admin {
    async fn get_info(&self, _: Request<agent_debug::GetInfoRequest>) -> Result<Response<agent_debug::GetInfoResponse>, Status> {
        let api = self.api()?;
        let chain = api.proven_chain().map_err(|reason| {
            tracing::error!(error = reason, "Failed to verify agent SVID");
            Status::internal(format!("failed to verify agent SVID: {reason}"))
        })?;
        let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let svid_chain = chain.iter().map(|certificate| get_info_response::Cert {
            id: certificate.spiffe_id().map(|id| id::to_wire(&id)),
            expires_at: certificate.not_after.secs(),
            subject: certificate.subject_text.clone(),
        });
        let held = count(api.cache.svids_held());
        #[expect(deprecated, reason = "SPIRE fills it still, and its test suites read it")]
        Ok(Response::new(agent_debug::GetInfoResponse {
            svid_chain: svid_chain.collect(),
            uptime: i32::try_from(self.uptime().as_secs()).unwrap_or(i32::MAX),
            svids_count: held,
            last_sync_success: api.sync.last_contact().secs(),
            cached_x509_svids_count: held,
            cached_jwt_svids_count: count(api.jwts.held()),
            // No plugin stores SVIDs yet.
            cached_svidstore_x509_svids_count: 0,
        }))
    }
}

impl Api {
    /// The agent's own chain, up to and with the root that proves it.
    fn proven_chain(&self) -> Result<Vec<Certificate>, String> {
        let svid = self.sync.svid().ok_or("the agent has none")?;
        let bundles = self.cache.bundles();
        let own = bundles.get(self.trust_domain.name()).ok_or("the agent does not know its trust domain's bundle yet")?;
        let (now, mut reason) = (self.clock.now(), "the bundle of the trust domain is empty".to_owned());
        for authority in own.x509_authorities() {
            let mut alone = Bundle::empty(self.trust_domain.clone());
            alone.add_x509_authority(authority.certificate.clone(), authority.tainted).map_err(|e| e.to_string())?;
            match verify_chain(&svid.chain, &BundleSet::from_iter([Arc::new(alone)]), now) {
                Ok(_) => {
                    let chain = svid.chain.iter().filter_map(|der| Certificate::parse(der).ok());
                    return Ok(chain.chain([authority.certificate.clone()]).collect());
                }
                Err(error) => reason = error.to_string(),
            }
        }
        Err(reason)
    }
}
