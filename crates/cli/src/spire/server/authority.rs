//! `spire-server localauthority …` and `upstreamauthority …`

use countersign_wire::local_authority::local_authority_client::LocalAuthorityClient;
use countersign_wire::local_authority::{
    ActivateJwtAuthorityRequest, ActivateX509AuthorityRequest, AuthorityState, GetJwtAuthorityStateRequest, GetX509AuthorityStateRequest,
    PrepareJwtAuthorityRequest, PrepareX509AuthorityRequest, RevokeJwtAuthorityRequest, RevokeX509AuthorityRequest,
    RevokeX509UpstreamAuthorityRequest, TaintJwtAuthorityRequest, TaintX509AuthorityRequest, TaintX509UpstreamAuthorityRequest,
};
use tonic::transport::Channel;

use super::super::command::{answer, refused};
use super::super::connect::Target;
use super::super::flags::{Flag, Given, Kind, flag};
use super::super::go;
use crate::output::{self, Failure, Outcome};

pub(super) const ID: &[Flag] = &[flag("authorityID", Kind::Text, "ID of the authority.")];
pub(super) const UPSTREAM: &[Flag] = &[flag("subjectKeyID", Kind::Text, "Subject key ID of the upstream authority's certificate.")];

async fn client(given: &Given, before: &str) -> Result<LocalAuthorityClient<Channel>, Failure> {
    Ok(LocalAuthorityClient::new(Target::server(given)?.connect().await.map_err(refused(before))?))
}

/// What a flag has to say.
fn required(given: &Given, name: &str, missing: &str) -> Result<String, Failure> {
    Target::server(given)?;
    match given.text(name) {
        "" => Err(Failure::new(missing)),
        id => Ok(id.to_owned()),
    }
}

fn authority_id(given: &Given) -> Result<String, Failure> {
    required(given, "authorityID", "an authority ID is required")
}

/// An authority. Only X.509 has one upstream.
fn block(state: &AuthorityState, is_x509: bool) -> String {
    let upstream = match (is_x509, state.upstream_authority_subject_key_id.as_str()) {
        (false, _) => String::new(),
        (true, "") => "  Upstream authority ID: No upstream authority\n".to_owned(),
        (true, id) => format!("  Upstream authority Subject Key ID: {}\n", output::clean(id)),
    };
    format!("  Authority ID: {}\n  Expires at: {}\n{upstream}", output::clean(&state.authority_id), go::time(state.expires_at))
}

fn all(kind: &str, states: [Option<&AuthorityState>; 3]) -> Outcome {
    let sections = ["Active", "Prepared", "Old"].iter().zip(states).map(|(which, state)| {
        let state =
            state.map_or_else(|| format!("  No {} {kind} authority found\n", which.to_lowercase()), |state| block(state, kind == "X.509"));
        format!("{which} {kind} authority:\n{state}")
    });
    output::text(&sections.collect::<Vec<_>>().join("\n"));
    Ok(())
}

fn one(done: &str, kind: &str, state: Option<&AuthorityState>) -> Outcome {
    output::line(&format!("{done} {kind} authority:"));
    let Some(state) = state else {
        return Err(Failure::new(format!("internal error: expected to have {} {kind} authority information", done.to_lowercase())));
    };
    output::text(&block(state, kind == "X.509"));
    Ok(())
}

pub(super) async fn x509_show(given: Given) -> Outcome {
    let before = "could not get X.509 authorities";
    let call = client(&given, before).await?.get_x509_authority_state(GetX509AuthorityStateRequest {}).await;
    answer(&given, "spire.api.server.localauthority.v1.GetX509AuthorityStateResponse", &call.map_err(refused(before))?.into_inner(), |m| {
        all("X.509", [m.active.as_ref(), m.prepared.as_ref(), m.old.as_ref()])
    })
}

pub(super) async fn jwt_show(given: Given) -> Outcome {
    let call = client(&given, "").await?.get_jwt_authority_state(GetJwtAuthorityStateRequest {}).await;
    answer(&given, "spire.api.server.localauthority.v1.GetJWTAuthorityStateResponse", &call.map_err(refused(""))?.into_inner(), |m| {
        all("JWT", [m.active.as_ref(), m.prepared.as_ref(), m.old.as_ref()])
    })
}

