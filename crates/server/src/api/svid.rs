//! Issuance of SVIDs: by agents for their workloads, by administrators for themselves.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::SpiffeId;
use countersign_identity::csr::Csr;
use countersign_identity::issue::Kind;
use countersign_identity::jwt::{AUDIENCE_BYTES_MAX, AUDIENCES_MAX};
use countersign_identity::key::PublicKey;
use countersign_transport::tcp::TlsIdentity;
use countersign_wire::svid::{self, svid_server};
use countersign_wire::{id, types};
use tonic::{Code, Request, Response, Status};

use super::access::{self, About};
use super::{Api, attest, status, to_its_end};
use crate::authorities::{IssueError, IssuedJwt, IssuedX509};
use crate::policy::allowed::{Refusal, Wanted};
use crate::policy::{Allowed, Caller};
use crate::ratelimit::{self, SIGNING_BURST};

/// Most requests in one batch. SPIRE's limiter lets no larger one through, its agents split theirs there, and the answer to
/// a much larger one would be more than a client reads in one message.
const BATCH_MAX: u32 = SIGNING_BURST;

#[tonic::async_trait]
impl svid_server::Svid for Api {
    async fn mint_x509svid(&self, request: Request<svid::MintX509svidRequest>) -> Result<Response<svid::MintX509svidResponse>, Status> {
        let caller = Self::caller(&request)?;
        let request = request.into_inner();
        caller.access.about(|| About { csr: access::hash(&request.csr), ttl: Some(request.ttl), ..About::default() });
        if request.csr.is_empty() {
            return Err(status::invalid_plain(&caller, "missing CSR"));
        }
        let csr = Csr::parse(&request.csr).map_err(|e| status::invalid(&caller, "malformed CSR", e))?;
        let spiffe_id = csr.spiffe_id.ok_or_else(|| status::invalid(&caller, "invalid CSR", "URI SAN is required"))?;
        let lifetime = self.lifetime(&caller, request.ttl, self.lifetimes.load().x509_svid)?;
        let allowed = Allowed::minted_x509(spiffe_id.clone(), csr.dns_names, lifetime, caller.actor(), &self.trust_domain)
            .map_err(|e| self.refuse_minted(&caller, Kind::MintedX509, &spiffe_id, &e))?;
        let issued = self.issue_one_x509(allowed, csr.public_key).await?.map_err(|e| status::issue(&e))?;
        self.metrics.issued("minted_x509", 1);
        caller.access.about(|| About {
            csr: access::hash(&request.csr),
            ttl: Some(request.ttl),
            expires_at: Some(issued.expires_at.secs()),
            ..About::spiffe_id(spiffe_id.as_str())
        });
        Ok(Response::new(svid::MintX509svidResponse { svid: Some(attest::svid(&spiffe_id, issued)) }))
    }

    async fn mint_jwtsvid(&self, request: Request<svid::MintJwtsvidRequest>) -> Result<Response<svid::MintJwtsvidResponse>, Status> {
        let caller = Self::caller(&request)?;
        self.check_jwt_enabled()?;
        let request = request.into_inner();
        let spiffe_id = id::from_wire(request.id.as_ref()).map_err(|e| status::invalid(&caller, "invalid SPIFFE ID", e))?;
        caller.access.about(|| About {
            audience: access::list(request.audience.iter().cloned()),
            ttl: Some(request.ttl),
            ..About::spiffe_id(spiffe_id.as_str())
        });
        let audience = audiences(&caller, request.audience)?;
        let lifetime = self.lifetime(&caller, request.ttl, self.lifetimes.load().jwt_svid)?;
        let allowed = Allowed::minted_jwt(spiffe_id.clone(), audience, lifetime, caller.actor(), &self.trust_domain)
            .map_err(|e| self.refuse_minted(&caller, Kind::MintedJwt, &spiffe_id, &e))?;
        let issued = self.issue_jwt(allowed).await?;
        self.metrics.issued("minted_jwt", 1);
        Ok(Response::new(svid::MintJwtsvidResponse { svid: Some(token(&spiffe_id, issued)) }))
    }

