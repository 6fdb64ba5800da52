//! A start on what a real SPIRE server left behind: refused, and not a byte of it changed. The files in `data/spire` were written by
//! `spire-server` 1.16.0-dev; the keys in them were made for this test and are nobody's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_server::{Config, Mismatch, ServerError};
use countersign_testkit::domain::FixedLevels;
use countersign_transport::clock::SystemClock;

const DATASTORE: &str = "datastore.sqlite3";
const KEYS: &str = "keys.json";

fn spires(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/data/spire").join(name)
}

/// Tries to start on copies of these files of SPIRE's, and returns why that failed, when every byte of them is as it was.
async fn refused(names: &[&str]) -> ServerError {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    for name in names {
        std::fs::copy(spires(name), place(name)).unwrap();
    }
    let dir = directory.path().display();
    let text = format!(
        "server {{\n trust_domain = \"example.org\"\n bind_address = \"127.0.0.1\"\n bind_port = 0\n socket_path = \"{dir}/api.sock\"\n \
         data_dir = \"{dir}\"\n}}\nplugins {{\n DataStore \"sql\" {{\n plugin_data {{\n database_type = \"sqlite3\"\n \
         connection_string = \"{dir}/{DATASTORE}\"\n }}\n }}\n KeyManager \"disk\" {{\n plugin_data {{\n keys_path = \"{dir}/{KEYS}\"\n \
         }}\n }}\n}}\n"
    );
    let config = Config::read(countersign_config::parse("server.conf", &text).unwrap()).unwrap();
    let started = countersign_server::start(&config, Arc::new(SystemClock), Arc::new(FixedLevels)).await;
    let error = started.expect_err("it must not start on what is SPIRE's");
    for name in names {
        assert_eq!(std::fs::read(place(name)).unwrap(), std::fs::read(spires(name)).unwrap(), "{name} was touched");
    }
    assert!(!place("server.id").exists(), "it is no server yet");
    // SQLite makes an empty log beside what it reads; nothing may be in it.
    let log = std::fs::metadata(place(&format!("{DATASTORE}-wal"))).map_or(0, |m| m.len());
    assert!(log == 0 || !names.contains(&DATASTORE), "{log} bytes were written");
    let hint = error.hint().unwrap();
    for word in ["connection_string", "keys_path", "import"] {
        assert!(hint.contains(word), "{hint}");
    }
    error
}

#[tokio::test]
async fn the_datastore_of_a_spire_server_is_left_byte_for_byte() {
    let error = refused(&[DATASTORE]).await;
    assert!(error.to_string().ends_with("holds a SPIRE datastore, which is never touched"), "{error}");
}

#[tokio::test]
async fn the_keys_of_a_spire_server_are_left_byte_for_byte() {
    let error = refused(&[KEYS]).await;
    let ServerError::Mismatch(Mismatch::KeysForeign { ids }) = &error else { panic!("{error}") };
    assert_eq!(ids, &["JWT-Signer-A", "x509-CA-A"]);
}

#[tokio::test]
async fn everything_of_a_spire_server_is_left_byte_for_byte() {
    let error = refused(&[DATASTORE, KEYS]).await;
    assert!(error.to_string().contains(DATASTORE), "{error}");
}
