//! What a program asks for once.

use serde_json::{Value, json};

use super::language::{LANGUAGES, Language};
use super::program::Program;
use super::world::{Entries, World};

const AUDIENCE: &str = "billing";

/// One command of every language at once, and what it says.
fn each_says(world: &World, arguments: &[&str]) -> Vec<(&'static Language, Value)> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = LANGUAGES.iter().map(|l| (l, scope.spawn(|| Program::said(l, &world.socket(), arguments)))).collect();
        asked.into_iter().map(|(language, said)| (language, said.join().unwrap())).collect()
    })
}

#[test]
fn a_program_of_every_language_gets_an_x509_svid_of_its_own() {
    let world = World::with_identities();
    for (language, said) in each_says(&world, &["x509"]) {
        assert_eq!(said["spiffe_id"], Value::from(language.spiffe_id()));
        assert_eq!(said["authorities"], json!(1), "{}", language.name);
        let serial = said["serial"].as_str().unwrap();
        let journal = world.ok(&["log", "issued", "--serial", &format!("0x{serial}")]);
        assert!(journal.contains(&language.spiffe_id()), "{}: {serial} is not in the journal: {journal}", language.name);
    }
}

#[test]
fn every_language_validates_the_jwt_svids_of_every_language() {
    let world = World::with_identities();
    let tokens = each_says(&world, &["jwt", AUDIENCE]);
    for (owner, said) in &tokens {
        assert_eq!(said["spiffe_id"], Value::from(owner.spiffe_id()));
        let token = said["token"].as_str().unwrap();
        for (judge, judged) in each_says(&world, &["validate", AUDIENCE, token]) {
            assert_eq!(judged["spiffe_id"], Value::from(owner.spiffe_id()), "{} about {}", judge.name, owner.name);
        }
    }
    // And no other token: for somebody else, and of a signer nobody knows.
    let token = tokens[0].1["token"].as_str().unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    // The first character is whole bits of the signature, unlike the last one.
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{signed}.{other}{}", &signature[1..]);
    for (audience, token) in [("somebody else", token), (AUDIENCE, &forged)] {
        for judge in LANGUAGES {
            let end = Program::start(judge, &world.socket(), &["validate", audience, token]).ended();
            assert_eq!(end.code, Some(2), "{} accepts it: {:?} {}", judge.name, end.lines, end.errors);
            assert!(end.lines.len() == 1 && end.lines[0]["refused"].is_string(), "{}: {:?}", judge.name, end.lines);
        }
    }
}

#[test]
fn a_program_of_every_language_gets_the_bundles_it_may_use() {
    let world = World::start();
    let own = world.ok(&["bundle", "show", "--format", "spiffe"]);
    std::fs::write(world.path("other.json"), own).unwrap();
    let file = world.path("other.json").display().to_string();
    world.ok(&["bundle", "set", "--id", "other.test", "--format", "spiffe", "--path", &file]);
    world.entries("create", Entries { federates_with: Some("other.test"), ..Entries::default() });
    let wanted = json!({"example.org": 1, "other.test": 1});
    for (language, said) in each_says(&world, &["bundles"]) {
        assert_eq!(said, json!({"x509": wanted, "jwt": wanted}), "{}", language.name);
    }
}
