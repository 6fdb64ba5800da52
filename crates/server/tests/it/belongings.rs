//! A start with a name, keys or a store that are gone or do not fit: said, never a new trust root in silence.

use std::path::PathBuf;
use std::sync::Arc;

use countersign_identity::x509::Certificate;
use countersign_server::{Config, Mismatch, Running, ServerError};
use countersign_testkit::domain::FixedLevels;

use crate::world::{Domain, HOUR, VirtualClock, until, virtual_domain};

struct World {
    domain: Domain,
    clock: VirtualClock,
}

impl World {
    /// A server that has run for a while and stands still.
    async fn stopped() -> (Self, Vec<Certificate>) {
        let (domain, clock) = virtual_domain("").await;
        let roots = roots(&domain).await;
        let mut world = Self { domain, clock };
        world.stop().await;
        (world, roots)
    }

    /// Stops the server, and returns once nothing of it has the store's files open, so that they may be moved.
    async fn stop(&mut self) {
        self.domain.stop_server().await;
        let store = self.file("store.sqlite3");
        let closed = async || {
            let mut open = std::fs::read_dir("/proc/self/fd").ok()?.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
            (!open.any(|path| path.to_str().is_some_and(|p| p.starts_with(store.to_str().unwrap())))).then_some(())
        };
        until("the store of the server before is closed", closed).await.unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.domain.directory().join("server").join(name)
    }

    /// Starts with authorities the operator has given up.
    async fn start(&mut self, given_up: &[&str]) -> Result<(), ServerError> {
        let started = until("the journal of the server before is free", async || match self.try_start(given_up).await {
            Err(ServerError::Journal(e)) if e.to_string().contains("another server") => None,
            started => Some(started),
        });
        self.domain.server = Some(started.await.unwrap()?);
        Ok(())
    }

    async fn try_start(&self, given_up: &[&str]) -> Result<Running, ServerError> {
        let parsed = countersign_config::parse("server.conf", &self.domain.server_configuration()).unwrap();
        let mut config = Config::read(parsed).unwrap();
        config.replace_lost_authorities = given_up.iter().map(|id| (*id).to_owned()).collect();
        countersign_server::start(&config, Arc::new(self.clock.clone()), Arc::new(FixedLevels)).await
    }
}

async fn roots(domain: &Domain) -> Vec<Certificate> {
    domain.bundle().await.unwrap().x509_authorities().iter().map(|a| a.certificate.clone()).collect()
}

#[tokio::test]
async fn a_lost_name_is_taken_from_the_store_and_no_root_is_made() {
    let (mut world, before) = World::stopped().await;
    let name = std::fs::read_to_string(world.file("server.id")).unwrap();
    for spoilt in [None, Some(""), Some("somebody-else\n")] {
        match spoilt {
            None => std::fs::remove_file(world.file("server.id")).unwrap(),
            Some(text) => std::fs::write(world.file("server.id"), text).unwrap(),
        }
        world.start(&[]).await.unwrap();
        assert_eq!(roots(&world.domain).await, before, "{spoilt:?}");
        assert_eq!(std::fs::read_to_string(world.file("server.id")).unwrap(), name, "{spoilt:?}");
        world.stop().await;
    }
}

#[tokio::test]
async fn lost_keys_stop_the_start_until_they_are_back() {
    let (mut world, before) = World::stopped().await;
    std::fs::rename(world.file("keys.json"), world.file("elsewhere")).unwrap();
    for given_up in [&[][..], &["another"]] {
        let error = world.start(given_up).await.unwrap_err();
        let ServerError::Mismatch(Mismatch::KeysLost { id, .. }) = &error else { panic!("{error}") };
        assert_eq!(*id, before[0].authority_id());
        assert!(error.hint().unwrap().contains(&format!("--replace-lost-authority {id}")));
    }
    assert!(!world.file("keys.json").exists(), "no key was made");
    std::fs::rename(world.file("elsewhere"), world.file("keys.json")).unwrap();
    world.start(&[]).await.unwrap();
    assert_eq!(roots(&world.domain).await, before, "nothing was changed");
}

#[tokio::test]
async fn keys_that_are_given_up_by_name_are_replaced_and_the_old_root_stays() {
    let (mut world, before) = World::stopped().await;
    std::fs::remove_file(world.file("keys.json")).unwrap();
    world.start(&[&before[0].authority_id()]).await.unwrap();
    let after = roots(&world.domain).await;
    assert_eq!((after.len(), &after[0]), (2, &before[0]));
    world.stop().await;
    // The option may stay where it was written: it names what is gone already.
    world.start(&[&before[0].authority_id()]).await.unwrap();
    assert_eq!(roots(&world.domain).await, after);
    world.stop().await;
    std::fs::remove_file(world.file("keys.json")).unwrap();
    let error = world.start(&[&before[0].authority_id()]).await.unwrap_err();
    assert!(matches!(error, ServerError::Mismatch(Mismatch::KeysLost { .. })), "{error}");
}

