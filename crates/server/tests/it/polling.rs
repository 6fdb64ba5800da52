//! SPIRE's agents, which poll: what they hold after each round is what they are authorized for, whatever was kept of the
//! answers before. What the agent here asks and in which order is what SPIRE's agent 1.16 was seen to ask of this server.

use std::collections::BTreeMap;
use std::time::Duration;

use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::bundle_api::{AppendBundleRequest, GetBundleRequest};
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::{BatchCreateEntryRequest, GetAuthorizedEntriesRequest, SyncAuthorizedEntriesRequest};
use countersign_wire::types::{BundleMask, Entry, EntryMask};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::world::{self, Domain, Foreign, NodeIdentity, entry, spiffe_id};

const MASK: EntryMask = EntryMask {
    spiffe_id: true,
    parent_id: false,
    selectors: true,
    x509_svid_ttl: false,
    federates_with: true,
    admin: true,
    downstream: true,
    expires_at: false,
    dns_names: false,
    revision_number: true,
    store_svid: true,
    jwt_svid_ttl: false,
    hint: true,
    created_at: true,
    additional_attributes: true,
};

/// SPIRE's agent: what it holds, and what its last round cost.
struct Agent {
    channel: Channel,
    held: BTreeMap<String, Entry>,
    /// Entries that were sent in full, and messages that were received, in the last round.
    sent: usize,
    messages: usize,
}

impl Agent {
    async fn new(domain: &Domain, node: &NodeIdentity) -> Self {
        Self { channel: domain.connect(Some(node)).await.unwrap(), held: BTreeMap::new(), sent: 0, messages: 0 }
    }

    /// One round: all entries, or the revisions and then those that are new or changed, a page at a time.
    async fn sync(&mut self) -> Vec<(String, i64)> {
        (self.sent, self.messages) = (0, 0);
        let (asked, asks) = mpsc::channel(4);
        asked.send(SyncAuthorizedEntriesRequest { output_mask: Some(MASK), ids: Vec::new() }).await.unwrap();
        let mut answers =
            EntryClient::new(self.channel.clone()).sync_authorized_entries(ReceiverStream::new(asks)).await.unwrap().into_inner();
        let mut next = async || world::soon("an answer", answers.message()).await.unwrap();
        let first = next().await.unwrap();
        self.messages += 1;
        let before = std::mem::take(&mut self.held);
        if first.entry_revisions.is_empty() {
            assert!(!first.more);
            self.sent = first.entries.len();
            self.held = first.entries.into_iter().map(|e| (e.id.clone(), e)).collect();
            drop(asked);
            assert!(next().await.is_none(), "the server ends a short exchange");
        } else {
            let page = first.entry_revisions.len();
            let (mut revisions, mut more) = (first.entry_revisions, first.more);
            while more {
                let following = next().await.unwrap();
                self.messages += 1;
                assert!(following.entries.is_empty());
                more = following.more;
                revisions.extend(following.entry_revisions);
            }
            let is_known = |id: &str, revision, created| {
                before.get(id).is_some_and(|e: &Entry| e.revision_number == revision && e.created_at == created)
            };
            let (known, stale): (Vec<_>, Vec<_>) = revisions.into_iter().partition(|r| is_known(&r.id, r.revision_number, r.created_at));
            self.held = known.into_iter().map(|r| (r.id.clone(), before[&r.id].clone())).collect();
            for wanted in stale.chunks(page) {
                let ids = wanted.iter().map(|r| r.id.clone()).collect();
                asked.send(SyncAuthorizedEntriesRequest { output_mask: None, ids }).await.unwrap();
                loop {
                    let answer = next().await.unwrap();
                    self.messages += 1;
                    self.sent += answer.entries.len();
                    self.held.extend(answer.entries.into_iter().map(|e| (e.id.clone(), e)));
                    if !answer.more {
                        break;
                    }
                }
            }
        }
        let path = |e: &Entry| e.spiffe_id.clone().unwrap().path;
        let mut held: Vec<(String, i64)> = self.held.values().map(|e| (path(e), e.revision_number)).collect();
        held.sort();
        // An agent that does not use the exchange is told the same.
        let whole = GetAuthorizedEntriesRequest { output_mask: Some(MASK) };
        let whole = EntryClient::new(self.channel.clone()).get_authorized_entries(whole).await.unwrap().into_inner().entries;
        assert!(
            whole.into_iter().map(|e| (e.id.clone(), e)).collect::<BTreeMap<_, _>>() == self.held,
            "GetAuthorizedEntries says otherwise"
        );
        held
    }
}

