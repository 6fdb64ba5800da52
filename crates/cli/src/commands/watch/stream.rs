//! The stream of X509-SVIDs, opened again whenever it ends.

use std::sync::Arc;
use std::time::Duration;

use countersign_transport::clock::SharedClock;
use countersign_wire::workload as wire;
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tokio::sync::{Notify, mpsc};
use tonic::Code;

use crate::client::{WorkloadSocket, workload_request};

/// How long a connection to a socket of this machine may take; one that takes longer is to a process that is stopped.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stream may stay without its first message. An agent that waits for its server is silent as long.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before the second attempt; each later one is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// Longest pause: an agent that is back is found within this time.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What the stream has to say.
#[derive(Debug)]
pub(super) enum FromAgent {
    /// The newest SVIDs.
    Svids(wire::X509svidResponse),
    /// There are none at the moment.
    Trouble(Trouble),
}

/// Why there are none. Two troubles of a kind are one for whoever reads about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The agent is not there, does not answer, or cannot.
    Away(String),
    /// The agent says that this process has no identity.
    Denied(String),
}

/// How long to wait after so many failures in a row.
pub(super) fn pause(failures: u32, first: Duration, longest: Duration) -> Duration {
    first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX)).min(longest)
}

/// Follows the stream until nobody listens. `again` makes it leave a connection and open another one.
pub(super) async fn follow(socket: WorkloadSocket, clock: SharedClock, again: Arc<Notify>, to: mpsc::Sender<FromAgent>) {
    let mut failures = 0_u32;
    loop {
        let trouble = tokio::select! {
            trouble = one(&socket, &*clock, &to, &mut failures) => trouble,
            () = again.notified() => continue,
        };
        failures = failures.saturating_add(1);
        if to.send(FromAgent::Trouble(trouble)).await.is_err() {
            return;
        }
        clock.sleep_for(pause(failures, PAUSE_FIRST, PAUSE_MAX)).await;
    }
}

/// One stream, from its connection to its end.
async fn one(
    socket: &WorkloadSocket,
    clock: &dyn countersign_transport::clock::Clock,
    to: &mpsc::Sender<FromAgent>,
    failures: &mut u32,
) -> Trouble {
    let opening = async {
        let channel = tokio::select! {
            channel = socket.connect() => channel.map_err(|e| Trouble::Away(e.to_string()))?,
            () = clock.sleep_for(CONNECT_TIMEOUT) => return Err(silent("accepts no connection", CONNECT_TIMEOUT)),
        };
        let answer = SpiffeWorkloadApiClient::new(channel).fetch_x509svid(workload_request(wire::X509svidRequest {})).await;
        let mut stream = answer.map_err(|s| ended(&s))?.into_inner();
        let first = stream.message().await.map_err(|s| ended(&s))?;
        Ok((first, stream))
    };
    let opened = tokio::select! {
        opened = opening => opened,
        () = clock.sleep_for(FIRST_MESSAGE_TIMEOUT) => Err(silent("sends no identity", FIRST_MESSAGE_TIMEOUT)),
    };
    let (mut message, mut stream) = match opened {
        Ok(opened) => opened,
        Err(trouble) => return trouble,
    };
    while let Some(svids) = message {
        *failures = 0;
        if to.send(FromAgent::Svids(svids)).await.is_err() {
            break;
        }
        message = match stream.message().await {
            Ok(message) => message,
            Err(status) => return ended(&status),
        };
    }
    Trouble::Away("the agent ended the stream".to_owned())
}

fn silent(what: &str, limit: Duration) -> Trouble {
    Trouble::Away(format!("the agent {what} within {} s", limit.as_secs()))
}

fn ended(status: &tonic::Status) -> Trouble {
    match status.code() {
        Code::PermissionDenied => Trouble::Denied(status.message().to_owned()),
        // The transport's own words name our library's parts, not what happened.
        Code::Unknown | Code::Unavailable if std::error::Error::source(status).is_some() => {
            Trouble::Away("the connection to the agent was lost".to_owned())
        }
        _ => Trouble::Away(format!("the agent answers `{}`", status.message())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_no_further() {
        let pauses: Vec<u64> = (1..9).map(|n| pause(n, PAUSE_FIRST, PAUSE_MAX).as_millis() as u64).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(pause(u32::MAX, PAUSE_FIRST, PAUSE_MAX), PAUSE_MAX);
    }
}
