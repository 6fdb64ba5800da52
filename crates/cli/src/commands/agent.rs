//! `countersign agent …`: running one, and what the server knows of all.

use std::time::Duration;

use clap::{Args, Subcommand};
use countersign_identity::{Selector, SpiffeId};
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::{self, list_agents_request};
use countersign_wire::{id, types};
use serde_json::json;
use tonic::transport::Channel;

use super::{MatchOn, selector_match, show};
use crate::client::ServerSocket;
use crate::output::{self, Failure, Outcome, OutputArgs};
use crate::progress::Progress;
use crate::run::{AgentDefault, Configured, run_agent};

/// Agents asked for in one page.
const PAGE: i32 = 1000;

/// `countersign agent …`
#[derive(Debug, Subcommand)]
pub(crate) enum Agent {
    /// Run an agent until it is told to stop (SIGINT, SIGTERM)
    Run(Configured<AgentDefault>),
    /// Check a configuration: everything that `run` would check before it starts
    Validate(Configured<AgentDefault>),
    /// List attested agents
    List(List),
    /// Show one attested agent
    Show(One),
    /// Count attested agents
    Count(List),
    /// Ban an agent: its SVID counts no longer and it cannot join again until it is evicted
    Ban(One),
    /// Evict an agent: it has to join again; lifts a ban
    Evict(One),
    /// Evict agents whose SVID ended long ago
    Purge(Purge),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// Only agents with this selector; repeat for more
    #[arg(long = "selector", value_name = "TYPE:VALUE")]
    selectors: Vec<Selector>,
    /// How the selectors given relate to those of an agent
    #[arg(long, value_enum, default_value = "superset", value_name = "HOW")]
    match_selectors_on: MatchOn,
    /// Only agents attested in this way
    #[arg(long, value_name = "TYPE", default_value = "", hide_default_value = true)]
    attestation_type: String,
    /// Only agents that can, or cannot, attest again
    #[arg(long, value_name = "BOOL")]
    can_reattest: Option<bool>,
    /// Only agents that are, or are not, banned
    #[arg(long, value_name = "BOOL")]
    banned: Option<bool>,
    /// Only agents whose SVID ends before, as `2006-01-02 15:04:05 -0700 -07`
    #[arg(long, value_name = "TIME", default_value = "", hide_default_value = true)]
    expires_before: String,
}

#[derive(Debug, Args)]
pub(crate) struct One {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// The agent
    #[arg(long, value_name = "ID")]
    spiffe_id: SpiffeId,
}

#[derive(Debug, Args)]
pub(crate) struct Purge {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// Hours since the SVID ended
    #[arg(long, value_name = "HOURS", default_value_t = 720)]
    expired_for_hours: u64,
    /// Only show what would be evicted
    #[arg(long)]
    dry_run: bool,
}

impl List {
    fn filter(&self) -> Option<list_agents_request::Filter> {
        let filter = list_agents_request::Filter {
            by_attestation_type: self.attestation_type.clone(),
            by_selector_match: selector_match(&self.selectors, self.match_selectors_on),
            by_banned: self.banned,
            by_can_reattest: self.can_reattest,
            by_expires_before: self.expires_before.clone(),
        };
        (filter != list_agents_request::Filter::default()).then_some(filter)
    }
}

impl Agent {
    pub(crate) async fn run(self) -> Outcome {
        match self {
            Self::Run(configured) => run_agent(&configured.load()?, || configured.load()).await,
            Self::Validate(configured) => {
                configured.load()?;
                output::line("Countersign agent configuration file is valid.");
                Ok(())
            }
            Self::List(command) => list(command).await,
            Self::Show(command) => show_one(command).await,
            Self::Count(command) => count(command).await,
            Self::Ban(command) => {
                let mut client = AgentClient::new(command.socket.connect().await?);
                client.ban_agent(agent::BanAgentRequest { id: Some(id::to_wire(&command.spiffe_id)) }).await?;
                command.output.show(|| json!({}), || "Agent banned successfully\n".to_owned());
                Ok(())
            }
            Self::Evict(command) => {
                let mut client = AgentClient::new(command.socket.connect().await?);
                client.delete_agent(agent::DeleteAgentRequest { id: Some(id::to_wire(&command.spiffe_id)) }).await?;
                command.output.show(|| json!({}), || "Agent evicted successfully\n".to_owned());
                Ok(())
            }
            Self::Purge(command) => purge(command).await,
        }
    }
}

