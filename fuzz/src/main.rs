//! The fuzzer: hands libFuzzer's bytes to the target that `COUNTERSIGN_FUZZ_TARGET` names. `cargo xtask fuzz` starts it.
#![no_main]

use std::sync::LazyLock;

use countersign_testkit::fuzz::{Target, find};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("COUNTERSIGN_FUZZ_TARGET").unwrap_or_default();
    find(&name).unwrap_or_else(|| panic!("there is no fuzz target `{name}`"))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
