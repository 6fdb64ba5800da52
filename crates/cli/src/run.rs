//! Running a server or an agent in the foreground until a signal, and checking their configuration.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use countersign_server::api::LogLevels;
use countersign_transport::clock::{Clock as _, SystemClock};
use countersign_transport::random::Seeded;
use tokio::signal::unix::{SignalKind, signal};

use crate::logging::{self, Log};
use crate::output::{self, Failure, Outcome};
use crate::reload::Reload;

/// Names the process whose death ends this one too; `up` sets it for its children.
pub(crate) const CHILD_OF: &str = "COUNTERSIGN_CHILD_OF";
/// What agents report as their version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `countersign server …`
#[derive(Debug, Subcommand)]
pub(crate) enum Server {
    /// Run a server until it is told to stop (SIGINT, SIGTERM)
    Run(RunServer),
    /// Check a configuration: everything that `run` would check before it starts
    Validate(Configured<ServerDefault>),
}

#[derive(Debug, Args)]
pub(crate) struct RunServer {
    #[command(flatten)]
    configured: Configured<ServerDefault>,
    /// Make a new trust root in the place of this X.509 authority, whose key or record is gone for good; every agent has to attest again
    #[arg(long, value_name = "ID")]
    replace_lost_authority: Vec<String>,
}

/// The configuration file, with the default of the role.
#[derive(Debug, Clone, Args)]
pub(crate) struct Configured<D: Default + Clone + std::fmt::Debug + Send + Sync + 'static> {
    /// Configuration file, HCL or JSON, with SPIRE's keys
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Replace $NAME and ${NAME} by environment variables before the file is read
    #[arg(long)]
    expand_env: bool,
    #[arg(skip)]
    default: std::marker::PhantomData<D>,
}

/// `conf/server/server.conf`
#[derive(Debug, Clone, Default)]
pub(crate) struct ServerDefault;
/// `conf/agent/agent.conf`
#[derive(Debug, Clone, Default)]
pub(crate) struct AgentDefault;

impl Configured<ServerDefault> {
    fn load(&self) -> Result<countersign_server::Config, Failure> {
        let path = self.config.clone().unwrap_or_else(|| PathBuf::from("conf/server/server.conf"));
        countersign_server::Config::load(&path, self.expand_env).map_err(|e| Failure::new(e.to_string()))
    }
}

impl Configured<AgentDefault> {
    pub(crate) fn load(&self) -> Result<countersign_agent::Config, Failure> {
        let path = self.config.clone().unwrap_or_else(|| PathBuf::from("conf/agent/agent.conf"));
        countersign_agent::Config::load(&path, self.expand_env).map_err(|e| Failure::new(e.to_string()))
    }
}

impl Server {
    pub(crate) async fn run(self) -> Outcome {
        match self {
            Self::Run(command) => {
                let mut config = command.configured.load()?;
                config.replace_lost_authorities = command.replace_lost_authority;
                run_server(&config, || command.configured.load()).await
            }
            Self::Validate(configured) => {
                configured.load()?;
                output::line("Countersign server configuration file is valid.");
                Ok(())
            }
        }
    }
}

/// Runs a server until a signal. `read` reads its configuration again.
pub(crate) async fn run_server(
    config: &countersign_server::Config,
    read: impl Fn() -> Result<countersign_server::Config, Failure>,
) -> Outcome {
    let log = logging::start(&config.logging)?;
    tighten_umask();
    raise_descriptor_limit();
    reopen_on_signal(&log)?;
    let mut asked = signal(SignalKind::user_defined1())?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(data_dir = %config.data_dir.display(), launch_log_level = log.launch(), version = VERSION, "Configured");
    let stopped = stop_signal()?;
    end_with_parent();
    let mut running =
        countersign_server::start(config, Arc::new(SystemClock), Arc::clone(&log) as Arc<dyn LogLevels>).await.map_err(|e| {
            let hint = e.hint();
            tracing::error!(error = %e, hint, "Fatal run error");
            tracing::error!(error = %e, "Server crashed");
            Failure::new(hint.map_or_else(|| e.to_string(), |hint| format!("{e}\nhint: {hint}")))
        })?;
    tokio::pin!(stopped);
    let mut reload = Reload { in_force: config.fingerprint.clone(), live: countersign_server::Config::LIVE, tells_errors: true, log };
    loop {
        tokio::select! {
            () = &mut stopped => {
                running.stop().await;
                tracing::info!("Server stopped gracefully");
                return Ok(());
            }
            reason = running.failed() => {
                tracing::error!(error = reason, "Server crashed");
                return Err(Failure::new(reason));
            }
            Some(()) = asked.recv() => {
                let new = tokio::task::block_in_place(&read);
                running.last_reload().set(&reload.take(&new, |config| running.reload(config), SystemClock.now()));
            }
        }
    }
}

