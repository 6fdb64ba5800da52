//! `spire-server entry …`

use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::{
    BatchCreateEntryResponse, BatchDeleteEntryResponse, BatchUpdateEntryResponse, CountEntriesRequest, GetEntryRequest,
    ListEntriesResponse, batch_create_entry_response, batch_update_entry_response, list_entries_request,
};
use countersign_wire::types::{self, federates_with_match};
use tonic::transport::Channel;

use super::super::command::{answer, refused};
use super::super::connect::Target;
use super::super::flags::{Flag, Given, Kind, flag};
use super::super::go;
use super::{narrow, selector, wire_id, within};
use crate::commands::entry_file::{self, UnknownMembers};
use crate::commands::{entry, show};
use crate::output::{self, Failure, Outcome};

pub(super) const FIELDS: &[Flag] = &[
    flag("parentID", Kind::Text, "SPIFFE ID of the agent, alias or workload the entry hangs below."),
    flag("spiffeID", Kind::Text, "SPIFFE ID the entry grants."),
    flag("x509SVIDTTL", Kind::Number, "Lifetime of X509-SVIDs in seconds; the server's unless given."),
    flag("jwtSVIDTTL", Kind::Number, "Lifetime of JWT-SVIDs in seconds; the server's unless given."),
    flag("data", Kind::Text, "JSON file with entries, - for standard input; other flags do not count then."),
    flag("selector", Kind::Texts, "Selector, type:value; repeat for more."),
    flag("federatesWith", Kind::Texts, "Trust domain whose bundle the workload gets; repeat for more."),
    flag("admin", Kind::Switch, "Let the identity administer the server."),
    flag("storeSVID", Kind::Switch, "Put the SVIDs into a store instead of giving them to workloads."),
    flag("downstream", Kind::Switch, "Let the identity ask for an intermediate authority."),
    flag("entryExpiry", Kind::Number, "When the entry ends, in seconds since 1970; never unless given."),
    flag("dns", Kind::Texts, "DNS name in the X509-SVID; repeat for more."),
    flag("hint", Kind::Text, "Word that tells identities of one workload apart."),
];
pub(super) const CREATE: &[Flag] = &[
    flag("entryID", Kind::Text, "ID of the entry; a random one unless given."),
    flag("node", Kind::Switch, "Make it an alias of nodes: the selectors are those of agents."),
    flag("disableX509SVIDPrefetch", Kind::Switch, "Issue the X509-SVID only when a workload asks."),
    flag("jwtSVIDIncludeJTI", Kind::Switch, "Give each JWT-SVID a unique jti, and keep none."),
];
pub(super) const UPDATE: &[Flag] = &[
    flag("entryID", Kind::Text, "ID of the entry."),
    flag("disableX509SVIDPrefetch", Kind::Set, "Issue the X509-SVID only when a workload asks."),
    flag("jwtSVIDIncludeJTI", Kind::Set, "Give each JWT-SVID a unique jti, and keep none."),
];
pub(super) const DELETE: &[Flag] = &[
    flag("entryID", Kind::Text, "ID of the entry."),
    flag("file", Kind::Text, "JSON file with IDs, {\"ids\": […]}, - for standard input."),
];
pub(super) const FILTER: &[Flag] = &[
    flag("parentID", Kind::Text, "Only entries below this SPIFFE ID."),
    flag("spiffeID", Kind::Text, "Only entries that grant this SPIFFE ID."),
    flag("downstream", Kind::Switch, "Only downstream entries."),
    flag("selector", Kind::Texts, "Only entries with this selector, type:value; repeat for more."),
    flag("federatesWith", Kind::Texts, "Only entries that federate with this trust domain; repeat for more."),
    Flag {
        name: "matchFederatesWithOn",
        kind: Kind::Text,
        default: "superset",
        help: "How the trust domains given relate to those of an entry: exact, any, superset or subset.",
    },
    Flag {
        name: "matchSelectorsOn",
        kind: Kind::Text,
        default: "superset",
        help: "How the selectors given relate to those of an entry: exact, any, superset or subset.",
    },
    flag("hint", Kind::Text, "Only entries with this hint."),
];
pub(super) const SHOW: &[Flag] = &[flag("entryID", Kind::Text, "Only the entry of this ID.")];

