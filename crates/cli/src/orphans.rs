//! Process 1 of a container becomes the parent of every process whose own has ended, and must fetch its exit code, or it stays in
//! the process table for ever. Ours fetches those that nobody waits for.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};

/// How often the process table is looked at; an orphan that has ended takes an entry of it meanwhile, and nothing else.
const INTERVAL: Duration = Duration::from_secs(2);

/// Looks after orphans as long as this process runs, if it is process 1.
pub(crate) fn look_after() {
    if std::process::id() != 1 {
        return;
    }
    tokio::spawn(async {
        let mut ended = BTreeSet::new();
        loop {
            tokio::time::sleep(INTERVAL).await;
            ended = fetch(&ended);
        }
    });
}

/// Fetches the exit codes of the children that had ended at the last look already, and returns those that have ended now. Our own
/// children are waited for by whoever started them, within milliseconds: their exit codes are not to be taken away.
fn fetch(before: &BTreeSet<i32>) -> BTreeSet<i32> {
    let ended = ended_children();
    for pid in ended.intersection(before).filter_map(|pid| Pid::from_raw(*pid)) {
        // Fetched by somebody else in between: all the better.
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
    ended
}

fn ended_children() -> BTreeSet<i32> {
    let parent = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|item| item.file_name().to_str()?.parse::<i32>().ok());
    ids.filter(|pid| {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        // After the name in parentheses, which may hold anything: state and parent.
        let mut fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace()).into_iter().flatten();
        fields.next() == Some("Z") && fields.next() == Some(parent.as_str())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::process::Command;
    use std::time::Instant;

    use super::*;

    #[test]
    fn an_exit_code_that_nobody_fetches_is_fetched_at_the_second_look() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !fetch(&BTreeSet::new()).contains(&pid) {
            assert!(Instant::now() < deadline, "it ends");
            std::thread::yield_now();
        }
        assert!(ended_children().contains(&pid), "the first look takes nothing away");
        // No others: other tests wait for theirs.
        fetch(&BTreeSet::from([pid]));
        assert!(!ended_children().contains(&pid));
        assert!(child.wait().is_err(), "the exit code is taken");
    }
}
