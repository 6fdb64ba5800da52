//! The seeds of the corpora: real messages, certificates and tokens of a trust domain that lives for a moment. The keys are
//! thrown away with it; only its bundle is kept, by which targets verify.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use countersign_identity::csr::{assemble, request_info};
use countersign_identity::key::KeyType;
use countersign_identity::{Bundle, TrustDomain, jwk, pem};
use countersign_plugins::keys::KeyPair;
use countersign_server::audit::{Query, search};
use countersign_wire::agent::{self, attest_agent_request as attest, list_agents_request as agents};
use countersign_wire::agent_admin::{self, explain_request::Subject};
use countersign_wire::entry_api::{self, list_entries_request as entries};
use countersign_wire::node::{self, follow_request, issue_request};
use countersign_wire::svid::{self, svid_client::SvidClient};
use countersign_wire::trust_domain as federation_api;
use countersign_wire::types::{self, SelectorMatch, selector_match::MatchBehavior};
use countersign_wire::{
    agent_logger, bundle, bundle_api, delegated_identity, discovery, envoy_core, envoy_type, explained, google, id, journal,
    local_authority, logger, workload,
};
use prost::Message;

use super::identity::AUDIENCE;
use super::live::{ENTRY, NODE, TOKEN, web};
use super::streams::program_entry;
use super::{NOW, join};
use crate::clock::VirtualClock;
use crate::domain::{Anyhow, Domain, agent_configuration, spiffe_id, trust_domain, until};

/// Seeds by target.
#[derive(Default)]
struct Seeds(BTreeMap<&'static str, Vec<Vec<u8>>>);

impl Seeds {
    fn add(&mut self, target: &'static str, bytes: impl AsRef<[u8]>) {
        self.0.entry(target).or_default().push(bytes.as_ref().to_vec());
    }

    fn message(&mut self, target: &'static str, message: &impl Message) {
        self.add(target, message.encode_to_vec());
    }

    fn stream(&mut self, target: &'static str, messages: &[impl Message]) {
        self.add(target, join(&messages.iter().map(Message::encode_to_vec).collect::<Vec<_>>()));
    }
}

/// Writes the seeds of every target below this directory, `corpus/<target>/seed-<number>`, and the bundle that vouches for
/// them beside it. What the fuzzer has found stays.
///
/// # Errors
/// The trust domain does not start, or a file cannot be written.
pub fn write(directory: &Path) -> Result<(), Anyhow> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (seeds, trust) = runtime.block_on(make())?;
    std::fs::write(directory.join("trust.json"), serde_json::to_string_pretty(&trust.to_jwks())? + "\n")?;
    for (target, contents) in seeds.0 {
        let corpus = directory.join("corpus").join(target);
        std::fs::create_dir_all(&corpus)?;
        for (number, bytes) in contents.iter().enumerate() {
            std::fs::write(corpus.join(format!("seed-{number:02}")), bytes)?;
        }
    }
    Ok(())
}

async fn make() -> Result<(Seeds, Bundle), Anyhow> {
    let mut seeds = Seeds::default();
    let domain = Domain::start_with(Arc::new(VirtualClock::at(NOW)), "").await?;
    let trust = domain.bundle().await?;
    let token = names_and_credentials(&mut seeds, &domain, &trust).await?;
    configurations(&mut seeds, &domain);
    http2(&mut seeds);
    proxies(&mut seeds);
    agents_and_bundles(&mut seeds, &trust)?;
    relationships(&mut seeds)?;
    authorities(&mut seeds);
    entries_and_svids(&mut seeds)?;
    ours(&mut seeds, &trust)?;
    programs(&mut seeds, &token);
    issued(&mut seeds, &domain).await?;
    Ok((seeds, trust))
}

fn pair(kind: KeyType) -> Result<KeyPair, Anyhow> {
    Ok(KeyPair::generate(kind)?)
}

