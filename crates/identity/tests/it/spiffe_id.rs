//! SPIFFE IDs and trust domain names (SPIFFE-ID): what is one, what is not, and how two compare.

use countersign_identity::entry::check_spiffe_id;
use countersign_identity::id::{IdError, SPIFFE_ID_BYTES_MAX};
use countersign_identity::issue::{Credential, Linted};
use countersign_identity::x509::{Certificate, ChainError, Subject, verify_chain};
use countersign_identity::{SpiffeId, TrustDomain, jwt};
use serde_json::json;

use crate::support::{
    Ca, LEAF_KEY, Leave, NOW, OWN, Own, P256, WEB, claims, header, id, jwt_keys, leaf_params, roots, set, td, token, uri, verify, with,
};

/// Every text of the first list is a SPIFFE ID and prints as itself; none of the second is, for this reason.
fn check(accepted: &[&str], refused: &[(&str, IdError)]) {
    for text in accepted {
        let parsed = SpiffeId::parse(text).unwrap_or_else(|e| panic!("`{text}`: {e}"));
        assert_eq!(parsed.as_str(), *text);
        assert_eq!(parsed.to_string(), *text);
        assert_eq!(text.parse::<SpiffeId>().unwrap(), parsed);
    }
    for (text, reason) in refused {
        assert_eq!(SpiffeId::parse(text).as_ref(), Err(reason), "`{text}`");
    }
}

#[test]
fn sid_01_only_the_spiffe_scheme_is_accepted() {
    check(
        &["spiffe://example.org/a", "spiffe://example.org"],
        &[
            ("http://example.org/a", IdError::Scheme),
            ("spiffes://example.org/a", IdError::Scheme),
            ("spiffe:/example.org/a", IdError::Scheme),
            ("spiffe:example.org/a", IdError::Scheme),
            (" spiffe://example.org/a", IdError::Scheme),
            ("example.org/a", IdError::Scheme),
            ("", IdError::Empty),
        ],
    );
}

#[test]
fn sid_02_the_trust_domain_name_has_at_least_one_character() {
    check(&["spiffe://a/b", "spiffe://a"], &[("spiffe:///a", IdError::TrustDomainMissing), ("spiffe://", IdError::TrustDomainMissing)]);
    assert_eq!(TrustDomain::parse(""), Err(IdError::TrustDomainMissing));
}

#[test]
fn sid_03_a_query_is_refused_even_an_empty_one() {
    check(
        &["spiffe://example.org/a"],
        &[
            ("spiffe://example.org/a?x=1", IdError::PathCharacter('?')),
            ("spiffe://example.org/a?", IdError::PathCharacter('?')),
            ("spiffe://example.org?x=1", IdError::TrustDomainCharacter('?')),
        ],
    );
}

#[test]
fn sid_04_a_fragment_is_refused_even_an_empty_one() {
    check(
        &["spiffe://example.org/a"],
        &[
            ("spiffe://example.org/a#f", IdError::PathCharacter('#')),
            ("spiffe://example.org/a#", IdError::PathCharacter('#')),
            ("spiffe://example.org#f", IdError::TrustDomainCharacter('#')),
        ],
    );
}

#[test]
fn sid_05_userinfo_or_a_port_alone_make_no_trust_domain() {
    check(
        &["spiffe://u/a"],
        &[("spiffe://u@/a", IdError::TrustDomainCharacter('@')), ("spiffe://:8080/a", IdError::TrustDomainCharacter(':'))],
    );
}

#[test]
fn sid_06_userinfo_is_refused_even_when_empty() {
    check(
        &["spiffe://example.org/a"],
        &[
            ("spiffe://u@example.org/a", IdError::TrustDomainCharacter('@')),
            ("spiffe://u:p@example.org/a", IdError::TrustDomainCharacter(':')),
            ("spiffe://@example.org/a", IdError::TrustDomainCharacter('@')),
        ],
    );
}

