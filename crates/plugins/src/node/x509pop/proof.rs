//! The messages, and the proof in them: a signature over both sides' nonces.
//!
//! SPIRE signs the SHA-256 of the two nonces, whatever the curve: ECDSA with two bare integers, RSA with PSS. Go's salt is as
//! long as fits (as long as the hash where Go keeps to FIPS 140), ours as long as the hash; both are taken.

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA256_ASN1, ECDSA_P521_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PSS_2048_8192_SHA256, RSA_PSS_SHA256,
    RsaKeyPair, RsaParameters, RsaPssSaltLength, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::der::{Writer, tag};
use countersign_identity::key::{PublicKey, PublicKeyKind};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::keys::{self, SHA256_BYTES};

/// Length of each side's nonce, as in SPIRE.
pub(super) const NONCE_BYTES: usize = 32;

static RSA_PSS_SALT_AS_LONG_AS_FITS: RsaParameters = RSA_PSS_2048_8192_SHA256.with_pss_salt_length(RsaPssSaltLength::Max);

/// Bytes as Go's JSON has them: base64, or null for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        STANDARD.decode(text).map(Self).map_err(|_| serde::de::Error::custom("expected base64"))
    }
}

/// What the node sends first: its chain, leaf first, DER.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Evidence {
    #[serde(default)]
    pub(super) certificates: Option<Vec<Bytes>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Nonce {
    #[serde(default)]
    nonce: Bytes,
}

/// The server's challenge; one of the two is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Challenge {
    #[serde(default)]
    rsa_signature: Option<Nonce>,
    #[serde(default)]
    ecdsa_signature: Option<Nonce>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RsaAnswer {
    #[serde(default)]
    nonce: Bytes,
    #[serde(default)]
    signature: Bytes,
}

#[derive(Debug, Serialize, Deserialize)]
struct EcdsaAnswer {
    #[serde(default)]
    nonce: Bytes,
    #[serde(default)]
    r: Bytes,
    #[serde(default)]
    s: Bytes,
}

/// The node's answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    rsa_signature: Option<RsaAnswer>,
    #[serde(default)]
    ecdsa_signature: Option<EcdsaAnswer>,
}

/// A challenge for this key; `None` for a kind of key that cannot be asked.
pub(super) fn challenge(key: &PublicKey, nonce: [u8; NONCE_BYTES]) -> Option<Challenge> {
    let nonce = Some(Nonce { nonce: Bytes(nonce.to_vec()) });
    match key.kind() {
        PublicKeyKind::Rsa => Some(Challenge { rsa_signature: nonce, ecdsa_signature: None }),
        PublicKeyKind::EcP256 | PublicKeyKind::EcP384 | PublicKeyKind::EcP521 => {
            Some(Challenge { rsa_signature: None, ecdsa_signature: nonce })
        }
        PublicKeyKind::Ed25519 => None,
    }
}

/// The bytes whose SHA-256 is signed.
fn combined(challenge: &Bytes, response: &Bytes) -> Result<Vec<u8>, &'static str> {
    if challenge.0.len() != NONCE_BYTES {
        return Err("invalid challenge nonce");
    }
    if response.0.len() != NONCE_BYTES {
        return Err("invalid response nonce");
    }
    Ok([challenge.0.as_slice(), &response.0].concat())
}

/// Checks an answer to this challenge, made with the private half of this key.
pub(super) fn verify(key: &PublicKey, challenge: &Challenge, answer: &Answer) -> Result<(), &'static str> {
    let check = |rule: &'static dyn VerificationAlgorithm, message: &[u8], signature: &[u8]| {
        UnparsedPublicKey::new(rule, key.bits()).verify(message, signature)
    };
    match (&challenge.rsa_signature, &challenge.ecdsa_signature) {
        (Some(asked), _) => {
            let answer = answer.rsa_signature.as_ref().ok_or("expecting RSA response")?;
            let message = combined(&asked.nonce, &answer.nonce)?;
            check(&RSA_PSS_SALT_AS_LONG_AS_FITS, &message, &answer.signature.0)
                .or_else(|_| check(&RSA_PSS_2048_8192_SHA256, &message, &answer.signature.0))
                .map_err(|_| "RSA signature verify failed")
        }
        (None, Some(asked)) => {
            let answer = answer.ecdsa_signature.as_ref().ok_or("expecting ECDSA response")?;
            let message = combined(&asked.nonce, &answer.nonce)?;
            let rule: &'static dyn VerificationAlgorithm = match key.kind() {
                PublicKeyKind::EcP256 => &ECDSA_P256_SHA256_ASN1,
                PublicKeyKind::EcP384 => &ECDSA_P384_SHA256_ASN1,
                PublicKeyKind::EcP521 => &ECDSA_P521_SHA256_ASN1,
                PublicKeyKind::Rsa | PublicKeyKind::Ed25519 => return Err("expecting RSA challenge"),
            };
            let mut signature = Writer::new();
            signature.nest(tag::SEQUENCE, |w| {
                w.unsigned(&answer.r.0);
                w.unsigned(&answer.s.0);
            });
            check(rule, &message, &signature.finish()).map_err(|_| "ECDSA signature verify failed")
        }
        (None, None) => Err("there was no challenge"),
    }
}

