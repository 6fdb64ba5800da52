//! Envoy's Secret Discovery Service on the public socket, as an Envoy speaks to it.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::pem;
use countersign_identity::x509::Certificate;
use countersign_plugins::keys::KeyPair;
use countersign_testkit::domain::until;
use countersign_testkit::log::Log;
use countersign_testkit::workload::Workload;
use countersign_wire::discovery::{DiscoveryRequest, DiscoveryResponse};
use countersign_wire::envoy_core::data_source::Specifier;
use countersign_wire::envoy_core::node::UserAgentVersionType;
use countersign_wire::envoy_core::{BuildVersion, DataSource, Node};
use countersign_wire::envoy_tls::secret::Type;
use countersign_wire::envoy_tls::{Secret, SpiffeCertValidatorConfig, TlsCertificate};
use countersign_wire::envoy_type::SemanticVersion;
use countersign_wire::google::rpc;
use countersign_wire::secret_discovery::secret_discovery_service_client::SecretDiscoveryServiceClient;
use countersign_wire::types;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::child::Caller;
use crate::support::{Foreign, OWN, World, answer, message, next, selector};

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

fn request(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        type_url: SECRET.to_owned(),
        ..DiscoveryRequest::default()
    }
}

/// The same, about an answer.
fn about(answer: &DiscoveryResponse, version_info: &str, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest { version_info: version_info.to_owned(), response_nonce: answer.nonce.clone(), ..request(names) }
}

fn client(channel: Channel) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::new(channel)
}

async fn fetch(world: &World, names: &[&str]) -> Result<DiscoveryResponse, Status> {
    fetch_as(world, DiscoveryRequest { ..request(names) }).await
}

async fn fetch_as(world: &World, request: DiscoveryRequest) -> Result<DiscoveryResponse, Status> {
    let mut request = Request::new(request);
    request.set_timeout(Duration::from_secs(20));
    client(world.workload().await.channel).fetch_secrets(request).await.map(tonic::Response::into_inner)
}

/// An open stream and the means to ask on it.
struct Stream {
    requests: mpsc::Sender<DiscoveryRequest>,
    answers: Streaming<DiscoveryResponse>,
}

impl Stream {
    async fn open(channel: Channel) -> Self {
        let (requests, sent) = mpsc::channel(16);
        let answers = client(channel).stream_secrets(ReceiverStream::new(sent)).await.unwrap().into_inner();
        Self { requests, answers }
    }

    async fn say(&self, request: DiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    async fn ask(&mut self, request: DiscoveryRequest) -> DiscoveryResponse {
        self.say(request).await;
        next(&mut self.answers).await
    }
}

fn secrets(response: &DiscoveryResponse) -> Vec<Secret> {
    assert_eq!(response.type_url, SECRET);
    let read = |resource: &prost_types::Any| {
        assert_eq!(resource.type_url, SECRET);
        Secret::decode(resource.value.as_slice()).unwrap()
    };
    response.resources.iter().map(read).collect()
}

fn names(response: &DiscoveryResponse) -> Vec<String> {
    secrets(response).into_iter().map(|secret| secret.name).collect()
}

fn text(source: Option<&DataSource>) -> &str {
    let Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes)) }) = source else { panic!("not inline") };
    std::str::from_utf8(bytes).unwrap()
}

fn ders(text: &str, label: &str) -> Vec<Vec<u8>> {
    let blocks = pem::read(text).unwrap();
    assert!(blocks.iter().all(|(found, _)| found == label), "{text}");
    blocks.into_iter().map(|(_, der)| der).collect()
}

