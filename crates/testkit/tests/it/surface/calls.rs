//! Each call of the reference, made to a real server and a real agent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::key::KeyType;
use countersign_identity::x509::Certificate;
use countersign_plugins::keys::KeyPair;
use countersign_server::policy::table::TABLE;
use countersign_testkit::domain::{Anyhow, Domain, NodeIdentity, own_uid, spiffe_id};
use countersign_transport::client;
use countersign_wire::svid::MintX509svidRequest;
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::{id, types};
use http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::rows::{Row, Status, root, rows};

/// How long a call is waited for; a stream that is open and silent is there.
const PATIENCE: Duration = Duration::from_secs(5);
/// Packages of our own, which the reference does not have.
const OURS: &str = "/countersign.";

/// Whether the method is there for this caller; `None` if the caller may not call it.
async fn is_there(channel: &Channel, method: &str) -> Option<bool> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::try_from(method).unwrap();
    // An empty message decodes as any other, and a stream of one message is a unary call.
    let mut request = Request::new(());
    // Without it the Workload API answers nothing else.
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let call = async {
        let answer = grpc.server_streaming(request, path, ProstCodec::<(), ()>::default()).await?;
        answer.into_inner().message().await
    };
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Err(status)) if status.code() == Code::PermissionDenied && status.message().starts_with("authorization denied for method") => {
            None
        }
        Ok(Err(status)) => Some(status.code() != Code::Unimplemented),
        Ok(Ok(_)) | Err(_) => Some(true),
    }
}

/// A caller that has an entry as a server below this one.
async fn downstream(domain: &Domain) -> Result<NodeIdentity, Anyhow> {
    let name = spiffe_id("/downstream");
    domain
        .entry_from(types::Entry {
            spiffe_id: Some(id::to_wire(&name)),
            parent_id: Some(id::to_wire(&spiffe_id("/spire/server"))),
            selectors: id::selectors_to_wire(&[own_uid()]),
            downstream: true,
            ..types::Entry::default()
        })
        .await?;
    let pair = Arc::new(KeyPair::generate(KeyType::EcP256)?);
    let request = MintX509svidRequest { csr: pair.request(Some(&name), &[])?, ttl: 600 };
    let chain = SvidClient::new(domain.admin().await?).mint_x509svid(request).await?.into_inner().svid.ok_or("no SVID")?.cert_chain;
    let leaf = Certificate::parse(chain.first().ok_or("no certificate")?)?;
    Ok(NodeIdentity { id: name, chain, pair, leaf })
}

async fn complaint(row: &Row, callers: &[Channel]) -> Option<String> {
    let method = row.get("method");
    let mut found = None;
    for caller in callers {
        found = found.or(is_there(caller, method).await);
    }
    let complaint = match (row.status(), found) {
        (_, None) => "may be called by nobody",
        (Status::Done, Some(false)) => "is said to be done and is not there",
        (Status::NotYet, Some(true)) => "is said not to be there and is",
        _ => return None,
    };
    Some(format!("{}: {method} {complaint}", row.place()))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_has_the_status_its_row_says() {
    let domain = Domain::start().await.unwrap();
    let node = domain.join(&domain.token(None).await.unwrap()).await.unwrap();
    let below = downstream(&domain).await.unwrap();
    let server = [domain.admin().await.unwrap(), domain.connect(Some(&node)).await.unwrap(), domain.connect(Some(&below)).await.unwrap()];
    let admin_socket = domain.directory().join("admin/agent.sock");
    let token = domain.token(None).await.unwrap();
    let extra = format!("admin_socket_path = \"{}\"", admin_socket.display());
    let config = domain.agent_config("a", Some(&token), &extra).await.unwrap();
    let _agent = domain.run_agent(&config).await.unwrap();
    let workload = [client::unix(&domain.directory().join("a/agent.sock")).await.unwrap()];
    let admin = [client::unix(&admin_socket).await.unwrap()];

    let mut complaints = Vec::new();
    for row in rows("rpcs") {
        let callers = match row.get("socket") {
            "server" => server.as_slice(),
            "workload" => &workload,
            "admin" => &admin,
            "broker" => {
                assert_eq!(row.status(), Status::NotYet, "{}: there is no broker socket to ask", row.place());
                continue;
            }
            other => panic!("{}: there is no socket `{other}`", row.place()),
        };
        complaints.extend(complaint(&row, callers).await);
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// `/package.Service/Method` of everything our `.proto` files declare.
fn declared() -> BTreeSet<String> {
    let folder = root().join("crates/wire/proto");
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).collect();
    let names = files.iter().filter(|path| path.extension().is_some_and(|e| e == "proto")).map(|path| path.file_name().unwrap());
    let set = protox::compile(names, [&folder]).unwrap();
    let mut found = BTreeSet::new();
    for file in &set.file {
        let package = if file.package().is_empty() { String::new() } else { format!("{}.", file.package()) };
        for service in &file.service {
            found.extend(service.method.iter().map(|method| format!("/{package}{}/{}", service.name(), method.name())));
        }
    }
    found
}

#[test]
fn every_call_that_is_declared_or_in_the_authorization_table_has_a_row() {
    let known: BTreeSet<&str> = rows("rpcs").iter().map(|row| row.get("method")).collect();
    let declared = declared();
    assert!(declared.len() > 80, "only {declared:?} are declared");
    let ours = declared.iter().map(String::as_str).chain(TABLE.iter().map(|row| row.method)).filter(|method| !method.starts_with(OURS));
    let without: BTreeSet<&str> = ours.filter(|method| !known.contains(method)).collect();
    assert!(without.is_empty(), "these have no row: {without:?}");
}

#[test]
fn every_call_of_a_row_is_declared_unless_its_service_is_not_there() {
    let declared = declared();
    let of_grpc = ["/grpc.health.v1.", "/grpc.reflection."];
    let lost: Vec<&str> = rows("rpcs")
        .iter()
        .filter(|row| row.status() == Status::Done)
        .map(|row| row.get("method"))
        .filter(|method| !declared.contains(*method) && !of_grpc.iter().any(|package| method.starts_with(package)))
        .collect();
    assert!(lost.is_empty(), "no `.proto` file declares {lost:?}");
}
