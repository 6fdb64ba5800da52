//! What the tests' worlds are made of: entries, nodes, stores, and the log as an outsider reads it.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest;
use countersign_identity::entry::AdditionalAttributes;
use countersign_identity::federation::{EndpointProfile, EndpointUrl};
use countersign_identity::{Entry, FederationRelationship, Selector, SpiffeId, Timestamp, TrustDomain, selector};
use countersign_store::{Actor, Change, Node, Options, Snapshot, Store, StoreError};
use countersign_testkit::powerloss::PowerLoss;
use rusqlite::{Connection, OpenFlags};

/// The time of every test: 2027-01-15 08:00:00 UTC.
pub const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

pub fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

pub fn id(path: &str) -> SpiffeId {
    td("example.org").with_path(path).unwrap()
}

pub fn agent(name: &str) -> SpiffeId {
    id(&format!("/spire/agent/test/{name}"))
}

pub fn server() -> SpiffeId {
    td("example.org").server_id()
}

pub fn selectors(texts: &[&str]) -> Vec<Selector> {
    selector::sorted(texts.iter().map(|t| Selector::parse(t).unwrap()).collect())
}

/// An entry with nothing but what it must have.
pub fn entry(entry_id: &str, parent_id: &SpiffeId, spiffe_id: &SpiffeId) -> Entry {
    Entry {
        id: entry_id.to_owned(),
        spiffe_id: spiffe_id.clone(),
        parent_id: parent_id.clone(),
        selectors: selectors(&["unix:uid:1000"]),
        x509_svid_ttl: None,
        jwt_svid_ttl: None,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Vec::new(),
        revision_number: 0,
        store_svid: false,
        hint: String::new(),
        created_at: NOW,
        additional_attributes: AdditionalAttributes::default(),
    }
}

/// A change that puts a plain entry of this ID below the agent `a`.
pub fn put(entry_id: &str) -> Change {
    put_hint(entry_id, "")
}

/// The same with a hint, to tell versions apart.
pub fn put_hint(entry_id: &str, hint: &str) -> Change {
    Change::EntryPut(Arc::new(Entry { hint: hint.to_owned(), ..entry(entry_id, &agent("a"), &id("/web")) }))
}

pub fn node(name: &str, facts: &[&str]) -> Node {
    Node {
        id: agent(name),
        attestation_type: "test".into(),
        serial_number: "1".to_owned(),
        expires_at: NOW,
        new_serial_number: String::new(),
        new_expires_at: Timestamp::EPOCH,
        can_reattest: false,
        selectors: selectors(facts),
    }
}

/// A relationship of the profile that shows this SPIFFE ID, or else of the public web.
pub fn relationship(name: &str, endpoint: Option<&str>) -> FederationRelationship {
    FederationRelationship {
        trust_domain: td(name),
        bundle_endpoint_url: EndpointUrl::parse(&format!("https://{name}/bundle")).unwrap(),
        bundle_endpoint_profile: endpoint.map_or(EndpointProfile::HttpsWeb, |endpoint| EndpointProfile::HttpsSpiffe {
            endpoint_spiffe_id: SpiffeId::parse(endpoint).unwrap(),
        }),
    }
}

pub fn put_node(name: &str, facts: &[&str]) -> Change {
    Change::NodePut(Arc::new(node(name, facts)))
}

pub fn options(path: &Path) -> Options {
    Options { path: path.to_owned(), vfs: None, now: Arc::new(|| NOW) }
}

pub fn open(path: &Path) -> Store {
    Store::open(&options(path)).unwrap()
}

/// Options for a store on a disk in memory.
pub fn on(disk: &PowerLoss) -> Options {
    Options { path: "store.db".into(), vfs: Some(disk.name().to_owned()), now: Arc::new(|| NOW) }
}

/// A connection past the store, to the same disk.
pub fn raw_on(disk: &PowerLoss) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags_and_vfs("store.db", flags, disk.name()).unwrap()
}

/// A request of these changes. Ends once they are durable.
pub async fn write(store: &Store, changes: impl IntoIterator<Item = Change>) -> Result<(), StoreError> {
    write_as(store, "tester", changes).await
}

pub async fn write_as(store: &Store, actor: &str, changes: impl IntoIterator<Item = Change>) -> Result<(), StoreError> {
    let changes: Vec<Change> = changes.into_iter().collect();
    store
        .write(Actor::new(actor), move |draft| {
            for change in &changes {
                draft.change(change.clone());
            }
            Ok(())
        })
        .await
}

/// Drops the store and waits until its writer has let go of the file.
pub async fn close(store: Store) {
    let mut watch = store.watch();
    drop(store);
    while watch.changed().await.is_ok() {}
}

/// Everything that survives in a snapshot, in a form that compares.
pub fn contents(snapshot: &Snapshot) -> (u64, [u8; 32], Vec<String>) {
    let lines = (snapshot.entries_after("").map(|e| format!("{e:?}")))
        .chain(snapshot.nodes_after(None).map(|n| format!("{n:?}")))
        .chain(snapshot.bundles().iter().map(|b| format!("{b:?}")))
        .chain(snapshot.authorities().map(|a| format!("{a:?}")))
        .chain(snapshot.federation_relationships_after("").map(|r| format!("{r:?}")))
        .collect();
    (snapshot.revision(), snapshot.cursor().digest, lines)
}

/// A log record as it lies in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub revision: i64,
    pub noun: i64,
    pub item: String,
    pub deleted: bool,
    pub at_millis: i64,
    pub actor: String,
}

pub fn log_rows(database: &Connection) -> Vec<Row> {
    let mut statement = database.prepare("SELECT revision, noun, item, deleted, at_millis, actor FROM log ORDER BY revision").unwrap();
    let rows = statement.query_map([], |r| {
        Ok(Row { revision: r.get(0)?, noun: r.get(1)?, item: r.get(2)?, deleted: r.get(3)?, at_millis: r.get(4)?, actor: r.get(5)? })
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// Checks that revisions have no gaps and that the digest chain leads to the head. Returns the head's revision.
pub fn check_log(database: &Connection) -> u64 {
    let (head, head_digest): (i64, [u8; 32]) =
        database.query_row("SELECT revision, digest FROM head", [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
    let revisions: Vec<i64> = log_rows(database).iter().map(|r| r.revision).collect();
    assert_eq!(revisions, (1..=head).collect::<Vec<_>>(), "the log has gaps");
    let mut statement = database.prepare("SELECT id, first_revision, last_revision, digest FROM txn ORDER BY last_revision").unwrap();
    let transactions = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))).unwrap();
    let (mut digest, mut revision) = ([0; 32], 0);
    for transaction in transactions {
        let (id, first, last, stored): ([u8; 16], i64, i64, [u8; 32]) = transaction.unwrap();
        assert_eq!(first, revision + 1, "transactions do not follow each other");
        let mut sha = digest::Context::new(&digest::SHA256);
        sha.update(&digest);
        sha.update(&id);
        sha.update(&first.to_be_bytes());
        sha.update(&(last - first + 1).to_be_bytes());
        digest.copy_from_slice(sha.finish().as_ref());
        assert_eq!(digest, stored, "the digest chain breaks at revision {last}");
        revision = last;
    }
    assert_eq!((revision, digest), (head, head_digest), "the chain does not lead to the head");
    u64::try_from(head).unwrap()
}
