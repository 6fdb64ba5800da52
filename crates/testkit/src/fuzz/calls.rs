//! A target for each message that a method takes: sent as it is to a real server or agent, through the door of whoever
//! may call it, so that everything on the way is tried: framing, gate, decoding, conversion, handler, store.
//!
//! A test compares the rows with the methods that the .proto files declare.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::x509::{Certificate, verify_chain};
use countersign_identity::{BundleSet, SpiffeId, jwt, pem};
use countersign_wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
use countersign_wire::envoy_core::DataSource;
use countersign_wire::envoy_core::data_source::Specifier;
use countersign_wire::envoy_tls::{Secret, secret};
use countersign_wire::node::{self, issue_response};
use countersign_wire::trust_domain as trust_domain_api;
use countersign_wire::workload as program;
use countersign_wire::{
    agent, agent_admin, agent_debug, agent_logger, bundle_api, debug, delegated_identity, entry, entry_api, explained, federation, journal,
    local_authority, logger, svid, types,
};
use prost::Message;
use tonic::{Code, Status};

use super::live::{self, Afterwards, ENTRY, Live, NODE, Sender, TOKEN};
use super::{Target, identity, split};
use crate::domain::{spiffe_id, trust_domain};

/// Longest text of a refusal: it travels in a header, where each byte may become three, and clients read 8 or 16 KiB of those.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// One row: name, method, who sends, what the method takes and gives, and what is done with both afterwards.
macro_rules! call {
    ($package:literal, $method:literal, $sender:ident, $request:ty, $response:ty, $after:expr) => {
        Target {
            name: concat!($package, ".", $method),
            run: |bytes| {
                call::<$request, $response>(concat!("/", $package, "/", $method), Sender::$sender, &[bytes], $after);
            },
        }
    };
    ($package:literal, $method:literal, $sender:ident, stream $request:ty, $response:ty, $after:expr) => {
        Target {
            name: concat!($package, ".", $method),
            run: |bytes| {
                call::<$request, $response>(concat!("/", $package, "/", $method), Sender::$sender, &split(bytes), $after);
            },
        }
    };
}

macro_rules! federation {
    ($method:literal, $request:ident, $response:ty, $after:expr) => {
        call!("spire.api.server.trustdomain.v1.TrustDomain", $method, Admin, trust_domain_api::$request, $response, $after)
    };
}

macro_rules! authority {
    ($method:literal, $request:ident, $response:ident) => {
        call!(
            "spire.api.server.localauthority.v1.LocalAuthority",
            $method,
            Admin,
            local_authority::$request,
            local_authority::$response,
            keep
        )
    };
}

macro_rules! secrets {
    ($method:literal, $($request:ident)+, $response:ident, $after:expr) => {
        call!("envoy.service.secret.v3.SecretDiscoveryService", $method, Workload, $($request)+, $response, $after)
    };
}

