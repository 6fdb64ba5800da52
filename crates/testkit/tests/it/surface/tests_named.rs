//! The tests that rows name: each must exist.

use std::collections::BTreeSet;
use std::path::Path;

use super::rows::{Status, all, root};

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

fn collect(folder: &Path, found: &mut BTreeSet<String>) {
    for item in std::fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.extend(tests_in(&std::fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn every_test_that_a_row_names_exists() {
    let mut found = BTreeSet::new();
    collect(&root().join("crates"), &mut found);
    assert!(found.len() > 500, "the scanner found only {found:?}");
    let rows = all();
    let lost: Vec<String> = rows
        .iter()
        .filter(|row| row.status() == Status::Done && !found.contains(row.get("by")))
        .map(|row| format!("{}: there is no test `{}`", row.place(), row.get("by")))
        .collect();
    assert!(lost.is_empty(), "{}", lost.join("\n"));
}

#[test]
fn the_scanner_takes_tests_and_nothing_else() {
    let text =
        "fn helper() {}\n#[test]\n#[allow(x)]\nfn one() {\n    fn inner() {}\n}\n#[tokio::test(start_paused = true)]\nasync fn two() {}\n";
    assert_eq!(tests_in(text), ["one", "two"]);
}
