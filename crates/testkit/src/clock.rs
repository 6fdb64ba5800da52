//! A clock that stands still until a test moves it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_transport::clock::Clock;
use tokio::sync::watch;

/// Virtual time. Whoever sleeps on it wakes when the test moves it far enough; real input and output go on meanwhile.
#[derive(Debug, Clone)]
pub struct VirtualClock(Arc<watch::Sender<Timestamp>>);

impl VirtualClock {
    /// Beginning at this time.
    pub fn at(start: Timestamp) -> Self {
        Self(Arc::new(watch::channel(start).0))
    }

    /// Beginning at the machine's time, so that certificates it makes are good for programs with a clock of their own.
    pub fn at_present() -> Self {
        Self::at(countersign_transport::clock::SystemClock.now())
    }

    /// Moves it on.
    pub fn advance(&self, by: Duration) {
        self.0.send_modify(|now| *now = now.after(by));
    }

    /// Moves it back, as an administrator or a bad time server does.
    pub fn step_back(&self, by: Duration) {
        self.0.send_modify(|now| *now = now.before(by));
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        *self.0.borrow()
    }

    fn sleep_until(&self, at: Timestamp) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let mut times = self.0.subscribe();
        Box::pin(async move {
            let _ = times.wait_for(|now| *now >= at).await;
        })
    }
}
