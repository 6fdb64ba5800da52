//! Certificates that are no SVIDs: who vouches for them, and the names in them.

use countersign_identity::Timestamp;
use countersign_identity::x509::{Certificate, ChainError, PathError, verify_paths};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, DnValue, IsCa, KeyPair, KeyUsagePurpose, SanType};

const NOW: Timestamp = Timestamp::from_secs(1_780_000_000);

type Authority = CertifiedIssuer<'static, KeyPair>;

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2035, 1, 1);
    params
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn root(name: &str) -> Authority {
    Authority::self_signed(authority_params(name), KeyPair::generate().unwrap()).unwrap()
}

fn below(issuer: &Authority, params: CertificateParams) -> Authority {
    Authority::signed_by(params, KeyPair::generate().unwrap(), issuer).unwrap()
}

fn leaf(issuer: &Authority, params: &CertificateParams) -> Certificate {
    Certificate::parse(params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der()).unwrap()
}

fn parsed(authorities: &[&Authority]) -> Vec<Certificate> {
    authorities.iter().map(|a| Certificate::parse(a.der()).unwrap()).collect()
}

fn paths(leaf: &Certificate, between: &[&Authority], anchors: &[&Authority]) -> Result<Vec<Vec<String>>, PathError> {
    let (between, anchors) = (parsed(between), parsed(anchors));
    let found = verify_paths(leaf, &between, &anchors, NOW)?;
    Ok(found.iter().map(|path| path.iter().map(|c| c.subject_text.clone()).collect()).collect())
}

#[test]
fn every_path_to_an_anchor_is_found_whatever_the_order() {
    let (one, other) = (root("One"), root("Other"));
    let upper = below(&one, authority_params("Upper"));
    let lower = below(&upper, authority_params("Lower"));
    let node = leaf(&lower, &params("node"));
    for between in [[&lower, &upper], [&upper, &lower]] {
        assert_eq!(paths(&node, &between, &[&other, &one]).unwrap(), [["CN=node", "CN=Lower", "CN=Upper", "CN=One"]]);
    }
    // An intermediate may be an anchor too.
    let both = paths(&node, &[&lower, &upper], &[&one, &upper]).unwrap();
    assert_eq!(both, [vec!["CN=node", "CN=Lower", "CN=Upper"], vec!["CN=node", "CN=Lower", "CN=Upper", "CN=One"]]);
    assert_eq!(paths(&node, &[&lower, &upper, &one], &[&one]).unwrap(), [["CN=node", "CN=Lower", "CN=Upper", "CN=One"]]);
    // A key that two roots have certified.
    let key = KeyPair::generate().unwrap().serialize_pem();
    let by = |issuer: &Authority| Authority::signed_by(authority_params("Shared"), KeyPair::from_pem(&key).unwrap(), issuer).unwrap();
    let (by_one, by_other) = (by(&one), by(&other));
    let node = leaf(&by_one, &params("node"));
    let found = paths(&node, &[&by_one, &by_other], &[&one, &other]).unwrap();
    assert_eq!(found, [["CN=node", "CN=Shared", "CN=One"], ["CN=node", "CN=Shared", "CN=Other"]]);
}

#[test]
fn an_anchor_vouches_for_itself() {
    let pinned = Authority::self_signed(params("pinned"), KeyPair::generate().unwrap()).unwrap();
    let certificate = Certificate::parse(pinned.der()).unwrap();
    assert_eq!(paths(&certificate, &[], &[&pinned]).unwrap(), [["CN=pinned"]]);
    assert_eq!(paths(&certificate, &[], &[&root("One")]).unwrap_err(), PathError::NotTrusted("CN=pinned".to_owned()));
    assert_eq!(paths(&certificate, &[&pinned], &[&root("One")]).unwrap_err(), PathError::NotTrusted("CN=pinned".to_owned()));
}

