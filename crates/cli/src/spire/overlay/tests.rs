//! Each flag takes the place of what the file says under its key, unless it has the zero value of its kind.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use super::*;
use crate::spire::{agent, server};

/// Block, flags, and the keys whose place they take.
type Role = (&'static str, &'static [Flag], &'static [(&'static str, &'static str)]);

const SERVER: Role = ("server", server::run::FLAGS, server::run::SETTINGS);
const AGENT: Role = ("agent", agent::run::FLAGS, agent::run::SETTINGS);

/// What the block says under a key, with these flags laid over a file with this line in it.
fn overlaid((block, flags, settings): Role, line: &str, given: &[&str], key: &'static str) -> Option<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{block} {{\n}}\n{block} {{\n{line}\n}}\n")).unwrap();
    let path = file.path().display().to_string();
    let arguments: Vec<String> = ["-config", &path].iter().chain(given).map(|a| (*a).to_owned()).collect();
    let given = Given::parse(&[flags], &arguments).unwrap();
    let mut top = load(&given, block, "/nowhere", flags, settings).unwrap();
    let mut section = top.section(block).unwrap().unwrap();
    let text = section.clone().string(key).ok().flatten().map(|t| t.value);
    text.or_else(|| section.clone().integer(key).ok().flatten().map(|n| n.value.to_string()))
        .or_else(|| section.boolean(key).ok().flatten().map(|b| b.value.to_string()))
}

#[test]
fn every_flag_takes_the_place_of_its_setting_and_one_of_the_zero_value_does_not() {
    for role @ (block, flags, settings) in [SERVER, AGENT] {
        let overlaying: BTreeSet<&str> = settings.iter().map(|(flag, _)| *flag).collect();
        let all: BTreeSet<&str> = flags.iter().map(|f| f.name).filter(|name| !["config", "expandEnv"].contains(name)).collect();
        assert_eq!(overlaying, all, "{block}");
        for (name, key) in settings {
            let flag = flags.iter().find(|f| f.name == *name).unwrap();
            let (before, given, zero, after) = match flag.kind {
                Kind::Text => ("\"before\"", format!("-{name}=after"), format!("-{name}="), "after"),
                Kind::Number => ("1", format!("-{name}=7"), format!("-{name}=0"), "7"),
                _ => ("false", format!("-{name}"), format!("-{name}=false"), "true"),
            };
            let line = format!("{key} = {before}");
            let overlaid = |line: &str, given: &[&str]| overlaid(role, line, given, key);
            assert_eq!(overlaid(&line, &[&given]).as_deref(), Some(after), "{block} -{name}");
            assert_eq!(overlaid("", &[&given]).as_deref(), Some(after), "{block} -{name} alone");
            assert_eq!(overlaid(&line, &[&zero]).as_deref(), Some(before.trim_matches('"')), "{block} -{name} with its zero value");
            assert_eq!(overlaid("", &[&zero]), None, "{block} -{name} with its zero value alone");
            if flag.kind == Kind::Switch {
                assert_eq!(overlaid(&format!("{key} = true"), &[&zero]).as_deref(), Some("true"), "{block} -{name} cannot switch off");
            }
        }
    }
}

#[test]
fn the_environment_is_looked_at_where_that_is_asked_for() {
    let home = |given: &[&str]| overlaid(SERVER, "data_dir = \"$PATH\"", given, "data_dir");
    assert_eq!(home(&[]).as_deref(), Some("$PATH"));
    assert_eq!(home(&["-expandEnv"]), std::env::var("PATH").ok());
}
