//! The two decisions at their boundaries: on the last moment of a certificate and of an entry, at the limits, and with each
//! condition of a decision wrong by itself. What the table allows to whom over a real connection is tested in `tests/it`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod calls;
mod credentials;
mod lines;
mod proofs;

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::entry::AdditionalAttributes;
use countersign_identity::{Entry, Selector, SpiffeId, Timestamp, TrustDomain};
use countersign_store::{Actor, Change, Node, Options, Snapshot, Store};
use countersign_testkit::clock::VirtualClock;
use countersign_transport::peer::Peer;
use countersign_transport::tcp::TlsIdentity;

use super::caller::Proof;
use super::gate::Gate;
use crate::metrics::Metrics;
use crate::ratelimit::Lines;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3600);
/// The least by which a time can be too late.
const MOMENT: Duration = Duration::from_millis(1);

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap()
}

fn agent_id() -> SpiffeId {
    id("/spire/agent/join_token/a")
}

fn selectors(texts: &[&str]) -> Vec<Selector> {
    texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
}

/// The agent, whose SVID has the serial number 1, and the renewed one, not used yet, 2.
fn node() -> Node {
    Node {
        id: agent_id(),
        attestation_type: "join_token".into(),
        serial_number: "1".to_owned(),
        expires_at: NOW.after(HOUR),
        new_serial_number: "2".to_owned(),
        new_expires_at: NOW.after(HOUR * 2),
        can_reattest: true,
        selectors: selectors(&["unix:uid:7"]),
    }
}

/// An entry below the agent, with nothing but what it must have.
fn entry(path: &str) -> Entry {
    Entry {
        id: path.trim_start_matches('/').to_owned(),
        spiffe_id: id(path),
        parent_id: agent_id(),
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

fn identity(id: &SpiffeId, serial_number: &str, not_after: Timestamp) -> TlsIdentity {
    TlsIdentity { spiffe_id: id.clone(), serial_number: serial_number.to_owned(), not_after }
}

fn remote(identity: Option<TlsIdentity>) -> Proof {
    Proof::Remote { address: "192.0.2.7:40000".parse().unwrap(), identity: identity.map(Arc::new) }
}

/// This process, as if it had come through the private socket.
fn local() -> Proof {
    Proof::Local(Peer::of_process(std::process::id()).unwrap())
}

/// A store with these changes, and a gate in front of it at [`NOW`].
struct Stage {
    gate: Gate,
    _directory: tempfile::TempDir,
}

impl Stage {
    async fn new(changes: Vec<Change>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = Options { path: directory.path().join("store.sqlite3"), vfs: None, now: Arc::new(|| NOW) };
        let store = Store::open(&options).unwrap();
        let written = store.write(Actor::server(), move |draft| {
            for change in &changes {
                draft.change(change.clone());
            }
            Ok(())
        });
        written.await.unwrap();
        let clock = Arc::new(VirtualClock::at(NOW));
        let gate = Gate {
            store,
            clock: Arc::clone(&clock) as _,
            admin_ids: [id("/operator")].into(),
            metrics: Arc::new(Metrics::default()),
            lines: Arc::new(Lines::new(clock)),
            audit_log: false,
        };
        Self { gate, _directory: directory }
    }

    /// With the agent and these entries.
    async fn with(entries: Vec<Entry>) -> Self {
        let entries = entries.into_iter().map(|entry| Change::EntryPut(Arc::new(entry)));
        Self::new(std::iter::once(Change::NodePut(Arc::new(node()))).chain(entries).collect()).await
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.gate.store.snapshot()
    }
}
