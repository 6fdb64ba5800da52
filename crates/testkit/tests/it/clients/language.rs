//! The languages, and how the program of each is started. A new one is a line in the list.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::prepared;

/// A language with a client program in `testkit/clients/`.
pub(super) struct Language {
    pub(super) name: &'static str,
    /// The executable and what stands before the command.
    words: fn() -> Vec<PathBuf>,
    /// Whether its library tells the program of a denial on a stream that was good before.
    pub(super) reports_denial: bool,
    pub(super) without_own_bundle: WithoutOwnBundle,
}

/// What a library makes of an X509-SVID that comes without the bundle of its own trust domain.
pub(super) enum WithoutOwnBundle {
    /// It is no X509-SVID.
    NoIdentity,
    /// It is one, and nobody of that trust domain can be verified.
    NoAuthorities,
}

/// Every language of the guides.
pub(super) const LANGUAGES: &[Language] = &[
    Language {
        name: "go",
        words: || vec![prepared("COUNTERSIGN_TEST_GO_CLIENT", "go-client")],
        reports_denial: true,
        without_own_bundle: WithoutOwnBundle::NoAuthorities,
    },
    Language {
        name: "python",
        words: || vec![prepared("COUNTERSIGN_TEST_PYTHON", "python/bin/python"), source("python/client.py")],
        reports_denial: false,
        without_own_bundle: WithoutOwnBundle::NoIdentity,
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

/// A file in `testkit/clients/`.
fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(path)
}
