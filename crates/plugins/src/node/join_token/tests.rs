//! What the conformance suite attacks: a token, and a guess.

use std::collections::HashSet;

use zeroize::Zeroizing;

use super::{Agent, Server, hash};
use crate::node::conformance::{Halves, circumstances};

const TOKEN: &str = "8f5b4d62-the-token";

pub(super) fn halves() -> Vec<Halves> {
    vec![Halves {
        server: Box::new(Server),
        agent: Box::new(Agent::new(Zeroizing::new(TOKEN.to_owned()))),
        stranger: Box::new(Agent::new(Zeroizing::new("a-guess".to_owned()))),
        circumstances: circumstances(),
        over: Err("an_expired_token_is_refused_and_used_up"),
        challenges: 0,
        redeemable: HashSet::from([hash(TOKEN)]),
        idle: &[],
        files: Vec::new(),
    }]
}
