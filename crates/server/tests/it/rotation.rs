//! Authorities on virtual time: always one that can sign, always one that everybody already knows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::x509::{Certificate, verify_chain_any};
use countersign_identity::{Bundle, BundleSet, Timestamp, jwt};
use countersign_testkit::log::Log;
use countersign_wire::bundle;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::bundle_api::{CountBundlesRequest, GetBundleRequest};
use countersign_wire::svid::svid_client::SvidClient;
use countersign_wire::svid::{MintJwtsvidRequest, MintX509svidRequest};
use tonic::transport::Channel;

use crate::world::{self, Domain, HOUR, VirtualClock, id_to_wire, spiffe_id, trust_domain, until};

/// An X509-SVID and a JWT-SVID, as long-lived as the authorities allow: who signed, and until when it may.
struct Probe {
    anchor: Certificate,
    key_id: String,
    x509_until: Timestamp,
    jwt_until: Timestamp,
}

async fn probe(domain: &Domain) -> Result<Probe, String> {
    probe_over(&domain.admin().await.unwrap(), domain).await
}

/// Mints both and verifies them with the bundle as it is published at that moment.
async fn probe_over(channel: &Channel, domain: &Domain) -> Result<Probe, String> {
    let now = domain.clock.now();
    let mut svids = SvidClient::new(channel.clone());
    let csr = world::key().request(Some(&spiffe_id("/probe")), &[]).unwrap();
    let svid = svids.mint_x509svid(MintX509svidRequest { csr, ttl: i32::MAX }).await.map_err(|e| e.to_string())?;
    let request = MintJwtsvidRequest { id: Some(id_to_wire(&spiffe_id("/probe"))), audience: vec!["a".to_owned()], ttl: i32::MAX };
    let token = svids.mint_jwtsvid(request).await.map_err(|e| e.to_string())?.into_inner().svid.unwrap();
    let own = BundleClient::new(channel.clone()).get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    let bundles = BundleSet::from_iter([Arc::new(bundle::from_wire(&own).unwrap())]);
    let (_, leaf, anchor) =
        verify_chain_any(&svid.into_inner().svid.unwrap().cert_chain, &bundles, now).map_err(|e| format!("certificate: {e}"))?;
    let verified = jwt::verify(&token.token, "a", &bundles, now).map_err(|e| format!("token: {e}"))?;
    let key_id = bundles.get(trust_domain().name()).unwrap().jwt_authorities().iter().map(|a| a.key_id.clone());
    let header = token.token.split('.').next().unwrap().to_owned();
    let key_id = key_id.into_iter().find(|kid| header_names(&header, kid)).unwrap_or_default();
    Ok(Probe { anchor, key_id, x509_until: leaf.not_after, jwt_until: verified.expires_at })
}

fn header_names(header: &str, key_id: &str) -> bool {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).unwrap();
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()["kid"] == key_id
}

async fn bundle_when(domain: &Domain, what: &str, holds: impl Fn(&Bundle) -> bool) -> Bundle {
    until(what, async || Some(domain.bundle().await.unwrap()).filter(&holds)).await.unwrap()
}

fn sizes(bundle: &Bundle) -> (usize, usize) {
    (bundle.x509_authorities().len(), bundle.jwt_authorities().len())
}

async fn restart(domain: &mut Domain) {
    domain.stop_server().await;
    domain.start_server().await.unwrap();
}

