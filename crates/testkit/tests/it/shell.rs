//! Completions in the real shells, and manual pages in a real formatter.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::countersign;

/// What a program prints on both channels; it must succeed and be installed.
fn output(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> String {
    let program = program.as_ref();
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{program:?}: {e}; `cargo xtask test` installs it"));
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?} {arguments:?}: {text}");
    text
}

fn script(directory: &Path, shell: &str) -> String {
    let path = directory.join(shell);
    std::fs::write(&path, output(countersign(), &["completions", shell])).unwrap();
    path.display().to_string()
}

#[test]
fn bash_completes_commands_options_and_values() {
    let directory = tempfile::tempdir().unwrap();
    let script = script(directory.path(), "bash");
    let complete = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
        let text = format!(
            "set -eu; source {script}; COMP_WORDS=({line}); COMP_CWORD={}; _countersign countersign '{last}' '{before}' || true; echo \"${{COMPREPLY[*]}}\"",
            words.len() - 1
        );
        output("bash", &["--norc", "-c", &text]).trim().to_owned()
    };
    assert_eq!(complete("countersign entry cr"), "create");
    assert_eq!(complete("countersign up --de"), "--demo");
    assert_eq!(complete("countersign entry show --output y"), "yaml");
    assert_eq!(complete("countersign demo"), "", "hidden parts are not completed");
}

#[test]
fn fish_completes_commands_options_and_values() {
    let directory = tempfile::tempdir().unwrap();
    let script = script(directory.path(), "fish");
    let complete = |line: &str| output("fish", &["--no-config", "-c", &format!("source {script}; complete -C '{line}'")]);
    assert!(complete("countersign entry cr").starts_with("create\t"));
    assert!(complete("countersign up --de").starts_with("--demo\t"));
    assert!(complete("countersign entry show --output ").contains("yaml\t"));
    assert_eq!(complete("countersign demo"), "");
}

#[test]
fn zsh_takes_the_completions() {
    let directory = tempfile::tempdir().unwrap();
    let script = script(directory.path(), "zsh");
    let load =
        format!("autoload -Uz compinit && compinit -D -u && source {script} && print -r -- $_comps[countersign] $(whence -w _countersign)");
    assert_eq!(output("zsh", &["-f", "-c", &load]).trim(), "_countersign _countersign: function");
    // As a file of the search path, which is how packages install it.
    std::fs::rename(&script, directory.path().join("_countersign")).unwrap();
    let found =
        format!("fpath=({} $fpath); autoload -Uz compinit && compinit -D -u; print -r -- $_comps[countersign]", directory.path().display());
    assert_eq!(output("zsh", &["-f", "-c", &found]).trim(), "_countersign");
}

#[test]
fn every_command_has_a_manual_page_that_formatters_take_without_complaint() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    output(countersign(), &["man", "--dir", &pages.display().to_string()]);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&pages).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 50, "{files:?}");
    for file in &files {
        let path = file.display().to_string();
        let complaints = output("mandoc", &["-Tlint", "-Wwarning,stop", &path]);
        assert_eq!(complaints, "", "{path}");
    }
    // Who builds packages sets the time of all files made, so that a build can be repeated.
    let repeated = |name: &str| {
        let pages = directory.path().join(name);
        let made = Command::new(countersign()).args(["man", "--dir"]).arg(&pages).env("SOURCE_DATE_EPOCH", "1767312245").output().unwrap();
        assert!(made.status.success());
        std::fs::read_to_string(pages.join("countersign.1")).unwrap()
    };
    assert!(repeated("a").contains("\n.TH countersign 1 2026-01-02 "), "{}", repeated("a"));
    assert_eq!(repeated("a"), repeated("b"));
    let page = |name: &str| output("mandoc", &["-Thtml", &pages.join(name).display().to_string()]);
    let create = page("countersign-entry-create.1");
    assert!(create.contains("TYPE:VALUE") && create.contains("COUNTERSIGN_SERVER_SOCKET"), "{create}");
    assert!(page("countersign.1").contains("countersign-up(1)"));
    assert!(!pages.join("countersign-demo-program.1").exists());
}
