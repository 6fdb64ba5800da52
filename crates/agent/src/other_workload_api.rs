//! Fetches an SVID from another agent's Workload API, for a node that proves itself with one.

use std::path::Path;
use std::time::Duration;

use countersign_identity::x509::Certificate;
use countersign_plugins::Pending;
use countersign_plugins::node::x509pop::{Svid, SvidSource};
use countersign_transport::client;
use countersign_wire::workload::X509svidRequest;
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tonic::metadata::MetadataValue;
use zeroize::Zeroizing;

/// How long the other agent may take; it has to fetch an SVID first, maybe.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The Workload API at another socket.
#[derive(Debug)]
pub(crate) struct OtherWorkloadApi;

impl SvidSource for OtherWorkloadApi {
    fn fetch<'a>(&'a self, socket: &'a Path) -> Pending<'a, Result<Svid, String>> {
        Box::pin(async move {
            let failed = |e: &dyn std::fmt::Display| format!("unable to fetch SVID from workload API: {e}");
            let fetching = async {
                let channel = client::unix(socket).await.map_err(|e| failed(&e))?;
                let mut request = tonic::Request::new(X509svidRequest {});
                request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
                let answer = SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await;
                let mut stream = answer.map_err(|status| failed(&status.message()))?.into_inner();
                stream.message().await.map_err(|status| failed(&status.message()))?.ok_or_else(|| failed(&"the stream ended"))
            };
            let answer = tokio::time::timeout(TIMEOUT, fetching).await.map_err(|_| failed(&"no answer"))??;
            let mut svids = answer.svids.into_iter();
            let svid = svids.next().ok_or_else(|| failed(&"the answer has no SVID"))?;
            // Wiped, the others too; nobody uses those.
            let key = Zeroizing::new(svid.x509_svid_key);
            svids.for_each(|other| drop(Zeroizing::new(other.x509_svid_key)));
            let chain = Certificate::parse_concatenated(&svid.x509_svid).map_err(|e| failed(&e))?;
            Ok((chain.iter().map(|c| c.der().to_vec()).collect(), key))
        })
    }
}
