//! `countersign entry explain`: what has become of an entry, as the server sees it.

use std::fmt::Write as _;

use clap::Args;
use countersign_identity::Timestamp;
use countersign_transport::clock::{Clock as _, SystemClock};
use countersign_wire::explained::entry_explainer_client::EntryExplainerClient;
use countersign_wire::explained::{AgentStanding, AgentState, Cause, ExplainEntryRequest, ExplainEntryResponse, Finding};
use serde_json::{Value, json};

use super::explain::{ago, left};
use super::show;
use crate::client::ServerSocket;
use crate::output::{Failure, Outcome, OutputArgs, clean, count, time};

/// `countersign entry explain`
#[derive(Debug, Args)]
pub(crate) struct ExplainEntry {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// The entry's ID
    #[arg(value_name = "ID")]
    id: String,
}

impl ExplainEntry {
    pub(super) async fn run(self) -> Outcome {
        let answer = self.ask().await.map_err(Failure::unanswered)?;
        self.output.show(|| to_json(&answer), || told(&answer, SystemClock.now()));
        if number(&answer, AgentState::HasIt) > 0 || answer.holders > 0 { Ok(()) } else { Err(Failure::no()) }
    }

    async fn ask(&self) -> Result<ExplainEntryResponse, Failure> {
        let request = ExplainEntryRequest { id: self.id.clone() };
        Ok(EntryExplainerClient::new(self.socket.connect().await?).explain_entry(request).await?.into_inner())
    }
}

fn number(answer: &ExplainEntryResponse, state: AgentState) -> usize {
    let count = answer.counts.iter().find(|c| c.state() == state).map_or(0, |c| c.count);
    usize::try_from(count).unwrap_or(usize::MAX)
}

const STATES: [(AgentState, &str); 5] = [
    (AgentState::HasIt, "have it"),
    (AgentState::Behind, "are behind"),
    (AgentState::NotConnected, "are not connected"),
    (AgentState::Banned, "are banned"),
    (AgentState::SvidEnded, "have to attest again"),
];

fn told(answer: &ExplainEntryResponse, now: Timestamp) -> String {
    let mut text = String::new();
    let mut line = |indent: usize, what: &str| {
        let _ = writeln!(text, "{:indent$}{}", "", clean(what));
    };
    let entry = answer.entry.clone().unwrap_or_default();
    let holders = usize::try_from(answer.holders).unwrap_or(usize::MAX);
    let all = answer.counts.iter().map(|c| usize::try_from(c.count).unwrap_or(0)).sum::<usize>();
    let has_it = number(answer, AgentState::HasIt);
    line(0, &format!("Entry {}: {}", entry.id, show::spiffe_id(entry.spiffe_id.as_ref())));
    line(2, &format!("below {}, for {}", show::spiffe_id(entry.parent_id.as_ref()), selectors(&entry.selectors)));
    let since =
        if answer.revision == 0 { "since before this server started".to_owned() } else { format!("since revision {}", answer.revision) };
    line(2, &format!("as it is {since}; the newest revision is {}", answer.head));
    line(0, "");
    match (has_it, all) {
        (_, 0) => line(0, "No agent gets it."),
        (1, 1) => line(0, "The one agent it is for has it as it is."),
        (_, 1) => line(0, "The one agent it is for does not have it as it is."),
        _ => line(0, &format!("{has_it} of the {all} agents it is for have it as it is.")),
    }
    let until = if answer.held_until == 0 {
        String::new()
    } else {
        format!(", the last until {}{}", time(answer.held_until), left(answer.held_until, now))
    };
    let least = if answer.holders_incomplete { "at least " } else { "" };
    match holders {
        0 => line(0, "Nobody holds an X509-SVID of it that this server issued."),
        _ => line(
            0,
            &format!(
                "{least}{} an X509-SVID of it{until}.",
                if holders == 1 { "1 agent holds".to_owned() } else { format!("{holders} agents hold") }
            ),
        ),
    }
    if answer.holders_incomplete {
        line(2, "The journal has more records than are read for this, or is damaged: see `countersign log issued`.");
    }
    if !answer.findings.is_empty() {
        line(0, "");
        line(0, "What is in the way, or good to know:");
    }
    for finding in &answer.findings {
        for (index, part) in words(finding, answer).iter().enumerate() {
            line(if index == 0 { 2 } else { 4 }, part);
        }
    }
    if !answer.agents.is_empty() {
        line(0, "");
        let parts: Vec<String> = STATES
            .iter()
            .filter_map(|(state, words)| Some((number(answer, *state), words)).filter(|(n, _)| *n > 0))
            .map(|(n, words)| format!("{n} {words}"))
            .collect();
        line(0, &format!("Agents ({}):", parts.join(", ")));
    }
    for agent in &answer.agents {
        line(2, &agent.spiffe_id);
        line(6, &standing(agent, now));
        if agent.svid_held_until != 0 {
            let until = time(agent.svid_held_until);
            line(
                6,
                &format!("holds an SVID until {until}{}, serial number {}", left(agent.svid_held_until, now), agent.svid_serial_number),
            );
        }
    }
    if answer.agents_left_out > 0 {
        line(2, &format!("and {} more", answer.agents_left_out));
    }
    text
}

