//! The audit log, where it is on: a line `API accessed` for each call that was let in and each item of a batch, with SPIRE's
//! field names. Handlers say what a call was about; that it was made, by whom and how it ended is said for all of them.

use std::sync::{Arc, Mutex, PoisonError};

use countersign_wire::types;
use tonic::{Code, Status};

use crate::policy::caller::{Kind, Proof};

/// Longest list in a line, in bytes: enough for every selector that people write, too short to fill a disk with one call.
const LIST_BYTES_MAX: usize = 4096;
/// Calls that ask after the process and are made all the time; only their failures are said.
const QUIET: &[&str] = &["/grpc.health.v1.Health/", "/spire.api.server.debug.v1.Debug/"];

/// What a call was about.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    pub(crate) spiffe_id: Option<String>,
    pub(crate) entry_id: Option<String>,
    /// What a client wants an entry to be.
    pub(crate) entry: Option<Box<AboutEntry>>,
    pub(crate) agent_id: Option<String>,
    pub(crate) node_attestor_type: Option<String>,
    pub(crate) agent_version: Option<String>,
    pub(crate) trust_domain_id: Option<String>,
    pub(crate) csr: Option<String>,
    pub(crate) ttl: Option<i32>,
    pub(crate) audience: Option<String>,
    pub(crate) expires_at: Option<i64>,
    pub(crate) mode: Option<&'static str>,
    pub(crate) bundle_endpoint_url: Option<String>,
    pub(crate) bundle_endpoint_profile: Option<&'static str>,
    pub(crate) endpoint_spiffe_id: Option<String>,
}

/// An entry, as a client writes it down.
#[derive(Debug, Clone, Default)]
pub(crate) struct AboutEntry {
    parent_id: Option<String>,
    selectors: Option<String>,
    federates_with: Option<String>,
    admin: bool,
    downstream: bool,
    store_svid: bool,
    expires_at: i64,
    x509_svid_ttl: i32,
    jwt_svid_ttl: i32,
    dns_name: Option<String>,
    hint: String,
}

impl About {
    /// About an entry by its ID.
    pub(crate) fn entry_id(id: &str) -> Self {
        Self { entry_id: Some(short(id)), ..Self::default() }
    }

    /// About a trust domain.
    pub(crate) fn trust_domain(name: &str) -> Self {
        Self { trust_domain_id: Some(short(name)), ..Self::default() }
    }

    /// About an agent or a workload.
    pub(crate) fn spiffe_id(id: &str) -> Self {
        Self { spiffe_id: Some(short(id)), ..Self::default() }
    }

    /// About an entry, as a client writes it down.
    pub(crate) fn entry(entry: &types::Entry) -> Self {
        let id = |id: &Option<types::Spiffeid>| id.as_ref().map(|id| short(&format!("spiffe://{}{}", id.trust_domain, id.path)));
        Self {
            spiffe_id: id(&entry.spiffe_id),
            entry_id: Some(short(&entry.id)).filter(|id| !id.is_empty()),
            entry: Some(Box::new(AboutEntry {
                parent_id: id(&entry.parent_id),
                selectors: list(entry.selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value))),
                federates_with: list(entry.federates_with.iter().cloned()),
                admin: entry.admin,
                downstream: entry.downstream,
                store_svid: entry.store_svid,
                expires_at: entry.expires_at,
                x509_svid_ttl: entry.x509_svid_ttl,
                jwt_svid_ttl: entry.jwt_svid_ttl,
                dns_name: list(entry.dns_names.iter().cloned()),
                hint: short(&entry.hint),
            })),
            ..Self::default()
        }
    }

    /// About a federation relationship, as a client writes it down.
    pub(crate) fn relationship(relationship: &types::FederationRelationship) -> Self {
        use types::federation_relationship::BundleEndpointProfile as Profile;
        let (bundle_endpoint_profile, endpoint_spiffe_id) = match &relationship.bundle_endpoint_profile {
            None => (None, None),
            Some(Profile::HttpsWeb(_)) => (Some("https_web"), None),
            Some(Profile::HttpsSpiffe(profile)) => (Some("https_spiffe"), Some(short(&profile.endpoint_spiffe_id))),
        };
        Self {
            bundle_endpoint_url: Some(short(&relationship.bundle_endpoint_url)),
            bundle_endpoint_profile,
            endpoint_spiffe_id,
            ..Self::trust_domain(&relationship.trust_domain)
        }
    }
}

