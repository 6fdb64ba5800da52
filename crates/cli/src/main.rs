//! The binary `countersign`: assembles the roles, and is a client of the same API like any other.

mod client;
mod colour;
mod commands;
mod logging;
mod orphans;
mod output;
mod progress;
#[cfg(test)]
mod reference;
mod reload;
mod run;
mod spire;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use commands::{agent, bundle, entry, explain, fetch, health, journal, logger, mint, shell, store, token};

/// Workload identity: attests nodes and workloads, issues short-lived SPIFFE identities, and keeps a record of each.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, max_term_width = 110, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// When output has colours
    #[arg(long, global = true, value_enum, default_value = "auto", value_name = "WHEN")]
    color: colour::When,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a whole trust domain in this terminal: server, agent, and an identity for you
    Up(up::Up),
    /// Run or check a server
    #[command(subcommand)]
    Server(run::Server),
    /// Run or check an agent; list, ban and evict attested agents
    #[command(subcommand)]
    Agent(agent::Agent),
    /// Ask a running server or agent whether it is healthy
    Healthcheck(health::Healthcheck),
    /// Registration entries: which selectors earn which SPIFFE ID
    #[command(subcommand)]
    Entry(entry::Entry),
    /// The trust domain's bundle, and bundles of foreign trust domains
    #[command(subcommand)]
    Bundle(bundle::Bundle),
    /// Join tokens for new nodes
    #[command(subcommand)]
    Token(token::Token),
    /// Mint an X509-SVID without an agent
    #[command(subcommand)]
    X509(mint::X509),
    /// Mint a JWT-SVID without an agent
    #[command(subcommand)]
    Jwt(mint::Jwt),
    /// The issuance journal: who held which identity when
    #[command(subcommand)]
    Log(journal::Log),
    /// Back up and restore the server's store
    #[command(subcommand)]
    Store(store::Store),
    /// The log level of a running server
    #[command(subcommand)]
    Logger(logger::Logger),
    /// Why a process gets the identities it gets, or none
    ///
    /// Exit code: 0 if it gets an identity, 1 if it does not, 2 if that could not be found out.
    Explain(explain::Explain),
    /// Which identities this very process gets from the Workload API
    Whoami(fetch::Whoami),
    /// Fetch identities as a workload
    #[command(subcommand)]
    Fetch(fetch::Fetch),
    /// Validate what others present
    #[command(subcommand)]
    Validate(fetch::Validate),
    /// Print what lets a shell complete commands and options
    ///
    /// Example: countersign completions bash > ~/.local/share/bash-completion/completions/countersign
    Completions(shell::Completions),
    /// Write the manual pages, one a command
    ///
    /// Example: countersign man --dir ~/.local/share/man/man1
    Man(shell::Man),
}

fn main() -> ExitCode {
    colour::When::ahead(std::env::args_os()).apply();
    let demo_program = up::DemoProgram::from_arguments();
    // Nobody but root may read our memory: it holds keys. An agent cannot see then which program we are, and by that it knows
    // the programs of the demo.
    if demo_program.is_none() {
        let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::error(&format!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        orphans::look_after();
        if let Some(program) = demo_program {
            return program.run().await;
        }
        if let Some(face) = spire::Face::of(std::env::args_os().next().as_deref()) {
            return face.run_line(std::env::args_os().skip(1)).await;
        }
        match Arguments::parse().command {
            Command::Up(command) => command.run().await,
            Command::Server(command) => command.run().await,
            Command::Agent(command) => command.run().await,
            Command::Healthcheck(command) => command.run().await,
            Command::Entry(command) => command.run().await,
            Command::Bundle(command) => command.run().await,
            Command::Token(command) => command.run().await,
            Command::X509(command) => command.run().await,
            Command::Jwt(command) => command.run().await,
            Command::Log(command) => command.run().await,
            Command::Store(command) => command.run(),
            Command::Logger(command) => command.run().await,
            Command::Explain(command) => command.run().await,
            Command::Whoami(command) => command.run().await,
            Command::Fetch(command) => command.run().await,
            Command::Validate(command) => command.run().await,
            Command::Completions(command) => command.run(),
            Command::Man(command) => command.run(),
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.report()),
    }
}
