//! Server and agent as child processes: started, watched, told apart in what they say, and stopped.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::layout::Layout;
use super::{Parts, story};
use crate::commands::health;
use crate::output::{self, Failure};

/// How long a part may take until it is healthy.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How often its health is asked for meanwhile.
const POLL: Duration = Duration::from_millis(2);
/// How long a part may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);
/// A log of a former run larger than this is begun anew.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// The children of one `up`.
pub(crate) struct Children {
    layout: Layout,
    server: Option<Part>,
    agent: Option<Part>,
    /// Events are shown once the greeting has been.
    shows: Arc<Mutex<bool>>,
}

struct Part {
    child: Child,
    /// The last error it logged, for whoever asks why it ended.
    last_error: Arc<Mutex<Option<String>>>,
}

impl Children {
    pub(crate) fn new(layout: &Layout) -> Result<Self, Failure> {
        Ok(Self { layout: layout.clone(), server: None, agent: None, shows: Arc::default() })
    }

    fn spawn(&self, role: &'static str, configuration: &Path) -> Result<Part, Failure> {
        let failed = |e: std::io::Error| Failure::new(format!("cannot start the {role}: {e}"));
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(program)
            .args([role, "run", "--config"])
            .arg(configuration)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C in the terminal goes to us; we tell the children in order.
            .process_group(0)
            // And if we are killed, they must not stay behind.
            .env(crate::run::CHILD_OF, std::process::id().to_string())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let log = Arc::new(Mutex::new(open_log(&self.layout.directory().join(format!("{role}.log"))).map_err(failed)?));
        let last_error = Arc::new(Mutex::new(None));
        if let Some(stdout) = child.stdout.take() {
            self.follow(stdout, role, Arc::clone(&log), Arc::clone(&last_error));
        }
        if let Some(stderr) = child.stderr.take() {
            self.follow(stderr, role, log, Arc::clone(&last_error));
        }
        Ok(Part { child, last_error })
    }

    /// Writes what a child says into its log, and shows what matters.
    fn follow(
        &self,
        from: impl AsyncRead + Unpin + Send + 'static,
        role: &'static str,
        log: Arc<Mutex<File>>,
        last_error: Arc<Mutex<Option<String>>>,
    ) {
        let shows = Arc::clone(&self.shows);
        tokio::spawn(async move {
            let mut lines = BufReader::new(from).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let _ = writeln!(log.lock().unwrap_or_else(PoisonError::into_inner), "{line}");
                let event = story::event(role, &line);
                if let Some(error) = event.error {
                    *last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
                if let Some(text) = event.text
                    && *shows.lock().unwrap_or_else(PoisonError::into_inner)
                {
                    output::line(&text);
                }
            }
        });
    }

    /// Shows events from now on, and returns when a child has ended by itself.
    pub(crate) async fn watch(&mut self) -> Failure {
        *self.shows.lock().unwrap_or_else(PoisonError::into_inner) = true;
        let (Some(server), Some(agent)) = (&mut self.server, &mut self.agent) else {
            return Failure::new("a part was not started");
        };
        tokio::select! {
            _ = server.child.wait() => server.why("server"),
            _ = agent.child.wait() => agent.why("agent"),
        }
    }

    /// Why a part has ended, if one has.
    pub(crate) fn ended(&mut self) -> Option<Failure> {
        self.server_ended().or_else(|| Self::ended_one(self.agent.as_mut(), "agent"))
    }

    /// Why the server has ended, if it has.
    pub(crate) fn server_ended(&mut self) -> Option<Failure> {
        Self::ended_one(self.server.as_mut(), "server")
    }

    fn ended_one(part: Option<&mut Part>, role: &str) -> Option<Failure> {
        let part = part?;
        matches!(part.child.try_wait(), Ok(Some(_))).then(|| part.why(role))
    }

    /// Returns when the agent has ended, with what it said last.
    pub(crate) async fn agent_end(&mut self) -> Failure {
        let Some(agent) = &mut self.agent else { return Failure::new("the agent was not started") };
        let _ = agent.child.wait().await;
        agent.last_words().await;
        agent.why("agent")
    }

    /// Stops the agent, then the server.
    pub(crate) async fn stop(mut self) {
        for part in [self.agent.take(), self.server.take()].into_iter().flatten() {
            part.stop().await;
        }
    }

    async fn healthy(part: &mut Part, role: &'static str, socket: &Path) -> Result<(), Failure> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(Some(_)) = part.child.try_wait() {
                part.last_words().await;
                return Err(part.why(role));
            }
            if socket.exists()
                && let Ok(channel) = countersign_transport::client::unix(socket).await
                && health::check(channel).await.unwrap_or(false)
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::new(format!("the {role} is not healthy after {START_TIMEOUT:?}; see its log")));
            }
            sleep(POLL).await;
        }
    }
}

impl Part {
    /// What it said last may still be on its way when it has ended.
    async fn last_words(&self) {
        sleep(Duration::from_millis(100)).await;
    }

    fn why(&self, role: &str) -> Failure {
        let last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Failure::new(format!("the {role} ended: {}", last.as_deref().unwrap_or("see its log")))
    }

    async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

impl Parts for Children {
    async fn server(&mut self) -> Result<(), Failure> {
        let mut part = self.spawn("server", &self.layout.server_configuration())?;
        let healthy = Self::healthy(&mut part, "server", &self.layout.server_socket()).await;
        self.server = Some(part);
        healthy
    }

    async fn agent(&mut self) -> Result<(), Failure> {
        let mut part = self.spawn("agent", &self.layout.agent_configuration())?;
        let healthy = Self::healthy(&mut part, "agent", &self.layout.agent_socket()).await;
        self.agent = Some(part);
        healthy
    }
}

fn open_log(path: &Path) -> std::io::Result<File> {
    let begin_anew = std::fs::metadata(path).is_ok_and(|m| m.len() > LOG_BYTES_MAX);
    OpenOptions::new().create(true).append(!begin_anew).write(true).truncate(begin_anew).mode(0o600).open(path)
}
