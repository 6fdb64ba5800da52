//! Why a process gets the identities it gets, asked on the admin socket: who may ask, and what is told.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use countersign_testkit::domain::{own_uid, until};
use countersign_testkit::scripted::{Fate, RENEW};
use countersign_testkit::workload::Workload;
use countersign_transport::client;
use countersign_wire::agent_admin::admin_client::AdminClient;
use countersign_wire::agent_admin::explain_request::Subject;
use countersign_wire::agent_admin::{Conclusion, ExplainRequest, ExplainResponse, SelectorSet};
use countersign_wire::discovery::DiscoveryRequest;
use countersign_wire::secret_discovery::secret_discovery_service_client::SecretDiscoveryServiceClient;
use countersign_wire::{id, types};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::child::Caller;
use crate::puppet::Puppet;
use crate::support::{World, message, node, selector};

/// The user of whom nobody expects anything.
const NOBODY: u32 = 65_534;

fn socket(world: &World) -> PathBuf {
    world.domain.directory().join("a-admin/admin.sock")
}

fn line(world: &World) -> String {
    format!("admin_socket_path = \"{}\"", socket(world).display())
}

/// A world whose agent has an admin socket.
async fn world() -> World {
    let mut world = World::without_agent(std::sync::Arc::new(countersign_transport::clock::SystemClock), "").await;
    let config = world.config(true, &line(&world)).await;
    world.run(&config).await;
    std::fs::set_permissions(world.domain.directory(), std::fs::Permissions::from_mode(0o755)).unwrap();
    world
}

async fn ask(channel: Channel, subject: Option<Subject>) -> Result<ExplainResponse, Status> {
    AdminClient::new(channel).explain(ExplainRequest { subject }).await.map(tonic::Response::into_inner)
}

/// Asked by this process.
async fn explain(world: &World, subject: Option<Subject>) -> Result<ExplainResponse, Status> {
    ask(client::unix(&socket(world)).await.unwrap(), subject).await
}

fn of(selectors: &[&str]) -> Option<Subject> {
    let selectors: Vec<_> = selectors.iter().map(|s| selector(s)).collect();
    Some(Subject::Selectors(SelectorSet { selectors: id::selectors_to_wire(&selectors) }))
}

/// Explains until the answer fits.
async fn explained(world: &World, subject: Option<Subject>, fits: impl Fn(&ExplainResponse) -> bool) -> ExplainResponse {
    let fits = &fits;
    let look = || {
        let subject = subject.clone();
        async move { explain(world, subject).await.ok().filter(|answer| fits(answer)) }
    };
    until("an answer that fits", look).await.unwrap()
}

struct Sleeper(std::process::Child);

