//! A small DER writer (X.690 section 10): enough for certificates, requests and public keys, and nothing to configure.

/// An ASN.1 object identifier in its DER content form.
pub type Oid = &'static [u8];

/// id-ecPublicKey.
pub const OID_EC_PUBLIC_KEY: Oid = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// prime256v1.
pub const OID_P256: Oid = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// secp384r1.
pub const OID_P384: Oid = &[0x2b, 0x81, 0x04, 0x00, 0x22];
/// secp521r1.
pub const OID_P521: Oid = &[0x2b, 0x81, 0x04, 0x00, 0x23];
/// rsaEncryption.
pub const OID_RSA: Oid = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// ecdsa-with-SHA256.
pub const OID_ECDSA_SHA256: Oid = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// ecdsa-with-SHA384.
pub const OID_ECDSA_SHA384: Oid = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
/// sha256WithRSAEncryption.
pub const OID_RSA_SHA256: Oid = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];

/// Universal tags used here.
pub mod tag {
    #![allow(missing_docs, reason = "the names are X.680's")]
    pub const BOOLEAN: u8 = 0x01;
    pub const INTEGER: u8 = 0x02;
    pub const BIT_STRING: u8 = 0x03;
    pub const OCTET_STRING: u8 = 0x04;
    pub const NULL: u8 = 0x05;
    pub const OID: u8 = 0x06;
    pub const UTF8_STRING: u8 = 0x0c;
    pub const PRINTABLE_STRING: u8 = 0x13;
    pub const UTC_TIME: u8 = 0x17;
    pub const GENERALIZED_TIME: u8 = 0x18;
    pub const SEQUENCE: u8 = 0x30;
    pub const SET: u8 = 0x31;
}

/// Grows a DER document from the outside in.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Empty, with room for a typical certificate.
    pub fn new() -> Self {
        Self(Vec::with_capacity(512))
    }

    /// One element whose content is written by `content`.
    pub fn nest(&mut self, tag: u8, content: impl FnOnce(&mut Self)) {
        self.0.push(tag);
        let length_at = self.0.len();
        self.0.push(0);
        let start = self.0.len();
        content(self);
        let length = self.0.len() - start;
        match u8::try_from(length) {
            Ok(short) if short < 0x80 => {
                if let Some(slot) = self.0.get_mut(length_at) {
                    *slot = short;
                }
            }
            _ => {
                let bytes = length.to_be_bytes();
                let skip = bytes.iter().take_while(|b| **b == 0).count();
                let used = bytes.get(skip..).unwrap_or_default();
                if let Some(slot) = self.0.get_mut(length_at) {
                    *slot = 0x80 | u8::try_from(used.len()).unwrap_or(8);
                }
                self.0.splice(start..start, used.iter().copied());
            }
        }
    }

    /// One element with this content.
    pub fn element(&mut self, tag: u8, content: &[u8]) {
        self.nest(tag, |w| w.raw(content));
    }

    /// Bytes that are DER already.
    pub fn raw(&mut self, der: &[u8]) {
        self.0.extend_from_slice(der);
    }

    /// An unsigned integer from big-endian bytes.
    pub fn unsigned(&mut self, big_endian: &[u8]) {
        let skip = big_endian.iter().take_while(|b| **b == 0).count();
        let digits = big_endian.get(skip..).unwrap_or_default();
        self.nest(tag::INTEGER, |w| {
            if digits.first().is_none_or(|b| *b >= 0x80) {
                w.raw(&[0]);
            }
            w.raw(digits);
        });
    }

    /// A bit string of whole bytes.
    pub fn bit_string(&mut self, bytes: &[u8]) {
        self.nest(tag::BIT_STRING, |w| {
            w.raw(&[0]);
            w.raw(bytes);
        });
    }

    /// The finished document.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}
