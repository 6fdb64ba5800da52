//! What a program of every language does when it cannot have what it needs: it says so in time and names the command that
//! explains; it neither hangs nor goes on without.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_transport::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};

use super::language::{Ended, LANGUAGES, Language, WithoutOwnBundle};
use super::program::{Program, until};
use super::workload_api::{Authority, Fake, OWN, State};
use super::world::World;

/// Long enough for an answer that comes, short enough to wait for one that does not.
const DEADLINE: [&str; 2] = ["--deadline", "2"];

/// Every command with this deadline, of every language at once; hands over how each ended.
fn each_ends(socket: &str, commands: &[&[&str]], check: impl Fn(&Language, &[&str], super::program::End)) {
    for command in commands {
        let mut arguments = vec![command[0]];
        arguments.extend(DEADLINE);
        arguments.extend(&command[1..]);
        let started: Vec<_> = LANGUAGES.iter().map(|l| (l, Program::start(l, socket, &arguments))).collect();
        for (language, program) in started {
            check(language, command, program.ended());
        }
    }
}

const COMMANDS: &[&[&str]] = &[
    &["x509"],
    &["jwt", "billing"],
    &["validate", "billing", "a.b.c"],
    &["bundles"],
    &["watch"],
    &["serve", "spiffe://example.org/peer"],
    &["connect"],
];

#[test]
fn without_a_socket_a_program_of_every_language_gives_up_at_its_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let socket = format!("unix://{}/nothing.sock", directory.path().display());
    each_ends(&socket, COMMANDS, |language, command, end| {
        end.gave_up(&format!("{} {command:?}", language.name));
    });
}

#[test]
fn without_an_identity_a_program_of_every_language_gives_up_at_its_deadline_and_says_why() {
    let world = World::start();
    each_ends(&world.socket(), COMMANDS, |language, command, end| {
        let what = format!("{} {command:?}", language.name);
        let why = end.gave_up(&what);
        assert!(why.contains("no identity issued"), "{what}: {why}");
    });
}

/// The same answer without the bundle of the own trust domain, and with that of another one.
fn without_own_bundle(mut state: State, other: &Authority) -> State {
    // The public key of RFC 7517, appendix A.1.
    let key = json!({"kty": "EC", "crv": "P-256", "kid": "1", "use": "jwt-svid",
        "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"});
    let foreign = "spiffe://other.test".to_owned();
    state.x509_svids.svids[0].bundle.clear();
    state.x509_svids.federated_bundles = HashMap::from([(foreign.clone(), other.certificate())]);
    state.x509_bundles = HashMap::from([(foreign.clone(), other.certificate())]);
    state.jwt_bundles = HashMap::from([(foreign, json!({"keys": [key]}).to_string().into_bytes())]);
    assert!(!state.x509_bundles.contains_key(OWN));
    state
}

/// A JWT-SVID in all but its signature.
fn unsigned_token() -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let now = SystemClock.now();
    let claims = json!({"sub": "spiffe://example.org/web", "aud": ["billing"], "iat": now.secs(), "exp": now.after(Duration::from_secs(300)).secs()});
    let signature = URL_SAFE_NO_PAD.encode([7; 64]);
    format!("{}.{}.{signature}", part(json!({"alg": "ES256", "kid": "1", "typ": "JWT"})), part(claims))
}

#[test]
fn a_bundle_without_its_own_trust_domain_verifies_nobody_in_every_language() {
    let authority = Authority::new();
    let whole = authority.state("/web");
    let api = Fake::start(without_own_bundle(whole.clone(), &authority));
    // No token of the own trust domain is good, though a foreign key has its key ID.
    let token = unsigned_token();
    each_ends(&api.socket(), &[&["validate", "billing", &token]], |language, _, end| {
        assert!(end.code == Some(2) && end.lines[0]["refused"].is_string(), "{}: {:?} {}", language.name, end.lines, end.errors);
    });
    each_ends(&api.socket(), &[&["bundles"]], |language, _, end| {
        assert_eq!(end.lines, [json!({"x509": {"other.test": 1}, "jwt": {"other.test": 1}})], "{}: {}", language.name, end.errors);
    });
    each_ends(&api.socket(), &[&["x509"]], |language, _, end| match language.without_own_bundle {
        WithoutOwnBundle::Refused | WithoutOwnBundle::RefusedUnsaid => {
            end.gave_up(language.name);
        }
        WithoutOwnBundle::NoAuthorities => {
            let none = end.lines.len() == 1 && end.lines[0]["authorities"] == 0;
            assert!(none, "{}: {:?} {}", language.name, end.lines, end.errors);
        }
    });

    // A program that had one keeps refusing strangers while it is gone, and goes on when it is back.
    for language in LANGUAGES {
        api.publish(whole.clone());
        let mut watching = Program::start(language, &api.socket(), &["watch"]);
        let first = watching.line();
        let sent = api.without_bundle();
        api.publish(without_own_bundle(authority.state("/web"), &authority));
        until("the answer without the bundle goes out", || (api.without_bundle() > sent).then_some(()));
        match language.without_own_bundle {
            WithoutOwnBundle::Refused => {
                watching.line_where("an error", |line| line["error"].is_string());
            }
            WithoutOwnBundle::NoAuthorities => {
                watching.line_where("no authorities", |line| line["authorities"] == 0);
            }
            WithoutOwnBundle::RefusedUnsaid => {}
        }
        api.publish(authority.state("/web"));
        let (_, before) = watching.line_where("another serial", |line| line["serial"].is_string() && line["serial"] != first["serial"]);
        if language.without_own_bundle == WithoutOwnBundle::RefusedUnsaid {
            assert_eq!(before, [] as [Value; 0], "{}", language.name);
        }
    }
}

