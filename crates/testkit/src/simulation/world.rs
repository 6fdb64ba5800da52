//! Everything of a run: takes one step after the other, and looks at all of it after each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_plugins::keys::sha256;
use countersign_transport::clock::{Clock as _, SharedClock};
use countersign_wire::journal::Kind;
use countersign_wire::workload::Jwtsvid;

use super::agent::{Agent, Phase};
use super::check::{self, Given, Records, Verified};
use super::line::Condition;
use super::model::{self, Entry, Model, Request};
use super::quiet::Quiet;
use super::server::{Disks, Server};
use super::step::{AGENTS, Step, Who};
use super::workload::Shown;
use super::{CONVERGENCE, Defect, defect};
use crate::clock::VirtualClock;
use crate::domain::Anyhow;
use crate::powerloss::Unsynced;
use crate::workload::Workload;

/// When every run begins.
const BEGIN_SECS: i64 = 1_800_000_000;
/// Time passes in pieces, so that whatever is due in between happens in between.
const PIECE: Duration = Duration::from_secs(3600);
/// The first pieces while somebody is waited for: the shortest pause of an agent is a tenth of a second.
const NUDGE_FIRST: Duration = Duration::from_millis(20);
const NUDGE_MAX: Duration = Duration::from_secs(10);

/// Runs these steps. Says on failure how many were begun, and why.
pub(super) async fn run(
    seed: u64,
    steps: &[Step],
    quiet: Quiet,
    disks: Disks,
    defect: Option<Defect>,
) -> Result<[u8; 32], (usize, String)> {
    let mut world = World::begin(seed, quiet, disks, defect).await.map_err(|e| (0, e.to_string()))?;
    for (number, step) in steps.iter().enumerate() {
        world.go(step).await.map_err(|e| (number + 1, e.to_string()))?;
    }
    let digest = world.end(steps).await.map_err(|e| (steps.len(), format!("after the last step: {e}")))?;
    Ok(digest)
}

struct World {
    directory: tempfile::TempDir,
    disks: Disks,
    disguise: fn(VirtualClock) -> SharedClock,
    quiet: Quiet,
    server: Option<Server>,
    clock: VirtualClock,
    /// By how much the server's clock is wrong, in seconds.
    skew: i64,
    agents: Vec<Agent>,
    model: Model,
    /// Entry IDs by place.
    ids: BTreeMap<usize, String>,
    /// All entries there ever were for a SPIFFE ID.
    granting: BTreeMap<String, BTreeSet<String>>,
    /// Whether a disk of the server is full or will be soon.
    store_full: bool,
    journal_full: bool,
    /// Power cuts before one that is to come.
    armed: Option<u64>,
    /// Everything that was ever given to anybody, by serial number or digest.
    given: BTreeMap<String, Given>,
    /// What the workloads of agents that hear the server had after each step.
    held: Vec<Vec<BTreeSet<String>>>,
    verified: Verified,
}

impl World {
    async fn begin(seed: u64, quiet: Quiet, disks: Disks, defect: Option<Defect>) -> Result<Self, Anyhow> {
        match defect {
            Some(Defect::StoreForgetsSyncs) => disks.store.forget_syncs(),
            Some(Defect::JournalForgetsSyncs) => disks.journal.forget_syncs(),
            Some(Defect::WaitsByTheTimeOfDay | Defect::LosesAMessage) | None => {}
        }
        let disguise = if defect == Some(Defect::WaitsByTheTimeOfDay) { defect::by_the_time_of_day } else { defect::sound };
        let lost = (defect == Some(Defect::LosesAMessage)).then_some(3);
        // In memory where there is such a place: what is synced is a matter of the disks above.
        let memory = PathBuf::from("/dev/shm");
        let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let directory = tempfile::Builder::new().prefix(&format!("cs{seed}-")).tempdir_in(place)?;
        let begin = || VirtualClock::at(Timestamp::from_secs(BEGIN_SECS));
        let mut agents = Vec::new();
        for number in 0..AGENTS {
            agents.push(Agent::new(number, directory.path(), begin(), lost).await?);
        }
        let mut world = Self {
            directory,
            disks,
            disguise,
            quiet,
            server: None,
            clock: begin(),
            skew: 0,
            agents,
            model: Model::default(),
            ids: BTreeMap::new(),
            granting: BTreeMap::new(),
            store_full: false,
            journal_full: false,
            armed: None,
            given: BTreeMap::new(),
            held: Vec::new(),
            verified: Verified::default(),
        };
        world.start_server().await?;
        for agent in 0..AGENTS {
            world.join(agent).await?;
        }
        world.settle().await?;
        world.compare().await?;
        Ok(world)
    }

