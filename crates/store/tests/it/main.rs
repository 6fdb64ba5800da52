//! The store through its public interface only: on real files where files matter, and on a disk that loses power.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod churn;
mod copies;
mod cursors;
mod durability;
mod index;
mod refusals;
mod revisions;
mod round_trip;
mod servers;
mod tokens;
mod world;
