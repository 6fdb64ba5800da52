//! Public keys and algorithms: which there are, how they are named, and how a signature is checked.

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_parser::asn1_rs::BitString;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::{PublicKey as Parsed, RSAPublicKey};
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use crate::der::{self, Writer, tag};

/// Smallest RSA modulus accepted, in bits (NIST SP 800-131A).
pub const RSA_BITS_MIN: usize = 2048;
/// Largest RSA modulus accepted, in bits: a check with a larger one costs a caller's worth of CPU.
pub const RSA_BITS_MAX: usize = 8192;
/// Largest public key document accepted, in bytes; RSA with 8192 bits needs 1,062.
pub const SPKI_BYTES_MAX: usize = 2048;

/// The kinds of key an authority or a workload may have, as SPIRE's configuration names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyType {
    /// ECDSA on P-256.
    EcP256,
    /// ECDSA on P-384.
    EcP384,
    /// RSA with 2048 bits.
    Rsa2048,
    /// RSA with 4096 bits.
    Rsa4096,
}

impl KeyType {
    /// All of them, in the order documentation lists them.
    pub const ALL: [Self; 4] = [Self::EcP256, Self::EcP384, Self::Rsa2048, Self::Rsa4096];

    /// The configuration's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EcP256 => "ec-p256",
            Self::EcP384 => "ec-p384",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa4096 => "rsa-4096",
        }
    }

    /// From the configuration's word, without regard to case.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// The algorithm an authority with such a key signs with.
    pub const fn algorithm(self) -> SigningAlgorithm {
        match self {
            Self::EcP256 => SigningAlgorithm::EcdsaP256Sha256,
            Self::EcP384 => SigningAlgorithm::EcdsaP384Sha384,
            Self::Rsa2048 | Self::Rsa4096 => SigningAlgorithm::RsaPkcs1Sha256,
        }
    }
}

/// How an authority signs. ECDSA signatures are in ASN.1 form, as X.509 wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SigningAlgorithm {
    /// ECDSA on P-256 with SHA-256; `ES256` in a token.
    EcdsaP256Sha256,
    /// ECDSA on P-384 with SHA-384; `ES384` in a token.
    EcdsaP384Sha384,
    /// RSASSA-PKCS1-v1_5 with SHA-256; `RS256` in a token.
    RsaPkcs1Sha256,
}

impl SigningAlgorithm {
    /// Its name in a token's `alg`.
    pub const fn jws_name(self) -> &'static str {
        match self {
            Self::EcdsaP256Sha256 => "ES256",
            Self::EcdsaP384Sha384 => "ES384",
            Self::RsaPkcs1Sha256 => "RS256",
        }
    }

    /// Its AlgorithmIdentifier for certificates (RFC 5758 section 3.2, RFC 4055 section 5).
    pub fn write_identifier(self, w: &mut Writer) {
        w.nest(tag::SEQUENCE, |w| match self {
            Self::EcdsaP256Sha256 => w.element(tag::OID, der::OID_ECDSA_SHA256),
            Self::EcdsaP384Sha384 => w.element(tag::OID, der::OID_ECDSA_SHA384),
            Self::RsaPkcs1Sha256 => {
                w.element(tag::OID, der::OID_RSA_SHA256);
                w.element(tag::NULL, &[]);
            }
        });
    }
}

/// What kind of public key it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PublicKeyKind {
    /// NIST P-256.
    EcP256,
    /// NIST P-384.
    EcP384,
    /// NIST P-521.
    EcP521,
    /// RSA of [`RSA_BITS_MIN`] to [`RSA_BITS_MAX`] bits.
    Rsa,
    /// Ed25519; certificates only, the JWT-SVID standard leaves it out.
    Ed25519,
}

