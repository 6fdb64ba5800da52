//! What a server says to an agent: a real agent and a server that says anything.
//!
//! Whatever it was told before, one good message makes an agent right again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::x509::Certificate;
use countersign_wire::node::{Cursor, FollowResponse, IssueResponse, issue_response};
use countersign_wire::{bundle, entry, id, types};
use prost::Message as _;
use tonic::Code;

use super::{NOW, Target, split};
use crate::clock::VirtualClock;
use crate::domain::{Anyhow, agent_configuration, own_uid, spiffe_id, trust_domain, until};
use crate::panics;
use crate::scripted::{Authority, FOLLOW, Scripted, bundle_of};
use crate::workload::Workload;
use countersign_transport::clock::Clock as _;
use countersign_transport::random::Seeded;

pub(super) const TARGETS: &[Target] =
    &[Target { name: "agent.FollowResponse", run: follow_response }, Target { name: "agent.IssueResponse", run: issue_response_ }];

/// How long an answer may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time that may pass until everything begins anew.
const TIME_MAX: Duration = Duration::from_secs(600);
/// Messages of one run.
const MESSAGES_MAX: usize = 8;
/// Entries of one message: for each the agent makes a key, which finds nothing.
const ENTRIES_MAX: usize = 8;

/// The agent, the server it follows, and a program on its node.
struct Puppet {
    runtime: tokio::runtime::Runtime,
    clock: VirtualClock,
    authority: Arc<Authority>,
    server: Scripted,
    _agent: countersign_agent::Running,
    program: Workload,
    _directory: tempfile::TempDir,
}

static PUPPET: Mutex<Option<Puppet>> = Mutex::new(None);

fn with(use_it: impl FnOnce(&Puppet)) {
    let mut place = PUPPET.lock().unwrap_or_else(PoisonError::into_inner);
    let puppet = place.take().unwrap_or_else(|| Puppet::start().expect("an agent starts"));
    let before = panics::seen().len();
    use_it(&puppet);
    let seen = panics::seen().split_off(before);
    assert!(seen.is_empty(), "the agent panicked: {seen:?}");
    // Before the agent renews its own SVID: what is said while it connects anew is lost, as it should be.
    if puppet.clock.now() < NOW.after(TIME_MAX) {
        *place = Some(puppet);
    }
}

impl Puppet {
    fn start() -> Result<Self, Anyhow> {
        panics::watch();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let clock = VirtualClock::at(NOW);
        let day = Duration::from_secs(24 * 3600);
        let authority = Arc::new(Authority::new(NOW.before(day), NOW.after(365 * day))?);
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("bundle.pem"), bundle_of(&[&authority])?.to_pem())?;
        let (server, agent, program) = runtime.block_on(async {
            let server = Scripted::start(Arc::clone(&authority), Arc::new(clock.clone())).await?;
            server.register(vec![program_entry()]);
            let text = agent_configuration(directory.path(), server.port(), Some("token"), "");
            let config = countersign_agent::Config::read(countersign_config::parse("agent.conf", &text)?)?;
            let agent = countersign_agent::start(&config, Arc::new(clock.clone()), Arc::new(Seeded::new(1)), "test").await?;
            until("the agent follows", async || (server.calls(FOLLOW) > 0).then_some(())).await?;
            let program = Workload::connect(&directory.path().join("agent.sock")).await?;
            until("the program has an identity", async || program.x509_svid().await.ok()).await?;
            Ok::<_, Anyhow>((server, agent, program))
        })?;
        Ok(Self { runtime, clock, authority, server, _agent: agent, program, _directory: directory })
    }

    /// Lets something happen while time passes, so that whatever waits to be tried again is.
    fn soon<T>(&self, what: &str, attempt: impl AsyncFn() -> Option<T>) -> T {
        self.runtime.block_on(async {
            let looked = until(what, async || {
                let found = tokio::time::timeout(Duration::from_millis(200), attempt()).await.ok().flatten();
                if found.is_none() {
                    self.clock.advance(Duration::from_secs(5));
                }
                found
            });
            tokio::time::timeout(PATIENCE, looked).await.expect(what).expect(what)
        })
    }

    /// The whole state, as a server that is right says it.
    fn truth(&self) -> FollowResponse {
        FollowResponse {
            cursor: Some(Cursor { epoch: vec![7; 16], revision: 1, digest: vec![7; 32] }),
            reset: true,
            entries: vec![program_entry()],
            bundles: vec![bundle::to_wire(&bundle_of(&[&self.authority]).expect("a bundle"))],
            caught_up: true,
            ..FollowResponse::default()
        }
    }
}

