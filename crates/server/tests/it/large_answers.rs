//! Answers near the four MiB that gRPC clients accept unless told otherwise: every client here keeps that limit.

use countersign_identity::entry::ENTRY_BYTES_MAX;
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::{
    BatchCreateEntryRequest, BatchUpdateEntryRequest, GetAuthorizedEntriesRequest, ListEntriesRequest, SyncAuthorizedEntriesRequest,
};
use countersign_wire::types::{Entry, EntryMask, Selector, Status};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use crate::world::{self, Domain, NodeIdentity, entry};

const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Selectors of so many bytes: sixteen such entries fit into a message.
const LARGE: usize = 250_000;
/// Entries below the node, more than fit into a message.
const COUNT: usize = 20;

/// A client as every program has one.
async fn admin(domain: &Domain) -> EntryClient<Channel> {
    EntryClient::new(domain.admin().await.unwrap())
}

fn selectors(bytes: usize) -> Vec<Selector> {
    let of = |n: usize, bytes: usize| Selector { r#type: "unix".to_owned(), value: format!("{n:0>bytes$}") };
    (0..bytes / 8000).map(|n| of(n, 8000)).chain((bytes % 8000 > 4).then(|| of(9999, bytes % 8000))).collect()
}

fn large(node: &NodeIdentity, n: usize) -> Entry {
    Entry { id: format!("large-{n:0>3}"), selectors: selectors(LARGE), ..entry(&node.id, &format!("/large/{n}"), &[]) }
}

/// A domain with a node and more below it than goes into one message.
async fn populated() -> (Domain, NodeIdentity) {
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    for n in 0..COUNT {
        domain.entry_from(large(&node, n)).await.unwrap();
    }
    (domain, node)
}

#[tokio::test]
async fn an_entry_that_is_too_large_is_refused_at_creation_and_update() {
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    let wanted = Entry { selectors: selectors(ENTRY_BYTES_MAX), ..large(&node, 0) };
    let request = BatchCreateEntryRequest { entries: vec![wanted], output_mask: None };
    let result = admin(&domain).await.batch_create_entry(request).await.unwrap().into_inner().results.remove(0);
    let refused = result.status.unwrap();
    assert_eq!(refused.code, Code::InvalidArgument as i32);
    let told = |status: &Status| {
        let text = &status.message;
        assert!(
            text.starts_with("failed to convert entry: entry is too large: ") && text.ends_with("at most 262144 are allowed"),
            "{text}"
        );
    };
    told(&refused);
    // An update counts what stays together with what comes.
    let small = domain.entry_from(large(&node, 0)).await.unwrap();
    let names = (0..256).map(|n| format!("{n:0>60}.test")).collect();
    let mask = EntryMask { dns_names: true, ..EntryMask::default() };
    let refused =
        world::update(&domain, Entry { id: small.id.clone(), dns_names: names, ..Entry::default() }, Some(mask)).await.unwrap_err();
    told(&refused);
    assert_eq!(world::list(&domain).await, [small]);
}

#[tokio::test]
async fn a_listing_of_everything_that_cannot_be_received_is_refused_and_pages_hold_what_fits() {
    let (domain, _) = populated().await;
    let mut client = admin(&domain).await;
    let refused = client.list_entries(ListEntriesRequest::default()).await.unwrap_err();
    let text = "the answer would be larger than the 4 MiB that gRPC clients accept; ask for pages, with a page size";
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, text));
    // With a mask it all fits.
    let masked = ListEntriesRequest { output_mask: Some(EntryMask::default()), ..ListEntriesRequest::default() };
    assert_eq!(client.list_entries(masked).await.unwrap().into_inner().entries.len(), COUNT);

    let (mut ids, mut sizes, mut page_token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let request = ListEntriesRequest { page_size: 500, page_token, ..ListEntriesRequest::default() };
        let page = client.list_entries(request).await.unwrap().into_inner();
        assert!(page.encoded_len() <= MESSAGE_BYTES_MAX);
        sizes.push(page.entries.len());
        ids.extend(page.entries.into_iter().map(|e| e.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(sizes, [16, 4, 0]);
    assert_eq!(ids, (0..COUNT).map(|n| format!("large-{n:0>3}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn agents_that_ask_for_all_their_entries_at_once_are_told_how_they_can_be_had() {
    let (domain, node) = populated().await;
    let mut client = EntryClient::new(domain.connect(Some(&node)).await.unwrap());
    let refused = client.get_authorized_entries(GetAuthorizedEntriesRequest { output_mask: None }).await.unwrap_err();
    let text = "the answer would be larger than the 4 MiB that gRPC clients accept; let the agent use SyncAuthorizedEntries";
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, text));

    // Few enough for one page, but too large for it: revisions first, then what is asked for, in pages that fit.
    let (requests, receiver) = mpsc::channel(4);
    requests.send(SyncAuthorizedEntriesRequest { output_mask: None, ids: Vec::new() }).await.unwrap();
    let mut answers = client.sync_authorized_entries(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let revisions = world::soon("revisions", answers.message()).await.unwrap().unwrap();
    assert_eq!((revisions.entry_revisions.len(), revisions.entries.len(), revisions.more), (COUNT, 0, false));
    let ids: Vec<String> = revisions.entry_revisions.into_iter().map(|r| r.id).collect();
    requests.send(SyncAuthorizedEntriesRequest { output_mask: None, ids: ids.clone() }).await.unwrap();
    let mut got = Vec::new();
    for (length, more) in [(16, true), (4, false)] {
        let page = world::soon("entries", answers.message()).await.unwrap().unwrap();
        assert_eq!((page.entries.len(), page.more), (length, more));
        got.extend(page.entries.into_iter().map(|e| e.id));
    }
    assert_eq!(got, ids);
}

#[tokio::test]
async fn a_batch_does_nothing_that_its_answer_has_no_room_to_tell() {
    let (domain, node) = populated().await;
    let mut client = admin(&domain).await;
    let no_room = |status: Option<Status>| {
        let status = status.unwrap();
        assert_eq!(status.code, Code::ResourceExhausted as i32, "{status:?}");
        assert_eq!(status.message, "the answer has no room for this entry; send it in a smaller batch");
    };

    // A mask makes the request small, and its answer would have all there is.
    let mask = EntryMask { hint: true, ..EntryMask::default() };
    let hinted = |n: usize| Entry { id: format!("large-{n:0>3}"), hint: "new".to_owned(), ..Entry::default() };
    let entries = (0..COUNT).map(hinted).collect();
    let request = BatchUpdateEntryRequest { entries, input_mask: Some(mask), output_mask: None };
    let results = client.batch_update_entry(request).await.unwrap().into_inner().results;
    for (n, result) in results.into_iter().enumerate() {
        match result.entry {
            Some(updated) => assert!(n < 16 && updated.hint == "new"),
            None => no_room(result.status),
        }
    }
    let masked = ListEntriesRequest { output_mask: Some(mask), ..ListEntriesRequest::default() };
    let listed = client.list_entries(masked).await.unwrap().into_inner().entries;
    assert_eq!(listed.iter().filter(|e| e.hint == "new").count(), 16);

    // Requests just below the limit of a message, whose answer has the IDs too: all of it is heard of.
    let small = |n: usize| entry(&node.id, &format!("/{n:0>300}"), &["uid:1"]);
    let entries: Vec<Entry> = (0..9_000).map(small).collect();
    let request = BatchCreateEntryRequest { entries, output_mask: None };
    assert!(request.encoded_len() <= MESSAGE_BYTES_MAX);
    let answer = client.batch_create_entry(request).await.unwrap().into_inner();
    let created = answer.results.iter().filter(|r| r.entry.is_some()).count();
    answer.results.into_iter().filter(|r| r.entry.is_none()).for_each(|r| no_room(r.status));
    assert!((8_000..9_000).contains(&created), "{created}");
    let masked = ListEntriesRequest { output_mask: Some(EntryMask::default()), ..ListEntriesRequest::default() };
    assert_eq!(client.list_entries(masked).await.unwrap().into_inner().entries.len(), COUNT + created);
}
