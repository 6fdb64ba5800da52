//! The files of `testkit/data`: tab-separated, the first line names the columns, a line that begins with `#` is a comment.

use std::path::{Path, PathBuf};

/// What is said of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is there; `by` names a test that shows it.
    Done,
    /// It is recognised and refused; `by` names the feature that is missing.
    NotYet,
    /// It deliberately behaves otherwise; `by` is the reason.
    Different,
}

/// One row of a file.
#[derive(Debug, Clone)]
pub struct Row {
    cells: Vec<(&'static str, &'static str)>,
    place: String,
}

impl Row {
    /// What stands in this column.
    pub fn get(&self, column: &str) -> &'static str {
        let found = self.cells.iter().find(|(name, _)| *name == column);
        found.unwrap_or_else(|| panic!("{}: there is no column `{column}`", self.place)).1
    }

    /// File and line.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The file, without its ending.
    pub fn file(&self) -> &str {
        self.place.split('.').next().unwrap_or_default()
    }

    /// Our status.
    pub fn status(&self) -> Status {
        match self.get("status") {
            "done" => Status::Done,
            "not yet" => Status::NotYet,
            "different" => Status::Different,
            other => panic!("{}: `{other}` is no status", self.place),
        }
    }
}

/// Every file of the folder.
pub const FILES: &[&str] =
    &["server-configuration", "agent-configuration", "rpcs", "commands", "flags", "environment", "texts", "log-lines"];

/// The rows of a file.
pub fn rows(name: &str) -> Vec<Row> {
    assert!(FILES.contains(&name), "`{name}` is among the files");
    let text = std::fs::read_to_string(folder().join(name).with_extension("tsv")).unwrap();
    // As long as the process: rows are handed around freely.
    let text: &'static str = Box::leak(text.into_boxed_str());
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    let columns: Vec<&str> = lines.next().unwrap().1.split('\t').collect();
    let row = |(number, line): (usize, &'static str)| {
        let place = format!("{name}.tsv:{}", number + 1);
        let cells: Vec<&str> = line.split('\t').collect();
        assert_eq!(cells.len(), columns.len(), "{place}: as many cells as columns");
        Row { cells: columns.iter().copied().zip(cells).collect(), place }
    };
    lines.map(row).collect()
}

/// The rows of all files.
pub fn all() -> Vec<Row> {
    FILES.iter().flat_map(|name| rows(name)).collect()
}

fn folder() -> PathBuf {
    root().join("crates/testkit/data")
}

/// The checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_row_says_what_it_is_and_where_that_is_from() {
    for row in all() {
        row.status();
        assert!(!row.get("by").is_empty() && !row.get("source").is_empty(), "{}: `by` and `source` are never empty", row.place());
        assert!(row.cells.iter().all(|(_, cell)| cell.trim() == *cell), "{}: no blanks around a cell", row.place());
    }
    let in_folder = std::fs::read_dir(folder()).unwrap().filter(|f| {
        let path = f.as_ref().unwrap().path();
        path.extension().is_some_and(|e| e == "tsv")
    });
    assert_eq!(in_folder.count(), FILES.len(), "a file of the folder is not among those that are read");
}
