//! Whom the Workload API denied lately, and with which selectors. Programs that get no identity often end at once; whoever
//! asks why has only the number that the log says.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use countersign_identity::{Selector, Timestamp};

/// Denials remembered: the crash loops of a large node for some minutes.
const DENIALS_MAX: usize = 256;
/// Selectors remembered of one of them; the rest of a process with very many groups is not worth the memory.
const SELECTORS_MAX: usize = 256;

/// A process that was denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) at: Timestamp,
    /// Sorted; the first of them if there were very many.
    pub(crate) selectors: Arc<[Selector]>,
}

/// The newest denials, one for each pid.
#[derive(Debug, Default)]
pub(crate) struct Denials(Mutex<VecDeque<Denied>>);

impl Denials {
    pub(crate) fn note(&self, mut denied: Denied) {
        if let Some(first) = denied.selectors.get(..SELECTORS_MAX) {
            denied.selectors = first.into();
        }
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        newest.retain(|known| known.pid != denied.pid);
        if newest.len() >= DENIALS_MAX {
            newest.pop_front();
        }
        newest.push_back(denied);
    }

    /// What is remembered of this pid.
    pub(crate) fn of(&self, pid: u32) -> Option<Denied> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|known| known.pid == pid).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(pid: u32, selectors: usize) -> Denied {
        let selectors = (0..selectors).map(|n| Selector::new("unix", &format!("supplementary_gid:{n}")).expect("a selector")).collect();
        Denied { pid, uid: 1, gid: 1, at: Timestamp::from_secs(pid.into()), selectors }
    }

    #[test]
    fn the_newest_are_remembered_each_pid_once_and_none_at_length() {
        let denials = Denials::default();
        for pid in 0..1000 {
            denials.note(denied(pid, 1));
        }
        assert_eq!(denials.of(1000 - 257), None);
        assert!(denials.of(1000 - 256).is_some());
        denials.note(Denied { uid: 2, ..denied(999, 5000) });
        let again = denials.of(999).expect("remembered");
        assert_eq!((again.uid, again.selectors.len()), (2, SELECTORS_MAX));
        assert!(denials.of(1000 - 256).is_some(), "a pid that is denied again takes no second place");
    }
}
