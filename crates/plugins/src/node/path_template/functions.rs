//! The functions of templates: some of Go's own, and of those of Sprig that SPIRE offers the ones that help to make a path.
//!
//! Left out are those that yield what no path may hold (quotes, spaces, base64), those that differ from call to call, and
//! maps. One line a function; the argument that is piped in comes last, as in Go.

use aws_lc_rs::digest;
use countersign_identity::key::hex;
use regex::Regex;

use super::{Kind, Value};

use Kind::{List, Number, Text, Truth};

/// Most arguments of one call.
pub(super) const ARGUMENTS_MAX: usize = 16;
/// Largest compiled regular expression, in bytes; the configuration is trusted, but a slip must not cost gigabytes.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// What a function takes.
#[derive(Debug, Clone, Copy)]
enum Takes {
    /// These.
    These(&'static [Kind]),
    /// At least this many of any kind that can be printed.
    Any(usize),
    /// A text, then as many more of any kind.
    Format,
    /// A list or a map, and a number or a name.
    Index,
    /// A list, a map or a text.
    Len,
}

/// What a function yields.
#[derive(Debug, Clone, Copy)]
enum Gives {
    This(Kind),
    /// The kind of its last argument, which all its arguments must have, beginning with this one.
    SameFrom(usize),
}

type Body = fn(&[Value]) -> Result<Value, String>;
type RegexBody = fn(&Regex, &[Value]) -> Value;

/// Every function: name, what it takes, what it yields, what it does.
const FUNCTIONS: &[(&str, Takes, Gives, Body)] = &[
    ("print", Takes::Any(1), Gives::This(Text), |a| Ok(Value::Text(print(a)))),
    ("printf", Takes::Format, Gives::This(Text), printf),
    ("len", Takes::Len, Gives::This(Number), len),
    ("index", Takes::Index, Gives::This(Text), index),
    ("not", Takes::Any(1), Gives::This(Truth), |a| Ok(Value::Truth(!a.first().is_some_and(Value::is_true)))),
    // These two are evaluated argument by argument, where the arguments are.
    ("and", Takes::Any(1), Gives::SameFrom(0), |_| Err(mismatch("and"))),
    ("or", Takes::Any(1), Gives::SameFrom(0), |_| Err(mismatch("or"))),
    ("eq", Takes::Any(2), Gives::This(Truth), |a| Ok(Value::Truth(a.iter().skip(1).any(|v| Some(v) == a.first())))),
    ("ne", Takes::These(&[Text, Text]), Gives::This(Truth), |a| Ok(Value::Truth(a.first() != a.get(1)))),
    ("lower", Takes::These(&[Text]), Gives::This(Text), |a| on_text(a, str::to_lowercase)),
    ("upper", Takes::These(&[Text]), Gives::This(Text), |a| on_text(a, str::to_uppercase)),
    ("trim", Takes::These(&[Text]), Gives::This(Text), |a| on_text(a, |s| s.trim().to_owned())),
    ("nospace", Takes::These(&[Text]), Gives::This(Text), |a| on_text(a, |s| s.chars().filter(|c| !c.is_whitespace()).collect())),
    ("trimAll", Takes::These(&[Text, Text]), Gives::This(Text), |a| on_texts(a, |set, s| s.trim_matches(|c| set.contains(c)).to_owned())),
    ("trimPrefix", Takes::These(&[Text, Text]), Gives::This(Text), |a| on_texts(a, |p, s| s.strip_prefix(p).unwrap_or(s).to_owned())),
    ("trimSuffix", Takes::These(&[Text, Text]), Gives::This(Text), |a| on_texts(a, |p, s| s.strip_suffix(p).unwrap_or(s).to_owned())),
    ("trunc", Takes::These(&[Number, Text]), Gives::This(Text), trunc),
    ("substr", Takes::These(&[Number, Number, Text]), Gives::This(Text), substr),
    ("replace", Takes::These(&[Text, Text, Text]), Gives::This(Text), |a| match a {
        [Value::Text(old), Value::Text(new), Value::Text(s)] => Ok(Value::Text(s.replace(old.as_str(), new))),
        _ => Err(mismatch("replace")),
    }),
    ("contains", Takes::These(&[Text, Text]), Gives::This(Truth), |a| on_texts_truth(a, |part, s| s.contains(part))),
    ("hasPrefix", Takes::These(&[Text, Text]), Gives::This(Truth), |a| on_texts_truth(a, |part, s| s.starts_with(part))),
    ("hasSuffix", Takes::These(&[Text, Text]), Gives::This(Truth), |a| on_texts_truth(a, |part, s| s.ends_with(part))),
    ("toString", Takes::Any(1), Gives::This(Text), |a| Ok(Value::Text(print(a)))),
    ("default", Takes::Any(2), Gives::SameFrom(0), |a| {
        Ok(a.last().filter(|v| v.is_true()).or(a.first()).cloned().unwrap_or(Value::Truth(false)))
    }),
    ("coalesce", Takes::Any(1), Gives::SameFrom(0), |a| {
        Ok(a.iter().find(|v| v.is_true()).or(a.last()).cloned().unwrap_or(Value::Truth(false)))
    }),
    ("empty", Takes::Any(1), Gives::This(Truth), |a| Ok(Value::Truth(!a.first().is_some_and(Value::is_true)))),
    ("ternary", Takes::These(&[Text, Text, Truth]), Gives::This(Text), |a| match a {
        [yes, no, Value::Truth(truth)] => Ok(if *truth { yes.clone() } else { no.clone() }),
        _ => Err(mismatch("ternary")),
    }),
    ("splitList", Takes::These(&[Text, Text]), Gives::This(List), |a| match a {
        [Value::Text(separator), Value::Text(s)] => Ok(Value::List(s.split(separator.as_str()).map(str::to_owned).collect())),
        _ => Err(mismatch("splitList")),
    }),
    ("join", Takes::These(&[Text, List]), Gives::This(Text), |a| match a {
        [Value::Text(separator), Value::List(list)] => Ok(Value::Text(list.join(separator))),
        _ => Err(mismatch("join")),
    }),
    ("first", Takes::These(&[List]), Gives::This(Text), |a| on_list("first", a, |l| l.first())),
    ("last", Takes::These(&[List]), Gives::This(Text), |a| on_list("last", a, |l| l.last())),
    ("has", Takes::These(&[Text, List]), Gives::This(Truth), |a| match a {
        [Value::Text(wanted), Value::List(list)] => Ok(Value::Truth(list.contains(wanted))),
        _ => Err(mismatch("has")),
    }),
    ("sha1sum", Takes::These(&[Text]), Gives::This(Text), |a| {
        on_text(a, |s| hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, s.as_bytes()).as_ref()))
    }),
    ("sha256sum", Takes::These(&[Text]), Gives::This(Text), |a| {
        on_text(a, |s| hex(digest::digest(&digest::SHA256, s.as_bytes()).as_ref()))
    }),
];

