//! `countersign store …`: copies of the server's store.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::output::{self, Failure, Outcome};
use crate::progress::Progress;

/// `countersign store …`
#[derive(Debug, Subcommand)]
pub(crate) enum Store {
    /// Copy the store into a new file; the server may run meanwhile
    Backup(Backup),
    /// Put a backup in the place of the store; the server must not run. Agents are told to reload
    Restore(Restore),
}

#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// Configuration of the server, to find its store
    #[arg(short, long, value_name = "FILE", default_value = "conf/server/server.conf")]
    config: PathBuf,
    /// Where the copy goes; must not exist
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Configuration of the server, to find its store
    #[arg(short, long, value_name = "FILE", default_value = "conf/server/server.conf")]
    config: PathBuf,
    /// The backup
    #[arg(value_name = "BACKUP")]
    backup: PathBuf,
}

impl Store {
    pub(crate) fn run(self) -> Outcome {
        let failed = |e: countersign_store::StoreError| Failure::new(e.to_string());
        match self {
            Self::Backup(command) => {
                let config = load(&command.config)?;
                let progress = Progress::waiting("copying the store");
                let revision = countersign_store::backup(&config.store_path, &command.target).map_err(failed)?;
                drop(progress);
                output::line(&format!("Store backed up at revision {revision} to {}", command.target.display()));
                output::note("Keys and the issuance journal are not part of it: copy keys_path and the journal directory too.");
            }
            Self::Restore(command) => {
                let config = load(&command.config)?;
                let _lock = countersign_server::lock_data_dir(&config.data_dir).map_err(|e| Failure::new(e.to_string()))?;
                let progress = Progress::waiting("copying the backup");
                let revision = countersign_store::restore(&command.backup, &config.store_path).map_err(failed)?;
                drop(progress);
                output::line(&format!("Store restored at revision {revision}; the former one is kept beside it"));
            }
        }
        Ok(())
    }
}

fn load(path: &std::path::Path) -> Result<countersign_server::Config, Failure> {
    countersign_server::Config::load(path, false).map_err(|e| Failure::new(e.to_string()))
}
