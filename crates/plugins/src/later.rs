//! SPIRE's plugins that are still to come: known by name, refused, and what to do meanwhile.

use countersign_config::{ConfigError, Section};

/// Plugins of SPIRE's that this build does not have.
const LATER: &[(&str, &[&str], &str)] = &[
    (
        "KeyManager",
        &["aws_kms", "azure_key_vault", "gcp_kms", "hashicorp_vault"],
        "use `KeyManager \"disk\"` meanwhile; its file holds the keys, so keep it on an encrypted disk",
    ),
    (
        "NodeAttestor",
        &["aws_iid", "azure_imds", "azure_msi", "gcp_iit", "http_challenge", "k8s_psat", "sshpop", "tpm_devid"],
        "join nodes with `x509pop` or with a join token meanwhile",
    ),
    ("WorkloadAttestor", &["docker", "k8s", "slurm", "systemd"], "tell workloads apart by user with `unix` meanwhile"),
    ("WorkloadAttestor", &["windows"], "agents run on Linux; use `unix`"),
    (
        "UpstreamAuthority",
        &["aws_pca", "awssecret", "cert-manager", "disk", "ejbca", "gcp_cas", "spire", "vault"],
        "leave the block out; the server signs with its own authority meanwhile",
    ),
    ("Notifier", &["gcs_bundle", "k8sbundle"], "leave the block out and copy the bundle with `bundle show` meanwhile"),
    (
        "BundlePublisher",
        &["aws_rolesanywhere_trustanchor", "aws_s3", "azure_blob", "gcp_cloudstorage", "k8s_configmap"],
        "leave the block out and copy the bundle with `bundle show` meanwhile",
    ),
    ("CredentialComposer", &["uniqueid"], "leave the block out; credentials are issued without what it adds"),
    (
        "SVIDStore",
        &["aws_secretsmanager", "gcp_secretmanager"],
        "leave the block out and write the SVID to files with `fetch x509 --write` meanwhile",
    ),
];

/// Refuses a plugin that is not built in: as one of SPIRE's that is to come, or as one that nobody knows.
pub fn refuse(kind: &str, name: &str, built_in: &[&str], block: &Section) -> ConfigError {
    if let Some((_, _, meanwhile)) = LATER.iter().find(|(of, names, _)| *of == kind && names.contains(&name)) {
        return block.error(format!("plugin \"{kind}\"/{name:?} is recognised but not supported yet")).hint(*meanwhile);
    }
    let to_come: Vec<&str> = LATER.iter().filter(|(of, _, _)| *of == kind).flat_map(|(_, names, _)| names.iter().copied()).collect();
    let known = if built_in.is_empty() { "none is built in".to_owned() } else { format!("built-in are {}", built_in.join(", ")) };
    block.error(format!("no built-in plugin {name:?} for type {kind:?}")).hint(format!("{known}; to come are {}", to_come.join(", ")))
}
