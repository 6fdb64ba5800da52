//! What can go wrong with the store, in the ways a caller tells apart.

/// A store that did not do what was asked. Nothing of the request happened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error("cannot open the store `{path}`: {reason}")]
    Open {
        /// The file.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// The tables are SPIRE's.
    #[error("`{path}` holds a SPIRE datastore, which is never touched")]
    Spire {
        /// The file.
        path: String,
    },
    /// The file is not one of ours.
    #[error("`{path}` is not a Countersign store: {reason}")]
    Foreign {
        /// The file.
        path: String,
        /// What gave it away.
        reason: String,
    },
    /// Written by a later version.
    #[error("the store has schema version {found}, this program knows up to {known}")]
    Newer {
        /// In the file.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A row that cannot be read back.
    #[error("the store is corrupt: {0}")]
    Corrupt(String),
    /// No room.
    #[error("the store's disk is full")]
    Full,
    /// Any other trouble with the database; a retry may help.
    #[error("the store failed: {0}")]
    Failed(String),
    /// The writer has ended.
    #[error("the store is closed")]
    Closed,
}
