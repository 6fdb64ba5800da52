//! Where the bundle comes from by which the server is trusted at the first contact: a file, the web, whoever listens on a Unix
//! socket, or another Workload API. Read anew at each attempt while the agent knows no bundle.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_config::{ConfigError, Section, Spanned};
use countersign_identity::bundle::BUNDLE_BYTES_MAX;
use countersign_identity::x509::Certificate;
use countersign_identity::{Bundle, Timestamp, TrustDomain};
use countersign_transport::https::{self, Way};
use countersign_transport::{client, unix};
use countersign_wire::workload::X509BundlesRequest;
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use http::Uri;
use http::uri::Scheme;
use tonic::metadata::MetadataValue;

use crate::trust;

/// How long a source other than a file may take. SPIRE waits for a Workload API so long, and for a URL without end.
pub(crate) const SOURCE_TIMEOUT: Duration = Duration::from_secs(60);

/// A source of the bundle.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustSource {
    place: Place,
    /// A SPIFFE bundle document instead of PEM.
    spiffe_format: bool,
}

#[derive(Clone, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    /// Its server proves itself by an authority of the system.
    Web(Uri),
    /// A service of the site's own, which is told what the agent is about.
    Socket {
        url: Uri,
        socket: PathBuf,
    },
    WorkloadApi(Endpoint),
}

/// Where another Workload API is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Endpoint {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// What the agent is about, for a service of the site's own that decides by it.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    /// The agent knew a bundle before, which proves its server no longer.
    pub(crate) again: bool,
    pub(crate) number: u64,
    pub(crate) started: Timestamp,
    pub(crate) server: &'a (String, u16),
    pub(crate) trust_domain: &'a TrustDomain,
}

impl std::fmt::Debug for TrustSource {
    /// As it is displayed, because a configuration may be printed for debugging, too.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TrustSource({self})")
    }
}

impl std::fmt::Display for TrustSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.place {
            Place::File(path) => write!(f, "{}", path.display()),
            // Without its query, which may hold a secret.
            Place::Web(url) => write!(f, "https://{}{}", url.authority().map_or("", |a| a.as_str()), url.path()),
            Place::Socket { socket, .. } => write!(f, "unix:{}", socket.display()),
            Place::WorkloadApi(Endpoint::Unix(path)) => write!(f, "unix:{}", path.display()),
            Place::WorkloadApi(Endpoint::Tcp(address)) => write!(f, "tcp://{address}"),
        }
    }
}