#[tokio::test]
async fn an_authority_is_prepared_at_half_activated_at_five_sixths_and_pruned_a_day_after_its_end() {
    Log::listen();
    let (domain, clock) = world::virtual_domain("").await;
    let first = probe(&domain).await.unwrap();
    let start = domain.bundle().await.unwrap();
    assert_eq!(sizes(&start), (1, 1));
    assert_eq!(first.anchor.not_after.secs() - domain.clock.now().secs(), 86_400);

    clock.advance(HOUR * 12 - Duration::from_secs(60));
    let same = probe(&domain).await.unwrap();
    assert_eq!((same.anchor.der(), same.key_id.as_str()), (first.anchor.der(), first.key_id.as_str()));
    assert_eq!(domain.bundle().await.unwrap(), start);

    clock.advance(Duration::from_secs(60));
    let prepared = bundle_when(&domain, "both are prepared at half of the life", |b| sizes(b) == (2, 2)).await;
    assert_eq!(prepared.sequence_number, start.sequence_number + 2);
    // Published, and not in use before its time.
    clock.advance(HOUR * 8 - Duration::from_secs(60));
    let same = probe(&domain).await.unwrap();
    assert_eq!((same.anchor.der(), same.key_id.as_str()), (first.anchor.der(), first.key_id.as_str()));
    clock.advance(Duration::from_secs(60));
    let second = until("both are activated at five sixths", async || {
        probe(&domain).await.ok().filter(|p| p.anchor.der() != first.anchor.der() && p.key_id != first.key_id)
    });
    let second = second.await.unwrap();
    assert_eq!(Log::count("DEBUG", "Successfully rotated X.509 CA"), 2, "the first one and the second");
    assert_eq!(second.anchor.der(), prepared.x509_authorities()[1].certificate.der());
    assert_eq!(domain.bundle().await.unwrap(), prepared, "an activation changes no bundle");

    // The old one stays a day longer than it lives: 48 h from the start, when the third has been there for long.
    clock.advance(HOUR * 27 - Duration::from_secs(60));
    bundle_when(&domain, "the third is there", |b| sizes(b) >= (3, 3)).await;
    let kept = domain.bundle().await.unwrap();
    assert!(kept.x509_authorities().iter().any(|a| a.certificate == first.anchor) && kept.jwt_authority(&first.key_id).is_some());
    let gone = |b: &Bundle| !b.x509_authorities().iter().any(|a| a.certificate == first.anchor) && b.jwt_authority(&first.key_id).is_none();
    let look = async || Some(domain.bundle().await.unwrap()).filter(gone);
    let pruned = world::rounds("the first is pruned", &clock, HOUR, look).await;
    assert!(pruned.sequence_number > kept.sequence_number);
    probe(&domain).await.unwrap();
}

#[tokio::test]
async fn a_month_of_rotations_always_leaves_an_authority_that_signs() {
    let (domain, clock) = world::virtual_domain("").await;
    let channel = domain.admin().await.unwrap();
    let mut client = BundleClient::new(channel.clone());
    let (mut anchors, mut keys, mut sequence) = (BTreeSet::new(), BTreeSet::new(), 0);
    for hour in (0..30 * 24).step_by(2) {
        // At any time there is one, and it lives long enough for every credential that is promised: a sixth of its life.
        let enough = domain.clock.now().after(HOUR * 4);
        let usable = until("an authority that lives long enough", async || match probe_over(&channel, &domain).await {
            Ok(probe) => (probe.x509_until >= enough && probe.jwt_until >= enough).then_some(probe),
            Err(reason) => panic!("hour {hour}: {reason}"),
        });
        let usable = usable.await.unwrap();
        // The server has come to this hour: from half of an authority's life on there is a successor. Else the clock would go on
        // while a busy machine has not let it prepare one, and it may not be used before it was published for an hour.
        let half = domain.clock.now().after(HOUR * 12 - Duration::from_secs(60));
        let has_successors = |b: &Bundle| {
            b.x509_authorities().iter().any(|a| a.certificate.not_after >= half)
                && b.jwt_authorities().iter().any(|a| a.expires_at.is_some_and(|end| end >= half))
        };
        bundle_when(&domain, "successors are prepared", has_successors).await;
        anchors.insert(usable.anchor.authority_id());
        keys.insert(usable.key_id);
        let bundle = client.get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
        assert!(bundle.sequence_number >= sequence, "the sequence number fell");
        sequence = bundle.sequence_number;
        assert!(bundle.x509_authorities.len() <= 5 && bundle.jwt_authorities.len() <= 5, "hour {hour}: the bundle grows");
        clock.advance(HOUR * 2);
    }
    // One every twelve hours; the test may be a little ahead of a step.
    assert!((50..=60).contains(&anchors.len()) && (50..=60).contains(&keys.len()), "{} and {}", anchors.len(), keys.len());
    // One step for each that was prepared, and one at most for each that was pruned.
    assert!((100..=240).contains(&sequence), "{sequence}");
}

