//! Every listed node attestor under attack, by the same rules. Each brings its halves in its own folder; one in `ALL` without
//! them does not compile.
//!
//! Rule of the flips: in each message of an honest run every byte has one bit flipped, a different one from byte to byte, and
//! each such message must be refused. The only exception are bytes that an attestor declares to carry nothing; there the
//! outcome must be that of the honest run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashSet;
use std::sync::Arc;

use countersign_identity::{Bundle, Timestamp, TrustDomain};

use super::{ALL, AgentHalf, Answers, AttestError, Attested, Circumstances, Conversation, MESSAGE_BYTES_MAX, ServerHalf};
use crate::Pending;

/// A good pair of halves, and what the suite has to know about them.
pub(super) struct Halves {
    pub(super) server: Box<dyn ServerHalf>,
    pub(super) agent: Box<dyn AgentHalf>,
    /// Another node, which is not the one above: it knows another secret, has another key.
    pub(super) stranger: Box<dyn AgentHalf>,
    pub(super) circumstances: Circumstances,
    /// A time at which the evidence is over. Without one its end is not the attestor's to know, and the test named, of
    /// `server/tests/it/attestation.rs`, holds it.
    pub(super) over: Result<Timestamp, &'static str>,
    /// Challenges of an honest run.
    pub(super) challenges: usize,
    /// One-time secrets that the server would redeem.
    pub(super) redeemable: HashSet<[u8; 32]>,
    /// Texts in messages that carry nothing.
    pub(super) idle: &'static [&'static str],
    /// Directories that stay until the pair has gone.
    #[expect(dead_code, reason = "held for their end, never read")]
    pub(super) files: Vec<tempfile::TempDir>,
}

/// A trust domain that a node may join, in the year 2026.
pub(super) fn circumstances() -> Circumstances {
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let bundle = Some(Arc::new(Bundle::empty(trust_domain.clone())));
    Circumstances { trust_domain, bundle, now: Timestamp::from_secs(1_780_000_000), address: None }
}

/// Every pair of every attestor in the list.
fn listed() -> Vec<(&'static str, Halves)> {
    ALL.iter().flat_map(|attestor| (attestor.halves)().into_iter().map(|pair| (attestor.name, pair))).collect()
}

/// What is done to the messages on their way.
type Tamper<'a> = &'a (dyn Fn(&str, Vec<u8>) -> Vec<u8> + Sync);

fn untouched(_: &str, message: Vec<u8>) -> Vec<u8> {
    message
}

/// The line between the halves: records and tampers.
struct Wire<'a> {
    answers: Box<dyn Answers>,
    tamper: Tamper<'a>,
    said: Vec<(&'static str, Vec<u8>)>,
    challenges: usize,
    hang_up: bool,
}

impl Conversation for Wire<'_> {
    fn challenge(&mut self, challenge: Vec<u8>) -> Pending<'_, Result<Vec<u8>, AttestError>> {
        Box::pin(async move {
            self.challenges += 1;
            if self.hang_up {
                return Err(AttestError::failed("the node has gone"));
            }
            self.said.push(("challenge", challenge.clone()));
            let answer = self.answers.answer(&(self.tamper)("challenge", challenge)).await?;
            self.said.push(("answer", answer.clone()));
            Ok((self.tamper)("answer", answer))
        })
    }
}

struct Run {
    outcome: Result<Attested, AttestError>,
    said: Vec<(&'static str, Vec<u8>)>,
    challenges: usize,
}

impl Halves {
    async fn run(&self, tamper: Tamper<'_>) -> Run {
        self.run_between(&*self.agent, &*self.agent, &self.circumstances, tamper, false).await
    }

