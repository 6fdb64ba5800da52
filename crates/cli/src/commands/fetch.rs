//! `countersign whoami`, `fetch …`, `validate …`: what a workload sees.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use countersign_identity::x509::Certificate;
use countersign_identity::{SpiffeId, jwt, pem};
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_wire::workload::{self as wire, X509svidResponse};
use serde_json::{Value, json};
use tonic::transport::Channel;
use zeroize::Zeroizing;

use super::mint::write_file;
use super::watch::{self, Choice, Watch};
use crate::client::{WorkloadSocket, workload_request};
use crate::output::{self, Failure, Outcome, OutputArgs};

/// `countersign whoami`
#[derive(Debug, Args)]
pub(crate) struct Whoami {
    #[command(flatten)]
    common: Common,
}

/// `countersign fetch …`
#[derive(Debug, Subcommand)]
pub(crate) enum Fetch {
    /// Fetch X509-SVIDs with their keys and bundles
    X509(FetchX509),
    /// Fetch JWT-SVIDs
    Jwt(FetchJwt),
    /// Fetch the bundles this workload may use
    Bundle(FetchBundle),
}

/// `countersign validate …`
#[derive(Debug, Subcommand)]
pub(crate) enum Validate {
    /// Validate a JWT-SVID for an audience
    Jwt(ValidateJwt),
}

#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    socket: WorkloadSocket,
    #[command(flatten)]
    output: OutputArgs,
    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    timeout: u64,
}

#[derive(Debug, Args)]
pub(crate) struct FetchX509 {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    choice: Choice,
    /// Write svid.N.pem, svid.N.key (mode 0600) and bundle.N.pem into this directory
    #[arg(long, value_name = "DIRECTORY")]
    write: Option<PathBuf>,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Debug, Args)]
