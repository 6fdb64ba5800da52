//! Decides when files are written, when the program that reads them is told, and what the operator hears.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_transport::clock::SharedClock;
use tokio::sync::{Notify, mpsc};

use super::directory::Directory;
use super::ready;
use super::reload::Reload;
use super::stream::{FromAgent, Trouble, pause};
use super::svids::{self, Choice, Svid};
use super::validity::{Stage, Validity};

/// Pause after a write or reload that failed; each later one is twice as long.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Longest pause: once there is room, or the program runs, it gets the files within this time.
const PAUSE_MAX: Duration = Duration::from_secs(60);

type Reloading = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// Something that is tried until it succeeds.
#[derive(Debug, Default)]
struct Attempts {
    failures: u32,
    /// Steady time of the next one.
    at: Duration,
    /// What was said about the last one, so that the same is not said again.
    said: String,
}

/// Keeps the files of one directory.
pub(super) struct Keeper {
    directory: Directory,
    choice: Choice,
    reload: Option<Reload>,
    clock: SharedClock,
    /// Makes the stream be opened anew.
    again: Arc<Notify>,
    say: Box<dyn Fn(&str) + Send>,
    /// What is in the files, once this process has written them.
    written: Vec<Svid>,
    /// What is to be written, and when it is tried next.
    waiting: Option<(Vec<Svid>, Attempts)>,
    /// The program has not been told of the newest files yet.
    untold: Option<Attempts>,
    /// It is being told.
    reloading: Option<(Reloading, Attempts)>,
    /// Identity in the files, and its life.
    present: Option<(String, Validity)>,
    /// The agent has sent something, or was found to be in trouble.
    is_heard: bool,
    trouble: Option<Trouble>,
    /// What was wrong with the last message.
    unusable: Option<String>,
    is_ready: bool,
}

impl Attempts {
    /// True if this failure is news.
    fn failed(&mut self, now: Duration, why: &str) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.at = now + pause(self.failures, PAUSE_FIRST, PAUSE_MAX);
        let news = self.said != why;
        why.clone_into(&mut self.said);
        news
    }
}

impl Keeper {
    pub(super) fn new(
        directory: Directory,
        choice: Choice,
        reload: Option<Reload>,
        clock: SharedClock,
        again: Arc<Notify>,
        say: Box<dyn Fn(&str) + Send>,
    ) -> Self {
        let present = directory.present().map(|(id, begin, end)| (id, Validity::new(begin, end)));
        Self {
            directory,
            choice,
            reload,
            clock,
            again,
            say,
            written: Vec::new(),
            waiting: None,
            untold: None,
            reloading: None,
            present,
            is_heard: false,
            trouble: None,
            unusable: None,
            is_ready: false,
        }
    }

    /// Runs until the stream is gone.
    pub(super) async fn run(mut self, mut messages: mpsc::Receiver<FromAgent>) {
        if let Some((id, validity)) = &self.present {
            self.say(&format!("`{}` holds `{id}` from an earlier run, valid until {}", self.shown(), validity.not_after.rfc3339()));
        }
        self.ready_if_usable();
        loop {
            self.write_if_due();
            self.reload_if_due();
            self.warn_if_due();
            let clock = Arc::clone(&self.clock);
            let (steady, wall) = (self.next_attempt(), self.present.as_ref().map(|(_, v)| v.next()));
            tokio::select! {
                message = messages.recv() => match message {
                    Some(FromAgent::Svids(message)) => self.take(message),
                    Some(FromAgent::Trouble(trouble)) => self.note_trouble(trouble),
                    None => return,
                },
                done = running(&mut self.reloading) => self.reloaded(done),
                () = sleep_to(&clock, steady) => {}
                () = sleep_until(&clock, wall) => {}
            }
        }
    }

    fn say(&self, text: &str) {
        (self.say)(text);
    }

    fn shown(&self) -> String {
        self.directory.path().display().to_string()
    }

    /// Steady time of the next attempt at anything.
    fn next_attempt(&self) -> Option<Duration> {
        let write = self.waiting.as_ref().map(|(_, attempts)| attempts.at);
        let reload = self.untold.as_ref().filter(|_| self.reloading.is_none()).map(|attempts| attempts.at);
        write.into_iter().chain(reload).min()
    }

    fn take(&mut self, message: countersign_wire::workload::X509svidResponse) {
        self.is_heard = true;
        if self.trouble.take().is_some() {
            self.say("the agent is back");
        }
        match svids::read(message, &self.choice) {
            Ok(svids) => {
                if self.unusable.take().is_some() {
                    self.say("the agent's answer is usable again");
                }
                // After a connection was lost the agent sends again what it sent before.
                let newest = self.waiting.as_ref().map_or(&self.written, |(svids, _)| svids);
                if *newest != svids {
                    self.waiting = Some((svids, Attempts::default()));
                }
            }
            Err(why) => {
                if self.unusable.as_ref() != Some(&why) {
                    self.say(&format!("{why}; {}", self.files_stay()));
                }
                self.unusable = Some(why);
            }
        }
    }