#[test]
fn sid_07_a_port_is_refused_even_when_empty() {
    check(
        &["spiffe://example.org/a"],
        &[
            ("spiffe://example.org:8443/a", IdError::TrustDomainCharacter(':')),
            ("spiffe://example.org:/a", IdError::TrustDomainCharacter(':')),
        ],
    );
}

#[test]
fn sid_08_an_upper_case_trust_domain_is_refused() {
    check(&["spiffe://example.org/A"], &[("spiffe://Example.org/a", IdError::TrustDomainCharacter('E'))]);
    assert_eq!(TrustDomain::parse("exampLe.org"), Err(IdError::TrustDomainCharacter('L')));
}

#[test]
fn sid_09_of_all_latin_1_characters_39_may_stand_in_a_trust_domain() {
    let passed: String =
        ('\u{0}'..='\u{ff}').filter(|c| *c != '/').filter(|c| SpiffeId::parse(&format!("spiffe://trustdomain{c}")).is_ok()).collect();
    assert_eq!(passed, "-.0123456789_abcdefghijklmnopqrstuvwxyz");
    for c in '\u{0}'..='\u{ff}' {
        assert_eq!(TrustDomain::parse(&format!("trustdomain{c}")).is_ok(), passed.contains(c), "{c:?}");
    }
}

#[test]
fn sid_10_percent_encoding_in_the_trust_domain_is_refused() {
    check(&["spiffe://bad/path"], &[("spiffe://%62%61%64/path", IdError::TrustDomainCharacter('%'))]);
}

#[test]
fn sid_11_names_that_look_like_addresses_or_odd_dns_names_work_end_to_end() {
    for name in ["1.2.3.4", "a..b", "-x-", "_", ".", "..", "localhost"] {
        let own = Own::of(countersign_identity::key::KeyType::EcP256, name);
        let uri = format!("spiffe://{name}/w");
        let bundles = set([own.bundle()]);
        assert_eq!(verify_chain(&[own.x509(Leave::x509(&uri))], &bundles, NOW).unwrap().0.as_str(), uri);
        let verified = jwt::verify(&own.jwt(Leave::jwt(&uri, &["db"]), None), "db", &bundles, NOW).unwrap();
        assert_eq!(verified.spiffe_id.as_str(), uri);
    }
    check(&[], &[("spiffe://[::1]/w", IdError::TrustDomainCharacter('['))]);
}

#[test]
fn sid_12_percent_encoding_in_the_path_is_refused() {
    check(&["spiffe://example.org/a"], &[("spiffe://example.org/%61", IdError::PathCharacter('%'))]);
}

#[test]
fn sid_13_an_empty_path_segment_is_refused() {
    check(
        &["spiffe://example.org/a/b"],
        &[("spiffe://example.org//a", IdError::EmptySegment), ("spiffe://example.org/a//b", IdError::EmptySegment)],
    );
}

#[test]
fn sid_14_dot_segments_are_refused_and_dots_within_segments_are_not() {
    check(
        &["spiffe://example.org/...", "spiffe://example.org/.a", "spiffe://example.org/..a", "spiffe://example.org/a."],
        &[
            ("spiffe://example.org/.", IdError::DotSegment),
            ("spiffe://example.org/..", IdError::DotSegment),
            ("spiffe://example.org/./a", IdError::DotSegment),
            ("spiffe://example.org/a/..", IdError::DotSegment),
            ("spiffe://example.org/a/../b", IdError::DotSegment),
        ],
    );
}

#[test]
fn sid_15_a_trailing_slash_is_refused() {
    check(
        &["spiffe://example.org", "spiffe://example.org/a"],
        &[
            ("spiffe://example.org/", IdError::TrailingSlash),
            ("spiffe://example.org/a/", IdError::TrailingSlash),
            ("spiffe://example.org//", IdError::TrailingSlash),
        ],
    );
}

#[test]
fn sid_16_of_all_latin_1_characters_65_may_stand_in_a_path_segment() {
    let passed: String = ('\u{0}'..='\u{ff}').filter(|c| SpiffeId::parse(&format!("spiffe://trustdomain/path{c}")).is_ok()).collect();
    assert_eq!(passed, "-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz");
}

