//! Registration entries: created, changed, deleted, and what is refused on the way.

use countersign_identity::SpiffeId;
use countersign_wire::bundle_api::BatchSetFederatedBundleRequest;
use countersign_wire::entry_api::{BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, GetEntryRequest};
use countersign_wire::types::entry::AdditionalAttributes;
use countersign_wire::types::{self, Entry, EntryMask};
use tonic::Code;

use crate::world::{self, Domain, Foreign, entry, spiffe_id};

const OK: i32 = Code::Ok as i32;

fn parent() -> SpiffeId {
    spiffe_id("/spire/agent/join_token/parent")
}

async fn create(domain: &Domain, entries: Vec<Entry>) -> Vec<(i32, String, Option<Entry>)> {
    let request = BatchCreateEntryRequest { entries, output_mask: None };
    let results = world::entries(domain).await.batch_create_entry(request).await.unwrap().into_inner().results;
    let parts = results.into_iter().map(|r| (r.status.unwrap(), r.entry));
    parts.map(|(status, entry)| (status.code, status.message, entry)).collect()
}

async fn federate(domain: &Domain, name: &str) {
    let request = BatchSetFederatedBundleRequest { bundle: vec![Foreign::new(name).wire(1)], output_mask: None };
    let results = world::bundles(domain).await.batch_set_federated_bundle(request).await.unwrap().into_inner().results;
    assert_eq!(results[0].status.as_ref().unwrap().code, OK);
}

#[tokio::test]
async fn an_entry_comes_back_as_it_was_sent_with_id_revision_and_time() {
    let domain = Domain::start().await.unwrap();
    federate(&domain, "other.test").await;
    let sent = Entry {
        x509_svid_ttl: 60,
        jwt_svid_ttl: 30,
        federates_with: vec!["other.test".to_owned()],
        admin: true,
        downstream: true,
        expires_at: 4_000_000_000,
        dns_names: vec!["db".to_owned(), "*.db".to_owned()],
        hint: "internal".to_owned(),
        additional_attributes: Some(AdditionalAttributes { disable_x509_svid_prefetch: true, jwt_svid_include_jti: true }),
        revision_number: 17,
        created_at: 5,
        ..entry(&parent(), "/db", &["uid:1", "gid:2"])
    };
    let [(code, message, created)] = create(&domain, vec![sent.clone()]).await.try_into().unwrap();
    assert_eq!((code, message.as_str()), (OK, "OK"));
    let created = created.unwrap();
    assert!(uuid::Uuid::parse_str(&created.id).is_ok_and(|id| id.get_version_num() == 4), "{}", created.id);
    assert!((domain.clock.now().secs() - created.created_at).abs() < 60);
    let mut expected = Entry { id: created.id.clone(), revision_number: 0, created_at: created.created_at, ..sent };
    expected.selectors.sort_by(|a, b| a.value.cmp(&b.value));
    assert_eq!(created, expected);
    let request = GetEntryRequest { id: created.id.clone(), output_mask: None };
    assert_eq!(world::entries(&domain).await.get_entry(request).await.unwrap().into_inner(), expected);
    // Masked, only the ID stays.
    let request = GetEntryRequest { id: created.id.clone(), output_mask: Some(EntryMask::default()) };
    let bare = world::entries(&domain).await.get_entry(request).await.unwrap().into_inner();
    assert_eq!(bare, Entry { id: created.id, ..Entry::default() });
}

#[tokio::test]
async fn every_item_of_a_batch_has_its_own_outcome() {
    let domain = Domain::start().await.unwrap();
    let first = Entry { id: "first".to_owned(), ..entry(&parent(), "/a", &["uid:1", "gid:1"]) };
    let similar = Entry { hint: "other".to_owned(), ..entry(&parent(), "/a", &["gid:1", "uid:1", "gid:1"]) };
    let same_id = Entry { id: "first".to_owned(), ..entry(&parent(), "/b", &["uid:1"]) };
    let broken = entry(&parent(), "/c", &[]);
    let last = entry(&parent(), "/d", &["uid:1"]);
    let outcomes = create(&domain, vec![first.clone(), similar, same_id, broken, last]).await;
    let told: Vec<(i32, &str)> = outcomes.iter().map(|(code, message, _)| (*code, message.as_str())).collect();
    assert_eq!(
        told,
        [
            (0, "OK"),
            (6, "similar entry already exists"),
            (6, "failed to create entry: an entry with this ID already exists"),
            (3, "failed to convert entry: selector list is empty"),
            (0, "OK"),
        ]
    );
    // The similar one is shown as it stands, the others that failed are not.
    assert_eq!(outcomes[1].2, outcomes[0].2);
    assert!(outcomes[2].2.is_none() && outcomes[3].2.is_none());
    assert_eq!(world::list(&domain).await.len(), 2);
    // And again, from another call.
    let [(code, _, found)] = create(&domain, vec![Entry { id: String::new(), ..first }]).await.try_into().unwrap();
    assert_eq!((code, found.unwrap().id.as_str()), (6, "first"));
}

