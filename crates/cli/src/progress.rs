//! Shows on a terminal that something takes its time; nobody who reads a pipe or a log sees any of it.

use std::io::IsTerminal as _;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is done sooner shows nothing: a bar that flashes up says less than none.
const UNSEEN: Duration = Duration::from_secs(1);
/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);

/// Something that may take long. The bar goes when this does.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Wakes whoever waits to show it.
    over: Option<mpsc::Sender<()>>,
    waiting: Option<JoinHandle<()>>,
}

impl Progress {
    /// Work of so many steps.
    pub(crate) fn of(what: &'static str, steps: usize) -> Self {
        let bar = ProgressBar::hidden();
        bar.set_length(u64::try_from(steps).unwrap_or(u64::MAX));
        Self::begin(bar, what, "{spinner} {msg} [{bar:30}] {human_pos} of {human_len} ({elapsed})")
    }

    /// Reading of nobody knows how much.
    pub(crate) fn counting(what: &'static str) -> Self {
        Self::begin(ProgressBar::hidden(), what, "{spinner} {msg}: {human_pos} so far ({elapsed})")
    }

    /// One thing that is done or not.
    pub(crate) fn waiting(what: &'static str) -> Self {
        Self::begin(ProgressBar::hidden(), what, "{spinner} {msg} ({elapsed})")
    }

    fn begin(bar: ProgressBar, what: &'static str, template: &str) -> Self {
        if !std::io::stderr().is_terminal() || std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
            return Self { bar, over: None, waiting: None };
        }
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        let (over, begun) = mpsc::channel::<()>();
        let shown = bar.clone();
        let waiting = std::thread::spawn(move || {
            if begun.recv_timeout(UNSEEN) == Err(mpsc::RecvTimeoutError::Timeout) {
                shown.set_draw_target(ProgressDrawTarget::stderr());
                shown.enable_steady_tick(TICK);
            }
        });
        Self { bar, over: Some(over), waiting: Some(waiting) }
    }

    /// So much more is done.
    pub(crate) fn advance(&self, steps: usize) {
        self.bar.inc(u64::try_from(steps).unwrap_or(0));
    }

    /// Says something that stays, beside the bar.
    pub(crate) fn aside(&self, say: impl FnOnce()) {
        self.bar.suspend(say);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(waiting) = self.waiting.take() {
            let _ = waiting.join();
        }
        self.bar.finish_and_clear();
    }
}
