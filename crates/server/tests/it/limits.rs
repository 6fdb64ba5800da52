//! What strangers, agents and local callers can cost the server, and that others are served meanwhile.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use countersign_testkit::domain::status;
use countersign_testkit::log::Log;
use countersign_transport::clock::SystemClock;
use countersign_transport::limits::{ANONYMOUS_PER_ADDRESS_MAX, CONNECTIONS_PER_IDENTITY_MAX};
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::{AgentX509svidParams, AttestAgentRequest, PostStatusRequest, RenewAgentRequest, attest_agent_request};
use countersign_wire::bundle_api::GetBundleRequest;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::journal::{IssuedRequest, Kind};
use countersign_wire::node::node_client::NodeClient;
use countersign_wire::node::{IssueRequest, issue_request};
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::svid::{BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams};
use countersign_wire::types;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use crate::journal::issued;
use crate::refusals::{Outcome, call};
use crate::world::{self, Domain, ROUND};

#[tokio::test]
async fn an_address_holds_a_bounded_number_of_connections_without_certificate() {
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    let served = async |channel| BundleClient::new(channel).get_bundle(GetBundleRequest::default()).await.is_ok();
    let mut held = Vec::new();
    // The node's own has gone by now, or will: no more than the limit are let in, and no fewer once it has.
    let full = async || {
        let channel = domain.connect(None).await.ok()?;
        let is_served = served(channel.clone()).await;
        is_served.then_some(channel)
    };
    while held.len() < ANONYMOUS_PER_ADDRESS_MAX {
        held.push(world::until("a place", &full).await.unwrap());
    }
    assert!(full().await.is_none(), "one more is let in");
    // Whoever has a certificate does not stand in that line.
    assert!(served(domain.connect(Some(&node)).await.unwrap()).await);
    drop(held.pop());
    world::until("the place that was given back", &full).await.unwrap();
}

#[tokio::test]
async fn an_identity_holds_a_bounded_number_of_connections() {
    let domain = Domain::start().await.unwrap();
    let (greedy, other) = (world::node(&domain).await, world::node(&domain).await);
    let connected = async |node| {
        let channel = domain.connect(Some(node)).await.ok()?;
        let is_served = BundleClient::new(channel.clone()).get_bundle(GetBundleRequest::default()).await.is_ok();
        is_served.then_some(channel)
    };
    let mut held = Vec::new();
    while held.len() < CONNECTIONS_PER_IDENTITY_MAX {
        held.push(connected(&greedy).await.expect("a place"));
    }
    assert!(connected(&greedy).await.is_none(), "one more is let in");
    assert!(connected(&other).await.is_some(), "another identity has its own places");
    drop(held.pop());
    world::until("the place that was given back", async || connected(&greedy).await).await.unwrap();
}

/// Joins with a token of its own.
async fn join(domain: Arc<Domain>) -> Result<(), Code> {
    let token = domain.token(None).await.unwrap();
    domain.join(&token).await.map(|_| ()).map_err(|e| status(&e).unwrap().code())
}

