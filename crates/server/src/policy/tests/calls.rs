//! May this caller make this call.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use countersign_identity::{Entry, Timestamp};
use countersign_store::{Change, Node};
use countersign_transport::tcp::TlsIdentity;
use countersign_wire::types::permission_denied_details::Reason;
use tonic::Code;
use tonic::body::Body;
use tower::{Layer as _, Service};

use super::{HOUR, MOMENT, NOW, Stage, agent_id, entry, id, identity, local, node, remote};
use crate::policy::caller::{Kind, Proof};
use crate::policy::gate::{AgentRefusal, GateLayer, Standing, judge_agent};
use crate::policy::table::{self, TABLE};

const ATTEST: &str = "/spire.api.server.agent.v1.Agent/AttestAgent";
const COUNT: &str = "/spire.api.server.agent.v1.Agent/CountAgents";
const STATUS: &str = "/spire.api.server.agent.v1.Agent/PostStatus";
const FEDERATED: &str = "/spire.api.server.bundle.v1.Bundle/GetFederatedBundle";
const INTERMEDIATE: &str = "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA";
const INFO: &str = "/spire.api.server.debug.v1.Debug/GetInfo";
/// One method of each set of callers that the table knows.
const METHODS: [&str; 6] = [ATTEST, COUNT, STATUS, FEDERATED, INTERMEDIATE, INFO];

#[test]
fn each_set_of_callers_in_the_table_is_tried_here() {
    for row in TABLE {
        let tried = METHODS.iter().any(|method| table::find(method).unwrap().kinds == row.kinds);
        assert!(tried, "no method with the callers of {} is tried", row.method);
    }
}

#[test]
fn a_method_finds_its_own_row_and_no_other() {
    for row in TABLE {
        let found = table::find(row.method).unwrap();
        assert_eq!((found.method, found.kinds, found.scope), (row.method, row.kinds, row.scope));
    }
    let partly = [COUNT.trim_start_matches('/'), &COUNT[..COUNT.len() - 1], &format!("{COUNT}/"), &COUNT.to_lowercase(), "/", ""];
    for method in partly {
        assert!(table::find(method).is_none(), "{method}");
    }
}

fn at(not_after: Timestamp) -> TlsIdentity {
    identity(&agent_id(), "1", not_after)
}

#[test]
fn an_agents_certificate_counts_to_its_last_moment() {
    let node = node();
    assert_eq!(judge_agent(Some(&node), &at(NOW.after(MOMENT)), NOW), Ok(Standing::Current));
    assert_eq!(judge_agent(Some(&node), &at(NOW), NOW), Ok(Standing::Current));
    assert_eq!(judge_agent(Some(&node), &at(NOW.before(MOMENT)), NOW), Err(AgentRefusal::Expired));
}

#[test]
fn of_an_agents_certificates_the_current_and_the_renewed_count() {
    let judged = |current: &str, renewed: &str, presented: &str| {
        let node = Node { serial_number: current.to_owned(), new_serial_number: renewed.to_owned(), ..node() };
        judge_agent(Some(&node), &identity(&agent_id(), presented, NOW), NOW)
    };
    assert_eq!(judged("1", "2", "1"), Ok(Standing::Current));
    assert_eq!(judged("1", "2", "2"), Ok(Standing::Renewed));
    assert_eq!(judged("1", "2", "3"), Err(AgentRefusal::NotActive));
    assert_eq!(judged("1", "", "1"), Ok(Standing::Current));
    assert_eq!(judged("1", "", "3"), Err(AgentRefusal::NotActive));
    assert_eq!(judged("1", "", ""), Err(AgentRefusal::NotActive), "no renewal is no certificate without a number");
    assert_eq!(judged("1", "1", "1"), Ok(Standing::Current));
    // A ban comes before every certificate, the renewed one too.
    for presented in ["", "1", "2"] {
        assert_eq!(judged("", "2", presented), Err(AgentRefusal::Banned), "{presented:?}");
    }
    assert_eq!(judge_agent(None, &at(NOW), NOW), Err(AgentRefusal::NotAttested));
    // Of a certificate that has ended nothing else is said.
    assert_eq!(judge_agent(None, &at(NOW.before(MOMENT)), NOW), Err(AgentRefusal::Expired));
}

