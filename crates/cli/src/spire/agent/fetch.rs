//! `spire-agent api fetch …` and `spire-agent api validate jwt`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::x509::{Certificate, verify_paths};
use countersign_identity::{SpiffeId, Timestamp, pem};
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_wire::workload::{self as wire, X509svidResponse};
use serde_json::Value;
use tonic::Status;
use tonic::transport::Channel;
use zeroize::{Zeroize as _, Zeroizing};

use super::super::command::{answer, refused};
use super::super::connect::Target;
use super::super::flags::{Flag, Given, Kind, flag};
use super::super::server::mint::{self, joined};
use super::super::{go, json};
use crate::client::workload_request;
use crate::commands::fetch::struct_json;
use crate::output::{self, Failure, Outcome, WipedValue};

pub(super) const TIMEOUT: &[Flag] =
    &[Flag { name: "timeout", kind: Kind::Timeout, default: "5s", help: "How long to wait for each answer; 0s for as long as it takes." }];
pub(super) const X509: &[Flag] = &[
    flag("silent", Kind::Switch, "Do not print SVIDs where the output is pretty."),
    flag("write", Kind::Text, "Directory for certificates, keys and bundles, where the output is pretty."),
];
pub(super) const JWT: &[Flag] = &[
    flag("audience", Kind::Commas, "Who the token is for; commas between several."),
    flag("spiffeID", Kind::Text, "Only this SPIFFE ID."),
    flag("format", Kind::Output, "An old name of -output."),
];
pub(super) const VALIDATE: &[Flag] = &[
    flag("audience", Kind::Text, "Who the token has to be for."),
    flag("svid", Kind::Text, "The token. Every user of the machine can read it there."),
];

/// Waits as long as `-timeout` says.
async fn in_time<T>(given: &Given, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let Some(limit) = u64::try_from(given.number("timeout")).ok().filter(|n| *n > 0) else { return call.await };
    tokio::time::timeout(Duration::from_nanos(limit), call)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded")))
}

async fn client(target: &Target) -> Result<SpiffeWorkloadApiClient<Channel>, Status> {
    Ok(SpiffeWorkloadApiClient::new(target.connect().await?))
}

fn ended() -> Status {
    Status::unavailable("the agent ended the stream")
}

pub(super) async fn x509(given: Given) -> Outcome {
    let target = Target::workload(&given)?;
    let begun = Instant::now();
    let call = async {
        let mut stream = client(&target).await?.fetch_x509svid(workload_request(wire::X509svidRequest {})).await?.into_inner();
        stream.message().await?.ok_or_else(ended)
    };
    let mut response = WithKeys(in_time(&given, call).await.map_err(refused(""))?);
    let took = begun.elapsed();
    if given.is_json() {
        go::json(&response.json()?.0).print_line();
        return Ok(());
    }
    let svids = read(&response.0)?;
    for svid in &svids {
        svid.verify()?;
    }
    if !given.is_on("silent") {
        output::text(&printed(&svids, took));
    }
    match given.text("write") {
        "" => Ok(()),
        directory => svids.iter().enumerate().try_for_each(|(index, svid)| svid.write(directory, index)),
    }
}

/// A message whose keys are overwritten when it is dropped.
struct WithKeys(X509svidResponse);

impl WithKeys {
    /// As JSON. The way there copies whatever is in the message, so the keys are put in at its end.
    fn json(&mut self) -> Result<WipedValue, Failure> {
        let keys: Vec<_> = self.0.svids.iter_mut().map(|svid| Zeroizing::new(std::mem::take(&mut svid.x509_svid_key))).collect();
        let mut value = WipedValue(json::value("X509SVIDResponse", &self.0)?);
        let svids = value.0.get_mut("svids").and_then(Value::as_array_mut).into_iter().flatten();
        for (svid, key) in svids.zip(keys) {
            if let Some(shown) = svid.get_mut("x509_svid_key") {
                *shown = STANDARD.encode(&*key).into();
            }
        }
        Ok(value)
    }
}

impl Drop for WithKeys {
    fn drop(&mut self) {
        self.0.svids.iter_mut().for_each(|svid| svid.x509_svid_key.zeroize());
    }
}