/// What is written of a text that a client chose.
pub(crate) fn short(text: &str) -> String {
    let mut end = text.len().min(LIST_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

/// A list with commas; nothing for an empty one.
pub(crate) fn list(items: impl Iterator<Item = String>) -> Option<String> {
    let mut text = String::new();
    for item in items {
        if text.len() + item.len() >= LIST_BYTES_MAX {
            text.push_str(",…");
            break;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&item);
    }
    Some(text).filter(|text| !text.is_empty())
}

/// SHA-256 of what nobody could read in a log, in hexadecimal.
pub(crate) fn hash(bytes: &[u8]) -> Option<String> {
    use std::fmt::Write as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    (!bytes.is_empty()).then(|| {
        digest.as_ref().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    })
}

/// One call in the audit log. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Access(Option<Arc<Call>>);

#[derive(Debug)]
struct Call {
    request_id: String,
    method: String,
    authorized_as: &'static str,
    authorized_via: &'static str,
    proof: Proof,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    about: About,
    /// Whether the line at the end is written by somebody else, or has been.
    is_left: bool,
}

impl Access {
    /// Of a call that was let in.
    pub(crate) fn of(method: &str, kind: Kind, authorized_via: &'static str, proof: &Proof) -> Self {
        Self(Some(Arc::new(Call {
            request_id: uuid::Uuid::new_v4().to_string(),
            method: method.to_owned(),
            authorized_as: kind.name(),
            authorized_via,
            proof: proof.clone(),
            said: Mutex::default(),
        })))
    }

    /// What the items of a batch are about, where anybody will read it.
    pub(crate) fn each<T>(&self, items: &[T], about: impl Fn(&T) -> About) -> std::vec::IntoIter<About> {
        let abouts: Vec<About> = if self.0.is_some() { items.iter().map(about).collect() } else { Vec::new() };
        abouts.into_iter()
    }

    /// Says what the call is about; for the line at its end.
    pub(crate) fn about(&self, about: impl FnOnce() -> About) {
        if let Some(call) = &self.0 {
            call.said.lock().unwrap_or_else(PoisonError::into_inner).about = about();
        }
    }

    /// A line for an item of a batch, instead of one for the whole.
    pub(crate) fn item(&self, status: Option<&types::Status>, about: impl FnOnce() -> Option<About>) {
        if let Some(call) = &self.0 {
            self.leave();
            let (code, message) = status.map_or((Code::Ok, ""), |s| (Code::from(s.code), s.message.as_str()));
            call.write(code, message, &about().unwrap_or_default());
        }
    }

    /// Leaves the line at the end to [`Access::end`]: the call goes on after its answer has begun.
    pub(crate) fn leave(&self) {
        if let Some(call) = &self.0 {
            call.said.lock().unwrap_or_else(PoisonError::into_inner).is_left = true;
        }
    }

    /// The line at the end of a call that was left.
    pub(crate) fn end(&self, outcome: Result<(), &Status>) {
        if let Some(call) = &self.0 {
            let about = call.said.lock().unwrap_or_else(PoisonError::into_inner).about.clone();
            let (code, message) = outcome.err().map_or((Code::Ok, ""), |s| (s.code(), s.message()));
            call.write(code, message, &about);
        }
    }

    /// The line when a call has been answered, unless it was left.
    pub(crate) fn answered(&self, refusal: Option<&Status>) {
        let Some(call) = &self.0 else { return };
        let is_left = call.said.lock().unwrap_or_else(PoisonError::into_inner).is_left;
        let refusal = refusal.filter(|s| s.code() != Code::Ok);
        let is_quiet = refusal.is_none() && QUIET.iter().any(|service| call.method.starts_with(service));
        if is_left || is_quiet {
            return;
        }
        self.end(refusal.map_or(Ok(()), Err));
    }
}

impl Call {
    fn write(&self, code: Code, message: &str, about: &About) {
        let (service, method) = self.method.trim_start_matches('/').split_once('/').unwrap_or_default();
        let is_ok = code == Code::Ok;
        let peer = if let Proof::Local(peer) = &self.proof { Some(peer) } else { None };
        let caller_addr = if let Proof::Remote { address, .. } = &self.proof { Some(address.to_string()) } else { None };
        let caller_path = peer.and_then(countersign_transport::peer::Peer::path).map(|p| p.display().to_string());
        let status_code = (!is_ok).then(|| format!("{code:?}"));
        // One event has at most 32 fields, and its names are fixed: those of entries have an event of their own.
        macro_rules! accessed {
            ($($field:ident = $value:expr),* $(,)?) => {
                tracing::info!(
                    "type" = "audit",
                    request_id = self.request_id,
                    service = service.trim_start_matches("spire.api.server."),
                    method,
                    authorized_as = self.authorized_as,
                    authorized_via = self.authorized_via,
                    caller_addr,
                    caller_id = self.proof.spiffe_id().map(countersign_identity::SpiffeId::as_str),
                    caller_uid = peer.map(|p| p.uid),
                    caller_gid = peer.map(|p| p.gid),
                    caller_path,
                    status = if is_ok { "success" } else { "error" },
                    status_code,
                    status_message = (!is_ok).then_some(message),
                    spiffe_id = about.spiffe_id,
                    entry_id = about.entry_id,
                    $($field = $value,)*
                    "API accessed"
                )
            };
        }
        match &about.entry {
            Some(entry) => accessed!(
                parent_id = entry.parent_id,
                selectors = entry.selectors,
                federates_with = entry.federates_with,
                admin = entry.admin,
                downstream = entry.downstream,
                store_svid = entry.store_svid,
                expires_at = entry.expires_at,
                x509_svid_ttl = entry.x509_svid_ttl,
                jwt_svid_ttl = entry.jwt_svid_ttl,
                dns_name = entry.dns_name,
                hint = entry.hint,
            ),
            None => accessed!(
                agent_id = about.agent_id,
                node_attestor_type = about.node_attestor_type,
                agent_version = about.agent_version,
                trust_domain_id = about.trust_domain_id,
                csr = about.csr,
                ttl = about.ttl,
                audience = about.audience,
                expires_at = about.expires_at,
                mode = about.mode,
                bundle_endpoint_url = about.bundle_endpoint_url,
                bundle_endpoint_profile = about.bundle_endpoint_profile,
                endpoint_spiffe_id = about.endpoint_spiffe_id,
            ),
        }
    }
}
