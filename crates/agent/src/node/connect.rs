//! How the agent gets to its server, and whom it believes to be that: the bundle it holds, or what the operator gives it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign_identity::x509::Certificate;
use countersign_identity::{Bundle, BundleSet};
use countersign_transport::client::{self, ConnectError};
use countersign_transport::tls::{self, SharedBundles};
use tonic::transport::Channel;

use super::{Node, NodeError, NodeSvid};
use crate::config::Bootstrap;
use crate::state::{AgentData, Attempts, StateError};
use crate::trust;
use crate::trust_source::{Attempt, SOURCE_TIMEOUT, TrustSource};

impl Node {
    /// Connects to the server, with an SVID or without one.
    pub(crate) async fn connect(&self, svid: Option<&NodeSvid>) -> Result<Channel, NodeError> {
        let knows = || self.bundles.load().get(self.trust_domain.name()).is_some();
        match &self.bootstrap {
            Bootstrap::Insecure if !knows() => {
                let config = tls::insecure_client_config(self.key_exchange, self.admit()).map_err(|e| NodeError::Answer(e.to_string()))?;
                let channel = client::tls(&self.server.0, self.server.1, Arc::new(config)).await?;
                if svid.is_none() {
                    return Ok(channel);
                }
                // Joined, but the bundle did not come with it: fetched as at the first contact.
                self.fetch_bundle(channel).await?;
                self.connect_trusting(svid, Arc::clone(&self.bundles)).await
            }
            Bootstrap::From(source) if !knows() => {
                let seen = self.bundle_on_disk()?;
                let again = self.files.agent_data()?.has_known_server();
                let given = self.read(source, again).await.map_err(|e| unusable(source, e))?;
                match seen {
                    // Everything the agent knew has ended; what was withdrawn before must not come back for that.
                    Some(ended) => {
                        let newer = trust::successor(&ended, &ended, &given).ok_or_else(|| unusable(source, nothing_newer(source)))?;
                        self.adopt(svid, newer, source, Some("all authorities of the cached bundle have ended")).await?;
                    }
                    None => self.adopt(svid, given, source, None).await?,
                }
                self.connect_trusting(svid, Arc::clone(&self.bundles)).await
            }
            Bootstrap::Insecure | Bootstrap::From(_) => {
                match (self.connect_trusting(svid, Arc::clone(&self.bundles)).await, &self.bootstrap) {
                    (Err(NodeError::Connect(error)), Bootstrap::From(source)) if error.unknown_authority => {
                        self.connect_after_change(svid, error, source).await
                    }
                    (connected, _) => {
                        if connected.is_ok() {
                            self.agreed();
                        }
                        connected
                    }
                }
            }
        }
    }

    /// Reads the source of the bundle; `again` if the agent knew one before.
    async fn read(&self, source: &TrustSource, again: bool) -> Result<Bundle, String> {
        let Attempts { number, started } = {
            let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
            let Attempts { number, started } = attempts.unwrap_or(Attempts { number: 0, started: self.clock.now() });
            *attempts.insert(Attempts { number: number + 1, started })
        };
        self.note_attempts(Some(Attempts { number, started }));
        let attempt = Attempt { again, number, started, server: &self.server, trust_domain: &self.trust_domain };
        tokio::select! {
            read = source.read(&attempt) => read,
            () = self.clock.sleep_for(SOURCE_TIMEOUT), if !source.is_file() => Err(format!("`{source}`: no answer within {SOURCE_TIMEOUT:?}")),
        }
    }

