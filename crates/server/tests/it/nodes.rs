//! Attested nodes: how they join, renew, and are listed, banned and evicted.

use std::time::Duration;

use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::list_agents_request::Filter;
use countersign_wire::agent::{
    AgentX509svidParams, BanAgentRequest, CountAgentsRequest, CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest,
    ListAgentsRequest, PostStatusRequest, RenewAgentRequest, count_agents_request,
};
use countersign_wire::types::permission_denied_details::Reason;
use countersign_wire::types::{self, AgentMask, SelectorMatch};
use tonic::{Code, Status};

use crate::world::{self, Domain, HOUR, NodeIdentity, ROUND, id_to_wire, spiffe_id};

async fn get(domain: &Domain, node: &NodeIdentity) -> Result<types::Agent, Status> {
    let request = GetAgentRequest { id: Some(id_to_wire(&node.id)), output_mask: None };
    world::agents(domain).await.get_agent(request).await.map(tonic::Response::into_inner)
}

async fn ban(domain: &Domain, node: &NodeIdentity) {
    world::agents(domain).await.ban_agent(BanAgentRequest { id: Some(id_to_wire(&node.id)) }).await.unwrap();
}

async fn evict(domain: &Domain, node: &NodeIdentity) -> Result<(), Status> {
    world::agents(domain).await.delete_agent(DeleteAgentRequest { id: Some(id_to_wire(&node.id)) }).await.map(|_| ())
}

/// Calls as the agent; what every agent may do.
async fn post(domain: &Domain, node: &NodeIdentity, version: &str) -> Result<(), Status> {
    let mut client = AgentClient::new(domain.connect(Some(node)).await.unwrap());
    client.post_status(PostStatusRequest { current_bundle_serial: 0, agent_version: version.to_owned() }).await.map(|_| ())
}

#[tokio::test]
async fn a_node_that_joined_is_known_by_its_token_and_its_certificate() {
    let domain = Domain::start().await.unwrap();
    let token = domain.token(None).await.unwrap();
    let node = domain.join(&token).await.unwrap();
    assert_eq!(node.id, spiffe_id(&format!("/spire/agent/join_token/{token}")));
    assert_eq!(
        get(&domain, &node).await.unwrap(),
        types::Agent {
            id: Some(id_to_wire(&node.id)),
            attestation_type: "join_token".to_owned(),
            x509svid_serial_number: node.leaf.serial_decimal(),
            x509svid_expires_at: node.leaf.not_after.secs(),
            selectors: Vec::new(),
            banned: false,
            can_reattest: false,
            agent_version: String::new(),
        }
    );
    let request = GetAgentRequest { id: Some(id_to_wire(&node.id)), output_mask: Some(AgentMask::default()) };
    let bare = world::agents(&domain).await.get_agent(request).await.unwrap().into_inner();
    assert_eq!(bare, types::Agent { id: Some(id_to_wire(&node.id)), ..types::Agent::default() });
}

#[tokio::test]
async fn ids_that_are_no_agents_are_refused_and_unknown_agents_not_found() {
    let domain = Domain::start().await.unwrap();
    let mut client = world::agents(&domain).await;
    let unknown = Some(id_to_wire(&spiffe_id("/spire/agent/join_token/unknown")));
    assert_eq!(
        client.get_agent(GetAgentRequest { id: unknown.clone(), output_mask: None }).await.unwrap_err().message(),
        "agent not found"
    );
    assert_eq!(client.ban_agent(BanAgentRequest { id: unknown.clone() }).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.delete_agent(DeleteAgentRequest { id: unknown }).await.unwrap_err().code(), Code::NotFound);
    let foreign = Some(types::Spiffeid { trust_domain: "other.test".to_owned(), path: "/spire/agent/x".to_owned() });
    for id in [None, Some(id_to_wire(&spiffe_id("/workload"))), foreign, Some(id_to_wire(&spiffe_id("/spire/server")))] {
        let status = client.delete_agent(DeleteAgentRequest { id }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with("invalid agent ID: "), "{status}");
    }
}

