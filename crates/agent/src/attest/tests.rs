//! Attestors of every temper, asked about a process of the test's own.

use std::process::{Command, Stdio};
use std::sync::Mutex;

use countersign_plugins::Pending;

use super::*;

enum Temper {
    Finds(&'static str),
    Fails,
    Hangs,
    BreaksOff,
    /// Ends the process it is asked about, and then answers as if nothing were.
    Ends(Mutex<std::process::Child>),
}

struct Attestor(&'static str, Temper);

impl WorkloadAttestor for Attestor {
    fn name(&self) -> &'static str {
        self.0
    }

    fn attest<'a>(&'a self, _: &'a Peer) -> Pending<'a, Result<Vec<Selector>, AttestorError>> {
        Box::pin(async move {
            let found = |value: &str| Ok(vec![Selector::new(self.0, value).expect("a selector")]);
            match &self.1 {
                Temper::Finds(value) => found(value),
                Temper::Fails => Err(AttestorError { name: self.0, reason: "no such cgroup".to_owned() }),
                Temper::Hangs => std::future::pending().await,
                Temper::BreaksOff => panic!("broken on purpose"),
                Temper::Ends(child) => {
                    let mut child = child.lock().expect("free");
                    child.kill().and_then(|()| child.wait()).expect("ended");
                    found("ends")
                }
            }
        })
    }
}

fn attestors(tempers: Vec<(&'static str, Temper)>) -> Attestors {
    Attestors::new(tempers.into_iter().map(|(name, temper)| Arc::new(Attestor(name, temper)) as Arc<dyn WorkloadAttestor>).collect())
}

fn ourselves() -> Peer {
    Peer::of_process(std::process::id()).expect("we run")
}

fn said(mut verdicts: Vec<Verdict>) -> Vec<(&'static str, String)> {
    verdicts.sort_by_key(|v| v.name);
    let words = |v: &Verdict| v.found.as_ref().map_or_else(|e| e.reason.clone(), |found| format!("{found:?}"));
    verdicts.iter().map(|v| (v.name, words(v))).collect()
}

#[tokio::test]
async fn each_attestors_verdict_is_told_by_its_name_however_it_fails() {
    let all = attestors(vec![("a", Temper::Finds("1")), ("b", Temper::Fails), ("c", Temper::Hangs), ("d", Temper::BreaksOff)]);
    let patience = Duration::from_millis(50);
    let verdicts = all.ask(&ourselves(), Some(patience)).await;
    let slow = verdicts.iter().find(|v| v.name == "c").expect("a verdict");
    assert!(slow.took >= patience, "{:?}", slow.took);
    let wanted = [
        ("a", "[a:1]"),
        ("b", "no such cgroup"),
        ("c", "it has not answered within 50ms"),
        ("d", "BUG: it broke off, see the agent's standard error"),
    ];
    assert_eq!(said(verdicts), wanted.map(|(name, words)| (name, words.to_owned())));
    let alone = attestors(vec![("c", Temper::Hangs)]);
    assert_eq!(said(alone.ask(&ourselves(), Some(patience)).await).len(), 1);
}

#[tokio::test]
async fn one_attestor_that_fails_does_not_hide_what_the_others_found() {
    let caller = attestors(vec![("a", Temper::Finds("1")), ("b", Temper::Fails)]).attest(&ourselves()).await.expect("attested");
    assert_eq!(format!("{:?}", caller.selectors), "[a:1]");
    assert!(attestors(vec![("b", Temper::Fails)]).attest(&ourselves()).await.is_err());
}

#[tokio::test]
async fn a_process_that_ends_while_it_is_attested_has_no_selectors() {
    let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("started");
    let peer = Peer::of_process(child.id()).expect("it runs");
    assert!(attestors(vec![("a", Temper::Ends(Mutex::new(child)))]).attest(&peer).await.is_err());
}