pub(super) const TARGETS: &[Target] = &[
    call!("spire.api.server.agent.v1.Agent", "CountAgents", Admin, agent::CountAgentsRequest, agent::CountAgentsResponse, keep),
    call!("spire.api.server.agent.v1.Agent", "ListAgents", Admin, agent::ListAgentsRequest, agent::ListAgentsResponse, keep),
    call!("spire.api.server.agent.v1.Agent", "GetAgent", Admin, agent::GetAgentRequest, types::Agent, keep),
    call!("spire.api.server.agent.v1.Agent", "DeleteAgent", Admin, agent::DeleteAgentRequest, (), begin_anew),
    call!("spire.api.server.agent.v1.Agent", "BanAgent", Admin, agent::BanAgentRequest, (), begin_anew),
    call!(
        "spire.api.server.agent.v1.Agent",
        "AttestAgent",
        Stranger,
        stream agent::AttestAgentRequest,
        agent::AttestAgentResponse,
        attested
    ),
    call!("spire.api.server.agent.v1.Agent", "RenewAgent", Agent, agent::RenewAgentRequest, agent::RenewAgentResponse, renewed),
    call!("spire.api.server.agent.v1.Agent", "CreateJoinToken", Admin, agent::CreateJoinTokenRequest, types::JoinToken, token_made),
    call!("spire.api.server.agent.v1.Agent", "PostStatus", Agent, agent::PostStatusRequest, agent::PostStatusResponse, keep),
    call!(
        "spire.api.server.bundle.v1.Bundle",
        "CountBundles",
        Admin,
        bundle_api::CountBundlesRequest,
        bundle_api::CountBundlesResponse,
        keep
    ),
    call!("spire.api.server.bundle.v1.Bundle", "GetBundle", Stranger, bundle_api::GetBundleRequest, types::Bundle, keep),
    call!("spire.api.server.bundle.v1.Bundle", "AppendBundle", Admin, bundle_api::AppendBundleRequest, types::Bundle, appended),
    call!(
        "spire.api.server.bundle.v1.Bundle",
        "PublishJWTAuthority",
        Downstream,
        bundle_api::PublishJwtAuthorityRequest,
        bundle_api::PublishJwtAuthorityResponse,
        keep
    ),
    call!(
        "spire.api.server.bundle.v1.Bundle",
        "PublishWITAuthority",
        Downstream,
        bundle_api::PublishWitAuthorityRequest,
        bundle_api::PublishWitAuthorityResponse,
        keep
    ),
    call!(
        "spire.api.server.bundle.v1.Bundle",
        "ListFederatedBundles",
        Admin,
        bundle_api::ListFederatedBundlesRequest,
        bundle_api::ListFederatedBundlesResponse,
        keep
    ),
    call!("spire.api.server.bundle.v1.Bundle", "GetFederatedBundle", Agent, bundle_api::GetFederatedBundleRequest, types::Bundle, keep),
    call!(
        "spire.api.server.bundle.v1.Bundle",
        "BatchCreateFederatedBundle",
        Admin,
        bundle_api::BatchCreateFederatedBundleRequest,
        bundle_api::BatchCreateFederatedBundleResponse,
        federated
    ),
    call!(
        "spire.api.server.bundle.v1.Bundle",
        "BatchUpdateFederatedBundle",
        Admin,
        bundle_api::BatchUpdateFederatedBundleRequest,
        bundle_api::BatchUpdateFederatedBundleResponse,
        keep
    ),
    call!(
        "spire.api.server.bundle.v1.Bundle",
        "BatchSetFederatedBundle",
        Admin,
        bundle_api::BatchSetFederatedBundleRequest,
        bundle_api::BatchSetFederatedBundleResponse,
        keep
    ),
    call!(
        "spire.api.server.bundle.v1.Bundle",
        "BatchDeleteFederatedBundle",
        Admin,
        bundle_api::BatchDeleteFederatedBundleRequest,
        bundle_api::BatchDeleteFederatedBundleResponse,
        keep
    ),
    call!("spire.api.server.entry.v1.Entry", "CountEntries", Admin, entry_api::CountEntriesRequest, entry_api::CountEntriesResponse, keep),
    call!("spire.api.server.entry.v1.Entry", "ListEntries", Admin, entry_api::ListEntriesRequest, entry_api::ListEntriesResponse, keep),
    call!("spire.api.server.entry.v1.Entry", "GetEntry", Admin, entry_api::GetEntryRequest, types::Entry, keep),
    call!(
        "spire.api.server.entry.v1.Entry",
        "BatchCreateEntry",
        Admin,
        entry_api::BatchCreateEntryRequest,
        entry_api::BatchCreateEntryResponse,
        created
    ),
    call!(
        "spire.api.server.entry.v1.Entry",
        "BatchUpdateEntry",
        Admin,
        entry_api::BatchUpdateEntryRequest,
        entry_api::BatchUpdateEntryResponse,
        updated
    ),
    call!(
        "spire.api.server.entry.v1.Entry",
        "BatchDeleteEntry",
        Admin,
        entry_api::BatchDeleteEntryRequest,
        entry_api::BatchDeleteEntryResponse,
        deleted
    ),
    call!(
        "spire.api.server.entry.v1.Entry",
        "GetAuthorizedEntries",
        Agent,
        entry_api::GetAuthorizedEntriesRequest,
        entry_api::GetAuthorizedEntriesResponse,
        keep
    ),
    call!(
        "spire.api.server.entry.v1.Entry",
        "SyncAuthorizedEntries",
        Agent,
        stream entry_api::SyncAuthorizedEntriesRequest,
        entry_api::SyncAuthorizedEntriesResponse,
        keep
    ),
    call!("spire.api.server.svid.v1.SVID", "MintX509SVID", Admin, svid::MintX509svidRequest, svid::MintX509svidResponse, minted_x509),
    call!("spire.api.server.svid.v1.SVID", "MintJWTSVID", Admin, svid::MintJwtsvidRequest, svid::MintJwtsvidResponse, minted_jwt),
    call!("spire.api.server.svid.v1.SVID", "MintWITSVID", Admin, svid::MintWitsvidRequest, svid::MintWitsvidResponse, keep),
    call!(
        "spire.api.server.svid.v1.SVID",
        "BatchNewX509SVID",
        Agent,
        svid::BatchNewX509svidRequest,
        svid::BatchNewX509svidResponse,
        new_x509
    ),
    call!("spire.api.server.svid.v1.SVID", "NewJWTSVID", Agent, svid::NewJwtsvidRequest, svid::NewJwtsvidResponse, new_jwt),
    call!("spire.api.server.svid.v1.SVID", "BatchNewWITSVID", Agent, svid::BatchNewWitsvidRequest, svid::BatchNewWitsvidResponse, keep),
    call!(
        "spire.api.server.svid.v1.SVID",
        "NewDownstreamX509CA",
        Downstream,
        svid::NewDownstreamX509caRequest,
        svid::NewDownstreamX509caResponse,
        keep
    ),
    federation!(
        "ListFederationRelationships",
        ListFederationRelationshipsRequest,
        trust_domain_api::ListFederationRelationshipsResponse,
        keep
    ),
    federation!("GetFederationRelationship", GetFederationRelationshipRequest, types::FederationRelationship, keep),
    federation!(
        "BatchCreateFederationRelationship",
        BatchCreateFederationRelationshipRequest,
        trust_domain_api::BatchCreateFederationRelationshipResponse,
        related
    ),
    federation!(
        "BatchUpdateFederationRelationship",
        BatchUpdateFederationRelationshipRequest,
        trust_domain_api::BatchUpdateFederationRelationshipResponse,
        keep
    ),
    federation!(
        "BatchDeleteFederationRelationship",
        BatchDeleteFederationRelationshipRequest,
        trust_domain_api::BatchDeleteFederationRelationshipResponse,
        keep
    ),
    federation!("RefreshBundle", RefreshBundleRequest, (), keep),
    authority!("GetJWTAuthorityState", GetJwtAuthorityStateRequest, GetJwtAuthorityStateResponse),
    authority!("PrepareJWTAuthority", PrepareJwtAuthorityRequest, PrepareJwtAuthorityResponse),
    authority!("ActivateJWTAuthority", ActivateJwtAuthorityRequest, ActivateJwtAuthorityResponse),
    authority!("TaintJWTAuthority", TaintJwtAuthorityRequest, TaintJwtAuthorityResponse),
    authority!("RevokeJWTAuthority", RevokeJwtAuthorityRequest, RevokeJwtAuthorityResponse),
    authority!("GetX509AuthorityState", GetX509AuthorityStateRequest, GetX509AuthorityStateResponse),
    authority!("PrepareX509Authority", PrepareX509AuthorityRequest, PrepareX509AuthorityResponse),
    authority!("ActivateX509Authority", ActivateX509AuthorityRequest, ActivateX509AuthorityResponse),
    authority!("TaintX509Authority", TaintX509AuthorityRequest, TaintX509AuthorityResponse),
    authority!("TaintX509UpstreamAuthority", TaintX509UpstreamAuthorityRequest, TaintX509UpstreamAuthorityResponse),
    authority!("RevokeX509Authority", RevokeX509AuthorityRequest, RevokeX509AuthorityResponse),
    authority!("RevokeX509UpstreamAuthority", RevokeX509UpstreamAuthorityRequest, RevokeX509UpstreamAuthorityResponse),
    authority!("GetWITAuthorityState", GetWitAuthorityStateRequest, GetWitAuthorityStateResponse),
    authority!("PrepareWITAuthority", PrepareWitAuthorityRequest, PrepareWitAuthorityResponse),
    authority!("ActivateWITAuthority", ActivateWitAuthorityRequest, ActivateWitAuthorityResponse),
    authority!("TaintWITAuthority", TaintWitAuthorityRequest, TaintWitAuthorityResponse),
    authority!("RevokeWITAuthority", RevokeWitAuthorityRequest, RevokeWitAuthorityResponse),
    call!("spire.api.server.debug.v1.Debug", "GetInfo", Admin, debug::GetInfoRequest, debug::GetInfoResponse, keep),
    call!("spire.api.server.logger.v1.Logger", "GetLogger", Admin, logger::GetLoggerRequest, types::Logger, keep),
    call!("spire.api.server.logger.v1.Logger", "SetLogLevel", Admin, logger::SetLogLevelRequest, types::Logger, keep),
    call!("spire.api.server.logger.v1.Logger", "ResetLogLevel", Admin, logger::ResetLogLevelRequest, types::Logger, keep),
    call!("countersign.agent.v1.Node", "Follow", Agent, stream node::FollowRequest, node::FollowResponse, followed),
    call!("countersign.agent.v1.Node", "Issue", Agent, node::IssueRequest, node::IssueResponse, issued),
    call!(
        "countersign.entry.v1.EntryExplainer",
        "ExplainEntry",
        Admin,
        explained::ExplainEntryRequest,
        explained::ExplainEntryResponse,
        entry_explained
    ),
    call!("countersign.agent.admin.v1.Admin", "Explain", Operator, agent_admin::ExplainRequest, agent_admin::ExplainResponse, told_why),
    call!("spire.agent.debug.v1.Debug", "GetInfo", Operator, agent_debug::GetInfoRequest, agent_debug::GetInfoResponse, keep),
    call!("spire.api.agent.logger.v1.Logger", "GetLogger", Operator, agent_logger::GetLoggerRequest, types::Logger, keep),
    call!("spire.api.agent.logger.v1.Logger", "SetLogLevel", Operator, agent_logger::SetLogLevelRequest, types::Logger, keep),
    call!("spire.api.agent.logger.v1.Logger", "ResetLogLevel", Operator, agent_logger::ResetLogLevelRequest, types::Logger, keep),
    call!(
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
        "SubscribeToX509SVIDs",
        Operator,
        delegated_identity::SubscribeToX509sviDsRequest,
        delegated_identity::SubscribeToX509sviDsResponse,
        handed_out
    ),
    call!(
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
        "SubscribeToX509Bundles",
        Operator,
        delegated_identity::SubscribeToX509BundlesRequest,
        delegated_identity::SubscribeToX509BundlesResponse,
        keep
    ),
    call!(
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
        "FetchJWTSVIDs",
        Operator,
        delegated_identity::FetchJwtsviDsRequest,
        delegated_identity::FetchJwtsviDsResponse,
        tokens_handed_out
    ),
    call!(
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
        "SubscribeToJWTBundles",
        Operator,
        delegated_identity::SubscribeToJwtBundlesRequest,
        delegated_identity::SubscribeToJwtBundlesResponse,
        keep
    ),
    call!("countersign.journal.v1.Journal", "Issued", Admin, journal::IssuedRequest, journal::Record, recorded),
    call!("SpiffeWorkloadAPI", "FetchX509SVID", Workload, program::X509svidRequest, program::X509svidResponse, x509_fetched),
    call!("SpiffeWorkloadAPI", "FetchX509Bundles", Workload, program::X509BundlesRequest, program::X509BundlesResponse, keep),
    call!("SpiffeWorkloadAPI", "FetchJWTSVID", Workload, program::JwtsvidRequest, program::JwtsvidResponse, jwt_fetched),
    call!("SpiffeWorkloadAPI", "FetchJWTBundles", Workload, program::JwtBundlesRequest, program::JwtBundlesResponse, keep),
    call!("SpiffeWorkloadAPI", "ValidateJWTSVID", Workload, program::ValidateJwtsvidRequest, program::ValidateJwtsvidResponse, validated),
    call!("SpiffeWorkloadAPI", "FetchWITSVID", Workload, program::WitsvidRequest, program::WitsvidResponse, keep),
    call!("SpiffeWorkloadAPI", "FetchWITBundles", Workload, program::WitBundlesRequest, program::WitBundlesResponse, keep),
    secrets!("StreamSecrets", stream DiscoveryRequest, DiscoveryResponse, secrets_given),
    secrets!("FetchSecrets", DiscoveryRequest, DiscoveryResponse, secrets_given),
    secrets!("DeltaSecrets", stream DeltaDiscoveryRequest, DeltaDiscoveryResponse, keep),
];

