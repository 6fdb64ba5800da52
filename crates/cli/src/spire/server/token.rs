//! `spire-server token generate`

use countersign_wire::agent::CreateJoinTokenRequest;
use countersign_wire::agent::agent_client::AgentClient;

use super::super::command::{answer, refused};
use super::super::connect::Target;
use super::super::flags::{Flag, Given, Kind, flag};
use super::{narrow, wire_id};
use crate::output::{self, Outcome};

pub(super) const FLAGS: &[Flag] = &[
    Flag { name: "ttl", kind: Kind::Number, default: "600", help: "Lifetime of the token in seconds." },
    flag("spiffeID", Kind::Text, "A SPIFFE ID for the node that outlives the token."),
];

pub(super) async fn generate(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let name = given.text("spiffeID");
    let agent_id = if name.is_empty() { None } else { Some(wire_id(name)?) };
    let request = CreateJoinTokenRequest { ttl: narrow(given.number("ttl"), "TTL")?, token: String::new(), agent_id };
    let mut client = AgentClient::new(target.connect().await.map_err(refused(""))?);
    let token = client.create_join_token(request).await.map_err(refused(""))?.into_inner();
    answer(&given, "spire.api.types.JoinToken", &token, |m| {
        let warning = if name.is_empty() { "Warning: Missing SPIFFE ID.\n" } else { "" };
        output::text(&format!("Token: {}\n{warning}", m.value));
        Ok(())
    })
}
