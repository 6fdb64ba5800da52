//! `fetch x509 --watch` beside a real agent, without a daemon.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use crate::kept::Kept;
use crate::support::{PATIENCE, countersign};

#[test]
fn an_identity_that_is_taken_away_leaves_the_files_and_comes_back_to_them() {
    let kept = Kept::start();
    let uid = rustix::process::geteuid().as_raw();
    let entry = kept.entry("/web", uid, &[], 0);
    let files = kept.directory("files");
    // As systemd starts it.
    let notified = kept.directory("systemd").join("notify");
    let systemd = UnixDatagram::bind(&notified).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(countersign());
    command.env("NOTIFY_SOCKET", &notified);
    let mut watch = kept.watch(command, "/web", &files, &[]);
    watch.line("wrote `spiffe://example.org/web`");
    let mut ready = [0; 64];
    let length = systemd.recv(&mut ready).unwrap();
    assert_eq!(&ready[..length], b"READY=1\n");

    let read = |name: &str| std::fs::read_to_string(files.join(name)).unwrap();
    let before = (read("svid.pem"), read("svid.key"), read("bundle.pem"));
    kept.delete(&entry);
    let said = watch.line("the agent grants no identity (");
    assert!(said.contains("no identity issued") && said.contains("stay, valid until"), "{said}");
    assert_eq!((read("svid.pem"), read("svid.key"), read("bundle.pem")), before);

    kept.entry("/web", uid, &[], 0);
    watch.line("the agent is back");
    watch.line("wrote `spiffe://example.org/web`");
    assert_ne!(read("svid.key"), before.1);

    // Who writes there once would stand in the way of the next renewal.
    let mut once = Command::new(countersign());
    once.args(["fetch", "x509", "--write"]).arg(&files).env("SPIFFE_ENDPOINT_SOCKET", kept.socket());
    let refused = once.output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && error.contains("are kept by --watch"), "{error}");
    assert_eq!(watch.stop(), Some(0), "{}", watch.said());
}