#[test]
fn of_several_reasons_the_one_furthest_up_is_told() {
    let (one, stranger) = (root("One"), root("Stranger"));
    let between = below(&stranger, authority_params("Between"));
    let node = leaf(&between, &params("node"));
    let missing = |subject: &str, issuer: &str| PathError::NoIssuer { subject: subject.to_owned(), issuer: issuer.to_owned() };
    assert_eq!(paths(&node, &[], &[&one]).unwrap_err(), missing("CN=node", "CN=Between"));
    assert_eq!(paths(&node, &[&between], &[&one]).unwrap_err(), missing("CN=Between", "CN=Stranger"));
    assert_eq!(paths(&node, &[&between, &stranger], &[&one]).unwrap_err(), PathError::NotTrusted("CN=Stranger".to_owned()));
    let forged = PathError::Signature { subject: "CN=node".to_owned(), issuer: "CN=One".to_owned() };
    assert_eq!(paths(&leaf(&root("One"), &params("node")), &[], &[&one]).unwrap_err(), forged);
    let unnamed = {
        let mut params = params("");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::DnsName("a.example.org".try_into().unwrap())];
        leaf(&stranger, &params)
    };
    assert_eq!(paths(&unnamed, &[], &[&one]).unwrap_err(), missing("a.example.org", "CN=Stranger"));
}

#[test]
fn only_authorities_in_their_time_and_limits_vouch() {
    let one = root("One");
    let with = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = authority_params("Between");
        change(&mut params);
        let between = below(&one, params);
        let node = leaf(&between, &params_with_dns());
        paths(&node, &[&between], &[&one])
    };
    assert!(with(&|_| {}).is_ok());
    assert!(with(&|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign]).is_ok());
    assert_eq!(with(&|p| p.is_ca = IsCa::NoCa).unwrap_err(), PathError::NotAuthority("CN=Between".to_owned()));
    assert_eq!(with(&|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]).unwrap_err(), PathError::NotAuthority("CN=Between".to_owned()));
    let over = with(&|p| p.not_after = rcgen::date_time_ymd(2021, 1, 1)).unwrap_err();
    assert!(matches!(over, PathError::Certificate(ChainError::Validity { .. })), "{over:?}");
    let early = with(&|p| p.not_before = rcgen::date_time_ymd(2030, 1, 1)).unwrap_err();
    assert!(matches!(early, PathError::Certificate(ChainError::Validity { .. })), "{early:?}");
    let constrained = with(&|p| {
        let subtree = rcgen::GeneralSubtree::DnsName("example.com".to_owned());
        p.name_constraints = Some(rcgen::NameConstraints { permitted_subtrees: vec![subtree], excluded_subtrees: vec![] });
    });
    assert_eq!(constrained.unwrap_err(), PathError::Certificate(ChainError::NameConstraint));

    // A path length counts the authorities below, not the leaf.
    for (length, joins) in [(0, false), (1, true)] {
        let mut params = authority_params("Limited");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length));
        let limited = below(&one, params);
        let lower = below(&limited, authority_params("Lower"));
        let node = leaf(&lower, &params_with_dns());
        let found = paths(&node, &[&lower, &limited], &[&one]);
        assert_eq!(found.is_ok(), joins, "{found:?}");
        if !joins {
            assert_eq!(found.unwrap_err(), PathError::PathLength("CN=Limited".to_owned()));
        }
        assert!(paths(&leaf(&limited, &params_with_dns()), &[&limited], &[&one]).is_ok());
    }
    let mut late = params_with_dns();
    late.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let late = paths(&leaf(&one, &late), &[], &[&one]).unwrap_err();
    assert!(late.to_string().starts_with("the certificate of `CN=node` is valid from 2020-01-01T00:00:00Z to 2021-01-01"), "{late}");
}

/// Names and constraints of a stranger's own making: their product, not their number, is what would cost.
#[test]
fn names_times_constraints_are_compared_up_to_a_bound() {
    let one = root("One");
    let outcome = |names: usize, constraints: usize| {
        let mut between = authority_params("Between");
        let excluded_subtrees = (0..constraints).map(|n| rcgen::GeneralSubtree::DnsName(format!("c{n}"))).collect();
        between.name_constraints = Some(rcgen::NameConstraints { permitted_subtrees: vec![], excluded_subtrees });
        let between = below(&one, between);
        let mut node = params("node");
        node.subject_alt_names = (0..names).map(|n| SanType::DnsName(format!("n{n}").try_into().unwrap())).collect();
        paths(&leaf(&between, &node), &[&between], &[&one]).map(|found| found.len())
    };
    // 250,000 in all; names of other types count as one more.
    assert_eq!(outcome(499, 500), Ok(1));
    assert_eq!(outcome(500, 500), Err(PathError::Certificate(ChainError::TooManyNames)));
    assert_eq!(outcome(4000, 2000), Err(PathError::Certificate(ChainError::TooManyNames)));
}

