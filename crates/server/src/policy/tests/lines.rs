//! What the operator reads of refused calls, and in the audit log.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt::{Debug, Write as _};
use std::future::pending;
use std::task::{Context, Waker};

use countersign_identity::Entry;
use tonic::body::Body;
use tower::{Layer as _, Service as _, service_fn};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::{NOW, Stage, agent_id, entry, id, identity, local, remote};
use crate::api::access::{About, hash, list, short};
use crate::policy::caller::Proof;
use crate::policy::gate::GateLayer;

const COUNT: &str = "/spire.api.server.agent.v1.Agent/CountAgents";
const STATUS: &str = "/spire.api.server.agent.v1.Agent/PostStatus";

/// Where the audit log is written, each field with its value.
const AUDIT: &str = "countersign_server::api::access";

thread_local! {
    /// Level and message of what this thread logged, once it listens.
    static LOGGED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// The log of all tests of this crate, each of which hears its own thread: whether a line is wanted is remembered for all
/// threads by what the first one says.
struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && ["countersign_server::policy", AUDIT].iter().any(|room| metadata.target().starts_with(room))
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Line(String, bool);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                if field.name() == "message" {
                    write!(self.0, " {value:?}").unwrap();
                } else if self.1 {
                    write!(self.0, " {field}={value:?}").unwrap();
                } else {
                    write!(self.0, " [{field}]").unwrap();
                }
            }
        }
        LOGGED.with_borrow_mut(|lines| {
            if let Some(lines) = lines {
                let mut line = Line(event.metadata().level().to_string(), event.metadata().target() == AUDIT);
                event.record(&mut line);
                lines.push(line.0);
            }
        });
    }
}

/// What is logged when this caller is refused this method; traces of the way are left out.
async fn logged(stage: &Stage, method: &str, proof: &Proof) -> Vec<String> {
    let _ = tracing::subscriber::set_global_default(Log);
    LOGGED.set(Some(Vec::new()));
    stage.gate.admit(method, proof.clone()).await.unwrap_err();
    let lines = LOGGED.take().unwrap();
    lines.into_iter().filter(|line| !line.starts_with("TRACE")).collect()
}

#[tokio::test]
async fn a_refusal_is_a_line_for_the_operator_until_its_caller_has_had_its_share() {
    let stage = Stage::with(Vec::new()).await;
    let stranger = vec!["WARN Failed to authenticate caller [caller] [method]".to_owned()];
    let known = "ERROR Failed to authenticate caller [caller_id] [method] [reason]".to_owned();
    let left_out = vec!["DEBUG Failed to authenticate caller [caller] [method] [reason]".to_owned()];
    let inactive = vec!["ERROR Agent SVID is not active [caller_id] [method]".to_owned(), known.clone()];
    let workload = remote(Some(identity(&id("/web"), "9", NOW)));
    let agent = remote(Some(identity(&agent_id(), "3", NOW)));
    for (method, proof, expected) in
        [(COUNT, remote(None), stranger), (COUNT, workload, vec![known.clone()]), (STATUS, local(), vec![known]), (STATUS, agent, inactive)]
    {
        for attempt in 0..20 {
            assert_eq!(logged(&stage, method, &proof).await, expected, "attempt {attempt}");
        }
        for attempt in 20..25 {
            assert_eq!(logged(&stage, method, &proof).await, left_out, "attempt {attempt}");
        }
    }
}

/// The lines of the audit log that this leaves, without the request's ID, which is checked to be one and the same.
fn audited(work: impl FnOnce()) -> Vec<String> {
    let _ = tracing::subscriber::set_global_default(Log);
    LOGGED.set(Some(Vec::new()));
    work();
    let lines: Vec<String> = LOGGED.take().unwrap().into_iter().filter(|line| !line.starts_with("TRACE")).collect();
    let mut ids = Vec::new();
    let without = lines.iter().map(|line| {
        let (before, rest) = line.split_once(" request_id=").expect("a request's ID");
        let (id, after) = rest.split_once(' ').unwrap();
        ids.push(uuid::Uuid::parse_str(id.trim_matches('"')).unwrap());
        format!("{before} {after}")
    });
    let without = without.collect();
    ids.dedup();
    assert!(ids.len() <= 1, "items of one call have one ID");
    without
}