/// Those whose first argument is a regular expression, written down in the template so that it is checked with it.
const REGEX_FUNCTIONS: &[(&str, &[Kind], Kind, RegexBody)] = &[
    ("regexMatch", &[Text], Truth, |r, a| Value::Truth(r.is_match(text_of(a.first())))),
    ("regexFind", &[Text], Text, |r, a| Value::Text(r.find(text_of(a.first())).map(|m| m.as_str().to_owned()).unwrap_or_default())),
    ("regexReplaceAll", &[Text, Text], Text, |r, a| Value::Text(r.replace_all(text_of(a.first()), text_of(a.get(1))).into_owned())),
    ("regexReplaceAllLiteral", &[Text, Text], Text, |r, a| {
        Value::Text(r.replace_all(text_of(a.first()), regex::NoExpand(text_of(a.get(1)))).into_owned())
    }),
];

/// A function, chosen and checked.
#[derive(Clone)]
pub(super) enum Call {
    Plain(&'static str, Body),
    Regex(&'static str, Regex, RegexBody),
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Call {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Plain(name, _) | Self::Regex(name, ..) => name,
        }
    }

    pub(super) fn call(&self, arguments: &[Value]) -> Result<Value, String> {
        match self {
            Self::Plain(_, body) => body(arguments),
            Self::Regex(_, regex, body) => Ok(body(regex, arguments)),
        }
    }
}

/// A function by its name, for arguments of these kinds; `first` is the first argument where it stands in the template. Says
/// what it yields, and how many of the first arguments are taken care of already.
pub(super) fn find(name: &str, kinds: &[Kind], first: Option<&Value>) -> Result<(Call, Kind, usize), String> {
    if kinds.len() > ARGUMENTS_MAX {
        return Err(format!("`{name}` has more than {ARGUMENTS_MAX} arguments"));
    }
    if let Some((name, takes, gives, body)) = REGEX_FUNCTIONS.iter().find(|(n, ..)| *n == name) {
        let Some(Value::Text(pattern)) = first else {
            return Err(format!("the first argument of `{name}` must be a regular expression in quotes"));
        };
        check(name, takes, kinds.get(1..).unwrap_or_default(), 1)?;
        let regex = regex::RegexBuilder::new(pattern).size_limit(REGEX_BYTES_MAX).build();
        let regex = regex.map_err(|_| format!("`{pattern}` is not a regular expression that `{name}` takes"))?;
        return Ok((Call::Regex(name, regex, *body), *gives, 1));
    }
    let Some((name, takes, gives, body)) = FUNCTIONS.iter().find(|(n, ..)| *n == name) else {
        return Err(format!("there is no function `{name}`, supported are {}", names().join(", ")));
    };
    let scalar = |k: &Kind| matches!(k, Text | Number | Truth);
    match takes {
        Takes::These(wanted) => check(name, wanted, kinds, 0)?,
        Takes::Any(least) if kinds.len() < *least => return Err(format!("`{name}` takes at least {least} arguments, not {}", kinds.len())),
        Takes::Any(_) if matches!(*name, "not" | "empty" | "toString") && kinds.len() > 1 => {
            return Err(format!("`{name}` takes one argument, not {}", kinds.len()));
        }
        Takes::Any(_) if matches!(*name, "print" | "toString" | "eq") && !kinds.iter().all(scalar) => {
            return Err(format!("`{name}` takes texts, numbers and truths only; pick one of a list with `index` or `join` it"));
        }
        Takes::Any(_) => {}
        Takes::Format => {
            let Some(Value::Text(format)) = first else { return Err("the format of `printf` must be a text in quotes".to_owned()) };
            check_format(format, kinds.get(1..).unwrap_or_default())?;
        }
        Takes::Index => match kinds {
            [List, Number] | [Kind::Map, Text] => {}
            _ => return Err("`index` takes a list and a number, or a map and a name in quotes".to_owned()),
        },
        Takes::Len => match kinds {
            [List | Kind::Map | Text] => {}
            _ => return Err("`len` takes a list, a map or a text".to_owned()),
        },
    }
    let gives = match gives {
        Gives::This(kind) => *kind,
        Gives::SameFrom(start) => {
            let of_interest = kinds.get(*start..).unwrap_or_default();
            let last = of_interest.last().copied().unwrap_or(Truth);
            if !of_interest.iter().all(|k| *k == last) {
                return Err(format!("the arguments of `{name}` must be of one kind"));
            }
            last
        }
    };
    Ok((Call::Plain(name, *body), gives, 0))
}

fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = FUNCTIONS.iter().map(|f| f.0).chain(REGEX_FUNCTIONS.iter().map(|f| f.0)).collect();
    names.sort_unstable();
    names
}

