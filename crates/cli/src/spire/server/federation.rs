//! `spire-server federation …`

use countersign_identity::SpiffeId;
use countersign_wire::trust_domain::trust_domain_client::TrustDomainClient;
use countersign_wire::trust_domain::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest, BatchUpdateFederationRelationshipRequest,
    GetFederationRelationshipRequest, ListFederationRelationshipsRequest, ListFederationRelationshipsResponse, RefreshBundleRequest,
};
use countersign_wire::types::federation_relationship::BundleEndpointProfile as Profile;
use countersign_wire::types::{self, FederationRelationship};
use serde::Deserialize;
use tonic::transport::Channel;

use super::super::command::{answer, refused};
use super::super::connect::Target;
use super::super::flags::{Flag, Given, Kind, flag};
use super::super::go;
use super::{bundle, id_error, read, within};
use crate::output::{self, Block, Failure, Outcome};

pub(super) const FIELDS: &[Flag] = &[
    flag("data", Kind::Text, "JSON file with relationships, - for standard input; no other flag may describe one then."),
    flag("trustDomain", Kind::Text, "The foreign trust domain."),
    flag("bundleEndpointURL", Kind::Text, "Where its bundle is fetched, https://…"),
    flag("bundleEndpointProfile", Kind::Text, "How the endpoint shows who it is: https_web or https_spiffe."),
    flag("endpointSpiffeID", Kind::Text, "SPIFFE ID of the endpoint, for https_spiffe."),
    flag("trustDomainBundlePath", Kind::Text, "File with its bundle, for the first fetch."),
    Flag { name: "trustDomainBundleFormat", kind: Kind::Text, default: "pem", help: "Form of that file: pem or spiffe." },
];
pub(super) const ID: &[Flag] = &[flag("id", Kind::Text, "The foreign trust domain.")];
pub(super) const SHOW: &[Flag] = &[flag("trustDomain", Kind::Text, "The foreign trust domain.")];

/// A relationship as SPIRE's files describe it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Described {
    #[serde(rename = "trustDomain")]
    trust_domain: String,
    #[serde(rename = "bundleEndpointURL")]
    url: String,
    #[serde(rename = "bundleEndpointProfile")]
    profile: String,
    #[serde(rename = "endpointSPIFFEID")]
    endpoint: String,
    #[serde(rename = "trustDomainBundle")]
    bundle: Option<serde_json::Value>,
    #[serde(rename = "trustDomainBundleFormat")]
    format: String,
    #[serde(skip)]
    bundle_path: String,
}

#[derive(Debug, Deserialize)]
struct File {
    #[serde(rename = "federationRelationships", default)]
    relationships: Vec<Described>,
}

impl Described {
    fn message(&self) -> Result<FederationRelationship, Failure> {
        if self.trust_domain.is_empty() {
            return Err(Failure::new("trust domain is required"));
        }
        if self.url.is_empty() {
            return Err(Failure::new("bundle endpoint URL is required"));
        }
        let mut bundle_domain = self.trust_domain.clone();
        let profile = match self.profile.as_str() {
            "https_web" => Profile::HttpsWeb(types::HttpsWebProfile {}),
            "https_spiffe" if self.endpoint.is_empty() => {
                return Err(Failure::new("endpoint SPIFFE ID is required if 'https_spiffe' endpoint profile is set"));
            }
            "https_spiffe" => {
                let failed = |e| Failure::new(format!("cannot parse bundle endpoint SPIFFE ID: {}", id_error(&e)));
                bundle_domain = SpiffeId::parse(&self.endpoint).map_err(failed)?.trust_domain_name().to_owned();
                Profile::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id: self.endpoint.clone() })
            }
            other => return Err(Failure::new(format!("unknown bundle endpoint profile type: {}", go::quoted(other)))),
        };
        let trust_domain_bundle = match (&self.bundle_path, &self.bundle) {
            (path, _) if !path.is_empty() => {
                let bytes = read(Some(path)).map_err(within("cannot read bundle file"))?;
                Some(bundle::parsed(&bytes, &self.format, &bundle_domain).map_err(within("cannot parse bundle file"))?)
            }
            (_, Some(value)) => Some(self.inline(value, &bundle_domain).map_err(within("cannot parse bundle raw message"))?),
            _ => None,
        };
        Ok(FederationRelationship {
            trust_domain: self.trust_domain.clone(),
            bundle_endpoint_url: self.url.clone(),
            trust_domain_bundle,
            bundle_endpoint_profile: Some(profile),
        })
    }

    /// A bundle inside the file: a text in PEM, or a SPIFFE bundle document.
    fn inline(&self, value: &serde_json::Value, trust_domain: &str) -> Result<types::Bundle, Failure> {
        let bytes = match (self.format.as_str(), value) {
            ("pem", serde_json::Value::String(text)) => text.clone().into_bytes(),
            ("pem", _) => return Err(Failure::new("failed to unmarshal json: the bundle is no text")),
            ("spiffe", document) => document.to_string().into_bytes(),
            (other, _) => return Err(Failure::new(format!("bundle format {} is unsupported", go::quoted(other)))),
        };
        bundle::parsed(&bytes, &self.format, trust_domain)
    }
}

