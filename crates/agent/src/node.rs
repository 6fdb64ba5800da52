//! The agent's own identity: attested once, renewed at half of its life, kept on disk before it is used.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign_identity::key::KeyType;
use countersign_identity::rotation::renewal_after_start;
use countersign_identity::x509::Certificate;
use countersign_identity::{Bundle, BundleSet, SpiffeId, Timestamp, TrustDomain};
use countersign_plugins::keys::{KeyManager, KeyManagerError, KeyPair};
use countersign_plugins::node::{AgentHalf, Answers, AttestError, Blame};
use countersign_transport::client::ConnectError;
use countersign_transport::clock::SharedClock;
use countersign_transport::key_exchange::KeyExchange;
use countersign_transport::random::SharedRandom;
use countersign_transport::tls::SharedBundles;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::{self, attest_agent_request, attest_agent_response};
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::node::FollowResponse;
use countersign_wire::{bundle, bundle_api, types};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::config::{Bootstrap, Config, Rebootstrap};
use crate::rotate::renewal;
use crate::standing::Standing;
use crate::state::{AgentData, Attempts, Files, StateError};
use crate::trust;

mod connect;

/// The two places of the agent's key; a new key always goes into the other one.
const SLOTS: [&str; 2] = ["agent-svid-A", "agent-svid-B"];
/// How long the server may take for a call about the agent's own identity.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The agent has no identity.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The server cannot be reached, or is not trusted.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refused or failed.
    #[error("failed to receive attestation response: {}", .0.message())]
    Server(Box<Status>),
    /// The node cannot prove itself.
    #[error(transparent)]
    Attestor(#[from] AttestError),
    /// The key manager.
    #[error(transparent)]
    Keys(#[from] KeyManagerError),
    /// The files.
    #[error(transparent)]
    State(#[from] StateError),
    /// The trust bundle the first contact is verified with, in a file that stays as it is.
    #[error("cannot use the trust bundle: {0}")]
    Bootstrap(String),
    /// The same, from somebody who may answer later.
    #[error("cannot get the trust bundle: {0}")]
    Source(String),
    /// Another bundle took the place of the one that was held, and with it nothing of before counts.
    #[error("the agent has taken another trust bundle, and must join anew")]
    StartOver,
    /// It is to start over by itself when its server has other authorities, and could not.
    #[error("you have requested rebootstrap support but the NodeAttestor plugin or the spire server configuration is not allowing it")]
    CannotRebootstrap,
    /// The server answered nonsense.
    #[error("the server's answer is not usable: {0}")]
    Answer(String),
}

impl NodeError {
    pub(crate) fn server(status: Status) -> Self {
        Self::Server(Box::new(status))
    }

    /// Whether the node may be able to prove itself later: its files are just being replaced, say.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Attestor(error) if error.blame == Blame::Failed)
    }
}

/// The agent's SVID with its key.
#[derive(Debug)]
pub(crate) struct NodeSvid {
    pub(crate) id: SpiffeId,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) pair: Arc<KeyPair>,
    pub(crate) serial_number: String,
    pub(crate) expires_at: Timestamp,
    pub(crate) renew_at: Timestamp,
    pub(crate) reattestable: bool,
    pub(crate) slot: usize,
}

/// The agent's own identity and what it needs to get one.
pub(crate) struct Node {
    trust_domain: TrustDomain,
    server: (String, u16),
    /// How often a server that pushes nothing is asked.
    pub(crate) sync_interval: Duration,
    bootstrap: Bootstrap,
    key_exchange: KeyExchange,
    availability_target: Option<Duration>,
    attestor: ArcSwap<Arc<dyn AgentHalf>>,
    keys: Arc<dyn KeyManager>,
    files: Files,
    clock: SharedClock,
    random: SharedRandom,
    /// The bundle the server is verified with: cached, or from the bootstrap source.
    bundles: SharedBundles,
    /// Held while the SVID's file is written.
    kept: Mutex<Kept>,
    /// The key of an attestation that has had no answer yet. It is asked with again, because the server repeats its answer
    /// only to the same key, and a token works only once.
    asking: Mutex<Option<(usize, Arc<KeyPair>)>>,
    /// How often the source of the bundle was read since the agent trusted its server last, and since when.
    attempts: Mutex<Option<Attempts>>,
    /// After how long without a server that the bundle knows a wholly other one is taken from the source; nothing for never.
    rebootstrap: Mutex<Option<Rebootstrap>>,
    /// Another bundle took the place of the one that was held, and nobody has drawn conclusions from that yet.
    changed_authorities: AtomicBool,
    /// How the agent stands with its server.
    pub(crate) standing: Standing,
}

