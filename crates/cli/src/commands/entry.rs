//! `countersign entry …`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use countersign_identity::{Selector, SpiffeId};
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::{self, list_entries_request};
use countersign_wire::{id, types};
use prost::Message as _;
use serde_json::json;
use tonic::transport::Channel;

use super::entry_file::{UnknownMembers, read_entries, read_ids};
use super::{MatchOn, optional_id, selector_match, show};
use crate::client::ServerSocket;
use crate::output::{self, Failure, Outcome, OutputArgs};
use crate::progress::Progress;

/// Entries asked for in one page.
const PAGE: i32 = 500;
/// Entries or IDs in one batch.
const BATCH: usize = 500;
/// Bytes of entries in one batch: it and its answer, which repeats them, stay far below the four MiB of a message.
const BATCH_BYTES: usize = 1 << 20;

/// `countersign entry …`
#[derive(Debug, Subcommand)]
pub(crate) enum Entry {
    /// Create an entry
    ///
    /// Example: countersign entry create --parent-id spiffe://example.org/up/node
    /// --spiffe-id spiffe://example.org/web --selector unix:uid:1000
    Create(Create),
    /// Replace an entry
    Update(Update),
    /// Delete entries
    Delete(Delete),
    /// Show entries
    Show(Show),
    /// Count entries
    Count(Count),
    /// What has become of an entry: which agents have it, who holds an SVID of it, and if nobody does, why not
    ///
    /// Exit code: 0 if an agent has it or holds an SVID of it, 1 if none does, 2 if that could not be found out.
    Explain(super::entry_explain::ExplainEntry),
}

#[derive(Debug, Args)]
struct Fields {
    /// The agent, alias or workload the entry hangs below
    #[arg(long, value_name = "ID", required_unless_present_any = ["node", "data"])]
    parent_id: Option<SpiffeId>,
    /// The identity the entry grants
    #[arg(long, value_name = "ID", required_unless_present = "data")]
    spiffe_id: Option<SpiffeId>,
    /// A selector a workload must have, type:value; repeat for more
    #[arg(long = "selector", value_name = "TYPE:VALUE", required_unless_present = "data")]
    selectors: Vec<Selector>,
    /// Lifetime of X509-SVIDs in seconds [default: the server's]
    #[arg(long = "x509-svid-ttl", value_name = "SECONDS", default_value_t = 0, hide_default_value = true)]
    x509_svid_ttl: i32,
    /// Lifetime of JWT-SVIDs in seconds [default: the server's]
    #[arg(long, value_name = "SECONDS", default_value_t = 0, hide_default_value = true)]
    jwt_svid_ttl: i32,
    /// A trust domain whose bundle the workload gets; repeat for more
    #[arg(long = "federates-with", value_name = "TRUST_DOMAIN")]
    federates_with: Vec<String>,
    /// A DNS name in the X509-SVID; the first is the common name too; repeat for more
    #[arg(long = "dns", value_name = "NAME")]
    dns_names: Vec<String>,
    /// A word that tells a workload with several identities which is which
    #[arg(long, default_value = "", hide_default_value = true)]
    hint: String,
    /// Let the identity administer the server
    #[arg(long)]
    admin: bool,
    /// Let the identity ask for an intermediate authority
    #[arg(long)]
    downstream: bool,
    /// Put the SVIDs into a store instead of giving them to workloads
    #[arg(long)]
    store_svid: bool,
    /// When the entry ends, in seconds since 1970 [default: never]
    #[arg(long, value_name = "UNIX_SECONDS", default_value_t = 0, hide_default_value = true)]
    entry_expiry: i64,
    /// Issue the X509-SVID only when a workload asks
    #[arg(long)]
    disable_x509_svid_prefetch: bool,
    /// Give each JWT-SVID a unique `jti`
    #[arg(long)]
    jwt_svid_include_jti: bool,
    /// Make it a node alias: the selectors are those of agents (parent is the server)
    #[arg(long, conflicts_with_all = ["parent_id", "federates_with"])]
    node: bool,
}

