//! Listings and counts of entries: filters with every match behaviour, pages, and what agents are sent.

use std::collections::BTreeSet;

use countersign_identity::SpiffeId;
use countersign_wire::bundle_api::BatchSetFederatedBundleRequest;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::list_entries_request::Filter;
use countersign_wire::entry_api::{
    BatchCreateEntryRequest, CountEntriesRequest, GetAuthorizedEntriesRequest, ListEntriesRequest, SyncAuthorizedEntriesRequest,
    SyncAuthorizedEntriesResponse, count_entries_request,
};
use countersign_wire::types::{self, Entry, EntryMask, FederatesWithMatch, SelectorMatch, federates_with_match, selector_match};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::world::{self, Domain, Foreign, NodeIdentity, entry, id_to_wire, spiffe_id};

fn parent() -> SpiffeId {
    spiffe_id("/spire/agent/join_token/parent")
}

/// A domain with entries that differ in every field a filter asks about; each has the name of its path.
async fn varied() -> Domain {
    let domain = Domain::start().await.unwrap();
    let bundle = ["one.test", "two.test", "three.test"].map(|name| Foreign::new(name).wire(1)).to_vec();
    let request = BatchSetFederatedBundleRequest { bundle, output_mask: None };
    world::bundles(&domain).await.batch_set_federated_bundle(request).await.unwrap();
    let federating = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let entries = vec![
        entry(&parent(), "/a", &["1"]),
        entry(&parent(), "/ab", &["1", "2"]),
        entry(&parent(), "/abc", &["1", "2", "3"]),
        Entry { hint: "internal".to_owned(), ..entry(&spiffe_id("/elsewhere"), "/hinted", &["4"]) },
        Entry { downstream: true, ..entry(&parent(), "/downstream", &["5"]) },
        Entry { federates_with: federating(&["one.test"]), ..entry(&parent(), "/one", &["6"]) },
        Entry { federates_with: federating(&["one.test", "two.test"]), ..entry(&parent(), "/both", &["7"]) },
    ];
    let request = BatchCreateEntryRequest { entries, output_mask: None };
    let results = world::entries(&domain).await.batch_create_entry(request).await.unwrap().into_inner().results;
    assert!(results.iter().all(|r| r.status.as_ref().unwrap().code == 0));
    domain
}

/// What a filter finds, by path, sorted; the count is asked for too and must agree.
async fn found(domain: &Domain, filter: Filter) -> Vec<String> {
    let request = ListEntriesRequest { filter: Some(filter.clone()), ..ListEntriesRequest::default() };
    let listed = world::entries(domain).await.list_entries(request).await.unwrap().into_inner().entries;
    let filter = count_entries_request::Filter {
        by_spiffe_id: filter.by_spiffe_id,
        by_parent_id: filter.by_parent_id,
        by_selectors: filter.by_selectors,
        by_federates_with: filter.by_federates_with,
        by_hint: filter.by_hint,
        by_downstream: filter.by_downstream,
    };
    let counted =
        world::entries(domain).await.count_entries(CountEntriesRequest { filter: Some(filter) }).await.unwrap().into_inner().count;
    assert_eq!(listed.len(), usize::try_from(counted).unwrap());
    let paths: BTreeSet<String> = listed.into_iter().map(|e| e.spiffe_id.unwrap().path).collect();
    paths.into_iter().collect()
}

