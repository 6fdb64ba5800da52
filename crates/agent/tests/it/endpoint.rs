//! The endpoint itself: socket, header, status codes, reflection, health (Workload Endpoint, sections 2 to 7).

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::time::Duration;

use countersign_testkit::domain::own_uid;
use countersign_testkit::log::Log;
use countersign_testkit::workload::{first, with_header};
use countersign_wire::workload as wire;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::World;

/// The seven methods, in the standard's order.
const METHODS: [&str; 7] =
    ["FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID", "FetchWITSVID", "FetchWITBundles"];

/// What each method answers to a request with these values of the header.
async fn answers(channel: &Channel, header: &[&'static str]) -> Vec<Status> {
    fn with<T>(message: T, header: &[&'static str]) -> Request<T> {
        let mut request = Request::new(message);
        for value in header {
            request.metadata_mut().append("workload.spiffe.io", MetadataValue::from_static(value));
        }
        request
    }
    let mut client = wire::spiffe_workload_api_client::SpiffeWorkloadApiClient::new(channel.clone());
    let ok = |_| Status::ok("");
    let jwt = wire::JwtsvidRequest { audience: vec!["a".to_owned()], spiffe_id: String::new() };
    vec![
        client.fetch_x509svid(with(wire::X509svidRequest {}, header)).await.map(|_| ()).map_or_else(|e| e, ok),
        client.fetch_x509_bundles(with(wire::X509BundlesRequest {}, header)).await.map(|_| ()).map_or_else(|e| e, ok),
        client.fetch_jwtsvid(with(jwt, header)).await.map(|_| ()).map_or_else(|e| e, ok),
        client.fetch_jwt_bundles(with(wire::JwtBundlesRequest {}, header)).await.map(|_| ()).map_or_else(|e| e, ok),
        client.validate_jwtsvid(with(wire::ValidateJwtsvidRequest::default(), header)).await.map(|_| ()).map_or_else(|e| e, ok),
        client.fetch_witsvid(with(wire::WitsvidRequest::default(), header)).await.map(|_| ()).map_or_else(|e| e, ok),
        client.fetch_wit_bundles(with(wire::WitBundlesRequest {}, header)).await.map(|_| ()).map_or_else(|e| e, ok),
    ]
}

async fn reflect(channel: Channel, question: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let answers = ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    first(answers.into_inner()).await.unwrap().message_response.unwrap()
}

async fn services(channel: Channel) -> Vec<String> {
    let MessageResponse::ListServicesResponse(list) = reflect(channel, MessageRequest::ListServices(String::new())).await else {
        panic!("not a list")
    };
    list.service.into_iter().map(|s| s.name).collect()
}

/// Without those that gRPC brings.
pub async fn services_of(world: &World) -> Vec<String> {
    let mut found = services(world.workload().await.channel).await;
    found.retain(|service| !service.starts_with("grpc."));
    found.sort_unstable();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_knows_what_the_secrets_of_envoys_are_made_of() {
    let world = World::start().await;
    // They are wrapped in the answers, which do not name them.
    for name in ["Secret", "SPIFFECertValidatorConfig"] {
        let question = MessageRequest::FileContainingSymbol(format!("envoy.extensions.transport_sockets.tls.v3.{name}"));
        let answer = reflect(world.workload().await.channel, question).await;
        assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{name}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wep_01_the_endpoint_is_a_local_socket_that_every_user_may_connect_to() {
    let world = World::start().await;
    let metadata = std::fs::symlink_metadata(world.socket()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o777);
}

#[tokio::test(flavor = "multi_thread")]
async fn wep_02_no_other_host_can_reach_the_endpoint() {
    // A Unix socket; a second agent with the same path is refused instead of taking it over.
    let world = World::start().await;
    world.entry("/web").await;
    let token = world.domain.token(None).await.unwrap();
    let text = world.domain.agent_configuration("b", Some(&token), "").replace("/b/agent.sock", "/a/agent.sock");
    std::fs::create_dir_all(world.domain.directory().join("b")).unwrap();
    std::fs::write(world.domain.directory().join("b/bundle.pem"), world.domain.bundle().await.unwrap().to_pem()).unwrap();
    let config = countersign_agent::Config::read(countersign_config::parse("agent.conf", &text).unwrap()).unwrap();
    let error = world.domain.run_agent(&config).await.unwrap_err().to_string();
    assert!(error.contains("is in use by another process"), "{error}");
    world.workload().await.x509_svid().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wep_03_the_endpoint_speaks_grpc_over_http2_with_prior_knowledge() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start().await;
    let mut stream = tokio::net::UnixStream::connect(world.socket()).await.unwrap();
    // The client's preface and empty SETTINGS; the server's first frame is SETTINGS too.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "{frame:?}");
}

#[test]
fn wep_05_the_socket_is_a_unix_socket_unless_somebody_says_otherwise() {
    let text = "agent {\n trust_domain = \"example.org\"\n server_address = \"s\"\n server_port = 1\n insecure_bootstrap = true\n}\n\
                plugins {\n KeyManager \"memory\" {\n plugin_data {}\n }\n NodeAttestor \"join_token\" {\n plugin_data {}\n }\n \
                WorkloadAttestor \"unix\" {\n plugin_data {}\n }\n}\n";
    let config = countersign_agent::Config::read(countersign_config::parse("agent.conf", text).unwrap()).unwrap();
    assert_eq!(config.socket_path, std::path::Path::new("/tmp/spire-agent/public/api.sock"));
}

#[test]
fn wep_06_nothing_makes_the_agent_listen_on_tcp() {
    for line in ["bind_address = \"0.0.0.0\"", "socket_path = \"tcp://0.0.0.0:8080\"", "socket_path = \"tcp:127.0.0.1:80\""] {
        let text = format!(
            "agent {{\n trust_domain = \"example.org\"\n server_address = \"s\"\n server_port = 1\n insecure_bootstrap = true\n {line}\n}}\n\
             plugins {{\n KeyManager \"memory\" {{\n plugin_data {{}}\n }}\n NodeAttestor \"join_token\" {{\n plugin_data {{}}\n }}\n \
             WorkloadAttestor \"unix\" {{\n plugin_data {{}}\n }}\n}}\n"
        );
        assert!(countersign_agent::Config::read(countersign_config::parse("agent.conf", &text).unwrap()).is_err(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wep_08_every_method_demands_the_header_exactly_once_with_exactly_that_value() {
    let world = World::start().await;
    world.entry("/web").await;
    let channel = world.workload().await.channel;
    for header in [&["True"] as &[_], &["TRUE"], &["1"], &[""], &["true "], &["true, true"], &["true", "true"], &["false"]] {
        for (method, status) in METHODS.iter().zip(answers(&channel, header).await) {
            // A trailing space is no part of a header's value once HTTP has read it.
            if header != ["true "] {
                assert_eq!(status.code(), Code::InvalidArgument, "{method} {header:?}");
                assert_eq!(status.message(), "security header missing from request", "{method} {header:?}");
            }
        }
    }
    let good = answers(&channel, &["true"]).await;
    assert_eq!(good.iter().filter(|s| s.code() == Code::Ok).count(), 4, "{good:?}");
    // As in SPIRE, what is beside the Workload API on its socket passes without: set-ups depend on it.
    assert!(!services(channel).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn wep_09_wep_18_wep_20_a_caller_needs_neither_tls_nor_credentials_nor_any_action() {
    let world = World::start().await;
    world.entry("/web").await;
    let response = world.workload().await.x509_svid().await.unwrap();
    assert_eq!(response.svids[0].spiffe_id, "spiffe://example.org/web");
}

#[tokio::test(flavor = "multi_thread")]
async fn wep_21_a_request_without_the_header_gets_invalid_argument() {
    let world = World::start().await;
    let channel = world.workload().await.channel;
    for (method, status) in METHODS.iter().zip(answers(&channel, &[]).await) {
        assert_eq!(status.code(), Code::InvalidArgument, "{method}");
        assert_eq!(status.message(), "security header missing from request", "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wep_23_an_agent_that_does_not_know_its_entries_yet_is_unavailable() {
    let mut world = World::start().await;
    world.entry("/web").await;
    let workload = world.workload().await;
    workload.x509_svid().await.unwrap();
    let token = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
    world.stop_agent().await;
    world.domain.stop_server().await;
    std::fs::write(world.file("countersign-follow.state"), "something else").unwrap();
    let config = world.config(false, "").await;
    world.run(&config).await;
    let workload = world.workload().await;
    let short = Duration::from_millis(300);
    let mut client = workload.client();
    let within = |m| countersign_testkit::workload::within(m, short);
    let refused = [
        workload.x509_svid_within(short).await.unwrap_err(),
        first(
            client
                .fetch_x509_bundles(countersign_testkit::workload::within(wire::X509BundlesRequest {}, short))
                .await
                .unwrap()
                .into_inner(),
        )
        .await
        .unwrap_err(),
        first(
            client.fetch_jwt_bundles(countersign_testkit::workload::within(wire::JwtBundlesRequest {}, short)).await.unwrap().into_inner(),
        )
        .await
        .unwrap_err(),
        client
            .fetch_jwtsvid(countersign_testkit::workload::within(
                wire::JwtsvidRequest { audience: vec!["a".to_owned()], ..Default::default() },
                short,
            ))
            .await
            .unwrap_err(),
        client.validate_jwtsvid(within(wire::ValidateJwtsvidRequest { audience: "a".to_owned(), svid: token })).await.unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wep_25_a_caller_without_identity_gets_permission_denied() {
    let world = World::start().await;
    let workload = world.workload().await;
    let denied = [
        workload.x509_svid().await.unwrap_err(),
        first(workload.x509_bundles().await.unwrap()).await.unwrap_err(),
        workload.jwt_svids(&["a"], "").await.unwrap_err(),
        first(workload.jwt_bundles().await.unwrap()).await.unwrap_err(),
    ];
    for status in denied {
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.message(), "no identity issued");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wep_28_wep_30_wep_32_reflection_lists_the_workload_api_with_exactly_the_standard_methods() {
    use prost::Message as _;
    let world = World::start().await;
    let channel = world.workload().await.channel;
    assert_eq!(services_of(&world).await, ["SpiffeWorkloadAPI", "envoy.service.secret.v3.SecretDiscoveryService"]);
    let question = MessageRequest::FileContainingSymbol("SpiffeWorkloadAPI".to_owned());
    let MessageResponse::FileDescriptorResponse(files) = reflect(channel, question).await else { panic!("no descriptor") };
    let methods: Vec<String> = files
        .file_descriptor_proto
        .iter()
        .map(|f| prost_types::FileDescriptorProto::decode(f.as_slice()).unwrap())
        .flat_map(|f| f.service)
        .filter(|s| s.name() == "SpiffeWorkloadAPI")
        .flat_map(|s| s.method)
        .map(|m| m.name().to_owned())
        .collect();
    let mut wanted = METHODS.map(ToOwned::to_owned);
    wanted.sort_unstable();
    let mut sorted = methods;
    sorted.sort_unstable();
    assert_eq!(sorted, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn wep_29_the_workload_api_is_there_even_for_who_has_no_identity() {
    let world = World::start().await;
    assert_ne!(world.workload().await.x509_svid().await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_needs_no_header_and_knows_no_services() {
    let world = World::start().await;
    let mut client = HealthClient::new(world.workload().await.channel);
    let check = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let until = countersign_testkit::domain::until("the agent is healthy", || {
        let mut client = client.clone();
        async move { (client.check(check("")).await.unwrap().into_inner().status == 1).then_some(()) }
    });
    until.await.unwrap();
    let refused = client.check(check("SpiffeWorkloadAPI")).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "per-service health is not supported"));
    assert_eq!(client.watch(check("")).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_does_not_exist_is_unimplemented_and_still_needs_the_header() {
    let world = World::start().await;
    let channel = world.workload().await.channel;
    let call = |request: Request<wire::X509svidRequest>| {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        async move {
            grpc.ready().await.unwrap();
            let path = http::uri::PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchEverything");
            let codec = tonic_prost::ProstCodec::<wire::X509svidRequest, wire::X509svidResponse>::default();
            grpc.unary(request, path, codec).await.unwrap_err().code()
        }
    };
    assert_eq!(call(with_header(wire::X509svidRequest {})).await, Code::Unimplemented);
    assert_eq!(call(Request::new(wire::X509svidRequest {})).await, Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_in_the_log_shows_the_selectors_that_may_be_there_and_no_others() {
    Log::listen();
    let world = World::with("", "log_selectors = [\"unix:uid\", \"k8s:ns\"]").await;
    world.workload().await.x509_svid().await.unwrap_err();
    let denied = Log::lines("ERROR", "No identity issued");
    let shown = format!(" selectors=\"{}\"", own_uid());
    assert!(denied.len() == 1 && denied[0].contains(&shown), "{denied:?}");
}
