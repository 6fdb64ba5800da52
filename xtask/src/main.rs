fn main() { let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".."); generate::generate(&root.join("crates/wire/proto"), &root.join("crates/wire/src/gen")).unwrap(); }
mod generate;