fn params_with_dns() -> CertificateParams {
    let mut params = params("node");
    params.subject_alt_names = vec![SanType::DnsName("a.example.org".try_into().unwrap())];
    params
}

#[test]
fn authorities_that_all_certify_each_other_are_given_up() {
    assert_eq!(mesh(2), PathError::NoAnchor("CN=A1".to_owned()));
    assert_eq!(mesh(6), PathError::TooManyWays);
}

/// What is said about a node below authorities that all certify each other, none of which is trusted.
fn mesh(authorities: usize) -> PathError {
    let keys: Vec<String> = (0..authorities).map(|_| KeyPair::generate().unwrap().serialize_pem()).collect();
    let issuer = |n: usize| rcgen::Issuer::new(authority_params(&format!("A{n}")), KeyPair::from_pem(&keys[n]).unwrap());
    let mut between = Vec::new();
    for (subject, key) in keys.iter().enumerate() {
        for signer in (0..authorities).filter(|signer| *signer != subject) {
            let key = KeyPair::from_pem(key).unwrap();
            let made = authority_params(&format!("A{subject}")).signed_by(&key, &issuer(signer)).unwrap();
            between.push(Certificate::parse(made.der()).unwrap());
        }
    }
    let node = params("node").signed_by(&KeyPair::generate().unwrap(), &issuer(0)).unwrap();
    verify_paths(&Certificate::parse(node.der()).unwrap(), &between, &parsed(&[&root("One")]), NOW).unwrap_err()
}

#[test]
fn names_are_read_in_every_form_a_directory_uses() {
    let mut params = params("first");
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x01, 0x02]));
    params.distinguished_name.push(DnType::CountryName, "DE");
    params.distinguished_name.push(DnType::OrganizationName, DnValue::BmpString("Ünit".try_into().unwrap()));
    params.distinguished_name.push(DnType::OrganizationalUnitName, DnValue::TeletexString("Rack".try_into().unwrap()));
    params.distinguished_name.push(DnType::LocalityName, DnValue::PrintableString("Town".try_into().unwrap()));
    params.distinguished_name.push(DnType::StateOrProvinceName, DnValue::Ia5String("State".try_into().unwrap()));
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), "SN-1");
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 9]), "Street 1");
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 17]), "12345");
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 99]), "left out");
    params.distinguished_name.push(DnType::CustomDnType(vec![1, 2, 3]), "left out");
    params.subject_alt_names = vec![
        SanType::DnsName("a.example.org".try_into().unwrap()),
        SanType::URI("https://example.org/a".try_into().unwrap()),
        SanType::Rfc822Name("ops@example.org".try_into().unwrap()),
        SanType::IpAddress("10.1.2.3".parse().unwrap()),
        SanType::IpAddress("2001:db8::1".parse().unwrap()),
    ];
    let one = root("One");
    let names = leaf(&one, &params).names().unwrap();
    let subject = &names.subject;
    assert_eq!((subject.common_name.as_str(), subject.serial_number.as_str()), ("first", "SN-1"));
    for (found, wanted) in [
        (&subject.country, "DE"),
        (&subject.organization, "Ünit"),
        (&subject.organizational_unit, "Rack"),
        (&subject.locality, "Town"),
        (&subject.province, "State"),
        (&subject.street_address, "Street 1"),
        (&subject.postal_code, "12345"),
        (&names.dns_names, "a.example.org"),
        (&names.uris, "https://example.org/a"),
        (&names.email_addresses, "ops@example.org"),
    ] {
        assert_eq!(found, &[wanted]);
    }
    assert_eq!(names.issuer.common_name, "One");
    let addresses: Vec<String> = names.ip_addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.2.3", "2001:db8::1"]);
    assert_eq!(leaf(&one, &CertificateParams::default()).names().unwrap().ip_addresses.len(), 0);
}

#[test]
fn the_length_of_an_rsa_key_is_known() {
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_3072).unwrap();
    let certificate = Certificate::parse(params("rsa").self_signed(&key).unwrap().der()).unwrap();
    assert_eq!(certificate.public_key.rsa_bits(), Some(3072));
    assert_eq!(parsed(&[&root("One")])[0].public_key.rsa_bits(), None);
}
