//! `spire-agent api watch`: X509-SVIDs as they change, until Ctrl-C.

use std::cell::Cell;
use std::time::{Duration, Instant};

use countersign_wire::workload as wire;
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tonic::{Code, Status};

use super::super::connect::Target;
use super::super::flags::Given;
use super::super::go;
use super::fetch;
use crate::client::workload_request;
use crate::output::{self, Failure, Outcome};

/// Pause after a failure; each later one is longer by it.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest pause, as in SPIRE's library.
const PAUSE_MAX: Duration = Duration::from_secs(30);

pub(super) async fn watch(given: Given) -> Outcome {
    let target = Target::workload(&given)?;
    let mut last = Instant::now();
    let is_open = Cell::new(false);
    let watching = async {
        let mut pause = Duration::ZERO;
        loop {
            let Err(status) = stream(&target, &mut last, &mut pause, &is_open).await;
            is_open.set(false);
            if status.code() == Code::InvalidArgument {
                return Err(Failure::new(go::status(&status)));
            }
            output::note(&go::status(&status));
            pause = (pause + PAUSE).min(PAUSE_MAX);
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        ended = watching => ended,
        _ = tokio::signal::ctrl_c() => {
            if !is_open.get() {
                return Err(Failure::new("context canceled"));
            }
            // A stream that is cut off is said twice, as in SPIRE.
            let said = go::status(&Status::cancelled("context canceled"));
            output::note(&said);
            Err(Failure::new(said))
        }
    }
}

/// Prints what one stream brings, until it fails.
async fn stream(
    target: &Target,
    last: &mut Instant,
    pause: &mut Duration,
    is_open: &Cell<bool>,
) -> Result<std::convert::Infallible, Status> {
    let mut client = SpiffeWorkloadApiClient::new(target.connect().await?);
    let mut stream = client.fetch_x509svid(workload_request(wire::X509svidRequest {})).await?.into_inner();
    is_open.set(true);
    while let Some(message) = stream.message().await? {
        *pause = Duration::ZERO;
        match fetch::read(&message) {
            Ok(mut svids) => {
                for svid in &mut svids {
                    // Where updates are printed, SPIRE leaves hints out and names trust domains without their scheme.
                    svid.hint.clear();
                    let named = std::mem::take(&mut svid.federated).into_iter();
                    svid.federated = named.map(|(id, bundle)| (id.trim_start_matches("spiffe://").to_owned(), bundle)).collect();
                }
                output::text(&fetch::printed(&svids, last.elapsed()));
                *last = Instant::now();
            }
            Err(failure) => output::note(&failure.to_string()),
        }
    }
    Err(Status::unavailable("the agent ended the stream"))
}
