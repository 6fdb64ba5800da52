//! `spire-server healthcheck`

use super::super::connect::Target;
use super::super::flags::{Flag, Given, Kind, flag};
use super::super::go;
use crate::commands::health;
use crate::output::{self, Failure, Outcome};

pub(in crate::spire) const FLAGS: &[Flag] =
    &[flag("shallow", Kind::Switch, "Has no effect."), flag("verbose", Kind::Switch, "Say what is done, and what went wrong.")];

pub(super) async fn check(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    ask(&target, &given, "server").await.map_err(|e| Failure::new(format!("server is unhealthy: {e}")))?;
    output::line("Server is healthy.");
    Ok(())
}

/// Asks a server or an agent; the error is the reason why it counts as unhealthy.
pub(in crate::spire) async fn ask(target: &Target, given: &Given, who: &str) -> Outcome {
    let verbose = given.is_on("verbose");
    if verbose {
        output::line(&format!("Checking {who} health..."));
    }
    let answer = match target.connect().await {
        Ok(channel) => health::status(channel).await,
        Err(status) => Err(status),
    };
    match answer {
        Ok(status) if status == "SERVING" => Ok(()),
        Ok(status) => Err(Failure::new(format!("{who} returned status \"{status}\""))),
        Err(status) => {
            if verbose {
                output::note(&format!("Failed to check health: {}", go::status(&status)));
            }
            Err(Failure::new("unable to determine health"))
        }
    }
}
