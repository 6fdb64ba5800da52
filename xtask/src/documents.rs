//! The documents against the tree: every module has its place on the map, every link leads somewhere, every page is linked.

use std::path::{Path, PathBuf};

use crate::Failure;

/// Adds what the documents leave out or have wrong.
pub(crate) fn check(root: &Path, breaches: &mut Vec<String>) -> Result<(), Failure> {
    check_map(root, breaches)?;
    let mut pages = Vec::new();
    for item in std::fs::read_dir(root)? {
        pages.extend(Some(item?.path()).filter(|path| is_page(path)));
    }
    for folder in ["docs", "crates/plugins/src"] {
        collect(&root.join(folder), &mut pages)?;
    }
    pages.sort();
    let mut linked = Vec::new();
    for page in &pages {
        let here = page.parent().unwrap_or(root);
        for link in links(&std::fs::read_to_string(page)?) {
            match here.join(&link).canonicalize() {
                Ok(target) => linked.push(target),
                Err(_) => breaches.push(format!("{}: the link `{link}` leads nowhere", shown(root, page))),
            }
        }
    }
    for page in pages {
        // The front page is where one begins, and what lies beside it is found by its name.
        if page.parent() != Some(root) && !linked.contains(&page.canonicalize()?) {
            breaches.push(format!("{}: no page links to it", shown(root, &page)));
        }
    }
    Ok(())
}

/// Every module of a crate stands in its row of the table of rooms.
fn check_map(root: &Path, breaches: &mut Vec<String>) -> Result<(), Failure> {
    let map = std::fs::read_to_string(root.join("ARCHITECTURE.md"))?;
    for item in std::fs::read_dir(root.join("crates"))? {
        let folder = item?.path();
        let name = folder.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let Some(row) = map.lines().find(|line| line.starts_with(&format!("| `{name}` |"))) else {
            breaches.push(format!("ARCHITECTURE.md: the table of rooms has no row for `{name}`"));
            continue;
        };
        for item in std::fs::read_dir(folder.join("src"))? {
            let path = item?.path();
            let module = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default();
            let is_module = path.extension().is_some_and(|e| e == "rs") || path.join("mod.rs").is_file();
            if is_module && !["lib", "main", "tests"].contains(&module) && !row.contains(&format!("`{module}`")) {
                breaches.push(format!("ARCHITECTURE.md: the row of `{name}` does not name `{module}`"));
            }
        }
    }
    Ok(())
}

/// Targets of links inside the repository, without the place in the page.
fn links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let inside = targets.map(|(target, _)| target).filter(|target| !target.contains("://") && !target.starts_with('#'));
    inside.map(|target| target.split('#').next().unwrap_or_default().to_owned()).collect()
}

fn is_page(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "md")
}

fn collect(folder: &Path, pages: &mut Vec<PathBuf>) -> Result<(), Failure> {
    for item in std::fs::read_dir(folder)? {
        let path = item?.path();
        if path.is_dir() {
            collect(&path, pages)?;
        } else if is_page(&path) {
            pages.push(path);
        }
    }
    Ok(())
}

fn shown(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}