/// The private key of a node's certificate.
pub(super) enum NodeKey {
    Rsa(Box<RsaKeyPair>),
    Ec(PublicKeyKind, EcdsaKeyPair),
}

impl NodeKey {
    /// From PKCS#8, PKCS#1 or SEC 1.
    pub(super) fn from_der(der: &[u8]) -> Option<Self> {
        for (kind, algorithm) in [
            (PublicKeyKind::EcP256, &ECDSA_P256_SHA256_FIXED_SIGNING),
            (PublicKeyKind::EcP384, &ECDSA_P384_SHA384_FIXED_SIGNING),
            (PublicKeyKind::EcP521, &ECDSA_P521_SHA256_FIXED_SIGNING),
        ] {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(algorithm, der) {
                return Some(Self::Ec(kind, pair));
            }
        }
        RsaKeyPair::from_pkcs8(der).or_else(|_| RsaKeyPair::from_der(der)).ok().map(|pair| Self::Rsa(Box::new(pair)))
    }

    /// Whether this is its public half.
    pub(super) fn fits(&self, key: &PublicKey) -> bool {
        match self {
            Self::Rsa(pair) => pair.public_key().as_ref() == key.bits(),
            Self::Ec(_, pair) => pair.public_key().as_ref() == key.bits(),
        }
    }

    /// Answers a challenge.
    pub(super) fn answer(&self, challenge: &Challenge) -> Result<Answer, &'static str> {
        let own = Bytes(keys::random::<NONCE_BYTES>().map_err(|_| "no random bytes")?.to_vec());
        match self {
            Self::Rsa(pair) => {
                let asked = challenge.rsa_signature.as_ref().ok_or("expecting RSA challenge")?;
                let message = combined(&asked.nonce, &own)?;
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PSS_SHA256, &SystemRandom::new(), &message, &mut signature).map_err(|_| "the key does not sign")?;
                Ok(Answer { rsa_signature: Some(RsaAnswer { nonce: own, signature: Bytes(signature) }), ecdsa_signature: None })
            }
            Self::Ec(kind, pair) => {
                let asked = challenge.ecdsa_signature.as_ref().ok_or("expecting ECDSA challenge")?;
                let message = combined(&asked.nonce, &own)?;
                let digest = digest_for(*kind, &message).ok_or("the key does not sign")?;
                let signature = pair.sign_digest(&digest).map_err(|_| "the key does not sign")?;
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                Ok(Answer { rsa_signature: None, ecdsa_signature: Some(EcdsaAnswer { nonce: own, r: integer(r), s: integer(s) }) })
            }
        }
    }
}

/// What is signed: the SHA-256, on every curve. The library signs on P-384 only what is as long as a SHA-384, so zeros come
/// before it; ECDSA takes the digest as a number no longer than the curve's order, and zeros before a number change nothing.
fn digest_for(kind: PublicKeyKind, message: &[u8]) -> Option<Digest> {
    let digest = digest::digest(&digest::SHA256, message);
    if kind != PublicKeyKind::EcP384 {
        return Some(digest);
    }
    let mut padded = vec![0; digest::SHA384.output_len() - SHA256_BYTES];
    padded.extend_from_slice(digest.as_ref());
    Digest::import_less_safe(&padded, &digest::SHA384).ok()
}

/// A number without leading zeros, as Go writes it.
fn integer(bytes: &[u8]) -> Bytes {
    Bytes(bytes.iter().copied().skip_while(|b| *b == 0).collect())
}
