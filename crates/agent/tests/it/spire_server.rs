//! A server that has SPIRE's services only. It is our own with `countersign.agent.v1` left out, so that what it decides is real.

use std::sync::Arc;
use std::time::Duration;

use countersign_agent::End;
use countersign_identity::Bundle;
use countersign_identity::bundle::JwtAuthority;
use countersign_testkit::clock::VirtualClock;
use countersign_testkit::domain::{own_uid, trust_domain, until};
use countersign_testkit::log::Log;
use countersign_testkit::scripted::{ATTEST, Authority, ENTRIES, FOLLOW, Fate, ISSUE, KEY_ID, RENEW, STATUS, SYNC, jwt_authority};
use countersign_testkit::workload::first;
use countersign_transport::client;
use countersign_transport::clock::Clock as _;
use countersign_wire::agent::GetAgentRequest;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent_admin::admin_client::AdminClient;
use countersign_wire::agent_admin::{Conclusion, ExplainRequest, ExplainResponse};
use countersign_wire::id;
use countersign_wire::journal::Kind;
use countersign_wire::node::{Cursor, FollowResponse};
use countersign_wire::workload::{JwtBundlesResponse, X509svidResponse};
use tonic::{Code, Status};

use crate::puppet::Puppet;
use crate::support::{Foreign, OWN, PATIENCE, World, claims, message, next, next_with, paths, selector, verify, x509_bundle};

const DAY: Duration = Duration::from_secs(24 * 3600);

const SETTINGS: &str = "agent_ttl = \"8h\"\nca_ttl = \"72h\"";
/// Between two rounds, and a little more than the jitter.
const ROUND: Duration = Duration::from_secs(6);
/// How long a call waits for an identity before time goes on.
const SHORT: Duration = Duration::from_millis(200);

/// A server with SPIRE's services only, an agent that joined it, and time that stands still.
async fn world() -> (World, VirtualClock) {
    let clock = VirtualClock::at_present();
    let mut world = World::without_agent(std::sync::Arc::new(clock.clone()), SETTINGS).await;
    world.domain.speaks_spire_only = true;
    restart(&mut world).await;
    let admin = format!("admin_socket_path = \"{}\"", world.domain.directory().join("a-admin/admin.sock").display());
    let config = world.config(true, &admin).await;
    world.run(&config).await;
    (world, clock)
}

async fn restart(world: &mut World) {
    world.domain.stop_server().await;
    world.domain.start_server().await.unwrap();
}

async fn passing<T, F: Future<Output = Option<T>>>(clock: &VirtualClock, what: &str, mut look: impl FnMut() -> F) -> T {
    let looking = until(what, || {
        clock.advance(ROUND / 20);
        look()
    });
    looking.await.unwrap()
}

