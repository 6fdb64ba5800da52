//! Fakes and test-only bulk: what stands in for the world while our own code runs unchanged.
//!
//! A dev-dependency and nothing else: no product crate may depend on it, and nothing in it is ever shipped.

pub mod powerloss;
