//! The identity core against the SPIFFE standards, through its public interface only.
//!
//! Every requirement that binds us has a test with its number in the name; `requirements.rs` fails when one is missing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod bundle;
mod edges;
mod entry;
mod issue;
mod jwt_svid;
mod key;
mod path;
mod properties;
mod requirements;
mod rotation;
mod selector;
mod spiffe_id;
mod support;
mod x509_path;
mod x509_svid;
