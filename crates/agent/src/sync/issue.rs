//! Asking the server for credentials of workloads.

use std::time::Duration;

use countersign_identity::selector::SELECTORS_MAX;
use countersign_identity::{Entry, Selector, Timestamp};
use countersign_plugins::Pending;
use countersign_wire::node::issue_response::Credential;
use countersign_wire::node::node_client::NodeClient;
use countersign_wire::node::{self as wire, issue_request};
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::svid::{NewJwtsvidRequest, NewX509svidParams};
use countersign_wire::types::permission_denied_details::Reason;
use countersign_wire::{denial, id};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::{ISSUE_TIMEOUT, Speaks, Sync};
use crate::rotate::Issuer;

/// How long a call waits for the connection of a renewed SVID: it is made at once after the renewal, and takes milliseconds.
const RENEWED_TIMEOUT: Duration = Duration::from_secs(5);

impl Sync {
    /// Asks for a JWT-SVID for these audiences; returns the token, which nobody has looked into yet.
    pub(crate) async fn issue_jwt(&self, entry: &Entry, audience: Vec<String>, facts: &[Selector]) -> Result<String, Status> {
        let credential = issue_request::Credential::Jwt(wire::JwtParams { audience });
        match self.issue(entry, credential, None, facts).await? {
            Some(Credential::Jwt(svid)) => Ok(svid.token),
            _ => Err(Status::internal("the server's answer is not a JWT-SVID")),
        }
    }

    async fn issue(
        &self,
        entry: &Entry,
        credential: issue_request::Credential,
        held: Option<Timestamp>,
        facts: &[Selector],
    ) -> Result<Option<Credential>, Status> {
        tracing::trace!(hop = "sends the request");
        let overload = self.overloads.of(&credential);
        let message = wire::IssueRequest {
            entry_id: entry.id.clone(),
            entry_revision: entry.revision_number,
            credential: Some(credential),
            held_expires_at: held.map_or(0, Timestamp::secs),
            // A process may have more groups than a message may have selectors; they are evidence and decide nothing.
            facts: id::selectors_to_wire(facts.get(..SELECTORS_MAX).unwrap_or(facts)),
        };
        overload.spare_the_server(Instant::now())?;
        let unconnected = || Status::unavailable("there is no connection to the server");
        let (channel, connection) = self.channel().ok_or_else(unconnected)?;
        let answer = match self.ask(channel, &message).await {
            // The agent's SVID was renewed while the call was under way on the connection of the one before: the new one is
            // used for the first time in that moment, or will be soon.
            Err(status) if status.code() == Code::PermissionDenied => {
                let patience = if denial::from_wire(&status) == Some(Reason::AgentNotActive) { RENEWED_TIMEOUT } else { Duration::ZERO };
                match self.next_channel(connection, patience).await {
                    Some(renewed) => self.ask(renewed, &message).await,
                    None => Err(status),
                }
            }
            answer => answer,
        };
        overload.note(answer.as_ref().err(), Instant::now(), &self.random);
        let credential = answer?;
        self.heard();
        Ok(credential)
    }

    /// Asks in the words that the server understands.
    async fn ask(&self, channel: Channel, message: &wire::IssueRequest) -> Result<Option<Credential>, Status> {
        // The first calls may be made before the server was found to know no stream.
        if self.speaks() == Speaks::Countersign {
            match NodeClient::new(channel.clone()).issue(within_timeout(message.clone())).await {
                Err(status) if status.code() == Code::Unimplemented => {}
                answer => return Ok(answer?.into_inner().credential),
            }
        }
        match &message.credential {
            Some(issue_request::Credential::X509Csr(csr)) => {
                let params = NewX509svidParams { entry_id: message.entry_id.clone(), csr: csr.clone() };
                Ok(Some(Credential::X509(self.batches.ask(channel, params).await?)))
            }
            Some(issue_request::Credential::Jwt(params)) => {
                let request = NewJwtsvidRequest { entry_id: message.entry_id.clone(), audience: params.audience.clone() };
                let answer = SvidClient::new(channel).new_jwtsvid(within_timeout(request)).await?.into_inner();
                Ok(answer.svid.map(Credential::Jwt))
            }
            None => Ok(None),
        }
    }
}

pub(super) fn within_timeout<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ISSUE_TIMEOUT);
    request
}

impl Issuer for Sync {
    fn issue_x509<'a>(
        &'a self,
        entry: &'a Entry,
        csr: Vec<u8>,
        held: Option<Timestamp>,
        facts: &'a [Selector],
    ) -> Pending<'a, Result<Vec<Vec<u8>>, Status>> {
        Box::pin(async move {
            match self.issue(entry, issue_request::Credential::X509Csr(csr), held, facts).await? {
                Some(Credential::X509(svid)) => Ok(svid.cert_chain),
                _ => Err(Status::internal("the server's answer is not an X509-SVID")),
            }
        })
    }
}
