//! What happens in a run: drawn from the seed alone, before anything runs.

use countersign_transport::random::{Random as _, Seeded};

/// Agents in a run: two, so that each sees what is not its own.
pub const AGENTS: usize = 2;
/// Places for entries: few, so that they are created, changed and deleted again and again.
pub const ENTRIES: usize = 4;
/// Names an entry takes turns with.
const NAMES: u64 = 3;
/// Writes to the disk within which a crash comes: one transaction is some five to fifteen.
const CRASH_WITHIN: u64 = 14;
/// Longest step of a clock: half of an SVID's life.
const CLOCK_STEP_SECS_MAX: u64 = 2 * 3600;
/// Longest time in one step: the servers prepares and activates authorities within a few of them.
const HOURS_MAX: u64 = 6;

/// Whose clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Who {
    /// The server's.
    Server,
    /// That of this agent.
    Agent(usize),
}

/// Something that happens. What makes no sense by then does nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// The operator creates the entry of this place, below this agent's alias; `fits` says whether the workload satisfies it.
    Create {
        /// Of the entry.
        place: usize,
        /// Whose alias is its parent.
        agent: usize,
        /// Which name.
        name: u64,
        /// Whether the workload has its selectors.
        fits: bool,
    },
    /// The operator changes it.
    Update {
        /// Of the entry.
        place: usize,
        /// Which name.
        name: u64,
        /// Whether the workload has its selectors.
        fits: bool,
    },
    /// The operator deletes it.
    Delete {
        /// Of the entry.
        place: usize,
    },
    /// The operator bans the node.
    Ban(usize),
    /// The operator evicts the node.
    Evict(usize),
    /// The operator makes a token, and a node that is out joins with it.
    Join(usize),
    /// The workload asks for a JWT-SVID.
    FetchJwt(usize),
    /// Time passes, in seconds.
    Pass(u64),
    /// The server loses power: at once, or during a step after so many writes to its disk; what was not synced is lost, or
    /// torn by this seed.
    CrashServer {
        /// During which step.
        during: Option<Box<Step>>,
        /// After so many writes of it.
        writes: u64,
        /// How the rest is torn.
        torn: Option<u64>,
    },
    /// The server starts again.
    StartServer,
    /// The agent is killed.
    CrashAgent(usize),
    /// The agent starts again.
    StartAgent(usize),
    /// The connections of an agent end, and new ones are refused.
    Cut(usize),
    /// What an agent and the server say to each other gets lost, and nobody is told.
    Silence(usize),
    /// The network is good again.
    Mend(usize),
    /// The store's disk is full after so many more writes.
    FillStore(u64),
    /// The journal's disk is full after so many more bytes.
    FillJournal(u64),
    /// There is room again on both.
    MakeRoom,
    /// A clock is set forward or back, in seconds.
    StepClock(Who, i64),
    /// All clocks are set right.
    SetClocks,
}

/// The steps of a seed.
pub fn draw(seed: u64, count: usize) -> Vec<Step> {
    let mut draw =
        Draw { random: Seeded::new(seed), entries: [false; ENTRIES], down: false, full: false, agents: [Agent::default(); AGENTS] };
    (0..count).map(|_| draw.step()).collect()
}

/// What the steps so far should have led to, so that those to come make sense.
struct Draw {
    random: Seeded,
    entries: [bool; ENTRIES],
    down: bool,
    full: bool,
    agents: [Agent; AGENTS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Agent {
    out: bool,
    down: bool,
    cut: bool,
}

impl Draw {
    fn below(&self, end: u64) -> u64 {
        self.random.next() % end.max(1)
    }

    fn index(&self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).unwrap_or_default()
    }

    fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn step(&mut self) -> Step {
        // A fault lasts for some steps and not for the rest of the run.
        if self.down && self.chance(40) {
            self.down = false;
            return Step::StartServer;
        }
        if self.full && self.chance(30) {
            self.full = false;
            return Step::MakeRoom;
        }
        let agent = self.index(AGENTS);
        match self.below(100) {
            0..30 => self.entry(),
            30..35 => self.node(agent),
            35..43 => Step::FetchJwt(agent),
            43..51 => Step::Pass(1 + self.below(120)),
            51..62 => Step::Pass(3600 * (1 + self.below(HOURS_MAX))),
            62..74 => self.server(),
            74..80 => self.agent(agent),
            80..88 => self.network(agent),
            88..94 => self.clock(),
            _ => self.disk(),
        }
    }

    fn entry(&mut self) -> Step {
        let place = self.index(ENTRIES);
        let (name, fits, agent) = (self.below(NAMES), self.chance(75), self.index(AGENTS));
        let deletes = self.chance(50);
        let Some(there) = self.entries.get_mut(place) else { return Step::SetClocks };
        match (*there, deletes) {
            (false, _) => {
                *there = true;
                Step::Create { place, agent, name, fits }
            }
            (true, true) => {
                *there = false;
                Step::Delete { place }
            }
            (true, false) => Step::Update { place, name, fits },
        }
    }

    fn node(&mut self, agent: usize) -> Step {
        let bans = self.chance(50);
        let Some(known) = self.agents.get_mut(agent) else { return Step::SetClocks };
        known.out = !known.out;
        match (known.out, bans) {
            (false, _) => {
                known.down = false;
                Step::Join(agent)
            }
            (true, true) => Step::Ban(agent),
            (true, false) => Step::Evict(agent),
        }
    }

    fn server(&mut self) -> Step {
        self.down = !self.down;
        if !self.down {
            return Step::StartServer;
        }
        let during = self.chance(70).then(|| {
            Box::new(match self.below(10) {
                0..6 => self.entry(),
                6 => Step::FetchJwt(self.index(AGENTS)),
                _ => Step::Pass(3600 * (1 + self.below(HOURS_MAX))),
            })
        });
        let torn = self.chance(50).then(|| self.random.next());
        Step::CrashServer { during, writes: self.below(CRASH_WITHIN), torn }
    }

    fn agent(&mut self, agent: usize) -> Step {
        let Some(known) = self.agents.get_mut(agent) else { return Step::SetClocks };
        known.down = !known.down;
        if known.down { Step::CrashAgent(agent) } else { Step::StartAgent(agent) }
    }

    fn network(&mut self, agent: usize) -> Step {
        let cuts = self.chance(50);
        let Some(known) = self.agents.get_mut(agent) else { return Step::SetClocks };
        known.cut = !known.cut;
        match (known.cut, cuts) {
            (false, _) => Step::Mend(agent),
            (true, true) => Step::Cut(agent),
            (true, false) => Step::Silence(agent),
        }
    }

    fn clock(&self) -> Step {
        if self.chance(40) {
            return Step::SetClocks;
        }
        let who = match self.index(AGENTS + 1) {
            0 => Who::Server,
            n => Who::Agent(n - 1),
        };
        let secs = i64::try_from(1 + self.below(CLOCK_STEP_SECS_MAX)).unwrap_or_default();
        Step::StepClock(who, if self.chance(50) { secs } else { -secs })
    }

    fn disk(&mut self) -> Step {
        if self.full {
            self.full = false;
            return Step::MakeRoom;
        }
        self.full = true;
        if self.chance(50) { Step::FillStore(self.below(CRASH_WITHIN)) } else { Step::FillJournal(self.below(2000)) }
    }
}
