//! House rules that can be a test.

use std::path::{Path, PathBuf};

use crate::{Failure, say};

/// A file over this many lines asks to be split.
const LINES_ASK: usize = 600;
/// A file over this many lines fails.
const LINES_MAX: usize = 1000;

/// Module names that say nothing (style guide, section 2).
const DRAWERS: &[&str] = &["util", "utils", "common", "helpers", "misc", "base", "manager", "impl"];

/// What only one room may name, and the rooms that may.
const OWNED: &[(&str, &[&str])] =
    &[("rusqlite", &["crates/store", "crates/testkit"]), ("rustls::", &["crates/transport"]), ("x509_parser", &["crates/identity"])];

/// Checks every rule and reports all breaches at once.
pub(crate) fn run(root: &Path) -> Result<(), Failure> {
    let mut breaches = Vec::new();
    let mut files = Vec::new();
    for folder in ["crates", "fuzz", "xtask"] {
        collect(&root.join(folder), &mut files)?;
    }
    for path in &files {
        let shown = path.strip_prefix(root).unwrap_or(path).display().to_string();
        let text = std::fs::read_to_string(path)?;
        check_file(&shown, &text, &mut breaches);
    }
    crate::documents::check(root, &mut breaches)?;
    for breach in &breaches {
        say(breach);
    }
    if breaches.is_empty() { Ok(()) } else { Err(format!("{} house rules are broken", breaches.len()).into()) }
}

fn check_file(shown: &str, text: &str, breaches: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > LINES_MAX {
        breaches.push(format!("{shown}: {lines} lines, at most {LINES_MAX} are allowed"));
    } else if lines > LINES_ASK {
        say(&format!("{shown}: {lines} lines ask to be split"));
    }
    if text.lines().find(|l| !l.is_empty()).is_none_or(|l| !l.starts_with("//!")) {
        breaches.push(format!("{shown}: the file does not open with `//!` saying what it is"));
    }
    let stem = Path::new(shown).file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    if DRAWERS.contains(&stem) {
        breaches.push(format!("{shown}: `{stem}` says nothing, name the thing"));
    }
    let in_tests = shown.contains("/tests/") || shown.ends_with("tests.rs") || shown.contains("testkit");
    for (number, line) in text.lines().enumerate() {
        let place = || format!("{shown}:{}", number + 1);
        let code = line.split("//").next().unwrap_or_default();
        if ["todo!(", "unimplemented!(", "dbg!(", "#[ignore"].iter().any(|word| code.contains(word)) && !shown.starts_with("xtask") {
            breaches.push(format!("{}: unfinished work or a test switched off", place()));
        }
        for (word, rooms) in OWNED {
            if code.contains(word) && !in_tests && !shown.starts_with("xtask") && !rooms.iter().any(|room| shown.starts_with(room)) {
                breaches.push(format!("{}: only {} may use `{word}`", place(), rooms.join(", ")));
            }
        }
        if code.contains("SystemTime::now") && !shown.ends_with("transport/src/clock.rs") && !in_tests && !shown.starts_with("xtask") {
            breaches.push(format!("{}: the time is an argument, it is read in transport/src/clock.rs alone", place()));
        }
    }
}

/// Every Rust file, but for generated ones.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Failure> {
    for item in std::fs::read_dir(folder)? {
        let path = item?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() && name != "gen" && name != "target" && name != "clients" {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}
