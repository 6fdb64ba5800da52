//! Names, validators and the rules of a stream, without a stream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use countersign_identity::{Bundle, Timestamp, TrustDomain};
use countersign_wire::discovery::DiscoveryRequest;
use countersign_wire::envoy_core::node::UserAgentVersionType;
use countersign_wire::envoy_core::{BuildVersion, Node};
use countersign_wire::envoy_type::SemanticVersion;
use countersign_wire::google::rpc;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::Code;
use zeroize::Zeroizing;

use super::exchange::{Asked, Exchange, RESOURCE_NAMES_MAX, shown};
use super::secrets::{Held, Secret, Unanswered, select};
use super::validator::Validator;
use crate::cache::{Identity, Svid};
use crate::config::{RESOURCE_NAME_BYTES_MAX, Sds};

const OWN: &str = "spiffe://example.org";

fn settings() -> Sds {
    Sds {
        svid_name: "default".to_owned(),
        bundle_name: "ROOTCA".to_owned(),
        all_bundles_name: "ALL".to_owned(),
        disable_spiffe_cert_validation: false,
    }
}

fn identity(entry_id: &str, path: &str, has_svid: bool) -> Identity {
    let spiffe_id = TrustDomain::parse("example.org").expect("a name").with_path(path).expect("a path");
    let wire = countersign_wire::types::Entry {
        id: entry_id.to_owned(),
        spiffe_id: Some(countersign_wire::id::to_wire(&spiffe_id)),
        parent_id: Some(countersign_wire::id::to_wire(&spiffe_id)),
        selectors: vec![countersign_wire::types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
        ..Default::default()
    };
    let svid = Svid {
        spiffe_id,
        chain: Vec::new(),
        key: Zeroizing::new(Vec::new()),
        expires_at: Timestamp::from_secs(3600),
        renew_at: Timestamp::from_secs(1800),
        dns_names: Vec::new(),
        ttl: None,
    };
    let entry = Arc::new(countersign_wire::entry::from_wire(&wire).expect("an entry"));
    Identity { entry, svid: has_svid.then(|| Arc::new(svid)), failure: None }
}

fn bundles(names: &[&str]) -> BTreeMap<String, Arc<Bundle>> {
    let bundle = |name: &&str| (format!("spiffe://{name}"), Arc::new(Bundle::empty(TrustDomain::parse(name).expect("a name"))));
    names.iter().map(bundle).collect()
}

/// Names and contents of what is selected, or why nothing is.
fn selected(names: &[&str], identities: &[Identity], bundles: &BTreeMap<String, Arc<Bundle>>, validator: Validator) -> Vec<String> {
    let names: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    match select(&names, &Held { identities, bundles, own: OWN }, validator, &settings()) {
        Ok(secrets) => secrets.iter().map(content).collect(),
        Err(Unanswered::Awaits(identities)) => {
            std::iter::once("awaits".to_owned()).chain(identities.iter().map(|i| i.entry.id.clone())).collect()
        }
        Err(Unanswered::Unknown(names)) => std::iter::once("unknown".to_owned()).chain(names).collect(),
        Err(Unanswered::Inseparable) => vec!["inseparable".to_owned()],
    }
}

fn content(secret: &Secret) -> String {
    match secret {
        Secret::Svid { name, svid } => format!("{name} = {}", svid.spiffe_id.path()),
        Secret::Bundles { name, bundles } => {
            let names: Vec<&str> = bundles.iter().map(|bundle| bundle.trust_domain().name()).collect();
            format!("{name} = {}", names.join("+"))
        }
    }
}

#[test]
fn each_name_leads_to_what_spires_agent_gives_for_it() {
    let identities = [identity("1", "/web", true), identity("2", "/api", true), identity("3", "/web", true)];
    let federated = bundles(&["example.org", "other.test", "a.test"]);
    let of = |names: &[&str]| selected(names, &identities, &federated, Validator::Spiffe);
    let (web, api) = ("spiffe://example.org/web", "spiffe://example.org/api");

    assert_eq!(of(&["default"]), ["default = /web"]);
    assert_eq!(of(&[api]), [format!("{api} = /api")]);
    assert_eq!(of(&["ROOTCA"]), ["ROOTCA = example.org"]);
    assert_eq!(of(&[OWN]), [format!("{OWN} = example.org")]);
    assert_eq!(of(&["spiffe://other.test"]), ["spiffe://other.test = other.test"]);
    assert_eq!(of(&["ALL"]), ["ALL = a.test+example.org+other.test"]);
    assert_eq!(of(&["ALL", "spiffe://a.test", "default", api]).len(), 4);
    // Two entries of one SPIFFE ID: the first by name, both without names.
    assert_eq!(of(&[web]), [format!("{web} = /web")]);
    let everything = [
        format!("{OWN} = example.org"),
        "spiffe://a.test = a.test".to_owned(),
        "spiffe://other.test = other.test".to_owned(),
        format!("{web} = /web"),
        format!("{api} = /api"),
        format!("{web} = /web"),
    ];
    assert_eq!(of(&[]), everything);
    // One of the own bundle's names, and one of the first identity's.
    assert_eq!(of(&[OWN, "ROOTCA", "ALL"]), ["unknown", "ALL", "ROOTCA"]);
    assert_eq!(of(&["ROOTCA", "ALL"]), ["unknown", "ALL"]);
    assert_eq!(of(&[web, "default"]), ["unknown", "default"]);
    assert_eq!(of(&["b", "ROOTCA", "a"]), ["unknown", "a", "b"]);
    assert_eq!(of(&["spiffe://b.test", "spiffe://example.org/Web"]), ["unknown", "spiffe://b.test", "spiffe://example.org/Web"]);

    // All bundles are for whoever keeps them apart.
    assert_eq!(selected(&["ALL"], &identities, &federated, Validator::Plain), ["inseparable"]);
    assert_eq!(selected(&["ROOTCA", "spiffe://a.test"], &identities, &federated, Validator::Plain).len(), 2);
    // Without identity the own bundle is there.
    let own = bundles(&["example.org"]);
    assert_eq!(selected(&["ALL"], &[], &own, Validator::Spiffe), ["ALL = example.org"]);
    assert_eq!(selected(&[], &[], &own, Validator::Spiffe), [format!("{OWN} = example.org")]);
    assert_eq!(selected(&["default"], &[], &own, Validator::Spiffe), ["unknown", "default"]);
    assert_eq!(selected(&["ROOTCA"], &[], &bundles(&[]), Validator::Spiffe), ["unknown", "ROOTCA"]);
}

#[test]
fn who_names_an_identity_waits_for_it_and_is_given_no_other() {
    let mut identities = [identity("1", "/web", false), identity("2", "/api", true)];
    let own = bundles(&["example.org"]);
    let of = |identities: &[Identity], names: &[&str]| selected(names, identities, &own, Validator::Spiffe);
    assert_eq!(of(&identities, &["default"]), ["awaits", "1"]);
    assert_eq!(of(&identities, &["spiffe://example.org/api"]), ["spiffe://example.org/api = /api"]);
    assert_eq!(of(&identities, &["ROOTCA"]), ["ROOTCA = example.org"]);
    assert_eq!(of(&identities, &[]), ["awaits", "1"]);
    // What cannot be had now is left out of everything, and still not replaced by another.
    identities[0].failure = Some("the server is away".into());
    assert_eq!(of(&identities, &["default"]), ["awaits", "1"]);
    assert_eq!(of(&identities, &[]), ["spiffe://example.org = example.org", "spiffe://example.org/api = /api"]);
    identities[1].svid = None;
    identities[1].failure = Some("the server is away".into());
    assert_eq!(of(&identities, &[]), ["awaits", "1", "2"]);
}

fn node(metadata: Option<Kind>, version: Option<Option<(u32, u32)>>) -> Node {
    let fields = [("disable_spiffe_cert_validation".to_owned(), Value { kind: metadata })].into();
    let version = version.map(|version| {
        let version = version.map(|(major_number, minor_number)| SemanticVersion { major_number, minor_number, patch: 9 });
        UserAgentVersionType::UserAgentBuildVersion(BuildVersion { version })
    });
    Node { metadata: Some(Struct { fields }), user_agent_version_type: version, ..Node::default() }
}

#[test]
fn an_envoy_says_by_version_and_metadata_how_it_verifies() {
    let text = |text: &str| Some(Kind::StringValue(text.to_owned()));
    for (metadata, disabled, wanted) in [
        (None, false, Validator::Spiffe),
        (None, true, Validator::Plain),
        (Some(Kind::BoolValue(true)), false, Validator::Plain),
        (Some(Kind::BoolValue(false)), true, Validator::Spiffe),
        (text("true"), false, Validator::Plain),
        (text("F"), true, Validator::Spiffe),
        (text("0"), true, Validator::Spiffe),
        (text("T"), false, Validator::Plain),
        // Not a truth of Go's.
        (text("yes"), false, Validator::Spiffe),
        (text("yes"), true, Validator::Plain),
        (text(" true"), false, Validator::Spiffe),
        (Some(Kind::NumberValue(1.0)), false, Validator::Spiffe),
    ] {
        assert_eq!(Validator::of(&node(metadata.clone(), None), disabled), wanted, "{metadata:?}, {disabled}");
    }
    for (version, wanted) in [
        (Some((1, 17)), Validator::Plain),
        (Some((0, 99)), Validator::Plain),
        (Some((1, 18)), Validator::Spiffe),
        (Some((1, 40)), Validator::Spiffe),
        (Some((2, 0)), Validator::Spiffe),
        (None, Validator::Spiffe),
    ] {
        assert_eq!(Validator::of(&node(None, Some(version)), false), wanted, "{version:?}");
    }
    // Metadata makes nothing of an old Envoy that it cannot do.
    assert_eq!(Validator::of(&node(Some(Kind::BoolValue(false)), Some(Some((1, 17)))), false), Validator::Plain);
    let words = Node { user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion("1.2".to_owned())), ..Node::default() };
    assert_eq!(Validator::of(&words, false), Validator::Spiffe);
}

