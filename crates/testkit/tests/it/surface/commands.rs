//! Each command and flag, asked of our binary under SPIRE's names, which writes its usage as Go's `flag` package does.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use super::rows::{Status, rows};
use crate::support::countersign;

/// One flag of a usage: name, kind and default; `boolean` and `-` where Go prints none.
type Flag = (String, String, String);

/// What `-h` of a command says, or `None` where there is no such command. Usage goes to standard error, and the exit code is 0.
fn usage(names: &Path, program: &str, command: &str) -> Option<String> {
    let asked = Command::new(names.join(program)).args(command.split(' ')).arg("-h").stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(asked.stderr).unwrap();
    let is_usage = asked.status.success() && text.contains("Usage of ");
    is_usage.then_some(text)
}

/// The flags of the first usage in a text; a group prints those of its commands below its own.
fn flags(text: &str) -> BTreeSet<Flag> {
    let first = text.split("Usage of ").nth(1).unwrap_or_default();
    let mut found: Vec<Flag> = Vec::new();
    for line in first.lines() {
        if let Some(flag) = line.strip_prefix("  -") {
            let (name, kind) = flag.split_once(' ').unwrap_or((flag, "boolean"));
            // A flag of one letter has its explanation in the same line.
            let (name, _) = name.split_once('\t').unwrap_or((name, ""));
            found.push((name.to_owned(), kind.to_owned(), "-".to_owned()));
        } else if let (Some(default), Some(flag)) =
            (line.rsplit_once("(default ").and_then(|(_, rest)| rest.strip_suffix(')')), found.last_mut())
        {
            flag.2 = default.trim_matches('"').to_owned();
        }
    }
    found.into_iter().collect()
}

#[test]
fn every_command_and_flag_has_the_status_its_row_says() {
    let names = tempfile::tempdir().unwrap();
    for program in ["spire-server", "spire-agent"] {
        symlink(countersign(), names.path().join(program)).unwrap();
    }
    let mut expected: BTreeMap<(&str, &str), BTreeSet<Flag>> = BTreeMap::new();
    for row in rows("flags").iter().filter(|row| row.status() == Status::Done) {
        let flag = ["flag", "kind", "default"].map(|column| row.get(column).to_owned());
        expected.entry((row.get("program"), row.get("command"))).or_default().insert(flag.into());
    }
    let mut complaints = Vec::new();
    for row in rows("commands") {
        let (program, command) = (row.get("program"), row.get("command"));
        let mut complain = |what: String| complaints.push(format!("{}: {program} {command} {what}", row.place()));
        let expected = expected.remove(&(program, command)).unwrap_or_default();
        match (row.status(), usage(names.path(), program, command)) {
            (Status::Done, None) => complain("is said to be done and has no usage".to_owned()),
            (Status::Done, Some(text)) => {
                let found = flags(&text);
                let (lost, more): (Vec<_>, Vec<_>) = (expected.difference(&found).collect(), found.difference(&expected).collect());
                if !lost.is_empty() || !more.is_empty() {
                    complain(format!("lacks the flags {lost:?} and has {more:?}"));
                }
            }
            (Status::NotYet | Status::Different, Some(_)) => complain("is said not to be there and is".to_owned()),
            (Status::NotYet | Status::Different, None) => {}
        }
    }
    assert!(expected.is_empty(), "flags of commands that have no row: {expected:?}");
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn usages_are_read_as_go_writes_them() {
    let text = "Usage of entry show:\n  -downstream\n    \tA boolean value\n  -matchSelectorsOn string\n    \tThe mode (default \"superset\")\n  \
                -ttl int\n    \tSeconds (default 600)\nUsage of another:\n  -other\n    \tNot of the first\n";
    let flag = |name: &str, kind: &str, default: &str| (name.to_owned(), kind.to_owned(), default.to_owned());
    let expected = [flag("downstream", "boolean", "-"), flag("matchSelectorsOn", "string", "superset"), flag("ttl", "int", "600")];
    assert_eq!(flags(text), expected.into());
}
