//! Attested nodes: listing, banning, evicting, renewing, and making join tokens.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::csr::Csr;
use countersign_identity::{SpiffeId, entry as entry_rules};
use countersign_plugins::node::join_token;
use countersign_store::{Change, JoinToken, Node};
use countersign_transport::tcp::TlsIdentity;
use countersign_wire::agent::{self, agent_server};
use countersign_wire::types::permission_denied_details::Reason;
use countersign_wire::{id, mask, types};
use tonic::{Request, Response, Status, Streaming};

use super::access::{self, About};
use super::filter::{self, SetMatch};
use super::{Api, attest, status};
use crate::policy::{Allowed, Caller};
use crate::ratelimit;

/// Longest agent version kept, in bytes; SPIRE's limit.
const AGENT_VERSION_BYTES_MAX: usize = 255;

#[tonic::async_trait]
impl agent_server::Agent for Api {
    async fn count_agents(&self, request: Request<agent::CountAgentsRequest>) -> Result<Response<agent::CountAgentsResponse>, Status> {
        let caller = Self::caller(&request)?;
        let filter = match request.into_inner().filter {
            None => AgentFilter::default(),
            Some(f) => AgentFilter::new(&agent::list_agents_request::Filter {
                by_attestation_type: f.by_attestation_type,
                by_selector_match: f.by_selector_match,
                by_banned: f.by_banned,
                by_can_reattest: f.by_can_reattest,
                by_expires_before: f.by_expires_before,
            })
            .map_err(|e| status::invalid_plain(&caller, &e))?,
        };
        let snapshot = self.store.snapshot();
        let count = snapshot.nodes_after(None).filter(|n| filter.matches(n)).count();
        Ok(Response::new(agent::CountAgentsResponse { count: i32::try_from(count).unwrap_or(i32::MAX) }))
    }