#[tokio::test]
async fn a_restart_in_the_middle_of_any_step_leaves_a_usable_authority() {
    let (mut domain, clock) = world::virtual_domain("").await;
    let first = probe(&domain).await.unwrap();
    let mut at = Duration::ZERO;
    for hours in [0, 11, 12, 13, 19, 20, 21, 23, 32, 33, 40, 41, 48, 50, 55, 72] {
        clock.advance(HOUR * hours - at);
        at = HOUR * hours;
        // Nothing is waited for: the step that is due now is cut off somewhere.
        restart(&mut domain).await;
        let probed = probe(&domain).await.unwrap_or_else(|e| panic!("after {hours} hours: {e}"));
        assert!(probed.x509_until >= domain.clock.now().after(HOUR * 3), "after {hours} hours");
        if hours < 20 {
            assert_eq!(probed.anchor, first.anchor, "a restart is no reason for a new authority");
        }
        let (x509, keys) = sizes(&domain.bundle().await.unwrap());
        assert!(x509 <= 5 && keys <= 5, "after {hours} hours: {x509} and {keys}");
    }
}

#[tokio::test]
async fn eight_days_off_are_survived_by_a_new_authority_at_once() {
    let (mut domain, clock) = world::virtual_domain("").await;
    let node = world::node(&domain).await;
    let before = domain.bundle().await.unwrap();
    domain.stop_server().await;
    clock.advance(HOUR * 24 * 8);
    domain.start_server().await.unwrap();
    let probed = probe(&domain).await.unwrap();
    assert_eq!(probed.anchor.not_after.secs() - domain.clock.now().secs(), 86_400);
    let after = domain.bundle().await.unwrap();
    assert!(after.sequence_number > before.sequence_number);
    assert_eq!(sizes(&after), (1, 1), "what ended long ago is gone");
    world::settled(&domain).await;
    // Whoever was off as well joins anew; its old certificate is nothing.
    assert!(world::present(&domain, &node).await.is_err() || !counts(&domain, &node).await);
    world::node(&domain).await;
}

async fn counts(domain: &Domain, node: &world::NodeIdentity) -> bool {
    let channel = world::present(domain, node).await.unwrap();
    BundleClient::new(channel).count_bundles(CountBundlesRequest {}).await.is_ok()
}

#[tokio::test]
async fn a_lost_prepared_key_is_made_again() {
    let (mut domain, clock) = world::virtual_domain("").await;
    let keys = domain.directory().join("server/keys.json");
    let first = probe(&domain).await.unwrap();
    let only_active = std::fs::read(&keys).unwrap();
    clock.advance(HOUR * 13);
    let prepared = bundle_when(&domain, "both are prepared", |b| sizes(b) == (2, 2)).await;
    domain.stop_server().await;
    std::fs::write(&keys, only_active).unwrap();
    domain.start_server().await.unwrap();
    let again = bundle_when(&domain, "both are prepared again", |b| sizes(b) == (3, 3)).await;
    assert!(again.sequence_number > prepared.sequence_number);
    assert_eq!(probe(&domain).await.unwrap().anchor, first.anchor);
    clock.advance(HOUR * 7);
    let next = until("the one with a key is activated", async || probe(&domain).await.ok().filter(|p| p.anchor != first.anchor));
    assert_eq!(next.await.unwrap().anchor, again.x509_authorities()[2].certificate);
}

#[tokio::test]
async fn the_servers_own_certificate_is_always_in_force() {
    let (domain, clock): (Domain, VirtualClock) = world::virtual_domain("default_x509_svid_ttl = \"1h\"").await;
    for _ in 0..60 {
        clock.advance(Duration::from_secs(29 * 60));
        // A handshake at any time finds a certificate; at the boundary the renewal may still be under way, never more.
        let connected = async || domain.connect(None).await.ok();
        until("a handshake with a certificate in force", connected).await.unwrap();
    }
}
