//! The edge of the process: sockets and TLS, who is at the other end, limits, the clock, randomness, and whoever watches.
//!
//! Turns connections into identities: a workload's process by its pidfd, a TLS peer by its verified SPIFFE ID. It must
//! never decide what a caller may do, and never accept a name that did not come from verified bytes. Called by `server`,
//! `agent` and `cli`.

pub mod buckets;
pub mod client;
pub mod clock;
pub mod experimental;
pub mod files;
mod gather;
pub mod host;
pub mod https;
pub mod key_exchange;
pub mod limits;
pub mod mutual;
pub mod observe;
#[allow(unsafe_code, reason = "the one module that asks the kernel for SO_PEERPIDFD, which no library wraps")]
pub mod peer;
pub mod prefix;
pub mod proxy;
pub mod random;
pub mod tcp;
pub mod tls;
pub mod unix;
