//! `spire-server logger …`

use countersign_wire::logger::logger_client::LoggerClient;
use countersign_wire::logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use countersign_wire::types::{LogLevel, Logger};
use tonic::transport::Channel;

use super::super::command::{answer, refused};
use super::super::connect::Target;
use super::super::flags::{Flag, Given, Kind, flag};
use super::super::go;
use crate::output::{self, Failure, Outcome};

pub(in crate::spire) const SET: &[Flag] = &[flag("level", Kind::Text, "The level: panic, fatal, error, warn, info, debug or trace.")];

pub(in crate::spire) const GET_FAILED: &str = "error fetching logger";
pub(in crate::spire) const SET_FAILED: &str = "failed to set log level";
pub(in crate::spire) const RESET_FAILED: &str = "failed to reset logger";

async fn client(given: &Given, before: &str) -> Result<LoggerClient<Channel>, Failure> {
    Ok(LoggerClient::new(Target::server(given)?.connect().await.map_err(refused(before))?))
}

pub(super) async fn get(given: Given) -> Outcome {
    let levels = client(&given, GET_FAILED).await?.get_logger(GetLoggerRequest {}).await.map_err(refused(GET_FAILED))?;
    shown(&given, &levels.into_inner())
}

pub(super) async fn set(given: Given) -> Outcome {
    Target::server(&given)?;
    let new_level = level(given.text("level"))?;
    let mut client = client(&given, SET_FAILED).await?;
    shown(&given, &client.set_log_level(SetLogLevelRequest { new_level }).await.map_err(refused(SET_FAILED))?.into_inner())
}

pub(super) async fn reset(given: Given) -> Outcome {
    let levels = client(&given, RESET_FAILED).await?.reset_log_level(ResetLogLevelRequest {}).await.map_err(refused(RESET_FAILED))?;
    shown(&given, &levels.into_inner())
}

/// The number of a level, in whatever case it is written.
pub(in crate::spire) fn level(text: &str) -> Result<i32, Failure> {
    let level = match text.to_lowercase().as_str() {
        "" => return Err(Failure::new("a value (-level) must be set")),
        "panic" => LogLevel::Panic,
        "fatal" => LogLevel::Fatal,
        "error" => LogLevel::Error,
        "warn" | "warning" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
        _ => return Err(Failure::new(format!("the value {} is not a valid setting", go::quoted(text)))),
    };
    Ok(level.into())
}

/// Prints the levels of a server or an agent.
pub(in crate::spire) fn shown(given: &Given, levels: &Logger) -> Outcome {
    answer(given, "spire.api.types.Logger", levels, |m| {
        // Where SPIRE prints texts, it is the log library's name of the level.
        let name = |level: i32| match LogLevel::try_from(level) {
            Ok(LogLevel::Warn) => "warning".to_owned(),
            Ok(level) => level.as_str_name().to_lowercase(),
            Err(_) => level.to_string(),
        };
        output::text(&format!("Logger Level : {}\nLaunch Level : {}\n\n", name(m.current_level), name(m.launch_level)));
        Ok(())
    })
}