/// A command that changes one authority: ask, say what was done.
macro_rules! change {
    ($name:ident, $kind:literal, $verb:literal, $done:literal, $method:ident, $request:expr, $message:literal, $field:ident) => {
        pub(super) async fn $name(given: Given) -> Outcome {
            let request = $request(&given)?;
            let before = concat!("could not ", $verb, " ", $kind, " authority");
            let call = client(&given, before).await?.$method(request).await.map_err(refused(before))?;
            answer(&given, concat!("spire.api.server.localauthority.v1.", $message), &call.into_inner(), |m| {
                one($done, $kind, m.$field.as_ref())
            })
        }
    };
}

fn nothing<T>(request: T) -> impl FnOnce(&Given) -> Result<T, Failure> {
    move |_| Ok(request)
}

fn with_id<T>(request: fn(String) -> T) -> impl FnOnce(&Given) -> Result<T, Failure> {
    move |given| authority_id(given).map(request)
}

change!(
    x509_prepare,
    "X.509",
    "prepare",
    "Prepared",
    prepare_x509_authority,
    nothing(PrepareX509AuthorityRequest {}),
    "PrepareX509AuthorityResponse",
    prepared_authority
);
change!(
    jwt_prepare,
    "JWT",
    "prepare",
    "Prepared",
    prepare_jwt_authority,
    nothing(PrepareJwtAuthorityRequest {}),
    "PrepareJWTAuthorityResponse",
    prepared_authority
);
change!(
    x509_activate,
    "X.509",
    "activate",
    "Activated",
    activate_x509_authority,
    with_id(|authority_id| ActivateX509AuthorityRequest { authority_id }),
    "ActivateX509AuthorityResponse",
    activated_authority
);
change!(
    jwt_activate,
    "JWT",
    "activate",
    "Activated",
    activate_jwt_authority,
    with_id(|authority_id| ActivateJwtAuthorityRequest { authority_id }),
    "ActivateJWTAuthorityResponse",
    activated_authority
);
change!(
    x509_taint,
    "X.509",
    "taint",
    "Tainted",
    taint_x509_authority,
    with_id(|authority_id| TaintX509AuthorityRequest { authority_id }),
    "TaintX509AuthorityResponse",
    tainted_authority
);
change!(
    jwt_taint,
    "JWT",
    "taint",
    "Tainted",
    taint_jwt_authority,
    with_id(|authority_id| TaintJwtAuthorityRequest { authority_id }),
    "TaintJWTAuthorityResponse",
    tainted_authority
);
change!(
    x509_revoke,
    "X.509",
    "revoke",
    "Revoked",
    revoke_x509_authority,
    with_id(|authority_id| RevokeX509AuthorityRequest { authority_id }),
    "RevokeX509AuthorityResponse",
    revoked_authority
);
change!(
    jwt_revoke,
    "JWT",
    "revoke",
    "Revoked",
    revoke_jwt_authority,
    with_id(|authority_id| RevokeJwtAuthorityRequest { authority_id }),
    "RevokeJWTAuthorityResponse",
    revoked_authority
);

const NO_SUBJECT: &str = "the Subject Key ID of the X.509 upstream authority is required";

pub(super) async fn upstream_taint(given: Given) -> Outcome {
    let subject_key_id = required(&given, "subjectKeyID", NO_SUBJECT)?;
    let before = "could not taint X.509 upstream authority";
    let request = TaintX509UpstreamAuthorityRequest { subject_key_id };
    let response = client(&given, before).await?.taint_x509_upstream_authority(request).await.map_err(refused(before))?.into_inner();
    answer(&given, "spire.api.server.localauthority.v1.TaintX509UpstreamAuthorityResponse", &response, |m| {
        upstream("Tainted", &m.upstream_authority_subject_key_id)
    })
}

pub(super) async fn upstream_revoke(given: Given) -> Outcome {
    let subject_key_id = required(&given, "subjectKeyID", NO_SUBJECT)?;
    let before = "could not revoke X.509 upstream authority";
    let request = RevokeX509UpstreamAuthorityRequest { subject_key_id };
    let response = client(&given, before).await?.revoke_x509_upstream_authority(request).await.map_err(refused(before))?.into_inner();
    answer(&given, "spire.api.server.localauthority.v1.RevokeX509UpstreamAuthorityResponse", &response, |m| {
        upstream("Revoked", &m.upstream_authority_subject_key_id)
    })
}

fn upstream(done: &str, id: &str) -> Outcome {
    output::text(&format!("{done} X.509 upstream authority:\n  Subject Key ID: {}\n", output::clean(id)));
    Ok(())
}
