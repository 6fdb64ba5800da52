//! What the fuzzer has found and what it began with, tried again in every test run; and that nothing which reads bytes from
//! outside is without a target.

use std::collections::BTreeSet;
use std::path::Path;

use countersign_testkit::fuzz::{Target, corpora, find, targets};

/// Most files of one corpus, and most bytes of one file: what is tried in every test run stays quick, and the checkout small.
const FILES_MAX: usize = 100;
const FILE_BYTES_MAX: u64 = 16 << 10;

/// Runs a target over its corpus; says what is wrong with the corpus itself.
fn replay(target: &Target) -> Result<(), String> {
    let corpus = corpora().join(target.name);
    let mut files: Vec<_> = std::fs::read_dir(&corpus)
        .map_err(|e| format!("target {} has no corpus: {e}; `cargo xtask fuzz seeds` makes one", target.name))?
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    if files.is_empty() || files.len() > FILES_MAX {
        return Err(format!("the corpus of {} has {} files, it should have 1 to {FILES_MAX}", target.name, files.len()));
    }
    for file in files {
        if file.metadata().unwrap().len() > FILE_BYTES_MAX {
            return Err(format!("{} is too large", file.display()));
        }
        let bytes = std::fs::read(&file).unwrap();
        let run = target.run;
        std::panic::catch_unwind(move || run(&bytes)).map_err(|_| format!("{} finds something, see above", file.display()))?;
    }
    Ok(())
}

#[test]
fn every_corpus_is_read_without_a_finding() {
    let complaints: Vec<String> = targets().iter().filter_map(|target| replay(target).err()).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn every_corpus_belongs_to_a_target() {
    for folder in std::fs::read_dir(corpora()).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        assert!(find(&name).is_some(), "the corpus `{name}` belongs to no target");
    }
    let names: BTreeSet<&str> = targets().iter().map(|t| t.name).collect();
    assert_eq!(names.len(), targets().len(), "two targets have one name");
}

/// The descriptors of every .proto file there is; a new file needs no mention.
fn descriptors() -> prost_types::FileDescriptorSet {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wire/proto");
    let files: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    assert!(files.len() >= 10, "only {files:?}");
    protox::compile(files, [directory]).unwrap()
}

#[test]
fn every_message_that_a_method_takes_has_a_target() {
    let mut declared = BTreeSet::new();
    for file in descriptors().file {
        let package = file.package.as_deref().filter(|p| !p.is_empty()).map(|p| format!("{p}.")).unwrap_or_default();
        for service in &file.service {
            declared.extend(service.method.iter().map(|method| format!("{package}{}.{}", service.name(), method.name())));
        }
    }
    assert!(declared.len() > 45, "only {declared:?}");
    let names: BTreeSet<String> = targets().iter().map(|t| t.name.to_owned()).collect();
    let without: Vec<&String> = declared.difference(&names).collect();
    assert!(
        without.is_empty(),
        "these methods take a message that no fuzz target sends; add a row to testkit/src/fuzz/calls.rs: {without:?}"
    );
    let gone: Vec<&String> =
        names.iter().filter(|n| n.contains(".v1.") || n.starts_with("Spiffe")).filter(|n| !declared.contains(*n)).collect();
    assert!(gone.is_empty(), "these targets name methods that nobody declares: {gone:?}");
}
