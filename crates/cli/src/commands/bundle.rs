//! `countersign bundle …`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use countersign_identity::{Bundle as Roots, TrustDomain};
use countersign_wire::bundle_api::batch_delete_federated_bundle_request::Mode as WireMode;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::{bundle, bundle_api, types};
use serde_json::json;
use tonic::transport::Channel;

use crate::client::ServerSocket;
use crate::output::{self, Failure, Outcome, OutputArgs};
use crate::progress::Progress;

/// Bundles asked for in one page.
const PAGE: i32 = 100;

/// `countersign bundle …`
#[derive(Debug, Subcommand)]
pub(crate) enum Bundle {
    /// Print the own trust domain's bundle, for agents' trust_bundle_path and for other trust domains
    Show(Show),
    /// Print bundles of foreign trust domains
    List(List),
    /// Add or replace the bundle of a foreign trust domain
    Set(Set),
    /// Remove the bundle of a foreign trust domain
    Delete(Delete),
    /// Count bundles, the own one included
    Count(Count),
}

/// How a bundle is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// X.509 roots alone.
    Pem,
    /// The SPIFFE bundle document: X.509 roots and JWT keys.
    Spiffe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Refuse while entries federate with it.
    Restrict,
    /// Drop the relationship from those entries.
    Dissociate,
    /// Delete those entries.
    Delete,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    socket: ServerSocket,
    /// Form of the bundle
    #[arg(long, value_enum, default_value = "pem")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    socket: ServerSocket,
    /// Only this trust domain
    #[arg(long, value_name = "TRUST_DOMAIN")]
    id: Option<String>,
    /// Form of the bundles
    #[arg(long, value_enum, default_value = "pem")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    #[command(flatten)]
    socket: ServerSocket,
    /// The trust domain, as `example.org` or `spiffe://example.org`
    #[arg(long, value_name = "TRUST_DOMAIN")]
    id: String,
    /// File with the bundle [default: standard input]
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
    /// Form of the bundle
    #[arg(long, value_enum, default_value = "pem")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    #[command(flatten)]
    socket: ServerSocket,
    /// The trust domain
    #[arg(long, value_name = "TRUST_DOMAIN")]
    id: String,
    /// What becomes of entries that federate with it
    #[arg(long, value_enum, default_value = "restrict")]
    mode: Mode,
}

#[derive(Debug, Args)]
pub(crate) struct Count {
    #[command(flatten)]
    socket: ServerSocket,
    #[command(flatten)]
    output: OutputArgs,
}

impl Bundle {
    pub(crate) async fn run(self) -> Outcome {
        match self {
            Self::Show(command) => {
                let mut client = BundleClient::new(command.socket.connect().await?);
                let own = client.get_bundle(bundle_api::GetBundleRequest { output_mask: None }).await?.into_inner();
                output::text(&render(&own, command.format)?);
                Ok(())
            }
            Self::List(command) => list(command).await,
            Self::Set(command) => set(command).await,
            Self::Delete(command) => delete(command).await,
            Self::Count(command) => {
                let mut client = BundleClient::new(command.socket.connect().await?);
                let count = client.count_bundles(bundle_api::CountBundlesRequest {}).await?.into_inner().count;
                let number = usize::try_from(count).unwrap_or(0);
                command.output.show(|| json!({"count": count}), || format!("{}\n", output::count(number, "bundle", "bundles")));
                Ok(())
            }
        }
    }
}

/// A bundle as text.
pub(crate) fn render(wire: &types::Bundle, format: Format) -> Result<String, Failure> {
    let roots = bundle::from_wire(wire).map_err(|e| Failure::new(format!("the server's bundle is not usable: {e}")))?;
    Ok(match format {
        Format::Pem => roots.to_pem(),
        Format::Spiffe => serde_json::to_string_pretty(&roots.to_jwks()).unwrap_or_default() + "\n",
    })
}

async fn list(command: List) -> Outcome {
    let mut client = BundleClient::new(command.socket.connect().await?);
    if let Some(name) = command.id {
        let request = bundle_api::GetFederatedBundleRequest { trust_domain: name, output_mask: None };
        output::text(&render(&client.get_federated_bundle(request).await?.into_inner(), command.format)?);
        return Ok(());
    }
    for found in all(&mut client).await? {
        let stars = "****************************************";
        output::text(&format!("{stars}\n* {}\n{stars}\n{}\n", found.trust_domain, render(&found, command.format)?));
    }
    Ok(())
}

/// Bundles of all foreign trust domains, page by page.
pub(crate) async fn all(client: &mut BundleClient<Channel>) -> Result<Vec<types::Bundle>, tonic::Status> {
    let progress = Progress::counting("reading bundles");
    let mut bundles = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = bundle_api::ListFederatedBundlesRequest { output_mask: None, page_size: PAGE, page_token };
        let page = client.list_federated_bundles(request).await?.into_inner();
        progress.advance(page.bundles.len());
        bundles.extend(page.bundles);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(bundles);
        }
    }
}

async fn set(command: Set) -> Outcome {
    let trust_domain = TrustDomain::parse_name_or_id(&command.id).map_err(|e| Failure::new(format!("--id: {e}")))?;
    let bytes = match &command.path {
        Some(path) => std::fs::read(path).map_err(|e| Failure::new(format!("cannot read `{}`: {e}", path.display())))?,
        None => std::io::read_to_string(std::io::stdin())?.into_bytes(),
    };
    let parsed = match command.format {
        Format::Pem => Roots::from_pem(trust_domain, &String::from_utf8_lossy(&bytes)),
        Format::Spiffe => Roots::from_jwks(trust_domain, &bytes),
    };
    let parsed = parsed.map_err(|e| Failure::new(format!("failed to set federated bundle: {e}")))?;
    let mut client = BundleClient::new(command.socket.connect().await?);
    let request = bundle_api::BatchSetFederatedBundleRequest { bundle: vec![bundle::to_wire(&parsed)], output_mask: None };
    let status = client.batch_set_federated_bundle(request).await?.into_inner().results.into_iter().next().and_then(|r| r.status);
    match status.unwrap_or_default() {
        types::Status { code: 0, .. } => {
            output::line("bundle set.");
            Ok(())
        }
        status => Err(Failure::new(format!("failed to set federated bundle: {}", status.message))),
    }
}

async fn delete(command: Delete) -> Outcome {
    let mode = match command.mode {
        Mode::Restrict => WireMode::Restrict,
        Mode::Dissociate => WireMode::Dissociate,
        Mode::Delete => WireMode::Delete,
    };
    let mut client = BundleClient::new(command.socket.connect().await?);
    let request = bundle_api::BatchDeleteFederatedBundleRequest { trust_domains: vec![command.id.clone()], mode: mode.into() };
    let status = client.batch_delete_federated_bundle(request).await?.into_inner().results.into_iter().next().and_then(|r| r.status);
    match status.unwrap_or_default() {
        types::Status { code: 0, .. } => {
            output::line("bundle deleted.");
            Ok(())
        }
        status => Err(Failure::new(format!("failed to delete federated bundle {:?}: {}", command.id, status.message))),
    }
}
