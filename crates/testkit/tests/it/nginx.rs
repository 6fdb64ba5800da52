//! Debian's nginx with the configuration of `docs/guides/nginx.md`: certificates kept fresh by `--watch`, clients known by
//! their SPIFFE IDs.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use countersign_identity::pem;
use rcgen::{CertificateParams, CustomExtension, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

use crate::kept::{Files, Heard, Kept, ask, connect, example, free_port, get, page_shows, shown, until};
use crate::support::{PATIENCE, countersign};

const PROGRAM: &str = "/usr/sbin/nginx";
const MODULE: &str = "/usr/lib/nginx/modules/ngx_http_js_module.so";
/// More than the buffers on the way hold, so that a download that is not read waits.
const DOWNLOAD_BYTES: usize = 32 << 20;

/// nginx in a directory of its own.
struct Nginx {
    process: Heard,
    directory: PathBuf,
    port: u16,
}

impl Nginx {
    /// Starts it with the example's configuration and the files in this directory.
    fn start(directory: &Path, files: &Path) -> Self {
        Self::start_with(directory, files, &[], &[])
    }

    /// As [`Nginx::start`], with other words in the configuration and the program.
    fn start_with(directory: &Path, files: &Path, other_configuration: &[(&str, &str)], other_program: &[(&str, &str)]) -> Self {
        for needed in [PROGRAM, MODULE] {
            assert!(Path::new(needed).is_file(), "{needed} is missing: run the tests with `cargo xtask test`, which installs it");
        }
        let (place, port) = (directory.display().to_string(), free_port());
        std::fs::create_dir_all(directory.join("www")).unwrap();
        std::fs::write(directory.join("www/download"), vec![b'x'; DOWNLOAD_BYTES]).unwrap();
        std::fs::write(directory.join("spiffe.js"), example("nginx/spiffe.js", other_program)).unwrap();
        let places = [
            ("/etc/nginx/spiffe.js", format!("{place}/spiffe.js")),
            ("listen 8443 ssl;", format!("listen 127.0.0.1:{port} ssl;")),
            ("/run/countersign/nginx/", format!("{}/", files.display())),
            ("/srv/www", format!("{place}/www")),
        ];
        let mut replacements: Vec<(&str, &str)> = places.iter().map(|(from, to)| (*from, to.as_str())).collect();
        replacements.extend(other_configuration);
        let configuration = example("nginx/spiffe.conf", &replacements);
        // What Debian has around it in /etc/nginx/nginx.conf, with places of its own.
        let mut whole =
            format!("load_module {MODULE};\npid {place}/nginx.pid;\nerror_log stderr notice;\ndaemon off;\nevents {{}}\nhttp {{\n");
        for temporary in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            whole += &format!("{temporary}_temp_path {place}/{temporary};\n");
        }
        whole += &format!("access_log off;\n{configuration}}}\n");
        std::fs::write(directory.join("nginx.conf"), whole).unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["-e", "stderr", "-p", &place, "-c"]).arg(directory.join("nginx.conf"));
        let nginx = Self { process: Heard::start(command), directory: directory.to_owned(), port };
        until("nginx listens", || {
            assert!(!nginx.process.said().contains("[emerg]"), "{}", nginx.process.said());
            nginx.pid_file().is_file() && std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        nginx
    }

    fn pid_file(&self) -> PathBuf {
        self.directory.join("nginx.pid")
    }

    /// Status and body that a client gets on a connection of its own.
    fn get(&self, files: &Files, path: &str) -> (u16, String) {
        get(&mut connect(self.port, files, true).unwrap(), path).unwrap()
    }
}

/// A trust domain with nginx in it, kept fresh.
struct Stage {
    kept: Kept,
    entry: countersign_wire::types::Entry,
    watch: Heard,
    nginx: Nginx,
    client: Files,
}

impl Stage {
    fn start(lifetime_secs: i32) -> Self {
        let kept = Kept::start();
        let uid = rustix::process::geteuid().as_raw();
        let entry = kept.entry("/nginx", uid, &["localhost"], lifetime_secs);
        kept.entry("/client", uid, &[], 0);
        let client = Files::of(&kept.fetched("/client", "client"));
        let (files, place) = (kept.directory("files"), kept.directory("nginx"));
        let pid_file = place.join("nginx.pid").display().to_string();
        let options = ["--signal", "HUP", "--pid-file", &pid_file];
        let mut watch = kept.watch(Command::new(countersign()), "/nginx", &files, &options);
        watch.line("wrote `spiffe://example.org/nginx`");
        let nginx = Nginx::start(&place, &files);
        // Told at the first of its files too, as soon as it runs.
        watch.line("SIGHUP was sent");
        Self { kept, entry, watch, nginx, client }
    }
}

#[test]
fn nginx_knows_clients_by_their_spiffe_ids_and_lets_in_whom_the_map_names() {
    let stage = Stage::start(0);
    let uid = rustix::process::geteuid().as_raw();
    assert_eq!(stage.nginx.get(&stage.client, "/whoami"), (200, "spiffe://example.org/client\n".to_owned()));
    // Paths of SPIFFE IDs tell upper from lower case, and are whole.
    for (index, path) in ["/stranger", "/Client", "/client/2", "/a/client"].into_iter().enumerate() {
        stage.kept.entry(path, uid, &[], 0);
        let files = Files::of(&stage.kept.fetched(path, &format!("stranger-{index}")));
        assert_eq!(stage.nginx.get(&files, "/whoami").0, 403, "{path}");
    }
    let (status, text) = get(&mut connect(stage.nginx.port, &stage.client, false).unwrap(), "/whoami").unwrap();
    assert_eq!(status, 400, "{text}");
    // Another trust domain's certificate for the same SPIFFE ID.
    let other = Authority::new();
    let directory = stage.kept.directory("other");
    let mut files = other.files(&directory, "client", &svid_names(&["spiffe://example.org/client"]), &[]);
    files.bundle = stage.client.bundle.clone();
    assert_eq!(get(&mut connect(stage.nginx.port, &files, true).unwrap(), "/whoami").unwrap().0, 400);
}

#[test]
fn a_renewal_reaches_nginx_and_drops_no_download() {
    let mut stage = Stage::start(0);
    let port = stage.nginx.port;
    let mut download = connect(port, &stage.client, true).unwrap();
    let before = shown(&download);
    let head = ask(&mut download, "/download").unwrap();
    assert_eq!((head.status, head.length), (200, DOWNLOAD_BYTES));
    // A connection that is kept between requests.
    let mut idle = connect(port, &stage.client, true).unwrap();
    assert_eq!(get(&mut idle, "/whoami").unwrap().0, 200);

    stage.kept.renew(&stage.entry);
    stage.watch.line("wrote `spiffe://example.org/nginx`");
    stage.watch.line("SIGHUP was sent");
    until("nginx shows the new certificate", || {
        let mut new = connect(port, &stage.client, true).unwrap();
        let answered = get(&mut new, "/whoami").unwrap().0 == 200;
        assert!(answered, "a request was refused during the reload");
        shown(&new) != before
    });

    // nginx ends idle connections in order, as it does when they get old: the client is told before it asks again.
    let mut rest = Vec::new();
    assert_eq!(idle.read_to_end(&mut rest).unwrap(), 0, "not an orderly end");
    // The download began before, and goes on to its last byte.
    let mut body = vec![0; head.length];
    download.read_exact(&mut body).unwrap();
    assert!(body.iter().all(|b| *b == b'x'));
    assert_eq!(shown(&download), before);
    assert_eq!(stage.watch.stop(), Some(0), "{}", stage.watch.said());
}

#[test]
fn nginx_goes_on_while_the_agent_is_gone_at_renewal_and_gets_the_new_files_when_it_is_back() {
    // An agent renews at half; a third left is late, and time enough for a busy machine.
    let lifetime = Duration::from_secs(60);
    let mut stage = Stage::start(60);
    let port = stage.nginx.port;
    stage.kept.kill_agent();
    stage.watch.line("the agent is away (");
    let before = shown(&connect(port, &stage.client, true).unwrap());
    let late = stage.watch.line_within("should have been renewed; it expires in", lifetime + PATIENCE);
    assert!(late.starts_with("warning: `spiffe://example.org/nginx` in `") && late.contains(" s: the agent is away ("), "{late}");
    let mut now = connect(port, &stage.client, true).unwrap();
    assert_eq!((get(&mut now, "/whoami").unwrap().0, shown(&now)), (200, before.clone()));
    assert_eq!(stage.watch.said().matches("; the files in `").count(), 1, "told more than once: {}", stage.watch.said());

    stage.kept.start_agent();
    stage.watch.line("the agent is back");
    stage.watch.line("wrote `spiffe://example.org/nginx`");
    stage.watch.line("SIGHUP was sent");
    until("nginx shows the new certificate", || shown(&connect(port, &stage.client, true).unwrap()) != before);
    assert_eq!(stage.nginx.get(&stage.client, "/whoami").0, 200);
}

/// Identifier and content.
type Extension<'a> = (&'a [u64], Vec<u8>);

