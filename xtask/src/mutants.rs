//! Breaks the code in every way that a tool knows, one at a time, and sees whether a test notices.

use std::path::Path;

use crate::{Failure, prepare};

/// What notices in the identity core: its own tests, all of them.
const IDENTITY: &[&str] = &["--package", "countersign-identity", "--timeout", "60", "--", "--lib", "--test", "it"];
/// What notices in the policy room: the server's tests of who may call what, and of what is issued to whom.
const POLICY: &[&str] = &["--", "--lib", "--test", "it", "--", "policy", "refusals", "services", "nodes", "issuance", "minting", "journal"];

/// `[FILE]`, or `policy [FILE]`.
pub(crate) fn run(root: &Path, words: &[String]) -> Result<(), Failure> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let tool = prepare::cargo_mutants(root)?.display().to_string();
    // What a failure shrinks to does not matter here, and debug information costs more than it helps.
    let environment = [("PROPTEST_MAX_SHRINK_ITERS", Path::new("0")), ("CARGO_PROFILE_DEV_DEBUG", Path::new("0"))];
    let mut arguments = vec!["mutants", "--output", "target/mutants"];
    match words.as_slice() {
        [] => arguments.extend(IDENTITY),
        ["policy"] => {
            arguments.extend(["--package", "countersign-server", "--file", "crates/server/src/policy/**", "--timeout", "300"]);
            arguments.extend(POLICY);
        }
        ["policy", file] => {
            arguments.extend(["--package", "countersign-server", "--file", *file, "--timeout", "300"]);
            arguments.extend(POLICY);
        }
        [file] => {
            arguments.extend(["--file", *file]);
            arguments.extend(IDENTITY);
        }
        _ => return Err("say `mutants`, `mutants FILE`, `mutants policy` or `mutants policy FILE`".into()),
    }
    crate::run(&tool, &arguments, &environment)
}
