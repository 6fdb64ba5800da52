//! Every RPC tried by every kind of caller. What is expected is computed from the authorization table, nothing is listed here.

use std::time::Duration;

use countersign_server::policy::Kind;
use countersign_server::policy::table::{Row, TABLE};
use countersign_wire::agent;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::bundle_api::BatchSetFederatedBundleRequest;
use countersign_wire::types;
use countersign_wire::types::permission_denied_details::Reason;
use http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::world::{self, Anyhow, Domain, Foreign, HOUR, NodeIdentity, VirtualClock, id_to_wire, present, spiffe_id};

/// What became of a call.
#[derive(Debug)]
pub enum Outcome {
    /// The gate refused it.
    Refused(Status),
    /// A handler saw it, whatever it thought of an empty message.
    Through(Option<Status>),
}

/// Calls a method with an empty message and reads the first answer. To the server a unary call looks the same.
pub async fn call(channel: Channel, method: &str) -> Outcome {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = PathAndQuery::try_from(method).unwrap();
    // An empty message decodes as any other, and any other as this one.
    let called = world::soon(method, grpc.server_streaming(Request::new(()), path, ProstCodec::<(), ()>::default())).await;
    let status = match called {
        Err(status) => Some(status),
        Ok(answer) => world::soon(method, answer.into_inner().message()).await.err(),
    };
    match status {
        Some(status) if status.code() == Code::PermissionDenied && status.message().starts_with("authorization denied for method ") => {
            Outcome::Refused(status)
        }
        status => Outcome::Through(status),
    }
}

/// A caller, what it is, and why it is no agent if it presents a certificate and is none.
struct Caller {
    name: &'static str,
    channel: Channel,
    kinds: &'static [Kind],
    no_agent: Option<Reason>,
}

impl Caller {
    fn may(&self, row: &Row) -> bool {
        row.kinds.iter().any(|kind| *kind == Kind::Anyone || self.kinds.contains(kind))
    }

    /// What is wrong with how the server treats it, in words.
    async fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for row in TABLE {
            let complain = |what: String| format!("{} calls {}: {what}", self.name, row.method);
            match call(self.channel.clone(), row.method).await {
                Outcome::Refused(status) if self.may(row) => complaints.push(complain(format!("refused: {status}"))),
                Outcome::Refused(status) => {
                    if status.message() != format!("authorization denied for method {}", row.method) {
                        complaints.push(complain(format!("refused as {:?}", status.message())));
                    }
                    let expected = self.no_agent.filter(|_| row.kinds.contains(&Kind::Agent));
                    if world::reason(&status) != expected {
                        complaints.push(complain(format!("refused for {:?}, expected {expected:?}", world::reason(&status))));
                    }
                }
                Outcome::Through(_) if !self.may(row) => complaints.push(complain("let through".to_owned())),
                // gRPC's own answer for a path without a service has no text; a handler's has.
                Outcome::Through(Some(status)) if status.code() == Code::Unimplemented && status.message().is_empty() => {
                    complaints.push(complain("in the table and not served".to_owned()));
                }
                Outcome::Through(Some(status)) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal) => {
                    complaints.push(complain(format!("failed: {status}")));
                }
                Outcome::Through(_) => {}
            }
        }
        complaints
    }
}

async fn complaints(callers: &[Caller]) -> String {
    let mut all = Vec::new();
    for caller in callers {
        all.extend(caller.complaints().await);
    }
    all.join("\n")
}

async fn ban(domain: &Domain, node: &NodeIdentity) {
    world::agents(domain).await.ban_agent(agent::BanAgentRequest { id: Some(id_to_wire(&node.id)) }).await.unwrap();
}

async fn evict(domain: &Domain, node: &NodeIdentity) {
    world::agents(domain).await.delete_agent(agent::DeleteAgentRequest { id: Some(id_to_wire(&node.id)) }).await.unwrap();
}

/// Renews and uses the new certificate once, so that the old one counts no longer.
async fn supersede(domain: &Domain, node: &NodeIdentity) {
    let renewed = world::renewed(domain, node).await;
    let mut client = AgentClient::new(domain.connect(Some(&renewed)).await.unwrap());
    client.post_status(agent::PostStatusRequest::default()).await.unwrap();
}