fn selectors(selectors: &[countersign_wire::types::Selector]) -> String {
    selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect::<Vec<_>>().join(" ")
}

fn standing(agent: &AgentStanding, now: Timestamp) -> String {
    let heard = match agent.last_heard {
        0 => "never heard of since the server remembers".to_owned(),
        at => format!("last heard of at {}{}", time(at), ago(at, now)),
    };
    let how_far = format!("applied revision {}, on disk {}, told to its workloads {}", agent.applied, agent.persisted, agent.delivered);
    match agent.state() {
        AgentState::HasIt => format!("has it; {how_far}"),
        AgentState::Behind => format!("BEHIND by {}; {how_far}; {heard}", revisions(agent.behind)),
        AgentState::NotConnected => format!("NOT CONNECTED (an agent of SPIRE's never is, it polls); {heard}"),
        AgentState::Banned => format!("BANNED; {heard}; `countersign agent evict` lets it join again"),
        AgentState::SvidEnded => format!("ITS SVID HAS ENDED, it has to attest again; {heard}"),
        AgentState::Unknown => heard,
    }
}

fn revisions(number: u64) -> String {
    if number == 1 { "1 revision".to_owned() } else { format!("{number} revisions") }
}

/// A finding in words, and what to do.
fn words(finding: &Finding, answer: &ExplainEntryResponse) -> Vec<String> {
    let id = answer.entry.as_ref().map_or("", |e| e.id.as_str());
    let agents = |n: u32| count(usize::try_from(n).unwrap_or(usize::MAX), "agent", "agents");
    let similar = |what: &str| match finding.similar.as_str() {
        "" => "Nothing there is has a similar name; see `countersign agent list` and `countersign entry show`.".to_owned(),
        near => format!("Did you mean {near}, {what}? Change it with `countersign entry update --entry-id {id}`."),
    };
    match finding.cause() {
        Cause::Expired => vec![format!("The entry has ended, at {}; nobody gets an SVID of it any more.", time(finding.at))],
        Cause::ParentUnknown => {
            vec![
                format!("Nothing has the SPIFFE ID {}, below which it hangs: no agent and no other entry.", finding.subject),
                similar("which something has"),
            ]
        }
        Cause::AgentNotAttested => {
            vec![format!("The agent {} has never attested, or was evicted.", finding.subject), similar("which has attested")]
        }
        Cause::AliasUnsatisfied => {
            let mut said = vec![format!("No agent has all selectors of the alias {}.", finding.subject)];
            said.extend(
                (!finding.similar.is_empty()).then(|| format!("The nearest, {}, lacks {}.", finding.similar, selectors(&finding.missing))),
            );
            said
        }
        Cause::AllAgentsUnavailable => vec![format!("None of the {} it is for is connected.", agents(finding.count))],
        Cause::AgentsBehind => vec![format!(
            "{} to acknowledge it as it is; it takes milliseconds unless something is wrong there.",
            match finding.count {
                1 => "1 agent has yet".to_owned(),
                n => format!("{n} agents have yet"),
            }
        )],
        Cause::IsAlias => vec!["It names agents, for other entries to hang below; no workload gets an SVID of it.".to_owned()],
        Cause::Stored => vec!["Its SVIDs go to a store (storeSvid), not to workloads.".to_owned()],
        Cause::NotAskedFor => vec![
            "Nothing is in the way. An SVID is issued when a workload asks, or in advance while the agent has room.".to_owned(),
            "If a workload asks in vain, see on its node: countersign explain --pid N".to_owned(),
        ],
        Cause::ParentCircle => vec!["What it hangs below leads back to itself and never to an agent.".to_owned()],
        Cause::None => Vec::new(),
    }
}

/// Names are those of the protocol; they stay.
fn to_json(answer: &ExplainEntryResponse) -> Value {
    json!({
        "entry": answer.entry.as_ref().map(show::entry_json),
        "revision": answer.revision.to_string(),
        "head": answer.head.to_string(),
        "agents": answer.agents.iter().map(|a| json!({
            "spiffe_id": a.spiffe_id,
            "state": a.state().as_str_name(),
            "applied": a.applied.to_string(),
            "persisted": a.persisted.to_string(),
            "delivered": a.delivered.to_string(),
            "behind": a.behind.to_string(),
            "last_heard": a.last_heard.to_string(),
            "svid_held_until": a.svid_held_until.to_string(),
            "svid_serial_number": a.svid_serial_number,
        })).collect::<Vec<_>>(),
        "agents_left_out": answer.agents_left_out,
        "counts": answer.counts.iter().map(|c| json!({"state": c.state().as_str_name(), "count": c.count})).collect::<Vec<_>>(),
        "holders": answer.holders,
        "held_until": answer.held_until.to_string(),
        "holders_incomplete": answer.holders_incomplete,
        "findings": answer.findings.iter().map(|f| json!({
            "cause": f.cause().as_str_name(),
            "subject": f.subject,
            "similar": f.similar,
            "missing": show::selectors_json(&f.missing),
            "count": f.count,
            "at": f.at.to_string(),
        })).collect::<Vec<_>>(),
    })
}
