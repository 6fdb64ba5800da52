//! What a running server takes over from another configuration.

use std::time::Duration;

use countersign_server::Config;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::attest_agent_request::{Params, Step};
use countersign_wire::agent::{AgentX509svidParams, AttestAgentRequest};
use countersign_wire::types;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tonic::{Code, Status};

use crate::world::Domain;

/// What a node is told that attests with something that proves nothing.
async fn attest(domain: &Domain, kind: &str) -> Status {
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
    let data = Some(types::AttestationData { r#type: kind.to_owned(), payload: b"00000000-0000-0000-0000-000000000000".to_vec() });
    let params = Params { data, params: Some(AgentX509svidParams { csr }) };
    let mut request = tonic::Request::new(tokio_stream::iter([AttestAgentRequest { step: Some(Step::Params(params)) }]));
    // Shorter than the wait for the second turn in a second.
    request.set_timeout(Duration::from_millis(200));
    let answer = AgentClient::new(domain.connect(None).await.unwrap()).attest_agent(request).await;
    match answer {
        Ok(mut answers) => answers.get_mut().message().await.unwrap_err(),
        Err(status) => status,
    }
}

fn reload(domain: &Domain, change: impl FnOnce(String) -> String) {
    let config = countersign_config::parse("server.conf", &change(domain.server_configuration())).and_then(Config::read).unwrap();
    domain.server.as_ref().unwrap().reload(&config);
}

#[tokio::test]
async fn attestors_and_limits_of_another_configuration_count_at_once() {
    let domain = Domain::start().await.unwrap();
    assert_eq!(attest(&domain, "x509pop").await.code(), Code::FailedPrecondition);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = domain.directory().join("ca.pem");
    std::fs::write(&ca, params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()).unwrap();
    let pop = format!("plugins {{\n  NodeAttestor \"x509pop\" {{\n    plugin_data {{\n      ca_bundle_path = {ca:?}\n    }}\n  }}\n}}\n");
    reload(&domain, |text| text + &pop);
    let status = attest(&domain, "x509pop").await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    // And back.
    reload(&domain, |text| text);
    assert_eq!(attest(&domain, "x509pop").await.code(), Code::FailedPrecondition);

    for _ in 0..3 {
        assert_eq!(attest(&domain, "join_token").await.code(), Code::InvalidArgument);
    }
    reload(&domain, |text| text.replace("attestation = false", "attestation = true"));
    assert_eq!(attest(&domain, "join_token").await.code(), Code::InvalidArgument);
    assert_eq!(attest(&domain, "join_token").await.code(), Code::ResourceExhausted);
}
