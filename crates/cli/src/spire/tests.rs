//! The table as a whole: what it says about itself, and how a line finds its command.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::ffi::OsStr;

use super::{Face, Line, below, help};

fn line(face: Face, text: &str) -> (String, String, bool, bool, bool) {
    let arguments: Vec<String> = text.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect();
    let commands = face.commands();
    let line = Line::read(&commands, &arguments);
    (line.words.clone(), line.rest.join(" "), line.is_help, line.is_version, line.has_flags_before)
}

#[test]
fn the_name_is_that_of_the_file_whatever_leads_to_it() {
    let of = |name: &str| Face::of(Some(OsStr::new(name)));
    assert_eq!(of("/opt/spire/bin/spire-server"), Some(Face::Server));
    assert_eq!(of("spire-agent"), Some(Face::Agent));
    assert_eq!(of("./countersign"), None);
    assert_eq!(of("/opt/spire-server/countersign"), None);
    assert_eq!(Face::of(None), None);
}

#[test]
fn a_line_finds_the_longest_command_and_leaves_it_the_rest() {
    let of = |words: &str, rest: &str| (words.to_owned(), rest.to_owned(), false, false, false);
    assert_eq!(line(Face::Server, "entry show -spiffeID x"), of("entry show", "-spiffeID x"));
    assert_eq!(line(Face::Server, "entry show extra"), of("entry show", "extra"));
    assert_eq!(line(Face::Server, "entry bogus -x"), of("entry", "bogus -x"));
    assert_eq!(line(Face::Server, "localauthority x509 bogus"), of("localauthority x509", "bogus"));
    assert_eq!(line(Face::Agent, "api fetch"), of("api fetch", ""));
    assert_eq!(line(Face::Agent, "api fetch jwt -audience a"), of("api fetch jwt", "-audience a"));
    assert_eq!(line(Face::Server, "bogus"), of("bogus", ""));
    assert_eq!(line(Face::Server, "-output json entry show"), ("json".to_owned(), "entry show".to_owned(), false, false, true));
    assert_eq!(line(Face::Agent, "-x healthcheck"), ("healthcheck".to_owned(), String::new(), false, false, true));
    assert_eq!(line(Face::Server, "entry create -hint -h"), ("entry create".to_owned(), "-hint -h".to_owned(), true, false, false));
    assert_eq!(line(Face::Server, "entry create -- -h"), of("entry create", "-- -h"));
    assert_eq!(line(Face::Server, "-v"), (String::new(), String::new(), false, true, false));
    assert_eq!(line(Face::Server, "run -version"), of("run", "-version"));
}

#[test]
fn every_command_has_each_flag_once_and_says_something_about_it() {
    for face in [Face::Server, Face::Agent] {
        let mut names = BTreeSet::new();
        for command in face.commands() {
            assert!(names.insert(command.name) && !command.synopsis.is_empty(), "{}", command.name);
            let mut flags = BTreeSet::new();
            for flag in command.flags.iter().copied().flatten() {
                assert!(flags.insert(flag.name), "{}: -{} twice", command.name, flag.name);
                assert!(!flag.help.is_empty() && !flag.help.contains('`') && !flag.help.contains('\n'), "{}: -{}", command.name, flag.name);
            }
        }
    }
}

#[test]
fn the_feature_flag_adds_its_command() {
    let has = |flags: &str| super::server::commands(flags).iter().any(|c| c.name == "wit mint");
    assert!(has("other wit-svid") && !has("") && !has("wit_svid"));
}

/// Names, kinds and defaults of all flags of all commands; the sentences are ours.
#[test]
fn the_surface_is_spires() {
    let mut text = String::new();
    for face in [Face::Server, Face::Agent] {
        for command in face.commands() {
            text += &format!("\n{} {}\n", face.name(), command.name);
            let lines: Vec<String> = command.usage().lines().map(str::to_owned).collect();
            for pair in lines.get(1..).unwrap().chunks(2) {
                let [flag, help] = pair else { panic!("{pair:?}") };
                let default = help.find(" (default ").map_or("", |at| help.get(at..).unwrap());
                text += &format!("{flag}{default}\n");
            }
        }
    }
    expect_test::expect_file!["surface.txt"].assert_eq(&text);
}

#[test]
fn the_help_of_a_group_is_that_of_its_commands_and_a_list() {
    let commands = Face::Agent.commands();
    let text = help(&commands, "logger");
    assert!(text.starts_with("Usage of logger get:\n  -output value\n"), "{text}");
    assert!(text.contains("\nUsage of logger set:\n  -level string\n"), "{text}");
    let list = "This command is accessed by using one of the subcommands below.\n\nSubcommands:\n    get      Shows the log level\n    reset    Goes back to the log level of the start\n    set      Sets the log level\n";
    assert!(text.ends_with(list), "{text}");
    let text = help(&commands, "api");
    assert!(
        text.ends_with("\n    fetch       Fetches X509-SVIDs\n    validate    \n    watch       Prints X509-SVIDs whenever they change\n"),
        "{text}"
    );
    let text = help(&commands, "api fetch");
    assert!(
        text.starts_with("Usage of fetch x509:\n")
            && text.ends_with("\n\n\nSubcommands:\n    jwt     Fetches JWT-SVIDs\n    x509    Fetches X509-SVIDs\n"),
        "{text}"
    );
    assert!(help(&Face::Server.commands(), "localauthority").ends_with("Subcommands:\n    jwt     \n    x509    \n"));
    assert_eq!(below("entry show", "entr"), None);
}