/// What is true of the answers to these requests; both are empty if the call was refused.
type After<Q, A> = fn(&Live, &[Q], &[A]) -> Afterwards;

fn call<Q: Message + Default, A: Message + Default>(method: &'static str, sender: Sender, pieces: &[&[u8]], after: After<Q, A>) {
    let decoded: Result<Vec<Q>, _> = pieces.iter().map(|piece| Q::decode(*piece)).collect();
    live::with(|live| {
        if pieces.iter().any(|piece| piece.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes())) {
            live.make_token();
        }
        match live.send(sender, method, pieces) {
            Ok(answers) => {
                let answers: Vec<A> = answers.iter().map(|a| A::decode(a.as_slice()).expect("an answer can be read")).collect();
                match decoded {
                    Ok(requests) => after(live, &requests, &answers),
                    // The answer to a stream may come before its last message.
                    Err(error) => {
                        assert!(pieces.len() > 1, "{method} answers what is no message: {error}");
                        Afterwards::Keep
                    }
                }
            }
            Err(status) => {
                assert!(status.message().len() <= TEXT_BYTES_MAX, "{method}: a refusal of {} bytes", status.message().len());
                if decoded.is_ok() {
                    assert_blame(method, sender, &status);
                }
                Afterwards::Keep
            }
        }
    });
}

