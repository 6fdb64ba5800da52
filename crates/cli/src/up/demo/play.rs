//! The acts of the demo: each does something, waits until somebody has seen its effect, and tells that.

use std::time::Duration;

use countersign_identity::{Selector, SpiffeId};
use countersign_transport::clock::{Clock as _, SystemClock};
use countersign_wire::agent::BanAgentRequest;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::{BatchCreateEntryRequest, ListEntriesRequest};
use countersign_wire::journal::journal_client::JournalClient;
use countersign_wire::journal::{IssuedRequest, Outcome as Issued};
use countersign_wire::{id, types};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::Channel;

use super::narrator::{Narrator, Who};
use super::seen::Seen;
use super::stage::{Player, Report, Stage};
use crate::output::{Failure, Outcome};
use crate::up::{Children, Parts as _, raise_server, story};

/// Lifetime of the programs' certificates in seconds. Real ones live for an hour; with these a rotation, and the end of an
/// identity after the ban, are seen soon, and a machine that is busy still renews in time.
const LIFETIME_SECS: i32 = 24;
/// How long anything may take to be seen, beyond what must pass anyway. A machine that is busy needs seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often it is looked whether server and agent still run.
const LOOK: Duration = Duration::from_millis(100);
/// Questions until the two count as talking.
const FIRST_ANSWERS: u32 = 5;
/// Calls refused until they count as made again and again.
const REFUSALS: u32 = 2;
/// Entries and records asked for: a demo has two, and some dozens.
const LISTED_MAX: i32 = 1000;

/// A play under way.
pub(super) struct Play<'a> {
    stage: &'a mut Stage,
    children: &'a mut Children,
    reports: mpsc::Receiver<Report>,
    narrator: Narrator,
    seen: Seen,
    /// From then on the agent may end, and connections with it.
    is_banned: bool,
}

impl<'a> Play<'a> {
    pub(super) fn new(stage: &'a mut Stage, children: &'a mut Children, reports: mpsc::Receiver<Report>, narrator: Narrator) -> Self {
        Self { stage, children, reports, narrator, seen: Seen::default(), is_banned: false }
    }

    /// From the first act to the last.
    pub(super) async fn act(mut self) -> Outcome {
        let server = raise_server(&self.stage.layout, self.children).await?;
        self.narrator.tell(Who::Server, "is up. It decides which program may be whom, and writes down every proof it issues").await;
        self.register(server.clone()).await?;
        self.children.agent().await?;
        let agent = story::newest_agent(server.clone()).await?;
        self.narrator.tell(Who::Agent, "is up. One runs on each machine; it looks at the programs there and fetches their proofs").await;
        self.warehouse_and_shop().await?;
        self.rotation().await?;
        self.stranger(server.clone()).await?;
        self.ban(server.clone(), &agent).await?;
        self.end_of_an_identity().await?;
        self.journal(server).await
    }

