//! Everything replaceable, and the traits it is replaced through. One folder a plugin, both halves of an attestor side
//! by side, its user page in the folder, one line in the list of its kind.
//!
//! Plugins prove and keep; they never decide who may have which identity. Called by `server` and `agent`, never the
//! other way round.

pub mod keys;
pub mod node;
pub mod workload;

use std::future::Future;
use std::pin::Pin;

/// What an asynchronous method of a plugin returns.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