fn request(names: &[&str], version_info: &str, response_nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        version_info: version_info.to_owned(),
        response_nonce: response_nonce.to_owned(),
        ..DiscoveryRequest::default()
    }
}

/// Whether an answer is due after this request.
fn due(exchange: &mut Exchange, request: DiscoveryRequest) -> bool {
    exchange.hear(request).expect("a good request");
    exchange.is_due()
}

fn names(exchange: &Exchange) -> Vec<&str> {
    exchange.asked().expect("something is asked for").names.iter().map(String::as_str).collect()
}

#[test]
fn requests_are_answered_when_they_ask_for_something_else_and_are_about_the_last_answer() {
    let mut exchange = Exchange::new(false);
    assert!(exchange.asked().is_none() && !exchange.is_due());
    // The first is answered, whatever it says of a stream before.
    assert!(due(&mut exchange, request(&["a"], "7", "of-a-stream-before")));
    // Before there is an answer, no request can be about it.
    assert!(due(&mut exchange, request(&["a", "b"], "", "")));
    assert_eq!(names(&exchange), ["a", "b"]);
    assert_eq!(exchange.answered(true, "one".to_owned()), "1");
    // Acknowledged, refused, and refused without a version.
    assert!(!due(&mut exchange, request(&["b", "a"], "1", "one")));
    assert!(!due(&mut exchange, request(&["a", "b", "b", ""], "", "one")));
    let error_detail = Some(rpc::Status { code: 3, message: "no such thing".to_owned(), details: Vec::new() });
    assert!(!due(&mut exchange, DiscoveryRequest { error_detail, ..request(&["a", "b"], "0", "one") }));
    // Other names: a refusal may say them too. What is asked for makes no version.
    assert!(due(&mut exchange, request(&["a"], "0", "one")));
    assert_eq!(exchange.answered(false, "two".to_owned()), "1");
    // About an answer before the last: ignored, all of it.
    for nonce in ["one", "", "never"] {
        assert!(!due(&mut exchange, request(&["c"], "1", nonce)));
        assert_eq!(names(&exchange), ["a"]);
    }
    // All of them, and one again.
    assert!(due(&mut exchange, request(&[], "1", "two")));
    assert_eq!(exchange.answered(true, "three".to_owned()), "2");
    assert!(due(&mut exchange, request(&["a"], "2", "three")));
    // Not yet answered, and back to what it was: an answer is still owed.
    assert!(due(&mut exchange, request(&["a"], "2", "three")));
}

