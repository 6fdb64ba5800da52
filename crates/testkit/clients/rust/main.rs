//! A workload written with the crates `spiffe` and `spiffe-rustls`, as their users write it. See docs/guides/rust.md.
//!
//! x509 | jwt AUDIENCE | validate AUDIENCE TOKEN | bundles | watch | serve PEER_ID… | connect
//!
//! `--deadline SECONDS` may follow the command. Each answer is one JSON object on a line of standard output.

mod conversation;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use spiffe::{JwtSource, JwtSourceError, JwtSvid, JwtSvidError, WorkloadApiClient, X509Source, X509SourceError};
use spiffe_rustls::{authorizer, mtls_client, mtls_server};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long to wait for the first answer unless `--deadline` says otherwise.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two attempts. The library's own upper bound is ten seconds, which a new identity would then have to wait.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

// guide: begin source
/// Waits for the first X509-SVID. Without the timeout a denial is retried for ever.
async fn x509_source(deadline: Duration) -> Result<X509Source, X509SourceError> {
    X509Source::builder().initial_sync_timeout(deadline).reconnect_backoff(RETRY.0, RETRY.1).build().await
}
// guide: end source

// guide: begin server
fn acceptor(source: &X509Source, peers: &[String]) -> Result<TlsAcceptor, spiffe_rustls::Error> {
    let allowed = authorizer::exact(peers.iter().map(String::as_str))?;
    Ok(TlsAcceptor::from(Arc::new(mtls_server(source.clone()).authorize(allowed).build()?)))
}
// guide: end server

// guide: begin client
fn connector(source: &X509Source, peer: &str) -> Result<TlsConnector, spiffe_rustls::Error> {
    let allowed = authorizer::exact([peer])?;
    Ok(TlsConnector::from(Arc::new(mtls_client(source.clone()).authorize(allowed).build()?)))
}
// guide: end client

// guide: begin jwt
async fn token(source: &JwtSource, audience: &str) -> Result<JwtSvid, JwtSourceError> {
    source.fetch_jwt_svid([audience]).await
}
// guide: end jwt

// guide: begin validate
fn validate(source: &JwtSource, audience: &str, token: &str) -> Result<JwtSvid, JwtSvidError> {
    JwtSvid::parse_and_validate(token, source, &[audience])
}
// guide: end validate

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match deadline(&mut arguments) {
        Ok(deadline) => run(&arguments, deadline).await,
        Err(failure) => Err(failure),
    };
    done.unwrap_or_else(|failure| {
        let help = format!("to learn why, run: countersign explain --pid {}", std::process::id());
        // Nobody is left to be told if standard error is gone.
        let _ = writeln!(std::io::stderr(), "{}\n{help}", chain(failure.as_ref()));
        ExitCode::from(3)
    })
}

