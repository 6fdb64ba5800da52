//! What the tests need from outside: Debian packages, real clients in the languages of those who use us, and images,
//! inside the target folder. Fails loudly when something is missing; never skips.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Failure, run, say};

/// Debian packages, with a program or file of each by which its presence is known.
const DEBIAN: &[(&str, &str)] = &[
    ("openssl", "openssl"),
    ("python3", "python3"),
    (VENV, "python3"),
    ("gcc", "cc"),
    ("util-linux", "unshare"),
    ("procps", "pgrep"),
    ("default-jdk-headless", "javac"),
    ("maven", "mvn"),
    ("nodejs", "node"),
    ("npm", "npm"),
    ("nginx", "nginx"),
    ("libnginx-mod-http-js", "/usr/lib/nginx/modules/ngx_http_js_module.so"),
    ("postgresql", "postgres"),
    ("postgresql-client", "psql"),
    ("bsdutils", "script"),
    ("zsh", "zsh"),
    ("fish", "fish"),
    ("mandoc", "mandoc"),
    ("docker.io", "dockerd"),
];
/// Known by what Python can import.
const VENV: &str = "python3-venv";
/// Packages whose daemons Debian starts when they are installed, with the ports they take.
const DAEMONS: &[(&str, &str)] = &[("nginx", "nginx on port 80"), ("postgresql", "PostgreSQL on port 5432"), ("docker.io", "Docker")];
/// Where Debian keeps PostgreSQL's programs, each version in a directory of its own.
const POSTGRESQL: &str = "/usr/lib/postgresql";
/// What Debian asks whether a daemon may be started when its package is installed.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Second line of our answer, by which one that was left behind is known.
const POLICY_MARK: &str = "# Made by `cargo xtask`, and of no effect once it has ended.";

/// Version of the dependency checker.
const CARGO_DENY: &str = "0.20.2";
/// Version of what makes mutants; another one makes others.
const CARGO_MUTANTS: &str = "27.1.0";

/// The oldest Go that the Go client's `go.mod` lets build it: 1.25.
const GO_OLDEST: u32 = 25;
/// The oldest Node with the cryptography that the `jose` package stands on.
const NODE_OLDEST: u32 = 20;

/// Where the prepared parts are, for the tests.
pub(crate) struct Prepared {
    pub(crate) environment: Vec<(&'static str, PathBuf)>,
}

/// Prepares everything.
pub(crate) fn everything(root: &Path) -> Result<Prepared, Failure> {
    // Before all that takes minutes: where Debian's are too old, they have to come from elsewhere.
    go_is_new_enough(root)?;
    if has("node") {
        node_is_new_enough()?;
    }
    debian()?;
    node_is_new_enough()?;
    let python = python_packages(root, "python")?.join("python");
    let envoy = python_packages(root, "envoy")?.join("envoy");
    let go = go_client(root)?;
    let rust = rust_client(root)?;
    let java = java_client(root)?;
    let node = node_client(root)?;
    let images = crate::image::write(root, crate::image::Profile::Dev)?;
    Ok(Prepared {
        environment: vec![
            ("COUNTERSIGN_TEST_PYTHON", python),
            ("COUNTERSIGN_TEST_ENVOY", envoy),
            ("COUNTERSIGN_TEST_GO_CLIENT", go),
            ("COUNTERSIGN_TEST_RUST_CLIENT", rust),
            ("COUNTERSIGN_TEST_JAVA", java),
            ("COUNTERSIGN_TEST_NODE", node),
            ("COUNTERSIGN_TEST_IMAGES", images),
        ],
    })
}

fn has(program: &str) -> bool {
    let mut directories: Vec<PathBuf> = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    // Where programs are that users seldom start, so that it is in no user's path.
    directories.push(PathBuf::from("/usr/sbin"));
    let versions = std::fs::read_dir(POSTGRESQL).into_iter().flatten().flatten();
    directories.extend(versions.map(|version| version.path().join("bin")));
    directories.iter().any(|directory| directory.join(program).is_file())
}

/// As long as it lives, packages that are installed start no daemon: the tests start their own, on free ports, and the
/// machine's ports are the user's.
struct NoDaemons {
    is_ours: bool,
}

impl NoDaemons {
    fn begin() -> Result<Self, Failure> {
        use std::os::unix::fs::PermissionsExt as _;
        match std::fs::read_to_string(POLICY) {
            Ok(policy) if policy.contains(POLICY_MARK) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            _ => return Ok(Self { is_ours: false }),
        }
        let name = std::fs::read_to_string("/proc/self/comm")?;
        std::fs::write(POLICY, policy(std::process::id(), name.trim_end()))?;
        let policy = Self { is_ours: true };
        std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755))?;
        Ok(policy)
    }
}

