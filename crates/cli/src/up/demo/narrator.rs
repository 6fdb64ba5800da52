//! Tells what happened: one line each, no faster than somebody can read.

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use tokio::time::{Instant, sleep_until};

use crate::{colour, output};

/// Pause between two lines: what an unhurried reader needs for one.
const READING_TIME: Duration = Duration::from_millis(1400);

/// Of whom a line tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Server,
    Agent,
    You,
    Shop,
    Warehouse,
    Stranger,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
            Self::You => "you",
            Self::Shop => "shop",
            Self::Warehouse => "warehouse",
            Self::Stranger => "stranger",
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Server | Self::Agent => AnsiColor::Blue.on_default().bold(),
            Self::You => Style::new().bold(),
            Self::Shop => AnsiColor::Green.on_default().bold(),
            Self::Warehouse => AnsiColor::Cyan.on_default().bold(),
            Self::Stranger => AnsiColor::Red.on_default().bold(),
        }
    }
}

/// Keeps the time.
pub(super) struct Narrator {
    begun: Instant,
    next: Instant,
    pause: Duration,
}

impl Narrator {
    /// Lines follow each other at reading speed, or at once.
    pub(super) fn new(now: Instant, is_fast: bool) -> Self {
        Self { begun: now, next: now, pause: if is_fast { Duration::ZERO } else { READING_TIME } }
    }

    /// Waits until the reader is done with the last line. Whoever does something next waits first, so that it is told when it
    /// happens and not later.
    pub(super) async fn turn(&self) {
        sleep_until(self.next).await;
    }

    /// Tells one thing.
    pub(super) async fn tell(&mut self, who: Who, text: &str) {
        self.turn().await;
        let now = Instant::now();
        self.next = now + self.pause;
        let text = output::clean(text);
        output::line(&format!(
            "{:>5.1} s  {} {text}",
            (now - self.begun).as_secs_f64(),
            colour::paint(who.style(), &format!("{:<10}", who.name()))
        ));
    }
}