impl TrustSource {
    /// Reads the settings; nothing if no source is named. Texts are SPIRE's, where it has one.
    pub(crate) fn configured(agent: &mut Section, insecure: bool) -> Result<Option<Self>, ConfigError> {
        let (path, url) = (text(agent, "trust_bundle_path")?, text(agent, "trust_bundle_url")?);
        let (socket, api) = (text(agent, "trust_bundle_unix_socket")?, text(agent, "trust_bundle_spiffe_workload_api")?);
        let spiffe_format = match agent.string("trust_bundle_format")? {
            Some(text) if !["pem", "spiffe"].contains(&text.value.as_str()) => {
                return Err(text.error("invalid value for trust_bundle_format, expected \"pem\" or \"spiffe\""));
            }
            text => text.is_some_and(|text| text.value == "spiffe"),
        };
        let named = [("trust_bundle_path", &path), ("trust_bundle_url", &url), ("trust_bundle_spiffe_workload_api", &api)];
        let mut named = named.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?)));
        let first = named.next();
        match (first, named.next()) {
            (Some((name, text)), _) if insecure => {
                let what = format!("only one of insecure_bootstrap or {name} can be specified, not both");
                return Err(text.error(what).hint(format!("keep {name}")));
            }
            (Some((name, _)), Some((other, text))) => {
                return Err(text.error(format!("only one of {other} or {name} can be specified, not both")));
            }
            _ => {}
        }
        let place = match (&path, &url, &api, &socket) {
            (_, Some(url), _, socket) => Some(web(url, socket.as_ref())?),
            (_, None, Some(_), Some(socket)) => {
                return Err(socket.error("trust_bundle_unix_socket can not be used with trust_bundle_spiffe_workload_api"));
            }
            (_, None, _, Some(socket)) => return Err(socket.error("if trust_bundle_unix_socket is specified, so must be trust_bundle_url")),
            (Some(path), ..) => Some(Place::File(PathBuf::from(&path.value))),
            (None, _, Some(api), None) => Some(Place::WorkloadApi(api.parse(|text| endpoint(text))?)),
            (None, None, None, None) => None,
        };
        Ok(place.map(|place| Self { place, spiffe_format }))
    }

    /// Whether it is a file, which is there or is not; the others may come back.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self.place, Place::File(_))
    }

    /// Reads the bundle, once.
    ///
    /// # Errors
    /// What is wrong with it or with its source, which it names.
    pub(crate) async fn read(&self, attempt: &Attempt<'_>) -> Result<Bundle, String> {
        let failed = |e: String| format!("`{self}`: {e}");
        let own = || attempt.trust_domain.clone();
        if !self.is_file() {
            let what = if attempt.again { "reattestation" } else { "attestation" };
            tracing::info!("Server {what} attempt {}. Started {}.", attempt.number, attempt.started);
        }
        let read = match &self.place {
            Place::File(path) => trust::read_limited(path).map_err(failed)?,
            Place::Web(url) => {
                let roots = https::system_roots().map_err(failed)?;
                https::get(url, Way::Tls(&roots), BUNDLE_BYTES_MAX).await.map_err(failed)?
            }
            Place::Socket { url, socket } => {
                https::get(&attempt.told_to(url).map_err(failed)?, Way::Unix(socket), BUNDLE_BYTES_MAX).await.map_err(failed)?
            }
            Place::WorkloadApi(endpoint) => return endpoint.bundle(attempt.trust_domain).await.and_then(not_empty).map_err(failed),
        };
        let bundle = if self.spiffe_format {
            Bundle::from_jwks(own(), &read).map_err(|e| e.to_string())
        } else {
            let text = String::from_utf8(read).map_err(|_| failed("it is not text".to_owned()))?;
            Bundle::from_pem(own(), &text).map_err(|e| e.to_string())
        };
        bundle.and_then(not_empty).map_err(failed)
    }
}

impl Attempt<'_> {
    /// The address with SPIRE's parameters behind those it has.
    fn told_to(&self, url: &Uri) -> Result<Uri, String> {
        let mode = if self.again { "rebootstrap" } else { "bootstrap" };
        let told = [
            ("spire-attest-mode", mode.to_owned()),
            ("spire-connection-attempts", self.number.to_string()),
            ("spire-attest-start-time", self.started.to_string()),
            ("spire-server-address", self.server.0.clone()),
            ("spire-server-port", self.server.1.to_string()),
            ("spiffe-trust-domain", self.trust_domain.name().to_owned()),
        ];
        let told = told.map(|(name, value)| format!("{name}={}", escaped(&value))).join("&");
        let query = url.query().filter(|q| !q.is_empty()).map_or_else(|| told.clone(), |query| format!("{query}&{told}"));
        let mut parts = url.clone().into_parts();
        parts.path_and_query = Some(format!("{}?{query}", url.path()).parse().map_err(|e| format!("{e}"))?);
        Uri::from_parts(parts).map_err(|e| e.to_string())
    }
}

impl Endpoint {
    async fn bundle(&self, trust_domain: &TrustDomain) -> Result<Bundle, String> {
        let channel = match self {
            Self::Unix(path) => client::unix(path).await,
            Self::Tcp(address) => client::tcp(*address).await,
        };
        let mut request = tonic::Request::new(X509BundlesRequest {});
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let answer = SpiffeWorkloadApiClient::new(channel.map_err(|e| e.to_string())?).fetch_x509_bundles(request).await;
        let message = answer.map_err(|status| status.message().to_owned())?.into_inner().message().await;
        let bundles = message.map_err(|status| status.message().to_owned())?.unwrap_or_default().bundles;
        let name = trust_domain.id();
        let der =
            bundles.get(name.as_str()).ok_or_else(|| format!("it did not provide a trust bundle for trust domain `{trust_domain}`"))?;
        let mut bundle = Bundle::empty(trust_domain.clone());
        for certificate in Certificate::parse_concatenated(der).map_err(|e| e.to_string())? {
            bundle.add_x509_authority(certificate, false).map_err(|e| e.to_string())?;
        }
        Ok(bundle)
    }
}

