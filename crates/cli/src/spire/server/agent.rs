//! `spire-server agent …`

use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::{
    BanAgentRequest, CountAgentsRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsResponse, list_agents_request,
};
use countersign_wire::types;
use serde::Serialize;
use tonic::transport::Channel;

use super::super::command::{answer, refused};
use super::super::connect::Target;
use super::super::flags::{Flag, Given, Kind, flag};
use super::super::go;
use super::{entry, selector, wire_id, within};
use crate::commands::{agent, show};
use crate::output::{self, Failure, Outcome};

const EMPTY: &str = "google.protobuf.Empty";

pub(super) const ONE: &[Flag] = &[flag("spiffeID", Kind::Text, "SPIFFE ID of the agent.")];
pub(super) const FILTER: &[Flag] = &[
    flag("selector", Kind::Texts, "Only agents with this selector, type:value; repeat for more."),
    flag("attestationType", Kind::Text, "Only agents attested in this way, for example join_token."),
    flag("canReattest", Kind::Choice, "true: only agents that can attest again; false: only others."),
    flag("banned", Kind::Choice, "true: only banned agents; false: only others."),
    flag("expiresBefore", Kind::Text, "Only agents whose SVID ends before this time, as 2006-01-02 15:04:05 -0700 -07."),
    Flag {
        name: "matchSelectorsOn",
        kind: Kind::Text,
        default: "superset",
        help: "How the selectors given relate to those of an agent: exact, any, superset or subset.",
    },
];
pub(super) const PURGE: &[Flag] = &[
    Flag { name: "expiredFor", kind: Kind::Duration, default: "720h0m0s", help: "How long the SVID of an agent has to be over." },
    flag("dryRun", Kind::Switch, "Only show what would be evicted."),
];

const TIME_LAYOUT: &str = "2006-01-02 15:04:05 -0700 -07";

/// Whether a time is written in the layout; its last word repeats the zone.
fn is_time(text: &str) -> bool {
    const FORMAT: &[time::format_description::BorrowedFormatItem<'_>] =
        time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]");
    text.rsplit_once(' ').is_some_and(|(text, zone)| zone.len() == 3 && time::OffsetDateTime::parse(text, FORMAT).is_ok())
}

async fn client(target: &Target, before: &str) -> Result<AgentClient<Channel>, Failure> {
    Ok(AgentClient::new(target.connect().await.map_err(refused(before))?))
}

/// The agent that is meant, and a client.
async fn one(given: &Given) -> Result<(types::Spiffeid, AgentClient<Channel>), Failure> {
    let target = Target::server(given)?;
    match given.text("spiffeID") {
        "" => Err(Failure::new("a SPIFFE ID is required")),
        id => Ok((wire_id(id)?, client(&target, "").await?)),
    }
}

pub(super) async fn ban(given: Given) -> Outcome {
    let (id, mut client) = one(&given).await?;
    client.ban_agent(BanAgentRequest { id: Some(id) }).await.map_err(refused(""))?;
    answer(&given, EMPTY, &(), |()| said("Agent banned successfully"))
}

pub(super) async fn evict(given: Given) -> Outcome {
    let (id, mut client) = one(&given).await?;
    client.delete_agent(DeleteAgentRequest { id: Some(id) }).await.map_err(refused(""))?;
    answer(&given, EMPTY, &(), |()| said("Agent evicted successfully"))
}

fn said(text: &str) -> Outcome {
    output::line(text);
    Ok(())
}

pub(super) async fn show_one(given: Given) -> Outcome {
    let (id, mut client) = one(&given).await?;
    let agent = client.get_agent(GetAgentRequest { id: Some(id), output_mask: None }).await.map_err(refused(""))?.into_inner();
    answer(&given, "spire.api.types.Agent", &agent, |m| {
        output::text(&format!("Found an attested agent given its SPIFFE ID\n\n{}", show::agent(m, true, go::time)));
        Ok(())
    })
}

