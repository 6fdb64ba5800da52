//! The log level of the running agent.

use countersign_wire::agent_logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest, logger_server};
use countersign_wire::log_level;
use countersign_wire::types::{LogLevel, Logger};
use tonic::{Request, Response, Status};

use super::Admin;

#[tonic::async_trait]
impl logger_server::Logger for Admin {
    async fn get_logger(&self, _: Request<GetLoggerRequest>) -> Result<Response<Logger>, Status> {
        tracing::info!("GetLogger Called");
        Ok(Response::new(self.levels()))
    }

    async fn set_log_level(&self, request: Request<SetLogLevelRequest>) -> Result<Response<Logger>, Status> {
        let wanted = request.into_inner().new_level;
        let Some(name) = log_level::from_wire(wanted) else {
            return Err(Status::invalid_argument(if wanted == i32::from(LogLevel::Unspecified) {
                "newLevel value cannot be LogLevel_UNSPECIFIED"
            } else {
                "unsupported log level"
            }));
        };
        tracing::info!(new_log_level = name, "SetLogLevel Called");
        self.set_level(name)
    }

    async fn reset_log_level(&self, _: Request<ResetLogLevelRequest>) -> Result<Response<Logger>, Status> {
        let launch = self.0.log_levels.launch();
        tracing::info!(launch_log_level = launch, "ResetLogLevel Called");
        self.set_level(&launch)
    }
}

impl Admin {
    fn set_level(&self, name: &str) -> Result<Response<Logger>, Status> {
        if self.0.log_levels.set(name) {
            Ok(Response::new(self.levels()))
        } else {
            Err(Status::failed_precondition("the log of this process is not the agent's to set"))
        }
    }

    fn levels(&self) -> Logger {
        let level = |name: &str| log_level::to_wire(name).into();
        Logger { current_level: level(&self.0.log_levels.current()), launch_level: level(&self.0.log_levels.launch()) }
    }
}
