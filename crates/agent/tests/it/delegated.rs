//! The identities of others, for whoever the configuration names: who is a delegate, what it gets, and when it no longer does.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use countersign_identity::BundleSet;
use countersign_identity::x509::{Certificate, verify_chain};
use countersign_testkit::domain::{own_uid, spiffe_id, until};
use countersign_testkit::log::Log;
use countersign_testkit::scripted::{Fate, ISSUE};
use countersign_testkit::workload::Workload;
use countersign_transport::client;
use countersign_wire::delegated_identity::delegated_identity_client::DelegatedIdentityClient;
use countersign_wire::delegated_identity::{
    FetchJwtsviDsRequest, SubscribeToJwtBundlesRequest, SubscribeToX509BundlesRequest, SubscribeToX509sviDsRequest,
    SubscribeToX509sviDsResponse,
};
use countersign_wire::types::permission_denied_details::Reason;
use countersign_wire::{denial, id, types};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::child::Caller;
use crate::puppet::Puppet;
use crate::support::{Foreign, OWN, World, answer, claims, next, next_with, selector};

/// A user whose processes no entry of these tests means but on purpose.
const NOBODY: u32 = 65_534;
const OTHER: &str = "unix:uid:4711";

fn socket(world: &World) -> PathBuf {
    world.domain.directory().join("a-admin/admin.sock")
}

/// An agent whose delegate is `/delegate`.
async fn world() -> World {
    let mut world = World::without_agent(std::sync::Arc::new(countersign_transport::clock::SystemClock), "").await;
    let line = format!("admin_socket_path = \"{}\"\nauthorized_delegates = [\"{OWN}/delegate\"]", socket(&world).display());
    let config = world.config(true, &line).await;
    world.run(&config).await;
    world
}

async fn delegate(world: &World) -> DelegatedIdentityClient<Channel> {
    DelegatedIdentityClient::new(client::unix(&socket(world)).await.unwrap())
}

fn of(selectors: &[&str]) -> Vec<types::Selector> {
    id::selectors_to_wire(&selectors.iter().map(|s| selector(s)).collect::<Vec<_>>())
}

fn by_selectors(selectors: &[&str]) -> SubscribeToX509sviDsRequest {
    SubscribeToX509sviDsRequest { selectors: of(selectors), pid: 0 }
}

fn by_pid(pid: u32) -> SubscribeToX509sviDsRequest {
    SubscribeToX509sviDsRequest { selectors: Vec::new(), pid: pid.try_into().unwrap() }
}

async fn svids(world: &World, request: SubscribeToX509sviDsRequest) -> Result<Streaming<SubscribeToX509sviDsResponse>, Status> {
    Ok(delegate(world).await.subscribe_to_x509svi_ds(request).await?.into_inner())
}

fn paths(message: &SubscribeToX509sviDsResponse) -> Vec<&str> {
    message.x509_svids.iter().map(|s| s.x509_svid.as_ref().unwrap().id.as_ref().unwrap().path.as_str()).collect()
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.message().to_owned())
}

fn denied(text: &str) -> (Code, String) {
    (Code::PermissionDenied, text.to_owned())
}

const NOT_LISTED: &str = "caller not configured as an authorized delegate";