#[test]
fn what_an_envoy_said_of_itself_holds_until_it_says_something_else() {
    let mut exchange = Exchange::new(false);
    let validator = |exchange: &Exchange| exchange.asked().expect("something is asked for").validator;
    let old = Some(node(None, Some(Some((1, 17)))));
    exchange.hear(DiscoveryRequest { node: old, ..request(&["a"], "", "") }).expect("good");
    assert_eq!(validator(&exchange), Validator::Plain);
    exchange.answered(true, "one".to_owned());
    exchange.hear(request(&["b"], "1", "one")).expect("good");
    assert_eq!(validator(&exchange), Validator::Plain);
    let new = Some(node(None, Some(Some((1, 40)))));
    exchange.hear(DiscoveryRequest { node: new, ..request(&["b"], "1", "one") }).expect("good");
    assert_eq!(validator(&exchange), Validator::Spiffe);
    let mut exchange = Exchange::new(true);
    exchange.hear(request(&["a"], "", "")).expect("good");
    assert_eq!(validator(&exchange), Validator::Plain);
}

#[test]
fn too_many_names_and_too_long_ones_are_refused() {
    let read = |request: DiscoveryRequest| Asked::read(request, false, None);
    let longest = "n".repeat(RESOURCE_NAME_BYTES_MAX);
    let longer = format!("{longest}n");
    let many = vec!["n"; RESOURCE_NAMES_MAX];
    let more = vec!["n"; RESOURCE_NAMES_MAX + 1];
    read(request(&many, "", "")).expect("as many as are allowed");
    read(request(&[&longest], "", "")).expect("as long as is allowed");
    let long_type = DiscoveryRequest { type_url: longer.clone(), ..DiscoveryRequest::default() };
    for refused in [request(&more, "", ""), request(&[&longer], "", ""), long_type] {
        let status = read(refused).expect_err("too much");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "at most 1024 resource names of at most 2048 bytes are allowed");
    }
}

