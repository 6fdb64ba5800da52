//! A clock that stands still until a test moves it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_transport::clock::Clock;
use tokio::sync::watch;

/// Virtual time. Whoever sleeps on it wakes when the test moves it far enough; real input and output go on meanwhile.
#[derive(Debug, Clone)]
pub struct VirtualClock(Arc<watch::Sender<Reading>>);

/// The time of day, and what has passed without the steps.
#[derive(Debug, Clone, Copy)]
struct Reading {
    now: Timestamp,
    steady: Duration,
}

impl VirtualClock {
    /// Beginning at this time.
    pub fn at(start: Timestamp) -> Self {
        Self(Arc::new(watch::channel(Reading { now: start, steady: Duration::ZERO }).0))
    }

    /// Beginning at the machine's time, so that certificates it makes are good for programs with a clock of their own.
    pub fn at_present() -> Self {
        Self::at(countersign_transport::clock::SystemClock.now())
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.0.send_modify(|reading| *reading = Reading { now: reading.now.after(by), steady: reading.steady + by });
    }

    /// Sets it forward, as an administrator or a bad time server does: no time passes.
    pub fn step_forward(&self, by: Duration) {
        self.0.send_modify(|reading| reading.now = reading.now.after(by));
    }

    /// Sets it back.
    pub fn step_back(&self, by: Duration) {
        self.0.send_modify(|reading| reading.now = reading.now.before(by));
    }

    fn wait_for(&self, holds: impl Fn(&Reading) -> bool + Send + Sync + 'static) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let mut readings = self.0.subscribe();
        Box::pin(async move {
            let _ = readings.wait_for(|reading| holds(reading)).await;
        })
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        self.0.borrow().now
    }

    fn sleep_until(&self, at: Timestamp) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.wait_for(move |reading| reading.now >= at)
    }

    fn steady(&self) -> Duration {
        self.0.borrow().steady
    }

    fn sleep_for(&self, how_long: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let end = self.steady() + how_long;
        self.wait_for(move |reading| reading.steady >= end)
    }
}