#[test]
fn each_refusal_of_an_agent_has_its_reason_and_its_log_line() {
    for (refusal, reason, line) in [
        (AgentRefusal::Expired, Reason::AgentExpired, "Agent SVID is expired"),
        (AgentRefusal::NotAttested, Reason::AgentNotAttested, "Agent is not attested"),
        (AgentRefusal::Banned, Reason::AgentBanned, "Agent is banned"),
        (AgentRefusal::NotActive, Reason::AgentNotActive, "Agent SVID is not active"),
    ] {
        assert_eq!((refusal.reason(), refusal.log_line()), (reason, line));
    }
}

/// As what a caller is let through to each of [`METHODS`], in their order.
async fn admitted(stage: &Stage, proof: &Proof) -> [Option<Kind>; 6] {
    let mut kinds = [None; 6];
    for (kind, method) in kinds.iter_mut().zip(METHODS) {
        *kind = match stage.gate.admit(method, proof.clone()).await {
            Ok(caller) => Some(caller.kind),
            Err(status) => {
                assert_eq!(status.code(), Code::PermissionDenied, "{status}");
                assert_eq!(status.message(), format!("authorization denied for method {method}"));
                None
            }
        };
    }
    kinds
}

const A: Option<Kind> = Some(Kind::Anyone);
const ADMIN: [Option<Kind>; 6] = [A, Some(Kind::Admin), None, Some(Kind::Admin), None, None];
const AGENT: [Option<Kind>; 6] = [A, None, Some(Kind::Agent), Some(Kind::Agent), None, None];
const DOWNSTREAM: [Option<Kind>; 6] = [A, None, None, None, Some(Kind::Downstream), None];
const NOBODY: [Option<Kind>; 6] = [A, None, None, None, None, None];

fn entries() -> Vec<Entry> {
    let over = Some(NOW);
    let soon_over = Some(NOW.after(MOMENT));
    vec![
        entry("/plain"),
        Entry { admin: true, ..entry("/admin") },
        Entry { admin: true, expires_at: soon_over, ..entry("/admin-for-a-moment") },
        Entry { admin: true, expires_at: over, ..entry("/admin-no-more") },
        Entry { downstream: true, ..entry("/downstream") },
        Entry { downstream: true, expires_at: soon_over, ..entry("/downstream-for-a-moment") },
        Entry { downstream: true, expires_at: over, ..entry("/downstream-no-more") },
        Entry { admin: true, downstream: true, ..entry("/both") },
    ]
}

#[tokio::test]
async fn rights_come_from_entries_in_force_and_from_configuration_and_from_nothing_else() {
    let stage = Stage::with(entries()).await;
    let both = [A, Some(Kind::Admin), None, Some(Kind::Admin), Some(Kind::Downstream), None];
    for (path, expected) in [
        ("/nobody", NOBODY),
        ("/plain", NOBODY),
        ("/operator", ADMIN),
        ("/operator/below", NOBODY),
        ("/admin", ADMIN),
        ("/admin-for-a-moment", ADMIN),
        ("/admin-no-more", NOBODY),
        ("/downstream", DOWNSTREAM),
        ("/downstream-for-a-moment", DOWNSTREAM),
        ("/downstream-no-more", NOBODY),
        ("/both", both),
    ] {
        let proof = |not_after| remote(Some(identity(&id(path), "9", not_after)));
        assert_eq!(admitted(&stage, &proof(NOW.after(HOUR))).await, expected, "{path}");
        assert_eq!(admitted(&stage, &proof(NOW)).await, expected, "{path} at the last moment of its certificate");
        assert_eq!(admitted(&stage, &proof(NOW.before(MOMENT))).await, NOBODY, "{path} with a certificate that has ended");
    }
    let here = [A, Some(Kind::Local), None, Some(Kind::Local), None, Some(Kind::Local)];
    assert_eq!(admitted(&stage, &local()).await, here);
    assert_eq!(admitted(&stage, &remote(None)).await, NOBODY);
}

#[tokio::test]
async fn an_agent_is_let_through_with_the_certificate_that_counts() {
    let stage = Stage::with(Vec::new()).await;
    let with = |serial: &str| remote(Some(identity(&agent_id(), serial, NOW)));
    assert_eq!(admitted(&stage, &with("1")).await, AGENT);
    assert_eq!(stage.snapshot().node(&agent_id()).map(|n| Node::clone(n)), Some(node()), "nothing has changed");
    assert_eq!(admitted(&stage, &with("3")).await, NOBODY);
    assert_eq!(admitted(&stage, &with("2")).await, AGENT);
    assert_eq!(admitted(&stage, &with("1")).await, NOBODY, "the renewed one has been used");

    // One that administers as well is an administrator where both may call.
    let stage = Stage::with(vec![Entry { admin: true, spiffe_id: agent_id(), ..entry("/x") }]).await;
    let both = [A, Some(Kind::Admin), Some(Kind::Agent), Some(Kind::Admin), None, None];
    assert_eq!(admitted(&stage, &with("1")).await, both);
}

