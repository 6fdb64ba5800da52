//! `spire-server bundle …`

use countersign_identity::x509::Certificate;
use countersign_identity::{Bundle, TrustDomain, pem};
use countersign_wire::bundle_api::batch_delete_federated_bundle_request::Mode;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::bundle_api::{
    BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest, CountBundlesRequest, GetBundleRequest, GetFederatedBundleRequest,
    ListFederatedBundlesResponse,
};
use countersign_wire::{bundle, types};
use serde_json::Value;
use tonic::transport::Channel;

use super::super::command::{answer, refused};
use super::super::connect::Target;
use super::super::flags::{Flag, Given, Kind, flag};
use super::super::go;
use super::{id_error, read, within};
use crate::commands::bundle::all;
use crate::output::{self, Failure, Outcome};

const BUNDLE: &str = "spire.api.types.Bundle";

const fn format(help: &'static str) -> Flag {
    Flag { name: "format", kind: Kind::Text, default: "pem", help }
}

pub(super) const SHOW: &[Flag] = &[format("Form of the bundle where the output is pretty: pem or spiffe.")];
pub(super) const LIST: &[Flag] =
    &[flag("id", Kind::Text, "Only this trust domain."), format("Form of the bundles where the output is pretty: pem or spiffe.")];
pub(super) const SET: &[Flag] = &[
    flag("id", Kind::Text, "The trust domain."),
    flag("path", Kind::Text, "File with the bundle; standard input unless given."),
    format("Form of the bundle: pem or spiffe."),
];
pub(super) const DELETE: &[Flag] = &[
    flag("id", Kind::Text, "The trust domain."),
    Flag {
        name: "mode",
        kind: Kind::Text,
        default: "restrict",
        help: "What becomes of entries that federate with it: restrict, dissociate or delete.",
    },
];

async fn client(target: &Target, before: &str) -> Result<BundleClient<Channel>, Failure> {
    Ok(BundleClient::new(target.connect().await.map_err(refused(before))?))
}

pub(super) async fn count(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let response = client(&target, "").await?.count_bundles(CountBundlesRequest {}).await.map_err(refused(""))?.into_inner();
    answer(&given, "spire.api.server.bundle.v1.CountBundlesResponse", &response, |m| {
        output::line(&output::count(usize::try_from(m.count).unwrap_or_default(), "bundle", "bundles"));
        Ok(())
    })
}

pub(super) async fn show(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let own = client(&target, "").await?.get_bundle(GetBundleRequest { output_mask: None }).await.map_err(refused(""))?.into_inner();
    answer(&given, BUNDLE, &own, |m| {
        output::text(&written(m, given.text("format"))?);
        Ok(())
    })
}

pub(super) async fn list(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let mut client = client(&target, "").await?;
    let id = given.text("id");
    if !id.is_empty() {
        let request = GetFederatedBundleRequest { trust_domain: id.to_owned(), output_mask: None };
        let found = client.get_federated_bundle(request).await.map_err(refused(""))?.into_inner();
        return answer(&given, BUNDLE, &found, |m| {
            output::text(&written(m, given.text("format"))?);
            Ok(())
        });
    }
    let bundles = all(&mut client).await.map_err(refused(""))?;
    let response = ListFederatedBundlesResponse { bundles, next_page_token: String::new() };
    answer(&given, "spire.api.server.bundle.v1.ListFederatedBundlesResponse", &response, |m| {
        let stars = "*".repeat(40);
        for (index, bundle) in m.bundles.iter().enumerate() {
            let space = if index == 0 { "" } else { "\n" };
            let text = written(bundle, given.text("format"))?;
            output::text(&format!("{space}{stars}\n* {}\n{stars}\n{text}", output::clean(&bundle.trust_domain)));
        }
        Ok(())
    })
}

pub(super) async fn set(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let id = given.text("id");
    if id.is_empty() {
        return Err(Failure::new("id flag is required"));
    }
    let format = checked_format(given.text("format"))?;
    let path = given.text("path");
    let bytes = read((!path.is_empty()).then_some(path)).map_err(within("unable to load bundle data"))?;
    let bundle = parsed(&bytes, &format, id)?;
    let before = "failed to set federated bundle";
    let request = BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None };
    let response = client(&target, before).await?.batch_set_federated_bundle(request).await.map_err(refused(before))?.into_inner();
    answer(&given, "spire.api.server.bundle.v1.BatchSetFederatedBundleResponse", &response, |m| {
        match m.results.first().and_then(|r| r.status.as_ref()).filter(|s| s.code != 0) {
            Some(status) => Err(Failure::new(format!("{before}: {}", status.message))),
            None => {
                output::line("bundle set.");
                Ok(())
            }
        }
    })
}

