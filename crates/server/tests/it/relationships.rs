//! Federation relationships: made, changed, listed and deleted, and what a refused one says.

use countersign_testkit::powerloss::PowerLoss;
use countersign_wire::trust_domain::trust_domain_client::TrustDomainClient;
use countersign_wire::trust_domain::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest, BatchUpdateFederationRelationshipRequest,
    GetFederationRelationshipRequest, ListFederationRelationshipsRequest, RefreshBundleRequest,
};
use countersign_wire::types::federation_relationship::BundleEndpointProfile as Profile;
use countersign_wire::types::{Bundle, FederationRelationship, FederationRelationshipMask, HttpsWebProfile, HttpsspiffeProfile, Status};
use expect_test::expect;
use tonic::Code;
use tonic::transport::Channel;

use crate::world::{self, Domain, Foreign};

type Item = Result<FederationRelationship, (Code, String)>;

async fn client(domain: &Domain) -> TrustDomainClient<Channel> {
    TrustDomainClient::new(domain.admin().await.unwrap())
}

fn item(status: Option<Status>, relationship: Option<FederationRelationship>) -> Item {
    let status = status.unwrap();
    if status.code == 0 {
        assert_eq!(status.message, "OK");
        Ok(relationship.unwrap())
    } else {
        assert!(relationship.is_none());
        Err((Code::from(status.code), status.message))
    }
}

async fn create(domain: &Domain, federation_relationships: Vec<FederationRelationship>) -> Vec<Item> {
    let request = BatchCreateFederationRelationshipRequest { federation_relationships, output_mask: None };
    let results = client(domain).await.batch_create_federation_relationship(request).await.unwrap().into_inner().results;
    results.into_iter().map(|r| item(r.status, r.federation_relationship)).collect()
}

async fn update(domain: &Domain, relationship: &FederationRelationship, input_mask: Option<FederationRelationshipMask>) -> Item {
    let federation_relationships = vec![relationship.clone()];
    let request = BatchUpdateFederationRelationshipRequest { federation_relationships, input_mask, output_mask: None };
    let mut results = client(domain).await.batch_update_federation_relationship(request).await.unwrap().into_inner().results;
    let result = results.remove(0);
    item(result.status, result.federation_relationship)
}

async fn get(domain: &Domain, name: &str) -> Result<FederationRelationship, (Code, String)> {
    let request = GetFederationRelationshipRequest { trust_domain: name.to_owned(), output_mask: None };
    let answer = client(domain).await.get_federation_relationship(request).await;
    answer.map(tonic::Response::into_inner).map_err(|s| (s.code(), s.message().to_owned()))
}

async fn delete(domain: &Domain, names: &[&str]) -> Vec<(String, i32, String)> {
    let request = BatchDeleteFederationRelationshipRequest { trust_domains: names.iter().map(|n| (*n).to_owned()).collect() };
    let results = client(domain).await.batch_delete_federation_relationship(request).await.unwrap().into_inner().results;
    let status = |s: Option<Status>| s.unwrap();
    results.into_iter().map(|r| (r.trust_domain, status(r.status.clone()).code, status(r.status).message)).collect()
}

async fn refresh(domain: &Domain, name: &str) -> (Code, String) {
    let refused = client(domain).await.refresh_bundle(RefreshBundleRequest { trust_domain: name.to_owned() }).await.unwrap_err();
    (refused.code(), refused.message().to_owned())
}

fn web(name: &str) -> FederationRelationship {
    FederationRelationship {
        trust_domain: name.to_owned(),
        bundle_endpoint_url: format!("https://{name}:8443/bundle"),
        bundle_endpoint_profile: Some(Profile::HttpsWeb(HttpsWebProfile {})),
        trust_domain_bundle: None,
    }
}

fn spiffe(id: &str) -> Option<Profile> {
    Some(Profile::HttpsSpiffe(HttpsspiffeProfile { endpoint_spiffe_id: id.to_owned() }))
}

const NONE: FederationRelationshipMask =
    FederationRelationshipMask { bundle_endpoint_url: false, bundle_endpoint_profile: false, trust_domain_bundle: false };

