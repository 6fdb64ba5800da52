//! The stream that agents follow: what concerns them, at once, and nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use countersign_wire::agent::{BanAgentRequest, DeleteAgentRequest};
use countersign_wire::bundle_api::batch_delete_federated_bundle_request::Mode;
use countersign_wire::bundle_api::{BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest};
use countersign_wire::entry_api::{BatchCreateEntryRequest, BatchDeleteEntryRequest, GetAuthorizedEntriesRequest};
use countersign_wire::node::follow_request::Step;
use countersign_wire::node::node_client::NodeClient;
use countersign_wire::node::{Ack, Cursor, FollowRequest, FollowResponse, Hello};
use countersign_wire::types::permission_denied_details::Reason;
use countersign_wire::types::{Bundle, Entry, EntryMask};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::world::{self, Domain, Foreign, HOUR, NodeIdentity, entry, id_to_wire, spiffe_id};

/// An agent's side of the stream, and what it holds by following it.
pub struct Follower {
    requests: mpsc::Sender<FollowRequest>,
    answers: Streaming<FollowResponse>,
    pub entries: BTreeMap<String, Entry>,
    pub bundles: BTreeMap<String, Bundle>,
    pub cursor: Option<Cursor>,
    /// What the last update said: whether it began anew, and how many entries and removals it had, in how many messages.
    pub last: Last,
    /// Bytes of all messages so far.
    bytes: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Last {
    pub reset: bool,
    pub entries: usize,
    pub removed: usize,
    pub messages: usize,
}

impl Follower {
    /// Says hello from where it is; nothing is read yet.
    pub async fn open(domain: &Domain, node: &NodeIdentity, cursor: Option<Cursor>) -> Self {
        let mut client = NodeClient::new(domain.connect(Some(node)).await.unwrap());
        let (requests, receiver) = mpsc::channel(4);
        let hello = Hello { cursor: cursor.clone(), agent_version: "9.9".to_owned() };
        requests.send(FollowRequest { step: Some(Step::Hello(hello)) }).await.unwrap();
        let answers = client.follow(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { requests, answers, entries: BTreeMap::new(), bundles: BTreeMap::new(), cursor, last: Last::default(), bytes: 0 }
    }

    pub async fn start(domain: &Domain, node: &NodeIdentity) -> Self {
        let mut follower = Self::open(domain, node, None).await;
        follower.update().await.unwrap();
        assert!(follower.last.reset);
        follower
    }

    /// Leaves and comes back with what it holds.
    pub async fn resume(self, domain: &Domain, node: &NodeIdentity) -> Self {
        let Self { entries, bundles, cursor, .. } = self;
        Self { entries, bundles, ..Self::open(domain, node, cursor).await }
    }

    /// Applies messages until the state is complete again.
    pub async fn update(&mut self) -> Result<(), Status> {
        let mut last = Last::default();
        let mut unmentioned = None;
        loop {
            let message = world::soon("an update", self.answers.message()).await?.expect("the stream ended");
            last.messages += 1;
            self.bytes += message.encoded_len();
            if message.reset {
                last.reset = true;
                unmentioned = Some((std::mem::take(&mut self.entries), std::mem::take(&mut self.bundles)));
            }
            last.entries += message.entries.len();
            last.removed += message.removed_entries.len();
            self.entries.extend(message.entries.into_iter().map(|e| (e.id.clone(), e)));
            self.bundles.extend(message.bundles.into_iter().map(|b| (b.trust_domain.clone(), b)));
            message.removed_entries.iter().for_each(|id| drop(self.entries.remove(id)));
            message.removed_bundles.iter().for_each(|name| drop(self.bundles.remove(name)));
            assert_eq!(message.cursor.is_some(), message.caught_up);
            if message.caught_up {
                self.cursor = message.cursor;
                self.last = last;
                drop(unmentioned);
                return Ok(());
            }
        }
    }

    /// Updates until this holds.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + world::DEADLINE;
        while !holds(self) {
            assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
            self.update().await.unwrap();
        }
    }

