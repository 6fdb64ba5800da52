//! X509-SVIDs from a server of SPIRE's, which takes many requests in one call and counts calls as well as certificates: while one
//! call is under way, what else is asked for waits for the next and goes together.

use std::sync::{Mutex, PoisonError};

use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::svid::{BatchNewX509svidRequest, NewX509svidParams};
use countersign_wire::types::X509svid;
use tokio::sync::oneshot;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::issue::within_timeout;

/// Requests in one call; SPIRE's servers refuse more than they sign for one address in a second.
const BATCH_MAX: usize = 500;

/// One request, and who waits for its answer.
struct Waiting {
    params: NewX509svidParams,
    answer: oneshot::Sender<Result<X509svid, Status>>,
}

/// Requests on their way.
#[derive(Default)]
pub(super) struct Batches {
    waiting: Mutex<Vec<Waiting>>,
    /// Held by whoever calls for all that wait.
    calling: tokio::sync::Mutex<()>,
}

impl Batches {
    /// Asks for one SVID.
    pub(super) async fn ask(&self, channel: Channel, params: NewX509svidParams) -> Result<X509svid, Status> {
        let (answer, mut answered) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(Waiting { params, answer });
        loop {
            tokio::select! {
                biased;
                // Gone without answer: whoever called for all was cancelled.
                answer = &mut answered => return answer.unwrap_or_else(|_| Err(Status::cancelled("the call was given up"))),
                _calling = self.calling.lock() => self.call(channel.clone()).await,
            }
        }
    }

    /// One call for those that wait longest.
    async fn call(&self, channel: Channel) {
        let batch: Vec<Waiting> = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let count = waiting.len().min(BATCH_MAX);
            waiting.drain(..count).collect()
        };
        // Whoever gave up meanwhile wants no certificate.
        let (params, answers): (Vec<_>, Vec<_>) = batch.into_iter().filter(|w| !w.answer.is_closed()).map(|w| (w.params, w.answer)).unzip();
        if params.is_empty() {
            return;
        }
        let results = match SvidClient::new(channel).batch_new_x509svid(within_timeout(BatchNewX509svidRequest { params })).await {
            Ok(results) => results.into_inner().results,
            Err(status) => {
                for answer in answers {
                    let _ = answer.send(Err(status.clone()));
                }
                return;
            }
        };
        let mut results = results.into_iter();
        for answer in answers {
            let result = results.next().ok_or_else(|| Status::internal("the server's answer is too short")).and_then(|result| {
                let status = result.status.unwrap_or_default();
                match (Code::from(status.code), result.svid) {
                    (Code::Ok, Some(svid)) => Ok(svid),
                    (Code::Ok, None) => Err(Status::internal("the server's answer is not an X509-SVID")),
                    (code, _) => Err(Status::new(code, status.message)),
                }
            });
            // Whoever asked may have gone.
            let _ = answer.send(result);
        }
    }
}