    /// One step, and what it leads to.
    async fn go(&mut self, step: &Step) -> Result<(), Anyhow> {
        self.take(step).await?;
        self.settle().await?;
        self.compare().await?;
        self.note();
        Ok(())
    }

    /// Keeps for the digest what the workloads have now, where nothing is in the way of it.
    fn note(&mut self) {
        let held = self.agents.iter().filter(|agent| self.hears(agent)).map(|agent| match agent.listener.shown() {
            Shown::Open(Some(message)) => message.svids.iter().map(|svid| svid.spiffe_id.clone()).collect::<BTreeSet<_>>(),
            Shown::Open(None) | Shown::Denied | Shown::Closed => BTreeSet::new(),
        });
        let held = held.collect();
        self.held.push(held);
    }

    /// Everything is mended; in the end all is as it should be.
    async fn end(mut self, steps: &[Step]) -> Result<[u8; 32], Anyhow> {
        self.make_room();
        self.set_clocks()?;
        self.start_server().await?;
        for agent in 0..AGENTS {
            self.mend(agent);
            self.start_agent(agent)?;
        }
        self.settle().await?;
        self.compare().await?;
        let records = Records::read(self.directory.path())?;
        for given in self.given.values() {
            records.check(given)?;
        }
        let nodes: Vec<_> = self.agents.iter().map(|a| a.node.as_ref().map(|n| self.model.state.nodes.get(n))).collect();
        let state = (steps, &self.held, &self.model.state.entries, nodes, self.clock.now());
        Ok(sha256(format!("{state:?}").as_bytes()))
    }

    async fn take(&mut self, step: &Step) -> Result<(), Anyhow> {
        match step {
            Step::Create { place, agent, name, fits } => {
                let entry = Entry { spiffe_id: model::spiffe_id(*place, *name), agent: *agent, fits: *fits };
                if self.model.state.entries.contains_key(place) {
                    return Ok(());
                }
                self.request(Request::Put { place: *place, entry }).await
            }
            Step::Update { place, name, fits } => {
                let Some(known) = self.model.state.entries.get(place) else { return Ok(()) };
                let entry = Entry { spiffe_id: model::spiffe_id(*place, *name), agent: known.agent, fits: *fits };
                self.request(Request::Put { place: *place, entry }).await
            }
            Step::Delete { place } if self.model.state.entries.contains_key(place) => self.request(Request::Delete { place: *place }).await,
            Step::Delete { .. } => Ok(()),
            Step::Ban(agent) => match self.member(*agent) {
                Some(node) => self.request(Request::Ban { node }).await,
                None => Ok(()),
            },
            Step::Evict(agent) => match self.member(*agent) {
                Some(node) => self.request(Request::Evict { node }).await,
                None => Ok(()),
            },
            Step::Join(agent) => self.join(*agent).await,
            Step::FetchJwt(agent) => self.fetch_jwt(*agent).await,
            Step::Pass(secs) => self.pass(Duration::from_secs(*secs)).await,
            Step::CrashServer { during, writes, torn } => {
                if self.server.is_none() {
                    return Ok(());
                }
                self.armed = Some(self.disks.store.losses());
                if let Some(during) = during {
                    self.disks.store.lose_power_after(*writes, torn.map_or(Unsynced::Dropped, Unsynced::Torn));
                    Box::pin(self.take(during)).await?;
                }
                self.crash_server(*torn)
            }
            Step::StartServer => self.start_server().await,
            Step::CrashAgent(agent) => {
                if let Some(process) = self.agents.get_mut(*agent).and_then(|a| a.process.take()) {
                    process.kill();
                }
                Ok(())
            }
            Step::StartAgent(agent) => self.start_agent(*agent),
            Step::Cut(agent) => self.network(*agent, Condition::Cut),
            Step::Silence(agent) => self.network(*agent, Condition::Silent),
            Step::Mend(agent) => {
                self.mend(*agent);
                Ok(())
            }
            Step::FillStore(writes) => {
                if self.server.is_some() {
                    self.disks.store.fill_after(*writes);
                    self.store_full = true;
                }
                Ok(())
            }
            Step::FillJournal(bytes) => {
                if self.server.is_some() {
                    self.disks.journal.fill_after(*bytes);
                    self.journal_full = true;
                }
                Ok(())
            }
            Step::MakeRoom => {
                self.make_room();
                Ok(())
            }
            Step::StepClock(who, secs) => self.step_clock(*who, *secs),
            Step::SetClocks => self.set_clocks(),
        }
    }