#[test]
fn sid_17_paths_may_be_hierarchical() {
    check(&["spiffe://example.org/ns/a/sa/b"], &[("spiffe://example.org/ns//sa/b", IdError::EmptySegment)]);
}

/// An ID of exactly this many bytes.
fn long(bytes: usize) -> String {
    format!("{WEB}/{}", "x".repeat(bytes - WEB.len() - 1))
}

#[test]
fn sid_18_an_id_of_2048_bytes_works_in_parser_certificate_and_token() {
    let text = long(2048);
    assert_eq!(id(&text).as_str(), text);
    let bundles = set([OWN.bundle()]);
    assert_eq!(verify_chain(&[OWN.x509(Leave::x509(&text))], &bundles, NOW).unwrap().0.as_str(), text);
    let verified = jwt::verify(&OWN.jwt(Leave::jwt(&text, &["db"]), None), "db", &bundles, NOW).unwrap();
    assert_eq!(verified.spiffe_id.as_str(), text);
    let longest = format!("spiffe://{}/w", "d".repeat(255));
    check(&[&longest], &[(&long(2049), IdError::TooLong { bytes: 2049, max: 2048 })]);
}

#[test]
fn sid_19_an_id_of_2049_bytes_is_never_made() {
    let path = |bytes: usize| format!("/{}", "x".repeat(bytes - "spiffe://example.org/".len()));
    assert_eq!(td("example.org").with_path(&path(SPIFFE_ID_BYTES_MAX)).unwrap().as_str().len(), 2048);
    assert_eq!(td("example.org").with_path(&path(2049)), Err(IdError::TooLong { bytes: 2049, max: 2048 }));
}

#[test]
fn sid_20_a_trust_domain_name_has_at_most_255_bytes() {
    let too_long = IdError::TooLong { bytes: 256, max: 255 };
    assert!(TrustDomain::parse(&"a".repeat(255)).is_ok());
    assert_eq!(TrustDomain::parse(&"a".repeat(256)), Err(too_long.clone()));
    check(&[&format!("spiffe://{}/w", "a".repeat(255))], &[(&format!("spiffe://{}/w", "a".repeat(256)), too_long)]);
}

#[test]
fn sid_21_another_case_of_scheme_or_trust_domain_is_never_a_third_identity() {
    check(
        &["spiffe://example.org/a"],
        &[
            ("SPIFFE://example.org/a", IdError::Scheme),
            ("Spiffe://example.org/a", IdError::Scheme),
            ("spiffe://EXAMPLE.ORG/a", IdError::TrustDomainCharacter('E')),
        ],
    );
}

#[test]
fn sid_22_paths_differ_by_case() {
    assert_eq!(id("spiffe://example.org/A"), id("spiffe://example.org/A"));
    assert_ne!(id("spiffe://example.org/A"), id("spiffe://example.org/a"));
}

#[test]
fn sid_23_only_an_authority_of_the_ids_own_trust_domain_counts() {
    let (a, b) = (Ca::root("a"), Ca::root("b"));
    let bundles = set([roots("a.org", &[&a.der]), roots("b.org", &[&b.der])]);
    assert!(verify_chain(&[a.leaf("spiffe://a.org/w")], &bundles, NOW).is_ok());
    assert_eq!(verify_chain(&[b.leaf("spiffe://a.org/w")], &bundles, NOW), Err(ChainError::UnknownAuthority("a.org".to_owned())));
}

#[test]
fn sid_25_the_authority_we_make_carries_its_own_id() {
    assert_eq!(OWN.certificate.uris, ["spiffe://example.org"]);
    // A root made elsewhere may lack the ID; the standards differ, so it is accepted.
    let bare = Ca::root("bare");
    assert!(bare.certificate().uris.is_empty());
    assert!(verify(&bare.der, &[&bare.leaf(WEB)]).is_ok());
    let two = Ca::root_with("two", |p| p.subject_alt_names = vec![uri("spiffe://example.org"), uri("spiffe://other.org")]);
    assert_eq!(two.certificate().spiffe_id(), None);
}

