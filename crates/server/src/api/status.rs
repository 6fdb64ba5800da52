//! Errors sorted by whose fault they are, as gRPC statuses. Texts that clients match on are pinned here.

use countersign_store::StoreError;
use countersign_wire::types;
use countersign_wire::types::permission_denied_details::Reason;
use prost::Message as _;
use tonic::{Code, Status};

use crate::audit::JournalError;
use crate::authorities::IssueError;
use crate::policy::Caller;

/// `google.rpc.Status`, which carries details beside a gRPC status.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// PERMISSION_DENIED with the reason that agents act on.
pub(crate) fn denied(reason: Reason, text: &str) -> Status {
    let details = types::PermissionDeniedDetails { reason: reason.into() };
    let any = prost_types::Any {
        type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".to_owned(),
        value: details.encode_to_vec(),
    };
    let rpc = RpcStatus { code: Code::PermissionDenied.into(), message: text.to_owned(), details: vec![any] };
    Status::with_details(Code::PermissionDenied, text, rpc.encode_to_vec().into())
}

/// For methods of SPIRE's API that this server does not have yet, and for any other.
pub(crate) fn not_there_yet(method: &str) -> Status {
    Status::unimplemented(format!("{method} is not implemented by this Countersign server"))
}

/// The caller's fault: `message: cause`, as SPIRE words it. Logged with who it was.
pub(crate) fn invalid(caller: &Caller, message: &str, cause: impl std::fmt::Display) -> Status {
    let text = format!("{message}: {cause}");
    if caller.is_logged() {
        tracing::error!(caller_id = %caller.actor(), authorized_as = caller.kind.name(), error = %cause, "Invalid argument: {message}");
    }
    Status::invalid_argument(text)
}

/// The caller's fault, without a cause.
pub(crate) fn invalid_plain(caller: &Caller, message: &str) -> Status {
    if caller.is_logged() {
        tracing::error!(caller_id = %caller.actor(), authorized_as = caller.kind.name(), "Invalid argument: {message}");
    }
    Status::invalid_argument(message)
}

/// The store's fault. Retry where it may help.
pub(crate) fn store(error: &StoreError) -> Status {
    match error {
        StoreError::Full | StoreError::Failed(_) | StoreError::Closed => Status::unavailable(error.to_string()),
        StoreError::Open { .. }
        | StoreError::Spire { .. }
        | StoreError::Foreign { .. }
        | StoreError::Newer { .. }
        | StoreError::Corrupt(_) => {
            tracing::error!(%error, "The store cannot be used");
            Status::internal(error.to_string())
        }
    }
}

/// Why something was not issued.
pub(crate) fn issue(error: &IssueError) -> Status {
    match error {
        IssueError::NoAuthority(_) | IssueError::NotBegun { .. } => Status::unavailable(error.to_string()),
        IssueError::Lint(lint) => Status::invalid_argument(lint.to_string()),
        IssueError::Journal(JournalError::Full(_) | JournalError::Failed { .. } | JournalError::Closed) => {
            Status::unavailable(error.to_string())
        }
        IssueError::Keys(_) => {
            tracing::error!(%error, "Cannot sign");
            Status::unavailable(error.to_string())
        }
        IssueError::Store(error) => store(error),
        IssueError::Bug(_) => {
            tracing::error!(%error, "BUG");
            Status::internal(error.to_string())
        }
    }
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
