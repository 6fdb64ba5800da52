//! Leave to have one credential: the first link of the chain to a signature.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::issue::{Kind, Permission};
use countersign_identity::{Entry, Selector, SpiffeId, Timestamp, TrustDomain};
use countersign_store::{Actor, Snapshot};
use countersign_transport::tcp::TlsIdentity;

use super::gate::{AgentRefusal, judge_agent};

/// This caller may have this credential. Its fields are private to this file, so nobody else can make one; it is
/// consumed by being used and cannot be copied.
///
/// ```
/// use countersign_server::policy::Allowed;
/// fn hand_on(kind: countersign_identity::issue::Kind, allowed: Allowed) -> Allowed { allowed }
/// ```
/// ```compile_fail
/// use countersign_server::policy::Allowed;
/// fn forge(kind: countersign_identity::issue::Kind, allowed: Allowed) -> Allowed { Allowed { kind, ..allowed } }
/// ```
#[derive(Debug)]
pub struct Allowed {
    kind: Kind,
    spiffe_id: SpiffeId,
    lifetime: Duration,
    dns_names: Vec<String>,
    audience: Vec<String>,
    actor: Actor,
    entry: Option<(String, i64)>,
    agent: Option<SpiffeId>,
    evidence: Vec<Selector>,
    include_jti: bool,
}

impl Permission for Allowed {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    fn lifetime(&self) -> Duration {
        self.lifetime
    }

    fn dns_names(&self) -> &[String] {
        &self.dns_names
    }

    fn audience(&self) -> &[String] {
        &self.audience
    }
}

/// Why a credential is refused. The first text is for the caller, in SPIRE's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// No such entry for this agent; which of the two is not said.
    #[error("entry not found or not authorized")]
    Entry,
    /// The identity is not one this trust domain issues.
    #[error("invalid SPIFFE ID: {0}")]
    SpiffeId(String),
    /// The agent's SVID counts no longer.
    #[error("the agent's SVID counts no longer")]
    Agent(AgentRefusal),
    /// A name that no certificate may have.
    #[error("{0}")]
    DnsName(String),
}

/// Default lifetimes of the trust domain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lifetimes {
    pub(crate) x509_svid: Duration,
    pub(crate) jwt_svid: Duration,
    pub(crate) agent: Duration,
}

/// What a workload's credential is asked for.
pub(crate) enum Wanted {
    X509,
    Jwt { audience: Vec<String> },
}

impl Allowed {
    /// A workload's credential, asked for by its agent. The entry must be the agent's on this snapshot, and not over.
    pub(crate) fn workload(
        snapshot: &Snapshot,
        identity: &TlsIdentity,
        entry_id: &str,
        wanted: Wanted,
        lifetimes: &Lifetimes,
        evidence: Vec<Selector>,
        now: Timestamp,
    ) -> Result<Self, Refusal> {
        tracing::trace!(hop = "permits");
        // The gate let the call in, perhaps a while ago: the agent must still count on this very snapshot.
        let agent = &identity.spiffe_id;
        judge_agent(snapshot.node(agent).map(Arc::as_ref), identity, now).map_err(Refusal::Agent)?;
        let entry: &Entry = snapshot.entry(entry_id).ok_or(Refusal::Entry)?;
        if entry.is_expired(now) || !snapshot.is_authorized(agent, entry) {
            return Err(Refusal::Entry);
        }
        let (kind, ttl, audience, dns_names) = match wanted {
            Wanted::X509 => (Kind::WorkloadX509, entry.x509_svid_ttl.unwrap_or(lifetimes.x509_svid), Vec::new(), entry.dns_names.clone()),
            Wanted::Jwt { audience } => (Kind::WorkloadJwt, entry.jwt_svid_ttl.unwrap_or(lifetimes.jwt_svid), audience, Vec::new()),
        };
        // Nothing outlives the entry that grants it.
        let lifetime = entry.expires_at.map_or(ttl, |end| ttl.min(end.since(now)));
        Ok(Self {
            kind,
            spiffe_id: entry.spiffe_id.clone(),
            lifetime,
            dns_names,
            audience,
            actor: Actor::new(agent.as_str()),
            entry: Some((entry.id.clone(), entry.revision_number)),
            agent: Some(agent.clone()),
            evidence,
            include_jti: entry.additional_attributes.jwt_svid_include_jti,
        })
    }

