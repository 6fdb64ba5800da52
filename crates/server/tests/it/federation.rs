//! Bundles: the own one, and those of foreign trust domains.

use countersign_identity::Timestamp;
use countersign_identity::key::KeyType;
use countersign_plugins::keys::KeyPair;
use countersign_wire::bundle_api::batch_delete_federated_bundle_request::Mode;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::bundle_api::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest,
    BatchUpdateFederatedBundleRequest, CountBundlesRequest, GetBundleRequest, GetFederatedBundleRequest, ListFederatedBundlesRequest,
};
use countersign_wire::types::{Bundle, BundleMask, Entry, JwtKey, Status, X509Certificate};
use tonic::Code;

use crate::world::{self, Domain, Foreign, entry, spiffe_id};

type Item = Result<Bundle, (i32, String)>;

fn item(status: Option<Status>, bundle: Option<Bundle>) -> Item {
    let status = status.unwrap();
    if status.code == 0 {
        assert_eq!(status.message, "OK");
        Ok(bundle.unwrap())
    } else {
        assert!(bundle.is_none());
        Err((status.code, status.message))
    }
}

async fn create(domain: &Domain, bundle: Vec<Bundle>) -> Vec<Item> {
    let request = BatchCreateFederatedBundleRequest { bundle, output_mask: None };
    let results = world::bundles(domain).await.batch_create_federated_bundle(request).await.unwrap().into_inner().results;
    results.into_iter().map(|r| item(r.status, r.bundle)).collect()
}

async fn set(domain: &Domain, bundle: Vec<Bundle>) -> Vec<Item> {
    let request = BatchSetFederatedBundleRequest { bundle, output_mask: None };
    let results = world::bundles(domain).await.batch_set_federated_bundle(request).await.unwrap().into_inner().results;
    results.into_iter().map(|r| item(r.status, r.bundle)).collect()
}

async fn update(domain: &Domain, bundle: Vec<Bundle>, input_mask: Option<BundleMask>) -> Vec<Item> {
    let request = BatchUpdateFederatedBundleRequest { bundle, input_mask, output_mask: None };
    let results = world::bundles(domain).await.batch_update_federated_bundle(request).await.unwrap().into_inner().results;
    results.into_iter().map(|r| item(r.status, r.bundle)).collect()
}

async fn get(domain: &Domain, name: &str) -> Result<Bundle, tonic::Status> {
    let request = GetFederatedBundleRequest { trust_domain: name.to_owned(), output_mask: None };
    world::bundles(domain).await.get_federated_bundle(request).await.map(tonic::Response::into_inner)
}

async fn delete(domain: &Domain, names: &[&str], mode: Mode) -> Vec<(i32, String)> {
    let trust_domains: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let request = BatchDeleteFederatedBundleRequest { trust_domains: trust_domains.clone(), mode: mode.into() };
    let results = world::bundles(domain).await.batch_delete_federated_bundle(request).await.unwrap().into_inner().results;
    assert_eq!(results.iter().map(|r| r.trust_domain.clone()).collect::<Vec<_>>(), trust_domains);
    results.into_iter().map(|r| r.status.unwrap()).map(|s| (s.code, s.message)).collect()
}

async fn count(domain: &Domain) -> i32 {
    world::bundles(domain).await.count_bundles(CountBundlesRequest {}).await.unwrap().into_inner().count
}

fn jwt_key(name: &str, expires_at: i64, tainted: bool) -> JwtKey {
    let pair = KeyPair::generate(KeyType::EcP256).unwrap();
    JwtKey { public_key: pair.public_key().spki().to_vec(), key_id: name.to_owned(), expires_at, tainted }
}

