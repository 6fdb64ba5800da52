//! Each lint against bytes that our own builder never makes: the lints are there for the day on which it does.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::id::SpiffeId;
use crate::issue::Kind;
use crate::key::{PublicKey, PublicKeyKind};
use crate::x509::{KeyUsage, Profile, Tbs};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
struct Leave {
    kind: Kind,
    spiffe_id: SpiffeId,
    audience: Vec<String>,
    dns_names: Vec<String>,
}

impl Permission for Leave {
    fn kind(&self) -> Kind {
        self.kind
    }
    fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }
    fn lifetime(&self) -> Duration {
        HOUR
    }
    fn dns_names(&self) -> &[String] {
        &self.dns_names
    }
    fn audience(&self) -> &[String] {
        &self.audience
    }
}

fn leave(id: &str) -> Leave {
    let spiffe_id = SpiffeId::parse(id).unwrap();
    Leave { kind: Kind::WorkloadX509, spiffe_id, audience: vec!["db".to_owned()], dns_names: vec!["web".to_owned()] }
}

/// What the builder makes, and the lints have nothing against.
fn certificate(profile: Profile) -> (Certificate, Leave) {
    let permission = leave(if profile == Profile::Leaf { "spiffe://example.org/web" } else { "spiffe://example.org" });
    let subject = [0x30, 0x00];
    let tbs = Tbs {
        serial: [9; 16],
        algorithm: SigningAlgorithm::EcdsaP256Sha256,
        issuer: &subject,
        issuer_key_id: Some(&[1; 20]),
        subject: &subject,
        not_before: NOW,
        not_after: NOW.after(HOUR),
        public_key: &PublicKey::from_bits(PublicKeyKind::Ed25519, &[7; 32]).unwrap(),
        spiffe_id: &permission.spiffe_id,
        dns_names: if profile == Profile::Leaf { &permission.dns_names } else { &[] },
        profile,
    };
    (parse(&tbs.to_der(), SigningAlgorithm::EcdsaP256Sha256).unwrap(), permission)
}

/// What is changed, in words, and the change.
type Change<'a> = (&'a str, &'a dyn Fn(&mut Certificate));

