//! What the operator reads of refused calls.

use std::cell::RefCell;
use std::fmt::{Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::{NOW, Stage, agent_id, id, identity, local, remote};
use crate::policy::caller::Proof;

const COUNT: &str = "/spire.api.server.agent.v1.Agent/CountAgents";
const STATUS: &str = "/spire.api.server.agent.v1.Agent/PostStatus";

thread_local! {
    /// Level and message of what this thread logged, once it listens.
    static LOGGED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// The log of all tests of this crate, each of which hears its own thread: whether a line is wanted is remembered for all
/// threads by what the first one says.
struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("countersign_server::policy")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Line(String);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                if field.name() == "message" {
                    write!(self.0, " {value:?}").unwrap();
                } else {
                    write!(self.0, " [{field}]").unwrap();
                }
            }
        }
        LOGGED.with_borrow_mut(|lines| {
            if let Some(lines) = lines {
                let mut line = Line(event.metadata().level().to_string());
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
