//! A server whose answers no fresh server gives: agents whose SVIDs ended long ago, one of which nobody can delete; the bundle
//! of another trust domain fetched anew; authorities with the ID that was asked for; or no answer at all.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use countersign_transport::unix;
use countersign_wire::agent::{DeleteAgentRequest, GetAgentRequest, ListAgentsResponse};
use countersign_wire::local_authority::{
    ActivateX509AuthorityRequest, ActivateX509AuthorityResponse, AuthorityState, TaintX509UpstreamAuthorityRequest,
    TaintX509UpstreamAuthorityResponse,
};
use countersign_wire::types::{Agent, Selector, Spiffeid};
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// The end of an SVID, in 2001, and the path of an agent that cannot be deleted.
const ENDED_AT: i64 = 1_000_000_000;
const STUBBORN: &str = "/spire/agent/x509pop/stubborn";

/// Answers on this socket for as long as the runtime lives.
pub(super) fn answer(socket: &Path) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let connections = unix::incoming(unix::listen(socket, 0o755, 0o700).unwrap());
        let layer = tower::layer::layer_fn(|_: Routes| Answering);
        tokio::spawn(tonic::transport::Server::builder().layer(layer).add_routes(Routes::default()).serve_with_incoming(connections));
    });
    runtime
}

/// Stands where a server's services stand.
#[derive(Clone)]
struct Answering;

impl tower::Service<http::Request<Body>> for Answering {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let (service, method) = request.uri().path().rsplit_once('/').unwrap();
            Ok(match (service, method) {
                ("/spire.api.server.agent.v1.Agent", "ListAgents") => unary(request, agents).await,
                ("/spire.api.server.agent.v1.Agent", "GetAgent") => unary(request, selected).await,
                ("/spire.api.server.agent.v1.Agent", "DeleteAgent" | "BanAgent") => unary(request, delete).await,
                ("/spire.api.server.trustdomain.v1.TrustDomain", "RefreshBundle") => unary(request, |()| Ok(())).await,
                // Of the requests and of the answers all have one form, and those about authorities upstream another.
                ("/spire.api.server.localauthority.v1.LocalAuthority", method) if method.contains("Upstream") => {
                    unary(request, upstream_authority).await
                }
                ("/spire.api.server.localauthority.v1.LocalAuthority", _) => unary(request, authority).await,
                ("/SpiffeWorkloadAPI", _) => std::future::pending().await,
                _ => Status::unimplemented("not in the script").into_http(),
            })
        })
    }
}

async fn unary<Q, A>(request: http::Request<Body>, answer: fn(Q) -> Result<A, Status>) -> http::Response<Body>
where
    Q: prost::Message + Default + Send + 'static,
    A: prost::Message + Send + 'static,
{
    let service = tower::service_fn(move |request: Request<Q>| {
        let answer = answer(request.into_inner()).map(Response::new);
        async move { answer }
    });
    Grpc::new(ProstCodec::<A, Q>::default()).unary(service, request).await
}

fn agent(path: &str) -> Agent {
    let id = Some(Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() });
    Agent { id, x509svid_expires_at: ENDED_AT, can_reattest: true, ..Agent::default() }
}

fn selected(request: GetAgentRequest) -> Result<Agent, Status> {
    let selector = |value: &str| Selector { r#type: "x509pop".to_owned(), value: value.to_owned() };
    let selectors = vec![selector("subject:cn:over"), selector("ca:fingerprint:00")];
    Ok(Agent { selectors, ..agent(&request.id.unwrap_or_default().path) })
}

fn agents((): ()) -> Result<ListAgentsResponse, Status> {
    let agents = vec![agent("/spire/agent/x509pop/over"), agent(STUBBORN)];
    Ok(ListAgentsResponse { agents, next_page_token: String::new() })
}

fn delete(request: DeleteAgentRequest) -> Result<(), Status> {
    if request.id.unwrap_or_default().path == STUBBORN { Err(Status::internal("it stays")) } else { Ok(()) }
}

fn authority(request: ActivateX509AuthorityRequest) -> Result<ActivateX509AuthorityResponse, Status> {
    let state = AuthorityState { authority_id: request.authority_id, expires_at: ENDED_AT, ..AuthorityState::default() };
    Ok(ActivateX509AuthorityResponse { activated_authority: Some(state) })
}

fn upstream_authority(request: TaintX509UpstreamAuthorityRequest) -> Result<TaintX509UpstreamAuthorityResponse, Status> {
    Ok(TaintX509UpstreamAuthorityResponse { upstream_authority_subject_key_id: request.subject_key_id })
}