/// The certificate passes as it is and fails with each of these changes.
fn fails_with(good: &Certificate, check: impl Fn(&Certificate) -> Result<(), LintError>, changes: &[Change<'_>]) {
    assert_eq!(check(good), Ok(()));
    for (what, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(check(&bad).is_err(), "{what}");
    }
}

fn usage(change: impl Fn(&mut KeyUsage) + 'static) -> impl Fn(&mut Certificate) {
    move |c| change(c.key_usage.as_mut().unwrap())
}

#[test]
fn xsvid_15_a_leaf_that_could_sign_or_cannot_be_presented_is_not_signed() {
    let (good, _) = certificate(Profile::Leaf);
    fails_with(
        &good,
        leaf_usage::check,
        &[
            ("it is an authority", &|c| c.is_ca = true),
            ("no key usage", &|c| c.key_usage = None),
            ("key usage is not critical", &usage(|u| u.critical = false)),
            ("it cannot be presented", &usage(|u| u.digital_signature = false)),
            ("it may sign certificates", &usage(|u| u.key_cert_sign = true)),
            ("it may sign revocations", &usage(|u| u.crl_sign = true)),
            ("no extended key usage", &|c| c.extended_key_usage = None),
            ("no server", &|c| c.extended_key_usage = Some((false, true))),
            ("no client", &|c| c.extended_key_usage = Some((true, false))),
            ("no key identifier", &|c| c.key_id = None),
            ("no authority key identifier", &|c| c.authority_key_id = None),
        ],
    );
}

#[test]
fn xsvid_14_an_authority_that_could_be_presented_or_cannot_sign_is_not_signed() {
    let (good, _) = certificate(Profile::Authority);
    fails_with(
        &good,
        authority_usage::check,
        &[
            ("it is a leaf", &|c| c.is_ca = false),
            ("no key usage", &|c| c.key_usage = None),
            ("key usage is not critical", &usage(|u| u.critical = false)),
            ("it may not sign", &usage(|u| u.key_cert_sign = false)),
            ("it can be presented", &usage(|u| u.digital_signature = true)),
            ("no key identifier", &|c| c.key_id = None),
        ],
    );
}

#[test]
fn xsvid_01_a_certificate_with_other_names_than_allowed_is_not_signed() {
    let (good, permission) = certificate(Profile::Leaf);
    let leaf = |c: &Certificate| names::check_leaf(c, &permission);
    fails_with(
        &good,
        leaf,
        &[
            ("another identity", &|c| c.uris = vec!["spiffe://example.org/db".to_owned()]),
            ("two identities", &|c| c.uris.push("spiffe://example.org/db".to_owned())),
            ("the same twice", &|c| c.uris.push(c.uris[0].clone())),
            ("no identity", &|c| c.uris.clear()),
            ("a name of another sort", &|c| c.other_names = true),
            ("a DNS name more", &|c| c.dns_names.push("db".to_owned())),
            ("a DNS name less", &|c| c.dns_names.clear()),
            ("no subject, and names that may be passed over", &|c| c.san_critical = false),
        ],
    );
    let mut named = good.clone();
    (named.subject_empty, named.san_critical) = (false, false);
    assert_eq!(leaf(&named), Ok(()), "with a subject the names need not be critical");

    let (good, permission) = certificate(Profile::Authority);
    let authority = |c: &Certificate| names::check_authority(c, &permission);
    fails_with(
        &good,
        authority,
        &[
            ("another trust domain", &|c| c.uris = vec!["spiffe://other.test".to_owned()]),
            ("a name of another sort", &|c| c.other_names = true),
        ],
    );
    let mut below = good;
    below.uris = vec!["spiffe://example.org/web".to_owned()];
    assert!(names::check_authority(&below, &leave("spiffe://example.org/web")).is_err(), "an authority with a path");
    below.uris = vec!["spiffe://example.org".to_owned()];
    below.dns_names = vec!["web".to_owned()];
    assert!(names::check_leaf(&below, &leave("spiffe://example.org")).is_err(), "a leaf without a path");
}

#[test]
fn a_serial_number_that_is_zero_or_too_long_is_not_signed() {
    let (good, _) = certificate(Profile::Leaf);
    assert_eq!(good.serial.len(), 16, "the longest there may be");
    fails_with(
        &good,
        serial::check,
        &[("zero", &|c| c.serial = vec![0]), ("nothing", &|c| c.serial.clear()), ("17 bytes", &|c| c.serial = vec![1; 17])],
    );
}

#[test]
fn a_certificate_lives_within_what_was_allowed_and_within_its_issuer() {
    let (good, permission) = certificate(Profile::Leaf);
    let issuer = (NOW.before(HOUR), NOW.after(2 * HOUR));
    let second = Duration::from_secs(1);
    let check = |c: &Certificate| validity::check(c, &permission, issuer, NOW);
    fails_with(
        &good,
        check,
        &[
            ("it has ended", &|c| c.not_after = NOW),
            ("too long", &|c| c.not_after = NOW.after(HOUR + second)),
            ("it begins later", &|c| c.not_before = NOW.after(second)),
            ("it began long ago", &|c| c.not_before = NOW.before(crate::rotation::BACKDATE + second)),
        ],
    );
    let within = |issuer| validity::check(&good, &permission, issuer, NOW);
    assert_eq!(within((good.not_before, good.not_after)), Ok(()), "just as long as its issuer");
    assert!(within((good.not_before, good.not_after.before(second))).is_err(), "it outlives its issuer");
    assert!(within((good.not_before.after(second), good.not_after)).is_err(), "it is older than its issuer");
    let mut backdated = good.clone();
    backdated.not_before = NOW.before(crate::rotation::BACKDATE);
    assert_eq!(check(&backdated), Ok(()), "as early as it may be");
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// The members pass as they are, and fail with each of these in their place; null leaves one out.
fn members_fail(good: &Value, check: impl Fn(&Map<String, Value>) -> Result<(), LintError>, changes: &[(&str, Value)]) {
    assert_eq!(check(&object(good)), Ok(()));
    for (name, value) in changes {
        let mut bad = object(good);
        if value.is_null() {
            bad.remove(*name)
        } else {
            bad.insert((*name).to_owned(), value.clone())
        };
        assert!(check(&bad).is_err(), "{name} = {value}");
    }
}

#[test]
fn jsvid_04_a_token_header_with_anything_else_is_not_signed() {
    members_fail(
        &json!({"alg": "ES256", "kid": "k", "typ": "JWT"}),
        token_header::check,
        &[
            ("alg", json!("none")),
            ("alg", json!("HS256")),
            ("alg", Value::Null),
            ("kid", json!("")),
            ("kid", json!(1)),
            ("kid", Value::Null),
            ("typ", json!("JOSE")),
            ("typ", Value::Null),
            ("crit", json!(["exp"])),
            ("jku", json!("https://example.org")),
        ],
    );
}

#[test]
fn jsvid_12_a_token_with_other_claims_than_allowed_is_not_signed() {
    let permission = leave("spiffe://example.org/web");
    let end = NOW.after(HOUR).secs();
    let claims = json!({"sub": "spiffe://example.org/web", "aud": ["db"], "exp": end});
    members_fail(
        &claims,
        |c| token_claims::check(c, &permission, NOW.after(HOUR), NOW),
        &[
            ("sub", json!("spiffe://example.org/db")),
            ("sub", Value::Null),
            ("aud", json!([])),
            ("aud", json!("db")),
            ("aud", json!(["other"])),
            ("aud", json!(["db", "other"])),
            ("aud", Value::Null),
            ("exp", json!(NOW.secs())),
            ("exp", json!(end + 1)),
            ("exp", json!("tomorrow")),
            ("exp", Value::Null),
        ],
    );
    // Each end is one by itself.
    let check = |authority_ends, lifetime_from| token_claims::check(&object(&claims), &permission, authority_ends, lifetime_from);
    let second = Duration::from_secs(1);
    assert!(check(NOW.after(HOUR).before(second), NOW).is_err(), "it outlives its authority");
    assert!(check(NOW.after(2 * HOUR), NOW.before(second)).is_err(), "it lives longer than allowed");
    assert_eq!(check(NOW.after(2 * HOUR), NOW), Ok(()));
    let nobody = Leave { audience: Vec::new(), ..permission.clone() };
    let mut unaddressed = object(&claims);
    unaddressed.insert("aud".to_owned(), json!([]));
    assert!(token_claims::check(&unaddressed, &nobody, NOW.after(HOUR), NOW).is_err(), "a token for nobody");
    let mut pathless = object(&claims);
    pathless.insert("sub".to_owned(), json!("spiffe://example.org"));
    assert!(token_claims::check(&pathless, &leave("spiffe://example.org"), NOW.after(HOUR), NOW).is_err(), "no path");
}

#[test]
fn an_authority_speaks_for_its_own_trust_domain_and_a_permission_for_its_own_kind() {
    let permission = leave("spiffe://example.org/web");
    assert_eq!(trust_domain::check(&permission, &TrustDomain::parse("example.org").unwrap()), Ok(()));
    assert!(trust_domain::check(&permission, &TrustDomain::parse("other.test").unwrap()).is_err());
    let fits =
        [Kind::WorkloadX509, Kind::WorkloadJwt, Kind::AgentX509, Kind::MintedX509, Kind::MintedJwt, Kind::OwnX509, Kind::AuthorityX509]
            .map(|kind| {
                let permission = Leave { kind, ..permission.clone() };
                [kind::LEAF, kind::TOKEN, kind::AUTHORITY].map(|fit| kind::check(&permission, fit).is_ok())
            });
    let (leaf, token, authority) = ([true, false, false], [false, true, false], [false, false, true]);
    assert_eq!(fits, [leaf, token, leaf, leaf, token, leaf, authority]);
}
