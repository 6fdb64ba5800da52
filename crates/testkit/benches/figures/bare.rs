//! The barest server that answers the same calls: everything in memory, nobody attested, nothing written down. It checks
//! requests and builds certificates with rcgen, and signs tokens; what it spends is what the wire and the signature cost.

use std::pin::Pin;
use std::sync::Arc;

use countersign_identity::BundleSet;
use countersign_identity::key::KeyType;
use countersign_plugins::keys::KeyPair;
use countersign_transport::clock::SystemClock;
use countersign_transport::proxy::Proxies;
use countersign_transport::{tcp, tls, unix};
use countersign_wire::agent::{self, agent_server, attest_agent_response};
use countersign_wire::svid::{self, svid_server};
use countersign_wire::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use countersign_wire::{types, workload as wire};
use rcgen::{CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair as RcgenKey, SanType, string::Ia5String};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone)]
struct Bare(Arc<State>);

struct State {
    ca: Issuer<'static, RcgenKey>,
    jwt: KeyPair,
    svid: wire::X509svidResponse,
    token: String,
}

fn params(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri).unwrap())];
    params
}

/// Serves on a Unix socket and a TCP port until killed. The CA is written beside the socket for the load to trust.
pub async fn run(socket: &str, port: &str) {
    let ca_key = RcgenKey::generate().unwrap();
    let mut ca_params = params("spiffe://example.org");
    ca_params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = ca_params.self_signed(&ca_key).unwrap();
    let ca = Issuer::new(ca_params, ca_key);
    let leaf = |uri: &str| {
        let key = RcgenKey::generate().unwrap();
        (params(uri).signed_by(&key, &ca).unwrap().der().to_vec(), key.serialize_der())
    };
    std::fs::write(format!("{socket}.root"), root.der()).unwrap();
    let (client, client_key) = leaf("spiffe://example.org/spire/agent/bench");
    std::fs::write(format!("{socket}.client"), &client).unwrap();
    std::fs::write(format!("{socket}.client-key"), &client_key).unwrap();
    let (server, server_key) = leaf("spiffe://example.org/spire/server");
    let (workload, workload_key) = leaf("spiffe://example.org/bench");
    let identity = tls::identity(&[server], &server_key).unwrap();
    let mut bundle = countersign_identity::Bundle::empty(countersign_testkit::domain::trust_domain());
    bundle.add_x509_authority(countersign_identity::x509::Certificate::parse(root.der()).unwrap(), false).unwrap();
    let bundles = Arc::new(arc_swap::ArcSwap::from_pointee(BundleSet::from_iter([Arc::new(bundle)])));
    let svid = wire::X509svidResponse {
        svids: vec![wire::X509svid {
            spiffe_id: "spiffe://example.org/bench".to_owned(),
            x509_svid: workload,
            x509_svid_key: workload_key,
            bundle: root.der().to_vec(),
            hint: String::new(),
        }],
        ..wire::X509svidResponse::default()
    };
    let bare = Bare(Arc::new(State { ca, jwt: KeyPair::generate(KeyType::EcP256).unwrap(), svid, token: "x".repeat(330) }));
    let presented = Arc::new(arc_swap::ArcSwap::from_pointee(Some(identity)));
    let config = tls::server_config(presented, bundles, Arc::new(|_| true), Arc::new(SystemClock)).unwrap();
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await.unwrap();
    let secure = Server::builder()
        .add_service(agent_server::AgentServer::new(bare.clone()))
        .add_service(svid_server::SvidServer::new(bare.clone()))
        .serve_with_incoming(tcp::incoming(listener, Arc::new(config), Arc::default(), Proxies::default()));
    let local = tokio::net::UnixListener::bind(socket).unwrap();
    let plain = Server::builder()
        .add_service(SpiffeWorkloadApiServer::new(bare))
        .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(local));
    let _unused = unix::check_path(std::path::Path::new(socket));
    tokio::try_join!(secure, plain).unwrap();
}