fn by_selectors(values: &[&str], behavior: selector_match::MatchBehavior) -> Filter {
    let selectors = values.iter().map(|v| types::Selector { r#type: "unix".to_owned(), value: (*v).to_owned() }).collect();
    Filter { by_selectors: Some(SelectorMatch { selectors, r#match: behavior.into() }), ..Filter::default() }
}

fn by_federates_with(names: &[&str], behavior: federates_with_match::MatchBehavior) -> Filter {
    let trust_domains = names.iter().map(|n| (*n).to_owned()).collect();
    Filter { by_federates_with: Some(FederatesWithMatch { trust_domains, r#match: behavior.into() }), ..Filter::default() }
}

#[tokio::test]
async fn filters_find_what_they_describe_and_counts_agree() {
    use federates_with_match::MatchBehavior as Federation;
    use selector_match::MatchBehavior as Selectors;
    let domain = varied().await;
    let none: [&str; 0] = [];
    let all = found(&domain, Filter::default()).await;
    assert_eq!(all, ["/a", "/ab", "/abc", "/both", "/downstream", "/hinted", "/one"]);

    assert_eq!(found(&domain, by_selectors(&["2", "1"], Selectors::MatchExact)).await, ["/ab"]);
    assert_eq!(found(&domain, by_selectors(&["1", "2"], Selectors::MatchSubset)).await, ["/a", "/ab"]);
    assert_eq!(found(&domain, by_selectors(&["1", "2"], Selectors::MatchSuperset)).await, ["/ab", "/abc"]);
    assert_eq!(found(&domain, by_selectors(&["3", "4"], Selectors::MatchAny)).await, ["/abc", "/hinted"]);
    assert_eq!(found(&domain, by_selectors(&["9"], Selectors::MatchAny)).await, none);

    assert_eq!(found(&domain, by_federates_with(&["one.test"], Federation::MatchExact)).await, ["/one"]);
    assert_eq!(found(&domain, by_federates_with(&["spiffe://one.test"], Federation::MatchSuperset)).await, ["/both", "/one"]);
    assert_eq!(found(&domain, by_federates_with(&["two.test", "three.test"], Federation::MatchAny)).await, ["/both"]);
    assert_eq!(found(&domain, by_federates_with(&["three.test"], Federation::MatchExact)).await, none);

    let filter = Filter { by_spiffe_id: Some(id_to_wire(&spiffe_id("/ab"))), ..Filter::default() };
    assert_eq!(found(&domain, filter).await, ["/ab"]);
    let filter = Filter { by_parent_id: Some(id_to_wire(&spiffe_id("/elsewhere"))), ..Filter::default() };
    assert_eq!(found(&domain, filter).await, ["/hinted"]);
    assert_eq!(found(&domain, Filter { by_hint: Some("internal".to_owned()), ..Filter::default() }).await, ["/hinted"]);
    assert_eq!(found(&domain, Filter { by_downstream: Some(true), ..Filter::default() }).await, ["/downstream"]);
    // Several conditions must all hold.
    let filter = Filter { by_hint: Some("internal".to_owned()), ..by_selectors(&["1"], Selectors::MatchSuperset) };
    assert_eq!(found(&domain, filter).await, none);
}

#[tokio::test]
async fn a_subset_filter_on_federation_finds_only_entries_that_federate() {
    let domain = varied().await;
    let filter = by_federates_with(&["one.test", "three.test"], federates_with_match::MatchBehavior::MatchSubset);
    assert_eq!(found(&domain, filter).await, ["/one"]);
}

#[tokio::test]
async fn filters_that_describe_nothing_are_refused() {
    let domain = varied().await;
    let empty_selectors = by_selectors(&[], selector_match::MatchBehavior::MatchAny);
    let empty_federation = by_federates_with(&[], federates_with_match::MatchBehavior::MatchAny);
    let unknown = Filter {
        by_selectors: Some(SelectorMatch { selectors: vec![types::Selector { r#type: "a".into(), value: "b".into() }], r#match: 9 }),
        ..Filter::default()
    };
    let nobody = Filter { by_spiffe_id: Some(types::Spiffeid::default()), ..Filter::default() };
    for (filter, text) in [
        (empty_selectors, "malformed selectors filter: empty selector set"),
        (empty_federation, "empty trust domain set"),
        (unknown, "malformed selectors filter: unsupported match behavior 9"),
        (nobody, "malformed SPIFFE ID filter: trust domain"),
    ] {
        let request = ListEntriesRequest { filter: Some(filter), ..ListEntriesRequest::default() };
        let status = world::entries(&domain).await.list_entries(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(text), "{status}");
    }
}

#[tokio::test]
async fn pages_hold_everything_once_and_end_with_an_empty_token() {
    let domain = varied().await;
    let mut client = world::entries(&domain).await;
    for (size, lengths) in [(3, vec![3, 3, 1, 0]), (7, vec![7, 0]), (100, vec![7, 0]), (0, vec![7])] {
        let (mut seen, mut sizes, mut page_token) = (Vec::new(), Vec::new(), String::new());
        loop {
            let request = ListEntriesRequest { page_size: size, page_token, ..ListEntriesRequest::default() };
            let page = client.list_entries(request).await.unwrap().into_inner();
            sizes.push(page.entries.len());
            seen.extend(page.entries.iter().map(|e| e.id.clone()));
            // The token names the last of its page; also on the last page, as clients of SPIRE expect.
            assert_eq!(page.next_page_token, if size == 0 { "" } else { page.entries.last().map_or("", |e| e.id.as_str()) });
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(sizes, lengths, "pages of {size}");
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 7);
        assert_eq!(seen.len(), 7);
    }
    // A filter fills its pages with what matches, not with what it looked at.
    let filter = Some(by_selectors(&["1"], selector_match::MatchBehavior::MatchSuperset));
    let request = ListEntriesRequest { filter, page_size: 2, ..ListEntriesRequest::default() };
    assert_eq!(client.list_entries(request).await.unwrap().into_inner().entries.len(), 2);
}

/// A node below which this many entries hang.
async fn populated(count: usize) -> (Domain, NodeIdentity) {
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    let entries = (0..count).map(|n| entry(&node.id, &format!("/w/{n}"), &[&format!("uid:{n}")])).collect();
    let request = BatchCreateEntryRequest { entries, output_mask: None };
    world::entries(&domain).await.batch_create_entry(request).await.unwrap();
    // Somebody else's, never to be seen.
    domain.entry_from(entry(&parent(), "/foreign", &["uid:1"])).await.unwrap();
    (domain, node)
}

fn sync_mask() -> Option<EntryMask> {
    Some(EntryMask { spiffe_id: true, revision_number: true, created_at: true, ..EntryMask::default() })
}

/// An exchange that begins with this request.
async fn sync(
    domain: &Domain,
    node: &NodeIdentity,
    first: SyncAuthorizedEntriesRequest,
) -> Result<(mpsc::Sender<SyncAuthorizedEntriesRequest>, Streaming<SyncAuthorizedEntriesResponse>), Status> {
    let mut client: EntryClient<Channel> = EntryClient::new(domain.connect(Some(node)).await.unwrap());
    let (requests, receiver) = mpsc::channel(4);
    requests.send(first).await.unwrap();
    let answers = world::soon("an answer", client.sync_authorized_entries(ReceiverStream::new(receiver))).await?.into_inner();
    Ok((requests, answers))
}

#[tokio::test]
async fn up_to_five_hundred_entries_are_synchronized_in_one_message() {
    for count in [0, 1, 500] {
        let (domain, node) = populated(count).await;
        let first = SyncAuthorizedEntriesRequest { output_mask: sync_mask(), ids: Vec::new() };
        let (_requests, mut answers) = sync(&domain, &node, first).await.unwrap();
        let answer = world::soon("the entries", answers.message()).await.unwrap().unwrap();
        assert_eq!((answer.entries.len(), answer.entry_revisions.len(), answer.more), (count, 0, false));
        assert!(
            answer.entries.iter().all(|e| e.spiffe_id.is_some() && e.created_at != 0 && e.parent_id.is_none() && e.selectors.is_empty())
        );
        assert!(world::soon("the end", answers.message()).await.unwrap().is_none(), "the server closes by itself");
    }
}

#[tokio::test]
async fn beyond_five_hundred_entries_revisions_come_first_and_entries_on_demand() {
    let (domain, node) = populated(1101).await;
    let first = SyncAuthorizedEntriesRequest { output_mask: sync_mask(), ids: Vec::new() };
    let (requests, mut answers) = sync(&domain, &node, first).await.unwrap();
    let mut ids = Vec::new();
    for (length, more) in [(500, true), (500, true), (101, false)] {
        let page = world::soon("revisions", answers.message()).await.unwrap().unwrap();
        assert_eq!((page.entry_revisions.len(), page.entries.len(), page.more), (length, 0, more));
        assert!(page.entry_revisions.iter().all(|r| r.revision_number == 0 && r.created_at != 0));
        ids.extend(page.entry_revisions.into_iter().map(|r| r.id));
    }
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 1101);

    // A few, with some that do not exist or are another's: those are passed over. The first mask stays.
    let foreign = world::list(&domain).await.into_iter().find(|e| e.spiffe_id.as_ref().unwrap().path == "/foreign").unwrap().id;
    let wanted = vec![ids[3].clone(), "unknown".to_owned(), foreign.clone(), ids[700].clone()];
    requests.send(SyncAuthorizedEntriesRequest { output_mask: None, ids: wanted }).await.unwrap();
    let page = world::soon("entries", answers.message()).await.unwrap().unwrap();
    assert_eq!(page.entries.iter().map(|e| e.id.clone()).collect::<Vec<_>>(), [ids[3].clone(), ids[700].clone()]);
    assert!(!page.more && page.entries.iter().all(|e| e.spiffe_id.is_some() && e.parent_id.is_none()));

    // More than a page, in pages.
    requests.send(SyncAuthorizedEntriesRequest { output_mask: None, ids: ids.clone() }).await.unwrap();
    let mut got = Vec::new();
    for (length, more) in [(500, true), (500, true), (101, false)] {
        let page = world::soon("entries", answers.message()).await.unwrap().unwrap();
        assert_eq!((page.entries.len(), page.more), (length, more));
        got.extend(page.entries.into_iter().map(|e| e.id));
    }
    assert_eq!(got, ids);
    // Nothing of what was asked for: one empty page.
    requests.send(SyncAuthorizedEntriesRequest { output_mask: None, ids: vec![foreign] }).await.unwrap();
    let page = world::soon("an empty page", answers.message()).await.unwrap().unwrap();
    assert_eq!(page, SyncAuthorizedEntriesResponse::default());
    drop(requests);
    assert!(world::soon("the end", answers.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_first_request_with_ids_or_without_revisions_is_refused() {
    let (domain, node) = populated(1).await;
    for (request, text) in [
        (
            SyncAuthorizedEntriesRequest { output_mask: None, ids: vec!["x".to_owned()] },
            "specifying IDs on initial request is not supported",
        ),
        (SyncAuthorizedEntriesRequest { output_mask: Some(EntryMask::default()), ids: Vec::new() }, "revision number cannot be masked"),
    ] {
        let status = sync(&domain, &node, request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    }
}

#[tokio::test]
async fn an_agent_is_given_what_hangs_below_it_and_nothing_that_is_over() {
    let (domain, clock) = world::virtual_domain("").await;
    let node = world::node(&domain).await;
    domain.entry_from(entry(&node.id, "/direct", &["uid:1"])).await.unwrap();
    domain.entry_from(entry(&spiffe_id("/direct"), "/nested", &["uid:2"])).await.unwrap();
    domain.entry_from(entry(&spiffe_id("/nested"), "/deep", &["uid:3"])).await.unwrap();
    // A circle is no reason to never come back.
    domain.entry_from(entry(&spiffe_id("/deep"), "/direct", &["uid:4"])).await.unwrap();
    domain.entry_from(entry(&parent(), "/foreign", &["uid:5"])).await.unwrap();
    let over = Entry { expires_at: domain.clock.now().secs() + 10, ..entry(&node.id, "/over", &["uid:6"]) };
    domain.entry_from(over).await.unwrap();
    let mut client = EntryClient::new(domain.connect(Some(&node)).await.unwrap());
    let mut paths = async || -> Vec<String> {
        let answer = client.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.unwrap().into_inner();
        let mut paths: Vec<String> = answer.entries.into_iter().map(|e| e.spiffe_id.unwrap().path).collect();
        paths.sort();
        paths
    };
    assert_eq!(paths().await, ["/deep", "/direct", "/direct", "/nested", "/over"]);
    clock.advance(std::time::Duration::from_secs(10));
    assert_eq!(paths().await, ["/deep", "/direct", "/direct", "/nested"]);
}