    /// How the stream ends.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.update().await {
                return status;
            }
        }
    }

    pub fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.entries.values().map(|e| e.spiffe_id.clone().unwrap().path).collect();
        paths.sort();
        paths
    }

    fn foreign(&self) -> Vec<&str> {
        self.bundles.keys().map(String::as_str).filter(|name| *name != "example.org").collect()
    }

    pub fn has(&self, path: &str) -> bool {
        self.paths().iter().any(|p| p == path)
    }

    pub fn has_bundle(&self, name: &str) -> bool {
        self.bundles.contains_key(name)
    }

    /// It holds exactly what the server says it may have.
    async fn agrees(&self, domain: &Domain, node: &NodeIdentity) {
        let mut client = countersign_wire::entry_api::entry_client::EntryClient::new(domain.connect(Some(node)).await.unwrap());
        let answer = client.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.unwrap().into_inner();
        let expected: BTreeMap<String, Entry> = answer.entries.into_iter().map(|e| (e.id.clone(), e)).collect();
        assert_eq!(self.entries, expected);
        let mut names: Vec<&str> = expected.values().flat_map(|e| e.federates_with.iter().map(String::as_str)).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(self.foreign(), names);
    }
}

async fn stage() -> (Domain, NodeIdentity) {
    let domain = Domain::start().await.unwrap();
    let node = world::node(&domain).await;
    (domain, node)
}

async fn set_bundle(domain: &Domain, name: &str, sequence_number: u64) -> Bundle {
    let bundle = Foreign::new(name).wire(sequence_number);
    let request = BatchSetFederatedBundleRequest { bundle: vec![bundle.clone()], output_mask: None };
    world::bundles(domain).await.batch_set_federated_bundle(request).await.unwrap();
    bundle
}

async fn delete_bundle(domain: &Domain, name: &str, mode: Mode) {
    let request = BatchDeleteFederatedBundleRequest { trust_domains: vec![name.to_owned()], mode: mode.into() };
    world::bundles(domain).await.batch_delete_federated_bundle(request).await.unwrap();
}

fn federating(node: &NodeIdentity, path: &str, names: &[&str]) -> Entry {
    Entry { federates_with: names.iter().map(|n| (*n).to_owned()).collect(), ..entry(&node.id, path, &["uid:1"]) }
}

async fn create(domain: &Domain, entries: Vec<Entry>) -> Vec<String> {
    let request = BatchCreateEntryRequest { entries, output_mask: Some(EntryMask::default()) };
    let results = world::entries(domain).await.batch_create_entry(request).await.unwrap().into_inner().results;
    results.into_iter().map(|r| r.entry.unwrap().id).collect()
}

#[tokio::test]
async fn a_new_follower_gets_everything_and_then_each_change() {
    let (domain, node) = stage().await;
    let other = world::node(&domain).await;
    let one = domain.entry_from(entry(&node.id, "/one", &["uid:1"])).await.unwrap();
    let mut follower = Follower::start(&domain, &node).await;
    assert!(follower.entries.values().eq([&one]));
    assert_eq!(follower.bundles["example.org"], countersign_wire::bundle::to_wire(&domain.bundle().await.unwrap()));

    domain.entry_from(entry(&other.id, "/foreign", &["uid:1"])).await.unwrap();
    let two = domain.entry_from(entry(&node.id, "/two", &["uid:2"])).await.unwrap();
    follower.until("the new entry", |f| f.has("/two")).await;
    assert_eq!(follower.last, Last { reset: false, entries: 1, removed: 0, messages: 1 });
    assert_eq!(follower.entries[&two.id], two);
    let changed = world::update(&domain, Entry { hint: "h".to_owned(), ..one.clone() }, None).await.unwrap();
    follower.until("the change", |f| f.entries[&one.id] == changed).await;
    world::delete(&domain, &two.id).await.unwrap();
    follower.until("the removal", |f| !f.has("/two")).await;
    assert_eq!(follower.last.removed, 1);
    // Moved away is as good as deleted, and what is not ours was never told.
    let away = Entry { parent_id: Some(id_to_wire(&other.id)), ..changed };
    world::update(&domain, away, None).await.unwrap();
    follower.until("the entry has moved away", |f| f.entries.is_empty()).await;
    follower.agrees(&domain, &node).await;
}

