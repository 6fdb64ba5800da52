//! May this caller have this credential.

use std::time::Duration;

use countersign_identity::entry::{AdditionalAttributes, DNS_NAMES_MAX};
use countersign_identity::issue::{Kind, Permission as _};
use countersign_identity::{Entry, SpiffeId};
use countersign_store::{Actor, Change, Node};
use countersign_transport::tcp::TlsIdentity;

use super::{HOUR, MOMENT, NOW, Stage, agent_id, entry, id, identity, node, selectors, trust_domain};
use crate::policy::Allowed;
use crate::policy::allowed::{Lifetimes, Refusal, Wanted};
use crate::policy::gate::AgentRefusal;

const X509_TTL: Duration = Duration::from_secs(1000);
const JWT_TTL: Duration = Duration::from_secs(300);
const AGENT_TTL: Duration = Duration::from_secs(2000);
const LIFETIMES: Lifetimes = Lifetimes { x509_svid: X509_TTL, jwt_svid: JWT_TTL, agent: AGENT_TTL };

fn workload(stage: &Stage, who: &TlsIdentity, entry_id: &str, wanted: Wanted) -> Result<Allowed, Refusal> {
    Allowed::workload(&stage.snapshot(), who, entry_id, wanted, &LIFETIMES, selectors(&["unix:uid:1000"]), NOW)
}

fn agent() -> TlsIdentity {
    identity(&agent_id(), "1", NOW)
}

/// Who asked, by which entry, for which node, on what evidence.
type Written<'a> = (String, Option<(&'a str, i64)>, Option<&'a SpiffeId>, Vec<&'a str>);

/// What the journal says of a credential beside its identity and names.
fn written(allowed: &Allowed) -> Written<'_> {
    let evidence = allowed.evidence().iter().map(|s| s.as_str()).collect();
    (allowed.actor().as_str().to_owned(), allowed.entry(), allowed.agent_id(), evidence)
}

#[tokio::test]
async fn a_workloads_credential_is_what_its_entry_says() {
    let web = Entry {
        dns_names: vec!["web.example".to_owned()],
        revision_number: 7,
        x509_svid_ttl: Some(Duration::from_secs(70)),
        jwt_svid_ttl: Some(Duration::from_secs(60)),
        additional_attributes: AdditionalAttributes { jwt_svid_include_jti: true, ..AdditionalAttributes::default() },
        ..entry("/web")
    };
    let stage = Stage::with(vec![web, entry("/plain")]).await;
    let node = agent_id();
    let evidence = vec!["unix:uid:1000"];

    let x509 = workload(&stage, &agent(), "web", Wanted::X509).unwrap();
    assert_eq!((x509.kind(), x509.spiffe_id(), x509.lifetime()), (Kind::WorkloadX509, &id("/web"), Duration::from_secs(70)));
    assert_eq!(x509.dns_names(), ["web.example"]);
    assert!(x509.audience().is_empty() && x509.include_jti());
    assert_eq!(written(&x509), (node.to_string(), Some(("web", 7)), Some(&node), evidence.clone()));

    let jwt = workload(&stage, &agent(), "web", Wanted::Jwt { audience: vec!["a".to_owned()] }).unwrap();
    assert_eq!((jwt.kind(), jwt.spiffe_id(), jwt.lifetime()), (Kind::WorkloadJwt, &id("/web"), Duration::from_secs(60)));
    assert_eq!(jwt.audience(), ["a"]);
    assert!(jwt.dns_names().is_empty() && jwt.include_jti());
    assert_eq!(written(&jwt), (node.to_string(), Some(("web", 7)), Some(&node), evidence));

    let plain = workload(&stage, &agent(), "plain", Wanted::X509).unwrap();
    assert_eq!((plain.lifetime(), plain.entry(), plain.include_jti()), (X509_TTL, Some(("plain", 0)), false));
    let plain = workload(&stage, &agent(), "plain", Wanted::Jwt { audience: Vec::new() }).unwrap();
    assert_eq!((plain.lifetime(), plain.include_jti()), (JWT_TTL, false));
}

