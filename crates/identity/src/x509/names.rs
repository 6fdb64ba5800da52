//! The names in a certificate as Go's `x509.Certificate` shows them: parts of subject and issuer, and the alternative names.
//!
//! For those who derive something from a name. Read when asked for: most certificates never are.

use std::net::IpAddr;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use super::certificate::{Certificate, CertificateError};
use crate::der::tag;

const NUMERIC_STRING: u32 = 18;
const T61_STRING: u32 = 20;
const IA5_STRING: u32 = 22;
const BMP_STRING: u32 = 30;

/// A distinguished name, by the fields of Go's `pkix.Name`. Attributes of other types are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are X.520's")]
pub struct Name {
    pub country: Vec<String>,
    pub organization: Vec<String>,
    pub organizational_unit: Vec<String>,
    pub locality: Vec<String>,
    pub province: Vec<String>,
    pub street_address: Vec<String>,
    pub postal_code: Vec<String>,
    /// The last one, as in Go; empty for none.
    pub serial_number: String,
    /// The last one, as in Go; empty for none.
    pub common_name: String,
}

/// Who a certificate names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// The subject.
    pub subject: Name,
    /// The issuer.
    pub issuer: Name,
    /// DNS SANs.
    pub dns_names: Vec<String>,
    /// URI SANs.
    pub uris: Vec<String>,
    /// Email SANs.
    pub email_addresses: Vec<String>,
    /// IP address SANs.
    pub ip_addresses: Vec<IpAddr>,
}

impl Certificate {
    /// The names in it.
    ///
    /// # Errors
    /// A name is malformed.
    pub fn names(&self) -> Result<Names, CertificateError> {
        let (_, x509) = X509Certificate::from_der(self.der()).map_err(|_| CertificateError::Malformed)?;
        let mut names = Names {
            subject: distinguished(x509.subject())?,
            issuer: distinguished(x509.issuer())?,
            dns_names: self.dns_names.clone(),
            uris: self.uris.clone(),
            ..Names::default()
        };
        let san = x509.subject_alternative_name().map_err(|_| CertificateError::Malformed)?;
        for name in san.iter().flat_map(|s| &s.value.general_names) {
            match name {
                GeneralName::RFC822Name(address) => names.email_addresses.push((*address).to_owned()),
                GeneralName::IPAddress(bytes) => names.ip_addresses.push(address(bytes).ok_or(CertificateError::Malformed)?),
                _ => {}
            }
        }
        Ok(names)
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn distinguished(name: &X509Name<'_>) -> Result<Name, CertificateError> {
    let mut found = Name::default();
    for attribute in name.iter_attributes() {
        // Attributes of X.520 are 2.5.4.n.
        let [0x55, 0x04, kind] = attribute.attr_type().as_bytes() else { continue };
        let list = match kind {
            3 => {
                found.common_name = text(attribute)?;
                continue;
            }
            5 => {
                found.serial_number = text(attribute)?;
                continue;
            }
            6 => &mut found.country,
            7 => &mut found.locality,
            8 => &mut found.province,
            9 => &mut found.street_address,
            10 => &mut found.organization,
            11 => &mut found.organizational_unit,
            17 => &mut found.postal_code,
            _ => continue,
        };
        list.push(text(attribute)?);
    }
    Ok(found)
}

/// The text of an attribute in any of the string types that directories have used.
fn text(attribute: &AttributeTypeAndValue<'_>) -> Result<String, CertificateError> {
    let (kind, bytes) = (attribute.attr_value().tag().0, attribute.attr_value().data);
    let utf8 = || String::from_utf8(bytes.to_vec()).map_err(|_| CertificateError::Malformed);
    match kind {
        k if k == u32::from(tag::UTF8_STRING) => utf8(),
        k if k == u32::from(tag::PRINTABLE_STRING) || k == NUMERIC_STRING || k == IA5_STRING => {
            if bytes.is_ascii() {
                utf8()
            } else {
                Err(CertificateError::Malformed)
            }
        }
        // Read as Latin-1, as everybody does.
        T61_STRING => Ok(bytes.iter().map(|b| char::from(*b)).collect()),
        BMP_STRING if bytes.len() % 2 == 0 => {
            let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| pair.iter().fold(0, |unit, b| unit << 8 | u16::from(*b))).collect();
            String::from_utf16(&units).map_err(|_| CertificateError::Malformed)
        }
        _ => Err(CertificateError::Malformed),
    }
}
