//! The log level of the running process.

use countersign_wire::log_level;
use countersign_wire::logger::{self, logger_server};
use countersign_wire::types::Logger;
use tonic::{Request, Response, Status};

use super::Api;

#[tonic::async_trait]
impl logger_server::Logger for Api {
    async fn get_logger(&self, _: Request<logger::GetLoggerRequest>) -> Result<Response<Logger>, Status> {
        Ok(Response::new(self.logger()))
    }

    async fn set_log_level(&self, request: Request<logger::SetLogLevelRequest>) -> Result<Response<Logger>, Status> {
        let caller = Self::caller(&request)?;
        let wanted = request.into_inner().new_level;
        let Some(name) = log_level::from_wire(wanted) else {
            return Err(Status::invalid_argument(if wanted == 0 {
                "newLevel value cannot be LogLevel_UNSPECIFIED".to_owned()
            } else {
                format!("unsupported log level {wanted}")
            }));
        };
        self.log_levels.set(name);
        tracing::info!(caller = %caller.actor(), level = name, "Log level set");
        Ok(Response::new(self.logger()))
    }

    async fn reset_log_level(&self, request: Request<logger::ResetLogLevelRequest>) -> Result<Response<Logger>, Status> {
        let caller = Self::caller(&request)?;
        self.log_levels.set(&self.log_levels.launch());
        tracing::info!(caller = %caller.actor(), level = self.log_levels.launch(), "Log level reset");
        Ok(Response::new(self.logger()))
    }
}

impl Api {
    fn logger(&self) -> Logger {
        let level = |name: &str| log_level::to_wire(name).into();
        Logger { current_level: level(&self.log_levels.current()), launch_level: level(&self.log_levels.launch()) }
    }
}