#[tokio::test]
async fn a_call_is_audited_with_who_made_it_by_which_right_and_how_it_ended() {
    let mut stage = Stage::with(vec![Entry { admin: true, ..entry("/admin") }, Entry { downstream: true, ..entry("/below") }]).await;
    stage.gate.audit_log = true;
    let admit = async |method: &str, proof: Proof| stage.gate.admit(method, proof).await.unwrap().access;
    let known = |id: &countersign_identity::SpiffeId, serial: &str| remote(Some(identity(id, serial, NOW)));
    let head = |service: &str, method: &str, right: &str| {
        format!("INFO API accessed type=\"audit\" service=\"{service}\" method=\"{method}\" {right} caller_addr=\"192.0.2.7:40000\"")
    };

    let configured = admit(COUNT, known(&id("/operator"), "9")).await;
    let right = "authorized_as=\"admin\" authorized_via=\"config\"";
    let operator = format!("{} caller_id=\"spiffe://example.org/operator\"", head("agent.v1.Agent", "CountAgents", right));
    assert_eq!(audited(|| configured.answered(None)), [format!("{operator} status=\"success\"")]);
    let by_entry = admit(COUNT, known(&id("/admin"), "9")).await;
    assert!(audited(|| by_entry.answered(None))[0].contains(" authorized_as=\"admin\" authorized_via=\"entries\" "));
    let below = admit("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", known(&id("/below"), "9")).await;
    assert!(audited(|| below.answered(None))[0].contains(" authorized_as=\"downstream\" authorized_via=\"entries\" "));
    let agent = admit(STATUS, known(&agent_id(), "1")).await;
    assert!(audited(|| agent.answered(None))[0].contains(" authorized_as=\"agent\" authorized_via=\"datastore\" "));
    let nobody = admit("/spire.api.server.agent.v1.Agent/AttestAgent", remote(None)).await;
    let right = "authorized_as=\"nobody\" authorized_via=\"\"";
    assert_eq!(audited(|| nobody.answered(None)), [format!("{} status=\"success\"", head("agent.v1.Agent", "AttestAgent", right))]);
    let local = admit(COUNT, local()).await;
    let lines = audited(|| local.answered(None));
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let caller = format!("authorized_as=\"local\" authorized_via=\"transport\" caller_uid={uid} caller_gid={gid} caller_path=\"/");
    assert!(lines.len() == 1 && lines[0].contains(&caller), "{lines:?}");

    // What it was about, and how it failed.
    configured.about(|| About {
        ttl: Some(60),
        audience: list(["a", "b"].map(str::to_owned).into_iter()),
        ..About::spiffe_id("spiffe://x/y")
    });
    let refusal = tonic::Status::not_found("entry not found");
    let failed = format!(
        "{operator} status=\"error\" status_code=\"NotFound\" status_message=\"entry not found\" \
         spiffe_id=\"spiffe://x/y\" ttl=60 audience=\"a,b\""
    );
    assert_eq!(audited(|| configured.answered(Some(&refusal))), [failed]);
}

#[tokio::test]
async fn a_batch_has_a_line_for_each_item_and_what_is_asked_all_the_time_none() {
    let mut stage = Stage::with(Vec::new()).await;
    let off = stage.gate.admit(COUNT, local()).await.unwrap().access;
    let silent = audited(|| {
        off.item(None, || panic!("nobody reads it"));
        off.answered(None);
    });
    assert!(silent.is_empty());
    stage.gate.audit_log = true;
    let batch = stage.gate.admit(COUNT, local()).await.unwrap().access;
    let failed = countersign_wire::types::Status { code: 6, message: "similar entry already exists".to_owned() };
    let lines = audited(|| {
        batch.item(None, || Some(About::entry_id("one")));
        batch.item(Some(&failed), || Some(About::entry_id("two")));
        batch.answered(None);
    });
    let endings: Vec<&str> = lines.iter().map(|line| line.split_once(" status=").unwrap().1).collect();
    let admin = countersign_wire::types::Entry { admin: true, ..countersign_wire::types::Entry::default() };
    let wanted = audited(|| batch.item(None, || Some(About::entry(&admin))));
    assert!(wanted[0].contains(" admin=true downstream=false "), "{wanted:?}");
    let second = "\"error\" status_code=\"AlreadyExists\" status_message=\"similar entry already exists\" entry_id=\"two\"";
    assert_eq!(endings, ["\"success\" entry_id=\"one\"", second]);
    let info = stage.gate.admit("/spire.api.server.debug.v1.Debug/GetInfo", local()).await.unwrap().access;
    assert!(audited(|| info.answered(None)).is_empty());
    assert_eq!(audited(|| info.answered(Some(&tonic::Status::internal("x")))).len(), 1);
}

#[tokio::test]
async fn who_hangs_up_leaves_a_line_too() {
    let mut stage = Stage::with(Vec::new()).await;
    stage.gate.audit_log = true;
    // The handler is at work when its caller goes.
    let mut service = GateLayer(stage.gate.clone()).layer(service_fn(|_: http::Request<Body>| pending::<Result<_, Infallible>>()));
    let mut request = http::Request::new(Body::empty());
    *request.uri_mut() = COUNT.parse().unwrap();
    let Proof::Local(peer) = local() else { panic!() };
    request.extensions_mut().insert(peer);
    let lines = audited(|| {
        let mut call = service.call(request);
        assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    });
    let ending =
        " status=\"error\" status_code=\"Cancelled\" status_message=\"the caller did not wait for the answer; what was begun is finished\"";
    assert!(lines.len() == 1 && lines[0].ends_with(ending), "{lines:?}");
}

#[test]
fn what_a_client_chose_is_cut_and_secrets_are_hashed() {
    assert_eq!(list(std::iter::empty()), None);
    let long = list((0..1000).map(|n| format!("selector-{n}"))).unwrap();
    assert!(long.len() < 4200 && long.ends_with(",…"), "{}", long.len());
    assert_eq!(short(&"ü".repeat(4096)).len(), 4096);
    assert_eq!(hash(b""), None);
    assert_eq!(hash(b"abc").unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}
