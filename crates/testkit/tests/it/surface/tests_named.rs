//! The tests that rows name: each exists and speaks of what its row is about. Whether it would fail without the behaviour only
//! somebody who breaks it can say; what a machine can hold is that a row does not name a test of something else.
//!
//! Of a test that replays a transcript, a line that was typed has the row's command and flag, or was answered with its text. Of
//! every other one its file has the word, or a file that this includes: not only its function, because settings stand in
//! functions that tests share.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;

use super::rows::{Row, Status, all, root};

/// Reads the rows that name it, and holds each.
const HOLDS_ITS_ROWS: &str = "the_lines_of_a_life_cycle_are_those_of_the_reference";
/// These hold all rows against the code: they show that something is taken, not what it does.
const SHOW_NOTHING: &[&str] = &[
    "every_key_of_the_servers_configuration_has_the_status_its_row_says",
    "every_key_of_the_agents_configuration_has_the_status_its_row_says",
    "every_call_has_the_status_its_row_says",
    "every_command_and_flag_has_the_status_its_row_says",
    "what_is_said_and_read_has_the_status_its_row_says",
];
const TRANSCRIPTS: &str = "crates/testkit/tests/it/names.rs";

/// Names of the functions below `#[test]` or `#[tokio::test…]`.
fn tests_in(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_next = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_next = true;
        } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_next) {
            found.extend(rest.split(['(', '<']).next().map(str::to_owned));
            is_next = false;
        }
    }
    found
}

/// The text of the file of each test, and of what that includes.
fn collect(folder: &Path, found: &mut BTreeMap<String, String>) {
    let included = Regex::new(r#"include_str!\("([^"]+)"\)"#).unwrap();
    for item in std::fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let own = std::fs::read_to_string(&path).unwrap();
            let beside = |name: &str| std::fs::read_to_string(path.with_file_name(name)).unwrap_or_default();
            let text = included.captures_iter(&own).fold(own.clone(), |text, file| text + &beside(&file[1]));
            for test in tests_in(&own) {
                found.entry(test).or_default().push_str(&text);
            }
        }
    }
}

/// What was typed, and what came of it.
struct Typed {
    line: String,
    said: String,
}

impl Typed {
    /// Those of a transcript.
    fn all(transcript: &str) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for line in transcript.lines() {
            if let Some((_, typed)) = line.split_once(' ').filter(|(mark, _)| ["$", "%", "^", "@"].contains(mark)) {
                all.push(Self { line: typed.to_owned(), said: String::new() });
            } else if let (Some(typed), Some((_, said))) = (all.last_mut(), line.split_once('|')) {
                typed.said += said;
                typed.said.push('\n');
            }
        }
        all
    }

    /// Whether this command was typed, behind variables of the environment perhaps.
    fn is_of(&self, row: &Row) -> bool {
        let words: Vec<&str> = self.line.split(' ').skip_while(|word| !word.starts_with("spire-")).collect();
        let wanted: Vec<&str> = [row.get("program")].into_iter().chain(row.get("command").split(' ')).collect();
        words.starts_with(&wanted)
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.line.split(' ').filter_map(|word| word.strip_prefix('-')).any(|word| {
            let word = word.trim_start_matches('-');
            word == flag || word.strip_prefix(flag).is_some_and(|rest| rest.starts_with('='))
        })
    }
}

/// The transcripts by the tests that replay them.
fn transcripts() -> BTreeMap<String, Vec<Typed>> {
    let source = std::fs::read_to_string(root().join(TRANSCRIPTS)).unwrap();
    let folder = root().join(TRANSCRIPTS).with_extension("");
    let replays = Regex::new(r#"fn (\w+)\(\) \{\s+check\("([^"]+)"\);"#).unwrap();
    let typed = |file: &str| Typed::all(&std::fs::read_to_string(folder.join(file)).unwrap());
    replays.captures_iter(&source).map(|found| (found[1].to_owned(), typed(&found[2]))).collect()
}

fn is_in_transcript(row: &Row, typed: &[Typed]) -> bool {
    match row.file() {
        "commands" => typed.iter().any(|t| t.is_of(row)),
        "flags" => typed.iter().any(|t| t.is_of(row) && t.has_flag(row.get("flag"))),
        "texts" => typed.iter().any(|t| t.is_of(row) && t.said.contains(&row.get("text").replace("\\t", "\t"))),
        "environment" => typed.iter().any(|t| t.line.contains(&format!("{}=", row.get("variable")))),
        "rpcs" => row.get("method").rsplit('/').next().is_some_and(|name| typed.iter().any(|t| t.line.contains(&name.to_lowercase()))),
        _ => false,
    }
}

fn is_in_file(row: &Row, text: &str) -> bool {
    let has = |word: &str| text.contains(word) || text.contains(&word.replace('"', "\\\""));
    match row.file() {
        "server-configuration" | "agent-configuration" => {
            let mut names = row.get("key").split('.').map(|name| name.trim_end_matches("[]"));
            names.rfind(|name| *name != "*").is_some_and(has)
        }
        // In the code of Rust a method has underscores; commands have the name of the service.
        "rpcs" => {
            let text = text.replace('_', "").to_lowercase();
            let mut names = row.get("method").rsplit(['/', '.']).take(2);
            names.any(|name| text.contains(&name.to_lowercase()))
        }
        "commands" => row.get("command").split(' ').all(has),
        "flags" => [format!("\"{}\"", row.get("flag")), format!("-{}", row.get("flag"))].iter().any(|flag| has(flag)),
        "environment" => has(row.get("variable")),
        _ => row.get("by") == HOLDS_ITS_ROWS || has(row.get("text")),
    }
}

#[test]
fn every_test_that_a_row_names_exists_and_speaks_of_it() {
    let mut files = BTreeMap::new();
    collect(&root().join("crates"), &mut files);
    assert!(files.len() > 500, "the scanner found only {:?}", files.keys());
    let transcripts = transcripts();
    assert!(transcripts.len() > 3, "the scanner found only {:?}", transcripts.keys());
    let complaint = |row: &Row| {
        let (place, test) = (row.place(), row.get("by"));
        let Some(text) = files.get(test) else { return Some(format!("{place}: there is no test `{test}`")) };
        if SHOW_NOTHING.contains(&test) {
            return Some(format!("{place}: `{test}` shows only that it is taken"));
        }
        let is_shown = transcripts.get(test).is_some_and(|typed| is_in_transcript(row, typed))
            || (!transcripts.contains_key(test) && is_in_file(row, text));
        (!is_shown).then(|| format!("{place}: `{test}` does not speak of it"))
    };
    let wrong: Vec<String> = all().iter().filter(|row| row.status() == Status::Done).filter_map(complaint).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_scanner_takes_tests_and_nothing_else() {
    let text =
        "fn helper() {}\n#[test]\n#[allow(x)]\nfn one() {\n    fn inner() {}\n}\n#[tokio::test(start_paused = true)]\nasync fn two() {}\n";
    assert_eq!(tests_in(text), ["one", "two"]);
}

#[test]
fn a_line_that_was_typed_has_its_command_its_flags_and_what_came_of_it() {
    let typed = Typed::all("# A = b\n$ NAME=value spire-server entry show -a --b=c\n1|one\n2|two\n? 1\n% spire-agent x\n2|three\n");
    assert_eq!(typed.iter().map(|t| t.said.as_str()).collect::<Vec<_>>(), ["one\ntwo\n", "three\n"]);
    assert_eq!(["a", "b", "c", "-b"].map(|flag| typed[0].has_flag(flag)), [true, true, false, false]);
}
