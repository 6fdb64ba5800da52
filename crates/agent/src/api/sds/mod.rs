//! Envoy's Secret Discovery Service (v3) on the public socket: an Envoy is attested as any workload, and gets certificates and
//! validation contexts by name.
//!
//! As in SPIRE no security header is demanded, the own bundle is given to a caller without identity too, and a stream ends with
//! the first name that is not for its caller. What is read from the cache, what wakes a stream, and how a caller is looked at
//! again before it gets a key is the Workload API's.

mod exchange;
mod secrets;
mod validator;

use std::sync::Arc;

use countersign_transport::limits::MESSAGE_BYTES_MAX;
use countersign_transport::random::SharedRandom;
use countersign_wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
use countersign_wire::secret_discovery::secret_discovery_service_server::{
    SecretDiscoveryService as Service, SecretDiscoveryServiceServer,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status, Streaming};

use self::exchange::{Asked, Exchange, shown};
use self::secrets::{Held, Secret, Sent, Unanswered, select};
use super::Api;
use super::reply::{self, Fingerprint, Kind};
use super::workload::{Messages, attestation_failed, deadline, messages, within};
use crate::attest::Caller;
use crate::config::Sds;
use crate::ratelimit::Method;

/// The service's name in the log.
const SERVICE: &str = "SDS.v3";

/// The service. Cloning shares it.
#[derive(Clone)]
pub(super) struct SecretDiscovery {
    api: Api,
    settings: Arc<Sds>,
    random: SharedRandom,
}

/// What a request is answered with.
struct Answer {
    secrets: Vec<Secret>,
    /// Everything the caller may have, whether it asks for it or not.
    state: Fingerprint,
}

/// What a stream has sent.
struct Last {
    secrets: Vec<Sent>,
    state: Fingerprint,
}

#[tonic::async_trait]
impl Service for SecretDiscovery {
    type StreamSecretsStream = Messages<DiscoveryResponse>;

    async fn stream_secrets(&self, request: Request<Streaming<DiscoveryRequest>>) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let patience = deadline(&request);
        let caller = self.api.attest(&request, SERVICE, "StreamSecrets").await?;
        self.api.limits.pass(Method::StreamSecrets, &caller)?;
        let (service, watched, requests) = (self.clone(), caller.peer.clone(), request.into_inner());
        Ok(Response::new(messages(watched, |out| async move { service.feed(caller, patience, requests, &out).await })))
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let patience = deadline(&request);
        let mut caller = self.api.attest(&request, SERVICE, "FetchSecrets").await?;
        self.api.limits.pass(Method::FetchSecrets, &caller)?;
        let asked = Asked::read(request.into_inner(), self.settings.disable_spiffe_cert_validation, None)?;
        let mut subscription = self.api.cache.subscribers.join(Arc::clone(&caller.selectors));
        let answer = loop {
            let revision = self.api.cache.revision();
            if let Some(answer) = self
                .answer(&caller, &asked)
                .inspect_err(|e| self.note_refusal("FetchSecrets", e, "Error building fetch secrets response"))?
            {
                if self.is_unchanged(&mut caller, &answer.secrets).await? {
                    break answer;
                }
                subscription = self.api.cache.subscribers.join(Arc::clone(&caller.selectors));
                continue;
            }
            self.api.delivered(&subscription, revision);
            within(patience, subscription.wake.notified()).await?;
        };
        let response = response(&answer.secrets, &asked)?;
        tracing::debug!(service = SERVICE, count = response.resources.len(), "Sending FetchSecrets response");
        self.api.metrics.called("FetchSecrets", "OK");
        Ok(Response::new(response))
    }

    type DeltaSecretsStream = Messages<DeltaDiscoveryResponse>;

    async fn delta_secrets(&self, _: Request<Streaming<DeltaDiscoveryRequest>>) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("Method is not implemented"))
    }
}

