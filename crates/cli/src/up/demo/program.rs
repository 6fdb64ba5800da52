//! The programs that play in the demo: ordinary programs that get their identity from the Workload API, as anybody's would.
//!
//! The same binary in a role that `--help` does not list. They are given a socket and nothing else, no secret.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use countersign_identity::x509::Certificate;
use countersign_identity::{Bundle, BundleSet, SpiffeId, Timestamp};
use countersign_transport::clock::{Clock as _, SystemClock};
use countersign_transport::mutual::{Connection, Counterpart, Party};
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_wire::workload::{X509svid, X509svidRequest};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::event::Event;
use crate::client::workload_request;
use crate::output::{self, Failure, Outcome};
use crate::run::{end_with_parent, stop_signal};

/// How often the shop asks a question.
const QUESTION_INTERVAL: Duration = Duration::from_millis(200);
/// How long an answer may take until the connection counts as dropped: the two are on one machine, but that may be busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection retires once the newer one has answered this often, so that it is seen to outlive the renewal.
const ANSWERS_BEFORE_RETIREMENT: u32 = 4;
/// Pause before the agent is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Longest question or answer read.
const LINE_BYTES_MAX: u64 = 256;

/// First argument of such a program.
pub(super) const NAME: &str = "demo-program";

/// Its arguments. It is no command of `countersign`, so that neither help nor completions show it.
#[derive(Debug, Parser)]
#[command(name = NAME)]
pub(crate) struct DemoProgram {
    #[arg(value_enum)]
    role: Role,
    /// The Workload API
    #[arg(long)]
    socket: PathBuf,
    /// Who must be at the other end
    #[arg(long, required_unless_present = "alone")]
    peer: Option<SpiffeId>,
    /// Where that one waits; of the shop
    #[arg(long)]
    address: Option<SocketAddr>,
    /// Nobody is at the other end; of the stranger
    #[arg(long)]
    alone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Asks questions.
    Shop,
    /// Answers them.
    Warehouse,
    /// Has no identity.
    Stranger,
}

impl DemoProgram {
    /// If this process is one.
    pub(crate) fn from_arguments() -> Option<Self> {
        let mut arguments = std::env::args_os().skip(1).peekable();
        (arguments.peek().is_some_and(|first| first == NAME)).then(|| Self::parse_from(arguments))
    }

    pub(crate) async fn run(self) -> Outcome {
        let stopped = stop_signal()?;
        end_with_parent();
        tokio::select! {
            ended = self.play() => match ended {
                Ok(()) => Ok(()),
                Err(failure) => {
                    say(&Event::Failed { reason: failure.to_string() });
                    Err(failure)
                }
            },
            () = stopped => Ok(()),
        }
    }

    async fn play(self) -> Outcome {
        let party = Party::new(Arc::new(SystemClock));
        let (renewed, renewals) = watch::channel(0_u64);
        let identity = keep_identity(self.socket, party.clone(), renewed);
        let work = async {
            match (self.role, self.peer, self.address) {
                (Role::Warehouse, Some(peer), _) => answer_callers(party, peer, renewals).await,
                (Role::Shop, Some(peer), Some(address)) => ask_questions(party, peer, address, renewals).await,
                (Role::Stranger, ..) => std::future::pending().await,
                _ => Err(Failure::new("the shop and the warehouse must be told of each other")),
            }
        };
        tokio::select! {
            ended = identity => ended,
            ended = work => ended,
        }
    }
}

fn say(event: &Event) {
    if let Ok(line) = serde_json::to_string(event) {
        output::line(&line);
    }
}

/// Takes every identity the agent pushes, for as long as the program runs.
async fn keep_identity(socket: PathBuf, party: Party, renewed: watch::Sender<u64>) -> Outcome {
    loop {
        let asked = async {
            let channel = countersign_transport::client::unix(&socket).await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
            let mut stream = SpiffeWorkloadApiClient::new(channel).fetch_x509svid(workload_request(X509svidRequest {})).await?.into_inner();
            while let Some(answer) = stream.message().await? {
                if let Some(svid) = answer.svids.first() {
                    say(&take(&party, svid).map_err(tonic::Status::internal)?);
                    renewed.send_modify(|n| *n += 1);
                }
            }
            Ok::<_, tonic::Status>(())
        };
        match asked.await {
            Err(status) if status.code() == tonic::Code::PermissionDenied => say(&Event::Denied { reason: status.message().to_owned() }),
            Err(status) if status.code() == tonic::Code::Internal => return Err(status.into()),
            Err(status) => say(&Event::NoAgent { reason: status.message().to_owned() }),
            Ok(()) => say(&Event::NoAgent { reason: "the agent ended the stream".to_owned() }),
        }
        sleep(RETRY_PAUSE).await;
    }
}

fn take(party: &Party, svid: &X509svid) -> Result<Event, String> {
    let chain = Certificate::parse_concatenated(&svid.x509_svid).map_err(|e| e.to_string())?;
    let leaf = chain.first().ok_or("the agent sent no certificate")?;
    let spiffe_id = leaf.spiffe_id().ok_or("the agent sent a certificate without a SPIFFE ID")?;
    let mut bundle = Bundle::empty(spiffe_id.trust_domain().clone());
    for root in Certificate::parse_concatenated(&svid.bundle).map_err(|e| e.to_string())? {
        bundle.add_x509_authority(root, false).map_err(|e| e.to_string())?;
    }
    let mut bundles = BundleSet::default();
    bundles.put(Arc::new(bundle));
    let der: Vec<Vec<u8>> = chain.iter().map(|c| c.der().to_vec()).collect();
    party.take(&der, &svid.x509_svid_key, bundles).map_err(|e| e.to_string())?;
    Ok(Event::Identity { spiffe_id: spiffe_id.to_string(), serial: leaf.serial_decimal(), expires_at: leaf.not_after.secs() })
}

