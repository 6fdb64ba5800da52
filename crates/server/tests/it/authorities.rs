//! When a prepared authority may sign: step by step, on a clock that is set forward and back.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::key::KeyType;
use countersign_identity::x509::Subject;
use countersign_plugins::keys::{KeyManager, Memory};
use countersign_server::audit::{self, Journal};
use countersign_server::authorities::{Authorities, Settings};
use countersign_store::{AuthorityFamily, AuthorityState, Options, Store};
use countersign_transport::clock::{Clock as _, SharedClock};

use crate::world::{HOUR, VirtualClock, trust_domain};

const MINUTE: Duration = Duration::from_secs(60);

struct World {
    _directory: tempfile::TempDir,
    clock: VirtualClock,
    store: Store,
    journal: Journal,
    keys: Arc<dyn KeyManager>,
    authorities: Authorities,
}

impl World {
    /// A server's authorities, of which one active of each family.
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = VirtualClock::at_present();
        let shared: SharedClock = Arc::new(clock.clone());
        let now = Arc::clone(&shared);
        let path = directory.path().join("store.sqlite3");
        let store = Store::open(&Options { path, vfs: None, now: Arc::new(move || now.now()) }).unwrap();
        let journal = Journal::open(audit::Settings::new(directory.path().join("journal")), "server-1".into(), shared).unwrap();
        let keys: Arc<dyn KeyManager> = Arc::new(Memory::default());
        let authorities = Self::authorities(&clock, &store, &journal, &keys);
        authorities.rotate().await.unwrap();
        Self { _directory: directory, clock, store, journal, keys, authorities }
    }

    fn authorities(clock: &VirtualClock, store: &Store, journal: &Journal, keys: &Arc<dyn KeyManager>) -> Authorities {
        let settings = Settings {
            trust_domain: trust_domain(),
            server_id: "server-1".into(),
            ca_key_type: KeyType::EcP256,
            jwt_key_type: KeyType::EcP256,
            ca_ttl: HOUR * 24,
            subject: Subject::default(),
            jwt_issuer: None,
            disable_jwt_svids: false,
        };
        Authorities::new(settings, Arc::clone(keys), store.clone(), journal.clone(), Arc::new(clock.clone()))
    }

    /// The process ends and starts again.
    fn restart(&mut self) {
        self.authorities = Self::authorities(&self.clock, &self.store, &self.journal, &self.keys);
    }

    /// The one authority of each family in this state: X.509, then JWT.
    fn ids(&self, state: AuthorityState) -> Option<[String; 2]> {
        let snapshot = self.store.snapshot();
        let of = |family| {
            let mut found = snapshot.authorities().filter(|a| a.family == family && a.state == state);
            let id = found.next().map(|a| a.id.to_string());
            assert!(found.next().is_none(), "more than one in the same state");
            id
        };
        of(AuthorityFamily::X509).zip(of(AuthorityFamily::Jwt)).map(<[String; 2]>::from)
    }

    fn active(&self) -> [String; 2] {
        self.ids(AuthorityState::Active).unwrap()
    }

    fn prepared(&self) -> Option<[String; 2]> {
        self.ids(AuthorityState::Prepared)
    }
}

#[tokio::test]
async fn an_authority_made_after_a_step_forward_is_published_for_an_hour_before_it_signs() {
    let world = World::new().await;
    let first = world.active();
    world.clock.step_forward(HOUR * 20);
    world.authorities.rotate().await.unwrap();
    assert_eq!(world.active(), first, "nobody knows the new one yet");
    let second = world.prepared().unwrap();

    world.clock.advance(MINUTE * 59);
    let next = world.authorities.rotate().await.unwrap();
    assert_eq!(world.active(), first);
    assert_eq!(next.since(world.clock.now()), MINUTE, "it knows when to come again");
    world.clock.advance(MINUTE);
    world.authorities.rotate().await.unwrap();
    assert_eq!(world.active(), second);
}

#[tokio::test]
async fn a_second_step_forward_does_not_shorten_the_publication() {
    let world = World::new().await;
    let first = world.active();
    world.clock.step_forward(HOUR * 21);
    world.authorities.rotate().await.unwrap();
    let second = world.prepared().unwrap();
    world.clock.step_forward(HOUR);
    world.authorities.rotate().await.unwrap();
    assert_eq!(world.active(), first, "an hour by the time of day, nothing by what passed");
    // Two hours are left, of which it is published for a third.
    world.clock.advance(MINUTE * 39);
    world.authorities.rotate().await.unwrap();
    assert_eq!(world.active(), first);
    world.clock.advance(MINUTE);
    world.authorities.rotate().await.unwrap();
    assert_eq!(world.active(), second, "its successor takes over while the first still has two thirds of that");
}