/// A domain with an administrator and a downstream server by entry, administrators by configuration, one of them foreign.
struct Stage {
    domain: Domain,
    clock: VirtualClock,
    node: NodeIdentity,
    admin: NodeIdentity,
    downstream: NodeIdentity,
    plain: NodeIdentity,
    operator: NodeIdentity,
    foreign: Foreign,
}

impl Stage {
    async fn new() -> Self {
        let ids = "admin_ids = [\"spiffe://example.org/operator\", \"spiffe://other.test/operator\"]";
        let (domain, clock) = world::virtual_domain(ids).await;
        let foreign = Foreign::new("other.test");
        let request = BatchSetFederatedBundleRequest { bundle: vec![foreign.wire(1)], output_mask: None };
        world::bundles(&domain).await.batch_set_federated_bundle(request).await.unwrap();
        let node = world::node(&domain).await;
        let entry = |path: &str| world::entry(&node.id, path, &["uid:1"]);
        let admin = domain.entry_from(types::Entry { admin: true, ..entry("/admin") }).await.unwrap();
        let downstream = domain.entry_from(types::Entry { downstream: true, ..entry("/downstream") }).await.unwrap();
        let plain = domain.entry_from(entry("/plain")).await.unwrap();
        Self {
            admin: world::workload(&domain, &node, &admin).await,
            downstream: world::workload(&domain, &node, &downstream).await,
            plain: world::workload(&domain, &node, &plain).await,
            operator: world::minted(&domain, &spiffe_id("/operator")).await,
            domain,
            clock,
            node,
            foreign,
        }
    }

    async fn caller(&self, name: &'static str, who: &NodeIdentity, kinds: &'static [Kind], no_agent: Option<Reason>) -> Caller {
        Caller { name, channel: self.domain.connect(Some(who)).await.unwrap(), kinds, no_agent }
    }
}

#[tokio::test]
async fn every_method_is_refused_to_every_caller_the_table_does_not_name() {
    let stage = Stage::new().await;
    let domain = &stage.domain;
    let banned = world::node(domain).await;
    let evicted = world::node(domain).await;
    let superseded = world::node(domain).await;
    let foreign_operator = stage.foreign.identity("spiffe://other.test/operator");
    let stranger = Some(Reason::AgentNotAttested);
    let callers = [
        Caller { name: "a stranger", channel: domain.connect(None).await.unwrap(), kinds: &[], no_agent: None },
        Caller { name: "a local process", channel: domain.admin().await.unwrap(), kinds: &[Kind::Local], no_agent: None },
        stage.caller("an administrator by entry", &stage.admin, &[Kind::Admin], stranger).await,
        stage.caller("an administrator by configuration", &stage.operator, &[Kind::Admin], stranger).await,
        stage.caller("a foreign administrator", &foreign_operator, &[Kind::Admin], stranger).await,
        stage.caller("a downstream server", &stage.downstream, &[Kind::Downstream], stranger).await,
        stage.caller("an agent", &stage.node, &[Kind::Agent], None).await,
        stage.caller("a workload", &stage.plain, &[], stranger).await,
        stage.caller("a banned agent", &banned, &[], Some(Reason::AgentBanned)).await,
        stage.caller("an evicted agent", &evicted, &[], stranger).await,
        stage.caller("an agent with a superseded certificate", &superseded, &[], Some(Reason::AgentNotActive)).await,
    ];
    ban(domain, &banned).await;
    evict(domain, &evicted).await;
    supersede(domain, &superseded).await;
    assert_eq!(complaints(&callers).await, "");
}

#[tokio::test]
async fn a_certificate_that_ends_on_an_open_connection_gives_no_rights_any_more() {
    let stage = Stage::new().await;
    let expired = Some(Reason::AgentExpired);
    let foreign_operator = stage.foreign.identity("spiffe://other.test/operator");
    let callers = [
        stage.caller("an agent whose certificate has ended", &stage.node, &[], expired).await,
        stage.caller("an administrator whose certificate has ended", &stage.admin, &[], expired).await,
        stage.caller("a configured administrator whose certificate has ended", &stage.operator, &[], expired).await,
        stage.caller("a downstream server whose certificate has ended", &stage.downstream, &[], expired).await,
        stage.caller("a workload whose certificate has ended", &stage.plain, &[], expired).await,
        // Its own authority gave it years.
        stage.caller("a foreign administrator", &foreign_operator, &[Kind::Admin], Some(Reason::AgentNotAttested)).await,
    ];
    stage.clock.advance(HOUR * 2);
    world::settled(&stage.domain).await;
    assert_eq!(complaints(&callers).await, "");
    // And no new connection comes about.
    for who in [&stage.node, &stage.admin, &stage.operator, &stage.downstream, &stage.plain] {
        assert!(is_turned_away(present(&stage.domain, who).await).await, "{} may connect", who.id);
    }
}

