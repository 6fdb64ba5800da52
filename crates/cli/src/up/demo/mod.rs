//! `countersign up --demo`: a trust domain of its own in which everything happens that a newcomer should have seen once.
//!
//! Nothing is scripted: real server, real agent, real programs, and each line tells what one of them has just reported.
//! What does not happen in time ends the demo with an error. Nothing is left behind, however it ends, unless it is killed.

mod event;
mod narrator;
mod play;
mod program;
mod seen;
mod stage;

use std::path::Path;

use countersign_identity::TrustDomain;
use tokio::time::Instant;

pub(crate) use program::DemoProgram;

use self::narrator::Narrator;
use self::play::Play;
use self::stage::Stage;
use super::{Children, story};
use crate::output::{self, Failure, Outcome};
use crate::run::stop_signal;

/// Set by tests, which need no time to read.
const FAST: &str = "COUNTERSIGN_DEMO_FAST";

/// Plays the demo, in this directory or in one of its own.
pub(super) async fn run(directory: Option<&Path>, trust_domain: &TrustDomain) -> Outcome {
    let is_fast = std::env::var_os(FAST).is_some();
    let stopped = stop_signal()?;
    tokio::pin!(stopped);
    let (mut stage, reports) = Stage::open(directory, trust_domain)?;
    let mut children = Children::new(&stage.layout)?;
    output::text(&format!(
        "\
How programs prove who they are, without a password, a key or a token that somebody has to hand to them.
Everything below really happens, now, on this machine, in {}.

",
        stage.layout.directory().display()
    ));
    let played = tokio::select! {
        played = Play::new(&mut stage, &mut children, reports, Narrator::new(Instant::now(), is_fast)).act() => played,
        () = &mut stopped => Err(Failure::new("stopped before its end; nothing of it is left")),
    };
    // Whoever asked a server that has ended knows less about it than it said itself.
    let played = played.map_err(|failure| children.server_ended().unwrap_or(failure));
    stage.dismiss().await;
    children.stop().await;
    let (is_kept, place) = (directory.is_some(), stage.layout.directory().display().to_string());
    let cleared = stage.clear();
    played?;
    cleared?;
    let left = if is_kept { format!("Its programs are stopped; its files are in {place}.") } else { "Nothing of it is left.".to_owned() };
    output::text(&format!(
        "
That was all. {left}
Names that begin with spiffe:// are SPIFFE IDs, and the proofs are X.509 certificates: every program that
knows SPIFFE, or just TLS, can use them. What to do next:

  {program} up                          a trust domain of your own, that stays
  {program} whoami                      in another terminal: who you are there
  {program} entry create --help         say which program gets which identity
  {program} --help                      everything else
",
        program = story::program(),
    ));
    Ok(())
}
