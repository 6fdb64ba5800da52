//! How changes reach agents: a hub decides whom each change concerns, a mailbox per open stream collects what is to be
//! looked at again, and the stream sends what the newest snapshot says about it.
//!
//! A mailbox holds keys, never content, so a slow agent costs memory for what concerns it once, however often it changed.

mod hub;
mod stream;

pub(crate) use hub::Hub;
pub(crate) use stream::{Follower, serve};