impl Sleeper {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn texts(selectors: &[types::Selector]) -> Vec<String> {
    selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_an_identity_is_told_its_selectors_its_entry_and_until_when() {
    let world = world().await;
    let entry = world.entry("/web").await;
    world.entries(vec![message("/far", &[own_uid(), selector("unix:user:nobody-of-that-name")])]).await;
    let sleeper = Sleeper::start(Command::new("sleep").arg("600"));
    let fits = |a: &ExplainResponse| a.nearest.len() == 1 && a.matching.len() == 1 && a.matching[0].svid_expires_at > 0;
    let answer = explained(&world, Some(Subject::Pid(sleeper.pid())), fits).await;
    assert_eq!(answer.conclusion(), Conclusion::HasIdentity);
    let process = answer.process.unwrap();
    assert_eq!((process.pid, process.uid), (sleeper.pid(), rustix::process::geteuid().as_raw()));
    assert!(process.program.ends_with("sleep") || process.program.contains("coreutils"), "{}", process.program);
    assert!(texts(&answer.selectors).contains(&own_uid().to_string()));
    let [attestor] = answer.attestors.as_slice() else { panic!("{:?}", answer.attestors) };
    assert_eq!((attestor.name.as_str(), attestor.error.as_str(), attestor.selectors), ("unix", "", answer.selectors.len() as u32));
    assert_eq!(answer.matching[0].entry.clone().unwrap().id, entry.id);
    assert_eq!(texts(&answer.nearest[0].missing), ["unix:user:nobody-of-that-name"]);
    let (server, agent) = (answer.server.unwrap(), answer.agent.unwrap());
    assert!(server.connected && server.since > 0 && server.last_error.is_empty() && server.revision > 0, "{server:?}");
    assert_eq!((agent.entries, agent.entries_known, agent.usual_parent_id), (2, true, node().to_string()));
    // By the selectors alone it is the same entry.
    let answer = explain(&world, of(&[own_uid().as_str()])).await.unwrap();
    assert_eq!((answer.conclusion(), answer.matching.len(), answer.process), (Conclusion::HasIdentity, 1, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_may_ask_about_itself_and_about_nobody_else() {
    if !rustix::process::geteuid().is_root() {
        // There is no other user to be: the agent's own may ask everything.
        let world = world().await;
        assert_eq!(explain(&world, None).await.unwrap().process.unwrap().pid, std::process::id());
        return;
    }
    let world = world().await;
    world
        .entries(vec![
            message("/theirs", &[selector(&format!("unix:uid:{NOBODY}")), selector("unix:user:x")]),
            message("/others", &[selector("unix:uid:1")]),
        ])
        .await;
    let fits = |a: &ExplainResponse| a.agent.as_ref().unwrap().entries == 2;
    explained(&world, None, fits).await;
    let (stranger, stream) = Caller::connect(&socket(&world), Some(NOBODY));
    let channel = Workload::over(tokio::net::UnixStream::from_std(stream).unwrap()).await.unwrap().channel;
    for itself in [None, Some(Subject::Pid(stranger.pid()))] {
        let answer = ask(channel.clone(), itself).await.unwrap();
        let process = answer.process.unwrap();
        assert_eq!((process.pid, process.uid), (stranger.pid(), NOBODY));
        assert_eq!(answer.conclusion, i32::from(Conclusion::NoMatchingEntry));
        // Of what is other people's business it is told how much there is.
        let near: Vec<_> = answer.nearest.iter().map(|n| n.entry.clone().unwrap().spiffe_id).collect();
        assert_eq!((near, answer.nearest_left_out), (vec!["spiffe://example.org/theirs".to_owned()], 1));
        assert_eq!(answer.agent.unwrap().usual_parent_id, "");
    }
    let (same_user, _held) = Caller::connect(&world.socket(), Some(NOBODY));
    let gone = 4_000_000;
    for other in [Subject::Pid(std::process::id()), Subject::Pid(same_user.pid()), Subject::Pid(gone), of(&["unix:uid:0"]).unwrap()] {
        let denied = ask(channel.clone(), Some(other.clone())).await.unwrap_err();
        let text = format!("only root, the agent's own user (uid 0), and a process about itself may ask; you are uid {NOBODY}");
        assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, text.as_str()), "{other:?}");
    }
    // Root may ask about all of them.
    let answer = explain(&world, Some(Subject::Pid(stranger.pid()))).await.unwrap();
    assert_eq!((answer.process.unwrap().uid, answer.nearest.len()), (NOBODY, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_has_ended_is_said_to_have_and_one_that_was_denied_is_remembered() {
    let world = world().await;
    // A caller that gets nothing, so that it is denied; nothing fits anybody here.
    let (mut caller, stream) = Caller::connect(&world.socket(), None);
    let workload = Workload::over(tokio::net::UnixStream::from_std(stream).unwrap()).await.unwrap();
    let pid = caller.pid();
    let denied = until("it is denied", || async { workload.x509_svid().await.err().filter(|s| s.code() == Code::PermissionDenied) });
    assert_eq!(denied.await.unwrap().message(), "no identity issued");
    let answer = explain(&world, Some(Subject::Pid(pid))).await.unwrap();
    assert!(!answer.process.unwrap().has_ended && answer.last_denial.unwrap().pid == pid);
    caller.end();

    // An Envoy that asks for an identity is a caller as any other.
    let (mut envoy, stream) = Caller::connect(&world.socket(), None);
    let channel = Workload::over(tokio::net::UnixStream::from_std(stream).unwrap()).await.unwrap().channel;
    let request = DiscoveryRequest { resource_names: vec!["default".to_owned()], ..DiscoveryRequest::default() };
    SecretDiscoveryServiceClient::new(channel).fetch_secrets(request).await.unwrap_err();
    let answer = explain(&world, Some(Subject::Pid(envoy.pid()))).await.unwrap();
    assert_eq!(answer.last_denial.unwrap().pid, envoy.pid());
    envoy.end();
    let answer = explain(&world, Some(Subject::Pid(pid))).await.unwrap();
    assert_eq!(answer.conclusion(), Conclusion::NoMatchingEntry);
    assert!(answer.process.unwrap().has_ended && answer.attestors.is_empty());
    assert!(texts(&answer.selectors).contains(&own_uid().to_string()));

    let mut sleeper = Sleeper::start(Command::new("sleep").arg("600"));
    let pid = sleeper.pid();
    sleeper.0.kill().unwrap();
    sleeper.0.wait().unwrap();
    for gone in [pid, 0, u32::MAX] {
        let status = explain(&world, Some(Subject::Pid(gone))).await;
        // Pid 0 is nobody's number and must not be taken for the asker itself.
        let status = status.unwrap_err();
        assert_eq!((status.code(), status.message().contains("has ended, or never was")), (Code::NotFound, true), "{gone}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_cannot_join_says_so_and_why() {
    let mut world = World::without_agent(std::sync::Arc::new(countersign_transport::clock::SystemClock), "").await;
    let config = world.config(true, &line(&world)).await;
    world.domain.stop_server().await;
    let clock = std::sync::Arc::clone(&world.clock);
    let starting = tokio::spawn(async move {
        let random = std::sync::Arc::new(countersign_transport::random::Seeded::new(1));
        countersign_agent::start(&config, clock, random, "test").await.unwrap()
    });
    let channel = until("the admin socket opens", || async { client::unix(&socket(&world)).await.ok() }).await.unwrap();
    let look = || {
        let channel = channel.clone();
        async move { ask(channel, None).await.ok().filter(|a| a.server.as_ref().is_some_and(|s| !s.last_error.is_empty())) }
    };
    let answer = until("an attempt has failed", look).await.unwrap();
    let server = answer.server.clone().unwrap();
    assert_eq!((answer.conclusion(), server.connected), (Conclusion::AgentNotJoined, false));
    assert!(server.last_error.contains("cannot connect") && server.last_error_at > 0, "{}", server.last_error);
    assert!(texts(&answer.selectors).contains(&own_uid().to_string()), "the process is attested all the same");
    world.domain.start_server().await.unwrap();
    world.agent = Some(starting.await.unwrap());
    let answer = explained(&world, None, |a| a.agent.as_ref().is_some_and(|a| a.entries_known)).await;
    assert_eq!(answer.conclusion(), Conclusion::NoMatchingEntry);
    assert!(answer.server.unwrap().connected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_last_said_is_told_whether_it_refused_or_went_away() {
    let mut world = world().await;
    let lazy = types::entry::AdditionalAttributes { disable_x509_svid_prefetch: true, ..types::entry::AdditionalAttributes::default() };
    world.entries(vec![types::Entry { additional_attributes: Some(lazy), ..message("/lazy", &[own_uid()]) }]).await;
    // Nobody has asked yet; the next who does gets one.
    let answer = explained(&world, None, |a| a.matching.len() == 1).await;
    assert_eq!((answer.conclusion(), answer.matching[0].svid_expires_at), (Conclusion::HasIdentity, 0));
    world.domain.stop_server().await;
    let answer = explained(&world, None, |a| !a.server.as_ref().unwrap().connected).await;
    assert_eq!(answer.conclusion(), Conclusion::ServerUnreachable);
    let server = answer.server.unwrap();
    assert!(!server.last_error.is_empty() && server.last_contact > 0, "{server:?}");
    // Asked for in vain: how often, and when next.
    let fetch = world.workload().await.x509_svid_within(std::time::Duration::from_millis(400)).await;
    assert_eq!(fetch.unwrap_err().code(), Code::Unavailable);
    let answer = explained(&world, None, |a| a.matching[0].failed_attempts > 0).await;
    assert!(!answer.matching[0].failure.is_empty(), "{:?}", answer.matching[0]);
    assert_eq!(answer.conclusion(), Conclusion::ServerUnreachable);
    world.stop_agent().await;
    assert!(!socket(&world).exists(), "an agent that stops takes its sockets away");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_told_that_the_server_failed_and_not_its_words() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut world = world().await;
    let lazy = types::entry::AdditionalAttributes { disable_x509_svid_prefetch: true, ..types::entry::AdditionalAttributes::default() };
    let entry = message("/theirs", &[selector(&format!("unix:uid:{NOBODY}"))]);
    world.entries(vec![types::Entry { additional_attributes: Some(lazy), ..entry }]).await;
    let (stranger, stream) = Caller::connect(&socket(&world), Some(NOBODY));
    let channel = Workload::over(tokio::net::UnixStream::from_std(stream).unwrap()).await.unwrap().channel;
    explained(&world, Some(Subject::Pid(stranger.pid())), |a| a.matching.len() == 1).await;
    world.domain.stop_server().await;
    explained(&world, None, |a| !a.server.as_ref().unwrap().connected).await;
    let (_fetcher, stream) = Caller::connect(&world.socket(), Some(NOBODY));
    let workload = Workload::over(tokio::net::UnixStream::from_std(stream).unwrap()).await.unwrap();
    workload.x509_svid_within(std::time::Duration::from_millis(400)).await.unwrap_err();
    let whole = explained(&world, Some(Subject::Pid(stranger.pid())), |a| !a.matching[0].failure.is_empty()).await;
    let told = ask(channel, None).await.unwrap();
    let (whole_failure, told_failure) = (&whole.matching[0].failure, &told.matching[0].failure);
    assert!(whole_failure.starts_with(&format!("{told_failure}: ")), "`{told_failure}` of `{whole_failure}`");
    assert!(!told_failure.is_empty() && !whole.server.unwrap().last_error.is_empty());
    let server = told.server.unwrap();
    assert_eq!((server.last_error.as_str(), server.last_error_at), ("", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_to_renew_the_agents_own_svid_is_told() {
    let mut puppet = Puppet::new().await;
    let apart = tempfile::tempdir().unwrap();
    let socket = apart.path().join("admin.sock");
    puppet.extra = Box::leak(format!("admin_socket_path = \"{}\"", socket.display()).into_boxed_str());
    // Without a detail that says what of the agent counts no longer, it goes on trying.
    puppet.server.decide(RENEW, Some(Fate::Refused(Status::permission_denied("not this one"))));
    puppet.start_agent().await;
    let channel = client::unix(&socket).await.unwrap();
    let look = || async {
        puppet.clock.advance(std::time::Duration::from_secs(20));
        let server = ask(channel.clone(), None).await.ok()?.server?;
        Some(server.last_error).filter(|e| e.starts_with("could not renew the agent's own SVID: "))
    };
    let told = until("the refusal is told", look).await.unwrap();
    assert!(told.ends_with(": not this one"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_selectors_are_refused_and_a_process_that_has_them_is_served() {
    let world = world().await;
    let many: Vec<String> = (0..1025).map(|n| format!("unix:supplementary_gid:{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let refused = explain(&world, of(&many)).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "too many selectors: 1025, at most 1024 are allowed"));
    assert_eq!(explain(&world, of(&many[..1024])).await.unwrap().selectors.len(), 1024);
    assert_eq!(explain(&world, of(&[])).await.unwrap_err().code(), Code::InvalidArgument);

    // Having more groups takes root.
    if rustix::process::geteuid().is_root() {
        let groups: Vec<String> = (100_000..103_000).map(|n: u32| n.to_string()).collect();
        let lazy = types::entry::AdditionalAttributes { disable_x509_svid_prefetch: true, ..types::entry::AdditionalAttributes::default() };
        let entry = message("/crowded", &[selector("unix:supplementary_gid:102999")]);
        world.entries(vec![types::Entry { additional_attributes: Some(lazy), ..entry }]).await;
        let (caller, stream) = Caller::in_groups(&world.socket(), &groups.join(","));
        let answer = explained(&world, Some(Subject::Pid(caller.pid())), |a| a.matching.len() == 1).await;
        assert!(answer.selectors.len() >= 3000 && answer.selectors_left_out == 0, "{}", answer.selectors.len());
        // What the agent says of it to the server fits into a request.
        let workload = Workload::over(tokio::net::UnixStream::from_std(stream).unwrap()).await.unwrap();
        let svid = workload.x509_svid_within(crate::support::PATIENCE).await.unwrap();
        assert_eq!(crate::support::paths(&svid), ["/crowded"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_without_end_is_put_off_and_does_not_keep_root_waiting() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = world().await;
    let (_stranger, stream) = Caller::connect(&socket(&world), Some(NOBODY));
    let channel = Workload::over(tokio::net::UnixStream::from_std(stream).unwrap()).await.unwrap().channel;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..2000 {
        asking.spawn(ask(channel.clone(), None));
    }
    explain(&world, None).await.unwrap();
    let answers = asking.join_all().await;
    let put_off = |a: &&Result<ExplainResponse, Status>| a.as_ref().is_err_and(|s| s.code() == Code::ResourceExhausted);
    assert!(answers.iter().any(|a| a.is_ok()), "some are answered");
    let refused = answers.iter().filter(|a| a.is_err()).count();
    assert!(refused > 0 && refused == answers.iter().filter(put_off).count(), "{refused}");
}
