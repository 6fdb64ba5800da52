//! X.509: certificates as the domain sees them, the bytes of new ones, and who may vouch for whom.

mod certificate;
mod chain;
mod distinguished;
mod names;
mod path;
mod write;

pub use certificate::{CERTIFICATE_BYTES_MAX, Certificate, CertificateError, KeyUsage, SERIAL_BYTES_MAX, decimal};
pub use chain::{CHAIN_CERTIFICATES_MAX, ChainError, verify_chain, verify_chain_any};
pub use names::{Name, Names};
pub use path::{PathError, verify_paths};
pub(crate) use write::not_after;
pub use write::{Profile, Subject, Tbs, assemble, write_san, write_spire_subject};
