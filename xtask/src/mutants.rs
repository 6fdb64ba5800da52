//! Breaks the code in every way that a tool knows, one at a time, and sees whether a test notices.

use std::path::Path;

use crate::{Failure, prepare};

/// What notices in the identity core: its own tests, all of them.
const IDENTITY: &[&str] = &["--package", "countersign-identity", "--timeout", "60", "--", "--lib", "--test", "it"];
/// What notices in the policy room: the tests beside it, and the golden file of the table. Those of the whole server notice
/// most of it as well, and each attempt would wait a minute for them.
const POLICY: &[&str] = &["--package", "countersign-server", "--timeout", "120", "--cargo-arg=--lib", "--", "policy"];

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
            arguments.extend(["--file", "crates/server/src/policy/**"]);
            arguments.extend(POLICY);
        }
        ["policy", file] => {
            arguments.extend(["--file", *file]);
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
