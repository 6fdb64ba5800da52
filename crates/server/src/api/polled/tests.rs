//! What is kept, for how long, and how much of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use countersign_identity::TrustDomain;
use countersign_testkit::clock::VirtualClock;
use countersign_transport::clock::{Clock as _, SystemClock};
use countersign_wire::types;

use super::*;
use crate::api::hang_up::World;

fn agent(name: &str) -> SpiffeId {
    TrustDomain::parse("example.org").unwrap().with_path(&format!("/spire/agent/join_token/{name}")).unwrap()
}

fn kept(bytes: usize, used: Duration) -> Kept {
    let answer = Answer { messages: [Bytes::from(vec![0; bytes])].into(), is_whole: true };
    let cursor = Cursor { epoch: [0; 16], revision: 0, digest: [0; 32] };
    Kept { cursor, mask: None, answer, ends: None, used }
}

#[test]
fn what_is_kept_is_bounded_and_goes_when_its_agent_has_gone() {
    const ANSWER: usize = 1 << 20;
    let mut of_agents = OfAgents::default();
    let key = |n: usize| (agent(&n.to_string()), Kind::Sync);
    let counted = |of_agents: &OfAgents| of_agents.kept.values().map(|kept| kept.answer.bytes()).sum::<usize>();
    let large = kept(ANSWER, Duration::ZERO);
    // One of them shares its bytes with the next, so that this test does not take what it counts.
    for n in 0..70 {
        of_agents.put(key(n), large.clone());
    }
    assert_eq!((of_agents.kept.len(), of_agents.bytes), (63, counted(&of_agents)), "64 MiB, and what each costs beside its messages");
    of_agents.put(key(0), kept(10, Duration::from_secs(1)));
    of_agents.put(key(64), kept(ANSWER, Duration::from_secs(1)));
    assert_eq!((of_agents.kept.len(), of_agents.bytes), (64, counted(&of_agents)), "what is replaced gives its room back");
    of_agents.put(key(65), kept(ANSWER, Duration::from_secs(59)));
    assert_eq!(of_agents.kept.len(), 64, "no room, and nobody has gone");
    // A minute after the first: those are swept that have not asked since.
    of_agents.put(key(65), kept(ANSWER, Duration::from_secs(60)));
    let mut left: Vec<String> = of_agents.kept.keys().map(|(agent, _)| agent.as_str().to_owned()).collect();
    left.sort_unstable();
    assert_eq!(left, [0, 64, 65].map(|n| agent(&n.to_string()).as_str().to_owned()));
    assert_eq!(of_agents.bytes, counted(&of_agents));
}

/// Asks as `agent`, and says whether the answer is the very one that was given before.
struct Asking<'a> {
    world: &'a World,
    agent: SpiffeId,
    before: Option<Answer>,
}

impl<'a> Asking<'a> {
    fn of(world: &'a World, agent: SpiffeId) -> Self {
        Self { world, agent, before: None }
    }

    fn is_kept(&mut self) -> bool {
        let answer = self.world.api().polled.sync(self.world.api(), &self.agent, None).unwrap();
        let before = self.before.replace(answer.clone());
        before.is_some_and(|before| Arc::ptr_eq(&before.messages, &answer.messages))
    }

    fn paths(&mut self) -> Vec<String> {
        self.is_kept();
        let message = self.before.as_ref().unwrap().messages[0].clone();
        let answer = countersign_wire::entry_api::SyncAuthorizedEntriesResponse::decode(message).unwrap();
        let mut paths: Vec<String> = answer.entries.into_iter().map(|e| e.spiffe_id.unwrap().path).collect();
        paths.sort_unstable();
        paths
    }
}

fn entry_of(world: &World, agent: &SpiffeId, path: &str) -> types::Entry {
    types::Entry { parent_id: Some(countersign_wire::id::to_wire(agent)), ..world.entry(path) }
}

#[tokio::test]
async fn a_kept_answer_is_given_until_something_concerns_its_agent_or_there_is_too_much_to_look_through() {
    let world = World::start().await;
    let (a, b) = (agent("a"), agent("b"));
    let (mut asking, mut other) = (Asking::of(&world, a.clone()), Asking::of(&world, b.clone()));
    world.create_all(vec![entry_of(&world, &a, "/of-a")]).await;
    assert!(!asking.is_kept());
    assert!(asking.is_kept());
    assert_eq!((asking.paths(), other.paths()), (vec!["/of-a".to_owned()], vec![]));

    let next = std::cell::Cell::new(0);
    let of_others = async |transactions: usize, changes: usize| {
        for _ in 0..transactions {
            next.set(next.get() + 1);
            let entries = (0..changes).map(|n| entry_of(&world, &b, &format!("/of-b/{}/{n}", next.get()))).collect();
            world.create_all(entries).await;
        }
    };
    // Each time it is given, it is good up to then.
    of_others(TRANSACTIONS_MAX, 1).await;
    assert!(asking.is_kept());
    of_others(TRANSACTIONS_MAX, 1).await;
    assert!(asking.is_kept());
    of_others(TRANSACTIONS_MAX + 1, 1).await;
    assert!(!asking.is_kept(), "too many transactions");
    of_others(1, CHANGES_MAX).await;
    assert!(asking.is_kept());
    of_others(1, CHANGES_MAX + 1).await;
    assert!(!asking.is_kept(), "too many changes");
    assert!(asking.is_kept());

    let mask = EntryMask { revision_number: true, ..EntryMask::default() };
    let masked = world.api().polled.sync(world.api(), &a, Some(mask)).unwrap();
    assert!(!asking.is_kept(), "another mask is another answer");
    assert_ne!(masked.messages, asking.before.clone().unwrap().messages);
    let whole = world.api().polled.entries(world.api(), &a, None).unwrap();
    assert!(asking.is_kept(), "the other call has an answer of its own");
    assert_eq!(GetAuthorizedEntriesResponse::decode(whole).unwrap().entries.len(), 1);
    world.create_all(vec![entry_of(&world, &a, "/more")]).await;
    assert_eq!(asking.paths(), ["/more", "/of-a"]);
}

#[tokio::test]
async fn a_kept_answer_ends_with_its_first_entry_to_the_millisecond_and_stays_while_it_is_asked_for() {
    let clock = VirtualClock::at(Timestamp::from_secs(SystemClock.now().secs()));
    let world = World::start_at(Arc::new(clock.clone())).await;
    let a = agent("a");
    let ends = |secs: i64| world.api().clock.now().secs() + secs;
    world.create_all(vec![types::Entry { expires_at: ends(120), ..entry_of(&world, &a, "/ends") }, entry_of(&world, &a, "/stays")]).await;
    let mut asking = Asking::of(&world, a.clone());
    assert_eq!(asking.paths().len(), 2);
    for _ in 0..2 {
        clock.advance(Duration::from_secs(50));
        assert!(asking.is_kept());
    }
    // Another's answer is kept, and what nobody has asked for lately goes.
    Asking::of(&world, agent("b")).is_kept();
    assert!(asking.is_kept());
    clock.advance(Duration::from_millis(19_999));
    assert!(asking.is_kept());
    clock.advance(Duration::from_millis(1));
    assert_eq!(asking.paths(), ["/stays"]);
}