    /// This agent's node, if it is in.
    fn member(&self, agent: usize) -> Option<String> {
        let node = self.agents.get(agent)?.node.clone()?;
        (self.model.state.nodes.get(&node) == Some(&false)).then_some(node)
    }

    /// The operator asks for something.
    async fn request(&mut self, request: Request) -> Result<(), Anyhow> {
        let Some(server) = &self.server else { return Ok(()) };
        let entry_id = match &request {
            Request::Put { place, .. } | Request::Delete { place } => self.ids.get(place).cloned(),
            Request::Ban { .. } | Request::Evict { .. } => None,
        };
        match server.request(&request, entry_id.as_deref()).await {
            Ok(made) => {
                self.model.acknowledged(&request);
                match (&request, made) {
                    (Request::Put { place, .. }, Some(id)) => self.know(*place, id),
                    (Request::Delete { place }, _) => drop(self.ids.remove(place)),
                    _ => {}
                }
                Ok(())
            }
            Err(_) if self.power_lost() => {
                self.model.unanswered(request);
                Ok(())
            }
            // Refused for want of room: none of it happened.
            Err(_) if self.store_full => Ok(()),
            Err(error) => Err(format!("the operator is refused: {error}").into()),
        }
    }

    fn know(&mut self, place: usize, id: String) {
        if let Some(entry) = self.model.state.entries.get(&place) {
            self.granting.entry(entry.spiffe_id.clone()).or_default().insert(id.clone());
        }
        self.ids.insert(place, id);
    }

    /// Compares all the server has with what was acknowledged.
    async fn compare(&mut self) -> Result<(), Anyhow> {
        let Some(server) = self.server.as_ref().filter(|_| self.armed.is_none()) else { return Ok(()) };
        let (found, ids) = server.look().await?;
        self.model.compare(&found)?;
        for (place, id) in ids {
            if self.ids.get(&place).is_some_and(|known| *known != id) {
                return Err(format!("the entry of place {place} has another ID").into());
            }
            self.know(place, id);
        }
        let entries = &self.model.state.entries;
        self.ids.retain(|place, _| entries.contains_key(place));
        Ok(())
    }

    async fn start_server(&mut self) -> Result<(), Anyhow> {
        if self.server.is_some() {
            return Ok(());
        }
        right(&self.clock, &mut self.skew);
        (self.store_full, self.journal_full, self.armed) = (false, false, None);
        let server = Server::start(self.directory.path(), &self.disks, &self.clock).await?;
        for agent in &self.agents {
            agent.line.lead_to(Some(server.address));
        }
        self.server = Some(server);
        self.compare().await
    }

    fn crash_server(&mut self, torn: Option<u64>) -> Result<(), Anyhow> {
        if !self.power_lost() {
            self.disks.store.lose_power();
        }
        self.disks.journal.lose_power(torn.map_or(0, |seed| seed % 1000))?;
        if let Some(server) = self.server.take() {
            server.process.kill();
        }
        for agent in &self.agents {
            agent.line.lead_to(None);
        }
        Ok(())
    }

    /// Whether the power cut has come that was to come during a step.
    fn power_lost(&self) -> bool {
        self.armed.is_some_and(|before| self.disks.store.losses() != before)
    }

    /// A node that is out gets a token.
    async fn join(&mut self, number: usize) -> Result<(), Anyhow> {
        let server_is_well = self.is_well();
        let Some((server, agent)) = self.server.as_ref().zip(self.agents.get_mut(number)) else { return Ok(()) };
        let reachable = agent.line.condition() == Condition::Good && agent.skew == 0;
        if agent.node.is_some() || agent.process.is_some() || !reachable || !server_is_well {
            return Ok(());
        }
        let (token, bundle) = (server.token(number).await?, server.bundle().await?);
        agent.start(Some((&token, &bundle)), self.disguise)?;
        agent.may_end = false;
        let node = format!("spiffe://example.org/spire/agent/join_token/{token}");
        self.model.joined(&node);
        agent.node = Some(node);
        Ok(())
    }

