//! How long segments stay.

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A journal with one record a day, each in a sealed segment of its own; the open one is empty.
async fn days(directory: &Path, clock: &Arc<TestClock>, count: u64) {
    let journal = open(rolling(directory), clock);
    for day in 0..count {
        let time_millis = clock.now().millis();
        submit(&journal, vec![Record { time_millis, ..plain(&day.to_string()) }]).await.unwrap();
        clock.advance(DAY);
    }
    close(journal, clock);
}

/// Starts again with these settings and returns the first sequences of the segments that are left.
async fn left(settings: Settings, clock: &Arc<TestClock>) -> Vec<u64> {
    let directory = settings.directory.clone();
    let journal = open(settings, clock);
    // The writer keeps house before it takes its first job.
    submit(&journal, vec![plain("barrier")]).await.unwrap();
    let left = segments(&directory).iter().map(|s| s.first_sequence).collect();
    drop(journal);
    eventually("the writer has ended", || Arc::strong_count(clock) == 1);
    verify(&directory);
    left
}

#[tokio::test]
async fn the_oldest_sealed_segments_go_by_age() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    // The newest of the six records is a day old now.
    days(directory.path(), &clock, 6).await;
    let keep = |days: u32| Settings { retention: days * DAY, ..settings(directory.path()) };
    assert_eq!(left(keep(90), &clock).await, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(left(keep(3), &clock).await, [4, 5, 6, 7], "exactly three days old is kept");
    assert_eq!(segments(directory.path())[0].index_path(), indexes(directory.path())[0], "the index goes with its segment");
    clock.advance(900 * DAY);
    assert_eq!(left(keep(3), &clock).await, [7], "the open segment stays however old it is");
}

fn indexes(directory: &Path) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(directory).unwrap().map(|f| f.unwrap().path());
    let mut found: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "index")).collect();
    found.sort();
    found
}

#[tokio::test]
async fn the_oldest_sealed_segments_go_by_size() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    days(directory.path(), &clock, 6).await;
    let size = |s: &Segment| [&s.path, &s.index_path()].iter().map(|p| std::fs::metadata(p).map_or(0, |m| m.len())).sum::<u64>();
    let sizes: Vec<u64> = segments(directory.path()).iter().map(size).collect();
    let keep = |bytes_max: u64| Settings { bytes_max, ..settings(directory.path()) };
    assert_eq!(left(keep(sizes.iter().sum()), &clock).await, [1, 2, 3, 4, 5, 6, 7]);
    // The open segment has the barrier of the start before.
    let open = size(&newest(directory.path()));
    assert_eq!(left(keep(sizes[3..].iter().sum::<u64>() + open), &clock).await, [4, 5, 6, 7]);
    assert_eq!(left(keep(0), &clock).await, [7], "the open segment stays however large it is");
}

#[tokio::test]
async fn retention_holds_while_the_journal_rolls() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(Settings { bytes_max: 2000, ..rolling(directory.path()) }, &clock);
    for n in 0..50 {
        assert_eq!(submit(&journal, vec![plain("")]).await.unwrap(), n + 1);
    }
    drop(journal);
    eventually("the writer has ended", || Arc::strong_count(&clock) == 1);
    let left = segments(directory.path());
    assert!((2..30).contains(&left.len()), "{left:?}");
    assert_eq!(verify(directory.path()).last().unwrap().sequence, 50);
}

#[tokio::test]
async fn a_missing_or_broken_index_does_not_keep_a_segment_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    days(directory.path(), &clock, 6).await;
    let [missing, cut, other] = [0, 1, 2].map(|n: usize| segments(directory.path())[n].index_path());
    std::fs::remove_file(missing).unwrap();
    let bytes = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 5]).unwrap();
    std::fs::write(other, "something else altogether").unwrap();
    assert_eq!(left(Settings { retention: 2 * DAY, ..settings(directory.path()) }, &clock).await, [5, 6, 7]);
}
