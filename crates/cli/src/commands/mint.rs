//! `countersign x509 mint`, `countersign jwt mint`: identities without an agent, for administrators.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use countersign_identity::key::KeyType;
use countersign_identity::{SpiffeId, pem};
use countersign_plugins::keys::KeyPair;
use countersign_transport::files::replace;
use countersign_wire::bundle_api::GetBundleRequest;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::id;
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::svid::{MintJwtsvidRequest, MintX509svidRequest};
use serde_json::json;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::client::ServerSocket;
use crate::output::{self, Failure, Outcome, OutputArgs, time};

/// `countersign x509 …`
#[derive(Debug, Subcommand)]
pub(crate) enum X509 {
    /// Mint an X509-SVID with a new key
    Mint(MintX509),
}

/// `countersign jwt …`
#[derive(Debug, Subcommand)]
pub(crate) enum Jwt {
    /// Mint a JWT-SVID
    Mint(MintJwt),
}

#[derive(Debug, Args)]
pub(crate) struct MintX509 {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// The identity
    #[arg(long, value_name = "ID")]
    spiffe_id: SpiffeId,
    /// Lifetime in seconds [default: the server's]
    #[arg(long, value_name = "SECONDS", default_value_t = 0, hide_default_value = true)]
    ttl: i32,
    /// A DNS name; repeat for more
    #[arg(long = "dns", value_name = "NAME")]
    dns_names: Vec<String>,
    /// Write svid.pem, key.pem and bundle.pem into this directory instead of printing them
    #[arg(long, value_name = "DIRECTORY")]
    write: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct MintJwt {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// The identity
    #[arg(long, value_name = "ID")]
    spiffe_id: SpiffeId,
    /// Who the token is for; repeat for more
    #[arg(long, value_name = "AUDIENCE", required = true)]
    audience: Vec<String>,
    /// Lifetime in seconds [default: the server's]
    #[arg(long, value_name = "SECONDS", default_value_t = 0, hide_default_value = true)]
    ttl: i32,
    /// Write the token into this file instead of printing it
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

impl X509 {
    pub(crate) async fn run(self) -> Outcome {
        let Self::Mint(command) = self;
        let minted = x509(command.socket.connect().await?, &command.spiffe_id, &command.dns_names, command.ttl).await?;
        note_if_capped("X509-SVID", minted.expires_at, command.ttl);
        let pems = |ders: &[Vec<u8>]| ders.iter().map(|der| pem::write("CERTIFICATE", der)).collect::<String>();
        let (chain, roots) = (pems(&minted.chain), pems(&minted.roots));
        let key = Zeroizing::new(pem::write("PRIVATE KEY", minted.key.pkcs8()));
        if let Some(directory) = command.write {
            let said = [
                ("X509-SVID", "svid.pem", chain.as_bytes(), 0o644),
                ("Private key", "key.pem", key.as_bytes(), 0o600),
                ("Root CAs", "bundle.pem", roots.as_bytes(), 0o644),
            ];
            for (what, name, bytes, mode) in said {
                let path = directory.join(name);
                write_file(&path, bytes, mode)?;
                output::line(&format!("{what} written to {}", path.display()));
            }
            return Ok(());
        }
        use base64::Engine as _;
        let encode = |der: &[u8]| base64::engine::general_purpose::STANDARD.encode(der);
        let encode_all = |ders: &[Vec<u8>]| ders.iter().map(|d| encode(d)).collect::<Vec<_>>();
        command.output.show(
            || {
                json!({
                    "x509_svid": encode_all(&minted.chain),
                    "private_key": encode(minted.key.pkcs8()),
                    "root_cas": encode_all(&minted.roots),
                })
            },
            || format!("X509-SVID:\n{chain}\nPrivate key:\n{}\nRoot CAs:\n{roots}", *key),
        );
        Ok(())
    }
}

/// A minted X509-SVID with its key, and the roots to verify it with. All but the key in DER.
pub(crate) struct Minted {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: KeyPair,
    pub(crate) roots: Vec<Vec<u8>>,
    pub(crate) expires_at: i64,
}

/// Mints an X509-SVID with a new key. A lifetime of 0 leaves it to the server.
pub(crate) async fn x509(channel: Channel, spiffe_id: &SpiffeId, dns_names: &[String], ttl: i32) -> Result<Minted, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::new(format!("unable to mint SVID: {e}"));
    let key = KeyPair::generate(KeyType::EcP256).map_err(|e| failed(&e))?;
    let csr = key.request(Some(spiffe_id), dns_names).map_err(|e| failed(&e))?;
    let answer = SvidClient::new(channel.clone()).mint_x509svid(MintX509svidRequest { csr, ttl }).await;
    let svid = answer.map_err(|s| failed(&Failure::from(s)))?.into_inner().svid.unwrap_or_default();
    if svid.cert_chain.is_empty() {
        return Err(Failure::new("server response missing SVID chain"));
    }
    let own = BundleClient::new(channel).get_bundle(GetBundleRequest { output_mask: None }).await;
    let own = own.map_err(|s| Failure::new(format!("unable to get bundle: {}", Failure::from(s))))?.into_inner();
    if own.x509_authorities.is_empty() {
        return Err(Failure::new("server response missing X509 Authorities"));
    }
    let roots = own.x509_authorities.into_iter().map(|a| a.asn1).collect();
    Ok(Minted { chain: svid.cert_chain, key, roots, expires_at: svid.expires_at })
}

impl Jwt {
    pub(crate) async fn run(self) -> Outcome {
        let Self::Mint(command) = self;
        let request = MintJwtsvidRequest { id: Some(id::to_wire(&command.spiffe_id)), audience: command.audience, ttl: command.ttl };
        let svid = SvidClient::new(command.socket.connect().await?).mint_jwtsvid(request).await?.into_inner().svid.unwrap_or_default();
        note_if_capped("JWT-SVID", svid.expires_at, command.ttl);
        if let Some(path) = command.write {
            write_file(&path, svid.token.as_bytes(), 0o600)?;
            output::line(&format!("JWT-SVID written to {}", path.display()));
            return Ok(());
        }
        command.output.show(
            || json!({"svid": {"token": svid.token, "expires_at": svid.expires_at.to_string(), "issued_at": svid.issued_at.to_string()}}),
            || format!("{}\n", svid.token),
        );
        Ok(())
    }
}

/// Says so if an SVID ends earlier than was asked for; a lifetime of 0 asks for nothing.
pub(crate) fn note_if_capped(what: &str, expires_at: i64, ttl: i32) {
    let now = ::time::OffsetDateTime::now_utc().unix_timestamp();
    // A few seconds may pass between issuance and here.
    if ttl > 0 && expires_at + 5 < now + i64::from(ttl) {
        output::note(&format!("{what} lifetime was capped shorter than specified ttl; expires {:?}", time(expires_at)));
    }
}

/// Writes a file so that nobody reads half of it.
pub(super) fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    replace(path, bytes, mode).map_err(|e| Failure::new(format!("cannot write `{}`: {e}", path.display())))
}