    /// One node shows its payload, and maybe another one answers.
    async fn run_between(
        &self,
        shows: &dyn AgentHalf,
        answers: &dyn AgentHalf,
        at: &Circumstances,
        tamper: Tamper<'_>,
        hang_up: bool,
    ) -> Run {
        let payload = shows.begin().await.unwrap().payload;
        let answers = answers.begin().await.unwrap().answers;
        let mut wire = Wire { answers, tamper, said: vec![("payload", payload.clone())], challenges: 0, hang_up };
        let outcome = self.server.attest(&tamper("payload", payload), at, &mut wire).await;
        let outcome = outcome.and_then(|attested| match attested.redeem {
            Some(secret) if !self.redeemable.contains(&secret) => Err(AttestError::invalid("nobody made this secret")),
            _ => Ok(attested),
        });
        Run { outcome, said: wire.said, challenges: wire.challenges }
    }
}

#[tokio::test]
async fn an_honest_node_joins_under_its_attestors_name() {
    for (name, pair) in listed() {
        let run = pair.run(&untouched).await;
        let attested = run.outcome.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(attested.path.starts_with(&format!("/{name}/")), "{name}: {}", attested.path);
        assert!(attested.selectors.iter().all(|s| s.kind() == name), "{name}: {:?}", attested.selectors);
        assert_eq!(run.challenges, pair.challenges, "{name}");
        assert_eq!((pair.server.name(), pair.agent.name()), (name, name));
        assert_eq!(attested.can_reattest, attested.redeem.is_none(), "{name}: what works once cannot be shown again");
        assert!(!pair.agent.how_to_join().is_empty());
        let described = format!("{:?}", pair.agent.begin().await.unwrap());
        assert_eq!(described, "Attempt", "{name}: nothing secret in Debug");
    }
}

#[tokio::test]
async fn a_flipped_bit_in_any_message_is_refused() {
    for (name, pair) in listed() {
        let honest = pair.run(&untouched).await;
        let wanted = honest.outcome.unwrap();
        for (kind, message) in &honest.said {
            let text = String::from_utf8_lossy(message);
            let idle: Vec<_> = pair.idle.iter().flat_map(|i| text.match_indices(i).map(|(at, found)| at..at + found.len())).collect();
            for at in 0..message.len() {
                let flip = |of: &str, mut bytes: Vec<u8>| {
                    // Answers differ from run to run, in length too.
                    if of == *kind && at < bytes.len() {
                        bytes[at] ^= 1 << (at % 8);
                    }
                    bytes
                };
                let run = pair.run(&flip).await;
                let reached = run.said.iter().any(|(of, bytes)| of == kind && at < bytes.len());
                match run.outcome {
                    Err(_) => {}
                    Ok(attested) if !reached || idle.iter().any(|range| range.contains(&at)) => assert_eq!(attested, wanted),
                    Ok(attested) => panic!("{name}: byte {at} of the {kind} was flipped and it joined: {attested:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn what_was_sent_once_proves_nothing_again() {
    for (name, mut pair) in listed() {
        let first = pair.run(&untouched).await;
        let spent = first.outcome.unwrap().redeem;
        if let Some(secret) = spent {
            pair.redeemable.remove(&secret);
        }
        let replayed = |of: &str, bytes: Vec<u8>| {
            first.said.iter().find(|(kind, _)| *kind == of && of != "challenge").map_or(bytes, |(_, said)| said.clone())
        };
        let again = pair.run(&replayed).await.outcome;
        assert!(again.is_err(), "{name}: {again:?}");
    }
}

#[tokio::test]
async fn a_stranger_cannot_speak_for_a_node() {
    for (name, pair) in listed() {
        if pair.challenges > 0 {
            // The node's evidence is no secret; a stranger shows it and answers as well as it can.
            let run = pair.run_between(&*pair.agent, &*pair.stranger, &pair.circumstances, &untouched, false).await;
            assert!(run.outcome.is_err(), "{name}: {:?}", run.outcome);
            // And is somebody of its own only.
            let honest = pair.run(&untouched).await.outcome.unwrap();
            let own = pair.run_between(&*pair.stranger, &*pair.stranger, &pair.circumstances, &untouched, false).await.outcome.unwrap();
            assert_ne!(own.path, honest.path, "{name}");
        } else {
            let run = pair.run_between(&*pair.stranger, &*pair.stranger, &pair.circumstances, &untouched, false).await;
            assert!(run.outcome.is_err(), "{name}: {:?}", run.outcome);
        }
    }
}

#[tokio::test]
async fn a_message_cut_short_at_any_length_is_refused() {
    for (name, pair) in listed() {
        for (kind, message) in pair.run(&untouched).await.said {
            for length in 0..message.len() {
                let cut = |of: &str, mut bytes: Vec<u8>| {
                    if of == kind {
                        bytes.truncate(length.min(bytes.len().saturating_sub(1)));
                    }
                    bytes
                };
                let run = pair.run(&cut).await;
                assert!(run.outcome.is_err(), "{name}: {length} bytes of the {kind}: {:?}", run.outcome);
            }
        }
    }
}

#[tokio::test]
async fn a_message_of_any_size_that_can_arrive_is_refused_and_does_no_harm() {
    for (name, pair) in listed() {
        for (kind, _) in pair.run(&untouched).await.said {
            for filler in [b'A', b'[', b'{', b'"', 0x30, 0xff, 0] {
                let swollen = |of: &str, bytes: Vec<u8>| {
                    if of != kind {
                        return bytes;
                    }
                    let mut swollen = bytes;
                    swollen.resize(MESSAGE_BYTES_MAX, filler);
                    swollen
                };
                let nothing_else = |of: &str, bytes: Vec<u8>| if of == kind { vec![filler; MESSAGE_BYTES_MAX] } else { bytes };
                for tamper in [&swollen as Tamper<'_>, &nothing_else] {
                    let run = pair.run(tamper).await;
                    let error = run.outcome.err().unwrap_or_else(|| panic!("{name}: {kind} filled with {filler}"));
                    assert!(error.told().len() <= 1024, "{name}: the refusal does not repeat what was sent");
                }
            }
        }
    }
}

#[tokio::test]
async fn evidence_that_is_over_is_refused() {
    for (name, pair) in listed() {
        match pair.over {
            Ok(now) => {
                let later = Circumstances { now, ..pair.circumstances.clone() };
                let run = pair.run_between(&*pair.agent, &*pair.agent, &later, &untouched, false).await;
                assert!(run.outcome.is_err(), "{name}: {:?}", run.outcome);
                assert_eq!(run.challenges, 0, "{name}: nobody is asked about what proves nothing");
            }
            // The server redeems the secret, and that test of its holds the end.
            Err(test) => {
                let tests = include_str!("../../../server/tests/it/attestation.rs");
                assert!(tests.contains(&format!("async fn {test}()")), "{name}: `{test}` is gone");
            }
        }
    }
}

#[tokio::test]
async fn whoever_hangs_up_in_a_challenge_has_not_joined() {
    for (name, pair) in listed().into_iter().filter(|(_, pair)| pair.challenges > 0) {
        let run = pair.run_between(&*pair.agent, &*pair.agent, &pair.circumstances, &untouched, true).await;
        assert!(run.outcome.is_err(), "{name}");
        assert_eq!(run.challenges, 1, "{name}: it is asked once, and not again");
    }
}

#[tokio::test]
async fn an_agent_answers_as_often_as_an_honest_server_asks() {
    for (name, pair) in listed() {
        let honest = pair.run(&untouched).await.said;
        let challenge = honest.iter().find(|(kind, _)| *kind == "challenge").map_or_else(|| b"{}".to_vec(), |(_, bytes)| bytes.clone());
        let mut answers = pair.agent.begin().await.unwrap().answers;
        for place in 0..pair.challenges {
            answers.answer(&challenge).await.unwrap_or_else(|e| panic!("{name}: challenge {place}: {e}"));
        }
        answers.answer(&challenge).await.expect_err(name);
        let mut answers = pair.agent.begin().await.unwrap().answers;
        answers.answer(&vec![b' '; MESSAGE_BYTES_MAX + 1]).await.expect_err(name);
    }
}
