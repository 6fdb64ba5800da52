//! `countersign explain`: why a process gets the identities it gets, or none, as its agent sees it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use countersign_identity::{Selector, SpiffeId, Timestamp, TrustDomain};
use countersign_transport::clock::{Clock as _, SystemClock};
use countersign_wire::agent_admin::admin_client::AdminClient;
use countersign_wire::agent_admin::explain_request::Subject;
use countersign_wire::agent_admin::{Conclusion, EntryName, ExplainRequest, ExplainResponse, MatchingEntry, NearEntry, SelectorSet};
use countersign_wire::{id, types};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::show;
use crate::client::AdminSocket;
use crate::output::{Failure, Outcome, OutputArgs, clean, count, time};

/// `countersign explain`
#[derive(Debug, Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    socket: AdminSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// The process, by its number on the agent's node [default: this very command, which shows what you get]
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// A selector instead of a process, type:value; repeat for more
    #[arg(long = "selector", value_name = "TYPE:VALUE", conflicts_with = "pid")]
    selectors: Vec<Selector>,
    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

impl Explain {
    pub(crate) async fn run(self) -> Outcome {
        let answer = self.ask().await.map_err(Failure::unanswered)?;
        let asked = Asked { itself: self.pid.is_none() && self.selectors.is_empty(), now: SystemClock.now() };
        self.output.show(|| to_json(&answer), || told(&answer, asked));
        if answer.conclusion() == Conclusion::HasIdentity { Ok(()) } else { Err(Failure::no()) }
    }

    async fn ask(&self) -> Result<ExplainResponse, Failure> {
        let subject = match (self.pid, self.selectors.as_slice()) {
            (Some(pid), _) => Some(Subject::Pid(pid)),
            (None, []) => None,
            (None, selectors) => Some(Subject::Selectors(SelectorSet { selectors: id::selectors_to_wire(selectors) })),
        };
        let mut request = tonic::Request::new(ExplainRequest { subject });
        request.set_timeout(Duration::from_secs(self.timeout));
        let answer = AdminClient::new(self.socket.connect().await?).explain(request).await;
        Ok(answer.map_err(refused)?.into_inner())
    }
}

fn refused(status: Status) -> Failure {
    let hint = match status.code() {
        Code::PermissionDenied => "; use sudo, or leave out --pid and --selector to ask about yourself",
        Code::NotFound => {
            "; for a program that ends at once, look up its number in the agent's log (`No identity issued`) soon after, \
             or ask about its selectors with --selector"
        }
        Code::Unimplemented => "; is this the admin socket of an agent?",
        Code::Cancelled | Code::DeadlineExceeded => "; the agent takes long, raise --timeout",
        _ => "",
    };
    Failure::new(format!("{}{hint}", status.message()))
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    itself: bool,
    now: Timestamp,
}

