//! Two container images from nothing but the statically linked binary: OCI layouts in a file each, which `docker load`,
//! `podman load` and `ctr images import` take as they are. Paths, users and entry points are those of SPIRE's images, so that
//! compose files and manifests need another image name and nothing else.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{Failure, run, say};

/// Where programs are, and where relative paths begin (`conf/server/server.conf`), as in SPIRE's images.
const HOME: &str = "opt/spire";
/// What Cargo calls in the place of the compiler. Libraries and procedural macros stay as they are.
const WRAPPER: &str = "\
#!/bin/sh
case \" $* \" in
*' --crate-name countersign '*' --crate-type bin '*) exec \"$@\" -C target-feature=+crt-static -C strip=debuginfo ;;
esac
exec \"$@\"
";
/// The same content gives the same bytes whenever it is built.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// An image, as far as the two differ.
struct Image {
    name: &'static str,
    /// Under which name the binary is called.
    called: &'static str,
    uid: u64,
    passwd: &'static str,
    group: &'static str,
    /// Directories that it writes to, or finds its files in.
    directories: &'static [&'static str],
}

const IMAGES: &[Image] = &[
    Image {
        name: "countersign-server",
        called: "spire-server",
        uid: 1000,
        passwd: "root:x:0:0:root:/:\ncountersign:x:1000:1000:countersign:/:\n",
        group: "root:x:0:\ncountersign:x:1000:\n",
        directories: &[
            "etc/spire/server",
            "opt/spire/data",
            "run/spire/server/private",
            "tmp/spire-server/private",
            "var/lib/spire/server",
        ],
    },
    Image {
        name: "countersign-agent",
        called: "spire-agent",
        // It looks into the processes of others, and its socket's directory belongs to the node.
        uid: 0,
        passwd: "root:x:0:0:root:/:\n",
        group: "root:x:0:\n",
        directories: &["etc/spire/agent", "opt/spire/data", "run/spire/agent/public", "tmp/spire-agent/public", "var/lib/spire/agent"],
    },
];

/// Which profile of Cargo's the binary is built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As the tests are: in seconds after them.
    Dev,
    /// As it is delivered.
    Release,
}

/// Writes both images and returns the folder they are in.
pub(crate) fn write(root: &Path, profile: Profile) -> Result<PathBuf, Failure> {
    let binary = std::fs::read(link(root, profile)?)?;
    let folder = root.join("target/images").join(profile.folder());
    std::fs::create_dir_all(&folder)?;
    for image in IMAGES {
        let path = folder.join(format!("{}.tar", image.name));
        let archive = archive(image, &layer(image, &binary)?)?;
        std::fs::write(&path, &archive)?;
        say(&format!("{} ({} bytes) is written; `docker load --input` takes it", path.display(), archive.len()));
    }
    Ok(folder)
}

impl Profile {
    fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// Builds the binary with the C library inside. Only this last step is another one than Cargo's own: what comes from the
/// registry is the same either way, and in the profile of the tests it is there already.
fn link(root: &Path, profile: Profile) -> Result<PathBuf, Failure> {
    let place = root.join("target/images").join(profile.folder());
    std::fs::create_dir_all(&place)?;
    let wrapper = place.join("rustc");
    std::fs::write(&wrapper, WRAPPER)?;
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))?;
    // All of the workspace, as the tests are built; the product alone, as it is delivered. Features, and so artifacts, are theirs.
    let of: &[&str] = match profile {
        Profile::Dev => &["--workspace"],
        Profile::Release => &["--package", "countersign", "--release"],
    };
    let arguments = [&["build", "--locked", "--bin", "countersign"], of].concat();
    run("cargo", &arguments, &[("RUSTC_WORKSPACE_WRAPPER", &wrapper)])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let binary = place.join("countersign");
    // At once: the next ordinary build puts its own there.
    std::fs::copy(target.join(profile.folder()).join("countersign"), &binary)?;
    Ok(binary)
}

/// The file system of an image.
fn layer(image: &Image, binary: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut made: Vec<String> = Vec::new();
    for directory in image.directories.iter().copied().chain(["opt/spire/bin"]) {
        let mut path = String::new();
        for part in directory.split('/') {
            path = format!("{path}{part}/");
            if made.contains(&path) {
                continue;
            }
            let is_own = path == format!("{directory}/") && directory != "opt/spire/bin" || path == "opt/spire/";
            let mode = if path == "tmp/" { 0o1777 } else { 0o755 };
            let mut header = header(tar::EntryType::Directory, mode, if is_own { image.uid } else { 0 }, 0);
            tar.append_data(&mut header, &path, std::io::empty())?;
            made.push(path.clone());
        }
    }
    for (path, mode, content) in [
        ("etc/passwd", 0o644, image.passwd.as_bytes()),
        ("etc/group", 0o644, image.group.as_bytes()),
        ("opt/spire/bin/countersign", 0o755, binary),
    ] {
        let mut header = header(tar::EntryType::Regular, mode, 0, content.len().try_into()?);
        tar.append_data(&mut header, path, content)?;
    }
    let mut header = header(tar::EntryType::Symlink, 0o777, 0, 0);
    tar.append_link(&mut header, format!("{HOME}/bin/{}", image.called), "countersign")?;
    Ok(tar.into_inner()?)
}

fn header(kind: tar::EntryType, mode: u32, owner: u64, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// Everything in one archive: blobs by their digest, and what leads to them, in OCI's form and in Docker's older one.
fn archive(image: &Image, layer: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| -> Result<(), Failure> {
        let mut header = header(tar::EntryType::Regular, 0o644, 0, content.len().try_into()?);
        Ok(tar.append_data(&mut header, path, content)?)
    };
    let mut blob = |kind: &str, content: &[u8]| -> Result<(Value, String), Failure> {
        let digest: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        let path = format!("blobs/sha256/{digest}");
        add(&path, content)?;
        let kind = format!("application/vnd.oci.image.{kind}");
        Ok((json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": content.len() }), path))
    };
    let (layer, layer_path) = blob("layer.v1.tar", layer)?;
    let config = json!({
        "architecture": architecture()?, "os": "linux", "created": CREATED,
        "config": {
            "User": format!("{0}:{0}", image.uid),
            "Entrypoint": [format!("/{HOME}/bin/{}", image.called), "run"],
            "WorkingDir": format!("/{HOME}"),
            "Env": [format!("PATH=/{HOME}/bin")],
        },
        "rootfs": { "type": "layers", "diff_ids": [layer.get("digest")] },
        "history": [{ "created": CREATED, "created_by": "cargo xtask image" }],
    });
    let (config, config_path) = blob("config.v1+json", config.to_string().as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer],
    });
    let (mut manifest, _) = blob("manifest.v1+json", manifest.to_string().as_bytes())?;
    let tag = env!("CARGO_PKG_VERSION");
    let annotations =
        json!({ "org.opencontainers.image.ref.name": tag, "io.containerd.image.name": format!("docker.io/library/{}:{tag}", image.name) });
    if let Some(manifest) = manifest.as_object_mut() {
        manifest.insert("annotations".to_owned(), annotations);
    }
    add("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes())?;
    add("index.json", json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string().as_bytes())?;
    let docker = json!([{ "Config": config_path, "RepoTags": [format!("{}:{tag}", image.name)], "Layers": [layer_path] }]);
    add("manifest.json", docker.to_string().as_bytes())?;
    Ok(tar.into_inner()?)
}

/// This machine's architecture by its name in images.
fn architecture() -> Result<&'static str, Failure> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => Err(format!("images have no name for the architecture `{other}`").into()),
    }
}
