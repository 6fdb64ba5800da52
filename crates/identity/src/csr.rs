//! Certificate signing requests (RFC 2986): parsed, limited, and their proof of possession checked, always.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use crate::der::{Writer, tag};
use crate::id::{IdError, SpiffeId};
use crate::key::{KeyError, PublicKey, SigningAlgorithm};

/// Largest request accepted: an RSA-8192 key, a 2048-byte ID and a hundred DNS names fit.
pub const CSR_BYTES_MAX: usize = 32 << 10;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Over [`CSR_BYTES_MAX`].
    #[error("the request has {0} bytes, more than the {CSR_BYTES_MAX} allowed")]
    TooLong(usize),
    /// Not PKCS#10.
    #[error("malformed certificate signing request")]
    Malformed,
    /// A key we do not take.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Not signed by the key it asks to certify.
    #[error("the request is not signed by its own key")]
    Possession,
    /// A URI SAN that is not a SPIFFE ID.
    #[error("the URI `{uri}` is not a SPIFFE ID")]
    Uri {
        /// As found, cut to a readable length.
        uri: String,
        /// Which rule it breaks.
        source: IdError,
    },
    /// More than one URI SAN.
    #[error("the request has more than one URI")]
    TooManyUris,
}

/// A request whose signature was checked.
#[derive(Debug, Clone)]
pub struct Csr {
    /// The key to certify; its holder signed the request.
    pub public_key: PublicKey,
    /// The SPIFFE ID asked for, if one is.
    pub spiffe_id: Option<SpiffeId>,
    /// DNS names asked for, in order.
    pub dns_names: Vec<String>,
    /// The subject's common name, if one is given.
    pub common_name: Option<String>,
}

impl Csr {
    /// Parses a request and checks its proof of possession.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > CSR_BYTES_MAX {
            return Err(CsrError::TooLong(der.len()));
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let info = &request.certification_request_info;
        let public_key = PublicKey::from_parsed(&info.subject_pki)?;
        public_key.verify_x509(&request.signature_algorithm, info.raw, &request.signature_value).map_err(|_| CsrError::Possession)?;
        let mut spiffe_id = None;
        let mut dns_names = Vec::new();
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(san) = extension else { continue };
            for name in &san.general_names {
                match name {
                    GeneralName::URI(uri) => {
                        let id = SpiffeId::parse(uri).map_err(|source| CsrError::Uri { uri: uri.chars().take(120).collect(), source })?;
                        if spiffe_id.replace(id).is_some() {
                            return Err(CsrError::TooManyUris);
                        }
                    }
                    GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                    _ => {}
                }
            }
        }
        let common_name = info.subject.iter_common_name().next().and_then(|a| a.as_str().ok()).map(ToOwned::to_owned);
        Ok(Self { public_key, spiffe_id, dns_names, common_name })
    }
}

/// The part of a request that is signed: subject `C=US, O=SPIRE` as SPIRE's agents send it, the key, and the names.
pub fn request_info(public_key: &PublicKey, spiffe_id: Option<&SpiffeId>, dns_names: &[String]) -> Vec<u8> {
    let mut w = Writer::new();
    w.nest(tag::SEQUENCE, |w| {
        w.element(tag::INTEGER, &[0]);
        crate::x509::write_spire_subject(w, None);
        w.raw(public_key.spki());
        w.nest(0xa0, |w| {
            if spiffe_id.is_none() && dns_names.is_empty() {
                return;
            }
            w.nest(tag::SEQUENCE, |w| {
                w.element(tag::OID, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e]);
                w.nest(tag::SET, |w| {
                    w.nest(tag::SEQUENCE, |w| {
                        crate::x509::write_san(w, false, spiffe_id, dns_names);
                    });
                });
            });
        });
    });
    w.finish()
}

/// Puts the signed part and its signature together.
pub fn assemble(info: &[u8], algorithm: SigningAlgorithm, signature: &[u8]) -> Vec<u8> {
    let mut w = Writer::new();
    w.nest(tag::SEQUENCE, |w| {
        w.raw(info);
        algorithm.write_identifier(w);
        w.bit_string(signature);
    });
    w.finish()
}
