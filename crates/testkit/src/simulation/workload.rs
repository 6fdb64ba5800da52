//! The workload on a node: keeps its stream open as client libraries do, and remembers all it was ever given.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use countersign_wire::workload::X509svidResponse;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tonic::Code;

use crate::workload::Workload;

/// What the stream says now.
#[derive(Debug, Clone, Default)]
pub(super) enum Shown {
    /// There is none.
    #[default]
    Closed,
    /// The workload has no identity.
    Denied,
    /// It is open; the newest message, if there was one.
    Open(Option<Arc<X509svidResponse>>),
}

#[derive(Debug, Default)]
struct Heard {
    shown: Shown,
    /// Messages nobody has looked at yet.
    messages: Vec<Arc<X509svidResponse>>,
    /// Messages so far.
    count: u64,
}

/// A workload.
#[derive(Debug)]
pub(super) struct Listener {
    heard: Arc<Mutex<Heard>>,
    open: Arc<Notify>,
    task: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    /// One that calls at this socket whenever it is told to; of the messages the one with this number gets lost.
    pub(super) fn start(socket: PathBuf, lost: Option<u64>) -> Self {
        let (heard, open) = (Arc::new(Mutex::new(Heard::default())), Arc::new(Notify::new()));
        let (shared, told) = (Arc::clone(&heard), Arc::clone(&open));
        let task = tokio::spawn(async move {
            loop {
                told.notified().await;
                listen(&socket, &shared, lost).await;
            }
        });
        Self { heard, open, task: task.abort_handle() }
    }

    /// What the stream says now.
    pub(super) fn shown(&self) -> Shown {
        lock(&self.heard).shown.clone()
    }

    /// Messages nobody has looked at yet.
    pub(super) fn take(&self) -> Vec<Arc<X509svidResponse>> {
        std::mem::take(&mut lock(&self.heard).messages)
    }

    /// Calls again, if no stream is open.
    pub(super) fn call_again(&self) {
        if !matches!(self.shown(), Shown::Open(_)) {
            self.open.notify_one();
        }
    }
}

fn lock(heard: &Mutex<Heard>) -> std::sync::MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen(socket: &std::path::Path, heard: &Mutex<Heard>, lost: Option<u64>) {
    let Ok(workload) = Workload::connect(socket).await else { return };
    let code = match workload.x509_svids().await {
        Err(status) => Some(status.code()),
        Ok(mut stream) => {
            lock(heard).shown = Shown::Open(None);
            loop {
                match stream.message().await {
                    Ok(Some(message)) => {
                        let message = Arc::new(message);
                        let mut heard = lock(heard);
                        heard.count += 1;
                        if lost != Some(heard.count) {
                            heard.messages.push(Arc::clone(&message));
                            heard.shown = Shown::Open(Some(message));
                        }
                    }
                    Ok(None) => break None,
                    Err(status) => break Some(status.code()),
                }
            }
        }
    };
    lock(heard).shown = if code == Some(Code::PermissionDenied) { Shown::Denied } else { Shown::Closed };
}
