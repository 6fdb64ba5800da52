//! Flags in the syntax of Go's `flag` package, and its words about those it does not take.
//!
//! One dash or two; `-name value` and `-name=value`; a switch takes its value only after `=`. The first word that is no flag, or
//! `--`, ends them. Later values replace earlier ones, except where the kind collects them.

use std::collections::BTreeMap;

use super::go;

/// What a flag holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One text.
    Text,
    /// One whole number.
    Number,
    /// A length of time.
    Duration,
    /// A length of time, said of in the words of Go's `time` package.
    Timeout,
    /// True or false.
    Switch,
    /// True once it is given, whatever its value: `-flag=false` sets it too. Scripts may rely on that.
    Set,
    /// A text each time.
    Texts,
    /// Texts with commas between them.
    Commas,
    /// `true`, `false`, or anything else for both.
    Choice,
    /// The form of the output, under whatever name.
    Output,
}

/// One flag.
#[derive(Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// As it would be written on the command line; empty for the kind's zero value.
    pub(super) default: &'static str,
    pub(super) help: &'static str,
}

/// A flag without a default.
pub(super) const fn flag(name: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag { name, kind, default: "", help }
}

/// The form of the output: SPIRE's spelling of it.
pub(super) const OUTPUT: &[Flag] = &[flag("output", Kind::Output, "Form of the output: pretty (the default) or json.")];
/// Under which [`Kind::Output`] is kept.
const OUTPUT_KEY: &str = "output";

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Text(String),
    Number(i64),
    Switch(bool),
    Texts(Vec<String>),
    Choice(Option<bool>),
    /// The form as it is called, if it was given.
    Output(Option<&'static str>),
}

/// Why flags were not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Help was asked for in a way that the program did not see before.
    Help,
    /// In Go's words.
    Said(String),
}

impl Refused {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Help => "flag: help requested",
            Self::Said(text) => text,
        }
    }
}

/// The values of a command's flags.
#[derive(Debug)]
pub(super) struct Given {
    values: BTreeMap<&'static str, Value>,
}

impl Given {
    /// Reads arguments.
    pub(super) fn parse(flags: &[&[Flag]], arguments: &[String]) -> Result<Self, Refused> {
        let mut given = Self { values: flags.iter().copied().flatten().map(|f| (key(f), zero(f))).collect() };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let Some(dashed) = argument.strip_prefix('-').filter(|rest| !rest.is_empty()) else { break };
            let word = dashed.strip_prefix('-').unwrap_or(dashed);
            if word.is_empty() {
                break;
            }
            if word.starts_with(['-', '=']) {
                return Err(Refused::Said(format!("bad flag syntax: {argument}")));
            }
            let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
            let Some(flag) = flags.iter().copied().flatten().find(|f| f.name == name) else {
                let is_help = name == "h" || name == "help";
                return Err(if is_help { Refused::Help } else { Refused::Said(format!("flag provided but not defined: -{name}")) });
            };
            let value = match value {
                Some(value) => value,
                None if matches!(flag.kind, Kind::Switch | Kind::Set) => "true",
                None => arguments.next().ok_or_else(|| Refused::Said(format!("flag needs an argument: -{name}")))?,
            };
            given.set(flag, value)?;
        }
        Ok(given)
    }

    fn set(&mut self, flag: &Flag, text: &str) -> Result<(), Refused> {
        let invalid = |why: &str| Refused::Said(format!("invalid value {} for flag -{}: {why}", go::quoted(text), flag.name));
        let held = self.values.entry(key(flag)).or_insert_with(|| zero(flag));
        *held = match flag.kind {
            Kind::Text => Value::Text(text.to_owned()),
            Kind::Number => Value::Number(go::parse_int(text).map_err(invalid)?),
            Kind::Duration => Value::Number(go::parse_duration(text).map_err(|_| invalid("parse error"))?),
            Kind::Timeout => Value::Number(go::parse_duration(text).map_err(|e| invalid(&e))?),
            Kind::Switch => Value::Switch(
                go::parse_bool(text)
                    .ok_or_else(|| Refused::Said(format!("invalid boolean value {} for -{}: parse error", go::quoted(text), flag.name)))?,
            ),
            Kind::Set => Value::Switch(true),
            Kind::Texts => {
                let mut texts = if let Value::Texts(texts) = held { std::mem::take(texts) } else { Vec::new() };
                texts.push(text.to_owned());
                Value::Texts(texts)
            }
            Kind::Commas => Value::Texts(text.split(',').map(str::to_owned).collect()),
            Kind::Choice => Value::Choice(match text {
                "true" => Some(true),
                "false" => Some(false),
                _ => None,
            }),
            Kind::Output => {
                if let Value::Output(Some(form)) = held
                    && *form != text
                {
                    return Err(invalid(&format!("the output format has already been set to {}", go::quoted(form))));
                }
                match text.to_lowercase().as_str() {
                    "json" => Value::Output(Some("json")),
                    "pretty" | "prettyprint" => Value::Output(Some("pretty")),
                    _ => return Err(invalid(&format!("bad formatter flag: unknown format option: {}", go::quoted(text)))),
                }
            }
        };
        Ok(())
    }

    /// A text; empty if it was not given and has no default.
    pub(super) fn text(&self, name: &str) -> &str {
        if let Some(Value::Text(text)) = self.values.get(name) { text } else { "" }
    }

    /// Texts in the order given.
    pub(super) fn texts(&self, name: &str) -> &[String] {
        if let Some(Value::Texts(texts)) = self.values.get(name) { texts } else { &[] }
    }

    /// A number, or a length of time in nanoseconds.
    pub(super) fn number(&self, name: &str) -> i64 {
        if let Some(Value::Number(number)) = self.values.get(name) { *number } else { 0 }
    }

    /// Whether a switch is on.
    pub(super) fn is_on(&self, name: &str) -> bool {
        matches!(self.values.get(name), Some(Value::Switch(true)))
    }

    /// True, false, or either.
    pub(super) fn choice(&self, name: &str) -> Option<bool> {
        if let Some(Value::Choice(choice)) = self.values.get(name) { *choice } else { None }
    }

    /// Whether the output is for programs.
    pub(super) fn is_json(&self) -> bool {
        matches!(self.values.get(OUTPUT_KEY), Some(Value::Output(Some("json"))))
    }
}