/// Forbids daemons for as long as the process of this number and name runs: who is killed removes no file.
fn policy(pid: u32, name: &str) -> String {
    format!("#!/bin/sh\n{POLICY_MARK}\n[ \"$(cat /proc/{pid}/comm 2>/dev/null)\" = '{name}' ] && exit 101\nexit 0\n")
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}

fn is_installed(package: &str, program: &str) -> bool {
    let imports = || Command::new("python3").args(["-c", "import ensurepip"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    has(program) && (package != VENV || imports())
}

/// The command for whoever is not root, and what it does beside.
fn command_for(missing: &[&str]) -> String {
    let install = format!("sudo apt-get update && sudo apt-get install -y --no-install-recommends {}", missing.join(" "));
    let started: Vec<&str> = DAEMONS.iter().filter(|(package, _)| missing.contains(package)).map(|(_, daemon)| *daemon).collect();
    if started.is_empty() {
        return format!("run `{install}` and try again");
    }
    let started = started.join(" and ");
    format!("run `{install}` and try again; this starts {started}, which the tests do not need: stop and disable them if you like")
}

/// Installs missing Debian packages as root; otherwise says the one command that does.
fn debian() -> Result<(), Failure> {
    let mut missing: Vec<&str> =
        DEBIAN.iter().filter(|(package, program)| !is_installed(package, program)).map(|(package, _)| *package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    say(&format!("These Debian packages are needed and missing: {list}"));
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n");
    if !is_root {
        return Err(command_for(&missing).into());
    }
    run("apt-get", &["update"], &[])?;
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(missing);
    let _policy = NoDaemons::begin()?;
    run("apt-get", &arguments, &[])
}

/// A virtual environment with packages of PyPI in the versions that a client's folder pins, and where its programs are: the
/// SPIFFE client of Python with what it needs, or Envoy.
fn python_packages(root: &Path, client: &str) -> Result<PathBuf, Failure> {
    let requirements = root.join("crates/testkit/clients").join(client).join("requirements.txt");
    let environment = root.join("target/clients").join(client);
    let programs = environment.join("bin");
    let python = programs.join("python");
    let (installed, wanted) = (environment.join("requirements.installed"), std::fs::read(&requirements)?);
    if std::fs::read(&installed).is_ok_and(|found| found == wanted) {
        return Ok(programs);
    }
    run("python3", &["-m", "venv", "--clear", &environment.display().to_string()], &[])?;
    let file = requirements.display().to_string();
    // A dependency that is not in the file would be of any version: `--no-deps` and `pip check` let none in.
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--requirement", &file];
    run(&python.display().to_string(), &install, &[])?;
    run(&python.display().to_string(), &["-m", "pip", "check", "--quiet", "--disable-pip-version-check"], &[])?;
    std::fs::write(installed, wanted)?;
    Ok(programs)
}

/// Asked in the client's folder, where a newer Go than the one installed may be chosen, or fetched.
fn go_is_new_enough(root: &Path) -> Result<(), Failure> {
    let answer = Command::new("go").args(["env", "GOVERSION"]).current_dir(root.join("crates/testkit/clients/go")).output();
    let version = answer.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    if go_minor(&version).is_some_and(|minor| minor >= GO_OLDEST) {
        return Ok(());
    }
    let found = if version.is_empty() { "none is found".to_owned() } else { format!("`go` is {version}") };
    Err(format!(
        "Go 1.{GO_OLDEST} or newer is needed for the tests with go-spiffe, {found}; install one from https://go.dev/dl/ and try again"
    )
    .into())
}

/// Of `go1.25.3`, 25.
fn go_minor(version: &str) -> Option<u32> {
    version.split_once("go1.")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn node_is_new_enough() -> Result<(), Failure> {
    let version = Command::new("node").arg("--version").output().map_err(|e| format!("cannot run `node`: {e}"))?.stdout;
    let version = String::from_utf8_lossy(&version).trim().to_owned();
    let major = version.strip_prefix('v').and_then(|v| v.split('.').next()).and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major >= NODE_OLDEST) {
        return Ok(());
    }
    let source = "install one from https://nodejs.org/en/download and try again";
    Err(format!("Node {NODE_OLDEST} or newer is needed, `node` is {version} (Debian 12 has 18); {source}").into())
}

/// The program in `testkit/clients/go`, the source of which says which Go it needs, built with the go-spiffe library.
fn go_client(root: &Path) -> Result<PathBuf, Failure> {
    let source = root.join("crates/testkit/clients/go");
    let binary = root.join("target/clients/go-client");
    say("$ go build (crates/testkit/clients/go)");
    let built = Command::new("go")
        .args(["build", "-trimpath", "-o"])
        .arg(&binary)
        .arg(".")
        .current_dir(&source)
        .env("GOFLAGS", "-mod=readonly")
        .stdin(Stdio::null())
        .status()
        .map_err(|e| format!("cannot run `go`: {e}"))?;
    if built.success() { Ok(binary) } else { Err("building the Go client failed".into()) }
}

/// The program in `testkit/clients/rust`, built with the whole workspace so that nothing is compiled twice.
fn rust_client(root: &Path) -> Result<PathBuf, Failure> {
    run("cargo", &["build", "--workspace", "--bin", "rust-client", "--locked"], &[])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let binary = root.join("target/clients/rust-client");
    std::fs::create_dir_all(root.join("target/clients"))?;
    // Removed first: a program that runs cannot be written over.
    match std::fs::remove_file(&binary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    std::fs::copy(target.join("debug/rust-client"), &binary)?;
    Ok(binary)
}

/// The program in `testkit/clients/java` as a jar, with the libraries it needs beside it.
fn java_client(root: &Path) -> Result<PathBuf, Failure> {
    let output = root.join("target/clients/java");
    let place = format!("-Doutput={}", output.display());
    run("mvn", &["--batch-mode", "--quiet", "--file", "crates/testkit/clients/java/pom.xml", &place, "package"], &[])?;
    Ok(output.join("client.jar"))
}

/// The program in `testkit/clients/node`, copied, with the packages that its lock file pins beside it.
fn node_client(root: &Path) -> Result<PathBuf, Failure> {
    let (source, place) = (root.join("crates/testkit/clients/node"), root.join("target/clients/node"));
    std::fs::create_dir_all(&place)?;
    let proto = root.join("crates/wire/proto/workload.proto");
    let files = std::fs::read_dir(&source)?.map(|item| item.map(|i| i.path())).collect::<Result<Vec<_>, _>>()?;
    for path in files.iter().chain([&proto]) {
        let name = path.file_name().ok_or("a file has no name")?;
        std::fs::copy(path, place.join(name))?;
    }
    let (wanted, installed) = (std::fs::read(source.join("package-lock.json"))?, place.join("installed.json"));
    if !std::fs::read(&installed).is_ok_and(|found| found == wanted) {
        let folder = place.display().to_string();
        run("npm", &["ci", "--prefix", &folder, "--ignore-scripts", "--no-audit", "--no-fund"], &[])?;
        std::fs::write(installed, wanted)?;
    }
    Ok(place.join("client.js"))
}

/// The dependency checker.
pub(crate) fn cargo_deny(root: &Path) -> Result<PathBuf, Failure> {
    tool(root, "cargo-deny", CARGO_DENY)
}

/// What breaks the code to see whether a test notices.
pub(crate) fn cargo_mutants(root: &Path) -> Result<PathBuf, Failure> {
    tool(root, "cargo-mutants", CARGO_MUTANTS)
}

/// A tool of Cargo's, installed into the target folder when it is not there.
fn tool(root: &Path, name: &str, wanted: &str) -> Result<PathBuf, Failure> {
    let tools = root.join("target/tools");
    let program = tools.join("bin").join(name);
    let version = Command::new(&program).arg("--version").output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    if version.is_ok_and(|v| v.contains(wanted)) {
        return Ok(program);
    }
    let path = tools.display().to_string();
    run("cargo", &["install", name, "--locked", "--debug", "--version", wanted, "--root", &path], &[])?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_forbids_daemons_only_while_its_process_runs() {
        let directory = std::env::temp_dir().join(format!("countersign-policy-{}", std::process::id()));
        let code = |pid, name: &str| {
            std::fs::write(&directory, policy(pid, name)).unwrap();
            Command::new("sh").arg(&directory).status().unwrap().code()
        };
        let name = std::fs::read_to_string("/proc/self/comm").unwrap();
        let (running, ended) = (code(std::process::id(), name.trim_end()), code(4_194_305, name.trim_end()));
        let another = code(std::process::id(), "another");
        std::fs::remove_file(&directory).unwrap();
        assert_eq!((running, ended, another), (Some(101), Some(0), Some(0)));
    }

    #[test]
    fn whoever_is_not_root_gets_one_command_and_hears_of_the_daemons() {
        let plain = command_for(&["openssl", "zsh"]);
        assert_eq!(plain, "run `sudo apt-get update && sudo apt-get install -y --no-install-recommends openssl zsh` and try again");
        let daemons = command_for(&["nginx", "postgresql"]);
        assert!(daemons.contains("starts nginx on port 80 and PostgreSQL on port 5432"), "{daemons}");
    }

    #[test]
    fn versions_of_go_are_read_as_go_writes_them() {
        let read = ["go1.25.3", "go1.19.8", "go1.26rc1", "devel go1.26-ab12", "", "go2"].map(go_minor);
        assert_eq!(read, [Some(25), Some(19), Some(26), Some(26), None, None]);
    }
}
