//! FetchJWTSVID and ValidateJWTSVID, and that the WIT profile is not offered (Workload API, sections 6 and 7).

use countersign_identity::jwt::AUDIENCES_MAX;
use countersign_testkit::workload::{first, with_header};
use countersign_wire::workload as wire;
use serde_json::json;
use tonic::Code;

use crate::support::{Foreign, World, claims, json};

#[tokio::test(flavor = "multi_thread")]
async fn wapi_16_wapi_51_empty_mandatory_fields_are_invalid() {
    let world = World::start().await;
    world.entry("/web").await;
    let workload = world.workload().await;
    let token = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
    let long = "a".repeat(2049);
    let many = vec!["a"; AUDIENCES_MAX + 1];
    let refused = [
        (workload.jwt_svids(&[], "").await.unwrap_err(), "audience must be specified"),
        (workload.jwt_svids(&["a", ""], "").await.unwrap_err(), "audience must be specified"),
        (workload.jwt_svids(&[&long], "").await.unwrap_err(), "at most 32 audiences of at most 2048 bytes are allowed"),
        (workload.jwt_svids(&many, "").await.unwrap_err(), "at most 32 audiences of at most 2048 bytes are allowed"),
        (workload.validate("", &token).await.map(|_| ()).unwrap_err(), "audience must be specified"),
        (workload.validate("a", "").await.map(|_| ()).unwrap_err(), "svid must be specified"),
        (workload.validate("", "").await.map(|_| ()).unwrap_err(), "audience must be specified"),
    ];
    for (status, text) in refused {
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    }
    // Before anybody is attested, and whether or not there is an identity.
    let malformed = workload.jwt_svids(&["a"], "web").await.unwrap_err();
    assert_eq!(malformed.code(), Code::InvalidArgument);
    assert!(malformed.message().starts_with("invalid requested SPIFFE ID: "), "{}", malformed.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_36_every_audience_asked_for_is_in_the_token() {
    let world = World::start().await;
    world.entry("/web").await;
    let workload = world.workload().await;
    let token = workload.jwt_svids(&["b", "a"], "").await.unwrap().remove(0).svid;
    assert_eq!(claims(&token)["aud"], json!(["b", "a"]));
    let single = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
    assert_eq!(claims(&single)["aud"], json!(["a"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_37_wapi_73_without_a_spiffe_id_there_is_a_token_for_every_identity() {
    let world = World::start().await;
    world.entry("/web").await;
    world.entry_with("/api", |e| e.hint = "api".to_owned()).await;
    let workload = world.workload().await;
    crate::support::next_with(&mut workload.x509_svids().await.unwrap(), |m| m.svids.len() == 2).await;
    let svids = workload.jwt_svids(&["a"], "").await.unwrap();
    assert_eq!(svids.len(), 2);
    for svid in svids {
        assert_eq!(claims(&svid.svid)["sub"], json!(svid.spiffe_id));
        assert_eq!(svid.hint, if svid.spiffe_id.ends_with("/api") { "api" } else { "" });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_38_wapi_41_no_identity_or_not_the_one_asked_for_is_denied() {
    let world = World::start().await;
    let workload = world.workload().await;
    let nobody = workload.jwt_svids(&["a"], "").await.unwrap_err();
    world.entry("/web").await;
    world.entry_with("/stranger", |e| e.selectors[0].value = "uid:4294967294".to_owned()).await;
    workload.x509_svid().await.unwrap();
    let stranger = workload.jwt_svids(&["a"], "spiffe://example.org/stranger").await.unwrap_err();
    let foreign = workload.jwt_svids(&["a"], "spiffe://other.org/web").await.unwrap_err();
    for status in [nobody, stranger, foreign] {
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_39_of_tokens_with_the_same_hint_the_oldest_entrys_wins() {
    let (world, clock) = World::still("", "").await;
    world.entry_with("/older", |e| e.hint = "door".to_owned()).await;
    clock.advance(std::time::Duration::from_secs(5));
    world.entry_with("/younger", |e| e.hint = "door".to_owned()).await;
    world.entry("/plain").await;
    let workload = world.workload().await;
    crate::support::next_with(&mut workload.x509_svids().await.unwrap(), |m| m.svids.len() == 2).await;
    let mut found: Vec<String> = workload.jwt_svids(&["a"], "").await.unwrap().into_iter().map(|s| s.spiffe_id).collect();
    found.sort_unstable();
    assert_eq!(found, ["spiffe://example.org/older", "spiffe://example.org/plain"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_75_a_spiffe_id_asks_for_that_identity_only() {
    let world = World::start().await;
    world.entry("/web").await;
    world.entry("/api").await;
    let workload = world.workload().await;
    crate::support::next_with(&mut workload.x509_svids().await.unwrap(), |m| m.svids.len() == 2).await;
    let svids = workload.jwt_svids(&["a"], "spiffe://example.org/api").await.unwrap();
    assert_eq!(svids.len(), 1);
    assert_eq!(claims(&svids[0].svid)["sub"], json!("spiffe://example.org/api"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_48_a_token_that_breaks_a_rule_is_refused_with_the_text_clients_know() {
    let world = World::start().await;
    let foreign = Foreign::new("other.org");
    world.set_bundle(foreign.bundle()).await;
    world.entry_with("/web", |e| e.federates_with = vec!["other.org".to_owned()]).await;
    let workload = world.workload().await;
    let own = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
    workload.validate("a", &own).await.unwrap();
    let now = world.clock.now().secs();
    let sub = "spiffe://other.org/peer";
    let token = |claims: serde_json::Value| foreign.token(&claims);
    let good = json!({"sub": sub, "aud": "a", "exp": now + 300});
    workload.validate("a", &token(good.clone())).await.unwrap();
    let parts: Vec<&str> = own.split('.').collect();
    let swapped = format!("{}.{}.{}", parts[0], token(good).split('.').nth(1).unwrap(), parts[2]);
    let stranger = Foreign::new("other.org").token(&json!({"sub": sub, "aud": "a", "exp": now + 300}));
    let unknown = Foreign::new("nowhere.org").token(&json!({"sub": "spiffe://nowhere.org/x", "aud": "a", "exp": now + 300}));
    let refused = [
        (workload.validate("b", &own).await, "expected audience in [\"b\"] (audience=[\"a\"])"),
        (workload.validate("a", &token(json!({"sub": sub, "aud": "a", "exp": now - 300}))).await, "token has expired"),
        (workload.validate("a", &token(json!({"sub": sub, "aud": "a"}))).await, "token missing exp claim"),
        (workload.validate("a", &token(json!({"aud": "a", "exp": now + 300}))).await, "token missing subject claim"),
        (
            workload.validate("a", &token(json!({"sub": sub, "aud": "a", "exp": now + 300, "nbf": now + 300}))).await,
            "token is not valid yet",
        ),
        (
            workload.validate("a", &token(json!({"sub": sub, "aud": [], "exp": now + 300}))).await,
            "expected audience in [\"a\"] (audience=[])",
        ),
        (workload.validate("a", &stranger).await, "token signature does not verify"),
        (workload.validate("a", &unknown).await, "no keys found for trust domain \"nowhere.org\""),
        (workload.validate("a", "x").await, "unable to parse JWT token: it has not three parts"),
    ];
    for (result, text) in refused {
        let status = result.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    }
    let status = workload.validate("a", &swapped).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(
        status.message().starts_with("public key ") && status.message().ends_with(" not found in trust domain \"other.org\""),
        "{status:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_49_wapi_72_the_claims_of_an_own_token_are_all_returned() {
    let world = World::with("jwt_issuer = \"https://issuer.example.org\"", "").await;
    world.entry("/web").await;
    let workload = world.workload().await;
    let token = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
    let answer = workload.validate("a", &token).await.unwrap();
    assert_eq!(answer.spiffe_id, "spiffe://example.org/web");
    let found = json(answer.claims.unwrap());
    assert_eq!(found.keys().collect::<Vec<_>>(), ["aud", "exp", "iat", "iss", "sub"]);
    assert_eq!(found["aud"], json!(["a"]));
    assert_eq!(found["sub"], json!("spiffe://example.org/web"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_50_of_a_foreign_token_only_the_standard_and_the_allowed_claims_are_returned() {
    let world = World::with("", "allowed_foreign_jwt_claims = [\"team\", \"nested\"]").await;
    let foreign = Foreign::new("other.org");
    world.set_bundle(foreign.bundle()).await;
    world.entry_with("/web", |e| e.federates_with = vec!["other.org".to_owned()]).await;
    let workload = world.workload().await;
    workload.x509_svid().await.unwrap();
    let exp = world.clock.now().secs() + 300;
    let nested = json!({"list": [1, "two", null, true], "map": {"a": 1.5}});
    let token = foreign.token(
        &json!({"sub": "spiffe://other.org/peer", "aud": "a", "exp": exp, "iat": exp - 300, "iss": "x", "team": "blue", "nested": nested, "secret": "s"}),
    );
    let answer = workload.validate("a", &token).await.unwrap();
    assert_eq!(answer.spiffe_id, "spiffe://other.org/peer");
    let found = json(answer.claims.unwrap());
    assert_eq!(found.keys().collect::<Vec<_>>(), ["aud", "exp", "nested", "sub", "team"]);
    assert_eq!(found["aud"], json!(["a"]), "always a list");
    #[allow(clippy::cast_precision_loss, reason = "a time fits")]
    let wanted = json!(exp as f64);
    assert_eq!(found["exp"], wanted);
    assert_eq!(found["nested"]["list"][1], json!("two"));
}

#[tokio::test(flavor = "multi_thread")]
async fn validation_needs_no_identity_but_foreign_bundles_do() {
    let world = World::start().await;
    let foreign = Foreign::new("other.org");
    world.set_bundle(foreign.bundle()).await;
    let entry = world.entry_with("/web", |e| e.federates_with = vec!["other.org".to_owned()]).await;
    let workload = world.workload().await;
    let own = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
    let peer = foreign.token(&json!({"sub": "spiffe://other.org/peer", "aud": "a", "exp": world.clock.now().secs() + 300}));
    let mut stream = workload.x509_svids().await.unwrap();
    crate::support::next(&mut stream).await;
    workload.validate("a", &peer).await.unwrap();
    world.delete(&entry).await;
    crate::support::answer(&mut stream).await.unwrap_err();
    workload.validate("a", &own).await.unwrap();
    let status = workload.validate("a", &peer).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "no keys found for trust domain \"other.org\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_55_wit_methods_are_unimplemented() {
    let world = World::start().await;
    world.entry("/web").await;
    let mut client = world.workload().await.client();
    let svid = client.fetch_witsvid(with_header(wire::WitsvidRequest::default())).await.unwrap_err();
    assert_eq!((svid.code(), svid.message()), (Code::Unimplemented, "fetching WIT-SVIDs is not implemented"));
    let bundles = client.fetch_wit_bundles(with_header(wire::WitBundlesRequest {})).await.unwrap_err();
    assert_eq!((bundles.code(), bundles.message()), (Code::Unimplemented, "fetching WIT bundles is not implemented"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_issues_no_tokens_makes_the_call_fail_and_nothing_else() {
    let world = World::with("disable_jwt_svids = true", "").await;
    world.entry("/web").await;
    let workload = world.workload().await;
    workload.x509_svid().await.unwrap();
    let status = workload.jwt_svids(&["a"], "").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("could not fetch JWT-SVID: "), "{}", status.message());
    let bundles = first(workload.jwt_bundles().await.unwrap()).await.unwrap();
    let own: serde_json::Value = serde_json::from_slice(&bundles.bundles[crate::support::OWN]).unwrap();
    assert_eq!(own, json!({"keys": []}));
}