/// One identity of a message.
pub(super) struct Svid {
    pub(super) id: String,
    pub(super) hint: String,
    pub(super) chain: Vec<Certificate>,
    key: Zeroizing<Vec<u8>>,
    pub(super) bundle: Vec<Certificate>,
    pub(super) federated: BTreeMap<String, Vec<Certificate>>,
}

/// Reads a message. One part that cannot be used makes all of it unusable.
pub(super) fn read(message: &X509svidResponse) -> Result<Vec<Svid>, Failure> {
    if message.svids.is_empty() {
        return Err(Failure::new("workload response contains no svids"));
    }
    let mut federated = BTreeMap::new();
    for (id, der) in &message.federated_bundles {
        let failed = |e| Failure::new(format!("failed to parse bundle for federated domain {}: {e}", go::quoted(id)));
        let bundle = Certificate::parse_concatenated(der).map_err(failed)?;
        if bundle.is_empty() {
            return Err(Failure::new(format!("no certificates in bundle for federated domain {}", go::quoted(id))));
        }
        federated.insert(id.clone(), bundle);
    }
    let read_one = |(index, svid): (usize, &wire::X509svid)| {
        let failed =
            |why: String| Failure::new(format!("failed to parse svid entry {index} for spiffe id {}: {why}", go::quoted(&svid.spiffe_id)));
        let chain = Certificate::parse_concatenated(&svid.x509_svid).map_err(|e| failed(e.to_string()))?;
        if chain.is_empty() {
            return Err(failed("no certificates found".to_owned()));
        }
        countersign_plugins::keys::KeyPair::from_pkcs8(&svid.x509_svid_key)
            .map_err(|e| failed(format!("failed to parse private key: {e}")))?;
        let bundle = Certificate::parse_concatenated(&svid.bundle).map_err(|e| failed(format!("failed to parse trust bundle: {e}")))?;
        if bundle.is_empty() {
            return Err(failed("no certificates in trust bundle".to_owned()));
        }
        let (id, hint) = (output::clean(&svid.spiffe_id), output::clean(&svid.hint));
        Ok(Svid { id, hint, chain, key: Zeroizing::new(svid.x509_svid_key.clone()), bundle, federated: federated.clone() })
    };
    message.svids.iter().enumerate().map(read_one).collect()
}

impl Svid {
    /// Whether it is what it says, by its own bundle.
    fn verify(&self) -> Outcome {
        let failed = |why: String| Failure::new(format!("{} SVID failed verification against bundle: {why}", go::quoted(&self.id)));
        let Some((leaf, intermediates)) = self.chain.split_first() else { return Err(failed("there is no certificate".to_owned())) };
        if leaf.spiffe_id() != SpiffeId::parse(&self.id).ok() {
            return Err(failed("the certificate has another SPIFFE ID".to_owned()));
        }
        let now = Timestamp::from_secs(time::OffsetDateTime::now_utc().unix_timestamp());
        verify_paths(leaf, intermediates, &self.bundle, now).map(|_| ()).map_err(|e| failed(e.to_string()))
    }

    fn write(&self, directory: &str, index: usize) -> Outcome {
        let text = |certificates: &[Certificate]| certificates.iter().map(|c| pem::write("CERTIFICATE", c.der())).collect::<String>();
        let key = Zeroizing::new(pem::write("PRIVATE KEY", &self.key));
        put(&format!("SVID #{index}"), &joined(directory, &format!("svid.{index}.pem")), text(&self.chain).as_bytes(), 0o644)?;
        put(&format!("key #{index}"), &joined(directory, &format!("svid.{index}.key")), key.as_bytes(), 0o600)?;
        put(&format!("bundle #{index}"), &joined(directory, &format!("bundle.{index}.pem")), text(&self.bundle).as_bytes(), 0o644)?;
        for (number, (id, bundle)) in self.federated.iter().enumerate() {
            let path = joined(directory, &format!("federated_bundle.{index}.{number}.pem"));
            put(&format!("federated bundle #{number} for trust domain {}", output::clean(id)), &path, text(bundle).as_bytes(), 0o644)?;
        }
        Ok(())
    }
}

fn put(what: &str, path: &str, bytes: &[u8], mode: u32) -> Outcome {
    output::line(&format!("Writing {what} to file {path}."));
    mint::put(path, bytes, mode)
}

