//! Questions to the issuance journal.

use std::pin::Pin;

use countersign_wire::journal::{self, journal_server};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::{Api, status};
use crate::audit::{Query, search};

#[tonic::async_trait]
impl journal_server::Journal for Api {
    type IssuedStream = Pin<Box<dyn Stream<Item = Result<journal::Record, Status>> + Send>>;

    async fn issued(&self, request: Request<journal::IssuedRequest>) -> Result<Response<Self::IssuedStream>, Status> {
        let request = request.into_inner();
        let text = |t: String| (!t.is_empty()).then_some(t);
        let millis = |secs: i64| (secs != 0).then(|| secs.saturating_mul(1000));
        let query = Query {
            spiffe_id: text(request.spiffe_id),
            serial_or_jti: text(request.serial_or_jti),
            agent_id: text(request.agent_id),
            from_millis: millis(request.from),
            until_millis: millis(request.until),
            limit: usize::try_from(request.limit).unwrap_or(0),
        };
        let directory = self.journal.directory().to_owned();
        let found = tokio::task::spawn_blocking(move || search(&directory, &query))
            .await
            .map_err(|_| Status::unavailable("the server is shutting down"))?
            .map_err(|e| status::journal(&e))?;
        for damage in &found.damage {
            tracing::error!(%damage, "The issuance journal is not as it was written");
        }
        // What there is comes first; then that it may not be all, which must not look like an answer that is.
        let damaged = found.damage.first().map(|first| {
            let more = found.damage.len() - 1;
            let places = if more == 0 { first.to_string() } else { format!("{first}, and at {more} more places") };
            Status::data_loss(format!("the issuance journal {places}; records may be missing from this answer or wrong in it"))
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(found.records.into_iter().map(Ok).chain(damaged.map(Err))))))
    }
}