/// An authority that signs whatever the test wants to see refused.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Files of a certificate that is an SVID but for what is given.
    pub fn files(&self, directory: &Path, name: &str, params: &CertificateParams, extensions: &[Extension<'_>]) -> Files {
        let mut params = params.clone();
        for (identifier, content) in extensions {
            params.custom_extensions.push(CustomExtension::from_oid_content(identifier, content.clone()));
        }
        let key = KeyPair::generate().unwrap();
        let file = |end: &str| directory.join(format!("{name}.{end}"));
        let files = Files { certificate: file("pem"), key: file("key"), bundle: file("bundle") };
        std::fs::write(&files.certificate, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::write(&files.bundle, &self.pem).unwrap();
        files
    }
}

/// A certificate with these names that may sign nothing.
pub fn svid_names(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|u| SanType::URI((*u).try_into().unwrap())).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

/// Lets in whoever has a SPIFFE ID, so that what is read shows.
const ANYBODY: &[(&str, &str)] = &[(r#""~^spiffe://example\.org/client\z" 1;"#, r#""~." 1;"#)];

/// nginx with the certificate of an authority of the test's own.
fn nginx_for_all(directory: &Path, other_program: &[(&str, &str)]) -> (Authority, Nginx) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let authority = Authority::new();
    let mut server = svid_names(&[]);
    server.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
    let own = authority.files(directory, "server", &server, &[]);
    for (from, to) in [(&own.certificate, "svid.pem"), (&own.key, "svid.key"), (&own.bundle, "bundle.pem")] {
        std::fs::copy(from, directory.join(to)).unwrap();
    }
    let nginx = Nginx::start_with(directory, directory, ANYBODY, other_program);
    (authority, nginx)
}

const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
/// An extension nobody knows.
const UNKNOWN: &[u64] = &[1, 3, 6, 1, 4, 1, 99999, 1];

/// An element of DER, the length as short as it can be.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let mut element = match content.len() {
        0..0x80 => vec![tag, length[1]],
        0x80..0x100 => vec![tag, 0x81, length[1]],
        _ => vec![tag, 0x82, length[0], length[1]],
    };
    element.extend_from_slice(content);
    element
}