pub(crate) async fn all(
    client: &mut AgentClient<Channel>,
    filter: Option<list_agents_request::Filter>,
) -> Result<Vec<types::Agent>, tonic::Status> {
    let progress = Progress::counting("reading agents");
    let mut agents = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = agent::ListAgentsRequest { filter: filter.clone(), output_mask: None, page_size: PAGE, page_token };
        let page = client.list_agents(request).await?.into_inner();
        progress.advance(page.agents.len());
        agents.extend(page.agents);
        page_token = page.next_page_token;
        // A page may be shorter than asked for; the last one has no token.
        if page_token.is_empty() {
            return Ok(agents);
        }
    }
}

async fn list(command: List) -> Outcome {
    let mut client = AgentClient::new(command.socket.connect().await?);
    let agents = all(&mut client, command.filter()).await?;
    command.output.show(
        || json!({"agents": agents.iter().map(show::agent_json).collect::<Vec<_>>()}),
        || {
            if agents.is_empty() {
                return "No attested agents found\n".to_owned();
            }
            let head = format!("Found {}:\n\n", output::count(agents.len(), "attested agent", "attested agents"));
            agents.iter().fold(head, |text, agent| text + &show::agent(agent, false, output::time))
        },
    );
    Ok(())
}

/// The filter of a list, for counting.
pub(crate) fn count_filter(filter: list_agents_request::Filter) -> agent::count_agents_request::Filter {
    let list_agents_request::Filter { by_attestation_type, by_selector_match, by_banned, by_can_reattest, by_expires_before } = filter;
    agent::count_agents_request::Filter { by_attestation_type, by_selector_match, by_banned, by_can_reattest, by_expires_before }
}

async fn count(command: List) -> Outcome {
    let mut client = AgentClient::new(command.socket.connect().await?);
    let filter = command.filter().map(count_filter);
    let count = client.count_agents(agent::CountAgentsRequest { filter }).await?.into_inner().count;
    let number = usize::try_from(count).unwrap_or(0);
    command.output.show(|| json!({"count": count}), || format!("{}\n", output::count(number, "attested agent", "attested agents")));
    Ok(())
}

async fn show_one(command: One) -> Outcome {
    let mut client = AgentClient::new(command.socket.connect().await?);
    let request = agent::GetAgentRequest { id: Some(id::to_wire(&command.spiffe_id)), output_mask: None };
    let found = client.get_agent(request).await?.into_inner();
    command.output.show(
        || show::agent_json(&found),
        || format!("Found an attested agent given its SPIFFE ID\n\n{}", show::agent(&found, true, output::time)),
    );
    Ok(())
}

async fn purge(command: Purge) -> Outcome {
    let mut client = AgentClient::new(command.socket.connect().await?);
    let now = time::OffsetDateTime::now_utc();
    let before = (now - Duration::from_secs(command.expired_for_hours.saturating_mul(3600))).unix_timestamp();
    let filter = list_agents_request::Filter { by_can_reattest: Some(true), ..list_agents_request::Filter::default() };
    let mut ended = all(&mut client, Some(filter)).await?;
    ended.retain(|a| a.x509svid_expires_at < before);
    let mut rows = Vec::new();
    let mut shown = if ended.is_empty() {
        "No agents to purge.\n".to_owned()
    } else {
        format!("Found {}\n\n", output::count(ended.len(), "expired agent", "expired agents"))
    };
    if !ended.is_empty() {
        shown += if command.dry_run { "Agents that can be purged:\n" } else { "Agents purged:\n" };
    }
    let mut failed = false;
    let progress = Progress::of("evicting agents", ended.len());
    for agent in &ended {
        progress.advance(1);
        let name = show::spiffe_id(agent.id.as_ref());
        let mut error = String::new();
        if !command.dry_run
            && let Err(status) = client.delete_agent(agent::DeleteAgentRequest { id: agent.id.clone() }).await
        {
            failed = true;
            status.message().clone_into(&mut error);
            progress.aside(|| output::note(&format!("Could not purge {name}: {error}")));
        } else {
            shown += &format!("SPIFFE ID         : {name}\n");
        }
        rows.push(json!({"agent_id": name, "deleted": !command.dry_run && error.is_empty(), "error": error}));
    }
    drop(progress);
    command.output.show(|| json!({"expired_agents": rows}), || shown);
    if failed { Err(Failure::new("failed to purge one or more agents")) } else { Ok(()) }
}
