//! Joining by certificate over the wire: what a stranger can send, in which order, and what is said about it to whom.

use std::sync::Arc;

use countersign_identity::Timestamp;
use countersign_plugins::Pending;
use countersign_plugins::node::x509pop::{Svid, SvidSource};
use countersign_plugins::node::{AgentHalf, Answers, MESSAGE_BYTES_MAX, build_agent};
use countersign_testkit::clock::VirtualClock;
use countersign_testkit::log::Log;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::attest_agent_request::{Params, Step};
use countersign_wire::agent::attest_agent_response::Step as Answer;
use countersign_wire::agent::{AgentX509svidParams, AttestAgentRequest, AttestAgentResponse, CountAgentsRequest};
use countersign_wire::journal::{IssuedRequest, Kind};
use countersign_wire::types;
use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::world::{self, Domain};

/// An authority for nodes and a server that trusts it.
struct Made {
    directory: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
    domain: Domain,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_after = rcgen::date_time_ymd(2060, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

struct Nobody;

impl SvidSource for Nobody {
    fn fetch<'a>(&'a self, _: &'a std::path::Path) -> Pending<'a, Result<Svid, String>> {
        Box::pin(async { Err("nobody".to_owned()) })
    }
}

impl Made {
    async fn new(settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority("Maker");
        std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
        let ca = directory.path().join("ca.pem").display().to_string();
        let block = format!("NodeAttestor \"x509pop\" {{\n plugin_data {{\n ca_bundle_path = {ca:?}\n {settings}\n }}\n }}");
        let clock = Arc::new(VirtualClock::at_present());
        let domain = Domain::start_with_plugins(clock, "", &block).await.unwrap();
        Self { directory, authority, domain }
    }

    /// A node with a certificate of this issuer.
    fn node_by(&self, issuer: &CertifiedIssuer<'static, KeyPair>, params: &CertificateParams) -> Arc<dyn AgentHalf> {
        let key = KeyPair::generate().unwrap();
        let path = |name: &str| self.directory.path().join(format!("{}-{name}", uuid()));
        let (certificate, private) = (path("node.pem"), path("node.key"));
        std::fs::write(&certificate, params.signed_by(&key, issuer).unwrap().pem()).unwrap();
        std::fs::write(&private, key.serialize_pem()).unwrap();
        let text =
            format!("certificate_path = {:?}\nprivate_key_path = {:?}", certificate.display().to_string(), private.display().to_string());
        let data = countersign_config::parse("agent.conf", &text).unwrap();
        build_agent("x509pop", &data.clone(), data, zeroize::Zeroizing::default(), Arc::new(Nobody)).unwrap()
    }

    fn node(&self, name: &str) -> Arc<dyn AgentHalf> {
        self.node_by(&self.authority, &params(name))
    }

    async fn talk(&self) -> Talk {
        let (out, receiver) = mpsc::channel(4);
        let client = AgentClient::new(self.domain.connect(None).await.unwrap());
        Talk { out: Some(out), requests: Some(ReceiverStream::new(receiver)), client, answers: None }
    }

    /// Joins as an honest agent does.
    async fn join(&self, node: &Arc<dyn AgentHalf>) -> Result<types::X509svid, Status> {
        let attempt = node.begin().await.unwrap();
        let mut answers: Box<dyn Answers> = attempt.answers;
        let mut talk = self.talk().await;
        talk.say(first(attempt.payload)).await;
        let challenge = talk.challenge().await?;
        talk.say(Step::ChallengeResponse(answers.answer(&challenge).await.unwrap())).await;
        talk.result().await
    }

    async fn nodes(&self) -> i32 {
        world::agents(&self.domain).await.count_agents(CountAgentsRequest::default()).await.unwrap().into_inner().count
    }

    async fn issued_to_agents(&self) -> usize {
        let records = crate::journal::issued(&self.domain, IssuedRequest { limit: 1000, ..IssuedRequest::default() }).await;
        records.iter().filter(|r| r.kind() == Kind::AgentX509).count()
    }
}

fn uuid() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn first(payload: Vec<u8>) -> Step {
    let data = types::AttestationData { r#type: "x509pop".to_owned(), payload };
    Step::Params(Params { data: Some(data), params: Some(AgentX509svidParams { csr: world::key().request(None, &[]).unwrap() }) })
}

/// One exchange with the server.
struct Talk {
    out: Option<mpsc::Sender<AttestAgentRequest>>,
    requests: Option<ReceiverStream<AttestAgentRequest>>,
    client: AgentClient<tonic::transport::Channel>,
    answers: Option<Streaming<AttestAgentResponse>>,
}

impl Talk {
    async fn say(&self, step: Step) {
        let _ = self.out.as_ref().unwrap().send(AttestAgentRequest { step: Some(step) }).await;
    }

    fn hang_up(&mut self) {
        self.out = None;
    }

    async fn next(&mut self) -> Result<Answer, Status> {
        if let Some(requests) = self.requests.take() {
            self.answers = Some(self.client.attest_agent(requests).await?.into_inner());
        }
        self.answers.as_mut().unwrap().message().await?.and_then(|m| m.step).ok_or_else(|| Status::unavailable("ended"))
    }

    async fn challenge(&mut self) -> Result<Vec<u8>, Status> {
        match self.next().await? {
            Answer::Challenge(challenge) => Ok(challenge),
            Answer::Result(_) => panic!("it joined without a challenge"),
        }
    }

    async fn result(&mut self) -> Result<types::X509svid, Status> {
        match self.next().await? {
            Answer::Result(result) => {
                assert!(result.reattestable);
                Ok(result.svid.unwrap())
            }
            Answer::Challenge(_) => panic!("a second challenge"),
        }
    }
}

fn said(refused: Result<types::X509svid, Status>) -> (Code, String) {
    let status = refused.expect_err("it joined");
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn an_answer_to_another_challenge_is_refused_and_every_challenge_is_another() {
    let made = Made::new("").await;
    let node = made.node("node");
    let attempt = node.begin().await.unwrap();
    let mut answers = attempt.answers;
    let mut talk = made.talk().await;
    talk.say(first(attempt.payload.clone())).await;
    let challenge = talk.challenge().await.unwrap();
    let recorded = answers.answer(&challenge).await.unwrap();
    talk.say(Step::ChallengeResponse(recorded.clone())).await;
    talk.result().await.unwrap();
    assert_eq!(made.issued_to_agents().await, 1);

    for _ in 0..3 {
        let mut talk = made.talk().await;
        talk.say(first(attempt.payload.clone())).await;
        assert_ne!(talk.challenge().await.unwrap(), challenge);
        talk.say(Step::ChallengeResponse(recorded.clone())).await;
        let wanted = "failed to attest: challenge response verification failed: ECDSA signature verify failed";
        assert_eq!(said(talk.result().await), (Code::PermissionDenied, wanted.to_owned()));
    }
    assert_eq!(made.issued_to_agents().await, 1, "no signature is spent on a replay");
}

#[tokio::test]
async fn messages_out_of_order_and_too_many_of_them_do_no_harm() {
    let made = Made::new("").await;
    let node = made.node("node");
    // An answer without a challenge.
    let mut talk = made.talk().await;
    talk.say(Step::ChallengeResponse(b"{}".to_vec())).await;
    assert_eq!(said(talk.result().await), (Code::InvalidArgument, "malformed param: missing params".to_owned()));
    // Once more the beginning, where an answer is expected.
    let mut talk = made.talk().await;
    talk.say(first(node.begin().await.unwrap().payload)).await;
    talk.challenge().await.unwrap();
    talk.say(first(node.begin().await.unwrap().payload)).await;
    assert_eq!(said(talk.result().await), (Code::InvalidArgument, "failed to attest: expected the answer to a challenge".to_owned()));
    // An answer that is too long, and one that is no answer.
    for (answer, told) in [
        (vec![b' '; MESSAGE_BYTES_MAX + 1], "failed to attest: the answer is too long"),
        (Vec::new(), "failed to attest: unable to unmarshal challenge response: it is malformed"),
        (b"{}".to_vec(), "failed to attest: challenge response verification failed: expecting ECDSA response"),
    ] {
        let mut talk = made.talk().await;
        talk.say(first(node.begin().await.unwrap().payload)).await;
        talk.challenge().await.unwrap();
        talk.say(Step::ChallengeResponse(answer)).await;
        assert_eq!(said(talk.result().await).1, told);
    }
    let mut talk = made.talk().await;
    talk.say(first(vec![b' '; MESSAGE_BYTES_MAX + 1])).await;
    assert_eq!(said(talk.result().await).1, "malformed param: the attestation data payload is too long");
    // Hanging up inside a challenge.
    let mut talk = made.talk().await;
    talk.say(first(node.begin().await.unwrap().payload)).await;
    talk.challenge().await.unwrap();
    talk.hang_up();
    assert_eq!(said(talk.result().await), (Code::InvalidArgument, "failed to attest: the attestation ended early".to_owned()));
    assert_eq!((made.nodes().await, made.issued_to_agents().await), (0, 0));

    // More than an honest node says: the first answer counts, the rest is not read.
    let mut attempt = node.begin().await.unwrap();
    let mut talk = made.talk().await;
    talk.say(first(attempt.payload)).await;
    let challenge = talk.challenge().await.unwrap();
    let answer = attempt.answers.answer(&challenge).await.unwrap();
    for _ in 0..3 {
        talk.say(Step::ChallengeResponse(answer.clone())).await;
    }
    talk.result().await.unwrap();
    assert_eq!((made.nodes().await, made.issued_to_agents().await), (1, 1));
}

#[tokio::test]
async fn a_refusal_tells_the_node_which_check_failed_and_the_log_which_certificate() {
    Log::listen();
    let made = Made::new("").await;
    let stranger = authority("Stranger");
    let mut over = params("node-3");
    over.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x2a]));
    over.not_after = rcgen::date_time_ymd(2021, 1, 1);
    over.not_before = rcgen::date_time_ymd(2020, 1, 1);
    let mut unmeant = params("node-4");
    unmeant.key_usages = Vec::new();
    for (node, code, told) in [
        (made.node_by(&stranger, &params("node-1")), Code::PermissionDenied, "there is no certificate of `CN=Stranger`"),
        (made.node_by(&made.authority, &over), Code::PermissionDenied, "the certificate of `CN=node-3` is valid from 2020-01-01"),
        (made.node_by(&made.authority, &unmeant), Code::PermissionDenied, "certificate not intended for digital signature use"),
    ] {
        let (found, said) = said(made.join(&node).await);
        assert_eq!(found, code);
        assert!(said.starts_with("failed to attest: ") && said.contains(told), "{said}");
        // Nothing of the server's: no path, no authority it trusts.
        assert!(!said.contains("ca.pem") && !said.contains("Maker"), "{said}");
    }
    let failed = "Agent attestation failed caller=nobody at 127.0.0.1 error=\"failed to attest: ";
    assert_eq!(Log::count("WARN", failed), 3);
    assert_eq!(Log::count("WARN", "serial number 2a, of `CN=node-3`, with 0 intermediates, against 1 authorities of "), 1);
    assert_eq!(Log::count("WARN", "of `CN=node-4`"), 1);
    assert_eq!((made.nodes().await, made.issued_to_agents().await), (0, 0));
}

#[tokio::test]
async fn the_address_a_node_calls_from_is_compared_with_its_certificate() {
    let made = Made::new("verify_client_ip = true").await;
    let mut at_home = params("here");
    at_home.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
    made.join(&made.node_by(&made.authority, &at_home)).await.unwrap();
    let (code, told) = said(made.join(&made.node("elsewhere")).await);
    assert_eq!(
        (code, told.as_str()),
        (Code::PermissionDenied, "failed to attest: client IP 127.0.0.1 does not match any certificate IP SAN")
    );
}

#[tokio::test]
async fn a_server_without_the_attestor_says_so() {
    let made = Made::new("").await;
    let other = Domain::start().await.unwrap();
    let with = Made { domain: other, ..made };
    let mut talk = with.talk().await;
    talk.say(first(with.node("node").begin().await.unwrap().payload)).await;
    let wanted = "error getting node attestor: could not find node attestor type \"x509pop\"";
    assert_eq!(said(talk.result().await), (Code::FailedPrecondition, wanted.to_owned()));
}

/// Two nodes whose certificates give them one name are one agent: the later one is in force, and the journal has both.
#[tokio::test]
async fn of_two_nodes_of_one_name_the_later_is_in_force() {
    let made = Made::new("agent_path_template = \"/x509pop/{{ .Subject.CommonName }}\"").await;
    let (one, other) = (made.node("same"), made.node("same"));
    let first = made.join(&one).await.unwrap();
    let second = made.join(&other).await.unwrap();
    assert_eq!(first.id, second.id);
    assert!(second.expires_at >= Timestamp::EPOCH.secs());
    assert_eq!((made.nodes().await, made.issued_to_agents().await), (1, 2));
}

/// A template that lets nodes choose their whole path does not let them choose to be a node of another attestor.
#[tokio::test]
async fn no_node_takes_the_place_of_one_that_another_attestor_let_in() {
    Log::listen();
    let made = Made::new("agent_path_template = \"/{{ .Subject.CommonName }}\"").await;
    let known = world::node(&made.domain).await;
    let issued = made.issued_to_agents().await;
    let name = known.id.path().strip_prefix("/spire/agent/").unwrap();
    let wanted = "failed to attest: an agent of this ID was attested in another way";
    assert_eq!(said(made.join(&made.node(name)).await), (Code::PermissionDenied, wanted.to_owned()));
    assert_eq!((made.nodes().await, made.issued_to_agents().await), (1, issued), "no signature is spent on it");
    let mut client = AgentClient::new(made.domain.connect(Some(&known)).await.unwrap());
    client.post_status(countersign_wire::agent::PostStatusRequest::default()).await.unwrap();
    assert_eq!(Log::count("WARN", "The agent's ID is not in the agent namespace of its attestor"), 1);
    made.join(&made.node("x509pop/fine")).await.unwrap();
    assert_eq!(Log::count("WARN", "The agent's ID is not in the agent namespace of its attestor"), 1);
}

/// An agent gives up its identity at a refusal that is its own fault. Being slow is none.
#[tokio::test]
async fn a_node_that_is_slow_to_answer_is_told_to_try_again() {
    let made = Made::new("").await;
    let mut talk = made.talk().await;
    talk.say(first(made.node("node").begin().await.unwrap().payload)).await;
    talk.challenge().await.unwrap();
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(31)).await;
    tokio::time::resume();
    assert_eq!(said(talk.result().await), (Code::Internal, "failed to attest: the node took too long to answer".to_owned()));
}