#[test]
fn sid_26_the_authoritys_id_lies_in_its_trust_domain() {
    assert!(OWN.certificate.spiffe_id().unwrap().is_member_of(&td("example.org")));
    assert!(!OWN.certificate.spiffe_id().unwrap().is_member_of(&td("other.org")));
}

#[test]
fn sid_27_the_authoritys_id_has_no_path() {
    let sign = |uri: &str| {
        Linted::authority(Leave::authority(uri), &Subject::default(), &P256.public(), OWN.algorithm, [1; 16], NOW)
            .map(|l| l.facts().clone())
    };
    assert!(sign("spiffe://example.org").is_ok());
    assert_eq!(sign("spiffe://example.org/ca").unwrap_err().lint, "names");
}

#[test]
fn sid_28_a_changed_id_or_key_breaks_the_signature() {
    let bundles = set([OWN.bundle()]);
    let good = OWN.x509(Leave::x509(WEB));
    assert!(verify_chain(&[&good], &bundles, NOW).is_ok());
    let key_bits = P256.public().bits().to_vec();
    for (what, needle) in [("the ID", WEB.as_bytes()), ("the key", &key_bits)] {
        let found = good.windows(needle.len()).position(|w| w == needle).unwrap();
        let mut changed = good.clone();
        // The last letter of the ID becomes another letter; the last bit of the key flips.
        changed[found + needle.len() - 1] ^= 1;
        assert_eq!(verify_chain(&[&changed], &bundles, NOW).unwrap_err(), ChainError::UnknownAuthority("example.org".to_owned()), "{what}");
    }
    let bundles = set([jwt_keys("example.org", &[("k", &P256)])]);
    let good = token(&header(), &claims(), &P256);
    let other = token(&header(), &with(claims(), &json!({"sub": "spiffe://example.org/xeb"})), &P256);
    let (good, other): (Vec<&str>, Vec<&str>) = (good.split('.').collect(), other.split('.').collect());
    assert!(jwt::verify(&good.join("."), "db", &bundles, NOW).is_ok());
    assert_eq!(jwt::verify(&[good[0], other[1], good[2]].join("."), "db", &bundles, NOW), Err(jwt::TokenError::Signature));
}

#[test]
fn sid_29_svids_may_hold_more_than_the_standard_asks_for() {
    let root = Ca::root("root");
    let more = root.leaf_with(WEB, |p| p.subject_alt_names.push(rcgen::SanType::DnsName("web.example.org".try_into().unwrap())));
    assert_eq!(verify(&root.der, &[&more]), Ok(id(WEB)));
    let too_much = root.leaf_with(WEB, |p| p.subject_alt_names.push(uri("urn:more")));
    assert_eq!(verify(&root.der, &[&too_much]), Err(ChainError::Uris(2)));
    let bundles = set([jwt_keys("example.org", &[("k", &P256)])]);
    let more = token(&header(), &with(claims(), &json!({"role": "web", "nested": {"a": [1]}})), &P256);
    assert_eq!(jwt::verify(&more, "db", &bundles, NOW).unwrap().claims["role"], "web");
}

#[test]
fn sid_30_only_the_defined_document_types_are_svids() {
    let bundles = set([OWN.bundle()]);
    assert!(verify_chain(&[OWN.x509(Leave::x509(WEB))], &bundles, NOW).is_ok());
    let ssh: &[u8] = b"ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29t";
    let cwt: &[u8] = &[0xd2, 0x84, 0x43, 0xa1, 0x01, 0x26, 0xa0, 0x41, 0x00, 0x41, 0x00];
    for bytes in [ssh, cwt] {
        assert!(matches!(verify_chain(&[bytes], &bundles, NOW), Err(ChainError::Certificate { index: 0, .. })));
        assert!(matches!(
            jwt::verify(&String::from_utf8_lossy(bytes), "db", &bundles, NOW),
            Err(jwt::TokenError::Malformed(_) | jwt::TokenError::TooLong(_))
        ));
    }
}

