//! One certificate, parsed once into what the rules ask about.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use super::distinguished;
use crate::id::SpiffeId;
use crate::key::{BadSignature, KeyError, PublicKey, hex};
use crate::time::Timestamp;

/// Largest certificate read, in bytes.
pub const CERTIFICATE_BYTES_MAX: usize = 64 << 10;
/// Longest serial number, in bytes (RFC 5280, section 4.1.2.2).
pub const SERIAL_BYTES_MAX: usize = 20;

/// Why a certificate cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Over [`CERTIFICATE_BYTES_MAX`].
    #[error("the certificate has {0} bytes, more than the {CERTIFICATE_BYTES_MAX} allowed")]
    TooLong(usize),
    /// Not a certificate.
    #[error("malformed certificate")]
    Malformed,
    /// A key we do not take.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// More bytes after the certificate.
    #[error("{0} bytes follow the certificate")]
    Trailing(usize),
}

/// The key usage bits that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "they are the standard's bits")]
pub struct KeyUsage {
    /// The extension is critical.
    pub critical: bool,
    /// digitalSignature.
    pub digital_signature: bool,
    /// keyCertSign.
    pub key_cert_sign: bool,
    /// cRLSign.
    pub crl_sign: bool,
}

/// A name constraint subtree of a type we can decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Constraint {
    Uri(String),
    Dns(String),
    /// A directory name: a certificate with a subject is refused below it.
    Directory,
    /// Another type: a certificate that has a name of any other type is refused below it.
    Other,
}

/// A parsed certificate and its DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    pub(crate) issuer: Vec<u8>,
    /// Serial number, big-endian without leading zeros.
    pub serial: Vec<u8>,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
    /// The certified key.
    pub public_key: PublicKey,
    /// basicConstraints says CA.
    pub is_ca: bool,
    pub(crate) path_len: Option<u32>,
    /// keyUsage, if present.
    pub key_usage: Option<KeyUsage>,
    /// (serverAuth, clientAuth) of extKeyUsage, if present.
    pub extended_key_usage: Option<(bool, bool)>,
    /// URI SANs in order.
    pub uris: Vec<String>,
    /// DNS SANs in order.
    pub dns_names: Vec<String>,
    /// Whether the SAN extension is critical.
    pub san_critical: bool,
    /// Whether the subject is the empty name.
    pub subject_empty: bool,
    /// The subject as people read it.
    pub subject_text: String,
    /// The issuer as people read it.
    pub issuer_text: String,
    pub(crate) other_names: bool,
    pub(crate) permitted: Vec<Constraint>,
    pub(crate) excluded: Vec<Constraint>,
    pub(crate) unknown_critical: Option<String>,
    /// Subject key identifier.
    pub key_id: Option<Vec<u8>>,
    /// Authority key identifier.
    pub authority_key_id: Option<Vec<u8>>,
}

