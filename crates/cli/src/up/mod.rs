//! `countersign up`: a whole trust domain in one terminal. No short cut inside: it starts what production starts, a server
//! and an agent with configuration files, a bundle file, mutual TLS and Unix sockets between them.

mod children;
mod demo;
mod layout;
mod story;

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use countersign_identity::TrustDomain;
use tonic::transport::Channel;

pub(crate) use children::Children;
pub(crate) use demo::DemoProgram;
pub(crate) use layout::Layout;

use crate::client::default_directory;
use crate::output::{self, Failure, Outcome};
use crate::progress::Progress;
use crate::run::stop_signal;

/// `countersign up`
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Where the trust domain is kept [default: countersign in the user's state directory]
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
    /// Name of the trust domain, when it is created
    #[arg(long, value_name = "NAME", default_value = "example.org")]
    trust_domain: TrustDomain,
    /// Show in under a minute what it is all about, in a trust domain of its own that is removed at the end
    #[arg(long)]
    demo: bool,
}

impl Up {
    pub(crate) async fn run(self) -> Outcome {
        if self.demo {
            return demo::run(self.dir.as_deref(), &self.trust_domain).await;
        }
        let begun = Instant::now();
        let layout = Layout::open(&self.dir.unwrap_or_else(default_directory), &self.trust_domain)?;
        let stopped = stop_signal()?;
        tokio::pin!(stopped);
        let mut children = Children::new(&layout)?;
        let progress = Progress::waiting("starting");
        let raised = tokio::select! {
            raised = bring_up(&layout, &mut children) => raised,
            () = &mut stopped => Err(Failure::new("stopped before it was up")),
        };
        drop(progress);
        let you = match raised {
            Ok(you) => you,
            Err(failure) => {
                let failure = children.ended().unwrap_or(failure);
                children.stop().await;
                return Err(failure);
            }
        };
        story::tell(&layout, &you, begun.elapsed());
        let ended = tokio::select! {
            ended = children.watch() => Some(ended),
            () = &mut stopped => None,
        };
        output::line("");
        children.stop().await;
        match ended {
            None => {
                output::line("Stopped. Everything is kept; run the same command to go on.");
                Ok(())
            }
            Some(failure) => Err(failure),
        }
    }
}

/// Starts the parts; what `bring_up` needs of whoever runs them.
pub(crate) trait Parts {
    /// Starts the server and returns once it is healthy.
    async fn server(&mut self) -> Result<(), Failure>;
    /// Starts the agent and returns once it is healthy.
    async fn agent(&mut self) -> Result<(), Failure>;
}

/// The identity that was registered for the calling user.
#[derive(Debug)]
pub(crate) struct You {
    pub(crate) spiffe_id: String,
    pub(crate) selector: String,
    pub(crate) created: bool,
    pub(crate) agent_joined: String,
}

/// Starts the server, and leaves everything ready for the agent.
async fn raise_server(layout: &Layout, parts: &mut impl Parts) -> Result<Channel, Failure> {
    layout.write_server_configuration()?;
    parts.server().await?;
    let server = countersign_transport::client::unix(&layout.server_socket()).await.map_err(|e| Failure::new(e.to_string()))?;
    let bundle = story::fetch_bundle(server.clone()).await?;
    layout.write_bundle(&bundle)?;
    // A token is made at each start: the agent uses it only if it has no identity that still counts.
    let token = story::make_token(server.clone(), layout).await?;
    layout.write_agent_configuration(&token)?;
    Ok(server)
}

/// From nothing, or from what a former run left behind however long ago, to an identity that is served.
pub(crate) async fn bring_up(layout: &Layout, parts: &mut impl Parts) -> Result<You, Failure> {
    let server = raise_server(layout, parts).await?;
    let (spiffe_id, selector, created) = story::register_user(server.clone(), layout).await?;
    parts.agent().await?;
    story::first_svid(layout).await?;
    let agent_joined = story::newest_agent(server).await?;
    Ok(You { spiffe_id, selector, created, agent_joined })
}

#[cfg(test)]
mod tests;