/// The answer as somebody reads it who was woken for it: the verdict first, what to do last.
fn told(answer: &ExplainResponse, asked: Asked) -> String {
    let mut text = String::new();
    let mut line = |indent: usize, what: &str| {
        let _ = writeln!(text, "{:indent$}{}", "", clean(what));
    };
    line(0, &verdict(answer));
    line(0, "");
    if let Some(process) = &answer.process {
        let program = if process.program.is_empty() { "program not visible" } else { &process.program };
        let program = if process.has_ended { "has ended; what follows is what the agent remembers of it" } else { program };
        line(0, &format!("Process: pid {}, uid {}, gid {}, {program}", process.pid, process.uid, process.gid));
        if asked.itself && !process.has_ended {
            line(2, "This is the command you see. Programs you start get the same, but for selectors that name the program.");
        }
    }
    if let Some(denial) = &answer.last_denial {
        let whose = if answer.process.as_ref().is_some_and(|p| p.uid == denial.uid) { "It" } else { "A process of this number" };
        line(2, &format!("{whose} was denied last at {}{}.", time(denial.at), ago(denial.at, asked.now)));
    }
    if !answer.attestors.is_empty() {
        line(0, "Attestors:");
    }
    for attestor in &answer.attestors {
        let took = format!("{:.1} ms", Duration::from_micros(attestor.took_micros).as_secs_f64() * 1000.0);
        let found = usize::try_from(attestor.selectors).unwrap_or(usize::MAX);
        let said = if attestor.error.is_empty() {
            format!("found {} in {took}", count(found, "selector", "selectors"))
        } else {
            format!("FAILED after {took}: {}", attestor.error)
        };
        line(2, &format!("{}: {said}", attestor.name));
    }
    line(0, "Selectors:");
    for selector in &answer.selectors {
        line(2, &format!("{}:{}", selector.r#type, selector.value));
    }
    and_more(&mut line, answer.selectors_left_out, answer.selectors.is_empty());
    line(0, "Entries that match:");
    for matching in &answer.matching {
        entry_lines(&mut line, matching.entry.as_ref());
        line(6, &held(matching, asked.now));
    }
    and_more(&mut line, answer.matching_left_out, answer.matching.is_empty());
    line(0, "Nearest entries that do not match:");
    for near in &answer.nearest {
        entry_lines(&mut line, near.entry.as_ref());
        line(6, &lacks(near));
    }
    and_more(&mut line, answer.nearest_left_out, answer.nearest.is_empty());
    server_lines(&mut line, answer, asked.now);
    line(0, "");
    for what in advice(answer) {
        line(0, &what);
    }
    text
}

fn and_more(line: &mut impl FnMut(usize, &str), left_out: u32, is_empty: bool) {
    match (left_out, is_empty) {
        (0, true) => line(2, "(none)"),
        (0, false) => {}
        (more, true) => line(2, &format!("(none to show, {more} others)")),
        (more, false) => line(2, &format!("and {more} more")),
    }
}

fn entry_lines(line: &mut impl FnMut(usize, &str), entry: Option<&EntryName>) {
    let Some(entry) = entry else { return };
    let hint = if entry.hint.is_empty() { String::new() } else { format!(" ({})", entry.hint) };
    line(2, &format!("{}{hint}", entry.spiffe_id));
    line(6, &format!("entry {}, below {}", entry.id, entry.parent_id));
}

fn held(matching: &MatchingEntry, now: Timestamp) -> String {
    if !matching.hidden_by.is_empty() {
        return format!("not given: entry {} is older and has the same hint", matching.hidden_by);
    }
    let trouble = if matching.failure.is_empty() {
        String::new()
    } else {
        let next = match (matching.in_flight, matching.next_attempt_secs) {
            (true, _) => "being tried again now".to_owned(),
            (false, 0) => "tried again when a program asks".to_owned(),
            (false, secs) => format!("tried again in {secs} s"),
        };
        let attempts = usize::try_from(matching.failed_attempts).unwrap_or(usize::MAX).max(1);
        format!("{} failed, the last with: {}; {next}", count(attempts, "attempt", "attempts"), matching.failure)
    };
    match (matching.svid_expires_at, trouble.as_str(), matching.in_flight) {
        (0, "", true) => "no SVID yet, the server is being asked".to_owned(),
        (0, "", false) => "no SVID is held; one is fetched when the program asks".to_owned(),
        (0, trouble, _) => format!("no SVID: {trouble}"),
        (end, "", _) => format!("SVID until {}{}", time(end), left(end, now)),
        (end, trouble, _) => format!("SVID until {}{}, and its renewal: {trouble}", time(end), left(end, now)),
    }
}

fn lacks(near: &NearEntry) -> String {
    if near.missing.is_empty() {
        return match (near.expired_at, near.store_svid) {
            (0, true) => "has all selectors, but the entry's SVIDs go to a store (storeSvid)".to_owned(),
            (0, false) => "has all selectors".to_owned(),
            (end, _) => format!("has all selectors, but the entry has ended at {}", time(end)),
        };
    }
    let missing: Vec<String> = near.missing.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect();
    let more = if near.missing_left_out > 0 { format!(" and {} more", near.missing_left_out) } else { String::new() };
    let ended = if near.expired_at == 0 { String::new() } else { format!("; the entry has ended too, at {}", time(near.expired_at)) };
    format!("lacks {}{more}{ended}", missing.join(", "))
}

fn server_lines(line: &mut impl FnMut(usize, &str), answer: &ExplainResponse, now: Timestamp) {
    let (server, agent) = (answer.server.clone().unwrap_or_default(), answer.agent.clone().unwrap_or_default());
    line(0, "Server:");
    let state = if server.connected { "connected" } else { "NOT CONNECTED" };
    line(2, &format!("{}: {state} since {}{}", server.address, time(server.since), ago(server.since, now)));
    if server.last_contact != 0 {
        line(2, &format!("last heard of at {}{}", time(server.last_contact), ago(server.last_contact, now)));
    }
    if !server.last_error.is_empty() {
        line(2, &format!("last error, at {}{}: {}", time(server.last_error_at), ago(server.last_error_at, now), server.last_error));
    }
    line(0, "Agent:");
    if agent.spiffe_id.is_empty() {
        line(2, "has no identity of its own yet");
        return;
    }
    line(2, &format!("{} until {}{}", agent.spiffe_id, time(agent.svid_expires_at), left(agent.svid_expires_at, now)));
    let (entries, svids) = (usize::try_from(agent.entries).unwrap_or(0), usize::try_from(agent.svids_held).unwrap_or(0));
    let known = if agent.entries_known { "" } else { ", and does not know yet whether that is all" };
    line(
        2,
        &format!(
            "knows {} at revision {}{known}; holds {}",
            count(entries, "entry", "entries"),
            server.revision,
            count(svids, "SVID", "SVIDs")
        ),
    );
}

fn given(answer: &ExplainResponse) -> impl Iterator<Item = &MatchingEntry> {
    answer.matching.iter().filter(|m| m.hidden_by.is_empty())
}

fn verdict(answer: &ExplainResponse) -> String {
    let who = match &answer.process {
        Some(process) if process.has_ended => format!("Process {}, if it ran again,", process.pid),
        Some(process) => format!("Process {}", process.pid),
        None => "A process with these selectors".to_owned(),
    };
    match answer.conclusion() {
        Conclusion::HasIdentity => {
            // What the server was asked for in vain is an entry and no identity.
            let had = given(answer).filter(|m| m.svid_expires_at != 0 || m.failure.is_empty());
            let all = had.count() + usize::try_from(answer.matching_left_out).unwrap_or(0);
            format!("{who} gets {}.", count(all, "identity", "identities"))
        }
        Conclusion::NoMatchingEntry => format!("{who} gets no identity: no entry on this node matches."),
        Conclusion::IssuanceFailed => format!("{who} gets no identity now: the server was asked for its SVID and gave none."),
        Conclusion::ServerUnreachable => format!("{who} gets no identity now: no SVID is held, and the server is not reachable."),
        Conclusion::AttestationFailed => format!("{who} gets no identity: no attestor could say anything about it."),
        Conclusion::AgentNotJoined => format!("{who} gets no identity: the agent itself has none."),
        Conclusion::EntriesUnknown => format!("{who} has to wait: the agent has not heard yet which entries there are."),
        Conclusion::Unknown => format!("{who}: the agent gives an answer that this program does not know; are they of one version?"),
    }
}

/// What to do, in plain words.
fn advice(answer: &ExplainResponse) -> Vec<String> {
    let server = answer.server.clone().unwrap_or_default();
    let reach = |what: &str| {
        let error = if server.last_error.is_empty() { "" } else { " (the last error is above)" };
        format!("What to do: {what} {}{error}.", server.address)
    };
    match answer.conclusion() {
        Conclusion::HasIdentity => {
            let mut said = vec!["What to do: nothing.".to_owned()];
            if let Some(entry) = given(answer).find(|m| !m.failure.is_empty()).and_then(|m| m.entry.as_ref()) {
                said = vec![format!("What to do: see above why the SVID of {} cannot be had or renewed.", entry.spiffe_id)];
            }
            said
        }
        Conclusion::NoMatchingEntry => no_entry_advice(answer),
        Conclusion::IssuanceFailed => {
            let entry = given(answer).find_map(|m| m.entry.as_ref()).map(|e| e.id.clone()).unwrap_or_default();
            vec![
                "What to do: go by the server's reason above. What the server knows of the entry, asked on the server:".to_owned(),
                format!("  countersign entry explain {entry}"),
            ]
        }
        Conclusion::ServerUnreachable => vec![reach("bring the server back, or mend the way to")],
        Conclusion::AttestationFailed => {
            vec!["What to do: see above why each attestor failed; their plugins are in the agent's configuration.".to_owned()]
        }
        Conclusion::AgentNotJoined => vec![reach("let the agent join; it goes on trying by itself at")],
        Conclusion::EntriesUnknown => vec![reach("wait a moment; if that does not help, mend the way to")],
        Conclusion::Unknown => Vec::new(),
    }
}

fn no_entry_advice(answer: &ExplainResponse) -> Vec<String> {
    let mut said = Vec::new();
    if let Some(over) = answer.nearest.iter().find(|n| n.missing.is_empty() && n.expired_at != 0).and_then(|n| n.entry.as_ref()) {
        said.push(format!("What to do: entry {} would match and has ended; give it a later end with `countersign entry update`.", over.id));
        said.push("Or create another entry, on the server:".to_owned());
    } else {
        said.push("What to do: create an entry, on the server:".to_owned());
    }
    let agent = answer.agent.clone().unwrap_or_default();
    let parent = [agent.usual_parent_id.as_str(), agent.spiffe_id.as_str()].into_iter().find(|p| !p.is_empty()).unwrap_or("<PARENT ID>");
    let wanted: Vec<String> =
        telling(answer).iter().map(|s| format!("--selector {}", quoted(&format!("{}:{}", s.r#type, s.value)))).collect();
    let program = answer.process.as_ref().map_or("", |p| p.program.as_str());
    said.push(format!("  countersign entry create --parent-id {parent} \\"));
    said.push(format!("    --spiffe-id {} {}", suggested_id(&agent.spiffe_id, program), wanted.join(" ")));
    if let Some(near) = answer.nearest.iter().find(|n| n.missing.len() == 1 && n.missing_left_out == 0 && n.expired_at == 0 && n.shared > 0)
        && let Some(entry) = &near.entry
    {
        said.push(format!("Or mend entry {} ({}), if it is meant for this program: it {}.", entry.id, entry.spiffe_id, lacks(near)));
    }
    said
}

/// The selectors an entry for this process would have: the user, and the program where it is attested. Of selectors that
/// were asked about, all.
fn telling(answer: &ExplainResponse) -> Vec<types::Selector> {
    let selectors = &answer.selectors;
    if answer.process.is_none() {
        return selectors.clone();
    }
    let of = |prefix: &str| selectors.iter().find(|s| s.r#type == "unix" && s.value.starts_with(prefix)).cloned();
    let found: Vec<types::Selector> = [of("uid:"), of("path:")].into_iter().flatten().collect();
    if found.is_empty() { selectors.first().cloned().into_iter().collect() } else { found }
}

/// A SPIFFE ID named after the program, in the agent's trust domain.
fn suggested_id(agent: &str, program: &str) -> String {
    let domain = SpiffeId::parse(agent).map(|id| id.trust_domain()).or_else(|_| TrustDomain::parse("example.org"));
    let name = Path::new(program).file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let name = if name == "countersign" { "" } else { name };
    let named = |name: &str| domain.as_ref().ok().and_then(|domain| domain.with_path(&format!("/{name}")).ok());
    named(name).or_else(|| named("my-program")).map(|id| id.to_string()).unwrap_or_default()
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c));
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

fn span(length: Duration) -> String {
    match length.as_secs() {
        secs @ 0..120 => format!("{secs} s"),
        secs @ 120..7200 => format!("{} min", secs / 60),
        secs @ 7200..172_800 => format!("{} h", secs / 3600),
        secs => format!("{} days", secs / 86_400),
    }
}

pub(super) fn ago(secs: i64, now: Timestamp) -> String {
    let then = Timestamp::from_secs(secs);
    if then > now { String::new() } else { format!(" ({} ago)", span(now.since(then))) }
}

pub(super) fn left(secs: i64, now: Timestamp) -> String {
    let end = Timestamp::from_secs(secs);
    if end <= now { " (over)".to_owned() } else { format!(" (in {})", span(end.since(now))) }
}

fn name_json(entry: Option<&EntryName>) -> Value {
    let entry = entry.cloned().unwrap_or_default();
    json!({"id": entry.id, "spiffe_id": entry.spiffe_id, "parent_id": entry.parent_id, "hint": entry.hint})
}

/// Names are those of the protocol; they stay.
fn to_json(answer: &ExplainResponse) -> Value {
    let (server, agent) = (answer.server.clone().unwrap_or_default(), answer.agent.clone().unwrap_or_default());
    json!({
        "conclusion": answer.conclusion().as_str_name(),
        "process": answer.process.as_ref().map(|p| json!({
            "pid": p.pid, "uid": p.uid, "gid": p.gid, "program": p.program, "has_ended": p.has_ended})),
        "attestors": answer.attestors.iter().map(|a| json!({
            "name": a.name, "error": a.error, "selectors": a.selectors, "took_micros": a.took_micros.to_string()})).collect::<Vec<_>>(),
        "selectors": show::selectors_json(&answer.selectors),
        "selectors_left_out": answer.selectors_left_out,
        "matching": answer.matching.iter().map(|m| json!({
            "entry": name_json(m.entry.as_ref()),
            "svid_expires_at": m.svid_expires_at.to_string(),
            "failure": m.failure,
            "failed_attempts": m.failed_attempts,
            "in_flight": m.in_flight,
            "next_attempt_secs": m.next_attempt_secs,
            "hidden_by": m.hidden_by,
        })).collect::<Vec<_>>(),
        "matching_left_out": answer.matching_left_out,
        "nearest": answer.nearest.iter().map(|n| json!({
            "entry": name_json(n.entry.as_ref()),
            "missing": show::selectors_json(&n.missing),
            "missing_left_out": n.missing_left_out,
            "shared": n.shared,
            "expired_at": n.expired_at.to_string(),
            "store_svid": n.store_svid,
        })).collect::<Vec<_>>(),
        "nearest_left_out": answer.nearest_left_out,
        "server": {
            "address": server.address,
            "connected": server.connected,
            "since": server.since.to_string(),
            "last_error": server.last_error,
            "last_error_at": server.last_error_at.to_string(),
            "last_contact": server.last_contact.to_string(),
            "revision": server.revision.to_string(),
        },
        "agent": {
            "spiffe_id": agent.spiffe_id,
            "svid_expires_at": agent.svid_expires_at.to_string(),
            "entries": agent.entries,
            "entries_known": agent.entries_known,
            "svids_held": agent.svids_held,
            "usual_parent_id": agent.usual_parent_id,
        },
        "last_denial": answer.last_denial.as_ref().map(|d| json!({"at": d.at.to_string(), "pid": d.pid, "uid": d.uid})),
        "advice": advice(answer),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_whose_svid_was_asked_for_in_vain_is_no_identity() {
        let held = MatchingEntry { svid_expires_at: 1, failure: "its renewal failed".to_owned(), ..MatchingEntry::default() };
        let lazy = MatchingEntry::default();
        let failed = MatchingEntry { failure: "the server said no".to_owned(), ..MatchingEntry::default() };
        let hidden = MatchingEntry { hidden_by: "older".to_owned(), ..held.clone() };
        let said = |matching: Vec<MatchingEntry>| {
            verdict(&ExplainResponse { conclusion: Conclusion::HasIdentity.into(), matching, ..ExplainResponse::default() })
        };
        assert_eq!(said(vec![held.clone(), failed.clone(), hidden]), "A process with these selectors gets 1 identity.");
        assert_eq!(said(vec![held, lazy, failed]), "A process with these selectors gets 2 identities.");
    }
}