    async fn mint_witsvid(&self, _: Request<svid::MintWitsvidRequest>) -> Result<Response<svid::MintWitsvidResponse>, Status> {
        Err(Status::unimplemented("WIT-SVIDs are not implemented by this Countersign server"))
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<svid::BatchNewX509svidRequest>,
    ) -> Result<Response<svid::BatchNewX509svidResponse>, Status> {
        let caller = Self::caller(&request)?;
        let agent = Self::agent(&request)?;
        let patience = ratelimit::patience(request.metadata());
        let params = request.into_inner().params;
        if params.is_empty() {
            return Err(status::invalid_plain(&caller, "missing parameters"));
        }
        let count = u32::try_from(params.len())
            .ok()
            .filter(|count| *count <= BATCH_MAX)
            .ok_or_else(|| Status::resource_exhausted(format!("rate ({}) exceeds burst size ({BATCH_MAX})", params.len())))?;
        self.rate_limits.x509(&agent.spiffe_id, count, patience).await.map_err(|e| self.over_limit(&caller, e))?;
        self.saw(&agent.spiffe_id, None);
        let snapshot = self.store.snapshot();
        let now = self.clock.now();
        let mut wanted = Vec::with_capacity(params.len());
        // What each item became: a place among the wanted, or a refusal.
        let mut items = Vec::with_capacity(params.len());
        for item in &params {
            let judged = workload_request(item).and_then(|public_key| {
                let allowed = Allowed::workload(&snapshot, &agent, &item.entry_id, Wanted::X509, &self.lifetimes.load(), Vec::new(), now)
                    .map_err(|e| self.refuse_workload(&caller, Kind::WorkloadX509, &item.entry_id, &e))?;
                Ok((countersign_identity::issue::Permission::spiffe_id(&allowed).clone(), allowed, public_key))
            });
            items.push(judged.map(|(spiffe_id, allowed, public_key)| {
                wanted.push((allowed, public_key));
                spiffe_id
            }));
        }
        let authorities = Arc::clone(&self.authorities);
        let mut issued = to_its_end(async move { authorities.issue_x509(wanted).await }).await?.into_iter();
        let results = items
            .into_iter()
            .zip(&params)
            .map(|(item, wanted)| {
                let spiffe_id = item.as_ref().ok().cloned();
                let (status, svid) = match item.and_then(|spiffe_id| self.take_issued(&spiffe_id, issued.next())) {
                    Ok(svid) => (status::ok(), Some(svid)),
                    Err(refusal) => (status::of(&refusal), None),
                };
                caller.access.item(status.as_ref(), || {
                    Some(About {
                        csr: access::hash(&wanted.csr),
                        spiffe_id: spiffe_id.map(|id| id.as_str().to_owned()),
                        expires_at: svid.as_ref().map(|svid| svid.expires_at),
                        ..About::entry_id(&wanted.entry_id)
                    })
                });
                svid::batch_new_x509svid_response::Result { status, svid }
            })
            .collect();
        Ok(Response::new(svid::BatchNewX509svidResponse { results }))
    }

    async fn new_jwtsvid(&self, request: Request<svid::NewJwtsvidRequest>) -> Result<Response<svid::NewJwtsvidResponse>, Status> {
        let caller = Self::caller(&request)?;
        let agent = Self::agent(&request)?;
        let patience = ratelimit::patience(request.metadata());
        self.rate_limits.jwt(&agent.spiffe_id, patience).await.map_err(|e| self.over_limit(&caller, e))?;
        let request = request.into_inner();
        self.saw(&agent.spiffe_id, None);
        let svid = self.workload_jwt(&caller, &agent, &request.entry_id, request.audience, Vec::new()).await?;
        Ok(Response::new(svid::NewJwtsvidResponse { svid: Some(svid) }))
    }

    async fn batch_new_witsvid(&self, _: Request<svid::BatchNewWitsvidRequest>) -> Result<Response<svid::BatchNewWitsvidResponse>, Status> {
        Err(Status::unimplemented("WIT-SVIDs are not implemented by this Countersign server"))
    }

    async fn new_downstream_x509ca(
        &self,
        _: Request<svid::NewDownstreamX509caRequest>,
    ) -> Result<Response<svid::NewDownstreamX509caResponse>, Status> {
        Err(Status::unimplemented("nested servers are not implemented by this Countersign server"))
    }
}

impl Api {
    pub(super) fn check_jwt_enabled(&self) -> Result<(), Status> {
        if self.disable_jwt_svids {
            return Err(Status::unimplemented("JWT functionality is disabled"));
        }
        Ok(())
    }

    /// A workload's token, for an agent that may have it.
    pub(super) async fn workload_jwt(
        &self,
        caller: &Caller,
        agent: &TlsIdentity,
        entry_id: &str,
        audience: Vec<String>,
        facts: Vec<countersign_identity::Selector>,
    ) -> Result<types::Jwtsvid, Status> {
        caller.access.about(|| About { audience: access::list(audience.iter().cloned()), ..About::entry_id(entry_id) });
        self.check_jwt_enabled()?;
        if entry_id.is_empty() {
            return Err(status::invalid_plain(caller, "missing entry ID"));
        }
        let audience = audiences(caller, audience)?;
        let allowed = Allowed::workload(
            &self.store.snapshot(),
            agent,
            entry_id,
            Wanted::Jwt { audience },
            &self.lifetimes.load(),
            facts,
            self.clock.now(),
        )
        .map_err(|e| self.refuse_workload(caller, Kind::WorkloadJwt, entry_id, &e))?;
        let spiffe_id = countersign_identity::issue::Permission::spiffe_id(&allowed).clone();
        let issued = self.issue_jwt(allowed).await?;
        self.metrics.issued("workload_jwt", 1);
        Ok(token(&spiffe_id, issued))
    }

