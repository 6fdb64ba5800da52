//! The languages, how the program of each is started, and what is particular about its library. A new one is an item of
//! the list.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::prepared;

/// A language with a client program in `testkit/clients/`.
pub(super) struct Language {
    pub(super) name: &'static str,
    /// The executable and what stands before the command.
    words: fn() -> Vec<PathBuf>,
    pub(super) taken_away: TakenAway,
    pub(super) without_own_bundle: WithoutOwnBundle,
    pub(super) ended: Ended,
}

/// What a running program learns, and still has, when its entry is deleted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TakenAway {
    /// Its library tells it nothing. It keeps its certificate until that ends.
    Unsaid,
    /// Its library reports the denial. It keeps its certificate until that ends.
    Told,
    /// Its library reports the denial and has no certificate any more.
    Withdrawn,
}

/// What a library makes of an X509-SVID that comes without the bundle of its own trust domain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WithoutOwnBundle {
    /// It is no X509-SVID, and a running program is told so.
    Refused,
    /// It is no X509-SVID, and a running program is told nothing: it keeps the one it has.
    RefusedUnsaid,
    /// It is one, and nobody of that trust domain can be verified.
    NoAuthorities,
}

/// What a program does with its certificate once that has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It shows it, and its peers refuse it.
    Shown,
    /// It does not show it, and says this.
    Withheld(&'static str),
}

/// Every language of the guides.
pub(super) const LANGUAGES: &[Language] = &[
    Language {
        name: "go",
        words: || vec![prepared("COUNTERSIGN_TEST_GO_CLIENT", "go-client")],
        taken_away: TakenAway::Told,
        without_own_bundle: WithoutOwnBundle::NoAuthorities,
        ended: Ended::Shown,
    },
    Language {
        name: "java",
        words: || vec![installed("java"), "-jar".into(), prepared("COUNTERSIGN_TEST_JAVA", "java/client.jar")],
        taken_away: TakenAway::Told,
        without_own_bundle: WithoutOwnBundle::Refused,
        ended: Ended::Shown,
    },
    Language {
        name: "node",
        words: || vec![installed("node"), prepared("COUNTERSIGN_TEST_NODE", "node/client.js")],
        taken_away: TakenAway::Withdrawn,
        without_own_bundle: WithoutOwnBundle::Refused,
        ended: Ended::Withheld("the X509-SVID expired"),
    },
    Language {
        name: "python",
        words: || vec![prepared("COUNTERSIGN_TEST_PYTHON", "python/bin/python"), source("python/client.py")],
        taken_away: TakenAway::Unsaid,
        without_own_bundle: WithoutOwnBundle::Refused,
        ended: Ended::Shown,
    },
    Language {
        name: "rust",
        words: || vec![prepared("COUNTERSIGN_TEST_RUST_CLIENT", "rust-client")],
        taken_away: TakenAway::Withdrawn,
        without_own_bundle: WithoutOwnBundle::RefusedUnsaid,
        ended: Ended::Withheld("no suitable svid"),
    },
];

impl Language {
    pub(super) fn command(&self) -> Command {
        let words = (self.words)();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    /// What `unix:path` says of its process: a virtual environment and `/etc/alternatives` are links.
    pub(super) fn executable(&self) -> PathBuf {
        (self.words)()[0].canonicalize().unwrap()
    }

    pub(super) fn spiffe_id(&self) -> String {
        format!("spiffe://example.org/{}", self.name)
    }
}

/// A program of the machine.
fn installed(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("`{program}` is missing: run the tests with `cargo xtask test`, which asks for it"))
}

/// A file in `testkit/clients/`.
fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(path)
}
