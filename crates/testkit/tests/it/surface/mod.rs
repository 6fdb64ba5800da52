//! The surface of SPIRE as rows of `testkit/data`, each with our status, held against what our code really does.
//!
//! `done` names a test that shows the behaviour, `not yet` the feature that is missing, `different` the reason. The page
//! `docs/spire-compatibility.md` is made of the same rows.

mod calls;
mod commands;
mod configuration;
mod lines;
mod literals;
mod page;
pub mod rows;
mod tests_named;
