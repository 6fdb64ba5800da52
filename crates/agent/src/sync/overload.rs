//! When a server that said it is asked too much may be asked again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use countersign_transport::random::SharedRandom;
use tokio::time::Instant;
use tonic::{Code, Status};

/// First pause after the server said that it is asked too much; it doubles up to [`PAUSE_MAX`], with jitter.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// Longest such pause: a token that a workload waits for must not come later than a patient caller's deadline.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// A server that said it is asked too much is left alone for a while, by all calls for credentials together.
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