    /// A workload's certificate, for an agent that may have it.
    pub(super) async fn workload_x509(
        &self,
        caller: &Caller,
        agent: &TlsIdentity,
        params: &svid::NewX509svidParams,
        facts: Vec<countersign_identity::Selector>,
    ) -> Result<types::X509svid, Status> {
        tracing::trace!(hop = "checks the request");
        let public_key = workload_request(params)?;
        let snapshot = self.store.snapshot();
        let allowed = Allowed::workload(&snapshot, agent, &params.entry_id, Wanted::X509, &self.lifetimes.load(), facts, self.clock.now())
            .map_err(|e| self.refuse_workload(caller, Kind::WorkloadX509, &params.entry_id, &e))?;
        let spiffe_id = countersign_identity::issue::Permission::spiffe_id(&allowed).clone();
        let issued = self.issue_one_x509(allowed, public_key).await?;
        self.take_issued(&spiffe_id, Some(issued))
    }

    async fn issue_one_x509(&self, allowed: Allowed, public_key: PublicKey) -> Result<Result<IssuedX509, IssueError>, Status> {
        let authorities = Arc::clone(&self.authorities);
        to_its_end(async move { authorities.issue_one_x509(allowed, public_key).await }).await
    }

    async fn issue_jwt(&self, allowed: Allowed) -> Result<IssuedJwt, Status> {
        let authorities = Arc::clone(&self.authorities);
        to_its_end(async move { authorities.issue_jwt(allowed).await }).await?.map_err(|e| status::issue(&e))
    }

    fn take_issued(&self, spiffe_id: &SpiffeId, issued: Option<Result<IssuedX509, IssueError>>) -> Result<types::X509svid, Status> {
        match issued {
            Some(Ok(issued)) => {
                self.metrics.issued("workload_x509", 1);
                Ok(attest::svid(spiffe_id, issued))
            }
            Some(Err(error)) => Err(status::issue(&error)),
            None => Err(Status::internal("BUG: no result for a request")),
        }
    }

    fn refuse_workload(&self, caller: &Caller, kind: Kind, entry_id: &str, refusal: &Refusal) -> Status {
        let entry_id: String = entry_id.chars().take(countersign_identity::entry::ENTRY_ID_BYTES_MAX).collect();
        self.journal.refused(kind, &caller.actor(), &entry_id, &refusal.to_string());
        if let Refusal::Agent(reason) = refusal {
            self.metrics.refused(reason.log_line());
            return status::denied(reason.reason(), &refusal.to_string());
        }
        self.metrics.refused("entry not found or not authorized");
        Status::not_found(refusal.to_string())
    }

    fn refuse_minted(&self, caller: &Caller, kind: Kind, subject: &SpiffeId, refusal: &Refusal) -> Status {
        self.journal.refused(kind, &caller.actor(), subject.as_str(), &refusal.to_string());
        self.metrics.refused("identity cannot be minted");
        status::invalid_plain(caller, &refusal.to_string())
    }

    fn lifetime(&self, caller: &Caller, ttl: i32, default: Duration) -> Result<Duration, Status> {
        match u64::try_from(ttl) {
            Ok(0) => Ok(default),
            Ok(secs) => Ok(Duration::from_secs(secs)),
            Err(_) => Err(status::invalid_plain(caller, "invalid ttl: it must not be negative")),
        }
    }
}

/// The key of a request for a workload's certificate; its proof of possession is checked.
fn workload_request(item: &svid::NewX509svidParams) -> Result<PublicKey, Status> {
    if item.entry_id.is_empty() {
        return Err(Status::invalid_argument("missing entry ID"));
    }
    if item.csr.is_empty() {
        return Err(Status::invalid_argument("missing CSR"));
    }
    Csr::parse(&item.csr).map(|csr| csr.public_key).map_err(|e| Status::new(Code::InvalidArgument, format!("malformed CSR: {e}")))
}

fn audiences(caller: &Caller, audience: Vec<String>) -> Result<Vec<String>, Status> {
    let wanted: Vec<String> = audience.into_iter().filter(|a| !a.is_empty()).collect();
    if wanted.is_empty() {
        return Err(status::invalid_plain(caller, "at least one audience is required"));
    }
    if wanted.len() > AUDIENCES_MAX || wanted.iter().any(|a| a.len() > AUDIENCE_BYTES_MAX) {
        let text = format!("at most {AUDIENCES_MAX} audiences of at most {AUDIENCE_BYTES_MAX} bytes are allowed");
        return Err(status::invalid_plain(caller, &text));
    }
    Ok(wanted)
}

fn token(spiffe_id: &SpiffeId, issued: IssuedJwt) -> types::Jwtsvid {
    types::Jwtsvid {
        token: issued.token,
        id: Some(id::to_wire(spiffe_id)),
        expires_at: issued.expires_at.secs(),
        issued_at: issued.issued_at.secs(),
        hint: String::new(),
    }
}