#[tokio::test]
async fn an_empty_store_beside_the_keys_of_one_that_issued_stops_the_start() {
    let (mut world, before) = World::stopped().await;
    let keys = std::fs::read(world.file("keys.json")).unwrap();
    let aside = world.domain.directory().join("aside");
    std::fs::create_dir(&aside).unwrap();
    for file in std::fs::read_dir(world.file("")).unwrap().map(|f| f.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("store.sqlite3") && !name.ends_with(".lock") {
            std::fs::rename(&file, aside.join(name)).unwrap();
        }
    }
    let error = world.start(&[]).await.unwrap_err();
    assert!(matches!(error, ServerError::Mismatch(Mismatch::StoreLost(_))), "{error}");
    assert_eq!(std::fs::read(world.file("keys.json")).unwrap(), keys, "no key was overwritten");

    // A journal that is damaged may have had the certificate there.
    for segment in std::fs::read_dir(world.file("journal")).unwrap().map(|f| f.unwrap().path()) {
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes.iter_mut().skip(100).step_by(40).for_each(|byte| *byte ^= 1);
        std::fs::write(&segment, bytes).unwrap();
    }
    let error = world.start(&[]).await.unwrap_err();
    assert!(matches!(error, ServerError::Mismatch(Mismatch::StoreLost(_))), "{error}");

    // A key that was never used, as a crash in the first start leaves it, stops nothing.
    let journal = world.file("journal");
    std::fs::rename(&journal, aside.join("journal")).unwrap();
    world.start(&[]).await.unwrap();
    assert_ne!(roots(&world.domain).await, before);
}

/// Lets a domain issue for longer than its first authority lives, with a backup from before. The server stands still, and
/// the backup is in the place of its store.
async fn restored_too_old() -> (World, Vec<Certificate>) {
    let (mut world, before) = World::stopped().await;
    let (store, backup) = (world.file("store.sqlite3"), world.domain.directory().join("backup"));
    countersign_store::backup(&store, &backup).unwrap();
    world.start(&[]).await.unwrap();
    world.clock.advance(HOUR * 13);
    let rotated = async || Some(roots(&world.domain).await).filter(|r| r.len() == 2);
    let after = until("the second authority", rotated).await.unwrap();
    // Its own certificate is the second authority's at the next start.
    world.stop().await;
    world.clock.advance(HOUR * 9);
    world.start(&[]).await.unwrap();
    world.stop().await;
    world.clock.advance(HOUR * 3);
    countersign_store::restore(&backup, &store).unwrap();
    assert_eq!(after[0], before[0]);
    (world, after)
}

#[tokio::test]
async fn a_store_older_than_the_keys_stops_the_start() {
    let (mut world, roots_before) = restored_too_old().await;
    let keys = std::fs::read(world.file("keys.json")).unwrap();
    for given_up in [&[][..], &[&*roots_before[0].authority_id()]] {
        let error = world.start(given_up).await.unwrap_err();
        let ServerError::Mismatch(Mismatch::StoreOlder { ids, .. }) = &error else { panic!("{error}") };
        assert_eq!(*ids, [roots_before[1].authority_id()]);
        assert!(error.hint().unwrap().contains(&format!("--replace-lost-authority {}", ids[0])));
    }
    assert_eq!(std::fs::read(world.file("keys.json")).unwrap(), keys, "no key was overwritten");

    // Without a journal nobody can say that the key was never used.
    let (journal, aside) = (world.file("journal"), world.domain.directory().join("aside"));
    std::fs::rename(&journal, &aside).unwrap();
    let error = world.start(&[]).await.unwrap_err();
    assert!(matches!(error, ServerError::Mismatch(Mismatch::StoreOlder { .. })), "{error}");
    let _ = std::fs::remove_dir_all(&journal);
    std::fs::rename(&aside, &journal).unwrap();

    // What stood there before the restore heals it.
    let newer = world.file("store.before-restore");
    let moved = world.domain.directory().join("newer");
    std::fs::rename(newer, &moved).unwrap();
    countersign_store::restore(&moved, &world.file("store.sqlite3")).unwrap();
    world.start(&[]).await.unwrap();
    assert_eq!(roots(&world.domain).await[..2], roots_before, "the second signs on; a third is prepared by now");
}

#[tokio::test]
async fn a_store_older_than_the_keys_is_gone_on_with_when_they_are_given_up_by_name() {
    let (mut world, before) = restored_too_old().await;
    world.start(&[&before[1].authority_id()]).await.unwrap();
    assert!(!roots(&world.domain).await.contains(&before[1]));
}

#[tokio::test]
async fn a_key_that_never_signed_stops_no_start_after_weeks_off() {
    let (mut world, before) = World::stopped().await;
    let (store, backup) = (world.file("store.sqlite3"), world.domain.directory().join("backup"));
    countersign_store::backup(&store, &backup).unwrap();
    world.start(&[]).await.unwrap();
    world.clock.advance(HOUR * 13);
    until("a key for the second", async || Some(roots(&world.domain).await).filter(|r| r.len() == 2)).await.unwrap();
    world.stop().await;
    // As a crash leaves it between the key and its record.
    countersign_store::restore(&backup, &store).unwrap();
    world.clock.advance(HOUR * 24 * 21);
    world.start(&[]).await.unwrap();
    assert!(!roots(&world.domain).await.contains(&before[0]), "what ended long ago is gone");
}

#[tokio::test]
async fn keys_of_authorities_that_have_ended_are_missed_by_nobody() {
    let (mut world, before) = World::stopped().await;
    std::fs::remove_file(world.file("keys.json")).unwrap();
    world.clock.advance(HOUR * 25);
    world.start(&[]).await.unwrap();
    assert_eq!(roots(&world.domain).await.len(), 2);
    assert_eq!(roots(&world.domain).await[0], before[0]);
}
