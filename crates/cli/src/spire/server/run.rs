//! `spire-server run` and `spire-server validate`.

use countersign_server::Config;

use super::super::command::Manner;
use super::super::flags::{Flag, Given, Kind, flag};
use super::super::overlay;
use crate::output::{self, Failure, Outcome};
use crate::run::run_server;

/// How `validate` speaks of errors.
pub(super) const INVALID: Manner = Manner { prefix: "SPIRE server configuration file is invalid: ", ..Manner::PLAIN };

pub(in crate::spire) const FLAGS: &[Flag] = &[
    flag("config", Kind::Text, "Configuration file; conf/server/server.conf unless given."),
    flag("expandEnv", Kind::Switch, "Replace $NAME and ${NAME} in the file by environment variables."),
    flag("bindAddress", Kind::Text, "IP address to listen on."),
    flag("serverPort", Kind::Number, "Port to listen on."),
    flag("dataDir", Kind::Text, "Directory of the server's files."),
    flag("logFile", Kind::Text, "File for logs."),
    flag("logFormat", Kind::Text, "Form of logs: text or json."),
    flag("logLevel", Kind::Text, "Log level: panic, fatal, error, warn, info, debug or trace."),
    flag("logSourceLocation", Kind::Switch, "Add file, line and function to logs."),
    flag("socketPath", Kind::Text, "Path of the private socket."),
    flag("trustDomain", Kind::Text, "The trust domain."),
];
/// Flags, and the keys of the `server` block whose place they take.
pub(in crate::spire) const SETTINGS: &[(&str, &str)] = &[
    ("bindAddress", "bind_address"),
    ("serverPort", "bind_port"),
    ("dataDir", "data_dir"),
    ("logFile", "log_file"),
    ("logFormat", "log_format"),
    ("logLevel", "log_level"),
    ("logSourceLocation", "log_source_location"),
    ("socketPath", "socket_path"),
    ("trustDomain", "trust_domain"),
];
const DEFAULT: &str = "conf/server/server.conf";

fn load(given: &Given) -> Result<Config, Failure> {
    let top = overlay::load(given, "server", DEFAULT, FLAGS, SETTINGS)?;
    Config::read(top).map_err(|e| Failure::new(e.to_string()))
}

pub(super) async fn run(given: Given) -> Outcome {
    run_server(&load(&given)?, || load(&given)).await
}

pub(super) async fn validate(given: Given) -> Outcome {
    load(&given)?;
    output::line("SPIRE server configuration file is valid.");
    Ok(())
}
