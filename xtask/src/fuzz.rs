//! The fuzzer: built for coverage with the ordinary compiler, started on one target, its findings taken into the corpus.

use std::path::Path;
use std::process::Command;

use crate::{Failure, say};

/// What libFuzzer needs to see where the code has been; the compiler's stable flags, no sanitizer.
const INSTRUMENTED: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Named, so that build scripts and macros are built without those flags.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Longest input: what breaks a parser is short, and a corpus of short inputs is quick.
const LENGTH_MAX: &str = "-max_len=4096";
/// Most files of a corpus; a test says the same.
const FILES_MAX: usize = 100;

/// `TARGET SECONDS`, `keep TARGET`, or `seeds`.
pub(crate) fn run(root: &Path, words: &[String]) -> Result<(), Failure> {
    act(root, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn act(root: &Path, words: &[&str]) -> Result<(), Failure> {
    match words {
        ["seeds"] => crate::run("cargo", &["run", "--quiet", "--package", "countersign-testkit", "--example", "seeds"], &[]),
        ["keep", target] => keep(root, target),
        [target, seconds] => {
            build(root)?;
            let found = root.join("target/fuzz/corpus").join(target);
            let findings = format!("-artifact_prefix={}/", root.join("target/fuzz").display());
            std::fs::create_dir_all(&found)?;
            let corpus = known(root, target)?;
            let limit = format!("-max_total_time={seconds}");
            start(root, target, &[LENGTH_MAX, &limit, "-timeout=60", "-rss_limit_mb=3000", &findings, &shown(&found), &corpus])
        }
        _ => Err("say `fuzz TARGET SECONDS`, `fuzz keep TARGET` or `fuzz seeds`; the targets are the folders of fuzz/corpus".into()),
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The committed corpus of a target.
fn known(root: &Path, target: &str) -> Result<String, Failure> {
    let corpus = root.join("fuzz/corpus").join(target);
    if corpus.is_dir() { Ok(shown(&corpus)) } else { Err(format!("there is no corpus `{target}`; see fuzz/corpus").into()) }
}

fn build(root: &Path) -> Result<(), Failure> {
    say("$ cargo build (fuzz)");
    let built = Command::new("cargo")
        .args(["build", "--release", "--locked", "--target", TRIPLE, "--target-dir"])
        .arg(root.join("target/fuzz"))
        .current_dir(root.join("fuzz"))
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", INSTRUMENTED)
        .status()?;
    if built.success() { Ok(()) } else { Err("building the fuzzer failed; it needs a C++ compiler (Debian: g++)".into()) }
}

/// Runs the fuzzer. With SIGPIPE ignored, as in every Rust program but one whose `main` is libFuzzer's: a connection that
/// the other end closed must be an error and not the end.
fn start(root: &Path, target: &str, arguments: &[&str]) -> Result<(), Failure> {
    let program = root.join("target/fuzz").join(TRIPLE).join("release/countersign-fuzz");
    let ended = Command::new("sh")
        .args(["-c", "trap '' PIPE; exec \"$@\"", "fuzz"])
        .arg(program)
        .args(arguments)
        .env("COUNTERSIGN_FUZZ_TARGET", target)
        .status()?;
    if ended.success() { Ok(()) } else { Err(format!("target {target} has a finding, see above and target/fuzz: {ended}").into()) }
}

/// Puts the smallest inputs that show something new into the committed corpus, as many as there is room for.
fn keep(root: &Path, target: &str) -> Result<(), Failure> {
    build(root)?;
    let (corpus, found) = (known(root, target)?, root.join("target/fuzz/corpus").join(target));
    let merged = root.join("target/fuzz/merged").join(target);
    if merged.exists() {
        std::fs::remove_dir_all(&merged)?;
    }
    std::fs::create_dir_all(&merged)?;
    std::fs::create_dir_all(&found)?;
    start(root, target, &["-merge=1", LENGTH_MAX, &shown(&merged), &corpus, &shown(&found)])?;
    let mut have = Vec::new();
    for file in std::fs::read_dir(&corpus)? {
        have.push(std::fs::read(file?.path())?);
    }
    let mut new = Vec::new();
    for file in std::fs::read_dir(&merged)? {
        let path = file?.path();
        let bytes = std::fs::read(&path)?;
        if !have.contains(&bytes) {
            new.push((bytes.len(), path));
        }
    }
    new.sort();
    for (_, path) in new.iter().take(FILES_MAX.saturating_sub(have.len())) {
        let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.get(..12)).ok_or("a file without a name")?;
        std::fs::copy(path, Path::new(&corpus).join(name))?;
    }
    Ok(())
}
