//! `countersign healthcheck`

use clap::Args;
use countersign_transport::observe::RELOAD_HEADER;
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
            Ok(Answer { is_serving: true, reason, last_reload }) => {
                output::line(&format!("{name} is healthy."));
                if let Some(reason) = reason {
                    output::line(&format!("But {reason}."));
                }
                if let Some(last_reload) = last_reload {
                    output::line(&format!("Last reload of the configuration: {last_reload}"));
                }
                Ok(())
            }
            Ok(Answer { reason: None, .. }) => Err(unhealthy("it returned status \"NOT_SERVING\"")),
            Ok(Answer { reason: Some(reason), .. }) => Err(unhealthy(&format!("it returned status \"NOT_SERVING\": {reason}"))),
            Err(status) => Err(unhealthy(&format!("unable to determine health: {}", status.message()))),
        }
    }
}

/// Whether a server or agent says it serves.
pub(crate) async fn check(channel: Channel) -> Result<bool, tonic::Status> {
    Ok(answer(channel).await?.is_serving)
}

/// What it says, in the words of the health protocol.
pub(crate) async fn status(channel: Channel) -> Result<String, tonic::Status> {
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await?.into_inner();
    Ok(ServingStatus::try_from(answer.status).map_or_else(|_| answer.status.to_string(), |s| s.as_str_name().to_owned()))
}

/// What it says of itself.
struct Answer {
    is_serving: bool,
    /// What is wrong, where it says so.
    reason: Option<String>,
    /// What came of the last reload of its configuration, if there was one.
    last_reload: Option<String>,
}

async fn answer(channel: Channel) -> Result<Answer, tonic::Status> {
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await?;
    let header = |name| answer.metadata().get(name).and_then(|text| text.to_str().ok()).map(str::to_owned);
    let (reason, last_reload) = (header(countersign_server::api::HEALTH_REASON_HEADER), header(RELOAD_HEADER));
    Ok(Answer { is_serving: answer.into_inner().status == i32::from(ServingStatus::Serving), reason, last_reload })
}