/// What the SVID's file holds, so that a late writer cannot bring back what is over.
#[derive(Debug, Default)]
struct Kept {
    /// Serial number of the newest SVID.
    newest: Option<String>,
    /// Serial number that was forgotten and is never written again.
    forgotten: Option<String>,
}

impl Node {
    pub(crate) fn new(config: &Config, files: Files, clock: SharedClock, random: SharedRandom) -> Self {
        Self {
            trust_domain: config.trust_domain.clone(),
            server: (config.server_address.clone(), config.server_port),
            sync_interval: config.sync_interval,
            bootstrap: config.bootstrap.clone(),
            key_exchange: config.key_exchange,
            availability_target: config.availability_target,
            attestor: ArcSwap::from_pointee(Arc::clone(&config.node_attestor)),
            keys: Arc::clone(&config.key_manager),
            files,
            standing: Standing::new(clock.now()),
            clock,
            random,
            bundles: Arc::new(ArcSwap::default()),
            kept: Mutex::default(),
            asking: Mutex::default(),
            attempts: Mutex::default(),
            rebootstrap: Mutex::new(config.rebootstrap),
            changed_authorities: AtomicBool::new(false),
        }
    }

    /// The trust domain it is a member of.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Where the server is.
    pub(crate) fn server_address(&self) -> String {
        format!("{}:{}", self.server.0, self.server.1)
    }

    /// The bundle the server is verified with, for the rest of the agent to keep new.
    pub(crate) fn bundles(&self) -> SharedBundles {
        Arc::clone(&self.bundles)
    }

    /// Whether another bundle took the place of the one that was held since this was asked last.
    pub(crate) fn has_changed_authorities(&self) -> bool {
        self.changed_authorities.swap(false, Ordering::Relaxed)
    }

    /// Reads what is on disk: the SVID, if it is whole, has its key, and has not ended.
    pub(crate) fn load(&self) -> Result<Option<Arc<NodeSvid>>, NodeError> {
        let data = self.files.agent_data()?;
        self.check_trust_domain(&data)?;
        *self.attempts.lock().unwrap_or_else(PoisonError::into_inner) = data.attempts();
        let mut cached = Bundle::empty(self.trust_domain.clone());
        for der in &data.bundle {
            // Roots that have ended prove nothing any more; without one the bootstrap source is used again.
            if let Ok(certificate) = Certificate::parse(der)
                && certificate.not_after > self.clock.now()
            {
                let _ = cached.add_x509_authority(certificate, false);
            }
        }
        if cached.x509_authorities().is_empty() {
            tracing::info!("Bundle is not found");
        } else {
            tracing::info!("Bundle loaded");
            self.bundles.store(Arc::new(BundleSet::from_iter([Arc::new(cached)])));
        }
        let svid = self.find(data);
        match &svid {
            Some(svid) => tracing::info!(spiffe_id = %svid.id, expires_at = %svid.expires_at, "SVID loaded"),
            None => tracing::info!("SVID is not found. Starting node attestation"),
        }
        Ok(svid)
    }

    /// Another trust domain's roots must not vouch for ours.
    fn check_trust_domain(&self, data: &AgentData) -> Result<(), StateError> {
        let found = data.svid.first().and_then(|der| Certificate::parse(der).ok()).and_then(|leaf| leaf.spiffe_id());
        match found.filter(|id| !id.is_member_of(&self.trust_domain)) {
            Some(id) => Err(self.files.foreign(id.trust_domain_name(), self.trust_domain.name())),
            None => Ok(()),
        }
    }

