//! What has become of an entry, and if nobody has it, why not.

use std::time::Duration;

use countersign_wire::agent::BanAgentRequest;
use countersign_wire::entry_api::GetAuthorizedEntriesRequest;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::explained::entry_explainer_client::EntryExplainerClient;
use countersign_wire::explained::{AgentState, Cause, ExplainEntryRequest, ExplainEntryResponse, Finding};
use countersign_wire::node::node_client::NodeClient;
use countersign_wire::node::{Ack, FollowRequest, FollowResponse, Hello, follow_request};
use countersign_wire::types;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::world::{self, Domain, HOUR, NodeIdentity, id_to_wire, spiffe_id};

async fn explain(domain: &Domain, id: &str) -> ExplainEntryResponse {
    let mut client = EntryExplainerClient::new(domain.admin().await.unwrap());
    client.explain_entry(ExplainEntryRequest { id: id.to_owned() }).await.unwrap().into_inner()
}

/// Explains until the answer fits.
async fn explained(domain: &Domain, id: &str, fits: impl Fn(&ExplainEntryResponse) -> bool) -> ExplainEntryResponse {
    let fits = &fits;
    let look = async || Some(explain(domain, id).await).filter(|answer| fits(answer));
    world::until("an answer that fits", look).await.unwrap()
}

fn causes(answer: &ExplainEntryResponse) -> Vec<Cause> {
    answer.findings.iter().map(Finding::cause).collect()
}

/// An agent that follows and acknowledges only what the test says.
struct Following {
    out: mpsc::Sender<FollowRequest>,
    messages: Streaming<FollowResponse>,
}