#[tokio::test]
async fn steps_of_an_hour_forward_and_back_move_a_rotation_by_no_more_and_repeat_none() {
    let world = World::new().await;
    let first = world.active();
    world.clock.advance(HOUR * 12);
    world.authorities.rotate().await.unwrap();
    let second = world.prepared().unwrap();
    world.clock.step_back(HOUR);
    world.authorities.rotate().await.unwrap();
    assert_eq!((world.active(), world.prepared()), (first.clone(), Some(second.clone())));
    world.clock.advance(HOUR * 8);
    world.authorities.rotate().await.unwrap();
    assert_eq!(world.active(), first, "19 hours by its own time");
    world.clock.step_forward(HOUR);
    world.authorities.rotate().await.unwrap();
    assert_eq!((world.active(), world.prepared()), (second, None));
}

#[tokio::test]
async fn an_authority_made_while_the_clock_was_ahead_waits_for_its_begin() {
    let world = World::new().await;
    let first = world.active();
    world.clock.step_forward(HOUR * 22);
    world.authorities.rotate().await.unwrap();
    let second = world.prepared().unwrap();
    world.clock.step_back(HOUR * 22);
    // Past its publication and past the point at which a successor takes over.
    world.clock.advance(HOUR * 21);
    let next = world.authorities.rotate().await.unwrap();
    assert_eq!(world.active(), first, "the successor begins in an hour");
    assert!(next.since(world.clock.now()) <= HOUR);
    world.clock.advance(HOUR);
    world.authorities.rotate().await.unwrap();
    assert_eq!(world.active(), second);
}

#[tokio::test]
async fn after_eight_days_off_a_new_authority_signs_at_once() {
    let mut world = World::new().await;
    let first = world.active();
    world.clock.advance(HOUR * 13);
    world.authorities.rotate().await.unwrap();
    let second = world.prepared().unwrap();
    world.clock.advance(HOUR * 24 * 8);
    world.restart();
    world.authorities.rotate().await.unwrap();
    assert!(world.authorities.is_ready());
    assert!(world.active() != first && world.active() != second);
}

#[tokio::test]
async fn where_none_is_active_the_prepared_one_signs_at_once() {
    let world = World::new().await;
    world.clock.step_forward(HOUR * 23 + MINUTE * 50);
    world.authorities.rotate().await.unwrap();
    let second = world.prepared().unwrap();
    world.clock.advance(MINUTE * 11);
    world.authorities.rotate().await.unwrap();
    assert_eq!(world.active(), second);
}

#[tokio::test]
async fn what_was_published_before_a_restart_counts() {
    let mut world = World::new().await;
    world.clock.advance(HOUR * 12);
    world.authorities.rotate().await.unwrap();
    let second = world.prepared().unwrap();
    world.clock.advance(HOUR * 8);
    world.restart();
    world.authorities.rotate().await.unwrap();
    assert_eq!(world.active(), second);
}

#[tokio::test]
async fn a_clock_that_was_ahead_for_a_moment_costs_no_authority() {
    let world = World::new().await;
    world.clock.advance(HOUR * 13);
    world.authorities.rotate().await.unwrap();
    let (first, second) = (world.active(), world.prepared());
    let keys = world.keys.public_keys().await.unwrap();
    let bundle = world.store.snapshot().bundle(trust_domain().name()).map(Arc::clone);

    world.clock.step_forward(HOUR * 24 * 30);
    for _ in 0..4 {
        let next = world.authorities.rotate().await.unwrap();
        assert!(next.since(world.clock.now()) <= MINUTE * 5, "it knows when to come again");
        assert!(!world.authorities.is_ready(), "nothing is signed by what may have ended");
        world.clock.advance(MINUTE);
    }
    world.clock.step_back(HOUR * 24 * 30);
    assert!(world.authorities.is_ready(), "at once, before the next look");
    for minutes in [0, 1, 60] {
        world.clock.advance(MINUTE * minutes);
        world.authorities.rotate().await.unwrap();
        assert_eq!((world.active(), world.prepared()), (first.clone(), second.clone()));
    }
    assert_eq!(world.keys.public_keys().await.unwrap(), keys);
    assert_eq!(world.store.snapshot().bundle(trust_domain().name()).map(Arc::clone), bundle);
}

#[tokio::test]
async fn a_machine_that_slept_for_two_days_has_a_new_authority_some_minutes_later() {
    let world = World::new().await;
    let first = world.active();
    // It wakes for two minutes each time, as laptops do.
    for _ in 0..2 {
        world.clock.step_forward(HOUR * 48);
        world.authorities.rotate().await.unwrap();
        assert_eq!(world.active(), first);
        world.clock.advance(MINUTE * 2);
    }
    world.clock.step_forward(HOUR * 48);
    let next = world.authorities.rotate().await.unwrap();
    world.clock.advance(next.since(world.clock.now()));
    world.authorities.rotate().await.unwrap();
    assert!(world.authorities.is_ready());
    assert_ne!(world.active(), first);
}