    fn find(&self, data: AgentData) -> Option<Arc<NodeSvid>> {
        let leaf = Certificate::parse(data.svid.first()?).ok()?;
        if leaf.not_after <= self.clock.now() {
            tracing::info!(expired_at = %leaf.not_after, "The SVID on disk has ended");
            return None;
        }
        let slot = SLOTS.iter().position(|slot| self.keys.pair(slot).is_some_and(|p| *p.public_key() == leaf.public_key))?;
        let pair = self.keys.pair(SLOTS.get(slot)?)?;
        let spread = self.random.fraction();
        let renew_at = renewal_after_start(self.clock.now(), leaf.not_before, leaf.not_after, spread).min(renewal(
            self.availability_target,
            self.clock.now(),
            &leaf,
            spread,
        ));
        self.svid(data.svid, pair, data.reattestable, slot).ok().map(|svid| Arc::new(NodeSvid { renew_at, ..svid }))
    }

    fn svid(&self, chain: Vec<Vec<u8>>, pair: Arc<KeyPair>, reattestable: bool, slot: usize) -> Result<NodeSvid, NodeError> {
        let refuse = |what: &str| NodeError::Answer(format!("the agent's SVID {what}"));
        let leaf = chain.first().and_then(|der| Certificate::parse(der).ok()).ok_or_else(|| refuse("does not parse"))?;
        let id = leaf
            .spiffe_id()
            .filter(|id| id.is_agent() && id.is_member_of(&self.trust_domain))
            .ok_or_else(|| refuse("names no agent of this trust domain"))?;
        if leaf.public_key != *pair.public_key() {
            return Err(refuse("is for another key"));
        }
        let renew_at = renewal(self.availability_target, self.clock.now(), &leaf, self.random.fraction());
        Ok(NodeSvid { id, serial_number: leaf.serial_decimal(), expires_at: leaf.not_after, chain, pair, renew_at, reattestable, slot })
    }

    /// Proves the node to the server and keeps what it gets, before anybody uses it.
    pub(crate) async fn attest(&self, held: Option<&NodeSvid>) -> Result<Arc<NodeSvid>, NodeError> {
        self.prove(held, None).await
    }

    /// Attests; `renewed` is the SVID whose place the new one takes, if it is the same node in the same life.
    async fn prove(&self, held: Option<&NodeSvid>, renewed: Option<&NodeSvid>) -> Result<Arc<NodeSvid>, NodeError> {
        let channel = self.connect(None).await?;
        // What the node has to show comes before the key: without a token nothing is overwritten.
        let attestor = self.attestor.load_full();
        let mut attempt = attestor.begin().await?;
        let data = types::AttestationData { r#type: attestor.name().to_owned(), payload: attempt.payload };
        let (slot, pair) = self.asking_key(held).await?;
        let csr = pair.request(None, &[])?;
        let params = attest_agent_request::Params { data: Some(data), params: Some(agent::AgentX509svidParams { csr }) };
        let result = Self::converse(channel.clone(), params, &mut *attempt.answers).await?;
        let chain = result.svid.map(|s| s.cert_chain).unwrap_or_default();
        let svid = Arc::new(self.svid(chain, pair, result.reattestable, slot)?);
        // A node with another certificate may be another agent: what was followed for the one before is not for it.
        let renewed = renewed.filter(|before| before.id == svid.id);
        // On disk before anything else: a one-time token has been spent for it.
        self.keep(&svid, renewed)?;
        *self.asking.lock().unwrap_or_else(PoisonError::into_inner) = None;
        tracing::info!(spiffe_id = %svid.id, reattestable = svid.reattestable, expires_at = %svid.expires_at, "Node attestation was successful");
        if held.is_some() {
            tracing::info!(spiffe_id = %svid.id, "Successfully reattested node");
        }
        // The node has joined: whatever happens from here on must not make it ask again.
        match self.fetch_bundle(channel).await {
            Ok(()) => self.keep(&svid, None)?,
            Err(error) => tracing::warn!(%error, "Could not fetch the bundle, it comes with the entries"),
        }
        Ok(svid)
    }

    /// The key to attest with: that of an attempt without answer, or a new one.
    async fn asking_key(&self, held: Option<&NodeSvid>) -> Result<(usize, Arc<KeyPair>), NodeError> {
        if let Some(asking) = self.asking.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(asking);
        }
        let asking = self.new_key(held).await?;
        *self.asking.lock().unwrap_or_else(PoisonError::into_inner) = Some(asking.clone());
        Ok(asking)
    }