/// The entry that the flags describe.
fn described(given: &Given) -> Result<types::Entry, Failure> {
    let spiffe_id = wire_id(given.text("spiffeID"))?;
    let parent_id = if given.is_on("node") {
        types::Spiffeid { trust_domain: spiffe_id.trust_domain.clone(), path: "/spire/server".to_owned() }
    } else {
        wire_id(given.text("parentID"))?
    };
    let x509_svid_ttl = narrow(given.number("x509SVIDTTL"), "X509 SVID TTL")?;
    let jwt_svid_ttl = narrow(given.number("jwtSVIDTTL"), "JWT SVID TTL")?;
    let attributes = types::entry::AdditionalAttributes {
        disable_x509_svid_prefetch: given.is_on("disableX509SVIDPrefetch"),
        jwt_svid_include_jti: given.is_on("jwtSVIDIncludeJTI"),
    };
    Ok(types::Entry {
        id: given.text("entryID").to_owned(),
        spiffe_id: Some(spiffe_id),
        parent_id: Some(parent_id),
        selectors: given.texts("selector").iter().map(|s| selector(s)).collect::<Result<_, _>>()?,
        x509_svid_ttl,
        federates_with: given.texts("federatesWith").to_vec(),
        admin: given.is_on("admin"),
        downstream: given.is_on("downstream"),
        expires_at: given.number("entryExpiry"),
        dns_names: given.texts("dns").to_vec(),
        revision_number: 0,
        store_svid: given.is_on("storeSVID"),
        jwt_svid_ttl,
        hint: given.text("hint").to_owned(),
        created_at: 0,
        additional_attributes: (attributes != types::entry::AdditionalAttributes::default()).then_some(attributes),
    })
}

fn check_lifetimes(given: &Given) -> Outcome {
    for (name, what) in [("x509SVIDTTL", "x509-SVID"), ("jwtSVIDTTL", "JWT-SVID")] {
        if given.number(name) < 0 {
            return Err(Failure::new(format!("a positive {what} TTL is required")));
        }
    }
    Ok(())
}

fn check_new(given: &Given) -> Outcome {
    let missing = |what: &str| Err(Failure::new(what));
    if given.texts("selector").is_empty() {
        return missing("at least one selector is required");
    }
    if given.is_on("node") && !given.texts("federatesWith").is_empty() {
        return missing("node entries can not federate");
    }
    if given.text("parentID").is_empty() && !given.is_on("node") {
        return missing("a parent ID is required if the node flag is not set");
    }
    if given.text("spiffeID").is_empty() {
        return missing("a SPIFFE ID is required");
    }
    check_lifetimes(given)
}

fn check_replacement(given: &Given) -> Outcome {
    let missing = |what: &str| Err(Failure::new(what));
    if given.text("entryID").is_empty() {
        return missing("entry ID is required");
    }
    if given.texts("selector").is_empty() {
        return missing("at least one selector is required");
    }
    if given.text("parentID").is_empty() {
        return missing("a parent ID is required");
    }
    if given.text("spiffeID").is_empty() {
        return missing("a SPIFFE ID is required");
    }
    check_lifetimes(given)
}

/// The entries of the file, or the one of the flags.
fn entries(given: &Given, check: fn(&Given) -> Outcome) -> Result<Vec<types::Entry>, Failure> {
    match given.text("data") {
        "" => {
            check(given)?;
            Ok(vec![described(given)?])
        }
        path => entry_file::read_entries(path.as_ref(), UnknownMembers::Ignored),
    }
}

async fn client(target: &Target, before: &str) -> Result<EntryClient<Channel>, Failure> {
    Ok(EntryClient::new(target.connect().await.map_err(refused(before))?))
}

pub(super) async fn create(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let entries = entries(&given, check_new)?;
    let (results, ended) = entry::create_all(&mut client(&target, "").await?, &entries).await;
    let (done, all) = (results.len(), entries.len());
    let results = with_asked(results, entries, |r| (r.status.as_ref(), &mut r.entry));
    say(ended, done, all, || {
        answer(&given, "spire.api.server.entry.v1.BatchCreateEntryResponse", &BatchCreateEntryResponse { results }, |m| {
            report("create", m.results.iter().map(|r: &batch_create_entry_response::Result| (r.status.as_ref(), r.entry.as_ref())))
        })
    })
}

