//! The pages in `docs/guides/` show tested code: each block of a program's language is a region of a client's source, and
//! each region is on a page.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What comments in the sources and the line before a block in a page look like.
const BEGIN: &str = "guide: begin ";
const END: &str = "guide: end ";
const QUOTES: &str = "<!-- from ";

/// The languages whose blocks must be quoted.
const FENCES: &[&str] = &["go", "python", "java", "javascript", "js", "mjs", "rust"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The text of a region without the indentation that all its lines share.
fn region(source: &str, name: &str) -> Option<String> {
    let is = |line: &str, word: &str| line.split_once(word).is_some_and(|(_, rest)| rest.trim() == name);
    let lines: Vec<&str> = source.lines().skip_while(|l| !is(l, BEGIN)).skip(1).take_while(|l| !is(l, END)).collect();
    // What another region begins or ends inside of is not part of the page.
    let lines: Vec<&str> = lines.into_iter().filter(|l| !l.contains(BEGIN) && !l.contains(END)).collect();
    let indent = lines.iter().filter(|l| !l.trim().is_empty()).map(|l| l.len() - l.trim_start().len()).min()?;
    Some(lines.iter().map(|l| l.get(indent..).unwrap_or_default().to_owned() + "\n").collect())
}

/// The pages about a language: those that quote anything, so that a page of other programs may show what it likes.
fn pages() -> Vec<(String, String)> {
    let mut pages: Vec<(String, String)> = std::fs::read_dir(root().join("docs/guides"))
        .unwrap()
        .map(|item| item.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()))
        .filter(|(_, text)| text.contains(QUOTES))
        .collect();
    pages.sort();
    pages
}

/// A page with the tested code in each of its blocks, and the regions that it shows.
fn with_tested_code(page: &str, text: &str, shown: &mut BTreeSet<(String, String)>) -> String {
    let (mut made, mut before) = (String::new(), "");
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        made += &format!("{line}\n");
        if let Some(fence) = line.strip_prefix("```") {
            let block: String = lines.by_ref().map(|(_, l)| l).take_while(|l| *l != "```").map(|l| l.to_owned() + "\n").collect();
            let place = format!("docs/guides/{page}:{}", number + 1);
            made += &if FENCES.contains(&fence) { tested(before, &place, shown) } else { block };
            made += "```\n";
        }
        before = line;
    }
    made
}

/// The region that the line before a block names.
fn tested(quote: &str, place: &str, shown: &mut BTreeSet<(String, String)>) -> String {
    let quote = quote.strip_prefix(QUOTES).and_then(|q| q.strip_suffix(" -->")).and_then(|q| q.split_once(": "));
    let (path, name) = quote.unwrap_or_else(|| panic!("{place}: a block of code that nothing tests"));
    let source = std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{place}: {path}: {e}"));
    shown.insert((path.to_owned(), name.to_owned()));
    region(&source, name).unwrap_or_else(|| panic!("{place}: {path} has no region `{name}`"))
}

#[test]
fn the_code_on_every_page_is_the_tested_code() {
    let mut shown = BTreeSet::new();
    for (page, text) in pages() {
        let made = with_tested_code(&page, &text, &mut shown);
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(root().join("docs/guides").join(&page), &made).unwrap();
        } else {
            assert_eq!(text, made, "docs/guides/{page} is not what the sources say; `cargo xtask bless` rewrites it");
        }
    }
    // And nothing was marked for a page that does not show it.
    let mut marked = BTreeSet::new();
    mark(&root().join("crates/testkit/clients"), &mut marked);
    assert_eq!(marked, shown);
    assert!(!marked.is_empty());
}

/// The regions of every source in a folder and those below it.
fn mark(path: &Path, marked: &mut BTreeSet<(String, String)>) {
    if path.is_dir() {
        for item in std::fs::read_dir(path).unwrap() {
            mark(&item.unwrap().path(), marked);
        }
    } else if let Ok(text) = std::fs::read_to_string(path) {
        let shown = path.strip_prefix(root()).unwrap_or(path).display().to_string();
        let names = text.lines().filter_map(|l| l.split_once(BEGIN)).map(|(_, name)| name.trim().to_owned());
        marked.extend(names.map(|name| (shown.clone(), name)));
    }
}

#[test]
fn the_index_lists_every_page() {
    let guides = root().join("docs/guides");
    let index = std::fs::read_to_string(guides.join("README.md")).unwrap();
    let linked: BTreeSet<String> = index
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|link| !link.contains('/'))
        .map(ToOwned::to_owned)
        .collect();
    let pages: BTreeSet<String> = std::fs::read_dir(guides)
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "README.md" && Path::new(name).extension().is_some_and(|e| e == "md"))
        .collect();
    assert!(pages.is_subset(&linked), "{pages:?} are not all in {linked:?}");
}
