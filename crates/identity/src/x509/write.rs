//! The bytes of new certificates, as SPIRE shapes them: what is signed, and the finished document.

use std::time::Duration;

use crate::der::{Oid, Writer, tag};
use crate::id::SpiffeId;
use crate::key::{PublicKey, SigningAlgorithm};
use crate::time::Timestamp;

const OID_COUNTRY: Oid = &[0x55, 0x04, 0x06];
const OID_ORGANIZATION: Oid = &[0x55, 0x04, 0x0a];
const OID_COMMON_NAME: Oid = &[0x55, 0x04, 0x03];
const OID_SERIAL_NUMBER: Oid = &[0x55, 0x04, 0x05];
const OID_SKI: Oid = &[0x55, 0x1d, 0x0e];
const OID_KEY_USAGE: Oid = &[0x55, 0x1d, 0x0f];
const OID_SAN: Oid = &[0x55, 0x1d, 0x11];
const OID_BASIC_CONSTRAINTS: Oid = &[0x55, 0x1d, 0x13];
const OID_AKI: Oid = &[0x55, 0x1d, 0x23];
const OID_EKU: Oid = &[0x55, 0x1d, 0x25];
const OID_SERVER_AUTH: Oid = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const OID_CLIENT_AUTH: Oid = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// A distinguished name of an authority, from `ca_subject` in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// C.
    pub country: Vec<String>,
    /// O.
    pub organization: Vec<String>,
    /// CN; empty for none.
    pub common_name: String,
}

impl Default for Subject {
    fn default() -> Self {
        Self { country: vec!["US".to_owned()], organization: vec!["SPIFFE".to_owned()], common_name: String::new() }
    }
}

/// What sort of certificate it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// An X509-SVID: may be presented, may not sign.
    Leaf,
    /// A signing certificate: may sign, may not be presented.
    Authority,
}

/// Everything that decides the signed part of a certificate.
#[derive(Debug)]
pub struct Tbs<'a> {
    /// Big-endian, at most 16 bytes, not zero.
    pub serial: [u8; 16],
    /// How the issuer signs.
    pub algorithm: SigningAlgorithm,
    /// The issuer's subject, DER.
    pub issuer: &'a [u8],
    /// The issuer's key identifier; `None` for a self-signed authority.
    pub issuer_key_id: Option<&'a [u8]>,
    /// The subject, DER.
    pub subject: &'a [u8],
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
    /// The key to certify.
    pub public_key: &'a PublicKey,
    /// The one URI SAN.
    pub spiffe_id: &'a SpiffeId,
    /// DNS SANs.
    pub dns_names: &'a [String],
    /// Leaf or authority.
    pub profile: Profile,
}

impl Tbs<'_> {
    /// The bytes to be signed.
    pub fn to_der(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.nest(tag::SEQUENCE, |w| {
            w.nest(0xa0, |w| w.element(tag::INTEGER, &[2]));
            w.unsigned(&self.serial);
            self.algorithm.write_identifier(w);
            w.raw(self.issuer);
            w.nest(tag::SEQUENCE, |w| {
                write_time(w, self.not_before);
                write_time(w, self.not_after);
            });
            w.raw(self.subject);
            w.raw(self.public_key.spki());
            w.nest(0xa3, |w| w.nest(tag::SEQUENCE, |w| self.write_extensions(w)));
        });
        w.finish()
    }

    fn write_extensions(&self, w: &mut Writer) {
        let authority = self.profile == Profile::Authority;
        extension(w, OID_KEY_USAGE, true, |w| {
            // Leaf: digitalSignature, keyEncipherment, keyAgreement. Authority: keyCertSign, cRLSign.
            w.element(tag::BIT_STRING, if authority { &[1, 0x06] } else { &[3, 0xa8] });
        });
        if !authority {
            extension(w, OID_EKU, false, |w| {
                w.nest(tag::SEQUENCE, |w| {
                    w.element(tag::OID, OID_SERVER_AUTH);
                    w.element(tag::OID, OID_CLIENT_AUTH);
                });
            });
        }
        extension(w, OID_BASIC_CONSTRAINTS, true, |w| {
            w.nest(tag::SEQUENCE, |w| {
                if authority {
                    w.element(tag::BOOLEAN, &[0xff]);
                }
            });
        });
        extension(w, OID_SKI, false, |w| w.element(tag::OCTET_STRING, &self.public_key.key_id()));
        if let Some(id) = self.issuer_key_id {
            extension(w, OID_AKI, false, |w| w.nest(tag::SEQUENCE, |w| w.element(0x80, id)));
        }
        // RFC 5280 section 4.2.1.6: critical when the subject is empty (XSVID-5).
        write_san(w, self.subject == [0x30, 0x00], Some(self.spiffe_id), self.dns_names);
    }
}

