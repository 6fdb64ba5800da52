//! The whole life of an agent that proves itself with a certificate: it joins, renews by proving itself again, comes back after
//! an eviction, and says what is wrong when nobody vouches for it any more.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use countersign_agent::{AgentError, End};
use countersign_identity::x509::Certificate;
use countersign_plugins::keys::KeyPair as Pair;
use countersign_testkit::clock::VirtualClock;
use countersign_testkit::domain::{Domain, NodeIdentity, own_uid, spiffe_id, trust_domain, until};
use countersign_testkit::log::Log;
use countersign_transport::clock::SharedClock;
use countersign_transport::random::Seeded;
use countersign_wire::agent::agent_client::AgentClient;
use countersign_wire::agent::{AgentX509svidParams, ListAgentsRequest, RenewAgentRequest};
use countersign_wire::journal::Kind;
use countersign_wire::{id, types};
use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tonic::Code;

use crate::support::{World, message, paths, verify};

const MINUTE: Duration = Duration::from_secs(60);

/// The machine's maker, who gives each node a certificate, and the files of one node.
struct Maker {
    directory: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2060, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Maker {
    fn new() -> Self {
        let maker = Self { directory: tempfile::tempdir().unwrap(), authority: authority("Maker") };
        std::fs::write(maker.path("ca.pem"), maker.authority.pem()).unwrap();
        maker
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a certificate with this name and its key into the node's files.
    fn equip(&self, name: &str) {
        self.equip_by(&self.authority, &params(name));
    }

    fn equip_by(&self, issuer: &CertifiedIssuer<'static, KeyPair>, params: &CertificateParams) {
        let key = KeyPair::generate().unwrap();
        std::fs::write(self.path("node.pem"), params.signed_by(&key, issuer).unwrap().pem()).unwrap();
        std::fs::write(self.path("node.key"), key.serialize_pem()).unwrap();
    }

    /// A server that trusts the maker, and its virtual clock.
    async fn world(&self, template: &str) -> (World, VirtualClock) {
        let clock = VirtualClock::at_present();
        let shared: SharedClock = Arc::new(clock.clone());
        let block = format!(
            "NodeAttestor \"x509pop\" {{\n plugin_data {{\n ca_bundle_path = \"{}\"\n agent_path_template = \"{template}\"\n }}\n }}",
            self.path("ca.pem").display()
        );
        // Time passes, so that retries get their turn.
        let passing = clock.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                passing.advance(Duration::from_millis(50));
            }
        });
        let domain = Domain::start_with_plugins(Arc::clone(&shared), "ca_ttl = \"72h\"", &block).await.unwrap();
        (World { domain, agent: None, clock: shared }, clock)
    }

    async fn config(&self, world: &World) -> countersign_agent::Config {
        let files = format!(
            "certificate_path = \"{}\"\n private_key_path = \"{}\"",
            self.path("node.pem").display(),
            self.path("node.key").display()
        );
        config(world, &files).await
    }
}

/// The configuration of agent `a` with this `plugin_data`.
async fn config(world: &World, plugin_data: &str) -> countersign_agent::Config {
    if world.domain.server.is_some() {
        // Writes the bundle.
        world.domain.agent_config("a", None, "").await.unwrap();
    }
    let text = world.domain.agent_configuration("a", None, "");
    let wanted = text.replace("\"join_token\" {\n plugin_data {}", &format!("\"x509pop\" {{\n plugin_data {{\n {plugin_data}\n }}"));
    assert_ne!(text, wanted);
    countersign_agent::Config::read(countersign_config::parse("agent.conf", &wanted).unwrap()).unwrap()
}

async fn start(world: &World, config: &countersign_agent::Config) -> Result<countersign_agent::Running, AgentError> {
    countersign_agent::start(config, Arc::clone(&world.clock), Arc::new(Seeded::new(1)), "test").await
}

async fn nodes(world: &World) -> Vec<types::Agent> {
    let request = ListAgentsRequest::default();
    AgentClient::new(world.domain.admin().await.unwrap()).list_agents(request).await.unwrap().into_inner().agents
}