/// Why a public key is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a SubjectPublicKeyInfo.
    #[error("the public key is malformed")]
    Malformed,
    /// Over [`SPKI_BYTES_MAX`].
    #[error("the public key has {0} bytes, more than the {SPKI_BYTES_MAX} allowed")]
    TooLong(usize),
    /// An algorithm or curve that is not supported.
    #[error("the public key's algorithm or curve is not supported; supported are EC P-256, P-384 and P-521, RSA and Ed25519")]
    Unsupported,
    /// RSA outside the limits.
    #[error("the RSA key has {0} bits; allowed are {RSA_BITS_MIN} to {RSA_BITS_MAX}")]
    RsaBits(usize),
}

/// The signature does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct BadSignature;

/// A public key as SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7), checked on construction.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey {
    spki: Vec<u8>,
    bits: Vec<u8>,
    kind: PublicKeyKind,
}

impl PublicKey {
    /// Parses a PKIX document.
    ///
    /// # Errors
    /// Malformed, too long, or not of a supported kind.
    pub fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        if der.len() > SPKI_BYTES_MAX {
            return Err(KeyError::TooLong(der.len()));
        }
        let (rest, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| KeyError::Malformed)?;
        if !rest.is_empty() {
            return Err(KeyError::Malformed);
        }
        Self::from_parsed(&info)
    }

    pub(crate) fn from_parsed(info: &SubjectPublicKeyInfo<'_>) -> Result<Self, KeyError> {
        if info.raw.len() > SPKI_BYTES_MAX {
            return Err(KeyError::TooLong(info.raw.len()));
        }
        let bits = &*info.subject_public_key.data;
        let kind = match info.parsed().map_err(|_| KeyError::Malformed)? {
            Parsed::RSA(rsa) => {
                let size = rsa.key_size();
                if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&size) {
                    return Err(KeyError::RsaBits(size));
                }
                // One spelling of the numbers too: a JWK can only hold positive ones, so a negative one would be another key there.
                let mut numbers = Writer::new();
                numbers.nest(tag::SEQUENCE, |w| {
                    w.unsigned(rsa.modulus);
                    w.unsigned(rsa.exponent);
                });
                if numbers.finish() != bits {
                    return Err(KeyError::Malformed);
                }
                PublicKeyKind::Rsa
            }
            Parsed::EC(_) => {
                let (kind, coordinate_bytes) = match curve(&info.algorithm) {
                    Some(der::OID_P256) => (PublicKeyKind::EcP256, 32),
                    Some(der::OID_P384) => (PublicKeyKind::EcP384, 48),
                    Some(der::OID_P521) => (PublicKeyKind::EcP521, 66),
                    _ => return Err(KeyError::Unsupported),
                };
                // Uncompressed only: a JWK is cut from these bytes.
                if bits.len() != 1 + 2 * coordinate_bytes || bits.first() != Some(&4) {
                    return Err(KeyError::Malformed);
                }
                kind
            }
            _ if info.algorithm.algorithm.as_bytes() == [0x2b, 0x65, 0x70] => {
                if bits.len() != 32 {
                    return Err(KeyError::Malformed);
                }
                PublicKeyKind::Ed25519
            }
            _ => return Err(KeyError::Unsupported),
        };
        // One spelling only: the parser passes over foreign tags, unused bits and whatever follows the bit string inside
        // the sequence (`raw` then ends before its own length says), and these bytes go into what we sign.
        let spki = write_spki(kind, bits);
        if spki != info.raw {
            return Err(KeyError::Malformed);
        }
        Ok(Self { spki, bits: bits.to_vec(), kind })
    }

    /// From the uncompressed point of a curve, or the PKCS#1 document of an RSA key.
    ///
    /// # Errors
    /// As [`PublicKey::from_spki`].
    pub fn from_bits(kind: PublicKeyKind, bits: &[u8]) -> Result<Self, KeyError> {
        Self::from_spki(&write_spki(kind, bits))
    }

    /// The SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The bits inside it: a point, a PKCS#1 document, or 32 bytes.
    pub fn bits(&self) -> &[u8] {
        &self.bits
    }

    /// What kind it is.
    pub const fn kind(&self) -> PublicKeyKind {
        self.kind
    }

    /// The length of an RSA key's modulus, in bits.
    pub fn rsa_bits(&self) -> Option<usize> {
        if self.kind != PublicKeyKind::Rsa {
            return None;
        }
        RSAPublicKey::from_der(&self.bits).ok().map(|(_, rsa)| rsa.key_size())
    }

    /// The subject key identifier: SHA-1 over the bits (RFC 5280 section 4.2.1.2, method 1), as SPIRE computes it.
    pub fn key_id(&self) -> Vec<u8> {
        digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &self.bits).as_ref().to_vec()
    }

    /// Checks a signature made with an authority's algorithm.
    ///
    /// # Errors
    /// The key is of another kind or the signature is wrong.
    pub fn verify(&self, algorithm: SigningAlgorithm, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        match (algorithm, self.kind) {
            (SigningAlgorithm::EcdsaP256Sha256, PublicKeyKind::EcP256) => {
                self.check(&signature::ECDSA_P256_SHA256_ASN1, message, signature)
            }
            (SigningAlgorithm::EcdsaP384Sha384, PublicKeyKind::EcP384) => {
                self.check(&signature::ECDSA_P384_SHA384_ASN1, message, signature)
            }
            (SigningAlgorithm::RsaPkcs1Sha256, PublicKeyKind::Rsa) => {
                self.check(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            _ => Err(BadSignature),
        }
    }

    /// Checks a signature under an X.509 AlgorithmIdentifier.
    pub(crate) fn verify_x509(
        &self,
        algorithm: &AlgorithmIdentifier<'_>,
        message: &[u8],
        signature: &BitString<'_>,
    ) -> Result<(), BadSignature> {
        use PublicKeyKind as K;
        const RSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];
        const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
        const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
        if signature.unused_bits != 0 {
            return Err(BadSignature);
        }
        let oid = algorithm.algorithm.as_bytes();
        let rule: &'static dyn VerificationAlgorithm = if oid == RSA_PSS {
            match (self.kind, pss_hash(algorithm)) {
                (K::Rsa, Some(256)) => &signature::RSA_PSS_2048_8192_SHA256,
                (K::Rsa, Some(384)) => &signature::RSA_PSS_2048_8192_SHA384,
                (K::Rsa, Some(512)) => &signature::RSA_PSS_2048_8192_SHA512,
                _ => return Err(BadSignature),
            }
        } else if let Some([arc]) = oid.strip_prefix(ECDSA) {
            match (self.kind, arc) {
                (K::EcP256, 2) => &signature::ECDSA_P256_SHA256_ASN1,
                (K::EcP256, 3) => &signature::ECDSA_P256_SHA384_ASN1,
                (K::EcP384, 2) => &signature::ECDSA_P384_SHA256_ASN1,
                (K::EcP384, 3) => &signature::ECDSA_P384_SHA384_ASN1,
                (K::EcP521, 2) => &signature::ECDSA_P521_SHA256_ASN1,
                (K::EcP521, 3) => &signature::ECDSA_P521_SHA384_ASN1,
                (K::EcP521, 4) => &signature::ECDSA_P521_SHA512_ASN1,
                _ => return Err(BadSignature),
            }
        } else if let Some([arc]) = oid.strip_prefix(RSA) {
            match (self.kind, arc) {
                (K::Rsa, 0x0b) => &signature::RSA_PKCS1_2048_8192_SHA256,
                (K::Rsa, 0x0c) => &signature::RSA_PKCS1_2048_8192_SHA384,
                (K::Rsa, 0x0d) => &signature::RSA_PKCS1_2048_8192_SHA512,
                _ => return Err(BadSignature),
            }
        } else if oid == [0x2b, 0x65, 0x70] && self.kind == K::Ed25519 {
            &signature::ED25519
        } else {
            return Err(BadSignature);
        };
        self.check(rule, message, &signature.data)
    }

    /// Checks a signature as a token carries it (RFC 7518 section 3: ECDSA as two fixed-length integers).
    pub(crate) fn verify_jws(&self, algorithm: crate::jwt::Algorithm, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        use crate::jwt::Algorithm as A;
        let (kind, rule): (PublicKeyKind, &'static dyn VerificationAlgorithm) = match algorithm {
            A::Rs256 => (PublicKeyKind::Rsa, &signature::RSA_PKCS1_2048_8192_SHA256),
            A::Rs384 => (PublicKeyKind::Rsa, &signature::RSA_PKCS1_2048_8192_SHA384),
            A::Rs512 => (PublicKeyKind::Rsa, &signature::RSA_PKCS1_2048_8192_SHA512),
            A::Es256 => (PublicKeyKind::EcP256, &signature::ECDSA_P256_SHA256_FIXED),
            A::Es384 => (PublicKeyKind::EcP384, &signature::ECDSA_P384_SHA384_FIXED),
            A::Es512 => (PublicKeyKind::EcP521, &signature::ECDSA_P521_SHA512_FIXED),
            A::Ps256 => (PublicKeyKind::Rsa, &signature::RSA_PSS_2048_8192_SHA256),
            A::Ps384 => (PublicKeyKind::Rsa, &signature::RSA_PSS_2048_8192_SHA384),
            A::Ps512 => (PublicKeyKind::Rsa, &signature::RSA_PSS_2048_8192_SHA512),
        };
        if kind != self.kind {
            return Err(BadSignature);
        }
        self.check(rule, message, signature)
    }

    fn check(&self, rule: &'static dyn VerificationAlgorithm, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        UnparsedPublicKey::new(rule, &self.bits).verify(message, signature).map_err(|_| BadSignature)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?}, {})", self.kind, hex(&self.key_id()))
    }
}