async fn names_and_credentials(seeds: &mut Seeds, domain: &Domain, trust: &Bundle) -> Result<String, Anyhow> {
    let longest = format!("spiffe://{}/{}", "a".repeat(255), "b".repeat(1783));
    for text in ["spiffe://example.org", "spiffe://example.org/spire/agent/join_token/x", "spiffe://a_b-c.d/E/f-g_h.1", "/a/b", &longest] {
        seeds.add("spiffe_id", text);
    }
    for text in ["example.org", "spiffe://example.org", "1.2.3.4", "a_b-c..d", &"x".repeat(255)] {
        seeds.add("trust_domain", text);
    }
    for text in ["unix:uid:1000", "k8s:ns:default", "a:b", "docker:label:a:b:c", "x509pop:subject:cn:é"] {
        seeds.add("selector", text);
    }
    for text in ["web.example.org", "*.example.org", "a-b_c.d", "6f9a1c2e-0000-4000-8000-000000000000", &"l".repeat(63)] {
        seeds.add("entry_names", text);
    }

    let mut client = SvidClient::new(domain.admin().await?);
    let mut two_roots = trust.clone();
    for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let pair = pair(kind)?;
        let request = pair.request(Some(&spiffe_id("/web")), &["web.example.org".to_owned(), "w".to_owned()])?;
        seeds.add("csr", &request);
        seeds.add("public_key", pair.public_key().spki());
        seeds.add("jwk", serde_json::Value::Object(jwk::write(pair.public_key())).to_string());
        let answer = client.mint_x509svid(svid::MintX509svidRequest { csr: request, ttl: 0 }).await?.into_inner();
        let chain = answer.svid.ok_or("no SVID")?.cert_chain;
        seeds.add("certificate", chain.concat());
        seeds.add("certificate_chain", join(&chain));
        let below: Vec<Vec<u8>> = chain.into_iter().chain(trust.x509_authorities().iter().map(|a| a.certificate.der().to_vec())).collect();
        seeds.add("certificate_chain", join(&below));
    }
    let ec = pair(KeyType::EcP256)?;
    let bare = request_info(ec.public_key(), None, &[]);
    seeds.add("csr", assemble(&bare, ec.algorithm(), &ec.sign(ec.algorithm(), &bare)?));
    for authority in trust.x509_authorities() {
        seeds.add("certificate", authority.certificate.der());
        seeds.add("certificate_chain", join(&[authority.certificate.der()]));
    }
    let ed25519 = [&[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00][..], &[7; 32]].concat();
    seeds.add("public_key", &ed25519);
    seeds.add("jwk", r#"{"kty":"OKP","crv":"Ed25519","x":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc"}"#);

    let foreign = crate::scripted::Authority::new(NOW, NOW.after(std::time::Duration::from_secs(3600)))?;
    two_roots.add_x509_authority(foreign.certificate.clone(), false)?;
    two_roots.refresh_hint = Some(std::time::Duration::from_secs(300));
    for bundle in [trust, &two_roots] {
        seeds.add("bundle_jwks", bundle.to_jwks().to_string());
        seeds.add("bundle_pem", bundle.to_pem());
        seeds.add("pem", bundle.to_pem());
    }
    seeds.add("pem", format!("Subject: somebody\r\n{}text\n{}", pem::write("PUBLIC KEY", &ed25519), pem::write("X", b"")));
    seeds.add("bundle_jwks", br#"{"keys":[{"use":"wit-svid","kty":"EC"},{"kty":"oct","use":"jwt-svid","kid":"k"}],"spiffe_sequence":1}"#);

    let mut tokens = Vec::new();
    for audience in [vec![AUDIENCE.to_owned()], vec!["other".to_owned(), AUDIENCE.to_owned()]] {
        let request = svid::MintJwtsvidRequest { id: Some(id::to_wire(&spiffe_id("/web"))), audience, ttl: 3600 };
        tokens.push(client.mint_jwtsvid(request).await?.into_inner().svid.ok_or("no token")?.token);
    }
    for token in &tokens {
        seeds.add("jwt_svid", token);
    }
    seeds.add("jwt_svid", "eyJhbGciOiJub25lIn0.e30.");
    tokens.pop().ok_or_else(|| "no token".into())
}

fn configurations(seeds: &mut Seeds, domain: &Domain) {
    seeds.add("configuration_server", domain.server_configuration().replace(&domain.directory().display().to_string(), "/d"));
    seeds.add("configuration_agent", agent_configuration(Path::new("/d"), 8081, Some("token"), "log_level = \"debug\"\n"));
    let json = r#"{"server":{"trust_domain":"example.org","bind_port":"8081","data_dir":"/d","ca_ttl":"24h"},
 "plugins":{"DataStore":[{"sql":{"plugin_data":{"database_type":"sqlite3","connection_string":"/d/s"}}}],
 "KeyManager":[{"memory":{"plugin_data":{}}}]}}"#;
    seeds.add("configuration_server", json);
    let json = r#"{"agent":{"trust_domain":"example.org","server_address":"s","server_port":8081,"insecure_bootstrap":true,"data_dir":"/d"},
 "plugins":{"NodeAttestor":[{"join_token":{"plugin_data":{}}}],"KeyManager":[{"memory":{}}],"WorkloadAttestor":[{"unix":{}}]}}"#;
    seeds.add("configuration_agent", json);
    let text = "text = \"a\"\nswitch = true\nnumber = -1\nport = \"80\"\nduration = \"1h30m\"\nlist = [\"a\", \"b\"]\n\
        labelled \"x\" \"y\" {\n}\nblock {\n anything = { a = 1, \"b\" = (2) }\n}\n# end\n";
    seeds.add("configuration", text);
    seeds.add("configuration", "text = <<EOT\n a$${b}\nEOT\nnumber = $N\nlist = [\"${HOME}\", null]\nblock {}\n");
    seeds.add("configuration", r#"{"text":"\u00e9\n","switch":"true","number":1e3,"list":[null,"a"],"labelled":[{"x":{}},{"y":{}}]}"#);
    seeds.add("configuration", "\"text\" = 1,\n");
}