    /// The SVID of a node that has just proved who it is, or renews.
    pub(crate) fn agent(id: &SpiffeId, evidence: Vec<Selector>, actor: Actor, lifetimes: &Lifetimes) -> Self {
        Self { agent: Some(id.clone()), evidence, ..Self::plain(Kind::AgentX509, id.clone(), lifetimes.agent, actor) }
    }

    /// An X509-SVID that an administrator asks for.
    pub(crate) fn minted_x509(
        id: SpiffeId,
        dns_names: Vec<String>,
        lifetime: Duration,
        actor: Actor,
        trust_domain: &TrustDomain,
    ) -> Result<Self, Refusal> {
        check_minted(&id, trust_domain)?;
        if dns_names.len() > countersign_identity::entry::DNS_NAMES_MAX {
            return Err(Refusal::DnsName(format!("too many DNS names: {}", dns_names.len())));
        }
        for name in &dns_names {
            countersign_identity::entry::check_dns_name(name).map_err(|e| Refusal::DnsName(e.to_string()))?;
            if overlaps(name, &dns_names) {
                return Err(Refusal::DnsName(format!("wildcard overlaps with another DNS name: `{name}`")));
            }
        }
        Ok(Self { dns_names, ..Self::plain(Kind::MintedX509, id, lifetime, actor) })
    }

    /// A JWT-SVID that an administrator asks for.
    pub(crate) fn minted_jwt(
        id: SpiffeId,
        audience: Vec<String>,
        lifetime: Duration,
        actor: Actor,
        trust_domain: &TrustDomain,
    ) -> Result<Self, Refusal> {
        check_minted(&id, trust_domain)?;
        Ok(Self { audience, ..Self::plain(Kind::MintedJwt, id, lifetime, actor) })
    }

    /// The server's own SVID.
    pub(crate) fn own(trust_domain: &TrustDomain, lifetime: Duration) -> Self {
        Self::plain(Kind::OwnX509, trust_domain.server_id(), lifetime, Actor::server())
    }

    /// A new self-signed authority of the trust domain.
    pub(crate) fn authority(trust_domain: &TrustDomain, lifetime: Duration) -> Self {
        Self::plain(Kind::AuthorityX509, trust_domain.id(), lifetime, Actor::server())
    }

    fn plain(kind: Kind, spiffe_id: SpiffeId, lifetime: Duration, actor: Actor) -> Self {
        Self {
            kind,
            spiffe_id,
            lifetime,
            dns_names: Vec::new(),
            audience: Vec::new(),
            actor,
            entry: None,
            agent: None,
            evidence: Vec::new(),
            include_jti: false,
        }
    }

    /// Who asked.
    pub(crate) fn actor(&self) -> &Actor {
        &self.actor
    }

    /// The entry that grants it, with its revision.
    pub(crate) fn entry(&self) -> Option<(&str, i64)> {
        self.entry.as_ref().map(|(id, revision)| (id.as_str(), *revision))
    }

    /// The node that receives it.
    pub(crate) fn agent_id(&self) -> Option<&SpiffeId> {
        self.agent.as_ref()
    }

    /// What the node said about the workload, or was proved about the node.
    pub(crate) fn evidence(&self) -> &[Selector] {
        &self.evidence
    }

    /// Whether the token gets a `jti`.
    pub(crate) fn include_jti(&self) -> bool {
        self.include_jti
    }
}

/// Whether `name` is a wildcard that covers another of the names.
fn overlaps(name: &str, names: &[String]) -> bool {
    name.strip_prefix("*.").is_some_and(|suffix| {
        names.iter().any(|other| other != name && other.split_once('.').is_some_and(|(label, rest)| label != "*" && rest == suffix))
    })
}

fn check_minted(id: &SpiffeId, trust_domain: &TrustDomain) -> Result<(), Refusal> {
    countersign_identity::entry::check_spiffe_id(id, trust_domain).map_err(|e| Refusal::SpiffeId(e.to_string()))
}