#[tokio::test(flavor = "multi_thread")]
async fn a_delegate_gets_what_the_selectors_match_with_its_keys_and_hears_of_every_change() {
    Log::listen();
    let world = world().await;
    world.entry("/delegate").await;
    let node_id = format!("spiffe_id:{}", world.agent_id());
    let mut stream = svids(&world, by_selectors(&[OTHER, "unix:gid:1", &node_id])).await.unwrap();
    // Nothing matches yet: the list is empty, and the stream stays open.
    assert_eq!(next(&mut stream).await, SubscribeToX509sviDsResponse::default());
    // What names a node is for no workload, though a delegate may say its selectors.
    world.entry_with("/rack", |e| (e.selectors, e.parent_id) = (of(&[&node_id]), Some(id::to_wire(&world.agent_id())))).await;
    let entry = world.entry_with("/other", |e| (e.selectors, e.hint) = (of(&[OTHER]), "h".to_owned())).await;
    // Neither of these is for others, and one with a selector too many is not for this one.
    world.entry_with("/admin", |e| (e.selectors, e.admin) = (of(&[OTHER]), true)).await;
    world.entry_with("/below", |e| (e.selectors, e.downstream) = (of(&[OTHER]), true)).await;
    world.entry_with("/far", |e| e.selectors = of(&[OTHER, "unix:uid:1"])).await;
    let first = next_with(&mut stream, |m| !m.x509_svids.is_empty()).await;
    assert_eq!(paths(&first), ["/other"]);
    let svid = first.x509_svids[0].x509_svid.clone().unwrap();
    let bundles = BundleSet::from_iter([std::sync::Arc::new(world.domain.bundle().await.unwrap())]);
    let (proven, leaf) = verify_chain(&svid.cert_chain, &bundles, world.clock.now()).unwrap();
    assert_eq!((proven, svid.expires_at, svid.hint.as_str()), (spiffe_id("/other"), leaf.not_after.secs(), "h"));
    let key = countersign_plugins::keys::KeyPair::from_pkcs8(&first.x509_svids[0].x509_svid_key).unwrap();
    assert_eq!(*key.public_key(), leaf.public_key);
    // With the same hint, as in SPIRE, both are told.
    world.entry_with("/second", |e| (e.selectors, e.hint) = (of(&["unix:gid:1"]), "h".to_owned())).await;
    let both = next_with(&mut stream, |m| m.x509_svids.len() == 2).await;
    let mut both = paths(&both);
    both.sort_unstable();
    assert_eq!(both, ["/other", "/second"]);
    world.delete(&entry).await;
    assert_eq!(paths(&next_with(&mut stream, |m| m.x509_svids.len() == 1).await), ["/second"]);
    for path in ["other", "second"] {
        let lines = Log::lines("DEBUG", "Fetched X.509 SVID for delegated identity");
        assert!(lines.iter().any(|line| line.ends_with(&format!("spiffe_id=spiffe://example.org/{path}"))), "{lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_names_of_the_trust_domains_an_identity_federates_with_are_told_and_their_bundles_apart() {
    let world = world().await;
    world.entry("/delegate").await;
    let foreign = Foreign::new("other.test");
    world.set_bundle(foreign.bundle()).await;
    world.entry_with("/other", |e| (e.selectors, e.federates_with) = (of(&[OTHER]), vec!["other.test".to_owned()])).await;
    let mut stream = svids(&world, by_selectors(&[OTHER])).await.unwrap();
    let told = next_with(&mut stream, |m| !m.federates_with.is_empty()).await;
    assert_eq!((paths(&told), told.federates_with.clone()), (vec!["/other"], vec!["spiffe://other.test".to_owned()]));

    let mut client = delegate(&world).await;
    let mut x509 = client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await.unwrap().into_inner();
    let mut jwt = client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {}).await.unwrap().into_inner();
    let bundles = next_with(&mut x509, |m| m.ca_certificates.len() == 2).await.ca_certificates;
    assert_eq!(bundles["spiffe://other.test"], foreign.root);
    assert_eq!(bundles[OWN], world.domain.bundle().await.unwrap().x509_der());
    let sets = next_with(&mut jwt, |m| m.bundles.len() == 2).await.bundles;
    let set: serde_json::Value = serde_json::from_slice(&sets["spiffe://other.test"]).unwrap();
    assert_eq!((set["keys"][0]["kid"].as_str(), set["keys"].as_array().map(Vec::len)), (Some("foreign-key"), Some(1)));
    // A trust domain that is gone is gone; SPIRE's agent goes on telling of it.
    world.delete_bundle("other.test").await;
    next_with(&mut x509, |m| m.ca_certificates.keys().eq([OWN])).await;
    next_with(&mut jwt, |m| m.bundles.keys().eq([OWN])).await;
    assert_eq!(next_with(&mut stream, |m| m.federates_with.is_empty()).await.x509_svids.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delegate_gets_tokens_for_others() {
    Log::listen();
    let world = world().await;
    world.entry("/delegate").await;
    world.entry_with("/admin", |e| (e.selectors, e.admin) = (of(&[OTHER]), true)).await;
    let request = |selectors, pid| FetchJwtsviDsRequest { audience: vec!["db".to_owned()], selectors, pid };
    let mut client = delegate(&world).await;
    // An administrator's identity is as good as none.
    let none = client.fetch_jwtsvi_ds(request(of(&[OTHER]), 0)).await;
    assert_eq!(refusal(none), denied("no identity issued"));
    world.entry_with("/other", |e| (e.selectors, e.hint) = (of(&[OTHER]), "h".to_owned())).await;
    let fetched = until("a token", || {
        let mut client = client.clone();
        async move { client.fetch_jwtsvi_ds(request(of(&[OTHER]), 0)).await.ok() }
    });
    let svids = fetched.await.unwrap().into_inner().svids;
    let [svid] = svids.as_slice() else { panic!("{svids:?}") };
    let told = claims(&svid.token);
    assert_eq!((told["sub"].as_str(), told["exp"].as_i64()), (Some("spiffe://example.org/other"), Some(svid.expires_at)));
    assert_eq!((told["iat"].as_i64(), svid.hint.as_str()), (Some(svid.issued_at), "h"));
    assert_eq!(svid.id.as_ref().unwrap().path, "/other");
    assert_eq!(Log::count("DEBUG", "Fetched JWT SVID method=\"FetchJWTSVID\" spiffe_id=spiffe://example.org/other"), 1);
    // By its own number the delegate is a process like every other.
    let own = client.fetch_jwtsvi_ds(request(Vec::new(), std::process::id().try_into().unwrap())).await.unwrap().into_inner();
    assert_eq!(own.svids[0].id.as_ref().unwrap().path, "/delegate");
    // What is asked for is looked at before who asks, as in SPIRE.
    let nothing = client.fetch_jwtsvi_ds(FetchJwtsviDsRequest::default()).await;
    assert_eq!(refusal(nothing), (Code::InvalidArgument, "audience must be specified".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_not_given_of_a_process_that_ends_while_the_server_is_asked() {
    let mut puppet = Puppet::new().await;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let extra = format!("admin_socket_path = \"{}\"\nauthorized_delegates = [\"{OWN}/web\"]", socket.display());
    puppet.extra = Box::leak(extra.into_boxed_str());
    puppet.start_agent().await;
    let workload = puppet.workload().await;
    let served = until("the SVID is there", || async {
        puppet.clock.advance(Duration::from_millis(500));
        workload.x509_svid_within(Duration::from_millis(200)).await.ok()
    });
    served.await.unwrap();
    let mut sleeper = Command::new("sleep").arg("600").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let mut client = DelegatedIdentityClient::new(client::unix(&socket).await.unwrap());
    // The call waits for the next connection, and is answered on that.
    let not_active = denial::to_wire(Reason::AgentNotActive, "denied");
    puppet.server.decide(ISSUE, Some(Fate::Refused(not_active)));
    let before = puppet.server.calls(ISSUE);
    let pid = sleeper.id().try_into().unwrap();
    let request = FetchJwtsviDsRequest { audience: vec!["db".to_owned()], selectors: Vec::new(), pid };
    let fetching = tokio::spawn(async move { client.fetch_jwtsvi_ds(request).await });
    until("the server is asked", || async { (puppet.server.calls(ISSUE) > before).then_some(()) }).await.unwrap();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    puppet.server.decide(ISSUE, None);
    puppet.cut();
    let answered = until("the call is answered", || async {
        puppet.clock.advance(Duration::from_millis(100));
        fetching.is_finished().then_some(())
    });
    answered.await.unwrap();
    assert_eq!(puppet.server.calls(ISSUE), before + 2, "the server did give a token");
    assert_eq!(refusal(fetching.await.unwrap()), (Code::Unavailable, "workload attestation failed".to_owned()));
    puppet.agent.take().unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_delegate_gets_nothing_and_who_is_none_any_more_loses_the_stream() {
    let world = world().await;
    let all = || async {
        let mut client = delegate(&world).await;
        let jwt = FetchJwtsviDsRequest { audience: vec!["db".to_owned()], selectors: of(&[OTHER]), pid: 0 };
        [
            refusal(client.subscribe_to_x509svi_ds(by_selectors(&[OTHER])).await),
            refusal(client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await),
            refusal(client.fetch_jwtsvi_ds(jwt).await),
            refusal(client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {}).await),
        ]
    };
    for answer in all().await {
        assert_eq!(answer, denied("no identity issued"));
    }
    let entry = world.entry("/delegate2").await;
    for answer in all().await {
        assert_eq!(answer, denied(NOT_LISTED));
    }
    let entry = world.update(&entry, |e| e.spiffe_id = Some(id::to_wire(&spiffe_id("/delegate")))).await;
    let opened = until("it is a delegate now", || async { svids(&world, by_selectors(&[OTHER])).await.ok() });
    let mut stream = opened.await.unwrap();
    let mut bundles = delegate(&world).await.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await.unwrap().into_inner();
    next(&mut stream).await;
    next(&mut bundles).await;
    // Nothing changes for whom it asked, only for itself.
    let entry = world.update(&entry, |e| e.spiffe_id = Some(id::to_wire(&spiffe_id("/delegate2")))).await;
    assert_eq!(refusal(answer(&mut stream).await), denied(NOT_LISTED));
    assert_eq!(refusal(answer(&mut bundles).await), denied(NOT_LISTED));
    world.delete(&entry).await;
    let lost = until("it has no identity", || async {
        Some(refusal(svids(&world, by_selectors(&[OTHER])).await)).filter(|r| *r == denied("no identity issued"))
    });
    lost.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_in_spires_words() {
    let world = world().await;
    world.entry("/delegate").await;
    let both = (Code::InvalidArgument, "must provide either selectors or non-zero PID, but not both".to_owned());
    let unreadable = (Code::InvalidArgument, "could not parse provided selectors".to_owned());
    let many = vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }; 1025];
    for (selectors, pid, expected) in [
        (Vec::new(), 0, &both),
        (of(&[OTHER]), 1, &both),
        (vec![types::Selector { r#type: "unix".to_owned(), value: String::new() }], 0, &unreadable),
        (vec![types::Selector { r#type: "a:b".to_owned(), value: "c".to_owned() }], 0, &unreadable),
        (many, 0, &unreadable),
        (Vec::new(), -1, &(Code::Unavailable, "workload attestation failed".to_owned())),
        (Vec::new(), i32::MAX, &(Code::Unavailable, "workload attestation failed".to_owned())),
    ] {
        let answer = svids(&world, SubscribeToX509sviDsRequest { selectors: selectors.clone(), pid }).await;
        assert_eq!(&refusal(answer), expected, "{pid} {}", selectors.len());
        let request = FetchJwtsviDsRequest { audience: vec!["db".to_owned()], selectors, pid };
        assert_eq!(&refusal(delegate(&world).await.fetch_jwtsvi_ds(request).await), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_of_a_delegate_ends_with_its_process() {
    let world = world().await;
    world.entry("/delegate").await;
    world.entry_with("/other", |e| e.selectors = of(&[OTHER])).await;
    let (mut caller, stream) = Caller::connect(&socket(&world), None);
    // This process still holds the connection, so nothing but the death of the other can end the streams.
    let channel = Workload::over(tokio::net::UnixStream::from_std(stream).unwrap()).await.unwrap().channel;
    let mut client = DelegatedIdentityClient::new(channel);
    let mut svids = client.subscribe_to_x509svi_ds(by_selectors(&[OTHER])).await.unwrap().into_inner();
    let mut bundles = client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {}).await.unwrap().into_inner();
    next_with(&mut svids, |m| m.x509_svids.len() == 1).await;
    next(&mut bundles).await;
    caller.end();
    assert!(answer(&mut svids).await.unwrap().is_none());
    assert!(answer(&mut bundles).await.unwrap().is_none());
    let again = client.subscribe_to_x509svi_ds(by_selectors(&[OTHER])).await;
    assert_eq!(refusal(again), (Code::Unavailable, "workload attestation failed".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn by_its_number_a_process_is_attested_and_its_end_ends_the_stream() {
    let world = world().await;
    world.entry("/delegate").await;
    let mut command = Command::new("sleep");
    command.arg("600").stdin(Stdio::null()).stdout(Stdio::null());
    // Root can be somebody else, whose selectors are not its own.
    let user = if rustix::process::geteuid().is_root() { NOBODY } else { rustix::process::geteuid().as_raw() };
    std::os::unix::process::CommandExt::uid(&mut command, user);
    let wanted = format!("unix:uid:{user}");
    world.entry_with("/sleeper", |e| e.selectors = of(&[&wanted])).await;
    let mut sleeper = command.spawn().unwrap();
    let mut stream = svids(&world, by_pid(sleeper.id())).await.unwrap();
    let message = next_with(&mut stream, |m| paths(m).contains(&"/sleeper")).await;
    assert_eq!(paths(&message).contains(&"/delegate"), wanted == own_uid().to_string());
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let gone = (Code::Unavailable, "workload attestation failed".to_owned());
    assert_eq!(refusal(answer(&mut stream).await), gone);
    assert_eq!(refusal(svids(&world, by_pid(sleeper.id())).await), gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_that_is_renewed_reaches_the_delegate() {
    let clock = countersign_testkit::clock::VirtualClock::at_present();
    let mut world = World::without_agent(std::sync::Arc::new(clock.clone()), "").await;
    let line = format!("admin_socket_path = \"{}\"\nauthorized_delegates = [\"{OWN}/delegate\"]", socket(&world).display());
    let config = world.config(true, &line).await;
    world.run(&config).await;
    world.entry("/delegate").await;
    world.entry_with("/other", |e| e.selectors = of(&[OTHER])).await;
    let mut stream = svids(&world, by_selectors(&[OTHER])).await.unwrap();
    let serial = |message: &SubscribeToX509sviDsResponse| {
        let chain = &message.x509_svids[0].x509_svid.as_ref().unwrap().cert_chain;
        Certificate::parse(&chain[0]).unwrap().serial_decimal()
    };
    let first = next_with(&mut stream, |m| m.x509_svids.len() == 1).await;
    clock.advance(std::time::Duration::from_secs(1800));
    let renewed = next_with(&mut stream, |m| m.x509_svids.len() == 1 && serial(m) != serial(&first)).await;
    assert_eq!(paths(&renewed), ["/other"]);
}