fn http2(seeds: &mut Seeds) {
    let mut bytes = b"\x07PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    let fields = b"\x83@\x05:path\x02/a@\n:authority\x10tmp%2Fapi%2Fa.soc\x01\x03a%b\x00\x01x\x03a%b\x41\x83\xff\xff\xff";
    let (first, second) = fields.split_at(24);
    // HEADERS with padding and priority, the rest in a CONTINUATION, then DATA.
    bytes.extend_from_slice(&[0, 0, u8::try_from(first.len()).unwrap_or(0) + 8, 1, 0x28, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(first);
    bytes.extend_from_slice(b"%%");
    bytes.extend_from_slice(&[0, 0, u8::try_from(second.len()).unwrap_or(0), 9, 4, 0, 0, 0, 1]);
    bytes.extend_from_slice(second);
    bytes.extend_from_slice(&[0, 0, 3, 0, 1, 0, 0, 0, 1, b'%', b'%', b'%']);
    seeds.add("http2_authority", bytes);
    let mut plain = b"\x40PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x0d\x01\x05\x00\x00\x00\x01\x86\x84\x41\x09a%2Fb.sck".to_vec();
    seeds.add("http2_authority", &plain);
    plain.truncate(40);
    seeds.add("http2_authority", plain);
}

/// What proxies say before TLS, in both versions.
fn proxies(seeds: &mut Seeds) {
    for line in ["PROXY TCP4 203.0.113.7 10.0.0.1 40000 8081\r\n", "PROXY TCP6 2001:db8::7 ::1 1 2\r\n", "PROXY UNKNOWN\r\n"] {
        seeds.add("proxy_header", line);
    }
    let head = |command: u8, family: u8, length: u8| [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family, 0, length]].concat();
    let v4 = [203, 0, 113, 7, 10, 0, 0, 1, 0x9c, 0x40, 0x1f, 0x91];
    seeds.add("proxy_header", [head(0x21, 0x11, 12), v4.to_vec()].concat());
    seeds.add("proxy_header", [head(0x21, 0x11, 15), v4.to_vec(), vec![1, 0, 0]].concat());
    seeds.add("proxy_header", [head(0x21, 0x21, 36), vec![7; 36]].concat());
    seeds.add("proxy_header", head(0x20, 0, 0));
}

fn named(path: &str) -> Option<types::Spiffeid> {
    Some(id::to_wire(&spiffe_id(path)))
}

fn by_selectors(matching: MatchBehavior) -> Option<SelectorMatch> {
    let selectors = vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1000".to_owned() }];
    Some(SelectorMatch { selectors, r#match: matching.into() })
}

fn agents_and_bundles(seeds: &mut Seeds, trust: &Bundle) -> Result<(), Anyhow> {
    let agent_id = named(&format!("/spire/agent/join_token/{NODE}"));
    let filter = agents::Filter {
        by_attestation_type: "join_token".to_owned(),
        by_selector_match: by_selectors(MatchBehavior::MatchAny),
        by_banned: Some(false),
        by_can_reattest: Some(false),
        by_expires_before: "2027-01-16 00:00:00 +0000 UTC".to_owned(),
    };
    let mask = Some(types::AgentMask { selectors: true, banned: true, ..types::AgentMask::default() });
    let list = agent::ListAgentsRequest { filter: Some(filter.clone()), output_mask: mask, page_size: 1, page_token: String::new() };
    seeds.message("spire.api.server.agent.v1.Agent.ListAgents", &list);
    let page_token = spiffe_id("/spire/agent/a").to_string();
    seeds.message("spire.api.server.agent.v1.Agent.ListAgents", &agent::ListAgentsRequest { filter: None, page_token, ..list });
    let count = agent::count_agents_request::Filter {
        by_attestation_type: filter.by_attestation_type,
        by_selector_match: filter.by_selector_match,
        by_banned: filter.by_banned,
        by_can_reattest: filter.by_can_reattest,
        by_expires_before: filter.by_expires_before,
    };
    seeds.message("spire.api.server.agent.v1.Agent.CountAgents", &agent::CountAgentsRequest { filter: Some(count) });
    let get = agent::GetAgentRequest { id: agent_id.clone(), output_mask: mask };
    seeds.message("spire.api.server.agent.v1.Agent.GetAgent", &get);
    seeds.message("spire.api.server.agent.v1.Agent.DeleteAgent", &agent::DeleteAgentRequest { id: agent_id.clone() });
    seeds.message("spire.api.server.agent.v1.Agent.BanAgent", &agent::BanAgentRequest { id: agent_id });
    let csr = pair(KeyType::EcP256)?.request(None, &[])?;
    for token in [TOKEN, "no-such-token"] {
        let data = Some(types::AttestationData { r#type: "join_token".to_owned(), payload: token.as_bytes().to_vec() });
        let params = attest::Params { data, params: Some(agent::AgentX509svidParams { csr: csr.clone() }) };
        let first = agent::AttestAgentRequest { step: Some(attest::Step::Params(params)) };
        let second = agent::AttestAgentRequest { step: Some(attest::Step::ChallengeResponse(vec![1, 2, 3])) };
        seeds.stream("spire.api.server.agent.v1.Agent.AttestAgent", std::slice::from_ref(&first));
        seeds.stream("spire.api.server.agent.v1.Agent.AttestAgent", &[first, second]);
    }
    let renew = agent::RenewAgentRequest { params: Some(agent::AgentX509svidParams { csr: csr.clone() }) };
    seeds.message("spire.api.server.agent.v1.Agent.RenewAgent", &renew);
    let token = agent::CreateJoinTokenRequest { ttl: 600, token: String::new(), agent_id: named("/node/b") };
    seeds.message("spire.api.server.agent.v1.Agent.CreateJoinToken", &token);
    let token = agent::CreateJoinTokenRequest { ttl: i32::MAX, token: "mine".to_owned(), agent_id: None };
    seeds.message("spire.api.server.agent.v1.Agent.CreateJoinToken", &token);
    let status = agent::PostStatusRequest { current_bundle_serial: 1, agent_version: "1.12.0".to_owned() };
    seeds.message("spire.api.server.agent.v1.Agent.PostStatus", &status);

    let wire = bundle::to_wire(trust);
    let foreign = crate::scripted::bundle_of(&[&crate::scripted::Authority::new(NOW, NOW.after(std::time::Duration::from_secs(3600)))?])?;
    let mut other = bundle::to_wire(&foreign);
    other.trust_domain = TrustDomain::parse("other.test")?.name().to_owned();
    other.refresh_hint = 60;
    let mask = Some(types::BundleMask { x509_authorities: true, sequence_number: true, ..types::BundleMask::default() });
    seeds.add("spire.api.server.bundle.v1.Bundle.CountBundles", []);
    seeds.message("spire.api.server.bundle.v1.Bundle.GetBundle", &bundle_api::GetBundleRequest { output_mask: mask });
    let append = bundle_api::AppendBundleRequest {
        x509_authorities: other.x509_authorities.clone(),
        jwt_authorities: wire.jwt_authorities.clone(),
        output_mask: mask,
        ..bundle_api::AppendBundleRequest::default()
    };
    seeds.message("spire.api.server.bundle.v1.Bundle.AppendBundle", &append);
    let publish = bundle_api::PublishJwtAuthorityRequest { jwt_authority: wire.jwt_authorities.first().cloned() };
    seeds.message("spire.api.server.bundle.v1.Bundle.PublishJWTAuthority", &publish);
    seeds.add("spire.api.server.bundle.v1.Bundle.PublishWITAuthority", b"\x0a\x00");
    let list = bundle_api::ListFederatedBundlesRequest { output_mask: mask, page_size: 10, page_token: "a.test".to_owned() };
    seeds.message("spire.api.server.bundle.v1.Bundle.ListFederatedBundles", &list);
    let get = bundle_api::GetFederatedBundleRequest { trust_domain: "other.test".to_owned(), output_mask: None };
    seeds.message("spire.api.server.bundle.v1.Bundle.GetFederatedBundle", &get);
    let create = bundle_api::BatchCreateFederatedBundleRequest { bundle: vec![other.clone(), wire], output_mask: mask };
    seeds.message("spire.api.server.bundle.v1.Bundle.BatchCreateFederatedBundle", &create);
    let set = bundle_api::BatchSetFederatedBundleRequest { bundle: vec![other.clone()], output_mask: mask };
    seeds.message("spire.api.server.bundle.v1.Bundle.BatchSetFederatedBundle", &set);
    let update = bundle_api::BatchUpdateFederatedBundleRequest { bundle: vec![other], input_mask: mask, output_mask: None };
    seeds.message("spire.api.server.bundle.v1.Bundle.BatchUpdateFederatedBundle", &update);
    for mode in 0..3 {
        let delete = bundle_api::BatchDeleteFederatedBundleRequest { trust_domains: vec!["other.test".to_owned()], mode };
        seeds.message("spire.api.server.bundle.v1.Bundle.BatchDeleteFederatedBundle", &delete);
    }
    Ok(())
}

fn relationships(seeds: &mut Seeds) -> Result<(), Anyhow> {
    use types::federation_relationship::BundleEndpointProfile as Profile;
    let foreign = crate::scripted::bundle_of(&[&crate::scripted::Authority::new(NOW, NOW.after(std::time::Duration::from_secs(3600)))?])?;
    let trust_domain = "other.test".to_owned();
    let web = types::FederationRelationship {
        trust_domain: trust_domain.clone(),
        bundle_endpoint_url: "https://other.test:8443/bundle".to_owned(),
        bundle_endpoint_profile: Some(Profile::HttpsWeb(types::HttpsWebProfile {})),
        trust_domain_bundle: None,
    };
    let endpoint_spiffe_id = "spiffe://other.test/endpoint".to_owned();
    let spiffe = types::FederationRelationship {
        bundle_endpoint_profile: Some(Profile::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id })),
        trust_domain_bundle: Some(types::Bundle { trust_domain: trust_domain.clone(), ..bundle::to_wire(&foreign) }),
        ..web.clone()
    };
    let mask = Some(types::FederationRelationshipMask { bundle_endpoint_url: true, ..Default::default() });
    let list = federation_api::ListFederationRelationshipsRequest { output_mask: mask, page_size: 1, page_token: "a.test".to_owned() };
    seeds.message("spire.api.server.trustdomain.v1.TrustDomain.ListFederationRelationships", &list);
    let get = federation_api::GetFederationRelationshipRequest { trust_domain: trust_domain.clone(), output_mask: mask };
    seeds.message("spire.api.server.trustdomain.v1.TrustDomain.GetFederationRelationship", &get);
    for one in [web, spiffe] {
        let create = federation_api::BatchCreateFederationRelationshipRequest {
            federation_relationships: vec![one.clone(), types::FederationRelationship::default()],
            output_mask: None,
        };
        seeds.message("spire.api.server.trustdomain.v1.TrustDomain.BatchCreateFederationRelationship", &create);
        let update = federation_api::BatchUpdateFederationRelationshipRequest {
            federation_relationships: vec![one],
            input_mask: mask,
            output_mask: mask,
        };
        seeds.message("spire.api.server.trustdomain.v1.TrustDomain.BatchUpdateFederationRelationship", &update);
    }
    let delete = federation_api::BatchDeleteFederationRelationshipRequest { trust_domains: vec![trust_domain.clone(), String::new()] };
    seeds.message("spire.api.server.trustdomain.v1.TrustDomain.BatchDeleteFederationRelationship", &delete);
    let refresh = federation_api::RefreshBundleRequest { trust_domain };
    seeds.message("spire.api.server.trustdomain.v1.TrustDomain.RefreshBundle", &refresh);
    Ok(())
}

/// Calls about one authority, by its name or without one.
fn authorities(seeds: &mut Seeds) {
    for target in super::targets().iter().map(|t| t.name).filter(|name| name.starts_with("spire.api.server.localauthority.")) {
        let named = about("0123456789abcdef0123456789abcdef01234567");
        let is_about_one = ["Activate", "Taint", "Revoke"].iter().any(|verb| target.contains(&format!(".{verb}")));
        seeds.add(target, if is_about_one { named } else { Vec::new() });
    }
}

/// A message whose first field is this text.
fn about(name: &str) -> Vec<u8> {
    local_authority::TaintX509AuthorityRequest { authority_id: name.to_owned() }.encode_to_vec()
}

fn entries_and_svids(seeds: &mut Seeds) -> Result<(), Anyhow> {
    let federates = Some(types::FederatesWithMatch { trust_domains: vec!["other.test".to_owned()], r#match: 2 });
    let filter = entries::Filter {
        by_spiffe_id: named("/web"),
        by_parent_id: named(&format!("/spire/agent/join_token/{NODE}")),
        by_selectors: by_selectors(MatchBehavior::MatchExact),
        by_federates_with: federates.clone(),
        by_hint: Some(String::new()),
        by_downstream: Some(false),
    };
    let mask = Some(types::EntryMask { spiffe_id: true, selectors: true, dns_names: true, ..types::EntryMask::default() });
    let list = entry_api::ListEntriesRequest { filter: Some(filter), output_mask: mask, page_size: 1, page_token: "a".to_owned() };
    seeds.message("spire.api.server.entry.v1.Entry.ListEntries", &list);
    seeds.message("spire.api.server.entry.v1.Entry.ListEntries", &entry_api::ListEntriesRequest { page_size: 2, ..Default::default() });
    let filter = entry_api::count_entries_request::Filter {
        by_spiffe_id: named("/web"),
        by_selectors: by_selectors(MatchBehavior::MatchSubset),
        by_federates_with: federates,
        ..Default::default()
    };
    seeds.message("spire.api.server.entry.v1.Entry.CountEntries", &entry_api::CountEntriesRequest { filter: Some(filter) });
    let get = entry_api::GetEntryRequest { id: ENTRY.to_owned(), output_mask: mask };
    seeds.message("spire.api.server.entry.v1.Entry.GetEntry", &get);
    let plain = types::Entry { id: "new".to_owned(), spiffe_id: named("/new"), ..web() };
    let full = types::Entry {
        id: String::new(),
        x509_svid_ttl: 60,
        jwt_svid_ttl: 30,
        federates_with: vec!["other.test".to_owned()],
        admin: true,
        expires_at: NOW.secs() + 100,
        store_svid: true,
        hint: "h".to_owned(),
        additional_attributes: Some(types::entry::AdditionalAttributes { jwt_svid_include_jti: true, ..Default::default() }),
        ..plain.clone()
    };
    let create = entry_api::BatchCreateEntryRequest { entries: vec![plain, full], output_mask: None };
    seeds.message("spire.api.server.entry.v1.Entry.BatchCreateEntry", &create);
    let create = entry_api::BatchCreateEntryRequest { entries: vec![web()], output_mask: mask };
    seeds.message("spire.api.server.entry.v1.Entry.BatchCreateEntry", &create);
    let changed = types::Entry { hint: "other".to_owned(), dns_names: vec!["*.example.org".to_owned()], ..web() };
    let update = entry_api::BatchUpdateEntryRequest { entries: vec![changed.clone()], input_mask: None, output_mask: None };
    seeds.message("spire.api.server.entry.v1.Entry.BatchUpdateEntry", &update);
    let update = entry_api::BatchUpdateEntryRequest { entries: vec![changed], input_mask: mask, output_mask: mask };
    seeds.message("spire.api.server.entry.v1.Entry.BatchUpdateEntry", &update);
    let delete = entry_api::BatchDeleteEntryRequest { ids: vec![ENTRY.to_owned(), "no-such-entry".to_owned(), String::new()] };
    seeds.message("spire.api.server.entry.v1.Entry.BatchDeleteEntry", &delete);
    let mine = entry_api::GetAuthorizedEntriesRequest { output_mask: mask };
    seeds.message("spire.api.server.entry.v1.Entry.GetAuthorizedEntries", &mine);
    let first = entry_api::SyncAuthorizedEntriesRequest { output_mask: mask, ids: Vec::new() };
    let second = entry_api::SyncAuthorizedEntriesRequest { output_mask: None, ids: vec![ENTRY.to_owned(), "x".to_owned()] };
    seeds.stream("spire.api.server.entry.v1.Entry.SyncAuthorizedEntries", &[first, second]);

    let pair = pair(KeyType::EcP256)?;
    let csr = pair.request(Some(&spiffe_id("/minted")), &["m.example.org".to_owned()])?;
    seeds.message("spire.api.server.svid.v1.SVID.MintX509SVID", &svid::MintX509svidRequest { csr: csr.clone(), ttl: 60 });
    let mint = svid::MintJwtsvidRequest { id: named("/minted"), audience: vec!["db".to_owned(), "x".to_owned()], ttl: 60 };
    seeds.message("spire.api.server.svid.v1.SVID.MintJWTSVID", &mint);
    let public_key = pair.public_key().spki().to_vec();
    let wit =
        svid::MintWitsvidRequest { id: named("/minted"), public_key: public_key.clone(), ttl: 60, signing_algorithm: "ES256".to_owned() };
    seeds.message("spire.api.server.svid.v1.SVID.MintWITSVID", &wit);
    let params = |entry_id: &str| svid::NewX509svidParams { entry_id: entry_id.to_owned(), csr: csr.clone() };
    let batch = svid::BatchNewX509svidRequest { params: vec![params(ENTRY), params("no-such-entry")] };
    seeds.message("spire.api.server.svid.v1.SVID.BatchNewX509SVID", &batch);
    let new = svid::NewJwtsvidRequest { entry_id: ENTRY.to_owned(), audience: vec!["db".to_owned()] };
    seeds.message("spire.api.server.svid.v1.SVID.NewJWTSVID", &new);
    let params = svid::NewWitsvidParams { entry_id: ENTRY.to_owned(), public_key, signing_algorithm: "ES256".to_owned() };
    seeds.message("spire.api.server.svid.v1.SVID.BatchNewWITSVID", &svid::BatchNewWitsvidRequest { params: vec![params] });
    let authority = svid::NewDownstreamX509caRequest { csr: csr.clone(), preferred_ttl: 60 };
    seeds.message("spire.api.server.svid.v1.SVID.NewDownstreamX509CA", &authority);
    let facts = vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1000".to_owned() }];
    for credential in
        [issue_request::Credential::X509Csr(csr), issue_request::Credential::Jwt(node::JwtParams { audience: vec!["db".to_owned()] })]
    {
        let credential = Some(credential);
        let entry_id = ENTRY.to_owned();
        let issue = node::IssueRequest { entry_id, entry_revision: 0, credential, held_expires_at: NOW.secs(), facts: facts.clone() };
        seeds.message("countersign.agent.v1.Node.Issue", &issue);
    }
    Ok(())
}

fn ours(seeds: &mut Seeds, trust: &Bundle) -> Result<(), Anyhow> {
    seeds.add("spire.api.server.debug.v1.Debug.GetInfo", []);
    seeds.add("spire.api.server.logger.v1.Logger.GetLogger", []);
    seeds.add("spire.api.server.logger.v1.Logger.ResetLogLevel", []);
    seeds.message("spire.api.server.logger.v1.Logger.SetLogLevel", &logger::SetLogLevelRequest { new_level: 4 });
    let cursor = node::Cursor { epoch: vec![7; 16], revision: 3, digest: vec![7; 32] };
    let hello = node::Hello { cursor: Some(cursor.clone()), agent_version: "1".to_owned() };
    let ack = node::Ack { applied: 3, persisted: 2, delivered: 1 };
    let hello = node::FollowRequest { step: Some(follow_request::Step::Hello(hello)) };
    let ack = node::FollowRequest { step: Some(follow_request::Step::Ack(ack)) };
    seeds.stream("countersign.agent.v1.Node.Follow", &[hello.clone(), ack]);
    seeds.stream("countersign.agent.v1.Node.Follow", &[hello]);
    for query in [
        journal::IssuedRequest { spiffe_id: spiffe_id("/web").to_string(), from: NOW.secs(), limit: 2, ..Default::default() },
        journal::IssuedRequest { agent_id: spiffe_id("/spire/agent/join_token/fuzz-node").to_string(), ..Default::default() },
        journal::IssuedRequest { serial_or_jti: "1".to_owned(), until: NOW.secs() + 1, ..Default::default() },
    ] {
        seeds.message("countersign.journal.v1.Journal.Issued", &query);
    }
    seeds.message("countersign.entry.v1.EntryExplainer.ExplainEntry", &explained::ExplainEntryRequest { id: ENTRY.to_owned() });
    let selectors = vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1000".to_owned() }];
    for subject in [None, Some(Subject::Pid(1)), Some(Subject::Selectors(agent_admin::SelectorSet { selectors }))] {
        seeds.message("countersign.agent.admin.v1.Admin.Explain", &agent_admin::ExplainRequest { subject });
    }
    operators(seeds);
    let program = program_entry();
    let more = types::Entry { id: "more".to_owned(), spiffe_id: named("/more"), hint: "m".to_owned(), ..program.clone() };
    let first = node::FollowResponse {
        cursor: Some(cursor.clone()),
        reset: true,
        entries: vec![program.clone()],
        bundles: vec![bundle::to_wire(trust)],
        ..Default::default()
    };
    let second = node::FollowResponse { cursor: Some(cursor), entries: vec![more], caught_up: true, ..Default::default() };
    let third = node::FollowResponse {
        removed_entries: vec!["more".to_owned(), "program".to_owned()],
        removed_bundles: vec![trust_domain().name().to_owned(), "other.test".to_owned()],
        ..Default::default()
    };
    seeds.stream("agent.FollowResponse", &[first.clone(), second.clone(), third]);
    seeds.stream("agent.FollowResponse", &[second]);
    let token = types::Jwtsvid {
        token: "a.b.c".to_owned(),
        id: named("/program"),
        expires_at: NOW.secs() + 300,
        issued_at: NOW.secs(),
        hint: String::new(),
    };
    let credential = Some(node::issue_response::Credential::Jwt(token));
    seeds.message("agent.IssueResponse", &node::IssueResponse { credential });
    let certificates =
        types::X509svid { cert_chain: vec![vec![0x30, 0]], id: named("/program"), expires_at: NOW.secs(), hint: String::new() };
    let credential = Some(node::issue_response::Credential::X509(certificates));
    seeds.message("agent.IssueResponse", &node::IssueResponse { credential });
    Ok(())
}

fn operators(seeds: &mut Seeds) {
    for target in [
        "spire.agent.debug.v1.Debug.GetInfo",
        "spire.api.agent.logger.v1.Logger.GetLogger",
        "spire.api.agent.logger.v1.Logger.ResetLogLevel",
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity.SubscribeToX509Bundles",
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity.SubscribeToJWTBundles",
    ] {
        seeds.add(target, []);
    }
    for new_level in [0, 4, 99] {
        seeds.message("spire.api.agent.logger.v1.Logger.SetLogLevel", &agent_logger::SetLogLevelRequest { new_level });
    }
    let of = |value: &str| vec![types::Selector { r#type: "unix".to_owned(), value: value.to_owned() }];
    for (selectors, pid) in [(of("uid:0"), 0), (of("uid:4711"), 0), (Vec::new(), 1), (Vec::new(), -1), (of("uid:0"), 1)] {
        let request = delegated_identity::SubscribeToX509sviDsRequest { selectors: selectors.clone(), pid };
        seeds.message("spire.api.agent.delegatedidentity.v1.DelegatedIdentity.SubscribeToX509SVIDs", &request);
        let request = delegated_identity::FetchJwtsviDsRequest { audience: vec!["db".to_owned(), "x".to_owned()], selectors, pid };
        seeds.message("spire.api.agent.delegatedidentity.v1.DelegatedIdentity.FetchJWTSVIDs", &request);
    }
}

fn programs(seeds: &mut Seeds, token: &str) {
    for target in ["SpiffeWorkloadAPI.FetchX509SVID", "SpiffeWorkloadAPI.FetchX509Bundles", "SpiffeWorkloadAPI.FetchJWTBundles"] {
        seeds.add(target, []);
    }
    for target in ["SpiffeWorkloadAPI.FetchWITSVID", "SpiffeWorkloadAPI.FetchWITBundles"] {
        seeds.add(target, []);
    }
    for spiffe_id in [String::new(), spiffe_id("/program").to_string()] {
        let request = workload::JwtsvidRequest { audience: vec!["db".to_owned(), "x".to_owned()], spiffe_id };
        seeds.message("SpiffeWorkloadAPI.FetchJWTSVID", &request);
    }
    let request = workload::ValidateJwtsvidRequest { audience: AUDIENCE.to_owned(), svid: token.to_owned() };
    seeds.message("SpiffeWorkloadAPI.ValidateJWTSVID", &request);
    envoys(seeds);
}

fn envoys(seeds: &mut Seeds) {
    let switched_off = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue("true".to_owned())) };
    let node = envoy_core::Node {
        id: "envoy".to_owned(),
        metadata: Some(prost_types::Struct { fields: [("disable_spiffe_cert_validation".to_owned(), switched_off)].into() }),
        user_agent_version_type: Some(envoy_core::node::UserAgentVersionType::UserAgentBuildVersion(envoy_core::BuildVersion {
            version: Some(envoy_type::SemanticVersion { major_number: 1, minor_number: 17, patch: 0 }),
        })),
        ..envoy_core::Node::default()
    };
    let of = |names: &[&str]| discovery::DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret".to_owned(),
        ..discovery::DiscoveryRequest::default()
    };
    let refusal = discovery::DiscoveryRequest {
        version_info: "0".to_owned(),
        response_nonce: "00000000".to_owned(),
        error_detail: Some(google::rpc::Status { code: 13, message: "no".to_owned(), details: Vec::new() }),
        ..of(&["ALL"])
    };
    let program = spiffe_id("/program").to_string();
    let all = [&["default", "ROOTCA"][..], &[&program, "ALL"], &["spiffe://example.org"], &[], &["nobody's"]];
    for names in all {
        seeds.message("envoy.service.secret.v3.SecretDiscoveryService.FetchSecrets", &of(names));
        seeds.stream("envoy.service.secret.v3.SecretDiscoveryService.StreamSecrets", &[of(names), refusal.clone(), of(&["default"])]);
    }
    let old = discovery::DiscoveryRequest { node: Some(node.clone()), ..of(&["ALL"]) };
    seeds.message("envoy.service.secret.v3.SecretDiscoveryService.FetchSecrets", &old);
    let delta = discovery::DeltaDiscoveryRequest {
        node: Some(node),
        resource_names_subscribe: vec!["default".to_owned(), "ROOTCA".to_owned()],
        initial_resource_versions: [("default".to_owned(), "1".to_owned())].into(),
        ..discovery::DeltaDiscoveryRequest::default()
    };
    let other = discovery::DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["ALL".to_owned()],
        resource_names_unsubscribe: vec!["ROOTCA".to_owned()],
        ..discovery::DeltaDiscoveryRequest::default()
    };
    seeds.stream("envoy.service.secret.v3.SecretDiscoveryService.DeltaSecrets", &[delta, other]);
}

/// The journal of the little that this trust domain issued.
async fn issued(seeds: &mut Seeds, domain: &Domain) -> Result<(), Anyhow> {
    let directory = domain.directory().join("server").join("journal");
    let written = until("the journal's outcomes", async || {
        let found = search(&directory, &Query::default()).ok()?;
        found.records.iter().all(|r| r.outcome != 0).then_some(found.records.len())
    });
    written.await?;
    for file in std::fs::read_dir(&directory)? {
        let path = file?.path();
        if path.extension().is_some_and(|e| e == "journal") {
            let bytes = std::fs::read(path)?;
            seeds.add("journal", join(&[&bytes]));
            seeds.add("journal", join(&[&bytes, &b""[..]]));
            seeds.add("journal", join(&[bytes.get(..bytes.len() - 5).unwrap_or_default()]));
        }
    }
    Ok(())
}