#[test]
fn certificates_that_are_no_svids_are_not_let_in_whatever_they_contain() {
    const GOOD: &str = "spiffe://example.org/client";
    let directory = tempfile::tempdir().unwrap();
    let (authority, nginx) = nginx_for_all(directory.path(), &[]);
    // What is no SVID ends with a refusal of the certificate or of the request.
    let status = |name: &str, params: &CertificateParams, extensions: &[Extension<'_>]| {
        let files = authority.files(directory.path(), name, params, extensions);
        connect(nginx.port, &files, true).and_then(|mut tls| get(&mut tls, "/whoami")).map(|(status, _)| status)
    };
    let uri = der(0x86, GOOD.as_bytes());
    let names = der(0x30, &uri);
    // Made by hand it is let in as well, so what follows is refused for what is wrong with it.
    assert_eq!(status("good", &svid_names(&[GOOD]), &[]).unwrap(), 200);
    assert_eq!(status("by-hand", &svid_names(&[]), &[(SUBJECT_ALT_NAME, names.clone())]).unwrap(), 200);
    assert_eq!(
        status(
            "with-dns",
            &{
                let mut params = svid_names(&[GOOD]);
                params.subject_alt_names.push(SanType::DnsName("client.test".try_into().unwrap()));
                params
            },
            &[]
        )
        .unwrap(),
        200
    );

    let mut wrong: Vec<(&str, CertificateParams, Vec<Extension<'_>>)> = Vec::new();
    for (name, uris) in [
        ("no-name", &[][..]),
        ("two-uris", &[GOOD, "spiffe://example.org/other"]),
        ("twice-the-same", &[GOOD, GOOD]),
        ("second-is-good", &["https://example.org/client", GOOD]),
        ("end-of-line", &["spiffe://example.org/client\n"]),
        ("upper-case-scheme", &["SPIFFE://example.org/client"]),
        ("upper-case-domain", &["spiffe://EXAMPLE.org/client"]),
        ("port", &["spiffe://example.org:80/client"]),
        ("user", &["spiffe://me@example.org/client"]),
        ("query", &["spiffe://example.org/client?a=b"]),
        ("fragment", &["spiffe://example.org/client#a"]),
        ("percent", &["spiffe://example.org/%63lient"]),
        ("dots", &["spiffe://example.org/a/../client"]),
        ("double-slash", &["spiffe://example.org//client"]),
        ("last-slash", &["spiffe://example.org/client/"]),
        ("zero-byte", &["spiffe://example.org/client\0.evil"]),
        ("trust-domain-alone", &["spiffe://example.org"]),
        ("no-trust-domain", &["spiffe:///client"]),
        ("one-slash", &["spiffe:/example.org/client"]),
        ("another-scheme", &["https://example.org/client"]),
    ] {
        wrong.push((name, svid_names(uris), Vec::new()));
    }
    let dns = der(0x30, &der(0x82, GOOD.as_bytes()));
    let mail = der(0x30, &der(0x81, GOOD.as_bytes()));
    // An otherName around what looks like a URI: the element with the tag of a URI is inside another one.
    let inside = der(0x30, &der(0xa0, &[&[0x06, 0x03, 0x2a, 0x03, 0x04][..], &der(0xa0, &uri)].concat()));
    let long_form = [&[0x30, 0x81, u8::try_from(uri.len()).unwrap()][..], &uri].concat();
    let long_form_inside = der(0x30, &[&[0x86, 0x81, u8::try_from(GOOD.len()).unwrap()][..], GOOD.as_bytes()].concat());
    let followed = [&names[..], &[0x05, 0x00]].concat();
    let constructed = der(0x30, &der(0xa6, &der(0x16, GOOD.as_bytes())));
    let endless = [&[0x30, 0x80][..], &uri, &[0, 0]].concat();
    for (name, content) in [
        ("dns-name", dns),
        ("mail-address", mail),
        ("inside-another-name", inside),
        ("length-not-the-shortest", long_form),
        ("inner-length-not-the-shortest", long_form_inside),
        ("followed-by-more", followed),
        ("constructed-uri", constructed),
        ("indefinite-length", endless),
        ("cut-off", names[..names.len() - 1].to_vec()),
    ] {
        wrong.push((name, svid_names(&[]), vec![(SUBJECT_ALT_NAME, content)]));
    }
    let whole = der(0x30, &[&[0x06, 0x03, 0x55, 0x1d, 0x11][..], &der(0x04, &names)].concat());
    wrong.push(("in-an-unknown-extension", svid_names(&[]), vec![(UNKNOWN, whole)]));
    wrong.push(("extension-twice", svid_names(&["spiffe://example.org/other"]), vec![(SUBJECT_ALT_NAME, names.clone())]));
    let mut subject = svid_names(&[]);
    subject.distinguished_name.push(rcgen::DnType::CommonName, GOOD);
    wrong.push(("in-the-subject", subject, Vec::new()));
    let mut pem_in_subject = svid_names(&[]);
    pem_in_subject.distinguished_name.push(rcgen::DnType::OrganizationName, format!("x\nURI:{GOOD}"));
    wrong.push(("as-openssl-prints-it", pem_in_subject, Vec::new()));
    let mut authority_itself = svid_names(&[GOOD]);
    authority_itself.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    wrong.push(("authority", authority_itself, Vec::new()));
    for (name, usages) in [
        ("may-sign-certificates", vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign]),
        ("may-sign-revocations", vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign]),
        ("no-key-usage", vec![]),
    ] {
        let mut params = svid_names(&[GOOD]);
        params.key_usages = usages;
        wrong.push((name, params, Vec::new()));
    }
    for (name, params, extensions) in wrong {
        // An error is a refusal within TLS.
        if let Ok(status) = status(name, &params, &extensions) {
            assert!(status == 403 || status == 400, "{name}: {status}");
        }
    }
    assert_eq!(nginx.get(&authority.files(directory.path(), "again", &svid_names(&[GOOD]), &[]), "/whoami").0, 200);
}