fn key(flag: &Flag) -> &'static str {
    if flag.kind == Kind::Output { OUTPUT_KEY } else { flag.name }
}

fn zero(flag: &Flag) -> Value {
    match flag.kind {
        Kind::Text => Value::Text(flag.default.to_owned()),
        Kind::Number => Value::Number(go::parse_int(flag.default).unwrap_or_default()),
        Kind::Duration | Kind::Timeout => Value::Number(go::parse_duration(flag.default).unwrap_or_default()),
        Kind::Switch | Kind::Set => Value::Switch(false),
        Kind::Texts | Kind::Commas => Value::Texts(Vec::new()),
        Kind::Choice => Value::Choice(None),
        Kind::Output => Value::Output(None),
    }
}

/// What `-h` prints of a command's flags.
pub(super) fn usage(command: &str, flags: &[&[Flag]]) -> String {
    let mut all: Vec<&Flag> = flags.iter().copied().flatten().collect();
    all.sort_by_key(|f| f.name);
    all.iter().fold(format!("Usage of {command}:\n"), |text, flag| {
        let kind = match flag.kind {
            Kind::Text => " string",
            Kind::Number => " int",
            Kind::Duration => " duration",
            Kind::Switch | Kind::Set => "",
            Kind::Timeout | Kind::Texts | Kind::Commas | Kind::Choice | Kind::Output => " value",
        };
        let default = match (flag.kind, flag.default) {
            (_, "") => String::new(),
            (Kind::Text, default) => format!(" (default {})", go::quoted(default)),
            (_, default) => format!(" (default {default})"),
        };
        text + &format!("  -{}{kind}\n    \t{}{default}\n", flag.name, flag.help)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const FLAGS: &[&[Flag]] = &[
        OUTPUT,
        &[
            flag("text", Kind::Text, "T."),
            Flag { name: "ttl", kind: Kind::Number, default: "600", help: "N." },
            Flag { name: "for", kind: Kind::Duration, default: "720h0m0s", help: "D." },
            Flag { name: "timeout", kind: Kind::Timeout, default: "5s", help: "W." },
            flag("on", Kind::Switch, "S."),
            flag("set", Kind::Set, "A."),
            flag("selector", Kind::Texts, "M."),
            flag("audience", Kind::Commas, "C."),
            flag("banned", Kind::Choice, "B."),
            flag("format", Kind::Output, "F."),
        ],
    ];

    fn parse(line: &str) -> Result<Given, Refused> {
        let arguments: Vec<String> = line.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect();
        Given::parse(FLAGS, &arguments)
    }

    #[test]
    fn one_dash_or_two_a_space_or_an_equals_sign_are_the_same() {
        for line in ["-text a=b", "--text a=b", "-text=a=b", "--text=a=b"] {
            assert_eq!(parse(line).unwrap().text("text"), "a=b", "{line}");
        }
        let given = parse("-text -on -on -selector a -selector=b -audience x,y -ttl 0x10 -for 1h").unwrap();
        assert_eq!((given.text("text"), given.is_on("on")), ("-on", true));
        assert_eq!((given.texts("selector").join("|"), given.texts("audience").join("|")), ("a|b".to_owned(), "x|y".to_owned()));
        assert_eq!((given.number("ttl"), given.number("for")), (16, 3_600_000_000_000));
        let given = parse("").unwrap();
        assert_eq!((given.number("ttl"), given.number("timeout"), given.is_on("on"), given.is_json()), (600, 5_000_000_000, false, false));
    }

    #[test]
    fn switches_take_a_value_only_after_an_equals_sign() {
        assert!(!parse("-on=false").unwrap().is_on("on"));
        assert!(parse("-on=T").unwrap().is_on("on"));
        // The word ends the flags.
        let given = parse("-on false -text a").unwrap();
        assert!(given.is_on("on") && given.text("text").is_empty());
        assert!(parse("-set=false").unwrap().is_on("set"));
        assert_eq!(parse("-banned true").unwrap().choice("banned"), Some(true));
        assert_eq!(parse("-banned no").unwrap().choice("banned"), None);
        assert!(parse("-- -bogus").is_ok() && parse("- -bogus").is_ok() && parse("word -bogus").is_ok());
    }

    #[test]
    fn refusals_are_in_the_words_of_go() {
        let refused = |line: &str| parse(line).unwrap_err().text().to_owned();
        for (line, said) in [
            ("-bogus", "flag provided but not defined: -bogus"),
            ("--bogus=1", "flag provided but not defined: -bogus"),
            ("-text", "flag needs an argument: -text"),
            ("---x", "bad flag syntax: ---x"),
            ("-=x", "bad flag syntax: -=x"),
            ("-on=maybe", "invalid boolean value \"maybe\" for -on: parse error"),
            ("-ttl abc", "invalid value \"abc\" for flag -ttl: parse error"),
            ("-ttl 99999999999999999999", "invalid value \"99999999999999999999\" for flag -ttl: value out of range"),
            ("-for abc", "invalid value \"abc\" for flag -for: parse error"),
            ("-timeout 5", "invalid value \"5\" for flag -timeout: time: missing unit in duration \"5\""),
            ("-output xml", "invalid value \"xml\" for flag -output: bad formatter flag: unknown format option: \"xml\""),
            (
                "-output json -output pretty",
                "invalid value \"pretty\" for flag -output: the output format has already been set to \"json\"",
            ),
            ("-h=true", "flag: help requested"),
        ] {
            assert_eq!(refused(line), said, "{line}");
        }
        assert!(parse("-output JSON -format json").unwrap().is_json());
    }

    #[test]
    fn help_lists_flags_by_name_with_their_kinds_and_defaults() {
        let expected = "Usage of x:\n  -audience value\n    \tC.\n  -banned value\n    \tB.\n  -for duration\n    \tD. (default 720h0m0s)\n  -format value\n    \tF.\n  -on\n    \tS.\n  -output value\n    \tForm of the output: pretty (the default) or json.\n  -selector value\n    \tM.\n  -set\n    \tA.\n  -text string\n    \tT.\n  -timeout value\n    \tW. (default 5s)\n  -ttl int\n    \tN. (default 600)\n";
        assert_eq!(usage("x", FLAGS), expected);
    }
}
