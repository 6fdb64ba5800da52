//! Who may do what. Two decisions and nothing else: may this caller make this call (`table`, `gate`), and may it have
//! this credential (`allowed`).
//!
//! Everything is decided on one snapshot in memory. `Allowed` can only be made here.

pub(crate) mod allowed;
pub(crate) mod caller;
pub(crate) mod gate;
pub mod table;

pub use allowed::Allowed;
pub use caller::{Caller, Kind};

#[cfg(test)]
mod tests;
