//! Randomness of decisions: jitter, identifiers, retries. A seam, so that a run can be repeated from a seed.
//! Keys and serial numbers do not come from here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Draws numbers for decisions.
pub trait Random: Send + Sync {
    /// 64 bits, evenly spread.
    fn next(&self) -> u64;

    /// From 0 up to but not including 1.
    fn fraction(&self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "53 bits fit a float exactly")]
        let bits = (self.next() >> 11) as f64;
        bits / 9_007_199_254_740_992.0
    }
}

/// A source that is handed around.
pub type SharedRandom = Arc<dyn Random>;

/// A sequence that follows from its seed (SplitMix64).
#[derive(Debug)]
pub struct Seeded(AtomicU64);

impl Seeded {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// A sequence nobody can repeat: seeded from the process's random hash keys.
    pub fn from_entropy() -> Self {
        use std::hash::{BuildHasher as _, RandomState};
        Self::new(RandomState::new().hash_one(std::process::id()))
    }
}

impl Random for Seeded {
    fn next(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