impl Fields {
    fn entry(&self, id: String) -> Result<types::Entry, Failure> {
        let spiffe_id = self.spiffe_id.as_ref().ok_or_else(|| Failure::new("a SPIFFE ID is required"))?;
        let parent_id = match (&self.parent_id, self.node) {
            (_, true) => spiffe_id.trust_domain().server_id(),
            (Some(parent), false) => parent.clone(),
            (None, false) => return Err(Failure::new("a parent ID is required if the node flag is not set")),
        };
        let extra = types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: self.disable_x509_svid_prefetch,
            jwt_svid_include_jti: self.jwt_svid_include_jti,
        };
        Ok(types::Entry {
            id,
            spiffe_id: Some(id::to_wire(spiffe_id)),
            parent_id: Some(id::to_wire(&parent_id)),
            selectors: id::selectors_to_wire(&self.selectors),
            x509_svid_ttl: self.x509_svid_ttl,
            federates_with: self.federates_with.clone(),
            admin: self.admin,
            downstream: self.downstream,
            expires_at: self.entry_expiry,
            dns_names: self.dns_names.clone(),
            revision_number: 0,
            store_svid: self.store_svid,
            jwt_svid_ttl: self.jwt_svid_ttl,
            hint: self.hint.clone(),
            created_at: 0,
            additional_attributes: (extra != types::entry::AdditionalAttributes::default()).then_some(extra),
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// The entry's ID [default: a random one]
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    entry_id: String,
    #[command(flatten)]
    fields: Fields,
    /// Read entries from a JSON file in SPIRE's form instead, `-` for standard input
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// The entry's ID
    #[arg(long, value_name = "ID", required_unless_present = "data", default_value = "", hide_default_value = true)]
    entry_id: String,
    #[command(flatten)]
    fields: Fields,
    /// Read entries from a JSON file in SPIRE's form instead, `-` for standard input
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// The entry's ID; repeat for more
    #[arg(long = "entry-id", value_name = "ID", required_unless_present = "file")]
    entry_ids: Vec<String>,
    /// Read IDs from a JSON file `{"ids": […]}` too, `-` for standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct FilterArgs {
    /// Only entries below this parent
    #[arg(long, value_name = "ID")]
    parent_id: Option<SpiffeId>,
    /// Only entries that grant this identity
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<SpiffeId>,
    /// Only entries with this selector; repeat for more
    #[arg(long = "selector", value_name = "TYPE:VALUE")]
    selectors: Vec<Selector>,
    /// How the selectors given relate to those of an entry
    #[arg(long, value_enum, default_value = "superset", value_name = "HOW")]
    match_selectors_on: MatchOn,
    /// Only entries that federate with this trust domain; repeat for more
    #[arg(long = "federates-with", value_name = "TRUST_DOMAIN")]
    federates_with: Vec<String>,
    /// How the trust domains given relate to those of an entry
    #[arg(long, value_enum, default_value = "superset", value_name = "HOW")]
    match_federates_with_on: MatchOn,
    /// Only entries with this hint
    #[arg(long)]
    hint: Option<String>,
    /// Only downstream entries
    #[arg(long)]
    downstream: bool,
}

impl FilterArgs {
    fn message(&self) -> Option<list_entries_request::Filter> {
        let filter = list_entries_request::Filter {
            by_spiffe_id: optional_id(self.spiffe_id.as_ref()),
            by_parent_id: optional_id(self.parent_id.as_ref()),
            by_selectors: selector_match(&self.selectors, self.match_selectors_on),
            by_federates_with: (!self.federates_with.is_empty()).then(|| types::FederatesWithMatch {
                trust_domains: self.federates_with.clone(),
                r#match: self.match_federates_with_on.number(),
            }),
            by_hint: self.hint.clone(),
            by_downstream: self.downstream.then_some(true),
        };
        (filter != list_entries_request::Filter::default()).then_some(filter)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// Only the entry of this ID
    #[arg(long, value_name = "ID", conflicts_with_all = ["parent_id", "spiffe_id", "selectors"])]
    entry_id: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Count {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    filter: FilterArgs,
}

impl Entry {
    pub(crate) async fn run(self) -> Outcome {
        match self {
            Self::Create(command) => create(command).await,
            Self::Update(command) => update(command).await,
            Self::Delete(command) => delete(command).await,
            Self::Show(command) => show_entries(command).await,
            Self::Count(command) => count(command).await,
            Self::Explain(command) => command.run().await,
        }
    }
}

async fn create(command: Create) -> Outcome {
    let entries = match &command.data {
        Some(path) => read_entries(path, UnknownMembers::Refused)?,
        None => vec![command.fields.entry(command.entry_id.clone())?],
    };
    let mut client = EntryClient::new(command.socket.connect().await?);
    let (results, ended) = create_all(&mut client, &entries).await;
    let results = results.into_iter().map(|r| (r.status.unwrap_or_default(), r.entry)).collect();
    match ended {
        Some(status) => cut_short(command.output, "create", entries, results, status),
        None => report(command.output, "create", entries, results),
    }
}

async fn update(command: Update) -> Outcome {
    let entries = match &command.data {
        Some(path) => read_entries(path, UnknownMembers::Refused)?,
        None => vec![command.fields.entry(command.entry_id.clone())?],
    };
    let mut client = EntryClient::new(command.socket.connect().await?);
    let (results, ended) = update_all(&mut client, &entries).await;
    let results = results.into_iter().map(|r| (r.status.unwrap_or_default(), r.entry)).collect();
    match ended {
        Some(status) => cut_short(command.output, "update", entries, results, status),
        None => report(command.output, "update", entries, results),
    }
}

/// Creates entries, a batch at a time, until a call fails; then that is said beside what was done before it.
pub(crate) async fn create_all(
    client: &mut EntryClient<Channel>,
    entries: &[types::Entry],
) -> (Vec<entry_api::batch_create_entry_response::Result>, Option<tonic::Status>) {
    let progress = Progress::of("creating entries", entries.len());
    let mut results = Vec::new();
    for batch in batches(entries) {
        let size = batch.len();
        match client.batch_create_entry(entry_api::BatchCreateEntryRequest { entries: batch, output_mask: None }).await {
            Ok(answer) => results.extend(answer.into_inner().results),
            Err(status) => return (results, Some(status)),
        }
        progress.advance(size);
    }
    (results, None)
}

/// Replaces entries as [`create_all`] creates them.
pub(crate) async fn update_all(
    client: &mut EntryClient<Channel>,
    entries: &[types::Entry],
) -> (Vec<entry_api::batch_update_entry_response::Result>, Option<tonic::Status>) {
    let progress = Progress::of("updating entries", entries.len());
    let mut results = Vec::new();
    for batch in batches(entries) {
        let size = batch.len();
        match client.batch_update_entry(entry_api::BatchUpdateEntryRequest { entries: batch, input_mask: None, output_mask: None }).await {
            Ok(answer) => results.extend(answer.into_inner().results),
            Err(status) => return (results, Some(status)),
        }
        progress.advance(size);
    }
    (results, None)
}

/// Deletes entries as [`create_all`] creates them.
pub(crate) async fn delete_all(
    client: &mut EntryClient<Channel>,
    ids: &[String],
) -> (Vec<entry_api::batch_delete_entry_response::Result>, Option<tonic::Status>) {
    let progress = Progress::of("deleting entries", ids.len());
    let mut results = Vec::new();
    for batch in ids.chunks(BATCH) {
        match client.batch_delete_entry(entry_api::BatchDeleteEntryRequest { ids: batch.to_vec() }).await {
            Ok(answer) => results.extend(answer.into_inner().results),
            Err(status) => return (results, Some(status)),
        }
        progress.advance(batch.len());
    }
    (results, None)
}

fn batches(entries: &[types::Entry]) -> Vec<Vec<types::Entry>> {
    let mut batches: Vec<Vec<types::Entry>> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        bytes += entry.encoded_len();
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH && bytes <= BATCH_BYTES => batch.push(entry.clone()),
            _ => {
                bytes = entry.encoded_len();
                batches.push(vec![entry.clone()]);
            }
        }
    }
    batches
}

/// A call failed: what became of the entries before it is said first, because it is done.
fn cut_short(
    output: OutputArgs,
    verb: &str,
    asked: Vec<types::Entry>,
    results: Vec<(types::Status, Option<types::Entry>)>,
    status: tonic::Status,
) -> Outcome {
    let (done, all) = (results.len(), asked.len());
    if done == 0 {
        return Err(status.into());
    }
    let _ = report(output, verb, asked, results);
    Err(Failure::new(format!("{}; {done} of {all} entries were dealt with before that", Failure::from(status))))
}

fn report(output: OutputArgs, verb: &str, asked: Vec<types::Entry>, results: Vec<(types::Status, Option<types::Entry>)>) -> Outcome {
    let mut failed = false;
    let mut shown = String::new();
    let mut rows = Vec::new();
    for (asked, (status, entry)) in asked.into_iter().zip(results) {
        rows.push(json!({"status": {"code": status.code, "message": status.message}, "entry": entry.as_ref().map(show::entry_json)}));
        if status.code == 0 {
            shown += &show::entry(&entry.unwrap_or(asked), output::time);
        } else {
            failed = true;
            let code = tonic::Code::from_i32(status.code);
            output::note(&format!("Failed to {verb} the following entry (code: {code:?}, msg: {:?}):", status.message));
            output::note(&show::entry(&asked, output::time));
        }
    }
    output.show(|| json!({"results": rows}), || shown);
    if failed { Err(Failure::new(format!("failed to {verb} one or more entries"))) } else { Ok(()) }
}

async fn delete(command: Delete) -> Outcome {
    let mut ids = command.entry_ids;
    if let Some(path) = &command.file {
        ids.extend(read_ids(path)?);
    }
    let mut client = EntryClient::new(command.socket.connect().await?);
    let (results, ended) = delete_all(&mut client, &ids).await;
    let ended = match ended {
        Some(status) if results.is_empty() => return Err(status.into()),
        Some(status) => Err(Failure::from(status)),
        None => Ok(()),
    };
    let mut failed = false;
    let mut shown = String::new();
    let mut rows = Vec::new();
    for result in results {
        let status = result.status.unwrap_or_default();
        rows.push(json!({"status": {"code": status.code, "message": status.message}, "id": result.id}));
        if status.code == 0 {
            shown += &format!("Deleted entry with ID: {}\n", result.id);
        } else {
            failed = true;
            let code = tonic::Code::from_i32(status.code);
            output::note(&format!("Failed to delete entry with ID {} (code: {code:?}, msg: {:?})", result.id, status.message));
        }
    }
    command.output.show(|| json!({"results": rows}), || shown);
    ended?;
    if failed { Err(Failure::new("failed to delete one or more entries")) } else { Ok(()) }
}

async fn show_entries(command: Show) -> Outcome {
    let mut client = EntryClient::new(command.socket.connect().await?);
    let mut entries = match command.entry_id {
        Some(id) => vec![client.get_entry(entry_api::GetEntryRequest { id, output_mask: None }).await?.into_inner()],
        None => list(&mut client, command.filter.message()).await?,
    };
    sort(&mut entries);
    command.output.show(
        || json!({"entries": entries.iter().map(show::entry_json).collect::<Vec<_>>()}),
        || {
            let head = format!("Found {}\n", output::count(entries.len(), "entry", "entries"));
            entries.iter().fold(head, |text, entry| text + &show::entry(entry, output::time))
        },
    );
    Ok(())
}

/// By SPIFFE ID, parent and ID.
pub(crate) fn sort(entries: &mut [types::Entry]) {
    entries.sort_by_cached_key(|e| (show::spiffe_id(e.spiffe_id.as_ref()), show::spiffe_id(e.parent_id.as_ref()), e.id.clone()));
}

/// All entries that match, page by page.
pub(crate) async fn list(
    client: &mut EntryClient<Channel>,
    filter: Option<list_entries_request::Filter>,
) -> Result<Vec<types::Entry>, tonic::Status> {
    let progress = Progress::counting("reading entries");
    let mut entries = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = entry_api::ListEntriesRequest { filter: filter.clone(), output_mask: None, page_size: PAGE, page_token };
        let page = client.list_entries(request).await?.into_inner();
        progress.advance(page.entries.len());
        entries.extend(page.entries);
        page_token = page.next_page_token;
        // A page may be shorter than asked for; the last one has no token.
        if page_token.is_empty() {
            return Ok(entries);
        }
    }
}

async fn count(command: Count) -> Outcome {
    let mut client = EntryClient::new(command.socket.connect().await?);
    let filter = command.filter.message().map(count_filter);
    let count = client.count_entries(entry_api::CountEntriesRequest { filter }).await?.into_inner().count;
    let number = usize::try_from(count).unwrap_or(0);
    command
        .output
        .show(|| json!({"count": count}), || format!("{}\n", output::count(number, "registration entry", "registration entries")));
    Ok(())
}

/// The filter of a list, for counting.
pub(crate) fn count_filter(filter: list_entries_request::Filter) -> entry_api::count_entries_request::Filter {
    let list_entries_request::Filter { by_spiffe_id, by_parent_id, by_selectors, by_federates_with, by_hint, by_downstream } = filter;
    entry_api::count_entries_request::Filter { by_spiffe_id, by_parent_id, by_selectors, by_federates_with, by_hint, by_downstream }
}
