//! `spire-agent run` and `spire-agent validate`.

use countersign_agent::Config;

use super::super::command::Manner;
use super::super::flags::{Flag, Given, Kind, flag};
use super::super::overlay;
use crate::output::{self, Failure, Outcome};
use crate::run::run_agent;

/// How `validate` speaks of errors.
pub(super) const INVALID: Manner = Manner { prefix: "SPIRE agent configuration file is invalid: ", ..Manner::PLAIN };

pub(in crate::spire) const FLAGS: &[Flag] = &[
    Flag { name: "config", kind: Kind::Text, default: DEFAULT, help: "Configuration file." },
    flag("expandEnv", Kind::Switch, "Replace $NAME and ${NAME} in the file by environment variables."),
    flag("allowUnauthenticatedVerifiers", Kind::Switch, "Give the bundle to processes without an identity too."),
    flag("dataDir", Kind::Text, "Directory of the agent's files."),
    flag("disableSDSAPI", Kind::Switch, "Do without the SDS API."),
    flag("disableWorkloadAPI", Kind::Switch, "Do without the Workload API."),
    flag("insecureBootstrap", Kind::Switch, "Trust whatever server answers at the first contact."),
    flag("joinToken", Kind::Text, "Join token. Every user of the machine can read it there: -joinTokenFile is safer."),
    flag("joinTokenFile", Kind::Text, "File with a join token."),
    flag("logFile", Kind::Text, "File for logs."),
    flag("logFormat", Kind::Text, "Form of logs: text or json."),
    flag("logLevel", Kind::Text, "Log level: panic, fatal, error, warn, info, debug or trace."),
    flag("logSourceLocation", Kind::Switch, "Add file, line and function to logs."),
    flag("rebootstrapDelay", Kind::Text, "How long to wait before the server is trusted anew, for example 10m."),
    flag("rebootstrapMode", Kind::Text, "When to trust the server anew if its certificate does not fit: never, auto or always."),
    flag("serverAddress", Kind::Text, "Name or address of the server."),
    flag("serverPort", Kind::Number, "Port of the server."),
    flag("socketPath", Kind::Text, "Path of the Workload API's socket."),
    flag("trustBundle", Kind::Text, "File with the server's bundle."),
    flag("trustBundleFormat", Kind::Text, "Form of the bundle: pem or spiffe."),
    flag("trustBundleUrl", Kind::Text, "Where the server's bundle is fetched."),
    flag("trustDomain", Kind::Text, "The trust domain."),
];
/// Flags, and the keys of the `agent` block whose place they take.
pub(in crate::spire) const SETTINGS: &[(&str, &str)] = &[
    ("allowUnauthenticatedVerifiers", "allow_unauthenticated_verifiers"),
    ("dataDir", "data_dir"),
    ("disableSDSAPI", "disable_sds_api"),
    ("disableWorkloadAPI", "disable_workload_api"),
    ("insecureBootstrap", "insecure_bootstrap"),
    ("joinToken", "join_token"),
    ("joinTokenFile", "join_token_file"),
    ("logFile", "log_file"),
    ("logFormat", "log_format"),
    ("logLevel", "log_level"),
    ("logSourceLocation", "log_source_location"),
    ("rebootstrapDelay", "rebootstrap_delay"),
    ("rebootstrapMode", "rebootstrap_mode"),
    ("serverAddress", "server_address"),
    ("serverPort", "server_port"),
    ("socketPath", "socket_path"),
    ("trustBundle", "trust_bundle_path"),
    ("trustBundleFormat", "trust_bundle_format"),
    ("trustBundleUrl", "trust_bundle_url"),
    ("trustDomain", "trust_domain"),
];
const DEFAULT: &str = "conf/agent/agent.conf";

fn load(given: &Given) -> Result<Config, Failure> {
    let top = overlay::load(given, "agent", DEFAULT, FLAGS, SETTINGS)?;
    Config::read(top).map_err(|e| Failure::new(e.to_string()))
}

pub(super) async fn run(given: Given) -> Outcome {
    run_agent(&load(&given)?, || load(&given)).await
}

pub(super) async fn validate(given: Given) -> Outcome {
    load(&given)?;
    output::line("SPIRE agent configuration file is valid.");
    Ok(())
}