#[tokio::test]
async fn nested_parents_come_and_go_as_a_tree() {
    let (domain, node) = stage().await;
    let mut follower = Follower::start(&domain, &node).await;
    // The leaf first: nobody's, until what is between it and the agent is there.
    domain.entry_from(entry(&spiffe_id("/middle"), "/leaf", &["uid:1"])).await.unwrap();
    let middle = domain.entry_from(entry(&spiffe_id("/top"), "/middle", &["uid:1"])).await.unwrap();
    let top = domain.entry_from(entry(&node.id, "/top", &["uid:1"])).await.unwrap();
    follower.until("the whole tree", |f| f.paths() == ["/leaf", "/middle", "/top"]).await;
    world::delete(&domain, &middle.id).await.unwrap();
    follower.until("the tree is cut", |f| f.paths() == ["/top"]).await;
    domain.entry_from(middle).await.unwrap();
    follower.until("the tree has grown together", |f| f.paths().len() == 3).await;
    world::delete(&domain, &top.id).await.unwrap();
    follower.until("nothing is left", |f| f.entries.is_empty()).await;
    follower.agrees(&domain, &node).await;
}

#[tokio::test]
async fn a_node_alias_names_every_node_that_has_its_selectors() {
    let (mut domain, node) = stage().await;
    // Nodes that join by token have no selectors; another attestor would have found some.
    domain.stop_server().await;
    world::select(&domain, &node.id, &["rack:1", "zone:a"]).await;
    domain.start_server().await.unwrap();
    let mut follower = Follower::start(&domain, &node).await;
    let server = spiffe_id("/spire/server");
    domain.entry_from(entry(&spiffe_id("/racks/1"), "/w", &["uid:1"])).await.unwrap();
    domain.entry_from(entry(&server, "/racks/2", &["rack:2", "zone:a"])).await.unwrap();
    let alias = domain.entry_from(entry(&server, "/racks/1", &["rack:1", "zone:a"])).await.unwrap();
    follower.until("what hangs below the alias", |f| f.paths() == ["/w"]).await;
    follower.agrees(&domain, &node).await;
    let narrower = Entry { selectors: entry(&server, "/any", &["rack:1", "zone:b"]).selectors, ..alias.clone() };
    world::update(&domain, narrower, None).await.unwrap();
    follower.until("the alias names it no longer", |f| f.entries.is_empty()).await;
    world::update(&domain, alias.clone(), None).await.unwrap();
    follower.until("it does again", |f| f.has("/w")).await;
    world::delete(&domain, &alias.id).await.unwrap();
    follower.until("the alias is gone", |f| f.entries.is_empty()).await;
    drop(follower);
}

#[tokio::test]
async fn a_federated_bundle_comes_with_the_first_entry_that_needs_it_and_goes_with_the_last() {
    let (domain, node) = stage().await;
    let mut follower = Follower::start(&domain, &node).await;
    set_bundle(&domain, "one.test", 1).await;
    let two = set_bundle(&domain, "two.test", 1).await;
    let first = domain.entry_from(federating(&node, "/first", &["one.test", "two.test"])).await.unwrap();
    follower.until("the entry", |f| f.has("/first")).await;
    assert_eq!(follower.foreign(), ["one.test", "two.test"]);
    assert_eq!(follower.bundles["two.test"], two);
    let newer = set_bundle(&domain, "two.test", 2).await;
    follower.until("the newer bundle", |f| f.bundles["two.test"] == newer).await;
    let second = domain.entry_from(federating(&node, "/second", &["one.test"])).await.unwrap();
    world::delete(&domain, &first.id).await.unwrap();
    follower.until("only what the second needs", |f| f.foreign() == ["one.test"] && f.has("/second")).await;
    // An update that needs it no longer is the same as a deletion.
    let alone = Entry { federates_with: Vec::new(), ..second.clone() };
    let alone = world::update(&domain, alone, None).await.unwrap();
    follower.until("the entry federates no longer", |f| f.entries[&second.id] == alone).await;
    assert_eq!(follower.foreign(), [""; 0]);
    world::update(&domain, second, None).await.unwrap();
    follower.until("it does again", |f| f.has_bundle("one.test")).await;
    delete_bundle(&domain, "one.test", Mode::Dissociate).await;
    follower.until("the bundle is gone", |f| f.foreign().is_empty() && f.has("/second")).await;
    follower.agrees(&domain, &node).await;
}

