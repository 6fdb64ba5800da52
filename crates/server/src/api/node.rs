//! How Countersign agents follow, and how they ask for one credential at a time.

use std::pin::Pin;

use countersign_store::Cursor;
use countersign_transport::tcp::TlsPeer;
use countersign_wire::node::{self, follow_request, issue_request, issue_response, node_server};
use countersign_wire::{id, svid};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::Api;
use crate::follow::{self, Follower};
use crate::ratelimit;

/// Messages that may wait for a slow agent; what comes after waits as keys in its mailbox.
const MESSAGES_MAX: usize = 4;

#[tonic::async_trait]
impl node_server::Node for Api {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<node::FollowResponse, Status>> + Send>>;

    async fn follow(&self, request: Request<Streaming<node::FollowRequest>>) -> Result<Response<Self::FollowStream>, Status> {
        let caller = Self::caller(&request)?;
        let identity = caller.proof.identity().cloned().ok_or_else(|| Status::internal("BUG: an agent without certificate"))?;
        // SPIRE's age of connections would part an agent from its stream, and cost the fleet a handshake each every three minutes.
        let kept = request.extensions().get::<TlsPeer>().map(TlsPeer::keep);
        let mut requests = request.into_inner();
        let (out, messages) = mpsc::channel(MESSAGES_MAX);
        let api = self.clone();
        // The agent's first message may come after the answer's headers, so it is awaited beside them.
        tokio::spawn(async move {
            let _kept = kept;
            let hello = match requests.next().await {
                Some(Ok(node::FollowRequest { step: Some(follow_request::Step::Hello(hello)) })) => hello,
                Some(Ok(_)) => {
                    let _ = out.send(Err(Status::invalid_argument("the first message must be a hello"))).await;
                    return;
                }
                Some(Err(_)) => {
                    let _ = out.send(Err(Status::invalid_argument("the first message cannot be read"))).await;
                    return;
                }
                None => return,
            };
            api.saw(&identity.spiffe_id, Some(&hello.agent_version.chars().take(255).collect::<String>()));
            let membership = api.hub.join(&identity.spiffe_id);
            let mailbox = std::sync::Arc::clone(&membership.mailbox);
            let follower = Follower {
                identity: std::sync::Arc::clone(&identity),
                trust_domain: api.trust_domain.clone(),
                store: api.store.clone(),
                hub: std::sync::Arc::clone(&api.hub),
                clock: std::sync::Arc::clone(&api.clock),
            };
            let serving = follow::serve(follower, membership, hello.cursor.and_then(cursor), out);
            let acknowledging = async {
                while let Some(Ok(message)) = requests.next().await {
                    if let Some(follow_request::Step::Ack(ack)) = message.step {
                        mailbox.acknowledge(ack);
                        api.saw(&identity.spiffe_id, None);
                    }
                }
            };
            tokio::select! {
                () = serving => {}
                () = acknowledging => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn issue(&self, request: Request<node::IssueRequest>) -> Result<Response<node::IssueResponse>, Status> {
        tracing::trace!(hop = "takes the call");
        let caller = Self::caller(&request)?;
        let agent = Self::agent(&request)?;
        let patience = ratelimit::patience(request.metadata());
        let request = request.into_inner();
        // What the node says about the workload is written down as its claim, and believed no further.
        let facts = id::selectors_from_wire(&request.facts).map_err(|e| Status::invalid_argument(format!("malformed facts: {e}")))?;
        let credential = match request.credential {
            Some(issue_request::Credential::X509Csr(csr)) => {
                self.rate_limits.x509(&agent.spiffe_id, 1, patience).await.map_err(|e| self.over_limit(&caller, e))?;
                let params = svid::NewX509svidParams { entry_id: request.entry_id, csr };
                issue_response::Credential::X509(self.workload_x509(&caller, &agent, &params, facts).await?)
            }
            Some(issue_request::Credential::Jwt(jwt)) => {
                self.rate_limits.jwt(&agent.spiffe_id, patience).await.map_err(|e| self.over_limit(&caller, e))?;
                issue_response::Credential::Jwt(self.workload_jwt(&caller, &agent, &request.entry_id, jwt.audience, facts).await?)
            }
            None => return Err(Status::invalid_argument("missing credential")),
        };
        Ok(Response::new(node::IssueResponse { credential: Some(credential) }))
    }
}

/// A cursor that cannot be one of ours is the same as none.
fn cursor(cursor: node::Cursor) -> Option<Cursor> {
    Some(Cursor { epoch: cursor.epoch.try_into().ok()?, revision: cursor.revision, digest: cursor.digest.try_into().ok()? })
}