#[tokio::test]
async fn what_is_malformed_is_refused_with_the_reason() {
    let domain = Domain::start().await.unwrap();
    let good = || entry(&parent(), "/x", &["uid:1"]);
    let id = |trust_domain: &str, path: &str| Some(types::Spiffeid { trust_domain: trust_domain.to_owned(), path: path.to_owned() });
    let selector = |kind: &str, value: &str| vec![types::Selector { r#type: kind.to_owned(), value: value.to_owned() }];
    let cases: Vec<(&str, Entry)> = vec![
        ("invalid spiffe ID: request must specify SPIFFE ID", Entry { spiffe_id: None, ..good() }),
        ("invalid parent ID: request must specify SPIFFE ID", Entry { parent_id: None, ..good() }),
        ("is not a member of trust domain", Entry { spiffe_id: id("other.test", "/x"), ..good() }),
        ("is not a member of trust domain", Entry { parent_id: id("other.test", "/x"), ..good() }),
        ("invalid spiffe ID: `spiffe://example.org` has no path", Entry { spiffe_id: id("example.org", ""), ..good() }),
        ("invalid parent ID: `spiffe://example.org` has no path", Entry { parent_id: id("example.org", ""), ..good() }),
        ("reserved namespace", Entry { spiffe_id: id("example.org", "/spire/agent/x"), ..good() }),
        ("reserved namespace", Entry { spiffe_id: id("example.org", "/spire"), ..good() }),
        ("invalid spiffe ID: path", Entry { spiffe_id: id("example.org", "/a/../b"), ..good() }),
        ("invalid spiffe ID: path", Entry { spiffe_id: id("example.org", "no-slash"), ..good() }),
        ("invalid spiffe ID: trust domain", Entry { spiffe_id: id("Example.org", "/x"), ..good() }),
        ("selector", Entry { selectors: selector("", "uid:1"), ..good() }),
        ("selector", Entry { selectors: selector("a:b", "c"), ..good() }),
        ("selector", Entry { selectors: selector("unix", ""), ..good() }),
        ("hint is too long", Entry { hint: "h".repeat(1025), ..good() }),
        ("invalid entry ID: character `/` is not allowed", Entry { id: "a/b".to_owned(), ..good() }),
        ("invalid entry ID: it has 256 characters", Entry { id: "i".repeat(256), ..good() }),
        ("invalid X509-SVID TTL: it must not be negative", Entry { x509_svid_ttl: -1, ..good() }),
        ("invalid JWT-SVID TTL: it must not be negative", Entry { jwt_svid_ttl: -1, ..good() }),
        ("invalid expiry: it must not be negative", Entry { expires_at: -1, ..good() }),
        ("invalid DNS name", Entry { dns_names: vec!["a b".to_owned()], ..good() }),
        ("invalid DNS name", Entry { dns_names: vec!["a.*.b".to_owned()], ..good() }),
        ("too many DNS names", Entry { dns_names: (0..257).map(|n| format!("n{n}")).collect(), ..good() }),
        ("invalid federated trust domain", Entry { federates_with: vec!["no spaces".to_owned()], ..good() }),
        ("too many selectors", Entry { selectors: (0..1025).flat_map(|n| selector("unix", &format!("uid:{n}"))).collect(), ..good() }),
        (
            "store_svid cannot be combined",
            Entry {
                store_svid: true,
                additional_attributes: Some(AdditionalAttributes { disable_x509_svid_prefetch: true, jwt_svid_include_jti: false }),
                ..good()
            },
        ),
        (
            "store_svid requires all selectors to have the same type",
            Entry { store_svid: true, selectors: [selector("unix", "uid:1"), selector("k8s", "ns:a")].concat(), ..good() },
        ),
    ];
    let (texts, entries): (Vec<&str>, Vec<Entry>) = cases.into_iter().unzip();
    for (text, (code, message, shown)) in texts.into_iter().zip(create(&domain, entries).await) {
        assert_eq!(code, Code::InvalidArgument as i32, "expected {text:?}, got {message:?}");
        assert!(message.starts_with("failed to convert entry: ") && message.contains(text), "expected {text:?}, got {message:?}");
        assert!(shown.is_none());
    }
    assert!(world::list(&domain).await.is_empty());
}

#[tokio::test]
async fn an_entry_federates_only_with_trust_domains_whose_bundle_is_there() {
    let domain = Domain::start().await.unwrap();
    let wanted = Entry { federates_with: vec!["other.test".to_owned()], ..entry(&parent(), "/x", &["uid:1"]) };
    let text = "unable to find federated bundle \"spiffe://other.test\"";
    let [(code, message, shown)] = create(&domain, vec![wanted.clone()]).await.try_into().unwrap();
    assert_eq!((code, message.as_str(), shown), (13, format!("failed to create entry: {text}").as_str(), None));

    let plain = domain.entry_from(Entry { federates_with: Vec::new(), ..wanted.clone() }).await.unwrap();
    let refused = world::update(&domain, Entry { id: plain.id.clone(), ..wanted.clone() }, None).await.unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (13, format!("failed to update entry: {text}").as_str()));

    federate(&domain, "other.test").await;
    // By ID or by name, once or twice: it is one trust domain.
    let named = vec!["spiffe://other.test".to_owned(), "other.test".to_owned()];
    let updated = world::update(&domain, Entry { id: plain.id, federates_with: named, ..wanted }, None).await.unwrap();
    assert_eq!(updated.federates_with, ["other.test"]);
}

#[tokio::test]
async fn an_update_replaces_what_its_mask_names_and_counts_revisions() {
    let domain = Domain::start().await.unwrap();
    let sent = Entry {
        x509_svid_ttl: 60,
        hint: "one".to_owned(),
        dns_names: vec!["db".to_owned()],
        additional_attributes: Some(AdditionalAttributes { jwt_svid_include_jti: true, ..AdditionalAttributes::default() }),
        ..entry(&parent(), "/x", &["uid:1"])
    };
    let created = domain.entry_from(sent).await.unwrap();
    let mask = |change: fn(&mut EntryMask)| {
        let mut mask = EntryMask::default();
        change(&mut mask);
        Some(mask)
    };
    // Only the hint, although everything else is sent differently.
    let other = Entry { id: created.id.clone(), hint: "two".to_owned(), ..entry(&spiffe_id("/elsewhere"), "/y", &["uid:2"]) };
    let updated = world::update(&domain, other.clone(), mask(|m| m.hint = true)).await.unwrap();
    assert_eq!(updated, Entry { hint: "two".to_owned(), revision_number: 1, ..created.clone() });
    // Nothing at all counts too.
    let updated = world::update(&domain, other.clone(), mask(|_| {})).await.unwrap();
    assert_eq!(updated, Entry { hint: "two".to_owned(), revision_number: 2, ..created.clone() });
    // Neither revision nor time can be written.
    let forged = Entry { revision_number: 99, created_at: 1, ..other.clone() };
    let updated = world::update(&domain, forged, mask(|m| (m.revision_number, m.created_at) = (true, true))).await.unwrap();
    assert_eq!((updated.revision_number, updated.created_at), (3, created.created_at));
    // Without a mask everything is replaced, and what is absent is cleared.
    let updated = world::update(&domain, other.clone(), None).await.unwrap();
    assert_eq!(updated, Entry { revision_number: 4, created_at: created.created_at, ..other.clone() });
    assert_eq!(world::list(&domain).await, [updated]);
    // What a check refuses changes nothing.
    let refused = world::update(&domain, Entry { hint: "h".repeat(1025), ..other.clone() }, None).await.unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (3, "failed to convert entry: hint is too long, max length is 1024 bytes"));
    let refused = world::update(&domain, Entry { selectors: Vec::new(), ..other }, mask(|m| m.selectors = true)).await.unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (3, "failed to convert entry: selector list is empty"));
    assert_eq!(world::list(&domain).await[0].revision_number, 4);
}

