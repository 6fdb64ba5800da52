//! Conversations over mutual TLS: the server that answers pings, and the client that obeys lines on standard input.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde_json::{Value, json};
use spiffe::X509Source;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::{TlsAcceptor, client, server};

use super::{Failure, chain, connector, say, serial};

/// No line of this conversation is longer; a peer that sends more is cut off.
const LINE_BYTES_MAX: u64 = 4096;
/// A peer that connects, or is asked, and says nothing is not waited for any longer.
const SILENCE_MAX: Duration = Duration::from_secs(10);

pub(super) async fn serve(source: &X509Source, acceptor: TlsAcceptor) -> Result<(), Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    say(&json!({"listening": listener.local_addr()?.port()}))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, source) = (acceptor.clone(), source.clone());
        tokio::spawn(async move {
            match timeout(SILENCE_MAX, acceptor.accept(stream)).await.unwrap_or_else(|late| Err(late.into())) {
                Ok(connection) => answer(connection, &source).await,
                Err(refusal) => say(&json!({"refused": chain(&refusal)})),
            }
        });
    }
}

async fn answer(mut connection: server::TlsStream<TcpStream>, source: &X509Source) -> Result<(), Failure> {
    let (peer, peer_serial) = peer(connection.get_ref().1.peer_certificates())?;
    let (read, mut write) = tokio::io::split(&mut connection);
    let mut read = BufReader::new(read);
    while let Some(line) = line(&mut read).await? {
        if line == "ping" {
            let own = source.svid().ok().map(|svid| serial(svid.leaf().as_bytes())).transpose()?;
            let answer = json!({"you": peer, "your_serial": peer_serial, "my_serial": own});
            write.write_all(format!("{answer}\n").as_bytes()).await?;
            write.flush().await?;
        }
    }
    Ok(())
}

type Connection = BufReader<client::TlsStream<TcpStream>>;

pub(super) async fn connect(source: &X509Source) -> Result<(), Failure> {
    let mut connections = HashMap::new();
    let mut input = BufReader::new(tokio::io::stdin());
    while let Some(line) = line(&mut input).await? {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, done) = match words.as_slice() {
            ["quit"] => return Ok(()),
            ["serial"] => {
                ("", source.svid().map_err(Failure::from).and_then(|svid| Ok(json!({"serial": serial(svid.leaf().as_bytes())?}))))
            }
            ["open", name, port, id] => (*name, open(source, &mut connections, name, port, id).await),
            ["ping", name] => (*name, ping(connections.get_mut(*name), name).await),
            ["close", name] => {
                if let Some(mut connection) = connections.remove(*name) {
                    // The peer may have gone first; closed it is in any case.
                    let _ = connection.shutdown().await;
                }
                (*name, Ok(json!({"closed": name})))
            }
            _ => ("", Err(format!("`{line}` is not known").into())),
        };
        say(&done.unwrap_or_else(|failure| json!({"failed": name, "error": chain(failure.as_ref())})))?;
    }
    Ok(())
}

async fn open(
    source: &X509Source,
    connections: &mut HashMap<String, Connection>,
    name: &str,
    port: &str,
    id: &str,
) -> Result<Value, Failure> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse()?)).await?;
    // The name decides nothing: who the server is, its SPIFFE ID says.
    let name_of_server = ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST));
    let connection = timeout(SILENCE_MAX, connector(source, id)?.connect(name_of_server, stream)).await??;
    let (peer, peer_serial) = peer(connection.get_ref().1.peer_certificates())?;
    connections.insert(name.to_owned(), BufReader::new(connection));
    Ok(json!({"opened": name, "peer": peer, "peer_serial": peer_serial}))
}

async fn ping(connection: Option<&mut Connection>, name: &str) -> Result<Value, Failure> {
    let connection = connection.ok_or("there is no connection of this name")?;
    connection.write_all(b"ping\n").await?;
    connection.flush().await?;
    let answer = timeout(SILENCE_MAX, line(connection)).await??.ok_or("the peer closed the connection")?;
    let mut answer: Value = serde_json::from_str(&answer)?;
    if let Some(object) = answer.as_object_mut() {
        object.insert("via".to_owned(), json!(name));
    }
    Ok(answer)
}

/// The SPIFFE ID and the serial number of whoever is at the other end; the handshake has verified the certificate.
fn peer(certificates: Option<&[CertificateDer<'_>]>) -> Result<(String, String), Failure> {
    let leaf = certificates.and_then(|chain| chain.first()).ok_or("the peer showed no certificate")?;
    Ok((spiffe::cert::spiffe_id_from_der(leaf)?.to_string(), serial(leaf)?))
}

async fn line(read: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<String>, Failure> {
    let mut line = String::new();
    let length = read.take(LINE_BYTES_MAX).read_line(&mut line).await?;
    if length > 0 && !line.ends_with('\n') && u64::try_from(length)? == LINE_BYTES_MAX {
        return Err(format!("a line longer than {LINE_BYTES_MAX} bytes").into());
    }
    Ok((length > 0).then(|| line.trim_end().to_owned()))
}
