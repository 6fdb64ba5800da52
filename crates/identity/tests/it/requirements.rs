//! The standards' requirements, each either tested here by number or listed as somebody else's.

/// How many requirements each part of the checklist has.
const COUNTS: [(&str, usize); 4] = [("SID", 31), ("XSVID", 44), ("JSVID", 30), ("TDB", 31)];

/// Where the tests are.
const SOURCES: [&str; 10] = [
    include_str!("bundle.rs"),
    include_str!("entry.rs"),
    include_str!("issue.rs"),
    include_str!("jwt_svid.rs"),
    include_str!("key.rs"),
    include_str!("path.rs"),
    include_str!("rotation.rs"),
    include_str!("selector.rs"),
    include_str!("spiffe_id.rs"),
    include_str!("x509_svid.rs"),
];

/// Requirements this crate cannot break or keep, and who can.
const ELSEWHERE: [(&str, usize, &str); 20] = [
    ("SID", 24, "a running server: a fresh trust domain has an authority"),
    ("JSVID", 16, "operator: audiences are scoped to one receiver"),
    ("JSVID", 22, "presenter: the HTTP header that carries a token"),
    ("JSVID", 23, "presenter: the gRPC metadata that carries a token"),
    ("JSVID", 30, "operator and presenter: every hop is confidential"),
    ("TDB", 15, "spec author: each SVID standard names its `use`"),
    ("TDB", 16, "spec author: SVID standards may restrict keys further"),
    ("TDB", 22, "map publisher: we neither publish nor read bundle maps"),
    ("TDB", 23, "map publisher: we neither publish nor read bundle maps"),
    ("TDB", 24, "map publisher: we neither publish nor read bundle maps"),
    ("TDB", 25, "map consumer: we neither publish nor read bundle maps"),
    ("TDB", 26, "map publisher: we neither publish nor read bundle maps"),
    ("TDB", 27, "map consumer: we neither publish nor read bundle maps"),
    ("TDB", 28, "map consumer: we neither publish nor read bundle maps"),
    ("TDB", 29, "the store: a bundle and its name survive a restart together"),
    ("TDB", 30, "operator: one authority key serves one trust domain"),
    ("TDB", 31, "a running agent: open streams deliver a changed bundle"),
    // Tested here as far as the document goes; what is left is the server's.
    ("TDB", 6, "the store as well: the number never shrinks across restarts and failovers"),
    ("TDB", 7, "the store as well: the number grows with every change"),
    ("TDB", 11, "a running consumer as well: how often it polls, and no hot loop for a hint of zero"),
];

/// Of those, the ones that are also tested here.
const SHARED: [(&str, usize); 3] = [("TDB", 6), ("TDB", 7), ("TDB", 11)];

fn is_tested(part: &str, number: usize) -> bool {
    let test = format!("#[test]\nfn {}_{number:02}_", part.to_lowercase());
    SOURCES.iter().any(|source| source.contains(&test))
}

#[test]
fn every_requirement_is_tested_or_somebody_elses() {
    let mut wrong = Vec::new();
    for (part, count) in COUNTS {
        for number in 1..=count {
            let listed = ELSEWHERE.iter().filter(|(p, n, _)| (*p, *n) == (part, number)).count();
            let expected = match (is_tested(part, number), SHARED.contains(&(part, number))) {
                (true, true) | (false, false) => 1,
                (true, false) => 0,
                (false, true) => usize::MAX,
            };
            if listed != expected {
                wrong.push(format!("{part}-{number}"));
            }
        }
    }
    assert!(wrong.is_empty(), "neither tested nor listed once, or both: {wrong:?}");
}

#[test]
fn nothing_is_listed_or_tested_that_does_not_exist() {
    for (part, number, why) in ELSEWHERE {
        assert!(COUNTS.iter().any(|(p, count)| *p == part && (1..=*count).contains(&number)), "{part}-{number}");
        assert!(!why.is_empty());
    }
    for (part, count) in COUNTS {
        assert!((count + 1..=99).all(|number| !is_tested(part, number)), "{part}");
        let named: usize = SOURCES.iter().map(|s| s.matches(&format!("#[test]\nfn {}_", part.to_lowercase())).count()).sum();
        let listed = ELSEWHERE.iter().filter(|(p, n, _)| *p == part && !SHARED.contains(&(part, *n))).count();
        assert_eq!(named + listed, count, "{part}: a requirement has two tests, or none");
    }
}
