//! What a connection proves, and what it is called.

use std::sync::Arc;

use super::{NOW, Stage, agent_id, entry, id, identity, local, remote};
use crate::api::access::Access;
use crate::policy::caller::{Caller, Kind, Proof};
use crate::ratelimit::About;

#[test]
fn kinds_of_caller_have_their_words() {
    for (kind, name) in
        [(Kind::Anyone, "nobody"), (Kind::Local, "local"), (Kind::Admin, "admin"), (Kind::Agent, "agent"), (Kind::Downstream, "downstream")]
    {
        assert_eq!(kind.name(), name);
    }
}

#[test]
fn a_certificate_proves_an_identity_and_nothing_else_does() {
    let proof = remote(Some(identity(&agent_id(), "1", NOW)));
    assert_eq!(proof.spiffe_id(), Some(&agent_id()));
    assert_eq!(proof.identity().map(|i| (i.serial_number.as_str(), i.not_after)), Some(("1", NOW)));
    assert_eq!(proof.address(), Some("192.0.2.7".parse().unwrap()));
    assert_eq!(proof.actor().as_str(), agent_id().as_str());
    assert_eq!(proof.about(), About::Caller(proof.actor()));

    let stranger = remote(None);
    assert!(stranger.spiffe_id().is_none() && stranger.identity().is_none());
    assert_eq!(stranger.address(), Some("192.0.2.7".parse().unwrap()), "its attempts to attest are limited by its address");
    assert_eq!(stranger.actor().as_str(), "nobody at 192.0.2.7");
    assert_eq!(stranger.about(), About::Strangers);

    let here = local();
    assert!(here.spiffe_id().is_none() && here.identity().is_none());
    assert_eq!(here.address(), None, "local callers are exempt from limits by address");
    assert!(here.actor().as_str().contains(&format!("pid {}", std::process::id())), "{}", here.actor().as_str());
    assert_eq!(here.about(), About::Caller(here.actor()));
}

#[test]
fn a_connection_without_a_peer_proves_nothing() {
    let mut extensions = http::Extensions::new();
    assert!(Proof::of(&extensions).is_none());
    let Proof::Local(peer) = local() else { panic!("not local") };
    extensions.insert(peer);
    assert!(matches!(Proof::of(&extensions), Some(Proof::Local(peer)) if peer.pid == std::process::id()));
}

#[tokio::test]
async fn only_entries_of_the_callers_own_identity_give_it_rights() {
    let stage = Stage::with(vec![entry("/plain")]).await;
    let snapshot = stage.snapshot();
    let proof = |path: &str| remote(Some(identity(&id(path), "9", NOW)));
    assert!(proof("/plain").has_entry(&snapshot, |_| true));
    assert!(!proof("/plain").has_entry(&snapshot, |_| false));
    assert!(!proof("/other").has_entry(&snapshot, |_| true));
    assert!(!remote(None).has_entry(&snapshot, |_| true));
    assert!(!local().has_entry(&snapshot, |_| true));
}

#[tokio::test]
async fn only_who_was_let_through_as_an_agent_is_one_to_handlers() {
    let stage = Stage::with(Vec::new()).await;
    let proof = remote(Some(identity(&agent_id(), "1", NOW)));
    for kind in [Kind::Anyone, Kind::Local, Kind::Admin, Kind::Agent, Kind::Downstream] {
        let caller = Caller { proof: proof.clone(), kind, lines: Arc::clone(&stage.gate.lines), access: Access::default() };
        assert_eq!(caller.agent().is_some(), kind == Kind::Agent, "{kind:?}");
        assert_eq!(caller.actor().as_str(), agent_id().as_str());
    }
    let caller = Caller { proof, kind: Kind::Agent, lines: Arc::clone(&stage.gate.lines), access: Access::default() };
    assert_eq!((0..100).filter(|_| caller.is_logged()).count(), 20, "no time passes");
}
