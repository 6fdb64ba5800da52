//! Changes arrive on open streams.