#[test]
fn names_are_shown_as_go_shows_them_and_not_without_end() {
    assert_eq!(shown(["a", "b \"c\"", "ü\n"].into_iter()), r#"["a" "b \"c\"" "ü\n"]"#);
    assert_eq!(shown([].into_iter()), "[]");
    let longest = "n".repeat(RESOURCE_NAME_BYTES_MAX);
    assert_eq!(shown([longest.as_str()].into_iter()), format!("[\"{longest}\"]"));
    let text = shown([longest.as_str(); 3].into_iter());
    assert!(text.ends_with("\"] and 2 more") && text.len() < RESOURCE_NAME_BYTES_MAX + 100, "{}", text.len());
}

#[test]
fn a_secret_is_new_when_its_svid_its_bundle_or_its_name_is() {
    let held = identity("1", "/web", true);
    let svid = |name: &str, identity: &Identity| Secret::Svid {
        name: name.to_owned(),
        svid: Arc::clone(identity.svid.as_ref().expect("it has one")),
    };
    let bundle = |name: &str, domain: &str| Secret::Bundles {
        name: name.to_owned(),
        bundles: vec![Arc::new(Bundle::empty(TrustDomain::parse(domain).expect("a name")))],
    };
    assert!(svid("a", &held).is_same(&svid("a", &held).sent()));
    assert!(!svid("b", &held).is_same(&svid("a", &held).sent()));
    assert!(!svid("a", &identity("1", "/web", true)).is_same(&svid("a", &held).sent()));
    // Another revision of a bundle with the same authorities is none to an Envoy.
    assert!(bundle("a", "example.org").is_same(&bundle("a", "example.org").sent()));
    assert!(!bundle("b", "example.org").is_same(&bundle("a", "example.org").sent()));
    assert!(!bundle("a", "other.test").is_same(&bundle("a", "example.org").sent()));
    assert!(!bundle("a", "example.org").is_same(&svid("a", &held).sent()));
    // What has gone is no one's address.
    let gone = svid("a", &identity("1", "/web", true)).sent();
    assert!(!svid("a", &identity("1", "/web", true)).is_same(&gone));
}