async fn run(arguments: &[String], deadline: Duration) -> Result<ExitCode, Failure> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["x509"] => say(&update(&first_svid(deadline).await?)?)?,
        ["jwt", audience] => {
            let source = jwt_source(deadline).await?;
            let svid = timeout(deadline, token(&source, audience)).await??;
            say(&json!({"spiffe_id": svid.spiffe_id().to_string(), "token": svid.token()}))?;
        }
        ["validate", audience, text] => {
            let source = jwt_source(deadline).await?;
            match validate(&source, audience, text) {
                Ok(svid) => say(&json!({"spiffe_id": svid.spiffe_id().to_string()}))?,
                Err(refusal) => {
                    say(&json!({"refused": chain(&refusal)}))?;
                    return Ok(ExitCode::from(2));
                }
            }
        }
        ["bundles"] => {
            // The JWT source waits for an identity; bundles alone need no X509-SVID.
            let jwt = jwt_source(deadline).await?.bundle_set()?;
            let x509 = timeout(deadline, async { WorkloadApiClient::connect_env().await?.fetch_x509_bundles().await }).await??;
            let x509: BTreeMap<_, _> = x509.iter().map(|(name, bundle)| (name.as_str(), bundle.authorities().len())).collect();
            let jwt: BTreeMap<_, _> = jwt.iter().map(|(name, bundle)| (name.as_str(), bundle.jwt_authorities().count())).collect();
            say(&json!({"x509": x509, "jwt": jwt}))?;
        }
        ["watch"] => watch(deadline).await?,
        ["serve", ..] => {
            let source = first_svid(deadline).await?;
            conversation::serve(&source, acceptor(&source, arguments.get(1..).unwrap_or_default())?).await?;
        }
        ["connect"] => conversation::connect(&first_svid(deadline).await?).await?,
        _ => return Err("usage: x509 | jwt AUDIENCE | validate AUDIENCE TOKEN | bundles | watch | serve PEER_ID… | connect".into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes `--deadline SECONDS` out of the arguments.
fn deadline(arguments: &mut Vec<String>) -> Result<Duration, Failure> {
    let Some(at) = arguments.iter().position(|a| a == "--deadline") else { return Ok(DEADLINE) };
    let seconds = arguments.get(at + 1).ok_or("`--deadline` needs a number of seconds")?;
    let deadline = seconds.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    let deadline = deadline.ok_or_else(|| format!("`{seconds}` is not a number of seconds"))?;
    arguments.drain(at..at + 2);
    Ok(deadline)
}

/// The library says only that the time ran out; the agent is asked once more for the reason.
async fn first_svid(deadline: Duration) -> Result<X509Source, Failure> {
    match x509_source(deadline).await {
        Err(X509SourceError::InitialSyncTimeout) => Err(format!("no X509-SVID within {deadline:?}: {}", reason().await).into()),
        answer => Ok(answer?),
    }
}

async fn jwt_source(deadline: Duration) -> Result<JwtSource, Failure> {
    let source = JwtSource::builder().initial_sync_timeout(deadline).reconnect_backoff(RETRY.0, RETRY.1).build();
    match source.await {
        Err(JwtSourceError::InitialSyncTimeout) => Err(format!("no JWT bundle within {deadline:?}: {}", reason().await).into()),
        answer => Ok(answer?),
    }
}

async fn reason() -> String {
    let asked = async { WorkloadApiClient::connect_env().await?.fetch_x509_svid().await };
    match timeout(Duration::from_secs(1), asked).await {
        Ok(Ok(_)) => "it came a moment too late".to_owned(),
        Ok(Err(failure)) => chain(&failure),
        Err(_) => "the agent does not answer".to_owned(),
    }
}

/// The library tells of new material and of a denial; that the agent is away, which changes nothing, it only logs.
async fn watch(deadline: Duration) -> Result<(), Failure> {
    let source = first_svid(deadline).await?;
    let mut updates = source.updated();
    loop {
        match update(&source) {
            Ok(line) => say(&line)?,
            Err(taken) => say(&json!({"error": chain(taken.as_ref())}))?,
        }
        updates.changed().await?;
    }
}

fn update(source: &X509Source) -> Result<Value, Failure> {
    let svid = source.svid()?;
    let own = source.bundle_set()?.get(svid.spiffe_id().trust_domain());
    let authorities = own.map_or(0, |bundle| bundle.authorities().len());
    Ok(json!({"spiffe_id": svid.spiffe_id().to_string(), "serial": serial(svid.leaf().as_bytes())?, "authorities": authorities}))
}

/// The serial number as lower-case hexadecimal without leading zeros.
fn serial(certificate: &[u8]) -> Result<String, Failure> {
    Ok(x509_parser::parse_x509_certificate(certificate)?.1.tbs_certificate.serial.to_str_radix(16))
}

/// Errors hide their causes in a chain; this is the chain in one line.
fn chain(failure: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(failure.source(), |cause| cause.source()).map(ToString::to_string);
    std::iter::once(failure.to_string()).chain(causes).collect::<Vec<_>>().join(": ")
}

fn say(value: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}