#[tokio::test]
async fn a_workloads_credential_ends_with_its_entry_and_is_refused_from_then_on() {
    let ends = |path, at| Entry { expires_at: Some(at), ..entry(path) };
    let moment_more = X509_TTL + MOMENT;
    let stage = Stage::with(vec![
        ends("/over", NOW.before(MOMENT)),
        ends("/over-now", NOW),
        ends("/soon-over", NOW.after(MOMENT)),
        ends("/as-long", NOW.after(X509_TTL)),
        ends("/longer", NOW.after(moment_more)),
    ])
    .await;
    let lifetime = |entry_id| workload(&stage, &agent(), entry_id, Wanted::X509).map(|allowed| allowed.lifetime());
    assert_eq!(lifetime("over"), Err(Refusal::Entry));
    assert_eq!(lifetime("over-now"), Err(Refusal::Entry));
    assert_eq!(lifetime("soon-over"), Ok(MOMENT));
    assert_eq!(lifetime("as-long"), Ok(X509_TTL));
    assert_eq!(lifetime("longer"), Ok(X509_TTL));
}

#[tokio::test]
async fn an_agent_gets_credentials_of_its_own_entries_alone_and_only_while_it_counts() {
    let elsewhere = Entry { parent_id: id("/spire/agent/join_token/b"), ..entry("/elsewhere") };
    let over = Entry { expires_at: Some(NOW), ..elsewhere.clone() };
    let over = Entry { id: "elsewhere-over".to_owned(), spiffe_id: id("/elsewhere-over"), ..over };
    let stage = Stage::with(vec![entry("/web"), elsewhere, over]).await;
    let of = |who: &TlsIdentity, entry_id| workload(&stage, who, entry_id, Wanted::X509).map(|allowed| allowed.spiffe_id().clone());
    assert_eq!(of(&agent(), "web"), Ok(id("/web")));
    for not_its in ["elsewhere", "elsewhere-over", "nowhere", ""] {
        assert_eq!(of(&agent(), not_its), Err(Refusal::Entry), "{not_its}");
    }
    // The renewed certificate counts too: the gate may have let it in a moment ago.
    assert_eq!(of(&identity(&agent_id(), "2", NOW), "web"), Ok(id("/web")));
    let refused = |refusal| Err(Refusal::Agent(refusal));
    assert_eq!(of(&identity(&agent_id(), "3", NOW), "web"), refused(AgentRefusal::NotActive));
    assert_eq!(of(&identity(&agent_id(), "1", NOW.before(MOMENT)), "web"), refused(AgentRefusal::Expired));
    assert_eq!(of(&identity(&id("/web"), "1", NOW), "web"), refused(AgentRefusal::NotAttested));

    let banned = Node { serial_number: String::new(), ..node() };
    let stage = Stage::new(vec![Change::NodePut(banned.into()), Change::EntryPut(entry("/web").into())]).await;
    let denied = workload(&stage, &agent(), "web", Wanted::X509).map(|allowed| allowed.spiffe_id().clone());
    assert_eq!(denied, refused(AgentRefusal::Banned));
}

#[test]
fn a_nodes_own_svid_says_on_what_evidence() {
    let allowed = Allowed::agent(&agent_id(), selectors(&["unix:uid:7"]), Actor::new("nobody at 192.0.2.7"), &LIFETIMES);
    assert_eq!((allowed.kind(), allowed.spiffe_id(), allowed.lifetime()), (Kind::AgentX509, &agent_id(), AGENT_TTL));
    assert!(allowed.dns_names().is_empty() && allowed.audience().is_empty() && !allowed.include_jti());
    let node = agent_id();
    assert_eq!(written(&allowed), ("nobody at 192.0.2.7".to_owned(), None, Some(&node), vec!["unix:uid:7"]));
}

#[test]
fn the_servers_own_credentials_are_its_own() {
    let own = Allowed::own(&trust_domain(), HOUR);
    assert_eq!((own.kind(), own.spiffe_id(), own.lifetime()), (Kind::OwnX509, &trust_domain().server_id(), HOUR));
    let authority = Allowed::authority(&trust_domain(), HOUR * 2);
    assert_eq!((authority.kind(), authority.spiffe_id(), authority.lifetime()), (Kind::AuthorityX509, &trust_domain().id(), HOUR * 2));
    for allowed in [own, authority] {
        assert_eq!(written(&allowed), ("server".to_owned(), None, None, Vec::new()));
        assert!(allowed.dns_names().is_empty() && allowed.audience().is_empty() && !allowed.include_jti());
    }
}