    fn note_trouble(&mut self, trouble: Trouble) {
        self.is_heard = true;
        let is_news = match (&self.trouble, &trouble) {
            (Some(Trouble::Away(_)), Trouble::Away(_)) => false,
            (former, _) => former.as_ref() != Some(&trouble),
        };
        if is_news {
            let text = match &trouble {
                Trouble::Away(why) => format!("the agent is away ({why}); {}", self.files_stay()),
                Trouble::Denied(why) => format!(
                    "the agent grants no identity ({why}); {}; if it was taken away on purpose, stop this process and remove them",
                    self.files_stay()
                ),
            };
            self.say(&text);
        }
        self.trouble = Some(trouble);
    }

    fn files_stay(&self) -> String {
        match &self.present {
            Some((_, validity)) => format!("the files in `{}` stay, valid until {}", self.shown(), validity.not_after.rfc3339()),
            None => format!("there are no files in `{}` yet", self.shown()),
        }
    }

    fn write_if_due(&mut self) {
        let now = self.clock.steady();
        let Some((svids, mut attempts)) = self.waiting.take_if(|(_, attempts)| attempts.at <= now) else { return };
        match self.directory.replace(&svids) {
            Ok(leftover) => {
                if let Some(leftover) = leftover {
                    self.say(&leftover);
                }
                if let Some(first) = svids.first() {
                    let (id, end) = (first.spiffe_id.clone(), first.not_after.rfc3339());
                    let others = if svids.len() > 1 { format!(" and {} more", svids.len() - 1) } else { String::new() };
                    self.say(&format!("wrote `{id}`{others} to `{}`, valid until {end}", self.shown()));
                    self.present = Some((id, Validity::new(first.not_before, first.not_after)));
                }
                self.written = svids;
                self.untold = self.reload.is_some().then(Attempts::default);
                self.ready_if_usable();
            }
            Err(why) => {
                if attempts.failed(now, &why) {
                    self.say(&format!("{why}; {}; trying again", self.files_stay()));
                }
                self.waiting = Some((svids, attempts));
            }
        }
    }

    fn ready_if_usable(&mut self) {
        let is_usable = self.present.as_ref().is_some_and(|(_, validity)| self.clock.now() < validity.not_after);
        if is_usable && !std::mem::replace(&mut self.is_ready, true) {
            ready::tell();
        }
    }

    fn reload_if_due(&mut self) {
        let now = self.clock.steady();
        if self.reloading.is_none()
            && let Some(reload) = &self.reload
            && let Some(attempts) = self.untold.take_if(|attempts| attempts.at <= now)
        {
            self.reloading = Some((Box::pin(reload.clone().run()), attempts));
        }
    }

    fn reloaded(&mut self, done: Result<String, String>) {
        let Some((_, mut attempts)) = self.reloading.take() else { return };
        match done {
            Ok(done) => self.say(&done),
            Err(why) => {
                if attempts.failed(self.clock.steady(), &why) {
                    self.say(&format!("{why}; the program may not use the new files yet; trying again"));
                }
                // Of files that were written meanwhile it is told at once, and of these with them.
                self.untold.get_or_insert(attempts);
            }
        }
    }

    fn warn_if_due(&mut self) {
        let now = self.clock.now();
        let Some((id, validity)) = &mut self.present else { return };
        let (end, id) = (validity.not_after, id.clone());
        let Some(stage) = validity.due(now) else { return };
        let why = match (&self.trouble, &self.waiting, &self.unusable) {
            (Some(Trouble::Away(why)), ..) => format!("the agent is away ({why})"),
            (Some(Trouble::Denied(why)), ..) => format!("the agent grants no identity ({why})"),
            (None, Some((_, attempts)), _) => attempts.said.clone(),
            (None, None, Some(why)) => why.clone(),
            (None, None, None) if self.is_heard => "the agent is there and has sent no other".to_owned(),
            (None, None, None) => "the agent has not answered yet".to_owned(),
        };
        let left = span(end, now);
        let text = match stage {
            Stage::Late => format!("warning: `{id}` in `{}` should have been renewed; it expires in {left}: {why}", self.shown()),
            Stage::Ending => format!("WARNING: `{id}` in `{}` expires in {left}: {why}", self.shown()),
            Stage::Ended => format!("WARNING: `{id}` in `{}` HAS EXPIRED ({}): {why}", self.shown(), end.rfc3339()),
        };
        self.say(&text);
        // An agent that hangs keeps the connection open and says nothing; a new connection shows it.
        self.again.notify_waiters();
    }
}

/// What is left, in words.
fn span(end: Timestamp, now: Timestamp) -> String {
    let secs = end.since(now).as_secs();
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        _ => format!("{} h", secs / 3600),
    }
}

async fn running(reloading: &mut Option<(Reloading, Attempts)>) -> Result<String, String> {
    match reloading {
        Some((reloading, _)) => reloading.await,
        None => std::future::pending().await,
    }
}

async fn sleep_to(clock: &SharedClock, at: Option<Duration>) {
    match at {
        Some(at) => clock.sleep_for(at.saturating_sub(clock.steady())).await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(clock: &SharedClock, at: Option<Timestamp>) {
    match at {
        Some(at) => clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
}
