//! `spire-agent logger …` and `spire-agent debug getinfo`: what the agent's admin API says.

use countersign_wire::agent_debug::GetInfoRequest;
use countersign_wire::agent_debug::debug_client::DebugClient;
use countersign_wire::agent_logger::logger_client::LoggerClient;
use countersign_wire::agent_logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use tonic::transport::Channel;

use super::super::command::{answer, refused};
use super::super::connect::Target;
use super::super::flags::Given;
use super::super::go;
use super::super::server::debug::chain;
use super::super::server::logger::{self, GET_FAILED, RESET_FAILED, SET_FAILED};
use crate::commands::show;
use crate::output::{self, Failure, Outcome};

async fn logger(given: &Given, before: &str) -> Result<LoggerClient<Channel>, Failure> {
    Ok(LoggerClient::new(Target::admin(given).connect().await.map_err(refused(before))?))
}

pub(super) async fn level(given: Given) -> Outcome {
    let levels = logger(&given, GET_FAILED).await?.get_logger(GetLoggerRequest {}).await.map_err(refused(GET_FAILED))?;
    logger::shown(&given, &levels.into_inner())
}

pub(super) async fn set_level(given: Given) -> Outcome {
    let new_level = logger::level(given.text("level"))?;
    let mut client = logger(&given, SET_FAILED).await?;
    logger::shown(&given, &client.set_log_level(SetLogLevelRequest { new_level }).await.map_err(refused(SET_FAILED))?.into_inner())
}

pub(super) async fn reset_level(given: Given) -> Outcome {
    let levels = logger(&given, RESET_FAILED).await?.reset_log_level(ResetLogLevelRequest {}).await.map_err(refused(RESET_FAILED))?;
    logger::shown(&given, &levels.into_inner())
}

pub(super) async fn info(given: Given) -> Outcome {
    let mut client = DebugClient::new(Target::admin(&given).connect().await.map_err(refused(""))?);
    let info = client.get_info(GetInfoRequest {}).await.map_err(refused(""))?.into_inner();
    answer(&given, "spire.agent.debug.v1.GetInfoResponse", &info, |m| {
        let last_sync = if m.last_sync_success == 0 { "(never)".to_owned() } else { output::time(m.last_sync_success) };
        let rows = [
            ("Uptime:", go::duration(i64::from(m.uptime) * 1_000_000_000)),
            ("Last Sync Success:", last_sync),
            ("Cached X.509 SVIDs:", m.cached_x509_svids_count.to_string()),
            ("Cached JWT SVIDs:", m.cached_jwt_svids_count.to_string()),
            ("Cached SVID Store X.509 SVIDs:", m.cached_svidstore_x509_svids_count.to_string()),
        ];
        let text = rows.iter().fold("Agent Debug Info:\n".to_owned(), |text, (label, value)| text + &format!("  {label:<33}{value}\n"));
        output::text(&(text + &chain(m.svid_chain.iter().map(|c| (show::spiffe_id(c.id.as_ref()), c.subject.as_str(), c.expires_at)))));
        Ok(())
    })
}
