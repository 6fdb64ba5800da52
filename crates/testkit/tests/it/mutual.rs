//! Mutual TLS between two holders of identities, as the programs of the demo use it.

use std::net::SocketAddr;
use std::sync::Arc;

use countersign_identity::{Bundle, BundleSet, SpiffeId};
use countersign_testkit::domain::{Domain, NodeIdentity};
use countersign_transport::clock::SystemClock;
use countersign_transport::mutual::{Connection, Counterpart, Party, Refused};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

fn party(identity: Option<&NodeIdentity>, bundle: &Bundle) -> Party {
    let party = Party::new(Arc::new(SystemClock));
    if let Some(identity) = identity {
        party.take(&identity.chain, identity.pair.pkcs8(), BundleSet::from_iter([Arc::new(bundle.clone())])).unwrap();
    }
    party
}

type Made = Result<(Connection, Counterpart), Refused>;

/// What both ends make of one connection.
async fn meet(caller: &Party, wants: &SpiffeId, answerer: &Party, admits: &SpiffeId) -> (Made, Made) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    tokio::join!(caller.connect(address, wants), async { answerer.accept(listener.accept().await.unwrap().0, admits).await })
}

async fn joined(domain: &Domain) -> NodeIdentity {
    domain.join(&domain.token(None).await.unwrap()).await.unwrap()
}

fn refusal(made: Made) -> String {
    made.map(|(_, other)| other).unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_an_identity_gets_a_connection() {
    let domain = Domain::start().await.unwrap();
    let bundle = domain.bundle().await.unwrap();
    let (a, b) = (joined(&domain).await, joined(&domain).await);
    let (with_a, with_b, empty) = (party(Some(&a), &bundle), party(Some(&b), &bundle), party(None, &bundle));

    let (called, answered) = meet(&with_a, &b.id, &with_b, &a.id).await;
    assert_eq!((called.unwrap().1.spiffe_id, answered.unwrap().1.spiffe_id), (b.id.clone(), a.id.clone()));

    // A caller without an identity that knows whom to trust: only the other end can notice.
    let mut trusting = BundleSet::default();
    trusting.put(Arc::new(bundle.clone()));
    let (called, answered) = meet(&with_a, &b.id, &empty, &a.id).await;
    assert!(called.is_err() && answered.is_err(), "somebody without an identity answered");
    let config = countersign_transport::tls::client_config(
        None,
        Arc::new(arc_swap::ArcSwap::from_pointee(trusting)),
        Arc::new(|_| true),
        Arc::new(SystemClock),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let mut config = config.unwrap();
    config.alpn_protocols.clear();
    let calling = tokio_rustls::TlsConnector::from(Arc::new(config)).connect("a.test".try_into().unwrap(), stream);
    let (_, answered) = tokio::join!(calling, async { with_b.accept(listener.accept().await.unwrap().0, &a.id).await });
    assert_eq!(refusal(answered), "the other end has shown no certificate");

    // Somebody of the same trust domain who is not the one wanted, at either end.
    let (_, answered) = meet(&with_a, &b.id, &with_b, &b.id).await;
    assert_eq!(refusal(answered), "the other end has proved to be somebody else");
    let (called, _) = meet(&with_a, &a.id, &with_b, &a.id).await;
    assert_eq!(refusal(called), "the other end has proved to be somebody else");

    // The same name, from another authority.
    let other = Domain::start().await.unwrap();
    let false_bundle = other.bundle().await.unwrap();
    let stranger = joined(&other).await;
    let (_, answered) = meet(&party(Some(&stranger), &bundle), &b.id, &with_b, &stranger.id).await;
    assert!(refusal(answered).contains("UnknownIssuer"));
    let (called, _) = meet(&party(Some(&a), &false_bundle), &b.id, &with_b, &a.id).await;
    assert!(refusal(called).contains("UnknownIssuer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_connection_outlives_a_renewal_and_the_next_one_shows_the_new_certificate() {
    let domain = Domain::start().await.unwrap();
    let bundle = domain.bundle().await.unwrap();
    let (a, b, renewed) = (joined(&domain).await, joined(&domain).await, joined(&domain).await);
    let (with_a, with_b) = (party(Some(&a), &bundle), party(Some(&b), &bundle));
    let (called, answered) = meet(&with_a, &b.id, &with_b, &a.id).await;
    let ((mut here, _), (mut there, first)) = (called.unwrap(), answered.unwrap());
    with_a.take(&renewed.chain, renewed.pair.pkcs8(), BundleSet::from_iter([Arc::new(bundle)])).unwrap();
    here.write_all(b"still here").await.unwrap();
    here.flush().await.unwrap();
    let mut heard = [0; 10];
    there.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
    let (_, answered) = meet(&with_a, &b.id, &with_b, &renewed.id).await;
    let second = answered.unwrap().1;
    assert_eq!(second.serial, renewed.leaf.serial_decimal());
    assert_ne!(second.serial, first.serial);
}
