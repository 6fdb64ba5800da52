//! Files that cannot grow: what is nearest to a full disk and needs no rights, so that it works wherever tests run.
//!
//! Beyond the limit (`RLIMIT_FSIZE`) the kernel writes what still fits and then refuses, as a full disk does; it says
//! `EFBIG` instead of `ENOSPC`. The limit is the whole process's, so such a test starts itself again in a process of its own.

use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Tells a test that it runs in the process of its own.
const ALONE: &str = "COUNTERSIGN_TEST_ALONE";

/// True in the process of the test's own, where the limit may be set. Elsewhere this starts that process, waits for it,
/// ends the test if it failed there, and is false. `test` is the full name, as the test runner lists it.
#[expect(clippy::panic, reason = "ends the test")]
pub fn alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let Ok(program) = std::env::current_exe() else { panic!("the test has no program") };
    // Unless it is ignored, the signal that comes with the refusal ends the process.
    let output =
        Command::new("sh").args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(program).args(["--exact", test]).env(ALONE, "1").output();
    let Ok(output) = output else { panic!("there is no shell to start `{test}` with") };
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // A name that fits no test would pass with nothing done.
    if !output.status.success() || !stdout.contains("1 passed") {
        panic!("in a process of its own, {}:\n{stdout}\n{stderr}", output.status);
    }
    false
}

/// Lets no file of this process grow beyond this size, or lifts the limit.
#[expect(clippy::panic, reason = "ends the test")]
pub fn limit(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    if let Err(error) = setrlimit(Resource::Fsize, Rlimit { current: bytes.or(maximum), maximum }) {
        panic!("the limit cannot be set: {error}");
    }
}
