//! When credentials and authorities are renewed: arithmetic only, no clock.

use std::time::Duration;

use crate::time::Timestamp;

/// Certificates begin this much before they are issued, against clocks that are a little behind.
pub const BACKDATE: Duration = Duration::from_secs(10);
/// The same credential is renewed at most this often.
pub const RENEWAL_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Overdue credentials found at a start are renewed within this time.
pub const OVERDUE_SPREAD: Duration = Duration::from_secs(60);
/// An authority's successor is prepared at most this long before its end, however long it lives.
pub const PREPARE_LEAD_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// An authority's successor is activated at most this long before its end.
pub const ACTIVATE_LEAD_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a new authority is known to the fleet before it signs, if the one before lives long enough: many times what
/// agents (seconds) and trust domains that federate (minutes) take to fetch a bundle.
pub const PUBLICATION_MIN: Duration = Duration::from_secs(3600);

/// When to renew a credential: before half of its life is over, spread over the tenth before that point.
/// `spread` is drawn once for each credential, from 0 to 1.
pub fn renew_at(not_before: Timestamp, not_after: Timestamp, spread: f64) -> Timestamp {
    let half = not_after.since(not_before) / 2;
    // Not a number is no spread: `clamp` lets it through and the multiplication would panic.
    let early = if spread.is_nan() { Duration::ZERO } else { half.mul_f64(0.2 * spread.clamp(0.0, 1.0)) };
    not_before.after(half.saturating_sub(early))
}

/// When to renew a credential that was received now: as [`renew_at`], but never at once. What is short-lived, backdated, or
/// judged by a clock that is ahead would else be renewed over and over.
pub fn next_renewal(now: Timestamp, not_before: Timestamp, not_after: Timestamp, spread: f64) -> Timestamp {
    let soonest = (not_after.since(now) / 4).max(RENEWAL_PAUSE_MIN);
    renew_at(not_before, not_after, spread).max(now.after(soonest))
}

/// When to renew a credential that was on a disk at a start: as [`renew_at`], and what is overdue within a minute, not after
/// another part of its life, which each restart would put off anew. Spread, because a fleet may come back at once.
pub fn renewal_after_start(now: Timestamp, not_before: Timestamp, not_after: Timestamp, spread: f64) -> Timestamp {
    let spread = if spread.is_nan() { 0.0 } else { spread.clamp(0.0, 1.0) };
    let soonest = RENEWAL_PAUSE_MIN.max(OVERDUE_SPREAD.mul_f64(spread)).min(not_after.since(now) / 4);
    renew_at(not_before, not_after, spread).max(now.after(soonest))
}

/// How much longer than the availability target an SVID must live for it to be kept: less would be renewed all day. SPIRE's.
pub const AVAILABILITY_GRACE: Duration = Duration::from_secs(12 * 3600);
/// Renewals by the availability target are spread over this time before it.
pub const AVAILABILITY_SPREAD: Duration = Duration::from_secs(600);

/// When to renew a credential, received now, of which this much life is always to be left: earlier than [`next_renewal`] says
/// if it must be. Nothing if it does not live long enough for that.
pub fn renewal_by_availability(
    now: Timestamp,
    not_before: Timestamp,
    not_after: Timestamp,
    target: Duration,
    spread: f64,
) -> Option<Timestamp> {
    let grace = not_after.since(not_before).checked_sub(target).filter(|grace| *grace > AVAILABILITY_GRACE)?;
    let spread_by = AVAILABILITY_SPREAD.mul_f64(if spread.is_nan() { 0.0 } else { spread.clamp(0.0, 1.0) });
    let by_target = not_before.after(grace.saturating_sub(spread_by)).max(now.after(RENEWAL_PAUSE_MIN));
    Some(next_renewal(now, not_before, not_after, spread).min(by_target))
}

/// When the successor of an authority is prepared: half of its life, at most 30 days, before its end.
pub fn prepare_at(not_before: Timestamp, not_after: Timestamp) -> Timestamp {
    not_after.before((not_after.since(not_before) / 2).min(PREPARE_LEAD_MAX))
}

/// When the prepared successor becomes active: a sixth of the life, at most 7 days, before the end.
pub fn activate_at(not_before: Timestamp, not_after: Timestamp) -> Timestamp {
    not_after.before((not_after.since(not_before) / 6).min(ACTIVATE_LEAD_MAX))
}

/// How long an authority must have been published before it takes over from one that has this much life left, given how
/// long it has been already. At most a third of what was left when it was published: whoever is slow to learn of it
/// fails, but so does everybody, for a moment, whose credential ends with the old authority.
pub fn publication_needed(published_for: Duration, left: Duration) -> Duration {
    (left.saturating_add(published_for) / 3).min(PUBLICATION_MIN)
}

/// The longest lifetime an SVID can always have without outliving its authority.
pub fn guaranteed_lifetime(ca_ttl: Duration) -> Duration {
    (ca_ttl / 6).min(ACTIVATE_LEAD_MAX)
}