#[test]
fn sid_31_a_root_is_self_signed_with_its_own_key() {
    let root = &OWN.certificate;
    assert!(root.check_signed_by(&root.public_key).is_ok());
    assert!(root.check_signed_by(&P256.public()).is_err());
    let issuer = OWN.x509_issuer();
    let twice = root.der().windows(issuer.subject.len()).filter(|w| *w == issuer.subject).count();
    assert_eq!(twice, 2, "issuer and subject are the same name");
}

#[test]
fn a_path_is_told_apart_from_its_trust_domain() {
    let long = id("spiffe://example.org/ns/a");
    assert_eq!((long.trust_domain_name(), long.path()), ("example.org", "/ns/a"));
    let bare = td("example.org").id();
    assert_eq!((bare.trust_domain_name(), bare.path(), bare.as_str()), ("example.org", "", "spiffe://example.org"));
    assert_eq!(td("example.org").server_id().as_str(), "spiffe://example.org/spire/server");
    assert_eq!(long.trust_domain(), td("example.org"));
}

#[test]
fn a_path_is_added_only_when_it_is_one() {
    let with_path = |path| td("example.org").with_path(path);
    assert_eq!(with_path("/a").unwrap(), id("spiffe://example.org/a"));
    for (path, reason) in [
        ("", IdError::PathMissing),
        ("a", IdError::PathStart),
        ("/", IdError::TrailingSlash),
        ("/a/../b", IdError::DotSegment),
        ("/a?b", IdError::PathCharacter('?')),
    ] {
        assert_eq!(with_path(path), Err(reason), "`{path}`");
    }
}

#[test]
fn a_trust_domain_is_read_from_its_name_or_its_id() {
    assert_eq!(TrustDomain::parse_name_or_id("example.org"), Ok(td("example.org")));
    assert_eq!(TrustDomain::parse_name_or_id("spiffe://example.org"), Ok(td("example.org")));
    for text in ["spiffe://example.org/a", "spiffe://", "https://example.org", "example.org/"] {
        assert!(TrustDomain::parse_name_or_id(text).is_err(), "`{text}`");
    }
}

#[test]
fn names_that_only_begin_like_the_reserved_ones_are_not_reserved() {
    for (path, reserved, agent) in [
        ("/spire", true, false),
        ("/spire/server", true, false),
        ("/spire/agent/x", true, true),
        ("/spire/agentx", true, false),
        ("/spirex", false, false),
        ("/Spire/agent/x", false, false),
        ("/a/spire/agent/x", false, false),
    ] {
        let id = td("example.org").with_path(path).unwrap();
        assert_eq!((id.is_reserved(), id.is_agent()), (reserved, agent), "`{path}`");
        assert_eq!(check_spiffe_id(&id, &td("example.org")).is_err(), reserved);
    }
}

#[test]
fn a_trust_domain_that_begins_with_another_is_not_that_other() {
    assert!(!id("spiffe://example.org.evil/a").is_member_of(&td("example.org")));
    assert!(!id("spiffe://example/a").is_member_of(&td("example.org")));
}

#[test]
fn a_leaf_certificate_of_an_id_that_is_none_identifies_nobody() {
    let root = Ca::root("root");
    for text in ["spiffe://Example.org/web", "spiffe://example.org/a/", "spiffe://example.org:1/a", "spiffe://example.org/%61"] {
        assert!(matches!(verify(&root.der, &[&root.leaf(text)]), Err(ChainError::SpiffeId(_))), "`{text}`");
    }
    let params = leaf_params(WEB);
    let der = params.signed_by(&*LEAF_KEY, &root.issuer).unwrap();
    assert_eq!(Certificate::parse(der.der()).unwrap().spiffe_id(), Some(id(WEB)));
}

#[test]
fn a_finished_credential_is_what_its_kind_says() {
    let linted = Linted::x509(Leave::x509(WEB), &OWN.x509_issuer(), &P256.public(), [9; 16], NOW).unwrap();
    let signature = OWN.key.sign(linted.algorithm(), linted.bytes());
    assert!(matches!(linted.finish(&signature), Ok(Credential::X509(_))));
}
