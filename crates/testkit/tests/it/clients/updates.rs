//! What a running program is told: a new SVID, another bundle, an identity taken away and given back, an agent that was
//! away.

use countersign_wire::bundle_api::AppendBundleRequest;
use countersign_wire::bundle_api::bundle_client::BundleClient;
use countersign_wire::types::X509Certificate;
use serde_json::Value;

use super::language::{LANGUAGES, Language, TakenAway};
use super::program::{Program, until};
use super::workload_api::{Authority, Fake};
use super::world::{Entries, World};

/// A program of every language that watches, and the first thing it says.
fn watching(socket: &str) -> Vec<(&'static Language, Program, Value)> {
    let started: Vec<_> = LANGUAGES.iter().map(|l| (l, Program::start(l, socket, &["watch"]))).collect();
    started
        .into_iter()
        .map(|(language, mut program)| {
            let first = program.line();
            assert!(first["serial"].is_string(), "{}: {first}", language.name);
            (language, program, first)
        })
        .collect()
}

/// Waits for another serial, and returns the line that says it and those before.
fn another_serial(program: &mut Program, last: &Value) -> (Value, Vec<Value>) {
    program.line_where("another serial", |line| line["serial"].is_string() && line["serial"] != last["serial"])
}

#[test]
fn a_program_of_every_language_sees_a_rotation_and_a_changed_bundle_on_the_open_stream() {
    let world = World::with_identities();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut programs = watching(&world.socket());
    world.entries("update", Entries { dns_name: Some("web.test"), ..Entries::default() });
    for (language, program, last) in &mut programs {
        let (now, before) = another_serial(program, last);
        assert_eq!(
            (&now["spiffe_id"], &now["authorities"], before.len()),
            (&last["spiffe_id"], &last["authorities"], 0),
            "{}",
            language.name
        );
        *last = now;
    }
    // The trust domain gets a second authority, as when a successor is prepared.
    let successor = Authority::new();
    runtime.block_on(async {
        let channel = countersign_transport::client::unix(&world.path("server.sock")).await.unwrap();
        let x509_authorities = vec![X509Certificate { asn1: successor.certificate(), ..X509Certificate::default() }];
        BundleClient::new(channel).append_bundle(AppendBundleRequest { x509_authorities, ..AppendBundleRequest::default() }).await.unwrap();
    });
    for (language, program, last) in &mut programs {
        let now = program.line();
        assert_eq!((&now["serial"], &now["authorities"]), (&last["serial"], &Value::from(2)), "{}: {now}", language.name);
    }
}

#[test]
fn a_program_of_every_language_needs_one_stream_for_all_updates() {
    let authority = Authority::new();
    for language in LANGUAGES {
        let api = Fake::start(authority.state("/web"));
        let mut program = Program::start(language, &api.socket(), &["watch"]);
        let mut last = program.line();
        // Some libraries have a stream for the first answer and another one from then on.
        let mut open = None;
        for _ in 0..4 {
            api.publish(authority.state("/web"));
            last = another_serial(&mut program, &last).0;
            assert_eq!(*open.get_or_insert_with(|| api.x509_streams()), api.x509_streams(), "{}", language.name);
        }
        assert!(open.is_some_and(|streams| streams <= 2), "{}: {open:?}", language.name);
    }
}

#[test]
fn an_identity_taken_away_from_a_running_program_comes_back_when_it_is_given_back() {
    let world = World::with_identities();
    let mut programs = watching(&world.socket());
    let mut holders: Vec<_> = LANGUAGES.iter().map(|l| Program::start(l, &world.socket(), &["connect"])).collect();
    let held: Vec<Value> = holders.iter_mut().map(|holder| holder.ask("serial")).collect();
    world.delete_entries();
    for ((language, program, _), (holder, held)) in programs.iter_mut().zip(holders.iter_mut().zip(&held)) {
        // A new program is denied from now on.
        until("the agent denies", || {
            (Program::start(language, &world.socket(), &["x509", "--deadline", "1"]).ended().code == Some(3)).then_some(())
        });
        // What the running one has and knows depends on its library; its guide says so.
        match language.taken_away {
            TakenAway::Unsaid => assert_eq!(program.unread(), [] as [Value; 0], "{}", language.name),
            TakenAway::Told | TakenAway::Withdrawn => {
                let (line, _) = program.line_where("the denial", |line| line["error"].is_string());
                assert!(line["error"].as_str().unwrap().contains("no identity issued"), "{}: {line}", language.name);
            }
        }
        if language.taken_away == TakenAway::Withdrawn {
            until("the SVID is withdrawn", || holder.ask("serial")["failed"].is_string().then_some(()));
        } else {
            assert_eq!(holder.ask("serial"), *held, "{}", language.name);
        }
    }
    world.entries("create", Entries::default());
    for (_, program, first) in &mut programs {
        let (now, _) = another_serial(program, first);
        assert_eq!(now["spiffe_id"], first["spiffe_id"]);
    }
}

#[test]
fn a_program_of_every_language_goes_on_when_its_agent_was_restarted() {
    let mut world = World::with_identities();
    let mut programs = watching(&world.socket());
    // An administrator's restart, and a crash.
    for signal in ["TERM", "KILL"] {
        world.stop_agent(signal);
        world.start_agent();
        for (_, program, last) in &mut programs {
            // Keys of workloads are in no file: after a restart they are others.
            let (now, _) = another_serial(program, last);
            assert_eq!(now["spiffe_id"], last["spiffe_id"]);
            *last = now;
        }
    }
}
