//! The authority: registration, attestation of nodes, issuance, rotation, and the journal of it all.
//!
//! Rooms: `api` (what can be asked), `policy` (who may), `audit` (written down first), `authorities` (signed last),
//! `follow` (who must know), `ratelimit` (how often), `inventory` (whether what it starts with belongs together), `jobs` (now
//! and then). It must never sign what is not recorded, never refuse on a stale snapshot without saying so, and never read the
//! database on a call of an agent but attestation. It knows nothing of the agent's code.

pub mod api;
pub mod audit;
pub mod authorities;
mod config;
mod federation;
mod follow;
mod inventory;
mod jobs;
mod metrics;
mod own;
pub mod policy;
mod ratelimit;
mod server;

pub use config::Config;
pub use inventory::Mismatch;
pub use server::{Running, ServerError, lock_data_dir, start};
