//! `countersign logger …`: the log level of a running server.

use clap::{Args, Subcommand, ValueEnum};
use countersign_wire::logger::logger_client::LoggerClient;
use countersign_wire::logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use countersign_wire::types::{LogLevel, Logger as Levels};
use serde_json::json;

use crate::client::ServerSocket;
use crate::output::{Outcome, OutputArgs};

/// `countersign logger …`
#[derive(Debug, Subcommand)]
pub(crate) enum Logger {
    /// Show the level
    Get(Plain),
    /// Set the level until the server restarts
    Set(Set),
    /// Go back to the configured level
    Reset(Plain),
}

#[derive(Debug, Args)]
pub(crate) struct Plain {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// The level
    #[arg(long, value_enum)]
    level: Level,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    Panic,
    Fatal,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    fn number(self) -> i32 {
        match self {
            Self::Panic => LogLevel::Panic,
            Self::Fatal => LogLevel::Fatal,
            Self::Error => LogLevel::Error,
            Self::Warn => LogLevel::Warn,
            Self::Info => LogLevel::Info,
            Self::Debug => LogLevel::Debug,
            Self::Trace => LogLevel::Trace,
        }
        .into()
    }
}

impl Logger {
    pub(crate) async fn run(self) -> Outcome {
        let (levels, output) = match self {
            Self::Get(c) => (LoggerClient::new(c.socket.connect().await?).get_logger(GetLoggerRequest {}).await?, c.output),
            Self::Reset(c) => (LoggerClient::new(c.socket.connect().await?).reset_log_level(ResetLogLevelRequest {}).await?, c.output),
            Self::Set(c) => {
                let request = SetLogLevelRequest { new_level: c.level.number() };
                (LoggerClient::new(c.socket.connect().await?).set_log_level(request).await?, c.output)
            }
        };
        let Levels { current_level, launch_level } = levels.into_inner();
        let name = |level: i32| LogLevel::try_from(level).map_or("?", |l| l.as_str_name());
        output.show(
            || json!({"current_level": name(current_level), "launch_level": name(launch_level)}),
            || format!("Logger Level : {}\nLaunch Level : {}\n", name(current_level).to_lowercase(), name(launch_level).to_lowercase()),
        );
        Ok(())
    }
}
