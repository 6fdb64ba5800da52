//! A process of the simulation: a thread with a runtime of its own, so that killing it ends every task at the await it
//! stands at, and with time that passes only when it is told to.

use std::sync::{Arc, Barrier, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle as TaskHandle;

use crate::clock::VirtualClock;
use crate::domain::Anyhow;

/// What a killed process may still need to end: a file that is being written.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// A running process.
#[derive(Debug)]
pub(super) struct Process {
    handle: Handle,
    kill: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts a process that runs until `main` ends or it is killed.
    pub(super) fn start<F>(name: &str, main: F) -> Result<Self, Anyhow>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::run(name, Builder::new_current_thread().enable_all().start_paused(true).build()?, main)
    }

    /// A process with the machine's time, for tasks of others.
    pub(super) fn network() -> Result<Self, Anyhow> {
        Self::run("network", Builder::new_current_thread().enable_all().build()?, std::future::pending())
    }

    fn run<F>(name: &str, runtime: Runtime, main: F) -> Result<Self, Anyhow>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let handle = runtime.handle().clone();
        let (kill, killed) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let (hold, held) = mpsc::channel::<()>();
            runtime.block_on(async move {
                // Paused time runs ahead by itself whenever all tasks wait, but not while something blocks: so this does.
                let _held = tokio::task::spawn_blocking(move || held.recv());
                tokio::select! {
                    () = main => {}
                    _ = killed => {}
                }
            });
            drop(hold);
            runtime.shutdown_timeout(END_TIMEOUT);
        })?;
        Ok(Self { handle, kill: Some(kill), thread: Some(thread) })
    }

    /// Where its tasks run.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Lets time pass by its clock and in its timers, once all who share the barrier stand still: or one would speak to
    /// another whose time is still to pass.
    pub(super) fn advance(&self, clock: VirtualClock, by: Duration, all: Arc<Barrier>) -> TaskHandle<()> {
        self.handle.spawn(async move {
            all.wait();
            clock.advance(by);
            tokio::time::advance(by).await;
        })
    }

    /// Ends it at once, wherever its tasks stand. Its sockets are closed when this returns.
    pub(super) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.kill.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
