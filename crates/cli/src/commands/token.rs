//! `countersign token …`

use clap::{Args, Subcommand};
use countersign_identity::SpiffeId;
use countersign_wire::agent::CreateJoinTokenRequest;
use countersign_wire::agent::agent_client::AgentClient;
use serde_json::json;

use super::optional_id;
use crate::client::ServerSocket;
use crate::output::{self, Outcome, OutputArgs};

/// `countersign token …`
#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token with which one node can join, once
    ///
    /// Example: countersign token generate --spiffe-id spiffe://example.org/node/a > token
    Generate(Generate),
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// Lifetime in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    ttl: i32,
    /// A name for the node that outlives the token, for entries to hang below
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<SpiffeId>,
}

impl Token {
    pub(crate) async fn run(self) -> Outcome {
        let Self::Generate(command) = self;
        let mut client = AgentClient::new(command.socket.connect().await?);
        let request = CreateJoinTokenRequest { ttl: command.ttl, token: String::new(), agent_id: optional_id(command.spiffe_id.as_ref()) };
        let token = client.create_join_token(request).await?.into_inner();
        command
            .output
            .show(|| json!({"value": token.value, "expires_at": token.expires_at.to_string()}), || format!("Token: {}\n", token.value));
        if command.spiffe_id.is_none() {
            output::note("Warning: Missing SPIFFE ID.");
        }
        Ok(())
    }
}