#[tokio::test]
async fn a_relationship_is_created_once_updated_when_there_and_survives_a_restart() {
    let mut domain = Domain::start().await.unwrap();
    let bundle = Foreign::new("one.test").wire(3);
    let one = FederationRelationship {
        bundle_endpoint_profile: spiffe("spiffe://one.test/endpoint"),
        trust_domain_bundle: Some(bundle.clone()),
        ..web("one.test")
    };
    let exists = "failed to create federation relationship: federation relationship already exists";
    assert_eq!(
        create(&domain, vec![one.clone(), one.clone(), web("two.test")]).await,
        [Ok(one.clone()), Err((Code::Internal, exists.to_owned())), Ok(web("two.test"))]
    );
    assert_eq!(get(&domain, "spiffe://one.test").await, Ok(one.clone()), "with the bundle that came with it");
    assert_eq!(get(&domain, "two.test").await, Ok(web("two.test")));
    let unknown = (Code::NotFound, "federation relationship does not exist".to_owned());
    assert_eq!(get(&domain, "three.test").await, Err(unknown.clone()));

    // Each part by itself; what the mask leaves out must be well formed all the same.
    let other = FederationRelationship {
        bundle_endpoint_url: "https://elsewhere.test".to_owned(),
        trust_domain_bundle: Some(Bundle { refresh_hint: 60, ..Foreign::new("one.test").wire(4) }),
        ..web("one.test")
    };
    let mut expected = one.clone();
    assert_eq!(update(&domain, &other, Some(NONE)).await, Ok(expected.clone()));
    expected.bundle_endpoint_url.clone_from(&other.bundle_endpoint_url);
    assert_eq!(update(&domain, &other, Some(FederationRelationshipMask { bundle_endpoint_url: true, ..NONE })).await, Ok(expected.clone()));
    expected.bundle_endpoint_profile.clone_from(&other.bundle_endpoint_profile);
    let mask = FederationRelationshipMask { bundle_endpoint_profile: true, ..NONE };
    assert_eq!(update(&domain, &other, Some(mask)).await, Ok(expected.clone()));
    expected.trust_domain_bundle.clone_from(&other.trust_domain_bundle);
    assert_eq!(update(&domain, &other, Some(FederationRelationshipMask { trust_domain_bundle: true, ..NONE })).await, Ok(expected.clone()));
    assert_eq!(
        update(&domain, &web("one.test"), None).await,
        Ok(FederationRelationship { trust_domain_bundle: expected.trust_domain_bundle.clone(), ..web("one.test") })
    );
    let malformed = FederationRelationship { bundle_endpoint_url: String::new(), ..one.clone() };
    let refused = "failed to convert federation relationship: bundle endpoint URL must use the https scheme";
    assert_eq!(update(&domain, &malformed, Some(NONE)).await, Err((Code::InvalidArgument, refused.to_owned())));
    let missing = "failed to update federation relationship: unable to fetch federation relationship: record not found";
    for unknown in ["three.test", "example.org"] {
        assert_eq!(update(&domain, &web(unknown), None).await, Err((Code::Internal, missing.to_owned())));
    }

    domain.stop_server().await;
    domain.start_server().await.unwrap();
    assert_eq!(get(&domain, "two.test").await, Ok(web("two.test")));
    assert_eq!(
        delete(&domain, &["spiffe://two.test", "two.test", "", "UPPER"]).await,
        [
            ("two.test".to_owned(), 0, "OK".to_owned()),
            ("two.test".to_owned(), 5, "federation relationship not found".to_owned()),
            (String::new(), 3, "missing trust domain".to_owned()),
            (
                "UPPER".to_owned(),
                3,
                "failed to parse trust domain: the trust domain name has `U`; allowed are lower-case letters, digits, dots, dashes and \
                 underscores"
                    .to_owned()
            ),
        ]
    );
    assert_eq!(get(&domain, "two.test").await, Err(unknown));
    // The bundle is a thing of its own and stays.
    delete(&domain, &["one.test"]).await;
    let request = countersign_wire::bundle_api::GetFederatedBundleRequest { trust_domain: "one.test".to_owned(), output_mask: None };
    assert_eq!(world::bundles(&domain).await.get_federated_bundle(request).await.unwrap().into_inner().sequence_number, 4);
}

