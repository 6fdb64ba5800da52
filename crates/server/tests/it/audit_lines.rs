//! The audit log as a whole: each API says what each of its calls was about.

use countersign_identity::key::KeyType;
use countersign_plugins::keys::KeyPair;
use countersign_testkit::log::Log;
use countersign_transport::clock::SystemClock;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::{
    AgentX509svidParams, BanAgentRequest, CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest, PostStatusRequest, RenewAgentRequest,
};
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::bundle_api::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest,
    BatchUpdateFederatedBundleRequest, GetBundleRequest, GetFederatedBundleRequest,
};
use countersign_wire::entry_api::entry_client::EntryClient;
use countersign_wire::entry_api::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, GetAuthorizedEntriesRequest, GetEntryRequest,
    SyncAuthorizedEntriesRequest,
};
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::svid::{BatchNewX509svidRequest, MintJwtsvidRequest, MintX509svidRequest, NewJwtsvidRequest, NewX509svidParams};
use countersign_wire::trust_domain::trust_domain_client::TrustDomainClient;
use countersign_wire::trust_domain::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest, BatchUpdateFederationRelationshipRequest,
    GetFederationRelationshipRequest, RefreshBundleRequest,
};
use countersign_wire::types::federation_relationship::BundleEndpointProfile as Profile;
use countersign_wire::types::{Entry, EntryMask, FederationRelationship, HttpsspiffeProfile};
use expect_test::{Expect, expect};

use crate::world::{self, Domain, Foreign, NodeIdentity, id_to_wire, spiffe_id, until};

/// A server whose audit log this thread hears.
async fn audited() -> Domain {
    Log::listen();
    Domain::start_with(std::sync::Arc::new(SystemClock), "audit_log_enabled = true").await.unwrap()
}

/// What the audit log has said since the last time: method, by which right, how it ended and what it was about. Names and numbers
/// that differ from run to run are called what they are.
async fn said(node: Option<&NodeIdentity>, lines: usize, expected: Expect) {
    let heard = until("the lines", async || Some(audit()).filter(|audit| audit.len() >= lines)).await.unwrap();
    Log::listen();
    let text: Vec<String> = heard.into_iter().map(|line| named(&line, node)).collect();
    expected.assert_eq(&text.join("\n"));
}

fn audit() -> Vec<String> {
    Log::lines("", " message=API accessed ")
}

fn named(line: &str, node: Option<&NodeIdentity>) -> String {
    let (_, method) = line.split_once(" method=").unwrap();
    let (method, rest) = method.split_once(' ').unwrap();
    let (right, rest) = rest.split_once(" authorized_via=").unwrap();
    let (_, ending) = rest.split_once(" status=").unwrap();
    let ending = node.map_or_else(|| ending.to_owned(), |node| ending.replace(node.id.as_str(), "THE_NODE"));
    let (mut text, mut run) = (format!("{method} {right} "), String::new());
    for c in ending.chars().chain(['\n']) {
        if c.is_ascii_hexdigit() || c == '-' {
            run.push(c);
            continue;
        }
        match run.len() {
            64 => text.push_str("HASH"),
            36 => text.push_str("UUID"),
            10.. if run.bytes().all(|b| b.is_ascii_digit()) => text.push_str("TIME"),
            _ => text.push_str(&run),
        }
        run.clear();
        text.push(c);
    }
    text.trim_end().to_owned()
}

fn csr() -> Vec<u8> {
    KeyPair::generate(KeyType::EcP256).unwrap().request(None, &[]).unwrap()
}

