//! Each configuration key, tried on the readers that `run` and `validate` use.
//!
//! A key is a path of JSON: `*` stands for a name of the operator's choice, `[]` for the only element of a list. `with` is what
//! the key needs beside it, as a JSON merge patch.

use std::path::Path;

use countersign_config::ConfigError;
use serde_json::{Map, Value, json};

use super::rows::{Row, Status, rows};

/// Stands in the rows for the directory of the files that keys name.
const DIRECTORY: &str = "DIR";
/// What an operator may name freely.
const NAME: &str = "other.example";

/// The smallest configuration that is right.
fn smallest(side: &str) -> Value {
    match side {
        "server" => json!({
            "server": { "trust_domain": "example.org", "data_dir": DIRECTORY },
            "plugins": {
                "DataStore": { "sql": { "plugin_data": { "database_type": "sqlite3", "connection_string": "DIR/datastore.sqlite3" } } },
                "KeyManager": { "memory": { "plugin_data": {} } },
            },
        }),
        _ => json!({
            "agent": {
                "trust_domain": "example.org", "server_address": "localhost", "server_port": 8081, "data_dir": DIRECTORY,
                "insecure_bootstrap": true,
            },
            "plugins": {
                "KeyManager": { "memory": { "plugin_data": {} } },
                "NodeAttestor": { "join_token": { "plugin_data": {} } },
                "WorkloadAttestor": { "unix": { "plugin_data": {} } },
            },
        }),
    }
}

/// Puts a value at the end of a path, making the blocks on the way.
fn set(tree: &mut Value, path: &[String], value: Value) {
    let Some((first, rest)) = path.split_first() else {
        *tree = value;
        return;
    };
    if first == "[]" {
        if !tree.is_array() {
            *tree = json!([{}]);
        }
        return set(tree.as_array_mut().unwrap().first_mut().unwrap(), rest, value);
    }
    if !tree.is_object() {
        *tree = json!({});
    }
    set(tree.as_object_mut().unwrap().entry(first.clone()).or_insert(Value::Null), rest, value);
}

/// RFC 7396.
fn merge(tree: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *tree = patch;
        return;
    };
    if !tree.is_object() {
        *tree = json!({});
    }
    let object: &mut Map<String, Value> = tree.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            object.remove(&key);
        } else {
            merge(object.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// The smallest configuration with the key of this row.
fn with(row: &Row, side: &str, directory: &Path) -> String {
    let mut tree = smallest(side);
    let path: Vec<String> =
        row.get("key").replace("[]", ".[]").split('.').map(|part| if part == "*" { NAME.to_owned() } else { part.to_owned() }).collect();
    if let [plugins, kind, _, ..] = path.as_slice()
        && plugins == "plugins"
    {
        // One plugin of a kind: of most no more are allowed.
        set(&mut tree, &[plugins.clone(), kind.clone()], json!({}));
    }
    if !row.get("with").is_empty() {
        merge(&mut tree, serde_json::from_str(row.get("with")).unwrap_or_else(|e| panic!("{}: {e}", row.place())));
    }
    set(&mut tree, &path, serde_json::from_str(row.get("value")).unwrap_or_else(|e| panic!("{}: {e}", row.place())));
    tree.to_string().replace(DIRECTORY, &directory.display().to_string())
}

fn read(side: &str, text: &str) -> Result<(), ConfigError> {
    let parsed = countersign_config::parse("row.json", text)?;
    match side {
        "server" => countersign_server::Config::read(parsed).map(drop),
        _ => countersign_agent::Config::read(parsed).map(drop),
    }
}

/// The files that rows name.
fn write_files(directory: &Path) {
    let certified = rcgen::generate_simple_self_signed(vec!["example.org".to_owned()]).unwrap();
    std::fs::write(directory.join("bundle.pem"), certified.cert.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), certified.signing_key.serialize_pem()).unwrap();
    std::fs::write(directory.join("token"), "token\n").unwrap();
    std::fs::write(directory.join("plugin.conf"), "").unwrap();
    std::fs::create_dir(directory.join("keys")).unwrap();
}

/// What is wrong with a row, if anything.
fn complaint(row: &Row, side: &str, directory: &Path) -> Option<String> {
    let outcome = read(side, &with(row, side, directory)).map_err(|e| e.to_string());
    let complaint = match (row.status(), &outcome) {
        (Status::Done, Err(refusal)) => format!("is said to be done and is refused: {refusal}"),
        (Status::NotYet, Ok(())) => "is said to be missing and is accepted".to_owned(),
        (Status::NotYet | Status::Different, Err(refusal)) if refusal.contains("unknown configuration detected") => {
            format!("is not recognised: {refusal}")
        }
        (Status::NotYet, Err(refusal)) if !refusal.contains("hint: ") => {
            format!("is refused without a hint: {refusal}")
        }
        _ => return None,
    };
    Some(format!("{}: `{}` {complaint}", row.place(), row.get("key")))
}

fn check(side: &str) {
    let directory = tempfile::tempdir().unwrap();
    write_files(directory.path());
    let rows = rows(&format!("{side}-configuration"));
    assert!(read(side, &smallest(side).to_string().replace(DIRECTORY, &directory.path().display().to_string())).is_ok());
    let complaints: Vec<String> = rows.iter().filter_map(|row| complaint(row, side, directory.path())).collect();
    assert!(complaints.is_empty(), "{} of {} rows:\n{}", complaints.len(), rows.len(), complaints.join("\n"));
}

#[test]
fn every_key_of_the_servers_configuration_has_the_status_its_row_says() {
    check("server");
}

#[test]
fn every_key_of_the_agents_configuration_has_the_status_its_row_says() {
    check("agent");
}