#[tokio::test]
async fn bundles_are_created_once_updated_when_there_and_set_either_way() {
    let domain = Domain::start().await.unwrap();
    let bundle =
        Bundle { jwt_authorities: vec![jwt_key("one", 4_000_000_000, true)], refresh_hint: 300, ..Foreign::new("one.test").wire(7) };
    assert_eq!(update(&domain, vec![bundle.clone()], None).await, [Err((5, "bundle not found".to_owned()))]);
    assert_eq!(create(&domain, vec![bundle.clone()]).await, [Ok(bundle.clone())]);
    assert_eq!(create(&domain, vec![bundle.clone()]).await, [Err((6, "bundle already exists".to_owned()))]);
    assert_eq!(get(&domain, "one.test").await.unwrap(), bundle, "taints and expiries survive");

    // A masked update takes what the mask names.
    let other = Bundle { refresh_hint: 60, ..Foreign::new("one.test").wire(8) };
    let mask = BundleMask { refresh_hint: true, sequence_number: true, ..BundleMask::default() };
    let expected = Bundle { refresh_hint: 60, sequence_number: 8, ..bundle.clone() };
    assert_eq!(update(&domain, vec![other.clone()], Some(mask)).await, [Ok(expected)]);
    let mask = BundleMask { x509_authorities: true, jwt_authorities: true, ..BundleMask::default() };
    assert_eq!(update(&domain, vec![other.clone()], Some(mask)).await, [Ok(other.clone())]);
    let newer = Bundle { sequence_number: 9, ..bundle.clone() };
    assert_eq!(update(&domain, vec![newer.clone()], None).await, [Ok(newer)]);
    let other = Bundle { sequence_number: 10, ..other };

    let second = Foreign::new("two.test").wire(1);
    assert_eq!(set(&domain, vec![other.clone(), second.clone()]).await, [Ok(other), Ok(second)]);
    assert_eq!(count(&domain).await, 3, "the own bundle counts");
}

#[tokio::test]
async fn an_older_document_does_not_replace_a_newer_one() {
    let domain = Domain::start().await.unwrap();
    let newer = Foreign::new("one.test").wire(8);
    set(&domain, vec![newer.clone()]).await;
    let text = "bundle has sequence number 7, older than 8 which is held";
    assert_eq!(set(&domain, vec![Foreign::new("one.test").wire(7)]).await, [Err((9, text.to_owned()))]);
    assert_eq!(update(&domain, vec![Foreign::new("one.test").wire(7)], None).await, [Err((9, text.to_owned()))]);
    let numbered = BundleMask { sequence_number: true, ..BundleMask::default() };
    assert_eq!(update(&domain, vec![Foreign::new("one.test").wire(7)], Some(numbered)).await, [Err((9, text.to_owned()))]);
    // A mask that leaves the number out does not let its keys in either.
    let keys_alone = BundleMask { x509_authorities: true, ..BundleMask::default() };
    assert_eq!(update(&domain, vec![Foreign::new("one.test").wire(7)], Some(keys_alone)).await, [Err((9, text.to_owned()))]);
    assert_eq!(get(&domain, "one.test").await.unwrap(), newer);
    // One without a number says nothing about its age.
    let unnumbered = Foreign::new("one.test").wire(0);
    assert_eq!(set(&domain, vec![unnumbered.clone()]).await, [Ok(unnumbered)]);
}

#[tokio::test]
async fn the_own_trust_domain_and_malformed_bundles_are_refused_item_by_item() {
    let domain = Domain::start().await.unwrap();
    let good = Foreign::new("one.test").wire(1);
    let own = |doing: &str| Err((3, format!("{doing} a federated bundle for the server's own trust domain is not allowed")));
    let batch = vec![
        Foreign::new("example.org").wire(1),
        Bundle { trust_domain: "spiffe://example.org".to_owned(), ..good.clone() },
        Bundle { trust_domain: "no spaces".to_owned(), ..good.clone() },
        Bundle { x509_authorities: vec![X509Certificate { asn1: b"nonsense".to_vec(), tainted: false }], ..good.clone() },
        Bundle { x509_authorities: vec![X509Certificate::default()], ..good.clone() },
        Bundle { jwt_authorities: vec![jwt_key("", 0, false)], ..good.clone() },
        Bundle { jwt_authorities: vec![JwtKey { key_id: "k".to_owned(), ..JwtKey::default() }], ..good.clone() },
        Bundle { refresh_hint: -1, ..good.clone() },
        good.clone(),
    ];
    let length = batch.len();
    for (doing, items) in [
        ("setting", set(&domain, batch.clone()).await),
        ("updating", update(&domain, batch.clone(), None).await),
        ("creating", create(&domain, batch).await),
    ] {
        assert_eq!(items.len(), length);
        assert_eq!((items[0].clone(), items[1].clone()), (own(doing), own(doing)));
        for item in &items[2..length - 1] {
            let (code, text) = item.clone().unwrap_err();
            assert_eq!(code, Code::InvalidArgument as i32, "{text}");
            assert!(text.starts_with("trust domain argument is not valid: ") || text.starts_with("failed to convert bundle: "), "{text}");
        }
    }
    assert_eq!(get(&domain, "example.org").await.unwrap_err().code(), Code::InvalidArgument);
    let own = (3, "removing the bundle for the server trust domain is not allowed".to_owned());
    assert_eq!(delete(&domain, &["example.org"], Mode::Delete).await, [own]);
    assert_eq!(count(&domain).await, 2);
    let own = domain.bundle().await.unwrap();
    assert_eq!(own.x509_authorities().len(), 1);
}