#[tokio::test]
async fn listings_count_filter_and_page() {
    let (domain, clock) = world::virtual_domain("").await;
    let first = world::node(&domain).await;
    clock.advance(Duration::from_secs(600));
    let second = world::node(&domain).await;
    let third = world::node(&domain).await;
    ban(&domain, &third).await;
    let found = async |filter: Filter| -> Result<Vec<String>, Status> {
        let request = ListAgentsRequest { filter: Some(filter.clone()), ..ListAgentsRequest::default() };
        let listed = world::agents(&domain).await.list_agents(request).await?.into_inner().agents;
        let filter = count_agents_request::Filter {
            by_attestation_type: filter.by_attestation_type,
            by_selector_match: filter.by_selector_match,
            by_banned: filter.by_banned,
            by_can_reattest: filter.by_can_reattest,
            by_expires_before: filter.by_expires_before,
        };
        let counted = world::agents(&domain).await.count_agents(CountAgentsRequest { filter: Some(filter) }).await?.into_inner().count;
        assert_eq!(counted, i32::try_from(listed.len()).unwrap());
        let mut paths: Vec<String> = listed.into_iter().map(|a| a.id.unwrap().path).collect();
        paths.sort();
        Ok(paths)
    };
    let paths = |nodes: &[&NodeIdentity]| {
        let mut paths: Vec<String> = nodes.iter().map(|n| n.id.path().to_owned()).collect();
        paths.sort();
        paths
    };
    assert_eq!(found(Filter::default()).await.unwrap(), paths(&[&first, &second, &third]));
    assert_eq!(found(Filter { by_banned: Some(true), ..Filter::default() }).await.unwrap(), paths(&[&third]));
    assert_eq!(found(Filter { by_banned: Some(false), ..Filter::default() }).await.unwrap(), paths(&[&first, &second]));
    assert_eq!(found(Filter { by_can_reattest: Some(true), ..Filter::default() }).await.unwrap(), paths(&[]));
    assert_eq!(found(Filter { by_attestation_type: "join_token".into(), ..Filter::default() }).await.unwrap().len(), 3);
    assert_eq!(found(Filter { by_attestation_type: "k8s_psat".into(), ..Filter::default() }).await.unwrap(), paths(&[]));
    let end = time::OffsetDateTime::from_unix_timestamp(second.leaf.not_after.secs()).unwrap();
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second] +0000 +00");
    let by_expires_before = end.format(&format).unwrap();
    assert_eq!(found(Filter { by_expires_before, ..Filter::default() }).await.unwrap(), paths(&[&first]));
    for (filter, text) in [
        (Filter { by_expires_before: "tomorrow".into(), ..Filter::default() }, "malformed expires before filter"),
        (
            Filter { by_selector_match: Some(SelectorMatch::default()), ..Filter::default() },
            "malformed selectors filter: empty selector set",
        ),
    ] {
        let status = found(filter).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(text), "{status}");
    }

    let mut client = world::agents(&domain).await;
    let (mut page_token, mut sizes) = (String::new(), Vec::new());
    loop {
        let page = client.list_agents(ListAgentsRequest { page_size: 2, page_token, ..ListAgentsRequest::default() }).await.unwrap();
        let page = page.into_inner();
        sizes.push(page.agents.len());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(sizes, [2, 1, 0]);
    let request = ListAgentsRequest { page_token: "not an ID".to_owned(), ..ListAgentsRequest::default() };
    assert_eq!(client.list_agents(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_renewed_certificate_replaces_the_old_one_when_it_is_first_used() {
    let domain = Domain::start().await.unwrap();
    let old = world::node(&domain).await;
    let renewed = world::renewed(&domain, &old).await;
    assert_eq!(renewed.id, old.id);
    // Both count until then, and the current one is still the old.
    assert_eq!(get(&domain, &old).await.unwrap().x509svid_serial_number, old.leaf.serial_decimal());
    post(&domain, &old, "").await.unwrap();
    post(&domain, &renewed, "").await.unwrap();
    assert_eq!(get(&domain, &old).await.unwrap().x509svid_serial_number, renewed.leaf.serial_decimal());
    let status = post(&domain, &old, "").await.unwrap_err();
    assert_eq!(world::reason(&status), Some(Reason::AgentNotActive));
    post(&domain, &renewed, "").await.unwrap();
}

#[tokio::test]
async fn of_two_renewals_only_the_last_counts() {
    let domain = Domain::start().await.unwrap();
    let old = world::node(&domain).await;
    let lost = world::renewed(&domain, &old).await;
    let last = world::renewed(&domain, &old).await;
    assert_eq!(world::reason(&post(&domain, &lost, "").await.unwrap_err()), Some(Reason::AgentNotActive));
    post(&domain, &old, "").await.unwrap();
    post(&domain, &last, "").await.unwrap();
}

#[tokio::test]
async fn a_renewal_without_a_good_request_is_refused() {
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    let mut client = AgentClient::new(domain.connect(Some(&node)).await.unwrap());
    for (params, text) in [
        (None, "params cannot be nil"),
        (Some(AgentX509svidParams { csr: Vec::new() }), "missing CSR"),
        (Some(AgentX509svidParams { csr: b"nonsense".to_vec() }), "malformed CSR: malformed certificate signing request"),
        (Some(AgentX509svidParams { csr: world::forged_request() }), "malformed CSR: the request is not signed by its own key"),
    ] {
        let status = client.renew_agent(RenewAgentRequest { params }).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    }
}

#[tokio::test]
async fn a_ban_holds_until_the_node_is_evicted() {
    let domain = Domain::start().await.unwrap();
    let token = domain.token(None).await.unwrap();
    let node = domain.join(&token).await.unwrap();
    ban(&domain, &node).await;
    let shown = get(&domain, &node).await.unwrap();
    assert!(shown.banned && shown.x509svid_serial_number.is_empty());
    assert_eq!(world::reason(&post(&domain, &node, "").await.unwrap_err()), Some(Reason::AgentBanned));
    // A new token of the same name does not help it.
    let request = CreateJoinTokenRequest { ttl: 60, token: token.clone(), agent_id: None };
    world::agents(&domain).await.create_join_token(request.clone()).await.unwrap();
    let refused = domain.join(&token).await.unwrap_err();
    let status = countersign_testkit::domain::status(&refused).unwrap();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "failed to attest: agent is banned"));
    evict(&domain, &node).await.unwrap();
    assert_eq!(evict(&domain, &node).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(world::reason(&post(&domain, &node, "").await.unwrap_err()), Some(Reason::AgentNotAttested));
    // The refused attempt left the token as it was.
    domain.join(&token).await.unwrap();
}

#[tokio::test]
async fn the_version_an_agent_reports_is_shown_and_survives_a_restart() {
    let (mut domain, clock) = world::virtual_domain("").await;
    let node = world::node(&domain).await;
    post(&domain, &node, "1.2.3").await.unwrap();
    assert_eq!(get(&domain, &node).await.unwrap().agent_version, "1.2.3");
    assert_eq!(post(&domain, &node, &"v".repeat(256)).await.unwrap_err().message(), "agent version is too long");
    assert_eq!(get(&domain, &node).await.unwrap().agent_version, "1.2.3");
    // It is written down within half a minute, beside the log.
    let count = async || countersign_store::Store::open(&world::store_options(&domain)).unwrap().seen_at_start().len();
    world::rounds("the version is written down", &clock, ROUND, async || (count().await == 1).then_some(())).await;
    domain.stop_server().await;
    domain.start_server().await.unwrap();
    assert_eq!(get(&domain, &node).await.unwrap().agent_version, "1.2.3");
}

#[tokio::test]
async fn nodes_whose_certificate_ended_long_ago_are_forgotten_if_so_configured() {
    let settings = "prune_attested_nodes_expired_for = \"2h\"\n prune_tofu_nodes = true";
    let (domain, clock) = world::virtual_domain(settings).await;
    let token = domain.token(Some(&spiffe_id("/alias"))).await.unwrap();
    let lost = domain.join(&token).await.unwrap();
    let banned = world::node(&domain).await;
    ban(&domain, &banned).await;
    clock.advance(HOUR * 2);
    world::settled(&domain).await;
    let young = world::node(&domain).await;
    // An hour after its end, and past a round of pruning: nothing yet. The expired entry shows that the round took place.
    let mark = types::Entry { expires_at: domain.clock.now().secs() + 1, ..world::entry(&young.id, "/mark", &["uid:1"]) };
    let mark = domain.entry_from(mark).await.unwrap();
    let pruned = async || (!world::list(&domain).await.iter().any(|e| e.id == mark.id)).then_some(());
    world::rounds("a round of pruning", &clock, ROUND, pruned).await;
    get(&domain, &lost).await.unwrap();
    clock.advance(HOUR);
    world::rounds("the node is pruned", &clock, ROUND, async || get(&domain, &lost).await.is_err().then_some(())).await;
    assert!(world::list(&domain).await.is_empty(), "its alias went with it");
    // Bans are kept, and so is whoever is not over for long enough.
    get(&domain, &banned).await.unwrap();
    get(&domain, &young).await.unwrap();
}

#[tokio::test]
async fn no_more_nodes_than_a_batch_has_room_for_are_forgotten_at_a_time() {
    let settings = "prune_attested_nodes_expired_for = \"2h\"\n prune_tofu_nodes = true\n prune_attested_nodes_batch_size = 2";
    let (domain, clock) = world::virtual_domain(settings).await;
    for _ in 0..5 {
        world::node(&domain).await;
    }
    let count = async || world::agents(&domain).await.count_agents(CountAgentsRequest::default()).await.unwrap().into_inner().count;
    clock.advance(HOUR * 10);
    let mut before = 5;
    for left in [3, 1, 0] {
        // In steps of less than a round, so that no second one follows before this is looked at.
        world::rounds("a batch is pruned", &clock, ROUND / 2, async || (count().await < before).then_some(())).await;
        assert_eq!(count().await, left);
        before = left;
    }
}

#[tokio::test]
async fn nodes_that_cannot_attest_again_are_kept_unless_told_otherwise() {
    let (domain, clock) = world::virtual_domain("prune_attested_nodes_expired_for = \"2h\"").await;
    let lost = world::node(&domain).await;
    let mark = types::Entry { expires_at: domain.clock.now().secs() + 1, ..world::entry(&lost.id, "/mark", &["uid:1"]) };
    domain.entry_from(mark).await.unwrap();
    clock.advance(HOUR * 10);
    world::rounds("a round of pruning", &clock, ROUND, async || world::list(&domain).await.is_empty().then_some(())).await;
    get(&domain, &lost).await.unwrap();
}
