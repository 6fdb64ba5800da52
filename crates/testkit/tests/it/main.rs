//! Real clients, and the real binary as its user runs it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod clients;
mod commands;
mod corpora;
mod crash;
mod demo;
mod envoy;
mod explain;
mod flags;
mod images;
mod journey;
mod kept;
mod key_exchange;
mod mutual;
mod names;
mod nginx;
mod postgresql;
mod roles;
mod shell;
mod simulation;
mod support;
mod surface;
mod terminal;
mod up;
mod watch;
