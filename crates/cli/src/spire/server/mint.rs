//! `spire-server x509 mint`, `jwt mint`, `wit mint`.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::key::KeyType;
use countersign_identity::pem;
use countersign_plugins::keys::KeyPair;
use countersign_wire::id;
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::svid::{MintJwtsvidRequest, MintWitsvidRequest};
use serde::Serialize;
use zeroize::Zeroizing;

use super::super::command::{answer, refused};
use super::super::connect::Target;
use super::super::flags::{Flag, Given, Kind, flag};
use super::super::go;
use super::{seconds, spiffe_id, within};
use crate::commands::mint::{self, note_if_capped};
use crate::output::{self, Failure, Outcome};

const ID: Flag = flag("spiffeID", Kind::Text, "SPIFFE ID of the SVID.");
const TTL: Flag = flag("ttl", Kind::Duration, "Lifetime, for example 1h30m; the server's unless given.");

pub(super) const X509: &[Flag] = &[
    ID,
    TTL,
    flag("dns", Kind::Texts, "DNS name in the SVID; repeat for more."),
    flag("write", Kind::Text, "Directory for svid.pem, key.pem and bundle.pem; they are printed unless given."),
];
pub(super) const JWT: &[Flag] = &[
    ID,
    TTL,
    flag("audience", Kind::Texts, "Who the token is for; repeat for more."),
    flag("write", Kind::Text, "File for the token; it is printed unless given."),
];
pub(super) const WIT: &[Flag] = &[
    ID,
    TTL,
    Flag { name: "keyType", kind: Kind::Text, default: "ec-p256", help: "Kind of the key: ec-p256, ec-p384, rsa-2048 or rsa-4096." },
    Flag { name: "signingAlgorithm", kind: Kind::Text, default: "ES256", help: "What the key signs with." },
    flag("write", Kind::Text, "Directory for token and key; they are printed unless given."),
];
const FAILED: &str = "unable to mint SVID";

fn named(given: &Given) -> Result<&str, Failure> {
    match given.text("spiffeID") {
        "" => Err(Failure::new("spiffeID must be specified")),
        id => Ok(id),
    }
}

#[derive(Serialize)]
struct Minted<'a> {
    x509_svid: Vec<String>,
    private_key: &'a str,
    root_cas: Vec<String>,
}

pub(super) async fn x509(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let spiffe_id = spiffe_id(named(&given)?)?;
    let ttl = seconds(given.number("ttl"), "TTL")?;
    let channel = target.connect().await.map_err(refused(FAILED))?;
    let minted = mint::x509(channel, &spiffe_id, given.texts("dns"), ttl).await?;
    note_if_capped("X509-SVID", minted.expires_at, ttl);
    let pems = |ders: &[Vec<u8>]| ders.iter().map(|der| pem::write("CERTIFICATE", der)).collect::<String>();
    let (chain, roots) = (pems(&minted.chain), pems(&minted.roots));
    let key = Zeroizing::new(pem::write("PRIVATE KEY", minted.key.pkcs8()));
    let directory = given.text("write");
    if !directory.is_empty() {
        let files = [
            ("SVID", "X509-SVID", "svid.pem", chain.as_bytes(), 0o644),
            ("key", "Private key", "key.pem", key.as_bytes(), 0o600),
            ("bundle", "Root CAs", "bundle.pem", roots.as_bytes(), 0o644),
        ];
        for (what, said, name, bytes, mode) in files {
            let path = joined(directory, name);
            write(what, &path, bytes, mode)?;
            output::line(&format!("{said} written to {path}"));
        }
        return Ok(());
    }
    if given.is_json() {
        let encoded = |ders: &[Vec<u8>]| ders.iter().map(|der| STANDARD.encode(der)).collect();
        let private_key = Zeroizing::new(STANDARD.encode(minted.key.pkcs8().as_slice()));
        let shown = Minted { x509_svid: encoded(&minted.chain), private_key: &private_key, root_cas: encoded(&minted.roots) };
        go::json(&shown).print_line();
        return Ok(());
    }
    output::text(&Zeroizing::new(format!("X509-SVID:\n{chain}\nPrivate key:\n{}\nRoot CAs:\n{roots}\n", *key)));
    Ok(())
}

/// A file in a directory, without doubled slashes.
pub(in crate::spire) fn joined(directory: &str, name: &str) -> String {
    std::path::Path::new(directory).components().collect::<std::path::PathBuf>().join(name).display().to_string()
}