    async fn list_agents(&self, request: Request<agent::ListAgentsRequest>) -> Result<Response<agent::ListAgentsResponse>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        let filter = request.filter.as_ref().map_or(Ok(AgentFilter::default()), AgentFilter::new);
        let filter = filter.map_err(|e| status::invalid_plain(&caller, &e))?;
        let start = match request.page_token.as_str() {
            "" => None,
            token => Some(SpiffeId::parse(token).map_err(|e| status::invalid(&caller, "malformed page token", e))?),
        };
        let snapshot = self.store.snapshot();
        let matching = snapshot.nodes_after(start.as_ref()).filter(|n| filter.matches(n));
        let show = |node: &Arc<Node>| mask::agent(self.to_wire(node), request.output_mask.as_ref());
        let (agents, next_page_token) = filter::page(matching, request.page_size, |n| n.id.as_str().to_owned(), show)?;
        Ok(Response::new(agent::ListAgentsResponse { agents, next_page_token }))
    }

    async fn get_agent(&self, request: Request<agent::GetAgentRequest>) -> Result<Response<types::Agent>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        let agent_id = self.agent_id(&caller, request.id.as_ref())?;
        let snapshot = self.store.snapshot();
        let node = snapshot.node(&agent_id).ok_or_else(|| Status::not_found("agent not found"))?;
        Ok(Response::new(mask::agent(self.to_wire(node), request.output_mask.as_ref())))
    }

    async fn delete_agent(&self, request: Request<agent::DeleteAgentRequest>) -> Result<Response<()>, Status> {
        let caller = Self::caller(&request)?;
        let agent_id = self.agent_id(&caller, request.get_ref().id.as_ref())?;
        let wanted = agent_id.clone();
        let found = self
            .store
            .write(caller.actor(), move |draft| {
                if draft.snapshot().node(&wanted).is_none() {
                    return Ok(false);
                }
                draft.change(Change::NodeDelete(wanted.clone()));
                draft.seen_delete(&wanted)?;
                // The alias that the node's join token created goes with the node.
                for alias in attest::alias_entries(draft.snapshot(), &wanted) {
                    draft.change(Change::EntryDelete(alias));
                }
                Ok(true)
            })
            .await
            .map_err(|e| status::store(&e))?;
        if !found {
            return Err(Status::not_found("agent not found"));
        }
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&agent_id);
        tracing::info!(agent_id = %agent_id, caller = %caller.actor(), "Agent deleted");
        Ok(Response::new(()))
    }

    async fn ban_agent(&self, request: Request<agent::BanAgentRequest>) -> Result<Response<()>, Status> {
        let caller = Self::caller(&request)?;
        let agent_id = self.agent_id(&caller, request.get_ref().id.as_ref())?;
        let wanted = agent_id.clone();
        let found = self
            .store
            .write(caller.actor(), move |draft| {
                let Some(node) = draft.snapshot().node(&wanted) else { return Ok(false) };
                let banned = Node { serial_number: String::new(), new_serial_number: String::new(), ..Node::clone(node) };
                draft.change(Change::NodePut(Arc::new(banned)));
                Ok(true)
            })
            .await
            .map_err(|e| status::store(&e))?;
        if !found {
            return Err(Status::not_found("agent not found"));
        }
        tracing::info!(agent_id = %agent_id, caller = %caller.actor(), "Agent banned");
        Ok(Response::new(()))
    }

    type AttestAgentStream = attest::Answers;

    async fn attest_agent(
        &self,
        request: Request<Streaming<agent::AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let caller = Self::caller(&request)?;
        let patience = ratelimit::patience(request.metadata());
        self.rate_limits.attestation(caller.proof.address(), patience).await.map_err(|e| self.over_limit(&caller, e))?;
        Ok(Response::new(attest::start(self.clone(), caller, request.into_inner()).await?))
    }

    async fn renew_agent(&self, request: Request<agent::RenewAgentRequest>) -> Result<Response<agent::RenewAgentResponse>, Status> {
        let caller = Self::caller(&request)?;
        let identity = Self::agent(&request)?;
        let patience = ratelimit::patience(request.metadata());
        self.rate_limits.renewal(&identity.spiffe_id, patience).await.map_err(|e| self.over_limit(&caller, e))?;
        let api = self.clone();
        // In a task of its own: once the renewal is durable it runs to its end, even if the agent hangs up.
        let renewal = tokio::spawn(async move { api.renew(&caller, &identity, request.into_inner()).await });
        renewal.await.map_err(|_| Status::unavailable("the server is shutting down"))?.map(Response::new)
    }

    async fn create_join_token(&self, request: Request<agent::CreateJoinTokenRequest>) -> Result<Response<types::JoinToken>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        caller.access.about(|| About { ttl: Some(request.ttl), ..About::default() });
        let ttl = match u64::try_from(request.ttl) {
            Ok(0) | Err(_) => return Err(status::invalid_plain(&caller, "ttl is required, you must provide one")),
            Ok(secs) => Duration::from_secs(secs),
        };
        let alias = match &request.agent_id {
            None => None,
            Some(wanted) => {
                let alias = id::from_wire(Some(wanted)).map_err(|e| status::invalid(&caller, "invalid agent ID", e))?;
                caller.access.about(|| About { ttl: Some(request.ttl), ..About::spiffe_id(alias.as_str()) });
                entry_rules::check_spiffe_id(&alias, &self.trust_domain).map_err(|e| status::invalid(&caller, "invalid agent ID", e))?;
                Some(alias)
            }
        };
        let value = if request.token.is_empty() { uuid::Uuid::new_v4().to_string() } else { request.token };
        join_token::check(&value).map_err(|e| status::invalid(&caller, "invalid token", e))?;
        let now = self.clock.now();
        let expires_at = now.after(ttl);
        let hash = join_token::hash(&value);
        let token = JoinToken { hash, expires_at, alias };
        let added = self.store.write(caller.actor(), move |draft| draft.token_add(&token)).await.map_err(|e| status::store(&e))?;
        if !added {
            return Err(Status::already_exists("failed to create token: it exists already"));
        }
        self.attested.await_secret(hash, expires_at, now);
        Ok(Response::new(types::JoinToken { value, expires_at: expires_at.secs() }))
    }

    async fn post_status(&self, request: Request<agent::PostStatusRequest>) -> Result<Response<agent::PostStatusResponse>, Status> {
        let caller = Self::caller(&request)?;
        let agent_id = Self::agent(&request)?.spiffe_id.clone();
        let patience = ratelimit::patience(request.metadata());
        self.rate_limits.status(&agent_id, patience).await.map_err(|e| self.over_limit(&caller, e))?;
        let version = request.into_inner().agent_version;
        caller.access.about(|| About { agent_version: Some(access::short(&version)), ..About::spiffe_id(agent_id.as_str()) });
        if version.len() > AGENT_VERSION_BYTES_MAX {
            return Err(status::invalid_plain(&caller, "agent version is too long"));
        }
        self.saw(&agent_id, Some(&version));
        Ok(Response::new(agent::PostStatusResponse {}))
    }
}

impl Api {
    /// An ID that can be an agent's in this trust domain.
    fn agent_id(&self, caller: &Caller, wanted: Option<&types::Spiffeid>) -> Result<SpiffeId, Status> {
        let agent_id = id::from_wire(wanted).map_err(|e| status::invalid(caller, "invalid agent ID", e))?;
        caller.access.about(|| About::spiffe_id(agent_id.as_str()));
        if !agent_id.is_member_of(&self.trust_domain) {
            let cause = format!("`{agent_id}` is not a member of trust domain `{}`", self.trust_domain);
            return Err(status::invalid(caller, "invalid agent ID", cause));
        }
        if !agent_id.is_agent() {
            return Err(status::invalid(caller, "invalid agent ID", format!("`{agent_id}` is not below /spire/agent/")));
        }
        Ok(agent_id)
    }

