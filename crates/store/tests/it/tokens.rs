//! Join tokens are taken out once, by whoever comes first.

use std::time::Duration;

use countersign_store::{Actor, JoinToken, Store, StoreError};
use countersign_testkit::powerloss::PowerLoss;

use crate::world::{NOW, close, id, on, open, put, raw_on};

fn token(byte: u8) -> JoinToken {
    JoinToken { hash: [byte; 32], expires_at: NOW.after(Duration::from_secs(600)), alias: Some(id("/nodes/build")) }
}

async fn add(store: &Store, token: JoinToken) -> bool {
    store.write(Actor::server(), move |draft| draft.token_add(&token)).await.unwrap()
}

async fn redeem(store: &Store, byte: u8) -> Option<JoinToken> {
    store.write(Actor::server(), move |draft| draft.token_redeem(&[byte; 32])).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_is_redeemed_at_most_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let stores = [open(&path), open(&path)];
    for round in 0..5 {
        assert!(add(&stores[0], token(round)).await);
        let attempts: Vec<_> = (0..50)
            .map(|n| {
                let store = stores[n % 2].clone();
                tokio::spawn(async move { redeem(&store, round).await })
            })
            .collect();
        let mut redeemed = Vec::new();
        for attempt in attempts {
            redeemed.extend(attempt.await.unwrap());
        }
        assert_eq!(redeemed, [token(round)]);
    }
}

#[tokio::test]
async fn an_expired_join_token_is_taken_out_too() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    let expired = JoinToken { expires_at: NOW.before(Duration::from_secs(1)), alias: None, ..token(1) };
    add(&store, expired.clone()).await;
    assert_eq!(redeem(&store, 1).await, Some(expired));
    assert_eq!(redeem(&store, 1).await, None);
}

#[tokio::test]
async fn a_join_token_is_added_once_and_keeps_its_first_meaning() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    assert!(add(&store, token(1)).await);
    assert!(!add(&store, JoinToken { alias: Some(id("/nodes/evil")), ..token(1) }).await);
    for is_there in [true, false] {
        assert_eq!(store.write(Actor::server(), |draft| draft.token_known(&[1; 32])).await.unwrap(), is_there);
        assert_eq!(redeem(&store, 1).await, is_there.then(|| token(1)));
    }
}

#[tokio::test]
async fn a_join_token_stays_when_the_request_that_took_it_fails() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    add(&store, token(1)).await;
    let failed = store
        .write(Actor::server(), |draft| {
            draft.change(put("e"));
            assert!(draft.token_redeem(&[1; 32])?.is_some());
            Err::<(), _>(StoreError::Failed("no".to_owned()))
        })
        .await;
    assert!(failed.is_err());
    assert!(store.snapshot().entry("e").is_none());
    assert_eq!(redeem(&store, 1).await, Some(token(1)));
}

#[tokio::test]
async fn pruning_drops_the_ended_tokens_only() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    for byte in 1..=3 {
        add(&store, JoinToken { expires_at: NOW.after(Duration::from_secs(byte.into())), ..token(byte) }).await;
    }
    let pruned = store.write(Actor::server(), |draft| draft.token_prune(NOW.after(Duration::from_secs(2)))).await.unwrap();
    assert_eq!(pruned, 1);
    assert_eq!(redeem(&store, 1).await, None);
    assert!(redeem(&store, 2).await.is_some() && redeem(&store, 3).await.is_some());
}

#[tokio::test]
async fn join_tokens_are_not_in_the_log_and_survive_a_restart() {
    let disk = PowerLoss::register();
    let store = Store::open(&on(&disk)).unwrap();
    add(&store, token(1)).await;
    assert_eq!(store.snapshot().revision(), 0);
    close(store).await;
    let store = Store::open(&on(&disk)).unwrap();
    assert_eq!(redeem(&store, 1).await, Some(token(1)));
    assert_eq!(raw_on(&disk).query_row("SELECT COUNT(*) FROM log", [], |r| r.get::<_, i64>(0)).unwrap(), 0);
}