impl Certificate {
    /// Parses exactly one certificate.
    ///
    /// # Errors
    /// Too long, malformed, followed by more bytes, or with a key we do not take.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, certificate) = Self::parse_first(der)?;
        if rest.is_empty() { Ok(certificate) } else { Err(CertificateError::Trailing(rest.len())) }
    }

    /// Parses certificates that follow each other, as the Workload API sends them.
    ///
    /// # Errors
    /// As [`Certificate::parse`], for the first that fails.
    pub fn parse_concatenated(der: &[u8]) -> Result<Vec<Self>, CertificateError> {
        let mut certificates = Vec::new();
        let mut rest = der;
        while !rest.is_empty() {
            let (tail, certificate) = Self::parse_first(rest)?;
            certificates.push(certificate);
            rest = tail;
        }
        Ok(certificates)
    }

    fn parse_first(der: &[u8]) -> Result<(&[u8], Self), CertificateError> {
        let (rest, x509) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        // RFC 5280 section 4.1.1.2: the algorithm outside must be the one that is signed.
        if x509.signature_algorithm != x509.tbs_certificate.signature {
            return Err(CertificateError::Malformed);
        }
        let used = der.len() - rest.len();
        if used > CERTIFICATE_BYTES_MAX {
            return Err(CertificateError::TooLong(used));
        }
        let public_key = PublicKey::from_parsed(x509.public_key())?;
        let mut certificate = Self {
            der: der.get(..used).unwrap_or_default().to_vec(),
            subject: x509.subject().as_raw().to_vec(),
            issuer: x509.issuer().as_raw().to_vec(),
            serial: x509.serial.to_bytes_be(),
            not_before: Timestamp::from_secs(x509.validity().not_before.timestamp()),
            not_after: Timestamp::from_secs(x509.validity().not_after.timestamp()),
            public_key,
            is_ca: false,
            path_len: None,
            key_usage: None,
            extended_key_usage: None,
            uris: Vec::new(),
            dns_names: Vec::new(),
            san_critical: false,
            subject_empty: x509.subject().iter().next().is_none(),
            subject_text: distinguished::text(x509.subject()),
            issuer_text: distinguished::text(x509.issuer()),
            other_names: false,
            permitted: Vec::new(),
            excluded: Vec::new(),
            unknown_critical: None,
            key_id: None,
            authority_key_id: None,
        };
        let mut seen: Vec<&[u8]> = Vec::new();
        for extension in x509.extensions() {
            // RFC 5280 section 4.2: no extension twice.
            if seen.contains(&extension.oid.as_bytes()) {
                return Err(CertificateError::Malformed);
            }
            seen.push(extension.oid.as_bytes());
            certificate.take(extension)?;
        }
        Ok((rest, certificate))
    }

    fn take(&mut self, extension: &x509_parser::extensions::X509Extension<'_>) -> Result<(), CertificateError> {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(b) => {
                self.is_ca = b.ca;
                self.path_len = b.path_len_constraint;
            }
            ParsedExtension::KeyUsage(u) => {
                self.key_usage = Some(KeyUsage {
                    critical: extension.critical,
                    digital_signature: u.digital_signature(),
                    key_cert_sign: u.key_cert_sign(),
                    crl_sign: u.crl_sign(),
                });
            }
            ParsedExtension::ExtendedKeyUsage(u) => {
                self.extended_key_usage = Some((u.server_auth || u.any, u.client_auth || u.any));
            }
            ParsedExtension::SubjectAlternativeName(san) => {
                self.san_critical = extension.critical;
                for name in &san.general_names {
                    match name {
                        GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
                        GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
                        GeneralName::Invalid(..) => return Err(CertificateError::Malformed),
                        _ => self.other_names = true,
                    }
                }
            }
            ParsedExtension::NameConstraints(c) => {
                let read = |subtrees: &Option<Vec<x509_parser::extensions::GeneralSubtree<'_>>>| {
                    subtrees
                        .iter()
                        .flatten()
                        .map(|s| match &s.base {
                            GeneralName::URI(u) => Constraint::Uri((*u).to_owned()),
                            GeneralName::DNSName(d) => Constraint::Dns((*d).to_owned()),
                            GeneralName::DirectoryName(_) => Constraint::Directory,
                            _ => Constraint::Other,
                        })
                        .collect()
                };
                self.permitted = read(&c.permitted_subtrees);
                self.excluded = read(&c.excluded_subtrees);
            }
            ParsedExtension::SubjectKeyIdentifier(id) => self.key_id = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                self.authority_key_id = id.key_identifier.as_ref().map(|k| k.0.to_vec());
            }
            ParsedExtension::ParseError { .. } => return Err(CertificateError::Malformed),
            _ if extension.critical => self.unknown_critical = Some(extension.oid.to_id_string()),
            _ => {}
        }
        Ok(())
    }

    /// The DER it was parsed from.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Its subject, DER.
    pub fn subject_der(&self) -> &[u8] {
        &self.subject
    }

    /// Its one SPIFFE ID, if it has exactly one URI SAN and that is one.
    pub fn spiffe_id(&self) -> Option<SpiffeId> {
        match self.uris.as_slice() {
            [uri] => SpiffeId::parse(uri).ok(),
            _ => None,
        }
    }

    /// The serial number in decimal, as SPIRE stores and prints it.
    pub fn serial_decimal(&self) -> String {
        decimal(&self.serial)
    }

    /// The authority ID people use: lower-case hexadecimal of the subject key identifier.
    pub fn authority_id(&self) -> String {
        hex(&self.key_id.clone().unwrap_or_else(|| self.public_key.key_id()))
    }

    /// Whether this time lies within its validity.
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// Checks that this key signed it.
    ///
    /// # Errors
    /// It did not.
    pub fn check_signed_by(&self, key: &PublicKey) -> Result<(), BadSignature> {
        let (_, x509) = X509Certificate::from_der(&self.der).map_err(|_| BadSignature)?;
        key.verify_x509(&x509.signature_algorithm, x509.tbs_certificate.as_ref(), &x509.signature_value)
    }
}

/// A big-endian unsigned number in decimal.
pub fn decimal(big_endian: &[u8]) -> String {
    let mut digits: Vec<u8> = vec![0];
    for byte in big_endian {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            let value = u32::from(*digit) * 256 + carry;
            *digit = u8::try_from(value % 10).unwrap_or(0);
            carry = value / 10;
        }
        while carry > 0 {
            digits.push(u8::try_from(carry % 10).unwrap_or(0));
            carry /= 10;
        }
    }
    digits.iter().rev().map(|d| char::from(b'0' + d)).collect()
}