/// Leaf and key of the only secret, which belong together.
fn svid(response: &DiscoveryResponse) -> (Certificate, Vec<u8>) {
    let [Secret { r#type: Some(Type::TlsCertificate(TlsCertificate { certificate_chain, private_key })), .. }] = &secrets(response)[..]
    else {
        panic!("not one certificate")
    };
    let chain = ders(text(certificate_chain.as_ref()), "CERTIFICATE");
    let key = ders(text(private_key.as_ref()), "PRIVATE KEY").remove(0);
    let leaf = Certificate::parse(&chain[0]).unwrap();
    assert_eq!(*KeyPair::from_pkcs8(&key).unwrap().public_key(), leaf.public_key);
    (leaf, key)
}

/// Of a validation context: trust domains with their authorities; without a name what vouches for everybody.
fn authorities(secret: &Secret) -> Vec<(String, Vec<Vec<u8>>)> {
    let Some(Type::ValidationContext(context)) = &secret.r#type else { panic!("not a validation context") };
    let Some(config) = &context.custom_validator_config else {
        return vec![(String::new(), ders(text(context.trusted_ca.as_ref()), "CERTIFICATE"))];
    };
    assert!(context.trusted_ca.is_none());
    assert_eq!(config.name, "envoy.tls.cert_validator.spiffe");
    let any = config.typed_config.as_ref().unwrap();
    assert_eq!(any.type_url, "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig");
    let config = SpiffeCertValidatorConfig::decode(any.value.as_slice()).unwrap();
    config.trust_domains.iter().map(|d| (d.name.clone(), ders(text(d.trust_bundle.as_ref()), "CERTIFICATE"))).collect()
}

async fn federated(world: &World) -> (Foreign, types::Entry) {
    let foreign = Foreign::new("other.test");
    world.set_bundle(foreign.bundle()).await;
    let entry = world.entry_with("/web", |entry| entry.federates_with = vec!["other.test".to_owned()]).await;
    let arrived = || async { fetch(world, &["spiffe://other.test"]).await.ok() };
    until("the other bundle is there", arrived).await.unwrap();
    (foreign, entry)
}

#[tokio::test(flavor = "multi_thread")]
async fn envoys_get_certificates_and_bundles_by_spires_names() {
    let world = World::start().await;
    let (foreign, _) = federated(&world).await;
    let root = world.domain.bundle().await.unwrap().x509_authorities()[0].certificate.der().to_vec();
    let (web, own) = (format!("{OWN}/web"), ("example.org".to_owned(), vec![root.clone()]));

    for name in [web.as_str(), "default"] {
        let response = fetch(&world, &[name]).await.unwrap();
        assert_eq!(names(&response), [name]);
        assert_eq!(svid(&response).0.spiffe_id().unwrap().as_str(), web);
        assert_eq!((response.version_info.as_str(), response.nonce.as_str()), ("", ""));
    }
    for name in [OWN, "ROOTCA"] {
        let response = fetch(&world, &[name]).await.unwrap();
        assert_eq!(names(&response), [name]);
        assert_eq!(authorities(&secrets(&response)[0]), std::slice::from_ref(&own));
    }
    let other = ("other.test".to_owned(), vec![foreign.root.clone()]);
    let response = fetch(&world, &["spiffe://other.test"]).await.unwrap();
    assert_eq!(authorities(&secrets(&response)[0]), std::slice::from_ref(&other));
    let response = fetch(&world, &["ALL"]).await.unwrap();
    assert_eq!(names(&response), ["ALL"]);
    assert_eq!(authorities(&secrets(&response)[0]), [own, other]);
    assert_eq!(names(&fetch(&world, &[]).await.unwrap()), [OWN, "spiffe://other.test", &web]);
    assert_eq!(names(&fetch(&world, &["", "default", "ROOTCA"]).await.unwrap()), ["ROOTCA", "default"]);
    // The type is said again, whatever it is.
    let odd = DiscoveryRequest { type_url: "odd".to_owned(), ..request(&["ROOTCA"]) };
    assert_eq!(fetch_as(&world, odd).await.unwrap().type_url, "odd");

    for (asked, left) in [
        (&["ROOTCA", "ALL"][..], "[\"ALL\"]"),
        (&["default", &web], "[\"default\"]"),
        (&["b", "a", "ROOTCA"], "[\"a\" \"b\"]"),
        (&["spiffe://example.org/other"], "[\"spiffe://example.org/other\"]"),
        (&["spiffe://third.test"], "[\"spiffe://third.test\"]"),
    ] {
        let refused = fetch(&world, asked).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(refused.message(), format!("workload is not authorized for the requested identities {left}"));
        let mut stream = Stream::open(world.workload().await.channel).await;
        stream.say(request(asked)).await;
        assert_eq!(answer(&mut stream.answers).await.unwrap_err().message(), refused.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn envoys_say_how_they_verify_and_the_configuration_says_it_for_the_others() {
    let world = World::start().await;
    let (foreign, _) = federated(&world).await;
    let of = |major_number, minor_number| {
        let version = Some(SemanticVersion { major_number, minor_number, patch: 0 });
        let version = UserAgentVersionType::UserAgentBuildVersion(BuildVersion { version });
        Some(Node { user_agent_version_type: Some(version), ..Node::default() })
    };
    let kind = Some(prost_types::value::Kind::StringValue("true".to_owned()));
    let fields = [("disable_spiffe_cert_validation".to_owned(), prost_types::Value { kind })].into();
    let switched_off = Some(Node { metadata: Some(prost_types::Struct { fields }), ..Node::default() });
    for node in [of(1, 17), switched_off] {
        let response = fetch_as(&world, DiscoveryRequest { node: node.clone(), ..request(&["spiffe://other.test"]) }).await.unwrap();
        assert_eq!(authorities(&secrets(&response)[0]), [(String::new(), vec![foreign.root.clone()])]);
        let refused = fetch_as(&world, DiscoveryRequest { node, ..request(&["ALL"]) }).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::Internal, "unable to use \"SPIFFE validator\" on Envoy below 1.17"));
    }
    let response = fetch_as(&world, DiscoveryRequest { node: of(1, 18), ..request(&["spiffe://other.test"]) }).await.unwrap();
    assert_eq!(authorities(&secrets(&response)[0])[0].0, "other.test");
    // It is said once on a stream, with the first request.
    let mut stream = Stream::open(world.workload().await.channel).await;
    let first = stream.ask(DiscoveryRequest { node: of(1, 17), ..request(&["ROOTCA"]) }).await;
    let second = stream.ask(about(&first, "1", &["spiffe://other.test"])).await;
    assert_eq!(authorities(&secrets(&second)[0])[0].0, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_block_sds_gives_other_names_and_switches_the_validator_off() {
    let settings = "sds {\n default_svid_name = \"mine\"\n default_bundle_name = \"ours\"\n default_all_bundles_name = \"theirs\"\n \
                    disable_spiffe_cert_validation = true\n }";
    let world = World::with("", settings).await;
    world.entry("/web").await;
    assert_eq!(names(&fetch(&world, &["mine", "ours"]).await.unwrap()), ["ours", "mine"]);
    let refused = fetch(&world, &["default", "ROOTCA", "ALL"]).await.unwrap_err();
    assert_eq!(refused.message(), "workload is not authorized for the requested identities [\"ALL\" \"ROOTCA\" \"default\"]");
    let ours = fetch(&world, &["ours"]).await.unwrap();
    assert_eq!(authorities(&secrets(&ours)[0])[0].0, "", "the SPIFFE validator is on");
    assert_eq!(fetch(&world, &["theirs"]).await.unwrap_err().code(), Code::Internal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_what_is_asked_for_and_what_changes_and_nothing_twice() {
    Log::listen();
    let world = World::start().await;
    let (_, entry) = federated(&world).await;
    let channel = world.workload().await.channel;
    let mut bundles = Stream::open(channel.clone()).await;
    let first_bundle = bundles.ask(request(&["ROOTCA"])).await;
    let mut stream = Stream::open(channel).await;
    let first = stream.ask(request(&["default"])).await;
    assert_eq!((first.version_info.as_str(), first.nonce.len()), ("1", 8));
    let before = svid(&first);
    // Acknowledged; refused; about an answer that never was, with other names: nothing of it is answered.
    stream.say(about(&first, "1", &["default"])).await;
    let error_detail = Some(rpc::Status { code: 13, message: "no good".to_owned(), details: Vec::new() });
    let nack = DiscoveryRequest { error_detail, ..about(&first, "", &["default"]) };
    for _ in 0..3 {
        stream.say(nack.clone()).await;
    }
    stream.say(DiscoveryRequest { response_nonce: "00000000".to_owned(), ..about(&first, "1", &["ROOTCA"]) }).await;
    Log::says("WARN", "Received unexpected nonce; ignoring request").await.unwrap();
    for line in ["Envoy reported errors applying secrets", "Client rejected expected version and rolled back"] {
        assert_eq!(Log::count("ERROR", line), 1, "{line}, once for an answer");
    }

    let entry = world.update(&entry, |entry| entry.dns_names = vec!["web.test".to_owned()]).await;
    let second = next(&mut stream.answers).await;
    assert_eq!((second.version_info.as_str(), names(&second)), ("2", vec!["default".to_owned()]));
    assert_ne!(second.nonce, first.nonce);
    let after = svid(&second);
    assert_eq!(after.0.dns_names, ["web.test"]);
    assert_ne!(after.1, before.1, "the key is new");

    // Other names are answered at once, of the version that is known.
    let third = stream.ask(about(&second, "2", &["ALL"])).await;
    assert_eq!((third.version_info.as_str(), names(&third)), ("2", vec!["ALL".to_owned()]));
    assert_ne!(third.nonce, second.nonce);
    world.update(&entry, |entry| entry.federates_with = Vec::new()).await;
    let fourth = next(&mut stream.answers).await;
    assert_eq!((fourth.version_info.as_str(), authorities(&secrets(&fourth)[0]).len()), ("3", 1));
    // Of all that, what asks for the own bundle alone was told nothing.
    let of_bundles = bundles.ask(about(&first_bundle, "1", &["ROOTCA", "default"])).await;
    assert_eq!((of_bundles.version_info.as_str(), names(&of_bundles).len()), ("2", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_without_identity_gets_the_own_bundle_and_is_remembered_when_it_wants_more() {
    let world = World::start().await;
    let mut stream = Stream::open(world.workload().await.channel).await;
    let first = stream.ask(request(&["ALL"])).await;
    assert_eq!(authorities(&secrets(&first)[0]).len(), 1);
    assert_eq!(names(&fetch(&world, &[]).await.unwrap()), [OWN]);
    let refused = fetch(&world, &["default"]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "workload is not authorized for the requested identities [\"default\"]");

    // With an identity it is told so by name, and loses it on the open stream.
    let entry = world.entry("/web").await;
    let second = stream.ask(about(&first, "1", &["default"])).await;
    assert_eq!(svid(&second).0.spiffe_id().unwrap().as_str(), format!("{OWN}/web"));
    world.delete(&entry).await;
    let ended = answer(&mut stream.answers).await.unwrap_err();
    assert_eq!((ended.code(), ended.message()), (refused.code(), refused.message()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_secrets_ends_with_its_process() {
    let world = World::start().await;
    world.entry("/web").await;
    let (mut caller, connection) = Caller::connect(&world.socket(), None);
    let channel = Workload::over(tokio::net::UnixStream::from_std(connection).unwrap()).await.unwrap().channel;
    let mut stream = Stream::open(channel.clone()).await;
    svid(&stream.ask(request(&["default"])).await);
    caller.end();
    assert!(answer(&mut stream.answers).await.unwrap().is_none());
    for refused in [
        client(channel.clone()).fetch_secrets(request(&["ROOTCA"])).await.map(drop).unwrap_err(),
        client(channel).stream_secrets(tokio_stream::empty()).await.map(drop).unwrap_err(),
    ] {
        assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "workload attestation failed"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_that_runs_another_program_is_attested_again_before_it_gets_another_key() {
    let world = crate::callers::with_paths().await;
    let program = std::fs::canonicalize("/proc/self/exe").unwrap();
    let path = selector(&format!("unix:path:{}", program.display()));
    let entry = world.domain.entry_from(message("/tests", &[path])).await.unwrap();
    let (mut caller, connection) = Caller::connect(&world.socket(), None);
    let channel = Workload::over(tokio::net::UnixStream::from_std(connection).unwrap()).await.unwrap().channel;
    until("it has an identity", || async { default_secret(channel.clone()).await.ok() }).await.unwrap();
    let mut stream = Stream::open(channel.clone()).await;
    svid(&stream.ask(request(&["default"])).await);
    caller.run_another();
    // Another key for the former program: whoever sits there now must not get it, by the stream or by a call.
    world.update(&entry, |entry| entry.dns_names = vec!["web.test".to_owned()]).await;
    let text = "workload is not authorized for the requested identities [\"default\"]";
    let refused = [answer(&mut stream.answers).await.unwrap_err(), default_secret(channel).await.unwrap_err()];
    for refused in refused {
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, text));
    }
}

async fn default_secret(channel: Channel) -> Result<DiscoveryResponse, Status> {
    client(channel).fetch_secrets(request(&["default"])).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_cannot_be_had_now_is_waited_for_and_not_denied() {
    let mut world = World::start().await;
    world.entry("/web").await;
    fetch(&world, &["default"]).await.unwrap();
    // What is followed is written down half a second after it came.
    let written = || async { std::fs::metadata(world.file("countersign-follow.state")).is_ok_and(|m| m.len() > 600).then_some(()) };
    until("it is written down", written).await.unwrap();
    world.domain.stop_server().await;
    world.restart_agent().await;
    // Bundles are there at once. The key went with the process.
    assert_eq!(names(&fetch(&world, &["ROOTCA"]).await.unwrap()), ["ROOTCA"]);
    let mut asked = Request::new(request(&["default"]));
    asked.set_timeout(Duration::from_millis(300));
    let late = client(world.workload().await.channel).fetch_secrets(asked).await.unwrap_err();
    assert_eq!(late.code(), Code::Unavailable, "{late:?}");
    let mut stream = Stream::open(world.workload().await.channel).await;
    stream.say(request(&["default"])).await;
    // Whoever has no more to ask is still answered.
    drop(stream.requests);
    world.domain.start_server().await.unwrap();
    svid(&next(&mut stream.answers).await);
    assert!(answer(&mut stream.answers).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_the_two_services_can_be_switched_off_alone() {
    let world = World::with("", "disable_sds_api = true").await;
    world.entry("/web").await;
    assert_eq!(fetch(&world, &["default"]).await.unwrap_err().code(), Code::Unimplemented);
    world.workload().await.x509_svid().await.unwrap();
    assert_eq!(crate::endpoint::services_of(&world).await, ["SpiffeWorkloadAPI"]);
    drop(world);

    let mut world = World::without_agent(Arc::new(countersign_transport::clock::SystemClock), "").await;
    let config = world.config(true, "disable_workload_api = true").await;
    world.run(&config).await;
    let selectors = [countersign_testkit::domain::own_uid()];
    world.entries(vec![crate::support::message("/web", &selectors)]).await;
    until("this process has an identity", || async { fetch(&world, &["default"]).await.ok() }).await.unwrap();
    assert_eq!(world.workload().await.x509_svid().await.unwrap_err().code(), Code::Unimplemented);
    assert_eq!(crate::endpoint::services_of(&world).await, ["envoy.service.secret.v3.SecretDiscoveryService"]);
}
