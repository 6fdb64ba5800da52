//! FetchX509SVID (Workload API, sections 4, 5 and 8).

use countersign_identity::key::KeyType;
use countersign_identity::x509::Certificate;
use countersign_plugins::keys::KeyPair;
use countersign_testkit::log::Log;
use countersign_testkit::workload::first;
use tonic::Code;

use crate::support::{Foreign, OWN, World, answer, next, next_with, paths, verify};

#[tokio::test(flavor = "multi_thread")]
async fn wapi_01_the_x509_and_jwt_profiles_are_there() {
    let world = World::start().await;
    world.entry("/web").await;
    let workload = world.workload().await;
    workload.x509_svid().await.unwrap();
    first(workload.x509_bundles().await.unwrap()).await.unwrap();
    first(workload.jwt_bundles().await.unwrap()).await.unwrap();
    let token = workload.jwt_svids(&["a"], "").await.unwrap().remove(0).svid;
    workload.validate("a", &token).await.unwrap();
}

#[test]
fn wapi_04_the_service_is_the_standards_and_nothing_is_added() {
    use prost::Message as _;
    let set = prost_types::FileDescriptorSet::decode(countersign_wire::workload::FILE_DESCRIPTOR_SET).unwrap();
    let services: Vec<_> = set.file.iter().flat_map(|f| &f.service).collect();
    assert_eq!(services.len(), 1);
    let shown: Vec<String> = services[0]
        .method
        .iter()
        .map(|m| format!("{}({}) {}{}", m.name(), m.input_type(), if m.server_streaming() { "stream " } else { "" }, m.output_type()))
        .collect();
    expect_test::expect![[r"
        FetchX509SVID(.X509SVIDRequest) stream .X509SVIDResponse
        FetchX509Bundles(.X509BundlesRequest) stream .X509BundlesResponse
        FetchJWTSVID(.JWTSVIDRequest) .JWTSVIDResponse
        FetchJWTBundles(.JWTBundlesRequest) stream .JWTBundlesResponse
        ValidateJWTSVID(.ValidateJWTSVIDRequest) .ValidateJWTSVIDResponse
        FetchWITSVID(.WITSVIDRequest) stream .WITSVIDResponse
        FetchWITBundles(.WITBundlesRequest) stream .WITBundlesResponse"]]
    .assert_eq(&shown.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_07_every_message_is_the_whole_state() {
    let world = World::start().await;
    let foreign = Foreign::new("other.org");
    world.set_bundle(foreign.bundle()).await;
    world.entry_with("/web", |e| e.federates_with = vec!["other.org".to_owned()]).await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    let before = next(&mut stream).await;
    assert_eq!(before.federated_bundles.get("spiffe://other.org"), Some(&foreign.root));
    // A bundle changes: identities and keys are in the next message all the same.
    world.set_bundle(Foreign::new("other.org").bundle()).await;
    let after = next(&mut stream).await;
    assert_ne!(after.federated_bundles, before.federated_bundles);
    assert_eq!(after.svids, before.svids);
    // An entry comes: the one before is still there, with the same key, and the bundle too.
    let second = world.entry("/api").await;
    let both = next(&mut stream).await;
    assert_eq!(both.svids.len(), 2);
    assert!(both.svids.contains(&before.svids[0]));
    assert_eq!(both.federated_bundles, after.federated_bundles);
    // And it goes: absence is the redaction.
    world.delete(&second).await;
    let rest = next(&mut stream).await;
    assert_eq!(rest, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_08_a_message_follows_each_change_and_nothing_else() {
    let world = World::start().await;
    let entry = world.entry("/web").await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    let first = next(&mut stream).await;
    // None of these concerns what the caller is shown.
    let stranger = world.entry_with("/stranger", |e| e.selectors[0].value = "uid:4294967294".to_owned()).await;
    world.delete(&stranger).await;
    world.set_bundle(Foreign::new("other.org").bundle()).await;
    let entry = world.update(&entry, |e| e.admin = true).await;
    let entry = world.update(&entry, |e| e.jwt_svid_ttl = 77).await;
    // This does, and it is the very next message.
    world.update(&entry, |e| e.hint = "now".to_owned()).await;
    let second = next(&mut stream).await;
    assert_eq!(second.svids[0].hint, "now");
    assert_eq!(second.svids[0].x509_svid, first.svids[0].x509_svid);
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_09_a_request_is_answered_though_nothing_has_changed() {
    let world = World::start().await;
    world.entry("/web").await;
    let workload = world.workload().await;
    let mut streams = [workload.x509_svids().await.unwrap(), workload.x509_svids().await.unwrap()];
    let messages = [next(&mut streams[0]).await, next(&mut streams[1]).await];
    assert_eq!(messages[0], messages[1]);
    assert_eq!(workload.x509_svid().await.unwrap(), messages[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_10_the_first_message_comes_without_delay() {
    let world = World::start().await;
    world.entry("/web").await;
    let workload = world.workload().await;
    // Nobody prefetched it on purpose: prefetching takes its time, a caller does not.
    let start = std::time::Instant::now();
    workload.x509_svid().await.unwrap();
    let fetched = start.elapsed();
    let start = std::time::Instant::now();
    workload.x509_svid().await.unwrap();
    let cached = start.elapsed();
    assert!(fetched.as_millis() < 2000 && cached.as_millis() < 1000, "{fetched:?} {cached:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_11_a_burst_of_changes_is_merged_for_whoever_reads_slowly() {
    let world = World::start().await;
    let mut entry = world.entry("/web").await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    next(&mut stream).await;
    for n in 0..60 {
        entry = world.update(&entry, |e| e.hint = format!("hint {n}")).await;
    }
    // Once a fresh stream sees the last state, the slow one has it waiting too.
    let mut fresh = world.workload().await.x509_svids().await.unwrap();
    next_with(&mut fresh, |m| m.svids[0].hint == "hint 59").await;
    let mut messages = 1;
    while next(&mut stream).await.svids[0].hint != "hint 59" {
        messages += 1;
    }
    assert!(messages <= 60, "{messages}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_19_wapi_20_the_chain_is_der_without_padding_and_the_leaf_is_first() {
    let world = World::start().await;
    world.entry("/web").await;
    let svid = world.workload().await.x509_svid().await.unwrap().svids.remove(0);
    let chain = Certificate::parse_concatenated(&svid.x509_svid).unwrap();
    let length: usize = chain.iter().map(|c| c.der().len()).sum();
    assert_eq!(length, svid.x509_svid.len());
    assert!(!chain[0].is_ca);
    assert_eq!(chain[0].spiffe_id().unwrap().as_str(), svid.spiffe_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_21_wapi_22_the_key_is_pkcs8_and_everything_is_der() {
    for (setting, kind) in [
        ("", KeyType::EcP256),
        ("workload_x509_svid_key_type = \"ec-p384\"", KeyType::EcP384),
        ("workload_x509_svid_key_type = \"rsa-2048\"", KeyType::Rsa2048),
    ] {
        let world = World::with("", setting).await;
        world.set_bundle(Foreign::new("other.org").bundle()).await;
        world.entry_with("/web", |e| e.federates_with = vec!["other.org".to_owned()]).await;
        let response = world.workload().await.x509_svid().await.unwrap();
        let svid = &response.svids[0];
        let pair = KeyPair::from_pkcs8(&svid.x509_svid_key).unwrap();
        let wanted = KeyPair::generate(kind).unwrap();
        assert_eq!(pair.algorithm(), wanted.algorithm(), "{setting}");
        let fields = [&svid.x509_svid, &svid.x509_svid_key, &svid.bundle, &response.federated_bundles["spiffe://other.org"]];
        for bytes in fields {
            assert_eq!(bytes[0], 0x30, "DER begins with a sequence");
            assert!(!bytes.starts_with(b"-----"));
        }
        assert!(response.crl.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_24_wapi_28_a_message_has_an_identity_or_there_is_no_message() {
    let world = World::start().await;
    let workload = world.workload().await;
    let denied = workload.x509_svid().await.unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "no identity issued"));
    let entry = world.entry("/web").await;
    let mut stream = workload.x509_svids().await.unwrap();
    assert_eq!(next(&mut stream).await.svids.len(), 1);
    // The last one goes: the stream says so and ends, it does not send an empty message.
    world.delete(&entry).await;
    let denied = answer(&mut stream).await.unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "no identity issued"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_25_every_field_of_an_svid_is_set_and_they_fit_together() {
    let world = World::start().await;
    world.entry("/web").await;
    world.entry_with("/api", |e| e.hint = "api".to_owned()).await;
    let response = next_with(&mut world.workload().await.x509_svids().await.unwrap(), |m| m.svids.len() == 2).await;
    let root = world.domain.bundle().await.unwrap().x509_der();
    for svid in &response.svids {
        assert!(!svid.spiffe_id.is_empty() && !svid.x509_svid_key.is_empty());
        assert_eq!(svid.bundle, root);
        verify(svid, world.clock.now());
        assert_eq!(svid.hint, if svid.spiffe_id.ends_with("/api") { "api" } else { "" });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_26_of_entries_with_the_same_hint_the_oldest_wins() {
    Log::listen();
    let (world, clock) = World::still("", "").await;
    let oldest = world.entry_with("/oldest", |e| e.hint = "door".to_owned()).await;
    clock.advance(std::time::Duration::from_secs(5));
    world.entry_with("/younger", |e| e.hint = "door".to_owned()).await;
    clock.advance(std::time::Duration::from_secs(5));
    world.entry_with("/youngest", |e| e.hint = "door".to_owned()).await;
    world.entry("/plain-1").await;
    world.entry("/plain-2").await;
    let mut stream = world.workload().await.x509_svids().await.unwrap();
    let message = next_with(&mut stream, |m| m.svids.len() == 3).await;
    let mut found = paths(&message);
    found.sort_unstable();
    assert_eq!(found, ["/oldest", "/plain-1", "/plain-2"]);
    assert!(Log::count("WARN", "Ignoring entry with duplicate hint") > 0);
    // It goes, and the next one steps in.
    world.delete(&oldest).await;
    let message = next_with(&mut stream, |m| !paths(m).contains(&"/oldest")).await;
    assert!(paths(&message).contains(&"/younger") && !paths(&message).contains(&"/youngest"), "{:?}", paths(&message));
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_70_a_hint_has_at_most_1024_bytes() {
    let world = World::start().await;
    world.entry_with("/web", |e| e.hint = "h".repeat(1024)).await;
    assert_eq!(world.workload().await.x509_svid().await.unwrap().svids[0].hint.len(), 1024);
    let mut entry = crate::support::message("/api", &[countersign_testkit::domain::own_uid()]);
    entry.hint = "h".repeat(1025);
    assert!(world.domain.entry_from(entry).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn wapi_71_the_default_identity_stays_first_and_the_order_is_the_same_everywhere() {
    let world = World::start().await;
    let mut entries = Vec::new();
    for n in 0..6 {
        entries.push(world.entry(&format!("/w{n}")).await);
    }
    entries.sort_by(|a, b| a.id.cmp(&b.id));
    let wanted: Vec<String> = entries.iter().map(|e| format!("{OWN}{}", e.spiffe_id.as_ref().unwrap().path)).collect();
    let workload = world.workload().await;
    let mut stream = workload.x509_svids().await.unwrap();
    let order = |m: &countersign_wire::workload::X509svidResponse| m.svids.iter().map(|s| s.spiffe_id.clone()).collect::<Vec<_>>();
    assert_eq!(order(&next_with(&mut stream, |m| m.svids.len() == 6).await), wanted);
    let tokens: Vec<String> = workload.jwt_svids(&["a"], "").await.unwrap().into_iter().map(|s| s.spiffe_id).collect();
    assert_eq!(tokens, wanted);
    // A change of one in the middle moves nothing.
    world.update(&entries[3], |e| e.hint = "x".to_owned()).await;
    assert_eq!(order(&next(&mut stream).await), wanted);
    world.update(&entries[0], |e| e.dns_names = vec!["x.example.org".to_owned()]).await;
    assert_eq!(order(&next_with(&mut stream, |m| m.svids.len() == 6).await), wanted);
}
