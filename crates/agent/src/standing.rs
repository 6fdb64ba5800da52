//! How the agent stands with its server: connected or not, since when, and what went wrong last. Kept for people who ask why;
//! nothing decides from it.

use std::sync::{Mutex, PoisonError};

use countersign_identity::Timestamp;

/// Longest error kept, in characters: a sentence with a cause fits, what a server invents does not fill memory.
const ERROR_CHARS_MAX: usize = 1024;

/// The standing now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) connected: bool,
    /// Connected, or not, since then.
    pub(crate) since: Timestamp,
    pub(crate) last_error: Option<(Timestamp, String)>,
}

/// Where it is noted.
#[derive(Debug)]
pub(crate) struct Standing(Mutex<Line>);

impl Standing {
    /// Not connected, since now.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self(Mutex::new(Line { since: now, ..Line::default() }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn connected(&self, now: Timestamp) {
        let mut line = self.lock();
        if !line.connected {
            (line.connected, line.since) = (true, now);
        }
    }

    /// The connection is gone, or could not be made.
    pub(crate) fn lost(&self, reason: &str, now: Timestamp) {
        let mut line = self.lock();
        if line.connected {
            (line.connected, line.since) = (false, now);
        }
        line.last_error = Some((now, reason.chars().take(ERROR_CHARS_MAX).collect()));
    }

    /// Something went wrong, which says nothing about the connection.
    pub(crate) fn failed(&self, reason: &str, now: Timestamp) {
        self.lock().last_error = Some((now, reason.chars().take(ERROR_CHARS_MAX).collect()));
    }

    pub(crate) fn line(&self) -> Line {
        self.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_that_of_the_first_loss_and_the_error_that_of_the_last() {
        let at = Timestamp::from_secs;
        let standing = Standing::new(at(1));
        assert_eq!(standing.line(), Line { connected: false, since: at(1), last_error: None });
        standing.connected(at(2));
        standing.connected(at(3));
        assert_eq!((standing.line().connected, standing.line().since), (true, at(2)));
        standing.lost("one", at(4));
        standing.lost(&"x".repeat(5000), at(5));
        let line = standing.line();
        assert_eq!((line.connected, line.since), (false, at(4)));
        let (when, text) = line.last_error.expect("an error");
        assert_eq!((when, text.len()), (at(5), ERROR_CHARS_MAX));
    }
}