async fn end(mut world: World, clock: &VirtualClock) -> (World, End) {
    let mut agent = world.agent.take().unwrap();
    let ticking = async {
        loop {
            clock.advance(ROUND / 20);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let end = tokio::select! {
        end = tokio::time::timeout(PATIENCE, agent.ended()) => end.expect("it ends in time"),
        () = ticking => unreachable!("it never ends"),
    };
    agent.stop().await;
    (world, end)
}

async fn explained(world: &World) -> ExplainResponse {
    let channel = client::unix(&world.domain.directory().join("a-admin/admin.sock")).await.unwrap();
    AdminClient::new(channel).explain(ExplainRequest { subject: None }).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_bundles_and_credentials_come_by_spires_calls() {
    let (world, clock) = world().await;
    let foreign = Foreign::new("other.org");
    world.set_bundle(foreign.bundle()).await;
    let mut entry = message("/web", &[own_uid()]);
    entry.federates_with = vec!["other.org".to_owned()];
    entry.dns_names = vec!["web.example.org".to_owned()];
    let entry = world.domain.entry_from(entry).await.unwrap();
    let workload = world.workload().await;
    let svids = passing(&clock, "an identity", || async { workload.x509_svid_within(SHORT).await.ok() }).await;
    assert_eq!(verify(&svids.svids[0], world.clock.now()).dns_names, ["web.example.org"]);
    let bundles = first(workload.x509_bundles().await.unwrap()).await.unwrap().bundles;
    assert_eq!(bundles["spiffe://other.org"].as_slice(), foreign.root.as_slice());
    let token = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
    workload.validate("a", &token).await.unwrap();
    assert_eq!(claims(&token)["sub"], serde_json::json!("spiffe://example.org/web"));

    // What changes arrives with the next round, on the stream that is open.
    let mut stream = workload.x509_svids().await.unwrap();
    next(&mut stream).await;
    let entry = world.update(&entry, |e| e.hint = "door".to_owned()).await;
    clock.advance(ROUND);
    next_with(&mut stream, |m| m.svids[0].hint == "door").await;
    assert_eq!(world.issued(Kind::WorkloadX509).await.len(), 1, "what is in the certificate has not changed");
    world.delete(&entry).await;
    clock.advance(ROUND);
    let denied = tokio::time::timeout(PATIENCE, async {
        while stream.message().await?.is_some() {}
        Ok::<(), tonic::Status>(())
    });
    assert_eq!(denied.await.expect("in time").unwrap_err().code(), Code::PermissionDenied);

    // The server knows with which version it is asked.
    let id = Some(id::to_wire(&world.agent_id()));
    let request = GetAgentRequest { id, output_mask: None };
    let agent = AgentClient::new(world.domain.admin().await.unwrap()).get_agent(request).await.unwrap().into_inner();
    assert_eq!(agent.agent_version, "test");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_entries_come_in_pages_and_afterwards_only_what_changed() {
    let (world, clock) = world().await;
    for chunk in (0..1201).collect::<Vec<_>>().chunks(400) {
        let entries = chunk.iter().map(|n| message(&format!("/many/{n}"), &[selector("unix:uid:4294967294")])).collect();
        world.entries(entries).await;
    }
    let mine = world.domain.entry_from(message("/mine", &[own_uid()])).await.unwrap();
    let gone = world.domain.entry_from(message("/gone", &[own_uid()])).await.unwrap();
    let workload = world.workload().await;
    let both = || async { workload.x509_svid_within(SHORT).await.ok().filter(|m| m.svids.len() == 2) };
    passing(&clock, "both identities", both).await;
    let known = || async { (explained(&world).await.agent?.entries == 1203).then_some(()) };
    passing(&clock, "all entries", known).await;

    let mut stream = workload.x509_svids().await.unwrap();
    next(&mut stream).await;
    world.update(&mine, |e| e.hint = "mine".to_owned()).await;
    world.delete(&gone).await;
    clock.advance(ROUND);
    let message = next_with(&mut stream, |m| m.svids.iter().any(|s| s.hint == "mine") && m.svids.len() == 1).await;
    assert_eq!(paths(&message), ["/mine"]);
    let left = || async { (explained(&world).await.agent?.entries == 1202).then_some(()) };
    passing(&clock, "one entry less", left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_renewed_in_time() {
    let (world, clock) = world().await;
    world.domain.entry_from(message("/web", &[own_uid()])).await.unwrap();
    let workload = world.workload().await;
    passing(&clock, "an identity", || async { workload.x509_svid_within(SHORT).await.ok() }).await;
    let mut stream = workload.x509_svids().await.unwrap();
    let mut held = next(&mut stream).await;
    let own = world.agent_leaf().unwrap();
    // Ten hours, in which the agent's SVID comes to be renewed too.
    for _ in 0..20 {
        for _ in 0..30 {
            clock.advance(Duration::from_secs(60));
            tokio::task::yield_now().await;
        }
        held = next_with(&mut stream, |m| *m != held).await;
        verify(&held.svids[0], world.clock.now());
    }
    let renewed = || async { world.agent_leaf().filter(|leaf| leaf.der() != own.der()) };
    let renewed = passing(&clock, "the agent's SVID is renewed", renewed).await;
    assert_eq!(renewed.spiffe_id(), own.spiffe_id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_agent_ends_and_forgets_its_svid() {
    let (world, clock) = world().await;
    world.ban().await;
    let (world, end) = end(world, &clock).await;
    assert_eq!(end, End::Banned);
    assert!(world.agent_leaf().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_agent_that_cannot_attest_again_ends_and_says_so() {
    let (world, clock) = world().await;
    world.evict().await;
    let (world, end) = end(world, &clock).await;
    assert!(matches!(&end, End::MustJoinAgain(what) if what.contains("AGENT_NOT_ATTESTED") || what.contains("token")), "{end:?}");
    assert!(world.agent_leaf().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_is_away_what_is_held_is_served_and_explained() {
    let (mut world, clock) = world().await;
    world.domain.entry_from(message("/web", &[own_uid()])).await.unwrap();
    let workload = world.workload().await;
    let held = passing(&clock, "an identity", || async { workload.x509_svid_within(SHORT).await.ok() }).await;
    let told = explained(&world).await;
    assert_eq!((told.conclusion(), told.server.unwrap().connected), (Conclusion::HasIdentity, true));

    world.domain.stop_server().await;
    let lost = || async { explained(&world).await.server.filter(|s| !s.connected && !s.last_error.is_empty()) };
    passing(&clock, "the loss is known", lost).await;
    assert_eq!(workload.x509_svid().await.unwrap(), held);
    assert_eq!(explained(&world).await.conclusion(), Conclusion::HasIdentity);

    world.domain.start_server().await.unwrap();
    let back = || async { explained(&world).await.server.filter(|s| s.connected) };
    passing(&clock, "the server is found again", back).await;
    let mut stream = workload.x509_svids().await.unwrap();
    next(&mut stream).await;
    world.domain.entry_from(message("/later", &[own_uid()])).await.unwrap();
    clock.advance(ROUND);
    next_with(&mut stream, |m| m.svids.len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_serves_what_was_known_before_the_server_answers() {
    let (mut world, clock) = world().await;
    world.domain.entry_from(message("/web", &[own_uid()])).await.unwrap();
    let workload = world.workload().await;
    passing(&clock, "an identity", || async { workload.x509_svid_within(SHORT).await.ok() }).await;
    until("what is known is written down", || async { world.file("countersign-follow.state").exists().then_some(()) }).await.unwrap();
    world.stop_agent().await;
    world.domain.stop_server().await;
    let config = world.config(false, "").await;
    world.run(&config).await;
    let workload = world.workload().await;
    assert!(first(workload.x509_bundles().await.unwrap()).await.is_ok());
    assert_eq!(workload.x509_svid_within(SHORT).await.unwrap_err().code(), Code::Unavailable);
    world.domain.start_server().await.unwrap();
    let healed = passing(&clock, "the agent heals", || async { workload.x509_svid_within(SHORT).await.ok() }).await;
    verify(&healed.svids[0], world.clock.now());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_server_is_swapped_for_one_of_ours_changes_are_pushed_and_back_again() {
    let (mut world, clock) = world().await;
    world.domain.entry_from(message("/web", &[own_uid()])).await.unwrap();
    let workload = world.workload().await;
    passing(&clock, "an identity", || async { workload.x509_svid_within(SHORT).await.ok() }).await;
    let mut stream = workload.x509_svids().await.unwrap();
    let before = next(&mut stream).await;

    world.domain.speaks_spire_only = false;
    restart(&mut world).await;
    // Known by a revision, which only the stream tells.
    let pushed = || async { explained(&world).await.server.filter(|s| s.connected && s.revision > 0) };
    passing(&clock, "the stream is used", pushed).await;
    // No time passes from here on: a round never comes.
    world.domain.entry_from(message("/pushed", &[own_uid()])).await.unwrap();
    let message = next_with(&mut stream, |m| m.svids.len() == 2).await;
    assert!(message.svids.contains(&before.svids[0]), "the SVID is kept");

    world.domain.speaks_spire_only = true;
    restart(&mut world).await;
    world.domain.entry_from(crate::support::message("/polled", &[own_uid()])).await.unwrap();
    let all = || async { workload.x509_svid_within(SHORT).await.ok().filter(|m| m.svids.len() == 3) };
    passing(&clock, "the rounds go on", all).await;
}

/// An agent of a server that says what the test wants, and speaks as an old one of SPIRE's.
async fn puppet() -> Puppet {
    let mut puppet = Puppet::new().await;
    for method in [FOLLOW, ISSUE] {
        puppet.server.decide(method, Some(Fate::Refused(Status::unimplemented("unknown service countersign.agent.v1.Node"))));
    }
    puppet.start_agent().await;
    puppet
}

async fn served(puppet: &Puppet, fits: impl Fn(&X509svidResponse) -> bool) -> X509svidResponse {
    let workload = puppet.workload().await;
    let look = || async { workload.x509_svid_within(SHORT).await.ok().filter(|answer| fits(answer)) };
    passing(&puppet.clock, "a workload has its SVID", look).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_too_old_to_sync_is_asked_for_whole_lists() {
    let mut puppet = Puppet::new().await;
    for method in [FOLLOW, ISSUE, SYNC, STATUS] {
        puppet.server.decide(method, Some(Fate::Refused(Status::unimplemented("unknown method"))));
    }
    puppet.start_agent().await;
    verify(&served(&puppet, |_| true).await.svids[0], puppet.clock.now());
    passing(&puppet.clock, "some rounds", || async { (puppet.server.calls(ENTRIES) > 5).then_some(()) }).await;
    assert_eq!(puppet.server.calls(SYNC), 1, "it is not asked for again on this connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_learns_to_push_behind_a_standing_connection_is_found_out() {
    let puppet = puppet().await;
    served(&puppet, |_| true).await;
    let (asked, knocks) = (puppet.server.calls(FOLLOW), puppet.server.knocks());
    for method in [FOLLOW, ISSUE] {
        puppet.server.decide(method, None);
    }
    passing(&puppet.clock, "the stream is used", || async { (puppet.server.calls(FOLLOW) > asked).then_some(()) }).await;
    assert_eq!(puppet.server.knocks(), knocks, "on the connection that stands");
    let rounds = puppet.server.calls(SYNC);
    for _ in 0..50 {
        puppet.clock.advance(ROUND);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(puppet.server.calls(SYNC), rounds, "it is not asked at intervals any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_learns_to_push_while_it_is_in_trouble_is_found_out_within_a_minute() {
    let puppet = puppet().await;
    served(&puppet, |_| true).await;
    puppet.server.decide(SYNC, Some(Fate::Refused(Status::internal("broken"))));
    let before = puppet.server.calls(SYNC);
    let rare = until("minutes pass between two rounds", || async {
        puppet.clock.advance(Duration::from_secs(3));
        (puppet.server.calls(SYNC) >= before + 10).then_some(())
    });
    rare.await.unwrap();
    for method in [FOLLOW, ISSUE] {
        puppet.server.decide(method, None);
    }
    let (asked, since) = (puppet.server.calls(FOLLOW), puppet.clock.now());
    passing(&puppet.clock, "the stream is used", || async { (puppet.server.calls(FOLLOW) > asked).then_some(()) }).await;
    assert!(puppet.clock.now().since(since) < Duration::from_secs(90), "{:?}", puppet.clock.now().since(since));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_trouble_is_asked_less_and_less_and_what_is_held_is_served() {
    Log::listen();
    let puppet = puppet().await;
    for wrong in [Status::internal("broken"), Status::permission_denied("without a reason"), Status::unavailable("its datastore is away")] {
        let held = served(&puppet, |_| true).await;
        puppet.server.decide(SYNC, Some(Fate::Refused(wrong)));
        let before = puppet.server.calls(SYNC);
        // Five minutes, in which an untroubled server is asked 60 times.
        for _ in 0..100 {
            puppet.clock.advance(Duration::from_secs(3));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let asked = puppet.server.calls(SYNC) - before;
        assert!((2..20).contains(&asked), "{asked}");
        assert!(Log::count("ERROR", "Synchronize failed error=\"failed to fetch authorized entries: ") > 0);
        assert_eq!(puppet.workload().await.x509_svid().await.unwrap(), held);
        puppet.server.decide(SYNC, None);
        let before = puppet.server.calls(SYNC);
        passing(&puppet.clock, "it is asked as before", || async { (puppet.server.calls(SYNC) > before + 3).then_some(()) }).await;
    }
    assert_eq!(puppet.server.calls(ATTEST), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configured_interval_is_that_between_two_rounds() {
    let mut puppet = Puppet::new().await;
    for method in [FOLLOW, ISSUE] {
        puppet.server.decide(method, Some(Fate::Refused(Status::unimplemented("unknown service countersign.agent.v1.Node"))));
    }
    puppet.extra = "experimental {\n sync_interval = \"2m\"\n }";
    puppet.start_agent().await;
    served(&puppet, |_| true).await;
    let (before, since) = (puppet.server.calls(SYNC), puppet.clock.now());
    until("five rounds", || async {
        puppet.clock.advance(Duration::from_secs(2));
        (puppet.server.calls(SYNC) >= before + 5).then_some(())
    })
    .await
    .unwrap();
    // Four intervals at least, which by default are 20 seconds.
    let took = puppet.clock.now().since(since);
    assert!(took > Duration::from_secs(7 * 60), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tainted_authority_signed_is_replaced_before_its_time() {
    Log::listen();
    for spire in [true, false] {
        let mut puppet = if spire { puppet().await } else { Puppet::new().await };
        if !spire {
            puppet.start_agent().await;
        }
        let before = served(&puppet, |_| true).await;
        let own = puppet.svid_on_disk();
        let now = puppet.clock.now();
        let new = Arc::new(Authority::new(now.before(DAY), now.after(DAY)).unwrap());
        // The successor is published, then signs; then the one before it is tainted.
        let mut both = puppet.server.bundle();
        both.add_x509_authority(new.certificate.clone(), false).unwrap();
        puppet.server.publish(both.clone());
        let told = |bundle: &Bundle| {
            let bundles = vec![countersign_wire::bundle::to_wire(bundle)];
            FollowResponse {
                bundles,
                caught_up: true,
                cursor: Some(Cursor { revision: 2, ..Cursor::default() }),
                ..FollowResponse::default()
            }
        };
        if !spire {
            puppet.server.say(told(&both)).await;
        }
        passing(&puppet.clock, "the successor is known", || async {
            let bundles = first(puppet.workload().await.x509_bundles().await.ok()?).await.ok()?;
            (x509_bundle(&trust_domain(), &bundles.bundles[OWN]).x509_authorities().len() == 2).then_some(())
        })
        .await;
        puppet.server.present(Arc::clone(&new)).unwrap();
        let mut tainted = Bundle::empty(trust_domain());
        for authority in both.x509_authorities() {
            let is_old = authority.certificate.der() != new.certificate.der();
            tainted.add_x509_authority(authority.certificate.clone(), is_old).unwrap();
        }
        puppet.server.publish(tainted.clone());
        if !spire {
            puppet.server.say(told(&tainted)).await;
        }
        let after = served(&puppet, |answer| answer.svids[0].x509_svid != before.svids[0].x509_svid).await;
        let leaf = verify(&after.svids[0], puppet.clock.now());
        leaf.check_signed_by(&new.certificate.public_key).unwrap();
        passing(&puppet.clock, "the agent's SVID too", || async { (puppet.svid_on_disk() != own).then_some(()) }).await;
        assert!(
            puppet.clock.now() < verify(&before.svids[0], puppet.clock.now()).not_before.after(Duration::from_secs(20 * 60)),
            "long before its time"
        );
        assert_eq!(puppet.server.calls(RENEW), 1, "once");
        puppet.agent.take().unwrap().stop().await;
    }
    for (level, line) in [
        ("DEBUG", "New tainted X.509 authorities found"),
        ("INFO", "Tainted X.509 SVIDs tainted_x509_svids=1"),
        ("INFO", "Agent SVID is tainted by a root authority, forcing rotation"),
    ] {
        assert_eq!(Log::count(level, line), 2, "{line}, once for each agent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_tainted_key_is_not_given_again() {
    Log::listen();
    let puppet = puppet().await;
    served(&puppet, |_| true).await;
    let workload = puppet.workload().await;
    let fetch = || async { workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid };
    let before = fetch().await;
    puppet.clock.advance(Duration::from_secs(10));
    assert_eq!(fetch().await, before, "it is kept");
    let mut bundle = puppet.server.bundle();
    bundle.add_jwt_authority(jwt_authority(true)).unwrap();
    let published_at = puppet.clock.now();
    puppet.server.publish(bundle);
    let after = || async { Some(fetch().await).filter(|token| *token != before) };
    passing(&puppet.clock, "another token", after).await;
    assert!(puppet.clock.now() < published_at.after(Duration::from_secs(60)), "long before half of its life");
    let removed = "JWT-SVIDs were removed from the JWT cache because they were issued by a tainted authority";
    assert_eq!(Log::count("INFO", removed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_authority_has_left_the_bundle_is_not_given_again() {
    let puppet = puppet().await;
    served(&puppet, |_| true).await;
    let workload = puppet.workload().await;
    let fetch = || async { workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid };
    let knows = |key_id: &'static str| {
        let workload = workload.clone();
        async move { first(workload.jwt_bundles().await.ok()?).await.ok().filter(|b| has_key(b, key_id)).map(drop) }
    };
    let published = |key_id: &str| {
        let mut bundle = Bundle::empty(trust_domain());
        for authority in puppet.server.bundle().x509_authorities() {
            bundle.add_x509_authority(authority.certificate.clone(), false).unwrap();
        }
        bundle.add_jwt_authority(JwtAuthority { key_id: key_id.to_owned(), ..jwt_authority(false) }).unwrap();
        puppet.server.publish(bundle);
    };
    published(KEY_ID);
    passing(&puppet.clock, "its key is known", || knows(KEY_ID)).await;
    let before = fetch().await;
    puppet.clock.advance(Duration::from_secs(1));
    assert_eq!(fetch().await, before, "it is kept");
    // As after a start over, or a revocation. What comes now is signed by a key that has not come yet, and is kept.
    published("another");
    passing(&puppet.clock, "the other key is known", || knows("another")).await;
    let after = fetch().await;
    assert_ne!(after, before);
    puppet.clock.advance(Duration::from_secs(1));
    assert_eq!(fetch().await, after);
}

fn has_key(bundles: &JwtBundlesResponse, key_id: &str) -> bool {
    bundles.bundles.get(OWN).is_some_and(|jwks| String::from_utf8_lossy(jwks).contains(&format!("\"{key_id}\"")))
}
