//! Writes the seeds of the fuzz targets' corpora anew: `cargo xtask fuzz seeds`.

fn main() -> Result<(), countersign_testkit::domain::Anyhow> {
    countersign_testkit::fuzz::seeds::write(&countersign_testkit::fuzz::directory())
}