#[tokio::test]
async fn what_is_no_relationship_is_refused_in_spires_words() {
    let domain = Domain::start().await.unwrap();
    let one = web("one.test");
    let with = |change: fn(&mut FederationRelationship)| {
        let mut changed = one.clone();
        change(&mut changed);
        changed
    };
    let items = create(
        &domain,
        vec![
            with(|r| r.trust_domain.clear()),
            with(|r| "http://one.test".clone_into(&mut r.bundle_endpoint_url)),
            with(|r| "https:///bundle".clone_into(&mut r.bundle_endpoint_url)),
            with(|r| "https://me:secret@one.test".clone_into(&mut r.bundle_endpoint_url)),
            with(|r| r.bundle_endpoint_profile = None),
            with(|r| r.bundle_endpoint_profile = spiffe("one.test")),
            with(|r| r.trust_domain_bundle = Some(Foreign::new("two.test").wire(1))),
            with(|r| r.trust_domain_bundle = Some(Bundle::default())),
            with(|r| "example.org".clone_into(&mut r.trust_domain)),
        ],
    )
    .await;
    let refused: Vec<String> = items
        .into_iter()
        .map(|item| {
            let (code, text) = item.unwrap_err();
            assert_eq!(code, Code::InvalidArgument, "{text}");
            text
        })
        .collect();
    expect![[r#"
        failed to convert federation relationship: failed to parse trust domain: the trust domain name is missing
        failed to convert federation relationship: bundle endpoint URL must use the https scheme
        failed to convert federation relationship: bundle endpoint URL must specify the host
        failed to convert federation relationship: bundle endpoint URL must not contain user info
        failed to convert federation relationship: unsupported bundle endpoint profile type: <nil>
        failed to convert federation relationship: failed to parse endpoint SPIFFE ID: the scheme is missing or not `spiffe://`
        failed to convert federation relationship: trust domain bundle ("two.test") must match the trust domain of the federation relationship ("one.test")
        failed to convert federation relationship: failed to parse bundle: trust domain argument is not valid: the trust domain name is missing
        unable to create federation relationship for server trust domain"#]]
    .assert_eq(&refused.join("\n"));
    let listed = client(&domain).await.list_federation_relationships(ListFederationRelationshipsRequest::default()).await.unwrap();
    assert!(listed.into_inner().federation_relationships.is_empty());
    let too_many = BatchCreateFederationRelationshipRequest { federation_relationships: vec![one; 1001], output_mask: None };
    let refused = client(&domain).await.batch_create_federation_relationship(too_many).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "the batch has 1001 items, at most 1000 are allowed"));
}

#[tokio::test]
async fn an_older_bundle_that_comes_with_a_relationship_is_refused_and_the_relationship_with_it() {
    let domain = Domain::start().await.unwrap();
    let foreign = Foreign::new("one.test");
    let with = |sequence| FederationRelationship { trust_domain_bundle: Some(foreign.wire(sequence)), ..web("one.test") };
    create(&domain, vec![with(5)]).await[0].as_ref().unwrap();
    delete(&domain, &["one.test"]).await;
    let refused = "failed to create federation relationship: bundle has sequence number 4, older than 5 which is held";
    assert_eq!(create(&domain, vec![with(4)]).await, [Err((Code::FailedPrecondition, refused.to_owned()))]);
    assert_eq!(get(&domain, "one.test").await.unwrap_err().0, Code::NotFound);
}