fn check(name: &str, wanted: &[Kind], kinds: &[Kind], before: usize) -> Result<(), String> {
    if wanted.len() != kinds.len() {
        return Err(format!("`{name}` takes {} arguments, not {}", wanted.len() + before, kinds.len() + before));
    }
    for (place, (wanted, found)) in wanted.iter().zip(kinds).enumerate() {
        if wanted != found {
            return Err(format!("argument {} of `{name}` is {}, expected {}", place + before + 1, found.name(), wanted.name()));
        }
    }
    Ok(())
}

/// Every verb has its argument and fits its kind.
fn check_format(format: &str, kinds: &[Kind]) -> Result<(), String> {
    let mut kinds = kinds.iter();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            continue;
        }
        let verb = characters.next();
        if verb == Some('%') {
            continue;
        }
        match (verb, kinds.next()) {
            (Some('s'), Some(Text)) | (Some('d'), Some(Number)) | (Some('v'), Some(Text | Number | Truth)) => {}
            (Some(verb @ ('s' | 'd' | 'v')), Some(found)) => return Err(format!("`%{verb}` of `printf` does not take {}", found.name())),
            (Some('s' | 'd' | 'v'), None) => return Err("`printf` has more verbs than arguments".to_owned()),
            _ => return Err("`printf` knows the verbs %s, %d, %v and %% only".to_owned()),
        }
    }
    if kinds.next().is_some() { Err("`printf` has more arguments than verbs".to_owned()) } else { Ok(()) }
}

