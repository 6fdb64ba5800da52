//! A server that refuses, or dies, in the middle of something: the agent repeats what failed and drops nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use countersign_identity::bundle::JwtAuthority;
use countersign_identity::jwt;
use countersign_identity::key::KeyType;
use countersign_plugins::keys::KeyPair;
use countersign_testkit::domain::{spiffe_id, until};
use countersign_testkit::log::Log;
use countersign_testkit::scripted::{ATTEST, BUNDLE, FOLLOW, Fate, ISSUE, RENEW, jwt_authority, token};
use countersign_testkit::workload::first;
use countersign_transport::clock::Clock as _;
use countersign_wire::node::{Cursor, FollowResponse, IssueResponse, issue_response};
use countersign_wire::types::permission_denied_details::Reason;
use countersign_wire::{denial, types};
use tonic::{Code, Status};

use crate::puppet::Puppet;
use crate::support::{OWN, claims, next, verify};

const MINUTE: Duration = Duration::from_secs(60);

async fn is_served(puppet: &Puppet) {
    let workload = puppet.workload().await;
    let served = until("a workload has its SVID", || async {
        puppet.clock.advance(Duration::from_millis(500));
        workload.x509_svid_within(Duration::from_millis(300)).await.ok()
    });
    verify(&served.await.unwrap().svids[0], puppet.clock.now());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_attested_is_not_attested_again_when_the_bundle_cannot_be_had() {
    for extra in ["", "insecure_bootstrap = true"] {
        let mut puppet = Puppet::new().await;
        puppet.extra = extra;
        puppet.server.decide(BUNDLE, Some(Fate::Refused(Status::internal("broken"))));
        puppet.start_agent().await;
        let svid = puppet.svid_on_disk();
        // A restart does not ask for more either.
        puppet.agent.take().unwrap().stop().await;
        puppet.start_agent().await;
        puppet.server.decide(BUNDLE, None);
        is_served(&puppet).await;
        assert_eq!((puppet.server.calls(ATTEST), puppet.svid_on_disk()), (1, svid), "{extra}");
        puppet.agent.take().unwrap().stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_attested_is_not_attested_again_when_the_server_dies_right_after() {
    for extra in ["", "insecure_bootstrap = true"] {
        let mut puppet = Puppet::new().await;
        puppet.extra = extra;
        puppet.server.decide(BUNDLE, Some(Fate::Dies));
        puppet.start_agent().await;
        let svid = puppet.svid_on_disk();
        puppet.server.decide(BUNDLE, None);
        puppet.server.revive();
        is_served(&puppet).await;
        assert_eq!((puppet.server.calls(ATTEST), puppet.svid_on_disk()), (1, svid), "{extra}");
        puppet.agent.take().unwrap().stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_asked_too_much_is_asked_less_and_what_is_held_is_served() {
    Log::listen();
    let mut puppet = Puppet::new().await;
    puppet.start_agent().await;
    is_served(&puppet).await;
    let workload = puppet.workload().await;
    let mut open = workload.x509_svids().await.unwrap();
    let held = next(&mut open).await;
    let token = workload.jwt_svids(&["kept"], "").await.unwrap().remove(0).svid;
    let svid = puppet.svid_on_disk();

    for method in [ATTEST, RENEW, BUNDLE, FOLLOW, ISSUE] {
        puppet.server.decide(method, Some(Fate::Refused(Status::resource_exhausted("slow down"))));
    }
    puppet.cut();
    let before = [ISSUE, FOLLOW, RENEW].map(|m| puppet.server.calls(m));
    // Half an hour, in which the agent's SVID and the workload's come to be renewed.
    for step in 0..90 {
        puppet.clock.advance(MINUTE / 3);
        assert_eq!(workload.x509_svid().await.unwrap(), held, "step {step}");
        if step < 6 {
            assert_eq!(workload.jwt_svids(&["kept"], "").await.unwrap().remove(0).svid, token);
        }
        // Who wants something new hears that it cannot be had now, and costs the server nothing.
        let refused = workload.jwt_svids(&["another"], "").await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert!(first(workload.x509_bundles().await.unwrap()).await.unwrap().bundles.contains_key(OWN));
    }
    let asked = [ISSUE, FOLLOW, RENEW].map(|m| puppet.server.calls(m));
    assert!(asked[0] > before[0] && asked[1] > before[1] + 3, "it tried: {before:?} {asked:?}");
    assert!(asked[0] - before[0] < 30, "{before:?} {asked:?}");
    assert!(asked[1] - before[1] < 120, "{before:?} {asked:?}");
    let failed = Log::lines("WARN", "Failed to mint X509 SVID");
    assert!(failed.iter().any(|line| line.contains("spiffe_id=spiffe://example.org/web ")), "{failed:?}");
    assert_eq!((puppet.server.calls(ATTEST), puppet.svid_on_disk()), (1, svid), "nothing is dropped");

    for method in [ATTEST, RENEW, BUNDLE, FOLLOW, ISSUE] {
        puppet.server.decide(method, None);
    }
    let healed = until("tokens come again", || async {
        puppet.clock.advance(Duration::from_millis(500));
        workload.jwt_svids(&["another"], "").await.ok()
    });
    assert_eq!(claims(&healed.await.unwrap().remove(0).svid)["aud"], serde_json::json!(["another"]));
    let ticking = async {
        loop {
            puppet.clock.advance(Duration::from_millis(100));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        renewed = next(&mut open) => assert_ne!(renewed, held, "renewed on the stream that was open all the time"),
        () = ticking => unreachable!("it never ends"),
    }
    assert_eq!(puppet.server.calls(ATTEST), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_the_renewal_of_the_agents_svid_overtakes_is_repeated_and_its_caller_does_not_notice() {
    let mut puppet = Puppet::new().await;
    puppet.start_agent().await;
    is_served(&puppet).await;
    let workload = puppet.workload().await;
    let before = puppet.server.calls(ISSUE);
    puppet.server.decide(ISSUE, Some(Fate::Refused(denial::to_wire(Reason::AgentNotActive, "denied"))));
    let audience = ["a"];
    let mut call = std::pin::pin!(workload.jwt_svids(&audience, ""));
    let refused = until("the old connection is refused", || async { (puppet.server.calls(ISSUE) > before).then_some(()) });
    tokio::select! {
        refused = refused => refused.unwrap(),
        answer = &mut call => panic!("the caller noticed: {answer:?}"),
    }
    puppet.server.decide(ISSUE, None);
    puppet.cut();
    let connected = async {
        loop {
            puppet.clock.advance(Duration::from_millis(50));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        answer = call => assert_eq!(claims(&answer.unwrap().remove(0).svid)["aud"], serde_json::json!(["a"])),
        () = connected => unreachable!("it never ends"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_says_about_itself_stays_with_the_operator() {
    let mut puppet = Puppet::new().await;
    puppet.start_agent().await;
    is_served(&puppet).await;
    let workload = puppet.workload().await;
    for code in [Code::Unavailable, Code::Internal, Code::PermissionDenied, Code::NotFound, Code::Unknown, Code::ResourceExhausted] {
        puppet.server.decide(ISSUE, Some(Fate::Refused(Status::new(code, "`/secret/place` is full"))));
        let told = workload.jwt_svids(&["a"], "").await.unwrap_err();
        assert_eq!(told.code(), Code::Unavailable);
        assert!(told.message().starts_with("could not fetch JWT-SVID: ") && !told.message().contains("secret"), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_what_was_asked_for_is_handed_to_nobody() {
    let mut puppet = Puppet::new().await;
    puppet.start_agent().await;
    is_served(&puppet).await;
    let workload = puppet.workload().await;
    let now = puppet.clock.now();
    let (own, other) = (spiffe_id("/web"), spiffe_id("/other"));
    let asked = ["a".to_owned()];
    let end = now.after(MINUTE);
    let refused = [
        "no token".to_owned(),
        token(&other, &asked, now, end),
        token(&own, &["b".to_owned()], now, end),
        token(&own, &["a".to_owned(), "b".to_owned()], now, end),
        token(&own, &[], now, end),
        token(&own, &asked, now.before(MINUTE), now),
        "x".repeat(jwt::TOKEN_BYTES_MAX + 1),
    ];
    for wrong in refused {
        let svid = types::Jwtsvid { token: wrong.clone(), issued_at: now.secs(), expires_at: end.secs(), ..types::Jwtsvid::default() };
        puppet.server.say_to_issue(Some(IssueResponse { credential: Some(issue_response::Credential::Jwt(svid)) }));
        let told = workload.jwt_svids(&["a"], "").await.unwrap_err();
        assert_eq!(told.code(), Code::Unavailable, "{wrong}");
    }
    puppet.server.say_to_issue(None);
    assert_eq!(claims(&workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid)["sub"], serde_json::json!(own.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_its_key_did_not_sign_is_handed_to_nobody_and_an_unknown_key_is_waited_for() {
    let mut puppet = Puppet::new().await;
    puppet.start_agent().await;
    is_served(&puppet).await;
    let workload = puppet.workload().await;
    let fetch = |audience: &'static str| {
        let workload = workload.clone();
        async move { workload.jwt_svids(&[audience], "").await.map(|mut svids| svids.remove(0).svid) }
    };
    let stranger = KeyPair::generate(KeyType::EcP256).unwrap().public_key().clone();
    let revision = AtomicU64::new(1);
    let tell = async |authorities: &[JwtAuthority]| {
        let mut bundle = puppet.server.bundle();
        authorities.iter().for_each(|authority| bundle.add_jwt_authority(authority.clone()).unwrap());
        let cursor = Some(Cursor { revision: revision.fetch_add(1, Ordering::Relaxed) + 1, ..Cursor::default() });
        let bundles = vec![countersign_wire::bundle::to_wire(&bundle)];
        puppet.server.say(FollowResponse { bundles, caught_up: true, cursor, ..FollowResponse::default() }).await;
    };
    let other = JwtAuthority { key_id: "other".to_owned(), public_key: stranger.clone(), ..jwt_authority(false) };
    let false_one = JwtAuthority { public_key: stranger, ..jwt_authority(false) };

    // Before any key is known nothing can be verified; what was handed out then is looked at when its key has come.
    let unverified = fetch("a").await.unwrap();
    puppet.clock.advance(Duration::from_secs(1));
    assert_eq!(fetch("a").await.unwrap(), unverified);
    tell(std::slice::from_ref(&false_one)).await;
    for audience in ["a", "b"] {
        let told = fetch(audience).await.unwrap_err();
        assert_eq!(told.code(), Code::Unavailable, "{told:?}");
    }
    tell(&[jwt_authority(false)]).await;
    let verified = fetch("a").await.unwrap();
    puppet.clock.advance(Duration::from_secs(1));
    assert_eq!(fetch("a").await.unwrap(), verified);

    // The key comes while the token waits for it, rightly or wrongly.
    for (key, is_right) in [(jwt_authority(false), true), (false_one, false)] {
        tell(std::slice::from_ref(&other)).await;
        let issued = puppet.server.calls(ISSUE);
        let waiting = tokio::spawn(fetch(if is_right { "c" } else { "d" }));
        until("it is issued", || async { (puppet.server.calls(ISSUE) > issued).then_some(()) }).await.unwrap();
        tell(&[other.clone(), key]).await;
        assert_eq!(waiting.await.unwrap().is_ok(), is_right);
    }
    // It does not come, and nobody is refused for that.
    tell(&[other]).await;
    let unknown = fetch("e").await.unwrap();
    puppet.clock.advance(Duration::from_secs(1));
    assert_eq!(fetch("e").await.unwrap(), unknown, "it is kept");
}
