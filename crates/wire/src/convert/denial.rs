//! A denial with the reason that agents act on: a gRPC status whose details are SPIRE's.

use prost::Message as _;
use tonic::{Code, Status};

use crate::types::PermissionDeniedDetails;
use crate::types::permission_denied_details::Reason;

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

/// PERMISSION_DENIED with this reason.
pub fn to_wire(reason: Reason, text: &str) -> Status {
    let any = prost_types::Any {
        type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".to_owned(),
        value: PermissionDeniedDetails { reason: reason.into() }.encode_to_vec(),
    };
    let rpc = RpcStatus { code: Code::PermissionDenied.into(), message: text.to_owned(), details: vec![any] };
    Status::with_details(Code::PermissionDenied, text, rpc.encode_to_vec().into())
}

/// The reason inside a PERMISSION_DENIED; none if it does not say.
pub fn from_wire(status: &Status) -> Option<Reason> {
    if status.code() != Code::PermissionDenied {
        return None;
    }
    let rpc = RpcStatus::decode(status.details()).ok()?;
    let any = rpc.details.iter().find(|d| d.type_url.ends_with("/spire.api.types.PermissionDeniedDetails"))?;
    let details = PermissionDeniedDetails::decode(any.value.as_slice()).ok()?;
    Reason::try_from(details.reason).ok().filter(|r| *r != Reason::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_denial_that_gives_a_reason_has_one() {
        assert_eq!(from_wire(&to_wire(Reason::AgentBanned, "banned")), Some(Reason::AgentBanned));
        assert_eq!(from_wire(&to_wire(Reason::Unknown, "why not")), None);
        assert_eq!(from_wire(&Status::permission_denied("no details")), None);
        assert_eq!(from_wire(&Status::with_details(Code::PermissionDenied, "broken", vec![0xff; 3].into())), None);
        let details = to_wire(Reason::AgentBanned, "").details().to_vec();
        assert_eq!(from_wire(&Status::with_details(Code::Unavailable, "another code", details.into())), None);
    }
}