    fn start_agent(&mut self, number: usize) -> Result<(), Anyhow> {
        let Some(agent) = self.agents.get_mut(number) else { return Ok(()) };
        if agent.process.is_none() && agent.node.is_some() {
            right(&agent.clock, &mut agent.skew);
            agent.look_at_the_clock()?;
            agent.start(None, self.disguise)?;
        }
        Ok(())
    }

    fn network(&mut self, number: usize, condition: Condition) -> Result<(), Anyhow> {
        if let Some(agent) = self.agents.get(number) {
            agent.line.set(condition);
        }
        Ok(())
    }

    fn mend(&mut self, number: usize) {
        if let Some(agent) = self.agents.get(number) {
            agent.line.set(Condition::Good);
        }
    }

    fn make_room(&mut self) {
        self.disks.store.make_room();
        self.disks.journal.make_room();
        (self.store_full, self.journal_full) = (false, false);
    }

    fn step_clock(&mut self, who: Who, secs: i64) -> Result<(), Anyhow> {
        let (clock, skew) = match who {
            Who::Server => (&self.clock, &mut self.skew),
            Who::Agent(number) => match self.agents.get_mut(number) {
                Some(agent) => (&agent.clock, &mut agent.skew),
                None => return Ok(()),
            },
        };
        if *skew == 0 {
            set(clock, secs);
            *skew = secs;
        }
        self.look_at_the_clocks()
    }

    fn set_clocks(&mut self) -> Result<(), Anyhow> {
        right(&self.clock, &mut self.skew);
        for agent in &mut self.agents {
            right(&agent.clock, &mut agent.skew);
        }
        self.look_at_the_clocks()
    }

    fn look_at_the_clocks(&mut self) -> Result<(), Anyhow> {
        self.agents.iter_mut().filter(|a| a.process.is_some()).try_for_each(Agent::look_at_the_clock)
    }

    /// Time passes, everywhere alike.
    async fn advance(&mut self, by: Duration) -> Result<(), Anyhow> {
        let server = self.server.as_ref().map(|server| &server.process);
        let agents = self.agents.iter().map(|agent| (agent.process.as_ref(), &agent.clock));
        // Nobody moves at the moment, so whoever runs now is there when all stand still for each other.
        let everybody: Vec<_> =
            agents.chain([(server, &self.clock)]).map(|(process, clock)| (process.filter(|p| !p.has_ended()), clock)).collect();
        let barrier = Arc::new(Barrier::new(everybody.iter().filter(|(process, _)| process.is_some()).count()));
        let mut passing = Vec::new();
        for (process, clock) in everybody {
            match process {
                Some(process) => passing.push(process.advance(clock.clone(), by, Arc::clone(&barrier))),
                None => clock.advance(by),
            }
        }
        for one in passing {
            match one.await {
                // What became due was its end.
                Err(error) if error.is_cancelled() => {}
                ended => ended?,
            }
        }
        self.look_at_the_clocks()
    }

    async fn pass(&mut self, time: Duration) -> Result<(), Anyhow> {
        let mut left = time;
        while !left.is_zero() && !self.power_lost() {
            let piece = left.min(PIECE);
            left -= piece;
            self.advance(piece).await?;
            self.settle().await?;
        }
        Ok(())
    }

    /// Whether the server can do all it should.
    fn is_well(&self) -> bool {
        self.server.is_some() && !self.power_lost() && !self.store_full && !self.journal_full && self.skew == 0
    }

    /// Whether this agent runs and hears a server that is well.
    fn hears(&self, agent: &Agent) -> bool {
        self.is_well() && agent.process.is_some() && agent.line.condition() == Condition::Good && agent.skew == 0
    }

