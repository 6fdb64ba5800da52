//! `spire-agent`: its commands and their flags.

mod admin;
mod fetch;
pub(super) mod run;
mod watch;

use super::command::{Command, Manner, Work};
use super::connect::{ADMIN, Target, WORKLOAD};
use super::flags::{Flag, Given, OUTPUT};
use super::server::{health, logger};
use crate::output::{self, Outcome};

const fn command(
    name: &'static str,
    called: &'static str,
    synopsis: &'static str,
    manner: Manner,
    flags: &'static [&'static [Flag]],
    work: fn(Given) -> Work,
) -> Command {
    Command { name, called, synopsis, manner, flags, work }
}

const UNHEALTHY: Manner = Manner { prefix: "Agent is unhealthy: ", repeats: false, help_end: "" };
const X509: &[&[Flag]] = &[WORKLOAD, OUTPUT, fetch::TIMEOUT, fetch::X509];

pub(super) const COMMANDS: &[Command] = &[
    command("api fetch", "fetch x509", "Fetches X509-SVIDs", Manner::WORKLOAD, X509, |g| Box::pin(fetch::x509(g))),
    command("api fetch jwt", "fetch jwt", "Fetches JWT-SVIDs", Manner::WORKLOAD, &[WORKLOAD, OUTPUT, fetch::TIMEOUT, fetch::JWT], |g| {
        Box::pin(fetch::jwt(g))
    }),
    command("api fetch x509", "fetch x509", "Fetches X509-SVIDs", Manner::WORKLOAD, X509, |g| Box::pin(fetch::x509(g))),
    command(
        "api validate jwt",
        "validate jwt",
        "Validates a JWT-SVID",
        Manner::WORKLOAD,
        &[WORKLOAD, OUTPUT, fetch::TIMEOUT, fetch::VALIDATE],
        |g| Box::pin(fetch::validate(g)),
    ),
    command("api watch", "watch", "Prints X509-SVIDs whenever they change", Manner::PLAIN, &[WORKLOAD], |g| Box::pin(watch::watch(g))),
    command("debug getinfo", "debug getinfo", "Shows what the agent says about itself", Manner::CLIENT, &[ADMIN, OUTPUT], |g| {
        Box::pin(admin::info(g))
    }),
    command("healthcheck", "health", "Asks whether the agent is healthy", UNHEALTHY, &[WORKLOAD, health::FLAGS], |g| Box::pin(check(g))),
    command("logger get", "logger get", "Shows the log level", Manner::CLIENT, &[ADMIN, OUTPUT], |g| Box::pin(admin::level(g))),
    command("logger reset", "logger reset", "Goes back to the log level of the start", Manner::CLIENT, &[ADMIN, OUTPUT], |g| {
        Box::pin(admin::reset_level(g))
    }),
    command("logger set", "logger set", "Sets the log level", Manner::CLIENT, &[ADMIN, OUTPUT, logger::SET], |g| {
        Box::pin(admin::set_level(g))
    }),
    command("run", "run", "Runs the agent", Manner::PLAIN, &[run::FLAGS], |g| Box::pin(run::run(g))),
    command("validate", "validate", "Checks a configuration file", run::INVALID, &[run::FLAGS], |g| Box::pin(run::validate(g))),
];

async fn check(given: Given) -> Outcome {
    let target = Target::workload(&given);
    // SPIRE says what it does before it looks where to do it.
    if target.is_err() && given.is_on("verbose") {
        output::line("Checking agent health...");
    }
    health::ask(&target?, &given, "agent").await?;
    output::line("Agent is healthy.");
    Ok(())
}