fn mismatch(name: &str) -> String {
    format!("BUG: the arguments of `{name}` were not checked")
}

fn text_of(value: Option<&Value>) -> &str {
    match value {
        Some(Value::Text(text)) => text,
        _ => "",
    }
}

fn on_text(arguments: &[Value], f: impl FnOnce(&str) -> String) -> Result<Value, String> {
    match arguments {
        [Value::Text(text)] => Ok(Value::Text(f(text))),
        _ => Err(mismatch("a function of one text")),
    }
}

fn on_texts(arguments: &[Value], f: impl FnOnce(&str, &str) -> String) -> Result<Value, String> {
    match arguments {
        [Value::Text(first), Value::Text(second)] => Ok(Value::Text(f(first, second))),
        _ => Err(mismatch("a function of two texts")),
    }
}

fn on_texts_truth(arguments: &[Value], f: impl FnOnce(&str, &str) -> bool) -> Result<Value, String> {
    match arguments {
        [Value::Text(first), Value::Text(second)] => Ok(Value::Truth(f(first, second))),
        _ => Err(mismatch("a function of two texts")),
    }
}

fn on_list(name: &str, arguments: &[Value], f: impl FnOnce(&Vec<String>) -> Option<&String>) -> Result<Value, String> {
    match arguments {
        [Value::List(list)] => f(list).cloned().map(Value::Text).ok_or_else(|| format!("`{name}` of an empty list")),
        _ => Err(mismatch(name)),
    }
}

/// Go puts a space between two operands when neither is a text.
fn print(arguments: &[Value]) -> String {
    let mut out = String::new();
    for (place, value) in arguments.iter().enumerate() {
        let before = place.checked_sub(1).and_then(|p| arguments.get(p));
        if before.is_some_and(|b| b.kind() != Text) && value.kind() != Text {
            out.push(' ');
        }
        out.push_str(&value.to_text());
    }
    out
}

fn printf(arguments: &[Value]) -> Result<Value, String> {
    let Some((Value::Text(format), values)) = arguments.split_first() else { return Err(mismatch("printf")) };
    let mut values = values.iter();
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        match c {
            '%' if characters.next() == Some('%') => out.push('%'),
            '%' => out.push_str(&values.next().map(Value::to_text).unwrap_or_default()),
            c => out.push(c),
        }
    }
    Ok(Value::Text(out))
}

fn len(arguments: &[Value]) -> Result<Value, String> {
    let length = match arguments {
        [Value::List(list)] => list.len(),
        [Value::Map(map)] => map.len(),
        [Value::Text(text)] => text.len(),
        _ => return Err(mismatch("len")),
    };
    Ok(Value::Number(i64::try_from(length).unwrap_or(i64::MAX)))
}

fn index(arguments: &[Value]) -> Result<Value, String> {
    match arguments {
        [Value::List(list), Value::Number(place)] => usize::try_from(*place)
            .ok()
            .and_then(|p| list.get(p))
            .cloned()
            .map(Value::Text)
            .ok_or_else(|| format!("`index` {place} of a list of {}", list.len())),
        // A name that is not there is the empty text, as in Go.
        [Value::Map(map), Value::Text(key)] => Ok(Value::Text(map.get(key).cloned().unwrap_or_default())),
        _ => Err(mismatch("index")),
    }
}

/// By bytes, as in Sprig; within a character there is nothing to cut.
fn cut(text: &str, from: usize, to: usize) -> Result<Value, String> {
    text.get(from..to).map(|part| Value::Text(part.to_owned())).ok_or_else(|| "a text is cut outside it or within a character".to_owned())
}

fn trunc(arguments: &[Value]) -> Result<Value, String> {
    let [Value::Number(count), Value::Text(text)] = arguments else { return Err(mismatch("trunc")) };
    let bytes = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX).min(text.len());
    if *count < 0 { cut(text, text.len() - bytes, text.len()) } else { cut(text, 0, bytes) }
}

fn substr(arguments: &[Value]) -> Result<Value, String> {
    let [Value::Number(start), Value::Number(end), Value::Text(text)] = arguments else { return Err(mismatch("substr")) };
    let end = usize::try_from(*end).unwrap_or(text.len()).min(text.len());
    cut(text, usize::try_from(*start).unwrap_or(0), end)
}
