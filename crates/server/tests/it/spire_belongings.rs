//! A start on what a real SPIRE server left behind: refused, and not a byte of it changed. The files in `data/spire` were written by
//! `spire-server` 1.16.0-dev; the keys in them were made for this test and are nobody's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_identity::x509::Certificate;
use countersign_server::{Config, Mismatch, ServerError};
use countersign_testkit::domain::FixedLevels;
use countersign_transport::client;
use countersign_transport::clock::SystemClock;
use countersign_wire::bundle_api::GetBundleRequest;
use countersign_wire::bundle_api::bundle_client::BundleClient;

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
    let config = config(directory.path());
    let started = countersign_server::start(&config, Arc::new(SystemClock), Arc::new(FixedLevels)).await;
    let error = started.expect_err("it must not start on what is SPIRE's");
    for name in names {
        assert_eq!(std::fs::read(place(name)).unwrap(), std::fs::read(spires(name)).unwrap(), "{name} was touched");
    }
    assert!(!place("server.id").exists(), "it is no server yet");
    if names.contains(&DATASTORE) {
        let found: BTreeSet<String> =
            std::fs::read_dir(directory.path()).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
        assert!(found.iter().map(String::as_str).eq(names.iter().copied().collect::<BTreeSet<_>>()), "{found:?}");
    }
    let hint = error.hint().unwrap();
    for word in ["connection_string", "keys_path", "import"] {
        assert!(hint.contains(word), "{hint}");
    }
    error
}

/// Of a server that has everything in this directory.
fn config(directory: &Path) -> Config {
    let dir = directory.display();
    let text = format!(
        "server {{\n trust_domain = \"example.org\"\n bind_address = \"127.0.0.1\"\n bind_port = 0\n socket_path = \"{dir}/api.sock\"\n \
         data_dir = \"{dir}\"\n}}\nplugins {{\n DataStore \"sql\" {{\n plugin_data {{\n database_type = \"sqlite3\"\n \
         connection_string = \"{dir}/{DATASTORE}\"\n }}\n }}\n KeyManager \"disk\" {{\n plugin_data {{\n keys_path = \"{dir}/{KEYS}\"\n \
         }}\n }}\n}}\n"
    );
    Config::read(countersign_config::parse("server.conf", &text).unwrap()).unwrap()
}

#[tokio::test]
async fn the_datastore_of_a_spire_server_is_left_byte_for_byte() {
    let error = refused(&[DATASTORE]).await;
    assert!(error.to_string().ends_with("holds a SPIRE datastore, which is never touched"), "{error}");
}

/// The likeliest mistake of a migration: SPIRE's server still runs.
#[tokio::test]
async fn the_datastore_of_a_spire_server_that_runs_is_left_alone_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(DATASTORE);
    std::fs::copy(spires(DATASTORE), &path).unwrap();
    let owner = rusqlite::Connection::open(&path).unwrap();
    owner.execute_batch("PRAGMA journal_mode=WAL; UPDATE bundles SET updated_at = updated_at;").unwrap();
    let names = || -> BTreeSet<_> { std::fs::read_dir(directory.path()).unwrap().map(|item| item.unwrap().file_name()).collect() };
    let (before, file) = (names(), std::fs::read(&path).unwrap());
    let started = countersign_server::start(&config(directory.path()), Arc::new(SystemClock), Arc::new(FixedLevels)).await;
    let error = started.expect_err("it must not start on what is SPIRE's");
    assert!(error.to_string().ends_with("holds a SPIRE datastore, which is never touched"), "{error}");
    assert_eq!((names(), std::fs::read(&path).unwrap()), (before, file));
    owner.execute_batch("UPDATE bundles SET updated_at = updated_at;").unwrap();
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

#[tokio::test]
async fn keys_of_a_spire_server_beside_a_store_of_ours_are_not_overwritten_either() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path());
    let running = countersign_server::start(&config, Arc::new(SystemClock), Arc::new(FixedLevels)).await.unwrap();
    let lost = {
        let mut api = BundleClient::new(client::unix(&running.socket_path).await.unwrap());
        let bundle = api.get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
        let certificate = Certificate::parse(&bundle.x509_authorities[0].asn1).unwrap();
        vec![certificate.authority_id()]
    };
    running.stop().await;
    let keys = directory.path().join(KEYS);
    std::fs::copy(spires(KEYS), &keys).unwrap();
    // Not even where the operator gives up the authority whose key is gone.
    for given_up in [false, true] {
        config = self::config(directory.path());
        config.replace_lost_authorities = if given_up { lost.clone() } else { Vec::new() };
        let error = countersign_server::start(&config, Arc::new(SystemClock), Arc::new(FixedLevels)).await.unwrap_err();
        assert!(matches!(error, ServerError::Mismatch(Mismatch::KeysForeign { .. })), "{error}");
        assert!(error.hint().unwrap().contains("keys_path"));
        assert_eq!(std::fs::read(&keys).unwrap(), std::fs::read(spires(KEYS)).unwrap());
    }
}
