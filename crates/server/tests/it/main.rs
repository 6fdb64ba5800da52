//! The server through its wire API only: a real server in this process, real sockets, real TLS, virtual time where time matters.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod attestation;
mod audit_lines;
mod authorities;
mod belongings;
mod clock_steps;
mod configuration;
mod connections;
mod entries;
mod explain;
mod federation;
mod following;
mod full_disk;
mod issuance;
mod journal;
mod large_answers;
mod limits;
mod listings;
mod malformed;
mod minting;
mod newer_configuration;
mod nodes;
mod polling;
mod readiness;
mod refusals;
mod relationships;
mod reload;
mod rotation;
mod services;
mod spire_belongings;
mod world;
mod x509pop;
