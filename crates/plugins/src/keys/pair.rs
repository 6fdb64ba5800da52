//! A key pair in memory, and the few primitives that go with it. Private bytes are wiped when dropped.

use std::fmt;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use aws_lc_rs::{digest, rand};
use countersign_identity::key::{KeyType, PublicKey, PublicKeyKind, SigningAlgorithm};
use zeroize::Zeroizing;

use super::KeyManagerError;

/// Length of a SHA-256 digest.
pub const SHA256_BYTES: usize = 32;

/// A private key and its public half.
pub struct KeyPair {
    private: Private,
    public: PublicKey,
    pkcs8: Zeroizing<Vec<u8>>,
}

enum Private {
    Ec(EcdsaKeyPair, SigningAlgorithm),
    Rsa(Box<RsaKeyPair>),
}

impl KeyPair {
    /// Makes a key. RSA takes from tens to hundreds of milliseconds: call it where that does not hold others up.
    ///
    /// # Errors
    /// The cryptographic library refused.
    pub fn generate(kind: KeyType) -> Result<Self, KeyManagerError> {
        let refuse = |_| KeyManagerError::Crypto("make a key");
        let pkcs8 = match kind {
            KeyType::EcP256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
                .map(|d| Zeroizing::new(d.as_ref().to_vec()))
                .map_err(refuse)?,
            KeyType::EcP384 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &SystemRandom::new())
                .map(|d| Zeroizing::new(d.as_ref().to_vec()))
                .map_err(refuse)?,
            KeyType::Rsa2048 | KeyType::Rsa4096 => {
                let size = if kind == KeyType::Rsa2048 { KeySize::Rsa2048 } else { KeySize::Rsa4096 };
                let pair = RsaKeyPair::generate(size).map_err(refuse)?;
                let document: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().map_err(refuse)?;
                Zeroizing::new(document.as_ref().to_vec())
            }
        };
        Self::from_pkcs8(&pkcs8)
    }

    /// From an unencrypted PKCS#8 document.
    ///
    /// # Errors
    /// Not a key of one of the four kinds.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, KeyManagerError> {
        let (private, public) = if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8) {
            let public = PublicKey::from_bits(PublicKeyKind::EcP256, pair.public_key().as_ref());
            (Private::Ec(pair, SigningAlgorithm::EcdsaP256Sha256), public)
        } else if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, pkcs8) {
            let public = PublicKey::from_bits(PublicKeyKind::EcP384, pair.public_key().as_ref());
            (Private::Ec(pair, SigningAlgorithm::EcdsaP384Sha384), public)
        } else {
            let pair = RsaKeyPair::from_pkcs8(pkcs8).map_err(|_| KeyManagerError::Crypto("read the private key"))?;
            let public = PublicKey::from_bits(PublicKeyKind::Rsa, pair.public_key().as_ref());
            (Private::Rsa(Box::new(pair)), public)
        };
        let public = public.map_err(|_| KeyManagerError::Crypto("read the private key's public half"))?;
        Ok(Self { private, public, pkcs8: Zeroizing::new(pkcs8.to_vec()) })
    }

    /// The public half.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// The private key as PKCS#8, for those who must have it: a workload, a key file, TLS.
    pub fn pkcs8(&self) -> &Zeroizing<Vec<u8>> {
        &self.pkcs8
    }

    /// How it signs.
    pub fn algorithm(&self) -> SigningAlgorithm {
        match &self.private {
            Private::Ec(_, algorithm) => *algorithm,
            Private::Rsa(_) => SigningAlgorithm::RsaPkcs1Sha256,
        }
    }

    /// Signs; ECDSA signatures are in ASN.1 form.
    ///
    /// # Errors
    /// The algorithm does not fit the key.
    pub fn sign(&self, algorithm: SigningAlgorithm, message: &[u8]) -> Result<Vec<u8>, KeyManagerError> {
        if algorithm != self.algorithm() {
            return Err(KeyManagerError::Crypto("sign: the key does not fit the algorithm"));
        }
        let refuse = |_| KeyManagerError::Crypto("sign");
        match &self.private {
            Private::Ec(pair, _) => pair.sign(&SystemRandom::new(), message).map(|s| s.as_ref().to_vec()).map_err(refuse),
            Private::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).map_err(refuse)?;
                Ok(signature)
            }
        }
    }

    /// A certificate signing request for this key.
    ///
    /// # Errors
    /// The cryptographic library refused.
    pub fn request(&self, spiffe_id: Option<&countersign_identity::SpiffeId>, dns_names: &[String]) -> Result<Vec<u8>, KeyManagerError> {
        let info = countersign_identity::csr::request_info(&self.public, spiffe_id, dns_names);
        let signature = self.sign(self.algorithm(), &info)?;
        Ok(countersign_identity::csr::assemble(&info, self.algorithm(), &signature))
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({:?})", self.public)
    }
}

/// Random bytes fit for secrets and serial numbers.
///
/// # Errors
/// The system has none.
pub fn random<const N: usize>() -> Result<[u8; N], KeyManagerError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| KeyManagerError::Crypto("draw random bytes"))?;
    Ok(bytes)
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; SHA256_BYTES] {
    let mut out = [0; SHA256_BYTES];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}