/// The relationships of the file, or the one of the flags.
fn relationships(given: &Given) -> Result<Vec<FederationRelationship>, Failure> {
    let text = |name: &str| given.text(name).to_owned();
    let path = given.text("data");
    if path.is_empty() {
        let described = Described {
            trust_domain: text("trustDomain"),
            url: text("bundleEndpointURL"),
            profile: text("bundleEndpointProfile"),
            endpoint: text("endpointSpiffeID"),
            bundle: None,
            format: text("trustDomainBundleFormat"),
            bundle_path: text("trustDomainBundlePath"),
        };
        return Ok(vec![described.message()?]);
    }
    let others = ["trustDomain", "bundleEndpointURL", "bundleEndpointProfile", "endpointSpiffeID", "trustDomainBundlePath"];
    if others.iter().any(|name| !given.text(name).is_empty()) || given.text("trustDomainBundleFormat") != "pem" {
        return Err(Failure::new("cannot use other flags to specify relationship fields when 'data' flag is set"));
    }
    let bytes = read((path != "-").then_some(path))?;
    let file: File = serde_json::from_slice(&bytes).map_err(|e| Failure::new(format!("failed to parse JSON: {e}")))?;
    let parse = |(index, d): (usize, &Described)| d.message().map_err(within(&format!("could not parse item {index}")));
    file.relationships.iter().enumerate().map(parse).collect()
}

async fn client(target: &Target, before: &str) -> Result<TrustDomainClient<Channel>, Failure> {
    Ok(TrustDomainClient::new(target.connect().await.map_err(refused(before))?))
}

fn block(relationship: &FederationRelationship) -> String {
    let mut block = Block::new(26);
    block.row("Trust domain", &relationship.trust_domain);
    block.row("Bundle endpoint URL", &relationship.bundle_endpoint_url);
    match &relationship.bundle_endpoint_profile {
        Some(Profile::HttpsWeb(_)) => block.row("Bundle endpoint profile", "https_web"),
        Some(Profile::HttpsSpiffe(profile)) => {
            block.row("Bundle endpoint profile", "https_spiffe");
            block.row("Endpoint SPIFFE ID", &profile.endpoint_spiffe_id);
        }
        None => {}
    }
    block.finish().trim_end_matches('\n').to_owned() + "\n"
}

pub(super) async fn create(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let asked = relationships(&given)?;
    let before = "request failed";
    let request = BatchCreateFederationRelationshipRequest { federation_relationships: asked.clone(), output_mask: None };
    let response =
        client(&target, before).await?.batch_create_federation_relationship(request).await.map_err(refused(before))?.into_inner();
    answer(&given, "spire.api.server.trustdomain.v1.BatchCreateFederationRelationshipResponse", &response, |m| {
        report("create", &asked, m.results.iter().map(|r| (r.status.as_ref(), r.federation_relationship.as_ref())))
    })
}

pub(super) async fn update(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let asked = relationships(&given)?;
    let before = "request failed";
    let request = BatchUpdateFederationRelationshipRequest { federation_relationships: asked.clone(), input_mask: None, output_mask: None };
    let response =
        client(&target, before).await?.batch_update_federation_relationship(request).await.map_err(refused(before))?.into_inner();
    answer(&given, "spire.api.server.trustdomain.v1.BatchUpdateFederationRelationshipResponse", &response, |m| {
        report("update", &asked, m.results.iter().map(|r| (r.status.as_ref(), r.federation_relationship.as_ref())))
    })
}