#[tokio::test]
async fn bundles_an_agent_does_not_use_are_not_mentioned_to_it() {
    let (domain, node) = stage().await;
    let mut follower = Follower::start(&domain, &node).await;
    for sequence in 1..5 {
        set_bundle(&domain, "unused.test", sequence).await;
    }
    domain.entry_from(entry(&node.id, "/mark", &["uid:1"])).await.unwrap();
    loop {
        let message = world::soon("an update", follower.answers.message()).await.unwrap().unwrap();
        assert!(message.bundles.is_empty() && message.removed_bundles.is_empty(), "{message:?}");
        if !message.entries.is_empty() {
            break;
        }
    }
}

#[tokio::test]
async fn whoever_comes_back_gets_the_difference_alone() {
    let (domain, node) = stage().await;
    let kept = domain.entry_from(entry(&node.id, "/kept", &["uid:1"])).await.unwrap();
    let gone = domain.entry_from(entry(&node.id, "/gone", &["uid:1"])).await.unwrap();
    let mut follower = Follower::start(&domain, &node).await;
    // Nothing happened: it is told so, and nothing else.
    follower = follower.resume(&domain, &node).await;
    follower.update().await.unwrap();
    assert_eq!(follower.last, Last { messages: 1, ..Last::default() });

    follower = follower.resume(&domain, &node).await;
    follower.update().await.unwrap();
    let (requests, cursor) = (follower.requests.clone(), follower.cursor.clone());
    requests.send(FollowRequest { step: Some(Step::Ack(Ack { applied: cursor.unwrap().revision, ..Ack::default() })) }).await.unwrap();
    let Follower { entries, bundles, cursor, .. } = follower;
    world::delete(&domain, &gone.id).await.unwrap();
    domain.entry_from(entry(&node.id, "/new", &["uid:1"])).await.unwrap();
    world::update(&domain, Entry { hint: "h".to_owned(), ..kept }, None).await.unwrap();
    let mut follower = Follower { entries, bundles, ..Follower::open(&domain, &node, cursor).await };
    follower.update().await.unwrap();
    assert_eq!(follower.last, Last { reset: false, entries: 2, removed: 1, messages: 1 });
    follower.agrees(&domain, &node).await;
}

#[tokio::test]
async fn whoever_comes_back_has_the_bundles_its_entries_need_and_no_others() {
    let (domain, node) = stage().await;
    for name in ["gone.test", "dropped.test", "new.test", "kept.test"] {
        set_bundle(&domain, name, 1).await;
    }
    let gone = domain.entry_from(federating(&node, "/gone", &["gone.test", "kept.test"])).await.unwrap();
    let dropped = domain.entry_from(federating(&node, "/dropped", &["dropped.test"])).await.unwrap();
    domain.entry_from(federating(&node, "/kept", &["kept.test"])).await.unwrap();
    let Follower { entries, bundles, cursor, .. } = Follower::start(&domain, &node).await;
    assert_eq!(bundles.len(), 4);
    // All of this happens while it is away; no foreign bundle changes.
    world::delete(&domain, &gone.id).await.unwrap();
    world::update(&domain, Entry { federates_with: Vec::new(), ..dropped }, None).await.unwrap();
    domain.entry_from(federating(&node, "/new", &["new.test"])).await.unwrap();
    let mut follower = Follower { entries, bundles, ..Follower::open(&domain, &node, cursor).await };
    follower.update().await.unwrap();
    assert!(!follower.last.reset);
    follower.agrees(&domain, &node).await;
    let newer = set_bundle(&domain, "kept.test", 2).await;
    follower.until("a bundle that stayed in use", |f| f.bundles["kept.test"] == newer).await;
}

