//! Authorities, leaves and tokens for the tests: right ones by default, wrong ones on demand.

use std::sync::LazyLock;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self as sig, EcdsaKeyPair, KeyPair as _, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_identity::bundle::JwtAuthority;
use countersign_identity::issue::{Kind, Permission};
use countersign_identity::key::{KeyType, PublicKey, PublicKeyKind, SigningAlgorithm};
use countersign_identity::x509::{Certificate, ChainError, verify_chain};
use countersign_identity::{Bundle, BundleSet, SpiffeId, Timestamp, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

/// The time of every test: 2027-01-15 08:00:00 UTC.
pub const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
pub const HOUR: Duration = Duration::from_secs(3600);
pub const WEB: &str = "spiffe://example.org/web";

pub fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

pub fn id(uri: &str) -> SpiffeId {
    SpiffeId::parse(uri).unwrap()
}

/// One signing key for all rcgen leaves: what is certified hardly matters, who certifies does.
pub static LEAF_KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub fn at(secs: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(secs).unwrap()
}

fn base(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = at(NOW.secs() - 3600);
    params.not_after = at(NOW.secs() + 3600);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.use_authority_key_identifier_extension = true;
    params
}

/// What a proper signing certificate says.
pub fn ca_params(common_name: &str) -> CertificateParams {
    let mut params = base(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// What a proper leaf says.
pub fn leaf_params(spiffe_id: &str) -> CertificateParams {
    let mut params = base("leaf");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![uri(spiffe_id)];
    params
}

/// A signing certificate with its key.
pub struct Ca {
    pub issuer: Issuer<'static, KeyPair>,
    pub der: Vec<u8>,
}

impl Ca {
    pub fn root(common_name: &str) -> Self {
        Self::root_with(common_name, |_| ())
    }

    pub fn root_with(common_name: &str, adjust: impl FnOnce(&mut CertificateParams)) -> Self {
        Self::root_of(KeyPair::generate().unwrap(), common_name, adjust)
    }

    pub fn root_of(key: KeyPair, common_name: &str, adjust: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca_params(common_name);
        adjust(&mut params);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    pub fn sub(&self, common_name: &str) -> Self {
        self.sub_with(common_name, |_| ())
    }

    pub fn sub_with(&self, common_name: &str, adjust: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = ca_params(common_name);
        adjust(&mut params);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    /// This authority's name and key, certified by another one.
    pub fn cross_signed_by(&self, common_name: &str, other: &Self) -> Vec<u8> {
        let mut params = ca_params(common_name);
        // Without a hint which of several signers of one name it was.
        params.use_authority_key_identifier_extension = false;
        params.signed_by(self.issuer.key(), &other.issuer).unwrap().der().to_vec()
    }

    pub fn leaf(&self, spiffe_id: &str) -> Vec<u8> {
        self.leaf_with(spiffe_id, |_| ())
    }

    pub fn leaf_with(&self, spiffe_id: &str, adjust: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = leaf_params(spiffe_id);
        adjust(&mut params);
        params.signed_by(&*LEAF_KEY, &self.issuer).unwrap().der().to_vec()
    }

    pub fn certificate(&self) -> Certificate {
        Certificate::parse(&self.der).unwrap()
    }
}

/// A bundle of X.509 roots.
pub fn roots(trust_domain: &str, ders: &[&[u8]]) -> Bundle {
    let mut bundle = Bundle::empty(td(trust_domain));
    for der in ders {
        bundle.add_x509_authority(Certificate::parse(der).unwrap(), false).unwrap();
    }
    bundle
}

pub fn set(bundles: impl IntoIterator<Item = Bundle>) -> BundleSet {
    bundles.into_iter().map(std::sync::Arc::new).collect()
}

/// Verifies a chain against the roots of `example.org` alone.
pub fn verify(root: &[u8], chain: &[&[u8]]) -> Result<SpiffeId, ChainError> {
    verify_chain(chain, &set([roots("example.org", &[root])]), NOW).map(|(id, _)| id)
}

/// An extension rcgen does not write, from its dotted OID and DER content.
pub fn extension(oid: &[u64], critical: bool, content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content);
    extension.set_criticality(critical);
    extension
}

/// One DER element, for content shorter than 128 bytes.
pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    assert!(content.len() < 128);
    let mut der = vec![tag, u8::try_from(content.len()).unwrap()];
    der.extend_from_slice(content);
    der
}

/// A nameConstraints extension with these subtrees, each a general name's tag and content.
pub fn name_constraints(permitted: &[(u8, &[u8])], excluded: &[(u8, &[u8])]) -> CustomExtension {
    let trees = |tag, names: &[(u8, &[u8])]| {
        let subtrees: Vec<u8> = names.iter().flat_map(|(name_tag, content)| tlv(0x30, &tlv(*name_tag, content))).collect();
        if subtrees.is_empty() { Vec::new() } else { tlv(tag, &subtrees) }
    };
    extension(&[2, 5, 29, 30], true, tlv(0x30, &[trees(0xa0, permitted), trees(0xa1, excluded)].concat()))
}

/// A private key of any kind a bundle may list.
pub enum Signer {
    Ec(EcdsaKeyPair, PublicKeyKind),
    Rsa(Box<RsaKeyPair>),
}

impl Signer {
    pub fn p256() -> Self {
        Self::Ec(EcdsaKeyPair::generate(&sig::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(), PublicKeyKind::EcP256)
    }

    pub fn p384() -> Self {
        Self::Ec(EcdsaKeyPair::generate(&sig::ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(), PublicKeyKind::EcP384)
    }

    pub fn p521() -> Self {
        Self::Ec(EcdsaKeyPair::generate(&sig::ECDSA_P521_SHA512_FIXED_SIGNING).unwrap(), PublicKeyKind::EcP521)
    }

    pub fn rsa(size: KeySize) -> Self {
        Self::Rsa(Box::new(RsaKeyPair::generate(size).unwrap()))
    }

    /// An authority's key, whose ECDSA signatures are in ASN.1 form.
    pub fn authority(key_type: KeyType) -> Self {
        match key_type {
            KeyType::EcP256 => Self::Ec(EcdsaKeyPair::generate(&sig::ECDSA_P256_SHA256_ASN1_SIGNING).unwrap(), PublicKeyKind::EcP256),
            KeyType::EcP384 => Self::Ec(EcdsaKeyPair::generate(&sig::ECDSA_P384_SHA384_ASN1_SIGNING).unwrap(), PublicKeyKind::EcP384),
            KeyType::Rsa2048 => Self::rsa(KeySize::Rsa2048),
            KeyType::Rsa4096 => Self::rsa(KeySize::Rsa4096),
        }
    }

    pub fn public(&self) -> PublicKey {
        match self {
            Self::Ec(key, kind) => PublicKey::from_bits(*kind, key.public_key().as_ref()).unwrap(),
            Self::Rsa(key) => PublicKey::from_bits(PublicKeyKind::Rsa, key.public_key().as_ref()).unwrap(),
        }
    }

    fn sign_rsa(key: &RsaKeyPair, padding: &'static dyn sig::RsaEncoding, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(padding, &SystemRandom::new(), message, &mut signature).unwrap();
        signature
    }

    /// Signs as a JWS algorithm wants it.
    pub fn jws(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Ec(key, _) => key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Self::Rsa(key) => {
                let padding: &'static dyn sig::RsaEncoding = match algorithm {
                    "RS384" => &sig::RSA_PKCS1_SHA384,
                    "RS512" => &sig::RSA_PKCS1_SHA512,
                    "PS256" => &sig::RSA_PSS_SHA256,
                    "PS384" => &sig::RSA_PSS_SHA384,
                    "PS512" => &sig::RSA_PSS_SHA512,
                    _ => &sig::RSA_PKCS1_SHA256,
                };
                Self::sign_rsa(key, padding, message)
            }
        }
    }

    /// Signs as an authority does.
    pub fn sign(&self, algorithm: SigningAlgorithm, message: &[u8]) -> Vec<u8> {
        self.jws(algorithm.jws_name(), message)
    }
}

/// Keys that take a while to make, made once.
pub static P256: LazyLock<Signer> = LazyLock::new(Signer::p256);
pub static P384: LazyLock<Signer> = LazyLock::new(Signer::p384);
pub static P521: LazyLock<Signer> = LazyLock::new(Signer::p521);
pub static RSA: LazyLock<Signer> = LazyLock::new(|| Signer::rsa(KeySize::Rsa2048));

pub fn jwt_authority(key_id: &str, key: &Signer) -> JwtAuthority {
    JwtAuthority { key_id: key_id.to_owned(), public_key: key.public(), expires_at: None, tainted: false }
}

/// A bundle with these named JWT keys.
pub fn jwt_keys(trust_domain: &str, keys: &[(&str, &Signer)]) -> Bundle {
    let mut bundle = Bundle::empty(td(trust_domain));
    for (key_id, key) in keys {
        bundle.add_jwt_authority(jwt_authority(key_id, key)).unwrap();
    }
    bundle
}

pub fn encode(part: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

/// The header of a proper token.
pub fn header() -> Value {
    json!({"alg": "ES256", "kid": "k", "typ": "JWT"})
}

/// The claims of a proper token for the audience `db`.
pub fn claims() -> Value {
    json!({"sub": WEB, "aud": ["db"], "iat": NOW.secs(), "exp": NOW.secs() + 300})
}

/// Any header and claims, signed properly.
pub fn token(header: &Value, claims: &Value, key: &Signer) -> String {
    let input = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
    let signature = key.jws(header["alg"].as_str().unwrap_or_default(), input.as_bytes());
    format!("{input}.{}", encode(signature))
}

/// `base` with members replaced or, where null, removed.
pub fn with(mut base: Value, members: &Value) -> Value {
    let object = base.as_object_mut().unwrap();
    for (name, value) in members.as_object().unwrap() {
        if value.is_null() {
            object.remove(name);
        } else {
            object.insert(name.clone(), value.clone());
        }
    }
    base
}

/// A permission that says whatever the test wants it to say.
#[derive(Debug, Clone)]
pub struct Leave {
    pub kind: Kind,
    pub spiffe_id: SpiffeId,
    pub lifetime: Duration,
    pub dns_names: Vec<String>,
    pub audience: Vec<String>,
}

impl Leave {
    pub fn x509(spiffe_id: &str) -> Self {
        Self { kind: Kind::WorkloadX509, spiffe_id: id(spiffe_id), lifetime: HOUR, dns_names: Vec::new(), audience: Vec::new() }
    }

    pub fn jwt(spiffe_id: &str, audience: &[&str]) -> Self {
        let audience = audience.iter().map(|a| (*a).to_owned()).collect();
        Self { kind: Kind::WorkloadJwt, audience, lifetime: Duration::from_secs(300), ..Self::x509(spiffe_id) }
    }

    pub fn authority(spiffe_id: &str) -> Self {
        Self { kind: Kind::AuthorityX509, lifetime: 24 * HOUR, ..Self::x509(spiffe_id) }
    }
}

impl Permission for Leave {
    fn kind(&self) -> Kind {
        self.kind
    }
    fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }
    fn lifetime(&self) -> Duration {
        self.lifetime
    }
    fn dns_names(&self) -> &[String] {
        &self.dns_names
    }
    fn audience(&self) -> &[String] {
        &self.audience
    }
}

/// Our own authority: a key, and the certificate our own code made for it.
pub struct Own {
    pub key: Signer,
    pub algorithm: SigningAlgorithm,
    pub certificate: Certificate,
}

impl Own {
    pub fn of(key_type: KeyType, trust_domain: &str) -> Self {
        use countersign_identity::issue::{Credential, Linted};
        let key = Signer::authority(key_type);
        let algorithm = key_type.algorithm();
        let leave = Leave::authority(&format!("spiffe://{trust_domain}"));
        let subject = countersign_identity::x509::Subject::default();
        let linted = Linted::authority(leave, &subject, &key.public(), algorithm, [7; 16], NOW).unwrap();
        let signature = key.sign(linted.algorithm(), linted.bytes());
        let Credential::X509(der) = linted.finish(&signature).unwrap() else { panic!("not a certificate") };
        Self { certificate: Certificate::parse(&der).unwrap(), key, algorithm }
    }

    fn trust_domain(&self) -> countersign_identity::TrustDomain {
        self.certificate.spiffe_id().unwrap().trust_domain()
    }

    pub fn x509_issuer(&self) -> countersign_identity::issue::X509Issuer {
        use x509_parser::prelude::FromDer as _;
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(self.certificate.der()).unwrap();
        countersign_identity::issue::X509Issuer {
            trust_domain: self.trust_domain(),
            subject: parsed.subject().as_raw().to_vec(),
            key_id: self.certificate.key_id.clone().unwrap(),
            algorithm: self.algorithm,
            not_before: self.certificate.not_before,
            not_after: self.certificate.not_after,
        }
    }

    pub fn jwt_issuer(&self) -> countersign_identity::issue::JwtIssuer {
        countersign_identity::issue::JwtIssuer {
            trust_domain: self.trust_domain(),
            key_id: "k".to_owned(),
            algorithm: self.algorithm,
            expires_at: NOW.after(24 * HOUR),
            issuer: None,
        }
    }

    /// An X509-SVID for the shared P-256 key.
    pub fn x509(&self, leave: Leave) -> Vec<u8> {
        use countersign_identity::issue::{Credential, Linted};
        let linted = Linted::x509(leave, &self.x509_issuer(), &P256.public(), [9; 16], NOW).unwrap();
        let signature = self.key.sign(linted.algorithm(), linted.bytes());
        let Credential::X509(der) = linted.finish(&signature).unwrap() else { panic!("not a certificate") };
        der
    }

    /// A JWT-SVID.
    pub fn jwt(&self, leave: Leave, token_id: Option<&str>) -> String {
        use countersign_identity::issue::{Credential, Linted};
        let linted = Linted::jwt(leave, &self.jwt_issuer(), token_id, NOW).unwrap();
        let signature = self.key.sign(linted.algorithm(), linted.bytes());
        let Credential::Jwt(token) = linted.finish(&signature).unwrap() else { panic!("not a token") };
        token
    }

    /// The bundle that vouches for both kinds.
    pub fn bundle(&self) -> Bundle {
        let name = self.certificate.spiffe_id().unwrap().trust_domain();
        let mut bundle = Bundle::empty(name);
        bundle.add_x509_authority(self.certificate.clone(), false).unwrap();
        bundle.add_jwt_authority(jwt_authority("k", &self.key)).unwrap();
        bundle
    }
}

/// The P-256 authority of `example.org` that most issuing tests share.
pub static OWN: LazyLock<Own> = LazyLock::new(|| Own::of(KeyType::EcP256, "example.org"));

/// The raw content and criticality of one extension, found by its dotted OID.
pub fn raw_extension(der: &[u8], oid: &str) -> Option<(bool, Vec<u8>)> {
    use x509_parser::prelude::FromDer as _;
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(der).unwrap();
    parsed.extensions().iter().find(|e| e.oid.to_id_string() == oid).map(|e| (e.critical, e.value.to_vec()))
}
