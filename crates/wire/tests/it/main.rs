//! The committed code is what the .proto files say.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

#[path = "../../../../xtask/src/generate.rs"]
mod generate;

use std::collections::BTreeMap;
use std::path::Path;

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap())
        .map(|f| (f.file_name().into_string().unwrap(), std::fs::read(f.path()).unwrap()))
        .collect()
}

#[test]
fn generated_code_is_up_to_date() {
    let (crate_root, fresh) = (Path::new(env!("CARGO_MANIFEST_DIR")), tempfile::tempdir().unwrap());
    generate::generate(&crate_root.join("proto"), fresh.path()).unwrap();
    let (committed, fresh) = (files(&crate_root.join("src/gen")), files(fresh.path()));
    assert_eq!(committed.keys().collect::<Vec<_>>(), fresh.keys().collect::<Vec<_>>());
    for (name, text) in fresh {
        assert!(committed.get(&name) == Some(&text), "{name} is out of date: run `cargo xtask gen`");
    }
}