pub(super) async fn delete(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let id = given.text("id");
    if id.is_empty() {
        return Err(Failure::new("id is required"));
    }
    let mode = match given.text("mode") {
        "" | "restrict" => Mode::Restrict,
        "dissociate" => Mode::Dissociate,
        "delete" => Mode::Delete,
        other => return Err(Failure::new(format!("unsupported mode {}", go::quoted(other)))),
    };
    let before = "failed to delete federated bundle";
    let request = BatchDeleteFederatedBundleRequest { trust_domains: vec![id.to_owned()], mode: mode.into() };
    let response = client(&target, before).await?.batch_delete_federated_bundle(request).await.map_err(refused(before))?.into_inner();
    answer(&given, "spire.api.server.bundle.v1.BatchDeleteFederatedBundleResponse", &response, |m| {
        match m.results.first().and_then(|r| Some((r, r.status.as_ref().filter(|s| s.code != 0)?))) {
            Some((result, status)) => Err(Failure::new(format!("{before} {}: {}", go::quoted(&result.trust_domain), status.message))),
            None => {
                output::line("bundle deleted.");
                Ok(())
            }
        }
    })
}

/// `pem` or `spiffe`, however it is spelled.
fn checked_format(format: &str) -> Result<String, Failure> {
    match format.to_lowercase().as_str() {
        "" | "pem" => Ok("pem".to_owned()),
        "spiffe" => Ok("spiffe".to_owned()),
        other => Err(Failure::new(format!("invalid format: {}", go::quoted(other)))),
    }
}

/// A bundle that was given in this form, for this trust domain; the server decides whether that name can be used.
pub(super) fn parsed(bytes: &[u8], format: &str, trust_domain: &str) -> Result<types::Bundle, Failure> {
    if format == "pem" {
        let failed = |e: String| Failure::new(format!("unable to parse bundle data: {e}"));
        let blocks = pem::read(&String::from_utf8_lossy(bytes)).map_err(|e| failed(e.to_string()))?;
        if blocks.is_empty() {
            return Err(failed("no PEM blocks".to_owned()));
        }
        let mut x509_authorities = Vec::new();
        for (label, der) in blocks {
            if label != "CERTIFICATE" {
                return Err(failed(format!("expected block type \"CERTIFICATE\"; got {}", go::quoted(&label))));
            }
            Certificate::parse(&der).map_err(|e| failed(e.to_string()))?;
            x509_authorities.push(types::X509Certificate { asn1: der, tainted: false });
        }
        return Ok(types::Bundle { trust_domain: trust_domain.to_owned(), x509_authorities, ..types::Bundle::default() });
    }
    let name = TrustDomain::parse_name_or_id(trust_domain).map_err(|e| Failure::new(id_error(&e)))?;
    let parsed =
        Bundle::from_jwks(name, bytes).map_err(|e| Failure::new(format!("unable to parse to spiffe bundle: spiffebundle: {e}")))?;
    Ok(bundle::to_wire(&parsed))
}

/// A bundle as text in this form.
fn written(wire: &types::Bundle, format: &str) -> Result<String, Failure> {
    let format = checked_format(format)?;
    let parsed = bundle::from_wire(wire).map_err(|e| Failure::new(e.to_string()))?;
    if format == "pem" {
        return Ok(parsed.to_pem());
    }
    let mut document = parsed.to_jwks();
    if let Value::Object(members) = &mut document
        && wire.sequence_number == 0
    {
        members.remove("spiffe_sequence");
    }
    Ok(document_text(&document))
}

/// Members of a key in the order in which SPIRE writes them.
const ORDER: &[&str] = &["use", "kty", "kid", "crv", "alg", "x", "y", "n", "e", "x5c"];

/// A SPIFFE bundle document, indented by four.
fn document_text(document: &Value) -> String {
    let keys = document.get("keys").and_then(Value::as_array).into_iter().flatten();
    let keys: Vec<String> = keys
        .map(|key| {
            let members = ORDER.iter().filter_map(|name| Some((name, key.get(name)?)));
            let members: Vec<String> = members
                .map(|(name, value)| match value.as_array() {
                    Some(items) => {
                        let items: Vec<String> = items.iter().map(|i| format!("                {i}")).collect();
                        format!("            \"{name}\": [\n{}\n            ]", items.join(",\n"))
                    }
                    None => format!("            \"{name}\": {value}"),
                })
                .collect();
            format!("        {{\n{}\n        }}", members.join(",\n"))
        })
        .collect();
    let keys = if keys.is_empty() { "[]".to_owned() } else { format!("[\n{}\n    ]", keys.join(",\n")) };
    let rest =
        ["spiffe_sequence", "spiffe_refresh_hint"].iter().filter_map(|name| Some(format!(",\n    \"{name}\": {}", document.get(name)?)));
    format!("{{\n    \"keys\": {keys}{}\n}}\n", rest.collect::<String>())
}
