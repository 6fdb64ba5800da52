//! FetchX509Bundles and FetchJWTBundles (Workload API, sections 5.2.2 and 6.2.2).

use countersign_testkit::workload::first;
use tonic::Code;

use crate::support::{Foreign, OWN, World, answer, next, next_with};

const OTHER: &str = "spiffe://other.org";

/// A world whose one entry federates with `other.org`.
async fn federated() -> (World, Foreign, countersign_wire::types::Entry) {
    let world = World::start().await;
    let foreign = Foreign::new("other.org");
    world.set_bundle(foreign.bundle()).await;
    let entry = world.entry_with("/web", |e| e.federates_with = vec!["other.org".to_owned()]).await;
    (world, foreign, entry)
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_32_x509_bundles_hold_the_own_trust_domain_and_those_federated_with() {
    let (world, foreign, entry) = federated().await;
    // A bundle the server has, and no entry of the caller uses.
    world.set_bundle(Foreign::new("unused.org").bundle()).await;
    let mut stream = world.workload().await.x509_bundles().await.unwrap();
    let message = next(&mut stream).await;
    assert_eq!(message.bundles.len(), 2);
    assert_eq!(message.bundles[OWN], world.domain.bundle().await.unwrap().x509_der());
    assert_eq!(message.bundles[OTHER], foreign.root);
    assert!(message.crl.is_empty());
    // The relationship ends, and comes back.
    let entry = world.update(&entry, |e| e.federates_with.clear()).await;
    assert_eq!(next(&mut stream).await.bundles.keys().collect::<Vec<_>>(), [OWN]);
    world.update(&entry, |e| e.federates_with = vec!["other.org".to_owned()]).await;
    assert_eq!(next(&mut stream).await.bundles, message.bundles);
    // The bundle changes, and goes.
    let newer = Foreign::new("other.org");
    world.set_bundle(newer.bundle()).await;
    assert_eq!(next(&mut stream).await.bundles[OTHER], newer.root);
    world.delete_bundle("other.org").await;
    assert_eq!(next(&mut stream).await.bundles.keys().collect::<Vec<_>>(), [OWN]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_comes_after_its_entry_appears() {
    let world = World::start().await;
    let foreign = Foreign::new("other.org");
    world.set_bundle(foreign.bundle()).await;
    world.delete_bundle("other.org").await;
    let entry = world.entry("/web").await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    assert!(next(&mut stream).await.federated_bundles.is_empty());
    world.set_bundle(foreign.bundle()).await;
    world.update(&entry, |e| e.federates_with = vec!["other.org".to_owned()]).await;
    assert_eq!(next(&mut stream).await.federated_bundles[OTHER], foreign.root);
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_33_wapi_45_bundles_need_an_identity() {
    let world = World::start().await;
    let workload = world.workload().await;
    for status in
        [first(workload.x509_bundles().await.unwrap()).await.unwrap_err(), first(workload.jwt_bundles().await.unwrap()).await.unwrap_err()]
    {
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));
    }
    // The last identity goes while streams are open.
    let entry = world.entry("/web").await;
    let mut x509 = workload.x509_bundles().await.unwrap();
    let mut jwt = workload.jwt_bundles().await.unwrap();
    next(&mut x509).await;
    next(&mut jwt).await;
    world.delete(&entry).await;
    assert_eq!(answer(&mut x509).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(answer(&mut jwt).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_verifiers_get_the_own_bundle_only_where_that_is_allowed() {
    let world = World::with("", "allow_unauthenticated_verifiers = true").await;
    world.set_bundle(Foreign::new("other.org").bundle()).await;
    world
        .entry_with("/web", |e| {
            e.federates_with = vec!["other.org".to_owned()];
            e.selectors[0].value = "uid:4294967294".to_owned();
        })
        .await;
    let workload = world.workload().await;
    let mut x509 = workload.x509_bundles().await.unwrap();
    assert_eq!(next(&mut x509).await.bundles.keys().collect::<Vec<_>>(), [OWN]);
    let mut jwt = workload.jwt_bundles().await.unwrap();
    assert_eq!(next(&mut jwt).await.bundles.keys().collect::<Vec<_>>(), [OWN]);
    // Keys stay with those who have an identity.
    assert_eq!(workload.x509_svid().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(workload.jwt_svids(&["a"], "").await.unwrap_err().code(), Code::PermissionDenied);
    // Who gets an identity sees on the same stream what comes with it, and loses it again.
    let entry = world.entry_with("/own", |e| e.federates_with = vec!["other.org".to_owned()]).await;
    assert!(next_with(&mut x509, |m| m.bundles.len() == 2).await.bundles.contains_key(OTHER));
    world.delete(&entry).await;
    assert_eq!(next(&mut x509).await.bundles.keys().collect::<Vec<_>>(), [OWN]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_43_jwt_bundles_hold_the_own_trust_domain() {
    let (world, _, _) = federated().await;
    let message = first(world.workload().await.jwt_bundles().await.unwrap()).await.unwrap();
    let own: serde_json::Value = serde_json::from_slice(&message.bundles[OWN]).unwrap();
    let kid = world.domain.bundle().await.unwrap().jwt_authorities()[0].key_id.clone();
    assert_eq!(own["keys"][0]["kid"], serde_json::json!(kid));
    assert!(message.bundles.contains_key(OTHER));
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_44_jwt_bundles_hold_no_other_keys_and_no_use() {
    let (world, _, _) = federated().await;
    let message = first(world.workload().await.jwt_bundles().await.unwrap()).await.unwrap();
    assert_eq!(message.bundles.len(), 2);
    for (name, document) in &message.bundles {
        let set: serde_json::Value = serde_json::from_slice(document).unwrap();
        assert_eq!(set.as_object().unwrap().keys().collect::<Vec<_>>(), ["keys"], "{name}");
        let keys = set["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 1, "{name}: the X.509 root is not among them");
        for key in keys {
            assert!(key.get("use").is_none() && key.get("x5c").is_none(), "{key}");
            assert!(key["kid"].is_string(), "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_one_kind_of_bundle_is_not_told_of_changes_of_the_other() {
    let (world, foreign, _) = federated().await;
    let workload = world.workload().await;
    let mut x509 = workload.x509_bundles().await.unwrap();
    let mut svids = workload.x509_svids().await.unwrap();
    let before = next(&mut x509).await;
    let svids_before = next(&mut svids).await;
    // Only the JWT keys change …
    let mut bundle = foreign.bundle();
    bundle.jwt_authorities[0].key_id = "another".to_owned();
    bundle.sequence_number = 2;
    world.set_bundle(bundle).await;
    let mut jwt = workload.jwt_bundles().await.unwrap();
    next_with(&mut jwt, |m| String::from_utf8_lossy(&m.bundles[OTHER]).contains("another")).await;
    // … then the roots: the first news for whoever follows those.
    let mut bundle = Foreign::new("other.org").bundle();
    bundle.sequence_number = 3;
    world.set_bundle(bundle).await;
    assert_ne!(next(&mut x509).await, before);
    assert_ne!(next(&mut svids).await, svids_before);
}