#[test]
fn an_svid_that_ended_while_the_agent_is_stopped_is_refused_by_every_language_on_either_side() {
    // Go shows a certificate that has ended, so that every language has one to refuse.
    let go = LANGUAGES.iter().find(|language| language.ended == Ended::Shown).unwrap();
    let authority = Authority::new();
    let (lasting, ending) = (Fake::start(authority.state("/lasting")), Fake::start(authority.state("/ending")));
    for language in LANGUAGES {
        after_the_end(&authority, (language, &lasting), (go, &ending));
        after_the_end(&authority, (go, &lasting), (language, &ending));
    }
}

/// A program whose SVID lasts meets one whose SVID has ended, each as the client and as the server.
fn after_the_end(authority: &Authority, lasting: (&Language, &Fake), ending: (&Language, &Fake)) {
    let pair = format!("{}, whose SVID lasts, and {}, whose SVID has ended", lasting.0.name, ending.0.name);
    let start = |party: (&Language, &Fake), arguments: &[&str]| Program::start(party.0, &party.1.socket(), arguments);
    ending.1.publish(authority.state("/ending"));
    let mut lasting_server = start(lasting, &["serve", "spiffe://example.org/ending"]);
    let mut ending_server = start(ending, &["serve", "spiffe://example.org/lasting"]);
    let (mut lasting_client, mut ending_client) = (start(lasting, &["connect"]), start(ending, &["connect"]));
    let open = |name: &str, port: &Value, peer: &str| format!("open {name} {port} spiffe://example.org/{peer}");
    let (to_lasting, to_ending) = (lasting_server.line()["listening"].clone(), ending_server.line()["listening"].clone());
    let opened = lasting_client.ask(&open("before", &to_ending, "ending"));
    assert!(opened["opened"] == "before", "{pair}: {opened}");
    let before = ending_client.ask("serial");
    assert!(before["serial"].is_string(), "{pair}: {before}");

    // One has an SVID that ends in a moment, and nobody renews it.
    let lifetime = Duration::from_secs(2);
    let last = SystemClock.now().after(lifetime);
    ending.1.publish(authority.state_for("/ending", lifetime));
    until("the client has the SVID that ends", || (ending_client.ask("serial") != before).then_some(()));
    until("the server has the SVID that ends", || (lasting_client.ask("ping before")["my_serial"] != opened["peer_serial"]).then_some(()));
    until("the SVID ends", || (SystemClock.now() > last.after(Duration::from_secs(1))).then_some(()));

    let to = lasting_client.ask(&open("to", &to_ending, "ending"));
    let to = if to["opened"].is_string() { lasting_client.ask("ping to") } else { to };
    assert!(to["failed"] == "to", "{pair}: {to}");
    // With TLS 1.3 a client learns that it is refused when it reads.
    let from = ending_client.ask(&open("from", &to_lasting, "lasting"));
    let from = if from["opened"].is_string() { ending_client.ask("ping from") } else { from };
    assert!(from["failed"] == "from", "{pair}: {from}");
    // Whoever sees why says it.
    match ending.0.ended {
        Ended::Shown => {
            let refused = lasting_server.line();
            assert!(says_it_ended(&to["error"]), "{pair}: {to}");
            assert!(says_it_ended(&refused["refused"]), "{pair}: {from} {refused}");
        }
        Ended::Withheld(why) => assert!(says(&from["error"], why), "{pair}: {to} {from}"),
    }
    // What was open stays open: certificates are looked at in the handshake alone.
    assert_eq!(lasting_client.ask("ping before")["you"], "spiffe://example.org/lasting", "{pair}");
}

/// Java names the field of the certificate and the time in it.
fn says_it_ended(error: &Value) -> bool {
    says(error, "expired") || says(error, "validity check failed: NotAfter")
}

fn says(error: &Value, wanted: &str) -> bool {
    error.as_str().is_some_and(|text| text.to_lowercase().contains(&wanted.to_lowercase()))
}
