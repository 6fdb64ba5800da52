//! All automation: `cargo xtask test`, `check`, `tidy`, `gen`, `bless`, `simulate`, `record-demo`, `fuzz`, `mutants`, `image`, `ci`.

mod documents;
mod fuzz;
mod generate;
mod image;
mod mutants;
mod prepare;
mod record;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What went wrong, for whoever typed the command.
type Failure = Box<dyn std::error::Error>;

const USAGE: &str = "\
cargo xtask COMMAND

  test    prepare what the tests need, then run all of them
  check   formatting, lints, house rules, dependencies
  tidy    the house rules alone
  gen     generate the code of crates/wire/proto again
  bless   rewrite golden files after a change that was meant
  simulate [--seed N] [--seeds COUNT] [--log]
          run seeds of the simulation: this one, or so many from it
  record-demo
          run the demo and write it as the picture that the README shows
  fuzz    TARGET SECONDS: let the fuzzer look for what a target gets wrong
          keep TARGET: put the smallest of what widened its view into the corpus
          seeds: write the seeds of every corpus anew
  mutants [FILE]: break the identity core in every way, or in one file, and see that a test notices
          policy [FILE]: the same with who may call what and have what
  image   [--debug]: write the two container images to target/images
  ci      test, then check
";

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let done = match command.as_str() {
        "test" => test(),
        "check" => check(),
        "tidy" => tidy::run(&root()),
        "gen" => generate::generate(&root().join("crates/wire/proto"), &root().join("crates/wire/src/gen")),
        "bless" => bless(),
        "simulate" => simulate(),
        "record-demo" => record::record(&root()),
        "fuzz" => fuzz::run(&root(), &std::env::args().skip(2).collect::<Vec<_>>()),
        "mutants" => mutants::run(&root(), &std::env::args().skip(2).collect::<Vec<_>>()),
        "image" => image(),
        "ci" => test().and_then(|()| check()),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&format!("xtask {command}: {failure}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "automation talks to people")]
fn say(text: &str) {
    eprintln!("{text}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap_or_else(|_| PathBuf::from("."))
}

/// Runs a program in the checkout; its output goes where ours goes.
fn run(program: &str, arguments: &[&str], environment: &[(&str, &Path)]) -> Result<(), Failure> {
    say(&format!("$ {program} {}", arguments.join(" ")));
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    for (name, value) in environment {
        command.env(name, value);
    }
    let status = command.status().map_err(|e| format!("cannot run `{program}`: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{program} {}` failed: {status}", arguments.join(" ")).into()) }
}

fn test() -> Result<(), Failure> {
    let prepared = prepare::everything(&root())?;
    run("cargo", &["build", "--workspace", "--all-targets", "--locked"], &[])?;
    let environment: Vec<(&str, &Path)> = prepared.environment.iter().map(|(name, path)| (*name, path.as_path())).collect();
    run("cargo", &["test", "--workspace", "--locked", "--no-fail-fast"], &environment)
}

fn check() -> Result<(), Failure> {
    run("cargo", &["fmt", "--all", "--check"], &[])?;
    run("cargo", &["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"], &[])?;
    tidy::run(&root())?;
    let deny = prepare::cargo_deny(&root())?;
    let program = deny.display().to_string();
    // Advisories need a database that is fetched from the network; it is looked at where there is one, see CONTRIBUTING.md.
    run(&program, &["--locked", "--offline", "check", "bans", "licenses", "sources"], &[])
}

fn image() -> Result<(), Failure> {
    let profile = match std::env::args().nth(2).as_deref() {
        None => image::Profile::Release,
        Some("--debug") => image::Profile::Dev,
        Some(other) => return Err(format!("unknown argument `{other}`\n\n{USAGE}").into()),
    };
    image::write(&root(), profile).map(drop)
}

/// Runs seeds of the simulation, and nothing else.
fn simulate() -> Result<(), Failure> {
    let mut settings = Vec::new();
    let mut arguments = std::env::args().skip(2);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().filter(|n| n.parse::<u64>().is_ok()).ok_or(format!("{argument} needs a number"));
        match argument.as_str() {
            "--seed" => settings.push(("SIMULATION_SEED", PathBuf::from(number()?))),
            "--seeds" => settings.push(("SIMULATION_SEEDS", PathBuf::from(number()?))),
            "--log" => settings.push(("SIMULATION_LOG", PathBuf::from("1"))),
            other => return Err(format!("unknown argument `{other}`\n\n{USAGE}").into()),
        }
    }
    let environment: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_path())).collect();
    let test = ["--exact", "simulation::every_seed_holds", "--nocapture"];
    let arguments = ["test", "--locked", "-p", "countersign-testkit", "--test", "it", "--"];
    run("cargo", &[arguments.as_slice(), &test].concat(), &environment)
}

fn bless() -> Result<(), Failure> {
    generate::generate(&root().join("crates/wire/proto"), &root().join("crates/wire/src/gen"))?;
    run("cargo", &["test", "--workspace"], &[("UPDATE_EXPECT", Path::new("1"))])
}