impl SecretDiscovery {
    pub(super) fn server(api: &Api, settings: Sds, random: SharedRandom) -> SecretDiscoveryServiceServer<Self> {
        let service = Self { api: api.clone(), settings: Arc::new(settings), random };
        SecretDiscoveryServiceServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Answers what is asked for, and again whenever that changes: one or the other.
    async fn feed(
        &self,
        mut caller: Caller,
        patience: Option<Instant>,
        mut requests: Streaming<DiscoveryRequest>,
        out: &mpsc::Sender<Result<DiscoveryResponse, Status>>,
    ) -> Result<(), Status> {
        let mut subscription = self.api.cache.subscribers.join(Arc::clone(&caller.selectors));
        let mut exchange = Exchange::new(self.settings.disable_spiffe_cert_validation);
        let mut last: Option<Last> = None;
        let (mut is_open, mut is_news) = (true, true);
        loop {
            let revision = self.api.cache.revision();
            if let Some(asked) = exchange.asked().filter(|_| is_news || exchange.is_due())
                && let Some(answer) = self
                    .answer(&caller, asked)
                    .inspect_err(|e| self.note_refusal("StreamSecrets", e, "Error building stream secrets response"))?
                && (exchange.is_due() || !last.as_ref().is_some_and(|last| last.shows(&answer.secrets)))
            {
                if !self.is_unchanged(&mut caller, &answer.secrets).await? {
                    subscription = self.api.cache.subscribers.join(Arc::clone(&caller.selectors));
                    is_news = true;
                    continue;
                }
                let mut response = response(&answer.secrets, asked)?;
                let is_another = !last.as_ref().is_some_and(|last| last.state.shows_same(&answer.state, Kind::X509Svids));
                response.nonce = self.nonce();
                response.version_info = exchange.answered(is_another, response.nonce.clone());
                let (version_info, nonce, count) = (&response.version_info, &response.nonce, response.resources.len());
                tracing::debug!(service = SERVICE, version_info, nonce, count, "Sending StreamSecrets response");
                self.api.metrics.called("StreamSecrets", "OK");
                last = Some(Last { secrets: answer.secrets.iter().map(Secret::sent).collect(), state: answer.state });
                // Not held while the caller reads: what is in them may be over by then.
                drop(answer.secrets);
                if out.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            if !is_open && !exchange.is_due() {
                return Ok(());
            }
            self.api.delivered(&subscription, revision);
            let heard = async {
                tokio::select! {
                    () = subscription.wake.notified() => None,
                    request = requests.message(), if is_open => Some(request),
                }
            };
            // A stream that has told its caller something waits for news as long as it takes.
            let heard = within(patience.filter(|_| last.is_none()), heard).await?;
            is_news = heard.is_none();
            match heard {
                None => {}
                Some(Ok(Some(request))) => exchange.hear(request)?,
                // Whoever asks no more is still told what it asked for.
                Some(Ok(None)) => is_open = false,
                Some(Err(status)) if status.code() == Code::Cancelled => return Ok(()),
                Some(Err(error)) => {
                    tracing::error!(service = SERVICE, %error, "Received error from stream secrets server");
                    return Err(error);
                }
            }
        }
    }

    /// Looks at a caller once more that is to get a key. Whether it is who it was; another program has other facts, and everything
    /// is looked at anew.
    async fn is_unchanged(&self, caller: &mut Caller, secrets: &[Secret]) -> Result<bool, Status> {
        if !secrets.iter().any(Secret::has_key) {
            return Ok(true);
        }
        let before = Arc::clone(&caller.selectors);
        *caller = self.api.attestors.check_again(caller.clone()).await.map_err(|_| attestation_failed())?;
        Ok(caller.selectors == before)
    }

    /// What is asked for; nothing while that cannot be known or had.
    fn answer(&self, caller: &Caller, asked: &Asked) -> Result<Option<Answer>, Status> {
        // Before the state is looked at, so that nobody is refused by a state that was about to be completed.
        let is_known = self.api.cache.is_caught_up();
        let identities = self.api.cache.matching(&caller.selectors, self.api.clock.now());
        let bundles = reply::bundles_of(&identities, &self.api.cache.bundles(), &self.api.trust_domain);
        let own = self.api.trust_domain.id();
        let held = Held { identities: &identities, bundles: &bundles, own: own.as_str() };
        match select(&asked.names, &held, asked.validator, &self.settings) {
            Ok(secrets) if is_known || !asked.names.is_empty() => {
                let state = Fingerprint::of(&identities, &bundles);
                Ok(Some(Answer { secrets, state }))
            }
            Ok(_) => Ok(None),
            Err(Unanswered::Awaits(identities)) => {
                self.api.rotator.want(&identities, &caller.selectors);
                Ok(None)
            }
            Err(Unanswered::Unknown(_)) if !is_known => Ok(None),
            Err(Unanswered::Unknown(names)) => {
                if identities.is_empty() {
                    self.api.note_denied(caller, SERVICE);
                }
                let names = shown(names.iter().map(String::as_str));
                Err(Status::invalid_argument(format!("workload is not authorized for the requested identities {names}")))
            }
            // SPIRE's words, and its code.
            Err(Unanswered::Inseparable) => Err(Status::internal("unable to use \"SPIFFE validator\" on Envoy below 1.17")),
        }
    }

    fn note_refusal(&self, method: &'static str, status: &Status, line: &str) {
        tracing::error!(service = SERVICE, method, error = status.message(), "{line}");
        self.api.metrics.called(method, if status.code() == Code::Internal { "Internal" } else { "InvalidArgument" });
    }

    /// Four bytes, as SPIRE's.
    fn nonce(&self) -> String {
        format!("{:08x}", self.random.next() >> 32)
    }
}

impl Last {
    fn shows(&self, secrets: &[Secret]) -> bool {
        self.secrets.len() == secrets.len() && secrets.iter().zip(&self.secrets).all(|(secret, sent)| secret.is_same(sent))
    }
}

fn response(secrets: &[Secret], asked: &Asked) -> Result<DiscoveryResponse, Status> {
    let resources = secrets.iter().map(|secret| secret.to_wire(asked.validator)).collect::<Result<_, _>>()?;
    Ok(DiscoveryResponse { resources, type_url: asked.type_url.clone(), ..DiscoveryResponse::default() })
}

#[cfg(test)]
mod tests;
