//! How often workloads with the same selectors may call. Time stands still until a test moves it.

use std::time::Duration;

use countersign_testkit::domain::{own_uid, until};
use countersign_testkit::workload::{Workload, first};
use countersign_wire::discovery::DiscoveryRequest;
use countersign_wire::secret_discovery::secret_discovery_service_client::SecretDiscoveryServiceClient;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};

use crate::child::Caller;
use crate::support::{World, message, next, paths, selector};

/// Another user than the one that runs the tests.
const NOBODY: u32 = 65_534;

fn limited(limits: &str) -> String {
    format!("experimental {{\n ratelimit {{\n {limits}\n }}\n}}")
}

/// Each call that can be limited, by its name on the wire.
async fn call(workload: &Workload, method: &str) -> Result<(), Status> {
    let mut secrets = SecretDiscoveryServiceClient::new(workload.channel.clone());
    let asks = tokio_stream::once(DiscoveryRequest::default()).chain(tokio_stream::pending());
    match method {
        "FetchSecrets" => secrets.fetch_secrets(DiscoveryRequest::default()).await.map(drop),
        "StreamSecrets" => first(secrets.stream_secrets(asks).await?.into_inner()).await.map(drop),
        "FetchX509SVID" => workload.x509_svid().await.map(drop),
        "FetchJWTSVID" => workload.jwt_svids(&["a"], "").await.map(drop),
        "FetchX509Bundles" => first(workload.x509_bundles().await?).await.map(drop),
        "FetchJWTBundles" => first(workload.jwt_bundles().await?).await.map(drop),
        other => panic!("there is no {other}"),
    }
}

fn assert_refused(method: &str, answer: &Result<(), Status>) {
    let status = answer.as_ref().expect_err(method);
    assert_eq!(status.code(), Code::Unavailable, "{method}: {status:?}");
    let service = if method.ends_with("Secrets") { "envoy.service.secret.v3.SecretDiscoveryService" } else { "SpiffeWorkloadAPI" };
    assert_eq!(status.message(), format!("rate limit exceeded for /{service}/{method}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_beyond_a_methods_limit_is_refused_until_a_second_has_passed() {
    const LIMITS: [(&str, usize); 6] = [
        ("FetchX509SVID", 3),
        ("FetchJWTSVID", 1),
        ("FetchX509Bundles", 2),
        ("FetchJWTBundles", 1),
        ("StreamSecrets", 2),
        ("FetchSecrets", 1),
    ];
    let limits = "fetch_x509_svid = 3\n fetch_jwt_svid = 1\n fetch_x509_bundles = 2\n fetch_jwt_bundles = 1\n";
    let limits = limited(&format!("{limits} stream_secrets = 2\n fetch_secrets = 1"));
    let (world, clock) = World::still("", &limits).await;
    let entry = world.domain.entry_from(message("/web", &[own_uid()])).await.unwrap();
    let workload = world.workload().await;
    // However often it has to ask before it is served.
    let look = || async {
        clock.advance(Duration::from_secs(1));
        call(&workload, "FetchX509SVID").await.ok()
    };
    until("this process has an identity", look).await.unwrap();
    clock.advance(Duration::from_secs(1));
    for round in 0..2 {
        for (method, limit) in LIMITS {
            for _ in 0..limit {
                call(&workload, method).await.unwrap_or_else(|status| panic!("{round}: {method}: {status:?}"));
            }
            assert_refused(method, &call(&workload, method).await);
        }
        clock.advance(Duration::from_secs(1));
    }
    // Part of a second is part of the calls.
    for _ in 0..3 {
        call(&workload, "FetchX509SVID").await.unwrap();
    }
    clock.advance(Duration::from_millis(400));
    call(&workload, "FetchX509SVID").await.unwrap();
    assert_refused("FetchX509SVID", &call(&workload, "FetchX509SVID").await);

    // An open stream goes on; what it sends is no call.
    clock.advance(Duration::from_secs(1));
    let mut stream = workload.x509_svids().await.unwrap();
    assert_eq!(paths(&next(&mut stream).await), ["/web"]);
    for hint in ["a", "b", "c", "d", "e"] {
        world.update(&entry, |e| e.hint = hint.to_owned()).await;
        assert_eq!(next(&mut stream).await.svids[0].hint, hint);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_selectors_have_a_limit_of_their_own_and_who_has_no_identity_is_limited_too() {
    use std::os::unix::fs::PermissionsExt as _;

    let (world, _clock) = World::still("", &limited("fetch_jwt_svid = 1")).await;
    world.entry("/mine").await;
    world.entries(vec![message("/group", &[selector("unix:gid:65534")])]).await;
    let workload = world.workload().await;
    call(&workload, "FetchJWTSVID").await.unwrap();
    assert_refused("FetchJWTSVID", &call(&workload, "FetchJWTSVID").await);
    // Another connection of the same user is the same caller, and what has no limit goes on.
    assert_refused("FetchJWTSVID", &call(&world.workload().await, "FetchJWTSVID").await);
    for _ in 0..20 {
        call(&workload, "FetchX509SVID").await.unwrap();
        call(&workload, "FetchX509Bundles").await.unwrap();
        assert_eq!(workload.validate("a", "no token").await.unwrap_err().code(), Code::InvalidArgument);
    }
    if !rustix::process::geteuid().is_root() {
        return;
    }
    std::fs::set_permissions(world.domain.directory(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let connect = |user| {
        let (caller, stream) = Caller::connect(&world.socket(), Some(user));
        (caller, tokio::net::UnixStream::from_std(stream).unwrap())
    };
    let (_nobody, stream) = connect(NOBODY);
    let nobody = Workload::over(stream).await.unwrap();
    let look = || async { call(&nobody, "FetchX509SVID").await.ok() };
    until("the other user has an identity", look).await.unwrap();
    call(&nobody, "FetchJWTSVID").await.unwrap();
    assert_refused("FetchJWTSVID", &call(&nobody, "FetchJWTSVID").await);
    let (_stranger, stream) = connect(NOBODY - 1);
    let stranger = Workload::over(stream).await.unwrap();
    assert_eq!(call(&stranger, "FetchJWTSVID").await.unwrap_err().code(), Code::PermissionDenied);
    assert_refused("FetchJWTSVID", &call(&stranger, "FetchJWTSVID").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_limits_nothing_is_refused() {
    let (world, _clock) = World::still("", &limited("fetch_x509_svid = 0\n fetch_jwt_svid = \"0\"")).await;
    world.entry("/web").await;
    let workload = world.workload().await;
    for _ in 0..50 {
        for method in ["FetchX509SVID", "FetchJWTSVID", "FetchX509Bundles", "FetchJWTBundles"] {
            call(&workload, method).await.unwrap();
        }
    }
}
