//! The seeded simulation: a thousand seeds hold, a seed repeats itself, and what is planted is found.
//!
//! A simulator watches all threads of its process, so each runs in a process of its own: this test program once more.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use countersign_testkit::simulation::{Defect, Simulator};

/// Seeds that every change has to hold.
const SEEDS: u64 = 1000;
/// Seeds within which each planted fault must be found.
const SEEDS_TO_FIND: u64 = 200;
/// Seeds that are run twice and compared.
const SEEDS_TO_COMPARE: u64 = 20;
/// Failures of one process after which it gives up: the first says it all.
const FAILURES_MAX: usize = 3;
/// How long one seed may take on a machine that does much else, before it is taken to hang.
const SEED_TIMEOUT: Duration = Duration::from_secs(120);
/// Tells a process its work: `first count step defect output`.
const WORK: &str = "SIMULATION_WORK";
/// The test that does this work.
const WORKER: &str = "simulation::every_seed_holds";
/// All processors are for one of these tests at a time.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn every_seed_holds() {
    if let Ok(work) = std::env::var(WORK) {
        return work_off(&work);
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let first = number("SIMULATION_SEED").unwrap_or(0);
    // A seed that is named is run alone, unless more are asked for.
    let count = number("SIMULATION_SEEDS").unwrap_or(if number("SIMULATION_SEED").is_some() { 1 } else { SEEDS });
    let processes = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let begun = Instant::now();
    let workers: Vec<_> = (0..processes.min(count)).map(|n| Worker::start(first + n, count - n, processes, None)).collect();
    let results: Vec<_> = workers.into_iter().map(Worker::results).collect();
    let failures: Vec<_> = results.iter().flat_map(|r| &r.failures).map(String::as_str).collect();
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n\n"));
    let held: usize = results.iter().map(|r| r.held.len()).sum();
    assert_eq!(held as u64, count, "every seed was run");
    say(&format!("{count} seeds held in {:.1} s on {processes} processors", begun.elapsed().as_secs_f64()));
}

#[test]
fn a_seed_repeats_itself() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let [once, again] = [0, 1].map(|_| Worker::start(0, SEEDS_TO_COMPARE, 1, None)).map(Worker::results);
    assert_eq!((once.failures.len(), once.held.len() as u64), (0, SEEDS_TO_COMPARE), "{:?}", once.failures);
    assert_eq!(once.held, again.held);
    let different: std::collections::BTreeSet<_> = once.held.values().collect();
    assert_eq!(different.len() as u64, SEEDS_TO_COMPARE, "each seed is a run of its own");
}

#[test]
fn what_is_planted_is_found() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for pair in Defect::ALL.chunks(2) {
        let workers: Vec<_> = pair.iter().map(|defect| (defect, Worker::start(0, SEEDS_TO_FIND, 1, Some(*defect)))).collect();
        for (defect, worker) in workers {
            let results = worker.results();
            assert!(!results.failures.is_empty(), "{defect:?} was not found in {SEEDS_TO_FIND} seeds");
            say(&format!("{defect:?} was found by seed {}: {}", results.held.len(), results.failures[0].lines().next().unwrap()));
        }
    }
}

/// A process that runs seeds.
struct Worker {
    child: Child,
    output: tempfile::TempPath,
}

/// What it has found.
#[derive(Default)]
struct Results {
    /// Digests by seed.
    held: BTreeMap<u64, String>,
    failures: Vec<String>,
}

impl Worker {
    /// Runs every `step`th seed of these.
    fn start(first: u64, count: u64, step: u64, defect: Option<Defect>) -> Self {
        let output = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let place = defect.map_or(String::from("none"), |d| Defect::ALL.iter().position(|known| *known == d).unwrap().to_string());
        let work = format!("{first} {count} {step} {place} {}", output.display());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", WORKER, "--nocapture"]).env(WORK, work);
        if std::env::var_os("SIMULATION_LOG").is_none() {
            command.stdout(Stdio::null());
        }
        Self { child: command.spawn().unwrap(), output }
    }

    /// Waits until it has ended. A seed that hangs is named.
    fn end(&mut self) -> (ExitStatus, String) {
        let (mut known, mut since) = (String::new(), Instant::now());
        loop {
            let status = self.child.try_wait().unwrap();
            let text = std::fs::read_to_string(&self.output).unwrap();
            if let Some(status) = status {
                return (status, text);
            }
            if text != known {
                (known, since) = (text, Instant::now());
            }
            if since.elapsed() > SEED_TIMEOUT {
                self.child.kill().unwrap();
                panic!("a seed hangs, the last of: {}", known.lines().rev().take(3).collect::<Vec<_>>().join(", "));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn results(mut self) -> Results {
        let (status, text) = self.end();
        assert!(status.success(), "a process of the simulation has ended with {status}:\n{text}");
        let mut results = Results::default();
        for line in text.lines() {
            match line.split_once(' ').unwrap() {
                ("held", rest) => {
                    let (seed, digest) = rest.split_once(' ').unwrap();
                    results.held.insert(seed.parse().unwrap(), digest.to_owned());
                }
                ("begun", _) => {}
                ("failed", first) => results.failures.push(first.to_owned()),
                (_, more) => write!(results.failures.last_mut().unwrap(), "\n{more}").unwrap(),
            }
        }
        results
    }
}

/// In the process of its own.
fn work_off(work: &str) {
    if std::env::var_os("SIMULATION_LOG").is_some() {
        tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_thread_names(true).init();
    }
    let [first, count, step, defect, output] = work.splitn(5, ' ').collect::<Vec<_>>()[..] else { panic!("{WORK} is `{work}`") };
    let [first, count, step]: [u64; 3] = [first, count, step].map(|n| n.parse().unwrap());
    let defect = defect.parse::<usize>().ok().map(|n| Defect::ALL[n]);
    let simulator = Simulator::new().unwrap();
    let mut report = std::fs::OpenOptions::new().append(true).open(output).unwrap();
    let mut failures = 0;
    for seed in (first..first + count).step_by(usize::try_from(step).unwrap()) {
        writeln!(report, "begun {seed}").unwrap();
        match simulator.run(seed, defect) {
            Ok(outcome) => {
                let digest = outcome.digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
                writeln!(report, "held {seed} {digest}").unwrap();
            }
            Err(failure) => {
                writeln!(report, "failed {}", failure.to_string().replace('\n', "\n| ")).unwrap();
                failures += 1;
            }
        }
        // One that is planted needs to be found once.
        if failures >= FAILURES_MAX || (failures > 0 && defect.is_some()) {
            break;
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is `{text}` and should be a number")))
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