    fn to_wire(&self, node: &Node) -> types::Agent {
        let seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        types::Agent {
            id: Some(id::to_wire(&node.id)),
            attestation_type: node.attestation_type.to_string(),
            x509svid_serial_number: node.serial_number.clone(),
            x509svid_expires_at: node.expires_at.secs(),
            selectors: id::selectors_to_wire(&node.selectors),
            banned: node.is_banned(),
            can_reattest: node.can_reattest,
            agent_version: seen.get(&node.id).map(|s| s.version.clone()).unwrap_or_default(),
        }
    }

    async fn renew(
        &self,
        caller: &Caller,
        identity: &TlsIdentity,
        request: agent::RenewAgentRequest,
    ) -> Result<agent::RenewAgentResponse, Status> {
        let agent_id = identity.spiffe_id.clone();
        let not_attested = || status::denied(Reason::AgentNotAttested, "agent is not attested");
        let snapshot = self.store.snapshot();
        let node = snapshot.node(&agent_id).ok_or_else(not_attested)?;
        if node.can_reattest {
            return Err(status::denied(Reason::AgentMustReattest, "agent must reattest instead of renew"));
        }
        let params = request.params.ok_or_else(|| status::invalid_plain(caller, "params cannot be nil"))?;
        if params.csr.is_empty() {
            return Err(status::invalid_plain(caller, "missing CSR"));
        }
        caller.access.about(|| About { csr: access::hash(&params.csr), ..About::default() });
        let csr = Csr::parse(&params.csr).map_err(|e| status::invalid(caller, "malformed CSR", e))?;
        let allowed = Allowed::agent(&agent_id, node.selectors.clone(), caller.actor(), &self.lifetimes.load());
        let issued = self.authorities.issue_one_x509(allowed, csr.public_key).await.map_err(|e| status::issue(&e))?;
        let (serial_number, expires_at) = (issued.serial_number.clone(), issued.expires_at);
        let wanted = agent_id.clone();
        let used = identity.serial_number.clone();
        let renewed = self
            .store
            .write(caller.actor(), move |draft| {
                let Some(node) = draft.snapshot().node(&wanted) else { return Ok(false) };
                // Only the SVID that counts now can be renewed, however long ago the call was let in.
                if node.is_banned() || node.serial_number != used {
                    return Ok(false);
                }
                let renewed = Node { new_serial_number: serial_number.clone(), new_expires_at: expires_at, ..Node::clone(node) };
                draft.change(Change::NodePut(Arc::new(renewed)));
                Ok(true)
            })
            .await
            .map_err(|e| status::store(&e))?;
        if !renewed {
            return Err(status::denied(Reason::AgentNotActive, "the agent's SVID counts no longer"));
        }
        self.metrics.issued("agent_x509", 1);
        Ok(agent::RenewAgentResponse { svid: Some(attest::svid(&agent_id, issued)) })
    }
}

/// Which agents a listing wants.
#[derive(Debug, Default)]
struct AgentFilter {
    attestation_type: Option<String>,
    selectors: Option<SetMatch<countersign_identity::Selector>>,
    banned: Option<bool>,
    can_reattest: Option<bool>,
    expires_before: Option<i64>,
}

impl AgentFilter {
    fn new(filter: &agent::list_agents_request::Filter) -> Result<Self, String> {
        let selectors = filter.by_selector_match.as_ref().map(filter::selectors).transpose();
        let expires_before =
            match filter.by_expires_before.as_str() {
                "" => None,
                text => Some(parse_time(text).ok_or_else(|| {
                    format!("malformed expires before filter: `{text}` is not of the form `2006-01-02 15:04:05 -0700 -07`")
                })?),
            };
        Ok(Self {
            attestation_type: (!filter.by_attestation_type.is_empty()).then(|| filter.by_attestation_type.clone()),
            selectors: selectors.map_err(|e| format!("malformed selectors filter: {e}"))?,
            banned: filter.by_banned,
            can_reattest: filter.by_can_reattest,
            expires_before,
        })
    }

    fn matches(&self, node: &Node) -> bool {
        self.attestation_type.as_ref().is_none_or(|wanted| **wanted == *node.attestation_type)
            && self.banned.is_none_or(|wanted| wanted == node.is_banned())
            && self.can_reattest.is_none_or(|wanted| wanted == node.can_reattest)
            && self.expires_before.is_none_or(|before| node.expires_at.secs() < before)
            && self.selectors.as_ref().is_none_or(|wanted| wanted.matches(&node.selectors.iter().cloned().collect()))
    }
}

/// `2006-01-02 15:04:05 -0700 -07`, where the last part repeats the zone.
fn parse_time(text: &str) -> Option<i64> {
    let format =
        time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]");
    let (moment, _zone) = text.rsplit_once(' ')?;
    time::OffsetDateTime::parse(moment, &format).ok().map(time::OffsetDateTime::unix_timestamp)
}
