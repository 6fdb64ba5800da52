//! Joining by token: used once whatever happens, and never leaving half a node behind.

use std::sync::Arc;
use std::time::Duration;

use countersign_testkit::domain::status;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::attest_agent_request::{Params, Step};
use countersign_wire::agent::{
    AgentX509svidParams, AttestAgentRequest, AttestAgentResponse, CountAgentsRequest, CreateJoinTokenRequest, DeleteAgentRequest,
};
use countersign_wire::journal::{IssuedRequest, Kind, Outcome};
use countersign_wire::types;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::journal;
use crate::world::{self, Anyhow, Domain, NodeIdentity, id_to_wire, spiffe_id};

const GONE: &str = "failed to attest: join token does not exist or has already been used";

fn refusal(joined: Result<NodeIdentity, Anyhow>) -> (Code, String) {
    let Err(error) = joined else { panic!("it joined") };
    let status = status(&error).unwrap();
    (status.code(), status.message().to_owned())
}

async fn count(domain: &Domain) -> i32 {
    world::agents(domain).await.count_agents(CountAgentsRequest::default()).await.unwrap().into_inner().count
}

fn first(token: &str, csr: Vec<u8>) -> AttestAgentRequest {
    let data = types::AttestationData { r#type: "join_token".to_owned(), payload: token.as_bytes().to_vec() };
    AttestAgentRequest { step: Some(Step::Params(Params { data: Some(data), params: Some(AgentX509svidParams { csr }) })) }
}

/// An exchange that is open, and its first answer: the head of the server's answer comes with that.
async fn exchange(domain: &Domain) -> (mpsc::Sender<AttestAgentRequest>, JoinSet<Result<Option<AttestAgentResponse>, Status>>) {
    let (requests, receiver) = mpsc::channel(2);
    let mut client = AgentClient::new(domain.connect(None).await.unwrap());
    let mut answer = JoinSet::new();
    answer.spawn(async move { client.attest_agent(ReceiverStream::new(receiver)).await?.into_inner().message().await });
    (requests, answer)
}

#[tokio::test]
async fn a_token_is_good_for_one_node() {
    let domain = Domain::start().await.unwrap();
    let token = domain.token(None).await.unwrap();
    domain.join(&token).await.unwrap();
    assert_eq!(refusal(domain.join(&token).await), (Code::InvalidArgument, GONE.to_owned()));
    assert_eq!(refusal(domain.join("never-made").await), (Code::InvalidArgument, GONE.to_owned()));
    assert_eq!(refusal(domain.join("no/path").await), (Code::InvalidArgument, GONE.to_owned()));
    assert_eq!(count(&domain).await, 1);
}

#[tokio::test]
async fn an_expired_token_is_refused_and_used_up() {
    let (domain, clock) = world::virtual_domain("").await;
    let request = CreateJoinTokenRequest { ttl: 60, token: "short-lived".to_owned(), agent_id: None };
    let made = world::agents(&domain).await.create_join_token(request).await.unwrap().into_inner();
    assert_eq!((made.value.as_str(), made.expires_at), ("short-lived", domain.clock.now().secs() + 60));
    clock.advance(Duration::from_secs(60));
    assert_eq!(refusal(domain.join("short-lived").await), (Code::InvalidArgument, "join token expired".to_owned()));
    let records = journal::issued(&domain, IssuedRequest::default()).await.len();
    assert_eq!(refusal(domain.join("short-lived").await), (Code::InvalidArgument, GONE.to_owned()));
    assert_eq!(journal::issued(&domain, IssuedRequest::default()).await.len(), records, "no signature is spent on it again");
    assert_eq!(count(&domain).await, 0);
}

#[tokio::test]
async fn tokens_that_cannot_be_are_not_made() {
    let domain = Domain::start().await.unwrap();
    let mut client = world::agents(&domain).await;
    let request =
        |ttl: i32, token: &str, alias: Option<types::Spiffeid>| CreateJoinTokenRequest { ttl, token: token.to_owned(), agent_id: alias };
    for (request, text) in [
        (request(0, "", None), "ttl is required, you must provide one"),
        (request(-1, "", None), "ttl is required, you must provide one"),
        (request(60, "a/b", None), "invalid token: "),
        (request(60, &"t".repeat(256), None), "invalid token: "),
        (request(60, "", Some(id_to_wire(&spiffe_id("/spire/agent/x")))), "invalid agent ID: "),
        (request(60, "", Some(types::Spiffeid { trust_domain: "other.test".into(), path: "/x".into() })), "invalid agent ID: "),
    ] {
        let status = client.create_join_token(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(text), "{status}");
    }
    client.create_join_token(request(60, "twice", None)).await.unwrap();
    let status = client.create_join_token(request(60, "twice", None)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::AlreadyExists, "failed to create token: it exists already"));
}