    /// Waits until everybody is up to date who can be, within [`CONVERGENCE`], and lets the rest of that time pass, so that it
    /// is the same time whoever was quicker.
    async fn settle(&mut self) -> Result<(), Anyhow> {
        let (mut spent, mut nudge) = (Duration::ZERO, NUDGE_FIRST);
        loop {
            self.quiet.wait()?;
            self.examine()?;
            if self.power_lost() {
                return Ok(());
            }
            let Some(missing) = self.missing()? else { break };
            if spent >= CONVERGENCE {
                return Err(format!("after {spent:?}: {missing}").into());
            }
            let piece = nudge.min(CONVERGENCE - spent);
            self.advance(piece).await?;
            spent += piece;
            nudge = (nudge * 2).min(NUDGE_MAX);
        }
        for number in 0..AGENTS {
            if self.agents.get(number).is_some_and(|agent| self.hears(agent) && agent.node.is_some()) {
                self.model.converged(number);
            }
        }
        self.advance(CONVERGENCE.saturating_sub(spent)).await?;
        self.quiet.wait()?;
        self.examine()
    }

    /// What somebody still lacks, if anybody.
    fn missing(&mut self) -> Result<Option<String>, Anyhow> {
        let mut missing = Vec::new();
        for number in 0..AGENTS {
            if let Some(reason) = self.missing_at(number)? {
                missing.push(format!("agent {number}: {reason}"));
            }
        }
        Ok((!missing.is_empty()).then(|| missing.join("; ")))
    }

    fn missing_at(&mut self, number: usize) -> Result<Option<String>, Anyhow> {
        let is_in = self.member(number).is_some();
        let due = self.model.due(number);
        let Some(hears) = self.agents.get(number).map(|agent| self.hears(agent)) else { return Ok(None) };
        let Some(agent) = self.agents.get_mut(number) else { return Ok(None) };
        if agent.process.is_none() {
            return Ok(None);
        }
        match agent.phase() {
            Phase::Ended(_) if !is_in || agent.may_end => {
                agent.process = None;
                agent.node = None;
                return Ok(None);
            }
            Phase::Ended(reason) => return Err(format!("agent {number} has ended by itself: {reason}").into()),
            _ if !hears || (is_in && agent.may_end) => return Ok(None),
            _ if !is_in => return Ok(Some("its node is out, and it runs on".to_owned())),
            Phase::Starting => return Ok(Some("it has no identity yet".to_owned())),
            Phase::Serving => {}
        }
        let now = agent.clock.now();
        let begins_later = |not_before: Timestamp| not_before > now;
        let Some(own) = agent.own_svid()? else { return Ok(Some("it has no SVID on its disk".to_owned())) };
        // Issued while the server's clock was ahead: with it the agent cannot connect until it begins.
        if begins_later(own.not_before) {
            return Ok(None);
        }
        if let Some(reason) = stale(own.not_before, own.not_after, now) {
            return Ok(Some(format!("its own SVID {reason}")));
        }
        let message = match agent.listener.shown() {
            Shown::Denied if due.is_empty() => return Ok(None),
            Shown::Open(Some(message)) => message,
            shown => {
                agent.listener.call_again();
                return Ok(Some(format!("its workload is to have {due:?}, its stream: {shown:?}")));
            }
        };
        let held: BTreeSet<String> = message.svids.iter().map(|s| s.spiffe_id.clone()).collect();
        if held != due {
            return Ok(Some(format!("its workload is to have {due:?} and has {held:?}")));
        }
        for svid in &message.svids {
            let leaf = self.verified.look(svid)?;
            if begins_later(leaf.not_before) {
                continue;
            }
            if let Some(reason) = stale(leaf.not_before, leaf.not_after, now) {
                return Ok(Some(format!("the SVID of `{}` {reason}", svid.spiffe_id)));
            }
        }
        Ok(None)
    }

    /// Looks at everything that was given to somebody since the last time.
    fn examine(&mut self) -> Result<(), Anyhow> {
        let mut fresh = Vec::new();
        for (number, agent) in self.agents.iter_mut().enumerate() {
            let Some(node) = agent.node.clone() else { continue };
            let allowed = self.model.allowed(number);
            for message in agent.listener.take() {
                for svid in &message.svids {
                    if !allowed.contains(&svid.spiffe_id) {
                        return Err(format!("agent {number} serves `{}`, allowed is {allowed:?}", svid.spiffe_id).into());
                    }
                    let leaf = self.verified.look(svid)?;
                    let entries = self.granting.get(&svid.spiffe_id).cloned();
                    fresh.push(Given {
                        kind: Kind::WorkloadX509,
                        spiffe_id: svid.spiffe_id.clone(),
                        mark: leaf.serial_number,
                        node: node.clone(),
                        entries: Some(entries.unwrap_or_default()),
                    });
                }
            }
            if let Some(own) = agent.own_svid()? {
                fresh.push(Given { kind: Kind::AgentX509, spiffe_id: node.clone(), mark: own.serial_number, node, entries: None });
            }
        }
        self.record(fresh)
    }