/// Puts the signed part and its signature together.
pub fn assemble(tbs: &[u8], algorithm: SigningAlgorithm, signature: &[u8]) -> Vec<u8> {
    crate::csr::assemble(tbs, algorithm, signature)
}

/// The SAN extension with these names.
pub fn write_san(w: &mut Writer, critical: bool, spiffe_id: Option<&SpiffeId>, dns_names: &[String]) {
    extension(w, OID_SAN, critical, |w| {
        w.nest(tag::SEQUENCE, |w| {
            for name in dns_names {
                w.element(0x82, name.as_bytes());
            }
            if let Some(id) = spiffe_id {
                w.element(0x86, id.as_str().as_bytes());
            }
        });
    });
}

/// SPIRE's subject for SVIDs, `C=US, O=SPIRE`, with a common name where there is one.
pub fn write_spire_subject(w: &mut Writer, common_name: Option<&str>) {
    w.nest(tag::SEQUENCE, |w| {
        attribute(w, OID_COUNTRY, "US");
        attribute(w, OID_ORGANIZATION, "SPIRE");
        if let Some(name) = common_name {
            attribute(w, OID_COMMON_NAME, name);
        }
    });
}

impl Subject {
    /// The name as DER, with the certificate's serial number as SPIRE adds it to tell authorities apart.
    pub fn to_der(&self, serial: &[u8]) -> Vec<u8> {
        let mut w = Writer::new();
        w.nest(tag::SEQUENCE, |w| {
            for country in &self.country {
                attribute(w, OID_COUNTRY, country);
            }
            for organization in &self.organization {
                attribute(w, OID_ORGANIZATION, organization);
            }
            if !self.common_name.is_empty() {
                attribute(w, OID_COMMON_NAME, &self.common_name);
            }
            attribute(w, OID_SERIAL_NUMBER, &super::certificate::decimal(serial));
        });
        w.finish()
    }
}

fn attribute(w: &mut Writer, oid: Oid, value: &str) {
    let printable = value.bytes().all(|b| b.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&b));
    w.nest(tag::SET, |w| {
        w.nest(tag::SEQUENCE, |w| {
            w.element(tag::OID, oid);
            w.element(if printable { tag::PRINTABLE_STRING } else { tag::UTF8_STRING }, value.as_bytes());
        });
    });
}

fn extension(w: &mut Writer, oid: Oid, critical: bool, value: impl FnOnce(&mut Writer)) {
    w.nest(tag::SEQUENCE, |w| {
        w.element(tag::OID, oid);
        if critical {
            w.element(tag::BOOLEAN, &[0xff]);
        }
        w.nest(tag::OCTET_STRING, value);
    });
}

/// UTCTime until 2049, GeneralizedTime after it (RFC 5280 section 4.1.2.5).
fn write_time(w: &mut Writer, at: Timestamp) {
    let at = time::OffsetDateTime::from_unix_timestamp(at.secs()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let rest = format!("{:02}{:02}{:02}{:02}{:02}Z", u8::from(at.month()), at.day(), at.hour(), at.minute(), at.second());
    if (1950..2050).contains(&at.year()) {
        w.element(tag::UTC_TIME, format!("{:02}{rest}", at.year().rem_euclid(100)).as_bytes());
    } else {
        w.element(tag::GENERALIZED_TIME, format!("{:04}{rest}", at.year()).as_bytes());
    }
}

/// The latest end of validity that fits: `ttl` from now, but not after the issuer's own end.
pub(crate) fn not_after(now: Timestamp, ttl: Duration, issuer_not_after: Timestamp) -> Timestamp {
    Timestamp::from_secs(now.after(ttl).min(issuer_not_after).secs())
}
