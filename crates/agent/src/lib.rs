//! The node: attests workloads, holds their identities, follows the server.
//!
//! Rooms: `node` (the agent's own identity; `other_workload_api` where that comes from another agent), `trust` (when an
//! operator's bundle replaces the cached one; `trust_source`, where that is), `sync` (the one place that speaks to the server), `cache` (what is known and
//! held; `jwt` for tokens), `rotate` (when what is renewed), `attest` (who calls, and `ratelimit`, how often), `api` (what workloads and operators ask), `explain` (why a
//! process gets what it gets; `standing` and `denials` remember for it). It serves what it has: a call never waits for the
//! server while a valid answer is in hand. Workload keys never touch a disk. It knows nothing of the server's code.

mod agent;
mod api;
mod attest;
mod cache;
mod config;
mod denials;
mod explain;
mod jwt;
mod metrics;
mod node;
mod other_workload_api;
mod ratelimit;
mod rotate;
mod standing;
mod state;
mod sync;
mod trust;
mod trust_source;

pub use agent::{AgentError, End, Running, start};
pub use config::{Bootstrap, Config};
pub use trust_source::TrustSource;
