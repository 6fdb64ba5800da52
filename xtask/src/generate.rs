//! Generates the Rust code of `crates/wire/proto` into `crates/wire/src/gen`, without an installed `protoc`.

use std::path::Path;

use prost::Message as _;

/// The .proto files, in the order of the generated modules' documentation.
const FILES: &[&str] = &[
    "workload.proto",
    "types.proto",
    "server_agent.proto",
    "server_bundle.proto",
    "server_entry.proto",
    "server_svid.proto",
    "server_debug.proto",
    "server_logger.proto",
    "server_trustdomain.proto",
    "server_localauthority.proto",
    "agent_debug.proto",
    "agent_logger.proto",
    "agent_delegated_identity.proto",
    "google_rpc.proto",
    "envoy_type.proto",
    "envoy_core.proto",
    "envoy_tls.proto",
    "envoy_discovery.proto",
    "envoy_secret.proto",
    "countersign_agent.proto",
    "countersign_agent_admin.proto",
    "countersign_entry.proto",
    "countersign_journal.proto",
];

/// What the public socket of an agent serves, by the name of its descriptors, and its .proto files, those of what is wrapped in its
/// answers too.
const REFLECTED: &[(&str, &[&str])] = &[("workload.fds", &["workload.proto"]), ("sds.fds", &["envoy_secret.proto", "envoy_tls.proto"])];

/// Writes the generated code below `out`, one file a package, and descriptors: of an agent's public services for reflection, each
/// alone, and of everything.
pub(crate) fn generate(proto: &Path, out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(out)?;
    let all = protox::compile(FILES, [proto])?;
    let mut described = all.clone();
    // Comments are half of it, and nobody reads them there.
    described.file.iter_mut().for_each(|file| file.source_code_info = None);
    std::fs::write(out.join("all.fds"), described.encode_to_vec())?;
    tonic_prost_build::configure().out_dir(out).emit_rerun_if_changed(false).compile_fds(all)?;
    for (name, files) in REFLECTED {
        std::fs::write(out.join(name), protox::compile(*files, [proto])?.encode_to_vec())?;
    }
    Ok(())
}
