//! The agent's files, stopped at every step.

use countersign_testkit::clock::VirtualClock;
use countersign_testkit::domain::{agent_configuration, spiffe_id};
use countersign_testkit::scripted::{Authority, Scripted, bundle_of};
use countersign_transport::clock::Clock as _;
use countersign_transport::random::Seeded;
use countersign_wire::node::Cursor;
use tokio::net::{TcpListener, TcpStream};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Stands for a file that cannot be read at the moment, but could be replaced.
const UNREADABLE: &[u8] = b"{";

struct Place {
    directory: tempfile::TempDir,
    clock: VirtualClock,
    config: Config,
    authority: Authority,
}

impl Place {
    /// Without a server.
    fn new() -> Self {
        Self::of(VirtualClock::at_present(), 1)
    }

    /// With a server at this port.
    fn of(clock: VirtualClock, port: u16) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let text = agent_configuration(directory.path(), port, None, "");
        let config = Config::read(countersign_config::parse("agent.conf", &text).expect("parses")).expect("reads");
        let authority = Authority::new(clock.now().before(DAY), clock.now().after(DAY)).expect("an authority");
        Self { directory, clock, config, authority }
    }

    /// The agent as it starts on what is on disk.
    fn node(&self) -> Node {
        let files = Files::new(self.directory.path()).expect("made");
        Node::new(&self.config, files, Arc::new(self.clock.clone()), Arc::new(Seeded::new(1)))
    }

    async fn svid(&self, node: &Node, held: Option<&NodeSvid>) -> NodeSvid {
        let (slot, pair) = node.new_key(held).await.expect("a key");
        let id = spiffe_id("/spire/agent/join_token/a");
        let leaf = self.authority.issue(&id, pair.public_key(), self.clock.now()).expect("issued");
        node.svid(vec![leaf], pair, false, slot).expect("fits")
    }

    /// What a start now finds: the SVID's serial number, and the revision that was followed with it.
    fn found(&self) -> (String, Option<u64>) {
        let node = self.node();
        let svid = node.load().expect("readable").expect("there");
        let followed = node.files.follow(&svid.serial_number);
        (svid.serial_number.clone(), followed.and_then(|f| f.cursor).map(|c| c.revision))
    }

    /// The operator's file holds these.
    fn trust(&self, authorities: &[&Authority]) {
        std::fs::write(self.directory.path().join("bundle.pem"), bundle_of(authorities).expect("few").to_pem()).expect("written");
    }

    /// The agent's file holds these.
    fn remember(&self, authorities: &[&Authority]) {
        let files = Files::new(self.directory.path()).expect("made");
        let mut data = files.agent_data().expect("readable");
        data.bundle = authorities.iter().map(|a| a.certificate.der().to_vec()).collect();
        files.agent_data_put(&data).expect("kept");
    }

    /// The agent's file, which is there but cannot be read until what is returned is called.
    fn make_unreadable(&self) -> impl FnOnce() {
        let path = self.directory.path().join("agent-data.json");
        let before = std::fs::read(&path).expect("there");
        std::fs::write(&path, UNREADABLE).expect("written");
        move || {
            assert_eq!(std::fs::read(&path).expect("there"), UNREADABLE, "something was written over it");
            std::fs::write(&path, before).expect("written");
        }
    }

    /// From now on, or no longer, this file cannot be replaced: as if the process had been stopped just before.
    fn stop_before(&self, file: &str, stop: bool) {
        let obstacle = self.directory.path().join(format!("{file}.tmp"));
        if stop {
            std::fs::create_dir(obstacle).expect("made");
        } else {
            std::fs::remove_dir(obstacle).expect("removed");
        }
    }
}

fn followed(revision: u64) -> FollowResponse {
    FollowResponse { cursor: Some(Cursor { revision, ..Cursor::default() }), ..FollowResponse::default() }
}

#[tokio::test]
async fn stopped_at_any_step_of_a_renewal_the_svid_on_disk_and_what_is_followed_fit() {
    let place = Place::new();
    let node = place.node();
    let first = place.svid(&node, None).await;
    node.keep(&first, None).expect("kept");
    assert!(node.keep_followed(&first, &followed(1)).expect("kept"));
    assert_eq!(place.found(), (first.serial_number.clone(), Some(1)));

    // Stopped after the new key, before anything else.
    let second = place.svid(&node, Some(&first)).await;
    assert_eq!(place.found(), (first.serial_number.clone(), Some(1)));
    // Stopped between the two files.
    place.stop_before("agent-data.json", true);
    node.keep(&second, Some(&first)).expect_err("stopped");
    assert_eq!(place.found(), (first.serial_number.clone(), Some(1)));
    assert!(node.files.follow(&second.serial_number).is_some(), "bound before the SVID is written, not after");
    place.stop_before("agent-data.json", false);
    // Stopped after both, before what is followed is written the next time.
    node.keep(&second, Some(&first)).expect("kept");
    assert_eq!(place.found(), (second.serial_number.clone(), Some(1)));
    // A writer that was on its way with the former SVID changes nothing.
    assert!(!node.keep_followed(&first, &followed(2)).expect("nothing to do"));
    assert_eq!(place.found(), (second.serial_number.clone(), Some(1)));
    // Stopped between the two files of the next writing, and after it.
    place.stop_before("countersign-follow.state", true);
    node.keep_followed(&second, &followed(3)).expect_err("stopped");
    assert_eq!(place.found(), (second.serial_number.clone(), Some(1)));
    place.stop_before("countersign-follow.state", false);
    assert!(node.keep_followed(&second, &followed(3)).expect("kept"));
    assert_eq!(place.found(), (second.serial_number.clone(), Some(3)));
    assert_eq!(node.files.follow(&first.serial_number), None);
}

