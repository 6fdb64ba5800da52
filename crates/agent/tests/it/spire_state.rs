//! The data directory that a real SPIRE agent left behind, and what it would find there afterwards. The files in `data/spire` were
//! written by `spire-agent` and `spire-server` 1.16.0-dev; the keys in them were made for this test and are nobody's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::x509::Certificate;
use countersign_identity::{Timestamp, pem};
use countersign_plugins::keys::KeyPair;
use countersign_testkit::clock::VirtualClock;
use countersign_testkit::domain::{own_uid, until};
use countersign_testkit::scripted::{ATTEST, Authority, RENEW, Scripted};
use countersign_transport::clock::Clock as _;
use countersign_wire::types;
use serde_json::Value;

use crate::puppet::Puppet;
use crate::support::{message, verify};

/// What the agent wrote right after it had joined, and after it had renewed its SVID twice.
const LEFT_BEHIND: [&str; 2] = ["joined", "rotated"];

fn spires(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/data/spire").join(name)
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// The SVID in a data directory.
fn leaf(agent_data: &Path) -> Certificate {
    let data: Value = serde_json::from_str(&text(agent_data)).unwrap();
    let block = String::from_utf8(STANDARD.decode(data["svid"][0].as_str().unwrap()).unwrap()).unwrap();
    Certificate::parse(&pem::read(&block).unwrap().remove(0).1).unwrap()
}

/// The key of this name in a key file.
fn key(keys: &Path, name: &str) -> Option<KeyPair> {
    let keys: Value = serde_json::from_str(&text(keys)).unwrap();
    keys["keys"][name].as_str().map(|k| KeyPair::from_pkcs8(&STANDARD.decode(k).unwrap()).unwrap())
}

/// Which of the two keys of a data directory its SVID is for.
fn slot(directory: &dyn Fn(&str) -> PathBuf) -> &'static str {
    let public = leaf(&directory("agent-data.json")).public_key;
    let fits = |name: &&&str| key(&directory("keys.json"), name).is_some_and(|pair| *pair.public_key() == public);
    ["agent-svid-A", "agent-svid-B"].iter().find(fits).expect("the key of the SVID")
}

/// The authority of SPIRE's server.
fn authority() -> Arc<Authority> {
    let certificate = Certificate::parse(&pem::read(&text(&spires("bundle.pem"))).unwrap().remove(0).1).unwrap();
    Arc::new(Authority::of(certificate, key(&spires("server-keys.json"), "x509-CA-A").unwrap()))
}

/// An agent on a copy of what SPIRE's left behind, a moment later, and a server with the keys of SPIRE's.
async fn swapped(left: &str) -> Puppet {
    let from = leaf(&spires(left).join("agent-data.json")).not_before;
    let clock = VirtualClock::at(from.after(Duration::from_secs(15)));
    let server = Scripted::start(authority(), Arc::new(clock.clone())).await.unwrap();
    server.register(vec![types::Entry { id: "web".to_owned(), ..message("/web", &[own_uid()]) }]);
    let puppet = Puppet::of(server, clock);
    std::fs::copy(spires("bundle.pem"), puppet.file("bundle.pem")).unwrap();
    for name in ["agent-data.json", "keys.json"] {
        std::fs::copy(spires(left).join(name), puppet.file(name)).unwrap();
    }
    puppet
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_spire_agent_left_behind_is_gone_on_with_and_no_token_is_asked_for() {
    for left in LEFT_BEHIND {
        let mut puppet = swapped(left).await;
        puppet.start_agent().await;
        let workload = puppet.workload().await;
        let served = until("a workload is served", || async {
            puppet.clock.advance(Duration::from_millis(20));
            workload.x509_svid_within(Duration::from_millis(500)).await.ok()
        });
        verify(&served.await.unwrap().svids[0], puppet.clock.now());
        assert_eq!(puppet.server.calls(ATTEST), 0, "{left}");
        // Written again with what is followed, in SPIRE's form to the byte.
        let kept = || async { puppet.file("countersign-follow.state").exists().then_some(()) };
        until("what is followed is written down", kept).await.unwrap();
        puppet.agent.take().unwrap().stop().await;
        for name in ["agent-data.json", "keys.json"] {
            assert_eq!(text(&puppet.file(name)), text(&spires(left).join(name)), "{left}: {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_renewal_writes_is_what_spires_agent_reads() {
    for left in LEFT_BEHIND {
        let mut puppet = swapped(left).await;
        puppet.start_agent().await;
        let before = leaf(&spires(left).join("agent-data.json"));
        puppet.clock.advance(before.not_after.since(before.not_before) * 6 / 10);
        // Its own certificate has ended meanwhile.
        puppet.server.present(authority()).unwrap();
        let renewed = || async {
            puppet.clock.advance(Duration::from_millis(20));
            Some(leaf(&puppet.file("agent-data.json"))).filter(|now| now.der() != before.der())
        };
        let now = until("the SVID is renewed", renewed).await.unwrap();
        puppet.agent.take().unwrap().stop().await;
        assert_eq!((puppet.server.calls(ATTEST), puppet.server.calls(RENEW)), (0, 1), "{left}");
        assert_eq!(now.spiffe_id(), before.spiffe_id(), "the same identity");
        assert_ne!(slot(&|name| puppet.file(name)), slot(&|name| spires(left).join(name)), "the two keys take turns");

        // The form that SPIRE writes, with other certificates and keys in it.
        let form = |text: &str| text.split('"').map(|part| if part.len() > 100 { "…" } else { part }).collect::<Vec<_>>().join("\"");
        assert_eq!(form(&text(&puppet.file("agent-data.json"))), form(&text(&spires(left).join("agent-data.json"))));
        assert_eq!(form(&text(&puppet.file("keys.json"))), form(&text(&spires("rotated/keys.json"))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_file_of_spires_stops_the_start_and_is_left_as_it_is() {
    let whole = text(&spires("joined/agent-data.json"));
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        let puppet = swapped("joined").await;
        std::fs::write(puppet.file("agent-data.json"), &whole[..length]).unwrap();
        let error = puppet.try_start().await.unwrap_err().to_string();
        let path = puppet.file("agent-data.json");
        assert!(error.starts_with(&format!("failed to open storage: `{}`: it is not JSON", path.display())), "{error}");
        assert_eq!(text(&path), whole[..length], "it was touched");
        assert_eq!(puppet.server.calls(ATTEST), 0, "no new start");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_of_spires_that_has_ended_is_no_reason_to_use_its_key_again() {
    let mut puppet = swapped("joined").await;
    let before = leaf(&puppet.file("agent-data.json"));
    let old = slot(&|name| puppet.file(name));
    puppet.clock.advance(before.not_after.since(puppet.clock.now()) + Duration::from_secs(1));
    puppet.server.present(authority()).unwrap();
    puppet.start_agent().await;
    assert_eq!(puppet.server.calls(ATTEST), 1, "it joins anew");
    assert!(leaf(&puppet.file("agent-data.json")).not_after > Timestamp::max(before.not_after, puppet.clock.now()));
    assert_ne!(slot(&|name| puppet.file(name)), old, "a clock may have been wrong");
}
