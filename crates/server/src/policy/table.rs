//! The authorization table: every RPC by kind of caller. The code decides from these rows, the golden file shows them,
//! and an RPC that is served without a row fails a test.

use super::caller::Kind;

/// How far an administrator's right reaches. Today every row is about the whole trust domain; admins of one tenant are
/// a later column value, not a later design.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Nothing that belongs to anybody: public data, or the caller's own.
    Own,
    /// The whole trust domain.
    TrustDomain,
    /// This server process.
    Process,
}

/// One RPC and who may call it.
#[derive(Debug)]
pub struct Row {
    /// `/package.Service/Method`.
    pub method: &'static str,
    /// Kinds of caller, any of which is enough.
    pub kinds: &'static [Kind],
    /// How far the right reaches.
    pub scope: Scope,
}

const ANYONE: &[Kind] = &[Kind::Anyone];
const LOCAL: &[Kind] = &[Kind::Local];
const ADMIN: &[Kind] = &[Kind::Local, Kind::Admin];
const AGENT: &[Kind] = &[Kind::Agent];
const ADMIN_OR_AGENT: &[Kind] = &[Kind::Local, Kind::Admin, Kind::Agent];
const DOWNSTREAM: &[Kind] = &[Kind::Downstream];

const fn row(method: &'static str, kinds: &'static [Kind], scope: Scope) -> Row {
    Row { method, kinds, scope }
}

/// Every row, in the order of the services.
pub const TABLE: &[Row] = &[
    row("/spire.api.server.agent.v1.Agent/AttestAgent", ANYONE, Scope::Own),
    row("/spire.api.server.agent.v1.Agent/BanAgent", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.agent.v1.Agent/CountAgents", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.agent.v1.Agent/CreateJoinToken", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.agent.v1.Agent/DeleteAgent", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.agent.v1.Agent/GetAgent", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.agent.v1.Agent/ListAgents", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.agent.v1.Agent/PostStatus", AGENT, Scope::Own),
    row("/spire.api.server.agent.v1.Agent/RenewAgent", AGENT, Scope::Own),
    row("/spire.api.server.bundle.v1.Bundle/AppendBundle", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.bundle.v1.Bundle/CountBundles", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.bundle.v1.Bundle/GetBundle", ANYONE, Scope::Own),
    row("/spire.api.server.bundle.v1.Bundle/GetFederatedBundle", ADMIN_OR_AGENT, Scope::TrustDomain),
    row("/spire.api.server.bundle.v1.Bundle/ListFederatedBundles", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority", DOWNSTREAM, Scope::TrustDomain),
    row("/spire.api.server.bundle.v1.Bundle/PublishWITAuthority", DOWNSTREAM, Scope::TrustDomain),
    row("/spire.api.server.entry.v1.Entry/BatchCreateEntry", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.entry.v1.Entry/BatchUpdateEntry", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.entry.v1.Entry/CountEntries", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.entry.v1.Entry/GetAuthorizedEntries", AGENT, Scope::Own),
    row("/spire.api.server.entry.v1.Entry/GetEntry", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.entry.v1.Entry/ListEntries", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries", AGENT, Scope::Own),
    row("/spire.api.server.svid.v1.SVID/BatchNewWITSVID", AGENT, Scope::Own),
    row("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", AGENT, Scope::Own),
    row("/spire.api.server.svid.v1.SVID/MintJWTSVID", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.svid.v1.SVID/MintWITSVID", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.svid.v1.SVID/MintX509SVID", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", DOWNSTREAM, Scope::TrustDomain),
    row("/spire.api.server.svid.v1.SVID/NewJWTSVID", AGENT, Scope::Own),
    row("/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority", ADMIN, Scope::TrustDomain),
    row("/spire.api.server.debug.v1.Debug/GetInfo", LOCAL, Scope::Process),
    row("/spire.api.server.logger.v1.Logger/GetLogger", LOCAL, Scope::Process),
    row("/spire.api.server.logger.v1.Logger/ResetLogLevel", LOCAL, Scope::Process),
    row("/spire.api.server.logger.v1.Logger/SetLogLevel", LOCAL, Scope::Process),
    row("/grpc.health.v1.Health/Check", LOCAL, Scope::Process),
    row("/grpc.health.v1.Health/Watch", LOCAL, Scope::Process),
    row("/countersign.agent.v1.Node/Follow", AGENT, Scope::Own),
    row("/countersign.agent.v1.Node/Issue", AGENT, Scope::Own),
    row("/countersign.entry.v1.EntryExplainer/ExplainEntry", ADMIN, Scope::TrustDomain),
    row("/countersign.journal.v1.Journal/Issued", ADMIN, Scope::TrustDomain),
];

/// The row of a method.
pub(crate) fn find(method: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.method == method)
}

/// The table as people read it, and as the golden file holds it.
pub fn render() -> String {
    use std::fmt::Write as _;
    let mut text = String::from("| method | callers | scope |\n| --- | --- | --- |\n");
    for row in TABLE {
        let kinds: Vec<&str> = row.kinds.iter().map(|k| k.name()).collect();
        let scope = match row.scope {
            Scope::Own => "own",
            Scope::TrustDomain => "trust domain",
            Scope::Process => "process",
        };
        let _ = writeln!(text, "| `{}` | {} | {scope} |", row.method.trim_start_matches('/'), kinds.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_golden_file_shows_the_table() {
        expect_test::expect_file!["../../../../docs/reference/authorization.md"].assert_eq(&format!(
            "# Who may call what\n\nGenerated from the table the server decides from (`crates/server/src/policy/table.rs`).\n\n{}",
            super::render()
        ));
    }
}