#[tokio::test]
async fn a_restart_does_not_put_off_a_renewal_that_is_overdue() {
    let place = Place::new();
    let node = place.node();
    let svid = place.svid(&node, None).await;
    node.keep(&svid, None).expect("kept");
    let life = svid.expires_at.since(place.clock.now());
    // Before it is due nothing is renewed for a restart.
    let found = place.node().load().expect("readable").expect("there");
    assert!(found.renew_at > place.clock.now().after(life / 3), "due at {}", found.renew_at);
    place.clock.advance(life * 3 / 4);
    let found = place.node().load().expect("readable").expect("there");
    assert!(found.renew_at <= place.clock.now().after(Duration::from_secs(60)), "due at {}", found.renew_at);
}

#[tokio::test]
async fn a_renewed_svid_is_kept_even_where_what_is_followed_cannot_be() {
    let place = Place::new();
    let node = place.node();
    let first = place.svid(&node, None).await;
    node.keep(&first, None).expect("kept");
    assert!(node.keep_followed(&first, &followed(1)).expect("kept"));
    let second = place.svid(&node, Some(&first)).await;
    place.stop_before("countersign-follow.state", true);
    node.keep(&second, Some(&first)).expect("kept");
    assert_eq!(place.found(), (second.serial_number, None));
}

#[tokio::test]
async fn after_a_renewal_that_could_not_be_kept_what_is_followed_is_kept_beside_the_svid_in_use() {
    let place = Place::new();
    let node = place.node();
    let first = place.svid(&node, None).await;
    node.keep(&first, None).expect("kept");
    assert!(node.keep_followed(&first, &followed(1)).expect("kept"));
    let second = place.svid(&node, Some(&first)).await;
    place.stop_before("agent-data.json", true);
    node.keep(&second, Some(&first)).expect_err("no room");
    place.stop_before("agent-data.json", false);
    assert!(node.keep_followed(&first, &followed(2)).expect("kept"));
    assert_eq!(place.found(), (first.serial_number, Some(2)));
}

#[tokio::test]
async fn nothing_is_written_over_a_file_that_cannot_be_read() {
    let place = Place::new();
    let node = place.node();
    let first = place.svid(&node, None).await;
    node.keep(&first, None).expect("kept");
    place.remember(&[&place.authority]);
    let second = place.svid(&node, Some(&first)).await;
    let key = place.config.key_manager.pair("agent-svid-A").expect("there");

    let make_readable = place.make_unreadable();
    assert!(matches!(node.keep(&second, Some(&first)), Err(NodeError::State(_))));
    assert!(matches!(node.forget(Some(&first)), Err(NodeError::State(_))));
    // The key on disk may be that of the SVID there.
    assert!(matches!(node.new_key(None).await, Err(NodeError::State(_))));
    assert_eq!(place.config.key_manager.pair("agent-svid-A").expect("there").public_key(), key.public_key());
    make_readable();
    assert_eq!(place.found(), (first.serial_number, None));
    assert_eq!(node.files.agent_data().expect("readable").bundle, [place.authority.certificate.der()]);
}

#[tokio::test]
async fn while_its_file_cannot_be_read_an_agent_whose_authorities_have_ended_believes_nobody() {
    let clock = VirtualClock::at_present();
    let now = clock.now();
    let stolen = Arc::new(Authority::new(now.before(DAY * 30), now.after(DAY * 100)).expect("an authority"));
    let ended = Authority::new(now.before(DAY * 20), now.before(DAY)).expect("an authority");
    let thief = Scripted::start(Arc::clone(&stolen), Arc::new(clock.clone())).await.expect("a server");
    let place = Place::of(clock, thief.port());
    place.trust(&[&stolen]);
    place.remember(&[&ended]);
    let node = place.node();
    assert!(node.load().expect("readable").is_none());
    assert!(matches!(node.connect(None).await, Err(NodeError::Bootstrap(_))));

    let make_readable = place.make_unreadable();
    assert!(matches!(node.connect(None).await, Err(NodeError::State(_))));
    make_readable();
    assert!(matches!(node.connect(None).await, Err(NodeError::Bootstrap(_))));
    assert_eq!(thief.knocks(), 0);
    // What it knows is all that holds it back.
    std::fs::remove_file(place.directory.path().join("agent-data.json")).expect("removed");
    node.connect(None).await.expect("a first contact");
}