/// Identities as people read them.
pub(super) fn printed(svids: &[Svid], took: Duration) -> String {
    let took = go::duration(i64::try_from(took.as_nanos()).unwrap_or(i64::MAX));
    let mut text = format!("Received {} after {took}\n", output::count(svids.len(), "svid", "svids"));
    for svid in svids {
        text += &format!("\nSPIFFE ID:\t\t{}\n", svid.id);
        if !svid.hint.is_empty() {
            text += &format!("Hint:\t\t\t{}\n", svid.hint);
        }
        for (index, certificate) in svid.chain.iter().enumerate() {
            let what = if index == 0 { "SVID".to_owned() } else { format!("Intermediate #{index}") };
            text += &validity(&what, certificate);
        }
        for (index, certificate) in svid.bundle.iter().enumerate() {
            text += &validity(&format!("CA #{}", index + 1), certificate);
        }
        for (id, bundle) in &svid.federated {
            for (index, certificate) in bundle.iter().enumerate() {
                text += &validity(&format!("[{}] CA #{}", output::clean(id), index + 1), certificate);
            }
        }
    }
    text + "\n"
}

fn validity(what: &str, certificate: &Certificate) -> String {
    let (after, until) = (go::time(certificate.not_before.secs()), go::time(certificate.not_after.secs()));
    format!("{what} Valid After:\t{after}\n{what} Valid Until:\t{until}\n")
}

pub(super) async fn jwt(given: Given) -> Outcome {
    let target = Target::workload(&given)?;
    if given.texts("audience").is_empty() {
        return Err(Failure::new("audience must be specified"));
    }
    let mut bundles = in_time(&given, client(&target)).await.map_err(refused("failed to receive JWT bundles"))?;
    let call = async {
        let mut stream = bundles.fetch_jwt_bundles(workload_request(wire::JwtBundlesRequest {})).await?.into_inner();
        stream.message().await?.ok_or_else(ended)
    };
    let bundles = in_time(&given, call).await.map_err(refused(""))?;
    let request = wire::JwtsvidRequest { audience: given.texts("audience").to_vec(), spiffe_id: given.text("spiffeID").to_owned() };
    let call = async { Ok(client(&target).await?.fetch_jwtsvid(workload_request(request)).await?.into_inner()) };
    let svids = in_time(&given, call).await.map_err(refused(""))?;
    if given.is_json() {
        go::json(&[json::value("JWTSVIDResponse", &svids)?, json::value("JWTBundlesResponse", &bundles)?]).print_line();
        return Ok(());
    }
    let mut text = String::new();
    for svid in &svids.svids {
        let id = output::clean(&svid.spiffe_id);
        text += &format!("token({id}):\n\t{}\n", output::clean(&svid.svid));
        if !svid.hint.is_empty() {
            text += &format!("hint({id}):\n\t{}\n", output::clean(&svid.hint));
        }
    }
    for (id, jwks) in bundles.bundles.iter().collect::<BTreeMap<_, _>>() {
        text += &format!("bundle({}):\n\t{}\n", output::clean(id), String::from_utf8_lossy(jwks));
    }
    output::text(&text);
    Ok(())
}

pub(super) async fn validate(given: Given) -> Outcome {
    let target = Target::workload(&given)?;
    for name in ["audience", "svid"] {
        if given.text(name).is_empty() {
            return Err(Failure::new(format!("{name} must be specified")));
        }
    }
    let request = wire::ValidateJwtsvidRequest { audience: given.text("audience").to_owned(), svid: given.text("svid").to_owned() };
    let call = async { Ok(client(&target).await?.validate_jwtsvid(workload_request(request)).await?.into_inner()) };
    let response = in_time(&given, call).await.map_err(|status| match status.code() {
        tonic::Code::InvalidArgument => Failure::new(format!("SVID is not valid: {}", status.message())),
        _ => refused("unable to validate JWT SVID")(status),
    })?;
    answer(&given, "ValidateJWTSVIDResponse", &response, |m| {
        let claims = go::spaced_json(&struct_json(m.claims.clone().unwrap_or_default()));
        output::text(&format!("SVID is valid.\nSPIFFE ID : {}\nClaims    : {claims}\n", output::clean(&m.spiffe_id)));
        Ok(())
    })
}