#[tokio::test]
async fn a_renewed_certificate_that_is_used_becomes_the_current_one() {
    let stage = Stage::with(Vec::new()).await;
    let caller = stage.gate.admit(STATUS, remote(Some(identity(&agent_id(), "2", NOW)))).await.unwrap();
    assert_eq!((caller.kind, caller.agent().unwrap().serial_number.as_str()), (Kind::Agent, "2"));
    let promoted = Node {
        serial_number: "2".to_owned(),
        expires_at: NOW.after(HOUR * 2),
        new_serial_number: String::new(),
        new_expires_at: Timestamp::EPOCH,
        ..node()
    };
    assert_eq!(stage.snapshot().node(&agent_id()).map(|n| Node::clone(n)), Some(promoted));
}

#[tokio::test]
async fn a_refused_agent_is_told_why_and_counted() {
    let banned = Node { id: id("/spire/agent/join_token/b"), serial_number: String::new(), ..node() };
    let stage = Stage::new(vec![Change::NodePut(Arc::new(node())), Change::NodePut(Arc::new(banned))]).await;
    for (name, serial, not_after, reason) in [
        ("a", "1", NOW.before(MOMENT), Reason::AgentExpired),
        ("a", "3", NOW, Reason::AgentNotActive),
        ("b", "1", NOW, Reason::AgentBanned),
        ("c", "1", NOW, Reason::AgentNotAttested),
    ] {
        let who = identity(&id(&format!("/spire/agent/join_token/{name}")), serial, not_after);
        let status = stage.gate.admit(STATUS, remote(Some(who))).await.unwrap_err();
        let expected = countersign_wire::denial::to_wire(reason, &format!("authorization denied for method {STATUS}"));
        assert_eq!((status.code(), status.message(), status.details()), (expected.code(), expected.message(), expected.details()));
    }
    let status = stage.gate.admit(INFO, remote(None)).await.unwrap_err();
    assert!(status.details().is_empty());

    let reading = crate::metrics::Reading {
        revision: 0,
        entries: 0,
        agents: 0,
        streams: 0,
        lag: 0,
        expires_in: Vec::new(),
        healthy: [("a", true), ("b", true), ("c", true)],
        handshakes_failed: 0,
        turned_away: 0,
        refusals: (0, 0),
    };
    let text = stage.gate.metrics.render(&reading);
    for reason in ["Agent SVID is expired", "Agent SVID is not active", "Agent is banned", "Agent is not attested", "not allowed"] {
        assert!(text.lines().any(|l| l.contains(&format!("reason=\"{reason}\"")) && l.ends_with(" 1")), "{reason}: {text}");
    }
}

#[tokio::test]
async fn a_method_without_a_row_is_not_there_even_for_local_callers() {
    let stage = Stage::with(Vec::new()).await;
    for proof in [local(), remote(None), remote(Some(identity(&id("/operator"), "9", NOW)))] {
        let status = stage.gate.admit("/spire.api.server.agent.v1.Agent/Nothing", proof).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }
}

/// A service that never has time, and must not be called.
#[derive(Clone)]
struct Busy;

impl Service<http::Request<Body>> for Busy {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Pending
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        panic!("called without being ready, or by nobody");
    }
}

#[tokio::test]
async fn the_gate_is_ready_when_what_is_behind_it_is_and_lets_nobody_through_without_a_peer() {
    let stage = Stage::with(Vec::new()).await;
    let mut gated = GateLayer(stage.gate.clone()).layer(Busy);
    assert!(gated.poll_ready(&mut Context::from_waker(Waker::noop())).is_pending());
    // Not even to what anyone may call: the listener attaches a peer to each connection.
    let request = http::Request::builder().uri(ATTEST).body(Body::empty()).unwrap();
    let response = pin!(gated.call(request)).await.unwrap();
    assert_eq!(tonic::Status::from_header_map(response.headers()).unwrap().code(), Code::Unauthenticated);
}