    /// Takes reports until something has been seen.
    async fn until<T>(&mut self, what: &str, limit: Duration, mut find: impl FnMut(&mut Seen) -> Option<T>) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        // What was reported while the reader read.
        while let Ok(report) = self.reports.try_recv() {
            self.take(report)?;
        }
        loop {
            if !self.is_banned
                && let Some(trouble) = self.seen.trouble()
            {
                return Err(self.cause(trouble).await);
            }
            if let Some(found) = find(&mut self.seen) {
                return Ok(found);
            }
            match timeout(LOOK, self.reports.recv()).await {
                Ok(Some(report)) => self.take(report)?,
                Ok(None) => return Err(Failure::new("nobody reports any more")),
                Err(_) => {
                    let ended = if self.is_banned { self.children.server_ended() } else { self.children.ended() };
                    if let Some(failure) = ended {
                        return Err(failure);
                    }
                    if Instant::now() > deadline {
                        return Err(Failure::new(format!("{what}: waited {} s for it in vain", limit.as_secs())));
                    }
                }
            }
        }
    }

    /// Whoever lost a connection may have been quicker to say so than the other one to end.
    async fn cause(&mut self, trouble: String) -> Failure {
        let deadline = Instant::now() + LOOK;
        while let Ok(Some(report)) = timeout_at(deadline, self.reports.recv()).await {
            if let (player, None) = report {
                return Failure::new(format!("the {} has ended by itself", player.name()));
            }
        }
        Failure::new(trouble)
    }

    fn take(&mut self, (player, event): Report) -> Outcome {
        match event {
            Some(event) => self.seen.add(player, event).map_err(Failure::new),
            None => Err(Failure::new(format!("the {} has ended by itself", player.name()))),
        }
    }

    fn spiffe_id(&self, player: Player) -> Result<SpiffeId, Failure> {
        self.stage.layout.trust_domain.with_path(&format!("/{}", player.name())).map_err(|e| Failure::new(e.to_string()))
    }

    /// Says which programs are known, by where they are.
    async fn register(&mut self, server: Channel) -> Outcome {
        let parent = SpiffeId::parse(&self.stage.layout.node_alias()).map_err(|e| Failure::new(e.to_string()))?;
        let mut entries = Vec::new();
        for player in [Player::Shop, Player::Warehouse] {
            let path = format!("path:{}", self.stage.program(player).display());
            let selector = Selector::new("unix", &path).map_err(|e| Failure::new(e.to_string()))?;
            entries.push(types::Entry {
                spiffe_id: Some(id::to_wire(&self.spiffe_id(player)?)),
                parent_id: Some(id::to_wire(&parent)),
                selectors: id::selectors_to_wire(&[selector]),
                x509_svid_ttl: LIFETIME_SECS,
                ..types::Entry::default()
            });
        }
        let results = EntryClient::new(server).batch_create_entry(BatchCreateEntryRequest { entries, output_mask: None }).await?;
        for status in results.into_inner().results.into_iter().map(|r| r.status.unwrap_or_default()) {
            if status.code != 0 {
                return Err(Failure::new(format!("cannot register the demo's programs: {}", status.message)));
            }
        }
        let text = "register two programs by where they are: programs/shop and programs/warehouse. No password";
        self.narrator.tell(Who::You, text).await;
        Ok(())
    }

    async fn warehouse_and_shop(&mut self) -> Outcome {
        let (shop, warehouse) = (self.spiffe_id(Player::Shop)?, self.spiffe_id(Player::Warehouse)?);
        self.narrator.turn().await;
        self.stage.start(Player::Warehouse, &["--peer", shop.as_str()])?;
        let address = self.until("the warehouse has an identity and listens", PATIENCE, |seen| seen.by(Player::Warehouse).address).await?;
        let given = self.until("the warehouse's identity", PATIENCE, |s| s.by(Player::Warehouse).identities.first().cloned()).await?;
        let left = given.expires_at.since(SystemClock.now()).as_secs_f64().round();
        let text = format!("starts with empty hands. The agent looks at it: it is {}, proved for {left} s", given.spiffe_id);
        self.narrator.tell(Who::Warehouse, &text).await;

        self.narrator.turn().await;
        self.stage.start(Player::Shop, &["--peer", warehouse.as_str(), "--address", &address.to_string()])?;
        let given = self.until("the shop's identity", PATIENCE, |s| s.by(Player::Shop).identities.first().cloned()).await?;
        self.narrator.tell(Who::Shop, &format!("starts likewise, and is {}", given.spiffe_id)).await;

        // Both ends have verified the other one, and say whom they saw.
        let both = |seen: &mut Seen| {
            let called = seen.by(Player::Shop).connected.first().map(|(id, _)| id.clone())?;
            let caller = seen.by(Player::Warehouse).connected.first().map(|(id, _)| id.clone())?;
            (called == warehouse.as_str() && caller == shop.as_str()).then_some(())
        };
        self.until("the shop and the warehouse connect", PATIENCE, both).await?;
        let text = "calls the warehouse. Each has checked the other's proof, and nobody can listen in (mutual TLS)";
        self.narrator.tell(Who::Shop, text).await;
        let answers = |seen: &mut Seen| Some(seen.by(Player::Shop).answers_in_all()).filter(|n| *n >= FIRST_ANSWERS);
        let answers = self.until("the warehouse answers", PATIENCE, answers).await?;
        self.narrator.tell(Who::Warehouse, &format!("has answered {answers} questions of the shop by now")).await;
        Ok(())
    }

    /// A new certificate while the two talk: the open connection goes on, and the next one is made with the new one.
    async fn rotation(&mut self) -> Outcome {
        let lifetime = Duration::from_secs(LIFETIME_SECS.unsigned_abs().into());
        let renewed = |seen: &mut Seen| {
            let shop = seen.by(Player::Shop);
            let (first, second) = (shop.identities.first()?.clone(), shop.identities.get(1)?.clone());
            (first.serial != second.serial).then_some((first, second))
        };
        let (first, second) = self.until("the shop's proof is renewed", lifetime + PATIENCE, renewed).await?;
        let early = first.expires_at.since(second.expires_at.before(lifetime)).as_secs();
        let text = format!("has a new proof, {early} s before the old one would have ended. That goes on by itself, for ever");
        self.narrator.tell(Who::Shop, &text).await;
        let survived = |seen: &mut Seen| {
            let used = seen.by(Player::Warehouse).connected.iter().any(|(_, serial)| *serial == second.serial);
            let shop = seen.by(Player::Shop);
            let went_on = shop.answers.get(&1) > shop.answers_at_renewal.get(&1);
            (used && went_on && !shop.retired.is_empty()).then(|| (shop.answers_in_all(), shop.dropped.len()))
        };
        let (answers, dropped) = self.until("the talk goes on over the renewal", PATIENCE, survived).await?;
        let text = format!("has talked on meanwhile: {answers} answers, {dropped} connections dropped, new calls with the new proof");
        self.narrator.tell(Who::Shop, &text).await;
        Ok(())
    }

    /// A third program that nobody registered.
    async fn stranger(&mut self, server: Channel) -> Outcome {
        self.narrator.turn().await;
        let pid = self.stage.start(Player::Stranger, &["--alone"])?;
        let got = |seen: &mut Seen| {
            let seat = seen.by(Player::Stranger);
            seat.denied.clone().map(Ok).or_else(|| seat.identities.first().map(|i| Err(i.spiffe_id.clone())))
        };
        let reason = match self.until("the stranger is denied", PATIENCE, got).await? {
            Ok(reason) => reason,
            Err(identity) => return Err(Failure::new(format!("the stranger was given {identity}, which nobody registered for it"))),
        };
        self.narrator
            .tell(Who::Stranger, &format!("is a third program, and nobody registered it. It asks as well, and hears: {reason}"))
            .await;
        // The reason is looked up, not assumed: where it runs, and what is registered.
        let runs = std::fs::read_link(format!("/proc/{pid}/exe")).map_err(|e| Failure::new(format!("cannot look at the stranger: {e}")))?;
        let request = ListEntriesRequest { filter: None, output_mask: None, page_size: LISTED_MAX, page_token: String::new() };
        let entries = EntryClient::new(server).list_entries(request).await?.into_inner().entries;
        let wanted = format!("path:{}", runs.display());
        let registered: Vec<String> = entries
            .iter()
            .flat_map(|e| &e.selectors)
            .filter_map(|s| s.value.strip_prefix("path:"))
            .map(|path| self.short(std::path::Path::new(path)))
            .collect();
        if entries.iter().flat_map(|e| &e.selectors).any(|s| s.value == wanted) {
            return Err(Failure::new("the stranger was denied although it is registered"));
        }
        let text = format!("see why: it runs from {}, but registered are {}", self.short(&runs), registered.join(" and "));
        self.narrator.tell(Who::You, &text).await;
        let verdict = self.explained(pid).await?;
        self.narrator.tell(Who::You, &format!("or ask, with `countersign explain --pid {pid}`: {verdict}")).await;
        Ok(())
    }

    /// What `countersign explain` says first about a process.
    async fn explained(&self, pid: u32) -> Result<String, Failure> {
        let answer = tokio::process::Command::new(std::env::current_exe()?)
            .args(["explain", "--pid", &pid.to_string()])
            .env("COUNTERSIGN_AGENT_ADMIN_SOCKET", self.stage.layout.directory().join("admin.sock"))
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        let verdict = String::from_utf8_lossy(&answer.stdout).lines().next().map(|line| line.trim_end_matches('.').to_owned());
        verdict.ok_or_else(|| {
            let error = String::from_utf8_lossy(&answer.stderr).trim().to_owned();
            Failure::new(format!("`countersign explain` does not answer: {error}"))
        })
    }

    /// A path without the directory that all have.
    fn short(&self, path: &std::path::Path) -> String {
        path.strip_prefix(self.stage.layout.directory()).unwrap_or(path).display().to_string()
    }

    /// The machine is no longer trusted.
    async fn ban(&mut self, server: Channel, agent: &str) -> Outcome {
        let banned = SpiffeId::parse(agent).map_err(|e| Failure::new(e.to_string()))?;
        self.narrator.turn().await;
        self.is_banned = true;
        // Whatever it was before, the agent is there now.
        self.seen.by(Player::Shop).answers_without_agent = None;
        let begun = Instant::now();
        AgentClient::new(server).ban_agent(BanAgentRequest { id: Some(id::to_wire(&banned)) }).await?;
        self.narrator.tell(Who::You, "ban this machine, as if it had been stolen: one command, `agent ban`").await;
        let ended = timeout(PATIENCE, self.children.agent_end()).await;
        let took = begun.elapsed().as_secs_f64();
        match ended {
            Ok(why) if why.to_string().contains("banned") => {
                self.narrator.tell(Who::Agent, &format!("gave up {took:.1} s later: it is banned, and hands out nothing any more")).await;
                Ok(())
            }
            Ok(why) => Err(Failure::new(format!("after the ban, {why}"))),
            Err(_) => Err(Failure::new(format!("the banned agent still runs after {} s", PATIENCE.as_secs()))),
        }
    }

    /// What they hold counts until it ends, and then they are strangers.
    async fn end_of_an_identity(&mut self) -> Outcome {
        let left_alone = |s: &mut Seen| {
            let held = |s: &mut Seen, p| s.by(p).identities.last().map(|i| i.expires_at);
            let talks = s.by(Player::Shop).has_talked_without_agent()?;
            let has_ended = [Player::Warehouse, Player::Shop].into_iter().any(|p| s.by(p).hung_up.is_some());
            let until = held(s, Player::Shop).min(held(s, Player::Warehouse))?;
            (talks || has_ended).then_some((talks, until))
        };
        let (talks, until) = self.until("the shop talks on without the agent", PATIENCE, left_alone).await?;
        let left = until.since(SystemClock.now());
        if talks && !left.is_zero() {
            let text = format!("still talks: a proof in hand counts until it ends, in {} s. Nobody renews it now", left.as_secs());
            self.narrator.tell(Who::Shop, &text).await;
        }
        let hung_up = |seen: &mut Seen| [Player::Warehouse, Player::Shop].into_iter().find(|p| seen.by(*p).hung_up.is_some());
        let lifetime = Duration::from_secs(LIFETIME_SECS.unsigned_abs().into());
        let who = self.until("a proof ends", lifetime + PATIENCE, hung_up).await?;
        let (who, other) = if who == Player::Shop { (Who::Shop, Player::Warehouse) } else { (Who::Warehouse, Player::Shop) };
        self.narrator.tell(who, &format!("hangs up: the {}'s proof has ended", other.name())).await;
        // Of the two ends, the one that refuses knows why; the other one hears of an alert.
        let refused = |seen: &mut Seen| {
            let reasons = [Player::Warehouse, Player::Shop].map(|p| seen.by(p).refused.clone());
            // Both ends may report the same call, so they are not added up.
            let is_repeated = [Player::Warehouse, Player::Shop].into_iter().any(|p| seen.by(p).refusals >= REFUSALS);
            reasons.into_iter().flatten().find(|reason| is_repeated && !reason.starts_with("received fatal alert"))
        };
        let reason = self.until("the next calls are refused", PATIENCE, refused).await?;
        let reason = if reason.contains(" is valid from ") { "a proof that has ended proves nothing" } else { &reason };
        self.narrator.tell(Who::Shop, &format!("calls again and again, in vain: {reason}")).await;
        Ok(())
    }

    /// What was written down.
    async fn journal(&mut self, server: Channel) -> Outcome {
        let request = IssuedRequest { limit: u32::try_from(LISTED_MAX).unwrap_or_default(), ..IssuedRequest::default() };
        let mut stream = JournalClient::new(server).issued(request).await?.into_inner();
        let mut signed = 0_usize;
        while let Some(record) = stream.message().await? {
            if record.outcome == i32::from(Issued::Signed) && record.reason.is_empty() {
                signed += 1;
            }
        }
        let text = format!("has issued {signed} proofs, each written down before it was signed: `log issued` lists them");
        self.narrator.tell(Who::Server, &text).await;
        Ok(())
    }
}
