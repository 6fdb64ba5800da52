//! `countersign log issued`: who held which identity when, by which entry, from which agent.

use clap::{Args, Subcommand};
use countersign_identity::SpiffeId;
use countersign_wire::journal::journal_client::JournalClient;
use countersign_wire::journal::{IssuedRequest, Kind, Outcome as WireOutcome, Record};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::ServerSocket;
use crate::output::{self, Block, Failure, Outcome, OutputArgs};

/// `countersign log …`
#[derive(Debug, Subcommand)]
pub(crate) enum Log {
    /// Show issued credentials; conditions that are given must all hold
    ///
    /// Example: countersign log issued --id spiffe://example.org/web --between 2026-01-31T14:03:00Z 2026-01-31T14:04:00Z
    Issued(Issued),
}

#[derive(Debug, Args)]
pub(crate) struct Issued {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// The identity
    #[arg(long, value_name = "ID")]
    id: Option<SpiffeId>,
    /// Serial number of a certificate, in decimal
    #[arg(long, value_name = "NUMBER", conflicts_with = "jti")]
    serial: Option<String>,
    /// The `jti` of a token
    #[arg(long)]
    jti: Option<String>,
    /// The agent that received it
    #[arg(long, value_name = "ID")]
    agent: Option<SpiffeId>,
    /// In force at some moment of this span, both as 2026-01-31T14:03:00Z
    #[arg(long, num_args = 2, value_names = ["FROM", "UNTIL"])]
    between: Vec<String>,
    /// Most records shown: the newest of all that match, the oldest of them first
    #[arg(long, default_value_t = 1000)]
    limit: u32,
}

impl Log {
    pub(crate) async fn run(self) -> Outcome {
        let Self::Issued(command) = self;
        let span = match command.between.as_slice() {
            [from, until] => (parse(from)?, parse(until)?),
            _ => (0, 0),
        };
        let request = IssuedRequest {
            spiffe_id: command.id.map(|i| i.to_string()).unwrap_or_default(),
            serial_or_jti: command.serial.or(command.jti).unwrap_or_default(),
            agent_id: command.agent.map(|i| i.to_string()).unwrap_or_default(),
            from: span.0,
            until: span.1,
            limit: command.limit,
        };
        let mut records = Vec::new();
        let mut stream = JournalClient::new(command.socket.connect().await?).issued(request).await?.into_inner();
        // What came before an error is shown all the same: of a damaged journal, the records that can be read.
        let ended = loop {
            match stream.message().await {
                Ok(Some(record)) => records.push(record),
                Ok(None) => break Ok(()),
                Err(status) => break Err(Failure::from(status)),
            }
        };
        command.output.show(
            || json!({"records": records.iter().map(record_json).collect::<Vec<_>>()}),
            || {
                let head = format!("Found {}\n", output::count(records.len(), "record", "records"));
                records.iter().fold(head, |text, record| text + &show(record))
            },
        );
        ended
    }
}

fn parse(text: &str) -> Result<i64, Failure> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map(OffsetDateTime::unix_timestamp)
        .map_err(|_| Failure::new(format!("`{text}` is not a time, expected for example 2026-01-31T14:03:00Z")))
}

fn show(record: &Record) -> String {
    let mut block = Block::new(16);
    block.row("Time", output::time(record.time_millis / 1000));
    block.row("Kind", Kind::try_from(record.kind).map_or("?", |k| k.as_str_name()));
    block.row("SPIFFE ID", &record.spiffe_id);
    if record.reason.is_empty() {
        block.row("Serial or jti", if record.serial_or_jti.is_empty() { "(none)" } else { &record.serial_or_jti });
        block.row("Valid", format!("{} to {}", output::time(record.not_before), output::time(record.expires_at)));
        block.row("Authority", &record.authority_id);
    } else {
        block.row("Reason", &record.reason);
    }
    block.row("Asked by", &record.actor);
    if !record.agent_id.is_empty() {
        block.row("Agent", &record.agent_id);
    }
    if !record.entry_id.is_empty() {
        block.row("Entry", format!("{} (revision {})", record.entry_id, record.entry_revision));
    }
    for evidence in &record.evidence {
        block.row("Evidence", evidence);
    }
    block.row("Outcome", WireOutcome::try_from(record.outcome).map_or("?", |o| o.as_str_name()));
    block.finish()
}

fn record_json(record: &Record) -> Value {
    json!({
        "sequence": record.sequence.to_string(),
        "server_id": record.server_id,
        "time_millis": record.time_millis.to_string(),
        "kind": Kind::try_from(record.kind).map_or("?", |k| k.as_str_name()),
        "actor": record.actor,
        "spiffe_id": record.spiffe_id,
        "entry_id": record.entry_id,
        "entry_revision": record.entry_revision.to_string(),
        "agent_id": record.agent_id,
        "body_sha256": record.body_sha256.iter().map(|b| format!("{b:02x}")).collect::<String>(),
        "authority_id": record.authority_id,
        "serial_or_jti": record.serial_or_jti,
        "not_before": record.not_before.to_string(),
        "expires_at": record.expires_at.to_string(),
        "evidence": record.evidence,
        "outcome": WireOutcome::try_from(record.outcome).map_or("?", |o| o.as_str_name()),
        "reason": record.reason,
    })
}