/// An entry below a node alias that wants this selector.
async fn entry_by_alias(world: &World, selector: &str) {
    let alias = types::Entry {
        selectors: vec![types::Selector { r#type: "x509pop".to_owned(), value: selector.to_owned() }],
        parent_id: Some(id::to_wire(&trust_domain().server_id())),
        spiffe_id: Some(id::to_wire(&spiffe_id("/racks/7"))),
        ..types::Entry::default()
    };
    world.domain.entry_from(alias).await.unwrap();
    let mut entry = message("/web", &[own_uid()]);
    entry.parent_id = Some(id::to_wire(&spiffe_id("/racks/7")));
    world.domain.entry_from(entry).await.unwrap();
}

async fn is_served(world: &World) {
    world.served().await;
    let answer = world.workload().await.x509_svid().await.unwrap();
    assert_eq!(paths(&answer), ["/web"]);
    verify(&answer.svids[0], world.clock.now());
}

async fn end(world: &mut World, clock: &VirtualClock) -> End {
    let ended = world.agent.as_mut().unwrap().ended();
    tokio::pin!(ended);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        tokio::select! {
            end = &mut ended => return end,
            () = tokio::time::sleep(Duration::from_millis(5)) => clock.advance(Duration::from_millis(500)),
        }
        assert!(tokio::time::Instant::now() < deadline, "the agent goes on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_certificate_joins_is_named_by_it_and_survives_a_restart() {
    let maker = Maker::new();
    maker.equip("node-1");
    let (mut world, _) = maker.world("/x509pop/cn/{{ .Subject.CommonName }}").await;
    entry_by_alias(&world, "subject:cn:node-1").await;
    let config = maker.config(&world).await;
    world.run(&config).await;
    assert_eq!(world.agent_id(), spiffe_id("/spire/agent/x509pop/cn/node-1"));
    is_served(&world).await;
    let found = nodes(&world).await;
    let [node] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((node.attestation_type.as_str(), node.can_reattest), ("x509pop", true));
    let leaf =
        Certificate::parse(&countersign_identity::pem::read(&std::fs::read_to_string(maker.path("node.pem")).unwrap()).unwrap()[0].1)
            .unwrap();
    let hex = countersign_identity::key::hex;
    let values: Vec<&str> = node.selectors.iter().map(|s| s.value.as_str()).collect();
    assert!(
        values.contains(&"subject:cn:node-1") && values.contains(&format!("serialnumber:{}", hex(&leaf.serial)).as_str()),
        "{values:?}"
    );
    assert!(values.iter().any(|v| v.starts_with("ca:fingerprint:") && v.len() == 55), "{values:?}");

    // Started again, with the server away: it goes on with what it has.
    world.stop_agent().await;
    world.domain.stop_server().await;
    let config = maker.config(&world).await;
    world.run(&config).await;
    world.domain.start_server().await.unwrap();
    is_served(&world).await;
    assert_eq!(world.issued(Kind::AgentX509).await.len(), 1, "it did not join again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_renews_by_proving_itself_again() {
    let maker = Maker::new();
    maker.equip("node-1");
    let (mut world, clock) = maker.world("/x509pop/cn/{{ .Subject.CommonName }}").await;
    entry_by_alias(&world, "subject:cn:node-1").await;
    let config = maker.config(&world).await;
    world.run(&config).await;
    is_served(&world).await;
    let before = world.agent_leaf().unwrap();

    // A node that can prove itself must do so.
    let identity = identity(&world);
    let csr = identity.pair.request(None, &[]).unwrap();
    let request = RenewAgentRequest { params: Some(AgentX509svidParams { csr }) };
    let refused = AgentClient::new(world.domain.connect(Some(&identity)).await.unwrap()).renew_agent(request).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "agent must reattest instead of renew"));

    // While its files are half replaced it goes on with what it has.
    let key = std::fs::read(maker.path("node.key")).unwrap();
    std::fs::write(maker.path("node.key"), "half").unwrap();
    clock.advance(35 * MINUTE);
    is_served(&world).await;
    assert_eq!(world.agent_leaf().unwrap().serial, before.serial);
    std::fs::write(maker.path("node.key"), key).unwrap();
    let renewed = || {
        clock.advance(Duration::from_secs(1));
        let leaf = world.agent_leaf();
        async { leaf.filter(|leaf| leaf.serial != before.serial) }
    };
    let after = until("it is renewed", renewed).await.unwrap();
    assert_eq!(after.spiffe_id(), before.spiffe_id());
    is_served(&world).await;
    assert_eq!(nodes(&world).await.len(), 1);
    assert_eq!(world.issued(Kind::AgentX509).await.len(), 2);
}

/// The agent's own identity, from its files.
fn identity(world: &World) -> NodeIdentity {
    use base64::Engine as _;
    let leaf = world.agent_leaf().unwrap();
    let keys: serde_json::Value = serde_json::from_slice(&std::fs::read(world.file("keys.json")).unwrap()).unwrap();
    let pairs = keys["keys"]
        .as_object()
        .unwrap()
        .values()
        .map(|k| Pair::from_pkcs8(&base64::engine::general_purpose::STANDARD.decode(k.as_str().unwrap()).unwrap()).unwrap());
    let pair = pairs.into_iter().find(|p| *p.public_key() == leaf.public_key).unwrap();
    NodeIdentity { id: leaf.spiffe_id().unwrap(), chain: vec![leaf.der().to_vec()], pair: Arc::new(pair), leaf }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_evicted_proves_itself_again_and_one_that_is_banned_ends() {
    Log::listen();
    let maker = Maker::new();
    maker.equip("node-1");
    let (mut world, clock) = maker.world("/x509pop/cn/{{ .Subject.CommonName }}").await;
    entry_by_alias(&world, "subject:cn:node-1").await;
    let config = maker.config(&world).await;
    world.run(&config).await;
    is_served(&world).await;
    let before = world.agent_leaf().unwrap();
    world.evict().await;
    let back = || {
        clock.advance(Duration::from_millis(100));
        let leaf = world.agent_leaf();
        async { leaf.filter(|leaf| leaf.serial != before.serial) }
    };
    until("it has joined again", back).await.unwrap();
    is_served(&world).await;
    Log::says("WARN", "Agent needs to re-attest; will attempt to re-attest").await.unwrap();
    Log::says("INFO", "Successfully reattested node").await.unwrap();

    world.ban().await;
    assert_eq!(end(&mut world, &clock).await, End::Banned);
    world.stop_agent().await;
    let error = start(&world, &config).await.unwrap_err().to_string();
    assert!(error.contains("failed to attest: agent is banned"), "{error}");
    // Evicted by the administrator, the node may join again.
    AgentClient::new(world.domain.admin().await.unwrap())
        .delete_agent(countersign_wire::agent::DeleteAgentRequest { id: Some(id::to_wire(&before.spiffe_id().unwrap())) })
        .await
        .unwrap();
    world.agent = Some(start(&world, &config).await.unwrap());
    is_served(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_off_until_its_svid_ended_joins_by_itself() {
    let maker = Maker::new();
    maker.equip("node-1");
    let (mut world, clock) = maker.world("/x509pop/cn/{{ .Subject.CommonName }}").await;
    entry_by_alias(&world, "subject:cn:node-1").await;
    let config = maker.config(&world).await;
    world.run(&config).await;
    is_served(&world).await;
    world.stop_agent().await;
    clock.advance(120 * MINUTE);
    world.agent = Some(start(&world, &config).await.unwrap());
    is_served(&world).await;
    assert_eq!(world.issued(Kind::AgentX509).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_certificate_is_another_agent_and_keeps_nothing_of_the_one_before() {
    let maker = Maker::new();
    maker.equip("node-1");
    let (mut world, clock) = maker.world("/x509pop/cn/{{ .Subject.CommonName }}").await;
    entry_by_alias(&world, "subject:cn:node-1").await;
    let config = maker.config(&world).await;
    world.run(&config).await;
    is_served(&world).await;
    maker.equip("node-2");
    clock.advance(35 * MINUTE);
    let other = || {
        clock.advance(Duration::from_millis(100));
        let id = world.agent_leaf().and_then(|leaf| leaf.spiffe_id());
        async { id.filter(|id| id.path().ends_with("/node-2")) }
    };
    until("it is another agent", other).await.unwrap();
    // What was for the first is served no longer.
    let workload = world.workload().await;
    let denied = || async {
        let answer = workload.x509_svid_within(Duration::from_millis(300)).await;
        answer.err().filter(|status| status.code() == Code::PermissionDenied)
    };
    until("the workload has no identity of the first agent", denied).await.unwrap();
    // And what is for the second arrives.
    let mut entry = message("/second", &[own_uid()]);
    entry.parent_id = Some(id::to_wire(&spiffe_id("/spire/agent/x509pop/cn/node-2")));
    world.domain.entry_from(entry).await.unwrap();
    world.served().await;
    assert_eq!(paths(&world.workload().await.x509_svid().await.unwrap()), ["/second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_nobody_vouches_for_says_so_and_what_to_look_at() {
    let maker = Maker::new();
    let stranger = authority("Stranger");
    let (world, _) = maker.world("/x509pop/cn/{{ .Subject.CommonName }}").await;
    let over = {
        let mut params = params("node-1");
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        params
    };
    for (issuer, params, told) in [
        (&stranger, params("node-1"), "there is no certificate of `CN=Stranger`, which issued the certificate of `CN=node-1`"),
        (&maker.authority, over, "the certificate of `CN=node-1` is valid from 2020-01-01T00:00:00Z to 2021-01-01T00:00:00Z, it is now "),
    ] {
        maker.equip_by(issuer, &params);
        let config = maker.config(&world).await;
        let AgentError::Refused { reason, hint } = start(&world, &config).await.unwrap_err() else { panic!("another error") };
        let begin = "failed to receive attestation response: failed to attest: certificate verification failed: ";
        assert!(reason.starts_with(begin) && reason.contains(told), "{reason}");
        assert!(hint.contains("node.pem") && hint.contains("start the agent again"), "{hint}");
    }
    assert!(nodes(&world).await.is_empty());
    assert!(world.issued(Kind::AgentX509).await.is_empty(), "no signature is spent on it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_node_whose_ca_was_withdrawn_goes_on_until_its_svid_ends() {
    Log::listen();
    let maker = Maker::new();
    maker.equip("node-1");
    let (mut world, clock) = maker.world("/x509pop/cn/{{ .Subject.CommonName }}").await;
    entry_by_alias(&world, "subject:cn:node-1").await;
    let config = maker.config(&world).await;
    world.run(&config).await;
    is_served(&world).await;
    std::fs::write(maker.path("ca.pem"), authority("Another").pem()).unwrap();
    clock.advance(40 * MINUTE);
    is_served(&world).await;
    let End::MustJoinAgain(what) = end(&mut world, &clock).await else { panic!("another end") };
    assert!(what.contains("there is no certificate of `CN=Maker`") && what.contains("node.pem"), "{what}");
    assert_eq!(Log::count("ERROR", "Agent failed re-attestation; removing SVID and shutting down"), 1);
}

/// A node gets its identity from another agent's Workload API, and is exchanged for a node's.
#[tokio::test(flavor = "multi_thread")]
async fn an_svid_of_a_workload_api_is_exchanged_for_that_of_a_node() {
    let clock: SharedClock = Arc::new(VirtualClock::at_present());
    let block = "NodeAttestor \"x509pop\" {\n plugin_data {\n mode = \"spiffe\"\n }\n }";
    let domain = Domain::start_with_plugins(Arc::clone(&clock), "", block).await.unwrap();
    let host = domain.agent("host").await.unwrap();
    let mut entry = message("/spire-exchange/guest-7", &[own_uid()]);
    entry.parent_id = Some(id::to_wire(&spiffe_id("/node/host")));
    domain.entry_from(entry).await.unwrap();
    let world = World { domain, agent: None, clock };
    let data = |socket: &Path| format!("spiffe_endpoint_socket = \"unix://{}\"", socket.display());
    let good = config(&world, &data(&host.socket_path)).await;
    let running = until("the guest has joined", || async { start(&world, &good).await.ok() }).await.unwrap();
    assert_eq!(world.agent_id(), spiffe_id("/spire/agent/x509pop/guest-7"));
    running.stop().await;
    host.stop().await;
}