    /// Each thing that was given must be in the journal by the time somebody has it.
    fn record(&mut self, fresh: Vec<Given>) -> Result<(), Anyhow> {
        let mut records = None;
        for given in fresh {
            if self.given.contains_key(&given.mark) {
                continue;
            }
            let records = match &records {
                Some(records) => records,
                None => records.insert(Records::read(self.directory.path())?),
            };
            records.check(&given)?;
            self.given.insert(given.mark.clone(), given);
        }
        Ok(())
    }

    async fn fetch_jwt(&mut self, number: usize) -> Result<(), Anyhow> {
        let due = self.model.due(number);
        let Some(agent) = self.agents.get(number) else { return Ok(()) };
        if agent.process.is_none() || agent.phase() != Phase::Serving {
            return Ok(());
        }
        let (socket, must) = (agent.socket(), self.hears(agent) && self.member(number).is_some() && !due.is_empty());
        let (mut spent, mut nudge) = (Duration::ZERO, NUDGE_FIRST);
        let mut call = tokio::spawn(ask_for_token(socket.clone()));
        let svids = loop {
            self.quiet.wait()?;
            if call.is_finished() {
                match (&mut call).await? {
                    Ok(svids) => break svids,
                    Err(_) if !must || self.power_lost() => return Ok(()),
                    Err(reason) if spent >= CONVERGENCE => {
                        return Err(format!("agent {number} gives no JWT-SVID: {reason}").into());
                    }
                    // As a client does that wants one.
                    Err(_) => call = tokio::spawn(ask_for_token(socket.clone())),
                }
            }
            if spent >= CONVERGENCE {
                return Err(format!("agent {number} does not answer a call for a JWT-SVID").into());
            }
            self.advance(nudge).await?;
            spent += nudge;
            nudge = (nudge * 2).min(NUDGE_MAX);
        };
        let allowed = self.model.allowed(number);
        let Some(agent) = self.agents.get(number) else { return Ok(()) };
        let mut fresh = Vec::new();
        for svid in svids {
            if !allowed.contains(&svid.spiffe_id) {
                return Err(format!("agent {number} gives a token of `{}`, allowed is {allowed:?}", svid.spiffe_id).into());
            }
            let (mark, end) = check::token(&svid.svid)?;
            // Time may have gone on while the answer was on its way.
            if must && end <= agent.clock.now().before(nudge).secs() {
                return Err(format!("agent {number} gives a token of `{}` that has ended", svid.spiffe_id).into());
            }
            fresh.push(Given {
                kind: Kind::WorkloadJwt,
                entries: Some(self.granting.get(&svid.spiffe_id).cloned().unwrap_or_default()),
                spiffe_id: svid.spiffe_id,
                mark,
                node: agent.node.clone().unwrap_or_default(),
            });
        }
        self.record(fresh)
    }
}

/// Asks for a JWT-SVID, as a client does.
async fn ask_for_token(socket: PathBuf) -> Result<Vec<Jwtsvid>, String> {
    let workload = Workload::connect(&socket).await.map_err(|e| e.to_string())?;
    workload.jwt_svids(&["audience"], "").await.map_err(|s| s.to_string())
}

/// What is wrong with a certificate that should have been renewed in time: renewals begin before half of a life, and those
/// that were got by a clock that was wrong by at most a quarter of one, a little later.
fn stale(not_before: Timestamp, not_after: Timestamp, now: Timestamp) -> Option<String> {
    let old = not_before.after(not_after.since(not_before) * 3 / 4);
    (old <= now).then(|| format!("ends at {not_after}, and it is {now}"))
}

fn set(clock: &VirtualClock, secs: i64) {
    let by = Duration::from_secs(secs.unsigned_abs());
    if secs < 0 { clock.step_back(by) } else { clock.step_forward(by) }
}

fn right(clock: &VirtualClock, skew: &mut i64) {
    set(clock, -std::mem::take(skew));
}