/// An entry for every process of this user.
pub(super) fn program_entry() -> types::Entry {
    types::Entry {
        id: "program".to_owned(),
        spiffe_id: Some(id::to_wire(&spiffe_id("/program"))),
        parent_id: Some(id::to_wire(&spiffe_id("/node/a"))),
        selectors: id::selectors_to_wire(&[own_uid()]),
        ..types::Entry::default()
    }
}

fn follow_response(bytes: &[u8]) {
    // What is no message ends the stream, which is the library's work; what is looked for comes after it.
    let messages: Vec<FollowResponse> =
        split(bytes).into_iter().take(MESSAGES_MAX).filter_map(|m| FollowResponse::decode(m).ok()).collect();
    if messages.is_empty() || messages.iter().any(|m| m.entries.len() > ENTRIES_MAX) {
        return;
    }
    for sent in messages.iter().flat_map(|m| &m.entries) {
        if let Ok(read) = entry::from_wire(sent) {
            assert_eq!(entry::from_wire(&entry::to_wire(&read)).as_ref(), Ok(&read), "an entry that was read is written as it was");
        }
    }
    for sent in messages.iter().flat_map(|m| &m.bundles) {
        if let Ok(read) = bundle::from_wire(sent) {
            assert_eq!(bundle::from_wire(&bundle::to_wire(&read)).as_ref(), Ok(&read), "a bundle that was read is written as it was");
        }
    }
    with(|puppet| {
        for message in messages.into_iter().chain([puppet.truth()]) {
            let said = puppet.runtime.block_on(async { tokio::time::timeout(PATIENCE, puppet.server.say(message)).await });
            assert!(said.is_ok(), "the agent acknowledges no more");
        }
        let own = trust_domain().id();
        let bundles = puppet.soon("the bundles", async || {
            let mut stream = puppet.program.x509_bundles().await.ok()?;
            stream.message().await.ok().flatten()
        });
        let named: Vec<&String> = bundles.bundles.keys().collect();
        assert_eq!(named, [own.as_str()], "a bundle is left of what was said before");
        assert_eq!(bundles.bundles.get(own.as_str()).map(Vec::as_slice), Some(puppet.authority.certificate.der()));
        let held = puppet.soon("the program's identity", async || puppet.program.x509_svid().await.ok());
        let [svid] = held.svids.as_slice() else { panic!("the program has {} identities", held.svids.len()) };
        assert_eq!(svid.spiffe_id, spiffe_id("/program").as_str());
        let chain = Certificate::parse_concatenated(&svid.x509_svid).expect("certificates");
        assert_eq!(chain.first().and_then(Certificate::spiffe_id), Some(spiffe_id("/program")));
    });
}

fn issue_response_(bytes: &[u8]) {
    let Ok(answer) = IssueResponse::decode(bytes) else { return };
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    with(|puppet| {
        puppet.server.say_to_issue(Some(answer.clone()));
        // A new audience each time: what is held is not asked for again.
        let audience = format!("audience-{}", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let asked = async { tokio::time::timeout(PATIENCE, puppet.program.jwt_svids(&[&audience], "")).await };
        let given = puppet.runtime.block_on(asked).expect("the agent answers");
        puppet.server.say_to_issue(None);
        match (given, answer.credential) {
            (Ok(svids), Some(issue_response::Credential::Jwt(said))) => {
                let [svid] = svids.as_slice() else { panic!("{} tokens", svids.len()) };
                assert_eq!(svid.spiffe_id, spiffe_id("/program").as_str());
                assert_eq!(svid.svid, said.token, "a token is handed on as it is");
            }
            (Ok(_), other) => panic!("a token was made out of {other:?}"),
            (Err(status), _) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
    });
}