fn minted(id: &SpiffeId, names: Vec<String>) -> Result<Allowed, Refusal> {
    Allowed::minted_x509(id.clone(), names, HOUR, Actor::new("me"), &trust_domain())
}

#[test]
fn what_is_minted_is_what_was_asked_for() {
    let x509 = minted(&id("/m"), vec!["b.example".to_owned(), "a.example".to_owned()]).unwrap();
    assert_eq!((x509.kind(), x509.spiffe_id(), x509.lifetime()), (Kind::MintedX509, &id("/m"), HOUR));
    assert_eq!(x509.dns_names(), ["b.example", "a.example"]);
    assert!(x509.audience().is_empty());

    let audience = vec!["b".to_owned(), "a".to_owned()];
    let jwt = Allowed::minted_jwt(id("/m"), audience, HOUR, Actor::new("me"), &trust_domain()).unwrap();
    assert_eq!((jwt.kind(), jwt.spiffe_id(), jwt.lifetime()), (Kind::MintedJwt, &id("/m"), HOUR));
    assert_eq!(jwt.audience(), ["b", "a"]);
    assert!(jwt.dns_names().is_empty());
    for allowed in [x509, jwt] {
        assert_eq!(written(&allowed), ("me".to_owned(), None, None, Vec::new()));
        assert!(!allowed.include_jti());
    }
}

#[test]
fn identities_that_are_no_workloads_of_this_trust_domain_are_not_minted() {
    let foreign = SpiffeId::parse("spiffe://other.test/m").unwrap();
    for refused in [foreign, trust_domain().id(), trust_domain().server_id(), agent_id()] {
        assert!(matches!(minted(&refused, Vec::new()), Err(Refusal::SpiffeId(_))), "{refused}");
        let jwt = Allowed::minted_jwt(refused.clone(), Vec::new(), HOUR, Actor::new("me"), &trust_domain());
        assert!(matches!(jwt, Err(Refusal::SpiffeId(_))), "{refused}");
    }
}

#[test]
fn as_many_dns_names_are_minted_as_an_entry_may_have() {
    let names = |count: usize| (0..count).map(|n| format!("n{n}.example")).collect::<Vec<_>>();
    assert_eq!(minted(&id("/m"), names(DNS_NAMES_MAX)).unwrap().dns_names().len(), DNS_NAMES_MAX);
    for count in [DNS_NAMES_MAX + 1, DNS_NAMES_MAX + 2] {
        let refused = minted(&id("/m"), names(count)).unwrap_err();
        assert_eq!(refused.to_string(), format!("too many DNS names: {count}"));
    }
}

#[test]
fn a_wildcard_beside_a_name_it_covers_is_refused_and_nothing_else() {
    let refused = |names: &[&str]| minted(&id("/m"), names.iter().map(|&n| n.to_owned()).collect()).map(|_| ()).map_err(|e| e.to_string());
    for names in [["*.a.b", "x.a.b"], ["x.a.b", "*.a.b"]] {
        assert_eq!(refused(&names), Err("wildcard overlaps with another DNS name: `*.a.b`".to_owned()), "{names:?}");
    }
    let apart: [&[&str]; 8] = [
        &[],
        &["x.a.b"],
        &["*.a.b"],
        &["*.a.b", "c.d"],
        &["*.a.b", "a.b"],
        &["*.a.b", "y.x.a.b"],
        &["*.a.b", "*.b", "*.x.a.b"],
        &["x.a.b", "y.a.b", "x.a.b"],
    ];
    for names in apart {
        assert_eq!(refused(names), Ok(()), "{names:?}");
    }
    // The wildcard's own second mention covers nothing.
    assert_eq!(refused(&["*.a.b", "*.a.b"]), Ok(()));
    assert!(refused(&["a..b"]).is_err(), "no name at all");
}
