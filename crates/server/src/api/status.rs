//! Errors sorted by whose fault they are, as gRPC statuses. Texts that clients match on are pinned here.

use countersign_store::StoreError;
use countersign_wire::types;
use tonic::{Code, Status};

use crate::audit::JournalError;
use crate::authorities::IssueError;
use crate::policy::Caller;

/// PERMISSION_DENIED with the reason that agents act on.
pub(crate) use countersign_wire::denial::to_wire as denied;

/// For methods of SPIRE's API that this server does not have yet, and for any other.
pub(crate) fn not_there_yet(method: &str) -> Status {
    Status::unimplemented(format!("{method} is not implemented by this Countersign server"))
}

/// The caller's fault: `message: cause`, as SPIRE words it. Logged with who it was.
pub(crate) fn invalid(caller: &Caller, message: &str, cause: impl std::fmt::Display) -> Status {
    let text = format!("{message}: {cause}");
    if caller.is_logged() {
        tracing::error!(caller_id = %caller.actor(), authorized_as = caller.kind.name(), error = %cause, "Invalid argument: {message}");
    } else {
        tracing::debug!(caller_id = %caller.actor(), error = %cause, "Invalid argument: {message}");
    }
    Status::invalid_argument(text)
}

/// The caller's fault, without a cause.
pub(crate) fn invalid_plain(caller: &Caller, message: &str) -> Status {
    if caller.is_logged() {
        tracing::error!(caller_id = %caller.actor(), authorized_as = caller.kind.name(), "Invalid argument: {message}");
    } else {
        tracing::debug!(caller_id = %caller.actor(), "Invalid argument: {message}");
    }
    Status::invalid_argument(message)
}

/// What a caller reads where only the operator can do something. Paths, and what the system says, are for the log: callers
/// are agents, and whoever may attest.
const SEE_LOG: &str = "the server's log says why";

/// The store's fault. Retry where it may help.
pub(crate) fn store(error: &StoreError) -> Status {
    match error {
        StoreError::Full | StoreError::Closed => Status::unavailable(error.to_string()),
        StoreError::Failed(_) => {
            tracing::error!(%error, "The store failed");
            Status::unavailable(format!("the store failed; {SEE_LOG}"))
        }
        StoreError::Open { .. }
        | StoreError::Spire { .. }
        | StoreError::Foreign { .. }
        | StoreError::Newer { .. }
        | StoreError::Corrupt(_) => {
            tracing::error!(%error, "The store cannot be used");
            Status::internal(format!("the store cannot be used; {SEE_LOG}"))
        }
    }
}

/// Why something was not issued. The journal says itself, once, that it cannot be written; a line for each credential would
/// go to a disk that is often the same.
pub(crate) fn issue(error: &IssueError) -> Status {
    match error {
        IssueError::NoAuthority(_) | IssueError::NotBegun { .. } => Status::unavailable(error.to_string()),
        IssueError::Lint(lint) => Status::invalid_argument(lint.to_string()),
        IssueError::Journal(JournalError::Closed) => Status::unavailable(error.to_string()),
        IssueError::Journal(JournalError::Full(_)) => {
            tracing::debug!(%error, "Cannot record what is to be issued");
            Status::unavailable("the disk of the issuance journal is full, so nothing can be issued")
        }
        IssueError::Journal(JournalError::Failed { .. }) => {
            tracing::debug!(%error, "Cannot record what is to be issued");
            Status::unavailable(format!("the issuance journal cannot be written, so nothing can be issued; {SEE_LOG}"))
        }
        IssueError::Keys(_) => {
            tracing::error!(%error, "Cannot sign");
            Status::unavailable(format!("the server cannot sign now; {SEE_LOG}"))
        }
        IssueError::Store(error) => store(error),
        IssueError::Bug(_) => {
            tracing::error!(%error, "BUG");
            Status::internal(format!("the server has a fault; {SEE_LOG}"))
        }
    }
}

/// The journal cannot be read.
pub(crate) fn journal(error: &impl std::fmt::Display) -> Status {
    tracing::error!(%error, "The issuance journal cannot be read");
    Status::internal(format!("the issuance journal cannot be read; {SEE_LOG}"))
}

/// The status of one item of a batch.
pub(crate) fn item(code: Code, message: impl Into<String>) -> types::Status {
    types::Status { code: code.into(), message: message.into() }
}

/// A good item.
pub(crate) fn ok() -> Option<types::Status> {
    Some(item(Code::Ok, "OK"))
}

/// An item that failed as this status says.
pub(crate) fn of(status: &Status) -> Option<types::Status> {
    Some(item(status.code(), status.message()))
}

#[cfg(test)]
mod tests {
    use countersign_plugins::keys::KeyManagerError;

    use super::*;

    #[test]
    fn callers_read_no_path_and_nothing_the_system_said() {
        let secret = || "/secret/place".to_owned();
        let of_store = |path: String, reason: String| {
            [
                StoreError::Open { path: path.clone(), reason: reason.clone() },
                StoreError::Spire { path: path.clone() },
                StoreError::Foreign { path, reason: reason.clone() },
                StoreError::Newer { found: 2, known: 1 },
                StoreError::Corrupt(reason.clone()),
                StoreError::Full,
                StoreError::Failed(reason),
                StoreError::Closed,
            ]
        };
        let mut errors: Vec<IssueError> = of_store(secret(), secret()).into_iter().map(IssueError::Store).collect();
        errors.extend([
            IssueError::NoAuthority("X.509"),
            IssueError::Journal(JournalError::Full(secret())),
            IssueError::Journal(JournalError::Failed { path: secret(), reason: secret() }),
            IssueError::Journal(JournalError::Closed),
            IssueError::Keys(KeyManagerError::File { path: secret(), reason: secret() }),
            IssueError::Bug(secret()),
        ]);
        let mut texts: Vec<String> = errors.iter().map(|error| issue(error).message().to_owned()).collect();
        texts.push(journal(&secret()).message().to_owned());
        for text in texts {
            assert!(!text.contains("secret") && !text.is_empty(), "{text}");
        }
    }
}