#[tokio::test]
async fn an_update_of_an_unknown_entry_or_into_another_ones_place_is_refused() {
    let domain = Domain::start().await.unwrap();
    let one = domain.entry_from(entry(&parent(), "/one", &["uid:1"])).await.unwrap();
    let two = domain.entry_from(entry(&parent(), "/two", &["uid:1"])).await.unwrap();
    let unknown = Entry { id: "unknown".to_owned(), ..one.clone() };
    let nameless = Entry { id: String::new(), ..one.clone() };
    let taken = Entry { id: two.id.clone(), ..one.clone() };
    let request = BatchUpdateEntryRequest { entries: vec![unknown, nameless, taken], ..BatchUpdateEntryRequest::default() };
    let results = world::entries(&domain).await.batch_update_entry(request).await.unwrap().into_inner().results;
    let told: Vec<(i32, String)> = results.into_iter().map(|r| r.status.unwrap()).map(|s| (s.code, s.message)).collect();
    assert_eq!(told[0], (5, "failed to update entry".to_owned()));
    assert_eq!(told[1], (3, "failed to convert entry: missing entry ID".to_owned()));
    assert_eq!(told[2], (6, format!("failed to update entry: entry `{}` is similar", one.id)));
    let mut all = world::list(&domain).await;
    all.sort_by(|a, b| a.spiffe_id.as_ref().unwrap().path.cmp(&b.spiffe_id.as_ref().unwrap().path));
    assert_eq!(all, [one, two]);
}