    /// Gets a new SVID for a new key while the present one still counts.
    pub(crate) async fn renew(&self, held: &NodeSvid) -> Result<Arc<NodeSvid>, NodeError> {
        if held.reattestable {
            return self.prove(Some(held), Some(held)).await;
        }
        let channel = self.connect(Some(held)).await?;
        let (slot, pair) = self.new_key(Some(held)).await?;
        let csr = pair.request(None, &[])?;
        let mut request = tonic::Request::new(agent::RenewAgentRequest { params: Some(agent::AgentX509svidParams { csr }) });
        request.set_timeout(CALL_TIMEOUT);
        let answer = AgentClient::new(channel).renew_agent(request).await.map_err(NodeError::server)?.into_inner();
        let chain = answer.svid.map(|s| s.cert_chain).unwrap_or_default();
        let svid = Arc::new(self.svid(chain, pair, false, slot)?);
        self.keep(&svid, Some(held))?;
        tracing::info!(spiffe_id = %svid.id, expires_at = %svid.expires_at, "Successfully rotated agent SVID");
        Ok(svid)
    }

    async fn new_key(&self, held: Option<&NodeSvid>) -> Result<(usize, Arc<KeyPair>), NodeError> {
        // Never the slot of the SVID that is held or on disk, even if it seems to have ended: a clock may be wrong.
        let in_use = match held {
            Some(held) => Some(held.slot),
            None => self.slot_on_disk()?,
        };
        let slot = in_use.map_or(0, |slot| 1 - slot.min(1));
        let name = SLOTS.get(slot).copied().unwrap_or("agent-svid-A");
        self.keys.generate(name, KeyType::EcP256).await?;
        let pair = self.keys.pair(name).ok_or_else(|| KeyManagerError::Missing(name.to_owned()))?;
        Ok((slot, pair))
    }

    fn slot_on_disk(&self) -> Result<Option<usize>, StateError> {
        let data = self.files.agent_data()?;
        let leaf = data.svid.first().and_then(|der| Certificate::parse(der).ok());
        Ok(leaf.and_then(|leaf| SLOTS.iter().position(|slot| self.keys.pair(slot).is_some_and(|p| *p.public_key() == leaf.public_key))))
    }

    async fn converse(
        channel: Channel,
        params: attest_agent_request::Params,
        answers_of_node: &mut dyn Answers,
    ) -> Result<attest_agent_response::Result, NodeError> {
        let (out, requests) = mpsc::channel(1);
        let step = |step| agent::AttestAgentRequest { step: Some(step) };
        let gone = || NodeError::Answer("the server ended the attestation early".to_owned());
        out.send(step(attest_agent_request::Step::Params(params))).await.map_err(|_| gone())?;
        let mut client = AgentClient::new(channel);
        let call = client.attest_agent(ReceiverStream::new(requests));
        let mut answers = timeout(call).await?.map_err(NodeError::server)?.into_inner();
        loop {
            let answer = timeout(answers.message()).await?.map_err(NodeError::server)?.ok_or_else(gone)?;
            match answer.step {
                Some(attest_agent_response::Step::Result(result)) => return Ok(result),
                Some(attest_agent_response::Step::Challenge(challenge)) => {
                    let response = answers_of_node.answer(&challenge).await?;
                    out.send(step(attest_agent_request::Step::ChallengeResponse(response))).await.map_err(|_| gone())?;
                }
                None => return Err(gone()),
            }
        }
    }

