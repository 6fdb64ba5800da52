//! A full disk: no issuance, said clearly, and nothing left of the attempt.

use std::process::Command;

use super::super::{Query, search};
use super::*;

/// Tells this test that it runs in the mount namespace with the small disk, and where that is.
const DISK: &str = "COUNTERSIGN_TEST_SMALL_DISK";

/// The test starts itself again in a user and mount namespace of its own, with a file system of 256 KiB; that needs no
/// rights and leaves nothing mounted. It fails where the system forbids it.
#[test]
fn a_full_disk_stops_issuance_until_there_is_room() {
    if let Some(disk) = std::env::var_os(DISK) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(on_a_small_disk(Path::new(&disk)));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (_, module) = module_path!().split_once("::").unwrap();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-ec"])
        .arg("mount -t tmpfs -o size=256k tmpfs \"$0\"; exec \"$@\"")
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::a_full_disk_stops_issuance_until_there_is_room")])
        .env(DISK, directory.path())
        .output()
        .expect("`unshare` of util-linux is needed to mount a small disk");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "in the namespace with the small disk:\n{stdout}\n{stderr}");
}

async fn on_a_small_disk(disk: &Path) {
    let clock = TestClock::new();
    let journal = open(settings(disk), &clock);
    let path = newest(disk).path;
    let before = journal.record(vec![minted("/w", "before")]).await.unwrap();
    let filler = disk.join("filler");
    // All but what is left of the journal's own last page.
    std::fs::write(&filler, vec![0; 512 << 10]).unwrap_err();
    let length = std::fs::metadata(&path).unwrap().len();

    // The outcome of what was recorded before waits for room, too.
    for recorded in before {
        recorded.settle(true);
    }
    for turn in 0..3 {
        let large = || (0..40).map(|n| minted("/w", &format!("refused-{turn}-{n}"))).collect();
        let (first, second) = tokio::join!(journal.record(large()), journal.record(large()));
        for answer in [first, second] {
            let Err(error) = answer else { panic!("recorded on a full disk") };
            assert_eq!(
                error.to_string(),
                format!("the disk of the issuance journal is full, so nothing can be issued; free room on `{}`", path.display())
            );
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length, "something of the failed write stayed");
    }

    std::fs::remove_file(&filler).unwrap();
    let after = journal.record(vec![minted("/w", "after-1"), minted("/w", "after-2")]).await.unwrap();
    assert_eq!(after.iter().map(|r| r.sequence).collect::<Vec<_>>(), [2, 3]);
    drop(after);
    close(journal, &clock);
    let records = verify(disk);
    assert_eq!(serials(&records), ["before", "after-1", "after-2"]);
    assert_eq!(records[0].outcome(), Outcome::Signed, "the outcome was kept until there was room");
    assert_eq!(search(disk, &Query::default()).unwrap().records, records);

    close(open(settings(disk), &clock), &clock);
    assert_eq!(verify(disk), records, "and it opens again");
}