#[tokio::test]
async fn relationships_are_listed_in_pages_with_what_the_mask_names() {
    let domain = Domain::start().await.unwrap();
    let names = ["a.test", "b.test", "c.test", "example.net"];
    create(&domain, names.iter().rev().map(|name| web(name)).collect()).await;
    let mut client = client(&domain).await;
    for (size, pages) in [(0, vec![4]), (-1, vec![4]), (2, vec![2, 2, 0]), (3, vec![3, 1, 0])] {
        let (mut found, mut sizes, mut page_token) = (Vec::new(), Vec::new(), String::new());
        loop {
            let request = ListFederationRelationshipsRequest { page_size: size, page_token, output_mask: None };
            let page = client.list_federation_relationships(request).await.unwrap().into_inner();
            sizes.push(page.federation_relationships.len());
            found.extend(page.federation_relationships);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!((found, sizes), (names.iter().map(|n| web(n)).collect(), pages));
    }
    let all = ListFederationRelationshipsRequest { page_size: 0, page_token: "b.test".to_owned(), output_mask: None };
    let all = client.list_federation_relationships(all).await.unwrap().into_inner().federation_relationships;
    assert_eq!(all.len(), names.len(), "without pages there is no place to begin at");
    let bare = ListFederationRelationshipsRequest { output_mask: Some(NONE), page_size: 1, page_token: "b.test".to_owned() };
    let bare = client.list_federation_relationships(bare).await.unwrap().into_inner().federation_relationships;
    assert_eq!(bare, [FederationRelationship { trust_domain: "c.test".to_owned(), ..FederationRelationship::default() }]);
}

#[tokio::test]
async fn a_batch_whose_answer_nobody_could_receive_ends_with_what_has_room() {
    let domain = Domain::start().await.unwrap();
    // Each bundle has about 200 KiB, more than forty of which no client takes; those of 10 KiB fill what they leave.
    let sizes = std::iter::repeat_n(400, 40).chain(std::iter::repeat_n(20, 20));
    let names: Vec<String> = (0..60).map(|n| format!("td{n:02}.test")).collect();
    for (name, authorities) in names.iter().zip(sizes) {
        let foreign = Foreign::new(name);
        let mut bundle = foreign.wire(1);
        bundle.x509_authorities = (0..authorities).map(|_| Foreign::new(name).wire(1).x509_authorities.remove(0)).collect();
        let with = FederationRelationship { trust_domain_bundle: Some(bundle), ..web(name) };
        create(&domain, vec![with]).await[0].as_ref().unwrap();
    }
    // Before and behind them many that are refused, which take their room as well.
    let unknown = |n: usize| web(&format!("unknown{n}.test"));
    let known = names.iter().map(|n| web(n));
    let request = BatchUpdateFederationRelationshipRequest {
        federation_relationships: (0..400).map(unknown).chain(known).chain((0..400).map(unknown)).collect(),
        ..BatchUpdateFederationRelationshipRequest::default()
    };
    let results = client(&domain).await.batch_update_federation_relationship(request).await.unwrap().into_inner().results;
    let (unknown, known): (Vec<_>, Vec<_>) = results.into_iter().partition(|r| r.status.as_ref().unwrap().code == Code::Internal as i32);
    assert_eq!(unknown.len(), 800);
    let (done, refused): (Vec<_>, Vec<_>) = known.into_iter().partition(|r| r.status.as_ref().unwrap().code == 0);
    assert!(!done.is_empty() && !refused.is_empty());
    for result in refused {
        assert_eq!(result.status.unwrap().message, "the answer has no room for this relationship; send it in a smaller batch");
    }
}

#[tokio::test]
async fn refreshing_is_refused_for_strangers_and_for_want_of_fetching() {
    let configured = "federation {\n federates_with \"configured.test\" {\n bundle_endpoint_url = \"https://configured.test\"\n \
        bundle_endpoint_profile \"https_web\" {}\n }\n }";
    let domain = Domain::start_with(std::sync::Arc::new(countersign_transport::clock::SystemClock), configured).await.unwrap();
    create(&domain, vec![web("one.test"), web("configured.test")]).await[0].as_ref().unwrap();
    delete(&domain, &["configured.test"]).await;
    let listed = client(&domain).await.list_federation_relationships(ListFederationRelationshipsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().federation_relationships, [web("one.test")], "what the file says is not shown");
    let later = "failed to refresh bundle: fetching bundles of other trust domains is not implemented by this Countersign server; \
        set them with `bundle set`";
    assert_eq!(refresh(&domain, "one.test").await, (Code::Unimplemented, later.to_owned()));
    assert_eq!(refresh(&domain, "configured.test").await, (Code::Unimplemented, later.to_owned()));
    assert_eq!(refresh(&domain, "two.test").await, (Code::NotFound, "no relationship with trust domain \"two.test\"".to_owned()));
    assert_eq!(refresh(&domain, "").await.0, Code::InvalidArgument);
}

#[tokio::test]
async fn a_relationship_that_cannot_be_written_is_not_there() {
    let disk = PowerLoss::register();
    let domain = Domain::start_on(Some(disk.clone()), std::sync::Arc::new(countersign_transport::clock::SystemClock), "").await.unwrap();
    disk.fill_after(0);
    let request = BatchCreateFederationRelationshipRequest { federation_relationships: vec![web("one.test")], output_mask: None };
    assert_eq!(client(&domain).await.batch_create_federation_relationship(request).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(get(&domain, "one.test").await.unwrap_err().0, Code::NotFound);
}
