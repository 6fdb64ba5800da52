//! The standards' requirements on an endpoint, each either tested here by number or listed as somebody else's.

/// How many requirements each part of the checklist has.
const COUNTS: [(&str, usize); 2] = [("WEP", 32), ("WAPI", 77)];

/// Where the tests are.
const SOURCES: [&str; 5] = [
    include_str!("bundles.rs"),
    include_str!("callers.rs"),
    include_str!("endpoint.rs"),
    include_str!("jwt_svid.rs"),
    include_str!("x509_svid.rs"),
];

/// Requirements an endpoint cannot break or keep, and who can.
const ELSEWHERE: [(&str, &[usize], &str); 12] = [
    ("WEP", &[4, 7], "client: speaks gRPC and sends the header"),
    ("WEP", &[10, 11, 12, 13, 14, 15, 16, 17], "client: how it finds the endpoint"),
    ("WEP", &[22, 24, 26, 27, 31], "client: what it does after an error, or without reflection"),
    ("WAPI", &[2], "operator: profiles may be switched off; ours are on"),
    ("WAPI", &[3], "endpoint, as it likes: the WIT profile is optional; it is not offered, see WAPI-55"),
    ("WAPI", &[5, 6], "client: keeps its stream open"),
    ("WAPI", &[12, 13, 14, 15, 17, 18, 23, 31, 42], "client: what it does with a message"),
    ("WAPI", &[27, 29, 30, 34, 35, 40, 46, 47], "client: hints, retries and redactions"),
    ("WAPI", &[52, 53, 54], "client: whether and how it validates by itself"),
    ("WAPI", &[56, 60, 62, 63, 65, 68, 69], "client of the WIT profile"),
    ("WAPI", &[57, 58, 59, 61, 64, 66, 67, 74, 76], "endpoint with the WIT profile, which is not offered, see WAPI-55"),
    ("WAPI", &[77], "workload: copes with any hint"),
];

fn test_names() -> Vec<&'static str> {
    let lines = SOURCES.iter().flat_map(|source| {
        let lines: Vec<&str> = source.lines().collect();
        lines.windows(2).filter(|w| w[0].starts_with("#[test]") || w[0].starts_with("#[tokio::test")).map(|w| w[1]).collect::<Vec<_>>()
    });
    lines.filter_map(|line| line.trim_start_matches("async ").strip_prefix("fn ")?.split('(').next()).collect()
}

/// How often a number stands at the beginning of a test's name, alone or after others.
fn tested(part: &str, number: usize) -> usize {
    let wanted = format!("{}_{number:02}_", part.to_lowercase());
    test_names()
        .into_iter()
        .filter(|name| {
            let mut rest = *name;
            while let Some(tail) = rest.strip_prefix("wep_").or_else(|| rest.strip_prefix("wapi_")) {
                if rest.starts_with(&wanted) {
                    return true;
                }
                rest = tail.split_once('_').map_or("", |(_, after)| after);
            }
            false
        })
        .count()
}

#[test]
fn every_requirement_is_tested_once_or_somebody_elses() {
    let mut wrong = Vec::new();
    for (part, count) in COUNTS {
        for number in 1..=count {
            let listed = ELSEWHERE.iter().filter(|(p, numbers, _)| *p == part && numbers.contains(&number)).count();
            if listed + tested(part, number) != 1 {
                wrong.push(format!("{part}-{number}"));
            }
        }
    }
    assert!(wrong.is_empty(), "neither tested nor listed once, or both: {wrong:?}");
}

#[test]
fn nothing_is_listed_or_tested_that_does_not_exist() {
    for (part, numbers, why) in ELSEWHERE {
        let (_, count) = COUNTS.iter().find(|(p, _)| *p == part).unwrap();
        assert!(numbers.iter().all(|n| (1..=*count).contains(n)) && !why.is_empty(), "{part} {numbers:?}");
    }
    for (part, count) in COUNTS {
        assert!((count + 1..=99).all(|number| tested(part, number) == 0), "{part}");
    }
}
