//! Programs in every language with a SPIFFE client, as their users write them, against the real binary. What a test says
//! it says of every language of the list in `language`.

mod federation;
mod fetch;
mod guides;
mod language;
mod matrix;
mod program;
mod refusals;
mod resumption;
mod updates;
mod workload_api;
mod world;
