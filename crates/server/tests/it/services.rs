//! Every RPC there is: those of the `.proto` files, those of the authorization table, and that both are the same.

use std::collections::BTreeSet;
use std::path::Path;

use countersign_server::policy::table::TABLE;
use tonic::Code;

use crate::refusals::{Outcome, call};
use crate::world::Domain;

/// Services of these files that no server serves.
const NOT_THE_SERVERS: &[&str] =
    &["/SpiffeWorkloadAPI/", "/envoy.", "/countersign.agent.admin.v1.Admin/", "/spire.agent.debug.v1.Debug/", "/spire.api.agent."];

/// Services that come with gRPC and have no `.proto` file here.
const OF_GRPC: &[&str] = &["/grpc.health.v1.Health/"];

/// `/package.Service/Method` of every `rpc` in a `.proto` file.
fn methods(text: &str) -> Vec<String> {
    let (mut package, mut service) = (String::new(), String::new());
    let mut found = Vec::new();
    for line in text.lines().map(|l| l.split("//").next().unwrap().trim()) {
        let mut words = line.split(|c: char| c.is_whitespace() || matches!(c, '(' | ';' | '{')).filter(|w| !w.is_empty());
        match (words.next(), words.next()) {
            (Some("package"), Some(name)) => package = format!("{name}."),
            (Some("service"), Some(name)) => service = name.to_owned(),
            (Some("rpc"), Some(name)) => found.push(format!("/{package}{service}/{name}")),
            _ => {}
        }
    }
    found
}

fn declared() -> BTreeSet<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wire/proto");
    let files = std::fs::read_dir(&directory).unwrap().map(|f| f.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "proto"));
    files.flat_map(|path| methods(&std::fs::read_to_string(path).unwrap())).collect()
}

fn listed() -> BTreeSet<String> {
    TABLE.iter().map(|row| row.method.to_owned()).collect()
}

#[test]
fn the_scanner_of_proto_files_finds_every_method() {
    let text = "package a.b.v1;\n// rpc Not(X) returns (Y);\nservice S {\n  rpc One(X) returns (Y);\n  rpc Two (stream X) returns (stream Y) {}\n}\n";
    assert_eq!(methods(text), ["/a.b.v1.S/One", "/a.b.v1.S/Two"]);
    assert_eq!(methods("service W {\n  rpc Fetch(X) returns (Y);\n}\n"), ["/W/Fetch"]);
}

#[test]
fn every_method_that_is_declared_is_in_the_authorization_table() {
    let declared = declared();
    assert!(declared.len() > 40, "the scanner found only {declared:?}");
    let unlisted: Vec<&String> =
        declared.iter().filter(|m| !NOT_THE_SERVERS.iter().any(|s| m.starts_with(s))).filter(|m| !listed().contains(*m)).collect();
    assert!(unlisted.is_empty(), "these methods have no row in the authorization table: {unlisted:?}");
}

#[test]
fn every_row_of_the_authorization_table_is_a_method_that_is_declared() {
    let declared = declared();
    let unknown: Vec<&str> =
        TABLE.iter().map(|row| row.method).filter(|m| !declared.contains(*m) && !OF_GRPC.iter().any(|s| m.starts_with(s))).collect();
    assert!(unknown.is_empty(), "these rows name methods nobody declares: {unknown:?}");
    assert_eq!(listed().len(), TABLE.len(), "a method has two rows");
}

#[tokio::test]
async fn a_method_without_a_row_is_not_there_for_anybody_and_says_so_by_name() {
    let domain = Domain::start().await.unwrap();
    for channel in [domain.admin().await.unwrap(), domain.connect(None).await.unwrap()] {
        for method in [
            "/spire.api.server.trustdomain.v1.TrustDomain/NoSuchMethod",
            "/spire.agent.debug.v1.Debug/GetInfo",
            "/grpc.health.v1.Health/List",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/spire.api.server.agent.v1.Agent/NoSuchMethod",
            "/spire.api.server.agent.v1.Agent/BanAgent/",
            "/spire.api.server.agent.v1.agent/BanAgent",
            "/SpiffeWorkloadAPI/FetchX509SVID",
            "/countersign.agent.admin.v1.Admin/Explain",
        ] {
            let Outcome::Through(status) = call(channel.clone(), method).await else { panic!("{method} was refused") };
            let status = status.unwrap_or_else(|| panic!("{method} was answered"));
            assert_eq!(status.code(), Code::Unimplemented, "{method}");
            assert_eq!(status.message(), format!("{method} is not implemented by this Countersign server"));
        }
    }
}

#[tokio::test]
async fn what_is_still_to_come_is_refused_in_words_that_a_command_can_show() {
    let by_hand =
        "preparing, activating, tainting and revoking authorities is not implemented by this Countersign server; they rotate by themselves";
    let wit = "WIT-SVIDs are not implemented by this Countersign server";
    for (switch, jwt) in [("", by_hand), ("disable_jwt_svids = true", "JWT functionality is disabled")] {
        let domain = Domain::start_with(std::sync::Arc::new(countersign_transport::clock::SystemClock), switch).await.unwrap();
        let channel = domain.admin().await.unwrap();
        let service = "/spire.api.server.localauthority.v1.LocalAuthority/";
        let methods: Vec<&str> = TABLE.iter().map(|row| row.method).filter(|m| m.starts_with(service)).collect();
        assert_eq!(methods.len(), 17);
        for method in methods {
            let Outcome::Through(Some(status)) = call(channel.clone(), method).await else { panic!("{method} is not refused") };
            let family = if method.contains("JWT") {
                jwt
            } else if method.contains("WIT") {
                wit
            } else {
                by_hand
            };
            assert_eq!((status.code(), status.message()), (Code::Unimplemented, family), "{method}");
        }
    }
}