    async fn fetch_bundle(&self, channel: Channel) -> Result<(), NodeError> {
        let mut request = tonic::Request::new(bundle_api::GetBundleRequest { output_mask: None });
        request.set_timeout(CALL_TIMEOUT);
        let answer = BundleClient::new(channel).get_bundle(request).await.map_err(NodeError::server)?.into_inner();
        let own = bundle::from_wire(&answer).map_err(|e| NodeError::Answer(e.to_string()))?;
        if *own.trust_domain() != self.trust_domain {
            return Err(NodeError::Answer(format!("its bundle is of trust domain `{}`", own.trust_domain())));
        }
        self.bundles.store(Arc::new(BundleSet::from_iter([Arc::new(own)])));
        Ok(())
    }

    /// Writes a new SVID and the bundle to disk. What was followed with the SVID it replaces stays usable.
    ///
    /// INVARIANT: stopped after any step, the SVID on disk is one that the file of what is followed is bound to. Test
    /// `stopped_at_any_step_of_a_renewal_the_svid_on_disk_and_what_is_followed_fit`.
    fn keep(&self, svid: &NodeSvid, renewed: Option<&NodeSvid>) -> Result<(), NodeError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(renewed) = renewed
            && let Err(error) = self.files.follow_rebind(&renewed.serial_number, &svid.serial_number)
        {
            // The SVID is worth more; without the rest a restart asks the server.
            tracing::warn!(%error, "What is followed could not be bound to the renewed SVID");
        }
        self.write(svid)?;
        // Only now: until it is on disk, the one before it is used, and what is followed goes on being kept beside that.
        kept.newest = Some(svid.serial_number.clone());
        Ok(())
    }

    /// Writes the bundle and what is followed beside this SVID, unless a newer one is there by now or it was forgotten.
    /// Says whether it did.
    pub(crate) fn keep_followed(&self, svid: &NodeSvid, followed: &FollowResponse) -> Result<bool, NodeError> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_newest = kept.newest.as_ref().is_none_or(|newest| *newest == svid.serial_number);
        if kept.forgotten.as_ref() == Some(&svid.serial_number) || !is_newest {
            return Ok(false);
        }
        self.write(svid)?;
        self.files.follow_put(&svid.serial_number, followed)?;
        Ok(true)
    }

    fn write(&self, svid: &NodeSvid) -> Result<(), NodeError> {
        // Never over what cannot be read: it may hold the only trace of roots that were withdrawn.
        let mut data = self.files.agent_data()?;
        data.svid.clone_from(&svid.chain);
        data.reattestable = svid.reattestable;
        if let Some(own) = self.bundles.load().get(self.trust_domain.name()) {
            let ended = trust::ended_last(own, &self.roots(&data), self.clock.now());
            data.bundle = own.x509_authorities().iter().map(|a| &a.certificate).chain(&ended).map(|c| c.der().to_vec()).collect();
        }
        Ok(self.files.agent_data_put(&data)?)
    }

    /// Forgets the SVID: it counts no longer, and must not be tried again at the next start.
    pub(crate) fn forget(&self, svid: Option<&NodeSvid>) -> Result<(), NodeError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.forgotten = svid.map(|s| s.serial_number.clone());
        let mut data = self.files.agent_data()?;
        data.svid.clear();
        Ok(self.files.agent_data_put(&data)?)
    }

    /// What to do for an agent that cannot attest again by itself.
    pub(crate) fn how_to_join(&self) -> String {
        self.attestor.load().how_to_join()
    }

    /// Proves itself by other means from the next attestation on.
    pub(crate) fn attest_with(&self, attestor: Arc<dyn AgentHalf>) {
        self.attestor.store(Arc::new(attestor));
    }
}

async fn timeout<T>(call: impl Future<Output = T>) -> Result<T, NodeError> {
    tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(|_| NodeError::Answer("the server took too long".to_owned()))
}

#[cfg(test)]
mod tests;
