//! The authorities of this server, each step of their lives by hand. They rotate by themselves; the calls are known and
//! refused until they are there, so that clients and commands say why.

use countersign_wire::local_authority::{self, local_authority_server};
use tonic::{Request, Response, Status};

use super::Api;

fn by_hand() -> Status {
    Status::unimplemented(
        "preparing, activating, tainting and revoking authorities is not implemented by this Countersign server; they rotate by themselves",
    )
}

impl Api {
    fn x509_authority(&self) -> Status {
        by_hand()
    }

    fn jwt_authority(&self) -> Status {
        self.check_jwt_enabled().err().unwrap_or_else(by_hand)
    }

    fn wit_authority(&self) -> Status {
        Status::unimplemented("WIT-SVIDs are not implemented by this Countersign server")
    }
}

macro_rules! refused {
    ($($call:ident: $request:ident, $response:ident, $why:ident;)*) => {
        #[tonic::async_trait]
        impl local_authority_server::LocalAuthority for Api {
            $(async fn $call(&self, _: Request<local_authority::$request>) -> Result<Response<local_authority::$response>, Status> {
                Err(self.$why())
            })*
        }
    };
}

refused! {
    get_x509_authority_state: GetX509AuthorityStateRequest, GetX509AuthorityStateResponse, x509_authority;
    prepare_x509_authority: PrepareX509AuthorityRequest, PrepareX509AuthorityResponse, x509_authority;
    activate_x509_authority: ActivateX509AuthorityRequest, ActivateX509AuthorityResponse, x509_authority;
    taint_x509_authority: TaintX509AuthorityRequest, TaintX509AuthorityResponse, x509_authority;
    taint_x509_upstream_authority: TaintX509UpstreamAuthorityRequest, TaintX509UpstreamAuthorityResponse, x509_authority;
    revoke_x509_authority: RevokeX509AuthorityRequest, RevokeX509AuthorityResponse, x509_authority;
    revoke_x509_upstream_authority: RevokeX509UpstreamAuthorityRequest, RevokeX509UpstreamAuthorityResponse, x509_authority;
    get_jwt_authority_state: GetJwtAuthorityStateRequest, GetJwtAuthorityStateResponse, jwt_authority;
    prepare_jwt_authority: PrepareJwtAuthorityRequest, PrepareJwtAuthorityResponse, jwt_authority;
    activate_jwt_authority: ActivateJwtAuthorityRequest, ActivateJwtAuthorityResponse, jwt_authority;
    taint_jwt_authority: TaintJwtAuthorityRequest, TaintJwtAuthorityResponse, jwt_authority;
    revoke_jwt_authority: RevokeJwtAuthorityRequest, RevokeJwtAuthorityResponse, jwt_authority;
    get_wit_authority_state: GetWitAuthorityStateRequest, GetWitAuthorityStateResponse, wit_authority;
    prepare_wit_authority: PrepareWitAuthorityRequest, PrepareWitAuthorityResponse, wit_authority;
    activate_wit_authority: ActivateWitAuthorityRequest, ActivateWitAuthorityResponse, wit_authority;
    taint_wit_authority: TaintWitAuthorityRequest, TaintWitAuthorityResponse, wit_authority;
    revoke_wit_authority: RevokeWitAuthorityRequest, RevokeWitAuthorityResponse, wit_authority;
}
