//! `spire-server debug getinfo`

use countersign_wire::debug::GetInfoRequest;
use countersign_wire::debug::debug_client::DebugClient;

use super::super::command::{answer, refused};
use super::super::connect::Target;
use super::super::flags::Given;
use super::super::go;
use crate::commands::show;
use crate::output::{self, Outcome};

pub(super) async fn info(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let mut client = DebugClient::new(target.connect().await.map_err(refused(""))?);
    let info = client.get_info(GetInfoRequest {}).await.map_err(refused(""))?.into_inner();
    answer(&given, "spire.api.server.debug.v1.GetInfoResponse", &info, |m| {
        let mut text = format!(
            "Server Debug Info:\n  Uptime:                  {}\n  Registered Agents:       {}\n  Registration Entries:    {}\n  Federated Bundles:       {}\n",
            go::duration(i64::from(m.uptime) * 1_000_000_000),
            m.agents_count,
            m.entries_count,
            m.federated_bundles_count
        );
        text += &chain(m.svid_chain.iter().map(|c| (show::spiffe_id(c.id.as_ref()), c.subject.as_str(), c.expires_at)));
        output::text(&text);
        Ok(())
    })
}

/// A chain of certificates, as the server and the agent show theirs.
pub(in crate::spire) fn chain<'a>(certificates: impl Iterator<Item = (String, &'a str, i64)>) -> String {
    let mut text = String::new();
    for (index, (id, subject, expires_at)) in certificates.enumerate() {
        if index == 0 {
            text += "  SVID Chain:\n";
        }
        let id = if id.is_empty() { "(none)" } else { &id };
        let (id, subject, end) = (output::clean(id), output::clean(subject), output::time(expires_at));
        text += &format!("    [{index}] SPIFFE ID:  {id}\n        Subject:    {subject}\n        Expires At: {end}\n");
    }
    text
}
