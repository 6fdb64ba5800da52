//! Mutual TLS between a program of every language and a program of every language, itself included.

use serde_json::{Value, json};

use super::language::{LANGUAGES, Language};
use super::program::{Program, until};
use super::world::{Entries, World};

/// How often every SVID is replaced while the connections are open.
const ROTATIONS: u32 = 20;

/// A server and its port.
struct Server {
    language: &'static Language,
    port: u64,
    program: Program,
}

/// A server of every language that lets these peers in.
fn servers(world: &World, peers: &[String]) -> Vec<Server> {
    let mut arguments = vec!["serve"];
    arguments.extend(peers.iter().map(String::as_str));
    let started: Vec<_> = LANGUAGES.iter().map(|l| (l, Program::start(l, &world.socket(), &arguments))).collect();
    started
        .into_iter()
        .map(|(language, mut program)| {
            let said = program.line();
            let port = said["listening"].as_u64().unwrap_or_else(|| panic!("{}: {said}", language.name));
            Server { language, port, program }
        })
        .collect()
}

/// A client of every language, and the serial of its certificate.
fn clients(world: &World) -> Vec<(&'static Language, Program, String)> {
    let started: Vec<_> = LANGUAGES.iter().map(|l| (l, Program::start(l, &world.socket(), &["connect"]))).collect();
    started
        .into_iter()
        .map(|(language, mut program)| {
            let serial = serial(&mut program);
            (language, program, serial)
        })
        .collect()
}

fn serial(client: &mut Program) -> String {
    let said = client.ask("serial");
    said["serial"].as_str().unwrap_or_else(|| panic!("{said}")).to_owned()
}

/// Opens a connection under a name and checks both ends of it: whom the client sees, and whom the server sees.
fn open(client: &mut Program, own: (&Language, &str), name: &str, server: (&Language, u64, &str)) {
    let (id, pair) = (server.0.spiffe_id(), format!("{} to {}", own.0.name, server.0.name));
    let opened = client.ask(&format!("open {name} {} {id}", server.1));
    assert_eq!(opened, json!({"opened": name, "peer": id, "peer_serial": server.2}), "{pair}");
    ping(client, own, name, server);
}

/// Asks the server over an open connection whom it sees, and which certificate it has in hand.
fn ping(client: &mut Program, own: (&Language, &str), name: &str, server: (&Language, u64, &str)) {
    let said = client.ask(&format!("ping {name}"));
    let wanted = json!({"you": own.0.spiffe_id(), "your_serial": own.1, "my_serial": server.2, "via": name});
    assert_eq!(said, wanted, "{} to {}", own.0.name, server.0.name);
}

#[test]
fn mutual_tls_between_every_two_languages_outlives_twenty_rotations() {
    let world = World::with_identities();
    let ids: Vec<String> = LANGUAGES.iter().map(Language::spiffe_id).collect();
    let (servers, mut clients) = (servers(&world, &ids), clients(&world));
    // Both programs of a language have one identity, and the agent one SVID for it.
    let mut serials: Vec<String> = clients.iter().map(|(_, _, serial)| serial.clone()).collect();
    for (language, client, first) in &mut clients {
        for (server, serial) in servers.iter().zip(&serials) {
            open(client, (language, first), &format!("kept-{}", server.language.name), (server.language, server.port, serial));
        }
    }
    for rotation in 1..=ROTATIONS {
        world.entries("update", Entries { dns_name: Some(&format!("r{rotation}.test")), ..Entries::default() });
        // Every process, the servers too, has the new certificate in hand.
        for ((_, client, _), current) in clients.iter_mut().zip(&mut serials) {
            *current = until("the client has a new SVID", || Some(serial(client)).filter(|s| s != current));
        }
        let (_, asking, _) = &mut clients[0];
        for (server, current) in servers.iter().zip(&serials) {
            let question = format!("ping kept-{}", server.language.name);
            until("the server has a new SVID", || (asking.ask(&question)["my_serial"].as_str() == Some(current)).then_some(()));
        }
        // Connections opened before the first rotation still answer, and still show the certificates of that time; new ones
        // show the new certificates. All clients at once, as in life.
        let peers: Vec<_> = servers.iter().zip(&serials).map(|(server, serial)| (server.language, server.port, serial.as_str())).collect();
        std::thread::scope(|scope| {
            for ((language, client, first), own) in clients.iter_mut().zip(&serials) {
                let peers = &peers;
                scope.spawn(move || {
                    for peer in peers {
                        ping(client, (language, first), &format!("kept-{}", peer.0.name), *peer);
                        open(client, (language, own), "new", *peer);
                        assert_eq!(client.ask("close new"), json!({"closed": "new"}), "{}", language.name);
                    }
                });
            }
        });
    }
    for server in &servers {
        assert_eq!(server.program.unread(), [] as [Value; 0], "{} refused somebody", server.language.name);
    }
}

#[test]
fn a_peer_with_another_spiffe_id_is_refused_by_every_language_on_either_side() {
    const STRANGER: &str = "spiffe://example.org/stranger";
    let world = World::with_identities();
    let ids: Vec<String> = LANGUAGES.iter().map(Language::spiffe_id).collect();
    let (mut strict, open, mut clients) = (servers(&world, &[STRANGER.to_owned()]), servers(&world, &ids), clients(&world));
    for (language, client, _) in &mut clients {
        for server in &mut strict {
            let pair = format!("{} to {}", language.name, server.language.name);
            // With TLS 1.3 a client learns that it is refused when it reads.
            let opened = client.ask(&format!("open a {} {}", server.port, server.language.spiffe_id()));
            let answer = if opened["opened"].is_string() { client.ask("ping a") } else { opened };
            assert!(answer["error"].is_string(), "{pair}: {answer}");
            let refused = server.program.line();
            assert!(refused["refused"].is_string(), "{pair}: {refused}");
        }
        // And a server that is not the one that was meant: nothing is said to it.
        for server in &open {
            let answer = client.ask(&format!("open b {} {STRANGER}", server.port));
            assert!(answer["failed"] == "b" && answer["error"].is_string(), "{} to {}: {answer}", language.name, server.language.name);
        }
    }
}
