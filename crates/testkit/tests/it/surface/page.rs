//! `docs/spire-compatibility.md`, made of the rows.

use std::fmt::Write as _;

use super::rows::{Row, Status, rows};

const BEGIN: &str = "\
# What of SPIRE is there

Every row below was taken from the source of SPIRE 1.16.0-dev (`ef8527ec`, 2026-08-22) and its API (`adb81b3`, 2026-07-09), commands and \
flags from its programs. Written by `cargo xtask bless` from `crates/testkit/data`; tests hold each row against what the readers of the \
configuration, the services, the command line and the source really say. Of what is *done*, the data names the test that shows it. \
What is *not yet* there is recognised, and refused with what to do meanwhile. \
What was tried by hand with SPIRE's own programs, and when, is in [spire-swap.md](spire-swap.md).

";

/// A file, its heading, the columns that name a block, and the column that names a row in it.
struct Part {
    file: &'static str,
    heading: &'static str,
    block: &'static [&'static str],
    name: &'static str,
}

const fn part(file: &'static str, heading: &'static str, block: &'static [&'static str], name: &'static str) -> Part {
    Part { file, heading, block, name }
}

const PARTS: &[Part] = &[
    part("server-configuration", "Configuration of the server", &[], "key"),
    part("agent-configuration", "Configuration of the agent", &[], "key"),
    part("rpcs", "Calls", &[], "method"),
    part("commands", "Commands", &["program"], "command"),
    part("flags", "Flags", &["program", "command"], "flag"),
    part("environment", "Environment variables", &[], "variable"),
    part("texts", "Texts that scripts match on", &["program", "command"], "text"),
    part("log-lines", "Log lines that scripts match on", &["side"], "text"),
];

/// The block that a dotted or slashed name belongs to, and the rest.
fn split(name: &str) -> (&str, &str) {
    let (block, last) = match name.strip_prefix('/') {
        Some(method) => method.rsplit_once('/').unwrap_or(("", method)),
        None if name.starts_with("plugins.") => {
            let end = name.match_indices('.').nth(2).map_or(name.len(), |(at, _)| at);
            (&name[..end], name.get(end + 1..).unwrap_or_default())
        }
        None => name.rsplit_once('.').unwrap_or(("", name)),
    };
    (block, last.strip_prefix("plugin_data.").unwrap_or(last))
}

impl Part {
    fn place(&self, row: &Row) -> (String, &'static str) {
        if self.name == "key" || self.name == "method" {
            let (block, name) = split(row.get(self.name));
            return (block.to_owned(), name);
        }
        (self.block.iter().map(|column| row.get(column)).collect::<Vec<_>>().join(" "), row.get(self.name))
    }

    /// Rows of one block with one answer in one line, in the order of the file.
    fn table(&self, rows: &[Row]) -> String {
        let mut lines: Vec<(String, String, Vec<&str>)> = Vec::new();
        for row in rows {
            let ((block, name), said) = (self.place(row), said(row));
            match lines.iter_mut().find(|(b, s, _)| *b == block && *s == said) {
                Some((_, _, names)) => names.push(name),
                None => lines.push((block, said, vec![name])),
            }
        }
        let mut text = String::from("| of | | |\n| --- | --- | --- |\n");
        for (block, said, names) in lines {
            let mut names: Vec<String> = names.into_iter().filter(|name| !name.is_empty()).map(|name| format!("`{name}`")).collect();
            names.dedup();
            let block = if block.is_empty() { block } else { format!("`{block}`") };
            writeln!(text, "| {block} | {} | {} |", names.join(", ").replace('|', "\\|"), said.replace('|', "\\|")).unwrap();
        }
        text
    }
}

fn said(row: &Row) -> String {
    match row.status() {
        Status::Done => "done".to_owned(),
        Status::NotYet => format!("not yet: {}", row.get("by")),
        Status::Different => format!("different: {}", row.get("by")),
    }
}

fn counted(rows: &[Row]) -> String {
    let count = |status| rows.iter().filter(|row| row.status() == status).count();
    let (done, later, other) = (count(Status::Done), count(Status::NotYet), count(Status::Different));
    format!("{} rows: {done} done, {later} not yet, {other} different.", rows.len())
}

#[test]
fn the_page_says_what_the_rows_say() {
    let mut text = BEGIN.to_owned();
    for part in PARTS {
        let rows = rows(part.file);
        write!(text, "## {}\n\n{}\n\n{}\n", part.heading, counted(&rows), part.table(&rows)).unwrap();
    }
    let text = format!("{}\n", text.trim_end());
    expect_test::expect_file!["../../../../../docs/spire-compatibility.md"].assert_eq(&text);
}