/// A message that can be read is the caller's fault or nobody's; it never breaks the server.
fn assert_blame(method: &str, sender: Sender, status: &Status) {
    let fault = match status.code() {
        // SPIRE's code for an Envoy that asks for what it says it cannot use.
        Code::Internal if method.ends_with("Secrets") => status.message() != "unable to use \"SPIFFE validator\" on Envoy below 1.17",
        Code::Internal | Code::Unknown | Code::DataLoss | Code::Cancelled | Code::DeadlineExceeded | Code::Unauthenticated => true,
        // The agent says that it cannot have a token for what the server refuses, and that no process has a number.
        Code::Unavailable => !matches!(sender, Sender::Workload | Sender::Operator),
        _ => false,
    };
    assert!(!fault, "{method} fails: {status:?}");
}

fn keep<Q, A>(_: &Live, _: &[Q], _: &[A]) -> Afterwards {
    Afterwards::Keep
}

/// For what takes away a node that the other calls need.
fn begin_anew<Q, A>(_: &Live, _: &[Q], _: &[A]) -> Afterwards {
    Afterwards::BeginAnew
}

fn node_id(name: &str) -> SpiffeId {
    spiffe_id(&format!("/spire/agent/join_token/{name}"))
}

/// A chain proves this identity, now and to everybody.
fn assert_proves(live: &Live, chain: &[Vec<u8>], wanted: &SpiffeId) -> Certificate {
    let (id, leaf) = verify_chain(chain, &live.bundles, live.now()).expect("what was issued proves an identity");
    assert_eq!(&id, wanted);
    leaf
}