    /// The server has proved itself.
    fn agreed(&self) {
        let ended = self.attempts.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Attempts { number, started }) = ended {
            tracing::info!("Success after {:?} attempts={number}", self.clock.now().since(started));
            tracing::info!("Setting use.");
            self.note_attempts(None);
        }
    }

    /// Keeps the attempts, in SPIRE's form, for a restart.
    fn note_attempts(&self, attempts: Option<Attempts>) {
        let _one_at_a_time = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = self.files.agent_data().and_then(|mut data| {
            data.note_attempts(attempts);
            self.files.agent_data_put(&data)
        });
        if let Err(error) = noted {
            tracing::warn!(%error, "The attempts to reach the server could not be noted");
        }
    }

    /// The server's authority is unknown: the authorities changed while the agent was away, or somebody else answers. The
    /// operator's bundle decides, as at the first contact, but only with authorities newer than all the agent knows; where the
    /// operator wants it (`rebootstrap_mode`), with all of it after some time.
    async fn connect_after_change(&self, svid: Option<&NodeSvid>, error: ConnectError, source: &TrustSource) -> Result<Channel, NodeError> {
        let held = self.bundles.load().get(self.trust_domain.name()).map(Arc::clone);
        let given = self.read(source, true).await;
        let newer = given.as_ref().map_err(Clone::clone).and_then(|given| {
            let none = || Bundle::empty(self.trust_domain.clone());
            let held = held.unwrap_or_else(|| Arc::new(none()));
            // Roots that have ended are on disk only.
            let seen = self.bundle_on_disk().map_err(|e| e.to_string())?.unwrap_or_else(none);
            trust::successor(&held, &seen, given).ok_or_else(|| nothing_newer(source))
        });
        match newer {
            Ok(newer) => match self.adopt(svid, newer, source, Some("the cached bundle does not know the server's authority")).await {
                Ok(()) => return self.connect_trusting(svid, Arc::clone(&self.bundles)).await,
                Err(other) => {
                    tracing::warn!(error = %other, %source, "Neither the cached bundle nor the newer one of its source fits the server");
                }
            },
            Err(reason) => {
                tracing::warn!(
                    %reason,
                    hint = "if the server is yours, put its bundle where the agent looks for it, with `countersign bundle show`; the agent looks there again by itself",
                    "The cached bundle does not know the server's authority, and the source of trust bundles does not help"
                );
            }
        }
        match given {
            Ok(given) if self.is_time_to_start_over() => {
                tracing::warn!("Trust Bundle and Server don't agree, rebootstrapping");
                // Only a bundle by which the server proves itself takes the place of the one that is held, and only then does
                // the SVID count for nothing: until that, everything stays as it is.
                self.adopt(None, given, source, Some("the cached bundle has not known the server's authority for rebootstrap_delay"))
                    .await?;
                match svid {
                    Some(_) => Err(NodeError::StartOver),
                    None => self.connect_trusting(None, Arc::clone(&self.bundles)).await,
                }
            }
            _ => Err(error.into()),
        }
    }

    /// Whether the operator wants the agent to give up the bundle it holds, now that it has not fitted for so long.
    fn is_time_to_start_over(&self) -> bool {
        let Some(rebootstrap) = *self.rebootstrap.lock().unwrap_or_else(PoisonError::into_inner) else { return false };
        let started = self.attempts.lock().unwrap_or_else(PoisonError::into_inner).map(|a| a.started);
        let left = rebootstrap.delay.saturating_sub(started.map_or(Duration::ZERO, |started| self.clock.now().since(started)));
        if !left.is_zero() {
            tracing::info!(time_left = ?left, "Trust Bundle and Server don't agree, ignoring for now");
        }
        left.is_zero()
    }

    /// Checks that an agent that is to start over by itself can: one that joined with a token cannot.
    pub(crate) fn check_rebootstrap(&self, svid: &NodeSvid) -> Result<(), NodeError> {
        let mut rebootstrap = self.rebootstrap.lock().unwrap_or_else(PoisonError::into_inner);
        match *rebootstrap {
            Some(wanted) if !svid.reattestable => {
                if wanted.always {
                    return Err(NodeError::CannotRebootstrap);
                }
                tracing::warn!("{}. Disabling", NodeError::CannotRebootstrap);
                *rebootstrap = None;
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    /// Puts another bundle in the place of the cached one, if the server proves itself with it. The caller connects once more,
    /// so that the connection follows the bundle when that changes. `reason` says why the cached one is replaced; without one
    /// there was none.
    async fn adopt(&self, svid: Option<&NodeSvid>, bundle: Bundle, source: &TrustSource, reason: Option<&str>) -> Result<(), NodeError> {
        let tried: SharedBundles = Arc::new(ArcSwap::from_pointee(BundleSet::from_iter([Arc::new(bundle)])));
        self.connect_trusting(svid, Arc::clone(&tried)).await?;
        self.bundles.store(tried.load_full());
        self.agreed();
        // Said here, whatever becomes of the connection: from now on the agent believes other authorities.
        if let Some(reason) = reason {
            self.changed_authorities.store(true, Ordering::Relaxed);
            tracing::warn!(reason, %source, "Took the newer bundle of its source, which knows the server");
        }
        Ok(())
    }

    async fn connect_trusting(&self, svid: Option<&NodeSvid>, bundles: SharedBundles) -> Result<Channel, NodeError> {
        let identity = svid.map(|s| tls::identity(&s.chain, s.pair.pkcs8())).transpose().map_err(|e| NodeError::Answer(e.to_string()))?;
        let config = tls::client_config_with(self.key_exchange, identity, bundles, self.admit(), Arc::clone(&self.clock))
            .map_err(|e| NodeError::Answer(e.to_string()))?;
        Ok(client::tls(&self.server.0, self.server.1, Arc::new(config)).await?)
    }

    fn admit(&self) -> tls::Admit {
        let server_id = self.trust_domain.server_id();
        Arc::new(move |id| *id == server_id)
    }

    /// The roots on disk, those that have ended among them; nothing if there are none.
    ///
    /// INVARIANT: a file that cannot be read is an error. Taken for an agent that never knew anything, it would let the whole
    /// of the operator's file be believed, withdrawn authorities too. Test
    /// `while_its_file_cannot_be_read_an_agent_whose_authorities_have_ended_believes_nobody`.
    fn bundle_on_disk(&self) -> Result<Option<Bundle>, StateError> {
        let found = self.roots(&self.files.agent_data()?);
        Ok((!found.x509_authorities().is_empty()).then_some(found))
    }

    pub(super) fn roots(&self, data: &AgentData) -> Bundle {
        let mut found = Bundle::empty(self.trust_domain.clone());
        for der in &data.bundle {
            if let Ok(certificate) = Certificate::parse(der) {
                let _ = found.add_x509_authority(certificate, false);
            }
        }
        found
    }
}

fn nothing_newer(source: &TrustSource) -> String {
    format!("`{source}` holds no authority newer than those the agent knows")
}

/// A file says tomorrow what it says today; others are asked again.
fn unusable(source: &TrustSource, reason: String) -> NodeError {
    if source.is_file() { NodeError::Bootstrap(reason) } else { NodeError::Source(reason) }
}