pub(super) async fn update(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let mut entries = entries(&given, check_replacement)?;
    let mut client = client(&target, "").await?;
    let set = ["disableX509SVIDPrefetch", "jwtSVIDIncludeJTI"].map(|name| given.is_on(name));
    if given.text("data").is_empty()
        && set.contains(&true)
        && let Some(entry) = entries.first_mut()
    {
        // What was not given keeps its value: the message has no mask for the two.
        let request = GetEntryRequest { id: entry.id.clone(), output_mask: None };
        let stored = client.get_entry(request).await.map_err(refused("failed to fetch existing entry to merge additional attributes"))?;
        let stored = stored.into_inner().additional_attributes.unwrap_or_default();
        entry.additional_attributes = Some(types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: set[0] || stored.disable_x509_svid_prefetch,
            jwt_svid_include_jti: set[1] || stored.jwt_svid_include_jti,
        });
    }
    let (results, ended) = entry::update_all(&mut client, &entries).await;
    let (done, all) = (results.len(), entries.len());
    let results = with_asked(results, entries, |r| (r.status.as_ref(), &mut r.entry));
    say(ended, done, all, || {
        answer(&given, "spire.api.server.entry.v1.BatchUpdateEntryResponse", &BatchUpdateEntryResponse { results }, |m| {
            report("update", m.results.iter().map(|r: &batch_update_entry_response::Result| (r.status.as_ref(), r.entry.as_ref())))
        })
    })
}

/// Results in which failures show the entry that was asked for, as the server does not repeat it.
fn with_asked<R>(
    mut results: Vec<R>,
    asked: Vec<types::Entry>,
    parts: fn(&mut R) -> (Option<&types::Status>, &mut Option<types::Entry>),
) -> Vec<R> {
    for (result, asked) in results.iter_mut().zip(asked) {
        let (status, entry) = parts(result);
        if status.is_some_and(|s| s.code != 0) {
            *entry = Some(asked);
        }
    }
    results
}

/// Says what was done, in every case, because it is done. A call that failed has the last word, with how far the calls before it came.
fn say(ended: Option<tonic::Status>, done: usize, all: usize, results: impl FnOnce() -> Outcome) -> Outcome {
    let Some(status) = ended else { return results() };
    if done == 0 {
        return Err(refused("")(status));
    }
    let _ = results();
    Err(Failure::new(format!("{}; {done} of {all} entries were dealt with before that", go::status(&status))))
}

fn report<'a>(verb: &str, results: impl Iterator<Item = (Option<&'a types::Status>, Option<&'a types::Entry>)>) -> Outcome {
    let (mut done, mut failed) = (String::new(), String::new());
    for (status, entry) in results {
        let entry = entry.map(|e| show::entry(e, go::time)).unwrap_or_default();
        match status.filter(|s| s.code != 0) {
            None => done += &entry,
            Some(status) => {
                let (code, message) = (go::code(status.code), go::quoted(&status.message));
                failed += &format!("Failed to {verb} the following entry (code: {code}, msg: {message}):\n{entry}");
            }
        }
    }
    output::text(&done);
    output::error_text(&failed);
    if failed.is_empty() { Ok(()) } else { Err(Failure::new(format!("failed to {verb} one or more entries"))) }
}

pub(super) async fn delete(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let ids = match (given.text("file"), given.text("entryID")) {
        ("", "") => return Err(Failure::new("an entry ID is required")),
        ("", id) => vec![id.to_owned()],
        (path, _) => entry_file::read_ids(path.as_ref())?,
    };
    let (results, ended) = entry::delete_all(&mut client(&target, "").await?, &ids).await;
    say(ended, results.len(), ids.len(), || {
        answer(&given, "spire.api.server.entry.v1.BatchDeleteEntryResponse", &BatchDeleteEntryResponse { results }, deleted)
    })
}

fn deleted(response: &BatchDeleteEntryResponse) -> Outcome {
    let (mut done, mut failed) = (0, 0);
    let (mut text, mut errors) = (String::new(), String::new());
    for result in &response.results {
        match result.status.as_ref().filter(|s| s.code != 0) {
            None => {
                done += 1;
                text += &format!("Deleted entry with ID: {}\n", output::clean(&result.id));
            }
            Some(status) => {
                failed += 1;
                let (code, message) = (go::code(status.code), go::quoted(&status.message));
                errors += &format!("Failed to delete entry with ID {} (code: {code}, msg: {message})\n", output::clean(&result.id));
            }
        }
    }
    // The empty lines, and none at the end, are SPIRE's.
    let space = |n: i32| if n > 0 { "\n\n" } else { "" };
    text += space(done);
    text += space(failed);
    text += &match (done, failed) {
        (_, 0) => format!("Deleted {done} entries successfully"),
        (0, _) => format!("Failed to delete {failed} entries"),
        _ => format!("Deleted {done} entries successfully, but failed to delete {failed} entries"),
    };
    output::text(&text);
    output::error_text(&errors);
    if failed == 0 { Ok(()) } else { Err(Failure::new("failed to delete one or more entries")) }
}