fn assert_token(live: &Live, token: &str, wanted: &SpiffeId, audience: &[String]) {
    for audience in audience {
        let verified = jwt::verify(token, audience, &live.bundles, live.now()).expect("a token that was issued is good");
        assert_eq!(&verified.spiffe_id, wanted);
    }
}

fn attested(live: &Live, _: &[agent::AttestAgentRequest], answers: &[agent::AttestAgentResponse]) -> Afterwards {
    for answer in answers {
        if let Some(agent::attest_agent_response::Step::Result(result)) = &answer.step {
            let chain = &result.svid.as_ref().expect("an SVID").cert_chain;
            assert_proves(live, chain, &node_id(TOKEN));
        }
    }
    Afterwards::Keep
}

fn renewed(live: &Live, requests: &[agent::RenewAgentRequest], answers: &[agent::RenewAgentResponse]) -> Afterwards {
    let (Some(request), Some(answer)) = (requests.first(), answers.first()) else { return Afterwards::Keep };
    let leaf = assert_proves(live, &answer.svid.as_ref().expect("an SVID").cert_chain, &node_id(NODE));
    assert_certifies(&leaf, &request.params.as_ref().expect("a request").csr);
    Afterwards::Keep
}

/// The key is that of the request.
fn assert_certifies(leaf: &Certificate, csr: &[u8]) {
    let csr = countersign_identity::csr::Csr::parse(csr).expect("a request that was granted");
    assert_eq!(leaf.public_key, csr.public_key);
}

fn token_made(live: &Live, requests: &[agent::CreateJoinTokenRequest], answers: &[types::JoinToken]) -> Afterwards {
    let (Some(request), Some(answer)) = (requests.first(), answers.first()) else { return Afterwards::Keep };
    assert!(request.token.is_empty() || request.token == answer.value);
    assert!(trust_domain().with_path(&format!("/spire/agent/join_token/{}", answer.value)).is_ok(), "token `{}`", answer.value);
    let end = live.now().after(Duration::from_secs(u64::try_from(request.ttl).expect("a lifetime that was granted")));
    assert_eq!(answer.expires_at, end.secs());
    Afterwards::Keep
}