#[tokio::test]
async fn of_fifty_attempts_at_once_one_redeems_the_token() {
    let domain = Arc::new(Domain::start().await.unwrap());
    let token = domain.token(Some(&spiffe_id("/alias"))).await.unwrap();
    let mut attempts = JoinSet::new();
    for _ in 0..50 {
        let (domain, token) = (Arc::clone(&domain), token.clone());
        attempts.spawn(async move { domain.join(&token).await.map_err(|e| status(&e).unwrap().message().to_owned()) });
    }
    let outcomes = attempts.join_all().await;
    let joined: Vec<&NodeIdentity> = outcomes.iter().filter_map(|o| o.as_ref().ok()).collect();
    assert_eq!(joined.len(), 1);
    assert!(outcomes.iter().filter_map(|o| o.as_ref().err()).all(|text| text == GONE));
    // The one that was told so is the one that is in force.
    let mut client = AgentClient::new(domain.connect(Some(joined[0])).await.unwrap());
    client.post_status(countersign_wire::agent::PostStatusRequest::default()).await.unwrap();
    assert_eq!((count(&domain).await, world::list(&domain).await.len()), (1, 1));
}

#[tokio::test]
async fn the_alias_of_a_token_comes_with_the_node_and_goes_with_it() {
    let domain = Domain::start().await.unwrap();
    let token = domain.token(Some(&spiffe_id("/node/one"))).await.unwrap();
    assert!(world::list(&domain).await.is_empty(), "an unused token leaves nothing behind");
    let node = domain.join(&token).await.unwrap();
    let [alias] = world::list(&domain).await.try_into().unwrap();
    assert_eq!(alias.spiffe_id, Some(id_to_wire(&spiffe_id("/node/one"))));
    assert_eq!(alias.parent_id, Some(id_to_wire(&node.id)));
    assert_eq!(alias.selectors, [types::Selector { r#type: "spiffe_id".to_owned(), value: node.id.to_string() }]);
    // Others of the node stay when it goes: they are the administrator's.
    let other = domain.entry_from(world::entry(&node.id, "/other", &["uid:1"])).await.unwrap();
    world::agents(&domain).await.delete_agent(DeleteAgentRequest { id: Some(id_to_wire(&node.id)) }).await.unwrap();
    assert_eq!(world::list(&domain).await, [other]);
}

#[tokio::test]
async fn the_same_node_that_asks_again_gets_the_same_answer_for_a_while() {
    let (domain, clock) = world::virtual_domain("").await;
    let token = domain.token(None).await.unwrap();
    let key = world::key();
    let node = domain.join_with(&token, Arc::clone(&key)).await.unwrap();
    let again = domain.join_with(&token, Arc::clone(&key)).await.unwrap();
    assert_eq!(node.chain, again.chain);
    assert_eq!(refusal(domain.join(&token).await), (Code::InvalidArgument, GONE.to_owned()), "another key is another node");
    clock.advance(Duration::from_secs(120));
    assert_eq!(refusal(domain.join_with(&token, key).await), (Code::InvalidArgument, GONE.to_owned()));
}

#[tokio::test]
async fn a_node_that_was_evicted_is_not_told_its_old_answer() {
    let domain = Domain::start().await.unwrap();
    let token = domain.token(None).await.unwrap();
    let key = world::key();
    let node = domain.join_with(&token, Arc::clone(&key)).await.unwrap();
    world::agents(&domain).await.delete_agent(DeleteAgentRequest { id: Some(id_to_wire(&node.id)) }).await.unwrap();
    assert_eq!(refusal(domain.join_with(&token, key).await), (Code::InvalidArgument, GONE.to_owned()));
}

#[tokio::test]
async fn messages_that_are_no_attestation_are_refused_with_the_reason() {
    let domain = Domain::start().await.unwrap();
    let csr = world::key().request(None, &[]).unwrap();
    let params = |kind: &str, payload: &[u8], csr: &[u8]| {
        let data = Some(types::AttestationData { r#type: kind.to_owned(), payload: payload.to_vec() });
        Some(Step::Params(Params { data, params: Some(AgentX509svidParams { csr: csr.to_vec() }) }))
    };
    let cases = [
        (None, "malformed param: missing step"),
        (Some(Step::ChallengeResponse(Vec::new())), "malformed param: missing params"),
        (Some(Step::Params(Params { data: None, params: None })), "malformed param: missing attestation data"),
        (params("", b"t", &csr), "malformed param: missing attestation data type"),
        (params("join_token", b"", &csr), "malformed param: missing attestation data payload"),
        (params("join_token", &[b't'; (64 << 10) + 1], &csr), "malformed param: the attestation data payload is too long"),
        (params("join_token", b"t", b""), "malformed param: missing X509-SVID parameters"),
        (params("join_token", b"t", b"nonsense"), "malformed CSR: malformed certificate signing request"),
        (params("join_token", b"t", &world::forged_request()), "malformed CSR: the request is not signed by its own key"),
        (params("join_token", &[0xff], &csr), GONE),
        (params("tpm", b"t", &csr), "error getting node attestor: could not find node attestor type \"tpm\""),
    ];
    for (step, text) in cases {
        let (requests, mut answer) = exchange(&domain).await;
        requests.send(AttestAgentRequest { step }).await.unwrap();
        let status = world::soon("a refusal", answer.join_next()).await.unwrap().unwrap().unwrap_err();
        assert_eq!(status.message(), text);
    }
    // Ending without a word.
    let (requests, mut answer) = exchange(&domain).await;
    drop(requests);
    let status = world::soon("a refusal", answer.join_next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(status.message(), "the attestation ended early");
    assert_eq!(count(&domain).await, 0);
}

#[tokio::test]
async fn whoever_hangs_up_leaves_nothing_or_a_whole_node() {
    let (domain, _clock) = world::virtual_domain("").await;
    // Before anything was said.
    drop(exchange(&domain).await);
    // After the first message, at ever later moments: each time the token is either free or its node complete.
    for attempt in 0..40u32 {
        let token = domain.token(Some(&spiffe_id(&format!("/hang/{attempt}")))).await.unwrap();
        let key = world::key();
        let (requests, answer) = exchange(&domain).await;
        requests.send(first(&token, key.request(None, &[]).unwrap())).await.unwrap();
        let moment = tokio::time::Instant::now() + Duration::from_micros(u64::from(attempt) * 100);
        while tokio::time::Instant::now() < moment {
            tokio::task::yield_now().await;
        }
        drop((requests, answer));
        // The same node asks again, as an agent does, and gets its identity whatever happened.
        let node = domain.join_with(&token, key).await.unwrap();
        let mut client = AgentClient::new(domain.connect(Some(&node)).await.unwrap());
        client.post_status(countersign_wire::agent::PostStatusRequest::default()).await.unwrap();
        let aliases = world::list(&domain).await.into_iter().filter(|e| e.parent_id == Some(id_to_wire(&node.id))).count();
        assert_eq!(aliases, 1, "the node is whole");
    }
    assert_eq!(count(&domain).await, 40);
}

/// How often a call is hung up on before the test takes it that it never ends.
const POLLS_MAX: usize = 500;

#[tokio::test]
async fn whoever_hangs_up_after_any_poll_gets_its_answer_when_it_asks_again() {
    let (domain, _clock) = world::virtual_domain("").await;
    let mut nodes = Vec::new();
    for polls in 1..POLLS_MAX {
        let token = domain.token(Some(&spiffe_id(&format!("/hang/{polls}")))).await.unwrap();
        let key = world::key();
        let answered = world::hung_up(polls, domain.join_with(&token, Arc::clone(&key))).await;
        let node = domain.join_with(&token, key).await.unwrap();
        let mut client = AgentClient::new(domain.connect(Some(&node)).await.unwrap());
        client.post_status(countersign_wire::agent::PostStatusRequest::default()).await.unwrap();
        assert_eq!(refusal(domain.join(&token).await), (Code::InvalidArgument, GONE.to_owned()), "it is spent");
        nodes.push(node.leaf.serial_decimal());
        if let Some(answer) = answered {
            assert_eq!(answer.unwrap().leaf, node.leaf);
            break;
        }
    }
    assert!((5..POLLS_MAX - 1).contains(&nodes.len()), "{}", nodes.len());
    assert_eq!((count(&domain).await, world::list(&domain).await.len()), (i32::try_from(nodes.len()).unwrap(), nodes.len()));
    let records = journal::issued(&domain, IssuedRequest { limit: 10_000, ..IssuedRequest::default() }).await;
    let agents = records.into_iter().filter(|r| r.kind() == Kind::AgentX509);
    let mut signed: Vec<String> = agents.filter(|r| r.outcome() == Outcome::Signed).map(|r| r.serial_or_jti).collect();
    signed.sort();
    nodes.sort();
    assert_eq!(signed, nodes, "one signature for each token, however often it was asked with");
}

#[tokio::test]
async fn agents_and_administrators_that_hang_up_after_any_poll_leave_nothing_half_done() {
    // More renewals than an agent has.
    let off = "ratelimit {\n attestation = false\n signing = false\n }";
    let domain = Domain::start_with(Arc::new(countersign_transport::clock::SystemClock), off).await.unwrap();
    let node = world::node(&domain).await;
    let entry = domain.entry_from(world::entry(&node.id, "/w", &["uid:1"])).await.unwrap();
    let mut acknowledged = Vec::new();
    for polls in 1..POLLS_MAX {
        let issued = world::hung_up(polls, world::workload(&domain, &node, &entry)).await;
        let renewed = world::hung_up(polls, world::renewed(&domain, &node)).await;
        let path = format!("/hang/{polls}");
        let created = world::hung_up(polls, domain.entry_from(world::entry(&node.id, &path, &["uid:2"]))).await;
        // The certificate counts on for as long as no renewed one is used, and what was begun can be asked for again.
        let mut client = AgentClient::new(domain.connect(Some(&node)).await.unwrap());
        client.post_status(countersign_wire::agent::PostStatusRequest::default()).await.unwrap();
        if created.is_none() {
            match domain.entry_from(world::entry(&node.id, &path, &["uid:2"])).await {
                Ok(_) => {}
                Err(error) => assert!(error.to_string().contains("similar entry already exists"), "{error}"),
            }
        }
        acknowledged.extend(issued.iter().chain(&renewed).map(|identity| identity.leaf.serial_decimal()));
        let paths = world::list(&domain).await.into_iter().filter(|e| e.spiffe_id.as_ref().unwrap().path == path).count();
        assert_eq!(paths, 1);
        if issued.is_some() && renewed.is_some() && created.is_some() {
            break;
        }
        assert!(polls < POLLS_MAX - 1, "never answered");
    }
    // All outcomes come: nobody's hanging up leaves a record of which nobody knows whether it was signed.
    let records = journal::issued(&domain, IssuedRequest { limit: 10_000, ..IssuedRequest::default() }).await;
    assert!(records.iter().all(|r| r.outcome() == Outcome::Signed), "{records:?}");
    assert!(acknowledged.len() >= 2);
    for serial in acknowledged {
        assert_eq!(records.iter().filter(|r| r.serial_or_jti == serial).count(), 1);
    }
}
