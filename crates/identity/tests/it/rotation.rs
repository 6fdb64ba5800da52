//! Renewal arithmetic against SPIRE's numbers.

use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_identity::rotation::{
    RENEWAL_PAUSE_MIN, activate_at, guaranteed_lifetime, next_renewal, prepare_at, publication_needed, renew_at, renewal_by_availability,
};

use crate::support::{HOUR, NOW};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long after its beginning a successor is prepared and activated.
fn times(life: Duration) -> (Duration, Duration) {
    let end = NOW.after(life);
    (prepare_at(NOW, end).since(NOW), activate_at(NOW, end).since(NOW))
}

#[test]
fn a_day_long_authority_is_prepared_for_at_12_and_succeeded_at_20_hours() {
    assert_eq!(times(DAY), (12 * HOUR, 20 * HOUR));
}

#[test]
fn long_lived_authorities_have_leads_of_30_and_7_days() {
    assert_eq!(times(365 * DAY), (335 * DAY, 358 * DAY));
    assert_eq!(times(60 * DAY), (30 * DAY, 53 * DAY), "where half a life is just 30 days");
    assert_eq!(times(42 * DAY), (21 * DAY, 35 * DAY), "where a sixth of a life is just 7 days");
}

#[test]
fn a_successor_is_prepared_before_it_is_activated_and_both_before_the_end() {
    for secs in [6, 60, 3601, 86_399, 10_000_000, 1_000_000_000] {
        let life = Duration::from_secs(secs);
        let (prepared, activated) = times(life);
        assert!(prepared < activated && activated < life, "{secs}");
    }
}

#[test]
fn credentials_are_renewed_within_the_tenth_before_half_of_their_life() {
    let end = NOW.after(HOUR);
    assert_eq!(renew_at(NOW, end, 0.0), NOW.after(HOUR / 2));
    assert_eq!(renew_at(NOW, end, 1.0), NOW.after(HOUR * 2 / 5));
    assert_eq!(renew_at(NOW, end, 0.5), NOW.after(HOUR * 9 / 20));
}

#[test]
fn with_an_availability_target_that_much_life_is_always_left() {
    let by = |life: Duration, spread| renewal_by_availability(NOW, NOW, NOW.after(life), DAY, spread).map(|at| at.since(NOW));
    assert_eq!(by(40 * HOUR, 0.0), Some(16 * HOUR));
    assert_eq!(by(40 * HOUR, 1.0), Some(16 * HOUR - HOUR / 6), "spread over ten minutes");
    assert_eq!(by(10 * DAY, 0.0), Some(5 * DAY), "half of its life leaves more than that");
    assert_eq!(by(36 * HOUR, 0.0), None, "half a day of grace is too little");
    assert_eq!((by(36 * HOUR + HOUR / 60, 0.0), by(HOUR, 0.0)), (Some(12 * HOUR + HOUR / 60), None));
    let late = NOW.after(30 * HOUR);
    assert_eq!(renewal_by_availability(late, NOW, NOW.after(40 * HOUR), DAY, 0.0), Some(late.after(RENEWAL_PAUSE_MIN)));
    assert!(by(40 * HOUR, f64::NAN).is_some());
}

#[test]
fn what_was_received_late_is_renewed_after_a_quarter_of_what_is_left_and_never_at_once() {
    let end = NOW.after(HOUR);
    assert_eq!(next_renewal(NOW, NOW, end, 0.0), renew_at(NOW, end, 0.0), "received at its begin");
    let late = NOW.after(HOUR * 9 / 10);
    assert_eq!(next_renewal(late, NOW, end, 0.0), late.after(HOUR / 40), "past its half");
    assert_eq!(next_renewal(end, NOW, end, 0.0), end.after(RENEWAL_PAUSE_MIN), "at its end");
    assert_eq!(next_renewal(end.after(HOUR), NOW, end, 0.0), end.after(HOUR).after(RENEWAL_PAUSE_MIN), "by a clock that is ahead");
}

#[test]
fn a_spread_outside_its_range_is_taken_as_its_nearest_end_and_never_panics() {
    let end = NOW.after(HOUR);
    assert_eq!(renew_at(NOW, end, -3.0), NOW.after(HOUR / 2));
    assert_eq!(renew_at(NOW, end, f64::INFINITY), NOW.after(HOUR * 2 / 5));
    assert_eq!(renew_at(NOW, end, f64::NAN), NOW.after(HOUR / 2));
    let (first, last) = (Timestamp::from_millis(i64::MIN), Timestamp::from_millis(i64::MAX));
    assert!(renew_at(first, last, 0.3) < last);
    assert_eq!(renew_at(last, first, 0.3), last, "an interval that ends before it begins");
}

#[test]
fn an_svid_of_the_guaranteed_lifetime_never_outlives_its_authority() {
    assert_eq!(guaranteed_lifetime(DAY), 4 * HOUR);
    assert_eq!(guaranteed_lifetime(365 * DAY), 7 * DAY);
    for life in [HOUR, DAY, 42 * DAY, 365 * DAY] {
        // The last moment at which the authority signs is the one in which its successor takes over.
        let end = NOW.after(life);
        assert!(activate_at(NOW, end).after(guaranteed_lifetime(life)) <= end);
    }
}

#[test]
fn publication_never_delays_a_rotation_that_runs_on_time_and_leaves_two_thirds_of_what_was_left() {
    for life in [Duration::from_secs(60), HOUR, DAY, 42 * DAY, 365 * DAY] {
        let end = NOW.after(life);
        let published_for = activate_at(NOW, end).since(prepare_at(NOW, end));
        assert!(published_for >= publication_needed(published_for, end.since(activate_at(NOW, end))), "{life:?}");
    }
    assert_eq!(publication_needed(Duration::ZERO, 4 * HOUR), HOUR);
    assert_eq!(publication_needed(Duration::ZERO, HOUR), HOUR / 3);
    assert_eq!(publication_needed(HOUR / 3, HOUR * 2 / 3), HOUR / 3);
    assert_eq!(publication_needed(Duration::MAX, Duration::MAX), HOUR);
}

#[test]
fn timestamps_saturate_and_print_whatever_they_hold() {
    let (first, last) = (Timestamp::from_millis(i64::MIN), Timestamp::from_secs(i64::MAX));
    assert_eq!(last.after(Duration::MAX), last);
    assert_eq!(first.before(Duration::MAX), first);
    assert_eq!(first.since(last), Duration::ZERO);
    assert_eq!(Timestamp::from_millis(-1).secs(), -1);
    assert_eq!(NOW.rfc3339(), "2027-01-15T08:00:00Z");
    assert_eq!(Timestamp::EPOCH.to_string(), "1970-01-01T00:00:00Z");
    assert!(last.rfc3339().ends_with('s'));
}
