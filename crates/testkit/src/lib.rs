//! What tests need and the product must never contain: a whole trust domain in one process, virtual time, disks that lose
//! power or are full, the seeded simulation on top of them, and the fuzz targets. A dev-dependency of the other crates, never
//! an ordinary one.

pub mod clock;
pub mod domain;
pub mod file_limit;
pub mod fuzz;
pub mod journal_disk;
pub mod log;
pub mod panics;
pub mod powerloss;
pub mod scripted;
pub mod simulation;
pub mod workload;
