//! What is read from the system: CPU time, memory, the disk's sync time.

use std::io::Write as _;
use std::time::{Duration, Instant};

/// One round of load.
#[derive(Debug, Clone)]
pub struct Row {
    pub calls: usize,
    pub cpu: Duration,
    pub wall: Duration,
    pub p99: Duration,
}

impl Row {
    pub fn per_cpu_second(&self) -> f64 {
        self.calls as f64 / self.cpu.as_secs_f64().max(1e-9)
    }

    pub fn per_second(&self) -> f64 {
        self.calls as f64 / self.wall.as_secs_f64()
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// User and system time of a process, to the microsecond.
pub fn cpu(pid: u32) -> Duration {
    // schedstat counts nanoseconds on the CPU, for each thread.
    let mut total = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        total += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    Duration::from_nanos(total)
}

/// Resident memory in MiB.
pub fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Median and p99 of appending a record and syncing it.
pub fn sync_time() -> (Duration, Duration) {
    let directory = tempfile::tempdir().unwrap();
    let mut file = std::fs::File::create(directory.path().join("f")).unwrap();
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let begun = Instant::now();
            file.write_all(&[7; 400]).unwrap();
            file.sync_data().unwrap();
            begun.elapsed()
        })
        .collect();
    times.sort();
    (times[100], times[198])
}

pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("?").trim_start_matches([' ', '\t', ':']);
    format!("{} × {model}", std::thread::available_parallelism().unwrap())
}

/// Keeps this process on one core.
pub fn pin_to(core: usize) {
    let done = std::process::Command::new("taskset").args(["-acp", &core.to_string(), &std::process::id().to_string()]).output();
    assert!(done.is_ok_and(|o| o.status.success()), "taskset (util-linux) is needed, and two cores");
}