impl Bare {
    /// Proof of possession, certificate, signature.
    fn certify(&self, csr: &[u8], uri: &str) -> Result<types::X509svid, Status> {
        let mut request =
            CertificateSigningRequestParams::from_der(&csr.to_vec().into()).map_err(|e| Status::invalid_argument(e.to_string()))?;
        request.params = params(uri);
        let certificate = request.signed_by(&self.0.ca).map_err(|e| Status::internal(e.to_string()))?;
        Ok(types::X509svid { cert_chain: vec![certificate.der().to_vec()], ..types::X509svid::default() })
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Bare {
    type FetchX509SVIDStream = Answers<wire::X509svidResponse>;
    async fn fetch_x509svid(&self, _: Request<wire::X509svidRequest>) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let first = tokio_stream::once(Ok(self.0.svid.clone()));
        Ok(Response::new(Box::pin(first.chain(tokio_stream::pending()))))
    }
    type FetchX509BundlesStream = Answers<wire::X509BundlesResponse>;
    async fn fetch_x509_bundles(&self, _: Request<wire::X509BundlesRequest>) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn fetch_jwtsvid(&self, _: Request<wire::JwtsvidRequest>) -> Result<Response<wire::JwtsvidResponse>, Status> {
        let svid = wire::Jwtsvid { spiffe_id: "spiffe://example.org/bench".to_owned(), svid: self.0.token.clone(), hint: String::new() };
        Ok(Response::new(wire::JwtsvidResponse { svids: vec![svid] }))
    }
    type FetchJWTBundlesStream = Answers<wire::JwtBundlesResponse>;
    async fn fetch_jwt_bundles(&self, _: Request<wire::JwtBundlesRequest>) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn validate_jwtsvid(&self, _: Request<wire::ValidateJwtsvidRequest>) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    type FetchWITSVIDStream = Answers<wire::WitsvidResponse>;
    async fn fetch_witsvid(&self, _: Request<wire::WitsvidRequest>) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(Status::unimplemented(""))
    }
    type FetchWITBundlesStream = Answers<wire::WitBundlesResponse>;
    async fn fetch_wit_bundles(&self, _: Request<wire::WitBundlesRequest>) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl agent_server::Agent for Bare {
    type AttestAgentStream = Answers<agent::AttestAgentResponse>;
    async fn attest_agent(
        &self,
        request: Request<Streaming<agent::AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let message = request.into_inner().message().await?.ok_or_else(|| Status::invalid_argument(""))?;
        let Some(agent::attest_agent_request::Step::Params(params)) = message.step else { return Err(Status::invalid_argument("")) };
        let svid = self.certify(&params.params.unwrap_or_default().csr, "spiffe://example.org/spire/agent/join_token/x")?;
        let result = attest_agent_response::Result { svid: Some(svid), reattestable: false };
        let answer = agent::AttestAgentResponse { step: Some(attest_agent_response::Step::Result(result)) };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(answer)))))
    }
    async fn count_agents(&self, _: Request<agent::CountAgentsRequest>) -> Result<Response<agent::CountAgentsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_agents(&self, _: Request<agent::ListAgentsRequest>) -> Result<Response<agent::ListAgentsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_agent(&self, _: Request<agent::GetAgentRequest>) -> Result<Response<types::Agent>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn delete_agent(&self, _: Request<agent::DeleteAgentRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn ban_agent(&self, _: Request<agent::BanAgentRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn renew_agent(&self, _: Request<agent::RenewAgentRequest>) -> Result<Response<agent::RenewAgentResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn create_join_token(&self, _: Request<agent::CreateJoinTokenRequest>) -> Result<Response<types::JoinToken>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn post_status(&self, _: Request<agent::PostStatusRequest>) -> Result<Response<agent::PostStatusResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl svid_server::Svid for Bare {
    async fn batch_new_x509svid(
        &self,
        request: Request<svid::BatchNewX509svidRequest>,
    ) -> Result<Response<svid::BatchNewX509svidResponse>, Status> {
        let results = request
            .into_inner()
            .params
            .iter()
            .map(|item| {
                let svid = self.certify(&item.csr, "spiffe://example.org/bench")?;
                Ok(svid::batch_new_x509svid_response::Result { status: Some(types::Status::default()), svid: Some(svid) })
            })
            .collect::<Result<_, Status>>()?;
        Ok(Response::new(svid::BatchNewX509svidResponse { results }))
    }
    async fn new_jwtsvid(&self, request: Request<svid::NewJwtsvidRequest>) -> Result<Response<svid::NewJwtsvidResponse>, Status> {
        use countersign_identity::key::SigningAlgorithm;
        let id = countersign_testkit::domain::spiffe_id("/bench");
        let now = countersign_transport::clock::Clock::now(&SystemClock);
        let claims = countersign_identity::jwt::Claims {
            spiffe_id: &id,
            audience: &request.get_ref().audience,
            issued_at: now,
            expires_at: now,
            issuer: None,
            token_id: None,
        };
        let input = countersign_identity::jwt::signing_input(&claims, SigningAlgorithm::EcdsaP256Sha256, "kid");
        let signature =
            self.0.jwt.sign(SigningAlgorithm::EcdsaP256Sha256, input.as_bytes()).map_err(|e| Status::internal(e.to_string()))?;
        let token = countersign_identity::jwt::assemble(&input, SigningAlgorithm::EcdsaP256Sha256, &signature)
            .map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(svid::NewJwtsvidResponse { svid: Some(types::Jwtsvid { token, ..types::Jwtsvid::default() }) }))
    }
    async fn mint_x509svid(&self, _: Request<svid::MintX509svidRequest>) -> Result<Response<svid::MintX509svidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn mint_jwtsvid(&self, _: Request<svid::MintJwtsvidRequest>) -> Result<Response<svid::MintJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn mint_witsvid(&self, _: Request<svid::MintWitsvidRequest>) -> Result<Response<svid::MintWitsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_new_witsvid(&self, _: Request<svid::BatchNewWitsvidRequest>) -> Result<Response<svid::BatchNewWitsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn new_downstream_x509ca(
        &self,
        _: Request<svid::NewDownstreamX509caRequest>,
    ) -> Result<Response<svid::NewDownstreamX509caResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
