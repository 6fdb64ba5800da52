//! A workload: calls the Workload API on a socket as a client library does, header and all, or on purpose without it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_transport::client;
use countersign_wire::workload as wire;
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use hyper_util::rt::TokioIo;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::domain::Anyhow;

/// A connection to a Workload API.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The connection, for calls this type does not make.
    pub channel: Channel,
}

/// A request with the header every Workload API call carries.
pub fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

/// A request with the header and a deadline.
pub fn within<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = with_header(message);
    request.set_timeout(timeout);
    request
}

impl Workload {
    /// Connects to a socket.
    ///
    /// # Errors
    /// Nothing listens there.
    pub async fn connect(socket: &Path) -> Result<Self, Anyhow> {
        Ok(Self { channel: client::unix(socket).await? })
    }

    /// Connects to a socket and lets so many bytes be on the way to it, in each stream and in all.
    ///
    /// # Errors
    /// Nothing listens there.
    pub async fn with_window(socket: &Path, bytes: u32) -> Result<Self, Anyhow> {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost").initial_stream_window_size(bytes).initial_connection_window_size(bytes);
        Ok(Self { channel: endpoint.connect_with_connector(connector).await? })
    }

    /// Speaks over a connection that somebody made, perhaps another process.
    ///
    /// # Errors
    /// The other end does not speak HTTP/2.
    pub async fn over(stream: tokio::net::UnixStream) -> Result<Self, Anyhow> {
        let once = Arc::new(Mutex::new(Some(stream)));
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
            async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("the connection is used up")) }
        });
        Ok(Self { channel: Endpoint::from_static("http://localhost").connect_with_connector(connector).await? })
    }

    /// The generated client, for requests of the test's own making.
    pub fn client(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(self.channel.clone())
    }

    /// Opens a stream of X509-SVIDs.
    ///
    /// # Errors
    /// The agent refuses.
    pub async fn x509_svids(&self) -> Result<Streaming<wire::X509svidResponse>, Status> {
        Ok(self.client().fetch_x509svid(with_header(wire::X509svidRequest {})).await?.into_inner())
    }

    /// The first message of such a stream.
    ///
    /// # Errors
    /// The agent refuses, or ends the stream.
    pub async fn x509_svid(&self) -> Result<wire::X509svidResponse, Status> {
        first(self.x509_svids().await?).await
    }

    /// As [`Workload::x509_svid`], with a deadline the agent is told of.
    ///
    /// # Errors
    /// The agent refuses, or ends the stream.
    pub async fn x509_svid_within(&self, timeout: Duration) -> Result<wire::X509svidResponse, Status> {
        first(self.client().fetch_x509svid(within(wire::X509svidRequest {}, timeout)).await?.into_inner()).await
    }

    /// Opens a stream of X.509 bundles.
    ///
    /// # Errors
    /// The agent refuses.
    pub async fn x509_bundles(&self) -> Result<Streaming<wire::X509BundlesResponse>, Status> {
        Ok(self.client().fetch_x509_bundles(with_header(wire::X509BundlesRequest {})).await?.into_inner())
    }

    /// Opens a stream of JWT bundles.
    ///
    /// # Errors
    /// The agent refuses.
    pub async fn jwt_bundles(&self) -> Result<Streaming<wire::JwtBundlesResponse>, Status> {
        Ok(self.client().fetch_jwt_bundles(with_header(wire::JwtBundlesRequest {})).await?.into_inner())
    }

    /// Fetches JWT-SVIDs for these audiences; an empty SPIFFE ID asks for all identities.
    ///
    /// # Errors
    /// The agent refuses.
    pub async fn jwt_svids(&self, audience: &[&str], spiffe_id: &str) -> Result<Vec<wire::Jwtsvid>, Status> {
        let audience = audience.iter().map(|a| (*a).to_owned()).collect();
        let request = with_header(wire::JwtsvidRequest { audience, spiffe_id: spiffe_id.to_owned() });
        Ok(self.client().fetch_jwtsvid(request).await?.into_inner().svids)
    }

    /// Has a token validated for an audience.
    ///
    /// # Errors
    /// The agent refuses, or the token is no good.
    pub async fn validate(&self, audience: &str, token: &str) -> Result<wire::ValidateJwtsvidResponse, Status> {
        let request = with_header(wire::ValidateJwtsvidRequest { audience: audience.to_owned(), svid: token.to_owned() });
        Ok(self.client().validate_jwtsvid(request).await?.into_inner())
    }
}

/// The first message of a stream.
///
/// # Errors
/// The stream ends with an error, or without a message.
pub async fn first<T>(mut stream: Streaming<T>) -> Result<T, Status> {
    stream.message().await?.ok_or_else(|| Status::cancelled("the stream ended without a message"))
}