#[tokio::test]
async fn a_rack_behind_one_address_joins_in_turn_and_the_rest_is_told_to_come_again() {
    let (domain, clock) = world::virtual_domain("ratelimit {\n }").await;
    let domain = Arc::new(domain);
    let mut rack = JoinSet::new();
    for _ in 0..25 {
        rack.spawn(join(Arc::clone(&domain)));
    }
    // At one instant one is let in, twenty wait for the twenty seconds they would have to, and four are too many.
    let mut at_once = Vec::new();
    for _ in 0..5 {
        at_once.push(world::soon("an answer at once", rack.join_next()).await.unwrap().unwrap());
    }
    at_once.sort_by_key(Result::is_err);
    assert_eq!(
        at_once,
        [Ok(()), Err(Code::ResourceExhausted), Err(Code::ResourceExhausted), Err(Code::ResourceExhausted), Err(Code::ResourceExhausted)]
    );
    // A local process is exempt: it is told what is wrong with its token while the line is full.
    let local = {
        let data = types::AttestationData { r#type: "join_token".to_owned(), payload: b"guessed".to_vec() };
        let params = Some(AgentX509svidParams { csr: world::key().request(None, &[]).unwrap() });
        let step = Some(attest_agent_request::Step::Params(attest_agent_request::Params { data: Some(data), params }));
        let call = async || {
            let requests = tokio_stream::iter([AttestAgentRequest { step: step.clone() }]);
            world::agents(&domain).await.attest_agent(requests).await?.into_inner().message().await
        };
        world::soon("an answer to a local process", call()).await.unwrap_err()
    };
    assert_eq!(local.code(), Code::InvalidArgument, "{local}");
    for second in 0..20 {
        assert_eq!(rack.len(), 20 - second);
        clock.advance(Duration::from_secs(1));
        assert_eq!(world::soon("the next in line", rack.join_next()).await.unwrap().unwrap(), Ok(()));
    }
    // Whoever comes again is served.
    clock.advance(Duration::from_secs(1));
    assert_eq!(world::soon("a late comer", join(domain)).await, Ok(()));
}

/// A batch of so many items, each of which is refused for itself, and counts.
async fn batch(channel: Channel, count: usize) -> Result<usize, Code> {
    let params = vec![NewX509svidParams::default(); count];
    let answer = SvidClient::new(channel).batch_new_x509svid(BatchNewX509svidRequest { params }).await;
    answer.map(|a| a.into_inner().results.len()).map_err(|s| s.code())
}

#[tokio::test]
async fn an_agent_that_asks_for_too_many_signatures_stands_in_nobodys_way() {
    let (domain, clock) = world::virtual_domain("").await;
    let (greedy, other) = (world::node(&domain).await, world::node(&domain).await);
    let (greedy_channel, other_channel) = (domain.connect(Some(&greedy)).await.unwrap(), domain.connect(Some(&other)).await.unwrap());
    let mut batches = JoinSet::new();
    // 500 are there, ten thousand more come within the twenty seconds a call waits, and then no more.
    for _ in 0..22 {
        batches.spawn(batch(greedy_channel.clone(), 500));
    }
    let mut at_once = Vec::new();
    for _ in 0..2 {
        at_once.push(world::soon("an answer at once", batches.join_next()).await.unwrap().unwrap());
    }
    at_once.sort_by_key(Result::is_err);
    assert_eq!(at_once, [Ok(500), Err(Code::ResourceExhausted)]);
    // Every kind of certificate is counted, tokens apart from them.
    let issue = IssueRequest { credential: Some(issue_request::Credential::X509Csr(Vec::new())), ..IssueRequest::default() };
    let refused = NodeClient::new(greedy_channel.clone()).issue(issue).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "rate limit exceeded, try again later"));
    let renewal = AgentClient::new(greedy_channel.clone()).renew_agent(RenewAgentRequest::default()).await.unwrap_err();
    assert_eq!(renewal.code(), Code::ResourceExhausted);
    let token = SvidClient::new(greedy_channel.clone()).new_jwtsvid(NewJwtsvidRequest::default()).await.unwrap_err();
    assert_eq!((token.code(), token.message()), (Code::InvalidArgument, "missing entry ID"));
    // An agent behind the same address does not wait.
    assert_eq!(world::soon("another agent", batch(other_channel, 500)).await, Ok(500));

    // Who hangs up leaves the line: a second later 500 are there again.
    batches.shutdown().await;
    drop(greedy_channel);
    let again = domain.connect(Some(&greedy)).await.unwrap();
    let served = async || {
        clock.advance(Duration::from_millis(10));
        let answer = tokio::time::timeout(Duration::from_millis(200), batch(again.clone(), 1)).await;
        (answer == Ok(Ok(1))).then_some(())
    };
    world::until("the agent that has left the line", served).await.unwrap();
}