/// The SubjectPublicKeyInfo of these bits, in its one spelling.
fn write_spki(kind: PublicKeyKind, bits: &[u8]) -> Vec<u8> {
    let mut w = Writer::new();
    w.nest(tag::SEQUENCE, |w| {
        w.nest(tag::SEQUENCE, |w| match kind {
            PublicKeyKind::EcP256 | PublicKeyKind::EcP384 | PublicKeyKind::EcP521 => {
                w.element(tag::OID, der::OID_EC_PUBLIC_KEY);
                w.element(
                    tag::OID,
                    match kind {
                        PublicKeyKind::EcP384 => der::OID_P384,
                        PublicKeyKind::EcP521 => der::OID_P521,
                        _ => der::OID_P256,
                    },
                );
            }
            PublicKeyKind::Rsa => {
                w.element(tag::OID, der::OID_RSA);
                w.element(tag::NULL, &[]);
            }
            PublicKeyKind::Ed25519 => w.element(tag::OID, &[0x2b, 0x65, 0x70]),
        });
        w.bit_string(bits);
    });
    w.finish()
}

fn curve<'a>(algorithm: &'a AlgorithmIdentifier<'_>) -> Option<&'a [u8]> {
    // The parameters are the OID of a named curve; its content is what we compare.
    algorithm.parameters.as_ref().map(|p| p.data)
}

/// The hash in RSASSA-PSS-params (RFC 4055 section 3.1), when mask and salt fit it as every CA in use sets them.
fn pss_hash(algorithm: &AlgorithmIdentifier<'_>) -> Option<u16> {
    use x509_parser::signature_algorithm::SignatureAlgorithm;
    let Ok(SignatureAlgorithm::RSASSA_PSS(params)) = SignatureAlgorithm::try_from(algorithm) else { return None };
    let (bits, salt) = match params.hash_algorithm_oid().to_id_string().as_str() {
        "2.16.840.1.101.3.4.2.1" => (256, 32),
        "2.16.840.1.101.3.4.2.2" => (384, 48),
        "2.16.840.1.101.3.4.2.3" => (512, 64),
        _ => return None,
    };
    (params.salt_length() == salt).then_some(bits)
}

/// Lower-case hexadecimal, as authority IDs are written.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