#[tokio::test]
async fn an_authority_that_has_ended_still_says_what_is_too_old() {
    let clock = VirtualClock::at_present();
    let now = clock.now();
    let authority = |age: u32, end| Arc::new(Authority::new(now.before(DAY * age), end).expect("an authority"));
    let (held, stolen, ended) = (authority(40, now.after(DAY)), authority(30, now.after(DAY)), authority(20, now.before(DAY)));
    let next = authority(10, now.after(DAY));
    let server = Scripted::start(Arc::clone(&stolen), Arc::new(clock.clone())).await.expect("a server");
    let place = Place::of(clock, server.port());
    place.trust(&[&stolen]);
    place.remember(&[&held, &ended]);
    let node = place.node();
    assert!(node.load().expect("readable").is_none());
    let refused = async |node: &Node| matches!(node.connect(None).await, Err(NodeError::Connect(e)) if e.unknown_authority);
    assert!(refused(&node).await);
    // While what it has seen cannot be read, not even what is newer is believed.
    place.trust(&[&stolen, &next]);
    let make_readable = place.make_unreadable();
    assert!(refused(&node).await);
    make_readable();
    // Writing its file does not make it forget.
    let svid = place.svid(&node, None).await;
    node.keep(&svid, None).expect("kept");
    place.trust(&[&stolen]);
    let node = place.node();
    node.load().expect("readable").expect("there");
    assert!(refused(&node).await);

    server.present(Arc::clone(&next)).expect("presented");
    assert!(refused(&node).await);
    place.trust(&[&stolen, &next]);
    node.connect(None).await.expect("the next authority is believed");
    server.present(stolen).expect("presented");
    assert!(refused(&node).await);
    // Once a newer one is held, it says enough.
    node.keep(&svid, None).expect("kept");
    assert_eq!(node.files.agent_data().expect("readable").bundle, [next.certificate.der()]);
}

/// The port of a door to a server that lets this many connections in and then is gone.
async fn door(server: u16, connections: usize) -> u16 {
    let door = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = door.local_addr().expect("a port").port();
    tokio::spawn(async move {
        for _ in 0..connections {
            let (mut outside, _) = door.accept().await.expect("a connection");
            let mut inside = TcpStream::connect(("127.0.0.1", server)).await.expect("a connection");
            tokio::spawn(async move { drop(tokio::io::copy_bidirectional(&mut outside, &mut inside).await) });
        }
    });
    port
}

#[tokio::test]
async fn a_bundle_that_was_taken_is_in_the_log_even_if_the_server_is_gone_right_after() {
    let clock = VirtualClock::at_present();
    let now = clock.now();
    let authority = |age: u32, end| Arc::new(Authority::new(now.before(DAY * age), end).expect("an authority"));
    let (held, next) = (authority(40, now.after(DAY)), authority(10, now.after(DAY)));
    let server = Scripted::start(Arc::clone(&next), Arc::new(clock.clone())).await.expect("a server");
    // One connection shows that the authority is not known, one that the newer bundle fits.
    let place = Place::of(clock.clone(), door(server.port(), 2).await);
    let path = place.directory.path().join("agent.log");
    let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(Arc::new(std::fs::File::create(&path).expect("made"))).finish();
    let _logging = tracing::subscriber::set_default(lines);
    let said = || std::fs::read_to_string(&path).expect("there");
    place.remember(&[&held]);
    place.trust(&[&next]);
    let node = place.node();
    node.load().expect("readable");
    let error = node.connect(None).await.expect_err("the server is gone");
    assert!(matches!(&error, NodeError::Connect(e) if !e.unknown_authority), "{error}");
    assert!(!said().contains("Neither"), "{}", said());
    assert!(said().contains("Took the newer bundle of its source"), "{}", said());

    // The same where nothing that was known counts any more; what a first contact takes replaces nothing.
    for (remembered, is_said) in [(vec![authority(40, now.before(DAY))], true), (Vec::new(), false)] {
        let place = Place::of(clock.clone(), server.port());
        place.remember(&remembered.iter().map(|a| &**a).collect::<Vec<_>>());
        place.trust(&[&next]);
        let node = place.node();
        node.load().expect("readable");
        let before = said().len();
        node.connect(None).await.expect("connected");
        let after = said().split_off(before);
        assert_eq!(after.contains("all authorities of the cached bundle have ended"), is_said, "{after}");
        assert_eq!(after.contains("Took the newer bundle"), is_said, "{after}");
    }
}

proptest::proptest! {
    #[test]
    fn certificates_on_disk_that_are_none_are_a_new_start(
        svid in proptest::collection::vec(proptest::collection::vec(proptest::prelude::any::<u8>(), 1..60), 0..3),
        bundle in proptest::collection::vec(proptest::collection::vec(proptest::prelude::any::<u8>(), 1..60), 0..3),
    ) {
        let place = Place::new();
        let node = place.node();
        let mut data = node.files.agent_data().expect("none yet");
        (data.svid, data.bundle) = (svid, bundle);
        node.files.agent_data_put(&data).expect("kept");
        assert!(node.load().expect("no error").is_none());
        assert!(node.bundles().load().get("example.org").is_none());
    }
}