/// What OpenSSL would not let through to the program, handed to it directly.
#[test]
fn a_certificate_is_read_to_the_bit_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let given = "r.variables.arg_certificate.split('_').join('\\n').split('~').join(' ')";
    let (authority, nginx) = nginx_for_all(directory.path(), &[("r.variables.ssl_client_raw_cert", given)]);
    let files = authority.files(directory.path(), "client", &svid_names(&[]), &[]);
    // nginx ends a connection after a thousand requests.
    let mut connection = (connect(nginx.port, &files, true).unwrap(), 0);
    let mut read_pem = |pem: &str| {
        connection.1 += 1;
        if connection.1 % 500 == 0 {
            connection.0 = connect(nginx.port, &files, true).unwrap();
        }
        let path = format!("/whoami?certificate={}", pem.trim_end().replace('\n', "_").replace(' ', "~"));
        let (status, body) = get(&mut connection.0, &path).unwrap();
        match status {
            200 => body,
            403 => String::new(),
            other => panic!("{other}: {body}"),
        }
    };
    let mut read = |certificate: &[u8]| read_pem(&pem::write("CERTIFICATE", certificate));

    let id = "spiffe://example.org/client";
    let extension = |number: u8, value: &[u8]| der(0x30, &[&[0x06, 0x03, 0x55, 0x1d, number][..], &der(0x04, value)].concat());
    let names = |uri: &str| extension(17, &der(0x30, &der(0x86, uri.as_bytes())));
    let usage = extension(15, &[0x03, 0x02, 0x07, 0x80]);
    let fields = || [&[0xa0, 3, 2, 1, 2][..], &[2, 1, 1], &[0x30, 0], &[0x30, 0], &[0x30, 0], &[0x30, 0], &[0x30, 0]].map(<[u8]>::to_vec);
    let end = [0x30, 0, 0x03, 0x01, 0x00];
    let around = |fields: &[Vec<u8>]| der(0x30, &[&der(0x30, &fields.concat())[..], &end].concat());
    let with_all = |content: &[u8]| {
        let mut all = fields().to_vec();
        all.push(der(0xa3, content));
        around(&all)
    };
    let with = |extensions: &[Vec<u8>]| with_all(&der(0x30, &extensions.concat()));
    let san = names(id);
    let good = with(&[usage.clone(), san.clone()]);
    assert_eq!(read(&good), format!("{id}\n"));
    let critical = der(0x30, &[&[0x06, 3, 0x55, 0x1d, 17, 0x01, 1, 0xff][..], &der(0x04, &der(0x30, &der(0x86, id.as_bytes())))].concat());
    assert_eq!(read(&with(&[usage.clone(), critical])), format!("{id}\n"));
    let longest = format!("spiffe://{}/{}", "d".repeat(255), "p".repeat(2048 - 265));
    assert_eq!(read(&with(&[usage.clone(), names(&longest)])), format!("{longest}\n"));

    for length in 0..good.len() {
        assert_eq!(read(&good[..length]), "", "cut off after {length} bytes");
    }
    // A bit that is wrong gives another certificate or none, and never what is no SPIFFE ID.
    for bit in 0..good.len() * 8 {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let found = read(&flipped);
        assert!(found.is_empty() || found.trim_end().parse::<countersign_identity::SpiffeId>().is_ok(), "bit {bit}: {found}");
    }

    let seven: Vec<Vec<u8>> = fields().to_vec();
    let extensions = der(0xa3, &der(0x30, &[usage.clone(), san.clone()].concat()));
    let eight = |tag: u8| [&seven[..], &[der(tag, &der(0x30, &[usage.clone(), san.clone()].concat()))]].concat();
    let whole = |fields: &[Vec<u8>]| der(0x30, &fields.concat());
    let parts = |parts: &[&[u8]]| der(0x30, &parts.concat());
    let (name, value) = ([0x06, 3, 0x55, 0x1d, 17], der(0x04, &der(0x30, &der(0x86, id.as_bytes()))));
    // What follows it in the certificate begins with a byte that is a digit, too.
    let length = u8::try_from(id.len()).unwrap();
    let overlong = [&[0x30, length + 2, 0x86, length + 1][..], id.as_bytes()].concat();
    let wrong: Vec<(&str, Vec<u8>)> = vec![
        ("something after it", [&good[..], &[0x05, 0x00]].concat()),
        ("no signature", der(0x30, &[&whole(&eight(0xa3))[..], &[0x30, 0]].concat())),
        ("one part too many", der(0x30, &[&whole(&eight(0xa3))[..], &end, &[0x05, 0]].concat())),
        ("contents that are a set", der(0x30, &[&der(0x31, &eight(0xa3).concat())[..], &end].concat())),
        ("no version", around(&[&seven[1..], &[vec![0x30, 0], extensions.clone()]].concat())),
        ("no serial number", around(&[&[seven[0].clone(), vec![0x30, 0]][..], &seven[2..], std::slice::from_ref(&extensions)].concat())),
        ("a field too few", around(&[&seven[..6], &[extensions]].concat())),
        ("extensions with another tag", around(&eight(0xa4))),
        ("two lists of extensions", with_all(&[der(0x30, &usage), der(0x30, &san)].concat())),
        ("an extension that is a set", with(&[usage.clone(), der(0x31, &[&name[..], &value].concat())])),
        ("an extension without value", with(&[usage.clone(), san.clone(), der(0x30, &[0x06, 1, 1])])),
        ("an extension of four parts", with(&[usage.clone(), parts(&[&name, &[1, 1, 0xff], &[1, 1, 0xff], &value])])),
        ("a criticality that is a number", with(&[usage.clone(), parts(&[&name, &[2, 1, 1], &value])])),
        ("a name that is no identifier", with(&[usage.clone(), san.clone(), parts(&[&[0x02, 1, 1], &value])])),
        ("a value that is a bit string", with(&[usage.clone(), parts(&[&name, &[&[0x03][..], &value[1..]].concat()])])),
        ("an extension twice", with(&[usage.clone(), san.clone(), san.clone()])),
        ("no names", with(std::slice::from_ref(&usage))),
        ("no key usage", with(std::slice::from_ref(&san))),
        ("an empty key usage", with(&[extension(15, &[0x03, 0x01, 0x00]), san.clone()])),
        ("a key usage for encryption", with(&[extension(15, &[0x03, 0x02, 0x05, 0x20]), san.clone()])),
        ("a tag of two bytes", with(&[usage.clone(), extension(17, &der(0x30, &[&[0x9f, 0x00][..], &der(0x86, id.as_bytes())].concat()))])),
        ("a name that is longer than all names", with(&[usage.clone(), extension(17, &overlong)])),
        ("an ID that is too long", with(&[usage.clone(), names(&format!("{longest}p"))])),
        ("a trust domain that is too long", with(&[usage.clone(), names(&format!("spiffe://{}/p", "d".repeat(256)))])),
        ("an ID that is not ASCII", with(&[usage, names("spiffe://example.org/clïent")])),
    ];
    for (what, certificate) in wrong {
        assert_eq!(read(&certificate), "", "{what}");
    }

    let text = pem::write("CERTIFICATE", &good);
    assert_eq!(read_pem(&text), format!("{id}\n"));
    for (what, text) in [
        ("two blocks", format!("{text}{text}")),
        ("another label", text.replace("CERTIFICATE", "PUBLIC KEY")),
        ("no end", text.lines().take(3).collect::<Vec<_>>().join("\n")),
        ("a character that is not base64", text.replacen("-----\nM", "-----\n*", 1)),
        ("a character too few", text.replacen("-----\nM", "-----\n", 1)),
        ("nothing inside", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----".to_owned()),
    ] {
        assert_eq!(read_pem(&text), "", "{what}");
    }
}

#[test]
fn the_page_shows_the_configuration_that_is_tested() {
    page_shows("docs/guides/nginx.md", &["nginx/spiffe.conf", "nginx/countersign-nginx.service"]);
}