fn appended(_: &Live, _: &[bundle_api::AppendBundleRequest], answers: &[types::Bundle]) -> Afterwards {
    let full = answers.iter().any(|b| b.x509_authorities.len() > 16 || b.jwt_authorities.len() > 16);
    if full { Afterwards::BeginAnew } else { Afterwards::Keep }
}

fn federated(
    _: &Live,
    _: &[bundle_api::BatchCreateFederatedBundleRequest],
    answers: &[bundle_api::BatchCreateFederatedBundleResponse],
) -> Afterwards {
    for result in answers.iter().flat_map(|a| &a.results).filter(|r| r.status.as_ref().is_some_and(|s| s.code == 0)) {
        let Some(bundle) = &result.bundle else { continue };
        assert_ne!(bundle.trust_domain, trust_domain().name(), "nobody federates with itself");
    }
    Afterwards::Keep
}

/// Nobody federates with itself, and what was kept is what could be read.
fn related(
    _: &Live,
    requests: &[trust_domain_api::BatchCreateFederationRelationshipRequest],
    answers: &[trust_domain_api::BatchCreateFederationRelationshipResponse],
) -> Afterwards {
    let (Some(request), Some(answer)) = (requests.first(), answers.first()) else { return Afterwards::Keep };
    assert_eq!(request.federation_relationships.len(), answer.results.len());
    for (wanted, result) in request.federation_relationships.iter().zip(&answer.results) {
        if result.status.as_ref().is_some_and(|s| s.code == 0) {
            let (kept, _) = federation::from_wire(wanted).expect("what was created can be read");
            assert_ne!(kept.trust_domain, trust_domain());
            assert!(result.federation_relationship.as_ref().is_some_and(|shown| shown.trust_domain == kept.trust_domain.name()));
        }
    }
    Afterwards::Keep
}

/// The entry is one that keeps every rule. With an output mask much of it is left out, so the server is asked for all of it.
fn assert_entry(live: &Live, entry_id: &str) {
    let kept = live.ask(async |domain| {
        let mut client = entry_api::entry_client::EntryClient::new(domain.admin().await?);
        Ok(client.get_entry(entry_api::GetEntryRequest { id: entry_id.to_owned(), output_mask: None }).await?.into_inner())
    });
    let kept = entry::from_wire(&kept).expect("an entry that is kept can be read");
    assert_eq!(kept.check(&trust_domain()), Ok(()));
    assert_eq!(kept.id, entry_id);
    assert!(!kept.spiffe_id.is_reserved() && kept.spiffe_id.is_member_of(&trust_domain()));
}

fn created(live: &Live, _: &[entry_api::BatchCreateEntryRequest], answers: &[entry_api::BatchCreateEntryResponse]) -> Afterwards {
    let mut ids = Vec::new();
    for result in answers.iter().flat_map(|a| &a.results).filter(|r| r.status.as_ref().is_some_and(|s| s.code == 0)) {
        let entry_id = &result.entry.as_ref().expect("what was created").id;
        assert_entry(live, entry_id);
        ids.push(entry_id.clone());
    }
    if !ids.is_empty() {
        live.restore(ids);
    }
    Afterwards::Keep
}

fn updated(live: &Live, _: &[entry_api::BatchUpdateEntryRequest], answers: &[entry_api::BatchUpdateEntryResponse]) -> Afterwards {
    let changed = answers.iter().flat_map(|a| &a.results).any(|r| r.status.as_ref().is_some_and(|s| s.code == 0));
    if changed {
        assert_entry(live, ENTRY);
        live.restore(vec![ENTRY.to_owned(), "downstream".to_owned()]);
    }
    Afterwards::Keep
}

fn deleted(live: &Live, _: &[entry_api::BatchDeleteEntryRequest], answers: &[entry_api::BatchDeleteEntryResponse]) -> Afterwards {
    if answers.iter().flat_map(|a| &a.results).any(|r| r.status.as_ref().is_some_and(|s| s.code == 0)) {
        live.restore(Vec::new());
    }
    Afterwards::Keep
}

fn minted_x509(live: &Live, requests: &[svid::MintX509svidRequest], answers: &[svid::MintX509svidResponse]) -> Afterwards {
    let (Some(request), Some(answer)) = (requests.first(), answers.first()) else { return Afterwards::Keep };
    let csr = countersign_identity::csr::Csr::parse(&request.csr).expect("a request that was granted");
    let leaf = assert_proves(live, &answer.svid.as_ref().expect("an SVID").cert_chain, &csr.spiffe_id.expect("an identity"));
    assert_certifies(&leaf, &request.csr);
    assert_eq!(leaf.dns_names, csr.dns_names);
    Afterwards::Keep
}