#[tokio::test]
async fn a_deleted_entry_is_gone_and_its_id_is_free() {
    let domain = Domain::start().await.unwrap();
    let created = domain.entry_from(Entry { id: "mine".to_owned(), ..entry(&parent(), "/x", &["uid:1"]) }).await.unwrap();
    let ids = vec!["mine".to_owned(), "unknown".to_owned(), String::new(), "mine".to_owned()];
    let results =
        world::entries(&domain).await.batch_delete_entry(BatchDeleteEntryRequest { ids: ids.clone() }).await.unwrap().into_inner().results;
    assert_eq!(results.iter().map(|r| r.id.clone()).collect::<Vec<_>>(), ids);
    let told: Vec<(i32, String)> = results.into_iter().map(|r| r.status.unwrap()).map(|s| (s.code, s.message)).collect();
    let not_found = (5, "entry not found".to_owned());
    assert_eq!(told, [(0, "OK".to_owned()), not_found.clone(), (3, "missing entry ID".to_owned()), not_found]);
    let request = GetEntryRequest { id: "mine".to_owned(), output_mask: None };
    let status = world::entries(&domain).await.get_entry(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "entry not found"));
    let again = domain.entry_from(Entry { revision_number: 0, ..created }).await.unwrap();
    assert_eq!((again.id.as_str(), again.revision_number), ("mine", 0));
}

#[tokio::test]
async fn a_message_over_four_mebibytes_is_refused_and_the_server_goes_on() {
    let domain = Domain::start().await.unwrap();
    // Just below the limit of a message: as many as one selector each of eight kilobytes allows.
    let big = |path: &str| types::Entry {
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "v".repeat(8000) }],
        ..entry(&parent(), path, &[])
    };
    let batch = |count: usize| (0..count).map(|n| big(&format!("/big/{n}"))).collect::<Vec<_>>();
    let request = BatchCreateEntryRequest { entries: batch(530), output_mask: None };
    let status = world::entries(&domain).await.batch_create_entry(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status}");
    assert!(world::list(&domain).await.is_empty());
    let request = BatchCreateEntryRequest { entries: batch(510), output_mask: Some(EntryMask::default()) };
    let results = world::entries(&domain).await.batch_create_entry(request).await.unwrap().into_inner().results;
    assert!(results.len() == 510 && results.iter().all(|r| r.status.as_ref().unwrap().code == OK));
}

#[tokio::test]
async fn entries_that_are_over_are_deleted_by_themselves() {
    let (domain, clock) = world::virtual_domain("").await;
    let now = domain.clock.now().secs();
    let over = Entry { expires_at: now + 5, ..entry(&parent(), "/over", &["uid:1"]) };
    let later = Entry { expires_at: now + 3600, ..entry(&parent(), "/later", &["uid:1"]) };
    domain.entry_from(over).await.unwrap();
    let later = domain.entry_from(later).await.unwrap();
    let one = async || Some(world::list(&domain).await).filter(|left| left.len() == 1);
    assert_eq!(world::rounds("the entry is pruned", &clock, world::ROUND, one).await, [later]);
}
