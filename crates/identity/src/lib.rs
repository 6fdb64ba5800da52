//! What an identity is: SPIFFE IDs, selectors, registration entries, bundles, SVIDs, and the rules for issuing them.
//!
//! This is the domain core. It must never read a clock, a file or a socket, never hold a private key, and never
//! await: time and randomness come in as arguments, bytes to be signed go out and signatures come back.
//! Everybody depends on it; it depends on no other crate of ours.

pub mod bundle;
pub mod csr;
pub mod der;
pub mod entry;
pub mod federation;
pub mod id;
pub mod issue;
pub mod jwk;
pub mod jwt;
pub mod key;
pub mod pem;
pub mod rotation;
pub mod selector;
pub mod time;
pub mod x509;

pub use bundle::{Bundle, BundleSet};
pub use entry::Entry;
pub use federation::FederationRelationship;
pub use id::{SpiffeId, TrustDomain};
pub use selector::Selector;
pub use time::Timestamp;
