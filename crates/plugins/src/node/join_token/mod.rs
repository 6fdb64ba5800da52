//! `join_token`: a node proves itself with a one-time secret that an administrator made for it. See `README.md` here.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use countersign_identity::id::IdError;

use super::{AgentHalf, Answers, Attempt, AttestError, Attested, Attestor, Circumstances, Conversation, ServerHalf};
use crate::Pending;
use crate::keys::sha256;

/// Its configuration name.
pub const NAME: &str = "join_token";

pub(super) const ATTESTOR: Attestor = Attestor {
    name: NAME,
    server: |_, data| {
        data.finish()?;
        Ok(Arc::new(Server))
    },
    agent: |_, data, provided| {
        data.finish()?;
        // Without a token the agent may still go on with the SVID it has.
        Ok(Arc::new(Agent::new(provided.join_token)))
    },
    #[cfg(test)]
    halves: tests::halves,
};

/// Longest token, in bytes: it becomes a segment of the agent's SPIFFE ID.
pub const TOKEN_BYTES_MAX: usize = 255;

/// Checks that a token can stand in the agent's path.
///
/// # Errors
/// Too long, or a character that no path may have.
pub fn check(token: &str) -> Result<(), IdError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(IdError::TooLong { bytes: token.len(), max: TOKEN_BYTES_MAX });
    }
    if token.contains('/') {
        return Err(IdError::PathCharacter('/'));
    }
    countersign_identity::SpiffeId::parse(&format!("spiffe://x/{token}")).map(|_| ())
}

/// The hash under which the store keeps a token that was not redeemed.
pub fn hash(token: &str) -> [u8; 32] {
    sha256(token.as_bytes())
}

/// The server's half. It only parses: the token is redeemed by the server in the transaction that creates the node.
#[derive(Debug)]
pub struct Server;

impl ServerHalf for Server {
    fn name(&self) -> &'static str {
        NAME
    }

    fn attest<'a>(
        &'a self,
        payload: &'a [u8],
        _: &'a Circumstances,
        _: &'a mut dyn Conversation,
    ) -> Pending<'a, Result<Attested, AttestError>> {
        Box::pin(async move {
            let refuse = || AttestError::invalid("join token does not exist or has already been used");
            let token = std::str::from_utf8(payload).map_err(|_| refuse())?;
            check(token).map_err(|_| refuse())?;
            Ok(Attested { path: format!("/{NAME}/{token}"), selectors: Vec::new(), can_reattest: false, redeem: Some(hash(token)) })
        })
    }
}

/// The agent's half: sends the token.
pub struct Agent {
    token: zeroize::Zeroizing<String>,
}

impl Agent {
    /// With this token.
    pub fn new(token: zeroize::Zeroizing<String>) -> Self {
        Self { token }
    }
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("join_token::Agent")
    }
}

impl AgentHalf for Agent {
    fn name(&self) -> &'static str {
        NAME
    }

    fn begin(&self) -> Pending<'_, Result<Attempt, AttestError>> {
        Box::pin(async move {
            if self.token.is_empty() {
                return Err(AttestError::invalid("join token was not provided"));
            }
            Ok(Attempt { payload: self.token.as_bytes().to_vec(), answers: Box::new(NoAnswers) })
        })
    }

    fn how_to_join(&self) -> String {
        "get a new token with `countersign token generate` on the server, put it into join_token_file, and start the agent again".to_owned()
    }
}

/// Nothing is asked about a token.
struct NoAnswers;

impl Answers for NoAnswers {
    fn answer<'a>(&'a mut self, _: &'a [u8]) -> Pending<'a, Result<Vec<u8>, AttestError>> {
        Box::pin(async { Err(AttestError::invalid("the server sent a challenge, join tokens have none")) })
    }
}