#[tokio::test]
async fn rights_by_entry_end_when_the_entry_is_over_or_gone() {
    let stage = Stage::new().await;
    let channel = stage.domain.connect(Some(&stage.admin)).await.unwrap();
    let count = "/spire.api.server.agent.v1.Agent/CountAgents";
    assert!(matches!(call(channel.clone(), count).await, Outcome::Through(None)));

    let mut admin = world::list(&stage.domain).await.into_iter().find(|e| e.admin).unwrap();
    admin.expires_at = stage.domain.clock.now().secs() + 20;
    world::update(&stage.domain, admin, None).await.unwrap();
    assert!(matches!(call(channel.clone(), count).await, Outcome::Through(None)));
    // At its very end; nothing is pruned for ten seconds more.
    stage.clock.advance(Duration::from_secs(20));
    assert!(matches!(call(channel.clone(), count).await, Outcome::Refused(_)));

    let again = types::Entry { admin: true, ..world::entry(&stage.node.id, "/admin", &["uid:2"]) };
    let again = stage.domain.entry_from(again).await.unwrap();
    assert!(matches!(call(channel.clone(), count).await, Outcome::Through(None)));
    world::delete(&stage.domain, &again.id).await.unwrap();
    assert!(matches!(call(channel, count).await, Outcome::Refused(_)));
}

/// Whether a peer never gets an answer: the handshake fails, or, since a client of TLS 1.3 is done first, the first call.
async fn is_turned_away(connected: Result<Channel, Anyhow>) -> bool {
    let Ok(channel) = connected else { return true };
    let mut client = countersign_wire::bundle_api::bundle_client::BundleClient::new(channel);
    match client.get_bundle(countersign_wire::bundle_api::GetBundleRequest::default()).await {
        Ok(_) => false,
        Err(status) => matches!(status.code(), Code::Unavailable | Code::Unknown),
    }
}

#[tokio::test]
async fn certificates_of_others_do_not_get_past_the_handshake() {
    let stage = Stage::new().await;
    let forger = Foreign::new("example.org");
    for (what, who) in [
        ("a self-made authority of this trust domain", forger.identity("spiffe://example.org/operator")),
        ("a self-made agent", forger.identity(stage.node.id.as_str())),
        ("a foreign trust domain with a bundle but no administrator of that name", stage.foreign.identity("spiffe://other.test/somebody")),
        ("a foreign trust domain without a bundle", Foreign::new("unknown.test").identity("spiffe://unknown.test/operator")),
        ("a foreign authority that speaks for this trust domain", stage.foreign.identity("spiffe://example.org/operator")),
    ] {
        assert!(is_turned_away(present(&stage.domain, &who).await).await, "{what} is let in");
    }
    // The measure itself: whoever should come in does.
    assert!(!is_turned_away(present(&stage.domain, &stage.operator).await).await);
    let foreign_operator = stage.foreign.identity("spiffe://other.test/operator");
    assert!(!is_turned_away(present(&stage.domain, &foreign_operator).await).await);
}

#[tokio::test]
async fn services_about_the_process_are_not_for_the_network() {
    let stage = Stage::new().await;
    let channel = stage.domain.connect(Some(&stage.admin)).await.unwrap();
    let local: Vec<&str> = TABLE.iter().filter(|row| row.kinds == [Kind::Local]).map(|row| row.method).collect();
    for service in ["Debug/", "Logger/", "Health/"] {
        assert!(local.iter().any(|m| m.contains(service)), "{service} is not local only");
    }
    for method in local {
        assert!(matches!(call(channel.clone(), method).await, Outcome::Refused(_)), "{method}");
    }
}
