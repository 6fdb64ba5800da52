//! The ordered log of desired state, the tables beside it, and the snapshot everybody reads.
//!
//! One writer per server merges the requests of the moment into one transaction, decided on the exact head of the log.
//! The only room that knows SQL. It must never report a change done before it is durable, never leave a gap in the
//! revisions, and never change a snapshot that somebody holds. Called by `server`; knows nothing of callers or wires.

mod backup;
mod dialect;
mod error;
mod log;
mod model;
mod rows;
mod snapshot;
mod writer;

pub use backup::{backup, restore};
pub use dialect::refuse_foreign;
pub use error::StoreError;
pub use log::{Actor, Before, Change, Cursor, Epoch, Noun, Record, Transaction};
pub use model::{AuthorityFamily, AuthorityRecord, AuthorityState, JoinToken, Node, Seen};
pub use snapshot::{Ancestry, Concern, Snapshot};
pub use writer::{Draft, Options, Store};
