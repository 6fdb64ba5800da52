//! Whom the Workload API denied lately, and with which selectors. Programs that get no identity often end at once; whoever
//! asks why has only the number that the log says.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use countersign_identity::{Selector, Timestamp, selector};

/// Denials remembered: the crash loops of a large node for some minutes.
const DENIALS_MAX: usize = 256;
/// Selectors remembered of one of them; the other groups of a process with very many are not worth the memory.
const SELECTORS_MAX: usize = 256;

/// A process that was denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) at: Timestamp,
    /// Sorted; if there were very many, not all supplementary groups.
    pub(crate) selectors: Arc<[Selector]>,
    /// How many are not remembered.
    pub(crate) selectors_left_out: usize,
}

/// The newest denials, one for each pid.
#[derive(Debug, Default)]
pub(crate) struct Denials(Mutex<VecDeque<Denied>>);

impl Denials {
    pub(crate) fn note(&self, mut denied: Denied) {
        let left_out = denied.selectors.len().saturating_sub(SELECTORS_MAX);
        if left_out > 0 {
            let (groups, others): (Vec<Selector>, Vec<Selector>) = denied.selectors.iter().cloned().partition(is_group);
            denied.selectors = selector::sorted(others.into_iter().chain(groups).take(SELECTORS_MAX).collect()).into();
            denied.selectors_left_out = left_out;
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

/// Whether it is of a supplementary group, of which a process may have thousands; they tell least of who it was.
fn is_group(selector: &Selector) -> bool {
    selector.value().starts_with("supplementary_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(pid: u32, selectors: usize) -> Denied {
        let selectors = (0..selectors).map(|n| Selector::new("unix", &format!("supplementary_gid:{n}")).expect("a selector")).collect();
        Denied { pid, uid: 1, gid: 1, at: Timestamp::from_secs(pid.into()), selectors, selectors_left_out: 0 }
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
        assert_eq!((again.uid, again.selectors.len(), again.selectors_left_out), (2, SELECTORS_MAX, 5000 - SELECTORS_MAX));
        assert!(denials.of(1000 - 256).is_some(), "a pid that is denied again takes no second place");
    }

    #[test]
    fn of_a_process_in_very_many_groups_all_is_remembered_but_groups() {
        let of = |value: &str| Selector::new("unix", value).expect("a selector");
        let others = ["gid:1", "path:/bin/web", "uid:1", "user:web"].map(of);
        let crowded = denied(7, 5000);
        let selectors: Arc<[Selector]> = selector::sorted(crowded.selectors.iter().chain(&others).cloned().collect()).into();
        let denials = Denials::default();
        denials.note(Denied { selectors, ..crowded });
        let known = denials.of(7).expect("remembered");
        assert!(others.iter().all(|s| known.selectors.binary_search(s).is_ok()), "{:?}", known.selectors);
        assert_eq!((known.selectors.len(), known.selectors_left_out), (SELECTORS_MAX, 5004 - SELECTORS_MAX));
        assert!(known.selectors.is_sorted());
    }
}