fn not_empty(bundle: Bundle) -> Result<Bundle, String> {
    if bundle.x509_authorities().is_empty() { Err("no certificates found in trust bundle".to_owned()) } else { Ok(bundle) }
}

/// A setting; an empty text is none, as in SPIRE.
fn text(agent: &mut Section, key: &'static str) -> Result<Option<Spanned<String>>, ConfigError> {
    Ok(agent.string(key)?.filter(|text| !text.value.is_empty()))
}

fn web(url: &Spanned<String>, socket: Option<&Spanned<String>>) -> Result<Place, ConfigError> {
    let Some(socket) = socket else {
        if !url.value.starts_with("https://") {
            return Err(url.error("trust bundle URL must start with https://"));
        }
        return Ok(Place::Web(url.parse(|text| https::address(text, &Scheme::HTTPS))?));
    };
    if !url.value.starts_with("http://") {
        return Err(url.error("trust bundle URL must start with http:// when used with trust bundle unix socket"));
    }
    let address = url.parse(|text| https::address(text, &Scheme::HTTP))?;
    for reserved in ["spiffe-", "spire-"] {
        if address.query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with(reserved))) {
            return Err(url.error(format!("trust_bundle_url query params can not start with {reserved}")));
        }
    }
    socket.parse(|path| unix::check_path(Path::new(path)))?;
    Ok(Place::Socket { url: address, socket: PathBuf::from(&socket.value) })
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    let refused = |what: &str| format!("trust_bundle_spiffe_workload_api is not a valid SPIFFE Workload API endpoint address: {what}");
    if let Some(path) = text.strip_prefix("unix:") {
        let path = Path::new(path.strip_prefix("//").unwrap_or(path));
        unix::check_path(path).map_err(|e| refused(&e.to_string()))?;
        return if path.is_absolute() { Ok(Endpoint::Unix(path.to_owned())) } else { Err(refused("the path must be absolute")) };
    }
    match text.strip_prefix("tcp://") {
        Some(address) => address.parse().map(Endpoint::Tcp).map_err(|_| refused("expected an IP address and a port behind `tcp://`")),
        None => Err(refused("it must start with `unix://` or `tcp://`")),
    }
}

/// As in the query of a URL.
fn escaped(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing into a text cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_of_the_sites_own_is_told_what_the_agent_is_about() {
        let trust_domain = TrustDomain::parse("example.org").expect("a name");
        let server = ("::1".to_owned(), 8081);
        let started = Timestamp::from_secs(1_800_000_000);
        let attempt = Attempt { again: false, number: 3, started, server: &server, trust_domain: &trust_domain };
        let told = |attempt: &Attempt<'_>, url: &str| attempt.told_to(&url.parse().expect("a URL")).expect("a URL").to_string();
        let behind = "spire-connection-attempts=3&spire-attest-start-time=2027-01-15T08%3A00%3A00Z&spire-server-address=%3A%3A1\
                      &spire-server-port=8081&spiffe-trust-domain=example.org";
        assert_eq!(told(&attempt, "http://host/b"), format!("http://host/b?spire-attest-mode=bootstrap&{behind}"));
        let again = Attempt { again: true, ..attempt };
        assert_eq!(told(&again, "http://host?x=y"), format!("http://host/?x=y&spire-attest-mode=rebootstrap&{behind}"));
    }

    #[test]
    fn a_secret_in_the_query_of_an_address_is_not_shown() {
        let place = Place::Web("https://example.org/bundle?key=s3cret".parse().expect("a URL"));
        let source = TrustSource { place, spiffe_format: false };
        assert_eq!(source.to_string(), "https://example.org/bundle");
        assert_eq!(format!("{source:?}"), "TrustSource(https://example.org/bundle)");
    }

    #[tokio::test]
    async fn a_document_without_authorities_is_no_bundle() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "{\"keys\": []}").expect("written");
        let trust_domain = TrustDomain::parse("example.org").expect("a name");
        let (server, started) = (("localhost".to_owned(), 8081), Timestamp::from_secs(0));
        let attempt = Attempt { again: false, number: 0, started, server: &server, trust_domain: &trust_domain };
        let source = TrustSource { place: Place::File(file.path().to_owned()), spiffe_format: true };
        let refused = source.read(&attempt).await.expect_err("nothing can be trusted by it");
        assert!(refused.ends_with("no certificates found in trust bundle"), "{refused}");
    }
}
