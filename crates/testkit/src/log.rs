//! What the code under test logs. Tests run beside each other in one process, each in a runtime of its own, and one logger serves
//! them all: whether a line is wanted is remembered for all threads by what the first logger says.

use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use tokio::runtime::{Handle, Id};
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::domain::{Anyhow, until};

/// Level, message and fields of each line, by the runtime it was logged in; of those that somebody listens to.
static HEARD: LazyLock<Mutex<HashMap<Id, Vec<String>>>> = LazyLock::new(Mutex::default);

fn heard() -> MutexGuard<'static, HashMap<Id, Vec<String>>> {
    HEARD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The log of the test that asks, from `debug` on.
#[derive(Debug)]
pub struct Log;

impl Log {
    /// From now on what this runtime logs is kept.
    pub fn listen() {
        // The second test finds the logger of the first.
        let _ = tracing::subscriber::set_global_default(Self);
        heard().insert(Handle::current().id(), Vec::new());
    }

    /// The lines of this level with this text.
    pub fn lines(level: &str, text: &str) -> Vec<String> {
        let is_meant = |line: &&String| line.starts_with(level) && line.contains(text);
        heard().get(&Handle::current().id()).into_iter().flatten().filter(is_meant).cloned().collect()
    }

    /// How many they are.
    pub fn count(level: &str, text: &str) -> usize {
        Self::lines(level, text).len()
    }

    /// Waits for such a line.
    ///
    /// # Errors
    /// It does not come.
    pub async fn says(level: &str, text: &str) -> Result<(), Anyhow> {
        until(text, || async { (Self::count(level, text) > 0).then_some(()) }).await
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::DEBUG && metadata.target().starts_with("countersign")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut heard = heard();
        if let Some(lines) = heard.get_mut(&runtime.id()) {
            let mut line = Line(event.metadata().level().to_string());
            event.record(&mut line);
            lines.push(line.0);
        }
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}