impl Following {
    async fn start(domain: &Domain, node: &NodeIdentity) -> Self {
        let (out, requests) = mpsc::channel(4);
        let hello = Hello { cursor: None, agent_version: "test".to_owned() };
        out.send(FollowRequest { step: Some(follow_request::Step::Hello(hello)) }).await.unwrap();
        let mut client = NodeClient::new(domain.connect(Some(node)).await.unwrap());
        let messages = client.follow(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Self { out, messages }
    }

    /// The revision it was told last, of so many caught up with.
    async fn told(&mut self) -> u64 {
        let message = world::soon("a message", self.messages.message()).await.unwrap().unwrap();
        message.cursor.unwrap().revision
    }

    async fn acknowledge(&self, revision: u64) {
        let ack = Ack { applied: revision, persisted: revision, delivered: revision };
        self.out.send(FollowRequest { step: Some(follow_request::Step::Ack(ack)) }).await.unwrap();
    }
}

#[tokio::test]
async fn an_agent_that_follows_has_an_entry_once_it_says_so_and_holds_an_svid_until_its_end() {
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    let entry = domain.entry_from(world::entry(&node.id, "/web", &["uid:1"])).await.unwrap();
    let away = explain(&domain, &entry.id).await;
    assert_eq!((away.agents.len(), away.agents[0].state(), away.holders), (1, AgentState::NotConnected, 0));

    let mut following = Following::start(&domain, &node).await;
    let revision = following.told().await;
    let answer = explained(&domain, &entry.id, |a| a.agents[0].state() == AgentState::Behind).await;
    assert_eq!((answer.revision, answer.agents[0].behind, answer.agents[0].applied), (revision, revision, 0));
    assert_eq!(causes(&answer), [Cause::AgentsBehind]);
    following.acknowledge(revision - 1).await;
    explained(&domain, &entry.id, |a| a.agents[0].behind == 1).await;
    following.acknowledge(revision).await;
    let answer = explained(&domain, &entry.id, |a| a.agents[0].state() == AgentState::HasIt).await;
    assert_eq!((answer.agents[0].spiffe_id.as_str(), answer.agents[0].delivered), (node.id.as_str(), revision));
    assert!(answer.agents[0].last_heard > 0);
    assert_eq!(causes(&answer), [Cause::NotAskedFor]);

    let svid = world::workload(&domain, &node, &entry).await;
    let answer = explained(&domain, &entry.id, |a| a.holders == 1).await;
    assert_eq!((answer.held_until, answer.agents[0].svid_held_until), (svid.leaf.not_after.secs(), svid.leaf.not_after.secs()));
    assert_eq!(answer.agents[0].svid_serial_number, svid.leaf.serial_decimal());
    assert_eq!((causes(&answer), answer.holders_incomplete), (vec![], false));

    // What other entries do does not make it be behind; what happens to it does.
    let other = domain.entry_from(world::entry(&node.id, "/other", &["uid:2"])).await.unwrap();
    assert_eq!(explain(&domain, &entry.id).await.agents[0].state(), AgentState::HasIt);
    assert_eq!(explain(&domain, &other.id).await.agents[0].behind, 1);
    let changed = world::update(&domain, types::Entry { hint: "h".to_owned(), ..entry.clone() }, None).await.unwrap();
    let answer = explain(&domain, &changed.id).await;
    assert_eq!((answer.agents[0].state(), answer.agents[0].behind, answer.revision), (AgentState::Behind, 2, answer.head));
}

#[tokio::test]
async fn an_agent_that_polls_as_spires_do_is_there_while_it_is_heard_of() {
    let (domain, clock) = world::virtual_domain("").await;
    let node = world::node(&domain).await;
    let entry = domain.entry_from(world::entry(&node.id, "/web", &["uid:1"])).await.unwrap();
    clock.advance(Duration::from_secs(91));
    let away = explain(&domain, &entry.id).await;
    assert_eq!((away.agents[0].state(), causes(&away)), (AgentState::NotConnected, vec![Cause::AllAgentsUnavailable]));
    let mut client = EntryClient::new(domain.connect(Some(&node)).await.unwrap());
    client.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.unwrap();
    let polling = explain(&domain, &entry.id).await;
    assert_eq!((polling.agents[0].state(), causes(&polling)), (AgentState::NotConnected, vec![Cause::NotAskedFor]));
    world::workload(&domain, &node, &entry).await;
    let healthy = explained(&domain, &entry.id, |a| a.holders == 1).await;
    assert_eq!(causes(&healthy), []);
    clock.advance(Duration::from_secs(89));
    assert_eq!(causes(&explain(&domain, &entry.id).await), []);
    // An SVID in force does not say that its agent is still there.
    clock.advance(Duration::from_secs(2));
    let gone = explain(&domain, &entry.id).await;
    assert_eq!((gone.holders, causes(&gone)), (1, vec![Cause::AllAgentsUnavailable]));
}

#[tokio::test]
async fn a_parent_that_nobody_has_is_named_with_the_one_that_was_meant() {
    let domain = Domain::start().await.unwrap();
    let node = domain.join(&domain.token(Some(&spiffe_id("/racks/seven"))).await.unwrap()).await.unwrap();
    let finding = async |parent: &str| {
        let entry = domain.entry_from(world::entry(&spiffe_id(parent), &format!("/below{parent}"), &["uid:1"])).await.unwrap();
        let answer = explain(&domain, &entry.id).await;
        assert!(answer.agents.is_empty());
        let [finding] = answer.findings.as_slice() else { panic!("{:?}", answer.findings) };
        (finding.cause(), finding.subject.clone(), finding.similar.clone())
    };
    let id = |path: &str| format!("spiffe://example.org{path}");
    assert_eq!(finding("/racks/sevn").await, (Cause::ParentUnknown, id("/racks/sevn"), id("/racks/seven")));
    assert_eq!(finding("/nothing/like/anything/there").await, (Cause::ParentUnknown, id("/nothing/like/anything/there"), String::new()));
    let mistyped = node.id.path().replace("join_token/", "join_token/x");
    assert_eq!(finding(&mistyped).await, (Cause::AgentNotAttested, id(&mistyped), node.id.to_string()));
    // A parent further up is named, not the one between.
    domain.entry_from(world::entry(&spiffe_id("/racks/eihgt"), "/between", &["uid:1"])).await.unwrap();
    assert_eq!(finding("/between").await.1, id("/racks/eihgt"));
    // Two entries that hang below each other.
    domain.entry_from(world::entry(&spiffe_id("/egg"), "/hen", &["uid:1"])).await.unwrap();
    let egg = domain.entry_from(world::entry(&spiffe_id("/hen"), "/egg", &["uid:1"])).await.unwrap();
    assert_eq!(causes(&explain(&domain, &egg.id).await), [Cause::ParentCircle]);
}

#[tokio::test]
async fn an_alias_that_no_agent_satisfies_is_named_with_what_the_nearest_lacks() {
    let mut domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    domain.stop_server().await;
    world::select(&domain, &node.id, &["zone:a", "rack:1"]).await;
    domain.start_server().await.unwrap();
    let server = spiffe_id("/spire/server");
    let alias = domain.entry_from(world::entry(&server, "/zone-b", &["zone:b", "rack:1"])).await.unwrap();
    let below = domain.entry_from(world::entry(&spiffe_id("/zone-b"), "/web", &["uid:1"])).await.unwrap();
    let answer = explain(&domain, &below.id).await;
    let [finding] = answer.findings.as_slice() else { panic!("{:?}", answer.findings) };
    assert_eq!((finding.cause(), finding.subject.as_str()), (Cause::AliasUnsatisfied, "spiffe://example.org/zone-b"));
    assert_eq!((finding.similar.as_str(), finding.missing.len(), finding.missing[0].value.as_str()), (node.id.as_str(), 1, "zone:b"));
    assert_eq!(causes(&explain(&domain, &alias.id).await), [Cause::IsAlias, Cause::AliasUnsatisfied]);
    // Once an agent satisfies it, the agent is the answer.
    world::update(&domain, world::entry(&server, "/zone-b", &["zone:a"]), None).await.unwrap_err();
    world::update(&domain, types::Entry { id: alias.id.clone(), ..world::entry(&server, "/zone-b", &["zone:a"]) }, None).await.unwrap();
    let answer = explain(&domain, &below.id).await;
    assert_eq!(answer.agents[0].spiffe_id, node.id.as_str());
    assert!(!causes(&answer).contains(&Cause::AliasUnsatisfied), "{answer:?}");
}

#[tokio::test]
async fn what_is_wrong_with_entry_or_agent_is_said() {
    let (domain, clock) = world::virtual_domain("").await;
    let node = world::node(&domain).await;
    let end = domain.clock.now().after(HOUR).secs();
    let entry = domain.entry_from(types::Entry { expires_at: end, ..world::entry(&node.id, "/brief", &["uid:1"]) }).await.unwrap();
    let stored = domain.entry_from(types::Entry { store_svid: true, ..world::entry(&node.id, "/stored", &["uid:1"]) }).await.unwrap();
    assert!(causes(&explain(&domain, &stored.id).await).contains(&Cause::Stored));
    world::agents(&domain).await.ban_agent(BanAgentRequest { id: Some(id_to_wire(&node.id)) }).await.unwrap();
    let answer = explain(&domain, &entry.id).await;
    assert_eq!((answer.agents[0].state(), causes(&answer)), (AgentState::Banned, vec![Cause::AllAgentsUnavailable]));
    let other = world::node(&domain).await;
    let entry_of_other = domain.entry_from(world::entry(&other.id, "/other", &["uid:1"])).await.unwrap();
    clock.advance(HOUR + Duration::from_secs(5));
    let answer = explain(&domain, &entry_of_other.id).await;
    assert_eq!(answer.agents[0].state(), AgentState::SvidEnded);
    // Expired entries are pruned; until then this is what is said of them.
    let mut client = EntryExplainerClient::new(domain.admin().await.unwrap());
    if let Ok(answer) = client.explain_entry(ExplainEntryRequest { id: entry.id.clone() }).await {
        let answer = answer.into_inner();
        assert_eq!((answer.findings[0].cause(), answer.findings[0].at), (Cause::Expired, end));
    }
    for (id, code) in [("", Code::InvalidArgument), ("no-such-entry", Code::NotFound)] {
        assert_eq!(client.explain_entry(ExplainEntryRequest { id: id.to_owned() }).await.unwrap_err().code(), code, "`{id}`");
    }
}

#[tokio::test]
async fn of_a_large_fleet_the_agents_with_trouble_are_told_and_the_others_counted() {
    const FLEET: usize = 130;
    let domain = Domain::start().await.unwrap();
    let mut nodes = Vec::new();
    for _ in 0..FLEET {
        nodes.push(domain.join(&domain.token(Some(&spiffe_id("/fleet"))).await.unwrap()).await.unwrap());
    }
    let entry = domain.entry_from(world::entry(&spiffe_id("/fleet"), "/web", &["uid:1"])).await.unwrap();
    let mut following = Following::start(&domain, &nodes[0]).await;
    let revision = following.told().await;
    following.acknowledge(revision).await;
    world::agents(&domain).await.ban_agent(BanAgentRequest { id: Some(id_to_wire(&nodes[1].id)) }).await.unwrap();
    let has_it = |a: &ExplainEntryResponse| a.counts.iter().any(|c| c.state() == AgentState::HasIt);
    let answer = explained(&domain, &entry.id, has_it).await;
    assert_eq!((answer.agents.len(), answer.agents_left_out), (100, 30));
    assert_eq!((answer.agents[0].state(), answer.agents[0].spiffe_id.as_str()), (AgentState::Banned, nodes[1].id.as_str()));
    let mut counts: Vec<_> = answer.counts.iter().map(|c| (c.state(), c.count)).collect();
    counts.sort_by_key(|(state, _)| i32::from(*state));
    assert_eq!(counts, [(AgentState::HasIt, 1), (AgentState::NotConnected, 128), (AgentState::Banned, 1)]);
}
