//! Who passes, who waits, who is refused, and that nothing is left of those who leave.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use countersign_testkit::clock::VirtualClock;

use super::*;
use countersign_identity::Timestamp;

const SECOND: Duration = Duration::from_secs(1);

fn limiter() -> (Limiter<u32>, VirtualClock) {
    let clock = VirtualClock::at(Timestamp::from_secs(1_800_000_000));
    (Limiter::new(Rate { burst: 1, every: SECOND }, Arc::new(clock.clone())), clock)
}

type Pass<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), Exceeded>> + 'a>>;

fn pass(limiter: &Limiter<u32>, key: u32, patience: Duration) -> Pass<'_> {
    Box::pin(async move { limiter.pass(&key, 1, patience).await })
}

fn poll(pass: &mut Pass<'_>) -> Poll<Result<(), Exceeded>> {
    pass.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn who_is_over_its_limit_waits_for_its_turn_in_order() {
    let (limiter, clock) = limiter();
    assert_eq!(poll(&mut pass(&limiter, 1, PATIENCE_MAX)), Poll::Ready(Ok(())));
    let (mut second, mut third) = (pass(&limiter, 1, PATIENCE_MAX), pass(&limiter, 1, PATIENCE_MAX));
    assert!(poll(&mut second).is_pending() && poll(&mut third).is_pending());
    assert_eq!(poll(&mut pass(&limiter, 2, PATIENCE_MAX)), Poll::Ready(Ok(())), "another caller does not wait");
    clock.advance(SECOND);
    assert!(poll(&mut second).is_ready() && poll(&mut third).is_pending());
    clock.advance(SECOND);
    assert!(poll(&mut third).is_ready());
    drop((second, third));
    assert!(limiter.lock().waiting.is_empty() && limiter.lock().waiting_in_all == 0);
}

#[test]
fn a_clock_that_is_set_delays_no_turn_and_gives_nobody_more() {
    let (limiter, clock) = limiter();
    assert!(poll(&mut pass(&limiter, 1, PATIENCE_MAX)).is_ready());
    let mut second = pass(&limiter, 1, PATIENCE_MAX);
    assert!(poll(&mut second).is_pending());
    clock.step_back(3600 * SECOND);
    let mut third = pass(&limiter, 1, PATIENCE_MAX);
    assert!(poll(&mut third).is_pending());
    clock.advance(SECOND);
    assert!(poll(&mut second).is_ready() && poll(&mut third).is_pending());
    clock.step_forward(2 * 3600 * SECOND);
    let mut fourth = pass(&limiter, 1, PATIENCE_MAX);
    assert!(poll(&mut third).is_pending() && poll(&mut fourth).is_pending());
    clock.advance(2 * SECOND);
    assert!(poll(&mut third).is_ready() && poll(&mut fourth).is_ready());
}

#[test]
fn who_cannot_wait_long_enough_is_refused_at_once() {
    let (limiter, _clock) = limiter();
    assert!(poll(&mut pass(&limiter, 1, PATIENCE_MAX)).is_ready());
    assert_eq!(poll(&mut pass(&limiter, 1, SECOND / 2)), Poll::Ready(Err(Exceeded)));
    assert_eq!(Exceeded.to_string(), "rate limit exceeded, try again later");
}

#[test]
fn who_hangs_up_leaves_its_turn_to_the_next() {
    let (limiter, clock) = limiter();
    assert!(poll(&mut pass(&limiter, 1, PATIENCE_MAX)).is_ready());
    let mut waiting: Vec<Pass<'_>> = (0..20).map(|_| pass(&limiter, 1, PATIENCE_MAX)).collect();
    assert!(waiting.iter_mut().all(|w| poll(w).is_pending()));
    assert_eq!(poll(&mut pass(&limiter, 1, PATIENCE_MAX)), Poll::Ready(Err(Exceeded)));
    drop(waiting);
    let mut next = pass(&limiter, 1, PATIENCE_MAX);
    assert!(poll(&mut next).is_pending());
    clock.advance(SECOND);
    assert!(poll(&mut next).is_ready());
}

#[test]
fn the_number_of_those_who_wait_is_bounded_for_one_and_for_all() {
    let clock = VirtualClock::at(Timestamp::from_secs(1_800_000_000));
    let quick = Rate { burst: 1, every: Duration::from_millis(1) };
    let limiter = Limiter::new(quick, Arc::new(clock.clone()));
    let mut waiting = Vec::new();
    let mut refused = 0;
    for key in 0..20 {
        assert!(poll(&mut pass(&limiter, key, PATIENCE_MAX)).is_ready());
        for _ in 0..WAITING_OF_CALLER_MAX + 1 {
            let mut one = pass(&limiter, key, PATIENCE_MAX);
            match poll(&mut one) {
                Poll::Pending => waiting.push(one),
                Poll::Ready(outcome) => {
                    assert_eq!(outcome, Err(Exceeded));
                    refused += 1;
                }
            }
        }
    }
    assert_eq!(waiting.len(), WAITING_MAX);
    assert_eq!(refused, 20 * (WAITING_OF_CALLER_MAX + 1) - WAITING_MAX);
    drop(waiting);
    assert_eq!(limiter.lock().waiting_in_all, 0);
}

#[test]
fn the_deadline_of_a_call_is_read_as_grpc_writes_it() {
    for (text, expected) in [
        ("500m", Some(Duration::from_millis(500))),
        ("3S", Some(3 * SECOND)),
        ("90000000u", Some(PATIENCE_MAX)),
        ("1n", Some(Duration::from_nanos(1))),
        ("1H", Some(PATIENCE_MAX)),
        ("1M", Some(PATIENCE_MAX)),
        // What cannot be read is no deadline.
        ("", None),
        ("S", None),
        ("3", None),
        ("123456789S", None),
        ("-1S", None),
        ("1é", None),
    ] {
        let mut metadata = MetadataMap::new();
        if let Ok(value) = text.parse() {
            metadata.insert("grpc-timeout", value);
        }
        assert_eq!(patience(&metadata), expected.unwrap_or(PATIENCE_MAX), "{text}");
        assert_eq!(parse_timeout(text).is_some(), expected.is_some(), "{text}");
    }
    assert_eq!(patience(&MetadataMap::new()), PATIENCE_MAX);
}
