//! Running a server or an agent in the foreground until a signal, and checking their configuration.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use countersign_transport::clock::SystemClock;
use countersign_transport::random::Seeded;
use tokio::signal::unix::{SignalKind, signal};

use crate::logging;
use crate::output::{self, Failure, Outcome};

/// What agents report as their version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `countersign server …`
#[derive(Debug, Subcommand)]
pub(crate) enum Server {
    /// Run a server until it is told to stop (SIGINT, SIGTERM)
    Run(Configured<ServerDefault>),
    /// Check a configuration: everything that `run` would check before it starts
    Validate(Configured<ServerDefault>),
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
            Self::Run(configured) => run_server(&configured.load()?).await,
            Self::Validate(configured) => {
                configured.load()?;
                output::line("Countersign server configuration file is valid.");
                Ok(())
            }
        }
    }
}

async fn run_server(config: &countersign_server::Config) -> Outcome {
    tighten_umask();
    let levels = logging::start(&config.logging)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let stopped = stop_signal()?;
    let mut running = countersign_server::start(config, Arc::new(SystemClock), levels).await.map_err(|e| {
        tracing::error!(error = %e, "Fatal run error");
        Failure::new(e.to_string())
    })?;
    tokio::select! {
        () = stopped => {
            running.stop().await;
            tracing::info!("Server stopped gracefully");
            Ok(())
        }
        reason = running.failed() => {
            tracing::error!(error = reason, "Server crashed");
            Err(Failure::new(reason))
        }
    }
}

/// Runs an agent until a signal, or until it cannot go on.
pub(crate) async fn run_agent(config: &countersign_agent::Config) -> Outcome {
    tighten_umask();
    logging::start(&config.logging)?;
    let stopped = stop_signal()?;
    tokio::pin!(stopped);
    let starting = countersign_agent::start(config, Arc::new(SystemClock), Arc::new(Seeded::from_entropy()), VERSION);
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
    tokio::select! {
        () = stopped => {
            running.stop().await;
            tracing::info!("Agent stopped gracefully");
            Ok(())
        }
        end = running.ended() => {
            tracing::error!(error = %end, "Agent crashed");
            running.stop().await;
            Err(Failure::new(end.to_string()))
        }
    }
}

/// Files are never writable by the group nor open to others, whatever the umask was; as in SPIRE.
fn tighten_umask() {
    let former = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
    rustix::process::umask(former | rustix::fs::Mode::from_raw_mode(0o027));
}

/// Resolves at the first SIGINT or SIGTERM.
pub(crate) fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