/// How a set that is asked for relates to the set something has. The numbers are the same for selectors and trust domains.
pub(super) fn match_number(how: &str) -> Result<i32, Failure> {
    use federates_with_match::MatchBehavior as Match;
    let how = match how {
        "exact" => Match::MatchExact,
        "any" => Match::MatchAny,
        "superset" => Match::MatchSuperset,
        "subset" => Match::MatchSubset,
        other => return Err(Failure::new(format!("match behavior {} unknown", go::quoted(other)))),
    };
    Ok(how.into())
}

fn filter(given: &Given) -> Result<list_entries_request::Filter, Failure> {
    let id = |name: &str, what: &str| match given.text(name) {
        "" => Ok(None),
        text => wire_id(text).map(Some).map_err(within(&format!("error parsing {what} {}", go::quoted(text)))),
    };
    let by_parent_id = id("parentID", "parent ID")?;
    let by_spiffe_id = id("spiffeID", "SPIFFE ID")?;
    let mut by_selectors = None;
    if !given.texts("selector").is_empty() {
        let r#match = match_number(given.text("matchSelectorsOn"))?;
        let selectors: Result<_, _> = given.texts("selector").iter().map(|s| selector(s)).collect();
        by_selectors = Some(types::SelectorMatch { selectors: selectors.map_err(within("error parsing selectors"))?, r#match });
    }
    let mut by_federates_with = None;
    if !given.texts("federatesWith").is_empty() {
        let r#match = match_number(given.text("matchFederatesWithOn"))?;
        by_federates_with = Some(types::FederatesWithMatch { trust_domains: given.texts("federatesWith").to_vec(), r#match });
    }
    let hint = given.text("hint");
    Ok(list_entries_request::Filter {
        by_spiffe_id,
        by_parent_id,
        by_selectors,
        by_federates_with,
        by_hint: (!hint.is_empty()).then(|| hint.to_owned()),
        // SPIRE asks for false too, and its server takes that as not asked.
        by_downstream: given.is_on("downstream").then_some(true),
    })
}

pub(super) async fn show_all(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let id = given.text("entryID");
    let is_filtered = !given.text("parentID").is_empty() || !given.text("spiffeID").is_empty() || !given.texts("selector").is_empty();
    if !id.is_empty() && is_filtered {
        return Err(Failure::new("the -entryID flag can't be combined with others"));
    }
    let mut entries = if id.is_empty() {
        let filter = filter(&given)?;
        let before = "error fetching entries";
        entry::list(&mut client(&target, before).await?, Some(filter)).await.map_err(refused(before))?
    } else {
        let before = format!("error fetching entry ID {id}");
        let request = GetEntryRequest { id: id.to_owned(), output_mask: None };
        vec![client(&target, &before).await?.get_entry(request).await.map_err(refused(&before))?.into_inner()]
    };
    entry::sort(&mut entries);
    let response = ListEntriesResponse { entries, next_page_token: String::new() };
    answer(&given, "spire.api.server.entry.v1.ListEntriesResponse", &response, |m| {
        let head = format!("Found {}\n", output::count(m.entries.len(), "entry", "entries"));
        output::text(&m.entries.iter().fold(head, |text, entry| text + &show::entry(entry, go::time)));
        Ok(())
    })
}

pub(super) async fn count(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let request = CountEntriesRequest { filter: Some(entry::count_filter(filter(&given)?)) };
    let response = client(&target, "").await?.count_entries(request).await.map_err(refused(""))?.into_inner();
    answer(&given, "spire.api.server.entry.v1.CountEntriesResponse", &response, |m| {
        let number = usize::try_from(m.count).unwrap_or_default();
        output::line(&output::count(number, "registration entry", "registration entries"));
        Ok(())
    })
}

#[cfg(test)]
mod tests;