#[tokio::test]
async fn calls_about_entries_say_which() {
    let domain = audited().await;
    let node = world::node(&domain).await;
    let mut client = EntryClient::new(domain.admin().await.unwrap());
    Log::listen();
    let whole = Entry {
        hint: "h".to_owned(),
        dns_names: vec!["a.test".to_owned(), "b.test".to_owned()],
        x509_svid_ttl: 60,
        ..world::entry(&node.id, "/w", &["uid:1", "gid:2"])
    };
    let entries = vec![whole.clone(), whole, Entry::default()];
    let created = client.batch_create_entry(BatchCreateEntryRequest { entries, output_mask: None }).await.unwrap().into_inner().results;
    let entry = created[0].entry.clone().unwrap();
    client.get_entry(GetEntryRequest { id: entry.id.clone(), output_mask: None }).await.unwrap();
    let input_mask = Some(EntryMask { hint: true, ..EntryMask::default() });
    let entries = vec![Entry { hint: "new".to_owned(), ..entry.clone() }];
    client.batch_update_entry(BatchUpdateEntryRequest { entries, input_mask, output_mask: None }).await.unwrap();
    client.batch_delete_entry(BatchDeleteEntryRequest { ids: vec![entry.id.clone(), "none".to_owned()] }).await.unwrap();
    said(Some(&node), 7, expect![[r#"
        "BatchCreateEntry" authorized_as="local" "success" spiffe_id="spiffe://example.org/w" entry_id="UUID" parent_id="THE_NODE" selectors="unix:uid:1,unix:gid:2" admin=false downstream=false store_svid=false expires_at=0 x509_svid_ttl=60 jwt_svid_ttl=0 dns_name="a.test,b.test" hint="h"
        "BatchCreateEntry" authorized_as="local" "error" status_code="AlreadyExists" status_message="similar entry already exists" spiffe_id="spiffe://example.org/w" entry_id="UUID" parent_id="THE_NODE" selectors="unix:uid:1,unix:gid:2" admin=false downstream=false store_svid=false expires_at=0 x509_svid_ttl=60 jwt_svid_ttl=0 dns_name="a.test,b.test" hint="h"
        "BatchCreateEntry" authorized_as="local" "error" status_code="InvalidArgument" status_message="failed to convert entry: invalid spiffe ID: request must specify SPIFFE ID" admin=false downstream=false store_svid=false expires_at=0 x509_svid_ttl=0 jwt_svid_ttl=0 hint=""
        "GetEntry" authorized_as="local" "success" entry_id="UUID"
        "BatchUpdateEntry" authorized_as="local" "success" spiffe_id="spiffe://example.org/w" entry_id="UUID" parent_id="THE_NODE" selectors="unix:gid:2,unix:uid:1" admin=false downstream=false store_svid=false expires_at=0 x509_svid_ttl=60 jwt_svid_ttl=0 dns_name="a.test,b.test" hint="new"
        "BatchDeleteEntry" authorized_as="local" "success" entry_id="UUID"
        "BatchDeleteEntry" authorized_as="local" "error" status_code="NotFound" status_message="entry not found" entry_id="none""#]]).await;
}

#[tokio::test]
async fn calls_about_agents_say_which_and_never_the_token() {
    let domain = audited().await;
    let mut client = AgentClient::new(domain.admin().await.unwrap());
    let wanted = CreateJoinTokenRequest { ttl: 600, token: String::new(), agent_id: Some(id_to_wire(&spiffe_id("/rack"))) };
    let token = client.create_join_token(wanted).await.unwrap().into_inner().value;
    let node = domain.join(&token).await.unwrap();
    let mut own = AgentClient::new(domain.connect(Some(&node)).await.unwrap());
    own.post_status(PostStatusRequest { agent_version: "1.2.3".to_owned(), ..PostStatusRequest::default() }).await.unwrap();
    own.renew_agent(RenewAgentRequest { params: Some(AgentX509svidParams { csr: csr() }) }).await.unwrap();
    let id = || Some(id_to_wire(&node.id));
    client.get_agent(GetAgentRequest { id: id(), output_mask: None }).await.unwrap();
    client.ban_agent(BanAgentRequest { id: id() }).await.unwrap();
    client.delete_agent(DeleteAgentRequest { id: id() }).await.unwrap();
    client.delete_agent(DeleteAgentRequest { id: id() }).await.unwrap_err();
    said(
        Some(&node),
        10,
        expect![[r#"
        "CreateJoinToken" authorized_as="local" "success" spiffe_id="spiffe://example.org/rack" ttl=600
        "GetBundle" authorized_as="nobody" "success" trust_domain_id="example.org"
        "AttestAgent" authorized_as="nobody" "success" agent_id="THE_NODE" node_attestor_type="join_token"
        "GetBundle" authorized_as="nobody" "success" trust_domain_id="example.org"
        "PostStatus" authorized_as="agent" "success" spiffe_id="THE_NODE" agent_version="1.2.3"
        "RenewAgent" authorized_as="agent" "success" csr="HASH"
        "GetAgent" authorized_as="local" "success" spiffe_id="THE_NODE"
        "BanAgent" authorized_as="local" "success" spiffe_id="THE_NODE"
        "DeleteAgent" authorized_as="local" "success" spiffe_id="THE_NODE"
        "DeleteAgent" authorized_as="local" "error" status_code="NotFound" status_message="agent not found" spiffe_id="THE_NODE""#]],
    )
    .await;
}

#[tokio::test]
async fn what_an_agent_asks_for_says_for_what() {
    let domain = audited().await;
    let node = world::node(&domain).await;
    let entry = domain.entry_from(world::entry(&node.id, "/w", &["uid:1"])).await.unwrap();
    Log::listen();
    let channel = domain.connect(Some(&node)).await.unwrap();
    let mut entries = EntryClient::new(channel.clone());
    let first = tokio_stream::once(SyncAuthorizedEntriesRequest::default());
    let mut pages = entries.sync_authorized_entries(first).await.unwrap().into_inner();
    while pages.message().await.unwrap().is_some() {}
    entries.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.unwrap();
    BundleClient::new(channel.clone()).get_bundle(GetBundleRequest::default()).await.unwrap();
    let mut svids = SvidClient::new(channel);
    let params = |id: &str| NewX509svidParams { entry_id: id.to_owned(), csr: csr() };
    svids.batch_new_x509svid(BatchNewX509svidRequest { params: vec![params(&entry.id), params("none")] }).await.unwrap();
    let audience = vec!["a".to_owned(), "b".to_owned()];
    svids.new_jwtsvid(NewJwtsvidRequest { entry_id: entry.id.clone(), audience: audience.clone() }).await.unwrap();
    svids.new_jwtsvid(NewJwtsvidRequest { entry_id: "none".to_owned(), audience }).await.unwrap_err();
    said(Some(&node), 8, expect![[r#"
        "GetBundle" authorized_as="nobody" "success" trust_domain_id="example.org"
        "SyncAuthorizedEntries" authorized_as="agent" "success"
        "GetAuthorizedEntries" authorized_as="agent" "success"
        "GetBundle" authorized_as="nobody" "success" trust_domain_id="example.org"
        "BatchNewX509SVID" authorized_as="agent" "success" spiffe_id="spiffe://example.org/w" entry_id="UUID" csr="HASH" expires_at=TIME
        "BatchNewX509SVID" authorized_as="agent" "error" status_code="NotFound" status_message="entry not found or not authorized" entry_id="none" csr="HASH"
        "NewJWTSVID" authorized_as="agent" "success" entry_id="UUID" audience="a,b"
        "NewJWTSVID" authorized_as="agent" "error" status_code="NotFound" status_message="entry not found or not authorized" entry_id="none" audience="a,b""#]]).await;
}

#[tokio::test]
async fn what_is_minted_says_for_whom() {
    let domain = audited().await;
    let mut client = SvidClient::new(domain.admin().await.unwrap());
    Log::listen();
    let csr = world::key().request(Some(&spiffe_id("/minted")), &[]).unwrap();
    client.mint_x509svid(MintX509svidRequest { csr, ttl: 60 }).await.unwrap();
    client.mint_x509svid(MintX509svidRequest { csr: b"bad".to_vec(), ttl: 60 }).await.unwrap_err();
    let wanted = MintJwtsvidRequest { id: Some(id_to_wire(&spiffe_id("/minted"))), audience: vec!["a".to_owned()], ttl: 60 };
    client.mint_jwtsvid(wanted).await.unwrap();
    said(None, 3, expect![[r#"
        "MintX509SVID" authorized_as="local" "success" spiffe_id="spiffe://example.org/minted" csr="HASH" ttl=60 expires_at=TIME
        "MintX509SVID" authorized_as="local" "error" status_code="InvalidArgument" status_message="malformed CSR: malformed certificate signing request" csr="HASH" ttl=60
        "MintJWTSVID" authorized_as="local" "success" spiffe_id="spiffe://example.org/minted" ttl=60 audience="a""#]]).await;
}

#[tokio::test]
async fn calls_about_bundles_and_relationships_say_of_which_trust_domain() {
    let domain = audited().await;
    let mut client = BundleClient::new(domain.admin().await.unwrap());
    Log::listen();
    let bundle = || vec![Foreign::new("one.test").wire(1)];
    client.batch_create_federated_bundle(BatchCreateFederatedBundleRequest { bundle: bundle(), output_mask: None }).await.unwrap();
    let wanted = BatchUpdateFederatedBundleRequest { bundle: bundle(), input_mask: None, output_mask: None };
    client.batch_update_federated_bundle(wanted).await.unwrap();
    client.batch_set_federated_bundle(BatchSetFederatedBundleRequest { bundle: bundle(), output_mask: None }).await.unwrap();
    client.get_federated_bundle(GetFederatedBundleRequest { trust_domain: "one.test".to_owned(), output_mask: None }).await.unwrap();
    client.append_bundle(AppendBundleRequest::default()).await.unwrap_err();
    let wanted = BatchDeleteFederatedBundleRequest { trust_domains: vec!["one.test".to_owned()], mode: 2 };
    client.batch_delete_federated_bundle(wanted).await.unwrap();

    let mut client = TrustDomainClient::new(domain.admin().await.unwrap());
    let endpoint_spiffe_id = "spiffe://one.test/endpoint".to_owned();
    let relationship = FederationRelationship {
        trust_domain: "one.test".to_owned(),
        bundle_endpoint_url: "https://one.test".to_owned(),
        bundle_endpoint_profile: Some(Profile::HttpsSpiffe(HttpsspiffeProfile { endpoint_spiffe_id })),
        trust_domain_bundle: None,
    };
    let name = || "one.test".to_owned();
    let federation_relationships = vec![relationship.clone(), FederationRelationship::default()];
    let wanted = BatchCreateFederationRelationshipRequest { federation_relationships, output_mask: None };
    client.batch_create_federation_relationship(wanted).await.unwrap();
    let wanted =
        BatchUpdateFederationRelationshipRequest { federation_relationships: vec![relationship], input_mask: None, output_mask: None };
    client.batch_update_federation_relationship(wanted).await.unwrap();
    client.get_federation_relationship(GetFederationRelationshipRequest { trust_domain: name(), output_mask: None }).await.unwrap();
    client.refresh_bundle(RefreshBundleRequest { trust_domain: name() }).await.unwrap_err();
    client.batch_delete_federation_relationship(BatchDeleteFederationRelationshipRequest { trust_domains: vec![name()] }).await.unwrap();
    said(None, 12, expect![[r#"
        "BatchCreateFederatedBundle" authorized_as="local" "success" trust_domain_id="one.test"
        "BatchUpdateFederatedBundle" authorized_as="local" "success" trust_domain_id="one.test"
        "BatchSetFederatedBundle" authorized_as="local" "success" trust_domain_id="one.test"
        "GetFederatedBundle" authorized_as="local" "success" trust_domain_id="one.test"
        "AppendBundle" authorized_as="local" "error" status_code="InvalidArgument" status_message="no authorities to append" trust_domain_id="example.org"
        "BatchDeleteFederatedBundle" authorized_as="local" "success" trust_domain_id="one.test" mode="DISSOCIATE"
        "BatchCreateFederationRelationship" authorized_as="local" "success" trust_domain_id="one.test" bundle_endpoint_url="https://one.test" bundle_endpoint_profile="https_spiffe" endpoint_spiffe_id="spiffe://one.test/endpoint"
        "BatchCreateFederationRelationship" authorized_as="local" "error" status_code="InvalidArgument" status_message="failed to convert federation relationship: failed to parse trust domain: the trust domain name is missing" trust_domain_id="" bundle_endpoint_url=""
        "BatchUpdateFederationRelationship" authorized_as="local" "success" trust_domain_id="one.test" bundle_endpoint_url="https://one.test" bundle_endpoint_profile="https_spiffe" endpoint_spiffe_id="spiffe://one.test/endpoint"
        "GetFederationRelationship" authorized_as="local" "success" trust_domain_id="one.test"
        "RefreshBundle" authorized_as="local" "error" status_code="Unimplemented" status_message="failed to refresh bundle: fetching bundles of other trust domains is not implemented by this Countersign server; set them with `bundle set`" trust_domain_id="one.test"
        "BatchDeleteFederationRelationship" authorized_as="local" "success" trust_domain_id="one.test""#]]).await;
}
