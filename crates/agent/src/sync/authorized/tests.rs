//! The exchange with a server of SPIRE's that says what a test wants, right or wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use countersign_testkit::domain::spiffe_id;
use countersign_transport::{client, unix};
use countersign_wire::id;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use super::*;

type Page = SyncAuthorizedEntriesResponse;

/// Answers each request of an exchange with the next of these lists of pages, writes down what was asked for, and ends the exchange
/// after the last.
#[derive(Clone)]
struct Says {
    answers: Vec<Vec<Page>>,
    asked: Arc<Mutex<Vec<Vec<String>>>>,
}

impl NamedService for Says {
    const NAME: &'static str = "spire.api.server.entry.v1.Entry";
}

impl Service<http::Request<Body>> for Says {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let says = self.clone();
        Box::pin(async move {
            let exchange = service_fn(move |request: Request<Streaming<SyncAuthorizedEntriesRequest>>| {
                let says = says.clone();
                async move {
                    let (out, pages) = mpsc::channel(16);
                    tokio::spawn(async move {
                        let mut requests = request.into_inner();
                        for answer in says.answers {
                            let Ok(Some(request)) = requests.message().await else { return };
                            says.asked.lock().unwrap().push(request.ids);
                            for page in answer {
                                let _ = out.send(Ok(page)).await;
                            }
                        }
                    });
                    Ok::<_, Status>(Response::new(ReceiverStream::new(pages)))
                }
            });
            Ok(Grpc::new(ProstCodec::<Page, SyncAuthorizedEntriesRequest>::default()).streaming(exchange, request).await)
        })
    }
}

/// What the agent makes of such answers: the IDs there are, those of them that are new or differ, and what it asked for.
type Made = (Vec<String>, Vec<String>, Vec<Vec<String>>);

async fn made(known: &[types::Entry], answers: Vec<Vec<Page>>) -> Result<Made, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("server.sock");
    let listener = unix::listen(&path, 0o700, 0o700).unwrap();
    let says = Says { answers, asked: Arc::default() };
    let asked = Arc::clone(&says.asked);
    let serving = tokio::spawn(tonic::transport::Server::builder().add_service(says).serve_with_incoming(unix::incoming(listener)));
    let channel = client::unix(&path).await.unwrap();
    let known = known.iter().filter_map(usable).map(|entry| (entry.id.clone(), entry)).collect();
    let mut only_whole_lists = false;
    let answer = tokio::time::timeout(std::time::Duration::from_secs(20), authorized(&channel, &known, &mut only_whole_lists));
    let answer = answer.await.expect("an answer in time").map_err(|status| status.message().to_owned());
    serving.abort();
    let Authorized { entries, ids } = answer?;
    let sorted = |mut ids: Vec<String>| {
        ids.sort_unstable();
        ids
    };
    let asked = asked.lock().unwrap().clone();
    Ok((sorted(ids.into_iter().collect()), sorted(entries.iter().map(|e| e.id.clone()).collect()), asked))
}

fn entry(id: &str, revision_number: i64) -> types::Entry {
    types::Entry {
        id: id.to_owned(),
        spiffe_id: Some(id::to_wire(&spiffe_id("/web"))),
        parent_id: Some(id::to_wire(&spiffe_id("/spire/agent/join_token/a"))),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
        revision_number,
        created_at: 100,
        ..types::Entry::default()
    }
}

fn entries(entries: &[(&str, i64)], more: bool) -> Page {
    Page { entries: entries.iter().map(|(id, revision)| entry(id, *revision)).collect(), more, ..Page::default() }
}

/// Revisions with the time when their entries were made.
fn revisions(revisions: &[(&str, i64, i64)], more: bool) -> Page {
    let revision = |(id, revision_number, created_at): &(&str, i64, i64)| EntryRevision {
        id: (*id).to_owned(),
        revision_number: *revision_number,
        created_at: *created_at,
    };
    Page { entry_revisions: revisions.iter().map(revision).collect(), more, ..Page::default() }
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[tokio::test]
async fn of_a_whole_list_only_what_differs_is_taken_and_what_has_no_id_is_left_out() {
    let known = [entry("same", 0), entry("changed", 0), entry("gone", 0)];
    let list = entries(&[("same", 0), ("changed", 1), ("", 0), ("new", 0)], false);
    let (all, taken, asked) = made(&known, vec![vec![list]]).await.unwrap();
    assert_eq!((all, taken), (ids(&["changed", "new", "same"]), ids(&["changed", "new"])));
    assert_eq!(asked, [ids(&[])]);
}

#[tokio::test]
async fn what_is_new_or_differs_is_asked_for_in_pages_as_long_as_the_servers() {
    let known = ["same", "changed", "remade", "old"].map(|id| entry(id, 0));
    let first = revisions(&[("same", 0, 100), ("changed", 1, 100)], true);
    // One that an old server does not say the age of, and two that nobody can mean.
    let second = revisions(&[("remade", 0, 200), ("old", 0, 0), ("new", 0, 100), ("", 0, 100), ("wrong", -1, 100)], false);
    let answers = vec![
        vec![first, second],
        vec![entries(&[("changed", 1)], true), entries(&[("new", 0)], false)],
        vec![entries(&[("remade", 0)], false)],
    ];
    let (all, taken, asked) = made(&known, answers).await.unwrap();
    assert_eq!(all, ids(&["changed", "new", "old", "remade", "same"]));
    assert_eq!(taken, ids(&["changed", "new", "remade"]));
    assert_eq!(asked, [ids(&[]), ids(&["changed", "new"]), ids(&["remade"])]);
}

#[tokio::test]
async fn what_was_asked_for_and_not_sent_is_gone_and_what_was_not_asked_for_does_not_come() {
    let first = revisions(&[("same", 0, 100), ("changed", 1, 100), ("new", 0, 100)], false);
    let second = entries(&[("new", 0), ("stranger", 0)], false);
    let (all, taken, _) = made(&[entry("same", 0), entry("changed", 0)], vec![vec![first], vec![second]]).await.unwrap();
    assert_eq!((all, taken), (ids(&["new", "same"]), ids(&["new"])));
}

#[tokio::test]
async fn an_exchange_that_goes_wrong_changes_nothing() {
    let refused = async |answers| made(&[], answers).await.unwrap_err();
    let (some, others) = (revisions(&[("a", 0, 1)], true), entries(&[("a", 0)], false));
    let unexpected = "unexpected entry in response receiving entry revisions";
    assert_eq!(refused(vec![vec![some.clone(), others]]).await, unexpected);
    let last = Page { more: false, ..some };
    let unexpected = "unexpected entry revisions in response while requesting entries";
    assert_eq!(refused(vec![vec![last.clone()], vec![last]]).await, unexpected);
    // All that is known is as it was, and more was to follow: nothing says yet what is gone.
    let cut_off = made(&[entry("a", 0)], vec![vec![revisions(&[("a", 0, 100)], true)]]).await.unwrap_err();
    assert_eq!(cut_off, "the server ended the exchange early");
}
