//! The clock: a seam, so that a month of rotations runs in a test in seconds.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use countersign_identity::Timestamp;

/// Wall time is looked at again at least this often while waiting, so that a suspended laptop or a stepped clock is
/// noticed within this time.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Tells the time and waits for it.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;

    /// Returns once it is this late, however the clock is set meanwhile. For what is tied to a time of day, such as the end of
    /// a certificate; whoever just waits uses [`Clock::sleep_for`].
    fn sleep_until(&self, at: Timestamp) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Time that has passed since a fixed moment; whoever sets the clock does not change it.
    fn steady(&self) -> Duration;

    /// Returns once this much time has passed by [`Clock::steady`], whatever becomes of the time of day.
    fn sleep_for(&self, how_long: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// A clock that is handed around.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

/// Where [`SystemClock::steady`] counts from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn sleep_until(&self, at: Timestamp) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            loop {
                let left = at.since(self.now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(LOOK_AGAIN)).await;
            }
        })
    }

    fn steady(&self) -> Duration {
        START.elapsed()
    }

    fn sleep_for(&self, how_long: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(how_long))
    }
}