#[tokio::test]
async fn a_bundle_in_use_goes_only_with_what_uses_it() {
    let domain = Domain::start().await.unwrap();
    let federating = |path: &str, names: &[&str]| Entry {
        federates_with: names.iter().map(|n| (*n).to_owned()).collect(),
        ..entry(&spiffe_id("/parent"), path, &["uid:1"])
    };
    let all = ["one.test", "two.test", "three.test"];
    set(&domain, all.map(|name| Foreign::new(name).wire(1)).to_vec()).await;
    let both = domain.entry_from(federating("/both", &["one.test", "two.test"])).await.unwrap();
    let one = domain.entry_from(federating("/one", &["one.test"])).await.unwrap();

    let in_use = "failed to delete federated bundle: cannot delete bundle; federated with 2 registration entries";
    let unknown = (5, "failed to delete federated bundle: bundle not found".to_owned());
    assert_eq!(
        delete(&domain, &["one.test", "three.test", "four.test"], Mode::Restrict).await,
        [(9, in_use.to_owned()), (0, "OK".to_owned()), unknown]
    );
    assert_eq!(world::list(&domain).await.len(), 2);

    assert_eq!(delete(&domain, &["two.test"], Mode::Dissociate).await, [(0, "OK".to_owned())]);
    let mut left = world::list(&domain).await;
    left.sort_by_key(|e| e.spiffe_id.clone().unwrap().path);
    let alone = Entry { federates_with: vec!["one.test".to_owned()], revision_number: 1, ..both };
    assert_eq!(left, [alone, one]);

    assert_eq!(delete(&domain, &["one.test"], Mode::Delete).await, [(0, "OK".to_owned())]);
    assert!(world::list(&domain).await.is_empty());
    assert_eq!(count(&domain).await, 1);
    let request = BatchDeleteFederatedBundleRequest { trust_domains: vec!["one.test".to_owned()], mode: 9 };
    let status = world::bundles(&domain).await.batch_delete_federated_bundle(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "unhandled delete mode 9"));
}

