//! `countersign log issued`: who held which identity when, by which entry, from which agent.

use clap::{Args, Subcommand};
use countersign_identity::SpiffeId;
use countersign_identity::x509::{SERIAL_BYTES_MAX, decimal};
use countersign_wire::journal::journal_client::JournalClient;
use countersign_wire::journal::{IssuedRequest, Kind, Outcome as WireOutcome, Record};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::ServerSocket;
use crate::output::{self, Block, Failure, Outcome, OutputArgs};
use crate::progress::Progress;

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
    /// Serial number of a certificate, in decimal, or in hexadecimal as openssl prints it
    #[arg(long, value_name = "NUMBER", conflicts_with = "jti", value_parser = serial)]
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
            [from, until] => span(from, until)?,
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
        let progress = Progress::counting("searching the journal");
        let mut records = Vec::new();
        let mut stream = JournalClient::new(command.socket.connect().await?).issued(request).await?.into_inner();
        // What came before an error is shown all the same: of a damaged journal, the records that can be read.
        let ended = loop {
            match stream.message().await {
                Ok(Some(record)) => {
                    progress.advance(1);
                    records.push(record);
                }
                Ok(None) => break Ok(()),
                Err(status) => break Err(Failure::from(status)),
            }
        };
        drop(progress);
        command.output.show(
            || json!({"records": records.iter().map(record_json).collect::<Vec<_>>()}),
            || {
                let head = format!("Found {}\n", output::count(records.len(), "record", "records"));
                records.iter().fold(head, |text, record| text + &show(record))
            },
        );
        // Nobody may take "not found here" for "never issued", or a part for the whole.
        if ended.is_ok() && records.is_empty() {
            output::note("Nothing matches in this server's journal. It holds what this server issued, for 90 days unless configured.");
        }
        if usize::try_from(command.limit).is_ok_and(|limit| limit > 0 && records.len() >= limit) {
            output::note(&format!(
                "Only the newest {} are shown. Older ones may match: raise --limit, or narrow the question.",
                command.limit
            ));
        }
        ended
    }
}

fn span(from: &str, until: &str) -> Result<(i64, i64), Failure> {
    let parse = |text: &str| {
        let malformed = || format!("--between: `{text}` is not a time, expected for example 2026-01-31T14:03:00Z");
        OffsetDateTime::parse(text, &Rfc3339).map(OffsetDateTime::unix_timestamp).map_err(|_| Failure::new(malformed()))
    };
    let span = (parse(from)?, parse(until)?);
    if span.0 >= span.1 {
        return Err(Failure::new(format!("--between: `{until}` is not after `{from}`, so nothing can lie between them")));
    }
    Ok(span)
}

/// The journal has serial numbers in decimal. Tools show them in hexadecimal: `4D52…`, `4d:52:…` or `0x4d52…`. Digits alone
/// are decimal; of a random number in hexadecimal, one in three million has no letter.
fn serial(text: &str) -> Result<String, String> {
    let malformed = || "expected a number in decimal, or in hexadecimal as openssl prints it".to_owned();
    if text.len() > 3 * SERIAL_BYTES_MAX {
        return Err(malformed());
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(text.to_owned());
    }
    let digits = text.strip_prefix("0x").unwrap_or(text).replace(':', "");
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(malformed());
    }
    let digits = if digits.len().is_multiple_of(2) { digits } else { format!("0{digits}") };
    let byte = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    match digits.as_bytes().chunks(2).map(byte).collect::<Option<Vec<u8>>>() {
        Some(bytes) if !bytes.is_empty() => Ok(decimal(&bytes)),
        _ => Err(malformed()),
    }
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
    block.row(
        "Outcome",
        match WireOutcome::try_from(record.outcome) {
            // A crash between record and outcome, or the outcome is about to be written.
            Ok(WireOutcome::Recorded) => "RECORDED (before signing; whether it was signed is not known)",
            Ok(known) => known.as_str_name(),
            Err(_) => "?",
        },
    );
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_understood_in_every_form_that_tools_show() {
        for form in ["147971897315105264211655385973383486741", "0x6f5259cdcfee7bce18304f8353b7dd15", "6F5259CDCFEE7BCE18304F8353B7DD15"] {
            assert_eq!(serial(form).unwrap(), "147971897315105264211655385973383486741", "{form}");
        }
        assert_eq!(serial("0a:ff").unwrap(), "2815");
        assert_eq!(serial("aff").unwrap(), "2815");
        assert_eq!(serial("0x10").unwrap(), "16");
        for bad in ["", "0x", ":", "12g4", "-5", "+a", "ä", &"1".repeat(61)] {
            assert!(serial(bad).is_err(), "`{bad}`");
        }
    }

    #[test]
    fn a_span_has_two_times_in_their_order() {
        let error = |from: &str, until: &str| span(from, until).unwrap_err().to_string();
        let (early, late) = ("2026-01-31T14:03:00Z", "2026-01-31T14:04:00Z");
        assert_eq!(span(early, late).unwrap(), (1_769_868_180, 1_769_868_240));
        assert_eq!(error(late, early), format!("--between: `{early}` is not after `{late}`, so nothing can lie between them"));
        assert!(error(early, early).starts_with("--between: "));
        assert_eq!(error("yesterday", late), "--between: `yesterday` is not a time, expected for example 2026-01-31T14:03:00Z");
    }
}