pub(crate) struct FetchJwt {
    #[command(flatten)]
    common: Common,
    /// Who the token is for; repeat for more
    #[arg(long, value_name = "AUDIENCE", required = true)]
    audience: Vec<String>,
    /// Only this identity
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<SpiffeId>,
    /// Write jwt_svid.N.token (mode 0600) into this directory
    #[arg(long, value_name = "DIRECTORY")]
    write: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct FetchBundle {
    #[command(flatten)]
    common: Common,
    /// Write <trust domain>.pem and <trust domain>.jwks.json into this directory
    #[arg(long, value_name = "DIRECTORY")]
    write: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ValidateJwt {
    #[command(flatten)]
    common: Common,
    /// Who the token must be for
    #[arg(long)]
    audience: String,
    /// The token, or `-` for standard input, which `ps` does not show
    #[arg(long, value_name = "TOKEN")]
    svid: String,
}

impl Common {
    async fn client(&self) -> Result<SpiffeWorkloadApiClient<Channel>, Failure> {
        Ok(SpiffeWorkloadApiClient::new(self.socket.connect().await?))
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = workload_request(message);
        request.set_timeout(Duration::from_secs(self.timeout));
        request
    }

    async fn x509(&self) -> Result<X509svidResponse, Failure> {
        let answer = self.client().await?.fetch_x509svid(self.request(wire::X509svidRequest {})).await;
        let mut stream = answer.map_err(refused)?.into_inner();
        stream.message().await.map_err(refused)?.ok_or_else(|| Failure::new("the agent ended the stream"))
    }
}

/// A denial says what to do next.
fn refused(status: tonic::Status) -> Failure {
    if status.code() == tonic::Code::PermissionDenied {
        let uid = rustix::process::geteuid().as_raw();
        return Failure::new(format!(
            "{}: no registration entry fits this process (unix:uid:{uid}); `countersign explain` says what is missing for you, \
             `countersign explain --pid N` for a running process, and `countersign entry create` on the server creates an entry",
            status.message()
        ));
    }
    Failure::new(status.message())
}

impl Whoami {
    pub(crate) async fn run(self) -> Outcome {
        let answer = self.common.x509().await?;
        self.common.output.show(
            || json!({"svids": answer.svids.iter().map(|s| svid_json(s, false)).collect::<Vec<_>>()}),
            || {
                answer.svids.iter().fold(String::new(), |text, svid| {
                    let end = Certificate::parse_concatenated(&svid.x509_svid).ok().and_then(|c| c.first().map(|l| l.not_after));
                    let until = end.map_or_else(String::new, |e| format!(" until {e}"));
                    let hint = if svid.hint.is_empty() { String::new() } else { format!(" ({})", svid.hint) };
                    text + &format!("{}{hint}{until}\n", svid.spiffe_id)
                })
            },
        );
        Ok(())
    }
}

fn svid_json(svid: &wire::X509svid, with_key: bool) -> Value {
    use base64::Engine as _;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let mut value =
        json!({"spiffe_id": svid.spiffe_id, "hint": svid.hint, "x509_svid": encode(&svid.x509_svid), "bundle": encode(&svid.bundle)});
    if with_key && let Value::Object(members) = &mut value {
        members.insert("x509_svid_key".to_owned(), encode(&svid.x509_svid_key).into());
    }
    value
}

impl Fetch {
    pub(crate) async fn run(self) -> Outcome {
        match self {
            Self::X509(command) => fetch_x509(command).await,
            Self::Jwt(command) => fetch_jwt(command).await,
            Self::Bundle(command) => fetch_bundle(command).await,
        }
    }
}

fn pem_chain(der: &[u8]) -> Result<(String, Vec<Certificate>), Failure> {
    let certificates =
        Certificate::parse_concatenated(der).map_err(|e| Failure::new(format!("the agent sent an unusable certificate: {e}")))?;
    Ok((certificates.iter().map(|c| pem::write("CERTIFICATE", c.der())).collect(), certificates))
}

async fn fetch_x509(command: FetchX509) -> Outcome {
    if let Some(directory) = &command.write {
        if command.watch.is_asked_for() {
            return command.watch.run(command.common.socket, directory, command.choice).await;
        }
        if watch::is_kept(directory) {
            let directory = directory.display();
            return Err(Failure::new(format!("the files in `{directory}` are kept by --watch; write to another directory")));
        }
    }
    let mut answer = command.common.x509().await?;
    command.choice.apply(&mut answer.svids).map_err(Failure::new)?;
    let mut shown = format!("Received {}\n\n", output::count(answer.svids.len(), "svid", "svids"));
    for (index, svid) in answer.svids.iter().enumerate() {
        let (chain, certificates) = pem_chain(&svid.x509_svid)?;
        let (bundle, _) = pem_chain(&svid.bundle)?;
        shown += &format!("SPIFFE ID:\t\t{}\n", svid.spiffe_id);
        if !svid.hint.is_empty() {
            shown += &format!("Hint:\t\t\t{}\n", svid.hint);
        }
        if let Some(leaf) = certificates.first() {
            shown += &format!(
                "SVID Valid After:\t{}\nSVID Valid Until:\t{}\nSerial Number:\t\t{}\n",
                leaf.not_before,
                leaf.not_after,
                leaf.serial_decimal()
            );
        }
        if let Some(directory) = &command.write {
            let key = Zeroizing::new(pem::write("PRIVATE KEY", &svid.x509_svid_key));
            shown += &written(directory, "SVID", index, &format!("svid.{index}.pem"), chain.as_bytes(), 0o644)?;
            shown += &written(directory, "key", index, &format!("svid.{index}.key"), key.as_bytes(), 0o600)?;
            shown += &written(directory, "bundle", index, &format!("bundle.{index}.pem"), bundle.as_bytes(), 0o644)?;
        }
        shown.push('\n');
    }
    command.common.output.show(|| json!({"svids": answer.svids.iter().map(|s| svid_json(s, true)).collect::<Vec<_>>()}), || shown);
    Ok(())
}

fn written(directory: &Path, what: &str, index: usize, name: &str, bytes: &[u8], mode: u32) -> Result<String, Failure> {
    let path = directory.join(name);
    write_file(&path, bytes, mode)?;
    Ok(format!("Writing {what} #{index} to file {}.\n", path.display()))
}

async fn fetch_jwt(command: FetchJwt) -> Outcome {
    let spiffe_id = command.spiffe_id.map(|i| i.to_string()).unwrap_or_default();
    let request = command.common.request(wire::JwtsvidRequest { audience: command.audience, spiffe_id });
    let answer = command.common.client().await?.fetch_jwtsvid(request).await.map_err(refused)?.into_inner();
    let mut shown = String::new();
    for (index, svid) in answer.svids.iter().enumerate() {
        shown += &format!("token({}):\n\t{}\n", svid.spiffe_id, svid.svid);
        if !svid.hint.is_empty() {
            shown += &format!("hint({}):\n\t{}\n", svid.spiffe_id, svid.hint);
        }
        if let Ok(claims) = jwt::peek(&svid.svid)
            && let Some(end) = claims.get("exp").and_then(Value::as_i64)
        {
            shown += &format!("expires({}):\n\t{}\n", svid.spiffe_id, output::time(end));
        }
        if let Some(directory) = &command.write {
            shown += &written(directory, "token", index, &format!("jwt_svid.{index}.token"), svid.svid.as_bytes(), 0o600)?;
        }
    }
    command.common.output.show(
        || json!({"svids": answer.svids.iter().map(|s| json!({"spiffe_id": s.spiffe_id, "svid": s.svid, "hint": s.hint})).collect::<Vec<_>>()}),
        || shown,
    );
    Ok(())
}

async fn fetch_bundle(command: FetchBundle) -> Outcome {
    let mut client = command.common.client().await?;
    let mut x509 = client.fetch_x509_bundles(command.common.request(wire::X509BundlesRequest {})).await.map_err(refused)?.into_inner();
    let mut jwts = client.fetch_jwt_bundles(command.common.request(wire::JwtBundlesRequest {})).await.map_err(refused)?.into_inner();
    let gone = || Failure::new("the agent ended the stream");
    let x509 = x509.message().await.map_err(refused)?.ok_or_else(gone)?;
    let jwts = jwts.message().await.map_err(refused)?.ok_or_else(gone)?;
    let mut shown = String::new();
    let mut rows = serde_json::Map::new();
    let mut ids: Vec<&String> = x509.bundles.keys().collect();
    ids.sort();
    for id in ids {
        let (roots, _) = pem_chain(x509.bundles.get(id).map(Vec::as_slice).unwrap_or_default())?;
        let keys = jwts.bundles.get(id).map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default();
        shown += &format!("{id}\n{roots}{keys}\n\n");
        rows.insert(id.clone(), json!({"x509": roots, "jwt": serde_json::from_str::<Value>(&keys).unwrap_or(Value::Null)}));
        if let Some(directory) = &command.write {
            let name = id.strip_prefix("spiffe://").unwrap_or(id);
            write_file(&directory.join(format!("{name}.pem")), roots.as_bytes(), 0o644)?;
            write_file(&directory.join(format!("{name}.jwks.json")), keys.as_bytes(), 0o644)?;
        }
    }
    command.common.output.show(|| json!({"bundles": rows}), || shown);
    Ok(())
}

impl Validate {
    pub(crate) async fn run(self) -> Outcome {
        let Self::Jwt(command) = self;
        let svid = if command.svid == "-" { std::io::read_to_string(std::io::stdin())?.trim().to_owned() } else { command.svid };
        let request = command.common.request(wire::ValidateJwtsvidRequest { audience: command.audience, svid });
        let answer = command.common.client().await?.validate_jwtsvid(request).await;
        let answer = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == tonic::Code::InvalidArgument => {
                return Err(Failure::new(format!("SVID is not valid: {}", status.message())));
            }
            Err(status) => return Err(Failure::new(format!("unable to validate JWT SVID: {}", status.message()))),
        };
        let claims = struct_json(answer.claims.unwrap_or_default());
        command.common.output.show(
            || json!({"spiffe_id": answer.spiffe_id, "claims": claims}),
            || format!("SVID is valid.\nSPIFFE ID : {}\nClaims    : {claims}\n", answer.spiffe_id),
        );
        Ok(())
    }
}

/// A structure as JSON.
pub(crate) fn struct_json(value: prost_types::Struct) -> Value {
    Value::Object(value.fields.into_iter().map(|(k, v)| (k, json_value(v))).collect())
}

fn json_value(value: prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(b)) => b.into(),
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() < 9e15 => {
            #[allow(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
            let whole = n as i64;
            whole.into()
        }
        Some(Kind::NumberValue(n)) => n.into(),
        Some(Kind::StringValue(s)) => s.into(),
        Some(Kind::ListValue(l)) => l.values.into_iter().map(json_value).collect(),
        Some(Kind::StructValue(s)) => struct_json(s),
    }
}