#[tokio::test]
async fn federated_bundles_are_listed_without_the_own_one_in_pages() {
    let domain = Domain::start().await.unwrap();
    let names = ["a.test", "b.test", "example.net", "z.test"];
    set(&domain, names.map(|name| Foreign::new(name).wire(1)).to_vec()).await;
    let mut client = world::bundles(&domain).await;
    for (size, pages) in [(0, vec![4]), (2, vec![2, 2, 0]), (3, vec![3, 1, 0])] {
        let (mut found, mut sizes, mut page_token) = (Vec::new(), Vec::new(), String::new());
        loop {
            let request = ListFederatedBundlesRequest { page_size: size, page_token, output_mask: None };
            let page = client.list_federated_bundles(request).await.unwrap().into_inner();
            sizes.push(page.bundles.len());
            found.extend(page.bundles.into_iter().map(|b| b.trust_domain));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!((found.as_slice(), sizes), (names.map(str::to_owned).as_slice(), pages));
    }
    let bare = ListFederatedBundlesRequest { output_mask: Some(BundleMask::default()), page_size: 1, ..Default::default() };
    let bare = client.list_federated_bundles(bare).await.unwrap().into_inner().bundles;
    assert_eq!(bare, [Bundle { trust_domain: "a.test".to_owned(), ..Bundle::default() }]);
}

#[tokio::test]
async fn authorities_are_appended_to_the_own_bundle_and_taints_are_never_lifted() {
    let domain = Domain::start().await.unwrap();
    let mut client = world::bundles(&domain).await;
    let before = client.get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    let root = Foreign::new("example.org").root();
    let certificate = |tainted: bool| X509Certificate { asn1: root.der().to_vec(), tainted };
    let key = jwt_key("appended", 0, false);
    let append = |tainted: bool| AppendBundleRequest {
        x509_authorities: vec![certificate(tainted)],
        jwt_authorities: vec![JwtKey { tainted, ..key.clone() }],
        ..AppendBundleRequest::default()
    };
    let after = client.append_bundle(append(false)).await.unwrap().into_inner();
    assert_eq!(after.sequence_number, before.sequence_number + 1);
    assert_eq!(after.x509_authorities, [before.x509_authorities.clone(), vec![certificate(false)]].concat());
    // What is there already changes nothing; a taint is taken, and stays.
    assert_eq!(client.append_bundle(append(false)).await.unwrap().into_inner(), after);
    let tainted = client.append_bundle(append(true)).await.unwrap().into_inner();
    assert_eq!(tainted.sequence_number, after.sequence_number + 1);
    assert!(tainted.x509_authorities[1].tainted && tainted.jwt_authorities.iter().any(|k| k.key_id == "appended" && k.tainted));
    assert_eq!(client.append_bundle(append(false)).await.unwrap().into_inner(), tainted);
    // Strangers read the same.
    let mut stranger = BundleClient::new(domain.connect(None).await.unwrap());
    assert_eq!(stranger.get_bundle(GetBundleRequest::default()).await.unwrap().into_inner(), tainted);
    let bare = GetBundleRequest { output_mask: Some(BundleMask { sequence_number: true, ..BundleMask::default() }) };
    let bare = stranger.get_bundle(bare).await.unwrap().into_inner();
    assert_eq!((bare.sequence_number, bare.x509_authorities.len()), (tainted.sequence_number, 0));

    let status = client.append_bundle(AppendBundleRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "no authorities to append"));
    let broken = AppendBundleRequest { x509_authorities: vec![X509Certificate::default()], ..AppendBundleRequest::default() };
    assert_eq!(client.append_bundle(broken).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_taint_and_an_appended_authority_survive_rotation_and_restart() {
    let (mut domain, clock) = world::virtual_domain("").await;
    let before = domain.bundle().await.unwrap();
    let far = domain.clock.now().secs() + 365 * 86_400;
    let request = AppendBundleRequest { jwt_authorities: vec![jwt_key("appended", far, true)], ..AppendBundleRequest::default() };
    world::bundles(&domain).await.append_bundle(request).await.unwrap();
    clock.advance(world::HOUR * 13);
    let rotated =
        async || Some(domain.bundle().await.unwrap()).filter(|b| b.x509_authorities().len() == 2 && b.jwt_authorities().len() == 3);
    let rotated = world::until("both families have their next authority", rotated).await.unwrap();
    assert_eq!(rotated.sequence_number, before.sequence_number + 3);
    domain.stop_server().await;
    domain.start_server().await.unwrap();
    let appended = domain.bundle().await.unwrap().jwt_authority("appended").cloned().unwrap();
    assert_eq!((appended.tainted, appended.expires_at), (true, Some(Timestamp::from_secs(far))));
}

#[tokio::test]
async fn a_foreign_bundle_that_is_gone_lets_its_administrators_in_no_longer() {
    let domain =
        Domain::start_with(std::sync::Arc::new(countersign_transport::clock::SystemClock), "admin_ids = [\"spiffe://one.test/operator\"]");
    let domain = domain.await.unwrap();
    let foreign = Foreign::new("one.test");
    let operator = foreign.identity("spiffe://one.test/operator");
    let connects = async || {
        let Ok(channel) = world::present(&domain, &operator).await else { return false };
        BundleClient::new(channel).count_bundles(CountBundlesRequest {}).await.is_ok()
    };
    assert!(!connects().await);
    set(&domain, vec![foreign.wire(1)]).await;
    world::until("the bundle counts", async || connects().await.then_some(())).await.unwrap();
    delete(&domain, &["one.test"], Mode::Restrict).await;
    world::until("the bundle counts no longer", async || (!connects().await).then_some(())).await.unwrap();
}