fn connected(connection: u32, other: &Counterpart) -> Event {
    Event::Connected { connection, spiffe_id: other.spiffe_id.to_string(), serial: other.serial.clone() }
}

/// Returns when a certificate ends. TLS looks at it once, when a connection is made; a program that means it looks again.
async fn end_of(expires_at: Timestamp) {
    SystemClock.sleep_until(expires_at).await;
}

/// The warehouse: answers whoever proves to be `peer`, for as long as the certificate shown counts.
async fn answer_callers(party: Party, peer: SpiffeId, mut renewals: watch::Receiver<u64>) -> Outcome {
    let _ = renewals.wait_for(|n| *n > 0).await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    say(&Event::Listening { address: listener.local_addr()? });
    let mut connection = 0;
    loop {
        let (stream, _) = listener.accept().await?;
        connection += 1;
        let (party, peer) = (party.clone(), peer.clone());
        tokio::spawn(async move {
            let (stream, other) = match party.accept(stream, &peer).await {
                Ok(made) => made,
                Err(refused) => return say(&Event::Refused { reason: refused.to_string() }),
            };
            say(&connected(connection, &other));
            tokio::select! {
                ended = answer(stream) => if let Err(error) = ended {
                    say(&Event::Dropped { connection, reason: why(&error) });
                },
                () = end_of(other.expires_at) => say(&Event::HungUp { spiffe_id: other.spiffe_id.to_string() }),
            }
        });
    }
}

/// Why a connection was lost; a missing farewell has a reason too long for a line.
fn why(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::UnexpectedEof { "the other end hung up".to_owned() } else { error.to_string() }
}

/// Answers each question until the caller hangs up.
async fn answer(stream: Connection) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut question = String::new();
        if (&mut stream).take(LINE_BYTES_MAX).read_line(&mut question).await? == 0 {
            return Ok(());
        }
        stream.write_all(format!("in stock: {question}").as_bytes()).await?;
        stream.flush().await?;
    }
}

/// An open connection of the shop.
struct Line {
    stream: BufReader<Connection>,
    /// When the certificate ends that the other end has shown.
    expires_at: Timestamp,
    spiffe_id: String,
    answers: u32,
}

impl Line {
    async fn ask(&mut self, question: u64) -> std::io::Result<()> {
        let question = format!("article {question}\n");
        self.stream.write_all(question.as_bytes()).await?;
        self.stream.flush().await?;
        let mut answer = String::new();
        (&mut self.stream).take(LINE_BYTES_MAX).read_line(&mut answer).await?;
        if answer == format!("in stock: {question}") {
            self.answers += 1;
            Ok(())
        } else {
            Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the other end hung up"))
        }
    }
}

/// The shop: asks and asks. With each new certificate it opens a connection, and closes the old one only when the new one
/// has proved itself.
async fn ask_questions(party: Party, peer: SpiffeId, address: SocketAddr, mut renewals: watch::Receiver<u64>) -> Outcome {
    let _ = renewals.wait_for(|n| *n > 0).await;
    let (mut lines, mut made, mut question) = (BTreeMap::<u32, Line>::new(), 0_u32, 0_u64);
    let mut known = 0;
    let mut ticks = interval(QUESTION_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let newest = *renewals.borrow_and_update();
        if newest != known || lines.is_empty() {
            match party.connect(address, &peer).await {
                Ok((stream, other)) => {
                    known = newest;
                    made += 1;
                    say(&connected(made, &other));
                    let line = Line {
                        stream: BufReader::new(stream),
                        expires_at: other.expires_at,
                        spiffe_id: other.spiffe_id.to_string(),
                        answers: 0,
                    };
                    lines.insert(made, line);
                }
                Err(refused) => say(&Event::Refused { reason: refused.to_string() }),
            }
        }
        let now = SystemClock.now();
        let mut gone = Vec::new();
        for (connection, line) in &mut lines {
            question += 1;
            if now >= line.expires_at {
                say(&Event::HungUp { spiffe_id: line.spiffe_id.clone() });
                gone.push(*connection);
                continue;
            }
            let asked = Instant::now();
            match timeout(ANSWER_TIMEOUT, line.ask(question)).await {
                Ok(Ok(())) => say(&Event::Answered { connection: *connection }),
                Ok(Err(error)) => {
                    say(&Event::Dropped { connection: *connection, reason: why(&error) });
                    gone.push(*connection);
                }
                Err(_) => {
                    say(&Event::Dropped { connection: *connection, reason: format!("no answer for {:?}", asked.elapsed()) });
                    gone.push(*connection);
                }
            }
        }
        for connection in gone {
            lines.remove(&connection);
        }
        retire(&mut lines).await;
    }
}

/// Closes what a newer connection has taken the place of.
async fn retire(lines: &mut BTreeMap<u32, Line>) {
    let proved = lines.iter().next_back().filter(|(_, line)| line.answers >= ANSWERS_BEFORE_RETIREMENT).map(|(newest, _)| *newest);
    let Some(newest) = proved else { return };
    let kept = lines.split_off(&newest);
    for (connection, mut line) in std::mem::replace(lines, kept) {
        let _ = line.stream.shutdown().await;
        say(&Event::Retired { connection });
    }
}
