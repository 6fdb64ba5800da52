//! Following by the stream that a server of ours pushes: what changed, as it changes, and acknowledgements.

use std::sync::Arc;
use std::time::Duration;

use countersign_wire::node::node_client::NodeClient;
use countersign_wire::node::{self as wire, Ack, FollowRequest, FollowResponse, follow_request};
use countersign_wire::{bundle, entry};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::renewals::Renewals;
use super::{Ended, ISSUE_TIMEOUT, Place, RETRY_FIRST, Sync, ended};
use crate::cache::Update;
use crate::rotate::Rotator;

/// Acknowledgements are collected this long.
const ACK_DELAY: Duration = Duration::from_millis(20);

impl Sync {
    /// Opens the stream. A server that does not know it answers UNIMPLEMENTED.
    pub(super) async fn open_stream(&self, channel: Channel) -> Result<(Streaming<FollowResponse>, mpsc::Sender<FollowRequest>), Status> {
        let (out, requests) = mpsc::channel(4);
        let hello = wire::Hello { cursor: self.place().cursor(), agent_version: self.version.clone() };
        let _ = out.send(FollowRequest { step: Some(follow_request::Step::Hello(hello)) }).await;
        let mut client = NodeClient::new(channel).max_decoding_message_size(usize::MAX >> 8);
        match tokio::time::timeout(ISSUE_TIMEOUT, client.follow(ReceiverStream::new(requests))).await {
            Ok(response) => Ok((response?.into_inner(), out)),
            Err(_) => Err(Status::deadline_exceeded("the server does not answer")),
        }
    }

    /// What the server pushes, for as long as it does.
    pub(super) async fn listen(
        &self,
        renewals: &mut Renewals<'_>,
        rotator: &Arc<Rotator>,
        retry: &mut Duration,
        mut messages: impl Stream<Item = Result<FollowResponse, Status>> + Unpin,
        out: mpsc::Sender<FollowRequest>,
    ) -> Ended {
        let mut complete = false;
        let mut acknowledge_at = None;
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(Ok(message)) => {
                        self.heard();
                        *retry = RETRY_FIRST;
                        let place = message.cursor.clone().map_or(Place::Unknown, Place::At);
                        let caught_up = self.take(update(message), place, rotator);
                        if caught_up && !complete {
                            complete = true;
                            rotator.retry_now();
                        }
                        let _ = self.acknowledge(&out).await;
                    }
                    None => return Ended::Lost("the server ended the stream".to_owned()),
                    Some(Err(status)) => return ended(&status),
                },
                // Progress is told a little later, in one message, and nothing waits for that.
                () = self.progress.notified(), if acknowledge_at.is_none() => acknowledge_at = Some(Instant::now() + ACK_DELAY),
                () = tokio::time::sleep_until(acknowledge_at.unwrap_or_else(Instant::now)), if acknowledge_at.is_some() => {
                    acknowledge_at = None;
                    let _ = self.acknowledge(&out).await;
                }
                () = renewals.due(self) => if let Some(ended) = renewals.renew(self).await {
                    return ended;
                },
            }
        }
    }

    async fn acknowledge(&self, out: &mpsc::Sender<FollowRequest>) -> Result<(), ()> {
        let applied = self.cache.revision();
        let ack = Ack {
            applied,
            persisted: self.persisted.load(std::sync::atomic::Ordering::Relaxed),
            delivered: self.cache.subscribers.delivered().unwrap_or(applied),
        };
        out.send(FollowRequest { step: Some(follow_request::Step::Ack(ack)) }).await.map_err(|_| ())
    }
}

/// What a message says. An entry or bundle that this agent cannot read is left out, and said: the others still count.
pub(super) fn update(message: FollowResponse) -> Update {
    fn read<W, T>(items: &[W], read: impl Fn(&W) -> Result<T, countersign_wire::ConvertError>) -> Vec<Arc<T>> {
        let usable = |item| match read(item) {
            Ok(item) => Some(Arc::new(item)),
            Err(error) => {
                tracing::warn!(%error, "The server sent what this agent cannot read, leaving it out");
                None
            }
        };
        items.iter().filter_map(usable).collect()
    }
    Update {
        reset: message.reset,
        entries: read(&message.entries, entry::from_wire),
        removed_entries: message.removed_entries,
        bundles: read(&message.bundles, bundle::from_wire),
        removed_bundles: message.removed_bundles,
        revision: message.cursor.map(|c| c.revision),
        caught_up: message.caught_up,
    }
}