fn paths(names: impl IntoIterator<Item = (String, i64)>) -> Vec<(String, i64)> {
    let mut names: Vec<(String, i64)> = names.into_iter().collect();
    names.sort();
    names
}

async fn create(domain: &Domain, entries: Vec<Entry>) -> Vec<Entry> {
    let request = BatchCreateEntryRequest { entries, output_mask: None };
    let results = world::entries(domain).await.batch_create_entry(request).await.unwrap().into_inner().results;
    results.into_iter().map(|r| r.entry.unwrap_or_else(|| panic!("{:?}", r.status))).collect()
}

#[tokio::test]
async fn an_agent_holds_what_it_is_authorized_for_with_none_twenty_and_seven_hundred_entries() {
    let (domain, clock) = world::virtual_domain("").await;
    let node = world::node(&domain).await;
    let mut agent = Agent::new(&domain, &node).await;
    assert!(agent.sync().await.is_empty());
    assert_eq!((agent.sent, agent.messages), (0, 1), "nothing is one empty answer");

    let of = |range: std::ops::Range<usize>| range.map(|n| entry(&node.id, &format!("/w/{n}"), &["uid:1"])).collect::<Vec<_>>();
    let twenty = create(&domain, of(0..20)).await;
    let expected = |range: std::ops::Range<usize>| paths(range.map(|n| (format!("/w/{n}"), 0)));
    for _ in 0..3 {
        assert_eq!(agent.sync().await, expected(0..20));
        assert_eq!((agent.sent, agent.messages), (20, 1), "below the limit it is the whole list each time");
    }

    create(&domain, of(20..700)).await;
    assert_eq!(agent.sync().await, expected(0..700));
    assert_eq!((agent.sent, agent.messages), (680, 2 + 2), "two pages of revisions, two of entries");
    assert_eq!(agent.sync().await, expected(0..700));
    assert_eq!((agent.sent, agent.messages), (0, 2), "and then the revisions only");

    // A change, a deletion, and one that takes the place of another: of the same revision, but made later.
    world::update(&domain, Entry { hint: "changed".to_owned(), ..twenty[0].clone() }, None).await.unwrap();
    world::delete(&domain, &twenty[1].id).await.unwrap();
    world::delete(&domain, &twenty[2].id).await.unwrap();
    clock.advance(Duration::from_secs(1));
    create(&domain, vec![Entry { id: twenty[2].id.clone(), ..entry(&node.id, "/again", &["uid:2"]) }]).await;
    let mut left = expected(3..700);
    left.extend([("/w/0".to_owned(), 1), ("/again".to_owned(), 0)]);
    assert_eq!(agent.sync().await, paths(left));
    assert_eq!(agent.sent, 2);

    // Below the limit again.
    for kept in agent.held.values().skip(10).map(|e| e.id.clone()).collect::<Vec<_>>() {
        world::delete(&domain, &kept).await.unwrap();
    }
    assert_eq!(agent.sync().await.len(), 10);
    assert_eq!((agent.sent, agent.messages), (10, 1));
}