fn filter(given: &Given) -> Result<list_agents_request::Filter, Failure> {
    let mut by_selector_match = None;
    if !given.texts("selector").is_empty() {
        let r#match = entry::match_number(given.text("matchSelectorsOn")).map_err(|_| Failure::new("unsupported match behavior"))?;
        let parse = |s: &String| selector(s).map_err(within(&format!("error parsing selector {}", go::quoted(s))));
        by_selector_match =
            Some(types::SelectorMatch { selectors: given.texts("selector").iter().map(parse).collect::<Result<_, _>>()?, r#match });
    }
    let before = given.text("expiresBefore");
    if !before.is_empty() && !is_time(before) {
        let quoted = go::quoted(before);
        return Err(Failure::new(format!(
            "date is not valid: parsing time {quoted} as \"{TIME_LAYOUT}\": cannot parse {quoted} as \"2006\""
        )));
    }
    Ok(list_agents_request::Filter {
        by_attestation_type: given.text("attestationType").to_owned(),
        by_selector_match,
        by_banned: given.choice("banned"),
        by_can_reattest: given.choice("canReattest"),
        by_expires_before: before.to_owned(),
    })
}

pub(super) async fn list(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let filter = filter(&given)?;
    let agents = agent::all(&mut client(&target, "").await?, Some(filter)).await.map_err(refused(""))?;
    answer(&given, "spire.api.server.agent.v1.ListAgentsResponse", &ListAgentsResponse { agents, next_page_token: String::new() }, |m| {
        if m.agents.is_empty() {
            return said("No attested agents found");
        }
        let head = format!("Found {}:\n\n", output::count(m.agents.len(), "attested agent", "attested agents"));
        output::text(&m.agents.iter().fold(head, |text, agent| text + &show::agent(agent, false, go::time)));
        Ok(())
    })
}

pub(super) async fn count(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let request = CountAgentsRequest { filter: Some(agent::count_filter(filter(&given)?)) };
    let response = client(&target, "").await?.count_agents(request).await.map_err(refused(""))?.into_inner();
    answer(&given, "spire.api.server.agent.v1.CountAgentsResponse", &response, |m| {
        said(&output::count(usize::try_from(m.count).unwrap_or_default(), "attested agent", "attested agents"))
    })
}

#[derive(Debug, Serialize)]
struct Purged {
    expired_agents: Vec<PurgedAgent>,
}

#[derive(Debug, Serialize)]
struct PurgedAgent {
    agent_id: String,
    deleted: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

pub(super) async fn purge(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let dry_run = given.is_on("dryRun");
    let mut client = client(&target, "failed to list agents").await?;
    let filter = list_agents_request::Filter { by_can_reattest: Some(true), ..list_agents_request::Filter::default() };
    let agents = agent::all(&mut client, Some(filter)).await.map_err(refused("failed to list agents"))?;
    let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
    let is_over = |a: &types::Agent| now - i128::from(a.x509svid_expires_at) * 1_000_000_000 > i128::from(given.number("expiredFor"));
    let mut purged = Purged { expired_agents: Vec::new() };
    for agent in agents.into_iter().filter(is_over) {
        let agent_id = show::spiffe_id(agent.id.as_ref());
        let error = match dry_run {
            true => String::new(),
            false => client.delete_agent(DeleteAgentRequest { id: agent.id }).await.err().map(|s| go::status(&s)).unwrap_or_default(),
        };
        purged.expired_agents.push(PurgedAgent { agent_id, deleted: !dry_run && error.is_empty(), error });
    }
    if given.is_json() {
        go::json(&purged).print_line();
    } else {
        output::text(&purged_text(&purged.expired_agents, dry_run));
    }
    Ok(())
}

fn purged_text(agents: &[PurgedAgent], dry_run: bool) -> String {
    if agents.is_empty() {
        return "No agents to purge.\n".to_owned();
    }
    let mut text = format!("Found {}\n\n", output::count(agents.len(), "expired agent", "expired agents"));
    let row = |a: &PurgedAgent| format!("SPIFFE ID         : {}\n", output::clean(&a.agent_id));
    if dry_run {
        text += "\nAgents that can be purged:\n";
        return agents.iter().fold(text, |text, a| text + &row(a));
    }
    let (done, not): (Vec<_>, Vec<_>) = agents.iter().partition(|a| a.deleted);
    if !done.is_empty() {
        text = done.into_iter().fold(text + "Agents purged:\n", |text, a| text + &row(a));
    }
    if !not.is_empty() {
        let error = |a: &PurgedAgent| format!("Error             : {}\n", output::clean(&a.error));
        text = not.into_iter().fold(text + "Agents not purged:\n", |text, a| text + &row(a) + &error(a));
    }
    text
}