#[tokio::test]
async fn a_place_that_is_not_in_the_log_means_beginning_anew() {
    let (domain, node) = stage().await;
    domain.entry_from(entry(&node.id, "/one", &["uid:1"])).await.unwrap();
    let follower = Follower::start(&domain, &node).await;
    let good = follower.cursor.clone().unwrap();
    drop(follower);
    for wrong in [
        Cursor { epoch: vec![7; 16], ..good.clone() },
        Cursor { digest: vec![7; 32], ..good.clone() },
        Cursor { revision: good.revision - 1, ..good.clone() },
        Cursor { revision: good.revision + 1, ..good.clone() },
        Cursor { revision: u64::MAX, ..good.clone() },
        Cursor { epoch: vec![1], ..good.clone() },
        Cursor { digest: Vec::new(), ..good.clone() },
        Cursor::default(),
    ] {
        let mut follower = Follower::open(&domain, &node, Some(wrong.clone())).await;
        follower.update().await.unwrap();
        assert!(follower.last.reset && follower.has("/one"), "{wrong:?}");
    }
    let mut follower = Follower::open(&domain, &node, Some(good)).await;
    follower.update().await.unwrap();
    assert_eq!(follower.last, Last { messages: 1, ..Last::default() });
}

#[tokio::test]
async fn a_restored_backup_makes_every_follower_begin_anew() {
    let (mut domain, node) = stage().await;
    domain.entry_from(entry(&node.id, "/before", &["uid:1"])).await.unwrap();
    let store = domain.directory().join("server/store.sqlite3");
    let copy = domain.directory().join("copy.sqlite3");
    countersign_store::backup(&store, &copy).unwrap();
    domain.entry_from(entry(&node.id, "/after", &["uid:1"])).await.unwrap();
    let follower = Follower::start(&domain, &node).await;
    assert_eq!(follower.paths(), ["/after", "/before"]);
    let Follower { entries, bundles, cursor, .. } = follower;
    domain.stop_server().await;
    countersign_store::restore(&copy, &store).unwrap();
    domain.start_server().await.unwrap();
    // As many revisions again, so that the number alone would fit.
    domain.entry_from(entry(&node.id, "/other", &["uid:1"])).await.unwrap();
    let mut follower = Follower { entries, bundles, ..Follower::open(&domain, &node, cursor).await };
    follower.update().await.unwrap();
    assert!(follower.last.reset);
    assert_eq!(follower.paths(), ["/before", "/other"]);
    drop(follower);
}

#[tokio::test]
async fn a_stream_ends_with_the_reason_when_the_node_may_follow_no_longer() {
    let (domain, clock) = world::virtual_domain("").await;
    let (banned, evicted) = (world::node(&domain).await, world::node(&domain).await);
    let (superseded, expired) = (world::node(&domain).await, world::node(&domain).await);
    let mut streams = Vec::new();
    for node in [&banned, &evicted, &superseded, &expired] {
        streams.push(Follower::start(&domain, node).await);
    }
    let [mut of_banned, mut of_evicted, mut of_superseded, mut of_expired] = streams.try_into().ok().unwrap();
    let ended = |status: Status, reason: Reason| {
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "the agent may follow no longer"));
        assert_eq!(world::reason(&status), Some(reason));
    };
    let mut agents = world::agents(&domain).await;
    agents.ban_agent(BanAgentRequest { id: Some(id_to_wire(&banned.id)) }).await.unwrap();
    ended(of_banned.end().await, Reason::AgentBanned);
    agents.delete_agent(DeleteAgentRequest { id: Some(id_to_wire(&evicted.id)) }).await.unwrap();
    ended(of_evicted.end().await, Reason::AgentNotAttested);
    let renewed = world::renewed(&domain, &superseded).await;
    let of_renewed = Follower::start(&domain, &renewed).await;
    ended(of_superseded.end().await, Reason::AgentNotActive);
    clock.advance(HOUR + Duration::from_secs(2));
    ended(of_expired.end().await, Reason::AgentExpired);
    drop(of_renewed);
}

#[tokio::test]
async fn a_server_that_stops_ends_its_streams_instead_of_waiting_for_them() {
    let (mut domain, node) = stage().await;
    let mut follower = Follower::start(&domain, &node).await;
    // Calls under way get ten seconds; streams would use them up every time.
    tokio::time::timeout(Duration::from_secs(5), domain.stop_server()).await.expect("stopping took as long as the streams");
    let status = follower.end().await;
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "the server is stopping"));
}

