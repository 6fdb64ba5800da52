//! When the files need a word of warning: they are renewed at about half of their life, so a third left is late.

use std::time::Duration;

use countersign_identity::Timestamp;

/// How often it is said that files have expired: often enough to be in what an operator looks at, not so often as to fill it.
const AGAIN: Duration = Duration::from_secs(600);

/// The life of the SVID in the files, and what was said about it.
#[derive(Debug)]
pub(super) struct Validity {
    not_before: Timestamp,
    pub(super) not_after: Timestamp,
    said: Option<(Stage, Timestamp)>,
}

/// How far its life has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// A third is left or less.
    Late,
    /// A tenth is left or less.
    Ending,
    /// Nobody accepts it any more.
    Ended,
}

impl Validity {
    pub(super) fn new(not_before: Timestamp, not_after: Timestamp) -> Self {
        Self { not_before, not_after, said: None }
    }

    fn begins(&self, stage: Stage) -> Timestamp {
        let life = self.not_after.since(self.not_before);
        match stage {
            Stage::Late => self.not_after.before(life / 3),
            Stage::Ending => self.not_after.before(life / 10),
            Stage::Ended => self.not_after,
        }
    }

    /// What is to be said now, once; but that it has ended again and again.
    pub(super) fn due(&mut self, now: Timestamp) -> Option<Stage> {
        let stage = [Stage::Ended, Stage::Ending, Stage::Late].into_iter().find(|s| self.begins(*s) <= now)?;
        let again = |at: Timestamp| stage == Stage::Ended && at.after(AGAIN) <= now;
        if self.said.is_some_and(|(said, at)| said >= stage && !again(at)) {
            return None;
        }
        self.said = Some((stage, now));
        Some(stage)
    }

    /// When to look at [`Validity::due`] next.
    pub(super) fn next(&self) -> Timestamp {
        match self.said {
            None => self.begins(Stage::Late),
            Some((Stage::Late, _)) => self.begins(Stage::Ending),
            Some((Stage::Ending, _)) => self.begins(Stage::Ended),
            Some((Stage::Ended, at)) => at.after(AGAIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    #[test]
    fn each_stage_is_said_once_and_the_end_again_and_again() {
        let mut validity = Validity::new(at(0), at(3000));
        let mut said = Vec::new();
        let mut now = at(0);
        for _ in 0..6 {
            now = validity.next().max(now);
            said.push((now.secs(), validity.due(now)));
            assert_eq!(validity.due(now), None, "said twice");
        }
        let (late, ending, ended) = (Some(Stage::Late), Some(Stage::Ending), Some(Stage::Ended));
        assert_eq!(said, [(2000, late), (2700, ending), (3000, ended), (3600, ended), (4200, ended), (4800, ended)]);
    }

    #[test]
    fn after_a_long_sleep_only_the_last_stage_is_said() {
        let mut validity = Validity::new(at(0), at(3000));
        assert_eq!(validity.due(at(1999)), None);
        assert_eq!(validity.due(at(100_000)), Some(Stage::Ended));
        assert_eq!(validity.due(at(100_001)), None);
    }

    #[test]
    fn a_clock_that_is_set_back_repeats_nothing() {
        let mut validity = Validity::new(at(0), at(3000));
        assert_eq!(validity.due(at(2700)), Some(Stage::Ending));
        assert_eq!(validity.due(at(2100)), None);
    }
}