fn report<'a>(
    verb: &str,
    asked: &[FederationRelationship],
    results: impl Iterator<Item = (Option<&'a types::Status>, Option<&'a FederationRelationship>)>,
) -> Outcome {
    let (mut done, mut failed) = (String::new(), String::new());
    for ((status, relationship), asked) in results.zip(asked) {
        // An empty line goes to standard output for failures too, as in SPIRE.
        done.push('\n');
        match status.filter(|s| s.code != 0) {
            None => done += &block(relationship.unwrap_or(asked)),
            Some(status) => {
                let (code, message) = (go::code(status.code), go::quoted(&status.message));
                failed +=
                    &format!("Failed to {verb} the following federation relationship (code: {code}, msg: {message}):\n{}", block(asked));
            }
        }
    }
    output::text(&done);
    output::error_text(&failed);
    if failed.is_empty() { Ok(()) } else { Err(Failure::new(format!("failed to {verb} one or more federation relationships"))) }
}

pub(super) async fn list(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let before = "error listing federation relationship";
    let mut client = client(&target, before).await?;
    let mut all = ListFederationRelationshipsResponse::default();
    let mut page_token = String::new();
    loop {
        // The server chooses the size of a page; each fits a message.
        let request = ListFederationRelationshipsRequest { output_mask: None, page_size: 0, page_token };
        let page = client.list_federation_relationships(request).await.map_err(refused(before))?.into_inner();
        all.federation_relationships.extend(page.federation_relationships);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    answer(&given, "spire.api.server.trustdomain.v1.ListFederationRelationshipsResponse", &all, |m| {
        let found = &m.federation_relationships;
        let head = format!("Found {}\n", output::count(found.len(), "federation relationship", "federation relationships"));
        output::text(&found.iter().fold(head, |text, relationship| text + "\n" + &block(relationship)));
        Ok(())
    })
}

pub(super) async fn show(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let trust_domain = given.text("trustDomain").to_owned();
    if trust_domain.is_empty() {
        return Err(Failure::new("a trust domain name is required"));
    }
    let before = "error showing federation relationship";
    let head = format!("Found a federation relationship with trust domain {trust_domain}:\n\n");
    let request = GetFederationRelationshipRequest { trust_domain, output_mask: None };
    let found = client(&target, before).await?.get_federation_relationship(request).await.map_err(refused(before))?.into_inner();
    answer(&given, "spire.api.types.FederationRelationship", &found, |m| {
        output::text(&(head + &block(m)));
        Ok(())
    })
}

fn required_id(given: &Given) -> Result<String, Failure> {
    match given.text("id") {
        "" => Err(Failure::new("id is required")),
        id => Ok(id.to_owned()),
    }
}

pub(super) async fn delete(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let trust_domains = vec![required_id(&given)?];
    let before = "failed to delete federation relationship";
    let request = BatchDeleteFederationRelationshipRequest { trust_domains };
    let response =
        client(&target, before).await?.batch_delete_federation_relationship(request).await.map_err(refused(before))?.into_inner();
    answer(&given, "spire.api.server.trustdomain.v1.BatchDeleteFederationRelationshipResponse", &response, |m| {
        match m.results.first().and_then(|r| Some((r, r.status.as_ref().filter(|s| s.code != 0)?))) {
            Some((result, status)) => Err(Failure::new(format!("{before} {}: {}", go::quoted(&result.trust_domain), status.message))),
            None => {
                output::line("federation relationship deleted.");
                Ok(())
            }
        }
    })
}

pub(super) async fn refresh(given: Given) -> Outcome {
    let target = Target::server(&given)?;
    let trust_domain = required_id(&given)?;
    let before = "failed to refresh bundle";
    let missing = format!("there is no federation relationship with trust domain {}", go::quoted(&trust_domain));
    match client(&target, before).await?.refresh_bundle(RefreshBundleRequest { trust_domain }).await {
        Err(status) if status.code() == tonic::Code::NotFound => Err(Failure::new(missing)),
        Err(status) => Err(refused(before)(status)),
        Ok(_) => answer(&given, "spire.api.types.Status", &types::Status { code: 0, message: "OK".to_owned() }, |_| {
            output::line("Bundle refreshed");
            Ok(())
        }),
    }
}