#[tokio::test]
async fn a_stream_begins_with_hello_and_the_version_is_noted() {
    let (domain, node) = stage().await;
    let mut client = NodeClient::new(domain.connect(Some(&node)).await.unwrap());
    for step in [None, Some(Step::Ack(Ack::default()))] {
        let mut answers = client.follow(tokio_stream::iter([FollowRequest { step }])).await.unwrap().into_inner();
        let status = world::soon("a refusal", answers.message()).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "the first message must be a hello"));
    }
    let _follower = Follower::start(&domain, &node).await;
    let request = countersign_wire::agent::GetAgentRequest { id: Some(id_to_wire(&node.id)), output_mask: None };
    assert_eq!(world::agents(&domain).await.get_agent(request).await.unwrap().into_inner().agent_version, "9.9");
}

#[tokio::test]
async fn two_thousand_entries_of_one_agent_come_in_pieces() {
    let (domain, node) = stage().await;
    let entries = |from: usize| (from..from + 2000).map(|n| entry(&node.id, &format!("/w/{n}"), &["uid:1"])).collect::<Vec<_>>();
    let ids = create(&domain, entries(0)).await;
    let mut follower = Follower::start(&domain, &node).await;
    assert!(follower.entries.len() == 2000 && follower.last.messages >= 4, "{:?}", follower.last);
    create(&domain, entries(2000)).await;
    follower.until("two thousand more", |f| f.entries.len() == 4000).await;
    assert!(!follower.last.reset);
    world::entries(&domain).await.batch_delete_entry(BatchDeleteEntryRequest { ids }).await.unwrap();
    follower.until("the first are gone", |f| f.entries.len() == 2000).await;
    follower.agrees(&domain, &node).await;
}

#[tokio::test]
async fn entries_as_large_as_allowed_never_make_a_message_too_large() {
    let (domain, node) = stage().await;
    let large = |n: usize| {
        let value = |half: &str| format!("{half}:{n}:{}", "v".repeat(8000));
        let selector = |value| countersign_wire::types::Selector { r#type: "unix".to_owned(), value };
        Entry { selectors: vec![selector(value("a")), selector(value("b"))], ..entry(&node.id, &format!("/l/{n}"), &[]) }
    };
    let mut follower = Follower::start(&domain, &node).await;
    let Follower { cursor, .. } = Follower::start(&domain, &node).await;
    for batch in 0..4 {
        create(&domain, (batch * 240..(batch + 1) * 240).map(large).collect()).await;
    }
    // Pushed, as a difference to an earlier time, and as a whole: each more than one message can hold.
    follower.until("everything", |f| f.entries.len() == 960).await;
    let mut back = Follower::open(&domain, &node, cursor).await;
    back.update().await.unwrap();
    assert!(!back.last.reset && back.last.entries == 960 && back.last.messages > 1, "{:?}", back.last);
    let anew = Follower::start(&domain, &node).await;
    assert_eq!((anew.entries.len(), &anew.entries), (960, &follower.entries));
}

#[tokio::test]
async fn a_slow_reader_is_told_the_newest_state_and_not_every_step() {
    /// What may be on the way: the window the reader grants, and the few messages that wait behind it.
    const QUEUED_MAX: usize = (256 << 10) + (64 << 10);
    let (domain, node) = stage().await;
    let few = create(&domain, (0..3).map(|n| entry(&node.id, &format!("/few/{n}"), &["uid:1"])).collect()).await;
    let mut follower = Follower::start(&domain, &node).await;
    let mut quick = Follower::start(&domain, &node).await;
    // It does not read while each of its entries changes again and again, by much more than fits on the way.
    let hint = "h".repeat(1000);
    for round in 0..400 {
        for id in &few {
            let mask = EntryMask { hint: true, ..EntryMask::default() };
            let change = Entry { id: id.clone(), hint: format!("{round}{hint}"), ..Entry::default() };
            world::update(&domain, change, Some(mask)).await.unwrap();
        }
        // Nobody else waits for it.
        quick.until("every step", |f| few.iter().all(|id| f.entries[id].revision_number == round + 1)).await;
    }
    let (mut received, before) = (0, follower.bytes);
    while !few.iter().all(|id| follower.entries[id].revision_number == 400) {
        follower.update().await.unwrap();
        received += follower.last.entries;
    }
    assert!(received < 1200, "{received} of 1200 steps were sent");
    let queued = follower.bytes - before;
    assert!(queued < QUEUED_MAX, "{queued} bytes were waiting");
    follower.agrees(&domain, &node).await;
}
