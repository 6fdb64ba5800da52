//! The agent from outside: real agents and servers in this process, workloads in this one and in others.
//!
//! Every requirement on a Workload API endpoint has a test with its number in the name; `requirements.rs` fails when one is
//! missing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod bundles;
mod callers;
mod child;
mod clocks;
mod config;
mod delegated;
mod endpoint;
mod explain;
mod full_disk;
mod hostile;
mod jwt_cache;
mod jwt_svid;
mod large_entries;
mod line;
mod operators;
mod puppet;
mod push;
mod ratelimit;
mod refusals;
mod requirements;
mod restart;
mod reused_pid;
mod rotation;
mod sds;
mod settings;
mod sources;
mod spire_server;
mod spire_state;
mod support;
mod survival;
mod svid_cache;
mod trust;
mod x509_svid;
mod x509pop;