/// The code of a call that has this long. The server's clock stands still, so whoever is made to wait is given up by itself;
/// a refusal must come before.
async fn within<T, A>(deadline: Duration, message: T, call: impl AsyncFnOnce(tonic::Request<T>) -> Result<A, tonic::Status>) -> Code {
    let mut request = tonic::Request::new(message);
    request.set_timeout(deadline);
    let begun = std::time::Instant::now();
    let code = call(request).await.map_or_else(|status| status.code(), |_| Code::Ok);
    assert!(code != Code::ResourceExhausted || begun.elapsed() < deadline, "refused, but not at once");
    code
}

#[tokio::test]
async fn a_turn_that_would_come_after_the_deadline_is_refused_at_once() {
    let (domain, clock) = world::virtual_domain("ratelimit {\n }").await;
    let node = world::node(&domain).await;
    let channel = domain.connect(Some(&node)).await.unwrap();
    let (mut svids, mut agents) = (SvidClient::new(channel.clone()), AgentClient::new(channel.clone()));
    let mut nodes = NodeClient::new(channel.clone());

    // 500 certificates are there, 500 more are promised to somebody who waits for them a second.
    assert_eq!(batch(channel.clone(), 500).await, Ok(500));
    let waiting = tokio::spawn(batch(channel.clone(), 500));
    let short = Duration::from_millis(990);
    let one = || BatchNewX509svidRequest { params: vec![NewX509svidParams::default()] };
    world::until("a refusal at once", async || {
        let code = within(short, one(), async |r| svids.clone().batch_new_x509svid(r).await).await;
        (code == Code::ResourceExhausted).then_some(())
    })
    .await
    .unwrap();
    // One bucket for all three, as in SPIRE.
    let renewal = within(short, RenewAgentRequest::default(), async |r| agents.renew_agent(r).await).await;
    assert_eq!(renewal, Code::ResourceExhausted);
    let issue = IssueRequest { credential: Some(issue_request::Credential::X509Csr(Vec::new())), ..IssueRequest::default() };
    assert_eq!(within(short, issue, async |r| nodes.issue(r).await).await, Code::ResourceExhausted);
    // What was refused was not taken, and tokens have a bucket of their own. A question that came before the one that waits has
    // put it off by two milliseconds.
    clock.advance(Duration::from_millis(1100));
    assert_eq!(world::soon("the one that waits", waiting).await.unwrap(), Ok(500));
    assert_eq!(batch(channel.clone(), 1).await, Ok(1));

    for _ in 0..500 {
        let refused = svids.new_jwtsvid(NewJwtsvidRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    let mut line = JoinSet::new();
    for _ in 0..200 {
        let mut svids = svids.clone();
        line.spawn(async move { svids.new_jwtsvid(NewJwtsvidRequest::default()).await.map(|_| ()).map_err(|s| s.code()) });
    }
    let short = Duration::from_millis(380);
    world::until("a refusal at once", async || {
        let code = within(short, NewJwtsvidRequest::default(), async |r| svids.clone().new_jwtsvid(r).await).await;
        (code == Code::ResourceExhausted).then_some(())
    })
    .await
    .unwrap();
    clock.advance(Duration::from_secs(1));
    while let Some(served) = world::soon("the line", line.join_next()).await {
        assert_eq!(served.unwrap(), Err(Code::InvalidArgument));
    }
}

#[tokio::test]
async fn an_agent_has_a_share_of_renewals_and_of_statuses_and_the_next_one_has_its_own() {
    let (domain, clock) = world::virtual_domain("").await;
    let (greedy, other) = (world::node(&domain).await, world::node(&domain).await);
    let agent = async |node| AgentClient::new(domain.connect(Some(node)).await.unwrap());
    let (mut greedy, mut other) = (agent(&greedy).await, agent(&other).await);
    let renew = async |agent: &mut AgentClient<Channel>| {
        let params = Some(AgentX509svidParams { csr: world::key().request(None, &[]).unwrap() });
        world::soon("a renewal", agent.renew_agent(RenewAgentRequest { params })).await.map(|_| ()).map_err(|s| s.code())
    };
    let mut renewed = 0;
    for _ in 0..30 {
        match renew(&mut greedy).await {
            Ok(()) => renewed += 1,
            Err(code) => assert_eq!(code, Code::ResourceExhausted),
        }
    }
    assert_eq!(renewed, 10);
    assert_eq!(renew(&mut other).await, Ok(()), "another agent has its own share");
    clock.advance(Duration::from_secs(9));
    assert_eq!(renew(&mut greedy).await, Err(Code::ResourceExhausted));
    clock.advance(Duration::from_secs(1));
    assert_eq!(renew(&mut greedy).await, Ok(()));
    assert_eq!(renew(&mut greedy).await, Err(Code::ResourceExhausted));

    let status = async |agent: &mut AgentClient<Channel>| {
        let mut request = tonic::Request::new(PostStatusRequest::default());
        request.set_timeout(Duration::from_millis(99));
        world::soon("a status", agent.post_status(request)).await.map(|_| ()).map_err(|s| s.code())
    };
    for _ in 0..10 {
        assert_eq!(status(&mut greedy).await, Ok(()));
    }
    assert_eq!(status(&mut greedy).await, Err(Code::ResourceExhausted));
    assert_eq!(status(&mut other).await, Ok(()));
}

#[tokio::test]
async fn an_agent_that_renews_as_often_as_it_needs_to_is_never_over_its_limit() {
    // The shortest life that leaves an agent time between two renewals: it renews after a quarter of what is left.
    for (life, pause) in [("4s", Duration::from_secs(1)), ("1m", Duration::from_secs(15)), ("1h", Duration::from_secs(900))] {
        let (domain, clock) = world::virtual_domain(&format!("agent_ttl = \"{life}\"")).await;
        let mut node = world::node(&domain).await;
        for _ in 0..30 {
            clock.advance(pause);
            node = world::renewed(&domain, &node).await;
        }
    }
}

#[tokio::test]
async fn limits_that_are_switched_off_are_off() {
    let (domain, _clock) = world::virtual_domain("ratelimit {\n attestation = false\n signing = false\n }").await;
    let (node, second) = (world::node(&domain).await, world::node(&domain).await);
    assert_ne!(node.id, second.id);
    let channel = domain.connect(Some(&node)).await.unwrap();
    for _ in 0..3 {
        assert_eq!(world::soon("a batch", batch(channel.clone(), 500)).await, Ok(500));
    }
    for _ in 0..30 {
        world::soon("a renewal", world::renewed(&domain, &node)).await;
    }
}

#[tokio::test]
async fn refusals_show_in_the_log_but_do_not_fill_it_and_what_was_left_out_is_said() {
    Log::listen();
    let (domain, clock) = world::virtual_domain("").await;
    let node = world::node(&domain).await;
    let (stranger, agent) = (domain.connect(None).await.unwrap(), domain.connect(Some(&node)).await.unwrap());
    let administer = "/spire.api.server.agent.v1.Agent/CountAgents";
    for _ in 0..50 {
        domain.join("guessed").await.unwrap_err();
        assert!(matches!(call(stranger.clone(), administer).await, Outcome::Refused(_)));
        assert!(matches!(call(agent.clone(), administer).await, Outcome::Refused(_)));
        // What is malformed comes from the same share.
        SvidClient::new(agent.clone()).new_jwtsvid(NewJwtsvidRequest::default()).await.unwrap_err();
    }
    assert_eq!(
        Log::count("WARN", "Agent attestation failed caller=nobody at 127.0.0.1 error=\"failed to attest: join token does not exist"),
        20
    );
    assert_eq!(Log::count("WARN", "Failed to authenticate caller caller=nobody at 127.0.0.1"), 20);
    assert_eq!(Log::count("ERROR", &format!("Failed to authenticate caller caller_id={}", node.id)), 10);
    assert_eq!(Log::count("ERROR", &format!("Invalid argument: missing entry ID caller_id={}", node.id)), 10);
    let left_out =
        |(about, count): &(&str, u32)| format!("Left out of the log: more refusals of the same kind about=\"{about}\" left_out={count}");
    let reported = async || {
        [("failed attestations", 30), ("callers without certificate", 30), (node.id.as_str(), 80)]
            .iter()
            .all(|about| Log::count("WARN", &left_out(about)) == 1)
            .then_some(())
    };
    world::rounds("the report", &clock, ROUND, reported).await;
    // A minute later there is room again.
    domain.join("guessed").await.unwrap_err();
    assert_eq!(Log::count("WARN", "Agent attestation failed"), 21);
}

#[tokio::test]
async fn an_agent_that_is_told_to_come_again_does_so_and_joins() {
    Log::listen();
    let (domain, clock) = world::virtual_domain("ratelimit {\n }").await;
    let domain = Arc::new(domain);
    let mut rack = JoinSet::new();
    for _ in 0..22 {
        rack.spawn(join(Arc::clone(&domain)));
    }
    // One is let in, one is too many, and twenty stand in line.
    for _ in 0..2 {
        let _ = world::soon("an answer at once", rack.join_next()).await;
    }
    let token = domain.token(None).await.unwrap();
    let config = domain.agent_config("late", Some(&token), "").await.unwrap();
    let late = Arc::clone(&domain);
    let joining = tokio::spawn(async move { late.run_agent(&config).await.map_err(|e| e.to_string()) });
    let refused = async || (Log::count("WARN", "rate limit exceeded, try again later retry_interval") == 1).then_some(());
    world::until("the refusal", refused).await.unwrap();
    assert!(!joining.is_finished());
    world::rounds("the agent", &clock, Duration::from_secs(5), async || joining.is_finished().then_some(())).await;
    joining.await.unwrap().unwrap().stop().await;
}

#[tokio::test]
async fn refusals_that_were_left_out_are_in_the_journal_as_a_number_after_a_while_and_after_a_stop() {
    let (mut domain, clock) = world::virtual_domain("").await;
    let node = world::node(&domain).await;
    let ask = async |domain: &Domain| {
        let mut client = SvidClient::new(domain.connect(Some(&node)).await.unwrap());
        for _ in 0..150 {
            let request = NewJwtsvidRequest { entry_id: "not-mine".to_owned(), audience: vec!["a".to_owned()] };
            assert_eq!(client.new_jwtsvid(request).await.unwrap_err().code(), Code::NotFound);
        }
    };
    let reasons = async |domain: &Domain| -> Vec<String> {
        issued(domain, IssuedRequest::default()).await.into_iter().filter(|r| r.kind() == Kind::Refused).map(|r| r.reason).collect()
    };
    let report = |count: usize| format!("{count} more refusals of this caller were counted and not written down");
    ask(&domain).await;
    let reported = async || reasons(&domain).await.contains(&report(50)).then_some(());
    world::rounds("the report", &clock, ROUND, reported).await;
    let before = reasons(&domain).await.len();
    assert_eq!(before, 101);
    // What came since the last report is not lost when the server stops.
    ask(&domain).await;
    domain.stop_server().await;
    domain.start_server().await.unwrap();
    let after = reasons(&domain).await;
    assert_eq!(after.last(), Some(&report(150 - (after.len() - before - 1))));
}

fn journal_bytes(domain: &Domain) -> u64 {
    let files = std::fs::read_dir(domain.directory().join("server/journal")).unwrap();
    files.map(|f| f.unwrap().metadata().unwrap().len()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_strangers_and_of_an_agent_keep_nobody_from_its_identity_and_do_not_fill_the_journal() {
    /// Refusals the journal takes of one caller at once, and seconds to the next.
    const AT_ONCE: u64 = 100;
    const SECONDS_EACH: u64 = 10;
    /// More than any record here has.
    const RECORD_BYTES_MAX: u64 = 600;
    const ISSUANCES: u64 = 20;
    const HANDSHAKES: u64 = 1000;
    let domain = Arc::new(Domain::start_with(Arc::new(SystemClock), "ratelimit {\n }").await.unwrap());
    let (loud, quiet) = (world::node(&domain).await, world::node(&domain).await);
    let entry = domain.entry_from(world::entry(&quiet.id, "/w", &["uid:1"])).await.unwrap();
    let mut victim = SvidClient::new(domain.connect(Some(&quiet)).await.unwrap());
    let mut issue = async || {
        let params = vec![NewX509svidParams { entry_id: entry.id.clone(), csr: world::key().request(None, &[]).unwrap() }];
        let answer = world::soon("an issuance", victim.batch_new_x509svid(BatchNewX509svidRequest { params })).await.unwrap();
        assert_eq!(answer.into_inner().results[0].status.as_ref().unwrap().code, 0);
    };
    issue().await;

    let before = journal_bytes(&domain);
    let began = std::time::Instant::now();
    let (refused, handshakes, calls, guesses) = <(Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
    let mut flood = JoinSet::new();
    // An agent that asks again and again for what is not its own.
    for _ in 0..4 {
        let (mut client, refused) = (SvidClient::new(domain.connect(Some(&loud)).await.unwrap()), Arc::clone(&refused));
        flood.spawn(async move {
            loop {
                let request = NewJwtsvidRequest { entry_id: "not-mine".to_owned(), audience: vec!["a".to_owned()] };
                assert_eq!(client.new_jwtsvid(request).await.unwrap_err().code(), Code::NotFound);
                refused.fetch_add(1, Relaxed);
            }
        });
    }
    // A stranger that begins handshakes it does not end, one that calls what it may not, and one that guesses tokens.
    let (port, begun) = (domain.port(), Arc::clone(&handshakes));
    flood.spawn(async move {
        let mut held = std::collections::VecDeque::new();
        // Each leaves a port of this machine behind for a minute, so there is an end to it.
        for _ in 0..HANDSHAKES {
            held.push_back(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap());
            if held.len() > 64 {
                held.pop_front();
            }
            begun.fetch_add(1, Relaxed);
            tokio::task::yield_now().await;
        }
        std::future::pending().await
    });
    let (channel, called) = (domain.connect(None).await.unwrap(), Arc::clone(&calls));
    flood.spawn(async move {
        loop {
            assert!(matches!(call(channel.clone(), "/spire.api.server.agent.v1.Agent/CountAgents").await, Outcome::Refused(_)));
            called.fetch_add(1, Relaxed);
        }
    });
    for _ in 0..24 {
        let (domain, guessed) = (Arc::clone(&domain), Arc::clone(&guesses));
        flood.spawn(async move {
            loop {
                let status = status(&domain.join("guessed").await.unwrap_err()).map(|s| s.code());
                assert!(
                    matches!(status, None | Some(Code::InvalidArgument | Code::ResourceExhausted | Code::Unavailable | Code::Unknown)),
                    "{status:?}"
                );
                guessed.fetch_add(1, Relaxed);
            }
        });
    }
    for _ in 1..ISSUANCES {
        issue().await;
    }
    let high_water = async || {
        let enough = |count: &AtomicU64, least| count.load(Relaxed) >= least;
        (enough(&refused, 1000) && enough(&handshakes, HANDSHAKES) && enough(&calls, 200) && enough(&guesses, 10)).then_some(())
    };
    world::until("the flood", high_water).await.unwrap();
    issue().await;
    let ended = flood.try_join_next().map(|ended| ended.unwrap_err());
    assert!(ended.is_none(), "a part of the flood has ended: {ended:?}");
    flood.shutdown().await;

    let records = issued(&domain, IssuedRequest::default()).await;
    let refusals = AT_ONCE + began.elapsed().as_secs() / SECONDS_EACH + 1;
    let of_loud = records.iter().filter(|r| r.kind() == Kind::Refused && r.reason.starts_with("JWT-SVID of a workload")).count() as u64;
    assert!((AT_ONCE..=refusals).contains(&of_loud), "{of_loud} refusals are written down, at most {refusals} are expected");
    // One record more for each report of what was left out.
    let reports = 1 + began.elapsed().as_secs() / 30;
    let grown = journal_bytes(&domain) - before;
    let bound = (refusals + reports + ISSUANCES + 1) * RECORD_BYTES_MAX;
    assert!(grown <= bound, "the journal has grown by {grown} bytes, at most {bound} are expected");
}