#[tokio::test]
async fn a_kept_answer_ends_with_whatever_concerns_its_agent() {
    let (domain, clock) = world::virtual_domain("").await;
    let (node, other) = (world::node(&domain).await, world::node(&domain).await);
    let (mut agent, mut stranger) = (Agent::new(&domain, &node).await, Agent::new(&domain, &other).await);
    let own = create(&domain, vec![entry(&node.id, "/own", &["uid:1"])]).await.remove(0);
    let one = |path: &str, revision| (path.to_owned(), revision);
    assert_eq!((agent.sync().await, stranger.sync().await), (vec![one("/own", 0)], vec![]));

    // What is another's changes nothing here, however much of it there is.
    for n in 0..100 {
        create(&domain, vec![entry(&other.id, &format!("/other/{n}"), &["uid:1"])]).await;
        if n % 40 == 0 {
            assert_eq!(agent.sync().await, [one("/own", 0)]);
        }
    }
    assert_eq!((agent.sync().await, stranger.sync().await.len()), (vec![one("/own", 0)], 100));
    let own = world::update(&domain, Entry { hint: "h".to_owned(), ..own }, None).await.unwrap();
    assert_eq!(agent.sync().await, [one("/own", 1)]);
    assert_eq!(agent.held[&own.id].hint, "h");

    // Below what it is authorized for, and moved away from another agent.
    create(&domain, vec![entry(&spiffe_id("/own"), "/below", &["uid:2"])]).await;
    assert_eq!(agent.sync().await, [one("/below", 0), one("/own", 1)]);
    let moved = stranger.held.values().next().unwrap().clone();
    let moved_path = moved.spiffe_id.clone().unwrap().path;
    let parent_id = Some(world::id_to_wire(&node.id));
    world::update(&domain, Entry { parent_id, ..moved }, Some(EntryMask { parent_id: true, ..EntryMask::default() })).await.unwrap();
    assert_eq!(agent.sync().await, paths([one("/below", 0), (moved_path, 1), one("/own", 1)]));
    assert_eq!(stranger.sync().await.len(), 99);

    // One that is over goes without a change in the log.
    world::update(&domain, Entry { expires_at: domain.clock.now().secs() + 5, ..own.clone() }, None).await.unwrap();
    assert!(agent.sync().await.contains(&one("/own", 2)));
    clock.advance(Duration::from_secs(5));
    assert!(!agent.sync().await.iter().any(|(path, _)| path == "/own"));
    // Another mask is another answer.
    let bare = GetAuthorizedEntriesRequest { output_mask: Some(EntryMask::default()) };
    let bare = EntryClient::new(agent.channel.clone()).get_authorized_entries(bare).await.unwrap().into_inner().entries;
    assert!(!bare.is_empty() && bare.iter().all(|e| *e == Entry { id: e.id.clone(), ..Entry::default() }));
    let fuller = GetAuthorizedEntriesRequest { output_mask: None };
    let fuller = EntryClient::new(agent.channel.clone()).get_authorized_entries(fuller).await.unwrap().into_inner().entries;
    assert!(fuller.iter().all(|e| e.parent_id.is_some()));
}

#[tokio::test]
async fn an_alias_that_comes_or_goes_changes_what_is_kept() {
    let mut domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    domain.stop_server().await;
    world::select(&domain, &node.id, &["rack:1", "zone:a"]).await;
    domain.start_server().await.unwrap();
    let mut agent = Agent::new(&domain, &node).await;
    create(&domain, vec![entry(&spiffe_id("/rack"), "/of-the-rack", &["uid:1"])]).await;
    assert!(agent.sync().await.is_empty());
    let alias = create(&domain, vec![entry(&world::trust_domain().server_id(), "/rack", &["rack:1"])]).await.remove(0);
    assert_eq!(agent.sync().await, [("/of-the-rack".to_owned(), 0)]);
    world::delete(&domain, &alias.id).await.unwrap();
    assert!(agent.sync().await.is_empty());
}

#[tokio::test]
async fn the_kept_bundle_is_the_newest_with_what_each_mask_names() {
    let domain = Domain::start().await.unwrap();
    let mut client = BundleClient::new(domain.connect(None).await.unwrap());
    let all = GetBundleRequest { output_mask: None };
    let numbers = GetBundleRequest { output_mask: Some(BundleMask { sequence_number: true, ..BundleMask::default() }) };
    let before = client.get_bundle(all).await.unwrap().into_inner();
    assert_eq!(client.get_bundle(all).await.unwrap().into_inner(), before);
    let bare = client.get_bundle(numbers).await.unwrap().into_inner();
    assert_eq!((bare.sequence_number, bare.x509_authorities.len()), (before.sequence_number, 0));
    let appended = AppendBundleRequest { x509_authorities: Foreign::new("example.org").wire(1).x509_authorities, ..Default::default() };
    let after = world::bundles(&domain).await.append_bundle(appended).await.unwrap().into_inner();
    assert_ne!(after, before);
    assert_eq!(client.get_bundle(all).await.unwrap().into_inner(), after);
    assert_eq!(client.get_bundle(numbers).await.unwrap().into_inner().sequence_number, after.sequence_number);
}