fn minted_jwt(live: &Live, requests: &[svid::MintJwtsvidRequest], answers: &[svid::MintJwtsvidResponse]) -> Afterwards {
    let (Some(request), Some(answer)) = (requests.first(), answers.first()) else { return Afterwards::Keep };
    let wanted = countersign_wire::id::from_wire(request.id.as_ref()).expect("an identity that was granted");
    assert!(!request.audience.is_empty());
    assert_token(live, &answer.svid.as_ref().expect("an SVID").token, &wanted, &request.audience);
    Afterwards::Keep
}

fn new_x509(live: &Live, requests: &[svid::BatchNewX509svidRequest], answers: &[svid::BatchNewX509svidResponse]) -> Afterwards {
    let (Some(request), Some(answer)) = (requests.first(), answers.first()) else { return Afterwards::Keep };
    assert_eq!(request.params.len(), answer.results.len());
    for (params, result) in request.params.iter().zip(&answer.results) {
        let Some(svid) = &result.svid else { continue };
        let leaf = assert_proves(live, &svid.cert_chain, &of_entry(&params.entry_id));
        assert_certifies(&leaf, &params.csr);
    }
    Afterwards::Keep
}

/// The identity of an entry that the node has.
fn of_entry(entry_id: &str) -> SpiffeId {
    assert!([ENTRY, "downstream"].contains(&entry_id), "an SVID for entry `{entry_id}`");
    spiffe_id(&format!("/{entry_id}"))
}

fn new_jwt(live: &Live, requests: &[svid::NewJwtsvidRequest], answers: &[svid::NewJwtsvidResponse]) -> Afterwards {
    let (Some(request), Some(answer)) = (requests.first(), answers.first()) else { return Afterwards::Keep };
    assert!(!request.audience.is_empty());
    assert_token(live, &answer.svid.as_ref().expect("an SVID").token, &of_entry(&request.entry_id), &request.audience);
    Afterwards::Keep
}

fn issued(live: &Live, requests: &[node::IssueRequest], answers: &[node::IssueResponse]) -> Afterwards {
    use node::issue_request::Credential as Wanted;
    let (Some(request), Some(answer)) = (requests.first(), answers.first()) else { return Afterwards::Keep };
    let wanted = of_entry(&request.entry_id);
    match (&request.credential, &answer.credential) {
        (Some(Wanted::X509Csr(csr)), Some(issue_response::Credential::X509(svid))) => {
            assert_certifies(&assert_proves(live, &svid.cert_chain, &wanted), csr);
        }
        (Some(Wanted::Jwt(jwt)), Some(issue_response::Credential::Jwt(svid))) => {
            assert!(!jwt.audience.is_empty());
            assert_token(live, &svid.token, &wanted, &jwt.audience);
        }
        _ => panic!("the answer is not what was asked for"),
    }
    Afterwards::Keep
}

fn followed(_: &Live, _: &[node::FollowRequest], answers: &[node::FollowResponse]) -> Afterwards {
    for kept in answers.iter().flat_map(|a| &a.entries) {
        assert!(entry::from_wire(kept).is_ok());
    }
    Afterwards::Keep
}

fn recorded(_: &Live, requests: &[journal::IssuedRequest], answers: &[journal::Record]) -> Afterwards {
    let wanted = requests.first().map(|r| r.spiffe_id.as_str()).unwrap_or_default();
    assert!(wanted.is_empty() || answers.iter().all(|r| r.spiffe_id == wanted));
    Afterwards::Keep
}

fn entry_explained(_: &Live, requests: &[explained::ExplainEntryRequest], answers: &[explained::ExplainEntryResponse]) -> Afterwards {
    let (Some(request), Some(answer)) = (requests.first(), answers.first()) else { return Afterwards::Keep };
    assert_eq!(answer.entry.as_ref().expect("an entry").id, request.id);
    Afterwards::Keep
}

/// No entry is said to match and not to match, and one that does not match lacks something.
fn told_why(_: &Live, _: &[agent_admin::ExplainRequest], answers: &[agent_admin::ExplainResponse]) -> Afterwards {
    for answer in answers {
        let name = |entry: &Option<agent_admin::EntryName>| entry.as_ref().expect("a name").id.clone();
        let matching: Vec<String> = answer.matching.iter().map(|m| name(&m.entry)).collect();
        for near in &answer.nearest {
            assert!(!matching.contains(&name(&near.entry)));
            assert!(!near.missing.is_empty() || near.expired_at != 0 || near.store_svid, "{near:?} lacks nothing");
        }
    }
    Afterwards::Keep
}

