//! What the programs have reported so far, put in order.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use countersign_identity::Timestamp;

use super::event::Event;
use super::stage::Player;

/// An identity that a program was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) spiffe_id: String,
    pub(super) serial: String,
    pub(super) expires_at: Timestamp,
}

/// What one program has seen.
#[derive(Debug, Default)]
pub(super) struct Seat {
    pub(super) identities: Vec<Identity>,
    pub(super) address: Option<SocketAddr>,
    pub(super) denied: Option<String>,
    /// Answers on all connections when it first found no agent.
    pub(super) answers_without_agent: Option<u32>,
    /// SPIFFE ID and serial number of whoever was at the other end, connection by connection.
    pub(super) connected: Vec<(String, String)>,
    /// Answers on each connection.
    pub(super) answers: BTreeMap<u32, u32>,
    /// The same when it was given its second identity.
    pub(super) answers_at_renewal: BTreeMap<u32, u32>,
    pub(super) retired: Vec<u32>,
    pub(super) dropped: Vec<String>,
    /// Why a connection was not made, the first time.
    pub(super) refused: Option<String>,
    /// How often one was not made.
    pub(super) refusals: u32,
    pub(super) hung_up: Option<String>,
}

impl Seat {
    /// Answers on all connections.
    pub(super) fn answers_in_all(&self) -> u32 {
        self.answers.values().sum()
    }

    /// Once it has found no agent: whether it got an answer since.
    pub(super) fn has_talked_without_agent(&self) -> Option<bool> {
        self.answers_without_agent.map(|before| self.answers_in_all() > before)
    }
}

/// What all have seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    seats: BTreeMap<Player, Seat>,
}

impl Seen {
    pub(super) fn by(&mut self, player: Player) -> &mut Seat {
        self.seats.entry(player).or_default()
    }

    /// Adds a report, or fails with what the program failed with.
    pub(super) fn add(&mut self, player: Player, event: Event) -> Result<(), String> {
        let seat = self.by(player);
        match event {
            Event::Identity { spiffe_id, serial, expires_at } => {
                seat.identities.push(Identity { spiffe_id, serial, expires_at: Timestamp::from_secs(expires_at) });
                if seat.identities.len() == 2 {
                    seat.answers_at_renewal = seat.answers.clone();
                }
            }
            Event::Denied { reason } => seat.denied = Some(reason),
            Event::NoAgent { .. } => {
                let answers = seat.answers_in_all();
                seat.answers_without_agent.get_or_insert(answers);
            }
            Event::Listening { address } => seat.address = Some(address),
            Event::Connected { spiffe_id, serial, .. } => seat.connected.push((spiffe_id, serial)),
            Event::Answered { connection } => *seat.answers.entry(connection).or_default() += 1,
            Event::Retired { connection } => seat.retired.push(connection),
            Event::Dropped { connection, reason } => seat.dropped.push(format!("connection {connection}: {reason}")),
            Event::HungUp { spiffe_id } => seat.hung_up = Some(spiffe_id),
            Event::Refused { reason } => {
                seat.refusals = seat.refusals.saturating_add(1);
                seat.refused.get_or_insert(reason);
            }
            Event::Failed { reason } => return Err(format!("the {} failed: {reason}", player.name())),
        }
        Ok(())
    }

    /// What went wrong between the two, if anything did.
    pub(super) fn trouble(&mut self) -> Option<String> {
        [Player::Shop, Player::Warehouse].into_iter().find_map(|player| {
            let seat = self.by(player);
            let name = player.name();
            let dropped = seat.dropped.first().map(|d| format!("the {name} lost a connection ({d})"));
            let refused = seat.refused.as_ref().map(|r| format!("the {name} got no connection ({r})"));
            let denied = seat.denied.as_ref().map(|d| format!("the {name} was denied an identity ({d})"));
            let hung_up = seat.hung_up.as_ref().map(|_| format!("the {name} saw a certificate end that should have been renewed"));
            dropped.or(refused).or(denied).or(hung_up)
        })
    }
}
