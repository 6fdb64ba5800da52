//! The network between an agent and the server: a relay that can be cut, and that can swallow everything without a word.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::domain::Anyhow;

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Condition {
    /// Carries everything.
    Good,
    /// Ends what was open and refuses what is new.
    Cut,
    /// Carries nothing more and does not say so.
    Silent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    condition: Condition,
    /// Where the server listens now.
    server: Option<SocketAddr>,
    cuts: u64,
}

/// A line.
#[derive(Debug)]
pub(super) struct Line {
    state: watch::Sender<State>,
    port: u16,
    task: AbortHandle,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    /// A good line to nowhere.
    pub(super) async fn lay() -> Result<Self, Anyhow> {
        let door = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = door.local_addr()?.port();
        let (state, seen) = watch::channel(State { condition: Condition::Good, server: None, cuts: 0 });
        let task = tokio::spawn(carry(door, seen)).abort_handle();
        Ok(Self { state, port, task })
    }

    /// Where the agent connects to.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// From now on the server is there, or nowhere.
    pub(super) fn lead_to(&self, server: Option<SocketAddr>) {
        self.state.send_modify(|state| state.server = server);
    }

    /// From now on the network does this.
    pub(super) fn set(&self, condition: Condition) {
        self.state.send_modify(|state| {
            // What was swallowed is lost: connections of before do not come back to life.
            if condition == Condition::Cut || (state.condition == Condition::Silent && condition == Condition::Good) {
                state.cuts += 1;
            }
            state.condition = condition;
        });
    }

    /// What the network does now.
    pub(super) fn condition(&self) -> Condition {
        self.state.borrow().condition
    }
}

async fn carry(door: TcpListener, mut state: watch::Receiver<State>) {
    let mut open = JoinSet::new();
    while let Ok((outside, _)) = door.accept().await {
        let now = *state.borrow_and_update();
        if now.condition != Condition::Cut {
            open.spawn(relay(outside, now, state.clone()));
        }
        while open.try_join_next().is_some() {}
    }
}

async fn relay(mut outside: TcpStream, begun: State, mut state: watch::Receiver<State>) {
    let _ = outside.set_nodelay(true);
    let mut silenced = state.clone();
    let pass = async {
        let mut inside = match begun.server {
            Some(server) if begun.condition == Condition::Good => TcpStream::connect(server).await.ok(),
            _ => None,
        };
        match &mut inside {
            Some(inside) => {
                let _ = inside.set_nodelay(true);
                let _ = tokio::io::copy_bidirectional(&mut outside, inside).await;
            }
            // Nobody listens: refused. On a silent line nobody even says that.
            None if begun.condition == Condition::Good => {}
            None => std::future::pending().await,
        }
    };
    let mut pass = std::pin::pin!(pass);
    let cut = async { drop(state.wait_for(|now| now.cuts != begun.cuts).await) };
    let carried = async {
        loop {
            let silent = silenced.borrow_and_update().condition == Condition::Silent;
            if silent {
                if silenced.changed().await.is_err() {
                    return;
                }
                continue;
            }
            tokio::select! {
                () = &mut pass => return,
                changed = silenced.changed() => if changed.is_err() { return },
            }
        }
    };
    tokio::select! {
        biased;
        () = cut => {}
        () = carried => {}
    }
}