/// Runs an agent until a signal, or until it cannot go on. `read` reads its configuration again.
pub(crate) async fn run_agent(
    config: &countersign_agent::Config,
    read: impl Fn() -> Result<countersign_agent::Config, Failure>,
) -> Outcome {
    let log = logging::start(&config.logging)?;
    tighten_umask();
    raise_descriptor_limit();
    reopen_on_signal(&log)?;
    let mut asked = signal(SignalKind::user_defined1())?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let mut config = config.clone();
    config.log_levels = Arc::clone(&log) as Arc<dyn LogLevels>;
    let stopped = stop_signal()?;
    end_with_parent();
    tokio::pin!(stopped);
    let starting = countersign_agent::start(&config, Arc::new(SystemClock), Arc::new(Seeded::from_entropy()), VERSION);
    let mut running = tokio::select! {
        started = starting => started.map_err(|e| {
            tracing::error!(error = %e, "Agent crashed");
            Failure::new(e.to_string())
        })?,
        () = &mut stopped => {
            tracing::info!("Agent stopped gracefully");
            return Ok(());
        }
    };
    // Every workload may ask the agent for its health, and what an error quotes is not theirs to read.
    let mut reload = Reload { in_force: config.fingerprint.clone(), live: countersign_agent::Config::LIVE, tells_errors: false, log };
    loop {
        tokio::select! {
            () = &mut stopped => {
                running.stop().await;
                tracing::info!("Agent stopped gracefully");
                return Ok(());
            }
            end = running.ended() => {
                tracing::error!(error = %end, "Agent crashed");
                running.stop().await;
                return Err(Failure::new(end.to_string()));
            }
            Some(()) = asked.recv() => {
                let new = tokio::task::block_in_place(&read);
                running.last_reload().set(&reload.take(&new, |config| running.reload(config), SystemClock.now()));
            }
        }
    }
}

/// Log rotation: SIGUSR2 opens the log file anew. Heard from the start on, because the signal ends a process that does not
/// listen to it.
fn reopen_on_signal(log: &Arc<Log>) -> Result<(), Failure> {
    let (mut asked, log) = (signal(SignalKind::user_defined2())?, Arc::clone(log));
    tokio::spawn(async move {
        while asked.recv().await.is_some() {
            log.reopen();
        }
    });
    Ok(())
}

/// A child of `up` ends with it, however that ended.
pub(crate) fn end_with_parent() {
    let Some(parent) = std::env::var(CHILD_OF).ok().and_then(|p| p.parse::<i32>().ok()) else { return };
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    // It may have ended before the signal was asked for.
    if rustix::process::getppid().map(rustix::process::Pid::as_raw_nonzero).map(std::num::NonZero::get) != Some(parent) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    }
}

/// Files are never writable by the group nor open to others, whatever the umask was; as in SPIRE.
fn tighten_umask() {
    let least = rustix::fs::Mode::from_raw_mode(0o027);
    let former = rustix::process::umask(least);
    let tight = former | least;
    rustix::process::umask(tight);
    if former != tight {
        tracing::warn!("Current umask {:04o} is too permissive; setting umask {:04o}", former.bits(), tight.bits());
    }
}

/// Every connection needs a descriptor or two; the soft limit is often a thousand for the sake of old programs.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        tracing::warn!(%error, "Could not raise the limit of open files");
    }
}

/// Resolves at the first signal that asks to stop: SIGINT, SIGTERM, SIGQUIT, or SIGHUP of a closed terminal.
pub(crate) fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = quit.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}
