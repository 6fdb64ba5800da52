//! When a server that said it is asked too much may be asked again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use countersign_transport::random::SharedRandom;
use countersign_wire::node::issue_request::Credential;
use tokio::time::Instant;
use tonic::{Code, Status};

/// First pause after the server said that it is asked too much; it doubles up to [`PAUSE_MAX`], with jitter.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// Longest such pause: a token that a workload waits for must not come later than a patient caller's deadline.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// One for each kind of credential, because servers limit each by itself: many tokens must not stop certificates.
#[derive(Debug, Default)]
pub(super) struct Overloads {
    x509: Overload,
    jwt: Overload,
}

impl Overloads {
    /// That of the kind asked for.
    pub(super) fn of(&self, credential: &Credential) -> &Overload {
        match credential {
            Credential::X509Csr(_) => &self.x509,
            Credential::Jwt(_) => &self.jwt,
        }
    }
}

/// A server that said it is asked too much is left alone for a while, by all calls for this kind of credential together.
#[derive(Debug, Default)]
pub(super) struct Overload(Mutex<Pause>);

#[derive(Debug, Default)]
struct Pause {
    length: Option<Duration>,
    until: Option<Instant>,
}

impl Overload {
    /// Refuses to ask during a pause.
    pub(super) fn spare_the_server(&self, now: Instant) -> Result<(), Status> {
        let until = self.0.lock().unwrap_or_else(PoisonError::into_inner).until;
        match until {
            Some(until) if until > now => {
                Err(Status::resource_exhausted("the server has said that it is asked too much, the agent waits before it asks again"))
            }
            _ => Ok(()),
        }
    }

    /// Learns from an answer.
    pub(super) fn note(&self, error: Option<&Status>, now: Instant, random: &SharedRandom) {
        let mut pause = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            None => *pause = Pause::default(),
            Some(status) if status.code() == Code::ResourceExhausted => {
                // Calls that were under way together count as one.
                if pause.until.is_some_and(|until| until > now) {
                    return;
                }
                let length = pause.length.map_or(PAUSE_FIRST, |length| (length * 2).min(PAUSE_MAX));
                let wait = length.mul_f64(0.8 + 0.4 * random.fraction());
                tracing::warn!(error = status.message(), retry_interval = ?wait, "The server is asked too much, waiting before asking again");
                *pause = Pause { length: Some(length), until: Some(now + wait) };
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use countersign_identity::key::KeyType;
    use countersign_plugins::keys::KeyPair;
    use countersign_testkit::clock::VirtualClock;
    use countersign_testkit::domain::{agent_configuration, spiffe_id};
    use countersign_testkit::scripted::{Authority, Fate, ISSUE, Scripted, bundle_of};
    use countersign_transport::clock::Clock as _;
    use countersign_transport::random::Seeded;
    use countersign_wire::node::JwtParams;
    use countersign_wire::{entry, id, types};

    use super::super::*;
    use super::*;
    use crate::rotate::Issuer as _;

    #[test]
    fn each_kind_of_credential_has_pauses_of_its_own() {
        let random: SharedRandom = Arc::new(Seeded::new(1));
        let (now, busy) = (Instant::now(), Status::resource_exhausted("slow down"));
        let overloads = Overloads::default();
        let (x509, jwt) = (overloads.of(&Credential::X509Csr(Vec::new())), overloads.of(&Credential::Jwt(JwtParams::default())));
        jwt.note(Some(&busy), now, &random);
        assert!(jwt.spare_the_server(now).is_err());
        x509.spare_the_server(now).expect("may ask");
        // What succeeds does not end the other's pause, nor make the next one as short as the first.
        x509.note(None, now, &random);
        assert!(jwt.spare_the_server(now).is_err());
        let later = now + PAUSE_FIRST * 2;
        jwt.spare_the_server(later).expect("the pause is over");
        x509.note(None, later, &random);
        jwt.note(Some(&busy), later, &random);
        assert!(jwt.spare_the_server(later + PAUSE_FIRST * 3 / 2).is_err(), "the pauses grow");
        jwt.note(None, later, &random);
        jwt.spare_the_server(later).expect("its own success ends it");
    }

    #[tokio::test]
    async fn a_server_asked_for_too_many_tokens_is_still_asked_for_certificates() {
        let directory = tempfile::tempdir().expect("a directory");
        let clock = VirtualClock::at_present();
        let day = Duration::from_secs(24 * 3600);
        let authority = Arc::new(Authority::new(clock.now().before(day), clock.now().after(day)).expect("an authority"));
        let server = Scripted::start(Arc::clone(&authority), Arc::new(clock.clone())).await.expect("a server");
        std::fs::write(directory.path().join("bundle.pem"), bundle_of(&[&authority]).expect("few").to_pem()).expect("written");
        let text = agent_configuration(directory.path(), server.port(), None, "");
        let config = crate::Config::read(countersign_config::parse("agent.conf", &text).expect("parses")).expect("reads");
        let (clock, random): (SharedClock, SharedRandom) = (Arc::new(clock), Arc::new(Seeded::new(1)));
        let files = Files::new(directory.path()).expect("files");
        let node = Arc::new(Node::new(&config, files.clone(), Arc::clone(&clock), Arc::clone(&random)));
        let cache = Arc::new(Cache::new(config.trust_domain.clone(), node.bundles(), 10));
        let sync = Sync::new(Arc::clone(&node), cache, files, clock, random, "test".to_owned());
        sync.current.write().expect("free").channel = Some(node.connect(None).await.expect("connected"));
        let of = |path| Some(id::to_wire(&spiffe_id(path)));
        let selectors = vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }];
        let web =
            types::Entry { id: "web".to_owned(), spiffe_id: of("/web"), parent_id: of("/node"), selectors, ..types::Entry::default() };
        server.register(vec![web.clone()]);
        let web = entry::from_wire(&web).expect("an entry");

        server.decide(ISSUE, Some(Fate::Refused(Status::resource_exhausted("slow down"))));
        let refused = sync.issue_jwt(&web, vec!["a".to_owned()], &[]).await.expect_err("refused");
        assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "slow down"));
        server.decide(ISSUE, None);
        let csr = KeyPair::generate(KeyType::EcP256).and_then(|pair| pair.request(None, &[])).expect("a request");
        sync.issue_x509(&web, csr, None, &[]).await.expect("issued");
    }
}
