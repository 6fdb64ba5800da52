//! Environment variables, output texts and log lines: those that are said to be there stand in the product's source or in
//! what its commands print, letter by letter, and the others do not. That they come at the right moment is for the tests that the rows name.

use std::path::Path;

use super::rows::{Status, root, rows};

/// The files of rows, with the column that holds what is looked for.
const FILES: &[(&str, &str)] = &[("environment", "variable"), ("texts", "text"), ("log-lines", "text")];
/// What real commands printed, word for word, in the test that runs them: texts that are put together are found there.
const PRINTED: &str = "crates/testkit/tests/it/names";
/// Crates that are no part of the product.
const NOT_THE_PRODUCT: &[&str] = &["testkit"];

fn collect(folder: &Path, text: &mut String) {
    for item in std::fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() && name != "tests" && name != "gen" {
            collect(&path, text);
        } else if path.extension().is_some_and(|e| e == "rs") && name != "tests" {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Everything the product is made of, without its tests, and what it prints.
fn product() -> String {
    let mut text = String::new();
    for item in std::fs::read_dir(root().join("crates")).unwrap() {
        let folder = item.unwrap().path();
        if !NOT_THE_PRODUCT.contains(&folder.file_name().unwrap().to_str().unwrap()) {
            collect(&folder.join("src"), &mut text);
        }
    }
    for item in std::fs::read_dir(root().join(PRINTED)).unwrap() {
        let path = item.unwrap().path();
        if path.extension().is_some_and(|e| e == "txt") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
    text
}

#[test]
fn what_is_said_and_read_has_the_status_its_row_says() {
    let product = product();
    let mut complaints = Vec::new();
    // A log line that is missing may be what a command prints.
    let printed: Vec<&str> = rows("texts").iter().filter(|row| row.status() == Status::Done).map(|row| row.get("text")).collect();
    for (file, column) in FILES {
        for row in rows(file) {
            let text = row.get(column);
            // As it stands in a string of Rust.
            let is_there = product.contains(&text.replace('"', "\\\"")) || product.contains(text);
            match (row.status(), is_there) {
                (Status::Done, false) => complaints.push(format!("{}: `{text}` is said to be done and is nowhere", row.place())),
                (Status::NotYet, true) if !(file == &"log-lines" && printed.contains(&text)) => {
                    complaints.push(format!("{}: `{text}` is said to be missing and is there", row.place()))
                }
                _ => {}
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}