/// Of this node only one identity is for others, and only for whoever has its selectors.
fn handed_out(
    live: &Live,
    requests: &[delegated_identity::SubscribeToX509sviDsRequest],
    answers: &[delegated_identity::SubscribeToX509sviDsResponse],
) -> Afterwards {
    assert!(requests.iter().all(|r| r.selectors.is_empty() != (r.pid == 0)));
    for svid in answers.iter().flat_map(|a| &a.x509_svids) {
        assert_proves(live, &svid.x509_svid.as_ref().expect("an SVID").cert_chain, &spiffe_id("/program"));
        assert!(!svid.x509_svid_key.is_empty());
    }
    Afterwards::Keep
}

fn tokens_handed_out(
    live: &Live,
    requests: &[delegated_identity::FetchJwtsviDsRequest],
    answers: &[delegated_identity::FetchJwtsviDsResponse],
) -> Afterwards {
    let (Some(request), Some(answer)) = (requests.first(), answers.first()) else { return Afterwards::Keep };
    assert!(!request.audience.is_empty() && !answer.svids.is_empty());
    for svid in &answer.svids {
        assert_token(live, &svid.token, &spiffe_id("/program"), &request.audience);
    }
    Afterwards::Keep
}

fn x509_fetched(live: &Live, _: &[program::X509svidRequest], answers: &[program::X509svidResponse]) -> Afterwards {
    for svid in answers.iter().flat_map(|a| &a.svids) {
        let chain = Certificate::parse_concatenated(&svid.x509_svid).expect("certificates");
        let chain: Vec<Vec<u8>> = chain.iter().map(|c| c.der().to_vec()).collect();
        assert_eq!(svid.spiffe_id, spiffe_id("/program").as_str());
        assert_proves(live, &chain, &spiffe_id("/program"));
    }
    Afterwards::Keep
}

/// What has a name was asked for by it, and a certificate proves the program's identity.
fn secrets_given(live: &Live, requests: &[DiscoveryRequest], answers: &[DiscoveryResponse]) -> Afterwards {
    for resource in answers.iter().flat_map(|a| &a.resources) {
        let secret = Secret::decode(resource.value.as_slice()).expect("a secret");
        let asks = |request: &DiscoveryRequest| {
            request.resource_names.iter().all(String::is_empty) || request.resource_names.contains(&secret.name)
        };
        assert!(requests.iter().any(asks), "`{}` was not asked for", secret.name);
        let Some(secret::Type::TlsCertificate(certificate)) = secret.r#type else { continue };
        let Some(DataSource { specifier: Some(Specifier::InlineBytes(chain)) }) = certificate.certificate_chain else {
            panic!("a certificate that is elsewhere")
        };
        let blocks = pem::read(std::str::from_utf8(&chain).expect("a text")).expect("PEM");
        let chain: Vec<Vec<u8>> = blocks.into_iter().map(|(_, der)| der).collect();
        assert_proves(live, &chain, &spiffe_id("/program"));
    }
    Afterwards::Keep
}

fn jwt_fetched(live: &Live, requests: &[program::JwtsvidRequest], answers: &[program::JwtsvidResponse]) -> Afterwards {
    let (Some(request), Some(answer)) = (requests.first(), answers.first()) else { return Afterwards::Keep };
    assert!(!request.audience.is_empty());
    for svid in &answer.svids {
        assert!(request.spiffe_id.is_empty() || svid.spiffe_id == request.spiffe_id);
        assert_token(live, &svid.svid, &spiffe_id("/program"), &request.audience);
    }
    Afterwards::Keep
}

fn validated(live: &Live, requests: &[program::ValidateJwtsvidRequest], answers: &[program::ValidateJwtsvidResponse]) -> Afterwards {
    let (Some(request), Some(answer)) = (requests.first(), answers.first()) else { return Afterwards::Keep };
    // As it is now: an administrator may have added authorities since the start.
    let bundles = BundleSet::from_iter([Arc::new(live.ask(async |domain| domain.bundle().await))]);
    let verified = jwt::verify(&request.svid, &request.audience, &bundles, live.now()).expect("what the agent says is good is good");
    assert_eq!(answer.spiffe_id, verified.spiffe_id.as_str());
    identity::assert_spiffe_id(&answer.spiffe_id);
    Afterwards::Keep
}
