//! SPIRE's Debug and Logger on the admin socket, and whom that socket lets in.

use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use countersign_testkit::domain::until;
use countersign_testkit::workload::Workload;
use countersign_transport::client;
use countersign_transport::clock::SystemClock;
use countersign_transport::observe::LogLevels;
use countersign_wire::agent_debug::GetInfoRequest;
use countersign_wire::agent_debug::debug_client::DebugClient;
use countersign_wire::agent_logger::logger_client::LoggerClient;
use countersign_wire::agent_logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use countersign_wire::delegated_identity::SubscribeToX509BundlesRequest;
use countersign_wire::delegated_identity::delegated_identity_client::DelegatedIdentityClient;
use countersign_wire::types::LogLevel;
use tonic::Code;
use tonic::transport::Channel;

use crate::child::Caller;
use crate::support::World;

const NOBODY: u32 = 65_534;

/// A level that is kept and shown to nobody.
struct Kept(Mutex<String>);

impl LogLevels for Kept {
    fn current(&self) -> String {
        self.0.lock().unwrap().clone()
    }

    fn launch(&self) -> String {
        "info".to_owned()
    }

    fn set(&self, level: &str) -> bool {
        level.clone_into(&mut self.0.lock().unwrap());
        true
    }
}

fn socket(world: &World) -> PathBuf {
    world.domain.directory().join("a-admin/admin.sock")
}

async fn config(world: &World) -> countersign_agent::Config {
    let mut config = world.config(true, &format!("admin_socket_path = \"{}\"", socket(world).display())).await;
    config.log_levels = Arc::new(Kept(Mutex::new("info".to_owned())));
    config
}

async fn world() -> World {
    let mut world = World::without_agent(Arc::new(SystemClock), "").await;
    let config = config(&world).await;
    world.run(&config).await;
    world
}

async fn channel(world: &World) -> Channel {
    client::unix(&socket(world)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_tells_its_chain_up_to_the_root_and_what_it_holds() {
    let world = world().await;
    world.entry("/web").await;
    world.workload().await.x509_svid().await.unwrap();
    world.workload().await.jwt_svids(&["db"], "").await.unwrap();
    let mut client = DebugClient::new(channel(&world).await);
    let info = client.get_info(GetInfoRequest {}).await.unwrap().into_inner();
    let root = world.domain.bundle().await.unwrap().x509_authorities()[0].certificate.clone();
    let [leaf, authority] = info.svid_chain.as_slice() else { panic!("{:?}", info.svid_chain) };
    assert_eq!(leaf.id.as_ref().unwrap().path, world.agent_id().path());
    assert_eq!((leaf.expires_at, &leaf.subject), (world.agent_leaf().unwrap().not_after.secs(), &world.agent_leaf().unwrap().subject_text));
    assert_eq!((authority.expires_at, &authority.subject), (root.not_after.secs(), &root.subject_text));
    #[expect(deprecated, reason = "it is filled still")]
    let counts = (info.svids_count, info.cached_x509_svids_count, info.cached_jwt_svids_count, info.cached_svidstore_x509_svids_count);
    // The agent's own alias is an entry too, fetched sooner or later.
    assert!([1, 2].contains(&counts.0) && counts == (counts.0, counts.0, 1, 0), "{counts:?}");
    let now = world.clock.now().secs();
    assert!((now - 60..=now).contains(&info.last_sync_success) && (0..60).contains(&info.uptime), "{info:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_is_told_set_and_reset() {
    let world = world().await;
    let mut client = LoggerClient::new(channel(&world).await);
    let set = |new_level: i32| SetLogLevelRequest { new_level };
    let (info, debug) = (i32::from(LogLevel::Info), i32::from(LogLevel::Debug));
    let levels = client.get_logger(GetLoggerRequest {}).await.unwrap().into_inner();
    assert_eq!((levels.current_level, levels.launch_level), (info, info));
    let levels = client.set_log_level(set(debug)).await.unwrap().into_inner();
    assert_eq!((levels.current_level, levels.launch_level), (debug, info));
    for (level, text) in
        [(0, "newLevel value cannot be LogLevel_UNSPECIFIED"), (99, "unsupported log level"), (-1, "unsupported log level")]
    {
        let refused = client.set_log_level(set(level)).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, text));
    }
    assert_eq!(client.get_logger(GetLoggerRequest {}).await.unwrap().into_inner().current_level, debug);
    for level in 1..=7 {
        assert_eq!(client.set_log_level(set(level)).await.unwrap().into_inner().current_level, level);
    }
    let levels = client.reset_log_level(ResetLogLevelRequest {}).await.unwrap().into_inner();
    assert_eq!((levels.current_level, levels.launch_level), (info, info));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_root_the_agents_user_and_the_sockets_group_may_use_spires_services() {
    if !rustix::process::geteuid().is_root() {
        // There is no other user to be.
        let world = world().await;
        DebugClient::new(channel(&world).await).get_info(GetInfoRequest {}).await.unwrap();
        return;
    }
    let world = world().await;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(world.domain.directory(), open).unwrap();
    let (_stranger, stream) = Caller::connect(&socket(&world), Some(NOBODY));
    let channel = Workload::over(tokio::net::UnixStream::from_std(stream).unwrap()).await.unwrap().channel;
    let mut logger = LoggerClient::new(channel.clone());
    let mut delegated = DelegatedIdentityClient::new(channel.clone());
    let text =
        format!("only root, the agent's own user (uid 0), and the group of the admin socket may ask; you are uid {NOBODY}, gid {NOBODY}");
    for refused in [
        DebugClient::new(channel).get_info(GetInfoRequest {}).await.map(drop).unwrap_err(),
        logger.get_logger(GetLoggerRequest {}).await.map(drop).unwrap_err(),
        logger.set_log_level(SetLogLevelRequest { new_level: 1 }).await.map(drop).unwrap_err(),
        logger.reset_log_level(ResetLogLevelRequest {}).await.map(drop).unwrap_err(),
        delegated.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await.map(drop).unwrap_err(),
    ] {
        assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, text.as_str()));
    }
    chown(socket(&world), None, Some(NOBODY)).unwrap();
    logger.get_logger(GetLoggerRequest {}).await.unwrap();
    // What is behind the door has rules of its own.
    let refused = delegated.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await.unwrap_err();
    assert_eq!(refused.message(), "no identity issued");
    chown(socket(&world), None, Some(100_777)).unwrap();
    logger.get_logger(GetLoggerRequest {}).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn before_it_has_joined_the_agent_says_so_and_its_log_level_can_be_set() {
    let mut world = World::without_agent(Arc::new(SystemClock), "").await;
    let config = config(&world).await;
    world.domain.stop_server().await;
    let starting = tokio::spawn(async move {
        let random = Arc::new(countersign_transport::random::Seeded::new(1));
        countersign_agent::start(&config, Arc::new(SystemClock), random, "test").await.unwrap()
    });
    let channel = until("the admin socket opens", || async { client::unix(&socket(&world)).await.ok() }).await.unwrap();
    let refused = DebugClient::new(channel.clone()).get_info(GetInfoRequest {}).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "the agent has not joined its trust domain yet"));
    let mut delegated = DelegatedIdentityClient::new(channel.clone());
    assert_eq!(delegated.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await.unwrap_err().code(), Code::Unavailable);
    LoggerClient::new(channel).set_log_level(SetLogLevelRequest { new_level: 6 }).await.unwrap();
    starting.abort();
}
