//! `countersign healthcheck`

use clap::Args;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::client::{ServerSocket, WorkloadSocket};
use crate::output::{self, Failure, Outcome};

/// `countersign healthcheck`
#[derive(Debug, Args)]
pub(crate) struct Healthcheck {
    #[command(subcommand)]
    whom: Whom,
}

#[derive(Debug, clap::Subcommand)]
enum Whom {
    /// The server behind its private socket
    Server(ServerSocket),
    /// The agent behind the Workload API
    Agent(WorkloadSocket),
}

impl Healthcheck {
    pub(crate) async fn run(self) -> Outcome {
        let (channel, name) = match self.whom {
            Whom::Server(socket) => (socket.connect().await?, "Server"),
            Whom::Agent(socket) => (socket.connect().await?, "Agent"),
        };
        let unhealthy = |why: &str| Failure::new(format!("{} is unhealthy: {why}", name.to_lowercase()));
        match answer(channel).await {
            Ok((true, trouble)) => {
                output::line(&format!("{name} is healthy."));
                if let Some(trouble) = trouble {
                    output::line(&format!("But {trouble}."));
                }
                Ok(())
            }
            Ok((false, None)) => Err(unhealthy("it returned status \"NOT_SERVING\"")),
            Ok((false, Some(reason))) => Err(unhealthy(&format!("it returned status \"NOT_SERVING\": {reason}"))),
            Err(status) => Err(unhealthy(&format!("unable to determine health: {}", status.message()))),
        }
    }
}

/// Whether a server or agent says it serves.
pub(crate) async fn check(channel: Channel) -> Result<bool, tonic::Status> {
    Ok(answer(channel).await?.0)
}

/// Whether it says it serves, and what is wrong where it says so.
async fn answer(channel: Channel) -> Result<(bool, Option<String>), tonic::Status> {
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await?;
    let reason = answer.metadata().get(countersign_server::api::HEALTH_REASON_HEADER).and_then(|r| r.to_str().ok()).map(str::to_owned);
    Ok((answer.into_inner().status == i32::from(ServingStatus::Serving), reason))
}
