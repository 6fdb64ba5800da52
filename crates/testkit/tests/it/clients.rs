//! go-spiffe and the Python client, unmodified, against the real binary.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Up, prepared, said};

fn go(arguments: &[&str]) -> Command {
    let mut command = Command::new(prepared("COUNTERSIGN_TEST_GO_CLIENT", "go-client"));
    command.args(arguments);
    command
}

fn python(arguments: &[&str]) -> Command {
    let mut command = Command::new(prepared("COUNTERSIGN_TEST_PYTHON", "python/bin/python"));
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/python/client.py")).args(arguments);
    command
}

fn own_id(up: &Up) -> String {
    up.json(&["whoami"])["svids"][0]["spiffe_id"].as_str().unwrap().to_owned()
}

#[test]
fn go_spiffe_and_the_python_client_get_x509_svids() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let (id, socket) = (own_id(&up), up.agent_socket());
    assert_eq!(said(go(&["x509", &socket]))["spiffe_id"], Value::from(id.as_str()));
    assert_eq!(said(python(&["x509", &socket]))["spiffe_ids"], serde_json::json!([id]));
    assert_eq!(said(python(&["source", &socket]))["spiffe_id"], Value::from(id.as_str()));
    up.stop();
}

#[test]
fn go_spiffe_and_the_python_client_get_and_validate_jwt_svids() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let (id, socket) = (own_id(&up), up.agent_socket());
    assert_eq!(said(go(&["jwt", &socket, "billing"]))["spiffe_id"], Value::from(id.as_str()));
    let python = said(python(&["jwt", &socket, "billing"]));
    assert_eq!(python["spiffe_id"], Value::from(id.as_str()));
    assert_eq!(python["audience"], serde_json::json!(["billing"]));
    up.stop();
}

#[test]
fn two_programs_with_go_spiffe_talk_mutual_tls() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let said = said(go(&["mtls", &up.agent_socket()]));
    assert_eq!(said["server_saw"], Value::from(format!("{} says hello\n", own_id(&up))));
    up.stop();
}

#[test]
fn a_go_program_sees_its_svid_replaced_on_the_open_stream() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let mut watching = go(&["watch", &up.agent_socket(), "2"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    // The certificate is another one when its entry asks for other DNS names.
    let entries = up.json(&["entry", "show", "--spiffe-id", first["spiffe_id"].as_str().unwrap()]);
    let entry = entries["entries"][0]["id"].as_str().unwrap().to_owned();
    let selector = &entries["entries"][0]["selectors"][0];
    let selector = format!("{}:{}", selector["type"].as_str().unwrap(), selector["value"].as_str().unwrap());
    let id = first["spiffe_id"].as_str().unwrap();
    up.ok(&[
        "entry",
        "update",
        "--entry-id",
        &entry,
        "--spiffe-id",
        id,
        "--parent-id",
        "spiffe://example.org/up/node",
        "--selector",
        &selector,
        "--dns",
        "web.test",
    ]);
    let second: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(second["spiffe_id"], first["spiffe_id"]);
    assert_ne!(second["serial"], first["serial"]);
    assert!(watching.wait().unwrap().success());
    up.stop();
}

#[test]
fn a_denial_reads_to_the_python_client_as_spires_does() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let ids: Vec<String> = up.json(&["entry", "show", "--selector", &own_selector()])["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["id"].as_str().unwrap().to_owned())
        .collect();
    for id in ids {
        up.ok(&["entry", "delete", "--entry-id", &id]);
    }
    // The deletion is on its way to the agent.
    while up.run(&["whoami"]).status.success() {}
    let denied = said(python(&["denied", &up.agent_socket()]));
    assert!(denied["denied"].as_str().unwrap().contains("no identity issued"), "{denied}");
    up.stop();
}

fn own_selector() -> String {
    let uid = Command::new("id").arg("-u").output().unwrap();
    format!("unix:uid:{}", String::from_utf8(uid.stdout).unwrap().trim())
}