/// Writes a file in place, as SPIRE does: what is there keeps its owner and its mode, and may be a link, a device or a mount.
/// A directory that is not there is not made.
pub(in crate::spire) fn put(path: &str, bytes: &[u8], mode: u32) -> Outcome {
    let failed = |verb| move |e: std::io::Error| Failure::new(format!("{verb} {path}: {}", go::system_error(&e.to_string())));
    let opened = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    let mut file = opened.map_err(failed("open"))?;
    file.write_all(bytes).map_err(failed("write"))?;
    match file.sync_all() {
        // Pipes and terminals cannot be synced, and need not be.
        Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
        synced => synced.map_err(failed("sync")),
    }
}

fn write(what: &str, path: &str, bytes: &[u8], mode: u32) -> Outcome {
    put(path, bytes, mode).map_err(within(&format!("unable to write {what}")))
}

pub(super) async fn jwt(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let name = named(&given)?;
    if given.texts("audience").is_empty() {
        return Err(Failure::new("at least one audience must be specified"));
    }
    let spiffe_id = spiffe_id(name)?;
    let ttl = seconds(given.number("ttl"), "TTL")?;
    let mut client = SvidClient::new(target.connect().await.map_err(refused(FAILED))?);
    let request = MintJwtsvidRequest { id: Some(id::to_wire(&spiffe_id)), audience: given.texts("audience").to_vec(), ttl };
    let response = client.mint_jwtsvid(request).await.map_err(refused(FAILED))?.into_inner();
    let svid = response.svid.as_ref().filter(|s| !s.token.is_empty()).ok_or_else(|| Failure::new("server response missing token"))?;
    note_if_capped("JWT-SVID", svid.expires_at, ttl);
    let path = given.text("write");
    if !path.is_empty() {
        write("token", path, svid.token.as_bytes(), 0o600)?;
        output::line(&format!("JWT-SVID written to {path}"));
        return Ok(());
    }
    answer(&given, "spire.api.server.svid.v1.MintJWTSVIDResponse", &response, |_| {
        output::line(&svid.token);
        Ok(())
    })
}

/// Servers of ours refuse it so far. The key is made and asked for as it will be.
pub(super) async fn wit(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let spiffe_id = spiffe_id(named(&given)?)?;
    let ttl = seconds(given.number("ttl"), "TTL")?;
    let algorithm = given.text("signingAlgorithm");
    let key_type = checked_key_type(given.text("keyType"), algorithm)?;
    let key = KeyPair::generate(key_type).map_err(|e| Failure::new(format!("could not generate public/private key pair: {e}")))?;
    let request = MintWitsvidRequest {
        id: Some(id::to_wire(&spiffe_id)),
        public_key: key.public_key().spki().to_vec(),
        ttl,
        signing_algorithm: algorithm.to_owned(),
    };
    let mut client = SvidClient::new(target.connect().await.map_err(refused(FAILED))?);
    client.mint_witsvid(request).await.map_err(refused(FAILED))?;
    Err(Failure::new("the server minted a WIT-SVID, which this build cannot write down with its key; nothing was kept"))
}

fn checked_key_type(key_type: &str, algorithm: &str) -> Result<KeyType, Failure> {
    match (algorithm, key_type) {
        ("RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512", "rsa-2048") => Ok(KeyType::Rsa2048),
        ("RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512", "rsa-4096") => Ok(KeyType::Rsa4096),
        ("RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512", _) => {
            Err(Failure::new(format!("unsupported key type '{key_type}' for signing algorithm '{algorithm}'")))
        }
        ("ES256", "ec-p256") => Ok(KeyType::EcP256),
        ("ES384", "ec-p384") => Ok(KeyType::EcP384),
        ("ES256" | "ES384", _) => Err(Failure::new(format!("unsupported key type '{key_type}' for '{algorithm}' signing algorithm"))),
        _ => Err(Failure::new(format!("unsupported signing algorithm: {algorithm}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_written_through_and_a_device_is_no_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::fs::write(&file, "longer than what comes").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        put(&link.display().to_string(), b"token", 0o600).expect("put");
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "token");
        assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());

        std::fs::remove_file(&link).expect("removed");
        std::os::unix::fs::symlink("/dev/null", &link).expect("linked");
        put(&link.display().to_string(), b"token", 0o600).expect("put");
        assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());

        let missing = directory.path().join("missing/file").display().to_string();
        let said = put(&missing, b"token", 0o600).expect_err("refused").to_string();
        assert_eq!(said, format!("open {missing}: no such file or directory"));
    }
}
