//! What a verified certificate says about its node: selectors, and the fields of `agent_path_template`.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use countersign_identity::key::hex;
use countersign_identity::selector::{SELECTORS_MAX, SelectorError};
use countersign_identity::x509::{Certificate, Name, Names};
use countersign_identity::{Selector, TrustDomain};

use super::NAME;
use crate::node::path_template::{Field, Kind, Value};

/// The fields that a template may use: SPIRE's own, and those of Go's `x509.Certificate` that name somebody.
pub(super) const FIELDS: &[Field] = &[
    ("PluginName", Kind::Text),
    ("Fingerprint", Kind::Text),
    ("TrustDomain", Kind::Text),
    ("SerialNumberHex", Kind::Text),
    ("SerialNumber", Kind::Text),
    ("SVIDPathTrimmed", Kind::Text),
    ("URISanSelectors", Kind::Map),
    ("Subject.CommonName", Kind::Text),
    ("Subject.SerialNumber", Kind::Text),
    ("Subject.Country", Kind::List),
    ("Subject.Organization", Kind::List),
    ("Subject.OrganizationalUnit", Kind::List),
    ("Subject.Locality", Kind::List),
    ("Subject.Province", Kind::List),
    ("Subject.StreetAddress", Kind::List),
    ("Subject.PostalCode", Kind::List),
    ("Issuer.CommonName", Kind::Text),
    ("Issuer.SerialNumber", Kind::Text),
    ("Issuer.Country", Kind::List),
    ("Issuer.Organization", Kind::List),
    ("Issuer.OrganizationalUnit", Kind::List),
    ("Issuer.Locality", Kind::List),
    ("Issuer.Province", Kind::List),
    ("Issuer.StreetAddress", Kind::List),
    ("Issuer.PostalCode", Kind::List),
    ("DNSNames", Kind::List),
    ("EmailAddresses", Kind::List),
    ("IPAddresses", Kind::List),
    ("URIs", Kind::List),
];

/// SHA-1 of the certificate, as SPIRE names certificates.
pub(super) fn fingerprint(certificate: &Certificate) -> String {
    hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, certificate.der()).as_ref())
}

/// The serial number in lower-case hexadecimal with an even number of digits.
pub(super) fn serial_number(certificate: &Certificate) -> String {
    hex(&certificate.serial)
}

/// Key and value of every URI `x509pop://<trust domain>/<key>/<value>`; of those with the same key the last counts.
pub(super) fn san_selectors(uris: &[String], trust_domain: &TrustDomain) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for uri in uris {
        let Some((scheme, rest)) = uri.split_once("://") else { continue };
        let Some((host, path)) = rest.split_once('/') else { continue };
        if !scheme.eq_ignore_ascii_case(NAME) || host != trust_domain.name() {
            continue;
        }
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let decoded = decode(path);
        match decoded.as_deref().map(|p| p.trim_matches('/')).and_then(|p| p.split_once('/')) {
            Some((key, value)) => {
                found.insert(key.to_owned(), value.to_owned());
            }
            None => tracing::debug!(?uri, "This URI holds no x509pop selector"),
        }
    }
    found
}

/// Undoes percent-encoding.
fn decode(path: &str) -> Option<String> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// The fingerprints of all authorities on these paths, each once.
pub(super) fn authorities(paths: &[Vec<&Certificate>]) -> Vec<String> {
    let mut found = Vec::new();
    for authority in paths.iter().flat_map(|path| path.iter().skip(1)) {
        let fingerprint = fingerprint(authority);
        if !found.contains(&fingerprint) {
            found.push(fingerprint);
        }
    }
    found
}

/// The selectors: common name, every authority of every path, serial number, and those in the URIs.
pub(super) fn selectors(
    leaf: &Certificate,
    names: &Names,
    authorities: &[String],
    san: &BTreeMap<String, String>,
) -> Result<Vec<Selector>, SelectorError> {
    let mut values = Vec::new();
    if !names.subject.common_name.is_empty() {
        values.push(format!("subject:cn:{}", names.subject.common_name));
    }
    values.extend(authorities.iter().map(|fingerprint| format!("ca:fingerprint:{fingerprint}")));
    values.push(format!("serialnumber:{}", serial_number(leaf)));
    values.extend(san.iter().map(|(key, value)| format!("san:{key}:{value}")));
    if values.len() > SELECTORS_MAX {
        return Err(SelectorError::TooLong(values.len()));
    }
    values.iter().map(|value| Selector::new(NAME, value)).collect()
}

/// The fields of this certificate.
pub(super) fn fields(
    leaf: &Certificate,
    names: &Names,
    trust_domain: &TrustDomain,
    svid_path: &str,
    san: BTreeMap<String, String>,
) -> BTreeMap<&'static str, Value> {
    let text = |t: &str| Value::Text(t.to_owned());
    let list = |l: &[String]| Value::List(l.to_vec());
    let of = |name: &Name, keys: [&'static str; 9]| {
        let [country, organization, unit, locality, province, street, code, serial, common] = keys;
        [
            (country, list(&name.country)),
            (organization, list(&name.organization)),
            (unit, list(&name.organizational_unit)),
            (locality, list(&name.locality)),
            (province, list(&name.province)),
            (street, list(&name.street_address)),
            (code, list(&name.postal_code)),
            (serial, text(&name.serial_number)),
            (common, text(&name.common_name)),
        ]
    };
    let own = [
        ("PluginName", text(NAME)),
        ("Fingerprint", Value::Text(fingerprint(leaf))),
        ("TrustDomain", text(trust_domain.name())),
        ("SerialNumberHex", Value::Text(serial_number(leaf))),
        ("SerialNumber", Value::Text(leaf.serial_decimal())),
        ("SVIDPathTrimmed", text(svid_path)),
        ("URISanSelectors", Value::Map(san)),
        ("DNSNames", list(&names.dns_names)),
        ("EmailAddresses", list(&names.email_addresses)),
        ("IPAddresses", Value::List(names.ip_addresses.iter().map(ToString::to_string).collect())),
        ("URIs", list(&names.uris)),
    ];
    own.into_iter().chain(of(&names.subject, SUBJECT)).chain(of(&names.issuer, ISSUER)).collect()
}

const SUBJECT: [&str; 9] = [
    "Subject.Country",
    "Subject.Organization",
    "Subject.OrganizationalUnit",
    "Subject.Locality",
    "Subject.Province",
    "Subject.StreetAddress",
    "Subject.PostalCode",
    "Subject.SerialNumber",
    "Subject.CommonName",
];

const ISSUER: [&str; 9] = [
    "Issuer.Country",
    "Issuer.Organization",
    "Issuer.OrganizationalUnit",
    "Issuer.Locality",
    "Issuer.Province",
    "Issuer.StreetAddress",
    "Issuer.PostalCode",
    "Issuer.SerialNumber",
    "Issuer.CommonName",
];
