//! X.509: certificates as the domain sees them, the bytes of new ones, and who may vouch for whom.

mod certificate;
mod chain;
mod write;

pub use certificate::{CERTIFICATE_BYTES_MAX, Certificate, CertificateError, KeyUsage, SERIAL_BYTES_MAX, decimal};
pub use chain::{CHAIN_CERTIFICATES_MAX, ChainError, verify_chain, verify_chain_any};
pub(crate) use write::not_after;
pub use write::{Profile, Subject, Tbs, assemble, write_san, write_spire_subject};
